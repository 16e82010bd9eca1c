// What test/cuda-ops.test.ts and test/cudnn.test.ts run with the addon beside the stand-in driver: rows of the op table
// on a device as on `reference`. Arguments: the device, what to check (table, slices), then ops;
// or the device, then f32, bf16 or f16, in which steps of random blocks multiply, and values are padded. Prints what differs.
import type { TypedArray } from '../lib/dtype.js';
import { targetOf } from '../lib/devices.js';
import { fuse } from '../lib/graph/fuse.js';
import type { Value } from '../lib/graph/graph.js';
import { lower, type Step } from '../lib/graph/lower.js';
import { padChannels } from '../lib/graph/pads.js';
import { stepsFor, type Traits } from '../lib/targets.js';
import * as ops from '../lib/ops.js';
import { Octave } from '../lib/octave.js';
import { elementCount, type Image, Tensor } from '../lib/tensor.js';
import { type Case, cases, graphOf, numbers } from './cases.js';
import { allowed, checkSteps, compare, compareEach, magnitudes } from './compare.js';
import {
  block,
  parameters,
  preactivation,
  compile,
  compileSteps,
  guarded,
  inputsOf,
  naming,
  noParams,
  oneIn,
  poisoned,
  run,
  sameBits,
} from './running.js';

/** Products of tf32: 10 bits instead of f32's 23 of each factor. */
const tensorCores = 2 ** 14;
const products = new Set(['conv', 'octConv', 'linear']);
/** Values that round once or not at all, to the bit. */
const moves = new Set(['slice', 'transpose', 'reshape', 'concat', 'pad', 'upsampleNearest', 'resize', 'normalize']);

/** As the reference, with a NaN in the inputs too, and again with the same bits. */
async function table(row: Case): Promise<void> {
  const graph = graphOf(row);
  const read = (name: string) => graph.constants.get(name) ?? noParams();
  const inputs = inputsOf(row, /relu6|hard/.test(row.op) ? 9 : 2);
  const each = await magnitudes(lower(graph), inputs, read, graph);
  const [reference, cuda] = [await compile(graph, 'reference', 1, noParams), await compile(graph, device, 1, noParams)];
  const bad = inputs.every((x) => x instanceof Float32Array) ? [poisoned(inputs)] : [];
  const [first, again] = [await run(cuda, inputs), await run(cuda, inputs)];
  if (!sameBits(first, again)) throw new Error('a second run gives other bits');
  for (const given of [inputs, ...bad]) {
    const [got, wanted] = [await run(cuda, given), await run(reference, given)];
    if (moves.has(row.op) && !sameBits(got, wanted)) throw new Error('other bits than the reference');
    for (const [i, y] of wanted.entries()) {
      const [x, magnitude] = [got[i] as TypedArray, each?.[i]];
      if (magnitude) compareEach(x, y, magnitude, products.has(row.op) ? tensorCores : allowed.direct);
      else compare(x, y, row.op === 'attention' ? row.terms * tensorCores ** 2 : row.terms);
    }
  }
  if (row.op !== 'attention') return;
  for (const dtype of ['f16', 'bf16'] as const) await narrow(row, dtype);
}

/** Scores of -inf for all keys that a block takes first. */
async function infinite(): Promise<void> {
  const of = (x: number, f: (key: number) => number): Tensor<'f32', Image> =>
    new Tensor(
      'f32',
      [1, 1, x, 1],
      Float32Array.from({ length: x }, (_, key) => f(key)),
    );
  const k = of(70, (key) => (key < 64 ? -Infinity : 0));
  const { data } = await ops.attention(
    of(1, () => 1),
    k,
    of(70, (key) => key),
    { device },
  );
  if (data[0] !== 66.5) throw new Error(`the mean of keys 64 to 69 is ${data[0]}, wanted 66.5`);
}

/** The same with inputs and output in another type: the steps around it round to that, and pad what is no whole piece. */
async function narrow(row: Case, dtype: 'f16' | 'bf16'): Promise<void> {
  const same = (x: unknown) => ops.leakyRelu(x as never, { slope: 1 });
  const graph = graphOf({ ...row, record: (xs) => same(row.record(xs.map(same))) });
  const { values, ...given } = lower(graph);
  const kept = (id: number) => !graph.inputs.includes(id) && !graph.outputs.includes(id);
  const typed = { ...given, values: values.map((value, id) => (kept(id) ? { ...value, dtype } : value)) };
  const inputs = inputsOf(row);
  const [wanted] = await run(compileSteps(typed, 'reference', 1, noParams), inputs);
  for (const steps of [typed, padChannels(typed, targetOf(device).traits)]) {
    const [got] = await run(compileSteps(steps, device, 1, noParams), inputs);
    // A result in bf16 has 8 bits, in f16 11.
    compare(got as TypedArray, wanted as TypedArray, row.terms * { f16: tensorCores, bf16: 2 ** 16 }[dtype] ** 2);
  }
}

/** Of values that are slices of wider ones neighbours stay, and are not read. */
async function slices(row: Case): Promise<void> {
  const graph = graphOf(row);
  const read = (name: string) => graph.constants.get(name) ?? noParams();
  const plain = fuse(lower(graph));
  const { steps, guards } = guarded(plain);
  const inputs = inputsOf(row);
  const nans = guards.map(({ shape }) => new Float32Array(elementCount(shape)).fill(Number.NaN));
  const wanted = await run(compileSteps(plain, device, 1, read), inputs);
  const got = await run(compileSteps(steps, device, 1, read), [...inputs, ...nans]);
  if (!sameBits(got, [...wanted, ...nans])) throw new Error('other bits beside neighbours');
}

/**
 * The steps of random blocks, each alone: convolutions have all that the graph passes give them, such as residuals,
 * activations, prologues, pooled stores, gates.
 */
async function blocks(compute: 'f32' | 'bf16' | 'f16'): Promise<void> {
  const { traits } = targetOf(device);
  // Slices of a wider value cannot be run alone, nor padded ones: concatenations are copies here.
  const alone = {
    ...traits,
    channelAlign: 1,
    ops: { ...traits.ops, concat: { ...traits.ops.concat, pitched: false } },
  } as Traits;
  const rounds = { f32: tensorCores, bf16: 2 ** 16, f16: tensorCores }[compute]; // a result in bf16 has 8 bits
  const times = ({ op }: Step) => (op === 'octConv' ? rounds : allowed.direct);
  for (let seed = 1; seed <= (compute === 'f16' ? 4 : 12); seed += oneIn)
    for (const [name, graph] of Object.entries({ block: block(seed).graph, preactivation: preactivation(seed) })) {
      const steps = stepsFor(graph, { traits: alone, threads: 1, compute });
      const inputs = inputsOf({ inputs: graph.inputs.map((id) => graph.values[id]?.shape ?? []) });
      await checkSteps(steps, inputs, parameters(graph), device, times).catch((error: Error) =>
        console.log(`${name} ${seed} in ${compute}: ${error.message}`),
      );
    }
}

/** Zeros behind the channels of values between steps: products read them, convolutions and other ops write them. */
async function pads(compute: 'f32' | 'bf16' | 'f16'): Promise<void> {
  const { traits } = targetOf(device);
  const w = (o: number, c: number, seed: number) => new Tensor('f32', [o, c, 3, 3], numbers(o * c * 9, seed)) as never;
  for (const c of compute === 'f16' ? [3, 17] : [1, 3, 9, 17, 35]) {
    const conv = (x: unknown, weight: never) => ops.conv(x as never, { weight }, { padding: 1 }) as unknown;
    const record: Case['record'] = ([x]) =>
      conv(conv(ops.maxPool(conv(x, w(c, 4, 1)) as never, { kernel: 2 }), w(c, c, 2)), w(5, c, 3));
    const row: Case = { op: 'conv', title: '', inputs: [[2, 9, 7, 4]], terms: 0, record };
    const graph = graphOf(row);
    const read = (name: string) => graph.constants.get(name) ?? noParams();
    const of = (channelAlign: number) =>
      run(
        compileSteps(stepsFor(graph, { traits: { ...traits, channelAlign }, compute }), device, 1, read),
        inputsOf(row),
      );
    if (!sameBits(await of(traits.channelAlign), await of(1))) console.log(`${c} channels in ${compute}: other bits`);
  }
}

/**
 * Rows of several groups on values of the type that is multiplied, which are padded: alone, and with a residual, a clamp
 * and P of the result. As the reference, with a NaN in the inputs too: it stays in its group.
 */
async function groups(compute: 'f32' | 'bf16' | 'f16'): Promise<void> {
  const { traits } = targetOf(device);
  const same = (x: unknown) => ops.maxPool(x as never, { kernel: 1 });
  const followed = (y: Value, x: Value | undefined) => {
    const sum = String(y.shape) === String(x?.shape) ? ops.add(y as never, x as never) : y;
    const c = y.shape.at(-1) ?? 0;
    const window = Array<number>(y.shape.length - 2).fill(1);
    const w = (o: number, seed: number) => new Tensor('f32', [o, c, ...window], numbers(o * c, seed)) as never;
    return ops.octConv(new Octave(ops.relu6(sum as never)) as never, { h2h: w(3, 1), h2l: w(2, 2) });
  };
  const isGrouped = (row: Case) => graphOf(row).nodes.some(({ attrs }) => Number(attrs.groups) > 1);
  const rows = cases.filter((row) => isGrouped(row) && elementCount(row.inputs[0] ?? []) < 30_000);
  if (rows.length < 20) throw new Error(`${rows.length} rows of several groups, wanted 20`);
  for (const [i, row] of rows.entries()) {
    if (i % oneIn) continue;
    const alone: Case['record'] = (xs) => row.record(xs.map(same) as never[]);
    const chain: Case['record'] = (xs) => {
      const inner = xs.map(same) as never[];
      const { high, low } = followed([row.record(inner)].flat()[0] as Value, inner[0]) as Octave<Value>;
      return [high, low as Value];
    };
    // Between the steps of a chain bf16 keeps 8 bits, which magnitudes do not count.
    const chained = compute === 'bf16' ? 2 ** 16 : tensorCores;
    for (const [record, times] of [
      [alone, tensorCores],
      [chain, chained],
    ] as const) {
      const graph = graphOf({ ...row, record });
      const read = (name: string) => graph.constants.get(name) ?? noParams();
      const steps = stepsFor(graph, { traits, compute });
      const plain = stepsFor(graph, { traits: { ...traits, channelAlign: 1 }, compute });
      const inputs = inputsOf(row);
      const each = (await magnitudes(plain, inputs, read)) as TypedArray[];
      const [cuda, reference] = [compileSteps(steps, device, 1, read), compileSteps(plain, 'reference', 1, read)];
      for (const given of [inputs, poisoned(inputs)]) {
        const [got, wanted] = [await run(cuda, given), await run(reference, given)];
        for (const [k, y] of wanted.entries())
          await naming(
            `${row.title} in ${compute}`,
            (async () => compareEach(got[k] as TypedArray, y, each[k] as TypedArray, times))(),
          );
      }
    }
  }
}

const [device = '', what, ...names] = process.argv.slice(2);
if (what === 'f32' || what === 'bf16' || what === 'f16') {
  await blocks(what);
  await pads(what);
  await groups(what);
}
if (what === 'table' && names.includes('attention')) await infinite();
const check = what === 'table' ? table : slices;
let bad = 0; // rows; after three more say nothing new
for (const [i, row] of cases.entries()) {
  if (bad === 3 || i % oneIn || !names.includes(row.op)) continue;
  if (row.inputs.some((shape) => elementCount(shape) > 30_000)) continue;
  await check(row).catch((error: Error) => {
    bad++;
    console.log(`${row.op} ${row.title}: ${error.message}`);
  });
}
