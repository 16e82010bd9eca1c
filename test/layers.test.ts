import { expect } from 'chai';
import {
  type Feature,
  Graph,
  initialize,
  layers,
  Module,
  namedParameters,
  Octave,
  OctconvError,
  ops,
  Parameter,
} from '../lib/index.js';

const shapesOf = (module: Module) =>
  Object.fromEntries([...namedParameters(module)].map(([name, { shape }]) => [name, shape]));

describe('layers: parameters by property path', () => {
  it('modules, arrays, what is absent, and fields that are none', () => {
    class Block extends Module {
      readonly conv1 = new layers.Conv(3, 8, { kernel: 3, bias: true });
      readonly absent = undefined;
      readonly depth = 2;
      readonly stack = [new layers.Linear(4, 5), new layers.Linear(5, 6, { bias: false })];
      forward(x: Feature): Feature {
        return this.conv1.forward(x);
      }
    }
    expect(shapesOf(new Block())).to.deep.equal({
      'conv1.weight': [8, 3, 3, 3],
      'conv1.bias': [8],
      'stack.0.weight': [5, 4],
      'stack.0.bias': [5],
      'stack.1.weight': [6, 5],
    });
  });

  it('one parameter in two places is an error', () => {
    class Twice extends Module {
      readonly a = new Parameter([1]);
      readonly b = this.a;
      forward(): void {}
    }
    expect(() => namedParameters(new Twice())).to.throw(OctconvError, "module: 'b' is also 'a', wanted one place");
  });

  it('OctConv has the paths of which both widths are positive, and one bias per branch', () => {
    const names = (from: number, to: number, options: Partial<layers.OctConvLayerOptions>) =>
      shapesOf(new layers.OctConv(from, to, { kernel: 3, alphaIn: 0.5, alphaOut: 0.5, bias: true, ...options }));
    expect(names(8, 12, {})).to.deep.equal({
      'conv_h2h.weight': [6, 4, 3, 3],
      'conv_h2h.bias': [6],
      'conv_l2h.weight': [6, 4, 3, 3],
      'conv_h2l.weight': [6, 4, 3, 3],
      'conv_l2l.weight': [6, 4, 3, 3],
      'conv_l2l.bias': [6],
    });
    expect(names(8, 12, { alphaIn: 0 })).to.deep.equal({
      'conv_h2h.weight': [6, 8, 3, 3],
      'conv_h2h.bias': [6],
      'conv_h2l.weight': [6, 8, 3, 3],
      'conv_h2l.bias': [6],
    });
    expect(Object.keys(names(8, 12, { alphaOut: 0, bias: false }))).to.deep.equal([
      'conv_h2h.weight',
      'conv_l2h.weight',
    ]);
    expect(Object.keys(names(3, 3, { alphaIn: 0.25, alphaOut: 0.25, bias: false }))).to.deep.equal(['conv_h2h.weight']); // trunc(.75)
    expect(names(8, 8, { alphaIn: 0.25, alphaOut: 0.25, groups: 8, bias: false })).to.deep.equal({
      'conv_h2h.weight': [6, 1, 3, 3],
      'conv_l2l.weight': [2, 1, 3, 3],
    });
    expect(() => names(8, 8, { alphaOut: 1 })).to.throw(
      OctconvError,
      'octave: alpha 1, wanted at least 0 and less than 1',
    );
  });
});

describe('layers: branches of their own widths', () => {
  const sum = (a: number, b: number) => a + b;

  it('Octave joins what is there, and merges high and low', () => {
    expect(new Octave(3, 1).join(new Octave(4, 5), sum)).to.deep.equal(new Octave(7, 6));
    expect(new Octave(3).join(new Octave(4, 5), sum)).to.deep.equal(new Octave(7, 5));
    expect(new Octave(3, 1).join(new Octave(4), sum)).to.deep.equal(new Octave(7, 1));
    expect(new Octave(3).join(new Octave(4), sum)).to.deep.equal(new Octave(7, undefined));
    expect([new Octave(3, 4).merge(sum), new Octave(3).merge(sum)]).to.deep.equal([7, 3]);
  });

  it('OctConv and OctBatchNorm take the widths of each branch in place of alpha', () => {
    expect(shapesOf(new layers.OctConv(new Octave(22, 2), new Octave(6, 3), { kernel: 1 }))).to.deep.equal({
      'conv_h2h.weight': [6, 22, 1, 1],
      'conv_l2h.weight': [6, 2, 1, 1],
      'conv_h2l.weight': [3, 22, 1, 1],
      'conv_l2l.weight': [3, 2, 1, 1],
    });
    const depthwise = new layers.OctConv(new Octave(5, 2), new Octave(5, 2), { kernel: 3, groups: 7 });
    expect(shapesOf(depthwise)).to.deep.equal({ 'conv_h2h.weight': [5, 1, 3, 3], 'conv_l2l.weight': [2, 1, 3, 3] });
    const { bn_h, bn_l } = new layers.OctBatchNorm(new Octave(22, 2));
    expect([bn_h.weight.shape, bn_l?.weight.shape]).to.deep.equal([[22], [2]]);
    expect(Object.keys(shapesOf(new layers.OctConv(4, 4, { kernel: 1 })))).to.deep.equal(['conv_h2h.weight']);
  });
});

describe('layers: of video', () => {
  const [video, image] = [
    [2, 5, 9, 7, 4],
    [2, 9, 7, 4],
  ] as const;
  const shapeOf = (layer: Module, x: readonly number[]) => {
    const graph = new Graph(namedParameters(layer));
    return (layer.forward as (x: unknown) => { shape: readonly number[] }).call(layer, graph.input('f32', x)).shape;
  };

  it('a number is for every axis of the kernel, whose list says whether there is time', () => {
    const conv = (options: layers.ConvLayerOptions) => new layers.Conv(4, 6, options);
    for (const [options, x, weight, wanted] of [
      [{ kernel: 3 }, image, [3, 3], [2, 9, 7, 6]],
      [{ kernel: [3, 1], stride: 2 }, image, [3, 1], [2, 5, 4, 6]],
      [{ kernel: [3, 3, 3] }, video, [3, 3, 3], [2, 5, 9, 7, 6]],
      [{ kernel: [3, 1, 1], stride: 2 }, video, [3, 1, 1], [2, 3, 5, 4, 6]],
      [{ kernel: [3, 3, 3], stride: [1, 2, 2] }, video, [3, 3, 3], [2, 5, 5, 4, 6]],
      [{ kernel: [3, 3, 3], padding: 0 }, video, [3, 3, 3], [2, 3, 7, 5, 6]],
      [{ kernel: [3, 3, 3], dilation: 2 }, video, [3, 3, 3], [2, 5, 9, 7, 6]],
      [{ kernel: [3, 3, 3], dilation: 2, padding: [2, 0, 0] }, video, [3, 3, 3], [2, 5, 5, 3, 6]],
    ] as const) {
      expect(conv(options).weight.shape).to.deep.equal([6, 4, ...weight]);
      expect(shapeOf(conv(options), x), JSON.stringify(options)).to.deep.equal(wanted);
    }
  });

  it('an octave convolution strides over height and width', () => {
    for (const kernel of [
      [1, 3, 3],
      [3, 1, 1],
      [3, 3, 3],
      [5, 7, 7],
    ] as const) {
      const layer = new layers.OctConv(4, 6, { kernel, stride: 2, alphaOut: 0.5 });
      expect(layer.conv_h2l?.weight.shape).to.deep.equal([3, 4, ...kernel]);
      const graph = new Graph(namedParameters(layer));
      const { high, low } = layer.forward(new Octave(graph.input('f32', video)));
      expect([high.shape, low?.shape]).to.deep.equal([
        [2, 5, 5, 4, 3],
        [2, 5, 3, 2, 3],
      ]);
    }
  });

  it('errors say what was found and what was wanted', () => {
    const layer = (options: object) => new layers.Conv(4, 6, options as layers.ConvLayerOptions);
    const throws = (f: () => unknown, text: string) => expect(f).to.throw(OctconvError, text);
    throws(() => layer({ kernel: [3] }), 'layers: Conv: kernel [3], wanted a number, [h,w] or [t,h,w]');
    throws(() => layer({ kernel: [1, 3, 3, 3] }), 'kernel [1,3,3,3], wanted a number, [h,w] or [t,h,w]');
    const list = 'stride [2,2] for kernel [3,3,3], wanted a number or 3 numbers, integers of at least 1';
    throws(() => layer({ kernel: [3, 3, 3], stride: [2, 2] }), `layers: Conv: ${list}`);
    throws(
      () => layer({ kernel: 3, padding: [1, 1, 1] }),
      'padding [1,1,1] for kernel 3, wanted a number or 2 numbers',
    );
    const kernel = [3, 3, 3] as const;
    throws(() => new layers.OctConv(4, 6, { kernel, stride: [1, 2, 2] as never }), 'stride [1,2,2], wanted 1 or 2');
    throws(() => shapeOf(layer({ kernel: 3 }), video), 'weight [6,4,3,3], wanted [O,I,kt,kh,kw] for x [2,5,9,7,4]');
    throws(() => shapeOf(layer({ kernel }), image), 'weight [6,4,3,3,3], wanted [O,I,kh,kw] for x [2,9,7,4]');
    throws(
      () => shapeOf(layer({ kernel: [7, 3, 3], padding: 0 }), video),
      'the kernel [7,3,3] does not fit into x [2,5,9,7,4] with its padding',
    );
  });
});

describe('layers: recording', () => {
  it('a network of ten lines', async () => {
    class Net extends Module {
      readonly stem = new layers.Conv(3, 8, { kernel: 3 });
      readonly split = new layers.OctConvNorm(8, 16, { kernel: 3, alphaIn: 0, alphaOut: 0.5 });
      readonly merge = new layers.OctConv(16, 8, { kernel: 1, stride: 2, alphaIn: 0.5, alphaOut: 0, bias: true });
      readonly fc = new layers.Linear(8, 10);
      forward(x: Feature) {
        const y = this.split.forward(new Octave(ops.relu(this.stem.forward(x)))).map((branch) => ops.relu(branch));
        return this.fc.forward(ops.globalAvgPool(this.merge.forward(y).high));
      }
    }
    const net = new Net();
    const graph = new Graph(namedParameters(net));
    expect(net.forward(graph.input('f32', [2, 9, 8, 3])).shape).to.deep.equal([2, 10]);
    expect(graph.nodes.map(({ op, name }) => `${op} ${name}`)).to.deep.equal([
      'conv stem',
      'relu relu1',
      'octConv split.conv',
      'batchNorm split.bn_h',
      'batchNorm split.bn_l',
      'relu relu5',
      'relu relu6',
      'octConv merge',
      'globalAvgPool globalAvgPool8',
      'linear fc',
    ]);
    const { params, outputs, attrs } = graph.nodes[7]!;
    expect(params).to.deep.equal({
      h2h: 'merge.conv_h2h.weight',
      l2h: 'merge.conv_l2h.weight',
      biasH: 'merge.conv_h2h.bias',
    });
    expect(outputs.map((id) => graph.values[id]?.shape)).to.deep.equal([[2, 5, 4, 8]]);
    expect(attrs).to.deep.equal({ kernel: [1, 1, 1], stride: 2, groups: 1 });
    expect([...graph.params.keys()].sort()).to.deep.equal([...namedParameters(net).keys()].sort());
  });
});

describe('layers: random parameters', () => {
  const block = new layers.OctConvNorm(256, 128, { kernel: 3, alphaIn: 0.5, alphaOut: 0.25 });
  const moments = (data: ArrayLike<number>) => {
    const mean = Array.from(data).reduce((a, b) => a + b, 0) / data.length;
    return [mean, Array.from(data).reduce((a, b) => a + (b - mean) ** 2, 0) / data.length] as const;
  };

  it('have the variance that keeps the magnitude, and are never trivial', async () => {
    const source = initialize(block, 1);
    expect([...source.tensors.keys()]).to.deep.equal([...namedParameters(block).keys()]);
    const [mean, variance] = moments(await source.read('conv.conv_h2h.weight'));
    expect(mean).to.be.closeTo(0, 1e-3);
    expect(variance * 256 * 9).to.be.closeTo(2, 0.05); // both paths into the branch together have 256 inputs
    for (const [name, around] of [
      ['weight', 0.75],
      ['bias', 0],
      ['running_mean', 0],
      ['running_var', 1],
    ] as const) {
      const data = await source.read(`bn_h.${name}`);
      expect(moments(data)[0]).to.be.closeTo(around, 0.06);
      expect(moments(data)[1]).to.be.above(0.001);
    }
    expect(await source.read('none').catch((error) => error)).to.be.instanceOf(OctconvError);
  });

  it('are the same for a seed, and others for another seed or name', async () => {
    const read = (seed: number, name = 'conv.conv_h2h.weight') => initialize(block, seed).read(name);
    expect(await read(3)).to.deep.equal(await read(3));
    expect(await read(3)).to.not.deep.equal(await read(4));
    expect((await read(3, 'bn_h.bias')).slice(0, 8)).to.not.deep.equal(
      (await read(3, 'bn_h.running_mean')).slice(0, 8),
    );
  });
});
