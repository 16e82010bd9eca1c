/** The networks in examples/: on every device they give what onnxruntime computes from their export. */
import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import { TinyEfficientNet } from '../examples/networks/efficientnet.js';
import { FeaturePyramid } from '../examples/networks/fpn.js';
import { UNet } from '../examples/networks/u-net.js';
import { type Feature, initialize, Model, type Module, type Tensor, tensor, toOnnx } from '../lib/index.js';
import { toNCHW, toNHWC } from '../lib/layout.js';
import { record } from '../lib/model.js';
import { elementCount } from '../lib/tensor.js';
import { numbers } from './cases.js';

type F32 = Tensor<'f32'>;

function expectClose(got: F32 | undefined, wanted: F32): void {
  expect(got?.shape).to.deep.equal(wanted.shape);
  const largest = wanted.data.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  expect(largest).to.be.within(1e-3, 1e6);
  for (const [i, value] of wanted.data.entries()) {
    const difference = Math.abs((got?.data[i] as number) - value);
    if (!(difference <= 1e-4 * largest))
      expect.fail(`element ${i} is ${got?.data[i]}, wanted ${value}; the largest is ${largest}`);
  }
}

/** What onnxruntime computes, in the order in which the network gives it. */
async function inOnnxruntime(
  graph: Parameters<typeof toOnnx>[0],
  source: ReturnType<typeof initialize>,
  x: F32,
): Promise<F32[]> {
  const session = await ort.InferenceSession.create(await toOnnx(graph, source), {
    graphOptimizationLevel: 'disabled',
    intraOpNumThreads: 1,
  });
  const { shape, data } = toNCHW(x);
  const results = await session.run({ input: new ort.Tensor('float32', data, shape) });
  await session.release();
  return session.outputNames.map((name) => {
    const { dims, data } = results[name] as ort.Tensor;
    const y = tensor('f32', dims, data as Float32Array);
    return dims.length === 4 ? toNHWC(y) : y;
  });
}

/** One image of an even size, two of an odd one; `run` gives all outputs as a list. */
async function check<Y>(
  network: Module<Feature, Y> & { forward(x: Feature): Y },
  run: (model: Model<Y, [x: Feature]>, x: F32) => Promise<readonly F32[]>,
  shapesOf: (n: number, h: number, w: number) => readonly (readonly number[])[],
): Promise<void> {
  const source = initialize(network);
  for (const [n, h, w] of [
    [1, 48, 64],
    [2, 45, 61],
  ] as const) {
    const x = tensor('f32', [n, h, w, 3], numbers(elementCount([n, h, w, 3]), n));
    const wanted = await inOnnxruntime(record(network, x.shape), source, x);
    expect(wanted.map(({ shape }) => shape)).to.deep.equal(shapesOf(n, h, w));
    for (const device of ['cpu', 'reference'] as const) {
      using model = new Model<Y, [x: Feature]>(network, source, { device, threads: 2 });
      const got = await run(model, x);
      expect(got).to.have.length(wanted.length);
      for (const [i, y] of wanted.entries()) expectClose(got[i], y);
    }
  }
}

describe('examples', function () {
  this.timeout(60_000);

  it('U-Net', () =>
    check(
      new UNet(4, [8, 12, 16]),
      async (model, x) => [await model.run(x)],
      (n, h, w) => [[n, h, w, 4]],
    ));

  it('feature pyramid, three outputs', () =>
    check(
      new FeaturePyramid([16, 24, 32], 12),
      async (model, x) => {
        const { p4, p8, p16, ...rest } = await model.run(x);
        expect(rest).to.deep.equal({});
        return [p4, p8, p16];
      },
      (n, h, w) => [4, 8, 16].map((scale) => [n, Math.ceil(h / scale), Math.ceil(w / scale), 12]),
    ));

  it('EfficientNet', () =>
    check(
      new TinyEfficientNet(5),
      async (model, x) => [await model.run(x)],
      (n) => [[n, 5]],
    ));
});
