/** From a recorded graph to a native plan, and its runs. */
import { arrayFor, bytesPerElement, type TypedArray } from './dtype.js';
import { OctconvError } from './error.js';
import { chooseAlgorithms } from './graph/algorithm.js';
import { fuse } from './graph/fuse.js';
import { type ComputeType, type Graph, type TensorType, toNTHWC } from './graph/graph.js';
import { lower, type Step, type Steps } from './graph/lower.js';
import { align, planMemory } from './graph/memory.js';
import { batchOf, segmentsByStep, subBatch, wholeValues } from './graph/subbatch.js';
import { assignTypes, type Quantized } from './graph/types.js';
import { calling, type Device, type NativePacked, type NativeParam, type NativePlan, type NativeStep, type NativeValue, native } from './native.js';
import { Tensor } from './tensor.js';
import type { Memory } from './weights/file.js';
import { toFloats } from './weights/floats.js';
import { besideI8, type WeightSource } from './weights/source.js';

export interface RunOptions {
  /** Stops the run between two steps; the promise rejects with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

export interface PlanOptions {
  /** `cpu` (default) or `reference`, the slow specification. */
  readonly device?: Device | undefined;
  /** Threads of one run; default: the cores that the process may use. */
  readonly threads?: number | undefined;
}

const bytesPerWeight = { f32: 4, bf16: 2, i8: 1 } as const;

/** The steps that a device runs: `reference` runs the graph as recorded, `cpu` after fusion. */
export function stepsFor(
  graph: Graph,
  device: Device,
  compute: ComputeType = 'f32',
  quantized: Quantized = new Map(),
  threads = 1,
): Steps {
  const types = (steps: Steps) => assignTypes(steps, compute, quantized);
  if (device === 'reference') return types(lower(graph));
  const elements = (name: string) => (graph.params.get(name) ?? []).reduce((a, b) => a * b, 1);
  const weightBytes = (step: Step) => Object.values(step.params).reduce((sum, name) => sum + elements(name), 0) * bytesPerWeight[compute];
  return chooseAlgorithms(subBatch(fuse(lower(graph), types), threads, weightBytes));
}

/**
 * Packed parameters by step, shared by all plans of a model. Parameters are read step by step, always into the same
 * memory, and packed at once, so a network is never twice in memory.
 */
export class PackedWeights {
  readonly #packed = new Map<string, Promise<NativePacked>>();
  #quantized: Promise<Quantized> | undefined;
  constructor(
    readonly source: Pick<WeightSource, 'tensors' | 'read'>,
    readonly device: Device,
    readonly compute: ComputeType = 'f32',
  ) {}

  /** The layers whose weights are i8, and how they see their inputs. */
  quantized(): Promise<Quantized> {
    this.#quantized ??= readQuantized(this.source);
    return this.#quantized;
  }

  /** What the steps need, packed; undefined for those without parameters. */
  async pack(steps: readonly Step[], constants: Graph['constants']): Promise<(NativePacked | undefined)[]> {
    const keyed = steps.map((step) => ({ step, key: JSON.stringify([step.op, step.attrs, step.params]) }));
    const sizes = keyed.map(({ step, key }) => (this.#packed.has(key) ? 0 : this.#bytesOf(step)));
    const memory = new ArrayBuffer(Math.max(0, ...sizes));
    const all: (NativePacked | undefined)[] = [];
    for (const { step, key } of keyed) {
      const packing = Object.keys(step.params).length ? (this.#packed.get(key) ?? this.#pack(step, constants, memory)) : undefined;
      if (packing) this.#packed.set(key, packing);
      all.push(await packing);
    }
    return all;
  }

  /** A parameter or a constant that an op takes as it takes values. */
  async operand(name: string, constants: Graph['constants']): Promise<TypedArray> {
    const constant = constants.get(name);
    if (constant) return constant.data;
    const { dtype = 'f32' } = this.source.tensors.get(name) ?? {};
    if (dtype !== 'f32' && dtype !== 'f16' && dtype !== 'bf16') throw new OctconvError(`plan: '${name}' is ${dtype}, wanted floats`);
    return toFloats(dtype, await this.source.read(name));
  }

  async #pack(step: Step, constants: Graph['constants'], memory: ArrayBuffer): Promise<NativePacked> {
    let used = 0;
    const take: Memory = (bytes) => {
      const at = used;
      used += align(bytes);
      // A strided tensor takes more than its elements.
      return used <= memory.byteLength ? new Uint8Array(memory, at, bytes) : new Uint8Array(bytes);
    };
    const read = async (name: string): Promise<NativeParam> => {
      const info = this.source.tensors.get(name);
      if (!info) throw new OctconvError(`${step.name}: parameter '${name}' is missing`);
      return { ...info, data: await this.source.read(name, take) };
    };
    const params = Object.entries(step.params).map(async ([role, name]) => [role, constants.get(name) ?? (await read(name))] as const);
    const all = Object.fromEntries(await Promise.all(params));
    return calling(() => native.pack(step.op, this.device, step.attrs, all));
  }

  #bytesOf({ params }: Step): number {
    return Object.values(params).reduce((sum, name) => {
      const { dtype = 'f32', shape = [0] } = this.source.tensors.get(name) ?? {};
      return sum + align(bytesPerElement[dtype] * shape.reduce((a, b) => a * b, 1));
    }, 0);
  }

  dispose(): void {
    for (const packing of this.#packed.values()) packing.then((packed) => native.release(packed), () => undefined);
    this.#packed.clear();
  }
}

async function readQuantized(source: Pick<WeightSource, 'tensors' | 'read'>): Promise<Quantized> {
  const layers = [...source.tensors].filter(([, { dtype }]) => dtype === 'i8').map(async ([name]) => {
    const { inputScale, inputZeroPoint } = besideI8(name);
    const [[scale], [zero]] = await Promise.all([source.read(inputScale.name), source.read(inputZeroPoint.name)]);
    if (scale === undefined || zero === undefined) throw new OctconvError(`${name}: its input has no scale or zero point`);
    return [name, { scale, zero }] as const;
  });
  return new Map(await Promise.all(layers));
}

/** A compiled network for one input shape. */
export class Plan {
  readonly #plan: NativePlan;
  /** Behind the inputs of a run: the parameters and constants that ops take as values. */
  readonly #bound: readonly TypedArray[];

  private constructor(
    /** As recorded. */
    readonly graph: Graph,
    /** What runs, after fusion on `cpu`, and the tensors between. */
    readonly steps: readonly Step[],
    readonly values: readonly TensorType[],
    /** Bytes of activations, and of activations and scratch, of one run. */
    readonly memory: { readonly activations: number; readonly run: number },
    /** What native code chose for each step. */
    readonly algorithms: readonly string[],
    plan: NativePlan,
    bound: readonly TypedArray[],
  ) {
    this.#plan = plan;
    this.#bound = bound;
  }

  /** @internal */
  static async compile(graph: Graph, weights: PackedWeights, threads: number): Promise<Plan> {
    const lowered = stepsFor(graph, weights.device, weights.compute, await weights.quantized(), threads);
    const { steps, values, inputs, outputs } = lowered;
    if (new Set([...inputs, ...outputs]).size !== inputs.length + outputs.length) {
      throw new OctconvError('plan: a network must compute each of its outputs, and give each once');
    }
    const memory = planMemory(lowered);
    const place = (id: number) => {
      const input = inputs.indexOf(id);
      const output = outputs.indexOf(id);
      if (input >= 0) return { place: 'input', at: input } as const;
      return output >= 0 ? ({ place: 'output', at: output } as const) : ({ place: 'arena', at: memory.offsets.get(id) ?? 0 } as const);
    };
    const batch = batchOf(lowered);
    const segments = segmentsByStep(lowered, batch);
    const whole = wholeValues(lowered);
    /** Values as steps see them: some images of the batch, one after the other where the others are kept too. */
    const views: NativeValue[] = [];
    const viewed = new Map<string, number>();
    const view = (id: number, images: number): number => {
      const key = `${id}/${images}`;
      const known = viewed.get(key);
      if (known !== undefined) return known;
      viewed.set(key, views.length);
      const { shape, ...type } = values[id] as TensorType;
      const [n, ...rest] = toNTHWC(shape);
      return views.push({ ...type, shape: [images === batch ? n : images, ...rest], rounds: whole.has(id) ? batch / images : 1, ...place(id) }) - 1;
    };
    const packed = await weights.pack(steps, graph.constants);
    const bound = await Promise.all([...graph.bound.values()].map((name) => weights.operand(name, graph.constants)));
    const nativeSteps: NativeStep[] = [];
    for (const [at, step] of steps.entries()) {
      const { op, name, attrs } = step;
      const { images } = segments[at] ?? { images: batch };
      const see = (ids: readonly number[]) => ids.map((id) => view(id, images));
      nativeSteps.push({ op, name, attrs, inputs: see(step.inputs), outputs: see(step.outputs), ...(packed[at] && { packed: packed[at] }) });
    }
    for (const id of inputs) view(id, batch); // one that no step reads
    const { plan, runBytes, algorithms } = calling(() =>
      native.compile({
        device: weights.device,
        threads,
        arenaBytes: memory.bytes,
        values: views,
        steps: nativeSteps,
        segments: (lowered.segments ?? [{ steps: steps.length, images: batch }]).map(({ steps, images }) => ({ steps, rounds: batch / images })),
      }),
    );
    return new Plan(graph, steps, values, { activations: memory.bytes, run: runBytes }, algorithms, plan, bound);
  }

  /**
   * Runs on the library's own threads. Inputs are read where they lie, without a copy: leave them alone until the
   * promise settles. `stepMilliseconds` takes the time of each step.
   */
  async run(inputs: readonly Tensor[], options: RunOptions & { stepMilliseconds?: Float32Array } = {}): Promise<Tensor[]> {
    const { signal, stepMilliseconds = null } = options;
    signal?.throwIfAborted();
    this.graph.inputs.forEach((id, i) => {
      const wanted = this.graph.values[id];
      const given = inputs[i];
      if (given && wanted && given.dtype === wanted.dtype && given.shape.join() === wanted.shape.join()) return;
      throw new OctconvError(
        `plan: input ${i} is ${given ? `${given.dtype} [${given.shape}]` : 'missing'}, wanted ${wanted?.dtype} [${wanted?.shape}]`,
      );
    });
    const outputs = this.graph.outputs.map((id) => {
      const { dtype, shape } = this.graph.values[id] ?? { dtype: 'f32' as const, shape: [] };
      return new Tensor(dtype, shape, new (arrayFor(dtype))(shape.reduce((a, b) => a * b, 1)));
    });
    const { done, cancel } = calling(() =>
      native.run(this.#plan, [...inputs.map((t) => t.data), ...this.#bound], outputs.map((t) => t.data), stepMilliseconds),
    );
    signal?.addEventListener('abort', cancel, { once: true });
    try {
      if (await done) return outputs;
    } catch (error) {
      throw new OctconvError((error as Error).message);
    } finally {
      signal?.removeEventListener('abort', cancel);
    }
    throw signal?.reason;
  }

  dispose(): void {
    native.release(this.#plan);
  }
}

export function threadsOf(threads = calling(() => native.info()).threads): number {
  if (Number.isInteger(threads) && threads >= 1 && threads <= 1024) return threads;
  throw new OctconvError(`threads: ${threads}, wanted an integer from 1 to 1024`);
}

const noWeights = { tensors: new Map(), read: () => Promise.reject(new OctconvError('plan: this graph has no parameters')) };

/** Compiles a graph whose parameters are all constants, runs it once, and lets it go. */
export async function runGraph(graph: Graph, inputs: readonly Tensor[], options: PlanOptions & RunOptions = {}): Promise<Tensor[]> {
  const weights = new PackedWeights(noWeights, options.device ?? 'cpu');
  try {
    const plan = await Plan.compile(graph, weights, threadsOf(options.threads));
    try {
      return await plan.run(inputs, options);
    } finally {
      plan.dispose();
    }
  } finally {
    weights.dispose();
  }
}
