import { checkSignal, onAbort } from '../abort.js';
import { OctconvError, show } from '../error.js';
import type { PlanOptions, RunOptions } from '../plan.js';
import { checkOptions, type Known } from '../options.js';
import { checkLimits, decodeImage, type DecodeOptions, decodeOptions, type Picture } from './image.js';
import { type InputConfig, type InputTensor, parseInput, preprocessOne, stack } from './preprocess.js';
import { discardAll, hold, isList, nameOf, type PictureSource } from './source.js';

export interface Batch {
  /** One picture per file. */
  readonly x: InputTensor;
  /** The pictures that could be read, in the order given: paths, or `picture 3` for the fourth source. */
  readonly files: readonly string[];
  /** Their places among the sources. */
  readonly indices: readonly number[];
}

/** Told in order of each source that is no picture; it is left out. */
export type Failed = (error: OctconvError, file: string, index: number) => void;

export interface BatchOptions extends Pick<PlanOptions, 'device'>, RunOptions, DecodeOptions {
  /** Pictures per batch; default 32. */
  readonly batch?: number | undefined;
  /** Without it a source that is no picture ends the loop with its error. */
  readonly failed?: Failed | undefined;
}

export const batchOptions = {
  batch: true,
  failed: true,
  ...decodeOptions,
  device: true,
} satisfies Known<BatchOptions>;

/** Pictures that are decoded at a time: sharp decodes on libuv's pool, which has four threads. */
const decoders = 4;

/**
 * Reads pictures as batches for a network. While the caller works on one batch the next is read, so memory holds two
 * batches and four decoded pictures. Streams are read or, if the loop ends before, destroyed.
 */
export async function* loadBatches(
  sources: PictureSource | readonly PictureSource[],
  input: InputConfig,
  options: BatchOptions = {},
): AsyncGenerator<Batch, void, void> {
  const list = isList(sources) ? sources : [sources];
  const names = isList(sources) ? list.map(nameOf) : [nameOf(sources)];
  list.forEach(hold);
  try {
    checkOptions('loadBatches', options, batchOptions);
    const { batch = 32, failed } = options;
    if (!Number.isInteger(batch) || batch < 1)
      throw new OctconvError(`batch: ${show(batch)}, wanted a positive integer`);
    if (failed !== undefined && typeof failed !== 'function')
      throw new OctconvError(`failed: ${show(failed)}, wanted a function`);
    checkLimits(options);
    yield* batchesOf(list, names, parseInput(input, 'preprocess'), { ...options, batch });
  } finally {
    discardAll(list);
  }
}

async function* batchesOf(
  list: readonly PictureSource[],
  names: readonly string[],
  input: InputConfig,
  { batch, failed, device, ...decoding }: BatchOptions & { readonly batch: number },
): AsyncGenerator<Batch, void, void> {
  const { signal } = decoding;
  checkSignal(signal);
  const stop = new AbortController(); // also ends what is being decoded when the caller leaves the loop
  const forget = onAbort(signal, () => stop.abort(signal?.reason));

  const loadOne = async (i: number): Promise<Float32Array | OctconvError> => {
    let picture: Picture;
    try {
      picture = await decodeImage(list[i] as PictureSource, { ...decoding, signal: stop.signal }, names[i]);
    } catch (error) {
      if (error instanceof OctconvError && !stop.signal.aborted) return error;
      throw error;
    }
    // One thread: pictures are side by side already.
    return preprocessOne(picture, input, { device, threads: 1, signal: stop.signal });
  };
  const load = async (begin: number): Promise<(Float32Array | OctconvError)[]> => {
    const loaded = Array<Float32Array | OctconvError>(Math.max(0, Math.min(batch, list.length - begin)));
    const queue = loaded.keys();
    const worker = async () => {
      for (const i of queue) loaded[i] = await loadOne(begin + i);
    };
    await Promise.all(Array.from({ length: decoders }, worker));
    return loaded;
  };
  const startAt = (begin: number) => {
    const loading = load(begin);
    loading.catch(() => undefined); // it is awaited later: a rejection until then is not unhandled
    return loading;
  };

  try {
    let next = startAt(0);
    for (let begin = 0; begin < list.length; begin += batch) {
      const loaded = await next;
      next = startAt(begin + batch);
      const indices: number[] = [];
      const pictures: Float32Array[] = [];
      for (const [i, result] of loaded.entries()) {
        const index = begin + i;
        if (!(result instanceof OctconvError)) {
          indices.push(index);
          pictures.push(result);
        } else if (failed) failed(result, names[index] as string, index);
        else throw result;
      }
      const files = indices.map((index) => names[index] as string);
      if (pictures.length) yield { x: stack(pictures, input), files, indices };
    }
  } finally {
    forget();
    stop.abort();
  }
}
