import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const numbers = { SIGHUP: 1, SIGINT: 2, SIGTERM: 15 } as const;

/** A temporary folder, which a signal that ends the process removes too. */
export async function inFolder<T>(work: (folder: string) => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), 'octconv-')); // no signal comes before it is listened to
  const remove = () => rmSync(folder, { recursive: true, force: true });
  const ended = (signal: keyof typeof numbers) => {
    remove();
    process.exit(128 + numbers[signal]);
  };
  const signals = Object.keys(numbers) as (keyof typeof numbers)[];
  for (const signal of signals) process.once(signal, ended);
  try {
    return await work(folder);
  } finally {
    for (const signal of signals) process.off(signal, ended);
    remove();
  }
}
