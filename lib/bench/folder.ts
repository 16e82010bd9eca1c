import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const signals = ['SIGHUP', 'SIGINT', 'SIGTERM'] as const;

/** A temporary folder, which a signal that ends the process removes too. */
export async function inFolder<T>(work: (folder: string) => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), 'octconv-')); // no signal comes before it is listened to
  const remove = () => rmSync(folder, { recursive: true, force: true });
  const end = (_: NodeJS.Signals, number: number) => {
    remove();
    process.exit(128 + number);
  };
  for (const signal of signals) process.once(signal, end);
  try {
    return await work(folder);
  } finally {
    for (const signal of signals) process.off(signal, end);
    remove();
  }
}
