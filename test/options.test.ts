/** Options that plain JavaScript misspells, and names that are nearly right. */
import { fileURLToPath } from 'node:url';
import { runInNewContext } from 'node:vm';
import { expect } from 'chai';
import { OctconvError } from '../lib/error.js';
import { toOnnx } from '../lib/graph/onnx.js';
import * as octconv from '../lib/index.js';
import { checkOptions, didYouMean } from '../lib/options.js';
import { memoryWeights } from '../lib/weights/memory.js';
import { failure } from './expect.js';

const { createModel, layers, loadModel, Tensor } = octconv;
const cat = fileURLToPath(new URL('images/cat.jpg', import.meta.url));
const shipped = 'cifar10-oct-resnet-26-a50';

describe('options', () => {
  const small = { width: 4, classes: 2, stem: 'cifar' } as const;
  const wrong = (options: object) => options as never;
  const first = async (results: AsyncIterable<unknown>) => {
    for await (const _ of results) break;
  };

  it('that nobody knows are an error that says which there are', async () => {
    using model = createModel('resnet-18', small);
    using classifier = await loadModel(shipped);
    const { input } = classifier;
    if (!input) throw new Error('no input');
    const x = Tensor.zeros('f32', [1, 8, 8, 3]);
    const graph = model.record(x.shape);
    const network = octconv.buildNetwork('resnet-18', small);
    const weights = octconv.initialize(network);
    using op = await octconv.compile((a) => octconv.ops.relu(a), [[1, 2, 2, 1]]);
    const weight = Tensor.zeros('f32', [1, 1, 1, 1]);
    const pixel = { data: new Uint8Array(3), height: 1, width: 1 };
    const cases: [message: string, call: () => unknown][] = [
      [
        'loadModel: unknown option "thread" (did you mean "threads"?), wanted device, dtype, threads, cudaGraphs, plans, idleBytes, ' +
          'maxBytes, key, network',
        () => loadModel(shipped, wrong({ thread: 2 })),
      ],
      [
        'network: unknown option "widht" (did you mean "width"?), wanted network, alpha,',
        () => loadModel(shipped, { network: wrong({ widht: 8 }) }),
      ],
      // Of the options of the network itself, which has no blocks.
      ['network: unknown option "blocks", wanted', () => loadModel(shipped, { network: { blocks: [1] } })],
      ['resnet-50: unknown option "bloks", wanted alpha,', () => createModel('resnet-50', wrong({ bloks: [1] }))],
      ['resnet-50: unknown option "blocks", wanted alpha,', () => createModel('resnet-50', { blocks: [1] })],
      [`network 'resnet-5O' (did you mean "resnet-50"?), wanted`, () => createModel('resnet-5O', wrong({ widht: 1 }))],
      [
        `${fileURLToPath(new URL('../models/', import.meta.url))}${shipped}: classes 5 was asked for, config.json has 10`,
        () => loadModel(shipped, { network: { classes: 5 } }),
      ],
      ['loadModel: options: "cpu", wanted { device, dtype,', () => loadModel(shipped, 'cpu' as never)],
      ['resnet-18: unknown option "sede" (did you mean "seed"?)', () => createModel('resnet-18', wrong({ sede: 1 }))],
      ['model: unknown option "devise"', () => createModel('resnet-18', small, wrong({ devise: 'cpu' }))],
      ['model: unknown option "plan"', () => new octconv.Model(network, weights, wrong({ plan: 3 }))],
      ['model: run: unknown option "signl"', () => model.run(x, wrong({ signl: undefined }))],
      [
        'model: run: options: an AbortSignal, wanted { signal }',
        () => model.run(x, AbortSignal.timeout(1000) as never),
      ],
      ['plan: run: unknown option "signl"', async () => (await model.plan(x.shape)).run([x], wrong({ signl: 1 }))],
      ['runGraph: unknown option "dtype"', () => octconv.runGraph(graph, [x], wrong({ dtype: 'bf16' }))],
      [
        'conv: unknown option "pading" (did you mean "padding"?), wanted stride, padding, dilation, groups, device, threads',
        () => octconv.compile((a) => octconv.ops.conv(a, { weight }, wrong({ pading: 1 })), [[1, 2, 2, 1]]),
      ],
      ['relu: unknown option "inplace", wanted device, threads', () => octconv.ops.relu(x, wrong({ inplace: true }))],
      ['avgPool: unknown option "kernl"', () => octconv.ops.avgPool(x, wrong({ kernl: 2 }))],
      ['classify: unknown option "topp" (did you mean "top"?)', () => classifier.classify(cat, wrong({ topp: 3 }))],
      ['classify: unknown option "Batch"', () => first(octconv.classify(classifier, cat, wrong({ Batch: 3 })))],
      ['loadBatches: unknown option "top"', () => first(octconv.loadBatches(cat, input, wrong({ top: 3 })))],
      ['decodeImage: unknown option "maxPixel"', () => octconv.decodeImage(cat, wrong({ maxPixel: 3 }))],
      ['preprocess: unknown option "thread"', () => octconv.preprocess([pixel], input, wrong({ thread: 3 }))],
      ['compile: unknown option "threadz"', () => octconv.compile((a) => a, [[1]], wrong({ threadz: 3 }))],
      [
        'compile: run: unknown option "abort", wanted signal',
        () => op.run(Tensor.zeros('f32', [1, 2, 2, 1]), wrong({ abort: 1 })),
      ],
      ['quantize: unknown option "device"', () => octconv.quantize(network, weights, [x], wrong({ device: 'cpu' }))],
      ['saveModel: unknown option "forced"', () => octconv.saveModel('no/where', model, wrong({ forced: true }))],
      ['openWeights: unknown option "keys"', () => octconv.openWeights('no/where', wrong({ keys: 'ema' }))],
      ['toOnnx: unknown option "range"', () => toOnnx(graph, weights, wrong({ range: 1 }))],
      ['layers: Conv: unknown option "strides"', () => new layers.Conv(1, 1, wrong({ kernel: 1, strides: 2 }))],
      ['layers: OctConv: unknown option "alpha"', () => new layers.OctConv(2, 2, wrong({ kernel: 1, alpha: 0 }))],
      ['layers: Linear: unknown option "bais"', () => new layers.Linear(1, 1, wrong({ bais: false }))],
    ];
    for (const [message, call] of cases) {
      const found = await failure((async () => call())());
      expect(found.slice(0, message.length)).to.equal(message);
    }
  });

  it('may be left out, and be undefined', () => {
    expect(() => checkOptions('f', undefined, { a: true })).to.not.throw();
    expect(() => checkOptions('f', { a: undefined }, { a: true })).to.not.throw();
    for (const given of [Object.create(null), runInNewContext('({ a: 1 })')])
      expect(() => checkOptions('f', given, { a: true })).to.not.throw();
    for (const given of [null, [], 1])
      expect(() => checkOptions('f', given as never, { a: true })).to.throw(
        OctconvError,
        /^f: options: .*, wanted \{ a \}$/,
      );
    expect(() => checkOptions('f', { toString: 1 }, { a: true })).to.throw('f: unknown option "toString", wanted a');
  });
});

describe('names that are nearly right', () => {
  it('are told where one is near: case, and less than a third of the letters', () => {
    const near = (name: unknown, ...known: string[]) => /"(.*)"/.exec(didYouMean(name, known))?.[1];
    expect(near('thread', 'device', 'threads')).to.equal('threads');
    expect(near('WIDTH', 'width')).to.equal('width');
    expect(near('widht', 'width')).to.equal('width');
    expect(near('oct-resnet50', 'resnet-50', 'oct-resnet-50', 'oct-resnet-152')).to.equal('oct-resnet-50');
    expect(near('gpu', 'cpu')).to.equal(undefined);
    expect(near('', 'a')).to.equal(undefined);
    expect(near(undefined, 'undefined')).to.equal(undefined);
    expect(near('x'.repeat(1e6), 'x'.repeat(1e6))).to.equal(undefined);
  });

  it('networks, devices, tensors', async () => {
    expect(() => createModel('oct-resnet50')).to.throw(
      `network 'oct-resnet50' (did you mean "oct-resnet-50"?), wanted one of`,
    );
    expect(() => createModel('resnet-18', {}, { device: 'referense' as never })).to.throw(
      `device 'referense' (did you mean "reference"?): wanted auto, cpu, cuda, cudnn, reference`,
    );
    expect(await failure(loadModel('cifar10-oct-resnet-26-a5'))).to.equal(
      'cifar10-oct-resnet-26-a5: no such file, and no model of the package: those are camera-motion-oct-i3d-26-a50, ' +
        'cifar10-oct-resnet-26-a0, ' +
        'cifar10-oct-resnet-26-a50',
    );
    const weights = memoryWeights(new Map([['fc.weight', { dtype: 'f32', shape: [1], data: new Float32Array(1) }]]));
    expect(await failure(weights.read('fc.weigth'))).to.equal(
      'weights: no tensor "fc.weigth" (did you mean "fc.weight"?), there is "fc.weight"',
    );
  });
});
