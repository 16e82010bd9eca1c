#!/usr/bin/env node
/** The command line. Exit code 0, 1 with one line on stderr if something failed, 2 if the usage was wrong. */
import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { benchCommand } from './cli/bench.js';
import { classifyCommand } from './cli/classify.js';
import { printError, UsageError } from './cli/common.js';
import { demoCommand } from './cli/demo.js';
import { devicesCommand } from './cli/devices.js';
import { evalCommand } from './cli/eval.js';
import { convertCommand, exportCommand } from './cli/files.js';
import { infoCommand } from './cli/info.js';
import { runCommand } from './cli/run.js';

const { version, description } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));

const program = new Command('octconv')
  .description(description)
  .version(version)
  .configureOutput({ outputError: (text) => printError(text.replace(/^error: /, '').trim()) })
  .showSuggestionAfterError(false)
  .exitOverride();
const commands = [classifyCommand, runCommand, evalCommand, infoCommand, convertCommand, exportCommand, devicesCommand, benchCommand, demoCommand];

function exitCodeOf(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
  printError(((error as Error)?.message ?? String(error)).split('\n')[0] ?? '');
  return error instanceof UsageError ? 2 : 1;
}

// The reader of a pipe may have seen enough.
process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));

try {
  for (const add of commands) add(program);
  await program.parseAsync();
} catch (error) {
  process.exitCode = exitCodeOf(error);
}
