import { availableParallelism } from 'node:os';
import pLimit from 'p-limit';
import { checkSignal, onAbort } from '../abort.js';
import { OctconvError, show, SourceError } from '../error.js';
import { checkOptions, type Known } from '../options.js';
import type { PlanOptions, RunOptions } from '../plan.js';
import { type ClipConfig, isClip, loadViews, type SomeViews, type VideoViews } from './clips.js';
import { checkLimits, decodeImage, type DecodeOptions, decodeOptions, decoderThreads } from './image.js';
import { type ClipTensor, type InputConfig, type InputTensor, parseInput, preprocessOne, stack } from './preprocess.js';
import { discardAll, hold, isList, nameOf, type PictureSource } from './source.js';
import { checkVideoLimits, openVideo, type VideoOptions, videoOptions, type VideoSource } from './video.js';

export interface Batch<X = InputTensor> {
  /** One picture per file; for a video network one clip, [N, frames, height, width, channels]. */
  readonly x: X;
  /** The sources that could be read, in the order given: paths, or `picture 3` (`video 3`) for the fourth one. */
  readonly files: readonly string[];
  /** Their places among the sources. */
  readonly indices: readonly number[];
}

/** Told in order of each source that cannot be read; it is left out. */
export type Failed = (error: OctconvError, file: string, index: number) => void;

export interface BatchOptions extends Pick<PlanOptions, 'device'>, RunOptions, DecodeOptions {
  /** Pictures per batch, default 32; clips of a video network, default 1. */
  readonly batch?: number | undefined;
  /** Without it a source that cannot be read ends the loop with its error. */
  readonly failed?: Failed | undefined;
}

/** The same for a video network. */
export interface ClipOptions extends Omit<BatchOptions, keyof DecodeOptions>, VideoOptions {}

const common = { batch: true, failed: true, device: true } as const;
export const batchOptions = { ...common, ...decodeOptions } satisfies Known<BatchOptions>;
export const clipOptions = { ...common, ...videoOptions } satisfies Known<ClipOptions>;

/**
 * Reads pictures as batches for a network; for a video network, whose input has `frames`, the middle clip of each video.
 * While the caller works on one batch the next is read, so memory holds two batches and as many decoded pictures as
 * sharp has threads. Streams are read or, if the loop ends before, destroyed.
 */
export function loadBatches(
  sources: PictureSource | readonly PictureSource[],
  input: InputConfig & { readonly frames?: undefined },
  options?: BatchOptions,
): AsyncGenerator<Batch, void, void>;
export function loadBatches(
  sources: VideoSource | readonly VideoSource[],
  input: InputConfig,
  options?: BatchOptions | ClipOptions,
): AsyncGenerator<Batch<InputTensor | ClipTensor>, void, void>;
export async function* loadBatches(
  sources: VideoSource | readonly VideoSource[],
  input: InputConfig,
  options: BatchOptions | ClipOptions = {},
): AsyncGenerator<Batch<InputTensor | ClipTensor>, void, void> {
  const ofVideo = isClip(input);
  const taken = take(sources, ofVideo ? 'video' : 'picture');
  try {
    checkOptions('loadBatches', options, ofVideo ? clipOptions : batchOptions);
    const config = parseInput(input, 'preprocess');
    const loads = isClip(config)
      ? loadEach(taken, options, { batch: 1, workers: 1 }, clipLoader(config, options as ClipOptions))
      : loadEach(
          taken,
          options,
          { batch: 32, workers: decoderThreads },
          pictureLoader(config, options as BatchOptions),
        );
    for await (const loaded of loads) {
      const x = stack(
        loaded.map(({ value }) => value),
        config,
      );
      yield { x, files: loaded.map(({ file }) => file), indices: loaded.map(({ index }) => index) };
    }
  } finally {
    discardAll(taken.list);
  }
}

type Load<T> = (source: VideoSource, name: string, signal: AbortSignal) => Promise<T>;

function pictureLoader(input: InputConfig, { device, ...options }: BatchOptions): Load<Float32Array> {
  const { maxPixels, maxBytes, formats, timeout } = checkLimits(options);
  return async (source, name, signal) => {
    const limits = { maxPixels, maxBytes, formats, timeout, signal };
    const picture = await decodeImage(source as PictureSource, limits, name);
    // One thread: pictures are side by side already.
    return preprocessOne(picture, input, { device, threads: 1, signal });
  };
}

function clipLoader(input: ClipConfig, options: ClipOptions): Load<Float32Array> {
  const load = videoLoader(input, options, { clips: 1, crops: 1 });
  return async (...source) => {
    using views = await load(...source);
    return await views.view(0);
  };
}

/** Loads the views of a video. */
export function videoLoader(
  input: ClipConfig,
  { device, ...options }: ClipOptions,
  views: SomeViews,
): Load<VideoViews> {
  const limits = checkVideoLimits(options);
  return async (source, name, signal) => {
    const video = await openVideo(source, name, { ...limits, signal });
    const load = () => loadViews(video, name, input, { ...views, maxBytes: limits.maxBytes, device });
    try {
      // Frames that come once only come at their own pace, and no decoder is started for them.
      return await (video.count ? whenFree(load, signal) : load());
    } finally {
      await video.close();
    }
  };
}

/** Videos that are decoded at a time, by all callers: each has an ffmpeg of its own. */
const videoDecoders = pLimit(availableParallelism());

/** Starts `load` when a decoder is free; the signal ends the waiting at once. */
function whenFree<T>(load: () => Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const forget = onAbort(signal, () => reject(signal.reason));
    const start = () => {
      forget();
      signal.throwIfAborted();
      return load();
    };
    videoDecoders(start).then(resolve, reject);
  });
}

/** Sources of which each is read or discarded. */
interface Taken {
  readonly list: readonly VideoSource[];
  readonly names: readonly string[];
}

export function take(sources: VideoSource | readonly VideoSource[], what: 'picture' | 'video'): Taken {
  const many = isList(sources);
  const list = many ? sources : [sources];
  list.forEach(hold);
  return { list, names: list.map((source, i) => nameOf(source, many ? i : undefined, what)) };
}

/** What could be loaded of a source. */
export interface Loaded<T> {
  readonly value: T;
  readonly file: string;
  readonly index: number;
}

export function checkBatch(batch: number): void {
  if (!Number.isInteger(batch) || batch < 1) throw new OctconvError(`batch: ${show(batch)}, wanted a positive integer`);
}

/** Loads sources in batches, several of a batch at a time. While the caller works on one batch the next is loaded. */
export async function* loadEach<T>(
  { list, names }: Taken,
  options: Pick<BatchOptions, 'batch' | 'failed' | 'signal'>,
  usual: { readonly batch: number; readonly workers: number },
  load: Load<T>,
): AsyncGenerator<Loaded<T>[], void, void> {
  const { batch = usual.batch, failed, signal } = options;
  checkBatch(batch);
  if (failed !== undefined && typeof failed !== 'function')
    throw new OctconvError(`failed: ${show(failed)}, wanted a function`);
  checkSignal(signal);
  const stop = new AbortController(); // also ends what is being decoded when the caller leaves the loop
  const forget = onAbort(signal, () => stop.abort(signal?.reason));

  const loadOne = async (
    index: number,
  ): Promise<Loaded<T> | { readonly error: OctconvError; readonly index: number }> => {
    const file = names[index] as string;
    try {
      return { value: await load(list[index] as VideoSource, file, stop.signal), file, index };
    } catch (error) {
      if (error instanceof SourceError && !stop.signal.aborted) return { error, index };
      throw error;
    }
  };
  const loadMany = async (begin: number) => {
    const loaded = Array<Awaited<ReturnType<typeof loadOne>>>(Math.max(0, Math.min(batch, list.length - begin)));
    const queue = loaded.keys();
    const worker = async () => {
      for (const i of queue) loaded[i] = await loadOne(begin + i);
    };
    await Promise.all(Array.from({ length: usual.workers }, worker));
    return loaded;
  };
  const startAt = (begin: number) => {
    const loading = loadMany(begin);
    loading.catch(() => undefined); // it is awaited later: a rejection until then is not unhandled
    return loading;
  };

  try {
    let next = startAt(0);
    for (let begin = 0; begin < list.length; begin += batch) {
      const loaded = await next;
      next = startAt(begin + batch);
      const good: Loaded<T>[] = [];
      for (const one of loaded) {
        if ('value' in one) good.push(one);
        else if (failed) failed(one.error, names[one.index] as string, one.index);
        else throw one.error;
      }
      if (good.length) yield good;
    }
  } finally {
    forget();
    stop.abort();
  }
}
