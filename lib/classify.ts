/** From pictures and videos to labels. */
import { checkSignal, onAbort } from './abort.js';
import { OctconvError, show } from './error.js';
import { kindOf } from './graph/graph.js';
import {
  batchOptions,
  checkBatch,
  type BatchOptions,
  clipOptions,
  type ClipOptions,
  loadBatches,
  loadEach,
  take,
  videoLoader,
} from './input/batches.js';
import {
  checkViews,
  checkWindows,
  type ClipConfig,
  isClip,
  type VideoViews,
  type Views,
  viewOptions,
  type Window,
  type WindowOptions,
  windowOptions,
  windowsOf,
} from './input/clips.js';
import { type InputConfig, stack } from './input/preprocess.js';
import { discard, discardAll, nameOf, type PictureSource } from './input/source.js';
import { readFrames, type VideoOptions, videoOptions, type VideoSource } from './input/video.js';
import type { Model } from './model.js';
import { checkOptions, type Known } from './options.js';
import { softmax } from './ops.js';
import { type Matrix, Tensor } from './tensor.js';

export interface Guess {
  readonly label: string;
  /** Index of the class. */
  readonly index: number;
  readonly probability: number;
}

export interface Classified {
  /** The path of a picture or video; `picture 3` (`video 3`) for the fourth source where it has none. */
  readonly file: string;
  /** Its place among the sources. */
  readonly index: number;
  /** The likeliest first. */
  readonly top: readonly Guess[];
  /** What the network took: for a picture its share of the batch, for a video all its views. */
  readonly milliseconds: number;
  /** How many frames of a video the network saw. */
  readonly frames?: number;
}

/**
 * How many pictures, or clips of a video, make a batch, what is left out, and what a source may cost. `clips`, `crops`,
 * `frameRate` and `skipDamaged` are for video networks, `formats` is for those of pictures.
 */
export interface ClassifyOptions extends Views, Omit<BatchOptions, 'device'>, Omit<ClipOptions, 'device'> {
  /** Guesses per picture or video; default 5. */
  readonly top?: number | undefined;
}

const { device: _ofPictures, ...forPictures } = { top: true, ...batchOptions } as const;
const { device: _ofVideos, ...forVideos } = { top: true, ...viewOptions, ...clipOptions } as const;
({ ...forPictures, ...forVideos }) satisfies Known<ClassifyOptions>;

/**
 * Classifies pictures with a model; with a video network videos, by the mean of the probabilities of their views. While
 * the network runs, the next batch or the next video is decoded.
 *
 *     for await (const { file, top } of classify(model, ['cat.jpg'])) console.log(file, top[0]?.label);
 *     for await (const { file, top } of classify(model, ['a.mp4'], { clips: 10, crops: 3 })) console.log(file, top);
 *
 * @throws OctconvError that names the picture or video, if it cannot be read and `failed` is not given, or if the
 * network gives infinities or NaN for it; the signal's reason if it is aborted.
 */
export async function* classify(
  model: Model,
  sources: VideoSource | readonly VideoSource[],
  options: ClassifyOptions = {},
): AsyncGenerator<Classified, void, void> {
  const { input } = model;
  const ofVideo = isClip(input);
  const taken = take(sources, ofVideo ? 'video' : 'picture');
  try {
    checkOptions('classify', options, ofVideo ? forVideos : forPictures);
    const { top = 5, clips, crops, ...others } = options;
    checkTop(top);
    if (ofVideo) {
      const views = checkViews({ clips, crops });
      const { batch = 1, failed, signal } = others;
      checkBatch(batch);
      const load = videoLoader(input, others, views);
      for await (const [video] of loadEach(taken, { batch: 1, failed, signal }, { batch: 1, workers: 1 }, load)) {
        if (!video) continue;
        const { value, ...source } = video;
        using views = value;
        const { mean, milliseconds } = await classifyViews(model, input, views, source.file, { batch, signal });
        yield { ...source, top: likeliest(mean, top, model.labels), milliseconds, frames: views.frames };
      }
      return;
    }
    if (!input) throw new OctconvError('classify: the model has no preprocessing (`input`)');
    const { signal } = others;
    const pictures = input as InputConfig & { readonly frames?: undefined };
    for await (const { x, files, indices } of loadBatches(sources as PictureSource, pictures, others)) {
      const { rows, milliseconds } = await probabilities(model, x, files, signal);
      for (const [i, file] of files.entries()) {
        const [row, index] = [rows[i] as Float32Array, indices[i] as number];
        yield { file, index, top: likeliest(row, top, model.labels), milliseconds: milliseconds / files.length };
      }
    }
  } finally {
    discardAll(taken.list);
  }
}

/** The mean of the probabilities of all views of a video, of which `batch` are run at a time. */
async function classifyViews(
  model: Model,
  input: ClipConfig,
  { count, view }: VideoViews,
  file: string,
  { batch, signal }: { readonly batch: number; readonly signal: AbortSignal | undefined },
): Promise<{ readonly mean: Float32Array; readonly milliseconds: number }> {
  const rows: Float32Array[] = [];
  let milliseconds = 0;
  for (let begin = 0; begin < count; begin += batch) {
    const indices = Array.from({ length: Math.min(batch, count - begin) }, (_, i) => begin + i);
    const x = stack(await Promise.all(indices.map(view)), input);
    const run = await probabilities(model, x, Array(indices.length).fill(file), signal);
    milliseconds += run.milliseconds;
    rows.push(...run.rows);
  }
  return { mean: meanOf(rows), milliseconds };
}

export function meanOf(rows: readonly Float32Array[]): Float32Array {
  return (rows[0] as Float32Array).map((_, i) => rows.reduce((sum, row) => sum + (row[i] as number), 0) / rows.length);
}

/** A row for each input: the softmax of its logits. */
async function probabilities(model: Model, x: Tensor<'f32'>, files: readonly string[], signal?: AbortSignal) {
  await model.plan(x.shape); // compiled outside of what is timed
  const start = performance.now();
  const logits = await model.run(x, { signal });
  const milliseconds = performance.now() - start;
  checkLogits(logits, files, model.labels);
  return { rows: await softmaxRows(logits as Tensor<'f32', Matrix>), milliseconds };
}

/** The probabilities of each row of logits. */
export async function softmaxRows(logits: Tensor<'f32', Matrix>): Promise<Float32Array[]> {
  const { data, shape } = await softmax(logits);
  return Array.from({ length: shape[0] }, (_, i) => data.subarray(i * shape[1], (i + 1) * shape[1]));
}

function checkTop(top: number): void {
  if (!Number.isInteger(top) || top < 1) throw new OctconvError(`top: ${show(top)}, wanted a positive integer`);
}

/** One answer for one source, many for many; one that cannot be read has no answer, `failed` or not. */
export async function classifyAll(
  model: Model,
  sources: VideoSource | readonly VideoSource[],
  options: ClassifyOptions = {},
): Promise<Classified | Classified[]> {
  const many = Array.isArray(sources);
  const all: Classified[] = [];
  for await (const one of classify(model, sources, many ? options : { ...options, failed: undefined })) all.push(one);
  return many ? all : (all[0] as Classified);
}

/** What a part of a video shows. */
export interface ClassifiedWindow {
  /** In seconds of the video. */
  readonly start: number;
  readonly end: number;
  /** Frames of the video up to its end. */
  readonly frames: number;
  /** The likeliest first. */
  readonly top: readonly Guess[];
  /** What the network took. */
  readonly milliseconds: number;
}

export interface StreamOptions extends WindowOptions, VideoOptions {
  /** Guesses per window; default 5. */
  readonly top?: number | undefined;
}
const streamOptions = { top: true, ...windowOptions, ...videoOptions } satisfies Known<StreamOptions>;

/**
 * Classifies a video of any length, or a stream that does not end, window by window:
 *
 *     for await (const { start, end, top } of classifyStream(model, 'day.mp4', { window: 2, hop: 1 })) ...
 *
 * While the network runs, the next window is decoded, and no more than that; memory does not grow. A frame that is in
 * several windows is decoded and resized once. A stream of bytes is decoded as it comes, but for an MP4 whose index lies
 * at its end: that is kept in a temporary file first.
 * @throws OctconvError that begins with the name of the source, if it cannot be read; the signal's reason if it is
 * aborted.
 */
export async function* classifyStream(
  model: Model,
  source: VideoSource,
  options: StreamOptions = {},
): AsyncGenerator<ClassifiedWindow, void, void> {
  const name = nameOf(source, undefined, 'video');
  try {
    checkOptions('classifyStream', options, streamOptions);
    const { top = 5, window, hop, ...reading } = options;
    const { input } = model;
    const { signal } = reading;
    checkSignal(signal);
    checkTop(top);
    checkWindows({ window, hop });
    if (!isClip(input)) throw new OctconvError('classifyStream: wanted a video network, whose input has frames');
    const stop = new AbortController(); // also ends what is being decoded when the caller leaves the loop
    const forget = onAbort(signal, () => stop.abort(signal?.reason));
    const frames = readFrames(source, { ...reading, signal: stop.signal }, name);
    const windows = windowsOf(frames, input, { window, hop }, {});
    const start = () => {
      const loading = windows.next();
      loading.catch(() => undefined); // it is awaited later
      return loading;
    };
    let next = start();
    try {
      for (;;) {
        const { done, value } = await next;
        if (done) return;
        next = start();
        const { x, ...times } = value satisfies Window;
        const { rows, milliseconds } = await probabilities(model, x, [name], signal);
        yield { ...times, top: likeliest(rows[0] as Float32Array, top, model.labels), milliseconds };
      }
    } finally {
      forget();
      stop.abort();
      await windows.return().catch(() => undefined);
    }
  } finally {
    discard(source);
  }
}

/** @throws OctconvError that names the first source and class whose logit is not finite: such logits have no order. */
export function checkLogits(logits: Tensor<'f32'>, files: readonly string[], labels?: readonly string[]): void {
  if (!(logits instanceof Tensor))
    throw new OctconvError(`classify: the network gives ${kindOf(logits)}, wanted logits`);
  const { data, shape } = logits;
  const [n, classes = 0] = shape;
  if (shape.length !== 2 || n !== files.length) {
    throw new OctconvError(`classify: the network gives [${shape}], wanted [${files.length},classes]`);
  }
  const bad = data.findIndex((logit) => !Number.isFinite(logit));
  if (bad < 0) return;
  const index = bad % classes;
  const label = labels?.[index] === undefined ? '' : ` (${labels[index]})`;
  throw new OctconvError(
    `${files[Math.floor(bad / classes)]}: the network gives ${data[bad]} for class ${index}${label}, wanted a number`,
  );
}

/** The classes of the largest probabilities. */
export function likeliest(row: Float32Array, top: number, labels: readonly string[] | undefined): Guess[] {
  const order = [...row.keys()].sort((a, b) => (row[b] as number) - (row[a] as number) || a - b).slice(0, top);
  return order.map((index) => ({
    label: labels?.[index] ?? `class ${index}`,
    index,
    probability: row[index] as number,
  }));
}
