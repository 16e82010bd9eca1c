/** Winograd's algorithm against direct sums. */
import { expect } from 'chai';
import { targetOf } from '../lib/devices.js';
import type { TypedArray } from '../lib/dtype.js';
import { fitsWinograd, hintsOf, type Winograd } from '../lib/graph/algorithm.js';
import { fuse } from '../lib/graph/fuse.js';
import type { Graph } from '../lib/graph/graph.js';
import { convStep, lower, type Steps } from '../lib/graph/lower.js';
import { assignTypes } from '../lib/graph/types.js';
import { Tensor } from '../lib/tensor.js';
import { graphOf, numbers } from './cases.js';
import { allowed, compare, compareEach, magnitudes, spread } from './compare.js';
import {
  block,
  compileSteps,
  inputsOf,
  naming,
  noParams,
  parameters,
  rowsOf,
  run,
  sameBits,
  oneIn,
} from './running.js';

const { traits } = targetOf('cpu');

describe("ops: Winograd's algorithm", () => {
  const bf16 = (steps: Steps) => assignTypes(steps, { compute: 'bf16', quantized: new Map(), traits });
  const forced = (steps: Steps, form: Winograd): Steps => ({
    ...steps,
    steps: steps.steps.map((step) =>
      step.branches?.every((branch) => fitsWinograd(branch, steps, form, traits))
        ? convStep(
            step.name,
            step.branches.map((branch) => ({ ...branch, hints: hintsOf(form, branch) })),
          )
        : step,
    ),
  });

  /** Against the reference on the same steps; any thread count to the bit. */
  async function checkWinograd(
    graph: Graph,
    form: Winograd,
    read: (name: string) => Tensor,
    types?: typeof bf16,
  ): Promise<boolean> {
    const steps = forced(fuse(lower(graph), types), form);
    if (!steps.steps.some(({ branches }) => branches?.some((branch) => branch.hints?.winograd))) return false;
    const inputs = inputsOf({ inputs: graph.inputs.map((id) => graph.values[id]?.shape ?? []) });
    const param = (name: string) => graph.constants.get(name) ?? read(name);
    const wanted = await run(compileSteps(steps, 'reference', 1, param), inputs);
    const got = await run(compileSteps(steps, 'cpu', 1, param), inputs);
    // The constants of F(4x4) are up to 5 and 8 twice over: its errors are some ten times those of direct sums.
    const row = graph.nodes.length === 1 && !types;
    const magnitude = row ? await magnitudes(steps, inputs, param) : undefined;
    for (const [i, y] of got.entries()) {
      const channels = steps.values[steps.outputs[i] ?? -1]?.shape.at(-1) ?? 1;
      if (magnitude)
        compareEach(y, wanted[i] as TypedArray, spread(magnitude[i] as TypedArray, channels), allowed[form]);
      else compare(y, wanted[i] as TypedArray, form === 2 ? 10_000 : 400_000);
    }
    for (const threads of [2, 3]) {
      expect(
        sameBits(await run(compileSteps(steps, 'cpu', threads, param), inputs), got),
        `${threads} threads`,
      ).to.equal(true);
    }
    return true;
  }

  const forms = [
    [2, 'F(2x2, 3x3)'],
    [4, 'F(4x4, 3x3)'],
    ['overTime', 'F(4, 3) and F(4, 5) along T'],
  ] as const;
  for (const [form, title] of forms) {
    it(`${title}: the table's convolutions`, async () => {
      let count = 0;
      for (const row of [...rowsOf('conv'), ...rowsOf('octConv')]) {
        if (await naming(`${row.op} ${row.title}`, checkWinograd(graphOf(row), form, noParams))) count++;
      }
      expect(count).to.be.greaterThan((form === 'overTime' ? 25 : 60) / Math.ceil(oneIn / 2));
    });

    it(`${title} of bf16: the table's convolutions`, async () => {
      for (const row of [...rowsOf('conv'), ...rowsOf('octConv')]) {
        await naming(`${row.op} ${row.title}`, checkWinograd(graphOf(row), form, noParams, bf16));
      }
    });

    it(`${title}: random octave blocks`, async function () {
      this.timeout(600_000);
      let count = 0;
      for (let seed = 1; seed <= 150; seed += 3 * oneIn) {
        const { graph } = block(seed);
        if (await naming(`seed ${seed}`, checkWinograd(graph, form, parameters(graph)))) count++;
      }
      expect(count).to.be.at.least(Math.floor((form === 'overTime' ? 4 : 16) / oneIn));
    });
  }
});

describe("ops: Winograd's algorithm of i8", () => {
  const mostChannels = traits.winograd as Required<typeof traits.winograd>;

  /**
   * An octave branch of u8 with a residual and P(y), of kernels [h, w], or of clips [t, h, w] of as many frames as
   * rows; numbers between the ends, or the ends alone.
   */
  function branch(
    form: Winograd,
    kernel: readonly number[],
    size: readonly [n: number, h: number, w: number],
    [high, low, out]: readonly [number, number, number],
    ends: boolean,
  ) {
    const [n, h, w] = size;
    const begin = kernel.length === 3 ? [n, h] : [n];
    const window = kernel.length === 3 ? kernel : [1, ...kernel];
    const taps = kernel.reduce((a, b) => a * b, 1);
    const x = { dtype: 'u8', scale: 0.5, zero: 3 } as const;
    const y = {
      dtype: 'u8',
      shape: [...begin, h, w, out],
      scale: ends ? (high + low) * taps * 180 : Math.sqrt((high + low) * taps) * 170,
      zero: 128,
    } as const;
    const values = [
      { ...x, shape: [...begin, h, w, high] },
      { ...x, shape: [...begin, Math.ceil(h / 2), Math.ceil(w / 2), low] },
      y,
      y,
      { ...y, shape: [...begin, Math.ceil(h / 2), Math.ceil(w / 2), out] },
    ];
    const conv = {
      kernel: window,
      padding: window.map((size) => (size - 1) / 2),
      groups: 1,
      pool: 0,
      scale: x.scale,
      zero: x.zero,
    };
    const sources = [{ ...conv, input: 0, weight: 'h', weightScale: 'scale', upsample: false }];
    if (low > 0) sources.push({ ...conv, input: 1, weight: 'l', weightScale: 'scale', upsample: true });
    const steps = (hinted = true): Steps => {
      const step = convStep('a', [
        {
          terms: [{ sources }],
          residual: 2,
          y: 3,
          stores: [
            { value: 3, pool: 0 },
            { value: 4, pool: 1 },
          ],
          compute: 'i8',
          ...(hinted && { hints: hintsOf(form, { compute: 'i8', terms: [{ sources }] }) }),
        },
      ]);
      return { values, steps: [step], inputs: step.inputs, outputs: step.outputs };
    };
    const weight = (channels: number) =>
      new Tensor(
        'i8',
        [out, channels, ...kernel],
        Int8Array.from(numbers(out * channels * taps, channels), (x) => (ends ? -128 : Math.round(127 * x))),
      );
    const params: Record<string, Tensor> = {
      h: weight(high),
      l: weight(Math.max(1, low)),
      scale: new Tensor('f32', [out], new Float32Array(out).fill(1)),
    };
    const inputs = steps().inputs.map((id) => {
      const { shape = [] } = values[id] ?? {};
      return Uint8Array.from(
        numbers(
          shape.reduce((a, b) => a * b, 1),
          7 + id,
        ),
        (x) => (id === 2 ? 128 + 30 * x : ends ? 255 : 127.5 * (1 + x)),
      );
    });
    return { steps, inputs, param: (name: string) => params[name] as Tensor };
  }

  const widths = [1, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 130];
  const sizes = [
    [1, 1, 1],
    [1, 2, 2],
    [1, 3, 5],
    [2, 4, 4],
    [1, 7, 6],
    [3, 7, 7],
    [1, 14, 13],
  ] as const;
  const rows = widths.flatMap((width, i) =>
    [0, widths[(i * 7 + 3) % widths.length] ?? 0].map(
      (low) =>
        [
          sizes[(i + low) % sizes.length] ?? sizes[0],
          [width, low, widths[(i * 5 + low) % widths.length] ?? 1],
        ] as const,
    ),
  );

  const forms = [
    [2, 'F(2x2)', [3, 3]],
    [4, 'F(4x4)', [3, 3]],
    ['overTime', 'F(4, 3) along T', [3, 1, 1]],
    ['overTime', 'F(4, 3) along T, 3x1', [3, 3, 1]],
    ['overTime', 'F(2, 5) along T, 1x3', [5, 1, 3]],
  ] as const;
  /** How many channels may be summed up, of both branches together over time. */
  const mostOf = (form: Winograd, kernel: readonly number[]) =>
    Math.floor(mostChannels[form] / (form === 'overTime' ? kernel.reduce((a, b) => a * b, 1) : 1));

  for (const [form, title, kernel] of forms)
    for (const ends of [false, true]) {
      it(`${title}: the same bits as direct sums${ends ? ', of the largest numbers' : ''}`, async () => {
        const most = mostOf(form, kernel);
        const fitting = rows.filter(
          ([, [high, low]]) => (form === 'overTime' ? high + low : Math.max(high, low)) <= most,
        );
        const largest = form === 'overTime' ? ([most - 30, 30, 5] as const) : ([most, most, 5] as const);
        for (const [size, channels] of [
          ...fitting.filter((_, i) => i % (Math.ceil(oneIn / 4) * (form === 'overTime' ? 3 : 1)) === 0),
          [[1, 4, 4], largest] as const,
        ]) {
          const { steps, inputs, param } = branch(form, kernel, size, channels, ends);
          await naming(
            `${size} ${channels}`,
            (async () => {
              const direct = await run(compileSteps(steps(false), 'cpu', 1, param), inputs);
              for (const threads of [1, 3]) {
                const got = await run(compileSteps(steps(), 'cpu', threads, param), inputs);
                expect(sameBits(got, direct), `${threads} threads`).to.equal(true);
              }
              const wanted = await run(compileSteps(steps(false), 'reference', 1, param), inputs);
              // What lies between two levels may be rounded either way.
              for (const [i, y] of direct.entries())
                expect(y.every((q, j) => Math.abs((q as number) - (wanted[i]?.[j] as number)) <= 1)).to.equal(true);
              expect(direct[0]?.some((q) => (q as number) > 0 && (q as number) < 255)).to.equal(true);
            })(),
          );
        }
      });
    }

  it('refuses more channels than an i32 holds', async () => {
    for (const [form, , kernel] of forms) {
      const most = mostOf(form, kernel) + 1;
      const widths = [form === 'overTime' ? most - 4 : most, 4, 4] as const;
      const { steps, param } = branch(form, kernel, [1, 2, 2], widths, true);
      const all =
        form === 'overTime' ? `${most * kernel.reduce((a, b) => a * b, 1 as number)} products` : `${most} channels`;
      const refused = await compileSteps(steps(), 'cpu', 1, param).catch(String);
      expect(refused).to.include(`winograd of 'a' sums up ${all} of i8, wanted at most ${mostChannels[form]}`);
    }
  });
});
