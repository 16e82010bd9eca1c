/** Models: a network with its weights, ready to run on a device at any input size. */
import { type Classified, classifyAll, type ClassifyOptions } from './classify.js';
import { type Target, targetOf } from './devices.js';
import { OctconvError } from './error.js';
import { type ComputeType, Graph, kindOf, Value } from './graph/graph.js';
import type { InputConfig } from './input/preprocess.js';
import type { PictureSource } from './input/source.js';
import { type Module, namedParameters, parameterShapes } from './layers/module.js';
import { type AnyNetworkName, buildNetwork, type Classifier, defaultInputOf, type NetworkOptions, resolveNetworkOptions } from './models/index.js';
import { type ResolvedOptions, resolveOptions, withParameterNames } from './models/infer.js';
import type { ResolvedNetworkOptions } from './models/options.js';
import type { Device } from './native.js';
import { PackedWeights, Plan, type RunOptions, threadsOf } from './plan.js';
import { type Matrix, type Shape, Tensor } from './tensor.js';
import type { DType, TypedArrayOf } from './dtype.js';
import { checkWeights } from './weights/check.js';
import { withUsualNames } from './weights/names.js';
import { isModelFolder, readModelFolder } from './weights/folder.js';
import { initialize } from './weights/random.js';
import { indexOf, openWeights, type OpenOptions, type WeightSource } from './weights/source.js';

export interface ModelOptions {
  /** `auto` takes the fastest device that is there: `cpu`. Default `auto`. */
  readonly device?: Device | 'auto' | undefined;
  /**
   * What the convolutions multiply; inputs and outputs are f32 always. `i8` (u8 activations, i8 weights) wants quantized
   * weights, and is their default; otherwise the default is `f32`.
   */
  readonly dtype?: ComputeType | undefined;
  /** Threads of one run; default: the cores that the process may use. */
  readonly threads?: number | undefined;
  /** How many plans are kept, one per input shape; the one that was used longest ago goes first. Default 8. */
  readonly plans?: number | undefined;
  /** Bytes that plans keep between runs, besides the one that was used last; that of the others goes first. Default 32 MiB. */
  readonly idleBytes?: number | undefined;
  /** The most bytes that the weights of a plan and one run of it may take: a plan that would take more is an error. */
  readonly maxBytes?: number | undefined;
}

/** A network is a module that takes images [N,H,W,C] and gives one value. */
export type Network<S extends Shape = Shape> = Module & { forward(x: Value<'f32', Shape>): Value<DType, S> };

/** What a run takes: a tensor, or data with its shape. */
export type ModelInput = Tensor<'f32'> | { readonly data: TypedArrayOf<'f32'>; readonly shape: readonly number[] };

/** A network as a graph, for one input shape, [N,H,W,C] or [N,T,H,W,C]. */
export function record(network: Network, shape: readonly number[]): Graph {
  const graph = new Graph(namedParameters(network));
  const y: unknown = network.forward(graph.input('f32', shape));
  if (!(y instanceof Value)) throw new OctconvError(`model: forward gives ${kindOf(y)}, wanted a Value`);
  if (y.graph !== graph) throw new OctconvError('model: forward gives a value of another recording, wanted one of its own x');
  graph.outputs.push(y.id);
  return graph;
}

/** A source that must be closed is open as long as its model: a plan for another input size may want weights once more. */
type Weights = Pick<WeightSource, 'tensors' | 'read'> & Partial<Pick<WeightSource, 'close'>>;
const forgotten = new FinalizationRegistry<Weights>((source) => void source.close?.());

interface KeptPlan {
  readonly promise: Promise<Plan>;
  /** When it is compiled. */
  plan?: Plan;
  /** Runs that need it, the compilation among them. */
  users: number;
  /** It goes with its last user. */
  kept: boolean;
}

/** `S` is the shape of what a run gives; of a classifier [N, classes]. */
export class Model<S extends Shape = Shape> {
  readonly device: Device;
  readonly dtype: ComputeType;
  readonly threads: number;
  /** How a picture becomes the input; without a model folder the usual choice for the network's stem. */
  input: InputConfig | undefined;
  /** Names of the classes, in index order. */
  labels: readonly string[] | undefined;
  /** Registered name and options of the network, if it has one. */
  name: string | undefined;
  options: NetworkOptions | undefined;
  /** What was chosen, renamed or converted in the file of its weights, a line each. */
  notes: readonly string[] | undefined;

  readonly #network: Network<S>;
  readonly #source: Weights;
  readonly #weights: PackedWeights;
  readonly #keptPlans: number;
  readonly #idleBytes: number;
  /** By shape, the latest used last. */
  readonly #plans = new Map<string, KeptPlan>();
  /** Runs and compilations in flight: what they need goes when they have ended. */
  #inFlight = 0;
  #disposed = false;

  /**
   * A model of one's own network. Parameters are looked up in `weights` by property path (`layer1.0.conv1.weight`); they
   * are closed with the model.
   * @throws OctconvError if a parameter is missing, has another shape, or is left over.
   */
  constructor(network: Network<S>, weights: Weights, options: ModelOptions = {}) {
    const { tensors } = weights;
    const quantized = [...tensors.values()].some((tensor) => tensor.dtype === 'i8');
    const { device, dtype = quantized ? 'i8' : 'f32', threads, plans = 8, idleBytes = 32 * 2 ** 20, maxBytes } = options;
    const target: Target = targetOf(device);
    if (dtype !== 'f32' && dtype !== 'bf16' && dtype !== 'i8') {
      throw new OctconvError(`dtype '${dtype}': wanted f32, bf16 or i8`);
    }
    if (dtype === 'i8' && !quantized) {
      throw new OctconvError(`dtype 'i8': wanted quantized weights, as 'octconv quantize' makes them`);
    }
    if (!(Number.isInteger(plans) && plans >= 1)) throw new OctconvError(`plans: ${plans}, wanted a positive integer`);
    for (const [name, bytes] of Object.entries({ idleBytes, maxBytes })) {
      if (bytes !== undefined && !(bytes >= 0)) throw new OctconvError(`${name}: ${bytes}, wanted a number of bytes`);
    }
    this.device = target.name;
    this.dtype = dtype;
    this.threads = threadsOf(threads);
    this.#network = network;
    checkWeights(parameterShapes(network), weights);
    this.#source = weights;
    this.#weights = new PackedWeights(weights, target, dtype, maxBytes);
    this.#keptPlans = plans;
    this.#idleBytes = idleBytes;
    if (weights.close) forgotten.register(this, weights, this);
  }

  /** Records the network for one input shape, [N,H,W,C] or [N,T,H,W,C]. */
  record(shape: readonly number[]): Graph {
    return record(this.#network, shape);
  }

  /** The compiled plan for one input shape; it is disposed of when it is no longer kept, or with the model. */
  async plan(shape: readonly number[]): Promise<Plan> {
    return this.#use(async () => {
      const kept = this.#take(shape);
      try {
        return await kept.promise;
      } finally {
        this.#done(kept);
      }
    });
  }

  /** Packs weights and compiles plans for input shapes that will be run. */
  async warmUp(shapes: readonly (readonly number[])[]): Promise<void> {
    for (const shape of shapes) await this.plan(shape);
  }

  /** The plan for a shape, in use until `#done`. */
  #take(shape: readonly number[]): KeptPlan {
    const key = shape.join();
    const known = this.#plans.get(key);
    const kept = known && !known.plan?.disposed ? known : this.#compile(shape);
    kept.users++;
    this.#plans.delete(key);
    this.#plans.set(key, kept);
    return kept;
  }

  #done(kept: KeptPlan): void {
    kept.users--;
    if (kept.users === 0 && !kept.kept) kept.plan?.dispose();
    let idle = 0;
    for (const { plan } of [...this.#plans.values()].reverse().slice(1)) {
      idle += plan?.idleBytes ?? 0;
      if (idle > this.#idleBytes) plan?.trim();
    }
  }

  /** When there is a new plan: weights that it shares with an old one stay. */
  #dropOldest(): void {
    for (const [oldest, old] of this.#plans) {
      const newest = [...this.#plans.values()].at(-1);
      const idle = [...this.#plans.values()].reduce((sum, { plan }) => sum + (plan?.idleBytes ?? 0), 0);
      const fits = this.#weights.bytes + idle + (newest?.plan?.memory.run ?? 0) <= this.#weights.maxBytes;
      if (this.#plans.size <= this.#keptPlans && (fits || old === newest)) break;
      this.#plans.delete(oldest);
      old.kept = false;
      if (old.users === 0) old.plan?.dispose();
    }
  }

  #compile(shape: readonly number[]): KeptPlan {
    const key = shape.join();
    const compile = async () => Plan.compile(this.record(shape), this.#weights, this.threads);
    const kept: KeptPlan = { promise: compile(), users: 0, kept: true };
    kept.promise.then(
      (plan) => {
        kept.plan = plan;
        this.#dropOldest();
        if (kept.users === 0 && !kept.kept) plan.dispose();
      },
      () => {
        if (this.#plans.get(key) === kept) this.#plans.delete(key); // the next one tries again
      },
    );
    return kept;
  }

  /**
   * Runs the network on a batch: images [N,H,W,C] to logits [N, classes]. Runs may overlap; each uses the library's
   * own threads and leaves the event loop free. The input is copied before this returns (60 us for an image of
   * 224 x 224): do with it what you like afterwards.
   * @throws OctconvError if the shape does not fit; the signal's reason if it is aborted.
   */
  async run(input: ModelInput, options: RunOptions = {}): Promise<Tensor<'f32', S>> {
    options.signal?.throwIfAborted();
    const x = input instanceof Tensor ? input : new Tensor('f32', input.shape, input.data);
    return this.#use(async () => {
      const kept = this.#take(x.shape);
      try {
        // Native code copies what it is given in the call, which can only be made when the plan is there.
        const [y] = kept.plan
          ? await kept.plan.run([x], options)
          : await runLater(kept.promise, new Tensor('f32', x.shape, x.data.slice()), options);
        return y as Tensor<'f32', S>;
      } finally {
        this.#done(kept);
      }
    });
  }

  /**
   * What pictures show: one answer for one picture, many for many. A long list is better given to `classify()`.
   * @throws OctconvError that names the first picture that cannot be read; the signal's reason if it is aborted.
   */
  classify(source: PictureSource, options?: ClassifyOptions): Promise<Classified>;
  classify(sources: readonly PictureSource[], options?: ClassifyOptions): Promise<Classified[]>;
  classify(sources: PictureSource | readonly PictureSource[], options?: ClassifyOptions): Promise<Classified | Classified[]> {
    return classifyAll(this, sources, options);
  }

  async #use<T>(work: () => Promise<T>): Promise<T> {
    if (this.#disposed) throw new OctconvError('model: it was disposed');
    this.#inFlight++;
    try {
      return await work();
    } finally {
      this.#inFlight--;
      this.#freeIfUnused();
    }
  }

  /** Gives the memory back as soon as runs in flight have ended well. */
  dispose(): void {
    this.#disposed = true;
    this.#freeIfUnused();
  }

  #freeIfUnused(): void {
    if (!this.#disposed || this.#inFlight > 0) return;
    for (const { promise } of this.#plans.values()) promise.then((plan) => plan.dispose(), () => undefined);
    this.#plans.clear();
    this.#weights.dispose();
    if (forgotten.unregister(this)) void this.#source.close?.();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

async function runLater(plan: Promise<Plan>, x: Tensor<'f32'>, options: RunOptions): Promise<Tensor[]> {
  return (await plan).run([x], options);
}

/**
 * A registered network (`oct-resnet-50`, `resnet-50`, ...) with random weights.
 * @throws OctconvError for an unknown name or an option out of range.
 */
export function createModel(
  name: AnyNetworkName,
  options: NetworkOptions & { seed?: number } = {},
  modelOptions: ModelOptions = {},
): Model<Matrix> {
  const { seed = 0, ...given } = options;
  const network = buildNetwork(name, given);
  const model = new Model(network, initialize(network, seed), modelOptions);
  const networkOptions = resolveNetworkOptions(name, given);
  return Object.assign(model, { name, options: networkOptions, input: defaultInputOf(name, networkOptions) });
}

/** A registered network whose parameters lie in a file. */
export interface NetworkFile {
  readonly name: string;
  readonly options: ResolvedNetworkOptions;
  readonly network: Classifier;
  /** Close it. */
  readonly source: WeightSource;
  readonly input: InputConfig;
  /** Only a model folder has them. */
  readonly labels: readonly string[] | undefined;
  /** What was chosen, renamed or converted in the file, a line each. */
  readonly notes?: readonly string[] | undefined;
}

/**
 * Opens a model folder, or bare weights (.safetensors, its shards, .pth) whose network is read off their names and shapes;
 * `given` must agree with them.
 * @throws OctconvError that names the file and what does not fit.
 */
export async function openNetwork(path: string, given: Partial<ResolvedOptions> = {}, open: OpenOptions = {}): Promise<NetworkFile> {
  const folder = (await isModelFolder(path)) && !(await indexOf(path)) ? await readModelFolder(path) : undefined;
  const file = folder?.weights ?? withUsualNames(await openWeights(path, open));
  try {
    const { network: name, options } = folder?.config ?? resolveOptions(file, given);
    const source = withParameterNames(file, name);
    const network = buildNetwork(name, options);
    checkWeights(parameterShapes(network), source);
    const input = folder?.config.input ?? defaultInputOf(name, options);
    return { name, options, network, source, input, labels: folder?.labels, notes: source.notes };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/**
 * A model of what `openNetwork` opens. Parameters are read step by step, packed, and let go; the file stays open until
 * the model is disposed of.
 * @throws OctconvError that names the file and what does not fit.
 */
export async function loadModel(
  path: string,
  options: ModelOptions & OpenOptions & { network?: Partial<ResolvedOptions> } = {},
): Promise<Model<Matrix>> {
  const { network: given, key, ...modelOptions } = options;
  const { network, source, ...described } = await openNetwork(path, given, { key });
  try {
    const model = Object.assign(new Model(network, source, modelOptions), described);
    await model.plan([1, described.input.height, described.input.width, 3]); // packs all parameters
    return model;
  } catch (error) {
    await source.close();
    throw error;
  }
}
