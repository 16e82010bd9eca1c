/** From a recorded graph to a native plan, and its runs. */
import { checkSignal, onAbort } from './abort.js';
import { type Target, targetOf } from './devices.js';
import { arrayFor, bytesPerElement, isFloat, type TypedArray } from './dtype.js';
import { OctconvError, show } from './error.js';
import { checkGraph, type ComputeType, type Graph, kindOf, type TensorType, toNTHWC } from './graph/graph.js';
import { type Branch, type Packing, packingsOf, type Step, type Steps, winogradGrowth } from './graph/lower.js';
import { type MemoryPlan, planMemory } from './graph/memory.js';
import { padOf, pitchOf } from './graph/pads.js';
import { batchOf, segmentsByStep, wholeValues } from './graph/subbatch.js';
import type { Quantized } from './graph/types.js';
import {
  calling,
  type Device,
  type NativeBuffer,
  type NativeHistogram,
  type NativePacked,
  type NativePart,
  type NativeParam,
  type NativePlan,
  type NativeStep,
  type StepInfo,
  type NativeValue,
  native,
} from './native.js';
import { checkOptions, type Known } from './options.js';
import { stepsInTurns } from './targets.js';
import { aligned, bytesOf, deviceOf, Tensor } from './tensor.js';
import { inTurns, turn, type Work } from './turns.js';
import type { Memory } from './weights/file.js';
import { allFinite } from './weights/elements.js';
import { toFloats } from './weights/floats.js';
import { besideI8, elementCount, type WeightSource } from './weights/source.js';

export interface RunOptions {
  /** Stops the run; the promise rejects at once with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

export const runOptions = { signal: true } satisfies Known<RunOptions>;

export interface TimedRunOptions extends RunOptions {
  /** Takes the time of each step, or if it has one element, of all of them together. */
  readonly stepMilliseconds?: Float32Array | undefined;
}

const timedRunOptions = { ...runOptions, stepMilliseconds: true } satisfies Known<TimedRunOptions>;

export interface PlanOptions {
  /** Default: the one that the inputs are on; for those in memory of the host `cpu`. */
  readonly device?: Device | undefined;
  /** Threads of one run; default: the cores that the process may use. */
  readonly threads?: number | undefined;
}

export const planOptions = { device: true, threads: true } satisfies Known<PlanOptions>;

/** How a plan runs. */
export interface Running {
  readonly threads: number;
  readonly cudaGraphs?: boolean | undefined;
}

/** So many steps are given to native code at once. */
const stepsPerPart = 8;

interface Packed {
  /** When it is packed, or being packed. */
  promise?: Promise<NativePacked> | undefined;
  held?: NativePacked;
  bytes: number;
  /** Plans, and compilations of plans. */
  users: number;
}

/**
 * Packed parameters, shared by the plans of a model: of each branch of a convolution, and of each other step that has
 * some. They are read step by step, always into the same memory, and packed on the library's threads, so a network is
 * never twice in memory. What no plan needs any longer goes with the last one that did.
 */
export class PackedWeights {
  readonly #packed = new Map<string, Packed>();
  #quantized: Promise<Quantized> | undefined;
  constructor(
    readonly source: Pick<WeightSource, 'tensors' | 'read'>,
    readonly target: Target,
    readonly compute: ComputeType = 'f32',
    /** Of the weights of a plan and one run of it. */
    readonly maxBytes = Number.POSITIVE_INFINITY,
  ) {}

  /** Of all that is packed. */
  get bytes(): number {
    return [...this.#packed.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** The layers whose weights are i8, and how they see their inputs. */
  async quantized(): Promise<Quantized> {
    this.#quantized ??= readQuantized(this.source);
    try {
      return await this.#quantized;
    } catch (error) {
      this.#quantized = undefined; // the next one tries again
      throw error;
    }
  }

  /**
   * What each step needs, packed; it is there until `release`.
   * @throws OctconvError before it packs, if about that many bytes of weights and `runBytes` are more than `maxBytes`.
   */
  async pack(
    steps: readonly Step[],
    constants: Graph['constants'],
    runBytes: number,
  ): Promise<{ steps: NativePacked[][]; bytes: number; release: () => void }> {
    const keyed = await inTurns(this.#keyed(steps));
    const all = new Map(keyed.flat().map((each) => [each.key, each]));
    const used = [...all.values()].map((each) => ({
      ...each,
      packed: this.#packed.get(each.key) ?? { users: 0, bytes: 0 },
    }));
    const sum = used.reduce((bytes, { packed, packing }) => bytes + (packed.bytes || this.#packedBytesOf(packing)), 0);
    this.checkBytes(sum, runBytes);
    for (const { key, packed } of used) {
      this.#packed.set(key, packed);
      packed.users++;
    }
    const release = () => {
      for (const { key, packed } of used) {
        packed.users--;
        if (packed.users > 0 || this.#packed.get(key) !== packed) continue;
        this.#packed.delete(key);
        if (packed.held) native.release(packed.held);
        else
          packed.promise?.then(
            (held) => native.release(held),
            () => undefined,
          );
      }
    };
    try {
      await this.#packAll(used, constants);
      const bytes = used.reduce((all, { packed }) => all + packed.bytes, 0);
      const packed = keyed.map((each) =>
        Promise.all(each.map(({ key }) => this.#packed.get(key)?.promise as Promise<NativePacked>)),
      );
      return { steps: await Promise.all(packed), bytes, release };
    } catch (error) {
      release();
      throw error;
    }
  }

  *#keyed(steps: readonly Step[]): Work<{ step: Step; packing: Packing; key: string }[][]> {
    const keyed: { step: Step; packing: Packing; key: string }[][] = [];
    for (const step of steps) {
      yield;
      keyed.push(packingsOf(step).map((packing) => ({ step, packing, key: this.#keyOf(step, packing) })));
    }
    return keyed;
  }

  async #packAll(
    used: readonly { step: Step; packing: Packing; packed: Packed }[],
    constants: Graph['constants'],
  ): Promise<void> {
    const missing = used.filter(({ packed }) => !packed.promise);
    const bytes = Math.max(0, ...missing.map(({ packing }) => this.#bytesOf(packing)));
    const blocks = missing.slice(0, 2).map(() => calling(() => native.block(bytes)));
    try {
      await this.#packInto(blocks, missing, used, constants);
    } finally {
      for (const block of blocks) native.release(block);
    }
    native.tell(used.flatMap(({ packed }) => packed.held ?? []));
  }

  async #packInto(
    blocks: readonly ArrayBuffer[],
    missing: readonly { step: Step; packing: Packing; packed: Packed }[],
    used: readonly { packed: Packed }[],
    constants: Graph['constants'],
  ): Promise<void> {
    // All that this plan waits for: of what fails, `packed` forgets the promise.
    const waited = used.flatMap(({ packed }) => packed.promise ?? []);
    let before: Promise<unknown> = Promise.resolve();
    let failed = false;
    for (const [i, { step, packing, packed }] of missing.entries()) {
      await turn(); // what is small is read and packed at once, one after the other
      const block = blocks[i % blocks.length] as ArrayBuffer;
      const params = packed.promise ? {} : await this.#read(step, packing, constants, block);
      await before; // one is packed while the next one is read into the other block
      if (failed) break;
      if (packed.promise) {
        waited.push(packed.promise); // another plan was sooner
        continue;
      }
      const { name } = this.target;
      const promise = calling(() => native.pack(name, step.op, packing.attrs, params));
      packed.promise = promise;
      waited.push(promise);
      before = promise.then(
        (held) => {
          packed.held = held;
          packed.bytes = native.bytes(held);
        },
        () => {
          packed.promise = undefined; // the next one tries again
          failed = true;
        },
      );
    }
    await before;
    await Promise.all(waited);
  }

  /** @throws OctconvError if the weights of a plan and one run of it are more than `maxBytes`. */
  checkBytes(weights: number, run: number): void {
    if (weights + run <= this.maxBytes) return;
    const mebi = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
    throw new OctconvError(
      `plan: weights of ${mebi(weights)} and a run of ${mebi(run)} are more than maxBytes, ${mebi(this.maxBytes)}`,
    );
  }

  /** A parameter or a constant that an op takes as it takes values. */
  async operand(name: string, constants: Graph['constants']): Promise<TypedArray> {
    const constant = constants.get(name);
    if (constant) return constant.data;
    const { dtype = 'f32' } = this.source.tensors.get(name) ?? {};
    if (!isFloat(dtype)) throw new OctconvError(`plan: '${name}' is ${dtype}, wanted floats`);
    return toFloats(dtype, await this.source.read(name));
  }

  /** The same parameters in the same form. */
  #keyOf({ op }: Step, { attrs, params }: Packing): string {
    const { name } = this.target;
    return JSON.stringify([op, calling(() => native.format(name, op, attrs)), params]);
  }

  async #read(
    step: Step,
    { params }: Packing,
    constants: Graph['constants'],
    memory: ArrayBuffer,
  ): Promise<Record<string, NativeParam>> {
    let used = 0;
    const take: Memory = (bytes) => {
      const at = used;
      used += aligned(bytes, 64);
      // A strided tensor takes more than its elements.
      return used <= memory.byteLength ? new Uint8Array(memory, at, bytes) : new Uint8Array(bytes);
    };
    const read = async (name: string): Promise<NativeParam> => {
      const info = this.source.tensors.get(name);
      if (!info) throw new OctconvError(`${step.name}: parameter '${name}' is missing`);
      return { ...info, data: await this.source.read(name, take) };
    };
    const all = Object.entries(params).map(
      async ([role, name]) => [role, constants.get(name) ?? (await read(name))] as const,
    );
    await Promise.allSettled(all); // the caller releases `memory` after an error: nobody may still read into it
    return Object.fromEntries(await Promise.all(all));
  }

  #bytesOf({ params }: Packing): number {
    return Object.values(params).reduce((sum, name) => {
      const { dtype = 'f32', shape = [0] } = this.source.tensors.get(name) ?? {};
      return sum + aligned(bytesPerElement[dtype] * elementCount(shape), 64);
    }, 0);
  }

  /** About what it will be when it is packed, not more. */
  #packedBytesOf(packing: Packing): number {
    const [branch] = (packing.attrs.branches ?? []) as unknown as readonly Pick<
      Branch,
      'hints' | 'compute' | 'terms'
    >[];
    const element = bytesPerElement[branch?.compute ?? 'f32'];
    const elements = Object.values(packing.params).reduce(
      (sum, name) => sum + elementCount(this.source.tensors.get(name)?.shape ?? [0]),
      0,
    );
    return elements * element * (branch ? winogradGrowth(branch) : 1);
  }

  /** What plans still use goes with them. */
  dispose(): void {
    for (const { promise } of this.#packed.values())
      promise?.then(
        (packed) => native.release(packed),
        () => undefined,
      );
    this.#packed.clear();
  }
}

async function readQuantized(source: Pick<WeightSource, 'tensors' | 'read'>): Promise<Quantized> {
  const layers = [...source.tensors]
    .filter(([, { dtype }]) => dtype === 'i8')
    .map(async ([name]) => {
      const { inputScale, inputZeroPoint } = besideI8(name);
      const [[scale], [zero]] = await Promise.all([source.read(inputScale.name), source.read(inputZeroPoint.name)]);
      if (scale === undefined || zero === undefined)
        throw new OctconvError(`${name}: its input has no scale or zero point`);
      return [name, { scale, zero }] as const;
    });
  return new Map(await Promise.all(layers));
}

/** A compiled network for one input shape. */
export class Plan {
  readonly #plan: NativePlan;
  readonly steps: readonly Step[];
  readonly values: readonly TensorType[];
  readonly #ends: Pick<Steps, 'inputs' | 'outputs'>;
  /** Behind the inputs of a run: the parameters and constants that ops take as values. */
  readonly #bound: readonly TypedArray[];
  readonly #release: () => void;
  readonly #integers: boolean;
  /**
   * Is told of each run that has ended, an aborted one too: then `idleBytes` is what the plan keeps.
   * @internal
   */
  ended: (() => void) | undefined;
  #idleBytes = 0;
  #disposed = false;

  private constructor(
    /** As recorded. */
    readonly graph: Graph,
    readonly target: Target,
    /** What runs, after fusion if the device fuses, and the tensors between. */
    { steps, values, ...ends }: Steps,
    /** Bytes of activations, and of activations and scratch, of one run. */
    readonly memory: { readonly activations: number; readonly run: number },
    /** What native code chose for each step. */
    readonly infos: readonly StepInfo[],
    plan: NativePlan,
    bound: readonly TypedArray[],
    release: () => void,
  ) {
    this.#release = release;
    this.#bound = bound;
    this.steps = steps;
    this.#integers = steps.some(({ branches = [] }) => branches.some(({ compute }) => compute === 'i8'));
    this.values = values;
    this.#ends = ends;
    this.#plan = plan;
  }

  /** @internal */
  static async compile(graph: Graph, weights: PackedWeights, running: Running): Promise<Plan> {
    const { target, compute } = weights;
    const quantized = await weights.quantized();
    const steps = await stepsInTurns(graph, { traits: target.traits, compute, quantized, threads: running.threads });
    return Plan.ofSteps(graph, steps, weights, running);
  }

  /**
   * The same of steps that were made otherwise.
   * @internal
   */
  static async ofSteps(graph: Graph, steps: Steps, weights: PackedWeights, running: Running): Promise<Plan> {
    const { target } = weights;
    const ends = [...steps.inputs, ...steps.outputs];
    if (new Set(ends).size !== ends.length)
      throw new OctconvError('plan: a network must compute each of its outputs, and give each once');
    const memory = await inTurns(planMemory(steps, target.traits));
    const outside = ends.flatMap((id) => steps.values[id] ?? []).reduce((sum, type) => sum + bytesOf(type), 0);
    const packed = await weights.pack(steps.steps, graph.constants, memory.bytes + outside);
    try {
      const bound = await Promise.all([...graph.bound.values()].map((name) => weights.operand(name, graph.constants)));
      const spec = await inTurns(specOf(steps, memory, packed.steps, running));
      const { plan, runBytes, steps: infos } = await calling(() => native.compile(target.name, spec));
      try {
        weights.checkBytes(packed.bytes, runBytes + outside);
      } catch (error) {
        native.release(plan);
        throw error;
      }
      const bytes = { activations: memory.bytes, run: runBytes };
      return new Plan(graph, target, steps, bytes, infos, plan, bound, packed.release);
    } catch (error) {
      packed.release();
      throw error;
    }
  }

  /** The algorithm of each step. */
  get algorithms(): readonly string[] {
    return this.infos.map(({ algorithm }) => algorithm);
  }

  /** What a run takes. */
  get inputs(): readonly TensorType[] {
    return this.#ends.inputs
      .slice(0, this.#ends.inputs.length - this.#bound.length)
      .flatMap((id) => this.values[id] ?? []);
  }

  /** Whether it was disposed of. */
  get disposed(): boolean {
    return this.#disposed;
  }

  /**
   * Runs on the library's own threads. Inputs are copied before this returns, outputs when the run has ended, each
   * once. Inputs that are on the plan's GPU are not copied to the host, and then the outputs are there too.
   * `stepMilliseconds` takes the time of each step, or if it has one element, of all of them together.
   * @throws OctconvError if an input has another type or shape, or, where i8 is multiplied, is not finite; the signal's
   * reason if it is aborted.
   */
  async run(inputs: readonly Tensor[], options: TimedRunOptions = {}): Promise<Tensor[]> {
    return (await this.observe(inputs, options)).outputs;
  }

  /**
   * The same, and a histogram of each value that the graph observes, counted as soon as its step has written it.
   * @internal
   */
  async observe(
    inputs: readonly Tensor[],
    options: TimedRunOptions = {},
  ): Promise<{ outputs: Tensor[]; histograms: readonly NativeHistogram[] }> {
    checkOptions('plan: run', options, timedRunOptions);
    const { signal, stepMilliseconds } = options;
    checkSignal(signal);
    this.#check(inputs);
    const onDevice = inputs.some(({ device }) => device !== 'cpu');
    const [plan, data] = [this.#plan, [...inputs.map((t) => t.native), ...this.#bound]];
    const { done, cancel } = calling(() => native.run(plan, data, stepMilliseconds?.length ?? 0));
    const ended = calling(() => done).finally(() => this.#ended());
    const { completed, outputs, stepMilliseconds: times, histograms } = await orAborted(ended, cancel, signal);
    stepMilliseconds?.set(times);
    if (!completed) throw new OctconvError('plan: the run was stopped');
    const tensors = outputs.map((given, i) => {
      const { dtype, shape } = this.values[this.#ends.outputs[i] ?? -1] ?? { dtype: 'f32' as const, shape: [] };
      return onDevice
        ? Tensor.onDevice(dtype, shape, this.target.name, given as NativeBuffer)
        : new Tensor(dtype, shape, new (arrayFor(dtype))(given as ArrayBuffer));
    });
    return { outputs: tensors, histograms };
  }

  #check(inputs: readonly Tensor[]): void {
    const wanted = this.inputs.length;
    if (inputs.length > wanted) throw new OctconvError(`plan: got ${inputs.length} inputs, wanted ${wanted}`);
    deviceOf('plan', inputs, this.target.name);
    for (const [i, { dtype, shape }] of this.inputs.entries()) {
      const given = inputs[i];
      if (given?.dtype !== dtype || given.shape.join() !== shape.join()) {
        throw new OctconvError(
          `plan: input ${i} is ${given ? `${given.dtype} [${given.shape}]` : 'missing'}, wanted ${dtype} [${shape}]`,
        );
      }
      // A byte cannot say NaN: what came of it would look like any other result.
      if (!this.#integers || allFinite(dtype, given.data)) continue;
      const floats = toFloats(dtype, given.data);
      const bad = floats.findIndex((x) => !Number.isFinite(x));
      throw new OctconvError(`plan: input ${i} has ${floats[bad]} at ${bad}, wanted finite numbers in i8`);
    }
  }

  /** Memory that is kept for the next runs. */
  get idleBytes(): number {
    return this.#idleBytes;
  }

  #ended(): void {
    if (this.#disposed) return;
    this.#idleBytes = native.bytes(this.#plan);
    this.ended?.();
  }

  /** Gives back what is kept for the next runs. */
  trim(): void {
    if (!this.#disposed) native.trim(this.#plan);
    this.#idleBytes = 0;
  }

  /** Gives the memory back; runs in flight are completed. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#idleBytes = 0;
    this.#release();
    native.release(this.#plan);
  }
}

/**
 * What a run gives, or as soon as the signal aborts, its reason: nothing that the run still does is seen by anybody.
 */
export function orAborted<T>(done: Promise<T>, cancel: () => void, signal: AbortSignal | undefined): Promise<T> {
  return new Promise((resolve, reject) => {
    const forget = onAbort(signal, () => {
      cancel();
      reject(signal?.reason);
    });
    done.then(resolve, reject).finally(forget);
  });
}

/**
 * A plan as native code takes it: values with their places, steps that refer to them by number.
 */
function* specOf(
  given: Steps,
  { offsets, bytes: arenaBytes }: MemoryPlan,
  packed: readonly (readonly NativePacked[])[],
  { threads, cudaGraphs }: Running,
): Work<NativePart> {
  const { steps, values, inputs, outputs, observed = [] } = given;
  const ends = new Map<number, Pick<NativeValue, 'place' | 'at'>>();
  for (const [place, ids] of [['input', inputs] as const, ['output', outputs] as const])
    for (const [at, id] of ids.entries()) ends.set(id, { place, at });
  const placeOf = (id: number) => ends.get(id) ?? ({ place: 'arena', at: offsets.get(id) ?? 0 } as const);
  const batch = batchOf(given);
  const segments = segmentsByStep(given, batch);
  const whole = wholeValues(given);
  /** Values as steps see them: some images of the batch, one after the other where the others are kept too. */
  const views: NativeValue[] = [];
  const viewed = new Map<string, number>();
  const view = (id: number, images: number): number => {
    const { shape, ...type } = values[id] as TensorType;
    const [n, ...rest] = toNTHWC(shape);
    const some = n === batch ? images : n; // one for all images is no batch
    const key = `${id}/${some}`;
    const known = viewed.get(key);
    if (known !== undefined) return known;
    viewed.set(key, views.length);
    const [pitch, pad] = [pitchOf(given, id), padOf(given, id)];
    const rounds = n === batch && whole.has(id) ? batch / images : 1;
    return views.push({ ...type, shape: [some, ...rest], pitch, pad, rounds, ...placeOf(id) }) - 1;
  };
  const stepOf = (step: Step, at: number): NativeStep => {
    const { op, name, attrs } = step; // no others: those of a convolution are worked out when they are asked for
    const { images } = segments[at] ?? { images: batch };
    const see = (ids: readonly number[]) => ids.map((id) => view(id, images));
    return { op, name, attrs, inputs: see(step.inputs), outputs: see(step.outputs), packed: packed[at] ?? [] };
  };
  const rounds = (given.segments ?? [{ steps: steps.length, images: batch }]).map((s) => ({
    steps: s.steps,
    rounds: batch / s.images,
  }));
  let told = 0;
  const tell = (some: readonly NativeStep[], before?: NativePart, observed?: readonly number[]): NativePart => {
    const spec = {
      threads,
      cudaGraphs,
      arenaBytes,
      values: views.slice(told),
      steps: some,
      segments: rounds,
      observed,
    };
    told = views.length;
    return calling(() => native.part(spec, before));
  };
  let part = tell([]);
  for (let from = 0; from < steps.length; from += stepsPerPart) {
    yield;
    part = tell(
      steps.slice(from, from + stepsPerPart).map((step, i) => stepOf(step, from + i)),
      part,
    );
  }
  for (const id of inputs) view(id, batch); // one that no step reads
  const writers = new Map(steps.flatMap(({ outputs }, at) => outputs.map((id) => [id, at])));
  const written = observed.map((id) => view(id, segments[writers.get(id) ?? -1]?.images ?? batch));
  return tell([], part, written);
}

/** @throws OctconvError unless it is a number of threads; by default the device's. */
export function threadsOf({ traits }: Target, threads = traits.threads): number {
  if (Number.isInteger(threads) && threads >= 1 && threads <= native.mostThreads) return threads;
  throw new OctconvError(`threads: ${show(threads)}, wanted an integer from 1 to ${native.mostThreads}`);
}

const noWeights = {
  tensors: new Map(),
  read: () => Promise.reject(new OctconvError('plan: this graph has no parameters')),
};

/** Compiles a graph whose parameters are all constants; the plan holds all that it needs. */
export async function compileGraph(
  graph: Graph,
  target: Target,
  compute: ComputeType,
  running: Running,
): Promise<Plan> {
  const weights = new PackedWeights(noWeights, target, compute);
  try {
    return await Plan.compile(graph, weights, running);
  } finally {
    weights.dispose();
  }
}

/** Compiles such a graph, runs it once, and lets it go; where its inputs are, unless they are in memory of the host. */
export async function runGraph(
  graph: Graph,
  inputs: readonly Tensor[],
  options: PlanOptions & RunOptions = {},
): Promise<Tensor[]> {
  checkOptions('runGraph', options, { ...planOptions, ...runOptions });
  const { device, threads, signal } = options;
  checkGraph('runGraph', graph);
  if (!Array.isArray(inputs))
    throw new OctconvError(`runGraph: inputs: got ${kindOf(inputs)}, wanted a list of Tensors`);
  const target = targetOf(deviceOf('runGraph', inputs, device));
  const plan = await compileGraph(graph, target, 'f32', { threads: threadsOf(target, threads) });
  try {
    return await plan.run(inputs, { signal });
  } finally {
    plan.dispose();
  }
}
