/** Every row of the op table: the fast kernels against the slow reference, at every instruction set. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { arrayFor, type TypedArray } from '../lib/dtype.js';
import { fuse } from '../lib/graph/fuse.js';
import { Graph, Parameter, toNTHWC, type Value } from '../lib/graph/graph.js';
import { lower, type Steps } from '../lib/graph/lower.js';
import { planMemory } from '../lib/graph/memory.js';
import { type Device, native, type NativePlanSpec } from '../lib/native.js';
import { Octave } from '../lib/octave.js';
import * as ops from '../lib/ops.js';
import { stepsFor } from '../lib/plan.js';
import { Tensor } from '../lib/tensor.js';
import { type Case, cases, graphOf, numbers } from './cases.js';

const guard = 37; // odd, so that starts are not aligned
const guardValue = 77;

interface Compiled {
  plan: ReturnType<typeof native.compile>['plan'];
  outputs: { dtype: 'f32' | 'u8'; count: number }[];
}

/** Compiles by hand, without lib/plan.ts, so that inputs and outputs may lie anywhere. */
function compile(graph: Graph, device: Device, threads: number, read: (name: string) => Tensor): Compiled {
  const lowered: Steps = stepsFor(graph, device);
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
    arenaBytes: memory.bytes,
    values: values.map(({ dtype, shape }, id) =>
      made.has(id) ? { dtype, shape: toNTHWC(shape), ...place(id) } : { dtype: 'u8', shape: [1, 1, 1, 1, 1], place: 'arena', at: 0 },
    ),
    steps: steps.map(({ op, name, attrs, inputs, outputs, params }) => ({
      ...{ op, name, attrs, inputs, outputs },
      ...(Object.keys(params).length && {
        packed: native.pack(op, device, attrs, Object.fromEntries(Object.entries(params).map(([role, p]) => [role, graph.constants.get(p) ?? read(p)]))),
      }),
    })),
  };
  const types = outputs.map((id) => ({ dtype: values[id]?.dtype as 'f32' | 'u8', count: values[id]?.shape.reduce((a, b) => a * b, 1) ?? 0 }));
  return { plan: native.compile(spec).plan, outputs: types };
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

function inputsOf({ inputs, dtype = 'f32' }: Pick<Case, 'inputs' | 'dtype'>, scale = 2): TypedArray[] {
  return inputs.map((shape, i) => {
    const values = numbers(shape.reduce((a, b) => a * b, 1), 99 + i);
    const room = new (arrayFor(dtype))(values.length + 1).subarray(1); // not aligned
    values.forEach((x, j) => {
      room[j] = dtype === 'u8' ? (x + 1) * 127 : x * scale * (i + 1);
    });
    return room;
  });
}

describe('ops: the table', () => {
  it('has a row for every op', () => {
    const rows = new Set(cases.map(({ op }) => op));
    expect(Object.keys(ops).filter((op) => !rows.has(op as Case['op']))).to.deep.equal([]);
  });

  for (const op of new Set(cases.map((c) => c.op))) {
    it(`${op}: ${cases.filter((c) => c.op === op).length} rows, cpu as the reference, any thread count to the bit`, async () => {
      for (const row of cases.filter((c) => c.op === op)) {
        const graph = graphOf(row);
        const inputs = inputsOf(row, op === 'relu6' ? 9 : 2);
        const wanted = await runGuarded(compile(graph, 'reference', 1, noParams), inputs);
        const got = await runGuarded(compile(graph, 'cpu', 1, noParams), inputs);
        got.forEach((y, i) => {
          try {
            compare(y, wanted[i] as TypedArray, row.terms);
          } catch (error) {
            throw new Error(`${op} ${row.title}: ${(error as Error).message}`);
          }
        });
        for (const threads of [2, 3]) {
          const again = await runGuarded(compile(graph, 'cpu', threads, noParams), inputs);
          expect(again, `${op} ${row.title} with ${threads} threads`).to.deep.equal(got);
        }
      }
    });
  }
});

describe('ops: fused forms', () => {
  /** A random block: convolutions, normalisation, activation, residual or projection, then a consumer that pools. */
  function block(seed: number): Graph {
    let state = seed;
    const pick = <T>(...options: T[]): T => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return options[Math.floor((state / 2 ** 32) * options.length)] as T;
    };
    const graph = new Graph();
    let names = 0;
    const param = (...shape: number[]) => Object.assign(new Parameter(shape), { name: `p${names++}.weight` }) as never;
    const norm = (x: Value) => {
      const c = x.shape.at(-1) as number;
      const variance = Object.assign(new Parameter([c]), { name: `p${names++}.running_var` }) as never;
      return ops.batchNorm(x as never, { weight: param(c), bias: param(c), running_mean: param(c), running_var: variance }) as Value;
    };
    const conv = (x: Octave<Value>, to: readonly [number, number], k: number, stride: 1 | 2): Octave<Value> => {
      const [ih, il] = [x.high.shape.at(-1) as number, x.low?.shape.at(-1) as number];
      const [oh, ol] = to;
      const params = {
        h2h: param(oh, ih, k, k),
        ...(x.low && { l2h: param(oh, il, k, k) }),
        ...(ol && { h2l: param(ol, ih, k, k) }),
        ...(x.low && ol && { l2l: param(ol, il, k, k) }),
      };
      return ops.octConv(x as never, params, { stride }) as unknown as Octave<Value>;
    };
    const input = graph.input('f32', [pick(1, 2), pick(5, 8, 9, 13, 20), pick(4, 7, 8, 11, 17), pick(3, 8, 17)]) as Value;
    const entered = pick(true, false) ? (ops.maxPool(input as never, { kernel: 3, stride: 2, padding: 1 }) as Value) : input;
    const [high, low] = [pick(1, 5, 8, 17, 33), pick(0, 3, 8, 20)];
    const x = conv(new Octave(entered), [high, low], pick(1, 3), 1).map((v) => ops.relu(norm(v) as never) as Value);
    const stride = pick(1, 2) as 1 | 2;
    const inner = conv(x, [pick(4, 7, 16), low && pick(3, 9)], pick(1, 3), stride).map((v) => pick(ops.relu, ops.relu6)(norm(v) as never) as Value);
    const last = conv(inner, [high, low], pick(1, 3), 1).map((v) => norm(v));
    const shortcut = stride === 2 || pick(true, false) ? conv(x, [high, low], 1, stride).map((v) => norm(v)) : x;
    const y = last.zip(shortcut, (a, b) => ops.relu(ops.add(a as never, b as never) as never) as Value);
    const end = conv(y, [6, 3], pick(1, 3), pick(1, 2) as 1 | 2);
    graph.outputs.push(end.high.id, end.low?.id as number);
    return graph;
  }

  it('150 random octave blocks: fused as recorded', async function () {
    this.timeout(60_000);
    for (let seed = 1; seed <= 150; seed++) {
      const graph = block(seed);
      const fused = fuse(lower(graph));
      expect(fused.steps.filter((s) => s.op !== 'octConv' && s.op !== 'maxPool').map((s) => s.op), `seed ${seed}`).to.deep.equal([]);
      const read = (name: string) => {
        const shape = graph.params.get(name) ?? [];
        const fan = shape.slice(1).reduce((a, b) => a * b, 1);
        const data = numbers(shape.reduce((a, b) => a * b, 1), name.length * 31 + Number(name.match(/\d+/)?.[0]));
        const variance = name.endsWith('running_var');
        return new Tensor('f32', shape, data.map((v) => (variance ? 1.5 + v : shape.length > 1 ? (v * 2) / Math.sqrt(fan) : v)));
      };
      const inputs = inputsOf({ inputs: graph.inputs.map((id) => graph.values[id]?.shape ?? []) });
      const wanted = await runGuarded(compile(graph, 'reference', 1, read), inputs);
      const got = await runGuarded(compile(graph, 'cpu', 2, read), inputs);
      for (const [i, y] of got.entries()) compare(y, wanted[i] as TypedArray, 2000);
    }
  });
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

  for (const where of ['reference', 'cpu'] as const) {
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

describe('ops: every instruction set', function () {
  this.timeout(300_000);
  if (process.env.OCTCONV_ISA) return; // this is such a run
  for (const isa of ['baseline', 'avx2', 'avx512']) {
    it(`the whole table on ${isa}`, function () {
      const env = { ...process.env, OCTCONV_ISA: isa };
      const probe = `import('${new URL('../lib/native.ts', import.meta.url)}').then(({ native }) => native.info())`;
      const can = spawnSync(process.execPath, ['--import=tsx', '-e', probe], { env, encoding: 'utf8' });
      if (/not supported by this CPU/.test(can.stderr)) return this.skip();
      const mocha = fileURLToPath(new URL('../node_modules/mocha/bin/mocha.js', import.meta.url));
      const args = ['--import=tsx', mocha, '--no-config', '--reporter', 'dot', '--timeout', '120000', fileURLToPath(import.meta.url)];
      const { status, stdout, stderr } = spawnSync(process.execPath, args, { env, encoding: 'utf8' });
      expect(status, stdout + stderr).to.equal(0);
    });
  }
});
