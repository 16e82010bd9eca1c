/** What files keep, and what of it are weights. */
import { arrayFor, bytesPerElement, type DType, type TypedArray } from '../dtype.js';
import { OctconvError, show } from '../error.js';
import { atOnce, inTurns, type Work } from '../turns.js';
import { type Memory, ownMemory } from './file.js';
import { roundedBits, toFloats } from './floats.js';

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
  await inTurnsIfMany(strided ? gather(from, view, strided) : copy(from, view), count);
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

/** So many elements are done between two rests: some tenths of a millisecond, also before the loop is optimised. */
const slice = 2 ** 15;

/** Work on elements: of few at once, since most parameters are vectors, else in turns of the event loop. */
async function inTurnsIfMany<T>(work: Work<T>, elements: number): Promise<T> {
  return elements <= slice ? atOnce(work) : await inTurns(work);
}

function* copy(from: TypedArray | Float64Array, to: TypedArray): Work<void> {
  for (let at = 0; at < to.length; at += slice) {
    if (at > 0) yield;
    to.set(from.subarray(at, at + slice), at);
  }
}

function* gather(from: TypedArray | Float64Array, to: TypedArray, layout: Layout): Work<void> {
  const index = layout.shape.map(() => 0);
  let at = 0;
  for (let begin = 0; begin < to.length; begin += slice) {
    if (begin > 0) yield;
    at = gatherSome(from, to.subarray(begin, begin + slice), layout, index, at);
  }
}

/** From the element at `index`, which lies at `start`, on; gives the place of the next one. */
function gatherSome(
  from: TypedArray | Float64Array,
  to: TypedArray,
  { shape, strides }: Layout,
  index: number[],
  start: number,
): number {
  let at = start;
  for (let i = 0; i < to.length; i++) {
    to[i] = from[at]!;
    for (let d = shape.length - 1; d >= 0; d--) {
      at += strides[d]!;
      if (++index[d]! < shape[d]!) break;
      at -= strides[d]! * shape[d]!;
      index[d] = 0;
    }
  }
  return at;
}

/** Numbers with the other sign, in place: `data` itself. */
export async function negate<A extends TypedArray>(dtype: DType, data: A): Promise<A> {
  await inTurnsIfMany(negating(dtype, data), data.length);
  return data;
}

function* negating(dtype: DType, data: TypedArray): Work<void> {
  const raw = dtype === 'f16' || dtype === 'bf16';
  for (let begin = 0; begin < data.length; begin += slice) {
    if (begin > 0) yield;
    const some = data.subarray(begin, begin + slice);
    for (let i = 0; i < some.length; i++) some[i] = raw ? some[i]! ^ 0x8000 : -some[i]!;
  }
}

/** The bits of the nearest f16 or bf16. */
export async function roundValues(where: string, dtype: 'f16' | 'bf16', values: Float32Array): Promise<Uint16Array> {
  const bits = new Uint16Array(values.length);
  await inTurnsIfMany(rounding(where, dtype, values, bits), values.length);
  return bits;
}

function* rounding(where: string, dtype: 'f16' | 'bf16', values: Float32Array, bits: Uint16Array): Work<void> {
  const infinity = roundedBits(dtype, Infinity);
  for (let begin = 0; begin < values.length; begin += slice) {
    if (begin > 0) yield;
    for (let i = begin; i < Math.min(begin + slice, values.length); i++) {
      bits[i] = roundedBits(dtype, values[i]!);
      if ((bits[i]! & 0x7fff) === infinity)
        throw new OctconvError(`${where} has ${values[i]} as element ${i}, too large for ${dtype}`);
    }
  }
}

/** Refuses what no weight is: numbers that are not finite, and negative variances. */
export async function checkValues<A extends TypedArray>(
  where: string,
  name: string,
  dtype: DType,
  data: A,
): Promise<A> {
  await inTurnsIfMany(checking(`${where}: tensor ${show(name)}`, name, dtype, data), data.length);
  return data;
}

function* checking(what: string, name: string, dtype: DType, data: TypedArray): Work<void> {
  const isVariance = /(^|[._])(running|moving)_var$/.test(name);
  for (let from = 0; from < data.length; from += slice) {
    if (from > 0) yield;
    const refuse = (bad: (value: number) => boolean, wanted: string): void => {
      const floats = toFloats(dtype, data.subarray(from, from + slice));
      const at = floats.findIndex(bad);
      if (at < 0) return;
      throw new OctconvError(`${what} has ${floats[at]} as element ${from + at}, wanted ${wanted}`);
    };
    if (!allFinite(dtype, data, from, Math.min(from + slice, data.length)))
      refuse((x) => !Number.isFinite(x), 'finite numbers');
    if (isVariance) refuse((x) => x < 0, 'variances of at least 0');
  }
}

/** Floats as the integers of their bits, and those of the exponent. */
function bitsOf(dtype: DType, data: TypedArray): { bits: Int32Array | Uint16Array; exponent: number } | undefined {
  if (dtype === 'f32') return { bits: new Int32Array(data.buffer, data.byteOffset, data.length), exponent: 0x7f800000 };
  if (dtype !== 'f16' && dtype !== 'bf16') return undefined;
  return { bits: data as Uint16Array, exponent: dtype === 'f16' ? 0x7c00 : 0x7f80 };
}

/**
 * Whether numbers from `from` to `to` are. Only an infinite one and NaN have all bits of the exponent. Integers and no
 * branch: to add up floats takes as long, but allocates each sum until the loop is optimised.
 */
export function allFinite(dtype: DType, data: TypedArray, from = 0, to = data.length): boolean {
  const floats = bitsOf(dtype, data);
  if (!floats) return true;
  const { bits, exponent } = floats;
  let all = -1;
  for (let i = from; i < to; i++) all &= (bits[i]! & exponent) - exponent;
  return all < 0;
}
