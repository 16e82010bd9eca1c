#!/usr/bin/env node
/** The command line. Exit code 0, 1 with one line on stderr if something failed, 2 if the usage was wrong. */
import { CommanderError } from 'commander';
import { printError, UsageError } from './cli/output.js';
import { fileError } from './weights/file.js';

function exitCodeOf(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
  printError((error as Error)?.message ?? String(error));
  return error instanceof UsageError ? 2 : 1;
}

// The reader of a pipe may have seen enough; one of errors may be gone while the work goes on.
process.stderr.on('error', () => undefined);
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(process.exitCode ?? 0);
  printError((fileError('standard output', error) as Error).message);
  process.exit(1);
});

try {
  // Imported in here: an addon that cannot be loaded is one line, too.
  const { program } = await import('./cli/program.js');
  await program.parseAsync();
} catch (error) {
  process.exitCode = exitCodeOf(error);
}
