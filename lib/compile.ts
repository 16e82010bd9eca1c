/** User-defined ops: a function of values that is recorded, packed and planned once, and run on tensors often. */
import { type Target, targetOf } from './devices.js';
import type { DType } from './dtype.js';
import { OctconvError, oneOf } from './error.js';
import { type ComputeType, computeTypes, kindOf, type Value } from './graph/graph.js';
import type { Device } from './native.js';
import { checkOptions, type Known } from './options.js';
import { compileGraph, type Plan, type RunOptions, runOptions, threadsOf } from './plan.js';
import { type Input, type InputSpec, recordCall, splitArguments, type Tensors, type Values } from './structure.js';
import type { Shape } from './tensor.js';
import type { Wide } from './ops.js';

export interface CompileOptions {
  /** `auto` is `cpu`, also where there is a GPU: NVIDIA GPUs are taken by name, `cuda`, `cuda:1`. Default `auto`. */
  readonly device?: Device | 'auto' | undefined;
  /**
   * What the convolutions multiply; inputs and outputs stay what they are. Default `f32`. `f16` is there on `cuda`,
   * `cudnn` and `reference`; values of 65520 and more become infinite in it. `f32` and `bf16` on `cuda` want sm_80.
   */
  readonly dtype?: Exclude<ComputeType, 'i8'> | undefined;
  /** Threads of one run; default: the cores that the process may use. */
  readonly threads?: number | undefined;
  /**
   * On NVIDIA GPUs the launches of a run are captured as a CUDA graph once and replayed from then on, which takes less
   * time of the CPU; `false` makes them one by one. Default true.
   */
  readonly cudaGraphs?: boolean | undefined;
}

export const compileOptions = {
  device: true,
  dtype: true,
  threads: true,
  cudaGraphs: true,
} satisfies Known<CompileOptions>;

/** What a run takes for values of such ranks. */
export type RankedInputs<X extends readonly Value[]> = {
  readonly [K in keyof X]: X[K] extends Value<infer D extends DType, infer S extends Shape> ? Input<D, Wide<S>> : never;
};

/** A function of values `X` that gives `Y`, compiled for inputs of given shapes. */
export class Compiled<X extends readonly Value[], Y> implements Disposable {
  readonly #arrange: (outputs: readonly never[]) => Tensors<Y>;

  /** @internal */
  constructor(
    /** Its steps, algorithms and memory. */
    readonly plan: Plan,
    arrange: (outputs: readonly never[]) => Tensors<Y>,
  ) {
    this.#arrange = arrange;
  }

  /**
   * Takes an input for each parameter of the function and gives what the function gave, with tensors in place of
   * values. Runs may overlap; each uses the library's own threads and leaves the event loop free. Inputs are copied
   * before this returns.
   * @throws OctconvError if an input has another type or shape; the signal's reason if it is aborted.
   */
  async run(...args: [...inputs: RankedInputs<X>, options?: RunOptions]): Promise<Tensors<Y>> {
    const { inputs, options } = splitArguments<RunOptions>('compile', args);
    checkOptions('compile: run', options, runOptions);
    return this.#arrange((await this.plan.run(inputs, options)) as never[]);
  }

  /** Gives the memory back; runs in flight end well. */
  dispose(): void {
    this.plan.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Compiles a function of recorded values for inputs of given shapes: what a call of an op on tensors does each time is
 * done once. What the function gives may be a value, or arrays, objects and `Octave`s of values.
 *
 *     using op = await compile((h, l) => ops.octConv(new Octave(h, l), weights), [[1, 56, 56, 32], [1, 28, 28, 32]]);
 *     const { high, low } = await op.run(h, l);
 *
 * An input is f32 unless it is given as `{ dtype, shape }`. Tensors beside the values are constants: they are read
 * here, and must not be changed as long as the op is in use.
 * @throws OctconvError if an op does not fit, or the function gives something else.
 */
export async function compile<const I extends readonly InputSpec[], Y>(
  f: (...inputs: Values<I>) => Y,
  inputs: I,
  options: CompileOptions = {},
): Promise<Compiled<Values<I>, Y>> {
  checkOptions('compile', options, compileOptions);
  const { device, dtype = 'f32', threads, cudaGraphs } = options;
  if (typeof f !== 'function' || !Array.isArray(inputs))
    throw new OctconvError(`compile: got ${kindOf(f)} and ${kindOf(inputs)}, wanted a function and a list of shapes`);
  const { graph, arrange } = recordCall('compile: the function', f as (...inputs: never[]) => Y, inputs);
  const target = targetOf(device);
  checkCompute(dtype, target, false);
  const running = { threads: threadsOf(target, threads), cudaGraphs };
  return new Compiled(await compileGraph(graph, target, dtype, running), arrange);
}

/** @throws OctconvError unless convolutions can multiply this on the device. */
export function checkCompute(dtype: ComputeType, { name, traits }: Target, quantized: boolean): void {
  if (!computeTypes.includes(dtype)) throw new OctconvError(`dtype '${dtype}': wanted ${oneOf(computeTypes)}`);
  const known = traits.computes;
  if (!known.includes(dtype))
    throw new OctconvError(`dtype '${dtype}': device '${name}' (${traits.isa}) multiplies ${oneOf(known)}`);
  if (dtype === 'i8' && !quantized)
    throw new OctconvError(`dtype 'i8': wanted quantized weights, as 'octconv quantize' makes them`);
}
