import { stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { DType, TypedArray } from '../dtype.js';
import { OctconvError, show } from '../error.js';
import { kindOf } from '../graph/graph.js';
import { checkOptions, didYouMean, type Known } from '../options.js';
import { type Memory, RandomFile } from './file.js';
import { someOf, withoutWrappers } from './names.js';
import { isParams, isTar, readParams, readTar } from './params.js';
import { readLegacyPth, readZipPth } from './pth.js';
import { readSafetensors } from './safetensors.js';
import { readShards } from './shards.js';

export interface TensorInfo {
  readonly dtype: DType;
  readonly shape: readonly number[];
}

/** Where parameters come from. Names and layouts are PyTorch's (OIHW). */
export interface WeightSource {
  /** What errors call it: the file. */
  readonly name?: string;
  /** Every tensor in file order. Counters as `num_batches_tracked` are left out: no network reads them. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** What else is there under a name, and why it is no tensor that can be read: an error only where it is wanted. */
  readonly unreadable?: ReadonlyMap<string, string>;
  /** What was chosen, renamed or converted, a line each. */
  readonly notes?: readonly string[];
  /**
   * The elements' raw bits, one tensor at a time; whoever does not keep them may say where they can be put.
   * @throws OctconvError that names the tensor: no number of a file is NaN or infinite, and no `running_var` negative.
   */
  read(name: string, memory?: Memory): Promise<TypedArray>;
  close(): Promise<void>;
}

/**
 * What lies beside a weight `X.weight` of i8, by name: w = q * X.weight_scale[o], and its layer reads u8,
 * x = X.input_scale * (q - X.input_zero_point).
 */
export function besideI8(weight: string, channels = 0): { readonly [Kind in I8Kind]: TensorInfo & { name: string } } {
  const layer = weight.replace(/weight$/, '');
  return {
    weightScale: { name: `${layer}weight_scale`, dtype: 'f32', shape: [channels] },
    inputScale: { name: `${layer}input_scale`, dtype: 'f32', shape: [1] },
    inputZeroPoint: { name: `${layer}input_zero_point`, dtype: 'u8', shape: [1] },
  };
}
type I8Kind = 'weightScale' | 'inputScale' | 'inputZeroPoint';

export interface OpenOptions {
  /** The dictionary of a .pth file that holds the parameters (`model_ema`, `ema.state_dict`), if it holds several. */
  readonly key?: string | undefined;
}

export const openOptions = { key: true } satisfies Known<OpenOptions>;

/**
 * Opens a .safetensors, a .pth (zip, or the pickles before PyTorch 1.6) or an MXNet .params (bare or in a tar), told
 * apart by content, or what `model.safetensors.index.json` tells of: the index, or the folder that it is in.
 */
export async function openWeights(path: string, options: OpenOptions = {}): Promise<WeightSource> {
  checkOptions('openWeights', options, openOptions);
  const { key } = options;
  if (typeof path !== 'string') throw new OctconvError(`openWeights: got ${kindOf(path)}, wanted a path`);
  const index = await indexOf(path);
  if (index !== undefined) {
    refuseKey(path, key);
    return withoutWrappers(await readShards(index));
  }
  const file = await RandomFile.open(path);
  try {
    const head = await file.read(0, Math.min(file.size, 512));
    const [first, second] = head;
    if (isTar(head)) {
      refuseKey(path, key);
      return await readTar(file);
    }
    if (first === 0x50 && second === 0x4b) return withoutWrappers(await readZipPth(file, key));
    // A pickle starts with PROTO; as the length of a safetensors header the same byte is followed by an 8th `{`.
    if (first === 0x80 && head[8] !== 0x7b) return withoutWrappers(await readLegacyPth(file, key));
    refuseKey(path, key);
    if (head[8] === 0x7b) return withoutWrappers(await readSafetensors(file));
    if (isParams(head)) return await readParams(file);
    throw new OctconvError(
      `${path}: not a weight file, wanted .safetensors, a PyTorch .pth (zip or pickle) or an MXNet .params`,
    );
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** @throws OctconvError if a dictionary is wanted of what has none. */
export function refuseKey(path: string, key: string | undefined): void {
  if (key !== undefined) throw new OctconvError(`${path}: no .pth file, only those have dictionaries as ${show(key)}`);
}

const indexName = 'model.safetensors.index.json';

/** The index of a sharded file, if the path is one or a folder that has one. */
export async function indexOf(path: string): Promise<string | undefined> {
  if (basename(path).endsWith('.safetensors.index.json')) return path;
  const stats = await stat(path).catch(() => undefined);
  const index = join(path, indexName);
  return stats?.isDirectory() && (await stat(index).catch(() => undefined)) ? index : undefined;
}

/** The number of elements, or NaN where a size or the product is no exact integer. */
export function elementCount(shape: readonly number[]): number {
  let count = 1;
  // A zero makes the product small again: every size and the product of the others have to be exact all the same.
  for (const size of shape) {
    if (!Number.isSafeInteger(size) || size < 0) return Number.NaN;
    if (size !== 0) count *= size;
    if (count > Number.MAX_SAFE_INTEGER) return Number.NaN;
  }
  return shape.includes(0) ? 0 : count;
}

export function missingTensor({ name: where = 'weights', tensors, unreadable }: Described, name: string): OctconvError {
  const why = unreadable?.get(name);
  return new OctconvError(
    why
      ? `${where}: tensor ${show(name)} ${why}`
      : `${where}: no tensor ${show(name)}${didYouMean(name, tensors.keys())}, ${someOf(tensors.keys())}`,
  );
}

type Described = Pick<WeightSource, 'name' | 'unreadable'> & { readonly tensors: ReadonlyMap<string, unknown> };
