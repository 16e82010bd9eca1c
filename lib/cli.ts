#!/usr/bin/env node
/** The command line. Exit code 0, 1 with one line on stderr if something failed, 2 if the usage was wrong. */
import { CommanderError } from 'commander';
import { printError, UsageError } from './cli/output.js';

function exitCodeOf(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
  printError((error as Error)?.message ?? String(error));
  return error instanceof UsageError ? 2 : 1;
}

// The reader of a pipe may have seen enough.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));
}

try {
  // Imported in here: an addon that cannot be loaded is one line, too.
  const { program } = await import('./cli/program.js');
  await program.parseAsync();
} catch (error) {
  process.exitCode = exitCodeOf(error);
}
