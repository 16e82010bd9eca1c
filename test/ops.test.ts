/** Every row of the op table: the fast kernels against the slow reference, at every instruction set. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { compile as compileOp } from '../lib/compile.js';
import { targetOf } from '../lib/devices.js';
import { Graph } from '../lib/graph/graph.js';
import { lower } from '../lib/graph/lower.js';
import * as ops from '../lib/ops.js';
import { Tensor } from '../lib/tensor.js';
import { type Case, cases, graphOf, numbers } from './cases.js';
import { levels } from './levels.js';
import { allowed, checkGraph, compare, compareEach, magnitudes } from './compare.js';
import { compile, inputsOf, naming, noParams, run, tableOf } from './running.js';
import { skip } from './skip.js';

describe('ops: the table', () => {
  it('has a row for every op', () => {
    const rows = new Set(cases.map(({ op }) => op));
    expect(Object.keys(ops).filter((op) => !rows.has(op as Case['op']))).to.deep.equal([]);
  });

  for (const op of new Set(cases.map((c) => c.op))) {
    const rows = tableOf(op);
    it(`${op}: ${rows.length} rows, cpu as the reference, any thread count to the bit`, async () => {
      for (const row of rows) {
        const inputs = inputsOf(row, /relu6|hard/.test(op) ? 9 : 2);
        await naming(`${op} ${row.title}`, checkGraph(graphOf(row), inputs, row.terms, noParams));
      }
    });
  }
});

describe('ops: how close is close', () => {
  it('a small error of a border weight is seen, which one bound for the tensor hides', async () => {
    const [channels, taps] = [8, 9];
    const last = (channels - 1) * channels * taps;
    // The last output channel is a thousandth of the others, and one corner of its window is off by a thousandth.
    const weights = (factor: number) => {
      const data = numbers(channels * channels * taps, 3).map((w, i) => (i < last ? w : w / 1000));
      data[last] = (data[last] as number) * factor;
      return new Tensor('f32', [channels, channels, 3, 3], data);
    };
    const graph = (factor: number) => {
      const made = new Graph();
      const x = made.input('f32', [1, 9, 9, channels]);
      made.outputs.push(ops.conv(x, { weight: weights(factor) as never }, { padding: 1 }).id);
      return made;
    };
    const x = numbers(9 * 9 * channels, 5);
    const [right, wrong] = [graph(1), graph(1.001)];
    const [wanted] = await run(compile(right, 'reference', 1, noParams), [x]);
    const [got] = await run(compile(wrong, 'reference', 1, noParams), [x]);
    const read = (name: string) => right.constants.get(name) as Tensor;
    const [magnitude] = (await magnitudes(lower(right), [x], read, right)) ?? [];
    const each = (y = wanted) =>
      compareEach(y as Float32Array, wanted as Float32Array, magnitude as Float32Array, allowed.direct);
    each();
    expect(() => each(got)).to.throw(/^element \d+ is /);
    compare(got as Float32Array, wanted as Float32Array, channels * taps);
  });
});

describe('ops: long sums', () => {
  it('keep their precision where all numbers are of one sign', async () => {
    const x = Tensor.zeros('f32', [1, 1, 300_000, 1]);
    x.data.fill(0.1);
    expect((await ops.globalAvgPool(x)).data[0]).to.be.closeTo(0.1, 1e-7);
    const weight = new Tensor('f32', [1, 1, 1, 1] as const, new Float32Array([1]));
    using fused = await compileOp((v) => ops.globalAvgPool(ops.conv(v, { weight })), [x.shape]);
    expect(fused.plan.steps).to.have.length(1);
    expect((await fused.run(x)).data[0]).to.be.closeTo(0.1, 1e-7);
  });

  it('of a large window of avgPool too, any thread count to the bit', async () => {
    const x = Tensor.zeros('f32', [1, 120, 130, 5]);
    x.data.fill(0.1);
    for (const kernel of [[30, 40], [1, 130], 100]) {
      const pool = (threads: number) => ops.avgPool(x, { kernel, stride: 7, threads } as never);
      const [y, ...more] = (await Promise.all([1, 2, 3].map(pool))) as Tensor[];
      for (const mean of y?.data ?? []) expect(mean).to.be.closeTo(0.1, 1e-7);
      expect(more.map(({ data }) => data)).to.deep.equal([y?.data, y?.data]);
    }
  });
});

describe('ops: every other instruction set', function () {
  this.timeout(600_000);
  if (process.env.OCTCONV_ISA) return; // this is such a run
  for (const isa of levels.filter((isa) => isa !== targetOf('cpu').traits.isa)) {
    it(`the whole table on ${isa}, and a part of all other tests of ops @slow`, function () {
      const env = { ...process.env, OCTCONV_ISA: isa };
      const probe = `import('${new URL('../lib/devices.ts', import.meta.url)}').then(({ devices }) => devices())`;
      const can = spawnSync(process.execPath, ['--import=tsx', '-e', probe], { env, encoding: 'utf8' });
      if (/not supported by this CPU/.test(can.stderr)) skip(this, 'cpu');
      const path = (file: string) => fileURLToPath(new URL(file, import.meta.url));
      const options = ['--no-config', '--reporter', 'dot', '--timeout', '120000', '--grep', '@slow', '--invert'];
      const mocha = ['--import=tsx', path('../node_modules/mocha/bin/mocha.js'), ...options];
      const others = ['fused', 'slices', 'types', 'winograd'].map((part) => path(`ops-${part}.test.ts`));
      for (const [files, more] of [
        [[path('ops.test.ts')], {}],
        [others, { OCTCONV_TEST_ONE_IN: '16' }],
      ] as const) {
        const ran = spawnSync(process.execPath, [...mocha, ...files], { env: { ...env, ...more }, encoding: 'utf8' });
        expect(ran.status, ran.stdout + ran.stderr).to.equal(0);
      }
    });
  }
});
