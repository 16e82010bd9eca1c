import { expect } from 'chai';
import { foldBatchNorm, fuse, joinActivations, joinPooling, joinPrologues, joinResidual, joinShortcut, sinkPooling } from '../lib/graph/fuse.js';
import { Graph, Parameter, toNTHWC, type Value } from '../lib/graph/graph.js';
import { convStep, lower, type Steps } from '../lib/graph/lower.js';
import { planMemory } from '../lib/graph/memory.js';
import { record } from '../lib/model.js';
import { buildNetwork } from '../lib/models/index.js';

const param = (name: string, ...shape: number[]) => Object.assign(new Parameter(shape), { name });
const f32 = (...shape: number[]) => ({ dtype: 'f32', shape }) as const;

/** Records like lib/ops.ts, without its checks, on one 8x8 image. */
class Recorder {
  readonly graph = new Graph();
  #count = 0;
  input(channels = 4) {
    return this.graph.input('f32', [1, 8, 8, channels]);
  }
  #one(op: string, inputs: Value[], attrs = {}, params = {}): Value {
    return this.graph.add(op, inputs, attrs, params, [f32(...(inputs[0] as Value).shape)])[0] as Value;
  }
  conv(x: Value) {
    const name = `conv${this.#count++}`;
    const sizes = { kernel: [1, 1, 1], stride: [1, 1, 1], padding: [0, 0, 0], dilation: [1, 1, 1], groups: 1 };
    return this.#one('conv', [x], sizes, { weight: param(`${name}.weight`, 4, 4, 1, 1) });
  }
  batchNorm(x: Value) {
    const name = `bn${this.#count++}`;
    const roles = ['weight', 'bias', 'running_mean', 'running_var'];
    return this.#one('batchNorm', [x], { eps: 1e-5 }, Object.fromEntries(roles.map((r) => [r, param(`${name}.${r}`, 4)])));
  }
  relu(x: Value) {
    return this.#one('relu', [x]);
  }
  add(a: Value, b: Value) {
    return this.#one('add', [a, b]);
  }
  octConv(xH: Value, xL?: Value, stride = 1): [Value, Value] {
    const name = `oct${this.#count++}`;
    const params = {
      h2h: param(`${name}.h2h.weight`, 4, 4, 3, 3),
      h2l: param(`${name}.h2l.weight`, 4, 4, 3, 3),
      ...(xL && { l2h: param(`${name}.l2h.weight`, 4, 4, 3, 3), l2l: param(`${name}.l2l.weight`, 4, 4, 3, 3) }),
    };
    const size = ((xH.shape[1] as number) + stride - 1) / stride;
    const outputs = [f32(1, size, size, 4), f32(1, Math.ceil(size / 2), Math.ceil(size / 2), 4)];
    return this.graph.add('octConv', xL ? [xH, xL] : [xH], { kernel: [1, 3, 3], stride, groups: 1 }, params, outputs) as [Value, Value];
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

describe('graph: lowering', () => {
  it('writes the paper formulas as sources', () => {
    const r = new Recorder();
    const [h, l] = r.octConv(...r.octConv(r.input()), 2);
    const steps = r.steps(h, l);
    const paths = (step: number, i: number) => branch(steps, step, i).terms[0]?.sources.map((s) => [s.weight, s.pool, s.upsample]);
    expect(paths(0, 0)).to.deep.equal([['oct0.h2h.weight', 0, false]]);
    expect(paths(0, 1)).to.deep.equal([['oct0.h2l.weight', 1, false]]);
    expect(paths(1, 0)).to.deep.equal([['oct1.h2h.weight', 1, false], ['oct1.l2h.weight', 0, false]]);
    expect(paths(1, 1)).to.deep.equal([['oct1.l2l.weight', 1, false], ['oct1.h2l.weight', 2, false]]);
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
    expect(others.map(({ value, activation }) => [value, activation?.batchNorm?.weight, activation?.least])).to.deep.equal([
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
      expect([source?.input, source?.prologue?.batchNorm?.weight, source?.prologue?.least]).to.deep.equal([x.id, 'bn0.weight', 0]);
    }
  });

  it('leaves a normalisation alone that something else than a convolution reads', () => {
    const r = new Recorder();
    const y = r.batchNorm(r.input());
    expect(ops(joinPrologues(r.steps(r.conv(y), r.add(y, y))))).to.deep.equal(['batchNorm', 'octConv', 'add']);
  });

  it('takes an average pooling that is P into the convolution before it', () => {
    const window = { kernel: [1, 2, 2], stride: [1, 2, 2], padding: [0, 0, 0], ceilMode: false, countIncludePad: true };
    for (const [attrs, size, joined] of [[window, 8, true], [window, 7, false], [{ ...window, ceilMode: true, countIncludePad: false }, 7, true], [{ ...window, stride: [1, 1, 1] }, 8, false]] as const) {
      const r = new Recorder();
      const y = r.conv(r.graph.input('f32', [1, size, size, 4]));
      const [pooled] = r.graph.add('avgPool', [y], attrs, {}, [f32(1, Math.ceil(size / 2), Math.ceil(size / 2), 4)]);
      const fused = joinPooling(r.steps(pooled as Value));
      expect(ops(fused)).to.deep.equal(joined ? ['octConv'] : ['octConv', 'avgPool']);
      if (joined) expect(branch(fused).stores).to.deep.equal([{ value: pooled?.id, pool: 1 }]);
    }
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

  it('has the maker of a tensor write its pooled copies', () => {
    const r = new Recorder();
    const [h, l] = r.octConv(r.input());
    const steps = sinkPooling(r.steps(...r.octConv(h, l, 2)));
    expect(stored(steps, 0, 0)).to.have.length(2); // P(y), P(P(y)): nobody reads y
    expect(stored(steps, 0, 1)).to.have.length(2); // y, P(y)
    const shapes = stored(steps, 0, 0).map((id) => steps.values[id]?.shape);
    expect(shapes).to.deep.equal([[1, 4, 4, 4], [1, 2, 2, 4]]);
    expect(branch(steps, 1, 1).terms[0]?.sources.map((s) => s.pool)).to.deep.equal([0, 0]);
    expect(branch(steps, 0, 1).terms[0]?.sources.map((s) => s.pool)).to.deep.equal([1]); // the network's own input
  });
});

describe('graph: fusion of whole networks', () => {
  for (const [name, alpha, depth] of [['resnet-50', 0, 50], ['oct-resnet-50', 0.5, 50], ['oct-resnet-101', 0.125, 101]] as const) {
    it(`${name}, alpha ${alpha}: a step for each layer that counts, and the two poolings`, () => {
      const graph = record(buildNetwork(name, alpha ? { alpha } : {}), [1, 64, 64, 3]);
      const { steps, outputs } = fuse(lower(graph));
      expect(steps.filter(({ op }) => op === 'octConv')).to.have.length(depth);
      expect(steps.flatMap(({ op }) => (op === 'octConv' ? [] : op))).to.deep.equal(['maxPool', 'globalAvgPool']);

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

describe('graph: memory', () => {
  it('never lets two values that live together overlap, and reuses what is free', () => {
    const r = new Recorder();
    let [h, l] = r.octConv(r.input());
    for (let i = 0; i < 5; i++) {
      const next = r.octConv(h, l).map((v) => r.relu(v));
      [h, l] = [r.add(next[0] as Value, h), r.add(next[1] as Value, l)];
    }
    for (const steps of [r.steps(h, l), fuse(lower(r.graph))]) {
      const { offsets, bytes } = planMemory(steps, 64);
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

  it('gives a value that nobody reads its own place while it is written', () => {
    const step = convStep('a', [{ terms: [], y: 1, stores: [{ value: 1, pool: 0 }, { value: 2, pool: 0 }] }]);
    const { offsets } = planMemory({ values: [f32(1, 4), f32(1, 4), f32(1, 4)], steps: [step], inputs: [0], outputs: [] }, 64);
    expect(offsets.get(1)).to.not.equal(offsets.get(2));
  });
});
