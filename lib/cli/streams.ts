/** `-` as a file: standard input and output. */
import { once } from 'node:events';
import { checkOutput, type Chunks, writeWhole } from '../files/write.js';

export const standardInput = 'standard input';

/** Where all of standard input is wanted: what follows its limit is not read. */
export async function readStdin(most: number): Promise<Uint8Array> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of process.stdin as AsyncIterable<Buffer>) {
    chunks.push(chunk);
    size += chunk.length;
    if (size > most) break;
  }
  return Buffer.concat(chunks, size);
}

/** Says before long work that a file, other than `-`, could not be written. */
export async function checkOut(path: string, inputs: readonly (string | undefined)[] = []): Promise<void> {
  if (path !== '-') await checkOutput(path, inputs);
}

export async function writeOut(path: string, chunks: Chunks): Promise<void> {
  if (path !== '-') return writeWhole(path, chunks);
  for await (const chunk of chunks) if (!process.stdout.write(chunk)) await once(process.stdout, 'drain');
}
