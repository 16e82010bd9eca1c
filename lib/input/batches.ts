import { OctconvError } from '../error.js';
import type { PlanOptions, RunOptions } from '../plan.js';
import { decodeImage, type Picture } from './image.js';
import { type InputConfig, type InputTensor, preprocessOne, stack } from './preprocess.js';

export interface Batch {
  /** One picture per file. */
  readonly x: InputTensor;
  /** The files that could be read, in the order given. */
  readonly files: readonly string[];
}

export interface BatchOptions extends Pick<PlanOptions, 'device'>, RunOptions {
  /** Pictures per batch; default 32. */
  readonly batch?: number | undefined;
  /** Told in order of each file that is no picture; it is left out. Without `failed` such a file ends the loop. */
  readonly failed?: ((error: OctconvError, file: string) => void) | undefined;
}

/** Pictures that are decoded at a time: sharp decodes on libuv's pool, which has four threads. */
const decoders = 4;

/**
 * Reads picture files as batches for a network. While the caller works on one batch the next is read, so memory holds
 * two batches and four decoded pictures.
 */
export async function* loadBatches(
  files: readonly string[],
  input: InputConfig,
  options: BatchOptions = {},
): AsyncGenerator<Batch, void, void> {
  const { batch = 32, failed, signal } = options;
  if (!Number.isInteger(batch) || batch < 1) throw new OctconvError(`batch: ${batch}, wanted a positive integer`);
  let stopped = false;

  const load = async (part: readonly string[]): Promise<(Float32Array | OctconvError)[]> => {
    const loaded: (Float32Array | OctconvError)[] = [];
    const queue = part.entries();
    const worker = async () => {
      for (const [i, file] of queue) {
        if (stopped) return;
        signal?.throwIfAborted();
        loaded[i] = await loadOne(file, input, { ...options, threads: 1 }); // side by side already
      }
    };
    await Promise.all(Array.from({ length: decoders }, worker));
    return loaded;
  };
  const startAt = (begin: number) => {
    const loading = load(files.slice(begin, begin + batch));
    loading.catch(() => undefined); // it is awaited later: a rejection until then is not unhandled
    return loading;
  };

  let next = startAt(0);
  try {
    for (let begin = 0; begin < files.length; begin += batch) {
      const loaded = await next;
      next = startAt(begin + batch);
      const good: string[] = [];
      const pictures: Float32Array[] = [];
      for (const [i, result] of loaded.entries()) {
        const file = files[begin + i] as string;
        if (!(result instanceof OctconvError)) {
          good.push(file);
          pictures.push(result);
        } else if (failed) failed(result, file);
        else throw result;
      }
      if (pictures.length) yield { x: stack(pictures, input), files: good };
    }
  } finally {
    stopped = true;
    await next.catch(() => undefined);
  }
}

async function loadOne(file: string, input: InputConfig, options: PlanOptions & RunOptions) {
  let picture: Picture;
  try {
    picture = await decodeImage(file);
  } catch (error) {
    if (error instanceof OctconvError) return error;
    throw error;
  }
  return preprocessOne(picture, input, options);
}
