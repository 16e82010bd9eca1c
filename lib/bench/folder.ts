import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const signals = ['SIGHUP', 'SIGINT', 'SIGTERM'] as const;

/** A temporary folder, which a signal that ends the process removes too. */
export async function inFolder<T>(work: (folder: string) => Promise<T>): Promise<T> {
  let folder: string | undefined;
  const remove = () => folder && rmSync(folder, { recursive: true, force: true });
  const end = (_: NodeJS.Signals, number: number) => {
    try {
      remove();
    } catch {
      remove(); // a thread of libuv has written a file meanwhile: what it was asked for last
    }
    process.exit(128 + number);
  };
  for (const signal of signals) process.once(signal, end);
  try {
    folder = mkdtempSync(join(tmpdir(), 'octconv-'));
    return await work(folder);
  } finally {
    for (const signal of signals) process.off(signal, end);
    remove();
  }
}
