import type { DType, TypedArray } from '../dtype.js';

/** Elements as numbers: f16 and bf16 are kept as raw bits. */
export function toFloats(dtype: DType, data: TypedArray): Float32Array {
  if (data instanceof Float32Array) return data;
  if (dtype === 'bf16') return new Float32Array(new Uint32Array(data).map((bits) => bits << 16).buffer);
  if (dtype === 'f16') return Float32Array.from(data, fromHalf);
  return new Float32Array(data);
}

function fromHalf(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? Number.NaN : sign * Infinity;
  return sign * (exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24);
}

const word = new Float32Array(1);
const wordBits = new Uint32Array(word.buffer);

/** The nearest f16 or bf16, the even one of two, as bits; infinity beyond the largest. */
export function roundedBits(dtype: 'f16' | 'bf16', value: number): number {
  word[0] = value;
  const sign = (wordBits[0]! >>> 16) & 0x8000;
  const magnitude = wordBits[0]! & 0x7fffffff;
  const nearest = (bits: number, dropped: number) =>
    (bits + (1 << (dropped - 1)) - 1 + ((bits >>> dropped) & 1)) >>> dropped;
  if (dtype === 'bf16') return sign | nearest(magnitude, 16);
  // From 2^-14 on the exponent has another bias; below, steps are of 2^-24.
  if (magnitude >= 0x38800000) return sign | Math.min(0x7c00, nearest(magnitude - 0x38000000, 13));
  const steps = Math.abs(value) * 2 ** 24;
  const below = Math.floor(steps);
  const up = steps - below > 0.5 || (steps - below === 0.5 && below % 2 === 1);
  return sign | (below + Number(up));
}
