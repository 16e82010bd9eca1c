/** Fused steps against the graph as recorded. */
import { expect } from 'chai';
import { fuse } from '../lib/graph/fuse.js';
import { lower } from '../lib/graph/lower.js';
import { block, checkGraph, inputsOf, naming, parameters, preactivation } from './running.js';

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
      meet(
        'a residual',
        branches.some((b) => b.residual !== undefined),
      );
      meet(
        'a projection shortcut',
        branches.some((b) => b.terms.length === 2),
      );
      meet(
        'P(y)',
        branches.some((b) => b.stores.some(({ pool }) => pool === 1)),
      );
      meet(
        'P(P(y))',
        branches.some((b) => b.stores.some(({ pool }) => pool === 2)),
      );
      meet(
        'P of a max-pooling',
        steps.some((s) => s.op === 'maxPool' && s.outputs.length === 2),
      );
      meet(
        'P of an input',
        sources.some((s) => s.pool === 1),
      );
      meet(
        'P(P) of an input',
        sources.some((s) => s.pool === 2),
      );
      meet(
        'groups',
        sources.some((s) => s.groups === 2),
      );
      meet(
        'depthwise',
        algorithms.some((a) => a.includes('depthwise')),
      );
      meet(
        'blocks',
        algorithms.some((a) => / [2-9] blocks/.test(a)),
      );
      meet(
        'panels by thread',
        algorithms.some((a) => /blocks x [2-9]/.test(a)),
      );
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

  async function checkPreactivation(first: number, last: number): Promise<void> {
    for (let seed = first; seed <= last; seed++) {
      const graph = preactivation(seed);
      const { steps } = fuse(lower(graph));
      expect(
        steps.filter(({ op }) => op !== 'octConv' && op !== 'concat').map(({ op }) => op),
        `seed ${seed}`,
      ).to.deep.equal([]);
      const inputs = inputsOf({ inputs: graph.inputs.map((id) => graph.values[id]?.shape ?? []) });
      await naming(`seed ${seed}`, checkGraph(graph, inputs, 20_000, parameters(graph)));
    }
  }

  it('20 random pre-activation and dense blocks: stores and prologues', async function () {
    this.timeout(600_000);
    await checkPreactivation(1, 20);
  });

  it('60 more @slow', async () => {
    await checkPreactivation(21, 80);
  });
});
