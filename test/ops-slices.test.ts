/** Values that are slices of wider ones: the bits stay, and so does what lies between. */
import { expect } from 'chai';
import { targetOf } from '../lib/devices.js';
import type { TypedArray } from '../lib/dtype.js';
import { chooseAlgorithms } from '../lib/graph/algorithm.js';
import { fuse } from '../lib/graph/fuse.js';
import { lower, type Steps } from '../lib/graph/lower.js';
import { sliceConcats } from '../lib/graph/slices.js';
import { subBatch } from '../lib/graph/subbatch.js';
import { elementCount } from '../lib/tensor.js';
import { atOnce } from '../lib/turns.js';
import { cases, graphOf } from './cases.js';
import { compare } from './compare.js';
import {
  block,
  compileSteps,
  guarded,
  inputsOf,
  naming,
  noParams,
  parameters,
  preactivation,
  rowsOf,
  run,
  sameBits,
  sideBySide,
  oneIn,
} from './running.js';

const { traits } = targetOf('cpu');
const chosen = (steps: Steps) => atOnce(chooseAlgorithms(steps, traits));

describe('ops: slices', () => {
  const pitched = [...new Set(cases.map(({ op }) => op))].filter(
    (op) => ['conv', 'linear'].includes(op) || traits.ops[op]?.pitched,
  );

  for (const op of pitched) {
    const rows = rowsOf(op).filter(({ dtype = 'f32' }, i) => dtype === 'f32' && i % Math.min(oneIn, 4) === 0);
    it(`${op}, ${rows.length} rows: neighbours stay, the bits are the same`, async function () {
      this.timeout(600_000);
      for (const row of rows) {
        const graph = graphOf(row);
        const plain = fuse(lower(graph));
        const { steps, guards } = guarded(plain);
        // Of a concatenation at least what it puts side by side.
        expect(steps.slices?.size).to.be.at.least(op === 'concat' ? row.inputs.length : 1.5 * guards.length);
        const read = (name: string) => graph.constants.get(name) ?? noParams();
        const inputs = inputsOf(row);
        const nans = guards.map(({ shape }) => new Float32Array(elementCount(shape)).fill(Number.NaN));
        for (const [device, threads] of [
          ['reference', 1],
          ['cpu', 1],
          ['cpu', 3],
        ] as const) {
          const wanted = await run(compileSteps(plain, device, threads, read), inputs);
          const got = await run(compileSteps(steps, device, threads, read), [...inputs, ...nans]);
          expect(sameBits(got, [...wanted, ...nans]), `${op} ${row.title} on ${device}, ${threads} threads`).to.equal(
            true,
          );
        }
      }
    });
  }

  it('random octave, pre-activation and dense blocks: the same bits', async function () {
    this.timeout(600_000);
    const met = new Set<string>();
    for (let seed = 1; seed <= 30; seed += oneIn) {
      for (const graph of [block(seed).graph, preactivation(seed)]) {
        const plain = fuse(lower(graph));
        const inputs = inputsOf({ inputs: graph.inputs.map((id) => graph.values[id]?.shape ?? []) });
        const check = async (
          title: string,
          steps: Steps,
          device: 'cpu' | 'reference',
          threads: number,
          wanted: readonly TypedArray[],
        ) => {
          const got = await run(compileSteps(steps, device, threads, parameters(graph)), inputs);
          const what = `seed ${seed}: ${title} on ${device}, ${threads} threads`;
          if (steps.segments)
            for (const [k, y] of got.entries())
              await naming(what, (async () => compare(y, wanted[k] as TypedArray, 20_000))());
          else expect(sameBits(got, wanted), what).to.equal(true);
          const sliced = (id = -1) => steps.slices?.has(id);
          for (const { residual, stores, terms, hints } of steps.steps.flatMap(({ branches = [] }) => branches)) {
            const by = hints?.winograd ? 'winograd' : 'direct';
            if (sliced(residual)) met.add(`${by}: residual`);
            if (stores.some(({ value, pool }) => sliced(value) && pool === 0)) met.add(`${by}: store`);
            if (stores.some(({ value, pool }) => sliced(value) && pool > 0)) met.add(`${by}: pooled store`);
            if (terms.some(({ sources }) => sources.some(({ input, prologue }) => sliced(input) && prologue)))
              met.add(`${by}: prologue`);
            if (terms.some(({ sources }) => sources.some(({ input, upsample }) => sliced(input) && upsample)))
              met.add(`${by}: upsampled source`);
          }
          if (steps.segments) met.add('sub-batches');
          if (steps.steps.length < plain.steps.length) met.add('concatenations');
        };
        const cpu = await run(compileSteps(chosen(plain), 'cpu', 1, parameters(graph)), inputs);
        for (const [title, steps] of Object.entries({
          concats: sliceConcats(plain, traits),
          'side by side': sideBySide(plain),
        })) {
          for (const threads of [1, 3]) await check(title, chosen(steps), 'cpu', threads, cpu);
          await check(title, chosen(subBatch(steps, 1, () => 1000)), 'cpu', 1, cpu);
        }
        const reference = await run(compileSteps(plain, 'reference', 1, parameters(graph)), inputs);
        await check('side by side', sideBySide(plain), 'reference', 1, reference);
      }
    }
    if (oneIn > 1) return;
    const of = ['pooled store', 'residual', 'store', 'upsampled source'];
    const forms = ['direct', 'winograd'].flatMap((by) => of.map((what) => `${by}: ${what}`));
    met.delete('winograd: prologue'); // the same as of a direct one
    expect([...met].sort()).to.deep.equal(['concatenations', 'direct: prologue', 'sub-batches', ...forms].sort());
  });
});
