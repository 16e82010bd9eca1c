/** Models: a network with its weights, ready to run on a device at any input size. */
import { access, readdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { checkSignal } from './abort.js';
import { type Classified, classifyAll, type ClassifyOptions } from './classify.js';
import { checkCompute, Compiled, compileOptions, type CompileOptions } from './compile.js';
import { type Target, targetOf } from './devices.js';
import { OctconvError, show } from './error.js';
import { type ComputeType, Graph, kindOf, type Parameter, type TensorType, type Value } from './graph/graph.js';
import type { DType } from './dtype.js';
import { type InputConfig, seen } from './input/preprocess.js';
import type { VideoSource } from './input/video.js';
import {
  DeepModule,
  findParameters,
  type Module,
  namedParameters,
  parameterShapes,
  shapesOf,
} from './layers/module.js';
import {
  type AnyNetworkName,
  buildNetwork,
  checkInput,
  type Classifier,
  defaultInputOf,
  inputShape,
  type NetworkOptions,
  resolveNetworkOptions,
} from './models/index.js';
import { checkGiven, type ResolvedOptions, resolveOptions, withParameterNames } from './models/infer.js';
import type { ResolvedNetworkOptions } from './models/options.js';
import type { Device } from './native.js';
import { checkOptions, didYouMean, type Known } from './options.js';
import { orAborted, PackedWeights, Plan, type Running, type RunOptions, runOptions, threadsOf } from './plan.js';
import {
  type Input,
  type InputSpec,
  type Recorded,
  recordWork,
  splitArguments,
  type Tensors,
  typesOf,
} from './structure.js';
import type { Matrix, Shape, Spatial, Tensor } from './tensor.js';
import { atOnce, inTurns, turn, type Work } from './turns.js';
import { checkSource, checkWeights } from './weights/check.js';
import { withUsualNames } from './weights/names.js';
import { isModelFolder, readModelFolder } from './weights/folder.js';
import { initialize } from './weights/random.js';
import { indexOf, openOptions, type OpenOptions, openWeights, refuseKey, type WeightSource } from './weights/source.js';

export interface ModelOptions extends Omit<CompileOptions, 'dtype'> {
  /**
   * What the convolutions multiply; inputs and outputs are f32 always. `i8` (u8 activations, i8 weights) wants
   * quantized weights, and is their default; otherwise the default is `f32`. `f16` is there on `cuda`, `cudnn` and
   * `reference`; values of 65520 and more become infinite in it, as in PyTorch's half.
   */
  readonly dtype?: ComputeType | undefined;
  /** How many plans are kept, one per input shape; the one that was used longest ago goes first. Default 8. */
  readonly plans?: number | undefined;
  /**
   * Bytes that all plans but the last used one may keep between runs, of the host and of a GPU together; those used
   * longest ago give theirs back first. Default 32 MiB, on a GPU a sixteenth of its memory.
   */
  readonly idleBytes?: number | undefined;
  /** The most bytes that the weights of a plan and one run of it may take: a plan that would take more is an error. */
  readonly maxBytes?: number | undefined;
}

const modelOptions = {
  ...compileOptions,
  plans: true,
  idleBytes: true,
  maxBytes: true,
} satisfies Known<ModelOptions>;

/**
 * A network is a module whose `forward` takes values `X`, images [N,H,W,C] unless it is said otherwise, and gives `Y`:
 * a value, or arrays, objects and `Octave`s of values.
 */
export type Network<Y = Value<'f32', Shape>, X extends readonly Value[] = [x: Value<'f32', Shape>]> = Module & {
  forward(...inputs: X): Y;
};

/** What a run takes for values of any shape; for one of f32 also the bytes of pictures (`Model.run`). */
export type Inputs<X extends readonly Value[]> = {
  readonly [K in keyof X]: X[K] extends Value<infer D extends DType>
    ? Input<D> | ('f32' extends D ? Input<'u8'> : never)
    : never;
};

/** A network as a graph, for inputs of given shapes: [N,H,W,C], [N,T,H,W,C] or [N,C]. */
export function record(network: Module, ...inputs: readonly InputSpec[]): Graph {
  return atOnce(recordNetwork(network, namedParameters(network), inputs)).graph;
}

function recordNetwork<Y>(
  network: Module<never, Y>,
  parameters: ReadonlyMap<string, Parameter>,
  inputs: readonly InputSpec[],
  input?: InputConfig,
): Work<Recorded<Y>> {
  const forward = function* (...given: Value[]): Work<Y> {
    // A network that computes with bytes itself has no preprocessing.
    const values = (
      input ? given.map((x) => (x.dtype === 'u8' ? seen(x as Value<'u8', Spatial>, input) : x)) : given
    ) as [never];
    const deep = network instanceof DeepModule && network.forward === DeepModule.prototype.forward;
    return deep ? yield* network.work(...values) : network.forward(...values);
  };
  return recordWork('model: forward', network.forward.length, forward, inputs, new Graph(parameters));
}

/** @throws OctconvError if a parameter is missing in the weights, has another shape, or is left over. */
function* fittingParameters(network: Module, weights: ModelWeights): Work<ReadonlyMap<string, Parameter>> {
  const parameters = yield* findParameters(network);
  yield;
  checkWeights(shapesOf(parameters), weights);
  return parameters;
}

/**
 * A source that must be closed is open as long as its model: a plan for another input size may want weights once more.
 */
export type ModelWeights = Pick<WeightSource, 'tensors' | 'read'> & Partial<Pick<WeightSource, 'close'>>;
const forgotten = new FinalizationRegistry<ModelWeights>((source) => void source.close?.());

interface KeptPlan<X extends readonly Value[], Y> {
  readonly promise: Promise<Compiled<X, Y>>;
  /** When it is compiled. */
  compiled?: Compiled<X, Y>;
  /** Runs and calls of `plan` that need it. */
  users: number;
  /** Whether the model keeps it; otherwise it is disposed of with its last user. */
  kept: boolean;
}

/** `Y` is what the network gives, of a classifier `Value<'f32', Matrix>`; `X` are the values that it takes. */
export class Model<Y = Value<'f32', Shape>, X extends readonly Value[] = [x: Value<'f32', Shape>]> {
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

  readonly #network: Network<Y, X>;
  readonly #parameters: ReadonlyMap<string, Parameter>;
  readonly #source: ModelWeights;
  readonly #weights: PackedWeights;
  readonly #running: Running;
  readonly #keptPlans: number;
  readonly #idleBytes: number;
  /** By shape, the latest used last. */
  readonly #plans = new Map<string, KeptPlan<X, Y>>();
  /** Runs and compilations in flight: what they need goes when they have ended. */
  #inFlight = 0;
  #disposed = false;

  /**
   * A model of a network that the user defines. Parameters are looked up in `weights` by property path (`layer1.0.conv1.weight`);
   * they are closed with the model.
   * @throws OctconvError if a parameter is missing, has another shape, or is left over.
   */
  constructor(
    network: Network<Y, X>,
    weights: ModelWeights,
    options: ModelOptions = {},
    /** @internal */
    parameters?: ReadonlyMap<string, Parameter>,
  ) {
    checkOptions('model', options, modelOptions);
    if (typeof network?.forward !== 'function')
      throw new OctconvError(`model: network: got ${kindOf(network)}, wanted a Module, which has a forward`);
    checkSource(weights);
    const { tensors } = weights;
    const quantized = [...tensors.values()].some((tensor) => tensor.dtype === 'i8');
    const { device, dtype = quantized ? 'i8' : 'f32', threads, cudaGraphs, plans = 8, maxBytes } = options;
    const target: Target = targetOf(device);
    const { idleBytes = target.traits.idleBytes } = options;
    checkCompute(dtype, target, quantized);
    if (!(Number.isInteger(plans) && plans >= 1)) throw new OctconvError(`plans: ${plans}, wanted a positive integer`);
    for (const [name, bytes] of Object.entries({ idleBytes, maxBytes })) {
      if (bytes !== undefined && !(bytes >= 0)) throw new OctconvError(`${name}: ${bytes}, wanted a number of bytes`);
    }
    this.device = target.name;
    this.dtype = dtype;
    this.threads = threadsOf(target, threads);
    this.#running = { threads: this.threads, cudaGraphs };
    this.#network = network;
    this.#parameters = parameters ?? atOnce(fittingParameters(network, weights));
    this.#source = weights;
    this.#weights = new PackedWeights(weights, target, dtype, maxBytes);
    this.#keptPlans = plans;
    this.#idleBytes = idleBytes;
    if (weights.close) forgotten.register(this, weights, this);
  }

  /**
   * The parameters that it was made of.
   * @internal
   */
  get weights(): ModelWeights {
    return this.#source;
  }

  /** Records the network for inputs of given shapes: [N,H,W,C], [N,T,H,W,C] or [N,C]. */
  record(...inputs: readonly InputSpec[]): Graph {
    return atOnce(this.#record(inputs)).graph;
  }

  #record(inputs: readonly InputSpec[]): Work<Recorded<Y>> {
    return recordNetwork(this.#network as Module<never, Y>, this.#parameters, inputs, this.input);
  }

  /** The compiled plan for inputs of given shapes; it is disposed of when it is no longer kept, or with the model. */
  async plan(...inputs: readonly InputSpec[]): Promise<Plan> {
    return this.#use(async () => {
      const kept = this.#take(inputs);
      try {
        return (await kept.promise).plan;
      } finally {
        this.#done(kept);
      }
    });
  }

  /**
   * Packs weights and compiles plans for inputs that will be run: shapes, or lists of them for a network of several
   * inputs.
   */
  async warmUp(all: readonly (InputSpec | readonly InputSpec[])[]): Promise<void> {
    if (!Array.isArray(all) || all.some((inputs) => typeof inputs !== 'object'))
      throw new OctconvError(`model: warmUp: got ${show(all)}, wanted a list of shapes`);
    for (const inputs of all) await this.plan(...(isList(inputs) ? inputs : [inputs]));
  }

  /** The plan for such inputs, in use until `#done`. */
  #take(inputs: readonly InputSpec[]): KeptPlan<X, Y> {
    const types = typesOf('model: forward', inputs);
    const key = types.map(({ dtype, shape }) => `${dtype}[${shape}]`).join();
    const known = this.#plans.get(key);
    const kept = known && !known.compiled?.plan.disposed ? known : this.#compile(key, types);
    kept.users++;
    this.#plans.delete(key);
    this.#plans.set(key, kept);
    return kept;
  }

  #done(kept: KeptPlan<X, Y>): void {
    kept.users--;
    if (kept.users === 0 && !kept.kept) kept.compiled?.dispose();
    this.#trimIdle();
  }

  #trimIdle(): void {
    let idle = 0;
    for (const { compiled } of [...this.#plans.values()].reverse().slice(1)) {
      idle += compiled?.plan.idleBytes ?? 0;
      if (idle > this.#idleBytes) compiled?.plan.trim();
    }
  }

  /** When there is a new plan: weights that it shares with an old one stay. */
  #dropOldest(): void {
    for (const [oldest, old] of this.#plans) {
      const newest = [...this.#plans.values()].at(-1);
      const idle = [...this.#plans.values()].reduce((sum, { compiled }) => sum + (compiled?.plan.idleBytes ?? 0), 0);
      const fits = this.#weights.bytes + idle + (newest?.compiled?.plan.memory.run ?? 0) <= this.#weights.maxBytes;
      if (this.#plans.size <= this.#keptPlans && (fits || old === newest)) break;
      this.#plans.delete(oldest);
      old.kept = false;
      if (old.users === 0) old.compiled?.dispose();
    }
  }

  #compile(key: string, inputs: readonly TensorType[]): KeptPlan<X, Y> {
    if (inputs[0]) checkInput(this, inputs[0].shape);
    const compile = async () => {
      const { graph, arrange } = await inTurns(this.#record(inputs));
      return new Compiled<X, Y>(await Plan.compile(graph, this.#weights, this.#running), arrange);
    };
    const kept: KeptPlan<X, Y> = { promise: this.#use(compile), users: 0, kept: true };
    kept.promise.then(
      (compiled) => {
        kept.compiled = compiled;
        compiled.plan.ended = () => this.#trimIdle();
        this.#dropOldest();
        if (kept.users === 0 && !kept.kept) compiled.dispose();
      },
      () => {
        if (this.#plans.get(key) === kept) this.#plans.delete(key); // the next one tries again
      },
    );
    return kept;
  }

  /**
   * Runs the network on a batch: images [N,H,W,C] to logits [N, classes], or whatever else it takes, an argument for
   * each input, and gives. Runs may overlap; each uses the library's own threads and leaves the event loop free. Inputs
   * are copied before this returns (60 us for an image of 224 x 224; in i8 another 100 us to see that they are finite):
   * do with them what you like afterwards. Of a model with preprocessing (`input`) an input may also be pictures of u8 at
   * the size that the network sees: red, green and blue, of a grey one the luma. They are a quarter of the bytes to copy,
   * and are normalised natively. Inputs that are on the model's GPU are not copied to the host, and then what
   * the network gives is on that GPU too.
   * @throws OctconvError if a shape does not fit, or an input of a model in i8 is not finite; the signal's reason if it
   * is aborted.
   */
  async run(...args: [...inputs: Inputs<X>, options?: RunOptions]): Promise<Tensors<Y>> {
    const { inputs, options } = splitArguments<RunOptions>('model', args);
    checkOptions('model: run', options, runOptions);
    checkSignal(options?.signal);
    return this.#use(async () => {
      const kept = this.#take(inputs);
      const run = (compiled: Compiled<X, Y>, x: readonly Tensor[]) => compiled.run(...([...x, options] as never));
      try {
        // Native code copies what it is given in the call, which can only be made when the plan is there.
        if (kept.compiled) return await run(kept.compiled, inputs);
        const copies = inputs.map((x) => x.keep());
        try {
          return await run(await orAborted(kept.promise, () => undefined, options?.signal), copies);
        } finally {
          for (const x of copies) x.dispose();
        }
      } finally {
        this.#done(kept);
      }
    });
  }

  /**
   * The network as it was recorded, unfused, as the bytes of an ONNX file for inputs of given shapes: [N,H,W,C],
   * [N,T,H,W,C] or [N,C]. Frames, height and width are fixed in the file, the batch is not. There images are [N,C,H,W]
   * and video is [N,C,T,H,W] (`toNCHW`, `toNHWC`); the inputs are `input`, `input1`, ..., the outputs `logits`,
   * `logits1`, ...
   * @throws OctconvError for a shape that does not fit, and for ops on pictures' bytes.
   */
  async toOnnx(...inputs: readonly InputSpec[]): Promise<Uint8Array> {
    return this.#use(async () => {
      const { toOnnx } = await import('./graph/onnx.js'); // with protobuf, 5 MiB that nothing else needs
      return toOnnx(this.record(...inputs), this.#source);
    });
  }

  /**
   * What pictures show, or videos to a video network: one answer for one source, many for many. A long list is better
   * given to `classify()`, a long video to `classifyStream()`.
   * @throws OctconvError that names the first source that cannot be read; the signal's reason if it is aborted.
   */
  classify(this: Model, source: VideoSource, options?: ClassifyOptions): Promise<Classified>;
  classify(this: Model, sources: readonly VideoSource[], options?: ClassifyOptions): Promise<Classified[]>;
  classify(
    this: Model,
    sources: VideoSource | readonly VideoSource[],
    options?: ClassifyOptions,
  ): Promise<Classified | Classified[]> {
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
    for (const { promise } of this.#plans.values())
      promise.then(
        (compiled) => compiled.dispose(),
        () => undefined,
      );
    this.#plans.clear();
    this.#weights.dispose();
    if (forgotten.unregister(this)) void this.#source.close?.();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Whether these are several inputs, or the shape of one. */
function isList(inputs: InputSpec | readonly InputSpec[]): inputs is readonly InputSpec[] {
  return Array.isArray(inputs) && typeof inputs[0] !== 'number';
}

/**
 * A registered network (`oct-resnet-50`, `resnet-50`, ...) with random weights.
 * @throws OctconvError for an unknown name or an option out of range.
 */
export function createModel(
  name: AnyNetworkName,
  options: NetworkOptions & { seed?: number } = {},
  modelOptions: ModelOptions = {},
): Model<Value<'f32', Matrix>> {
  const resolved = resolveNetworkOptions(name, options, name, { seed: true });
  const network = buildNetwork(name, resolved);
  const model = new Model(network, initialize(network, options.seed), modelOptions);
  return Object.assign(model, { name, options: resolved, input: defaultInputOf(name, resolved) });
}

/** A registered network whose parameters lie in a file. */
export interface NetworkFile {
  readonly name: string;
  readonly options: ResolvedNetworkOptions;
  readonly network: Classifier;
  /** Close it. */
  readonly source: WeightSource;
  /** Absent where the network's input is no picture. */
  readonly input: InputConfig | undefined;
  /** Only a model folder has them. */
  readonly labels: readonly string[] | undefined;
  /** What was chosen, renamed or converted in the file, a line each. */
  readonly notes?: readonly string[] | undefined;
}

/** A path or a `file:` URL; or the name of a model that this package ships, unless there is a file of that name. */
async function placeOf(from: string | URL): Promise<string> {
  if (typeof from === 'string' && /^[\w.-]+$/.test(from) && !(await exists(from))) {
    const shipped = fileURLToPath(new URL(`../models/${from}`, import.meta.url));
    if (await isModelFolder(shipped)) return shipped;
    const names = (await readdir(dirname(shipped)).catch(() => [])).sort();
    if (didYouMean(from, names))
      throw new OctconvError(`${from}: no such file, and no model of the package: those are ${names.join(', ')}`);
  }
  const path = from instanceof URL && from.protocol === 'file:' ? fileURLToPath(from) : from;
  if (typeof path === 'string') return path;
  throw new OctconvError(`model: got ${show(String(from))}, wanted a path or a file: URL`);
}

const exists = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  );

/**
 * Opens a model folder, or bare weights (.safetensors, its shards, .pth, .params) whose network is read off their names
 * and shapes; `given` must agree with them. The name of a model that the package ships works too.
 * @throws OctconvError that names the file and what does not fit.
 */
export async function openNetwork(
  from: string | URL,
  given: Partial<ResolvedOptions> = {},
  open: OpenOptions = {},
): Promise<NetworkFile> {
  const found = await openUnchecked(from, given, open);
  try {
    checkWeights(parameterShapes(found.network), found.source);
    return found;
  } catch (error) {
    await found.source.close();
    throw error;
  }
}

async function openUnchecked(
  from: string | URL,
  given: Partial<ResolvedOptions> = {},
  open: OpenOptions = {},
): Promise<NetworkFile> {
  const path = await placeOf(from);
  const isFolder = (await isModelFolder(path)) && !(await indexOf(path));
  if (isFolder) refuseKey(path, open.key);
  const folder = isFolder ? await readModelFolder(path) : undefined;
  const file = folder?.weights ?? withUsualNames(await openWeights(path, open));
  try {
    if (folder) checkGiven(path, 'config.json has', folder.config, given);
    const { network: name, options } = folder?.config ?? resolveOptions(file, given);
    const source = withParameterNames(file, name);
    await turn();
    const network = buildNetwork(name, options);
    const input = folder?.config.input ?? defaultInputOf(name, options, source !== file); // records have other names
    return { name, options, network, source, input, labels: folder?.labels, notes: source.notes };
  } catch (error) {
    await file.close();
    throw error;
  }
}

export interface LoadOptions extends ModelOptions, OpenOptions {
  /** What the file must agree with. */
  readonly network?: Partial<ResolvedOptions> | undefined;
}

const loadOptions = { ...modelOptions, ...openOptions, network: true } satisfies Known<LoadOptions>;

/**
 * A model of what `openNetwork` opens. Parameters are read step by step, packed, and let go; the file stays open until
 * the model is disposed of.
 * @throws OctconvError that names the file and what does not fit.
 */
export async function loadModel(path: string | URL, options: LoadOptions = {}): Promise<Model<Value<'f32', Matrix>>> {
  checkOptions('loadModel', options, loadOptions);
  const { network: given, key, ...others } = options;
  const { network, source, ...described } = await openUnchecked(path, given, { key });
  let model: Model<Value<'f32', Matrix>> | undefined;
  try {
    const parameters = await inTurns(fittingParameters(network, source));
    model = Object.assign(new Model(network, source, others, parameters), described);
    await model.plan(inputShape(described)); // packs all parameters
    return model;
  } catch (error) {
    model?.dispose();
    await source.close();
    throw error;
  }
}
