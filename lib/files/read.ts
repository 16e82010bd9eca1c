import { readFile, stat } from 'node:fs/promises';
import { OctconvError } from '../error.js';
import { fileError } from '../weights/file.js';

/** Configurations and labels are far smaller. */
const largest = 2 ** 24;

/**
 * The text of a file that somebody wrote: UTF-8, with or without a byte order mark.
 * @throws OctconvError that names the file, if it is no regular file, larger than 16 MiB or not UTF-8.
 */
export async function readText(path: string): Promise<string> {
  const bytes = await readBytes(path).catch((error) => {
    throw fileError(path, error);
  });
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw new OctconvError(`${path}: not UTF-8, wanted text in UTF-8`);
  }
}

async function readBytes(path: string): Promise<Uint8Array> {
  const stats = await stat(path);
  if (!stats.isFile())
    throw new OctconvError(`${path}: ${stats.isDirectory() ? 'a folder' : 'not a regular file'}, wanted a file`);
  if (stats.size > largest) throw new OctconvError(`${path}: ${stats.size} bytes, wanted at most ${largest}`);
  return readFile(path);
}
