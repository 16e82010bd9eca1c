/** What plans see of values while they run: the histograms that `quantize` chooses ranges by. */
import { expect } from 'chai';
import { targetOf } from '../lib/devices.js';
import { lower, sourcesOf } from '../lib/graph/lower.js';
import {
  buildNetwork,
  type Feature,
  Graph,
  initialize,
  layers,
  Module,
  type Network,
  Octave,
  ops,
  Tensor,
} from '../lib/index.js';
import { record } from '../lib/model.js';
import type { Device, NativeHistogram } from '../lib/native.js';
import { compileGraph, PackedWeights, Plan } from '../lib/plan.js';
import { stepsFor } from '../lib/targets.js';
import { elementCount } from '../lib/tensor.js';
import { numbers } from './cases.js';

/** What native code counts, in the plainest way. */
function counted(data: Float32Array): NativeHistogram {
  let [least, most, limit] = [0, 0, 2 ** -32];
  for (const x of data) [least, most] = [Math.min(least, x), Math.max(most, x)];
  while (Math.max(most, -least) >= limit) limit *= 2;
  const counts = new Uint32Array(2 ** 14);
  for (const x of data) counts[Math.floor((x / limit) * 2 ** 13 + 2 ** 13)]!++;
  return { least, most, limit, counts, firstNotFinite: -1 };
}

/** What convolutions and linear layers read. */
const readBy = (graph: Graph): number[] => {
  const sources = lower(graph).steps.flatMap(({ branches = [] }) => branches.flatMap(sourcesOf));
  return [...new Set(sources.map(({ input }) => input))];
};

class OfClips extends Module {
  readonly stem = new layers.Conv(3, 8, { kernel: [3, 5, 5], stride: [1, 2, 2], padding: [1, 2, 2] });
  readonly split = new layers.OctConvNorm(8, 24, { kernel: [3, 1, 1], alphaIn: 0, alphaOut: 0.5 });
  readonly down = new layers.OctConvNorm(24, 16, { kernel: [1, 3, 3], stride: 2, alphaIn: 0.5, alphaOut: 0 });
  readonly fc = new layers.Linear(32, 5);
  forward(x: Feature) {
    const stem = ops.relu(this.stem.forward(x));
    const y = this.split.forward(new Octave(stem)).map((branch) => ops.relu(branch));
    const { high } = this.down.forward(y);
    return this.fc.forward(ops.globalAvgPool(ops.concat([high, ops.relu(high)])));
  }
}

/** A convolution reads what is put side by side: alone it would be no value of its own. */
class SideBySide extends Module {
  readonly a = new layers.Conv(3, 5, { kernel: 3 });
  readonly b = new layers.Conv(3, 6, { kernel: 1 });
  readonly last = new layers.Conv(11, 4, { kernel: 3 });
  forward(x: Feature) {
    return this.last.forward(ops.concat([this.a.forward(x), ops.relu(this.b.forward(x))]));
  }
}

const cifar = { width: 8, classes: 5, stem: 'cifar' } as const;
const networks: readonly (readonly [string, Network<unknown>, readonly number[]])[] = [
  ['oct-resnet-26', buildNetwork('oct-resnet-26', { ...cifar, alpha: 0.5 }), [4, 33, 31, 3]],
  [
    'oct-se-resnet-v2',
    buildNetwork('oct-se-resnet-v2', { ...cifar, alpha: 0.5, blocks: [1, 1, 1, 1] }),
    [4, 32, 32, 3],
  ],
  ['oct-densenet', buildNetwork('oct-densenet', { ...cifar, alpha: 0.25, blocks: [2, 2, 2, 2] }), [4, 32, 32, 3]],
  ['side by side', new SideBySide(), [4, 9, 8, 3]],
  ['of clips', new OfClips(), [2, 5, 31, 33, 3]],
];

describe('observing', () => {
  /** Each image has larger numbers than the one before. */
  const input = (shape: readonly number[]) => {
    const data = numbers(elementCount(shape), 1);
    const each = data.length / (shape[0] ?? 1);
    return new Tensor(
      'f32',
      shape,
      data.map((x, i) => (3 * x - 0.5) * 4 ** Math.floor(i / each)),
    );
  };
  const planOf = async (network: Network<unknown>, graph: Graph, device: Device, threads: number) => {
    const packed = new PackedWeights(initialize(network), targetOf(device));
    return Plan.compile(graph, packed, { threads });
  };

  for (const [title, network, shape] of networks) {
    it(`${title}: counts what the values are, on all devices, by any number of threads`, async () => {
      const x = input(shape);
      for (const [device, threads] of [
        ['cpu', 1],
        ['cpu', 3],
        ['reference', 2],
      ] as const) {
        const [observing, giving] = [record(network, shape), record(network, shape)];
        observing.observed.push(...readBy(observing));
        const added = observing.observed.filter((id) => !giving.inputs.includes(id));
        giving.outputs.push(...added);
        const plan = await planOf(network, observing, device, threads);
        const { outputs, histograms } = await plan.observe([x]);
        const [wanted, ...values] = await (await planOf(network, giving, device, threads)).run([x]);
        expect(outputs.map(({ data }) => data)).to.deep.equal([wanted?.data]);
        expect(histograms.length).to.equal(observing.observed.length).and.to.be.above(1);
        for (const [i, id] of observing.observed.entries()) {
          const { data } = values[added.indexOf(id)] ?? x;
          expect(histograms[i], `value ${id} on ${device}`).to.deep.equal(counted(data as Float32Array));
        }
        const again = await plan.observe([x]);
        expect(again.histograms).to.deep.equal(histograms);
        plan.dispose();
      }
    });
  }

  it('some images at a time', () => {
    const { traits } = targetOf('cpu');
    const cut = networks.filter(([, network, shape]) => {
      const graph = record(network, shape);
      graph.observed.push(...readBy(graph));
      return stepsFor(graph, { traits, threads: 1 }).segments?.some(({ images }) => images < (shape[0] ?? 1));
    });
    expect(cut.length).to.be.above(2);
  });

  it('takes the memory of a run', async () => {
    const network = buildNetwork('oct-resnet-50', { alpha: 0.5, width: 16, classes: 10 });
    const shape = [1, 224, 224, 3];
    const [plain, observing] = [record(network, shape), record(network, shape)];
    observing.observed.push(...readBy(observing));
    const [{ memory: without }, { memory }] = [
      await planOf(network, plain, 'cpu', 1),
      await planOf(network, observing, 'cpu', 1),
    ];
    expect(memory.run).to.be.at.most(1.1 * without.run);
  });

  it('says where something is not finite, and counts the next run', async () => {
    const graph = new Graph();
    const y = ops.relu(graph.input('f32', [3, 7, 5, 2]));
    graph.outputs.push(ops.mul(y, 2).id);
    graph.observed.push(y.id, graph.inputs[0] as number);
    for (const device of ['cpu', 'reference'] as const) {
      const plan = await compileGraph(graph, targetOf(device), 'f32', { threads: 2 });
      const x = input([3, 7, 5, 2]);
      const { histograms } = await plan.observe([x]);
      expect(histograms.map(({ firstNotFinite }) => firstNotFinite)).to.deep.equal([-1, -1]);
      for (const [bad, wanted] of [
        [Number.NaN, [200, 70]],
        [Infinity, [200, 70]],
        [-Infinity, [-1, 70]], // ReLU makes it 0
      ] as const) {
        const wrong = new Tensor('f32', x.shape, x.data.slice());
        wrong.data[70] = -Infinity;
        wrong.data[200] = bad;
        const seen = (await plan.observe([wrong])).histograms;
        expect(seen.map(({ firstNotFinite }) => firstNotFinite)).to.deep.equal(wanted);
      }
      expect((await plan.observe([x])).histograms).to.deep.equal(histograms);
      plan.dispose();
    }
  });
});
