import { constants, fstatSync, readSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { OctconvError, PassingError, SourceError } from '../error.js';

const reasons: Readonly<Record<string, string>> = {
  ENOENT: 'no such file',
  ENOTDIR: 'no such file',
  EISDIR: 'a folder, wanted a file',
  EEXIST: 'exists and is not a folder',
  EACCES: 'permission denied',
  EPERM: 'permission denied',
  EROFS: 'the file system is read-only',
  ENOSPC: 'no space left on the device',
  ENXIO: 'not a regular file, wanted a file',
};

/** What may be otherwise in a moment: of a disk or mount that does not answer, or a machine that is short of something. */
const passing = new Set(
  'EIO EREMOTEIO ESTALE ETIMEDOUT EHOSTDOWN ENETDOWN ENOTCONN EAGAIN EBUSY EINTR EMFILE ENFILE ENOMEM'.split(' '),
);

/** Errors of the file system in one line that names the file; anything else is passed on. */
export function fileError(path: string, error: unknown): unknown {
  const code = (error as NodeJS.ErrnoException).code;
  if (error instanceof OctconvError || typeof code !== 'string') return error;
  const Kind = passing.has(code) ? PassingError : SourceError;
  return new Kind(`${path}: ${reasons[code] ?? `cannot be used (${code})`}`);
}

/** Where that many bytes can be put, aligned for any typed array. */
export type Memory = (bytes: number) => Uint8Array<ArrayBuffer>;
export const ownMemory: Memory = (bytes) => new Uint8Array(bytes);

/** So few bytes are read sooner than a promise of them is kept: most parameters are vectors. */
const small = 2 ** 16;

/**
 * A regular file that is read piece by piece. What lies outside of it is an error before any memory is allocated, and
 * so is a read after the file was written to: its pieces may be of two files. A file that another one took the name of
 * stays as it is.
 */
export class RandomFile {
  private constructor(
    readonly path: string,
    readonly size: number,
    /** When it was last written to, in ns. */
    readonly time: bigint,
    readonly handle: FileHandle,
  ) {}

  static async open(path: string): Promise<RandomFile> {
    try {
      // Without O_NONBLOCK a pipe waits for its writer.
      return await RandomFile.of(await open(path, constants.O_RDONLY | constants.O_NONBLOCK), path);
    } catch (error) {
      throw fileError(path, error);
    }
  }

  /** A file that is open; it is closed if it is not regular. */
  static async of(handle: FileHandle, path: string): Promise<RandomFile> {
    const stat = await handle.stat({ bigint: true });
    if (stat.isFile()) return new RandomFile(path, Number(stat.size), stat.mtimeNs, handle);
    await handle.close();
    throw new SourceError(`${path}: ${stat.isDirectory() ? 'a folder' : 'not a regular file'}, wanted a file`);
  }

  /**
   * Bytes [position, position + length); by default in memory of their own, so that any typed array is aligned on them.
   */
  async read(position: number, length: number, memory: Memory = ownMemory): Promise<Uint8Array<ArrayBuffer>> {
    if (!(position >= 0 && length >= 0 && position + length <= this.size)) {
      throw new SourceError(`${this.path}: truncated at ${this.size} bytes, wanted ${length} bytes at ${position}`);
    }
    try {
      this.#open();
      const bytes = memory(length);
      for (let done = 0; done < length; ) {
        const at = position + done;
        const rest = Math.min(length - done, 2 ** 30); // a single read gives at most 2 GiB
        const bytesRead =
          length <= small
            ? readSync(this.#open(), bytes, done, rest, at)
            : (await this.handle.read(bytes, done, rest, at)).bytesRead;
        if (bytesRead === 0) break;
        done += bytesRead;
      }
      const { size, mtimeNs } = fstatSync(this.#open(), { bigint: true });
      if (Number(size) !== this.size || mtimeNs !== this.time) {
        throw new SourceError(`${this.path}: was written to since it was opened`);
      }
      return bytes;
    } catch (error) {
      throw fileError(this.path, error);
    }
  }

  #open(): number {
    if (this.handle.fd < 0) throw new SourceError(`${this.path}: was closed`);
    return this.handle.fd;
  }

  close(): Promise<void> {
    return this.handle.close();
  }
}

/** All of a regular file of at most `most` bytes. */
export async function readWhole(path: string, most: number): Promise<Uint8Array<ArrayBuffer>> {
  const file = await RandomFile.open(path);
  try {
    if (file.size > most) throw new SourceError(`${path}: ${file.size} bytes, wanted at most ${most}`);
    return await file.read(0, file.size);
  } finally {
    await file.close();
  }
}
