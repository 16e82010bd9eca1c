/** How far a result may be from the reference: a bound for each element. */
import { expect } from 'chai';
import type { TypedArray } from '../lib/dtype.js';
import { Graph, type TensorType } from '../lib/graph/graph.js';
import { type Activation, type BatchNormParams, convStep, lower, type Step, type Steps } from '../lib/graph/lower.js';
import { Tensor } from '../lib/tensor.js';
import type { Device } from '../lib/native.js';
import { toFloats } from '../lib/weights/floats.js';
import { compile, compileSteps, poisoned, run, sameBits } from './running.js';

/** Ops that are sums of products or move numbers: of absolute values they give the sums of |a||b|. */
const sums = new Set(
  `add avgPool batchNorm concat div globalAvgPool interpolate matmul maxPool mean mul octConv pad reshape slice sub
   transpose upsampleNearest`.split(/\s+/),
);

/**
 * For each element of the outputs the sum of |a||b| over the products that it is the sum of: what the reference computes
 * of absolute inputs and weights, without clamps and other functions (whose slope is 1.5 at most), all in f32. Rounding
 * errors are a small multiple of it wherever the sum itself cancels out, and at a border it has fewer terms. Undefined
 * where a step is no such sum.
 */
export async function magnitudes(
  { values, steps, inputs, outputs }: Steps,
  given: readonly TypedArray[],
  read: (name: string) => Tensor,
  graph = new Graph(),
): Promise<TypedArray[] | undefined> {
  if (!steps.every(({ op }) => sums.has(op))) return undefined;
  const scales = new Map<string, string>();
  const means = new Set<string>();
  const variances = new Set<string>();
  const norm = (names?: BatchNormParams) => {
    if (names) [means.add(names.running_mean), variances.add(names.running_var)];
  };
  const open = (activation?: Activation): Activation => {
    norm(activation?.batchNorm);
    const { batchNorm, eps } = activation ?? {};
    return { ...(batchNorm && { batchNorm }), ...(eps !== undefined && { eps }) };
  };
  const absolute = (step: Step): Step => {
    if (!step.branches) {
      norm(step.params as unknown as BatchNormParams);
      const value = step.attrs.value as number | undefined;
      return {
        ...step,
        op: step.op === 'sub' ? 'add' : step.op,
        attrs: { ...step.attrs, ...(value !== undefined && { value: Math.abs(value) }) },
      };
    }
    const branches = step.branches.map(({ terms, gated, residual, y, stores }) => ({
      ...{ y, ...(gated && { gated }), ...(residual !== undefined && { residual }) },
      stores: stores.map(({ activation, ...store }) => ({
        ...store,
        ...(activation && { activation: open(activation) }),
      })),
      terms: terms.map(({ sources, ...term }) => {
        norm(term.batchNorm);
        return {
          ...term,
          sources: sources.map(({ weightScale, scale: _, zero: __, prologue, ...source }) => {
            if (weightScale) scales.set(source.weight, weightScale);
            return { ...source, ...(prologue && { prologue: open(prologue) }) };
          }),
        };
      }),
    }));
    return convStep(step.name, branches);
  };
  const twins = steps.map(absolute);
  const param = (name: string): Tensor => {
    const { shape, dtype, data } = read(name);
    const scale = scales.get(name);
    const each = scale && data.length / (shape[0] ?? 1);
    const factors = scale && read(scale).data;
    const floats = toFloats(dtype, data).map((x, i) => {
      if (variances.has(name)) return x;
      return (means.has(name) ? -1 : 1) * Math.abs(each && factors ? x * (factors[Math.floor(i / each)] as number) : x);
    });
    return new Tensor('f32', shape, floats);
  };
  const twin = { values: values.map(({ shape }) => ({ dtype: 'f32' as const, shape })), steps: twins, inputs, outputs };
  const operands = [...graph.bound.values()].map((name) => read(name).data);
  const floats = [...given, ...operands].map((x, i) => {
    const { dtype, scale = 1, zero = 0 } = values[inputs[i] ?? -1] as TensorType;
    // Kernels of bytes sum levels, and take off what the zero contributes to the sum.
    return toFloats(dtype, x).map((value) => scale * (Math.abs(value) + zero));
  });
  return run(compileSteps(twin, 'reference', 1, param), floats);
}

/** The largest of each channel, for algorithms that spread errors over a tile. */
export function spread(magnitude: TypedArray, channels: number): Float32Array {
  const largest = new Float32Array(channels);
  magnitude.forEach((x, i) => {
    largest[i % channels] = Math.max(x, largest[i % channels] as number);
  });
  return new Float32Array(magnitude).map((_, i) => largest[i % channels] as number);
}

/** The most that may be lost: of sums of random signs less than 5 was seen, of Winograd's F(4x4) 30, along T 19. */
export const allowed = { direct: 8, 2: 8, 4: 64, overTime: 32 } as const;

/** |got - wanted| <= `times` x 2^-24 x magnitude for each element; what is not finite is the same. */
export function compareEach(got: TypedArray, wanted: TypedArray, magnitude: TypedArray, times: number): void {
  for (const [i, b] of wanted.entries()) {
    const a = got[i] as number;
    if (a === b || (Number.isNaN(a) && Number.isNaN(b))) continue;
    // A function of the sum rounds too, where the sum itself may be next to nothing.
    const off = Math.abs(a - b) / (2 ** -24 * Math.max(magnitude[i] as number, Math.abs(b)));
    if (!(off <= times) || !Number.isFinite(b))
      throw new Error(`element ${i} is ${a}, wanted ${b}: off by ${off} x 2^-24 of ${magnitude[i]}, wanted ${times}`);
  }
}

/**
 * The same with one bound for the whole tensor, the rounding of `terms` numbers of its largest: for what is no sum of
 * products, and for several steps at once.
 */
export function compare(got: TypedArray, wanted: TypedArray, terms: number): void {
  let [worst, at, magnitude] = [0, 0, 0];
  for (let i = 0; i < wanted.length; i++) {
    const [a, b] = [got[i] as number, wanted[i] as number];
    const difference =
      Number.isNaN(a) || Number.isNaN(b)
        ? Number.isNaN(a) && Number.isNaN(b)
          ? 0
          : Infinity
        : a === b
          ? 0
          : Math.abs(a - b);
    magnitude = Math.max(magnitude, Number.isFinite(b) ? Math.abs(b) : 0);
    if (difference > worst) [worst, at] = [difference, i];
  }
  const bound = 2 ** -23 * (2 + Math.sqrt(terms)) * Math.max(magnitude, 1);
  expect(worst, `worst at ${at}: ${got[at]}, wanted ${wanted[at]}`).to.be.at.most(bound);
}

/**
 * `cpu` against `reference`, with one thread and with more, with a NaN in the inputs, and without it again; what it
 * chose.
 */
export async function checkGraph(
  graph: Graph,
  inputs: readonly TypedArray[],
  given: number,
  read: (name: string) => Tensor,
): Promise<string[]> {
  const reference = await compile(graph, 'reference', 1, read);
  const cpu = await compile(graph, 'cpu', 1, read);
  const winograd = cpu.algorithms.some((text) => text.includes('winograd')); // errs more, and spreads over a tile what is not finite
  const terms = winograd ? 16 * given : given;
  const constant = (name: string) => graph.constants.get(name) ?? read(name);
  const each = graph.nodes.length === 1 ? await magnitudes(lower(graph), inputs, constant, graph) : undefined;
  const check = (y: TypedArray, x: TypedArray, i: number) => {
    if (!each) return compare(y, x, terms);
    const magnitude = each[i] as TypedArray;
    const channels = graph.values[graph.outputs[i] ?? -1]?.shape.at(-1) ?? 1;
    if (winograd) compareEach(y, x, spread(magnitude, channels), allowed[4]);
    else compareEach(y, x, magnitude, allowed.direct);
  };
  const wanted = await run(reference, inputs);
  const got = await run(cpu, inputs);
  for (const [i, y] of got.entries()) check(y, wanted[i] as TypedArray, i);
  const algorithms: string[] = [];
  for (const threads of [2, 3, 4]) {
    const parallel = await compile(graph, 'cpu', threads, read);
    expect(sameBits(await run(parallel, inputs), got), `${threads} threads give other bits than one`).to.equal(true);
    algorithms.push(...parallel.algorithms);
  }
  if (inputs.every((x) => x instanceof Float32Array)) {
    const bad = poisoned(inputs);
    const wanted = await run(reference, bad);
    for (const [i, y] of (await run(cpu, bad)).entries()) {
      if (winograd) expect(wanted[i]?.every((x, j) => Number.isFinite(x) || !Number.isFinite(y[j]))).to.equal(true);
      else check(y, wanted[i] as TypedArray, i);
    }
  }
  expect(sameBits(await run(cpu, inputs), got), 'a second run gives other bits').to.equal(true);
  return algorithms;
}

/**
 * Every step alone, on what the reference made of the steps before it, each element within its own bound: `times` as
 * for compareEach. Unless given, that of up to 3,000 products whose sum grows all the way, as those of one sign: n of
 * them lose sqrt(n / 3).
 */
export async function checkSteps(
  steps: Steps,
  inputs: readonly TypedArray[],
  read: (name: string) => Tensor,
  device: Device = 'cpu',
  times: (step: Step) => number = () => 4 * allowed.direct,
): Promise<void> {
  const arrays = new Map(steps.inputs.map((id, i) => [id, inputs[i] as TypedArray]));
  for (const step of steps.steps) {
    const single = { ...steps, steps: [step], inputs: step.inputs, outputs: step.outputs };
    const given = step.inputs.map((id) => arrays.get(id) as TypedArray);
    const magnitude = await magnitudes(single, given, read);
    const wanted = await run(compileSteps(single, 'reference', 1, read), given);
    const got = await run(compileSteps(single, device, 1, read), given);
    for (const [i, id] of step.outputs.entries()) {
      const { dtype } = steps.values[id] as TensorType;
      const [y, x] = [got[i], wanted[i]].map((data) => toFloats(dtype, data as TypedArray)) as [TypedArray, TypedArray];
      if (magnitude) compareEach(y, x, magnitude[i] as TypedArray, times(step));
      else compare(y, x, 1);
      arrays.set(id, wanted[i] as TypedArray);
    }
  }
}
