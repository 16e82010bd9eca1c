/**
 * The one way of writing: a complete sibling takes the name. Whatever ends the process, the old file stays or the new
 * one is there.
 */
import { randomBytes } from 'node:crypto';
import { fsync, rmSync } from 'node:fs';
import { type FileHandle, mkdir, open, realpath, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { onExit } from 'signal-exit';
import { OctconvError } from '../error.js';
import { fileError } from '../weights/file.js';

/** What a file is made of. */
export type Chunks = Iterable<Uint8Array | string> | AsyncIterable<Uint8Array | string>;

/** By number: Yarn's PnP puts file handles of its own in the place of Node's, and theirs have no `sync`. */
const sync = promisify(fsync);

/** What a signal must not leave behind. */
const temporaries = new Set<string>();
let unwatch: (() => void) | undefined;

/** Removes a file or folder as the process ends. A call that is under way may still add a file to it: once more then. */
function removeNow(path: string): void {
  for (let tries = 0; tries < 2; tries++)
    try {
      rmSync(path, { recursive: true, force: true });
      return;
    } catch {}
}

/**
 * Runs `work` with the path of a hidden sibling of `path`, of which nothing is left when the work or the process ends.
 */
export async function withSibling<T>(path: string, work: (temporary: string) => Promise<T>): Promise<T> {
  const temporary = join(dirname(path), `.${basename(path).slice(0, 200)}.${randomBytes(6).toString('hex')}.tmp`);
  // Does not keep a signal from ending the process. Behind those that end processes which write into a folder.
  unwatch ??= onExit(() => temporaries.forEach(removeNow), { alwaysLast: true });
  temporaries.add(temporary);
  try {
    return await work(temporary);
  } finally {
    await rm(temporary, { recursive: true, force: true });
    temporaries.delete(temporary);
    if (temporaries.size === 0) {
      unwatch?.();
      unwatch = undefined;
    }
  }
}

/**
 * Writes a file as a whole. What is no regular file, as a pipe or /dev/stdout, is written to as it stands; a link stays
 * a link.
 * @throws OctconvError that names the file.
 */
export async function writeWhole(path: string, chunks: Chunks): Promise<void> {
  try {
    const target = await resolved(path);
    const there = await stat(target).catch(() => undefined);
    if (there && !there.isFile()) {
      await write(await open(target, 'w'), chunks, false); // EISDIR for a folder
      return;
    }
    await withSibling(target, async (temporary) => {
      await write(await open(temporary, 'wx', there?.mode), chunks);
      await rename(temporary, target);
      await syncFolder(dirname(target));
    });
  } catch (error) {
    throw await outputError(path, error);
  }
}

/** Writes a file that nobody looks for yet. */
export async function writeNew(path: string, chunks: Chunks): Promise<void> {
  await write(await open(path, 'wx'), chunks);
}

async function write(file: FileHandle, chunks: Chunks, toDisk = true): Promise<void> {
  try {
    for await (const chunk of chunks) await file.writeFile(chunk);
    if (toDisk) await sync(file.fd);
  } finally {
    await file.close();
  }
}

/** Names in a folder outlast a loss of power only when the folder is written, too. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r');
  try {
    await sync(folder.fd);
  } finally {
    await folder.close();
  }
}

/** The path without links; of what is not there yet, of its folder. */
export async function resolved(path: string): Promise<string> {
  const real = await realpath(path).catch(() => undefined);
  return real ?? join(await realpath(dirname(path)).catch(() => dirname(path)), basename(path));
}

/** ENOENT of a file to be written means that its folder is missing. */
async function outputError(path: string, error: unknown): Promise<unknown> {
  const { code } = error as NodeJS.ErrnoException;
  const folder = dirname(path);
  if ((code === 'ENOENT' || code === 'ENOTDIR') && !(await isFolder(folder))) return noFolder(path);
  return fileError(path, error);
}

const noFolder = (path: string) => new OctconvError(`${path}: there is no folder ${dirname(path)}`);

export async function isFolder(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined))?.isDirectory() ?? false;
}

/**
 * Says before long work that a file could not be written: that its folder is missing, that it is a folder, or that it
 * is one of the files that are read.
 * @throws OctconvError that names the file.
 */
export async function checkOutput(path: string, inputs: readonly (string | undefined)[] = []): Promise<void> {
  if (await isFolder(path)) throw new OctconvError(`${path}: a folder, wanted a file`);
  if (!(await isFolder(dirname(path)))) throw noFolder(path);
  for (const input of inputs) if (input !== undefined) await refuseInput(path, input);
}

/**
 * @throws OctconvError if both paths are one regular file or folder, by whatever links; it calls the input as `shown`.
 */
export async function refuseInput(path: string, input: string, shown = input): Promise<void> {
  const [out, read] = await Promise.all(
    [path, input].map((name) => stat(name, { bigint: true }).catch(() => undefined)),
  );
  if (!out || !read || out.dev !== read.dev || out.ino !== read.ino || !(out.isFile() || out.isDirectory())) return;
  throw new OctconvError(
    `${path}: is read, as ${shown}; wanted another ${out.isFile() ? 'file' : 'folder'} to write to`,
  );
}

/**
 * mkdir's own `recursive` never ends where a folder cannot be made in one that is there, as in /proc. For a folder that
 * is there mkdir is not called: a call under way while a signal removes the folder would make it again.
 */
export async function makeFolder(path: string): Promise<void> {
  if (await isFolder(path)) return;
  try {
    await mkdir(path);
  } catch (error) {
    if (await isFolder(path)) return; // another was first
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || (await isFolder(dirname(path)))) throw error;
    await makeFolder(dirname(path));
    await makeFolder(path);
  }
}
