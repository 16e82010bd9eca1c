/** Where the frames of a video come from: all sources in one form. */
import { randomUUID } from 'node:crypto';
import { type FileHandle, open, readdir, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { types } from 'node:util';
import { onAbort } from '../abort.js';
import { OctconvError, PassingError, show, SourceError } from '../error.js';
import { readNpyHeader } from '../npy.js';
import { checkOptions, type Known } from '../options.js';
import { fileError, RandomFile } from '../weights/file.js';
import { decodeVideo } from './ffmpeg.js';
import {
  checkLimits,
  decodeAnimation,
  decodeImage,
  type DecodeOptions,
  decodeOptions,
  type Frame,
  type Picture,
} from './image.js';
import {
  checkChunk,
  discard,
  isPictureFile,
  Joined,
  nameOf,
  partsOf,
  pathOf,
  pictureNames,
  type PictureSource,
} from './source.js';

/**
 * A video file, its bytes or a stream of them; a folder of pictures, which are frames in the order of their names as
 * people count (2.jpg before 10.jpg); an animated GIF or WebP; a `.npy` file, u8 [T,H,W,3]; a picture, which is one
 * frame; or frames decoded by the caller.
 */
export type VideoSource = PictureSource | AsyncIterable<Picture>;

/** Limits of what a video may cost, and how its frames are read. */
export interface VideoOptions extends Omit<DecodeOptions, 'formats' | 'timeout'> {
  /** Bytes of a source that has to be kept: in a temporary file, or as frames in memory. Default 1 GiB. */
  readonly maxBytes?: number | undefined;
  /** Seconds in which the next frame must come; default 30. */
  readonly timeout?: number | undefined;
  /** Frames per second of sources that do not say it: a folder, an array, frames without `seconds`. Default 25. */
  readonly frameRate?: number | undefined;
  /** Goes on where a video is damaged or ends too early, with what the decoder makes of it; else that is an error. */
  readonly skipDamaged?: boolean | undefined;
}

const { formats: _formats, ...sharedOptions } = decodeOptions;
export const videoOptions = { ...sharedOptions, frameRate: true, skipDamaged: true } satisfies Known<VideoOptions>;

type Limits = ReturnType<typeof checkVideoLimits>;

/** Fills in the defaults. @throws OctconvError for a limit that makes no sense. */
export function checkVideoLimits({ frameRate = 25, skipDamaged = false, maxBytes = 2 ** 30, ...limits }: VideoOptions) {
  if (!(typeof frameRate === 'number' && frameRate >= 1e-3 && frameRate <= 1e6))
    throw new OctconvError(`frameRate: ${show(frameRate)}, wanted frames per second, from 0.001 to 1000000`);
  if (typeof skipDamaged !== 'boolean')
    throw new OctconvError(`skipDamaged: ${show(skipDamaged)}, wanted true or false`);
  return { ...checkLimits({ ...limits, maxBytes }), frameRate, skipDamaged };
}

/**
 * The frames of a video, one by one: 8-bit RGB [height, width, 3] at their own size, with their time. No more than a few
 * are in memory, however long it is: they are decoded as fast as the loop takes them.
 * @throws OctconvError that begins with `name`: the file unless given; the signal's reason if it is aborted.
 */
export async function* readFrames(
  source: VideoSource,
  options: VideoOptions = {},
  name = nameOf(source, undefined, 'video'),
): AsyncGenerator<Frame, void, void> {
  try {
    checkOptions('readFrames', options, videoOptions);
    const video = await openVideo(source, name, checkVideoLimits(options), true);
    try {
      yield* video.frames();
    } finally {
      await video.close();
    }
  } finally {
    discard(source);
  }
}

/** An open source of frames. */
export interface Video {
  /** How many there are; absent where they can be read once only. */
  count?(): Promise<number>;
  /** All in order; where they are counted also those that are wanted, by their index. */
  frames(wanted?: ReadonlySet<number>): AsyncGenerator<Frame, void, void>;
  close(): Promise<void>;
}

/** Opens a source. A stream is kept in a file, unless it is read once only (`once`) and can be decoded as it comes. */
export async function openVideo(source: VideoSource, name: string, limits: Limits, once = false): Promise<Video> {
  if (typeof source === 'string' || source instanceof URL) {
    const path = pathOf(source, name);
    const there = await stat(path).catch(() => undefined);
    return there?.isDirectory() ? openFolder(path, limits) : openFile(await RandomFile.open(path), limits);
  }
  const parts = inTime(partsOf(source, name), name, limits);
  const { value: first = new Uint8Array() } = await parts.next();
  if (!types.isUint8Array(first)) return openFrames(prepend(first, parts), name, limits);
  const bytes = bytesOf(prepend(first, parts), name);
  if (!once) return openFile(await keep(bytes, name, limits), limits);
  const head = new Joined(); // enough to tell what it is
  const upTo = async (size: number): Promise<Uint8Array | undefined> => {
    while (head.length < size) {
      const { done, value } = await bytes.next();
      if (done) return undefined;
      head.push(value);
    }
    return head.bytes;
  };
  const start = await upTo(16);
  const asItComes = start && kindOf(start) === undefined && !(await endsWithIndex(upTo));
  const whole = prepend<Uint8Array>(head.bytes, bytes);
  return asItComes ? openStream(whole, name, limits) : openFile(await keep(whole, name, limits), limits);
}

async function* prepend<T>(first: T, rest: AsyncGenerator<T, void, void>): AsyncGenerator<T, void, void> {
  yield first;
  yield* rest;
}

async function* bytesOf(parts: AsyncIterable<unknown>, name: string): AsyncGenerator<Uint8Array, void, void> {
  for await (const part of parts) {
    checkChunk(part, name);
    yield part;
  }
}

/** What the caller gives, unless the timeout or the signal is first: then it is not awaited. */
async function* inTime<T>(
  given: AsyncGenerator<T, void, void>,
  name: string,
  { timeout, signal }: Limits,
): AsyncGenerator<T, void, void> {
  try {
    for (;;) {
      signal?.throwIfAborted();
      let [timer, forget]: [NodeJS.Timeout | undefined, () => void] = [undefined, () => undefined];
      try {
        const { done, value } = await new Promise<IteratorResult<T, void>>((resolve, reject) => {
          const late = () => reject(new PassingError(`${name}: gives nothing for ${timeout} s (timeout)`));
          timer = setTimeout(late, timeout * 1000);
          forget = onAbort(signal, () => reject(signal?.reason));
          given.next().then(resolve, reject);
        });
        if (done) return;
        yield value as T;
      } finally {
        clearTimeout(timer);
        forget();
      }
    }
  } finally {
    letGo(given);
  }
}

/** Formats that are not read by ffmpeg, by signature. */
function kindOf(head: Uint8Array): 'npy' | 'animation' | 'picture' | undefined {
  const text = Buffer.from(head.buffer, head.byteOffset, Math.min(head.length, 12)).toString('latin1');
  if (text.startsWith('\x93NUMPY')) return 'npy';
  if (text.startsWith('GIF8') || text.startsWith('WEBP', 8)) return 'animation';
  return text.startsWith('\xff\xd8\xff') || text.startsWith('\x89PNG') ? 'picture' : undefined;
}

/** Types of the boxes that an MP4 or MOV begins with. */
const firstBoxes = ['ftyp', 'styp', 'free', 'skip', 'wide', 'pnot', 'uuid', 'moov', 'moof', 'mdat'];

/** Bytes before the index of an MP4 that are kept in memory. */
const longestHead = 2 ** 20;

/**
 * Whether this is an MP4 or MOV whose index (`moov`) lies behind its frames (`mdat`), or so far behind its begin that it
 * is not looked for: it cannot be decoded as it comes. `upTo` gives so many bytes of it, or nothing if it is shorter.
 */
async function endsWithIndex(upTo: (size: number) => Promise<Uint8Array | undefined>): Promise<boolean> {
  for (let at = 0; at < longestHead; ) {
    const bytes = await upTo(at + 16);
    if (!bytes) return true;
    const header = Buffer.from(bytes.buffer, bytes.byteOffset + at, 16);
    const box = header.toString('latin1', 4, 8);
    if (at === 0 && !firstBoxes.includes(box)) return false; // another format
    if (box === 'moov' || box === 'moof') return false;
    const size = header.readUInt32BE(0);
    if (box === 'mdat' || size === 0) return true; // 0: the box reaches to the end of the file
    const length = size === 1 ? Number(header.readBigUInt64BE(8)) : size;
    if (length < 8) return false; // damaged
    at += length;
  }
  return true;
}

async function openFile(file: RandomFile, limits: Limits): Promise<Video> {
  const close = () => file.close();
  try {
    switch (kindOf(await file.read(0, Math.min(file.size, 12)))) {
      case 'npy':
        return { ...(await openNpy(file, limits)), close };
      case 'animation':
        return { ...(await openPages(file, limits)), close };
      case 'picture': {
        const frames = () => picturesOf([file.path], () => file.read(0, checkSize(file, limits)), limits);
        return { count: async () => 1, frames, close };
      }
      default: {
        if (file.size === 0) throw new SourceError(`${file.path}: is empty, wanted a video`);
        const frames = (wanted?: ReadonlySet<number>) => picked(decodeVideo(file.handle.fd, file.path, limits), wanted);
        const count = async () => {
          let n = 0;
          for await (const _ of decodeVideo(file.handle.fd, file.path, { ...limits, tiny: true })) n++;
          return n;
        };
        return { count, frames, close };
      }
    }
  } catch (error) {
    await close();
    throw error;
  }
}

function checkSize({ path, size }: RandomFile, { maxBytes }: Limits): number {
  if (size <= maxBytes) return size;
  throw new SourceError(`${path}: is larger than ${maxBytes} bytes (maxBytes)`);
}

/** Those that are wanted; what follows the last of them is not decoded. */
async function* picked(all: AsyncGenerator<Frame>, wanted?: ReadonlySet<number>): AsyncGenerator<Frame, void, void> {
  if (!wanted) return yield* all;
  let [index, left] = [0, wanted.size];
  for await (const frame of all) {
    if (!wanted.has(index++)) continue;
    yield frame;
    if (--left === 0) return;
  }
}

/** Bytes in a temporary file without a name, so that nothing is left of it, whatever ends the process. */
async function keep(chunks: AsyncIterable<Uint8Array>, name: string, limits: Limits): Promise<RandomFile> {
  const path = join(tmpdir(), `octconv-${randomUUID()}`);
  let [writer, reader]: (FileHandle | undefined)[] = [];
  try {
    writer = await open(path, 'wx', 0o600);
    reader = await open(path).finally(() => rm(path));
    let size = 0;
    const checked = async function* () {
      for await (const chunk of chunks) {
        size += chunk.length;
        if (size > limits.maxBytes)
          throw new SourceError(`${name}: is larger than ${limits.maxBytes} bytes (maxBytes)`);
        yield chunk;
      }
    };
    await pipeline(checked, writer.createWriteStream());
    return await RandomFile.of(reader, name);
  } catch (error) {
    await reader?.close();
    throw fileError(name, error);
  } finally {
    await writer?.close();
  }
}

function openStream(bytes: AsyncGenerator<Uint8Array, void, void>, name: string, limits: Limits): Video {
  const frames = () => decodeVideo(Readable.from(bytes, { objectMode: false }), name, limits);
  return { frames, close: async () => letGo(bytes) };
}

/** The end is not awaited: what is stalled never ends. */
const letGo = (parts: AsyncGenerator<unknown>): void => void parts.return(undefined).catch(() => undefined);

const { compare } = new Intl.Collator('en', { numeric: true });

async function openFolder(folder: string, limits: Limits): Promise<Video> {
  const names = await readdir(folder).catch((error) => {
    throw fileError(folder, error);
  });
  const files = names
    .filter(isPictureFile)
    .sort((a, b) => compare(a, b) || (a < b ? -1 : 1))
    .map((file) => join(folder, file));
  if (files.length === 0) throw new SourceError(`${folder}: no pictures (${pictureNames}), wanted frames`);
  const frames = (wanted?: ReadonlySet<number>) => picturesOf(files, (file) => file, limits, wanted);
  return { count: async () => files.length, frames, close: async () => undefined };
}

async function* picturesOf(
  files: readonly string[],
  sourceOf: (file: string) => PictureSource | Promise<PictureSource>,
  { maxPixels, maxBytes, timeout, signal, frameRate }: Limits,
  wanted?: ReadonlySet<number>,
): AsyncGenerator<Frame, void, void> {
  let first: { readonly file: string; readonly size: string } | undefined;
  for (const [i, file] of files.entries()) {
    if (wanted && !wanted.has(i)) continue;
    const picture = await decodeImage(await sourceOf(file), { maxPixels, maxBytes, timeout, signal }, file);
    const size = `${picture.width} x ${picture.height}`;
    first ??= { file, size };
    if (size !== first.size)
      throw new SourceError(`${file}: ${size}, and ${first.file} ${first.size}: frames of one video are of one size`);
    yield { ...picture, seconds: i / frameRate };
  }
}

async function openNpy(file: RandomFile, { maxPixels, frameRate, signal }: Limits): Promise<Omit<Video, 'close'>> {
  const { descr, shape, fortran, start } = await readNpyHeader(file);
  const [count = 0, height = 0, width = 0, channels] = shape;
  const found = `${descr} [${shape}]${fortran ? ' in Fortran order' : ''}`;
  if (shape.length !== 4 || channels !== 3 || descr.slice(1) !== 'u1' || fortran)
    throw new SourceError(`${file.path}: ${found}, wanted frames, u8 [T,H,W,3]`);
  if (count * height * width === 0) throw new SourceError(`${file.path}: ${found} has no frames`);
  checkPixels(file.path, { height, width }, maxPixels);
  const size = height * width * 3;
  async function* frames(wanted?: ReadonlySet<number>): AsyncGenerator<Frame, void, void> {
    for (let i = 0; i < count; i++) {
      signal?.throwIfAborted();
      if (wanted && !wanted.has(i)) continue;
      yield { data: await file.read(start + i * size, size), height, width, seconds: i / frameRate };
    }
  }
  return { count: async () => count, frames };
}

async function openPages(file: RandomFile, limits: Limits): Promise<Omit<Video, 'close'>> {
  const pages = await decodeAnimation(await file.read(0, checkSize(file, limits)), file.path, limits);
  async function* frames(wanted?: ReadonlySet<number>): AsyncGenerator<Frame, void, void> {
    for (const [i, page] of pages.entries()) if (!wanted || wanted.has(i)) yield page;
  }
  return { count: async () => pages.length, frames };
}

/** Frames decoded by the caller, checked. */
function openFrames(given: AsyncGenerator<unknown, void, void>, name: string, limits: Limits): Video {
  async function* frames(): AsyncGenerator<Frame, void, void> {
    let i = 0;
    for await (const each of given) {
      const { data, height, width, seconds = i / limits.frameRate } = (each ?? {}) as Partial<Frame>;
      const fine =
        types.isUint8Array(data) && [height, width].every((side) => Number.isInteger(side) && Number(side) > 0);
      if (!fine || data.length !== Number(height) * Number(width) * 3 || !Number.isFinite(seconds))
        throw new SourceError(
          `${name}: frame ${i} is no { data: Uint8Array [height, width, 3], height, width, seconds? }`,
        );
      const frame = { data, height: Number(height), width: Number(width), seconds };
      checkPixels(name, frame, limits.maxPixels);
      yield frame;
      i++;
    }
  }
  return { frames, close: async () => letGo(given) };
}

function checkPixels(name: string, { height, width }: Omit<Picture, 'data'>, maxPixels: number): void {
  if (height * width > maxPixels)
    throw new SourceError(
      `${name}: is too large, frames of ${width} x ${height}, wanted at most ${maxPixels} pixels (maxPixels)`,
    );
}
