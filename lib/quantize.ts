/**
 * Post-training quantization: weights become i8, and what convolutions and linear layers read becomes u8, over the
 * range that it has on some typical inputs.
 */
import { targetOf } from './devices.js';
import { OctconvError } from './error.js';
import { fuse } from './graph/fuse.js';
import { type Graph, kindOf } from './graph/graph.js';
import { type Branch, lower, sourcesOf, type Steps, type Term } from './graph/lower.js';
import type { InputType } from './graph/types.js';
import { parameterShapes } from './layers/module.js';
import { type Network, record } from './model.js';
import type { NativeHistogram } from './native.js';
import { checkOptions, type Known } from './options.js';
import { PackedWeights, Plan, type PlanOptions, type RunOptions, runOptions, threadsOf } from './plan.js';
import { elementCount, Tensor } from './tensor.js';
import { checkSource, checkWeights } from './weights/check.js';
import { toFloats } from './weights/floats.js';
import { type MemoryTensor, memoryWeights } from './weights/memory.js';
import { besideI8, type WeightSource } from './weights/source.js';

export type Weights = Pick<WeightSource, 'name' | 'tensors' | 'read'>;
export type Batches = AsyncIterable<Tensor<'f32'>> | Iterable<Tensor<'f32'>>;

export interface QuantizeOptions extends RunOptions, Pick<PlanOptions, 'threads'> {}

const quantizeOptions = { ...runOptions, threads: true } satisfies Known<QuantizeOptions>;

/**
 * The weights for inference in i8. `batches` are some hundred images or clips as the network takes them, in batches of
 * any size; a batch takes the memory of a run. Beside a weight `X.weight` of i8, w = q * X.weight_scale[o], lie `X.input_scale` and
 * `X.input_zero_point`: the layer reads u8, x = input_scale * (q - input_zero_point). All else stays as it is, and so
 * does a layer that is used more than once.
 * @throws OctconvError if the weights do not fit or are quantized, there is no input, or an activation is not finite.
 */
export async function quantize(
  network: Network<unknown>,
  weights: Weights,
  batches: Batches,
  options: QuantizeOptions = {},
): Promise<WeightSource> {
  checkOptions('quantize', options, quantizeOptions);
  checkSource(weights);
  const iterable = Object(batches);
  if (!(Symbol.iterator in iterable || Symbol.asyncIterator in iterable))
    throw new OctconvError(`quantize: batches: got ${kindOf(batches)}, wanted Tensors in turn`);
  const { name = 'weights', tensors } = weights;
  if ([...tensors.values()].some(({ dtype }) => dtype === 'i8')) throw new OctconvError(`${name}: quantized already`);
  checkWeights(parameterShapes(network), weights);
  const { shape, seen } = await observe(network, weights, batches, options);
  const graph = record(network, shape);
  const readers = readersOf(graph, tensors);
  const inputs = new Map<string, InputType>();
  for (const [id, weights] of readers) {
    const type = (seen.get(id) as Histogram).type();
    for (const weight of weights) inputs.set(weight, type);
  }
  const result = new Map<string, MemoryTensor>();
  for (const branch of quantizable(graph, readers)) {
    for (const [key, tensor] of await quantizeBranch(branch, inputs, weights, graph.constants)) result.set(key, tensor);
  }
  for (const [key, info] of tensors) {
    if (result.has(key)) continue;
    const data = await weights.read(key);
    checkFinite(key, toFloats(info.dtype, data));
    result.set(key, { ...info, data });
  }
  return memoryWeights(result, name);
}

/** What `quantize` makes of parameters, for inputs of a shape: the types and shapes, without the work. */
export function quantizedTensors(
  network: Network<unknown>,
  tensors: WeightSource['tensors'],
  shape: readonly number[],
): WeightSource['tensors'] {
  const result = new Map(tensors);
  const graph = record(network, shape);
  for (const { weight } of quantizable(graph, readersOf(graph, tensors)).flatMap(sourcesOf)) {
    const { shape: sizes = [] } = tensors.get(weight) ?? {};
    result.set(weight, { dtype: 'i8', shape: sizes });
    for (const { name, ...info } of Object.values(besideI8(weight, sizes[0]))) result.set(name, info);
  }
  return result;
}

/** The branches all of whose weights are applied to one value and nothing else. */
function quantizable(graph: Graph, readers: ReadonlyMap<number, readonly string[]>): Branch[] {
  const weights = new Set([...readers.values()].flat());
  return branchesOf(fuse(lower(graph))).filter((branch) =>
    sourcesOf(branch).every(({ weight }) => weights.has(weight)),
  );
}

/** Levels of NaN would be clean-looking numbers. */
function checkFinite(name: string, data: Float32Array): Float32Array {
  const bad = data.findIndex((x) => !Number.isFinite(x));
  if (bad < 0) return data;
  throw new OctconvError(`quantize: parameter '${name}' has ${data[bad]} at ${bad}, wanted finite numbers`);
}

const branchesOf = ({ steps }: Steps): Branch[] => steps.flatMap(({ branches = [] }) => branches);

// --- Activations ------------------------------------------------------------------------------------------------

/** The values that layers read, each with the weights that are applied to it and to nothing else. */
function readersOf(graph: Graph, tensors: WeightSource['tensors']): Map<number, string[]> {
  const sources = branchesOf(lower(graph)).flatMap(sourcesOf);
  const uses = new Map<string, number>();
  for (const { weight } of sources) uses.set(weight, (uses.get(weight) ?? 0) + 1);
  const readers = new Map<number, string[]>();
  for (const { input, weight } of sources) {
    if (uses.get(weight) !== 1 || !tensors.has(weight) || !weight.endsWith('.weight')) continue;
    readers.set(input, [...(readers.get(input) ?? []), weight]);
  }
  return readers;
}

/** Runs the network on all batches: what was seen of each value that a layer reads. */
async function observe(
  network: Network<unknown>,
  weights: Weights,
  batches: Batches,
  { threads, signal }: QuantizeOptions,
) {
  const packed = new PackedWeights(weights, targetOf('cpu'));
  const plans = new Map<string, Plan>();
  const seen = new Map<number, Histogram>();
  let shape: readonly number[] | undefined;
  let inputs = 0;
  try {
    for await (const x of batches) {
      if (!(x instanceof Tensor))
        throw new OctconvError(`quantize: input ${inputs}: got ${kindOf(x)}, wanted a Tensor`);
      ({ shape } = x);
      const [n = 1] = shape;
      const key = shape.join();
      const plan =
        plans.get(key) ??
        (await Plan.compile(observed(network, weights, shape), packed, { threads: threadsOf(packed.target, threads) }));
      plans.set(key, plan);
      const { graph } = plan;
      const { outputs, histograms } = await plan.observe([x], { signal });
      const notFinite = (what: string, at: number, elements: number) =>
        new OctconvError(`quantize: input ${inputs + Math.floor(at / (elements / n))}: ${what} is not finite`);
      for (const [i, [id, [reader]]] of [...readersOf(graph, weights.tensors)].entries()) {
        const { firstNotFinite, ...counted } = histograms[i] as NativeHistogram;
        const elements = elementCount(graph.values[id]?.shape ?? []);
        if (firstNotFinite >= 0) throw notFinite(`what '${reader}' is applied to`, firstNotFinite, elements);
        const histogram = seen.get(id) ?? new Histogram();
        histogram.add(counted);
        seen.set(id, histogram);
      }
      for (const { data } of outputs.slice(0, 1) as Tensor<'f32'>[]) {
        const bad = data.findIndex((y) => !Number.isFinite(y));
        if (bad >= 0) throw notFinite('the result', bad, data.length);
      }
      inputs += n;
    }
  } finally {
    for (const plan of plans.values()) plan.dispose();
    packed.dispose();
  }
  if (!shape) throw new OctconvError('quantize: no inputs, wanted some that are typical');
  return { shape, seen };
}

/** The network, which observes the values that layers read. */
function observed(network: Network<unknown>, { tensors }: Weights, shape: readonly number[]): Graph {
  const graph = record(network, shape);
  graph.observed.push(...readersOf(graph, tensors).keys());
  return graph;
}

/** `Histogram::bins` in native/core/histogram.h. A level of u8 over all that was seen is 16 of them at least. */
const bins = 2 ** 14;
const middle = bins / 2;

/** What was seen in all runs. */
class Histogram {
  #counts = new Float64Array(bins);
  #limit = 2 ** -32;
  #least = 0;
  #most = 0;

  add({ least, most, limit, counts }: Omit<NativeHistogram, 'firstNotFinite'>): void {
    this.#least = Math.min(this.#least, least);
    this.#most = Math.max(this.#most, most);
    if (limit > this.#limit) {
      const [before, finer] = [this.#counts, this.#limit];
      [this.#counts, this.#limit] = [new Float64Array(bins), limit];
      this.#count(before, finer);
    }
    this.#count(counts, limit);
  }

  /** Numbers that were counted in bins over the same limit or a smaller one. */
  #count(counts: Float64Array | Uint32Array, limit: number): void {
    const shift = Math.min(31, Math.log2(this.#limit / limit));
    for (let i = 0; i < bins; i++) this.#counts[((i - middle) >> shift) + middle]! += counts[i]!;
  }

  /**
   * u8 over the part of the range with the least squared error: rounding within it against clipping outside of it. It
   * holds 0 as a level, for padding. Right of CIFAR-10's test pictures on a50 and a0, and cosines of the logits: f32
   * 8790, 8823; this 8801, 8817 (.99975, .99985); the whole range 8782, 8823 (.99951, .99974); 99.999 % of it 8779,
   * 8813 (.99970, .99985), 99.99 % 8777, 8823 (.99926, .99950), 99.9 % 8753, 8794 (.99524, .99502).
   */
  type(): InputType {
    let best = { error: Infinity, least: 0, most: 0 };
    for (let i = 0; i <= 64; i++) {
      const [least, most] = [this.#least, this.#most].map((end) => end * 2 ** (-i / 16)) as [number, number];
      const error = this.#error(least, most);
      if (error < best.error) best = { error, least, most };
    }
    // What was always zero is worth next to nothing: the other inputs of its sum keep their levels.
    const scale = Math.fround((best.most - best.least) / 255) || 2 ** -64;
    return { scale, zero: Math.round(-best.least / scale) };
  }

  #error(least: number, most: number): number {
    const rounding = ((most - least) / 255) ** 2 / 12;
    const width = this.#limit / middle;
    let error = 0;
    for (let i = 0; i < bins; i++) {
      const count = this.#counts[i]!;
      if (count === 0 || i === middle) continue; // most there are exact zeros
      const x = (i + 0.5 - middle) * width;
      error += count * (x > most ? (x - most) ** 2 : x < least ? (least - x) ** 2 : rounding);
    }
    return error;
  }
}

// --- Weights ----------------------------------------------------------------------------------------------------

/** A weight whose products go into a branch's sum. */
interface Part {
  readonly weight: string;
  readonly shape: readonly number[];
  readonly data: Float32Array;
  readonly input: InputType;
  /** For each output channel what one level of the input times a weight of 1 adds to the output. */
  readonly worth: Float64Array;
}

/**
 * The products of all parts go into one sum of integers, so within an output channel they must be worth the same: the
 * part with the largest products has all of i8. The sign of a batch normalisation is folded in by native code.
 */
async function quantizeBranch(
  { terms }: Branch,
  inputs: ReadonlyMap<string, InputType>,
  weights: Weights,
  constants: Graph['constants'],
): Promise<Map<string, MemoryTensor>> {
  const parts = (await Promise.all(terms.map((term) => partsOf(term, inputs, weights, constants)))).flat();
  const channels = parts[0]?.worth.length ?? 0;
  const row = <T extends Float32Array | Int8Array>(data: T, o: number): T => {
    const each = data.length / channels;
    return data.subarray(o * each, (o + 1) * each) as T;
  };
  const steps = Float64Array.from({ length: channels }, (_, o) => {
    const worths = parts.map(({ worth }) => worth[o]!);
    const most = Math.max(...parts.map(({ data, shape }, i) => extreme(row(data, o), shape) * worths[i]!));
    return most / 127 || Math.max(...worths);
  });
  const result = new Map<string, MemoryTensor>();
  for (const { weight, shape, data, input, worth } of parts) {
    const scales = new Float32Array(channels);
    const levels = new Int8Array(data.length);
    for (let o = 0; o < channels; o++) {
      const w = row(data, o);
      const scale = Math.fround(worth[o] ? steps[o]! / worth[o]! : extreme(w, shape) / 127 || 1);
      if (!Number.isFinite(scale)) continue; // nothing beside the other parts: its levels stay 0, of scale 0
      scales[o] = scale;
      row(levels, o).set(w.map((x) => Math.round(x / scale)));
    }
    const { weightScale, inputScale, inputZeroPoint } = besideI8(weight, channels);
    result.set(weight, { dtype: 'i8', shape, data: levels });
    result.set(weightScale.name, { ...weightScale, data: scales });
    result.set(inputScale.name, { ...inputScale, data: Float32Array.of(input.scale) });
    result.set(inputZeroPoint.name, { ...inputZeroPoint, data: Uint8Array.of(input.zero) });
  }
  return result;
}

async function partsOf(
  { sources, batchNorm, eps = 0 }: Term,
  inputs: ReadonlyMap<string, InputType>,
  weights: Weights,
  constants: Graph['constants'],
): Promise<Part[]> {
  const floats = async (name: string) => {
    const { dtype = 'f32' } = constants.get(name) ?? weights.tensors.get(name) ?? {};
    return checkFinite(name, toFloats(dtype, constants.get(name)?.data ?? (await weights.read(name))));
  };
  const gamma = batchNorm && (await floats(batchNorm.weight));
  const variance = batchNorm && (await floats(batchNorm.running_var));
  const negative = variance?.findIndex((x) => !(x + eps > 0)) ?? -1;
  if (negative >= 0) {
    throw new OctconvError(
      `quantize: parameter '${batchNorm?.running_var}' has ${variance?.[negative]} at ${negative}, wanted a variance`,
    );
  }
  const affine = gamma && variance && Float64Array.from(gamma, (scale, o) => scale / Math.sqrt(variance[o]! + eps));
  return Promise.all(
    sources.map(async ({ weight }): Promise<Part> => {
      const { shape = [] } = weights.tensors.get(weight) ?? {};
      const input = inputs.get(weight) as InputType;
      const worth = Float64Array.from({ length: shape[0] ?? 0 }, (_, o) => input.scale * Math.abs(affine?.[o] ?? 1));
      return { weight, shape, data: await floats(weight), input, worth };
    }),
  );
}

/**
 * The largest weight of an output channel, or sum of two that belong to neighbouring input channels: CPUs without a dot
 * product of bytes add such pairs of products, u8 by i8, in 16 bits, which hold 255 * 128 (native/cpu/tile.cc).
 */
function extreme(w: Float32Array, [, channels = 1]: readonly number[]): number {
  const taps = w.length / channels;
  let most = 0;
  for (let i = 0; i < w.length; i++) {
    const x = w[i]!;
    const beside = (Math.floor(i / taps) % 2 === 0 ? w[i + taps] : undefined) ?? 0;
    most = Math.max(most, Math.abs(x), Math.abs(x + beside)); // of opposite signs they are no larger than either
  }
  return most;
}
