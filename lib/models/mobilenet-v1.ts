/**
 * MobileNet V1 (arXiv 1704.04861), plain and octave (arXiv 1904.05049, section 4.3): octave from the first 1x1 to the
 * last one at stride 16. Parameters of the octave ones are called as in d-li14's code.
 */
import { Linear, Module } from '../layers/index.js';
import { splitChannels } from '../octave.js';
import { relu } from '../ops.js';
import { type Family, splitName, withOctave } from './family.js';
import { channelsOf, featureOf, inferMultiplier, MobileNet, mobileNets, OctUnit, PlainUnit } from './mobilenet.js';
import type { Pair, Part, Widths } from './preactivation.js';
import { inferAlpha, shapeOf } from './shapes.js';

/** Width and stride of each block, at multiplier 1. */
const blocks = [
  [64, 1],
  [128, 2],
  [128, 1],
  [256, 2],
  [256, 1],
  [512, 2],
  ...Array.from({ length: 5 }, () => [512, 1] as const),
  [1024, 2],
  [1024, 1],
] as const;
const stages = [2, 2, 2, 6, 2];
/** Blocks whose outputs have a low branch. */
const octaves = 10;
const beforeMerge = /^features\.(1\.1|([2-9]|10)\.[01]|11\.0)\./;
const names = withOctave(['mobilenet-v1']);
const widthAt = (multiplier: number, usual: number) => Math.trunc(multiplier * usual);

/** A depthwise 3x3 and a 1x1. */
class Block extends Module<Pair, Pair> {
  readonly 0: Part;
  readonly 1: Part;

  constructor(unit: typeof PlainUnit | typeof OctUnit, from: Widths, to: Widths, stride: number) {
    super();
    this[0] = new unit(from, from, { kernel: 3, stride, groups: channelsOf(from), activation: relu });
    this[1] = new unit(from, to, { kernel: 1, activation: relu });
  }

  forward(x: Pair): Pair {
    return this[1].forward(this[0].forward(x));
  }
}

class MobileNetV1 extends MobileNet {
  readonly fc: Linear;

  constructor(features: readonly Part[], last: number, classes: number) {
    super(features);
    this.fc = new Linear(last, classes);
  }

  protected override get head(): Linear {
    return this.fc;
  }
}

export const mobileNetsV1: Family<(typeof names)[number]> = {
  ...mobileNets,
  names,

  build(name, { alpha, multiplier = 1, classes, channels }) {
    const { octave } = splitName(name);
    let from = splitChannels(widthAt(multiplier, 32), 0);
    const stem = new PlainUnit(splitChannels(channels, 0), from, { kernel: 3, stride: 2, activation: relu });
    const features = blocks.map(([usual, stride], i) => {
      const to = splitChannels(widthAt(multiplier, usual), i < octaves ? alpha : 0);
      const block = new Block(octave ? OctUnit : PlainUnit, from, to, stride);
      from = to;
      return block;
    });
    return new MobileNetV1([stem, ...features], from.high, classes);
  },

  parameterOf: (record) =>
    featureOf(record, stages)?.replace(/^(features\.\d+)\.conv([12])/, (_, block, i) => `${block}.${Number(i) - 1}`),

  infer(parameters) {
    const octave = parameters.has('features.1.0.conv.conv_h2h.weight');
    if (!octave && !parameters.has('features.1.0.0.weight')) return undefined;
    const others = ['features.1.conv3.conv.conv_h2h.weight', 'features.0.0.conv.conv_h2h.weight']; // V2, DenseNets
    if (others.some((name) => parameters.has(name))) return undefined;
    const widthOf = (block: number, path: string) =>
      parameters.get(`features.${block}.1.${octave ? `conv.conv_${path}` : '0'}.weight`)?.[0] ?? 0;
    const widths = blocks.map(
      ([usual], i) => [usual, widthOf(i + 1, 'h2h') + (octave ? widthOf(i + 1, 'h2l') : 0)] as const,
    );
    const [stem = 0, channels] = shapeOf(parameters, 'features.0.0.weight', 4);
    return {
      network: octave ? 'oct-mobilenet-v1' : 'mobilenet-v1',
      options: {
        alpha: octave ? inferAlpha(parameters, beforeMerge) : 0,
        multiplier: inferMultiplier([[32, stem], ...widths], widthAt),
        classes: shapeOf(parameters, 'fc.weight', 2)[0],
        channels,
      },
    };
  },
};
