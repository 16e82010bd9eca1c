import { arrayFor, type DType, type TypedArray } from '../dtype.js';
import { OctconvError, show } from '../error.js';
import { type Memory, RandomFile } from './file.js';
import { isParams, isTar, readParams, readTar } from './params.js';
import { readLegacyPth, readZipPth } from './pth.js';
import { readSafetensors } from './safetensors.js';

export interface TensorInfo {
  readonly dtype: DType;
  readonly shape: readonly number[];
}

/** Where parameters come from. Names and layouts are PyTorch's (OIHW). */
export interface WeightSource {
  /** What errors call it: the file. */
  readonly name?: string;
  /** Every tensor in file order. `num_batches_tracked` counters are left out: no network reads them. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** The elements' raw bits, one tensor at a time; whoever does not keep them may say where they can be put. */
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

/**
 * Opens a .safetensors, a .pth (zip, or the pickles before PyTorch 1.6) or an MXNet .params (bare or in a tar), told apart
 * by content.
 */
export async function openWeights(path: string): Promise<WeightSource> {
  const file = await RandomFile.open(path);
  try {
    const head = await file.read(0, Math.min(file.size, 512));
    const [first, second] = head;
    if (isTar(head)) return await readTar(file);
    if (first === 0x50 && second === 0x4b) return await readZipPth(file);
    // A pickle starts with PROTO; as the length of a safetensors header the same byte is followed by an 8th `{`.
    if (first === 0x80 && head[8] !== 0x7b) return await readLegacyPth(file);
    if (head[8] === 0x7b) return await readSafetensors(file);
    if (isParams(head)) return await readParams(file);
    throw new OctconvError(`${path}: not a weight file, wanted .safetensors, a PyTorch .pth (zip or pickle) or an MXNet .params`);
  } catch (error) {
    await file.close();
    throw error;
  }
}

export function isCounter(name: string): boolean {
  return name === 'num_batches_tracked' || name.endsWith('.num_batches_tracked');
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

/** Bytes as elements of a data type. */
export function asElements(dtype: DType, bytes: Uint8Array<ArrayBuffer>): TypedArray {
  const Elements = arrayFor(dtype);
  return new Elements(bytes.buffer, bytes.byteOffset, bytes.byteLength / Elements.BYTES_PER_ELEMENT);
}

export function missingTensor(where: string, name: string): OctconvError {
  return new OctconvError(`${where}: no tensor ${show(name)}`);
}
