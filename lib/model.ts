/** Models: a network with its weights, ready to run on a device at any input size. */
import { type Classified, classifyAll, type ClassifyOptions } from './classify.js';
import { OctconvError } from './error.js';
import { type ComputeType, Graph, type Value } from './graph/graph.js';
import { channelCount, type InputConfig } from './input/preprocess.js';
import type { PictureSource } from './input/source.js';
import { type Module, namedParameters, parameterShapes } from './layers/module.js';
import { type AnyNetworkName, buildNetwork, defaultInputOf, type NetworkOptions, resolveNetworkOptions } from './models/index.js';
import { type ResolvedOptions, resolveOptions, withParameterNames } from './models/infer.js';
import type { ResolvedNetworkOptions } from './models/options.js';
import type { Device } from './native.js';
import { PackedWeights, Plan, type RunOptions, threadsOf } from './plan.js';
import { Tensor } from './tensor.js';
import type { TypedArrayOf } from './dtype.js';
import { checkWeights } from './weights/check.js';
import { isModelFolder, readModelFolder } from './weights/folder.js';
import { initialize } from './weights/random.js';
import { openWeights, type WeightSource } from './weights/source.js';

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
}

/** A network is a module that takes images [N,H,W,C] and gives one value. */
export type Network = Module & { forward(x: Value<'f32', readonly number[]>): Value };

/** What a run takes: a tensor, or data with its shape. */
export type ModelInput = Tensor<'f32'> | { readonly data: TypedArrayOf<'f32'>; readonly shape: readonly number[] };

/** A network as a graph, for one input shape, [N,H,W,C] or [N,T,H,W,C]. */
export function record(network: Network, shape: readonly number[]): Graph {
  const graph = new Graph();
  namedParameters(network);
  graph.outputs.push(network.forward(graph.input('f32', shape)).id);
  return graph;
}

/**
 * Weight files of models, open as long as their model: a plan for another input size may want weights for another
 * algorithm.
 */
const files = new WeakMap<Model, WeightSource>();
const forgotten = new FinalizationRegistry<WeightSource>((source) => void source.close());

const weightsOfModels = new WeakMap<Model, Pick<WeightSource, 'tensors' | 'read'>>();

/** The parameters that a model was made of. */
export function weightsOf(model: Model): Pick<WeightSource, 'tensors' | 'read'> {
  return weightsOfModels.get(model) as Pick<WeightSource, 'tensors' | 'read'>;
}

/** Plans that a model keeps, one per input shape; the oldest goes first. */
const keptPlans = 4;

export class Model {
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

  readonly #network: Network;
  readonly #weights: PackedWeights;
  readonly #plans = new Map<string, Promise<Plan>>();
  #disposed = false;

  /**
   * A model of one's own network. Parameters are looked up in `weights` by property path (`layer1.0.conv1.weight`).
   * @throws OctconvError if a parameter is missing, has another shape, or is left over.
   */
  constructor(network: Network, weights: Pick<WeightSource, 'tensors' | 'read'>, options: ModelOptions = {}) {
    const { tensors } = weights;
    const quantized = [...tensors.values()].some((tensor) => tensor.dtype === 'i8');
    const { device = 'auto', dtype = quantized ? 'i8' : 'f32', threads } = options;
    if (device !== 'auto' && device !== 'cpu' && device !== 'reference') {
      throw new OctconvError(`device '${device}': wanted auto, cpu or reference`);
    }
    if (dtype !== 'f32' && dtype !== 'bf16' && dtype !== 'i8') {
      throw new OctconvError(`dtype '${dtype}': wanted f32, bf16 or i8`);
    }
    if (dtype === 'i8' && !quantized) {
      throw new OctconvError(`dtype 'i8': wanted quantized weights, as 'octconv quantize' makes them`);
    }
    this.device = device === 'auto' ? 'cpu' : device;
    this.dtype = dtype;
    this.threads = threadsOf(threads);
    this.#network = network;
    checkWeights(parameterShapes(network), weights);
    weightsOfModels.set(this, weights);
    this.#weights = new PackedWeights(weights, this.device, dtype);
  }

  /** Records the network for one input shape, [N,H,W,C] or [N,T,H,W,C]. */
  record(shape: readonly number[]): Graph {
    return record(this.#network, shape);
  }

  /** The compiled plan for one input shape. */
  async plan(shape: readonly number[]): Promise<Plan> {
    if (this.#disposed) throw new OctconvError('model: it was disposed');
    const key = shape.join();
    const known = this.#plans.get(key);
    const plan = known ?? this.#compile(shape);
    this.#plans.delete(key);
    this.#plans.set(key, plan); // the latest is last
    for (const [oldest] of this.#plans) {
      if (this.#plans.size <= keptPlans) break;
      this.#plans.delete(oldest);
    }
    try {
      return await plan;
    } catch (error) {
      this.#plans.delete(key);
      throw error;
    }
  }

  async #compile(shape: readonly number[]): Promise<Plan> {
    return Plan.compile(this.record(shape), this.#weights, this.threads);
  }

  /**
   * Runs the network on a batch: images [N,H,W,C] to logits [N, classes]. Runs may overlap; each uses the library's
   * own threads and leaves the event loop free. The input is read where it lies: leave it alone until the promise settles.
   * @throws OctconvError if the shape does not fit; the signal's reason if it is aborted.
   */
  async run(input: ModelInput, options: RunOptions = {}): Promise<Tensor<'f32'>> {
    options.signal?.throwIfAborted();
    const x = input instanceof Tensor ? input : new Tensor('f32', input.shape, input.data);
    const plan = await this.plan(x.shape);
    const [y] = await plan.run([x], options);
    return y as Tensor<'f32'>;
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

  /** Gives the memory back at once; runs in flight end well. */
  dispose(): void {
    this.#disposed = true;
    for (const plan of this.#plans.values()) plan.then((p) => p.dispose(), () => undefined);
    this.#plans.clear();
    this.#weights.dispose();
    forgotten.unregister(this);
    files.get(this)?.close();
    files.delete(this);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * A registered network (`oct-resnet-50`, `resnet-50`, ...) with random weights.
 * @throws OctconvError for an unknown name or an option out of range.
 */
export function createModel(
  name: AnyNetworkName,
  options: NetworkOptions & { seed?: number } = {},
  modelOptions: ModelOptions = {},
): Model {
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
  readonly network: Network;
  /** Close it. */
  readonly source: WeightSource;
  readonly input: InputConfig;
  /** Only a model folder has them. */
  readonly labels: readonly string[] | undefined;
}

/**
 * Opens a model folder, or a bare weight file (.safetensors, .pth) whose network is read off its names and shapes;
 * `given` must agree with them.
 * @throws OctconvError that names the file and what does not fit.
 */
export async function openNetwork(path: string, given: Partial<ResolvedOptions> = {}): Promise<NetworkFile> {
  const folder = (await isModelFolder(path)) ? await readModelFolder(path) : undefined;
  const file = folder?.weights ?? (await openWeights(path));
  try {
    const { network: name, options } = folder?.config ?? resolveOptions(file, given);
    const source = withParameterNames(file, name);
    const network = buildNetwork(name, options);
    checkWeights(parameterShapes(network), source);
    const input = folder?.config.input ?? defaultInputOf(name, options);
    return { name, options, network, source, input, labels: folder?.labels };
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
  options: ModelOptions & { network?: Partial<ResolvedOptions> } = {},
): Promise<Model> {
  const { network: given, ...modelOptions } = options;
  const { network, source, ...described } = await openNetwork(path, given);
  try {
    const model = Object.assign(new Model(network, source, modelOptions), described);
    await model.plan([1, described.input.height, described.input.width, channelCount(described.input)]); // packs all parameters
    files.set(model, source);
    forgotten.register(model, source, model);
    return model;
  } catch (error) {
    await source.close();
    throw error;
  }
}
