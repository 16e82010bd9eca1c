/** The typed handle of the native addon. Everything that crosses the language boundary crosses it here. */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import type { DType, TypedArray } from './dtype.js';
import { OctconvError } from './error.js';
import type { Attrs } from './graph/graph.js';
import type { Traits } from './targets.js';

/**
 * A device that the addon knows. `cpu`: fused kernels. `reference`: the plain loops that specify them, without any
 * fusion. `cuda` is the first NVIDIA GPU, `cuda:1` the second; `cuda:sm_90` is none, it compiles plans and runs none.
 * `cudnn` and `cudnn:1` are the same GPUs, where cuDNN computes the convolutions, one by one, as other libraries do:
 * what the fused kernels are compared with.
 */
export type Device = 'cpu' | 'cuda' | 'cudnn' | 'reference' | (string & Record<never, never>);

declare const packedBrand: unique symbol;
declare const planBrand: unique symbol;
declare const partBrand: unique symbol;
declare const bufferBrand: unique symbol;
/** Parameters in the form that a kernel reads. */
export type NativePacked = { readonly [packedBrand]: true };
export type NativePlan = { readonly [planBrand]: true };
/** The first part of a `NativePlanSpec`, or all of it. */
export type NativePart = { readonly [partBrand]: true };

/** A value in memory of a device. */
export type NativeBuffer = { readonly [bufferBrand]: true };

export interface NativeParam {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly data: TypedArray;
}

export interface NativeValue {
  readonly dtype: DType;
  /** N T H W C */
  readonly shape: readonly number[];
  /** Elements from pixel to pixel, of a padded value or a slice of a wider one; default C. */
  readonly pitch?: number | undefined;
  /** So many elements behind the channels are zeros, which who writes the value keeps; default 0. */
  readonly pad?: number | undefined;
  readonly scale?: number | undefined;
  readonly zero?: number | undefined;
  /** Slices stored back to back; round r of a segment uses slice r. Default 1. */
  readonly rounds?: number;
  readonly place: 'arena' | 'input' | 'output';
  /** Byte offset in the arena, or position among the run's inputs or outputs. */
  readonly at: number;
}

export interface NativeStep {
  readonly op: string;
  readonly name: string;
  readonly attrs: Attrs;
  readonly inputs: readonly number[];
  readonly outputs: readonly number[];
  /** One for each of `packingsOf` (lib/graph/lower.ts). */
  readonly packed: readonly NativePacked[];
}

export interface NativePlanSpec {
  readonly threads: number;
  /** Whether runs on an NVIDIA GPU replay a captured graph of the launches. Default true. */
  readonly cudaGraphs?: boolean | undefined;
  readonly arenaBytes: number;
  readonly values: readonly NativeValue[];
  readonly steps: readonly NativeStep[];
  /** Steps that are gone through again and again; default: all of them once. */
  readonly segments?: readonly { readonly steps: number; readonly rounds: number }[];
  /** Values that a run makes histograms of: inputs, and what a step writes. Default: none. */
  readonly observed?: readonly number[] | undefined;
}

/** What a run saw of a value, as numbers in equal bins over [-limit, limit). See native/core/histogram.h. */
export interface NativeHistogram {
  /** 0 or less. */
  readonly least: number;
  /** 0 or more. */
  readonly most: number;
  /** A power of two. */
  readonly limit: number;
  readonly counts: Uint32Array;
  /** Position of the first number that is not finite, or -1. */
  readonly firstNotFinite: number;
}

/** See `LaunchInfo` in native/core/device.h. */
export interface Launch {
  readonly kernel: string;
  readonly blocks: number;
  /** Of a block. */
  readonly threads: number;
  /** Dynamic shared memory of a block. */
  readonly sharedBytes: number;
  /**
   * Pixels x channels of a block, of products on tensor cores; otherwise empty. `/n`: n blocks share a tile; `+` stands
   * between two branches.
   */
  readonly tile: string;
  /** On tensor cores, with all that fills up tiles. */
  readonly multiplyAdds: number;
  /** That all blocks together copy into shared memory, for tensor cores. */
  readonly operandBytes: number;
}

export interface StepInfo {
  readonly algorithm: string;
  /** On a GPU. */
  readonly launches: readonly Launch[];
  /** That they write and read again. */
  readonly scratchBytes: number;
}

export interface NativeRun<Output> {
  /** `stepMilliseconds`: as many as were asked for; `histograms`: of what the plan observes. */
  readonly done: Promise<{
    completed: boolean;
    outputs: Output[];
    stepMilliseconds: Float32Array;
    histograms: NativeHistogram[];
  }>;
  /** Stops it between two tasks; on a GPU only before it has begun. */
  cancel(): void;
}

/** A device, or why there is none of its kind. */
export type NativeDevice = { readonly name: Device } & (
  | { readonly traits: Traits; why?: never }
  | { readonly why: string; traits?: never }
);

/**
 * See native/binding.cc. Data outside of blocks is copied in the call itself: a caller may do with it what it likes
 * afterwards.
 */
export interface Native {
  /** Names of the kinds of devices. */
  readonly kinds: readonly Device[];
  /** Of a device, `cuda:1` for the second one of its kind. */
  traits(device: Device): Traits;
  /** All devices of each kind, or why it has none. */
  devices(): NativeDevice[];
  /** Memory that `pack` reads without a copy, until its promise is settled. It must be released. */
  block(bytes: number): ArrayBuffer;
  format(device: Device, op: string, attrs: Attrs): string;
  pack(
    device: Device,
    op: string,
    attrs: Attrs,
    params: { readonly [role: string]: NativeParam },
  ): Promise<NativePacked>;
  /** A plan, whose values and steps may be given in several calls: a large one takes milliseconds. */
  part(spec: NativePlanSpec, before?: NativePart): NativePart;
  /** A part can be compiled once. */
  compile(
    device: Device,
    spec: NativePlanSpec | NativePart,
  ): Promise<{ plan: NativePlan; runBytes: number; steps: StepInfo[] }>;
  /**
   * Outputs stay on the device if an input is there. `times` are measured: one for each step, one for all of them
   * together, or 0.
   */
  run(plan: NativePlan, inputs: readonly TypedArray[], times: number): NativeRun<ArrayBuffer>;
  run(
    plan: NativePlan,
    inputs: readonly (TypedArray | NativeBuffer)[],
    times: number,
  ): NativeRun<ArrayBuffer | NativeBuffer>;
  /** To memory of a device that has its own. */
  toDevice(device: Device, data: TypedArray): Promise<NativeBuffer>;
  toHost(buffer: NativeBuffer): Promise<ArrayBuffer>;
  /** Of packed parameters, or what a plan keeps for its next runs, which is told to the garbage collector too. */
  bytes(held: NativePacked | NativePlan): number;
  /** Tells the garbage collector of packed parameters. */
  tell(packed: readonly NativePacked[]): void;
  /** Gives back what a plan keeps for its next runs. */
  trim(plan: NativePlan): void;
  release(held: NativePacked | NativePlan | NativeBuffer | ArrayBuffer): void;
  /** What a device tells of its state, such as `smMHz` and `celsius`. */
  sensors(device: Device): Readonly<Record<string, number>>;
  /** From now on threads of runs are nicer than the others of this process, such as event loops. */
  giveWay(): void;
  peak(threads: number): Promise<number>;
  /** Of a plan or a measurement. */
  readonly mostThreads: number;
}

const require = createRequire(import.meta.url);
const root = fileURLToPath(new URL('..', import.meta.url));

/** Bun and Deno do not tell as Node does. */
const isGlibc = (): boolean => {
  const { header } = (process.report?.getReport() ?? {}) as { readonly header?: object };
  return header === undefined || 'glibcVersionRuntime' in header;
};

function load(): { native: Native; file: string } {
  try {
    const file: string = process.env.OCTCONV_NATIVE || require('node-gyp-build').resolve(root);
    try {
      return { native: require(file) as Native, file };
    } catch (error) {
      // node-gyp-build takes a system for one of glibc unless it is Alpine.
      const other = file.replace(/\.glibc\.node$/, '.musl.node');
      if (other === file || !existsSync(other) || isGlibc()) throw error;
      return { native: require(other) as Native, file: other };
    }
  } catch (error) {
    const why = (error as Error).message.split('\n')[0];
    throw new OctconvError(`native: no addon could be loaded for ${process.platform}-${process.arch}: ${why}`);
  }
}

/** The addon, and the file it was loaded from. */
export const { native, file: nativeFile } = load();

/**
 * Runs a native call, and nothing else: its errors, thrown or of its promise, become OctconvErrors. A mistake in other
 * code would lose its place.
 */
export function calling<T>(call: () => T): T {
  const fail = (error: unknown): never => {
    throw new OctconvError((error as Error).message, { cause: error });
  };
  try {
    const result = call();
    return result instanceof Promise ? (result.catch(fail) as T) : result;
  } catch (error) {
    return fail(error);
  }
}
