import { show } from '../error.js';
import { Parameter } from '../graph/graph.js';
import { check, perAxis } from '../graph/shape.js';
import { type Octave, paths, widthsOf } from '../octave.js';
import { conv, type Kernel, octConv, type Size } from '../ops.js';
import { checkOptions, type Known } from '../options.js';
import type { Vector } from '../tensor.js';
import { checkCounts, type Feature, Module } from './module.js';

export interface ConvLayerOptions {
  /** [t, h, w] makes a layer of video; [h, w], or a number for both, one of images. */
  readonly kernel: Size;
  /** A number is for every axis that the kernel has, here and below: for time too in a layer of video. Default 1. */
  readonly stride?: Size | undefined;
  /** Default: half of the (dilated) kernel, "same" at stride 1. */
  readonly padding?: Size | undefined;
  /** Default 1. */
  readonly dilation?: Size | undefined;
  /** Default 1. */
  readonly groups?: number | undefined;
  /** Default false. */
  readonly bias?: boolean | undefined;
}

const convOptions = {
  kernel: true,
  stride: true,
  padding: true,
  dilation: true,
  groups: true,
  bias: true,
} satisfies Known<ConvLayerOptions>;

/** Convolution of `from` to `to` channels: [N, H, W, from] -> [N, H', W', to], or [N, T, H, W, from] likewise. */
export class Conv extends Module {
  readonly weight: Parameter<Kernel>;
  readonly bias: Parameter<Vector> | undefined;
  readonly #options: {
    readonly stride: Size;
    readonly padding: Size;
    readonly dilation: Size;
    readonly groups: number;
  };

  constructor(from: number, to: number, options: ConvLayerOptions) {
    super();
    const where = 'layers: Conv';
    const { kernel, stride = 1, padding, dilation = 1, groups = 1, bias = false } = given(where, options, convOptions);
    checkCounts(where, { from, to, groups });
    const fine = from % groups === 0 && to % groups === 0;
    check(where, fine, `${from} to ${to} channels, wanted multiples of ${groups}, its groups`);
    const axes = typeof kernel === 'number' ? 2 : Array.isArray(kernel) ? kernel.length : 0;
    check(where, axes === 2 || axes === 3, `kernel ${show(kernel)}, wanted a number, [h,w] or [t,h,w]`);
    const window = perAxis(where, 'kernel', kernel, axes, 1);
    const beside = ` for kernel ${show(kernel)}`;
    const steps = perAxis(where, 'dilation', dilation, axes, 1, beside);
    perAxis(where, 'stride', stride, axes, 1, beside);
    if (padding !== undefined) perAxis(where, 'padding', padding, axes, 0, beside);
    this.weight = new Parameter([to, from / groups, ...window] as unknown as Kernel);
    this.bias = bias ? new Parameter([to]) : undefined;
    this.#options = {
      stride,
      padding: padding ?? (window.map((size, i) => (steps[i] ?? 1) * Math.floor(size / 2)) as unknown as Size),
      dilation,
      groups,
    };
  }

  forward(x: Feature): Feature {
    return conv(x, { weight: this.weight, bias: this.bias }, this.#options);
  }
}

/** The options, of which each layer wants a kernel. */
function given<O extends { readonly kernel: Size }>(where: string, options: O, known: Known<O>): O {
  checkOptions(where, options, known);
  check(where, options?.kernel !== undefined, "option 'kernel' is missing");
  return options;
}

export interface OctConvLayerOptions extends Omit<ConvLayerOptions, 'stride' | 'padding' | 'dilation'> {
  /** Share of the low branch among the input channels, in [0, 1); default 0. */
  readonly alphaIn?: number | undefined;
  /** The same of the output channels. */
  readonly alphaOut?: number | undefined;
  /** 1 (default) or 2, of height and width: time stays as it is. */
  readonly stride?: number | undefined;
}

const octConvOptions = {
  kernel: true,
  alphaIn: true,
  alphaOut: true,
  stride: true,
  groups: true,
  bias: true,
} satisfies Known<OctConvLayerOptions>;

/**
 * Octave convolution of `from` to `to` channels (arXiv 1904.05049, section 3.2), shared out by alpha or given for each
 * branch; padding is "same". The four paths are named as in d-li14's checkpoints. A branch's bias is that of the path
 * from the same branch, else from the high one.
 * `groups` equal to `from` makes it depthwise: then no path changes the branch.
 */
export class OctConv extends Module {
  readonly conv_h2h: Conv;
  readonly conv_l2h: Conv | undefined;
  readonly conv_h2l: Conv | undefined;
  readonly conv_l2l: Conv | undefined;
  readonly #options: { readonly stride: number; readonly groups: number };

  constructor(from: number | Octave<number>, to: number | Octave<number>, options: OctConvLayerOptions) {
    super();
    const where = 'layers: OctConv';
    const settled = given(where, options, octConvOptions);
    const { kernel, alphaIn, alphaOut, stride = 1, groups = 1, bias = false } = settled;
    check(where, stride === 1 || stride === 2, `stride ${show(stride)}, wanted 1 or 2`);
    const odd = [kernel].flat().every((size) => size % 2 === 1);
    check(where, odd, `kernel ${show(kernel)}, wanted odd sizes`);
    checkCounts(where, { groups });
    const input = widthsOf(from, alphaIn);
    const depthwise = groups > 1 && groups === input.merge((high, low) => high + low);
    const { h2h, l2h, h2l, l2l } = paths(input, widthsOf(to, alphaOut), (i, o, path) => {
      const own = path === 'h2h' || path === 'l2l';
      const carriesBias = own || (path === 'h2l' && input.low === undefined);
      return new Conv(i, o, { kernel, groups: !depthwise ? groups : own ? i : 1, bias: bias && carriesBias });
    });
    this.conv_h2h = h2h;
    this.conv_l2h = depthwise ? undefined : l2h;
    this.conv_h2l = depthwise ? undefined : h2l;
    this.conv_l2l = l2l;
    this.#options = { stride, groups };
  }

  forward(x: Octave<Feature>): Octave<Feature> {
    const { conv_h2h, conv_l2h, conv_h2l, conv_l2l } = this;
    const weights = { h2h: conv_h2h.weight, l2h: conv_l2h?.weight, h2l: conv_h2l?.weight, l2l: conv_l2l?.weight };
    return octConv(x, { ...weights, biasH: conv_h2h.bias, biasL: (conv_l2l ?? conv_h2l)?.bias }, this.#options);
  }
}
