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
