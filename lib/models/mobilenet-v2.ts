/**
 * MobileNet V2 (arXiv 1801.04381). The plain network is torchvision's, with its names. The octave one is that of the
 * authors' Gluon code (arXiv 1904.05049): up to stride 16 expanded tensors, and only these, have two branches, and the
 * first block expands too, to as many channels.
 */
import { BatchNorm, Conv, ConvNorm, type Feature, Linear, Module } from '../layers/index.js';
import { Octave, splitChannels } from '../octave.js';
import { add, relu6 } from '../ops.js';
import { type Family, splitName, withOctave } from './family.js';
import { channelsOf, featureOf, inferMultiplier, MobileNet, mobileNets, OctUnit, PlainUnit } from './mobilenet.js';
import type { Pair, Part } from './preactivation.js';
import { inferAlpha, shapeOf } from './shapes.js';

/** Width and stride of each block, at multiplier 1. */
const blocks = (
  [
    [16, 1, 1],
    [24, 2, 2],
    [32, 3, 2],
    [64, 4, 2],
    [96, 3, 1],
    [160, 3, 2],
    [320, 1, 1],
  ] as const
).flatMap(([width, count, stride]) => Array.from({ length: count }, (_, i) => [width, i === 0 ? stride : 1] as const));
const stages = [2, 2, 3, 7, 4];
const octaves = 13; // blocks with two branches inside
const beforeMerge = /^features\.([1-9]|1[0-3])\.conv[12]\./;
const names = withOctave(['mobilenet-v2']);
const last = 1280; // channels of the tail, also at multipliers below 1

/** The plain network's widths are multiples of 8, by the rule of the TensorFlow models; the octave one's are cut off. */
const widthsOf = (octave: boolean) => (multiplier: number, usual: number) => {
  const exact = (usual === last ? Math.max(1, multiplier) : multiplier) * usual;
  if (octave) return Math.trunc(exact);
  const near = Math.max(8, Math.floor((exact + 4) / 8) * 8);
  return near < 0.9 * exact ? near + 8 : near;
};

interface Place extends Readonly<Record<'from' | 'inner' | 'to' | 'stride', number>> {
  readonly alpha: number; // of the expanded tensor
  readonly adds: boolean;
}

class ConvNormRelu6 extends ConvNorm {
  override forward(x: Feature): Feature {
    return relu6(super.forward(x));
  }
}

/** 1x1, depthwise 3x3, 1x1; the first block of the network has no expansion. */
class Block extends Module<Pair, Pair> {
  readonly conv: readonly [...ConvNorm[], Conv, BatchNorm];
  readonly #adds: boolean;

  constructor({ from, inner, to, stride, adds }: Place) {
    super();
    const expand = inner === from ? [] : [new ConvNormRelu6(from, inner, { kernel: 1 })];
    const depthwise = new ConvNormRelu6(inner, inner, { kernel: 3, stride, groups: inner });
    this.conv = [...expand, depthwise, new Conv(inner, to, { kernel: 1 }), new BatchNorm(to)];
    this.#adds = adds;
  }

  forward(x: Pair): Pair {
    return x.map((branch) => {
      const y = this.conv.reduce<Feature>((z, layer) => layer.forward(z), branch);
      return this.#adds ? add(branch, y) : y;
    });
  }
}

/** The same, where the expanded tensor has two branches. */
class OctBlock extends Module<Pair, Pair> {
  readonly conv1: Part;
  readonly conv2: Part;
  readonly conv3: Part;
  readonly #adds: boolean;

  constructor({ from, inner: channels, to, stride, alpha, adds }: Place) {
    super();
    const inner = splitChannels(channels, alpha);
    this.conv1 = new OctUnit(new Octave(from), inner, { kernel: 1, activation: relu6 });
    this.conv2 = new OctUnit(inner, inner, { kernel: 3, stride, groups: channelsOf(inner), activation: relu6 });
    this.conv3 = new OctUnit(inner, new Octave(to), { kernel: 1 });
    this.#adds = adds;
  }

  forward(x: Pair): Pair {
    const y = this.conv3.forward(this.conv2.forward(this.conv1.forward(x)));
    return this.#adds ? x.zip(y, (a, b) => add(a, b)) : y;
  }
}

class MobileNetV2 extends MobileNet {
  /** In torchvision there is a dropout in front. */
  readonly classifier: readonly [undefined, Linear];

  constructor(features: readonly Part[], last: number, classes: number) {
    super(features);
    this.classifier = [undefined, new Linear(last, classes)];
  }

  protected override get head(): Linear {
    return this.classifier[1];
  }
}

export const mobileNetsV2: Family<(typeof names)[number]> = {
  ...mobileNets,
  names,

  build(name, { alpha, multiplier = 1, classes, channels }) {
    const { octave } = splitName(name);
    const widthAt = widthsOf(octave);
    let from = widthAt(multiplier, 32);
    const stem = new PlainUnit(new Octave(channels), new Octave(from), { kernel: 3, stride: 2, activation: relu6 });
    const features = blocks.map(([usual, stride], i) => {
      const to = widthAt(multiplier, usual);
      const inner = i === 0 ? from : 6 * from;
      const adds = stride === 1 && from === to;
      const place = { from, inner, to, stride, alpha: i < octaves ? alpha : 0, adds };
      from = to;
      return octave ? new OctBlock(place) : new Block(place);
    });
    const to = widthAt(multiplier, last);
    const tail = new PlainUnit(new Octave(from), new Octave(to), { kernel: 1, activation: relu6 });
    return new MobileNetV2([stem, ...features, tail], to, classes);
  },

  parameterOf: (record) => featureOf(record, stages)?.replace(/^fc\./, 'classifier.1.'),

  infer(parameters) {
    const octave = parameters.has('features.1.conv1.conv.conv_h2h.weight');
    if (!octave && !parameters.has('features.1.conv.0.0.weight')) return undefined;
    if (parameters.has('features.0.conv1.conv.conv_h2h.weight')) return undefined; // a ResNet of the authors' files
    const project = (i: number) => (octave ? 'conv3.conv.conv_h2h' : `conv.${i === 0 ? 1 : 2}`);
    const widthIn = (layer: string) => shapeOf(parameters, `features.${layer}.weight`, 4)[0] ?? 0;
    const widths = blocks.map(([usual], i) => [usual, widthIn(`${i + 1}.${project(i)}`)] as const);
    const [stem = 0, channels] = shapeOf(parameters, 'features.0.0.weight', 4);
    return {
      network: octave ? 'oct-mobilenet-v2' : 'mobilenet-v2',
      options: {
        alpha: octave ? inferAlpha(parameters, beforeMerge) : 0,
        multiplier: inferMultiplier([[32, stem], ...widths, [last, widthIn('18.0')]], widthsOf(octave)),
        classes: shapeOf(parameters, 'classifier.1.weight', 2)[0],
        channels,
      },
    };
  },
};
