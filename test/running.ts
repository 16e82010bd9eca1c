/** What the tests of ops share: compiling and running graphs and steps. */
import { expect } from 'chai';
import { targetOf } from '../lib/devices.js';
import { arrayFor, type TypedArray } from '../lib/dtype.js';
import { Graph, type TensorType, type Value } from '../lib/graph/graph.js';
import type { Step, Steps } from '../lib/graph/lower.js';
import { sliceConcats } from '../lib/graph/slices.js';
import type { Device } from '../lib/native.js';
import { Octave } from '../lib/octave.js';
import * as ops from '../lib/ops.js';
import { PackedWeights, Plan } from '../lib/plan.js';
import { stepsFor } from '../lib/targets.js';
import { elementCount, Tensor } from '../lib/tensor.js';
import { type Case, cases, numbers } from './cases.js';

/** Of many that take the same kernels one in so many runs: sanitizers and emulated CPUs are slow (tools/test-under.mjs). */
export const oneIn = Number(process.env.OCTCONV_TEST_ONE_IN || 1);

/** A row of the table is one case where many random graphs take the same kernels: all of them up to this `oneIn`. */
const allRowsUpTo = 4;

/** The rows of the table; only an emulator that is very slow leaves some out. */
export const tableOf = (op: string): Case[] =>
  cases.filter((row) => row.op === op).filter((_, i) => i % Math.ceil(oneIn / allRowsUpTo) === 0);

/** The same for tests that take them once more; where one in many is taken without large ones, which many tasks share. */
export function rowsOf(op: string): Case[] {
  const elements = ({ inputs }: Case) => inputs.reduce((sum, shape) => sum + elementCount(shape), 0);
  return tableOf(op).filter((row) => oneIn === 1 || elements(row) < 5000);
}

export const guard = 37; // odd, so that starts are not aligned

/** A plan of any steps; `read` gives parameters that the graph does not hold. */
export function compileSteps(
  steps: Steps,
  device: Device,
  threads: number,
  read: (name: string) => Tensor,
  graph = new Graph(),
): Promise<Plan> {
  const names = new Set(steps.steps.flatMap(({ params }) => Object.values(params)));
  const tensors = new Map([...names].map((name) => [name, read(name)]));
  const source = { tensors, read: async (name: string) => (tensors.get(name) as Tensor).data };
  return Plan.ofSteps(graph, steps, new PackedWeights(source, targetOf(device)), { threads });
}

export function compile(graph: Graph, device: Device, threads: number, read: (name: string) => Tensor): Promise<Plan> {
  const steps = stepsFor(graph, { traits: targetOf(device).traits, threads });
  return compileSteps(steps, device, threads, (name) => graph.constants.get(name) ?? read(name), graph);
}

/** Runs, and checks that the inputs stay as they were. */
export async function run(plan: Plan | Promise<Plan>, inputs: readonly TypedArray[]): Promise<TypedArray[]> {
  const compiled = await plan;
  const before = inputs.map((x) => x.slice());
  const given = inputs.map((x, i) => {
    const { dtype, shape } = compiled.inputs[i] ?? { dtype: 'f32', shape: [] };
    return new Tensor(dtype, shape, x);
  });
  const outputs = await compiled.run(given);
  expect(sameBits(inputs, before), 'an input was written').to.equal(true);
  return outputs.map(({ data }) => data);
}

export const noParams = () => {
  throw new Error('no parameters');
};

/** Inputs that start unaligned, between NaN: what is read beyond them shows. */
export function inputsOf({ inputs, dtype = 'f32' }: Pick<Case, 'inputs' | 'dtype'>, scale = 2): TypedArray[] {
  return inputs.map((shape, i) => {
    const values = numbers(
      shape.reduce((a, b) => a * b, 1),
      99 + i,
    );
    const room = new (arrayFor(dtype))(values.length + 2 * guard).fill(Number.NaN).subarray(guard, -guard);
    values.forEach((x, j) => {
      room[j] = dtype === 'u8' ? (x + 1) * 127 : x * scale * (i + 1);
    });
    return room;
  });
}

/** The same inputs with a NaN and an infinity each. */
export const poisoned = (inputs: readonly TypedArray[]) =>
  inputs.map((x) => {
    const room = x.slice();
    room[Math.floor(x.length * 0.6)] = Number.NaN;
    room[Math.floor(x.length * 0.2)] = Number.POSITIVE_INFINITY;
    return room;
  });

export const bits = (arrays: readonly TypedArray[]) =>
  arrays.map((x) => Buffer.from(x.buffer, x.byteOffset, x.byteLength));
export function sameBits(a: readonly TypedArray[], b: readonly TypedArray[]): boolean {
  const wanted = bits(b);
  return a.length === b.length && bits(a).every((x, i) => x.equals(wanted[i] as Buffer));
}

const { traits } = targetOf('cpu');
const concat = (inputs: readonly number[], output: number): Step => ({
  op: 'concat',
  name: '',
  attrs: {},
  params: {},
  inputs,
  outputs: [output],
});

/** Puts values of one size side by side, by threes, and channels that nobody writes behind them: all are slices. */
export function sideBySide(given: Steps): Steps {
  const values: TensorType[] = [...given.values];
  const fixed = new Set([...given.inputs, ...given.outputs]);
  for (const { op, inputs, outputs } of given.steps) {
    // What is put side by side already goes along.
    const own = op === 'concat' ? inputs : traits.ops[op]?.pitched ? [] : [...inputs, ...outputs];
    for (const id of own) fixed.add(id);
  }
  const alike = new Map<string, number[]>();
  for (const id of given.steps.flatMap(({ outputs }) => outputs).filter((id) => !fixed.has(id))) {
    const key = JSON.stringify([values[id]?.dtype, values[id]?.shape.slice(0, -1)]);
    alike.set(key, [...(alike.get(key) ?? []), id]);
  }
  const wide = [...alike.values()].flatMap((ids) => ids.flatMap((_, i) => (i % 3 ? [] : [ids.slice(i, i + 3)])));
  const concats = wide.map((ids) => {
    const { shape, ...type } = values[ids[0] ?? -1] as TensorType;
    const gap = values.push({ ...type, shape: [...shape.slice(0, -1), 1 + (ids.length % 3)] }) - 1;
    const all = [...ids, gap];
    const channels = all.reduce((sum, id) => sum + (values[id]?.shape.at(-1) ?? 0), 0);
    return concat(all, values.push({ ...type, shape: [...shape.slice(0, -1), channels] }) - 1);
  });
  return sliceConcats({ ...given, values, steps: [...given.steps, ...concats] }, traits);
}

/**
 * The same with all inputs and outputs copied to slices between two others, which are written before and given behind:
 * further inputs and outputs.
 */
export function guarded(given: Steps): { steps: Steps; guards: TensorType[] } {
  const values: TensorType[] = [...given.values];
  const guards: TensorType[] = [];
  const [before, behind, wide]: [Step[], Step[], Step[]] = [[], [], []];
  const [inputs, outputs]: [number[], number[]] = [[], []];
  const ends = { inputs: [] as number[], outputs: [] as number[] };
  const add = (type: TensorType) => values.push(type) - 1;
  for (const id of [...given.inputs, ...given.outputs]) {
    const type = values[id] as TensorType;
    const [outer, input] = [add(type), given.inputs.includes(id)];
    (input ? inputs : outputs).push(outer);
    (input ? before : behind).push(input ? concat([outer], id) : concat([id], outer));
    const sized = (channels: number): TensorType => ({ ...type, shape: [...type.shape.slice(0, -1), channels] });
    const [left, right] = [3, 2].map((channels) => {
      const [from, guard, to] = [add(sized(channels)), add(sized(channels)), add(sized(channels))];
      guards.push(sized(channels));
      ends.inputs.push(from);
      ends.outputs.push(to);
      before.push(concat([from], guard));
      behind.push(concat([guard], to));
      return guard;
    }) as [number, number];
    wide.push(concat([left, id, right], add(sized(5 + (type.shape.at(-1) ?? 0)))));
  }
  const steps = [...before, ...given.steps, ...behind, ...wide];
  return {
    guards,
    steps: sliceConcats(
      { values, steps, inputs: [...inputs, ...ends.inputs], outputs: [...outputs, ...ends.outputs] },
      traits,
    ),
  };
}

/** Says what was being checked in front of what was wrong. */
export async function naming<T>(what: string, check: Promise<T>): Promise<T> {
  return check.catch((error: Error) => {
    throw new Error(`${what}: ${error.message}`);
  });
}

/** Makes random graphs: the same for the same seed. */
class Blocks {
  readonly graph = new Graph();
  readonly video: boolean;
  #state: number;
  #names = 0;
  constructor(readonly seed: number) {
    this.#state = Math.imul(seed, 0x9e3779b1); // near seeds start far apart
    this.video = seed % 5 === 0;
  }
  pick = <T>(...options: T[]): T => {
    this.#state = (Math.imul(this.#state, 1664525) + 1013904223) >>> 0;
    return options[Math.floor((this.#state / 2 ** 32) * options.length)] as T;
  };
  #param(...shape: number[]): never {
    return this.graph.parameter(`p${this.#names++}.weight`, shape) as never;
  }
  norm(x: Value): Value {
    const c = x.shape.at(-1) as number;
    const variance = this.graph.parameter(`p${this.#names++}.running_var`, [c]) as never;
    const params = {
      weight: this.#param(c),
      bias: this.#param(c),
      running_mean: this.#param(c),
      running_var: variance,
    };
    return ops.batchNorm(x as never, params) as Value;
  }
  act(v: Value): Value {
    return this.pick(ops.relu, ops.relu6)(v as never) as Value;
  }
  function(v: Value): Value {
    const slope = (x: never) => ops.leakyRelu(x, { slope: 0.1 });
    return this.pick(ops.relu, slope, ops.sigmoid, ops.silu, ops.hardSigmoid, ops.hardSwish, ops.gelu)(v as never);
  }
  /** x times a gate per image and channel, made of the means of both branches. */
  gate(x: Octave<Value>): Octave<Value> {
    const linear = (v: Value, o: number, bias: boolean) => {
      const params = { weight: this.#param(o, v.shape.at(-1) as number), bias: bias ? this.#param(o) : undefined };
      return ops.linear(v as never, params as never) as Value;
    };
    const means = x.map((v) => linear(ops.globalAvgPool(v as never) as Value, 5, v === x.high));
    const inner = ops.relu(means.merge((a, b) => ops.add(a as never, b as never) as Value) as never) as Value;
    const gates = x.map((v) => this.function(linear(inner, v.shape.at(-1) as number, true)));
    return x.zip(gates, (a, b) => ops.mul(a as never, b as never) as Value);
  }
  /** groups: a number, or all channels (depthwise). */
  conv(x: Octave<Value>, [oh, ol]: readonly [number, number], k: number, stride: 1 | 2, groups = 1): Octave<Value> {
    const [ih, il] = [x.high.shape.at(-1) as number, (x.low?.shape.at(-1) as number) ?? 0];
    const window = this.video ? [this.pick(1, 3), k, k] : [k, k];
    const depthwise = groups > 1 && groups === ih + il;
    const weight = (o: number, i: number, crosses = false) =>
      o && i && !(depthwise && crosses) ? this.#param(o, depthwise ? 1 : i / groups, ...window) : undefined;
    const bias = this.pick(true, false);
    const params = {
      h2h: weight(oh, ih) as never,
      l2h: weight(oh, il, true),
      h2l: weight(ol, ih, true),
      l2l: weight(ol, il),
      ...(bias && { biasH: this.#param(oh), ...(ol && { biasL: this.#param(ol) }) }),
    };
    return ops.octConv(x as never, params, { stride, groups }) as unknown as Octave<Value>;
  }
}

/** A random block: convolutions, normalisation, activation, residual or projection, then a consumer that pools. */
export function block(seed: number): { graph: Graph; whole: boolean } {
  const b = new Blocks(seed);
  const { pick, graph, video } = b;
  const conv = b.conv.bind(b);
  const [norm, act] = [(v: Value) => b.norm(v), (v: Value) => b.act(v)];
  const whole = seed % 3 !== 0; // in the others something stands in the way of fusion
  const size = [
    pick(1, 2),
    ...(video ? [pick(1, 2, 5)] : []),
    pick(5, 8, 9, 13, 20),
    pick(4, 7, 8, 11, 33),
    pick(3, 8, 17),
  ];
  const input = graph.input('f32', size) as Value;
  const window = { kernel: video ? [1, 3, 3] : 3, stride: video ? [1, 2, 2] : 2, padding: video ? [0, 1, 1] : 1 };
  const entered = pick(true, false) ? (ops.maxPool(input as never, window as never) as Value) : input;
  const [high, low] = [pick(1, 5, 8, 17, 33), pick(0, 3, 8, 20)];
  const x = conv(new Octave(entered), [high, low], pick(1, 3), 1).map((v) => act(norm(v)));
  const stride = pick(1, 2) as 1 | 2;
  const even = [pick(4, 8, 16, 70), low && pick(2, 8)] as const;
  const raw = conv(x, even, pick(1, 3, 5), stride);
  if (!whole && pick(true, false)) graph.outputs.push(raw.high.id);
  let inner = raw.map((v) => act(norm(v)));
  const groups = pick(1, 2, even[0] + even[1]);
  if (groups > 1) inner = conv(inner, even, 3, 1, groups).map((v) => act(norm(v)));
  const last = conv(inner, [high, low], pick(1, 3), 1).map((v) => norm(v));
  const shortcut = stride === 2 || pick(true, false) ? conv(x, [high, low], 1, stride).map((v) => norm(v)) : x;
  let y = last.zip(shortcut, (a, b) => act(ops.add(a as never, b as never) as Value));
  if (!whole) {
    const gate = y.high.shape.map((size, i, all) => (i === 0 || i === all.length - 1 || pick(true, false) ? size : 1));
    y = new Octave(ops.mul(y.high as never, graph.input('f32', gate) as never) as Value, y.low);
  }
  const end = conv(y, [6, 3], pick(1, 3), pick(1, 2) as 1 | 2);
  graph.outputs.push(end.high.id, end.low?.id as number);
  return { graph, whole };
}

/**
 * Random pre-activation and dense blocks: sums that are read raw and normalised, concatenations that several normalise.
 */
export function preactivation(seed: number): Graph {
  const b = new Blocks(seed);
  const { pick, graph } = b;
  const size = [
    pick(1, 2),
    ...(b.video ? [pick(1, 3)] : []),
    pick(6, 8, 9, 13, 20),
    pick(4, 7, 8, 11, 33),
    pick(3, 8, 17),
  ];
  const widths = [pick(5, 8, 17, 33), pick(0, 3, 8, 20)] as const;
  let x = b.conv(new Octave(graph.input('f32', size) as Value), widths, pick(1, 3), 1);
  for (let i = 0; i < 2; i++) {
    const first = x.map((v) => b.act(b.norm(v)));
    const raw = b.conv(first, [pick(4, 16, 70), widths[1] && pick(2, 8)], pick(1, 3), 1);
    const inner = pick(true, false) ? raw.map((v) => b.act(b.norm(v))) : raw.map((v) => b.function(b.norm(v)));
    const last = b.conv(inner, widths, pick(1, 3), 1);
    const y = pick(true, false) ? last : b.gate(last);
    const shortcut = pick(true, false)
      ? x
      : b.conv(
          pick(
            first,
            x.map((v) => b.norm(v)),
          ),
          widths,
          1,
          1,
        );
    x = y.zip(shortcut, (a, c) => ops.add(a as never, c as never) as Value);
  }
  const dense = b.conv(
    x.map((v) => b.act(b.norm(v))),
    [6, widths[1] && 3],
    3,
    1,
  );
  const all = x.zip(dense, (a, c) => ops.concat([a as never, c as never]) as Value);
  const transition = b.conv(
    all.map((v) => b.act(b.norm(v))),
    [7, widths[1] && 5],
    1,
    1,
  );
  const window = b.video ? [1, 2, 2] : 2;
  const pooled = transition.map(
    (v) => ops.avgPool(v as never, { kernel: window, ceilMode: true, countIncludePad: false } as never) as Value,
  );
  const ends = [
    b.conv(pooled, [4, 0], 3, 1),
    b.conv(
      all.map((v) => b.act(b.norm(v))),
      [4, 2],
      pick(1, 3),
      2,
    ),
    // No clamp.
    b.conv(
      all.map((v) => b.norm(v)),
      [4, 2],
      1,
      pick(1, 2),
    ),
    x.map((v) => b.norm(v)),
    x.map((v) => b.function(v)).map((v) => ops.globalAvgPool(v as never) as Value),
  ];
  const ids = ends.flatMap(({ high, low }) => (low ? [high.id, low.id] : [high.id]));
  graph.outputs.push(...ids);
  return graph;
}

export const parameters = (graph: Graph) => (name: string) => {
  const shape = graph.params.get(name) ?? [];
  const fan = shape.slice(1).reduce((a, b) => a * b, 1);
  const data = numbers(
    shape.reduce((a, b) => a * b, 1),
    name.length * 31 + Number(name.match(/\d+/)?.[0]),
  );
  const scale = shape.length > 1 ? 2 / Math.sqrt(fan) : 1;
  return new Tensor(
    'f32',
    shape,
    data.map((v) => (name.endsWith('running_var') ? 1.5 + v : v * scale)),
  );
};
