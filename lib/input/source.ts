/** Where pictures come from, and their bytes. */
import { Blob } from 'node:buffer';
import { addAbortSignal, Readable } from 'node:stream';
import { ReadableStream } from 'node:stream/web';
import { fileURLToPath } from 'node:url';
import { types } from 'node:util';
import { OctconvError, show, SourceError } from '../error.js';
import { RandomFile } from '../weights/file.js';

/** A path, a `file:` URL, a picture file's bytes, or a stream of them (Node's or the web's). */
export type PictureSource = string | URL | Uint8Array | ArrayBuffer | Blob | AsyncIterable<Uint8Array>;

/** Picture files by their names; hidden files are none. */
export const isPictureFile = (path: string): boolean => /(^|\/)[^./][^/]*\.(jpe?g|png|webp)$/i.test(path);
export const pictureNames = '.jpg, .jpeg, .png, .webp';

/** What errors call a source: its file, or `what` it is and its place in a list. */
export function nameOf(source: unknown, at?: number, what = 'picture'): string {
  if (typeof source === 'string') return isPath(source) ? source : show(source);
  if (source instanceof URL) return fileOf(source) ?? source.href;
  return at === undefined ? what : `${what} ${at}`;
}

/** Whether a file can be called so: bytes that somebody made a text of are no path. */
const isPath = (text: string): boolean => text.length < 4096 && !text.includes('\0');

/**
 * All bytes of a picture file, in memory that nobody else can change: bytes given are copied. A stream is read to its
 * end, or destroyed.
 * @throws OctconvError that begins with `name` if there are more than `maxBytes`, or they cannot be read.
 */
export async function readSource(
  source: PictureSource,
  name: string,
  maxBytes: number,
  signal: AbortSignal,
): Promise<Uint8Array> {
  const check = (size: number) => {
    if (size > maxBytes) throw new SourceError(`${name}: is larger than ${maxBytes} bytes (maxBytes)`);
  };
  if (typeof source === 'string' || source instanceof URL) {
    const file = await RandomFile.open(pathOf(source, name));
    try {
      check(file.size);
      return await file.read(0, file.size);
    } finally {
      await file.close();
    }
  }
  if (types.isUint8Array(source) || types.isAnyArrayBuffer(source)) {
    check(source.byteLength);
    return new Uint8Array(types.isUint8Array(source) ? source : new Uint8Array(source));
  }
  if (source instanceof Blob) {
    check(source.size);
    return new Uint8Array(await source.arrayBuffer());
  }
  const bytes = new Joined();
  try {
    for await (const chunk of addAbortSignal(signal, streamOf(source, name))) {
      checkChunk(chunk, name);
      check(bytes.length + chunk.length);
      bytes.push(chunk);
    }
  } catch (error) {
    throw readError(error, name);
  }
  return bytes.bytes;
}

/** Chunks in one piece of memory: a list of chunks of one byte each would take hundreds of times as much. */
export class Joined {
  #memory = new Uint8Array(2 ** 16);
  length = 0;

  push(chunk: Uint8Array): void {
    const length = this.length + chunk.length;
    if (length > this.#memory.length) {
      const larger = new Uint8Array(Math.max(length, 2 * this.#memory.length));
      larger.set(this.bytes);
      this.#memory = larger;
    }
    this.#memory.set(chunk, this.length);
    this.length = length;
  }

  get bytes(): Uint8Array {
    return this.#memory.subarray(0, this.length);
  }
}

/** @throws OctconvError unless it is a part of a file. */
export function checkChunk(chunk: unknown, name: string): asserts chunk is Uint8Array {
  if (!types.isUint8Array(chunk)) throw new SourceError(`${name}: the stream gives ${typeof chunk}, wanted Uint8Array`);
}

export function readError(error: unknown, name: string): OctconvError {
  if (error instanceof OctconvError) return error;
  return new SourceError(`${name}: cannot be read: ${(error as Error | undefined)?.message ?? error}`, {
    cause: error,
  });
}

/** What a source that is no path gives, piece by piece: bytes, or whatever else is in an iterable. */
export async function* partsOf(source: unknown, name: string): AsyncGenerator<unknown, void, void> {
  try {
    if (types.isUint8Array(source)) yield new Uint8Array(source);
    else if (types.isAnyArrayBuffer(source)) yield new Uint8Array(source.slice(0));
    else if (source instanceof Blob) yield* source.stream();
    else if (source instanceof Readable || source instanceof ReadableStream) yield* streamOf(source, name);
    // Not by a Readable, which reads 16 parts ahead.
    else if (isIterable(source)) yield* source;
    else throw noSource(source, name);
  } catch (error) {
    throw readError(error, name);
  }
}

/** Takes over a source that may have to wait: a stream that fails until then must not end the process. */
export function hold(source: unknown): void {
  if (source instanceof Readable) source.on('error', () => undefined);
}

/** Lets go of a source that is not read. */
export function discard(source: unknown): void {
  if (source instanceof Readable) source.destroy();
  else if (source instanceof ReadableStream && !source.locked) source.cancel().catch(() => undefined);
}

export const isList = <S>(sources: S | readonly S[]): sources is readonly S[] => Array.isArray(sources);

/** Lets go of all that are not read. */
export function discardAll(sources: unknown): void {
  for (const source of isList(sources) ? sources : [sources]) discard(source);
}

/** @throws OctconvError if no file can be called so. */
export function pathOf(source: string | URL, name: string): string {
  const path = typeof source === 'string' ? source : fileOf(source);
  if (path === undefined) throw new SourceError(`${name}: wanted a file: URL`);
  if (isPath(path)) return path;
  throw new SourceError(`${name}: is no path; its bytes are wanted as a Uint8Array`);
}

function fileOf(url: URL): string | undefined {
  try {
    return fileURLToPath(url);
  } catch {
    return undefined;
  }
}

function streamOf(source: AsyncIterable<Uint8Array>, name: string): Readable {
  if (source instanceof Readable) return source;
  if (source instanceof ReadableStream) return Readable.fromWeb(source);
  if (isIterable(source)) return Readable.from(source);
  throw noSource(source, name);
}

const isIterable = (source: unknown): source is AsyncIterable<unknown> =>
  typeof source === 'object' && source !== null && Symbol.asyncIterator in source;

function noSource(source: unknown, name: string): OctconvError {
  const kind = Object.prototype.toString.call(source).slice(8, -1);
  return new SourceError(`${name}: got ${kind}, wanted a path, URL, Uint8Array, ArrayBuffer, Blob or stream of bytes`);
}
