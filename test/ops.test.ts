/** Every row of the op table: the fast kernels against the slow reference, at every instruction set. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { arrayFor, type DType, type TypedArray } from '../lib/dtype.js';
import { fitsWinograd, mostChannels } from '../lib/graph/algorithm.js';
import { fuse } from '../lib/graph/fuse.js';
import { type ComputeType, Graph, Parameter, toNTHWC, type Value } from '../lib/graph/graph.js';
import { convStep, lower, type Steps } from '../lib/graph/lower.js';
import { planMemory } from '../lib/graph/memory.js';
import { assignTypes, type InputType, weightScaleOf } from '../lib/graph/types.js';
import { type Device, native, type NativeParam, type NativePlanSpec } from '../lib/native.js';
import { Octave } from '../lib/octave.js';
import * as ops from '../lib/ops.js';
import { stepsFor } from '../lib/plan.js';
import { Tensor } from '../lib/tensor.js';
import { type Case, cases, graphOf, numbers } from './cases.js';
import { byDefinition, definedOps, Input } from './definitions.js';
import { levels } from './levels.js';

const guard = 37; // odd, so that starts are not aligned
const guardValue = 77;

interface Compiled extends ReturnType<typeof native.compile> {
  outputs: { dtype: DType; count: number }[];
}

/** Compiles by hand, without lib/plan.ts, so that inputs and outputs may lie anywhere. */
function compile(graph: Graph, device: Device, threads: number, read: (name: string) => Tensor): Compiled {
  return compileSteps(stepsFor(graph, device), device, threads, (name) => graph.constants.get(name) ?? read(name));
}

function compileSteps(lowered: Steps, device: Device, threads: number, read: (name: string) => Tensor): Compiled {
  const { steps, values, inputs, outputs } = lowered;
  const memory = planMemory(lowered);
  const made = new Set([...inputs, ...steps.flatMap((step) => step.outputs)]);
  const place = (id: number) => {
    if (inputs.includes(id)) return { place: 'input', at: inputs.indexOf(id) } as const;
    return outputs.includes(id) ? ({ place: 'output', at: outputs.indexOf(id) } as const) : ({ place: 'arena', at: memory.offsets.get(id) ?? 0 } as const);
  };
  const spec: NativePlanSpec = {
    device,
    threads,
    arenaBytes: Math.max(1, memory.bytes),
    values: values.map(({ shape, ...type }, id) =>
      made.has(id) ? { ...type, shape: toNTHWC(shape), ...place(id) } : { dtype: 'u8', shape: [1, 1, 1, 1, 1], place: 'arena', at: 0 },
    ),
    steps: steps.map(({ op, name, attrs, inputs, outputs, params }) => ({
      ...{ op, name, attrs, inputs, outputs },
      ...(Object.keys(params).length && {
        packed: native.pack(op, device, attrs, Object.fromEntries(Object.entries(params).map(([role, p]) => [role, read(p)]))),
      }),
    })),
  };
  const types = outputs.map((id) => ({ dtype: values[id]?.dtype as DType, count: values[id]?.shape.reduce((a, b) => a * b, 1) ?? 0 }));
  return { ...native.compile(spec), outputs: types };
}

/** Runs between guard values; checks that they, and the inputs, stay as they were. */
async function runGuarded({ plan, outputs }: Compiled, inputs: readonly TypedArray[]): Promise<TypedArray[]> {
  const before = inputs.map((x) => x.slice());
  const whole = outputs.map(({ dtype, count }) => new (arrayFor(dtype))(count + 2 * guard).fill(guardValue));
  const views = whole.map((array) => array.subarray(guard, array.length - guard));
  await native.run(plan, inputs, views, null).done;
  expect(inputs, 'an input was written').to.deep.equal(before);
  for (const array of whole) {
    const guards = [...array.subarray(0, guard), ...array.subarray(array.length - guard)];
    expect(guards.every((value) => value === guardValue), 'something outside of the output was written').to.equal(true);
  }
  return views;
}

/** Largest difference and where it is; the bound is rounding of `terms` numbers of this magnitude. */
function compare(got: TypedArray, wanted: TypedArray, terms: number): void {
  let [worst, at, magnitude] = [0, 0, 0];
  for (let i = 0; i < wanted.length; i++) {
    const [a, b] = [got[i] as number, wanted[i] as number];
    const difference = Number.isNaN(a) || Number.isNaN(b) ? (Number.isNaN(a) && Number.isNaN(b) ? 0 : Infinity) : a === b ? 0 : Math.abs(a - b);
    magnitude = Math.max(magnitude, Number.isFinite(b) ? Math.abs(b) : 0);
    if (difference > worst) [worst, at] = [difference, i];
  }
  const bound = 2 ** -23 * (2 + Math.sqrt(terms)) * Math.max(magnitude, 1);
  expect(worst, `worst at ${at}: ${got[at]}, wanted ${wanted[at]}`).to.be.at.most(bound);
}

const noParams = () => {
  throw new Error('no parameters');
};

/** Inputs that start unaligned, between NaN: what is read beyond them shows. */
function inputsOf({ inputs, dtype = 'f32' }: Pick<Case, 'inputs' | 'dtype'>, scale = 2): TypedArray[] {
  return inputs.map((shape, i) => {
    const values = numbers(shape.reduce((a, b) => a * b, 1), 99 + i);
    const room = new (arrayFor(dtype))(values.length + 2 * guard).fill(Number.NaN).subarray(guard, -guard);
    values.forEach((x, j) => {
      room[j] = dtype === 'u8' ? (x + 1) * 127 : x * scale * (i + 1);
    });
    return room;
  });
}

/** The same inputs with a NaN and an infinity each. */
const poisoned = (inputs: readonly TypedArray[]) =>
  inputs.map((x) => {
    const room = x.slice();
    room[Math.floor(x.length * 0.6)] = Number.NaN;
    room[Math.floor(x.length * 0.2)] = Number.POSITIVE_INFINITY;
    return room;
  });

const bits = (arrays: readonly TypedArray[]) => arrays.map((x) => Buffer.from(x.buffer, x.byteOffset, x.byteLength));
const sameBits = (a: readonly TypedArray[], b: readonly TypedArray[]) =>
  a.length === b.length && bits(a).every((x, i) => x.equals(bits(b)[i] as Buffer));

/** `cpu` against `reference`, with one thread and with more, with a NaN in the inputs, and without it again; what it chose. */
async function checkGraph(graph: Graph, inputs: readonly TypedArray[], given: number, read: (name: string) => Tensor): Promise<string[]> {
  const reference = compile(graph, 'reference', 1, read);
  const cpu = compile(graph, 'cpu', 1, read);
  const winograd = cpu.algorithms.some((text) => text.includes('winograd')); // errs more, and spreads over a tile what is not finite
  const terms = winograd ? 16 * given : given;
  const wanted = await runGuarded(reference, inputs);
  const got = await runGuarded(cpu, inputs);
  for (const [i, y] of got.entries()) compare(y, wanted[i] as TypedArray, terms);
  const algorithms: string[] = [];
  for (const threads of [2, 3, 4]) {
    const parallel = compile(graph, 'cpu', threads, read);
    expect(sameBits(await runGuarded(parallel, inputs), got), `${threads} threads give other bits than one`).to.equal(true);
    algorithms.push(...parallel.algorithms);
  }
  if (inputs.every((x) => x instanceof Float32Array)) {
    const bad = poisoned(inputs);
    const wanted = await runGuarded(reference, bad);
    for (const [i, y] of (await runGuarded(cpu, bad)).entries()) {
      if (winograd) expect(wanted[i]?.every((x, j) => Number.isFinite(x) || !Number.isFinite(y[j]))).to.equal(true);
      else compare(y, wanted[i] as TypedArray, terms);
    }
  }
  expect(sameBits(await runGuarded(cpu, inputs), got), 'a second run gives other bits').to.equal(true);
  return algorithms;
}

/** Says what was being checked in front of what was wrong. */
async function naming<T>(what: string, check: Promise<T>): Promise<T> {
  return check.catch((error: Error) => {
    throw new Error(`${what}: ${error.message}`);
  });
}

describe('ops: the table', () => {
  it('has a row for every op', () => {
    const rows = new Set(cases.map(({ op }) => op));
    expect(Object.keys(ops).filter((op) => !rows.has(op as Case['op']))).to.deep.equal([]);
  });

  for (const op of new Set(cases.map((c) => c.op))) {
    const rows = cases.filter((c) => c.op === op);
    it(`${op}: ${rows.length} rows, cpu as the reference, any thread count to the bit`, async () => {
      for (const row of rows) {
        const inputs = inputsOf(row, op === 'relu6' ? 9 : 2);
        await naming(`${op} ${row.title}`, checkGraph(graphOf(row), inputs, row.terms, noParams));
      }
    });
  }
});

/** A random block: convolutions, normalisation, activation, residual or projection, then a consumer that pools. */
function block(seed: number): { graph: Graph; whole: boolean } {
  let state = seed;
  const pick = <T>(...options: T[]): T => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return options[Math.floor((state / 2 ** 32) * options.length)] as T;
  };
  const whole = seed % 3 !== 0; // in the others something stands in the way of fusion
  const video = seed % 5 === 0;
  const graph = new Graph();
  let names = 0;
  const param = (...shape: number[]) => Object.assign(new Parameter(shape), { name: `p${names++}.weight` }) as never;
  const norm = (x: Value) => {
    const c = x.shape.at(-1) as number;
    const variance = Object.assign(new Parameter([c]), { name: `p${names++}.running_var` }) as never;
    return ops.batchNorm(x as never, { weight: param(c), bias: param(c), running_mean: param(c), running_var: variance }) as Value;
  };
  const widthsOf = (x: Octave<Value>) => [x.high.shape.at(-1) as number, (x.low?.shape.at(-1) as number) ?? 0] as const;
  /** groups: a number, or all channels (depthwise). */
  const conv = (x: Octave<Value>, [oh, ol]: readonly [number, number], k: number, stride: 1 | 2, groups = 1): Octave<Value> => {
    const [ih, il] = widthsOf(x);
    const window = video ? [pick(1, 3), k, k] : [k, k];
    const depthwise = groups > 1 && groups === ih + il;
    const weight = (o: number, i: number, crosses = false) =>
      o && i && !(depthwise && crosses) ? param(o, depthwise ? 1 : i / groups, ...window) : undefined;
    const bias = pick(true, false);
    const params = {
      h2h: weight(oh, ih) as never,
      l2h: weight(oh, il, true),
      h2l: weight(ol, ih, true),
      l2l: weight(ol, il),
      ...(bias && { biasH: param(oh), ...(ol && { biasL: param(ol) }) }),
    };
    return ops.octConv(x as never, params, { stride, groups }) as unknown as Octave<Value>;
  };
  const act = (v: Value) => pick(ops.relu, ops.relu6)(v as never) as Value;

  const size = [pick(1, 2), ...(video ? [pick(1, 2, 5)] : []), pick(5, 8, 9, 13, 20), pick(4, 7, 8, 11, 33), pick(3, 8, 17)];
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
    const gate = y.high.shape.map((size, i, all) => (i === 0 || i === all.length - 1 ? size : 1));
    y = new Octave(ops.mul(y.high as never, graph.input('f32', gate) as never) as Value, y.low);
  }
  const end = conv(y, [6, 3], pick(1, 3), pick(1, 2) as 1 | 2);
  graph.outputs.push(end.high.id, end.low?.id as number);
  return { graph, whole };
}

const parameters = (graph: Graph) => (name: string) => {
  const shape = graph.params.get(name) ?? [];
  const fan = shape.slice(1).reduce((a, b) => a * b, 1);
  const data = numbers(shape.reduce((a, b) => a * b, 1), name.length * 31 + Number(name.match(/\d+/)?.[0]));
  const scale = shape.length > 1 ? 2 / Math.sqrt(fan) : 1;
  return new Tensor('f32', shape, data.map((v) => (name.endsWith('running_var') ? 1.5 + v : v * scale)));
};

describe('ops: fused forms', () => {
  const met = new Set<string>();
  const meet = (form: string, when: boolean) => when && met.add(form);

  async function checkBlocks(first: number, last: number): Promise<void> {
    for (let seed = first; seed <= last; seed++) {
      const { graph, whole } = block(seed);
      const { steps } = fuse(lower(graph));
      const apart = steps.map((s) => s.op).filter((op) => op !== 'octConv' && op !== 'maxPool');
      if (whole) expect(apart, `seed ${seed}`).to.deep.equal([]);
      const inputs = inputsOf({ inputs: graph.inputs.map((id) => graph.values[id]?.shape ?? []) });
      const algorithms = await naming(`seed ${seed}`, checkGraph(graph, inputs, 2000, parameters(graph)));

      const branches = steps.flatMap((s) => s.branches ?? []);
      const sources = branches.flatMap((b) => b.terms.flatMap((t) => t.sources));
      meet('a residual', branches.some((b) => b.residual !== undefined));
      meet('a projection shortcut', branches.some((b) => b.terms.length === 2));
      meet('P(y)', branches.some((b) => b.outputs.length === 2));
      meet('P(P(y))', branches.some((b) => b.outputs.length === 3));
      meet('P of a max-pooling', steps.some((s) => s.op === 'maxPool' && s.outputs.length === 2));
      meet('P of an input', sources.some((s) => s.pool === 1));
      meet('P(P) of an input', sources.some((s) => s.pool === 2));
      meet('groups', sources.some((s) => s.groups === 2));
      meet('depthwise', algorithms.some((a) => a.includes('depthwise')));
      meet('blocks', algorithms.some((a) => / [2-9] blocks/.test(a)));
      meet('panels by thread', algorithms.some((a) => /blocks x [2-9]/.test(a)));
      meet('something unfused', apart.length > 0);
    }
  }

  it('40 random octave blocks: fused as recorded', async function () {
    this.timeout(600_000); // an emulated CPU is slow
    await checkBlocks(1, 40);
  });

  it('110 more, every form among them @slow', async () => {
    await checkBlocks(41, 150);
    expect(met.size, [...met].join(', ')).to.equal(12);
  });
});

describe("ops: Winograd's algorithm", () => {
  const bf16 = (steps: Steps) => assignTypes(steps, 'bf16', new Map());
  const forced = (steps: Steps, winograd: 2 | 4): Steps => ({
    ...steps,
    steps: steps.steps.map((step) =>
      step.branches?.every((branch) => fitsWinograd(branch, steps, winograd))
        ? convStep(step.name, step.branches.map((branch) => ({ ...branch, winograd })))
        : step,
    ),
  });

  /** Against the reference on the same steps; any thread count to the bit. */
  async function checkWinograd(graph: Graph, winograd: 2 | 4, read: (name: string) => Tensor, types?: typeof bf16): Promise<boolean> {
    const steps = forced(fuse(lower(graph), types), winograd);
    if (!steps.steps.some(({ branches }) => branches?.some((branch) => branch.winograd))) return false;
    const inputs = inputsOf({ inputs: graph.inputs.map((id) => graph.values[id]?.shape ?? []) });
    const param = (name: string) => graph.constants.get(name) ?? read(name);
    const wanted = await runGuarded(compileSteps(steps, 'reference', 1, param), inputs);
    const got = await runGuarded(compileSteps(steps, 'cpu', 1, param), inputs);
    // The constants of F(4x4) are up to 5 and 8 twice over: its errors are some ten times those of direct sums.
    for (const [i, y] of got.entries()) compare(y, wanted[i] as TypedArray, winograd === 4 ? 400_000 : 10_000);
    for (const threads of [2, 3]) {
      expect(sameBits(await runGuarded(compileSteps(steps, 'cpu', threads, param), inputs), got), `${threads} threads`).to.equal(true);
    }
    return true;
  }

  for (const winograd of [2, 4] as const) {
    it(`F(${winograd}x${winograd}, 3x3): the table's 3x3 convolutions`, async () => {
      let count = 0;
      for (const row of cases.filter(({ op }) => op === 'conv' || op === 'octConv')) {
        if (await naming(`${row.op} ${row.title}`, checkWinograd(graphOf(row), winograd, noParams))) count++;
      }
      expect(count).to.be.greaterThan(60);
    });

    it(`F(${winograd}x${winograd}, 3x3) of bf16: the table's 3x3 convolutions`, async () => {
      for (const row of cases.filter(({ op }) => op === 'conv' || op === 'octConv')) {
        await naming(`${row.op} ${row.title}`, checkWinograd(graphOf(row), winograd, noParams, bf16));
      }
    });

    it(`F(${winograd}x${winograd}, 3x3): random octave blocks`, async function () {
      this.timeout(600_000);
      let count = 0;
      for (let seed = 1; seed <= 150; seed += 3) {
        const { graph } = block(seed);
        if (await naming(`seed ${seed}`, checkWinograd(graph, winograd, parameters(graph)))) count++;
      }
      expect(count).to.be.greaterThan(15);
    });
  }
});

describe("ops: Winograd's algorithm of i8", () => {
  /** An octave branch of u8 with a residual and P(y); numbers between the ends, or the ends alone. */
  function branch(size: readonly [n: number, h: number, w: number], [high, low, out]: readonly [number, number, number], ends: boolean) {
    const [n, h, w] = size;
    const x = { dtype: 'u8', scale: 0.5, zero: 3 } as const;
    const y = { dtype: 'u8', shape: [n, h, w, out], scale: ends ? (high + low) * 1600 : Math.sqrt(high + low) * 500, zero: 128 } as const;
    const values = [
      { ...x, shape: [n, h, w, high] },
      { ...x, shape: [n, Math.ceil(h / 2), Math.ceil(w / 2), low] },
      y,
      y,
      { ...y, shape: [n, Math.ceil(h / 2), Math.ceil(w / 2), out] },
    ];
    const conv = { kernel: [1, 3, 3] as const, padding: [0, 1, 1] as const, groups: 1, pool: 0, scale: x.scale, zero: x.zero };
    const sources = [{ ...conv, input: 0, weight: 'h', weightScale: 'scale', upsample: false }];
    if (low > 0) sources.push({ ...conv, input: 1, weight: 'l', weightScale: 'scale', upsample: true });
    const steps = (winograd?: 2 | 4): Steps => {
      const step = convStep('a', [{ terms: [{ sources }], residual: 2, outputs: [3, 4], compute: 'i8', ...(winograd && { winograd }) }]);
      return { values, steps: [step], inputs: step.inputs, outputs: step.outputs };
    };
    const weight = (channels: number) =>
      new Tensor('i8', [out, channels, 3, 3], Int8Array.from(numbers(out * channels * 9, channels), (x) => (ends ? -128 : Math.round(127 * x))));
    const params: Record<string, Tensor> = { h: weight(high), l: weight(Math.max(1, low)), scale: new Tensor('f32', [out], new Float32Array(out).fill(1)) };
    const inputs = steps().inputs.map((id) => {
      const { shape = [] } = values[id] ?? {};
      return Uint8Array.from(numbers(shape.reduce((a, b) => a * b, 1), 7 + id), (x) => (id === 2 ? 128 + 30 * x : ends ? 255 : 127.5 * (1 + x)));
    });
    return { steps, inputs, param: (name: string) => params[name] as Tensor };
  }

  const widths = [1, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 130];
  const sizes = [[1, 1, 1], [1, 2, 2], [1, 3, 5], [2, 4, 4], [1, 7, 6], [3, 7, 7], [1, 14, 13]] as const;
  const rows = widths.flatMap((width, i) =>
    [0, widths[(i * 7 + 3) % widths.length] ?? 0].map((low) => [sizes[(i + low) % sizes.length] ?? sizes[0], [width, low, widths[(i * 5 + low) % widths.length] ?? 1]] as const),
  );

  for (const [winograd, ends] of [[2, false], [2, true], [4, false], [4, true]] as const) {
    it(`F(${winograd}x${winograd}): the same bits as direct sums${ends ? ', of the largest numbers' : ''}`, async () => {
      const fitting = rows.filter(([, channels]) => Math.max(channels[0], channels[1]) <= mostChannels[winograd]);
      for (const [size, channels] of [...fitting, [[1, 4, 4], [mostChannels[winograd], mostChannels[winograd], 5]] as const]) {
        const { steps, inputs, param } = branch(size, channels, ends);
        await naming(`${size} ${channels}`, (async () => {
          const direct = await runGuarded(compileSteps(steps(), 'cpu', 1, param), inputs);
          for (const threads of [1, 3]) {
            const got = await runGuarded(compileSteps(steps(winograd), 'cpu', threads, param), inputs);
            expect(sameBits(got, direct), `${threads} threads`).to.equal(true);
          }
          const wanted = await runGuarded(compileSteps(steps(), 'reference', 1, param), inputs);
          // What lies between two levels may be rounded either way.
          for (const [i, y] of direct.entries()) expect(y.every((q, j) => Math.abs((q as number) - (wanted[i]?.[j] as number)) <= 1)).to.equal(true);
          expect(direct[0]?.some((q) => (q as number) > 0 && (q as number) < 255)).to.equal(true);
        })());
      }
    });
  }

  it('refuses more channels than an i32 holds', () => {
    for (const winograd of [2, 4] as const) {
      const { steps, param } = branch([1, 2, 2], [mostChannels[winograd] + 1, 4, 4], true);
      const text = `octConv: winograd of 'a' sums up ${mostChannels[winograd] + 1} channels of i8, wanted at most ${mostChannels[winograd]}`;
      expect(() => compileSteps(steps(winograd), 'cpu', 1, param)).to.throw(text);
    }
  });
});

describe('ops: bf16 and i8', () => {
  const conv = new Set<string>(['conv', 'octConv', 'linear', 'maxPool', 'globalAvgPool']);

  /** Any parameter, and how every convolution sees its input: i8 weights whose scales fit together, bf16 the same as f32. */
  function typed(graph: Graph, compute: ComputeType, most: number, read: (name: string) => Tensor) {
    const f32 = (name: string) => graph.constants.get(name) ?? read(name);
    const plain = (types?: (steps: Steps) => Steps) => fuse(lower(graph), types);
    // Also where the network's own input is read, which stays f32 on some CPUs.
    const all = ({ steps, ...rest }: Steps): Steps => ({
      ...rest,
      steps: steps.map((step) => (step.branches ? convStep(step.name, step.branches.map((b) => ({ ...b, compute }))) : step)),
    });
    if (compute === 'bf16') return { read: f32, steps: plain((steps) => all(assignTypes(steps, compute, new Map()))) };

    const inputs = new Map<string, InputType>();
    for (const { branches = [] } of lower(graph).steps) {
      for (const source of branches.flatMap((b) => b.terms.flatMap((t) => t.sources))) {
        const clamped = graph.nodes.some(({ op, outputs }) => op.startsWith('relu') && outputs[0] === source.input);
        inputs.set(source.weight, { scale: Math.fround(0.02 + 0.001 * (source.input % 7)), zero: clamped ? 0 : 120 + (source.input % 5) });
      }
    }
    const made = new Map<string, Tensor>();
    for (const branch of plain().steps.flatMap((step) => step.branches ?? [])) {
      for (const { sources, batchNorm, eps = 1e-5 } of branch.terms) {
        const affine = batchNorm && [f32(batchNorm.weight).data, f32(batchNorm.running_var).data];
        for (const { weight } of sources) {
          const { shape, data } = f32(weight);
          const scales = Float32Array.from({ length: shape[0] ?? 0 }, (_, o) => {
            const factor = affine ? (affine[0]?.[o] ?? 0) / Math.sqrt((affine[1]?.[o] ?? 0) + eps) : 1;
            return (1e-3 + 1e-4 * (o % 5)) / ((inputs.get(weight)?.scale ?? 0) * Math.abs(factor));
          });
          made.set(weight, new Tensor('i8', shape, Int8Array.from(data as Float32Array, (x) => Math.max(-most, Math.min(most, x * most)))));
          made.set(weightScaleOf(weight), new Tensor('f32', [scales.length], scales));
        }
      }
    }
    return { read: (name: string) => made.get(name) ?? f32(name), steps: plain((steps) => assignTypes(steps, compute, inputs)) };
  }

  /** Every step alone, on what the reference made of the steps before it. */
  async function checkTyped(graph: Graph, compute: ComputeType, most: number, read: (name: string) => Tensor, meet: (what: string) => void): Promise<void> {
    const { steps, read: param } = typed(graph, compute, most, read);
    const arrays = new Map<number, TypedArray>();
    inputsOf({ inputs: graph.inputs.map((id) => graph.values[id]?.shape ?? []) }).forEach((x, i) => {
      arrays.set(graph.inputs[i] ?? -1, x);
    });
    const all = steps.steps.flatMap((step) => {
      // F(4x4) of bf16 errs by more than an element; it is compared above.
      const close = compute === 'i8' ? ([2, 4] as const) : ([2] as const);
      const fitting = close.filter((winograd) => step.branches?.every((branch) => fitsWinograd(branch, steps, winograd)));
      return [step, ...fitting.map((winograd) => convStep(step.name, (step.branches ?? []).map((branch) => ({ ...branch, winograd }))))];
    });
    for (const step of all) {
      const single = { ...steps, steps: [step], inputs: step.inputs, outputs: step.outputs };
      const given = step.inputs.map((id) => arrays.get(id) as TypedArray);
      const wanted = await runGuarded(compileSteps(single, 'reference', 1, param), given);
      const got = await runGuarded(compileSteps(single, 'cpu', 1, param), given);
      const more = await runGuarded(compileSteps(single, 'cpu', 3, param), given);
      expect(sameBits(more, got), `${step.name}: 3 threads give other bits than one`).to.equal(true);
      step.outputs.forEach((id, i) => {
        const [a, b, dtype] = [got[i] as TypedArray, wanted[i] as TypedArray, steps.values[id]?.dtype as string];
        meet(`${step.op} ${step.inputs.map((x) => steps.values[x]?.dtype)[0]} -> ${dtype}`);
        if (dtype === 'f32') {
          compare(a, b, 2000);
          return;
        }
        // A sum that lies between two elements may be rounded either way, a mean of such elements too.
        let off = 0;
        for (const [j, x] of b.entries()) if (a[j] !== x) off += Math.abs((a[j] as number) - x) === 1 ? 1 : Infinity;
        expect(off, `${step.name}: ${off} of ${b.length} ${dtype} differ`).to.be.at.most(1 + b.length / 50);
      });
      step.outputs.forEach((id, i) => {
        arrays.set(id, wanted[i] as TypedArray);
      });
    }
  }

  // Where pairs of products are added in 16 bits, two weights of more than 64 take another kernel.
  for (const [compute, most] of [['bf16', 1], ['i8', 63], ['i8', 127]] as const) {
    const what = compute === 'i8' ? `i8 up to ${most}` : compute;
    for (const op of conv) {
      const rows = cases.filter((c) => c.op === op);
      it(`${what}: ${op}, ${rows.length} rows`, async () => {
        for (const row of rows) await naming(`${op} ${row.title}`, checkTyped(graphOf(row), compute, most, noParams, () => undefined));
      });
    }

    it(`${what}: random octave blocks, step by step`, async function () {
      this.timeout(600_000);
      const met = new Set<string>();
      for (let seed = 1; seed <= 150; seed += 4) {
        const { graph } = block(seed);
        await naming(`seed ${seed}`, checkTyped(graph, compute, most, parameters(graph), (what) => met.add(what)));
      }
      const kept = compute === 'bf16' ? 'bf16' : 'u8';
      expect([...met]).to.include.members([`octConv f32 -> ${kept}`, `octConv ${kept} -> ${kept}`, `octConv ${kept} -> f32`, `maxPool ${kept} -> ${kept}`].slice(0, 3));
    });
  }
});

describe('ops: the reference itself', () => {
  const of = (shape: number[], ...values: number[]) => new Tensor('f32', shape, Float32Array.from(values)) as never;
  const list = async (y: unknown) => [...((await y) as Tensor<'f32'>).data];
  const device = { device: 'reference' } as const;

  it('octConv by hand: P, U and both sums', async () => {
    const x = new Octave(of([1, 2, 2, 1], 1, 2, 3, 6), of([1, 1, 1, 1], 10));
    const params = { h2h: of([1, 1, 1, 1], 2), l2h: of([1, 1, 1, 1], 0.5), h2l: of([1, 1, 1, 1], 4), l2l: of([1, 1, 1, 1], 3) };
    const y = (await ops.octConv(x as never, params, device)) as unknown as Octave<Tensor<'f32'>>;
    expect([...y.high.data]).to.deep.equal([7, 9, 11, 17]);
    expect([...(y.low?.data ?? [])]).to.deep.equal([42]); // 3 * 10 + 4 * mean(1, 2, 3, 6)
  });

  it('octConv by hand at stride 2: everything is pooled, nothing strides', async () => {
    const x = new Octave(of([1, 3, 3, 1], 1, 3, 5, 5, 7, 9, 2, 4, 6), of([1, 2, 2, 1], 1, 2, 3, 4));
    const params = { h2h: of([1, 1, 1, 1], 1), l2h: of([1, 1, 1, 1], 10), h2l: of([1, 1, 1, 1], 1), l2l: of([1, 1, 1, 1], 2) };
    const y = (await ops.octConv(x as never, params, { ...device, stride: 2 })) as unknown as Octave<Tensor<'f32'>>;
    expect([...y.high.data]).to.deep.equal([14, 27, 33, 46]); // P of odd sizes: 4, 7, 3, 6
    expect([...(y.low?.data ?? [])]).to.deep.equal([10]); // 2 * 2.5 + mean(4, 7, 3, 6)
  });

  it('conv by hand: a cross-correlation with zero padding', async () => {
    const x = of([1, 2, 2, 1], 1, 2, 3, 4);
    const weight = of([1, 1, 3, 3], 1, 2, 3, 4, 5, 6, 7, 8, 9);
    expect(await list(ops.conv(x, { weight }, { ...device, padding: 1 } as never))).to.deep.equal([77, 67, 47, 37]);
  });

  it('avgPool: the border counted or not, ceil mode as in PyTorch', async () => {
    const x = of([1, 3, 3, 1], 1, 2, 3, 4, 5, 6, 7, 8, 9);
    const pool = (options: object) => list(ops.avgPool(x, { ...device, ...options } as never));
    expect(await pool({ kernel: 2, ceilMode: true })).to.deep.equal([3, 4.5, 7.5, 9]);
    expect(await pool({ kernel: 2, padding: 1, countIncludePad: true })).to.deep.equal([0.25, 1.25, 2.75, 7]);
    expect(await pool({ kernel: 2, padding: 1, countIncludePad: false })).to.deep.equal([1, 2.5, 5.5, 7]);
  });

  it('ceil mode: a window may stick out by less than one stride, as in PyTorch', async () => {
    const x = of([1, 1, 3, 1], 1, 2, 9);
    expect(await list(ops.avgPool(x, { ...device, kernel: 2, ceilMode: true } as never))).to.deep.equal([1.5, 9]);
    expect(await list(ops.maxPool(x, { ...device, kernel: 2, ceilMode: true } as never))).to.deep.equal([2, 9]);
    const options = { ...device, kernel: 4, padding: 1, ceilMode: true };
    expect(await list(ops.avgPool(of([1, 1, 1, 1], 18), options as never))).to.deep.equal([2]); // 3 x 3 are counted
    const refused = ops.maxPool(x, { ...device, kernel: 3, stride: 2, ceilMode: true } as never);
    expect(await list(refused).catch(String)).to.include('maxPool: the kernel [3,3] does not fit into x [1,1,3,1]');
  });

  for (const op of definedOps) {
    it(`${op} as defined`, async () => {
      for (const row of cases.filter((c) => c.op === op)) {
        const graph = graphOf(row);
        const inputs = inputsOf(row);
        const wanted = byDefinition(graph, inputs.map((x, i) => new Input(x, row.inputs[i] ?? [])));
        const [got] = await runGuarded(compile(graph, 'reference', 1, noParams), inputs);
        compare(got as TypedArray, wanted, row.terms);
      }
    });
  }

  it('sigmoid and softmax of large numbers', async () => {
    expect(await list(ops.sigmoid(of([1, 2], -200, 200), device))).to.deep.equal([0, 1]);
    expect(await list(ops.softmax(of([2, 2], 1000, 1000, -1000, 1000), device))).to.deep.equal([0.5, 0.5, 0, 1]);
  });

  it('linear and batchNorm by hand', async () => {
    const params = { weight: of([2, 3], 1, 2, 3, 4, 5, 6), bias: of([2], 10, 20) };
    expect(await list(ops.linear(of([1, 3], 1, 0, -1), params as never, device))).to.deep.equal([8, 18]);
    const norm = { weight: of([1], 3), bias: of([1], 1), running_mean: of([1], 2), running_var: of([1], 3) };
    expect(await list(ops.batchNorm(of([2, 1], 2, 4), norm as never, { ...device, eps: 1 }))).to.deep.equal([1, 4]);
  });

  it('maxPool: padding never wins', async () => {
    const x = of([1, 2, 2, 1], -1, -2, -3, -4);
    const y = ops.maxPool(x, { ...device, kernel: 2, stride: 2, padding: 1 } as never);
    expect(await list(y)).to.deep.equal([-1, -2, -3, -4]);
  });

  for (const where of ['reference', 'cpu'] as const) {
    it(`a window may be far larger than the input on ${where}`, async () => {
      const x = of([1, 2, 3, 1], 1, 2, 3, 6, 5, 4);
      for (const kernel of [2 ** 20, 2 ** 30]) {
        expect(await list(ops.maxPool(x, { kernel, padding: kernel / 2, device: where } as never))).to.deep.equal([6]);
      }
    });

    it(`NaN passes through on ${where}`, async () => {
      const x = of([1, 2, 2, 1], Number.NaN, -1, 2, 7);
      const at = { device: where };
      expect(await list(ops.relu(x, at))).to.deep.equal([Number.NaN, 0, 2, 7]);
      expect(await list(ops.relu6(x, at))).to.deep.equal([Number.NaN, 0, 2, 6]);
      expect(await list(ops.maxPool(x, { kernel: 2, ...at }))).to.deep.equal([Number.NaN]);
      expect(await list(ops.avgPool(x, { kernel: 2, ...at }))).to.deep.equal([Number.NaN]);
      expect(await list(ops.maxPool(x, { kernel: [1, 2], ...at }))).to.deep.equal([Number.NaN, 7]);
      expect((await list(ops.softmax(of([1, 3], 1, Number.NaN, 2), at))).every(Number.isNaN)).to.equal(true);
      expect(await list(ops.conv(x, { weight: of([1, 1, 1, 1], 2) } as never, at as never))).to.deep.equal([Number.NaN, -2, 4, 14]);
      expect(await list(ops.softmax(of([1, 2], Number.POSITIVE_INFINITY, 0), at))).to.satisfy((y: number[]) => Number.isNaN(y[0]));
    });
  }
});

describe('ops: native code trusts no plan', () => {
  type Sizes = readonly number[];
  const x = [1, 1, 5, 6, 4];
  const window = { kernel: [1, 3, 3], stride: [1, 1, 1], padding: [0, 0, 0], ceilMode: false };
  const source = { input: 0, weight: 'w', kernel: [1, 3, 3], padding: [0, 1, 1], groups: 1, pool: 0, upsample: false };
  const branches = (more: object, branch: object = {}) => ({
    branches: [{ terms: [{ sources: [{ ...source, ...more }] }], outputs: [0], ...branch }],
  });
  const weight = { w: { dtype: 'f32', shape: [4, 4, 3, 3], data: new Float32Array(144) } } as const;

  /** Why a plan of this one step is refused. */
  const refusal = (op: string, inputs: Sizes[], outputs: Sizes[], attrs: object = {}, packed = false, dtype: 'f32' | 'i8' = 'f32') => {
    const values = [...inputs, ...outputs].map((shape, at) => ({ dtype, shape, place: 'arena', at: at * 4096 }) as const);
    const ids = values.map((_, id) => id);
    const step = { op, name: 'a.b', attrs: attrs as never, inputs: ids.slice(0, inputs.length), outputs: ids.slice(inputs.length) };
    return (['reference', 'cpu'] as const).map((device) => {
      try {
        const params = packed ? { packed: native.pack('octConv', device, branches({}), weight) } : {};
        native.compile({ device, threads: 1, arenaBytes: 4096 * values.length, values, steps: [{ ...step, ...params }] });
      } catch (error) {
        return (error as Error).message;
      }
      return 'nothing was refused';
    });
  };

  it('refuses what does not fit, by the name of the op', () => {
    const table: [wanted: string, refused: string[]][] = [
      ['jump: no kernel for this op', refusal('jump', [x], [x])],
      ["relu: 'a.b' has 2 inputs and 1 outputs, wanted 1 and 1", refusal('relu', [x, x], [x])],
      ["relu: 'a.b' has no kernel for i8, only for f32", refusal('relu', [x], [x], {}, false, 'i8')],
      ['relu6: input [1,1,5,6,4] and output [1,1,5,6,3]', refusal('relu6', [x], [[1, 1, 5, 6, 3]])],
      ['softmax: output [1,1,5,6,3] of input [1,1,5,6,4]', refusal('softmax', [x], [[1, 1, 5, 6, 3]])],
      ['add: inputs [1,1,5,6,4] and [1,1,1,1,4]', refusal('add', [x, [1, 1, 1, 1, 4]], [x])],
      ['mul: inputs [1,1,5,6,4] and [2,1,1,1,4]', refusal('mul', [x, [2, 1, 1, 1, 4]], [x])],
      ['concat: output [1,1,5,6,9] of inputs with 8 channels', refusal('concat', [x, x], [[1, 1, 5, 6, 9]])],
      ['concat: input 1 is [1,1,5,5,4], wanted [1,1,5,6,4]', refusal('concat', [x, [1, 1, 5, 5, 4]], [[1, 1, 5, 6, 8]])],
      ['maxPool: output [1,1,5,6,4] of input [1,1,5,6,4], wanted [1,1,3,4,4]', refusal('maxPool', [x], [x], window)],
      ['avgPool: kernel 3, stride 1, padding 2', refusal('avgPool', [x], [x], { ...window, padding: [0, 2, 2] })],
      ['maxPool: pooled output [1,1,2,2,3]', refusal('maxPool', [x], [[1, 1, 3, 4, 4], [1, 1, 2, 2, 3]], window)],
      ['globalAvgPool: output [1,1,1,1,5]', refusal('globalAvgPool', [x], [[1, 1, 1, 1, 5]])],
      ['upsampleNearest: output [1,1,8,12,4]', refusal('upsampleNearest', [x], [[1, 1, 8, 12, 4]], { scale: [1, 2, 2] })],
      ['pad: output [1,1,5,6,4] of', refusal('pad', [x], [x], { before: [0, 1, 0], after: [0, 0, 0] })],
      ['pad: sizes must not be negative', refusal('pad', [x], [x], { before: [0, -1, 0], after: [0, 1, 0] })],
      ["batchNorm: the weights of 'a.b' were not packed for this op", refusal('batchNorm', [x], [x], {}, true)],
      ["octConv: the weights of 'a.b' were not packed for this op", refusal('octConv', [x], [x], branches({}))],
      ["octConv: 'a.b' makes [1,1,5,6,4]", refusal('octConv', [x], [[1, 1, 5, 5, 4]], branches({}), true)],
      ['octConv: 3 groups do not divide 4', refusal('octConv', [x], [x], branches({ groups: 3 }), true)],
      ['octConv: padding or pool out of range', refusal('octConv', [x], [x], branches({ pool: 9 }), true)],
      ['octConv: compute', refusal('octConv', [x], [x], branches({}, { compute: 'f64' }), true)],
      ['octConv: winograd 3, wanted 2 or 4', refusal('octConv', [x], [x], branches({}, { winograd: 3 }), true)],
      ['octConv: winograd wants 3x3', refusal('octConv', [x], [x], branches({ stride: [1, 2, 2] }, { winograd: 4 }), true)],
      ["octConv: winograd of 'a.b' wants f32 or bf16, or of i8 u8", refusal('octConv', [x], [x], branches({}, { compute: 'i8', winograd: 2 }), true)],
      ['octConv: scale 0 or zero 0 out of range', refusal('octConv', [x], [x], branches({ scale: 0 }), true)],
      ['octConv: scale 1 or zero 256 out of range', refusal('octConv', [x], [x], branches({ zero: 256 }), true)],
      ['octConv: residual [1,1,1,1,4] must be', refusal('octConv', [x, [1, 1, 1, 1, 4]], [x], branches({}, { residual: 1 }), true)],
      [
        "octConv: the weights given to 'a.b' were packed for another layer",
        refusal('octConv', [x], [[1, 1, 5, 6, 5]], branches({}), true),
      ],
    ];
    const huge = [2 ** 31, 2 ** 9, 2 ** 24, 1, 1]; // 2^64 elements
    table.push(
      ['plan: value 0 has an impossible shape', refusal('relu', [huge], [huge])],
      ["octConv: 'a.b' has no input 7, only 1", refusal('octConv', [x], [x], branches({ input: 7 }), true)],
      ["octConv: 'a.b' has no output 3, only 1", refusal('octConv', [x], [x], branches({}, { outputs: [3] }), true)],
      ['attribute nan must be an integer', refusal('octConv', [x], [x], branches({ groups: Number.NaN }), true)],
      ['attribute 1e+300 must be an integer', refusal('octConv', [x], [x], branches({ pool: 1e300 }), true)],
    );
    for (const [wanted, refused] of table) for (const message of refused) expect(message).to.include(wanted);
  });

  it('refuses to pack what does not fit', () => {
    const pack = (attrs: object, w = weight.w as NativeParam, more = {}) => () => native.pack('octConv', 'cpu', attrs as never, { w, ...more });
    const i8 = { dtype: 'i8', shape: [4, 4, 3, 3], data: new Int8Array(144).fill(100) } as const;
    const scale = (data: Float32Array) => ({ 'w.scale': { dtype: 'f32', shape: [data.length], data } as const });
    expect(pack(branches({ kernel: [1, 1, 1] }, { winograd: 4 }))).to.throw('octConv: winograd wants 3x3');
    expect(pack(branches({ kernel: [1, 1, 1] }))).to.throw('octConv: w does not have 4 output channels and 1 taps');
    expect(pack(branches({ groups: 3 }))).to.throw('octConv: 3 groups do not divide 4');
    expect(pack(branches({}, { compute: 'i8' }), i8)).to.throw("octConv: parameter 'w.scale' is missing");
    expect(pack(branches({}, { compute: 'i8' }), i8, scale(new Float32Array(3)))).to.throw('octConv: w.scale has 3 elements, wanted 4');
    const twice = { branches: [{ terms: [{ sources: [source, { ...source, scale: 2 }] }], outputs: [0], compute: 'i8' }] };
    expect(pack(twice, i8, scale(new Float32Array(4).fill(1)))).to.throw('octConv: w has i8 of another scale');
  });

  it('refuses segments that do not fit their steps or values', () => {
    const type = { dtype: 'f32', shape: x, place: 'arena' } as const;
    const compile = (rounds: number, segments: { steps: number; rounds: number }[]) => () =>
      native.compile({
        device: 'cpu',
        threads: 1,
        arenaBytes: 4096,
        values: [{ ...type, at: 0, rounds }, { ...type, at: 2048 }],
        steps: [{ op: 'relu', name: 'a', attrs: {}, inputs: [0], outputs: [1] }],
        segments,
      });
    expect(compile(2, [{ steps: 1, rounds: 2 }])).to.not.throw();
    expect(compile(2, [{ steps: 1, rounds: 3 }])).to.throw('plan: a value of 2 rounds in a segment of 3');
    expect(compile(1, [{ steps: 2, rounds: 1 }])).to.throw('plan: segments must cover all steps');
    expect(compile(1, [{ steps: 0, rounds: 1 }])).to.throw('plan: segments must cover all steps');
    expect(compile(1, [{ steps: 1, rounds: 0 }])).to.throw('plan: segments must cover all steps');
    expect(compile(9, [{ steps: 1, rounds: 9 }])).to.throw('plan: a value [1,1,5,6,4] at 0 does not fit into 4096');
    expect(compile(0, [{ steps: 1, rounds: 1 }])).to.throw('plan: value 0 has impossible rounds');
  });

  it('refuses arrays of the wrong length', () => {
    const { plan } = compile(graphOf(cases.find((c) => c.op === 'relu') as Case), 'cpu', 1, noParams);
    const [right, wrong] = [new Float32Array(30), new Float32Array(29)];
    expect(() => native.run(plan, [wrong], [right], null)).to.throw('plan: input 0 has 116 bytes, wanted 120');
    expect(() => native.run(plan, [right], [wrong], null)).to.throw('plan: output 0 has 116 bytes, wanted 120');
  });
});

describe('ops: every other instruction set', function () {
  this.timeout(600_000);
  if (process.env.OCTCONV_ISA) return; // this is such a run
  for (const isa of levels.filter((isa) => isa !== native.info().isa)) {
    it(`the whole table on ${isa} @slow`, function () {
      const env = { ...process.env, OCTCONV_ISA: isa };
      const probe = `import('${new URL('../lib/native.ts', import.meta.url)}').then(({ native }) => native.info())`;
      const can = spawnSync(process.execPath, ['--import=tsx', '-e', probe], { env, encoding: 'utf8' });
      if (/not supported by this CPU/.test(can.stderr)) {
        if (this.test) this.test.title += ': this CPU lacks it, npm run test:avx512 emulates it';
        return this.skip();
      }
      const mocha = fileURLToPath(new URL('../node_modules/mocha/bin/mocha.js', import.meta.url));
      const args = ['--import=tsx', mocha, '--no-config', '--reporter', 'dot', '--timeout', '120000', fileURLToPath(import.meta.url)];
      const { status, stdout, stderr } = spawnSync(process.execPath, args, { env, encoding: 'utf8' });
      expect(status, stdout + stderr).to.equal(0);
    });
  }
});
