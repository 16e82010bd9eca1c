/** Image networks as video networks: where all frames are equal, the video network gives what the image network gives. */
import { expect } from 'chai';
import { fill, quantizeOnNoise, relativeError } from '../lib/bench/measure.js';
import { targetOf } from '../lib/devices.js';
import { OctconvError } from '../lib/error.js';
import { parameterShapes } from '../lib/layers/module.js';
import { Model, record } from '../lib/model.js';
import { buildNetwork, type NetworkOptions, resolveNetworkOptions } from '../lib/models/index.js';
import { inflate, type VideoKind } from '../lib/models/inflate.js';
import { PackedWeights, Plan } from '../lib/plan.js';
import { Tensor } from '../lib/tensor.js';
import { checkWeights } from '../lib/weights/check.js';
import { toFloats } from '../lib/weights/floats.js';
import { type MemoryTensor, memoryWeights } from '../lib/weights/memory.js';
import { initialize } from '../lib/weights/random.js';
import type { WeightSource } from '../lib/weights/source.js';

const imageOf = (name: string, options: NetworkOptions) => {
  const network = buildNetwork(name, options);
  return { name, options: resolveNetworkOptions(name, options), network, source: initialize(network) };
};

const image = fill(Tensor.zeros('f32', [1, 45, 37, 3]));

/** The image in every frame. */
function clipOf(frames: number): Tensor<'f32'> {
  const [, height = 0, width = 0, channels = 0] = image.shape;
  const clip = Tensor.zeros('f32', [1, frames, height, width, channels]);
  for (let t = 0; t < frames; t++) clip.data.set(image.data, t * image.data.length);
  return clip;
}

/** What the last blocks give, [1, H, W, C] or [1, T, H, W, C]: the mean over the frames hides where they differ. */
async function features(name: string, options: NetworkOptions, weights: WeightSource, x: Tensor<'f32'>) {
  const graph = record(buildNetwork(name, options), x.shape);
  const mean = graph.nodes.find(({ op }) => op === 'globalAvgPool');
  graph.outputs.splice(0, 1, mean?.inputs[0] as number);
  const plan = await Plan.compile(graph, new PackedWeights(weights, targetOf('cpu')), { threads: 1 });
  const [y] = await plan.run([x]);
  plan.dispose();
  return y as Tensor<'f32'>;
}

describe('inflated weights', function () {
  this.timeout(60_000);
  const networks: readonly [name: string, NetworkOptions][] = [
    ['resnet-26', { width: 8, classes: 7 }],
    ['oct-resnet-26', { width: 16, classes: 7, alpha: 0.5 }],
    ['oct-resnet-50', { width: 8, classes: 7, alpha: 0.1 }],
  ];

  for (const [name, options] of networks) {
    it(`${name} as c2d: a still clip has the logits of the image`, async () => {
      const { network, ...given } = imageOf(name, options);
      const video = inflate(given, 'c2d');
      expect(video.name).to.equal(name.replace('resnet', 'c2d'));
      using plain = new Model(network, given.source);
      using inflated = new Model(buildNetwork(video.name, video.options), video.source);
      const [wanted, got] = [await plain.run(image), await inflated.run(clipOf(5))];
      expect(relativeError(got.data, wanted.data)).to.be.below(1e-5);
    });

    it(`${name} as i3d: a still clip has the features of the image where no tap reaches the ends`, async () => {
      const given = imageOf(name, options);
      const video = inflate(given, 'i3d');
      expect(video.name).to.equal(name.replace('resnet', 'i3d'));
      // Either end reaches 2 frames in the stem and 1 in each kernel of 3 taps; layer1 is followed by a halving.
      const taps = (layers: readonly (readonly number[])[]) => layers.flat().filter((kernel) => kernel === 3).length;
      const [first = [], ...others] = video.options.temporalKernels ?? [];
      const reach = Math.ceil((2 + taps([first])) / 2) + taps(others);
      const frames = 2 * (2 * reach + 1);
      const wanted = await features(name, options, given.source, image);
      const got = await features(video.name, video.options, video.source, clipOf(frames));
      expect(got.shape).to.deep.equal([1, frames / 2, ...wanted.shape.slice(1)]);
      const { length } = wanted.data;
      const errorAt = (t: number) => relativeError(got.data.subarray(t * length, (t + 1) * length), wanted.data);
      expect(errorAt(reach)).to.be.below(1e-5);
      expect(errorAt(0)).to.be.above(1e-3);
    });
  }

  it('are the kernel at each tap, divided by the taps, in f32; what has one tap keeps its bits', async () => {
    const given = imageOf('resnet-26', { width: 4, classes: 3 });
    const halves = new Map<string, MemoryTensor>();
    for (const [key, { shape }] of given.source.tensors) {
      const floats = await given.source.read(key);
      const bits = Uint16Array.from(new Uint32Array(floats.slice().buffer), (word) => word >>> 16);
      halves.set(key, { dtype: 'bf16', shape, data: bits });
    }
    const { name, options, source } = inflate({ ...given, source: memoryWeights(halves) }, 'i3d');
    checkWeights(parameterShapes(buildNetwork(name, options)), source);
    const types = ['conv1', 'layer1.0.conv1', 'layer1.0.conv2'].map((layer) => source.tensors.get(`${layer}.weight`));
    expect(types).to.deep.equal([
      { dtype: 'f32', shape: [4, 3, 5, 7, 7] },
      { dtype: 'f32', shape: [4, 4, 3, 1, 1] },
      { dtype: 'bf16', shape: [4, 4, 1, 3, 3] },
    ]);
    const stem = await source.read('conv1.weight');
    const before = toFloats('bf16', halves.get('conv1.weight')?.data as Uint16Array);
    const wanted = Array.from({ length: 4 * 3 }, (_, i) => {
      const kernel = Array.from(before.subarray(49 * i, 49 * (i + 1)), (x) => Math.fround(x / 5));
      return [kernel, kernel, kernel, kernel, kernel].flat();
    });
    expect([...stem]).to.deep.equal(wanted.flat());
    expect(await source.read('layer1.0.conv2.weight')).to.equal(halves.get('layer1.0.conv2.weight')?.data);
  });

  it('are refused where there is no such video network', async () => {
    const wrong = (name: string, options: NetworkOptions, kind: VideoKind = 'i3d') =>
      expect(() => inflate(imageOf(name, options), kind)).to.throw(OctconvError);
    const one = 'wanted one of resnet-26, resnet-50, resnet-101, oct-resnet-26, oct-resnet-50, oct-resnet-101';
    for (const name of ['resnet-18', 'resnet-152', 'oct-resnet-v2-50', 'densenet-121', 'i3d-26'])
      wrong(name, {}).with.property('message', `seed 0: cannot be inflated to i3d: ${name}, ${one}`);
    wrong('oct-resnet-26', { stem: 'cifar' }, 'c2d').with.property(
      'message',
      'seed 0: cannot be inflated to c2d: stem cifar, wanted imagenet (7x7), as video networks have it',
    );
    const { network, ...given } = imageOf('resnet-26', { width: 8 });
    const source = await quantizeOnNoise(network, given.source, [1, 32, 32, 3]);
    expect(() => inflate({ ...given, source }, 'i3d')).to.throw('quantized weights, wanted floats');
  });
});
