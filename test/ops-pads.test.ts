/** Padded values: products read them as they lie, without a copy, and the bits are the same. */
import { expect } from 'chai';
import { targetOf } from '../lib/devices.js';
import { arrayFor, type TypedArray } from '../lib/dtype.js';
import type { ComputeType, TensorType } from '../lib/graph/graph.js';
import { convStep, type Step, type Steps } from '../lib/graph/lower.js';
import { padChannels } from '../lib/graph/pads.js';
import type { Plan } from '../lib/plan.js';
import { elementCount, Tensor } from '../lib/tensor.js';
import { numbers } from './cases.js';
import { compileSteps, run, sameBits } from './running.js';

const { traits } = targetOf('cpu');

describe('ops: pads', () => {
  const types = {
    bf16: { dtype: 'bf16' },
    i8: { dtype: 'u8', scale: 0.5, zero: 3 },
  } as const;
  const words = { bf16: 2, i8: 4 };

  /** What a pooling writes goes into a convolution: so its input is none of the network's. */
  function pooled(compute: keyof typeof types, channels: number, kernel: number, winograd?: 2 | 4): Steps {
    const inner: TensorType = { ...types[compute], shape: [2, 13, 9, channels] };
    const window = { kernel: [1, 1, 1], stride: [1, 1, 1], padding: [0, 0, 0] };
    const pool: Step = { op: 'maxPool', name: 'pool', attrs: window, params: {}, inputs: [0], outputs: [1] };
    const half = Math.floor(kernel / 2);
    const source = {
      ...{ input: 1, weight: 'weight', kernel: [1, kernel, kernel], padding: [0, half, half] },
      ...{ groups: 1, pool: 0, upsample: false },
      ...(compute === 'i8' && { weightScale: 'scale', scale: types.i8.scale, zero: types.i8.zero }),
    };
    const conv = convStep('conv', [
      {
        ...{ terms: [{ sources: [source] }], y: 2, stores: [{ value: 2, pool: 0 }], compute },
        ...(winograd && { hints: { winograd } }),
      },
    ]);
    const outer: TensorType = { ...types[compute], shape: [2, 13, 9, 8] };
    return { values: [inner, inner, outer], steps: [pool, conv], inputs: [0], outputs: [2] };
  }

  const read = (compute: ComputeType, channels: number, kernel: number) => (name: string) => {
    if (name === 'scale') return new Tensor('f32', [8], new Float32Array(8).fill(0.01));
    const weights = numbers(8 * channels * kernel ** 2, 7);
    const shape = [8, channels, kernel, kernel];
    return compute === 'i8'
      ? new Tensor(
          'i8',
          shape,
          Int8Array.from(weights, (x) => 63 * x),
        )
      : new Tensor('f32', shape, weights);
  };

  const scratchOf = ({ memory }: Plan) => memory.run - memory.activations;

  for (const compute of ['bf16', 'i8'] as const)
    for (const [title, kernel, winograd] of [
      ['1x1', 1],
      ['3x3', 3],
      ['3x3, winograd 2x2', 3, 2],
      ['3x3, winograd 4x4', 3, 4],
    ] as const)
      it(`${compute}, ${title}: no copy of any number of channels, and the same bits`, async () => {
        for (const channels of [1, 3, 5, 7, 9, 17, 33, 63]) {
          const open = (steps: Steps, c: number) => compileSteps(steps, 'cpu', 1, read(compute, c, kernel));
          const dense = pooled(compute, channels, kernel, winograd);
          const padded = padChannels(dense, traits);
          const whole = Math.ceil(channels / words[compute]) * words[compute];
          // Winograd's words hold fewer channels: transformed they are wider.
          const each = winograd ? words[compute] / 2 : words[compute];
          const filled = Math.ceil(channels / each) * each;
          const plans = await Promise.all([
            open(dense, channels),
            open(padded, channels),
            open(pooled(compute, whole, kernel, winograd), whole),
            open(pooled(compute, filled, kernel, winograd), filled),
          ]);
          const [copies, reads, , like] = plans.map(scratchOf) as [number, number, number, number];
          const bytes = filled * 13 * 9; // at least an image is a block here
          // Few channels under a wide kernel are copied with the padding of the convolution.
          const rows = kernel > 1 && !winograd && channels < 16;
          const isCopied = filled !== channels && !rows;
          expect(copies - reads, `scratch for ${channels} channels`).to.be.at.least(isCopied ? bytes : 0);
          expect(reads, `scratch for ${channels} channels, and for ${filled}`).to.equal(like);
          expect(plans[1].memory.activations).to.equal(plans[2].memory.activations);

          const { dtype, shape } = dense.values[0] as TensorType;
          const x = new (arrayFor(dtype))(elementCount(shape)).map((_, i) => (i * 37) % 251) as TypedArray;
          if (dtype === 'bf16') {
            for (const [i, value] of numbers(x.length, 5).entries())
              x[i] = (new Uint32Array(Float32Array.of(value).buffer)[0] ?? 0) >>> 16;
            // A NaN stays where its pixel is seen.
            x[channels * 40] = 0x7fc0;
          }
          const full = x.slice().fill(dtype === 'bf16' ? 0x7fc0 : 255);
          await run(plans[1], [full]); // the same memory again
          const [wanted, got] = [await run(plans[0], [x]), await run(plans[1], [x])];
          expect(sameBits(got, wanted), `${channels} channels`).to.equal(true);
          for (const plan of plans) plan.dispose();
        }
      });
});
