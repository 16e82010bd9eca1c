import { arrayFor, bytesPerElement, type DType, dtypes, type TypedArray, type TypedArrayOf } from './dtype.js';
import { targetOf } from './devices.js';
import { OctconvError, show } from './error.js';
import { kindOf } from './graph/graph.js';
import { calling, type Device, type NativeBuffer, native } from './native.js';

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

/** Elements in memory of a device, which several tensors may hold. */
class Resident {
  #users = 1;
  constructor(
    readonly device: Device,
    readonly buffer: NativeBuffer,
  ) {}

  share(): this {
    this.#users++;
    return this;
  }

  release(): void {
    if (--this.#users === 0) native.release(this.buffer);
  }
}

/**
 * A dense array over a typed array that it does not copy: row-major, the last axis is contiguous. Data type and rank
 * are part of the type, sizes where they are literal: `Tensor<'f32', [1, 224, 224, 3]>`, `Tensor<'f32', [number, 10]>`.
 *
 * Images are [N, H, W, C], video is [N, T, H, W, C], vectors are [N, C]. `f16` and `bf16` hold raw bits.
 *
 * A tensor may lie in memory of a device instead (`to`): then ops and runs on that device take it without a copy to the
 * host, and what they give lies there too. `dispose` gives that memory back at once, the garbage collector some time.
 */
export class Tensor<D extends DType = DType, S extends Shape = Shape> implements Disposable {
  readonly dtype: D;
  readonly shape: Readonly<S>;
  /** Where the elements are: `cpu` for memory of the host, otherwise as `devices()` names it. */
  readonly device: Device;
  #data: TypedArrayOf<D> | Resident | undefined;

  /** @throws OctconvError if a size is not a positive integer, or the elements are of another type or number. */
  constructor(dtype: D, shape: S, data: TypedArrayOf<D>);
  /** @internal */
  constructor(dtype: D, shape: S, data: TypedArrayOf<D> | Resident);
  constructor(dtype: D, shape: S, data: TypedArrayOf<D> | Resident) {
    const check = (fine: boolean, what: string) => {
      if (!fine) throw new OctconvError(`tensor: ${what}`);
    };
    checkType(dtype);
    const wanted = elementCount(shape);
    if (data instanceof Resident) {
      this.device = data.device;
    } else {
      this.device = 'cpu';
      const { name } = arrayFor(dtype);
      const given = (data as TypedArray | undefined)?.[Symbol.toStringTag]; // a Buffer is a Uint8Array too
      check(given === name, `${dtype} data is ${given ?? kindOf(data)}, wanted a ${name}`);
      check(data.length === wanted, `[${shape}] holds ${wanted} elements, got ${data.length}`);
    }
    this.dtype = dtype;
    this.shape = Object.freeze([...shape]) as unknown as Readonly<S>;
    this.#data = data;
  }

  static zeros<D extends DType, const S extends Shape>(dtype: D, shape: S): Tensor<D, S> {
    checkType(dtype);
    const count = elementCount(shape);
    try {
      return new Tensor(dtype, shape, new (arrayFor(dtype))(count) as TypedArrayOf<D>);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      throw new OctconvError(`tensor: shape ${show(shape)} of ${dtype}: no memory for ${count} elements`);
    }
  }

  /**
   * Of what native code gave.
   * @internal
   */
  static onDevice<D extends DType, S extends Shape>(
    dtype: D,
    shape: S,
    device: Device,
    buffer: NativeBuffer,
  ): Tensor<D, S> {
    return new Tensor(dtype, shape, new Resident(device, buffer));
  }

  /** The elements themselves, not a copy. @throws OctconvError after `dispose()`, and if they are on a device. */
  get data(): TypedArrayOf<D> {
    const held = this.#held();
    if (!(held instanceof Resident)) return held;
    throw new OctconvError(`tensor: [${this.shape}] is on ${this.device}: await toHost() to see its elements`);
  }

  /**
   * What native code takes: the elements, or where they are.
   * @internal
   */
  get native(): TypedArrayOf<D> | NativeBuffer {
    const held = this.#held();
    return held instanceof Resident ? held.buffer : held;
  }

  get length(): number {
    const held = this.#held();
    return held instanceof Resident ? elementCount(this.shape) : held.length;
  }

  #held(): TypedArrayOf<D> | Resident {
    if (!this.#data) throw new OctconvError(`tensor: [${this.shape}] was disposed of`);
    return this.#data;
  }

  /**
   * The same elements in memory of a device, or of the host for a device without its own; this tensor if it is there
   * already. The tensor may be changed or disposed of as soon as this returns.
   */
  async to(device: Device): Promise<Tensor<D, S>> {
    const { name, traits } = targetOf(device);
    const held = this.#held();
    if (this.device === (traits.ownMemory ? name : 'cpu')) return this;
    if (!(held instanceof Resident)) {
      const buffer = await calling(() => native.toDevice(name, held));
      return Tensor.onDevice(this.dtype, this.shape as S, name, buffer);
    }
    const host = await this.toHost();
    return host.to(name);
  }

  /** The same elements in memory of the host; this tensor if it is there already. */
  async toHost(): Promise<Tensor<D, S>> {
    const held = this.#held();
    if (!(held instanceof Resident)) return this;
    const bytes = await calling(() => native.toHost(held.buffer));
    return new Tensor(this.dtype, this.shape as S, new (arrayFor(this.dtype))(bytes) as TypedArrayOf<D>);
  }

  /**
   * The same elements, whatever becomes of this tensor: copied, or on a device held twice.
   * @internal
   */
  keep(): Tensor<D, S> {
    const held = this.#held();
    const kept = held instanceof Resident ? held.share() : (held.slice() as TypedArrayOf<D>);
    return new Tensor(this.dtype, this.shape as S, kept);
  }

  /** Lets go of the elements; `using t = ...` does it at the end of the block. */
  dispose(): void {
    if (this.#data instanceof Resident) this.#data.release();
    this.#data = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** A tensor of raw elements, little-endian: a view where they are aligned, else of a copy. */
export function tensorOfBytes<D extends DType>(dtype: D, shape: Shape, bytes: Uint8Array<ArrayBuffer>): Tensor<D> {
  const Elements = arrayFor(dtype);
  const { buffer, byteOffset, byteLength } =
    bytes.byteOffset % Elements.BYTES_PER_ELEMENT === 0 ? bytes : bytes.slice();
  const data = new Elements(buffer, byteOffset, byteLength / Elements.BYTES_PER_ELEMENT);
  return new Tensor(dtype, shape, data as TypedArrayOf<D>);
}

/** `tensor('f32', [1, 2, 2, 3], data)`: a view of `data`, without a copy. */
export function tensor<D extends DType, const S extends Shape>(
  dtype: D,
  shape: S,
  data: TypedArrayOf<D>,
): Tensor<D, S> {
  return new Tensor(dtype, shape, data);
}

/**
 * The device that all tensors are on. Those of one element may be on the host beside others.
 * With `wanted` it is that one, where it is not the host. Undefined: in memory of the host, and nothing is wanted.
 * @throws OctconvError that names both devices.
 */
export function deviceOf(what: string, tensors: readonly Tensor[], wanted?: Device): Device | undefined {
  const first = tensors.findIndex(({ device }) => device !== 'cpu');
  const device = tensors[first]?.device;
  if (device === undefined) return wanted;
  const other = tensors.findIndex((x) => x.device !== device && (x.device !== 'cpu' || x.length > 1));
  if (other >= 0)
    throw new OctconvError(
      `${what}: input ${first} is on ${device}, input ${other} on ${tensors[other]?.device}: move one by to() or toHost()`,
    );
  const name = wanted === undefined || wanted === 'auto' ? device : targetOf(wanted).name;
  if (name !== device)
    throw new OctconvError(`${what}: input ${first} is on ${device}, wanted ${name}: await to('${name}')`);
  return device;
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
  if (!fine) throw new OctconvError(`tensor: shape ${show(shape)}, wanted a list of positive integers`);
  if (!Number.isSafeInteger(count))
    throw new OctconvError(`tensor: shape ${show(shape)}, wanted at most 2^53 - 1 elements`);
  return count;
}

/** The next multiple of `align`. */
export const aligned = (bytes: number, align: number): number => Math.ceil(bytes / align) * align;

/** Of a value of this type and shape, without padding. */
export const bytesOf = ({ dtype, shape }: { readonly dtype: DType; readonly shape: Shape }): number =>
  elementCount(shape) * bytesPerElement[dtype];
