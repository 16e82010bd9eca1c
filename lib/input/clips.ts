/** From the frames of a video to what a video network sees: which frames, which part of them, normalised. */
import { compile } from '../compile.js';
import { OctconvError, show, SourceError } from '../error.js';
import type { DType } from '../dtype.js';
import type { Value } from '../graph/graph.js';
import type { Known } from '../options.js';
import type { PlanOptions } from '../plan.js';
import { type Shape, type Spatial, tensor } from '../tensor.js';
import type { Frame, Picture } from './image.js';
import {
  bytesOf,
  type ClipTensor,
  type Geometry,
  type InputConfig,
  normalized,
  reorder,
  resized,
  resizeGeometry,
  roundToEven,
  stack,
} from './preprocess.js';
import type { Video } from './video.js';

/** How many views of a video are classified, as it is usual in tests: 10 clips x 3 crops. */
export interface Views {
  /** Clips, evenly from begin to end; one is from the middle. Default 1. */
  readonly clips?: number | undefined;
  /**
   * 1 (default): from the middle; 3: both ends and the middle of the long side; 10: the corners and the middle, each
   * mirrored too.
   */
  readonly crops?: 1 | 3 | 10 | undefined;
}

export const viewOptions = { clips: true, crops: true } satisfies Known<Views>;

export interface SomeViews {
  readonly clips: number;
  readonly crops: 1 | 3 | 10;
}

/** @throws OctconvError for invalid views. */
export function checkViews({ clips = 1, crops = 1 }: Views): SomeViews {
  if (!(Number.isInteger(clips) && clips >= 1 && clips <= 1000))
    throw new OctconvError(`clips: ${show(clips)}, wanted an integer from 1 to 1000`);
  if (![1, 3, 10].includes(crops)) throw new OctconvError(`crops: ${show(crops)}, wanted 1, 3 or 10`);
  return { clips, crops };
}

/** The input of a video network. */
export interface ClipConfig extends InputConfig {
  readonly frames: number;
}

/** Whether a network takes video. */
export const isClip = (input: InputConfig | undefined): input is ClipConfig => input?.frames !== undefined;

/**
 * Indices of the frames of each clip, of `total` frames: `frames` of them, `frameStride` apart. One clip is from the
 * middle; several begin evenly from the first frame to the last place where a whole clip fits, rounded to the nearest
 * frame, a half to the even one. So does mmaction2's SampleFrames in tests. Beyond its end a video stands still, as
 * SlowFast's samples do: the last frame is repeated.
 */
export function sampleClips(
  total: number,
  { frames, frameStride = 1 }: Pick<ClipConfig, 'frames' | 'frameStride'>,
  clips: number,
): number[][] {
  const spare = Math.max(0, total - ((frames - 1) * frameStride + 1));
  const start = (clip: number) => (clips === 1 ? Math.floor(spare / 2) : roundToEven(clip * (spare / (clips - 1))));
  return Array.from({ length: clips }, (_, clip) =>
    Array.from({ length: frames }, (_, i) => Math.min(start(clip) + i * frameStride, total - 1)),
  );
}

interface Crop {
  readonly top: number;
  readonly left: number;
  readonly mirrored: boolean;
}

/** Where the crops of a resized frame lie. */
export function cropsOf({ height, width, crop }: Geometry, crops: 1 | 3 | 10): Crop[] {
  const { top, left } = crop;
  const [bottom, right] = [height - crop.height, width - crop.width];
  const places = {
    1: [[top, left]],
    3:
      bottom > right
        ? [
            [0, left],
            [top, left],
            [bottom, left],
          ]
        : [
            [top, 0],
            [top, left],
            [top, right],
          ],
    10: [
      [0, 0],
      [0, right],
      [bottom, 0],
      [bottom, right],
      [top, left],
    ],
  }[crops] as [number, number][];
  const once = places.map(([top, left]) => ({ top, left, mirrored: false }));
  return crops === 10 ? [...once, ...once.map((place) => ({ ...place, mirrored: true }))] : once;
}

/** Bytes [N, ...] through a function, compiled once. */
const compileBytes = (
  shape: Spatial,
  f: (x: Value<'u8', Spatial>) => Value<DType, Shape>,
  { device, threads }: PlanOptions,
) => compile(f, [{ dtype: 'u8', shape }] as const, { device, threads });
type BytesPlan = Awaited<ReturnType<typeof compileBytes>>;

/** Makes clips of frames: frames of one size are resized by one plan, clips normalised by another. */
class Preprocessor implements Disposable {
  #size: readonly [number, number] = [0, 0];
  #resize: BytesPlan | undefined;
  #normalize: BytesPlan | undefined;

  constructor(
    readonly input: ClipConfig,
    readonly crops: 1 | 3 | 10,
    readonly options: PlanOptions,
  ) {}

  /** A frame, as much of it as all crops have together. */
  async resize(frame: Picture): Promise<Resized> {
    const { height, width } = frame;
    const geometry = resizeGeometry(height, width, this.input);
    if (!this.#resize || this.#size[0] !== height || this.#size[1] !== width) {
      const whole = { height: geometry.height, width: geometry.width };
      const to = this.crops === 1 ? geometry : whole;
      this.#resize?.dispose();
      this.#size = [height, width];
      this.#resize = await compileBytes([1, height, width, 3], (x) => resized(x, to, this.input), this.options);
    }
    const { data } = await this.#resize.run(bytesOf(frame, this.input));
    return { data: data as Uint8Array, width: geometry.width, crops: cropsOf(geometry, this.crops) };
  }

  /** One crop of the frames of a clip, [frames, height, width, channels], normalised. */
  async clip(frames: readonly Resized[], crop: number): Promise<Float32Array> {
    const { input } = this;
    const { height, width } = input;
    const size = height * width * 3;
    const bytes = new Uint8Array(frames.length * size);
    for (const [i, frame] of frames.entries()) cut(frame, crop, input, bytes.subarray(i * size, (i + 1) * size));
    const shape = [1, frames.length, height, width, 3] as const;
    this.#normalize ??= await compileBytes(shape, (x) => normalized(x, input), this.options);
    const { data } = await this.#normalize.run(tensor('u8', shape, bytes));
    return reorder(data as Float32Array, input);
  }

  [Symbol.dispose](): void {
    this.#resize?.dispose();
    this.#normalize?.dispose();
  }
}

/** A frame as all views of it need it. */
interface Resized {
  readonly data: Uint8Array;
  readonly width: number;
  readonly crops: readonly Crop[];
}

function cut({ data, width: all, crops }: Resized, crop: number, { height, width }: ClipConfig, to: Uint8Array): void {
  if (crops.length === 1) {
    to.set(data); // it is cut already
    return;
  }
  const { top, left, mirrored } = crops[crop] as Crop;
  for (let row = 0; row < height; row++) {
    const begin = ((top + row) * all + left) * 3;
    const line = data.subarray(begin, begin + width * 3);
    const out = to.subarray(row * width * 3, (row + 1) * width * 3);
    if (!mirrored) out.set(line);
    else for (let x = 0; x < width; x++) out.set(line.subarray(3 * x, 3 * x + 3), 3 * (width - 1 - x));
  }
}

/** The views of a video, each made when it is asked for. Dispose of them. */
export interface VideoViews extends Disposable {
  readonly count: number;
  /** Frames of the video that are in some of them. */
  readonly frames: number;
  /** [frames, height, width, channels] */
  view(index: number): Promise<Float32Array>;
}

/**
 * Reads the frames of a video that its views need. Where it does not say how many it has, it is decoded twice: first it
 * is counted. Frames that come once only are all kept, resized.
 * @throws OctconvError that begins with `name`.
 */
export async function loadViews(
  video: Video,
  name: string,
  input: ClipConfig,
  { clips, crops, maxBytes, ...options }: SomeViews & PlanOptions & { readonly maxBytes: number },
): Promise<VideoViews> {
  const preprocessor = new Preprocessor(input, crops, options);
  try {
    const kept = new Map<number, Resized>();
    let bytes = 0;
    const keep = async (index: number, frame: Picture) => {
      const resized = await preprocessor.resize(frame);
      bytes += resized.data.length;
      if (bytes > maxBytes)
        throw new SourceError(
          `${name}: more than ${maxBytes} bytes of frames (maxBytes); classifyStream keeps no more than those of a window`,
        );
      kept.set(index, resized);
    };
    let total = (await video.count?.()) ?? 0;
    if (!video.count) for await (const frame of video.frames()) await keep(total++, frame);
    if (total === 0) throw new SourceError(`${name}: has no frames`);
    const indices = sampleClips(total, input, clips);
    const wanted = new Set(indices.flat().sort((a, b) => a - b));
    if (video.count) {
      const order = [...wanted];
      let at = 0;
      for await (const frame of video.frames(wanted)) await keep(order[at++] as number, frame);
      if (at < order.length) throw new SourceError(`${name}: changed while it was read`);
    }
    const view = (index: number) => {
      const frames = indices[Math.floor(index / crops)]?.map((i) => kept.get(i) as Resized) ?? [];
      return preprocessor.clip(frames, index % crops);
    };
    return { count: clips * crops, frames: wanted.size, view, [Symbol.dispose]: () => preprocessor[Symbol.dispose]() };
  } catch (error) {
    preprocessor[Symbol.dispose]();
    throw error;
  }
}

/** A part of a video, in seconds, and what the network sees of it. */
export interface Window {
  readonly start: number;
  readonly end: number;
  /** Frames of the video up to its end. */
  readonly frames: number;
  readonly x: ClipTensor;
}

/** Which parts of a video are classified. */
export interface WindowOptions {
  /**
   * Seconds of a window, out of which the network's frames are taken evenly. Default: as many frames of the video as the
   * network was trained on, `frames` x `frameStride`, whatever their rate.
   */
  readonly window?: number | undefined;
  /** Seconds from the begin of one window to that of the next. Default: the window, so that each frame is in one. */
  readonly hop?: number | undefined;
}

export const windowOptions = { window: true, hop: true } satisfies Known<WindowOptions>;

/** Windows that one frame may be in. */
const mostOverlap = 100;

/** @throws OctconvError for invalid windows. */
export function checkWindows({ window, hop = window }: WindowOptions): void {
  for (const [key, value] of Object.entries({ window, hop })) {
    if (value !== undefined && !(typeof value === 'number' && value >= 0.001 && value <= 86400))
      throw new OctconvError(`${key}: ${show(value)}, wanted seconds, from 0.001 to 86400`);
  }
  if (window !== undefined && hop !== undefined && window / hop > mostOverlap)
    throw new OctconvError(`hop: ${hop}, wanted at least a ${mostOverlap}th of the window, ${window}`);
  if (window === undefined && hop !== undefined) throw new OctconvError('hop: needs a window');
}

interface OpenWindow {
  /** When it begins, by the clock. */
  readonly begin: number;
  /** In seconds. */
  readonly start: number;
  readonly frames: Resized[];
}

/** Clocks are compared with this tolerance: times of frames are rounded. */
const epsilon = 1e-5;

/**
 * The windows of a video, in order; the first begins with it. What a window sees at a time is the frame that is shown
 * then; each frame is resized once. A window in which no frame begins is left out: of a long still, or where the times
 * jump, there may be any number. The last window ends with the video, whose last frame is repeated where it is too
 * short; less than half a window that no other has seen is left out. Memory holds the frames of the windows that are
 * open, whatever the length of the video.
 */
export async function* windowsOf(
  frames: AsyncIterable<Frame>,
  input: ClipConfig,
  { window, hop = window }: WindowOptions,
  options: PlanOptions,
): AsyncGenerator<Window, void, void> {
  using preprocessor = new Preprocessor(input, 1, options);
  // Without a window in seconds the clock counts frames.
  const span = window ?? input.frames * (input.frameStride ?? 1);
  const step = hop ?? span;
  const open: OpenWindow[] = [];
  let [origin, opened, count, reached] = [0, 0, 0, Number.NEGATIVE_INFINITY];

  const complete = async ({ begin, start, frames: seen }: OpenWindow, end: number): Promise<Window> => {
    reached = begin + span;
    return { start, end, frames: count, x: stack([await preprocessor.clip(seen, 0)], input) as ClipTensor };
  };

  /** Puts a frame that is shown from `since` until `until` where it is seen, and gives the windows that end until then. */
  async function* show(frame: Frame, since: number, until: number, isLast = false): AsyncGenerator<Window, void, void> {
    const [from, now] = window === undefined ? [count - 1, count] : [since, until];
    const nextFrame = isLast ? Number.POSITIVE_INFINITY : now;
    for (let begin = origin + opened * step; begin < now - epsilon; begin = origin + opened * step) {
      if (begin > from + epsilon && begin + span <= nextFrame + epsilon) {
        // No frame begins in this window, nor in the others that end until the next frame.
        opened = Math.max(opened, Math.floor((nextFrame + epsilon - span - origin) / step)) + 1;
        continue;
      }
      open.push({ begin, start: window === undefined ? since : begin, frames: [] });
      opened++;
    }
    let resized: Resized | undefined;
    for (const { begin, frames: seen } of open) {
      while (seen.length < input.frames && begin + (seen.length * span) / input.frames < now - epsilon) {
        resized ??= await preprocessor.resize(frame);
        seen.push(resized);
      }
    }
    for (let first = open[0]; first && first.begin + span <= now + epsilon; first = open[0]) {
      open.shift();
      yield await complete(first, window === undefined ? until : first.begin + span);
    }
  }

  let shown: Frame | undefined;
  let [at, interval] = [0, 0.04]; // its time; the duration of the previous frame, taken for the last one too
  for await (const frame of frames) {
    const seconds = shown ? Math.max(frame.seconds, at) : frame.seconds;
    if (shown) {
      interval = seconds - at || interval;
      yield* show(shown, at, seconds);
    } else if (window !== undefined) origin = seconds;
    [shown, at] = [frame, seconds];
    count++;
  }
  if (!shown) return;
  const end = at + interval;
  yield* show(shown, at, end, true);
  const last = open[0];
  const rest = (window === undefined ? count : end) - Math.max(reached, last?.begin ?? 0);
  if (!last || rest < epsilon || (last.begin > origin && rest < span / 2 - epsilon)) return;
  const still = await preprocessor.resize(shown);
  while (last.frames.length < input.frames) last.frames.push(still);
  yield await complete(last, end);
}
