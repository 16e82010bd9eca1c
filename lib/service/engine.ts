/** What computes the batches of one version of a model: the model in this process, or in one of its own. */
import { targetOf } from '../devices.js';
import { OctconvError, show } from '../error.js';
import { countFlops } from '../flops.js';
import type { ComputeType } from '../graph/graph.js';
import type { InputConfig } from '../input/preprocess.js';
import { loadModel, type Model } from '../model.js';
import { inputShape } from '../models/index.js';
import { type Device, native } from '../native.js';
import { checkOptions, type Known } from '../options.js';
import type { RunOptions } from '../plan.js';
import { type Matrix, type Shape, Tensor } from '../tensor.js';
import { resolvePolicy } from './batcher.js';

/** How a model is loaded. */
export interface EngineOptions {
  readonly device?: Device | 'auto' | undefined;
  readonly dtype?: ComputeType | undefined;
  /** Threads of a run; default: all cores. */
  readonly threads?: number | undefined;
  /** Rows of the largest batch that is tried at warm-up; default 8, on a GPU 64. */
  readonly maxBatch?: number | undefined;
  /** Rows of the batches that are run, whatever they are worth. */
  readonly sizes?: readonly number[] | undefined;
}

export const engineOptions = {
  device: true,
  dtype: true,
  threads: true,
  maxBatch: true,
  sizes: true,
} satisfies Known<EngineOptions>;

/** What a loaded model is. */
export interface About {
  readonly network: string | undefined;
  readonly alpha: number | undefined;
  /** How a picture becomes an input. */
  readonly input: InputConfig | undefined;
  readonly labels: readonly string[] | undefined;
  readonly classes: number;
  /** One row of its input: [H,W,C], or [T,H,W,C] of video. */
  readonly row: Shape;
  /** What its convolutions multiply, where, and with how many threads. */
  readonly dtype: ComputeType;
  readonly device: Device;
  readonly isa: string;
  readonly threads: number;
  /** Of one row. */
  readonly multiplyAdds: number;
  readonly parameters: number;
  /** What was measured at warm-up. */
  readonly batching: Measured;
}

/** Batches worth running, and how long each takes. */
export interface Measured {
  /** Ascending, from 1. */
  readonly sizes: readonly number[];
  readonly milliseconds: readonly number[];
  /** Runs in flight that keep the device busy. */
  readonly instances: number;
  /** Whether one more of the largest size is no slower: the device is busy then while results are handed out. */
  readonly overlap: boolean;
}

export interface Engine {
  readonly about: About;
  /** Logits of a batch, which may be changed as soon as this returns. */
  run(x: Tensor<'f32' | 'u8'>, options?: RunOptions): Promise<Tensor<'f32', Matrix>>;
  /** When runs in flight have ended. */
  close(): Promise<void>;
}

/**
 * Loads a model and measures how it is batched. From then on threads of all runs of this process give way to others.
 * @throws OctconvError that names the file and what does not fit.
 */
export async function openEngine(folder: string, options: EngineOptions = {}): Promise<Engine> {
  checkOptions('service', options, engineOptions);
  const { device, dtype, threads, maxBatch = usualMaxBatch(device) } = options;
  if (!Number.isInteger(maxBatch) || maxBatch < 1)
    throw new OctconvError(`service: maxBatch: ${show(maxBatch)}, wanted a positive integer`);
  const { sizes } = resolvePolicy({ sizes: options.sizes ?? powersOfTwo(maxBatch) });
  // Of each size one for f32 and one for bytes of pictures.
  const model = await loadModel(folder, { device, dtype, threads, plans: 2 * sizes.length });
  native.giveWay(); // for good: the event loop has other requests
  try {
    const row = inputShape(model).slice(1);
    const { multiplyAdds, parameters } = countFlops(model.record([1, ...row]));
    const { batching, classes } = await measureBatching(model as Model, row, sizes, options.sizes === undefined);
    const { name, options: { alpha } = {}, input, labels } = model;
    if (input) await import('sharp'); // the first picture need not wait for it
    const { isa } = targetOf(model.device).traits;
    const place = { dtype: model.dtype, device: model.device, isa, threads: model.threads };
    return {
      about: { network: name, alpha, input, labels, classes, row, ...place, multiplyAdds, parameters, batching },
      run: (x, options) => model.run(x as Tensor<'f32'>, options),
      close: async () => model.dispose(),
    };
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** On a CPU larger ones do not pay. */
export const usualMaxBatch = (device?: Device | 'auto'): number => (targetOf(device).traits.ownMemory ? 64 : 8);

/** 1, 2, 4, ... up to `most`. */
export const powersOfTwo = (most: number): number[] =>
  Array.from({ length: Math.floor(Math.log2(most)) + 1 }, (_, i) => 2 ** i);

/** A larger batch must do so many times as much at least, in one run or in two side by side. */
const gain = 1.03;
/** Two runs of one row side by side must do so many times as much: they make each other later, unless cores are idle. */
const gainBeside = 1.5;
/** Two times that are as near are the same: others use the machine too. */
const near = 1.02;
const rounds = 4;

/**
 * How long batches take, and how many in flight are worth it; with `chooses` sizes that are not are left out. On a CPU
 * eight images in one run often take as long as eight runs, and then one image is quicker to answer.
 */
export async function measureBatching(
  model: Model,
  row: Shape,
  candidates: readonly number[],
  chooses: boolean,
): Promise<{ readonly batching: Measured; readonly classes: number }> {
  const dtype = model.input ? 'u8' : 'f32';
  let classes = 0;
  /** Milliseconds of one of some runs side by side, the least of some rounds. */
  const time = async (size: number, together: number): Promise<number> => {
    const x = Tensor.zeros(dtype as 'f32', [size, ...row]);
    await model.plan(x);
    let least = Number.POSITIVE_INFINITY;
    for (let round = 0; round < rounds; round++) {
      const start = performance.now();
      const [y] = await Promise.all(Array.from({ length: together }, () => model.run(x)));
      least = Math.min(least, (performance.now() - start) / together);
      classes = y?.shape[1] ?? 0;
    }
    return least;
  };
  const taken: { readonly size: number; readonly alone: number; readonly beside: number }[] = [];
  let worth = 0; // so many of them
  let best = Number.POSITIVE_INFINITY; // milliseconds of a row
  for (const size of candidates) {
    const [alone, beside] = [await time(size, 1), await time(size, 2)];
    taken.push({ size, alone, beside });
    const each = Math.min(alone, beside) / size;
    if (!chooses || best >= gain * each) {
      worth = taken.length;
      best = Math.min(best, each);
    } else if (taken.length > worth + 1) break; // one that seems to be no better may have been disturbed
  }
  const kept = taken.slice(0, worth);
  const [first, last] = [kept[0], kept.at(-1)] as [(typeof taken)[number], (typeof taken)[number]];
  const instances = first.beside * gainBeside < first.alone ? 2 : 1;
  const batching = {
    sizes: kept.map(({ size }) => size),
    milliseconds: kept.map(({ alone }) => alone),
    instances,
    overlap: instances === 1 && kept.length > 1 && last.beside <= near * last.alone,
  };
  return { batching, classes };
}
