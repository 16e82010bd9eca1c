import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onExit } from 'signal-exit';
import { removeNow } from '../files/write.js';

/** A temporary folder, of which nothing is left when the work, or by a signal the process, ends. */
export async function inFolder<T>(work: (folder: string) => Promise<T>): Promise<T> {
  let folder: string | undefined;
  const remove = () => void (folder && removeNow(folder));
  const unwatch = onExit(remove, { alwaysLast: true }); // behind those that end processes which write into it
  try {
    folder = mkdtempSync(join(tmpdir(), 'octconv-'));
    return await work(folder);
  } finally {
    remove();
    unwatch();
  }
}
