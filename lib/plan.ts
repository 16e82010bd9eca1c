/** From a recorded graph to a native plan, and its runs. */
import { arrayFor } from './dtype.js';
import { OctconvError } from './error.js';
import { chooseAlgorithms } from './graph/algorithm.js';
import { fuse } from './graph/fuse.js';
import { type ComputeType, type Graph, type TensorType, toNTHWC } from './graph/graph.js';
import { lower, type Step, type Steps } from './graph/lower.js';
import { planMemory } from './graph/memory.js';
import { assignTypes, type InputType, type Quantized } from './graph/types.js';
import { calling, type Device, type NativePacked, type NativeParam, type NativePlan, type NativeStep, native } from './native.js';
import { Tensor } from './tensor.js';
import type { WeightSource } from './weights/source.js';

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

/** The steps that a device runs: `reference` runs the graph as recorded, `cpu` after fusion. */
export function stepsFor(graph: Graph, device: Device, compute: ComputeType = 'f32', quantized: Quantized = new Map()): Steps {
  const types = (steps: Steps) => assignTypes(steps, compute, quantized);
  return device === 'reference' ? types(lower(graph)) : chooseAlgorithms(fuse(lower(graph), types));
}

/**
 * Packed parameters by step, shared by all plans of a model. Parameters are read one by one and packed at once, so a
 * network is never twice in memory.
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

  pack(step: Step, constants: Graph['constants']): Promise<NativePacked> {
    const key = JSON.stringify([step.op, step.attrs, step.params]);
    const packed = this.#packed.get(key) ?? this.#pack(step, constants);
    this.#packed.set(key, packed);
    return packed;
  }

  async #pack(step: Step, constants: Graph['constants']): Promise<NativePacked> {
    const params: Record<string, NativeParam> = {};
    for (const [role, name] of Object.entries(step.params)) params[role] = constants.get(name) ?? (await this.#read(step, name));
    return calling(() => native.pack(step.op, this.device, step.attrs, params));
  }

  async #read(step: Step, name: string): Promise<NativeParam> {
    const info = this.source.tensors.get(name);
    if (!info) throw new OctconvError(`${step.name}: parameter '${name}' is missing`);
    return { ...info, data: await this.source.read(name) };
  }

  dispose(): void {
    for (const packing of this.#packed.values()) packing.then((packed) => native.release(packed), () => undefined);
    this.#packed.clear();
  }
}

async function readQuantized(source: Pick<WeightSource, 'tensors' | 'read'>): Promise<Quantized> {
  const quantized = new Map<string, InputType>();
  for (const [name, { dtype }] of source.tensors) {
    if (dtype !== 'i8') continue;
    const layer = name.replace(/weight$/, '');
    const [scale] = await source.read(`${layer}input_scale`);
    const [zero] = await source.read(`${layer}input_zero_point`);
    if (scale === undefined || zero === undefined) throw new OctconvError(`${name}: its input has no scale or zero point`);
    quantized.set(name, { scale, zero });
  }
  return quantized;
}

/** A compiled network for one input shape. */
export class Plan {
  readonly #plan: NativePlan;

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
  ) {
    this.#plan = plan;
  }

  static async compile(graph: Graph, weights: PackedWeights, threads: number): Promise<Plan> {
    const lowered = stepsFor(graph, weights.device, weights.compute, await weights.quantized());
    const { steps, values, inputs, outputs } = lowered;
    if (new Set([...inputs, ...outputs]).size !== inputs.length + outputs.length) {
      throw new OctconvError('plan: a network must compute each of its outputs, and give each once');
    }
    const memory = planMemory(lowered);
    const nativeSteps: NativeStep[] = [];
    for (const step of steps) {
      const { op, name, attrs, inputs, outputs } = step;
      const packed = Object.keys(step.params).length ? { packed: await weights.pack(step, graph.constants) } : {};
      nativeSteps.push({ op, name, attrs, inputs, outputs, ...packed });
    }
    const place = (id: number) => {
      const input = inputs.indexOf(id);
      const output = outputs.indexOf(id);
      if (input >= 0) return { place: 'input', at: input } as const;
      return output >= 0 ? ({ place: 'output', at: output } as const) : ({ place: 'arena', at: memory.offsets.get(id) ?? 0 } as const);
    };
    const made = new Set([...inputs, ...steps.flatMap((step) => step.outputs)]);
    const { plan, runBytes, algorithms } = calling(() =>
      native.compile({
        device: weights.device,
        threads,
        arenaBytes: Math.max(1, memory.bytes),
        // A value that fusion left without a maker takes no memory.
        values: values.map(({ shape, ...type }, id) =>
          made.has(id) ? { ...type, shape: toNTHWC(shape), ...place(id) } : { dtype: 'u8', shape: [1, 1, 1, 1, 1], place: 'arena', at: 0 },
        ),
        steps: nativeSteps,
      }),
    );
    return new Plan(graph, steps, values, { activations: memory.bytes, run: runBytes }, algorithms, plan);
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
      native.run(this.#plan, inputs.map((t) => t.data), outputs.map((t) => t.data), stepMilliseconds),
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
