/** Pre-activation ResNets with squeeze-and-excitation (arXiv 1709.01507) behind the last convolution of each block. */
import { type Feature, Linear, Module } from '../layers/index.js';
import { Octave } from '../octave.js';
import { add, globalAvgPool, mul, relu, sigmoid } from '../ops.js';
import { gatedWidthOption } from './options.js';
import { type MakeUnit, type Pair, type Part, preActivationFamily, type Widths } from './preactivation.js';
import { Block, hasGates, inferBottlenecks, network, type Place } from './resnet-v2.js';
import { checkInner } from './shapes.js';

/** x times a gate per channel, made of the channels' means. */
class SqueezeExcite extends Module<Pair, Pair> {
  readonly fc1: Linear;
  readonly fc2: Linear;

  constructor({ high: width }: Widths, inner: number) {
    super();
    this.fc1 = new Linear(width, inner);
    this.fc2 = new Linear(inner, width);
  }

  forward(x: Pair): Pair {
    return x.map((branch) => mul(branch, sigmoid(this.fc2.forward(relu(this.fc1.forward(globalAvgPool(branch)))))));
  }
}

/** The same with one bottleneck for both branches. */
class OctSqueezeExcite extends Module<Pair, Pair> {
  readonly fc1_h2h: Linear;
  readonly fc1_l2h: Linear | undefined;
  readonly fc2_h2h: Linear;
  readonly fc2_h2l: Linear | undefined;

  constructor({ high, low }: Widths, inner: number) {
    super();
    this.fc1_h2h = new Linear(high, inner);
    this.fc1_l2h = low === undefined ? undefined : new Linear(low, inner, { bias: false });
    this.fc2_h2h = new Linear(inner, high);
    this.fc2_h2l = low === undefined ? undefined : new Linear(inner, low);
  }

  forward(x: Pair): Pair {
    const squeeze = (fc: Linear, branch: Feature) => fc.forward(globalAvgPool(branch));
    const inner = relu(new Octave(this.fc1_h2h, this.fc1_l2h).zip(x, squeeze).merge((high, low) => add(high, low)));
    return new Octave(this.fc2_h2h, this.fc2_h2l).zip(x, (fc, branch) => mul(branch, sigmoid(fc.forward(inner))));
  }
}

class SEBlock extends Block {
  readonly se: Part;

  constructor(unit: MakeUnit, octave: boolean, place: Place) {
    super(unit, place);
    const { to } = place;
    const inner = Math.trunc(to.merge((high, low) => high + low) / 16);
    this.se = octave ? new OctSqueezeExcite(to, inner) : new SqueezeExcite(to, inner);
  }

  protected override residual(x: Pair): Pair {
    return this.se.forward(super.residual(x));
  }
}

export const seResNetsV2 = preActivationFamily({
  blocks: { 'se-resnet-v2': [3, 4, 6, 3], 'se-resnet-v2-50': [3, 4, 6, 3] },
  options: { width: gatedWidthOption },
  build: (unit, blocks, options, octave) => network(blocks, options, (place) => new SEBlock(unit, octave, place)),
  infer(parameters, weightOf) {
    const found = hasGates(parameters) ? inferBottlenecks(parameters, weightOf) : undefined;
    if (!found) return undefined;
    checkInner(found.inner, found.width, found.depth);
    return {};
  },
});
