/** The reference itself, against numbers by hand and definitions. */
import { expect } from 'chai';
import { compile as compileFunction } from '../lib/compile.js';
import type { TypedArray } from '../lib/dtype.js';
import { lower } from '../lib/graph/lower.js';
import { Octave } from '../lib/octave.js';
import * as ops from '../lib/ops.js';
import { Tensor } from '../lib/tensor.js';
import { toFloats } from '../lib/weights/floats.js';
import { graphOf } from './cases.js';
import { byDefinition, definedOps, Input } from './definitions.js';
import { allowed, compare, compareEach, magnitudes } from './compare.js';
import { compile, inputsOf, noParams, rowsOf, run } from './running.js';

describe('ops: the reference itself', () => {
  const of = (shape: number[], ...values: number[]) => new Tensor('f32', shape, Float32Array.from(values)) as never;
  const list = async (y: unknown) => [...((await y) as Tensor<'f32'>).data];
  const device = { device: 'reference' } as const;

  it('octConv by hand: P, U and both sums', async () => {
    const x = new Octave(of([1, 2, 2, 1], 1, 2, 3, 6), of([1, 1, 1, 1], 10));
    const params = {
      h2h: of([1, 1, 1, 1], 2),
      l2h: of([1, 1, 1, 1], 0.5),
      h2l: of([1, 1, 1, 1], 4),
      l2l: of([1, 1, 1, 1], 3),
    };
    const y = (await ops.octConv(x as never, params, device)) as unknown as Octave<Tensor<'f32'>>;
    expect([...y.high.data]).to.deep.equal([7, 9, 11, 17]);
    expect([...(y.low?.data ?? [])]).to.deep.equal([42]); // 3 * 10 + 4 * mean(1, 2, 3, 6)
  });

  it('octConv by hand at stride 2: everything is pooled, nothing strides', async () => {
    const x = new Octave(of([1, 3, 3, 1], 1, 3, 5, 5, 7, 9, 2, 4, 6), of([1, 2, 2, 1], 1, 2, 3, 4));
    const params = {
      h2h: of([1, 1, 1, 1], 1),
      l2h: of([1, 1, 1, 1], 10),
      h2l: of([1, 1, 1, 1], 1),
      l2l: of([1, 1, 1, 1], 2),
    };
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
      for (const row of rowsOf(op)) {
        const graph = graphOf(row);
        const inputs = inputsOf(row);
        const wanted = byDefinition(
          graph,
          inputs.map((x, i) => new Input(x, row.inputs[i] ?? [])),
        );
        const [got] = await run(compile(graph, 'reference', 1, noParams), inputs);
        const read = (name: string) => graph.constants.get(name) as Tensor;
        const [magnitude] = (await magnitudes(lower(graph), inputs, read, graph)) ?? [];
        if (magnitude) compareEach(got as TypedArray, wanted, magnitude, allowed.direct);
        else compare(got as TypedArray, wanted, row.terms);
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

  it('f16 is rounded to the nearest, to even between two, and to infinity from 65520 on', async () => {
    const halves = toFloats(
      'f16',
      Uint16Array.from({ length: 0x7c00 }, (_, bits) => bits),
    );
    const next = (i: number) => halves[i + 1] ?? 65536;
    const between = halves.map((x, i) => (x + next(i)) / 2);
    const even = halves.map((x, i) => (i % 2 === 0 ? x : (halves[i + 1] ?? Infinity)));
    const negative = (xs: Float32Array) => xs.slice(1).map((y) => -y); // without zero
    const x = Float32Array.of(...halves, ...between, ...negative(between), Number.NaN, -Infinity);
    const wanted = [...halves, ...even, ...negative(even), Number.NaN, -Infinity];
    const weight = of([1, 1, 1, 1], 1);
    const conv = (v: unknown) => ops.conv(v as never, { weight });
    // What lies between two convolutions is kept in f16.
    using op = await compileFunction((v) => conv(conv(v)), [[1, 1, x.length, 1]], { ...device, dtype: 'f16' });
    expect(await list(op.run(of([1, 1, x.length, 1], ...x)))).to.deep.equal(wanted);
  });

  for (const where of ['reference', 'cpu'] as const) {
    it(`a window may be far larger than the input on ${where}`, async () => {
      const x = of([1, 2, 3, 1], 1, 2, 3, 6, 5, 4);
      for (const kernel of [2 ** 20, 2 ** 30]) {
        expect(await list(ops.maxPool(x, { kernel, padding: kernel / 2, device: where } as never))).to.deep.equal([6]);
      }
    });

    it(`attention to scores that are large or infinite on ${where}`, async () => {
      const keys = 300; // more than the kernel takes at once
      const attend = (score: (key: number) => number) => {
        const k = of([1, 1, keys, 1], ...Array.from({ length: keys }, (_, key) => score(key)));
        const v = of([1, 1, keys, 1], ...Array.from({ length: keys }, (_, key) => key));
        return list(ops.attention(of([1, 1, 1, 1], 1), k, v, { device: where }));
      };
      expect(await attend((key) => (key === 5 || key === 299 ? 3e38 : -3e38))).to.deep.equal([152]);
      expect(await attend((key) => (key < 298 ? -Infinity : 0))).to.deep.equal([298.5]);
      expect(await attend((key) => (key > 1 ? -Infinity : 1000))).to.deep.equal([0.5]);
      expect(await attend(() => -Infinity)).to.deep.equal([Number.NaN]);
      for (const bad of [Infinity, Number.NaN])
        for (const at of [0, 256, 299])
          expect(await attend((key) => (key === at ? bad : 0)), `${bad} at ${at}`).to.deep.equal([Number.NaN]);
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
      expect(await list(ops.conv(x, { weight: of([1, 1, 1, 1], 2) } as never, at as never))).to.deep.equal([
        Number.NaN,
        -2,
        4,
        14,
      ]);
      expect(await list(ops.softmax(of([1, 2], Number.POSITIVE_INFINITY, 0), at))).to.satisfy((y: number[]) =>
        Number.isNaN(y[0]),
      );
    });
  }
});
