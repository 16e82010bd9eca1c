import { arrayFor, bytesPerElement, type DType, dtypes, type TypedArray, type TypedArrayOf } from './dtype.js';
import { OctconvError, show } from './error.js';
import { kindOf } from './graph/graph.js';

export type Shape = readonly number[];
export type Image = readonly [n: number, h: number, w: number, c: number];
export type Video = readonly [n: number, t: number, h: number, w: number, c: number];
/** What convolutions and pooling take. */
export type Spatial = Image | Video;
export type Matrix = readonly [n: number, c: number];
/** What belongs to channels: a bias, a scale, a mean. */
export type Vector = readonly [c: number];

/** The size of the last axis, C. */
export type Channels<S extends Shape> = S extends readonly [...Shape, infer C extends number] ? C : number;

/**
 * The type of an argument: `Given` if `A` and `B` (sizes, ranks or shapes) can be equal, otherwise a text that no
 * argument is, which the compiler shows. `number` fits every size, because `number & 3` is `3` and `2 & 3` is `never`.
 */
export type Match<A, B, Given, Wanted> = [A & B] extends [never] ? Wanted : Given;

/**
 * A dense array over a typed array that it does not copy: row-major, the last axis is contiguous. Data type and rank
 * are part of the type, sizes where they are literal: `Tensor<'f32', [1, 224, 224, 3]>`, `Tensor<'f32', [number, 10]>`.
 *
 * Images are [N, H, W, C], video is [N, T, H, W, C], vectors are [N, C]. `f16` and `bf16` hold raw bits.
 */
export class Tensor<D extends DType = DType, S extends Shape = Shape> implements Disposable {
  readonly dtype: D;
  readonly shape: Readonly<S>;
  #data: TypedArrayOf<D> | undefined;

  /** @throws OctconvError if a size is not a positive integer, or the elements are of another type or number. */
  constructor(dtype: D, shape: S, data: TypedArrayOf<D>) {
    const check = (fine: boolean, what: string) => {
      if (!fine) throw new OctconvError(`tensor: ${what}`);
    };
    checkType(dtype);
    const { name } = arrayFor(dtype);
    const given = (data as TypedArray | undefined)?.[Symbol.toStringTag]; // a Buffer is a Uint8Array too
    check(given === name, `${dtype} data is ${given ?? kindOf(data)}, wanted a ${name}`);
    const wanted = elementCount(shape);
    check(data.length === wanted, `[${shape}] holds ${wanted} elements, got ${data.length}`);
    this.dtype = dtype;
    this.shape = Object.freeze([...shape]) as unknown as Readonly<S>;
    this.#data = data;
  }

  static zeros<D extends DType, const S extends Shape>(dtype: D, shape: S): Tensor<D, S> {
    checkType(dtype);
    return new Tensor(dtype, shape, new (arrayFor(dtype))(elementCount(shape)) as TypedArrayOf<D>);
  }

  /** The elements themselves, not a copy. @throws OctconvError after `dispose()`. */
  get data(): TypedArrayOf<D> {
    if (!this.#data) throw new OctconvError(`tensor: [${this.shape}] was disposed of`);
    return this.#data;
  }

  get length(): number {
    return this.data.length;
  }

  /** Lets go of the elements; `using t = ...` does it at the end of the block. */
  dispose(): void {
    this.#data = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** `tensor('f32', [1, 2, 2, 3], data)`: a view of `data`, without a copy. */
export function tensor<D extends DType, const S extends Shape>(
  dtype: D,
  shape: S,
  data: TypedArrayOf<D>,
): Tensor<D, S> {
  return new Tensor(dtype, shape, data);
}

function checkType(dtype: DType): void {
  if (dtypes.includes(dtype)) return;
  throw new OctconvError(`tensor: data type '${dtype}', wanted one of ${dtypes.join(', ')}`);
}

/** @throws OctconvError if a size is not a positive integer or there are too many elements. */
export function elementCount(shape: Shape): number {
  let count = 1;
  let fine = Array.isArray(shape);
  for (const size of fine ? shape : []) {
    fine &&= Number.isInteger(size) && size > 0;
    count *= size;
  }
  if (!fine || !Number.isSafeInteger(count)) {
    throw new OctconvError(`tensor: shape ${show(shape)}, wanted a list of positive integers`);
  }
  return count;
}

/** Of a value of this type and shape, without padding. */
export const bytesOf = ({ dtype, shape }: { readonly dtype: DType; readonly shape: Shape }): number =>
  elementCount(shape) * bytesPerElement[dtype];
