/** What files keep, and what of it are weights. */
import { arrayFor, bytesPerElement, type DType, type TypedArray } from '../dtype.js';
import { OctconvError, show } from '../error.js';
import { type Memory, ownMemory } from './file.js';
import { toFloats } from './floats.js';

/** Our data types, and float64, which is read as f32. */
export type StoredType = DType | 'f64';

export const bytesPerStored: Readonly<Record<StoredType, number>> = { ...bytesPerElement, f64: 8 };

export const readAs = (stored: StoredType): DType => (stored === 'f64' ? 'f32' : stored);

/** Where elements lie among those that were read; strides count elements. */
export interface Layout {
  readonly shape: readonly number[];
  readonly strides: readonly number[];
}

/**
 * Reads elements and puts them into `memory` in row-major order, as what they are read as. Those that are so already
 * are read to where they belong.
 */
export async function readElements(
  stored: StoredType,
  read: (memory: Memory) => Promise<Uint8Array<ArrayBuffer>>,
  memory: Memory = ownMemory,
  layout?: Layout,
): Promise<TypedArray> {
  const strided = layout && !isContiguous(layout) ? layout : undefined;
  if (stored !== 'f64' && !strided) return asElements(stored, await read(memory));
  const bytes = await read(ownMemory);
  const dtype = readAs(stored);
  // As integers, so that no bit is lost; float64 is rounded.
  const bits = ({ 1: 'u8', 2: 'f16', 4: 'i32' } as const)[bytesPerElement[dtype] as 1 | 2 | 4];
  const from =
    stored === 'f64' ? new Float64Array(bytes.buffer, bytes.byteOffset, bytes.length / 8) : asElements(bits, bytes);
  const count = strided ? strided.shape.reduce((a, b) => a * b, 1) : from.length;
  const to = memory(count * bytesPerElement[dtype]);
  const view = asElements(stored === 'f64' ? dtype : bits, to);
  if (strided) gather(from, view, strided);
  else view.set(from);
  return asElements(dtype, to);
}

/** Bytes as elements of a data type. */
function asElements(dtype: DType, bytes: Uint8Array<ArrayBuffer>): TypedArray {
  const Elements = arrayFor(dtype);
  return new Elements(bytes.buffer, bytes.byteOffset, bytes.byteLength / Elements.BYTES_PER_ELEMENT);
}

function isContiguous({ shape, strides }: Layout): boolean {
  let wanted = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    if (shape[i] !== 1 && strides[i] !== wanted) return shape.includes(0);
    wanted *= shape[i]!;
  }
  return true;
}

function gather(from: TypedArray | Float64Array, to: TypedArray, { shape, strides }: Layout): void {
  const index = shape.map(() => 0);
  let at = 0;
  for (let i = 0; i < to.length; i++) {
    to[i] = from[at]!;
    for (let d = shape.length - 1; d >= 0; d--) {
      at += strides[d]!;
      if (++index[d]! < shape[d]!) break;
      at -= strides[d]! * shape[d]!;
      index[d] = 0;
    }
  }
}

/** Refuses what no weight is: numbers that are not finite, and negative variances. */
export function checkValues<A extends TypedArray>(where: string, name: string, dtype: DType, data: A): A {
  const wrong = (what: (value: number) => boolean, wanted: string): OctconvError => {
    const floats = toFloats(dtype, data);
    const at = floats.findIndex(what);
    return new OctconvError(`${where}: tensor ${show(name)} has ${floats[at]} as element ${at}, wanted ${wanted}`);
  };
  if (!allFinite(dtype, data)) throw wrong((x) => !Number.isFinite(x), 'finite numbers');
  if (!/(^|[._])(running|moving)_var$/.test(name)) return data;
  const negative = (x: number) => x < 0;
  if (toFloats(dtype, data).some(negative)) throw wrong(negative, 'variances of at least 0');
  return data;
}

export function allFinite(dtype: DType, data: TypedArray): boolean {
  if (dtype === 'f32') return Number.isFinite(sum(data));
  const exponent = dtype === 'f16' ? 0x7c00 : dtype === 'bf16' ? 0x7f80 : undefined;
  return exponent === undefined || !data.some((bits) => (bits & exponent) === exponent);
}

/**
 * No sum of floats is too large for a double. Eight at a time take .7 ns a number, one at a time 1.8; variables that
 * are declared by destructuring an array stay in memory, and take 6.
 */
function sum(data: TypedArray): number {
  const whole = data.length - (data.length % 8);
  let a = 0;
  let b = 0;
  let c = 0;
  let d = 0;
  for (let i = 0; i < whole; i += 8) {
    a += data[i]! + data[i + 4]!;
    b += data[i + 1]! + data[i + 5]!;
    c += data[i + 2]! + data[i + 6]!;
    d += data[i + 3]! + data[i + 7]!;
  }
  for (let i = whole; i < data.length; i++) a += data[i]!;
  return a + b + c + d;
}
