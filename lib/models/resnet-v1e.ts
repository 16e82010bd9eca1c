/**
 * The authors' largest networks (arXiv 1904.05049, section 4.3; their Gluon code): bottlenecks with the stride in the
 * second 1x1, behind a stem of three 3x3. v1f has a second stem for the max-pool (arXiv 1807.03848), v1e
 * squeeze-and-excitation.
 */
import { inputOf } from '../input/preprocess.js';
import { BatchNorm, Conv, type Feature, Module } from '../layers/index.js';
import { relu } from '../ops.js';
import { type Family, splitName, withOctave } from './family.js';
import { gluonInput, gluonParameter } from './gluon.js';
import {
  blocksOption,
  commonOptions,
  gatedWidthOption,
  type ResolvedNetworkOptions,
  stemWidthsOption,
} from './options.js';
import { Bottleneck, OctBottleneck, octaveForm, plainForm, ResNet } from './resnet.js';
import { OctSEBottleneck, SEBottleneck } from './se-bottleneck.js';
import { checkInner, countBlocks, inferAlpha, inferInner, shapeOf } from './shapes.js';

/** Three 3x3; the normalisation of the last one is the network's `bn1`. */
class DeepStem extends Module<Feature, Feature> {
  readonly 0: Conv;
  readonly 1: BatchNorm;
  readonly 3: Conv;
  readonly 4: BatchNorm;
  readonly 6: Conv;

  constructor(channels: number, [a = 0, b = 0, c = 0]: readonly number[], [first, second]: readonly [number, number]) {
    super();
    this[0] = new Conv(channels, a, { kernel: 3, stride: first });
    this[1] = new BatchNorm(a);
    this[3] = new Conv(a, b, { kernel: 3, stride: second });
    this[4] = new BatchNorm(b);
    this[6] = new Conv(b, c, { kernel: 3 });
  }

  forward(x: Feature): Feature {
    const y = relu(this[1].forward(this[0].forward(x)));
    return this[6].forward(relu(this[4].forward(this[3].forward(y))));
  }
}

const deepest = [3, 8, 36, 3] as const;
/** Each kind: its names, of which the first takes `blocks`, and the widths and strides of its stem. */
const kinds = {
  v1f: { names: ['resnet-v1f', 'resnet-152-v1f'], stemWidths: [8, 32, 64], strides: [1, 2] },
  v1e: { names: ['se-resnet-v1e', 'se-resnet-152-v1e'], stemWidths: [32, 32, 64], strides: [2, 1] },
} as const;
const kindOf = (plain: string) => (plain.endsWith('v1f') ? 'v1f' : 'v1e');
const names = withOctave([...kinds.v1f.names, ...kinds.v1e.names]);

/** The stem, and what is behind it. */
function stemOf(kind: keyof typeof kinds, { channels, stemWidths = [] }: ResolvedNetworkOptions) {
  const [, inner = 0, width = 0] = stemWidths;
  const conv1 = new DeepStem(channels, stemWidths, kinds[kind].strides);
  if (kind === 'v1e') return { stem: { conv1, width }, pools: [{ kernel: 3, stride: 2, padding: 1 }] };
  const place = { from: width, width: inner, to: width, stride: 2, alphaIn: 0, alphaOut: 0, projected: true };
  return { stem: { conv1, width, conv2: new Bottleneck(place) }, pools: [] };
}

export const resNetsV1e: Family<(typeof names)[number]> = {
  names,

  options(name) {
    const { plain, octave } = splitName(name);
    const { stem: _, width, ...common } = commonOptions(octave);
    const general = /^(se-)?resnet-v1/.test(plain);
    const kind = kindOf(plain);
    return {
      width: kind === 'v1e' ? gatedWidthOption : width,
      ...common,
      stemWidths: stemWidthsOption(kinds[kind].stemWidths),
      ...(general && { blocks: blocksOption(deepest) }),
    };
  },

  build(name, options) {
    const { plain, octave } = splitName(name);
    const kind = kindOf(plain);
    const layout = { ...stemOf(kind, options), blocks: options.blocks ?? deepest, expansion: 4 };
    const [Plain, Oct] = kind === 'v1e' ? [SEBottleneck, OctSEBottleneck] : [Bottleneck, OctBottleneck];
    return octave
      ? new ResNet(options, octaveForm, { ...layout, block: (place) => new Oct({ ...place, late: true }) })
      : new ResNet(options, plainForm, { ...layout, block: (place) => new Plain({ ...place, late: true }) });
  },

  defaultInput: (_, { channels }) => inputOf(gluonInput, channels),

  parameterOf(record) {
    const name = gluonParameter(record);
    if (name && /\.bn[14]a\.bn_[hl]\.weight$/.test(name)) return null; // the scale that stays 1
    return name
      ?.replace(/^stem\.7\./, 'bn1.')
      .replace(/^stem\./, 'conv1.')
      .replace(/^conv2\.conv4/, 'conv2.downsample.0')
      .replace(/^conv2\.bn4/, 'conv2.downsample.1');
  },

  infer(parameters) {
    const octave = parameters.has('layer1.0.conv1.conv.conv_h2h.weight');
    const kind = parameters.has('conv2.conv1.weight') ? 'v1f' : parameters.has('layer1.0.se.fc1.weight') && 'v1e';
    if (!kind || !parameters.has('conv1.0.weight')) return undefined;
    const inner = inferInner(parameters, (layer) => `${layer}${octave ? '.conv.conv_h2h' : ''}.weight`);
    const blocks = countBlocks(parameters);
    const { width } = inner;
    checkInner(inner, width, 3 * blocks.reduce((a, b) => a + b, 0) + 2);
    const stem = [0, 3, 6].map((i) => shapeOf(parameters, `conv1.${i}.weight`, 4));
    const [general, numbered] = kinds[kind].names;
    const named = blocks.join() === deepest.join();
    const plain = named ? numbered : general;
    return {
      network: octave ? `oct-${plain}` : plain,
      options: {
        alpha: octave ? inferAlpha(parameters) : 0,
        width,
        classes: shapeOf(parameters, 'fc.weight', 2)[0],
        channels: stem[0]?.[1],
        stemWidths: stem.map(([to = 0]) => to),
        ...(!named && { blocks }),
      },
    };
  },
};
