import pLimit from 'p-limit';
import type { Sharp } from 'sharp';
import { checkSignal, onAbort } from '../abort.js';
import { OctconvError, PassingError, show, SourceError } from '../error.js';
import { checkOptions, type Known } from '../options.js';
import { discard, nameOf, type PictureSource, readSource } from './source.js';

/** A decoded picture: 8-bit sRGB, [height, width, 3]. */
export interface Picture {
  readonly data: Uint8Array;
  readonly height: number;
  readonly width: number;
}

/** One of a video's. */
export interface Frame extends Picture {
  /** When it is shown, in seconds since the video's start. */
  readonly seconds: number;
}

const formatNames = { jpeg: 'JPEG', png: 'PNG', webp: 'WebP', gif: 'GIF', tiff: 'TIFF', avif: 'AVIF', svg: 'SVG' };

export type PictureFormat = keyof typeof formatNames;

/** Limits of what one picture may cost. */
export interface DecodeOptions {
  /** Default 89,478,485, from where Pillow warns: 256 MiB as RGB. Checked before pixels are decoded. */
  readonly maxPixels?: number | undefined;
  /** Bytes of a file or stream; default 64 MiB. */
  readonly maxBytes?: number | undefined;
  /** Default JPEG, PNG and WebP. A small SVG can take minutes, and no decoder is stopped within it. */
  readonly formats?: readonly PictureFormat[] | undefined;
  /** Seconds until a picture must be read and decoded, waiting for a free decoder included; default 30. */
  readonly timeout?: number | undefined;
  /** Ends reading and decoding with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

export const decodeOptions = {
  maxPixels: true,
  maxBytes: true,
  formats: true,
  timeout: true,
  signal: true,
} satisfies Known<DecodeOptions>;

/**
 * Decodes JPEG, PNG and WebP, and on request what else sharp reads. The network gets the picture as a viewer shows it:
 * EXIF orientation and an embedded colour profile are obeyed; grey, CMYK and 16-bit pictures become 8-bit sRGB;
 * transparent parts lie over white (torchvision drops the alpha channel, which shows whatever colours are hidden
 * there); of an animation the first frame. A truncated file is an error: half a picture would get a label, too.
 * @throws OctconvError that begins with `name`: the file unless given; the signal's reason if it is aborted.
 */
export async function decodeImage(
  source: PictureSource,
  options: DecodeOptions = {},
  name = nameOf(source),
): Promise<Picture> {
  try {
    checkOptions('decodeImage', options, decodeOptions);
    const { signal, timeout, maxBytes, ...limits } = checkLimits(options);
    const late = () => new PassingError(`${name}: is not decoded after ${timeout} s (timeout)`);
    return await within(timeout, signal, late, async (stopped) => {
      const bytes = await readSource(source, name, maxBytes, stopped);
      return decoders(() => {
        stopped.throwIfAborted(); // nobody wants it any more: no decoder starts
        return decode(bytes, name, { ...limits, timeout });
      });
    });
  } finally {
    discard(source);
  }
}

/** Pictures that sharp decodes at a time: it works on libuv's threads. */
export const decoderThreads = Number(process.env.UV_THREADPOOL_SIZE) || 4;

/** What sharp has been given it cannot be told to leave. */
const decoders = pLimit(decoderThreads);

type Limits = { [Name in Exclude<keyof DecodeOptions, 'signal'>]-?: NonNullable<DecodeOptions[Name]> };

/** Fills in the defaults. @throws OctconvError for a limit that makes no sense. */
export function checkLimits(options: DecodeOptions): Limits & Pick<DecodeOptions, 'signal'> {
  const {
    maxPixels = 89_478_485,
    maxBytes = 2 ** 26,
    formats = ['jpeg', 'png', 'webp'],
    timeout = 30,
    signal,
  } = options;
  for (const [key, value] of Object.entries({ maxPixels, maxBytes })) {
    if (!Number.isSafeInteger(value) || value < 1)
      throw new OctconvError(`${key}: ${show(value)}, wanted a positive integer`);
  }
  if (!(typeof timeout === 'number' && timeout > 0 && timeout <= 3600))
    throw new OctconvError(`timeout: ${show(timeout)}, wanted seconds, at most 3600`);
  if (!Array.isArray(formats))
    throw new OctconvError(
      `formats: ${show(formats)}, wanted a list of some of ${Object.keys(formatNames).join(', ')}`,
    );
  const unknown = formats.find((format) => !Object.hasOwn(formatNames, format));
  if (unknown !== undefined || formats.length === 0) {
    throw new OctconvError(`formats: ${unknown ?? 'none'}, wanted some of ${Object.keys(formatNames).join(', ')}`);
  }
  return { maxPixels, maxBytes, formats, timeout, signal };
}

/** What `work` gives, unless the signal or the clock ends it: it is left to itself then. */
async function within<T>(
  seconds: number,
  signal: AbortSignal | undefined,
  late: () => Error,
  work: (stopped: AbortSignal) => Promise<T>,
): Promise<T> {
  checkSignal(signal);
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(late()), seconds * 1000);
  const forget = onAbort(signal, () => stop.abort(signal?.reason));
  try {
    return await new Promise<T>((resolve, reject) => {
      stop.signal.addEventListener('abort', () => reject(stop.signal.reason), { once: true });
      work(stop.signal).then(resolve, reject);
    });
  } finally {
    clearTimeout(timer);
    forget();
  }
}

async function decode(
  bytes: Uint8Array,
  name: string,
  { maxPixels, formats, timeout }: Omit<Limits, 'maxBytes'>,
): Promise<Picture> {
  if (bytes.length === 0) throw new SourceError(`${name}: is empty, wanted a picture`);
  const wanted = new Intl.ListFormat('en-GB', { type: 'disjunction' }).format(
    formats.map((format) => formatNames[format]),
  );
  const found = formatOf(bytes);
  const format = formats.find((format) => formatNames[format] === found);
  if (!format) {
    if (found === video) throw new SourceError(`${name}: is a video, which video networks take, wanted ${wanted}`);
    const known = Object.values(formatNames).some((known) => known === found);
    if (known) throw new SourceError(`${name}: is ${found}, wanted ${wanted} (others: the option formats)`);
    throw new SourceError(
      `${name}: is ${found ? `${found}, which cannot be decoded` : 'not a picture'}, wanted ${wanted}`,
    );
  }
  const { default: sharp } = await import('sharp'); // 17 MiB that only pictures need
  const options = { failOn: 'error', limitInputPixels: maxPixels } as const;
  try {
    // JPEGs are not shrunk while decoding: of 1,000 CIFAR-10 pictures enlarged to 512 pixels and decoded at 128 (64),
    // the shipped network guesses 5 (25) otherwise and 3 (15) fewer are right.
    const picture = sharp(bytes, options);
    const space = hasDeepPixels(format, bytes) ? (await sharp(bytes, options).metadata()).space : undefined;
    // sharp leaves 16-bit colours in Display P3, and the profile of 16-bit grey out: it gets 8 bits.
    if (space === 'rgb16' || space === 'grey16') picture.pipelineColourspace(space === 'rgb16' ? 'srgb' : 'b-w');
    return await rgbOf(picture.autoOrient(), timeout);
  } catch (error) {
    const { message } = error as Error;
    if (!message.includes('exceeds pixel limit'))
      throw new SourceError(`${name}: cannot be decoded: ${causeOf(message)}`);
    const { width, height } = await sharp(bytes, { limitInputPixels: false }).metadata();
    throw new SourceError(
      `${name}: is too large, ${width} x ${height}, wanted at most ${maxPixels} pixels (maxPixels)`,
    );
  }
}

async function rgbOf(picture: Sharp, timeout: number): Promise<Picture> {
  const { data, info } = await picture
    .timeout({ seconds: Math.ceil(timeout) })
    .flatten({ background: 'white' })
    .toColourspace('srgb')
    .raw({ depth: 'uchar' })
    .toBuffer({ resolveWithObject: true });
  if (info.channels !== 3) throw new Error(`${info.channels} channels, wanted grey, RGB or CMYK`);
  return { data, height: info.height, width: info.width };
}

/**
 * All frames of an animated GIF or WebP, each as it is shown; a still one is one frame.
 * @throws OctconvError that begins with `name`, also for more than `maxBytes` of frames: a small file may hold many.
 */
export async function decodeAnimation(
  bytes: Uint8Array,
  name: string,
  {
    maxPixels,
    maxBytes,
    timeout,
    signal,
    skipDamaged,
  }: Omit<Limits, 'formats'> & Pick<DecodeOptions, 'signal'> & { readonly skipDamaged: boolean },
): Promise<Frame[]> {
  const { default: sharp } = await import('sharp');
  const options = { failOn: skipDamaged ? 'none' : 'error', limitInputPixels: false, animated: true } as const;
  // The decoder takes the frames that are there for all; a GIF ends with a semicolon, behind which some write zeros.
  const isCut = formatOf(bytes) === 'GIF' && bytes[bytes.findLastIndex((byte) => byte !== 0)] !== 0x3b;
  if (isCut && !skipDamaged) throw new SourceError(`${name}: is truncated`);
  try {
    const {
      width,
      height: whole,
      pages = 1,
      pageHeight: height = whole,
      delay,
    } = await sharp(bytes, options).metadata();
    if (width * height > maxPixels)
      throw new SourceError(
        `${name}: is too large, ${width} x ${height}, wanted at most ${maxPixels} pixels (maxPixels)`,
      );
    const size = width * height * 3;
    if (pages * size > maxBytes)
      throw new SourceError(
        `${name}: ${pages} frames of ${width} x ${height}, wanted at most ${maxBytes} bytes of them (maxBytes)`,
      );
    const late = () => new PassingError(`${name}: is not decoded after ${timeout} s (timeout)`);
    // Of a still picture EXIF orientation is obeyed.
    const picture = pages === 1 ? sharp(bytes, { ...options, animated: false }).autoOrient() : sharp(bytes, options);
    const all = await within(timeout, signal, late, () => decoders(() => rgbOf(picture, timeout)));
    if (pages === 1) return [{ ...all, seconds: 0 }];
    let milliseconds = 0;
    return Array.from({ length: pages }, (_, i) => {
      const seconds = milliseconds / 1000;
      milliseconds += delay?.[i] ?? 0;
      return { data: all.data.subarray(i * size, (i + 1) * size), height, width, seconds };
    });
  } catch (error) {
    if (error instanceof OctconvError || signal?.aborted) throw error;
    throw new SourceError(`${name}: cannot be decoded: ${causeOf((error as Error).message)}`);
  }
}

/** Whether pixels may have 16 bits per channel. */
function hasDeepPixels(format: PictureFormat, bytes: Uint8Array): boolean {
  return format === 'png' ? bytes[24] === 16 : format === 'tiff' || format === 'avif';
}

/** What `formatOf` calls MP4, Matroska and AVI. */
const video = 'video';

/** How files of each format begin: at which byte, and how. */
const signatures: readonly (readonly [name: string, at: number, text: string])[] = [
  ['JPEG', 0, '\xff\xd8\xff'],
  ['PNG', 0, '\x89PNG\r\n\x1a\n'],
  ['WebP', 8, 'WEBP'],
  ['GIF', 0, 'GIF8'],
  ['TIFF', 0, 'II*\0'],
  ['TIFF', 0, 'MM\0*'],
  ['TIFF', 0, 'II+\0'],
  ['TIFF', 0, 'MM\0+'],
  ['JPEG XL', 0, '\xff\x0a'],
  ['JPEG XL', 4, 'JXL \r\n'],
  ['BMP', 0, 'BM'],
  ['PDF', 0, '%PDF'],
  [video, 0, '\x1a\x45\xdf\xa3'],
  [video, 8, 'AVI '],
];

/** The name of a file's format, as far as it is known. */
function formatOf(bytes: Uint8Array): string | undefined {
  const head = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, 1000)).toString('latin1');
  const found = signatures.find(([, at, text]) => head.startsWith(text, at));
  if (found) return found[0];
  if (head.startsWith('ftyp', 4)) {
    const brands = head.slice(8, bytes[3]);
    if (/avi[fs]/.test(brands)) return 'AVIF';
    return /he[iv]|mif1|msf1/.test(brands) ? 'HEIC' : video;
  }
  return /^[^<]{0,100}<(svg|\?xml|!--|!DOCTYPE svg)/.test(head) && head.includes('<svg') ? 'SVG' : undefined;
}

/** The cause is the last of libvips' lines; one that begins with a space belongs to the line before. */
function causeOf(message: string): string {
  const lines = message.split('\n').filter((line) => /^\S/.test(line));
  return (lines.at(-1) ?? 'damaged').replace(/^Input buffer has corrupt header:$/, 'damaged header');
}
