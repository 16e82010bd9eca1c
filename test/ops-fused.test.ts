/** Fused steps against the graph as recorded. */
import { expect } from 'chai';
import { targetOf } from '../lib/devices.js';
import { fuse, joiningEpilogues, passThrough, short } from '../lib/graph/fuse.js';
import { Graph, type Value } from '../lib/graph/graph.js';
import { lower } from '../lib/graph/lower.js';
import { Octave } from '../lib/octave.js';
import * as ops from '../lib/ops.js';
import { stepsFor } from '../lib/targets.js';
import { atOnce } from '../lib/turns.js';
import { checkGraph, checkSteps, compare } from './compare.js';
import { block, compileSteps, inputsOf, naming, parameters, preactivation, run, sameBits, oneIn } from './running.js';

describe('ops: fused forms', () => {
  const met = new Set<string>();
  const meet = (form: string, when: boolean) => when && met.add(form);

  async function checkBlocks(first: number, last: number): Promise<void> {
    for (let seed = first; seed <= last; seed += oneIn) {
      const { graph, whole } = block(seed);
      const fused = fuse(lower(graph));
      const { steps } = fused;
      const apart = steps.map((s) => s.op).filter((op) => op !== 'octConv' && op !== 'maxPool');
      if (whole) expect(apart, `seed ${seed}`).to.deep.equal([]);
      const inputs = inputsOf({ inputs: graph.inputs.map((id) => graph.values[id]?.shape ?? []) });
      if (seed % 3 === 0) await naming(`seed ${seed}`, checkSteps(fused, inputs, parameters(graph)));
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

  it('20 random octave blocks: in parts as recorded', async function () {
    this.timeout(600_000);
    const passes = joiningEpilogues(short((steps) => steps));
    for (let seed = 1; seed <= 20; seed += oneIn) {
      const { graph } = block(seed);
      const parts = atOnce(passThrough(passes, lower(graph)));
      for (const { branches = [] } of parts.steps) {
        expect(branches.length, `seed ${seed}`).to.be.below(2);
        for (const { terms } of branches) expect(terms.flatMap(({ sources }) => sources)).to.have.length(1);
      }
      const inputs = inputsOf({ inputs: graph.inputs.map((id) => graph.values[id]?.shape ?? []) });
      const [got, wanted] = [parts, lower(graph)].map((steps) =>
        run(compileSteps(steps, 'reference', 1, parameters(graph), graph), inputs),
      );
      for (const [i, y] of (await wanted)?.entries() ?? []) compare((await got)?.[i] as typeof y, y, 2000);
    }
  });

  it('40 random octave blocks: fused as recorded', async function () {
    this.timeout(600_000); // an emulated CPU is slow
    await checkBlocks(1, 40);
  });

  it('110 more, every form among them @slow', async function () {
    this.timeout(60_000);
    await checkBlocks(41, 150);
    expect(met.size, [...met].join(', ')).to.equal(12);
  });

  async function checkPreactivation(first: number, last: number): Promise<void> {
    for (let seed = first; seed <= last; seed += oneIn) {
      const graph = preactivation(seed);
      const fused = fuse(lower(graph));
      const { steps } = fused;
      expect(
        steps.filter(({ op }) => op !== 'octConv' && op !== 'concat').map(({ op }) => op),
        `seed ${seed}`,
      ).to.deep.equal([]);
      const inputs = inputsOf({ inputs: graph.inputs.map((id) => graph.values[id]?.shape ?? []) });
      if (seed % 3 === 0) await naming(`seed ${seed}`, checkSteps(fused, inputs, parameters(graph)));
      await naming(`seed ${seed}`, checkGraph(graph, inputs, 20_000, parameters(graph)));
    }
  }

  it('20 random pre-activation and dense blocks: stores and prologues', async function () {
    this.timeout(600_000);
    await checkPreactivation(1, 20);
  });

  it('60 more @slow', async function () {
    this.timeout(60_000);
    await checkPreactivation(21, 80);
  });

  it('P(y) by the tiles where nobody wants y', async function () {
    this.timeout(600_000);
    const sizes = [
      [1, 2, 2],
      [2, 4, 6],
      [1, 14, 12],
      [1, 30, 28],
      [1, 5, 6],
      [1, 6, 5],
    ] as const;
    for (const [i, outputs] of [1, 4, 15, 16, 17, 31, 33, 48, 49, 64, 65, 130].entries()) {
      if (i % oneIn) continue;
      for (const [n, h, w] of sizes)
        for (const low of [0, 7]) {
          const graph = new Graph();
          const kernel = i % 2 ? 1 : 3;
          const weight = (name: string, inputs: number) =>
            graph.parameter(`${name}.weight`, [outputs, inputs, kernel, kernel]) as never;
          const half = [n, Math.ceil(h / 2), Math.ceil(w / 2), low];
          const shapes = [[n, h, w, 3 + i], ...(low ? [half] : [])];
          const [high, second] = shapes.map((shape) => graph.input('f32', shape) as Value);
          const sums = ops.octConv(new Octave(high as never, second as never), {
            h2h: weight('p1', 3 + i),
            l2h: low ? weight('p2', low) : undefined,
          });
          const y = ops.relu6((sums as unknown as Octave<Value>).high as never) as never;
          if (i % 3 === 0) {
            // P(P(y)) too, which are made of P(y).
            const params = { h2h: weight('p3', outputs), h2l: weight('p4', outputs) };
            const next = ops.octConv(new Octave(y), params, { stride: 2 }) as unknown as Octave<Value>;
            graph.outputs.push(next.high.id, next.low?.id as number);
          } else {
            const window = { kernel: 2, stride: 2, ceilMode: true, countIncludePad: false };
            graph.outputs.push((ops.avgPool(y, window) as unknown as Value).id);
          }
          const what = `${outputs} channels, ${[n, h, w]}, low ${low}`;
          const algorithms = await naming(
            what,
            checkGraph(graph, inputsOf({ inputs: shapes }), 200, parameters(graph)),
          );
          const pools = algorithms.some((text) => text.includes('pooled tile'));
          expect(pools, what).to.equal(h % 2 === 0 && w % 2 === 0);
        }
    }
  });

  it('stores of one activation twice, in one type or two', async () => {
    const weight = (g: Graph, name: string) => g.parameter(name, [5, 5, 1, 1]);
    for (const op of [ops.relu, ops.sigmoid, (x: never) => ops.globalAvgPool(x)])
      for (const read of [false, true]) {
        const graph = new Graph();
        const y = ops.conv(graph.input('f32', [2, 5, 4, 5]), { weight: weight(graph, 'p1.weight') });
        const [a, b] = [op(y as never), op(y as never)] as Value[];
        const c = read ? [ops.conv(ops.relu(y), { weight: weight(graph, 'p2.weight') }) as Value] : [];
        graph.outputs.push(...[a, b, ...c].map((v) => v?.id as number));
        await checkGraph(graph, inputsOf({ inputs: [[2, 5, 4, 5]] }), 100, parameters(graph));
      }
  });

  it('gates of what no convolution makes, and of values that are clamped first', async () => {
    const graph = new Graph();
    const [x, gate] = [graph.input('f32', [2, 5, 4, 9]), graph.input('f32', [2, 9])];
    const one = ops.mul(ops.relu(x), gate);
    const two = ops.mul(x, ops.relu6(ops.add(gate, 3)));
    const pooled = ops.maxPool(x, { kernel: 3, stride: 1, padding: 1 });
    const three = ops.relu(ops.add(ops.mul(ops.relu(pooled), ops.sigmoid(gate)), two));
    graph.outputs.push(one.id, two.id, three.id);
    const shapes = [
      [2, 5, 4, 9],
      [2, 9],
    ];
    await checkGraph(graph, inputsOf({ inputs: shapes }), 100, parameters(graph));
  });

  // Which pixels share a tile depends on the cut: a kernel that rounds some of them in another way shows here.
  it('a cut into sub-batches, wherever it is, keeps the bits', async function () {
    this.timeout(600_000);
    const { traits } = targetOf('cpu');
    const target = { traits: { ...traits, subBatches: false }, threads: 1 };
    for (let seed = 1; seed <= 200; seed += oneIn) {
      const { graph } = block(seed);
      const shapes = graph.inputs.map((id) => graph.values[id]?.shape ?? []);
      const images = shapes[0]?.[0] ?? 1;
      if (images === 1) continue;
      const fused = stepsFor(graph, target);
      const inputs = inputsOf({ inputs: shapes });
      const cutAt = async (cut: number) => {
        const segments = [
          { steps: cut, images: 1 },
          { steps: fused.steps.length - cut, images },
        ].filter(({ steps }) => steps > 0);
        const plan = await compileSteps({ ...fused, segments }, 'cpu', 1, parameters(graph), graph);
        return run(plan, inputs).finally(() => plan.dispose());
      };
      const whole = await cutAt(0);
      for (let cut = 1; cut <= fused.steps.length; cut++)
        expect(sameBits(await cutAt(cut), whole), `seed ${seed}, cut after step ${cut}`).to.be.true;
    }
  });
});
