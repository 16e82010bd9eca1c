/** `f16` and `bf16` are kept as raw bits: Node 20 has no Float16Array, and no engine has a bfloat16 one. */
export type DType = 'f32' | 'f16' | 'bf16' | 'i8' | 'u8' | 'i32';

const arrays = {
  f32: Float32Array,
  f16: Uint16Array,
  bf16: Uint16Array,
  i8: Int8Array,
  u8: Uint8Array,
  i32: Int32Array,
} as const;

export type TypedArrayOf<D extends DType> = {
  f32: Float32Array;
  f16: Uint16Array;
  bf16: Uint16Array;
  i8: Int8Array;
  u8: Uint8Array;
  i32: Int32Array;
}[D];
export type TypedArray = TypedArrayOf<DType>;

export const dtypes = Object.keys(arrays) as readonly DType[];

export const bytesPerElement: Readonly<Record<DType, number>> = { f32: 4, f16: 2, bf16: 2, i8: 1, u8: 1, i32: 4 };

export const isFloat = (dtype: DType): dtype is 'f32' | 'f16' | 'bf16' =>
  dtype === 'f32' || dtype === 'f16' || dtype === 'bf16';

/** The typed array constructor that holds a data type's elements. */
export function arrayFor<D extends DType>(dtype: D): (typeof arrays)[D] {
  return arrays[dtype];
}
