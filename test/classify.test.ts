import { readFileSync } from 'node:fs';
import { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { checkLogits, classify } from '../lib/classify.js';
import { OctconvError } from '../lib/error.js';
import { loadBatches } from '../lib/input/batches.js';
import { defaultInput } from '../lib/input/preprocess.js';
import { Linear, Module } from '../lib/layers/index.js';
import { loadModel, Model } from '../lib/model.js';
import * as ops from '../lib/ops.js';
import type { Value } from '../lib/graph/graph.js';
import { tensor } from '../lib/tensor.js';
import { initialize } from '../lib/weights/random.js';
import { failure } from './expect.js';

const cat = fileURLToPath(new URL('images/cat.jpg', import.meta.url));
const bytes = readFileSync(cat);

describe('classify', () => {
  let model: Model;
  before(async () => {
    model = await loadModel(fileURLToPath(new URL('../models/cifar10-oct-resnet-26-a50', import.meta.url)));
  });
  after(() => model.dispose());

  it('model.classify: one source gives one answer, whatever it is', async () => {
    const one = await model.classify(cat, { top: 2 });
    expect(one.file).to.equal(cat);
    expect(one.index).to.equal(0);
    expect(one.top.length).to.equal(2);
    expect(one.top[0]?.label).to.equal('cat');
    for (const source of [bytes, new Blob([bytes]), Readable.from([bytes])]) {
      const { file, top } = await model.classify(source, { top: 2 });
      expect(file).to.equal('picture');
      expect(top).to.deep.equal(one.top);
    }
  });

  it('model.classify: many give many, in order; none give none', async () => {
    const many = await model.classify([bytes, cat, Readable.from([bytes])], { batch: 2 });
    expect(many.map(({ file }) => file)).to.deep.equal(['picture 0', cat, 'picture 2']);
    expect(many.map(({ index }) => index)).to.deep.equal([0, 1, 2]);
    for (const { top } of many) expect(top[0]?.label).to.equal('cat');
    expect(await model.classify([])).to.deep.equal([]);
  });

  it('model.classify: a picture that cannot be read is an error that names it', async () => {
    const text = Buffer.from('text');
    expect(await failure(model.classify([bytes, text]))).to.equal(
      'picture 1: is not a picture, wanted JPEG, PNG or WebP',
    );
    expect(await failure(model.classify(text, { failed: () => undefined }))).to.match(/^picture: is not a picture/);
    expect(await failure(model.classify(bytes, { maxPixels: 100 }))).to.match(
      /^picture: is too large, 451 x 300, wanted at most 100/,
    );
    expect(await failure(model.classify(cat, { top: 0 }))).to.match(/^top: 0/);
    const told: [string, number][] = [];
    const rest = await model.classify([text, bytes], { failed: (_, file, index) => told.push([file, index]) });
    expect(rest.map(({ index }) => index)).to.deep.equal([1]);
    expect(told).to.deep.equal([['picture 0', 0]]);
  });

  it('classify: a path that is no list', async () => {
    const files: string[] = [];
    for await (const { file } of classify(model, cat)) files.push(file);
    expect(files).to.deep.equal([cat]);
  });

  it('an abort ends it at once and destroys what was not read', async () => {
    const stalled = [new Readable({ read() {} }), new Readable({ read() {} })];
    const stop = new AbortController();
    const running = model.classify([bytes, ...stalled], { batch: 1, signal: stop.signal });
    setTimeout(() => stop.abort('enough'), 100);
    const start = performance.now();
    expect(await running.catch((reason: unknown) => reason)).to.equal('enough');
    expect(performance.now() - start).to.be.below(1000);
    expect(stalled.map(({ destroyed }) => destroyed)).to.deep.equal([true, true]);
  });

  it('streams are destroyed where an option is refused, or the model takes no pictures', async () => {
    using blind = Object.assign(new Model(new Mean(), initialize(new Mean())), { input: undefined });
    const calls: ((source: Readable) => Promise<unknown>)[] = [
      ...[{ tpo: 1 }, { top: 0 }, { batch: 0 }, { maxBytes: 0 }].map(
        (options) => (source: Readable) => model.classify([source], options),
      ),
      (source) => blind.classify(source),
      (source) => loadBatches(source, defaultInput(), { batch: 0 }).next(),
      (source) => loadBatches(source, defaultInput(), { tpo: 0 } as never).next(),
    ];
    for (const [i, call] of calls.entries()) {
      const source = new Readable({ read() {} });
      await failure(call(source));
      expect(source.destroyed, `call ${i}`).to.equal(true);
    }
  });

  class Mean extends Module {
    readonly fc = new Linear(3, 2);
    forward(x: Value<'f32', readonly number[]>): Value<'f32'> {
      return this.fc.forward(ops.globalAvgPool(x as Value<'f32', readonly [number, number, number, number]>));
    }
  }

  it('logits that are not finite are an error that names picture and output', async () => {
    const network = new Mean();
    const weights = initialize(network);
    // Finite weights whose products are not.
    const read = async (name: string) => (name === 'fc.weight' ? new Float32Array(6).fill(3e38) : weights.read(name));
    using broken = Object.assign(new Model(network, { tensors: weights.tensors, read }), {
      input: { ...defaultInput('cifar'), mean: [-9, -9, -9], std: [1, 1, 1] } as const,
      labels: ['plane', 'car'],
    });
    expect(await failure(broken.classify([cat]))).to.equal(
      `${cat}: the network gives Infinity for class 0 (plane), wanted a number`,
    );
  });

  it('checkLogits names the first of them', () => {
    const logits = tensor('f32', [2, 3], Float32Array.of(1, 2, 3, 4, Number.NaN, Number.NEGATIVE_INFINITY));
    expect(() => checkLogits(logits, ['a.png', 'b.png'])).to.throw(
      OctconvError,
      'b.png: the network gives NaN for class 1, wanted a number',
    );
    expect(() => checkLogits(logits, ['a.png'])).to.throw(
      OctconvError,
      'classify: the network gives [2,3], wanted [1,classes]',
    );
    expect(() => checkLogits(tensor('f32', [1, 2], Float32Array.of(-3e38, 0)), ['a.png'])).not.to.throw();
  });
});
