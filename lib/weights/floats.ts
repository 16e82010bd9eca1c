import type { DType, TypedArray } from '../dtype.js';

/** Elements as numbers: f16 and bf16 are kept as raw bits. */
export function toFloats(dtype: DType, data: TypedArray): Float32Array {
  if (data instanceof Float32Array) return data;
  if (dtype === 'bf16') return new Float32Array(Uint32Array.from(data, (bits) => bits << 16).buffer);
  return Float32Array.from(data, dtype === 'f16' ? fromHalf : (x) => x);
}

function fromHalf(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? Number.NaN : sign * Infinity;
  return sign * (exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24);
}
