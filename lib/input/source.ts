/** Where pictures come from, and their bytes. */
import { Blob } from 'node:buffer';
import { addAbortSignal, Readable } from 'node:stream';
import { ReadableStream } from 'node:stream/web';
import { fileURLToPath } from 'node:url';
import { types } from 'node:util';
import { OctconvError, show } from '../error.js';
import { RandomFile } from '../weights/file.js';

/** A path, a `file:` URL, a picture file's bytes, or a stream of them (Node's or the web's). */
export type PictureSource = string | URL | Uint8Array | ArrayBuffer | Blob | AsyncIterable<Uint8Array>;

/** What errors call a picture: its file, or its place in a list. */
export function nameOf(source: PictureSource, at?: number): string {
  if (typeof source === 'string') return isPath(source) ? source : show(source);
  if (source instanceof URL) return pathOf(source) ?? source.href;
  return at === undefined ? 'picture' : `picture ${at}`;
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
    if (size > maxBytes) throw new OctconvError(`${name}: is larger than ${maxBytes} bytes (maxBytes)`);
  };
  if (typeof source === 'string' || source instanceof URL) {
    const path = typeof source === 'string' ? source : pathOf(source);
    if (path === undefined) throw new OctconvError(`${name}: wanted a file: URL`);
    if (!isPath(path)) throw new OctconvError(`${name}: is no path; a picture's bytes are wanted as a Uint8Array`);
    const file = await RandomFile.open(path);
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
  let bytes = new Uint8Array(2 ** 16); // doubled when full: a list of chunks of one byte each would take hundreds of times as much
  let size = 0;
  try {
    for await (const chunk of addAbortSignal(signal, streamOf(source, name))) {
      if (!types.isUint8Array(chunk))
        throw new OctconvError(`${name}: the stream gives ${typeof chunk}, wanted Uint8Array`);
      check(size + chunk.length);
      if (size + chunk.length > bytes.length) {
        const larger = new Uint8Array(Math.max(size + chunk.length, 2 * bytes.length));
        larger.set(bytes.subarray(0, size));
        bytes = larger;
      }
      bytes.set(chunk, size);
      size += chunk.length;
    }
  } catch (error) {
    if (error instanceof OctconvError) throw error;
    throw new OctconvError(`${name}: cannot be read: ${(error as Error | undefined)?.message ?? error}`, {
      cause: error,
    });
  }
  return bytes.subarray(0, size);
}

/** Takes over a source that may have to wait: a stream that fails until then must not end the process. */
export function hold(source: PictureSource): void {
  if (source instanceof Readable) source.on('error', () => undefined);
}

/** Lets go of a source that is not read. */
export function discard(source: PictureSource): void {
  if (source instanceof Readable) source.destroy();
  else if (source instanceof ReadableStream && !source.locked) source.cancel().catch(() => undefined);
}

export const isList = (sources: PictureSource | readonly PictureSource[]): sources is readonly PictureSource[] =>
  Array.isArray(sources);

/** Lets go of all that are not read. */
export function discardAll(sources: PictureSource | readonly PictureSource[]): void {
  for (const source of isList(sources) ? sources : [sources]) discard(source);
}

function pathOf(url: URL): string | undefined {
  try {
    return fileURLToPath(url);
  } catch {
    return undefined;
  }
}

function streamOf(source: AsyncIterable<Uint8Array>, name: string): Readable {
  if (source instanceof Readable) return source;
  if (source instanceof ReadableStream) return Readable.fromWeb(source);
  if (typeof source === 'object' && source !== null && Symbol.asyncIterator in source) return Readable.from(source);
  const kind = Object.prototype.toString.call(source).slice(8, -1);
  throw new OctconvError(`${name}: got ${kind}, wanted a path, URL, Uint8Array, ArrayBuffer, Blob or stream of bytes`);
}
