import { mkdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { withSibling } from '../files/write.js';

/** A temporary folder, of which nothing is left when the work or the process ends. */
export function inFolder<T>(work: (folder: string) => Promise<T>): Promise<T> {
  return withSibling(join(tmpdir(), 'octconv'), (folder) => {
    mkdirSync(folder, { mode: 0o700 }); // at once: a call under way could make it when it has been removed
    return work(folder);
  });
}
