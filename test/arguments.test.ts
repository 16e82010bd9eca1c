/** What plain JavaScript gives in place of what is wanted: an error says what was found, and what was wanted. */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import * as octconv from '../lib/index.js';
import { failure } from './expect.js';

const cat = fileURLToPath(new URL('images/cat.jpg', import.meta.url));
const bytes = readFileSync(cat);

// biome-ignore lint/suspicious/noExplicitAny: what JavaScript may give
type Any = any;
const { compile, decodeImage, initialize, loadModel, Model, Module, Parameter, Tensor } = octconv as Any;
const { layers, ops } = octconv as Any;

describe('arguments that are none', () => {
  const x = Tensor.zeros('f32', [1, 8, 8, 4]);
  const weight = Tensor.zeros('f32', [4, 4, 3, 3]);
  const network = octconv.buildNetwork('resnet-18', { width: 4, classes: 2, stem: 'cifar' });
  const path = '/x.pth';
  let model: Any;
  before(async () => {
    model = await loadModel('cifar10-oct-resnet-26-a50');
  });
  after(() => model.dispose());

  const check = (title: string, cases: readonly (readonly [message: string, call: () => unknown])[]) =>
    it(title, async () => {
      for (const [message, call] of cases) {
        const found = await failure((async () => call())());
        expect(found.slice(0, message.length)).to.equal(message);
      }
    });

  check('tensors', [
    ["tensor: data type 'float32', wanted one of f32,", () => Tensor.zeros('float32', [1, 3])],
    ['tensor: shape 3, wanted a list of positive integers', () => Tensor.zeros('f32', 3)],
    ['tensor: shape ["1","3"], wanted a list', () => Tensor.zeros('f32', ['1', '3'])],
    ['tensor: f32 data is an Array, wanted a Float32Array', () => new Tensor('f32', [1, 3], [1, 2, 3])],
    ['parameter: shape 3, wanted a list of positive integers', () => new Parameter(3)],
  ]);

  check('layers', [
    ["layers: Conv: option 'kernel' is missing", () => new layers.Conv(3, 8)],
    ['layers: Conv: from "4", wanted a positive integer', () => new layers.Conv('4', '8', { kernel: '3' })],
    ['layers: Conv: kernel "3", wanted a number, [h,w] or [t,h,w]', () => new layers.Conv(4, 8, { kernel: '3' })],
    ['layers: Conv: stride "2" for kernel 3, wanted', () => new layers.Conv(4, 8, { kernel: 3, stride: '2' })],
    [
      'layers: Conv: 4 to 8 channels, wanted multiples of 3, its groups',
      () => new layers.Conv(4, 8, { kernel: 3, groups: 3 }),
    ],
    ["layers: OctConv: option 'kernel' is missing", () => new layers.OctConvNorm(1, 8, { alphaOut: 0.5 })],
    ['layers: OctConv: kernel 4, wanted odd sizes', () => new layers.OctConv(4, 8, { kernel: 4 })],
    ['layers: OctConv: stride 3, wanted 1 or 2', () => new layers.OctConvNorm(4, 8, { kernel: 3, stride: 3 })],
    ['octave: alpha ".5", wanted', () => new layers.OctConv(4, 8, { kernel: 3, alphaIn: '.5' })],
    ['octave: "4" channels, wanted a positive integer or an Octave', () => new layers.OctConv('4', 8, { kernel: 3 })],
    ['layers: BatchNorm: eps {"eps":0.001}, wanted at least 0', () => new layers.BatchNorm(8, { eps: 1e-3 })],
    ['layers: Linear: to nothing, wanted a positive integer', () => new layers.Linear(3)],
  ]);

  check('options of ops', [
    ["maxPool: option 'kernel' is missing", () => ops.maxPool(x, { stride: 2 })],
    ["avgPool: option 'kernel' is missing", () => ops.avgPool(x)],
    ["upsampleNearest: option 'scale' is missing", () => ops.upsampleNearest(x)],
    ['conv: stride "2" for x [1,8,8,4], wanted a number', () => ops.conv(x, { weight }, { stride: '2' })],
    ['conv: groups "2", wanted a positive integer', () => ops.conv(x, { weight }, { groups: '2' })],
    ['conv: got nothing for the parameters, wanted an object', () => ops.conv(x)],
    ['octConv: got nothing for the parameters', () => ops.octConv(new octconv.Octave(x))],
    ["mean: option 'axes' is missing", () => ops.mean(x, {})],
    ['mean: axes 1, wanted a list of numbers', () => ops.mean(x, { axes: 1 })],
    ["slice: option 'starts' is missing", () => ops.slice(x)],
    ['slice: ends 3, wanted a list of numbers', () => ops.slice(x, { starts: [1], ends: 3 })],
    ['transpose: options: an Array, wanted { axes', () => ops.transpose(x, [0, 2, 1, 3])],
    ["transpose: option 'axes' is missing", () => ops.transpose(x)],
    ["reshape: option 'shape' is missing", () => ops.reshape(x, {})],
    ['pad: value "1", wanted a number', () => ops.pad(x, { before: 1, value: '1' })],
    ['concat: got an empty Array, wanted one value or more', () => ops.concat([])],
    [
      'add: got nothing, wanted a Value or a Tensor; a forward gets one value per input, as forward(a, b)',
      () => compile(({ a, b }: Any) => ops.add(a, b), [[1, 2]]),
    ],
  ]);

  const weights = 'wanted { tensors, read }, as await openWeights(file) and initialize(network) give them';
  check('weights and networks', [
    [`weights: got nothing, ${weights}`, () => new Model(network)],
    [`weights: got a string, ${weights}`, () => new Model(network, path)],
    [`weights: got a Map, ${weights}`, () => new Model(network, new Map())],
    [`weights: got an Object, ${weights}`, () => new Model(network, { 'fc.weight': weight })],
    [`weights: got a Promise, ${weights}`, () => new Model(network, Promise.resolve())],
    ['model: network: got an Object, wanted a Module', () => new Model({}, initialize(network))],
    ['module: got "resnet-18", wanted a Module', () => initialize('resnet-18')],
    ['quantize: batches: got nothing, wanted Tensors', () => (octconv as Any).quantize(network, initialize(network))],
    ['saveModel: got nothing, wanted a Model', () => (octconv as Any).saveModel('no/where')],
    ['openWeights: got nothing, wanted a path', () => (octconv as Any).openWeights()],
    ['runGraph: got nothing, wanted a Graph', () => (octconv as Any).runGraph()],
  ]);

  check('options of pictures', [
    ['formats: "jpeg", wanted a list of some of jpeg,', () => model.classify(cat, { formats: 'jpeg' })],
    ['signal: got a number, wanted an AbortSignal', () => model.classify(cat, { signal: 3 })],
    ['signal: got an AbortController, wanted', () => decodeImage(cat, { signal: new AbortController() })],
    ['signal: got a number, wanted an AbortSignal', () => model.run(x, { signal: 3 })],
    ['timeout: "3", wanted seconds', () => model.classify(cat, { timeout: '3' })],
    ['failed: 3, wanted a function', () => model.classify([cat], { failed: 3 })],
  ]);

  it('how a picture becomes the input, where it does', async () => {
    const { input } = model;
    try {
      for (const [given, message] of [
        [{ ...input, channels: 'grey' }, 'preprocess: input.channels is "grey", wanted "rgb" or "bgr" or "gray"'],
        [{ ...input, hieght: 9 }, 'preprocess: unknown field "input.hieght" (did you mean "height"?), wanted height,'],
        [{ channels: 'gray' }, 'preprocess: input.height is nothing, wanted an integer from 1 to 65536'],
      ] as const) {
        model.input = given;
        expect((await failure(model.classify(cat))).slice(0, message.length)).to.equal(message);
        expect((await failure(octconv.preprocess([], given as Any))).slice(0, message.length)).to.equal(message);
      }
    } finally {
      model.input = input;
    }
  });

  const wanted = 'wanted a Tensor, or a typed array with its shape';
  check('inputs of a run are no options', [
    [`model: input 0 is a Float32Array, ${wanted}`, () => model.run(new Float32Array(10))],
    [`model: input 0 is an Object, ${wanted}`, () => model.run({ a: x, b: x })],
    [`model: input 0 is an Array, ${wanted}`, () => model.run([1, 2, 3])],
    [`model: input 1 is an Array, ${wanted}`, () => model.run(x, [x])],
    [`model: input 0 is an Array with its shape, ${wanted}`, () => model.run({ data: [1, 2, 3], shape: [1, 3] })],
  ]);

  it('a network that takes its inputs apart is told so', async () => {
    class Sum extends Module {
      forward({ a, b }: Any) {
        return ops.add(a, b);
      }
    }
    const sum = new Sum();
    using made = new Model(sum, initialize(sum));
    expect(await failure(made.run(x))).to.match(/a forward gets one value per input, as forward\(a, b\)$/);
  });

  it("a picture's bytes as a text are cut", async () => {
    for (const encoding of ['latin1', 'base64'] as const) {
      const message = await failure(model.classify(bytes.toString(encoding)));
      expect(message).to.match(/: is no path; its bytes are wanted as a Uint8Array$/);
      expect(message.length).to.be.below(600);
    }
  });
});
