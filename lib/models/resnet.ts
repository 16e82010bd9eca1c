/**
 * Post-activation ResNets and octave ResNets: basic blocks, or bottlenecks with the stride in the 3x3 ("v1b"). The
 * plain ones have torchvision's parameter names, the octave ones d-li14's. (arXiv 1512.03385; arXiv 1904.05049, section
 * 4.)
 */
import { OctconvError, show } from '../error.js';
import type { Value } from '../graph/graph.js';
import { defaultInput, inputOf } from '../input/preprocess.js';
import { BatchNorm, Conv, ConvNorm, DeepModule, type Feature, Linear, Module, OctConvNorm } from '../layers/index.js';
import { Octave, splitChannels } from '../octave.js';
import { add, globalAvgPool, maxPool, relu } from '../ops.js';
import type { Matrix } from '../tensor.js';
import type { Work } from '../turns.js';
import { type Family, splitName, withOctave } from './family.js';
import { commonOptions, type ResolvedNetworkOptions } from './options.js';
import { checkWidth, countBlocks, inferAlpha, inferEnds, nameOf } from './shapes.js';

/** What a block takes and gives. */
interface Place {
  readonly from: number;
  readonly width: number;
  readonly to: number;
  readonly stride: number;
  readonly alphaIn: number;
  readonly alphaOut: number;
  /** Whether the shortcut needs a convolution: the shape changes. */
  readonly projected: boolean;
}

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

/** relu(x + 1x1(3x3(1x1(x)))), where x is projected if the shape changes. */
class Bottleneck extends Module {
  readonly conv1: Conv;
  readonly bn1: BatchNorm;
  readonly conv2: Conv;
  readonly bn2: BatchNorm;
  readonly conv3: Conv;
  readonly bn3: BatchNorm;
  readonly downsample: ConvNorm | undefined;

  constructor({ from, width, to, stride, projected }: Place) {
    super();
    this.conv1 = new Conv(from, width, { kernel: 1 });
    this.bn1 = new BatchNorm(width);
    this.conv2 = new Conv(width, width, { kernel: 3, stride });
    this.bn2 = new BatchNorm(width);
    this.conv3 = new Conv(width, to, { kernel: 1 });
    this.bn3 = new BatchNorm(to);
    this.downsample = projected ? new ConvNorm(from, to, { kernel: 1, stride }) : undefined;
  }

  forward(x: Feature): Feature {
    const first = relu(this.bn1.forward(this.conv1.forward(x)));
    const second = relu(this.bn2.forward(this.conv2.forward(first)));
    const third = this.bn3.forward(this.conv3.forward(second));
    return relu(add(third, this.downsample?.forward(x) ?? x));
  }
}

/** The same of octave convolutions. */
class OctBottleneck extends Module {
  readonly conv1: OctConvNorm;
  readonly conv2: OctConvNorm;
  readonly conv3: OctConvNorm;
  readonly downsample: readonly OctConvNorm[];

  constructor({ from, width, to, stride, alphaIn, alphaOut, projected }: Place) {
    super();
    const inside = { alphaIn: alphaOut, alphaOut };
    this.conv1 = new OctConvNorm(from, width, { kernel: 1, alphaIn, alphaOut });
    this.conv2 = new OctConvNorm(width, width, { kernel: 3, stride, ...inside });
    this.conv3 = new OctConvNorm(width, to, { kernel: 1, ...inside });
    this.downsample = projected ? [new OctConvNorm(from, to, { kernel: 1, stride, alphaIn, alphaOut })] : [];
  }

  forward(x: Octave<Feature>): Octave<Feature> {
    const first = this.conv1.forward(x).map((branch) => relu(branch));
    const second = this.conv2.forward(first).map((branch) => relu(branch));
    const third = this.conv3.forward(second);
    const shortcut = this.downsample.reduce((y, layer) => layer.forward(y), x);
    return third.zip(shortcut, (a, b) => relu(add(a, b)));
  }
}

/** What differs between the plain and the octave network: the blocks, and what they pass to each other. */
interface Form<F> {
  readonly basic: new (place: Place) => Module<F, F>;
  readonly bottleneck: new (place: Place) => Module<F, F>;
  enter(x: Feature): F;
  leave(x: F): Feature;
}

const plainForm: Form<Feature> = { basic: BasicBlock, bottleneck: Bottleneck, enter: (x) => x, leave: (x) => x };

const octaveForm: Form<Octave<Feature>> = {
  basic: OctBasicBlock,
  bottleneck: OctBottleneck,
  enter: (x) => new Octave(x),
  leave: (x) => x.high,
};

/** [N, H, W, channels] -> logits [N, classes] */
class ResNet<F> extends DeepModule<Feature, Value<'f32', Matrix>> {
  readonly conv1: Conv;
  readonly bn1: BatchNorm;
  readonly layer1: readonly Module<F, F>[];
  readonly layer2: readonly Module<F, F>[];
  readonly layer3: readonly Module<F, F>[];
  readonly layer4: readonly Module<F, F>[];
  readonly fc: Linear;
  readonly #form: Form<F>;
  readonly #pools: boolean;

  constructor(kind: 'basic' | 'bottleneck', blocks: readonly number[], options: ResolvedNetworkOptions, form: Form<F>) {
    super();
    const { alpha, width, classes, stem, channels } = options;
    const expansion = kind === 'basic' ? 1 : 4;
    this.#form = form;
    this.#pools = stem === 'imagenet';
    this.conv1 = new Conv(channels, width, stem === 'imagenet' ? { kernel: 7, stride: 2 } : { kernel: 3 });
    this.bn1 = new BatchNorm(width);
    // Octave from the first block of layer1 on, which splits; the first block of layer4 merges.
    const alphas = [0, alpha, alpha, alpha, 0];
    let [from, alphaIn] = [width, 0];
    const layer = (index: number) =>
      Array.from({ length: blocks[index - 1] ?? 0 }, (_, i) => {
        const inner = width * 2 ** (index - 1);
        const [to, alphaOut] = [inner * expansion, alphas[index] ?? 0];
        const stride = i === 0 && index > 1 ? 2 : 1;
        const resplit = splitChannels(from, alphaIn).low !== splitChannels(to, alphaOut).low;
        const projected = stride > 1 || from !== to || resplit;
        const block = new form[kind]({ from, width: inner, to, stride, alphaIn, alphaOut, projected });
        [from, alphaIn] = [to, alphaOut];
        return block;
      });
    this.layer1 = layer(1);
    this.layer2 = layer(2);
    this.layer3 = layer(3);
    this.layer4 = layer(4);
    this.fc = new Linear(from, classes);
  }

  *work(x: Feature): Work<Value<'f32', Matrix>> {
    const stem = relu(this.bn1.forward(this.conv1.forward(x)));
    let y = this.#form.enter(this.#pools ? maxPool(stem, { kernel: 3, stride: 2, padding: 1 }) : stem);
    for (const block of [this.layer1, this.layer2, this.layer3, this.layer4].flat()) {
      yield;
      y = block.forward(y);
    }
    return this.fc.forward(globalAvgPool(this.#form.leave(y)));
  }
}

const basic = { 'resnet-18': [2, 2, 2, 2], 'resnet-34': [3, 4, 6, 3] } as const;
const bottleneck = {
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
    const kind = plain in basic ? 'basic' : 'bottleneck';
    return octave
      ? new ResNet(kind, all[plain], options, octaveForm)
      : new ResNet(kind, all[plain], options, plainForm);
  },

  defaultInput: (_, { stem, channels }) => inputOf(defaultInput(stem), channels),

  infer(parameters) {
    // Pre-activation networks have a last batch normalisation, the tail.
    const octave = parameters.has('layer1.0.conv1.conv.conv_h2h.weight');
    if ((!octave && !parameters.has('layer1.0.conv1.weight')) || parameters.has('tail.weight')) return undefined;
    const ends = inferEnds(parameters);
    const weightOf = (layer: string) => `${layer}${octave ? '.conv.conv_h2h' : ''}.weight`;
    const blocks = countBlocks(parameters);
    const [kind, layouts, layers] = parameters.has(weightOf('layer1.0.conv3'))
      ? (['bottlenecks', bottleneck, 3] as const)
      : (['basic blocks', basic, 2] as const);
    checkWidth(parameters, weightOf, ends.width, layers * blocks.reduce((a, b) => a + b, 0) + 2);
    const name = nameOf<keyof typeof all>(layouts, blocks);
    const possible = Object.values(layouts).map(show).join(' or ');
    if (!name) throw new OctconvError(`layer1 to layer4 have ${show(blocks)} ${kind}, wanted ${possible}`);
    const alpha = octave ? inferAlpha(parameters) : 0;
    return { network: octave ? `oct-${name}` : name, options: { alpha, ...ends } };
  },
};
