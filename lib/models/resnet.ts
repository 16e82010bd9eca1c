/**
 * Post-activation ResNets and octave ResNets: basic blocks, or bottlenecks with the stride in the 3x3 ("v1b"). The
 * plain ones have torchvision's parameter names, the octave ones d-li14's. (arXiv 1512.03385; arXiv 1904.05049, section
 * 4.) The video networks (i3d.ts) are these with kernels over time.
 */
import { OctconvError, show } from '../error.js';
import type { Value } from '../graph/graph.js';
import {
  BatchNorm,
  Conv,
  type ConvLayerOptions,
  ConvNorm,
  DeepModule,
  type Feature,
  Linear,
  Module,
  OctConvNorm,
} from '../layers/index.js';
import { Octave, splitChannels } from '../octave.js';
import { add, globalAvgPool, maxPool, type PoolOptions, relu, type Size } from '../ops.js';
import type { Matrix } from '../tensor.js';
import type { Work } from '../turns.js';
import { type Family, splitName, withOctave } from './family.js';
import { gluonResNetParameter, resNetInput } from './gluon.js';
import { commonOptions, type ResolvedNetworkOptions } from './options.js';
import { checkInner, inferAlpha, inferStages, nameOf } from './shapes.js';

/** What a block takes and gives. */
export interface Place {
  readonly from: number;
  readonly width: number;
  readonly to: number;
  readonly stride: number;
  readonly alphaIn: number;
  readonly alphaOut: number;
  /** Whether the shortcut needs a convolution: the shape changes. */
  readonly projected: boolean;
  /** Of a bottleneck's 3x3; default 1. */
  readonly groups?: number | undefined;
  /** Whether a bottleneck has its stride in conv3 ("v1e"), not in the 3x3. */
  readonly late?: boolean | undefined;
  /** Of video: taps over time of a bottleneck's conv1. All other kernels have one. */
  readonly time?: number | undefined;
}

/** A size along height and width: of images a number, of video [t, h, w]. */
const along = (size: number, { time }: Place): Size => (time === undefined ? size : [1, size, size]);

/** relu(x + 3x3(3x3(x))), where x is projected if the shape changes. */
class BasicBlock extends Module {
  readonly conv1: Conv;
  readonly bn1: BatchNorm;
  readonly conv2: Conv;
  readonly bn2: BatchNorm;
  readonly downsample: ConvNorm | undefined;

  constructor({ from, to, stride, projected }: Place) {
    super();
    this.conv1 = new Conv(from, to, { kernel: 3, stride });
    this.bn1 = new BatchNorm(to);
    this.conv2 = new Conv(to, to, { kernel: 3 });
    this.bn2 = new BatchNorm(to);
    this.downsample = projected ? new ConvNorm(from, to, { kernel: 1, stride }) : undefined;
  }

  forward(x: Feature): Feature {
    const first = relu(this.bn1.forward(this.conv1.forward(x)));
    const second = this.bn2.forward(this.conv2.forward(first));
    return relu(add(second, this.downsample?.forward(x) ?? x));
  }
}

/** The same of octave convolutions. */
class OctBasicBlock extends Module {
  readonly conv1: OctConvNorm;
  readonly conv2: OctConvNorm;
  readonly downsample: readonly OctConvNorm[];

  constructor({ from, to, stride, alphaIn, alphaOut, projected }: Place) {
    super();
    this.conv1 = new OctConvNorm(from, to, { kernel: 3, stride, alphaIn, alphaOut });
    this.conv2 = new OctConvNorm(to, to, { kernel: 3, alphaIn: alphaOut, alphaOut });
    this.downsample = projected ? [new OctConvNorm(from, to, { kernel: 1, stride, alphaIn, alphaOut })] : [];
  }

  forward(x: Octave<Feature>): Octave<Feature> {
    const first = this.conv1.forward(x).map((branch) => relu(branch));
    const shortcut = this.downsample.reduce((y, layer) => layer.forward(y), x);
    return this.conv2.forward(first).zip(shortcut, (a, b) => relu(add(a, b)));
  }
}

/** relu(x + 1x1(3x3(1x1(x)))), where x is projected if the shape changes; of video (kt)x1x1, 1x3x3 and 1x1x1. */
export class Bottleneck extends Module {
  readonly conv1: Conv;
  readonly bn1: BatchNorm;
  readonly conv2: Conv;
  readonly bn2: BatchNorm;
  readonly conv3: Conv;
  readonly bn3: BatchNorm;
  readonly downsample: ConvNorm | undefined;

  constructor(place: Place) {
    super();
    const { from, width, to, projected, groups, late = false, time } = place;
    const [one, stride] = [along(1, place), along(place.stride, place)];
    this.conv1 = new Conv(from, width, { kernel: time === undefined ? 1 : [time, 1, 1] });
    this.bn1 = new BatchNorm(width);
    this.conv2 = new Conv(width, width, { kernel: along(3, place), stride: late ? 1 : stride, groups });
    this.bn2 = new BatchNorm(width);
    this.conv3 = new Conv(width, to, { kernel: one, stride: late ? stride : 1 });
    this.bn3 = new BatchNorm(to);
    this.downsample = projected ? new ConvNorm(from, to, { kernel: one, stride }) : undefined;
  }

  protected residual(x: Feature): Feature {
    const first = relu(this.bn1.forward(this.conv1.forward(x)));
    const second = relu(this.bn2.forward(this.conv2.forward(first)));
    return this.bn3.forward(this.conv3.forward(second));
  }

  protected shortcut(x: Feature): Feature {
    return this.downsample?.forward(x) ?? x;
  }

  forward(x: Feature): Feature {
    return relu(add(this.residual(x), this.shortcut(x)));
  }
}

/** The same of octave convolutions. */
export class OctBottleneck extends Module {
  readonly conv1: OctConvNorm;
  readonly conv2: OctConvNorm;
  readonly conv3: OctConvNorm;
  readonly downsample: readonly OctConvNorm[];

  constructor(place: Place) {
    super();
    const { from, width, to, stride, alphaIn, alphaOut, projected, groups, late = false, time } = place;
    const [one, inside] = [along(1, place), { alphaIn: alphaOut, alphaOut }];
    this.conv1 = new OctConvNorm(from, width, { kernel: time === undefined ? 1 : [time, 1, 1], alphaIn, alphaOut });
    const three = { kernel: along(3, place), stride: late ? 1 : stride, groups };
    this.conv2 = new OctConvNorm(width, width, { ...three, ...inside });
    this.conv3 = new OctConvNorm(width, to, { kernel: one, stride: late ? stride : 1, ...inside });
    this.downsample = projected ? [new OctConvNorm(from, to, { kernel: one, stride, alphaIn, alphaOut })] : [];
  }

  protected residual(x: Octave<Feature>): Octave<Feature> {
    const first = this.conv1.forward(x).map((branch) => relu(branch));
    const second = this.conv2.forward(first).map((branch) => relu(branch));
    return this.conv3.forward(second);
  }

  protected shortcut(x: Octave<Feature>): Octave<Feature> {
    return this.downsample.reduce((y, layer) => layer.forward(y), x);
  }

  forward(x: Octave<Feature>): Octave<Feature> {
    return this.residual(x).zip(this.shortcut(x), (a, b) => relu(add(a, b)));
  }
}

/** What differs between the plain and the octave network: what blocks pass to each other, and what is done with it. */
export interface Form<F> {
  enter(x: Feature): F;
  each(x: F, f: (branch: Feature) => Feature): F;
  leave(x: F): Feature;
}

export const plainForm: Form<Feature> = { enter: (x) => x, each: (x, f) => f(x), leave: (x) => x };

export const octaveForm: Form<Octave<Feature>> = {
  enter: (x) => new Octave(x),
  each: (x, f) => x.map(f),
  leave: (x) => x.high,
};

/** What stands before layer1; behind conv1 there is a batch normalisation. */
export interface Stem {
  readonly conv1: Module<Feature, Feature>;
  /** What conv1 and conv2 give. */
  readonly width: number;
  /** In place of the max-pool. */
  readonly conv2?: Module<Feature, Feature> | undefined;
}

/** The stem of one convolution. */
export const oneConv = ({ channels, width }: ResolvedNetworkOptions, options: ConvLayerOptions): Stem => ({
  conv1: new Conv(channels, width, options),
  width,
});

/** The stem of one convolution by its kind, and what pools behind it. */
export const usualStem = (options: ResolvedNetworkOptions) =>
  options.stem === 'imagenet'
    ? { stem: oneConv(options, { kernel: 7, stride: 2 }), pools: [{ kernel: 3, stride: 2, padding: 1 }] }
    : { stem: oneConv(options, { kernel: 3 }), pools: [] };

/** The layers of a network: how many blocks each has, how wide what they give is, and the blocks. */
export interface Layout<F> {
  readonly stem: Stem;
  /** Max-pools, behind the stem and behind layer1. */
  readonly pools: readonly (PoolOptions | undefined)[];
  readonly blocks: readonly number[];
  /** Output channels of a block, divided by the channels of its 3x3. */
  readonly expansion: number;
  block(place: Place, layer: number, index: number): Module<F, F>;
}

/** [N, H, W, channels] or [N, T, H, W, channels] -> logits [N, classes] */
export class ResNet<F> extends DeepModule<Feature, Value<'f32', Matrix>> {
  readonly conv1: Module<Feature, Feature>;
  readonly bn1: BatchNorm;
  readonly conv2: Module<Feature, Feature> | undefined;
  readonly layer1: readonly Module<F, F>[];
  readonly layer2: readonly Module<F, F>[];
  readonly layer3: readonly Module<F, F>[];
  readonly layer4: readonly Module<F, F>[];
  readonly fc: Linear;
  readonly #form: Form<F>;
  readonly #pools: Layout<F>['pools'];

  constructor(
    { alpha, width, classes }: ResolvedNetworkOptions,
    form: Form<F>,
    { stem, pools, blocks, expansion, block }: Layout<F>,
  ) {
    super();
    this.#form = form;
    this.#pools = pools;
    this.conv1 = stem.conv1;
    this.bn1 = new BatchNorm(stem.width);
    this.conv2 = stem.conv2;
    // Octave from the first block of layer1 on, which splits; the first block of layer4 merges.
    const alphas = [0, alpha, alpha, alpha, 0];
    let [from, alphaIn] = [stem.width, 0];
    const layer = (index: number) =>
      Array.from({ length: blocks[index - 1] ?? 0 }, (_, i) => {
        const inner = width * 2 ** (index - 1);
        const [to, alphaOut] = [inner * expansion, alphas[index] ?? 0];
        const stride = i === 0 && index > 1 ? 2 : 1;
        const resplit = splitChannels(from, alphaIn).low !== splitChannels(to, alphaOut).low;
        const projected = stride > 1 || from !== to || resplit;
        const made = block({ from, width: inner, to, stride, alphaIn, alphaOut, projected }, index, i);
        [from, alphaIn] = [to, alphaOut];
        return made;
      });
    this.layer1 = layer(1);
    this.layer2 = layer(2);
    this.layer3 = layer(3);
    this.layer4 = layer(4);
    this.fc = new Linear(from, classes);
  }

  *work(x: Feature): Work<Value<'f32', Matrix>> {
    const pooled = (y: F, pool: PoolOptions | undefined) =>
      pool ? this.#form.each(y, (branch) => maxPool(branch, pool)) : y;
    const stem = relu(this.bn1.forward(this.conv1.forward(x)));
    let y = this.#form.enter(this.conv2?.forward(stem) ?? stem);
    for (const [i, blocks] of [[], this.layer1, this.layer2, this.layer3, this.layer4].entries()) {
      for (const block of blocks) {
        yield;
        y = block.forward(y);
      }
      y = pooled(y, this.#pools[i]);
    }
    return this.fc.forward(globalAvgPool(this.#form.leave(y)));
  }
}

const basic = { 'resnet-18': [2, 2, 2, 2], 'resnet-34': [3, 4, 6, 3] } as const;
export const bottleneck = {
  'resnet-26': [2, 2, 2, 2],
  'resnet-50': [3, 4, 6, 3],
  'resnet-101': [3, 4, 23, 3],
  'resnet-152': [3, 8, 36, 3],
} as const;
const all = { ...basic, ...bottleneck };
const names = withOctave(Object.keys(all) as (keyof typeof all)[]);

/** At alpha 0 the octave operator stays: its stride-2 layers pool, and it is not the plain network. */
export const resNets: Family<(typeof names)[number]> = {
  names,

  options: (name) => commonOptions(splitName(name).octave),

  build(name, options) {
    const { plain, octave } = splitName(name);
    const layout = { ...usualStem(options), blocks: all[plain], expansion: plain in basic ? 1 : 4 };
    const [Plain, Oct] = plain in basic ? [BasicBlock, OctBasicBlock] : [Bottleneck, OctBottleneck];
    return octave
      ? new ResNet(options, octaveForm, { ...layout, block: (place) => new Oct(place) })
      : new ResNet(options, plainForm, { ...layout, block: (place) => new Plain(place) });
  },

  defaultInput: resNetInput,

  parameterOf: gluonResNetParameter,

  infer(parameters) {
    const found = inferStages(parameters);
    if (!found || found.inner.groups > 1) return undefined; // a ResNeXt
    const { octave, ends, inner, blocks, depth } = found;
    const [kind, layouts] = found.bottlenecks
      ? (['bottlenecks', bottleneck] as const)
      : (['basic blocks', basic] as const);
    checkInner(inner, ends.width, depth);
    const name = nameOf<keyof typeof all>(layouts, blocks);
    const possible = Object.values(layouts).map(show).join(' or ');
    if (!name) throw new OctconvError(`layer1 to layer4 have ${show(blocks)} ${kind}, wanted ${possible}`);
    const alpha = octave ? inferAlpha(parameters) : 0;
    return { network: octave ? `oct-${name}` : name, options: { alpha, ...ends } };
  },
};
