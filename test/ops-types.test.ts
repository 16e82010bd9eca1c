/** bf16 and i8, step by step, against the reference of the same steps. */
import { expect } from 'chai';
import { targetOf } from '../lib/devices.js';
import type { TypedArray } from '../lib/dtype.js';
import { chooseAlgorithms, fitsWinograd, hintsOf } from '../lib/graph/algorithm.js';
import { fuse } from '../lib/graph/fuse.js';
import { type ComputeType, Graph, type TensorType } from '../lib/graph/graph.js';
import { convStep, lower, type Steps } from '../lib/graph/lower.js';
import { padChannels } from '../lib/graph/pads.js';
import { subBatch } from '../lib/graph/subbatch.js';
import { assignTypes, type InputType, weightScaleOf } from '../lib/graph/types.js';
import * as ops from '../lib/ops.js';
import { Tensor } from '../lib/tensor.js';
import { atOnce } from '../lib/turns.js';
import { toFloats } from '../lib/weights/floats.js';
import { graphOf } from './cases.js';
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
  sideBySide,
  oneIn,
} from './running.js';

const { traits } = targetOf('cpu');

describe('ops: bf16 and i8', () => {
  const conv = ['conv', 'octConv', 'linear'];

  /**
   * Any parameter, and how every convolution sees its input: i8 weights whose scales fit together, bf16 the same as
   * f32.
   */
  function typed(graph: Graph, compute: ComputeType, most: number, read: (name: string) => Tensor) {
    const f32 = (name: string) => graph.constants.get(name) ?? read(name);
    const plain = (types?: (steps: Steps) => Steps) => fuse(lower(graph), types);
    // Also where the network's own input is read, which stays f32 on some CPUs.
    const all = ({ steps, ...rest }: Steps): Steps => ({
      ...rest,
      steps: steps.map((step) =>
        step.branches
          ? convStep(
              step.name,
              step.branches.map((b) => (b.gated ? b : { ...b, compute })),
            )
          : step,
      ),
    });
    if (compute === 'bf16')
      return { read: f32, steps: plain((steps) => all(assignTypes(steps, { compute, quantized: new Map(), traits }))) };

    const inputs = new Map<string, InputType>();
    for (const { branches = [] } of lower(graph).steps) {
      for (const source of branches.flatMap((b) => b.terms.flatMap((t) => t.sources))) {
        const clamped = graph.nodes.some(({ op, outputs }) => op.startsWith('relu') && outputs[0] === source.input);
        inputs.set(source.weight, {
          scale: Math.fround(0.02 + 0.001 * (source.input % 7)),
          zero: clamped ? 0 : 120 + (source.input % 5),
        });
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
          made.set(
            weight,
            new Tensor(
              'i8',
              shape,
              Int8Array.from(data as Float32Array, (x) => Math.max(-most, Math.min(most, x * most))),
            ),
          );
          made.set(weightScaleOf(weight), new Tensor('f32', [scales.length], scales));
        }
      }
    }
    return {
      read: (name: string) => made.get(name) ?? f32(name),
      steps: plain((steps) => assignTypes(steps, { compute, quantized: inputs, traits })),
    };
  }

  /** Every step alone, on what the reference made of the steps before it. */
  async function checkTyped(
    graph: Graph,
    compute: ComputeType,
    most: number,
    read: (name: string) => Tensor,
    meet: (what: string) => void,
  ): Promise<void> {
    const { steps, read: param } = typed(graph, compute, most, read);
    const arrays = new Map<number, TypedArray>();
    inputsOf({ inputs: graph.inputs.map((id) => graph.values[id]?.shape ?? []) }).forEach((x, i) => {
      arrays.set(graph.inputs[i] ?? -1, x);
    });
    for (const step of steps.steps) {
      const single = { ...steps, steps: [step], inputs: step.inputs, outputs: step.outputs };
      const given = step.inputs.map((id) => arrays.get(id) as TypedArray);
      const magnitude = await magnitudes(single, given, param);
      const wanted = await run(compileSteps(single, 'reference', 1, param), given);
      // F(4x4) of bf16 errs by more than an element; it is compared above.
      const close = compute === 'i8' ? ([2, 4, 'overTime'] as const) : ([2] as const);
      const fitting = close.filter((form) =>
        step.branches?.every((branch) => fitsWinograd(branch, steps, form, traits)),
      );
      for (const form of [undefined, ...fitting]) {
        const branches = form && step.branches?.map((branch) => ({ ...branch, hints: hintsOf(form, branch) }));
        const tried = { ...single, steps: [branches ? convStep(step.name, branches) : step] };
        const got = await run(compileSteps(tried, 'cpu', 1, param), given);
        const more = await run(compileSteps(tried, 'cpu', 3, param), given);
        expect(sameBits(more, got), `${step.name}: 3 threads give other bits than one`).to.equal(true);
        step.outputs.forEach((id, i) => {
          const [a, b, dtype] = [got[i] as TypedArray, wanted[i] as TypedArray, steps.values[id]?.dtype as string];
          meet(`${step.op} ${step.inputs.map((x) => steps.values[x]?.dtype)[0]} -> ${dtype}`);
          if (dtype === 'f32') {
            // Of bytes a pad is a level too, whose share is taken off again: the border sums as much as the middle.
            const own = magnitude?.[i] as TypedArray;
            const each = compute === 'i8' ? spread(own, steps.values[id]?.shape.at(-1) ?? 1) : own;
            compareEach(a, b, each, 4 * allowed.direct);
            return;
          }
          // A sum that lies between two elements may be rounded either way, a mean of such elements too.
          let off = 0;
          const zero = (q: number) => dtype === 'bf16' && (q & 0x7fff) === 0; // of either sign
          for (const [j, x] of b.entries())
            if (a[j] !== x && !(zero(x) && zero(a[j] as number)))
              off += Math.abs((a[j] as number) - x) === 1 ? 1 : Infinity;
          expect(off, `${step.name}: ${off} of ${b.length} ${dtype} differ`).to.be.at.most(1 + b.length / 50);
        });
      }
      step.outputs.forEach((id, i) => {
        arrays.set(id, wanted[i] as TypedArray);
      });
    }
  }

  // Where pairs of products are added in 16 bits, two weights of more than 64 take another kernel.
  for (const [compute, most] of [
    ['bf16', 1],
    ['i8', 63],
    ['i8', 127],
  ] as const) {
    const what = compute === 'i8' ? `i8 up to ${most}` : compute;
    for (const op of conv) {
      const rows = rowsOf(op);
      it(`${what}: ${op}, ${rows.length} rows`, async () => {
        for (const row of rows)
          await naming(
            `${op} ${row.title}`,
            checkTyped(graphOf(row), compute, most, noParams, () => undefined),
          );
      });
    }

    it(`${what}: random octave blocks, step by step`, async function () {
      this.timeout(600_000);
      const met = new Set<string>();
      for (let seed = 1; seed <= 150; seed += 4 * oneIn) {
        const { graph } = block(seed);
        await naming(
          `seed ${seed}`,
          checkTyped(graph, compute, most, parameters(graph), (what) => met.add(what)),
        );
        const { steps, read } = typed(graph, compute, most, parameters(graph));
        const given = inputsOf({ inputs: graph.inputs.map((id) => graph.values[id]?.shape ?? []) });
        const [wanted, got] = await Promise.all(
          [steps, sideBySide(steps)].map((each) => run(compileSteps(each, 'cpu', 3, read), given)),
        );
        expect(sameBits(got ?? [], wanted ?? []), `seed ${seed}: slices give other bits`).to.equal(true);
        for (const [title, form, threads] of [
          ['padded', steps, 1],
          ['padded', steps, 3],
          ['padded slices', sideBySide(steps), 1],
          ['padded sub-batches', subBatch(steps, 1, () => 1000), 1],
          ['padded, winograd', atOnce(chooseAlgorithms(steps, traits)), 1],
        ] as const) {
          const dense = await run(compileSteps(form, 'cpu', threads, read), given);
          for (const channelAlign of [traits.channelAlign, 64]) {
            const padded = padChannels(form, { ...traits, channelAlign });
            if (padded.pads?.size) met.add(title);
            const plan = await compileSteps(padded, 'cpu', threads, read);
            // Memory that is full of NaN, or of large numbers.
            const before = compute === 'bf16' ? Number.NaN : 1e3;
            await run(
              plan,
              given.map((x) => x.slice().fill(before)),
            );
            const what = `seed ${seed}: ${title} to ${channelAlign} bytes, ${threads} threads`;
            expect(sameBits(await run(plan, given), dense), what).to.equal(true);
            plan.dispose();
          }
        }
      }
      const kept = compute === 'bf16' ? 'bf16' : 'u8';
      expect([...met]).to.include.members([
        `octConv f32 -> ${kept}`,
        `octConv ${kept} -> ${kept}`,
        `octConv ${kept} -> f32`,
        ...['padded', 'padded slices', 'padded sub-batches', 'padded, winograd'],
      ]);
    });
  }
});

describe('ops: other types than f32 at the ends of an op', () => {
  type Type = Omit<TensorType, 'shape'>;
  const [f32, bf16] = [{ dtype: 'f32' }, { dtype: 'bf16' }] as const;
  const [bytes, others] = [
    { dtype: 'u8', scale: Math.fround(0.02), zero: 120 },
    { dtype: 'u8', scale: Math.fround(0.03), zero: 7 },
  ] as const;
  const ends: (readonly [from: Type, to: Type])[] = [
    [bf16, bf16],
    [bytes, bytes],
    [f32, bf16],
    [bf16, f32],
    [bytes, bf16],
    [f32, others],
    [bytes, others],
    [bytes, f32],
  ];

  const elements = (x: Float32Array, { dtype }: Type): TypedArray => {
    if (dtype === 'f32') return x;
    return dtype === 'bf16'
      ? new Uint16Array(new Uint32Array(x.slice().buffer).map((word) => word >>> 16))
      : Uint8Array.from(x, (value) => (value + 4) * 31);
  };

  async function check(graph: Graph, from: Type, to: Type, terms: number): Promise<void> {
    const given = lower(graph);
    const values = given.values.map((value, id) => ({
      ...value,
      ...(graph.inputs.includes(id) ? from : graph.outputs.includes(id) ? to : f32),
    }));
    const steps = { ...given, values };
    const read = (name: string) => graph.constants.get(name) as Tensor;
    const inputs = inputsOf({ inputs: given.inputs.map((id) => values[id]?.shape ?? []) }).map((x, i) =>
      elements(x as Float32Array, values[given.inputs[i] ?? -1] ?? f32),
    );
    const [wanted] = await run(compileSteps(steps, 'reference', 1, read), inputs);
    const [got] = await run(compileSteps(steps, 'cpu', 1, read), inputs);
    expect(sameBits(await run(compileSteps(steps, 'cpu', 3, read), inputs), [got as TypedArray])).to.equal(true);
    if (to.dtype === 'f32') {
      const [magnitude] = (await magnitudes(steps, inputs, read)) ?? [];
      if (magnitude) return compareEach(got as TypedArray, wanted as TypedArray, magnitude, allowed.direct);
      return compare(got as TypedArray, wanted as TypedArray, terms);
    }
    if (to.dtype === 'bf16') {
      const [a, b] = [toFloats('bf16', got as TypedArray), toFloats('bf16', wanted as TypedArray)];
      const largest = b.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
      const odd = b.findIndex(
        (x, j) => !(Math.abs((a[j] as number) - x) <= Math.max(Math.abs(x) * 2 ** -7, largest * 1e-6)),
      );
      if (odd >= 0) expect.fail(`element ${odd} is ${a[odd]}, wanted ${b[odd]}`);
      return;
    }
    let off = 0;
    for (const [j, x] of (wanted as TypedArray).entries())
      if (got?.[j] !== x) off += Math.abs((got?.[j] as number) - x) === 1 ? 1 : Infinity;
    // Means of levels lie between two of them.
    const share = graph.nodes.some(({ op }) => op === 'avgPool') && from === to ? 4 : 50;
    expect(off, `${off} of ${wanted?.length} differ`).to.be.at.most(1 + (wanted?.length ?? 0) / share);
  }

  const moved = ['concat', 'maxPool', 'pad', 'reshape', 'slice', 'transpose', 'upsampleNearest'];
  const computed = [
    'add',
    'attention',
    'avgPool',
    'batchNorm',
    'div',
    'gelu',
    'hardSigmoid',
    'hardSwish',
    'leakyRelu',
    'mul',
    'relu',
    'relu6',
    'sigmoid',
    'silu',
    'sub',
  ];
  it('kernels for bf16 and u8 are there', () => {
    const both = ['bf16', 'u8'] as const;
    const all = Object.entries(traits.ops).filter(
      ([op, { dtypes }]) => op !== 'octConv' && both.every((dtype) => dtypes.includes(dtype)),
    );
    const having = (wanted: 'keepsType' | 'mixesTypes') =>
      all
        .filter(([, kernels]) => kernels[wanted])
        .map(([op]) => op)
        .sort();
    expect([having('keepsType'), having('mixesTypes')]).to.deep.equal([moved, computed]);
  });

  for (const op of [...moved, ...computed, 'globalAvgPool', 'mean']) {
    it(`${op}, rows of the table`, async function () {
      this.timeout(60_000);
      const { keepsType, mixesTypes } = traits.ops[op] as (typeof traits.ops)[string];
      const rows = rowsOf(op);
      const taken = ends
        .filter(([from, to]) => (keepsType ? from === to : mixesTypes || to === f32))
        .filter(([from]) => !(op === 'div' && from.dtype === 'u8')); // nothing divides by zero
      for (const [k, [from, to]] of taken.entries()) {
        // Rows take the types in turn: what converts an element does not depend on which one it is.
        for (const row of rows.filter((_, i) => (i + k) % Math.min(oneIn === 1 ? 2 : 4, rows.length) === 0)) {
          const what = `${row.title}, ${from.dtype} to ${to.dtype}`;
          // A number beside it stays f32: so does any constant.
          await naming(what, check(graphOf(row), from, to, row.terms));
        }
      }
    });
  }

  it('in a network nothing between convolutions is f32', () => {
    const graph = new Graph();
    const weight = (o: number, i: number) => Tensor.zeros('f32', [o, i, 1, 1]);
    const x = ops.conv(graph.input('f32', [1, 8, 8, 4]), { weight: weight(8, 4) });
    const gate = ops.hardSigmoid(ops.conv(x, { weight: weight(8, 8) }));
    const shifted = ops.add(ops.mul(ops.silu(x), gate), 0.5);
    const pooled = ops.avgPool(shifted, { kernel: 2 });
    const up = ops.pad(ops.upsampleNearest(pooled, { scale: 2 }), { before: 1, after: 1 });
    const joined = ops.concat([
      ops.slice(up, { axes: [1, 2], starts: [1, 1], ends: [-1, -1] }),
      x,
    ] as never) as unknown as typeof x;
    graph.outputs.push(ops.conv(joined, { weight: weight(3, 16) as never }).id);
    const { values, steps } = fuse(lower(graph), (given) =>
      assignTypes(given, { compute: 'bf16', quantized: new Map(), traits }),
    );
    const between = steps.flatMap(({ outputs }) => outputs).filter((id) => !graph.outputs.includes(id));
    expect(between.length).to.be.at.least(9);
    expect(
      between
        .map((id) => `${steps.find(({ outputs }) => outputs.includes(id))?.op} ${values[id]?.dtype}`)
        .filter((text) => !text.endsWith('bf16')),
    ).to.deep.equal([]);
  });

  it('i8: a weight of -128 behind a negative batch normalisation', async () => {
    const batchNorm = { weight: 'g', bias: 'b', running_mean: 'm', running_var: 'v' };
    const conv = { kernel: [1, 1, 1], groups: 1, pool: 0, upsample: false, scale: 1, zero: 0 };
    const sources = [{ ...conv, input: 0, weight: 'w', weightScale: 's' }];
    const terms = [{ sources, batchNorm, eps: 0 }];
    const step = convStep('a', [{ terms, y: 1, stores: [{ value: 1, pool: 0 }], compute: 'i8' }]);
    const values = [
      { dtype: 'u8', shape: [1, 3, 3, 8], scale: 1, zero: 0 },
      { dtype: 'f32', shape: [1, 3, 3, 9] },
    ] as const;
    const steps = { values, steps: [step], inputs: step.inputs, outputs: step.outputs };
    const vector = (x: number) => new Tensor('f32', [9], new Float32Array(9).fill(x));
    const params: Record<string, Tensor> = {
      w: new Tensor('i8', [9, 8, 1, 1], new Int8Array(72).fill(-128)),
      ...{ s: vector(1), g: vector(-1), b: vector(0), m: vector(0), v: vector(1) },
    };
    const x = Uint8Array.from({ length: 72 }, (_, i) => (i * 37) % 256);
    for (const device of ['reference', 'cpu'] as const) {
      const [y] = await run(
        compileSteps(steps, device, 1, (name) => params[name] as Tensor),
        [x],
      );
      const sum = x.subarray(0, 8).reduce((a, b) => a + b, 0);
      expect(y?.[0], device).to.equal(128 * sum);
    }
  });
});
