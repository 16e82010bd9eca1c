import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import {
  buildNetwork,
  countFlops,
  createModel,
  defaultInput,
  type Feature,
  type Flops,
  type Graph,
  initialize,
  layers,
  loadModel,
  Module,
  namedParameters,
  type NetworkName,
  type NetworkOptions,
  networkNames,
  OctconvError,
  openWeights,
  ops,
  Tensor,
} from '../lib/index.js';
import { targetOf } from '../lib/devices.js';
import { record as recordAt } from '../lib/model.js';
import {
  type Classifier,
  type Family,
  families,
  inputShape,
  narrowed,
  resolveNetworkOptions,
} from '../lib/models/index.js';
import { commonOptions } from '../lib/models/options.js';
import { elementCount } from '../lib/tensor.js';
import { checkWeights } from '../lib/weights/check.js';
import { writeModelFolder } from '../lib/weights/folder.js';
import { writeSafetensors } from '../lib/weights/safetensors.js';
import { numbers } from './cases.js';
import { error } from './expect.js';
import { skip } from './skip.js';

const record = (network: Classifier, size = 224): Graph => recordAt(network, [1, size, size, 3]);
const giga = (count: number) => (count / 1e9).toFixed(3);
const shapesOf = (name: string, options?: NetworkOptions) =>
  new Map([...namedParameters(buildNetwork(name, options))].map(([key, { shape }]) => [key, shape]));

describe('models: cost at 224 px', () => {
  // Multiply-adds of the plain network and at alpha .125, .25, .5, .75 in G; parameters.
  const table = {
    26: ['2.342', '2.087', '1.858', '1.480', '1.208', 15_995_176],
    50: ['4.089', '3.565', '3.104', '2.367', '1.880', 25_557_032],
    101: ['7.801', '6.625', '5.598', '3.991', '2.982', 44_549_160],
    152: ['11.514', '9.685', '8.092', '5.615', '4.084', 60_192_808],
  } as const;
  it('ResNet-18 and ResNet-34 of basic blocks, octave with a projection in the first block', () => {
    for (const [name, multiplyAdds, parameters] of [
      ['resnet-18', '1.814', 11_689_512],
      ['resnet-34', '3.664', 21_797_672],
    ] as const) {
      const plain = countFlops(record(buildNetwork(name)));
      expect([giga(plain.multiplyAdds), plain.parameters]).to.deep.equal([multiplyAdds, parameters]);
      const merged = countFlops(record(buildNetwork(`oct-${name}`, { alpha: 0 })));
      expect([giga(merged.multiplyAdds), merged.parameters]).to.deep.equal([multiplyAdds, parameters]);
      const half = countFlops(record(buildNetwork(`oct-${name}`, { alpha: 0.5 })));
      expect(half.parameters).to.equal(parameters + 64 * 64 + 2 * 64);
      expect(half.multiplyAdds / plain.multiplyAdds).to.be.within(0.5, 0.65); // 1 - 3/4 alpha (2 - alpha), stem and layer4 aside
    }
  });

  for (const [depth, row] of Object.entries(table)) {
    it(`ResNet-${depth} and Oct-ResNet-${depth}`, () => {
      const octave = [0.125, 0.25, 0.5, 0.75].map((alpha) => buildNetwork(`oct-resnet-${depth}`, { alpha }));
      const costs = [buildNetwork(`resnet-${depth}`), ...octave].map((network) => countFlops(record(network)));
      expect(costs.map((cost) => giga(cost.multiplyAdds))).to.deep.equal(row.slice(0, 5));
      for (const cost of costs) expect(cost.parameters).to.equal(row[5]);
      expect(giga(countFlops(record(buildNetwork(`oct-resnet-${depth}`, { alpha: 0 }))).multiplyAdds)).to.equal(row[0]);
    });
  }
});

describe('models: cost of 8 frames of 224 px', () => {
  // Multiply-adds of the plain network and at alpha .1, .125, .25, .5 in G; parameters. The paper's 28.1 of I3D-50 are
  // those with 55 px in layer1, of a max-pool without padding.
  const table = {
    'c2d-50': [['19.493', '17.506', '16.949', '14.710', '11.150'], 24_327_632],
    'i3d-50': [['28.408', '25.781', '25.049', '22.102', '17.444'], 28_043_472],
    'i3d-101': [['46.956', '41.731', '40.337', '34.564', '25.559'], 51_754_192],
  } as const;
  for (const [name, [counts, parameters]] of Object.entries(table)) {
    it(`${name} and oct-${name}`, () => {
      const octave = [0.1, 0.125, 0.25, 0.5].map((alpha) => buildNetwork(`oct-${name}`, { alpha }));
      const flops = [buildNetwork(name), ...octave].map((network) =>
        countFlops(recordAt(network, [1, 8, 224, 224, 3])),
      );
      expect(flops.map(({ multiplyAdds }) => giga(multiplyAdds))).to.deep.equal(counts);
      for (const flop of flops) expect(flop.parameters).to.equal(parameters);
    });
  }
});

describe("models: the authors' count", () => {
  // The paper's table 1 and supplement; parameters in M. Without alpha: the plain network.
  const table: {
    readonly [network: string]: readonly [alphas: readonly number[], giga: readonly string[], parameters: string];
  } = {
    'resnet-v2-26': [[0.125, 0.25, 0.5, 0.75], ['2.352', '2.102', '1.872', '1.491', '1.216'], '15.99'],
    'resnet-v2-50': [[0.125, 0.25, 0.5, 0.75], ['4.103', '3.587', '3.123', '2.383', '1.891'], '25.55'],
    'resnet-v2-101': [[0.125, 0.25, 0.5], ['7.820', '6.656', '5.625', '4.012'], '44.55'],
    'densenet-121': [[0.125, 0.25], ['2.852', '2.428', '2.044'], '7.98'],
    'resnext-v2-50': [[0.25, 0.5, 0.75], ['4.247', '3.196', '2.406', '1.891'], '25.03'],
  };
  for (const [network, [alphas, counts, parameters]] of Object.entries(table)) {
    it(`of ${network} is that of their table`, () => {
      const octave = alphas.map((alpha) => buildNetwork(`oct-${network}`, { alpha }));
      const flops = [buildNetwork(network), ...octave].map((built): Flops => countFlops(record(built)));
      expect(flops.map(({ authors }) => giga(authors))).to.deep.equal(counts);
      for (const flop of flops) expect((flop.parameters / 1e6).toFixed(2)).to.equal(parameters);
    });
  }
});

describe('models: cost of MobileNets and of the deepest networks', () => {
  const costOf = (name: string, options?: NetworkOptions) => countFlops(record(buildNetwork(name, options)));

  it('of the plain ones: torchvision, d-li14, timm', () => {
    const costs = (['mobilenet-v1', 'mobilenet-v2', 'resnext-50', 'resnext-101', 'resnext-101-32x4d'] as const).map(
      (name) => {
        const { multiplyAdds, parameters } = costOf(name);
        return [giga(multiplyAdds), parameters];
      },
    );
    expect(costs).to.deep.equal([
      ['0.569', 4_231_976],
      ['0.301', 3_504_872],
      ['4.230', 25_028_904],
      ['16.414', 88_791_336],
      ['7.970', 44_177_704],
    ]);
  });

  it("of the octave ones: the authors' table and d-li14's", () => {
    // Their tool leaves ReLUs out here (test/mxnet.test.ts), and most of pooling is less than a percent.
    for (const [name, options, multiplyAdds, parameters] of [
      ['oct-mobilenet-v1', { alpha: 0.5 }, 321e6, 4.2],
      ['oct-mobilenet-v1', { alpha: 0.375, multiplier: 0.75 }, 213e6, 2.6],
      ['oct-mobilenet-v2', { alpha: 0.375 }, 256e6, 3.5],
      ['oct-mobilenet-v2', { alpha: 0.5, multiplier: 1.125 }, 295e6, 4.2],
      ['oct-resnet-152-v1f', { alpha: 0.125 }, 10.9e9, 60.2],
      ['oct-se-resnet-152-v1e', { alpha: 0.125 }, 10.9e9, 66.9],
    ] as const) {
      const cost = costOf(name, options);
      expect(cost.multiplyAdds / multiplyAdds, name).to.be.within(0.99, 1);
      expect((cost.parameters / 1e6).toFixed(1), name).to.equal(`${parameters}`);
    }
    expect((costOf('oct-mobilenet-v1').multiplyAdds / 1e6).toFixed(1)).to.equal('318.2');
  });
});

describe('models: parameters', () => {
  it("MobileNet V2 has torchvision's names, Oct-MobileNet V1 d-li14's", () => {
    const shapes = shapesOf('mobilenet-v2');
    expect(shapes.size).to.equal(262); // 314 with counters
    expect(shapes.get('features.0.0.weight')).to.deep.equal([32, 3, 3, 3]);
    expect(shapes.get('features.1.conv.0.0.weight')).to.deep.equal([32, 1, 3, 3]);
    expect(shapes.get('features.1.conv.2.running_var')).to.deep.equal([16]);
    expect(shapes.get('features.17.conv.1.0.weight')).to.deep.equal([960, 1, 3, 3]);
    expect(shapes.get('features.17.conv.2.weight')).to.deep.equal([320, 960, 1, 1]);
    expect(shapes.get('features.18.1.weight')).to.deep.equal([1280]);
    expect(shapes.get('classifier.1.weight')).to.deep.equal([1000, 1280]);
    expect(shapesOf('mobilenet-v2', { multiplier: 0.35 }).get('features.2.conv.0.0.weight')).to.deep.equal([
      48, 8, 1, 1,
    ]);

    const octave = shapesOf('oct-mobilenet-v1');
    const counters = [...octave.keys()].filter((name) => name.endsWith('running_mean')).length;
    expect(octave.size + counters).to.equal(303);
    expect(octave.get('features.0.1.weight')).to.deep.equal([32]);
    expect(octave.get('features.1.0.conv.conv_h2h.weight')).to.deep.equal([32, 1, 3, 3]);
    expect(octave.get('features.2.0.conv.conv_l2l.weight')).to.deep.equal([32, 1, 3, 3]);
    expect(octave.get('features.11.1.conv.conv_l2h.weight')).to.deep.equal([512, 256, 1, 1]);
    expect(octave.get('features.13.1.bn_h.running_mean')).to.deep.equal([1024]);
    expect(octave.get('fc.weight')).to.deep.equal([1000, 1024]);
  });

  it("ResNeXt-101 has torchvision's names", () => {
    const shapes = shapesOf('resnext-101');
    expect(shapes.size).to.equal(522); // 626 with counters
    expect(shapes.get('layer1.0.conv2.weight')).to.deep.equal([256, 8, 3, 3]);
    expect(shapesOf('resnext-101-32x4d').get('layer1.0.conv2.weight')).to.deep.equal([128, 4, 3, 3]);
  });

  it("Oct-ResNet-50 has the 654 keys of d-li14's checkpoint, its counters included", () => {
    const shapes = shapesOf('oct-resnet-50');
    const counters = [...shapes.keys()].filter((name) => name.endsWith('running_mean')).length;
    expect(shapes.size + counters).to.equal(654);
    expect(shapes.get('layer1.0.conv2.conv.conv_l2h.weight')).to.deep.equal([32, 32, 3, 3]);
    expect(shapes.get('layer4.0.downsample.0.conv.conv_l2h.weight')).to.deep.equal([2048, 512, 1, 1]);
    expect(shapes.get('layer4.2.conv3.bn_h.running_var')).to.deep.equal([2048]);
    expect(shapes.get('fc.weight')).to.deep.equal([1000, 2048]);
    const paths = (layer: string) =>
      [...shapes.keys()]
        .filter((name) => name.startsWith(layer))
        .map((name) => /conv_(...)\./.exec(name)?.[1])
        .filter(Boolean);
    expect(paths('layer1.0.conv1')).to.deep.equal(['h2h', 'h2l']);
    expect(paths('layer1.0.downsample.0')).to.deep.equal(['h2h', 'h2l']);
    expect(paths('layer2.0.downsample.0')).to.deep.equal(['h2h', 'l2h', 'h2l', 'l2l']);
    expect(paths('layer4.0.conv1')).to.deep.equal(['h2h', 'l2h']);
    expect(paths('layer4.0.conv2')).to.deep.equal(['h2h']);
    expect(shapes.has('layer4.0.conv1.bn_l.weight')).to.equal(false);
  });

  it("ResNet-50 has torchvision's names", () => {
    const shapes = shapesOf('resnet-50');
    expect([...shapes.keys()].slice(0, 2)).to.deep.equal(['conv1.weight', 'bn1.weight']);
    expect(shapes.get('layer1.0.downsample.0.weight')).to.deep.equal([256, 64, 1, 1]);
    expect(shapes.get('layer1.0.downsample.1.running_mean')).to.deep.equal([256]);
    expect(shapes.get('layer3.5.conv2.weight')).to.deep.equal([256, 256, 3, 3]);
    expect(shapes.size).to.equal(267);
  });

  it("ResNet-18 has torchvision's names, Oct-ResNet-18 the same pattern as d-li14's", () => {
    const shapes = shapesOf('resnet-18');
    expect(shapes.size).to.equal(102); // 122 with counters
    expect([...shapes.keys()].slice(0, 2)).to.deep.equal(['conv1.weight', 'bn1.weight']);
    expect(shapes.get('layer1.0.conv1.weight')).to.deep.equal([64, 64, 3, 3]);
    expect(shapes.has('layer1.0.downsample.0.weight')).to.equal(false);
    expect(shapes.get('layer2.0.downsample.0.weight')).to.deep.equal([128, 64, 1, 1]);
    expect(shapes.get('layer4.1.bn2.running_var')).to.deep.equal([512]);
    const octave = shapesOf('oct-resnet-18');
    expect(octave.get('layer1.0.conv1.conv.conv_h2l.weight')).to.deep.equal([32, 64, 3, 3]);
    expect(octave.get('layer1.0.downsample.0.conv.conv_h2l.weight')).to.deep.equal([32, 64, 1, 1]);
    expect(octave.get('layer4.0.conv1.conv.conv_l2h.weight')).to.deep.equal([512, 128, 3, 3]);
    expect(octave.has('layer4.0.conv2.conv.conv_l2h.weight')).to.equal(false);
    expect(octave.has('layer1.1.downsample.0.conv.conv_h2h.weight')).to.equal(false);
    expect(shapesOf('oct-resnet-18', { alpha: 0 }).has('layer1.0.downsample.0.conv.conv_h2h.weight')).to.equal(false);
  });

  const files: [file: string, network: string, options: NetworkOptions][] = [
    ['weights/cifar10-oct-resnet-26-a0.pth', 'oct-resnet-26', { alpha: 0, width: 16, classes: 10, stem: 'cifar' }],
    ['weights/cifar10-oct-resnet-26-a50.pth', 'oct-resnet-26', { alpha: 0.5, width: 16, classes: 10, stem: 'cifar' }],
    ['golden/oct-resnet-50-w8-a12-odd.pth', 'oct-resnet-50', { alpha: 0.125, width: 8, classes: 7 }],
    ['golden/resnet-26-w16.pth', 'resnet-26', { width: 16, classes: 10 }],
  ];
  for (const [file, network, options] of files) {
    it(`${network} is what ${file} holds`, async function () {
      const path = fileURLToPath(new URL(`../../shared/${file}`, import.meta.url));
      if (!existsSync(path)) skip(this, 'shared');
      const source = await openWeights(path);
      try {
        checkWeights(shapesOf(network, options), source);
      } finally {
        await source.close();
      }
    });
  }
});

describe('models: structure', () => {
  it('records at every size, odd ones too', () => {
    for (const name of networkNames) {
      for (const size of [75, 81, 97, 33]) {
        const [, ...extent] = inputShape({ name }, { height: size, width: size });
        const graph = recordAt(buildNetwork(name, { ...narrowed(name, 8), classes: 5 }), [1, ...extent]);
        expect(graph.values[graph.outputs[0]!]?.shape).to.deep.equal([1, 5]);
      }
    }
  });

  it('run as the reference does at sizes down to a pixel and at any alpha', async function () {
    this.timeout(120_000);
    const check = async (name: string, alpha: number, [height, width]: readonly [number, number]) => {
      const blocks = 'blocks' in resolveNetworkOptions(name, {}) && { blocks: [1, 2, 1, 1] };
      const options = { ...narrowed(name, 8), classes: 5, alpha, ...blocks };
      const shape = inputShape({ name }, { height, width }).with(0, 2);
      const x = new Tensor('f32', shape, numbers(elementCount(shape), 1));
      using cpu = createModel(name, options, { device: 'cpu' });
      using reference = createModel(name, options, { device: 'reference' });
      expect(error((await cpu.run(x)).data, (await reference.run(x)).data), `${name} ${alpha}`).to.be.below(1e-5);
    };
    const octave = networkNames.filter((name) => /^oct/.test(name) && !/-(34|50|101|121|152|200)\b/.test(name));
    for (const name of octave) {
      await check(name, 0.01, [1, 1]);
      await check(name, 0.75, [2, 33]);
      if (!/resnext/.test(name)) await check(name, 0.99, [33, 1]);
      else
        expect(() => buildNetwork(name, { alpha: 0.99 })).to.throw(OctconvError, 'layer1.0.conv2: 2 high and 126 low');
    }
  });

  it('inputs of another rank or order are errors that name the network', async () => {
    using video = createModel('oct-i3d-26', { width: 4, classes: 2 });
    using images = createModel('oct-resnet-26', { width: 4, classes: 2 });
    const message = (model: typeof video, shape: readonly number[]) =>
      model.run(Tensor.zeros('f32', shape as never)).then(
        () => 'none',
        ({ message }: Error) => message,
      );
    const clip = 'oct-i3d-26: got [1,64,64,3], wanted clips [N,T,H,W,3]';
    expect(await message(video, [1, 64, 64, 3])).to.equal(clip);
    expect(await message(video, [1, 3, 8, 64, 64])).to.equal(
      'oct-i3d-26: got [1,3,8,64,64], wanted clips [N,T,H,W,3]; this looks like [N,C,T,H,W], which toNHWC turns',
    );
    expect(await message(images, [1, 8, 64, 64, 3])).to.equal(
      'oct-resnet-26: got [1,8,64,64,3], wanted images [N,H,W,3]',
    );
    expect(await message(images, [1, 3, 64, 64])).to.include('this looks like [N,C,H,W], which toNHWC turns');
  });

  it('the cifar stem keeps the size', () => {
    const graph = record(buildNetwork('oct-resnet-26', { width: 16, stem: 'cifar' }), 32);
    expect(graph.nodes.some(({ op }) => op === 'maxPool')).to.equal(false);
    expect(graph.values[graph.nodes[0]!.outputs[0]!]?.shape).to.deep.equal([1, 32, 32, 16]);
    expect(shapesOf('oct-resnet-26', { width: 16, stem: 'cifar' }).get('conv1.weight')).to.deep.equal([16, 3, 3, 3]);
  });

  it('octave at alpha 0 pools where the plain network strides', () => {
    const strides = (name: string) =>
      record(buildNetwork(name, { width: 8, ...(name.startsWith('oct') && { alpha: 0 }) })).nodes.filter(
        ({ op, attrs }) => op === 'conv' && String(attrs.stride) === '1,2,2',
      ).length;
    expect(strides('resnet-26')).to.equal(7); // the stem, and the 3x3 and the shortcut of three blocks
    expect(strides('oct-resnet-26')).to.equal(1);
  });

  it('names and options out of range are errors', () => {
    const cases: [name: string, options: object, message: string][] = [
      [
        'resnet-51',
        {},
        'network \'resnet-51\' (did you mean "resnet-50"?), wanted one of resnet-18, resnet-34, resnet-26, ',
      ],
      ['\u001b[2J', {}, "network '\\u001b[2J', wanted one of"],
      ['constructor', {}, "network 'constructor', wanted one of"],
      [undefined as never, {}, 'network nothing, wanted one of'],
      ['oct-resnet-50', { alpha: 1 }, 'oct-resnet-50: alpha 1, wanted at least 0 and less than 1'],
      ['oct-resnet-50', { alpha: -0.1 }, 'oct-resnet-50: alpha -0.1, wanted'],
      ['resnet-50', { alpha: 0.5 }, 'resnet-50: alpha 0.5, wanted 0: only the octave networks have one'],
      ['resnet-50', { width: 0 }, 'resnet-50: width 0, wanted an integer from 1 to 65536'],
      ['resnet-50', { classes: 2.5 }, 'resnet-50: classes 2.5, wanted'],
      ['resnet-50', { stem: 'mnist' }, 'resnet-50: stem "mnist", wanted imagenet or cifar'],
      ['se-resnet-v2-50', { width: 3 }, 'se-resnet-v2-50: width 3, wanted an integer from 4 to 65536'],
      ['oct-se-resnet-v1e', { width: 3 }, 'oct-se-resnet-v1e: width 3, wanted an integer from 4 to 65536'],
      [
        'oct-resnext-v2-50',
        { alpha: 0.125 },
        'layer1.0.conv2: 112 high and 16 low channels, wanted multiples of 32, its groups',
      ],
      ['resnext-101', { width: 6 }, 'layer1.0.conv2: 24 channels, wanted multiples of 32, its groups'],
      ['mobilenet-v2', { multiplier: 0 }, 'mobilenet-v2: multiplier 0, wanted a number from 1/16 to 16'],
      [
        'oct-mobilenet-v1',
        { width: 32 },
        'oct-mobilenet-v1: unknown option "width", wanted alpha, multiplier, classes,',
      ],
      ['resnet-v1f', { stemWidths: [8, 32] }, 'resnet-v1f: stemWidths [8,32], wanted three integers from 1 to 65536'],
      ['densenet-121', { width: 9 }, 'densenet-121: width 9, wanted an even integer from 2 to 65536'],
      ['resnet-v2', { blocks: [1, 2, 0, 1] }, 'resnet-v2: blocks [1,2,0,1], wanted four integers from 1 to 256'],
      ['resnet-v2-50', { blocks: [1, 2, 1, 1] }, 'resnet-v2-50: unknown option "blocks", wanted alpha,'],
      [
        'resnet-50',
        { widht: 8 },
        'resnet-50: unknown option "widht" (did you mean "width"?), wanted alpha, width, classes, stem, channels',
      ],
    ];
    for (const [name, options, message] of cases)
      expect(() => buildNetwork(name, options)).to.throw(OctconvError, message);
  });
});

describe('models: from where they are loaded', () => {
  const name = 'cifar10-oct-resnet-26-a50';
  it('a shipped model by its name, from any folder', async () => {
    using model = await loadModel(name);
    expect(model.labels).to.include('cat');
  });

  it('a file: URL', async () => {
    using model = await loadModel(new URL(`../models/${name}`, import.meta.url));
    expect(model.name).to.equal('oct-resnet-26');
  });

  it('other URLs and names are errors that say what was wanted', async () => {
    expect(await loadModel(new URL('https://example.org/model')).catch(String)).to.include(
      'wanted a path or a file: URL',
    );
    expect(await loadModel('no-such-model').catch(String)).to.include('no-such-model: no such file');
    expect(await loadModel(undefined as never).catch(String)).to.include('model: got "undefined"');
  });
});

describe('models: a family from outside', () => {
  class Tiny extends Module {
    readonly only: layers.Linear;
    constructor(classes: number) {
      super();
      this.only = new layers.Linear(3, classes);
    }
    forward(x: Feature) {
      return this.only.forward(ops.globalAvgPool(x));
    }
  }
  const tiny: Family<'tiny'> = {
    names: ['tiny'],
    options: () => ({ classes: commonOptions(false).classes }),
    build: (_, { classes }) => new Tiny(classes),
    defaultInput: () => ({ ...defaultInput('cifar'), mean: [0, 0, 0] }),
    infer(parameters) {
      const [classes] = parameters.get('only.weight') ?? [];
      return classes === undefined ? undefined : { network: 'tiny', options: { classes } };
    },
  };
  before(() => families.push(tiny));
  after(() => families.splice(families.indexOf(tiny), 1));

  it('is made, written, read and inferred as all others are', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'octconv-family-'));
    try {
      using made = createModel('tiny', { classes: 2 });
      expect(made.options).to.deep.equal({ classes: 2 });
      expect(made.input?.mean).to.deep.equal([0, 0, 0]);
      const x = new Tensor(
        'f32',
        [1, 2, 2, 3],
        Float32Array.from({ length: 12 }, (_, i) => i),
      );
      const wanted = (await made.run(x)).data;
      const weights = initialize(buildNetwork('tiny', { classes: 2 }));
      const file = join(folder, 'tiny.safetensors');
      await writeSafetensors(file, weights);
      const config = { network: 'tiny', options: made.options as never, input: defaultInput('cifar') };
      await writeModelFolder(join(folder, 'model'), config, ['a', 'b'], weights);
      for (const path of [file, join(folder, 'model')]) {
        using model = await loadModel(path);
        expect([model.name, model.options]).to.deep.equal(['tiny', { classes: 2 }]);
        expect((await model.run(x)).data).to.deep.equal(wanted);
      }
      expect(() => createModel('tiny', { alpha: 0 })).to.throw(
        OctconvError,
        'tiny: unknown option "alpha", wanted classes',
      );
      expect(() => buildNetwork('teeny')).to.throw(OctconvError, /wanted one of .*, tiny$/);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it('its names are a type', () => {
    const name: NetworkName = 'oct-resnet-18';
    expect(networkNames).to.include(name);
    // @ts-expect-error no such network
    const none: NetworkName = 'oct-resnet-19';
    expect(networkNames).to.not.include(none);
  });

  it('a ResNeXt has panels across groups, where there is an instruction for it', async () => {
    const { isa, dotProducts } = targetOf('cpu').traits;
    const has = async (dtype: 'f32' | 'bf16', start: RegExp) => {
      using model = createModel(
        'resnext-v2',
        { blocks: [1, 1, 1, 1], width: 16, groups: 8, classes: 2 },
        { device: 'cpu', dtype },
      );
      const { algorithms } = await model.plan([1, 64, 64, 3]);
      return algorithms.some((algorithm) => start.test(algorithm));
    };
    const there = isa !== 'baseline';
    expect(await has('f32', /^groups \d/)).to.equal(there);
    expect(await has('bf16', dotProducts.includes('bf16') ? /^groups of words \d/ : /^groups \d/)).to.equal(there);
  });
});
