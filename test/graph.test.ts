import { expect } from 'chai';
import { bytesPerElement } from '../lib/dtype.js';
import * as algorithm from '../lib/graph/algorithm.js';
import * as fusion from '../lib/graph/fuse.js';
import { Graph, toNTHWC, type Value } from '../lib/graph/graph.js';
import { convStep, lower, type Steps } from '../lib/graph/lower.js';
import * as memory from '../lib/graph/memory.js';
import { padChannels, padOf, pitchOf } from '../lib/graph/pads.js';
import { sliceConcats, sliceOf } from '../lib/graph/slices.js';
import { batchOf, segmentsByStep, subBatch, wholeValues } from '../lib/graph/subbatch.js';
import { assignTypes } from '../lib/graph/types.js';
import { record } from '../lib/model.js';
import { buildNetwork } from '../lib/models/index.js';
import { Octave } from '../lib/octave.js';
import * as nodes from '../lib/ops.js';
import { elementCount } from '../lib/tensor.js';
import { atOnce, type Work } from '../lib/turns.js';

const inOneTurn =
  <A extends unknown[], T>(f: (...given: A) => Work<T>) =>
  (...given: A): T =>
    atOnce(f(...given));
const foldBatchNorm = inOneTurn(fusion.foldBatchNorm);
const joinShortcut = inOneTurn(fusion.joinShortcut);
const joinResidual = inOneTurn(fusion.joinResidual);
const joinActivations = inOneTurn(fusion.joinActivations);
const joinPrologues = inOneTurn(fusion.joinPrologues);
const joinPooling = inOneTurn(fusion.joinPooling);
const joinMeans = inOneTurn(fusion.joinMeans);
const joinBranches = inOneTurn(fusion.joinBranches);
const sinkPooling = inOneTurn(fusion.sinkPooling);
const splitSources = inOneTurn(fusion.splitSources);
const joinRelu = inOneTurn(fusion.joinRelu);
const chooseAlgorithms = inOneTurn(algorithm.chooseAlgorithms);
const planMemory = inOneTurn(memory.planMemory);
const { fuse, openGates } = fusion;

const f32 = (...shape: number[]) => ({ dtype: 'f32', shape }) as const;

/** Records like lib/ops.ts, without its checks, on one 8x8 image. */
class Recorder {
  readonly graph = new Graph();
  #count = 0;
  input(channels = 4) {
    return this.graph.input('f32', [1, 8, 8, channels]);
  }
  one(op: string, inputs: Value[], attrs = {}, params = {}): Value {
    return this.graph.add(op, inputs, attrs, params, [f32(...(inputs[0] as Value).shape)])[0] as Value;
  }
  conv(x: Value) {
    const name = `conv${this.#count++}`;
    const sizes = { kernel: [1, 1, 1], stride: [1, 1, 1], padding: [0, 0, 0], dilation: [1, 1, 1], groups: 1 };
    return this.one('conv', [x], sizes, { weight: this.graph.parameter(`${name}.weight`, [4, 4, 1, 1]) });
  }
  batchNorm(x: Value) {
    const name = `bn${this.#count++}`;
    const roles = ['weight', 'bias', 'running_mean', 'running_var'];
    return this.one(
      'batchNorm',
      [x],
      { eps: 1e-5 },
      Object.fromEntries(roles.map((r) => [r, this.graph.parameter(`${name}.${r}`, [4])])),
    );
  }
  relu(x: Value) {
    return this.one('relu', [x]);
  }
  add(a: Value, b: Value) {
    return this.one('add', [a, b]);
  }
  octConv(xH: Value, xL?: Value, stride = 1): [Value, Value] {
    const name = `oct${this.#count++}`;
    const params = {
      h2h: this.graph.parameter(`${name}.h2h.weight`, [4, 4, 3, 3]),
      h2l: this.graph.parameter(`${name}.h2l.weight`, [4, 4, 3, 3]),
      ...(xL && {
        l2h: this.graph.parameter(`${name}.l2h.weight`, [4, 4, 3, 3]),
        l2l: this.graph.parameter(`${name}.l2l.weight`, [4, 4, 3, 3]),
      }),
    };
    const size = ((xH.shape[1] as number) + stride - 1) / stride;
    const outputs = [f32(1, size, size, 4), f32(1, Math.ceil(size / 2), Math.ceil(size / 2), 4)];
    return this.graph.add(
      'octConv',
      xL ? [xH, xL] : [xH],
      { kernel: [1, 3, 3], stride, groups: 1 },
      params,
      outputs,
    ) as [Value, Value];
  }
  /** Names the outputs and lowers. */
  steps(...outputs: Value[]): Steps {
    this.graph.outputs.push(...outputs.map((v) => v.id));
    return lower(this.graph);
  }
}

const ops = ({ steps }: Steps) => steps.map((step) => step.op);
const branch = ({ steps }: Steps, step = 0, index = 0) => {
  const found = steps[step]?.branches?.[index];
  if (!found) throw new Error(`no branch ${index} in step ${step}`);
  return found;
};

const stored = (steps: Steps, step = 0, index = 0) => branch(steps, step, index).stores.map(({ value }) => value);

/** Of a device that fuses all there is, with no instruction of its own. */
const every = { dtypes: ['f32', 'bf16', 'u8'], keepsType: false, mixesTypes: false, pitched: true } as const;
const kept = { ...every, keepsType: true } as const;
const traits = {
  dotProducts: [],
  winograd: { 2: 9, 4: 9 },
  ops: { octConv: every, maxPool: kept, globalAvgPool: every, concat: kept },
};

describe('graph: lowering', () => {
  it('writes the paper formulas as sources', () => {
    const r = new Recorder();
    const [h, l] = r.octConv(...r.octConv(r.input()), 2);
    const steps = r.steps(h, l);
    const paths = (step: number, i: number) =>
      branch(steps, step, i).terms[0]?.sources.map((s) => [s.weight, s.pool, s.upsample]);
    expect(paths(0, 0)).to.deep.equal([['oct0.h2h.weight', 0, false]]);
    expect(paths(0, 1)).to.deep.equal([['oct0.h2l.weight', 1, false]]);
    expect(paths(1, 0)).to.deep.equal([
      ['oct1.h2h.weight', 1, false],
      ['oct1.l2h.weight', 0, false],
    ]);
    expect(paths(1, 1)).to.deep.equal([
      ['oct1.l2l.weight', 1, false],
      ['oct1.h2l.weight', 2, false],
    ]);
  });

  it('upsamples the low product at stride 1', () => {
    const r = new Recorder();
    const steps = r.steps(...r.octConv(...r.octConv(r.input())));
    expect(branch(steps, 1).terms[0]?.sources.map((s) => s.upsample)).to.deep.equal([false, true]);
  });

  it('names a step by the layer that holds its parameters', () => {
    const r = new Recorder();
    const steps = r.steps(...r.octConv(r.input()));
    expect(steps.steps[0]?.name).to.equal('oct0');
  });

  it('gives shapes as N T H W C', () => {
    expect(toNTHWC([2, 10])).to.deep.equal([2, 1, 1, 1, 10]);
    expect(toNTHWC([2, 5, 6, 3])).to.deep.equal([2, 1, 5, 6, 3]);
    expect(toNTHWC([2, 4, 5, 6, 3])).to.deep.equal([2, 4, 5, 6, 3]);
    expect(() => toNTHWC([3])).to.throw('shape [3]');
  });
});

describe('graph: fusion', () => {
  it('folds a batch normalisation into the convolution before it', () => {
    const r = new Recorder();
    const steps = foldBatchNorm(r.steps(r.batchNorm(r.conv(r.input()))));
    expect(ops(steps)).to.deep.equal(['octConv']);
    expect(branch(steps).terms[0]?.batchNorm?.weight).to.equal('bn1.weight');
    expect(stored(steps)).to.deep.equal(r.graph.outputs);
  });

  it('leaves a batch normalisation alone whose input is read elsewhere too', () => {
    const r = new Recorder();
    const y = r.conv(r.input());
    expect(ops(foldBatchNorm(r.steps(r.batchNorm(y), r.relu(y))))).to.deep.equal(['octConv', 'batchNorm', 'relu']);
  });

  it('leaves a batch normalisation alone whose input is an output of the network', () => {
    const r = new Recorder();
    const y = r.conv(r.input());
    expect(ops(foldBatchNorm(r.steps(y, r.batchNorm(y))))).to.deep.equal(['octConv', 'batchNorm']);
  });

  it('joins activation and residual in the order in which the epilogue applies them', () => {
    const r = new Recorder();
    const x = r.input();
    const fused = joinActivations(joinResidual(r.steps(r.relu(r.add(r.conv(x), x)))));
    expect(ops(fused)).to.deep.equal(['octConv']);
    expect(branch(fused).residual).to.equal(x.id);
    expect(branch(fused).stores).to.deep.equal([{ value: r.graph.outputs[0], pool: 0, activation: { least: 0 } }]);
  });

  it('does not add a residual behind an activation', () => {
    const r = new Recorder();
    const x = r.input();
    expect(ops(joinResidual(joinActivations(r.steps(r.add(r.relu(r.conv(x)), x)))))).to.deep.equal(['octConv', 'add']);
  });

  it('takes a residual only from a step before the convolution', () => {
    const r = new Recorder();
    const x = r.input();
    const y = r.conv(x);
    const fused = joinResidual(r.steps(r.add(y, r.relu(r.relu(x)))));
    expect(ops(fused)).to.deep.equal(['octConv', 'relu', 'relu', 'add']);
  });

  it('stores a sum as it is and normalised, where both are read', () => {
    const r = new Recorder();
    const x = r.input();
    const sum = r.add(r.conv(x), x);
    const first = r.relu(r.batchNorm(sum));
    const second = r.batchNorm(sum);
    const fused = joinActivations(joinResidual(r.steps(r.conv(first), r.conv(second), sum)));
    expect(ops(fused)).to.deep.equal(['octConv', 'octConv', 'octConv']);
    const [raw, ...others] = branch(fused).stores;
    expect(raw).to.deep.equal({ value: sum.id, pool: 0 });
    expect(
      others.map(({ value, activation }) => [value, activation?.batchNorm?.weight, activation?.least]),
    ).to.deep.equal([
      [first.id, 'bn1.weight', 0],
      [second.id, 'bn2.weight', undefined],
    ]);
  });

  it('leaves a sum unstored that is only read normalised', () => {
    const r = new Recorder();
    const x = r.input();
    const fused = joinActivations(joinResidual(r.steps(r.relu(r.batchNorm(r.add(r.conv(x), x))))));
    expect(branch(fused).stores.map(({ value }) => value)).to.deep.equal(r.graph.outputs);
  });

  it('has convolutions normalise what they read, where no convolution makes it', () => {
    const r = new Recorder();
    const x = r.input();
    const y = r.relu(r.batchNorm(x));
    const fused = joinPrologues(r.steps(r.conv(y), r.conv(y)));
    expect(ops(fused)).to.deep.equal(['octConv', 'octConv']);
    for (const step of [0, 1]) {
      const [source] = branch(fused, step).terms[0]?.sources ?? [];
      expect([source?.input, source?.prologue?.batchNorm?.weight, source?.prologue?.least]).to.deep.equal([
        x.id,
        'bn0.weight',
        0,
      ]);
    }
  });

  it('leaves a normalisation alone that something else than a convolution reads', () => {
    const r = new Recorder();
    const y = r.batchNorm(r.input());
    expect(ops(joinPrologues(r.steps(r.conv(y), r.add(y, y))))).to.deep.equal(['batchNorm', 'octConv', 'add']);
  });

  it('takes an average pooling that is P into the convolution before it', () => {
    const window = { kernel: [1, 2, 2], stride: [1, 2, 2], padding: [0, 0, 0], ceilMode: false, countIncludePad: true };
    for (const [attrs, size, joined] of [
      [window, 8, true],
      [window, 7, false],
      [{ ...window, ceilMode: true, countIncludePad: false }, 7, true],
      [{ ...window, stride: [1, 1, 1] }, 8, false],
    ] as const) {
      const r = new Recorder();
      const y = r.conv(r.graph.input('f32', [1, size, size, 4]));
      const [pooled] = r.graph.add('avgPool', [y], attrs, {}, [f32(1, Math.ceil(size / 2), Math.ceil(size / 2), 4)]);
      const fused = joinPooling(r.steps(pooled as Value));
      expect(ops(fused)).to.deep.equal(joined ? ['octConv'] : ['octConv', 'avgPool']);
      if (joined) expect(branch(fused).stores).to.deep.equal([{ value: pooled?.id, pool: 1 }]);
    }
  });

  it('stores a function of what a convolution computes', () => {
    const r = new Recorder();
    const y = r.conv(r.input());
    const silu = r.one('silu', [r.batchNorm(y)]);
    const fused = fuse(r.steps(silu, r.one('leakyRelu', [r.conv(silu)], { slope: 0.1 })));
    expect(ops(fused)).to.deep.equal(['octConv', 'octConv']);
    expect(branch(fused).stores).to.deep.equal([{ value: silu.id, pool: 0, activation: { function: 'silu' } }]);
    expect(branch(fused, 1).stores[0]?.activation).to.deep.equal({ function: 'leakyRelu', slope: 0.1 });
  });

  it('stores means, with the value itself only where it is read', () => {
    for (const read of [true, false]) {
      const r = new Recorder();
      const y = r.relu(r.conv(r.input()));
      const [mean] = r.graph.add('globalAvgPool', [y], {}, {}, [f32(1, 4)]);
      const fused = fuse(r.steps(mean as Value, ...(read ? [y] : [])));
      expect(ops(fused)).to.deep.equal(['octConv']);
      const stores = branch(fused).stores.map(({ value, mean: is, activation }) => [value, is, activation]);
      const own = [mean?.id, true, { least: 0 }];
      expect(stores).to.deep.equal(read ? [[y.id, undefined, { least: 0 }], own] : [own]);
    }
  });

  it('takes a product with a gate as a branch, with sums and activations behind it', () => {
    const r = new Recorder();
    const [x, gate] = [r.input(), r.graph.input('f32', [1, 4])];
    const y = r.conv(x);
    const sum = r.add(r.one('mul', [y, gate]), x);
    const end = r.relu(r.batchNorm(sum));
    const fused = fuse(r.steps(sum, end));
    expect(ops(fused)).to.deep.equal(['octConv', 'octConv']);
    const { terms, gated, residual, stores } = branch(fused, 1);
    expect([terms, gated, residual]).to.deep.equal([[], { input: y.id, gate: gate.id }, x.id]);
    expect(stores.map(({ value }) => value)).to.deep.equal([sum.id, end.id]);
  });

  it('keeps a product apart whose second operand is no number per image and channel', () => {
    for (const shape of [
      [1, 8, 8, 4],
      [1, 8, 8, 1],
      [1, 1],
    ]) {
      const r = new Recorder();
      const steps = openGates(r.steps(r.one('mul', [r.conv(r.input()), r.graph.input('f32', shape)])));
      expect(ops(steps), `${shape}`).to.deep.equal(['octConv', 'mul']);
    }
  });

  it('keeps a gate out of a shortcut and batch normalisation out of a gate', () => {
    const r = new Recorder();
    const [x, gate] = [r.input(), r.graph.input('f32', [1, 4])];
    const product = r.one('mul', [r.conv(x), gate]);
    const fused = fuse(r.steps(r.batchNorm(product), r.add(product, r.conv(x))));
    expect(fused.steps.flatMap(({ branches = [] }) => branches.map(({ terms }) => terms.length))).to.deep.equal([
      1, 0, 1,
    ]);
  });

  it('makes branches that read what one step makes one step', () => {
    const r = new Recorder();
    const [h, l] = r.octConv(r.input());
    const [a, b] = [r.conv(h), r.conv(l)];
    const joined = joinBranches(r.steps(a, b));
    expect(joined.steps.map(({ outputs }) => outputs)).to.deep.equal([
      [h.id, l.id],
      [a.id, b.id],
    ]);
    const between = new Recorder();
    const [xH, xL] = between.octConv(between.input());
    const first = between.conv(xH);
    const other = between.one('sigmoid', [first]);
    const later = between.one('mul', [xL, between.one('globalAvgPool', [other])]);
    expect(ops(joinBranches(openGates(between.steps(later))))).to.deep.equal(ops(openGates(lower(between.graph))));
    const chain = new Recorder();
    const x = chain.conv(chain.input());
    const y = chain.conv(x);
    expect(ops(joinBranches(chain.steps(chain.add(chain.conv(y), x))))).to.deep.equal([
      'octConv',
      'octConv',
      'octConv',
      'add',
    ]);
  });

  it('accumulates a projection shortcut in the last convolution of its block', () => {
    const r = new Recorder();
    const x = r.input();
    const [h, l] = r.octConv(x);
    const last = r.octConv(h, l).map((v) => r.batchNorm(v));
    const short = r.octConv(x).map((v) => r.batchNorm(v));
    const sums = last.map((v, i) => r.relu(r.add(v, short[i] as Value)));
    const fused = fuse(r.steps(...sums));
    expect(ops(fused)).to.deep.equal(['octConv', 'octConv']);
    expect(branch(fused, 1, 0).terms.map((t) => t.sources.length)).to.deep.equal([2, 1]);
    expect(branch(fused, 1, 1).stores[0]?.activation).to.deep.equal({ least: 0 });
  });

  it('keeps a shortcut apart of which only one branch is summed', () => {
    const r = new Recorder();
    const x = r.input();
    const [aH, aL] = r.octConv(x);
    const [bH, bL] = r.octConv(x);
    const steps = joinShortcut(r.steps(r.add(aH, bH), aL, bL));
    expect(ops(steps)).to.deep.equal(['octConv', 'octConv', 'add']);
  });

  it('does not join the branches of one octave convolution, which may be of one size', () => {
    const r = new Recorder();
    const one = r.graph.input('f32', [1, 1, 1, 4]);
    const fused = fuse(r.steps(r.add(...r.octConv(one))));
    expect(ops(fused)).to.deep.equal(['octConv', 'add']);
  });

  it('has the maker of a tensor write its pooled copies', () => {
    const r = new Recorder();
    const [h, l] = r.octConv(r.input());
    const steps = sinkPooling(r.steps(...r.octConv(h, l, 2)));
    expect(stored(steps, 0, 0)).to.have.length(2); // P(y), P(P(y)): nobody reads y
    expect(stored(steps, 0, 1)).to.have.length(2); // y, P(y)
    const shapes = stored(steps, 0, 0).map((id) => steps.values[id]?.shape);
    expect(shapes).to.deep.equal([
      [1, 4, 4, 4],
      [1, 2, 2, 4],
    ]);
    expect(branch(steps, 1, 1).terms[0]?.sources.map((s) => s.pool)).to.deep.equal([0, 0]);
    expect(branch(steps, 0, 1).terms[0]?.sources.map((s) => s.pool)).to.deep.equal([1]); // the network's own input
  });
});

describe('graph: fusion of whole networks', () => {
  for (const [name, alpha, depth] of [
    ['resnet-50', 0, 50],
    ['oct-resnet-50', 0.5, 50],
    ['oct-resnet-101', 0.125, 101],
  ] as const) {
    it(`${name}, alpha ${alpha}: a step for each layer that counts, and the pooling of the stem`, () => {
      const graph = record(buildNetwork(name, alpha ? { alpha } : {}), [1, 64, 64, 3]);
      const { steps, outputs } = fuse(lower(graph));
      expect(steps.filter(({ op }) => op === 'octConv')).to.have.length(depth);
      expect(steps.flatMap(({ op }) => (op === 'octConv' ? [] : op))).to.deep.equal(['maxPool']);

      const made = new Set(graph.inputs);
      for (const step of steps) {
        for (const id of step.inputs) expect(made.has(id), `${step.name} reads ${id} before it is made`).to.equal(true);
        for (const id of step.outputs) made.add(id);
      }
      for (const id of outputs) expect(made.has(id)).to.equal(true);
      const params = steps.flatMap((step) => Object.values(step.params));
      expect(params.sort()).to.deep.equal([...graph.params.keys()].sort());
    });
  }
});

describe('graph: convolutions of one input', () => {
  const parts = (steps: Steps) => joinRelu(joinResidual(splitSources(foldBatchNorm(steps))));
  const weights = ({ steps }: Steps) =>
    steps.map(({ op, branches = [] }) => branches[0]?.terms[0]?.sources[0]?.weight ?? op);

  it('are what an octave convolution is made of, the upsampled product the residual of the other one', () => {
    const r = new Recorder();
    const [h, l] = r.octConv(...r.octConv(r.input()));
    const steps = parts(r.steps(h, l));
    const first = ['oct0.h2h.weight', 'avgPool', 'oct0.h2l.weight'];
    const high = ['oct1.l2h.weight', 'upsampleNearest', 'oct1.h2h.weight'];
    const low = ['oct1.l2l.weight', 'avgPool', 'oct1.h2l.weight'];
    expect(weights(steps)).to.deep.equal([...first, ...high, ...low]);
    expect(branch(steps, 5).residual).to.equal(steps.steps[4]?.outputs[0]);
    expect(branch(steps, 8).residual).to.equal(steps.steps[6]?.outputs[0]);
    expect(steps.outputs).to.deep.equal([branch(steps, 5).y, branch(steps, 8).y]);
  });

  it('have a part each of a batch normalisation behind the sum, the last one its shift', () => {
    const r = new Recorder();
    const [h, l] = r.octConv(...r.octConv(r.input()));
    const steps = parts(r.steps(r.relu(r.batchNorm(h)), l));
    const [low, high] = [branch(steps, 3), branch(steps, 5)];
    expect(low.terms[0]?.batchNorm).to.deep.equal(high.terms[0]?.batchNorm);
    expect([low.terms[0]?.scaleOnly, high.terms[0]?.scaleOnly]).to.deep.equal([true, undefined]);
    expect(high.stores[0]?.activation).to.deep.equal({ least: 0 });
    expect(ops(steps).filter((op) => op === 'batchNorm' || op === 'relu')).to.be.empty;
  });

  it('share what is pooled', () => {
    const r = new Recorder();
    const [h, l] = r.octConv(...r.octConv(r.input()), 2);
    expect(ops(parts(r.steps(h, l))).filter((op) => op === 'avgPool')).to.have.length(4); // xH, P(xH), xL, the input
  });

  it('take a batch normalisation, a residual and a ReLU, and no other function', () => {
    const r = new Recorder();
    const x = r.input();
    const y = r.relu(r.add(r.batchNorm(r.conv(x)), x));
    const steps = parts(r.steps(r.one('relu6', [r.conv(y)])));
    expect(ops(steps)).to.deep.equal(['octConv', 'octConv', 'relu6']);
    expect(branch(steps).residual).to.equal(x.id);
    expect(branch(steps).stores).to.deep.equal([{ value: y.id, pool: 0, activation: { least: 0 } }]);
  });

  it('leave a ReLU alone whose input is read elsewhere too', () => {
    const r = new Recorder();
    const y = r.conv(r.input());
    expect(ops(parts(r.steps(r.add(r.relu(y), y))))).to.deep.equal(['octConv', 'relu', 'add']);
  });

  it('are all of resnet-50 but its pooling', () => {
    const graph = record(buildNetwork('resnet-50'), [1, 64, 64, 3]);
    const all = ops(parts(lower(graph)));
    expect(all.filter((op) => op !== 'octConv')).to.deep.equal(['maxPool', 'globalAvgPool']);
    expect(all).to.have.length(1 + 16 * 3 + 4 + 1 + 2);
  });
});

describe('graph: concatenations', () => {
  const slicing = (pitched: boolean) => ({ ops: { octConv: { ...every, pitched }, concat: kept } });

  it('are no steps where pitched kernels write and read them: chains lie in one value', () => {
    const r = new Recorder();
    const x = r.input();
    const wide = (channels: number, ...xs: Value[]) =>
      r.graph.add('concat', xs, {}, {}, [f32(1, 8, 8, channels)])[0] as Value;
    const [first, second, third] = [0, 1, 2].map(() => r.conv(x)) as [Value, Value, Value];
    const inner = wide(8, first, second);
    const outer = wide(12, third, inner);
    const steps = r.steps(r.conv(inner), r.conv(outer));
    const { steps: left, slices = new Map() } = sliceConcats(steps, slicing(true));
    expect(left.map(({ op }) => op)).to.deep.equal(['octConv', 'octConv', 'octConv', 'octConv', 'octConv']);
    const place = (channel: number) => ({ of: outer.id, channel });
    expect([...slices]).to.have.deep.members([
      [first.id, place(4)],
      [second.id, place(8)],
      [third.id, place(0)],
      [inner.id, place(4)],
    ]);
    expect(ops(sliceConcats(steps, slicing(false)))).to.deep.equal(ops(steps));
  });

  it('copy what is an input or an output, what has no pitch, and what is put side by side twice', () => {
    const left = (build: (r: Recorder, y: Value) => Value[]) => {
      const r = new Recorder();
      const steps = r.steps(...build(r, r.conv(r.input())));
      return ops(sliceConcats(steps, slicing(true))).filter((op) => op === 'concat').length;
    };
    const concat = (r: Recorder, ...xs: Value[]) =>
      r.graph.add('concat', xs, {}, {}, [f32(1, 8, 8, 4 * xs.length)])[0] as Value;
    expect(left((r, y) => [r.conv(concat(r, y, r.conv(y)))])).to.equal(0);
    expect(left((r, y) => [r.conv(concat(r, y, r.input()))])).to.equal(1);
    expect(left((r, y) => [concat(r, y, r.conv(y))])).to.equal(1);
    expect(left((r, y) => [y, r.conv(concat(r, y, r.conv(y)))])).to.equal(1);
    expect(left((r, y) => [r.conv(concat(r, y, r.relu(y)))])).to.equal(1);
    expect(left((r, y) => [r.conv(concat(r, y, y))])).to.equal(1);
    expect(left((r, y) => [r.conv(concat(r, y, r.conv(y))), r.conv(concat(r, y, r.conv(y)))])).to.equal(1);
    expect(left((r, y) => [r.relu(concat(r, y, r.conv(y)))])).to.equal(1);
  });

  for (const [name, alpha, count] of [
    ['densenet-121', 0, 125],
    ['oct-densenet-121', 0.25, 125],
  ] as const) {
    it(`${name}: at most ${count} steps, none of them a concatenation`, () => {
      const given = lower(record(buildNetwork(name, alpha ? { alpha } : {}), [1, 224, 224, 3]));
      const pitched = { ...kept, dtypes: ['f32'] } as const;
      const steps = ops(sliceConcats(fuse(given), { ops: { ...traits.ops, batchNorm: pitched } }));
      expect(steps).to.not.include('concat');
      expect(steps.length).to.be.at.most(count);
    });
  }
});

describe('graph: types', () => {
  for (const compute of ['bf16', 'f16'] as const) {
    it(`${compute} is what is multiplied, and kept where all readers take it`, () => {
      const r = new Recorder();
      const [inner, seen] = [r.conv(r.input()), r.conv(r.input())];
      const given = r.steps(r.conv(inner), seen);
      const typesFor = (dtypes: readonly string[], dotProducts: readonly string[]) => {
        const aim = { compute, quantized: new Map(), traits: { dotProducts, ops: { octConv: { ...every, dtypes } } } };
        const { steps, values } = assignTypes(given, aim as never);
        const computes = steps.flatMap(({ branches = [] }) => branches.map((each) => each.compute ?? 'f32'));
        return [computes, values[inner.id]?.dtype, values[seen.id]?.dtype];
      };
      expect(typesFor(['f32', compute], [compute])).to.deep.equal([[compute, compute, compute], compute, 'f32']);
      // What reads the input is multiplied in f32 where that is as fast.
      expect(typesFor(['f32', compute], [])).to.deep.equal([['f32', 'f32', compute], compute, 'f32']);
      expect(typesFor(['f32'], [compute])).to.deep.equal([[compute, compute, compute], 'f32', 'f32']);
    });
  }
});

describe('graph: algorithms', () => {
  it('with dot products of bf16 only five taps over time are by Winograd', () => {
    const given = fuse(lower(record(buildNetwork('oct-i3d-50', { alpha: 0.5 }), [1, 8, 64, 64, 3])));
    const formsOf = (compute: 'f32' | 'bf16', dotProducts: 'bf16'[]) => {
      const steps = given.steps.map((step) => {
        const branches = step.branches?.map((each) => ({ ...each, compute }));
        return branches ? { ...step, branches } : step;
      });
      const most = { 2: 9, 4: 9, overTime: 9 };
      const chosen = chooseAlgorithms({ ...given, steps }, { dotProducts, winograd: most }).steps;
      const names = ['conv1', 'layer1.1.conv1.conv', 'layer1.1.conv2.conv'];
      return names.map((name) => chosen.find((step) => step.name === name)?.branches?.[0]?.hints);
    };
    const overTime = { winograd: 4, overTime: true };
    expect(formsOf('f32', ['bf16'])).to.deep.equal([overTime, overTime, { winograd: 4 }]);
    expect(formsOf('bf16', [])).to.deep.equal([overTime, overTime, { winograd: 4 }]);
    expect(formsOf('bf16', ['bf16'])).to.deep.equal([overTime, undefined, undefined]);
  });
});

describe('graph: pads', () => {
  const padding = (pitched: boolean, channelAlign: number) => ({
    ops: { octConv: { ...every, pitched }, concat: kept },
    channelAlign,
    pitchAlign: 1,
  });
  it('fill up whole vectors where they are few', () => {
    const padsOf = (channels: number) => {
      const graph = new Graph();
      const sizes = { kernel: [1, 1, 1], stride: [1, 1, 1], padding: [0, 0, 0], dilation: [1, 1, 1], groups: 1 };
      const conv = (x: Value, to: number, name: string) => {
        const weight = graph.parameter(name, [to, x.shape.at(-1) as number, 1, 1]);
        return graph.add('conv', [x], sizes, { weight }, [f32(1, 8, 8, to)])[0] as Value;
      };
      const inner = conv(graph.input('f32', [1, 8, 8, 4]), channels, 'a');
      graph.outputs.push(conv(inner, 4, 'b').id);
      return padChannels(lower(graph), { ...padding(true, 4), pitchAlign: 32 }).pads?.get(inner.id);
    };
    expect([231, 232, 58, 248, 249].map(padsOf)).to.deep.equal([1, undefined, undefined, undefined, 7]);
  });

  const bf16 = ({ values, ...rest }: Steps): Steps => ({
    ...rest,
    values: values.map((value) => ({ ...value, dtype: 'bf16' })),
  });

  it('fill up channels where pitched kernels write and read them, of each type to the same bytes', () => {
    const r = new Recorder();
    const [inner, seen] = [r.conv(r.input()), r.conv(r.input())];
    const steps = r.steps(r.conv(inner), seen);
    const pads = (pitched: boolean, channelAlign: number, given = steps) =>
      [...(padChannels(given, padding(pitched, channelAlign)).pads ?? [])].map(([id, pad]) => [id === inner.id, pad]);
    expect(pads(true, 1)).to.deep.equal([]);
    expect(pads(true, 16)).to.deep.equal([]); // 4 of f32
    expect(pads(true, 32)).to.deep.equal([[true, 4]]);
    expect(pads(true, 16, bf16(steps))).to.deep.equal([[true, 4]]);
    expect(pads(false, 16, bf16(steps))).to.deep.equal([]);
  });

  it('of slices are those of the last one', () => {
    const r = new Recorder();
    const [first, second] = [r.conv(r.input()), r.conv(r.input())];
    const [whole] = r.graph.add('concat', [first, second], {}, {}, [f32(1, 8, 8, 8)]) as [Value];
    const traits = padding(true, 12 * 4);
    const steps = padChannels(sliceConcats(r.steps(r.conv(whole)), traits), traits);
    expect([first, second, whole].map(({ id }) => [pitchOf(steps, id), padOf(steps, id)])).to.deep.equal([
      [12, 0],
      [12, 4],
      [12, 4],
    ]);
    checkMemory(r.graph, steps);
  });
});

describe('graph: sub-batches', () => {
  it('no segment ends within what slices lie in', () => {
    const given = lower(record(buildNetwork('densenet', { width: 16, blocks: [3, 3, 3, 3] }), [4, 64, 64, 3]));
    const steps = sliceConcats(fuse(given), { ops: { ...traits.ops, batchNorm: kept } });
    const wide = new Set([...(steps.slices ?? [])].map(([, { of }]) => of));
    const cuts = [0, 300, 1000, 3000, 10_000, 30_000].flatMap((bytes) => {
      const cut = subBatch(steps, 1, () => bytes);
      const whole = wholeValues(cut);
      for (const id of wide) expect(whole.has(id), `${id}, ${bytes} bytes of weights`).to.equal(false);
      return cut.segments?.length === 2 ? [cut.segments[0]?.steps] : [];
    });
    expect(new Set(cuts).size).to.be.above(1);
  });
});

describe('graph: memory', () => {
  it('never lets two values that live together overlap, and reuses what is free', () => {
    const r = new Recorder();
    let [h, l] = r.octConv(r.input());
    for (let i = 0; i < 5; i++) {
      const next = r.octConv(h, l).map((v) => r.relu(v));
      [h, l] = [r.add(next[0] as Value, h), r.add(next[1] as Value, l)];
    }
    for (const steps of [r.steps(h, l), fuse(lower(r.graph))]) {
      const { offsets, bytes } = planMemory(steps, { align: 64 });
      const size = (id: number) => (steps.values[id]?.shape ?? []).reduce((a, b) => a * b, 4);
      const last = (id: number) => steps.steps.findLastIndex((s) => s.inputs.includes(id) || s.outputs.includes(id));
      const first = (id: number) => steps.steps.findIndex((s) => s.outputs.includes(id));
      let total = 0;
      for (const [a, at] of offsets) {
        total += size(a);
        expect(at % 64).to.equal(0);
        expect(at + size(a)).to.be.at.most(bytes);
        for (const [b, other] of offsets) {
          if (a === b || first(a) > last(b) || first(b) > last(a)) continue;
          expect(at + size(a) <= other || other + size(b) <= at, `${a} and ${b} overlap`).to.equal(true);
        }
      }
      expect(bytes).to.be.below(total);
    }
  });

  it('lets a convolution store in the place of its residual, if nobody else reads it', () => {
    const bytesOf = (more: boolean, inPlace: boolean) => {
      const r = new Recorder();
      const first = r.relu(r.conv(r.input()));
      const sum = r.relu(r.add(r.conv(r.relu(r.conv(first))), first));
      const last = r.relu(r.add(r.conv(r.relu(r.conv(sum))), sum));
      const steps = r.steps(r.conv(more ? r.one('mul', [last, first]) : last));
      checkMemory(r.graph, fuse(steps));
      return planMemory(fuse(steps), { align: 64, inPlace }).bytes;
    };
    const value = 8 * 8 * 4 * 4;
    expect(bytesOf(false, false)).to.equal(3 * value); // input, residual and what is stored
    expect(bytesOf(false, true)).to.equal(2 * value);
    expect(bytesOf(true, true)).to.equal(3 * value);
  });

  it('never stores over a residual of another type or pitch', () => {
    const placesOf = (residual: Steps['values'][number], pad = 0) => {
      const branch = (input: number, value: number) => ({
        terms: [{ sources: [{ input, weight: 'w', kernel: [1, 1, 1], groups: 1, pool: 0, upsample: false }] }],
        y: value,
        stores: [{ value, pool: 0 }],
      });
      const steps = [
        convStep('a', [branch(0, 1)]),
        convStep('b', [{ ...branch(0, 2), residual: 1 }]),
        convStep('c', [branch(2, 3)]),
      ];
      const values = [f32(1, 1, 1, 16), residual, f32(1, 1, 1, 16), f32(1, 1, 1, 16)];
      const pads = new Map(pad ? [[1, pad]] : []);
      const { offsets } = planMemory({ values, steps, inputs: [0], outputs: [3], pads }, { align: 128, inPlace: true });
      return offsets.get(1) === offsets.get(2);
    };
    expect(placesOf(f32(1, 1, 1, 16))).to.equal(true);
    expect(placesOf({ dtype: 'bf16', shape: [1, 1, 1, 16] })).to.equal(false);
    expect(placesOf(f32(1, 1, 1, 16), 16)).to.equal(false);
  });

  it('gives a value that nobody reads its own place while it is written', () => {
    const step = convStep('a', [
      {
        terms: [],
        y: 1,
        stores: [
          { value: 1, pool: 0 },
          { value: 2, pool: 0 },
        ],
      },
    ]);
    const { offsets } = planMemory(
      { values: [f32(1, 4), f32(1, 4), f32(1, 4)], steps: [step], inputs: [0], outputs: [] },
      { align: 64 },
    );
    expect(offsets.get(1)).to.not.equal(offsets.get(2));
  });
});

// --- Properties of all passes, on random graphs -------------------------------------------------------------------

const seeds = Array.from({ length: 80 }, (_, i) => i + 1);

/** As `expect`, for what is asked some hundred thousand times. */
function hold(fine: boolean, what: () => string): void {
  if (!fine) throw new Error(what());
}
const alike = (a: unknown, b: unknown) => JSON.stringify(a) === JSON.stringify(b);

/** A random choice, the same for the same seed. */
function chooser(seed: number) {
  let state = Math.imul(seed, 2654435761);
  return <T>(...options: readonly T[]): T => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return options[Math.floor((state / 2 ** 32) * options.length)] as T;
  };
}

/** Some twenty ops on one image size or several; some values are outputs, some are read by nobody. */
function randomGraph(seed: number): Graph {
  const pick = chooser(seed);
  const graph = new Graph();
  let names = 0;
  const param = (...shape: number[]) => graph.parameter(`p${names++}.weight`, shape) as never;
  const size = pick(1, 5, 8, 9);
  const values: Value[] = [graph.input('f32', [pick(1, 2, 4, 6), size, pick(size, 7), pick(3, 4)])];
  const channels = (x: Value) => x.shape.at(-1) as number;
  const same = (x: Value) => pick(...values.filter((y) => y.shape.join() === x.shape.join()));
  const conv = (x: Value, stride = pick(1, 1, 2)) => {
    const [k, o] = [pick(1, 3), pick(channels(x), 4, 6)];
    const bias = pick(param(o), undefined);
    return nodes.conv(x as never, { weight: param(o, channels(x), k, k), bias }, {
      stride,
      padding: (k - 1) / 2,
    } as never) as Value;
  };
  const norm = (x: Value) => {
    const [weight, bias, running_mean, running_var] = [0, 1, 2, 3].map(() => param(channels(x)));
    return nodes.batchNorm(x as never, { weight, bias, running_mean, running_var } as never) as Value;
  };
  const octConv = (x: Value) => {
    const half = [x.shape[0], ...x.shape.slice(1, 3).map((n) => Math.ceil(n / 2))].join();
    const low = pick(...values.filter(({ shape }) => shape.slice(0, 3).join() === half), undefined);
    const [h, l, k] = [pick(4, 6), pick(0, 4), pick(1, 3)];
    const weight = (o: number, from?: Value) => (o && from ? param(o, channels(from), k, k) : undefined);
    const paths = { h2h: weight(h, x), l2h: weight(h, low), h2l: weight(l, x), l2l: weight(l, low) };
    const y = nodes.octConv(new Octave(x, low) as never, paths as never, {
      stride: pick(1, 2),
    }) as unknown as Octave<Value>;
    return [y.high, ...(y.low ? [y.low] : [])];
  };
  const relu = (x: Value) => pick(nodes.relu, nodes.relu6)(x as never) as Value;
  const concat = (...xs: Value[]) => nodes.concat(xs as never) as Value;
  const add = (x: Value, y: Value) => nodes.add(x as never, y as never) as Value;
  const means: Value[] = [];
  const kinds: readonly ((x: Value) => Value | Value[])[] = [
    conv,
    norm,
    relu,
    octConv,
    octConv,
    (x) => octConv(x).map((y) => relu(norm(y))),
    (x) => add(x, same(x)),
    (x) => relu(add(norm(conv(x, 1)), norm(conv(x, 1)))),
    (x) => add(conv(x, 1), same(x)),
    (x) => [conv(x, 1), conv(relu(x), 1)].reduce(add),
    (x) => octConv(x).reduce(add), // of one size where the image is 1 x 1
    (x) => nodes.maxPool(x as never, { kernel: 3, stride: 2, padding: 1 }) as Value,
    (x) => concat(x, same(x)),
    (x) => [concat(x, conv(x, 1))].map((y) => concat(y, relu(conv(y, 1)), conv(x, 1))),
    (x) => octConv(x).map((y) => concat(y, conv(y, 1))),
    (x) => nodes.sigmoid(x as never) as Value,
    (x) => nodes.mul(x as never, nodes.globalAvgPool(pick(x, conv(x, 1)) as never) as never) as Value,
    (x) => {
      means.push(nodes.silu(nodes.globalAvgPool(relu(conv(x)) as never) as never) as Value);
      return [];
    },
  ];
  for (let i = pick(3, 8, 15); i > 0; i--) {
    const recent = values.slice(-4);
    const x = pick(...recent, ...values);
    try {
      values.push(...[pick(...kinds)(x)].flat());
    } catch (error) {
      if (!/wanted sizes that are equal or 1/.test(String(error))) throw error; // a convolution with other channels
    }
  }
  const made = values.slice(1).filter((value) => value.id !== graph.inputs[0]);
  const chosen = new Set([
    ...made.filter(() => pick(true, false, false, false)),
    made.at(-1) ?? conv(values[0] as Value),
  ]);
  graph.outputs.push(...[...chosen, ...means].map(({ id }) => id));
  return graph;
}

/** The steps after each pass of each way through. */
function* stagesOf(graph: Graph, seed: number): Generator<[title: string, steps: Steps]> {
  const pick = chooser(-seed);
  const [threads, bytes] = [pick(1, 2, 3), pick(0, 10, 1000)];
  for (const compute of ['f32', 'bf16'] as const) {
    let steps = lower(graph);
    yield ['lowered', steps];
    const joins = { joinShortcut, joinResidual, joinActivations, joinPrologues, joinPooling, joinMeans, joinBranches };
    const passes = { openGates, foldBatchNorm, ...joins };
    const types = (given: Steps) => assignTypes(given, { compute, quantized: new Map(), traits });
    const choose = (given: Steps) => chooseAlgorithms(given, traits);
    const sub = (given: Steps) => subBatch(given, threads, () => bytes);
    const slice = (given: Steps) => sliceConcats(given, traits);
    const pad = (given: Steps) => padChannels(given, { ...traits, channelAlign: pick(1, 4, 16), pitchAlign: 1 });
    for (const [name, pass] of Object.entries({ ...passes, types, sinkPooling, slice, pad, sub, choose })) {
      steps = pass(steps);
      yield [`${compute} after ${name}`, steps];
    }
    const batch = batchOf(steps);
    const images = () => pick(...[1, 2, 3, 4, 6].filter((n) => batch % n === 0));
    const [first, second] = [pick(0, 1, 2, 4), pick(1, 2, 3)];
    const counts = [first, second, steps.steps.length - first - second];
    if (Math.min(...counts) >= 0)
      yield [`${compute} cut at random`, { ...steps, segments: counts.map((n) => ({ steps: n, images: images() })) }];
  }
}

/** The same of the passes for devices that compute convolutions of one input. */
function* splitStagesOf(graph: Graph): Generator<[title: string, steps: Steps]> {
  let steps = lower(graph);
  for (const [name, pass] of Object.entries({ foldBatchNorm, splitSources, joinResidual, joinRelu })) {
    steps = pass(steps);
    yield [`in parts, after ${name}`, steps];
  }
}

/** The parameters that the outputs depend on. */
function paramsOf({ nodes: all, outputs }: Graph): Set<string> {
  const wanted = new Set(outputs);
  const params = new Set<string>();
  for (const { inputs, outputs, params: names } of [...all].reverse()) {
    if (!outputs.some((id) => wanted.has(id))) continue;
    for (const id of inputs) wanted.add(id);
    for (const name of Object.values(names)) params.add(name);
  }
  return params;
}

/** The values that a value is made of: itself, or those that a concatenation puts side by side which is no step. */
function partsOf(id: number, { nodes: all }: Graph, { steps }: Steps): readonly number[] {
  const concat = all.find(({ op, outputs }) => op === 'concat' && outputs.includes(id));
  if (!concat || steps.some(({ outputs }) => outputs.includes(id))) return [id];
  return concat.inputs.flatMap((input) => partsOf(input, { nodes: all } as Graph, { steps } as Steps));
}

function checkStructure(graph: Graph, given: Steps): void {
  const { values, steps, inputs, outputs, segments } = given;
  const made = new Set(inputs);
  for (const step of steps) {
    for (const id of step.inputs.flatMap((input) => partsOf(input, graph, given))) {
      hold(made.has(id), () => `${step.name} reads ${id} before it is made`);
    }
    for (const id of step.outputs) {
      hold(!made.has(id), () => `${id} is made twice, at last by ${step.name}`);
      made.add(id);
    }
    if (step.branches)
      hold(alike(convStep(step.name, step.branches), step), () => `${step.name} is not what its branches say`);
  }
  hold(alike([inputs, outputs], [graph.inputs, graph.outputs]), () => `inputs are ${inputs}, outputs ${outputs}`);
  for (const id of [...inputs, ...outputs]) {
    hold(made.has(id), () => `output ${id} is not made`);
    hold(alike(values[id], graph.values[id]), () => `${id} has another type`);
  }
  const params = new Set(steps.flatMap((step) => Object.values(step.params)));
  for (const name of params) hold(graph.params.has(name), () => `the graph has no parameter ${name}`);
  for (const name of paramsOf(graph)) hold(params.has(name), () => `parameter ${name} is lost`);
  const count = segments?.reduce((sum, segment) => sum + segment.steps, 0) ?? steps.length;
  hold(count === steps.length, () => `segments have ${count} steps of ${steps.length}`);
}

/** Goes through the steps as native code does, and marks each two bytes with the value and the image that they hold. */
function checkMemory(graph: Graph, given: Steps): void {
  for (const inPlace of [false, true]) checkPlaces(graph, given, inPlace);
}

function checkPlaces(graph: Graph, given: Steps, inPlace: boolean): void {
  const { offsets, bytes } = planMemory(given, { align: 64, inPlace });
  const { steps, values, segments } = given;
  const batch = segments ? batchOf(given) : 1;
  const whole = wholeValues(given);
  const held = new Int32Array(bytes / 2).fill(-1);
  const channels = (id: number) => values[id]?.shape.at(-1) ?? 0;
  /** Of a value made of others, theirs: channel after channel of its own pixels. */
  const ranges = (id: number, first: number, images: number) => {
    const { dtype = 'f32', shape = [] } = values[id] ?? {};
    const { channel } = sliceOf(given, id);
    const offset = offsets.get(id);
    if (offset === undefined) return [];
    const [words, pitch] = [bytesPerElement[dtype] / 2, pitchOf(given, id)];
    hold((offset - channel * 2 * words) % 64 === 0, () => `value ${id} is at ${offset}`);
    hold(channel + channels(id) + padOf(given, id) <= pitch, () => `value ${id} is wider than what it lies in`);
    const dense = pitch === channels(id) && partsOf(id, graph, given).length === 1;
    const pixels = dense ? 1 : elementCount(shape) / channels(id) / batch;
    const each = (elementCount(shape) / channels(id) / batch / pixels) * pitch * words;
    return Array.from({ length: images * pixels }, (_, i) => {
      const image = Math.floor(i / pixels);
      let from = offset / 2 + ((whole.has(id) ? first : 0) * pixels + i) * each;
      return partsOf(id, graph, given).map((part, k, { length }) => {
        const pad = k === length - 1 ? padOf(given, id) : 0;
        const to = from + (dense ? each : (channels(part) + pad) * words);
        hold(to <= held.length, () => `value ${id} ends behind the arena`);
        const range = { from, to, mark: part * 64 + first + image };
        from = to;
        return range;
      });
    }).flat();
  };
  const check = (name: string, ids: readonly number[], first: number, images: number) => {
    for (const { from, to, mark } of ids.flatMap((id) => ranges(id, first, images))) {
      for (let i = from; i < to; i++)
        hold(held[i] === mark, () => `${name}: of value ${mark >> 6} some is value ${(held[i] ?? -1) >> 6}`);
    }
  };
  const bySteps = segmentsByStep(given, batch);
  for (let at = 0; at < steps.length; at = (bySteps[at]?.last ?? at) + 1) {
    const { last = at, images = batch } = bySteps[at] ?? {};
    for (let first = 0; first < batch; first += images) {
      for (const { name, inputs, outputs, branches = [] } of steps.slice(at, last + 1)) {
        check(name, inputs, first, images);
        for (const { from, to, mark } of outputs.flatMap((id) => ranges(id, first, images))) held.fill(mark, from, to);
        const left = inputs.filter((id) => !inPlace || branches.every(({ residual }) => residual !== id));
        check(name, [...left, ...outputs], first, images);
      }
    }
  }
}

describe('graph: memory of slices', () => {
  /** Two convolutions, far apart, side by side; then others; what is read before and behind those. */
  const check = (before: readonly number[], behind: readonly number[]) => {
    const r = new Recorder();
    const first = r.conv(r.input());
    const between = r.conv(r.conv(first));
    const second = r.conv(between);
    const [whole] = r.graph.add('concat', [first, second], {}, {}, [f32(1, 8, 8, 8)]) as [Value];
    const read = (list: readonly number[]) => list.map((i) => r.conv([first, second, whole][i] as Value));
    const ends = [...read(before), r.conv(r.conv(r.conv(r.conv(r.conv(between))))), ...read(behind)];
    const steps = sliceConcats(r.steps(...ends), traits);
    expect(steps.slices?.size).to.equal(2);
    checkMemory(r.graph, steps);
  };

  it('is kept until the last reader of the value or of a slice, and until all is written', () => {
    const reads = [[], [0], [1], [2], [0, 1]];
    for (const before of reads) for (const behind of reads) check(before, behind);
  });
});

describe('graph: properties of the passes, on random graphs', function () {
  this.timeout(60_000);
  const all = seeds.map((seed) => ({ seed, graph: randomGraph(seed) }));
  const each = (check: (graph: Graph, steps: Steps) => void) => {
    for (const { seed, graph } of all) {
      for (const [title, steps] of [...stagesOf(graph, seed), ...splitStagesOf(graph)]) {
        try {
          check(graph, steps);
        } catch (error) {
          (error as Error).message = `seed ${seed}, ${title}: ${(error as Error).message}`;
          throw error;
        }
      }
    }
  };

  it('every value has one maker, before its readers; outputs, shapes and parameters stay', () => each(checkStructure));

  it('what a step reads is what was written, sub-batches included', () => each(checkMemory));

  it('the graphs have what the passes are for', () => {
    const found = new Set<string>();
    for (const { seed, graph } of all) {
      const [, steps] = [...stagesOf(graph, seed)].findLast(([title]) => title.endsWith('choose')) as [string, Steps];
      if (steps.segments && steps.segments.length > 1) found.add('segments');
      for (const branch of steps.steps.flatMap(({ branches = [] }) => branches)) {
        if (branch.residual !== undefined) found.add('residual');
        if (branch.stores.some(({ activation }) => activation)) found.add('activation');
        if (branch.stores.some(({ pool }) => pool > 0)) found.add('pooled');
        if (branch.terms.some(({ sources }) => sources.some(({ prologue }) => prologue))) found.add('prologue');
        if (branch.terms.length > 1) found.add('shortcut');
        if (branch.terms.some(({ batchNorm }) => batchNorm)) found.add('batchNorm');
      }
      if (steps.values.some(({ dtype }) => dtype === 'bf16')) found.add('bf16');
      if (steps.slices?.size) found.add('slices');
      if (steps.pads?.size) found.add('pads');
      if ([...(steps.slices?.keys() ?? [])].some((id) => padOf(steps, id))) found.add('padded slices');
    }
    expect([...found].sort()).to.deep.equal([
      'activation',
      'batchNorm',
      'bf16',
      'padded slices',
      'pads',
      'pooled',
      'prologue',
      'residual',
      'segments',
      'shortcut',
      'slices',
    ]);
  });
});
