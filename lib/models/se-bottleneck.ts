/** The bottlenecks of SE-ResNet v1e (the authors' Gluon code): gated, and normalised once more in front. */
import { Parameter } from '../graph/graph.js';
import { type Feature, Linear, Module } from '../layers/index.js';
import { Octave, splitChannels } from '../octave.js';
import { batchNorm, concat, globalAvgPool, mul, relu, sigmoid } from '../ops.js';
import { tensor, type Vector } from '../tensor.js';
import type { Pair, Widths } from './preactivation.js';
import { Bottleneck, OctBottleneck, type Place } from './resnet.js';

/** Batch normalisation with the scale 1: the authors' records of it are not read by their code. */
class UnscaledNorm extends Module<Feature, Feature> {
  readonly bias: Parameter<Vector>;
  readonly running_mean: Parameter<Vector>;
  readonly running_var: Parameter<Vector>;
  readonly #weight;

  constructor(channels: number) {
    super();
    this.bias = new Parameter([channels]);
    this.running_mean = new Parameter([channels]);
    this.running_var = new Parameter([channels]);
    this.#weight = tensor('f32', [channels], new Float32Array(channels).fill(1));
  }

  forward(x: Feature): Feature {
    const { bias, running_mean, running_var } = this;
    return batchNorm(x, { weight: this.#weight, bias, running_mean, running_var });
  }
}

class OctUnscaledNorm extends Module<Pair, Pair> {
  readonly bn_h: UnscaledNorm;
  readonly bn_l: UnscaledNorm | undefined;

  constructor(widths: Widths) {
    super();
    const { high, low } = widths.map((width) => new UnscaledNorm(width));
    this.bn_h = high;
    this.bn_l = low;
  }

  forward(x: Pair): Pair {
    return new Octave(this.bn_h, this.bn_l).zip(x, (bn, branch) => bn.forward(branch));
  }
}

/** Each branch times a gate per channel, made of the means of both. */
class SqueezeExcite extends Module<Pair, Pair> {
  readonly fc1: Linear;
  readonly fc2_h: Linear;
  readonly fc2_l: Linear | undefined;

  constructor({ high, low }: Widths) {
    super();
    const inner = Math.trunc((high + (low ?? 0)) / 16);
    this.fc1 = new Linear(high + (low ?? 0), inner);
    this.fc2_h = new Linear(inner, high);
    this.fc2_l = low === undefined ? undefined : new Linear(inner, low);
  }

  forward(x: Pair): Pair {
    const means = x.map((branch) => globalAvgPool(branch)).merge((high, low) => concat([high, low]));
    const inner = relu(this.fc1.forward(means));
    return new Octave(this.fc2_h, this.fc2_l).zip(x, (fc, branch) => mul(branch, sigmoid(fc.forward(inner))));
  }
}

export class SEBottleneck extends Bottleneck {
  readonly bn1a: UnscaledNorm;
  readonly se: SqueezeExcite;
  readonly bn4a: UnscaledNorm | undefined;

  constructor(place: Place) {
    super(place);
    this.bn1a = new UnscaledNorm(place.from);
    this.se = new SqueezeExcite(new Octave(place.to));
    this.bn4a = place.projected ? new UnscaledNorm(place.from) : undefined;
  }

  protected override residual(x: Feature): Feature {
    return this.se.forward(new Octave(super.residual(this.bn1a.forward(x)))).high;
  }

  protected override shortcut(x: Feature): Feature {
    return super.shortcut(this.bn4a?.forward(x) ?? x);
  }
}

export class OctSEBottleneck extends OctBottleneck {
  readonly bn1a: OctUnscaledNorm;
  readonly se: SqueezeExcite;
  readonly bn4a: OctUnscaledNorm | undefined;

  constructor(place: Place) {
    super(place);
    const from = splitChannels(place.from, place.alphaIn);
    this.bn1a = new OctUnscaledNorm(from);
    this.se = new SqueezeExcite(splitChannels(place.to, place.alphaOut));
    this.bn4a = place.projected ? new OctUnscaledNorm(from) : undefined;
  }

  protected override residual(x: Pair): Pair {
    return this.se.forward(super.residual(this.bn1a.forward(x)));
  }

  protected override shortcut(x: Pair): Pair {
    return super.shortcut(this.bn4a?.forward(x) ?? x);
  }
}
