import { show } from '../error.js';
import { Parameter } from '../graph/graph.js';
import { check } from '../graph/shape.js';
import { Octave, widthsOf } from '../octave.js';
import { batchNorm } from '../ops.js';
import type { Vector } from '../tensor.js';
import { Conv, type ConvLayerOptions, OctConv, type OctConvLayerOptions } from './conv.js';
import { checkCounts, type Feature, Module } from './module.js';

/** Batch normalisation over the channels, with the statistics of training. Behind a convolution it costs nothing. */
export class BatchNorm extends Module {
  readonly weight: Parameter<Vector>;
  readonly bias: Parameter<Vector>;
  readonly running_mean: Parameter<Vector>;
  readonly running_var: Parameter<Vector>;
  readonly #eps: number;

  constructor(channels: number, eps = 1e-5) {
    super();
    checkCounts('layers: BatchNorm', { channels });
    check(
      'layers: BatchNorm',
      typeof eps === 'number' && eps >= 0 && eps < Infinity,
      `eps ${show(eps)}, wanted at least 0`,
    );
    this.weight = new Parameter([channels]);
    this.bias = new Parameter([channels]);
    this.running_mean = new Parameter([channels]);
    this.running_var = new Parameter([channels]);
    this.#eps = eps;
  }

  forward(x: Feature): Feature {
    return batchNorm(x, this, { eps: this.#eps });
  }
}

/** Batch normalisation of each branch, whose channels are shared out by alpha or given. */
export class OctBatchNorm extends Module {
  readonly bn_h: BatchNorm;
  readonly bn_l: BatchNorm | undefined;

  constructor(channels: number | Octave<number>, alpha = 0, eps = 1e-5) {
    super();
    const { high, low } = widthsOf(channels, alpha).map((width) => new BatchNorm(width, eps));
    this.bn_h = high;
    this.bn_l = low;
  }

  forward(x: Octave<Feature>): Octave<Feature> {
    return new Octave(this.bn_h, this.bn_l).zip(x, (bn, branch) => bn.forward(branch));
  }
}

/** Convolution and batch normalisation; the names are those of torchvision's shortcuts, `0` and `1`. */
export class ConvNorm extends Module {
  readonly 0: Conv;
  readonly 1: BatchNorm;

  constructor(from: number, to: number, options: ConvLayerOptions) {
    super();
    this[0] = new Conv(from, to, options);
    this[1] = new BatchNorm(to);
  }

  forward(x: Feature): Feature {
    return this[1].forward(this[0].forward(x));
  }
}

/** Octave convolution and batch normalisation of each branch, with the names of d-li14's checkpoints. */
export class OctConvNorm extends Module {
  readonly conv: OctConv;
  readonly bn_h: BatchNorm;
  readonly bn_l: BatchNorm | undefined;

  constructor(from: number | Octave<number>, to: number | Octave<number>, options: OctConvLayerOptions) {
    super();
    this.conv = new OctConv(from, to, options);
    const { bn_h, bn_l } = new OctBatchNorm(to, options.alphaOut);
    this.bn_h = bn_h;
    this.bn_l = bn_l;
  }

  forward(x: Octave<Feature>): Octave<Feature> {
    return new Octave(this.bn_h, this.bn_l).zip(this.conv.forward(x), (bn, branch) => bn.forward(branch));
  }
}
