/**
 * Post-activation ResNets and octave ResNets with bottleneck blocks, stride in the 3x3 ("v1b"). The plain ones have
 * torchvision's parameter names, the octave ones d-li14's. (arXiv 1512.03385; arXiv 1904.05049, section 4.)
 */
import { BatchNorm, Conv, ConvNorm, type Feature, Linear, Module, OctConvNorm } from '../layers/index.js';
import type { Value } from '../graph/graph.js';
import { Octave } from '../octave.js';
import { add, globalAvgPool, maxPool, relu } from '../ops.js';
import type { Matrix } from '../tensor.js';
import type { ResolvedNetworkOptions } from './options.js';

const expansion = 4;

/** relu(x + 1x1(3x3(1x1(x)))), where x is projected if the shape changes. */
class Bottleneck extends Module {
  readonly conv1: Conv;
  readonly bn1: BatchNorm;
  readonly conv2: Conv;
  readonly bn2: BatchNorm;
  readonly conv3: Conv;
  readonly bn3: BatchNorm;
  readonly downsample: ConvNorm | undefined;

  constructor({ from, width, stride, projected }: BlockPlace) {
    super();
    const to = width * expansion;
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

  constructor({ from, width, stride, projected }: BlockPlace, alphaIn: number, alphaOut: number) {
    super();
    const to = width * expansion;
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

/** Where a block stands. */
interface BlockPlace {
  readonly from: number;
  readonly width: number;
  readonly stride: number;
  readonly projected: boolean;
  /** 1 to 4, `layer1` to `layer4`; these are stages 2 to 5 of the papers. */
  readonly layer: number;
}

/** What differs between the plain and the octave network: the blocks, and what they pass to each other. */
interface Family<F> {
  block(place: BlockPlace): Module<F, F>;
  enter(x: Feature): F;
  leave(x: F): Feature;
}

const plain: Family<Feature> = { block: (place) => new Bottleneck(place), enter: (x) => x, leave: (x) => x };

/** Octave from the first block of layer1 on, which splits; the first block of layer4 merges. */
function octave(alpha: number): Family<Octave<Feature>> {
  const alphas = [0, alpha, alpha, alpha, 0];
  return {
    block: (place) => {
      const alphaOut = alphas[place.layer] ?? 0;
      return new OctBottleneck(place, place.projected ? (alphas[place.layer - 1] ?? 0) : alphaOut, alphaOut);
    },
    enter: (x) => new Octave(x),
    leave: (x) => x.high,
  };
}

/** [N, H, W, 3] -> logits [N, classes] */
class ResNet<F> extends Module {
  readonly conv1: Conv;
  readonly bn1: BatchNorm;
  readonly layer1: readonly Module<F, F>[];
  readonly layer2: readonly Module<F, F>[];
  readonly layer3: readonly Module<F, F>[];
  readonly layer4: readonly Module<F, F>[];
  readonly fc: Linear;
  readonly #family: Family<F>;
  readonly #pools: boolean;

  constructor(blocks: readonly number[], { width, classes, stem }: ResolvedNetworkOptions, family: Family<F>) {
    super();
    this.#family = family;
    this.#pools = stem === 'imagenet';
    this.conv1 = new Conv(3, width, stem === 'imagenet' ? { kernel: 7, stride: 2 } : { kernel: 3 });
    this.bn1 = new BatchNorm(width);
    const layer = (index: number) =>
      Array.from({ length: blocks[index - 1] ?? 0 }, (_, i) => {
        const inner = width * 2 ** (index - 1);
        const from = i > 0 ? inner * expansion : index > 1 ? (inner / 2) * expansion : width;
        const stride = i === 0 && index > 1 ? 2 : 1;
        return family.block({ from, width: inner, stride, projected: i === 0, layer: index });
      });
    this.layer1 = layer(1);
    this.layer2 = layer(2);
    this.layer3 = layer(3);
    this.layer4 = layer(4);
    this.fc = new Linear(width * 8 * expansion, classes);
  }

  forward(x: Feature): Value<'f32', Matrix> {
    const stem = relu(this.bn1.forward(this.conv1.forward(x)));
    let y = this.#family.enter(this.#pools ? maxPool(stem, { kernel: 3, stride: 2, padding: 1 }) : stem);
    for (const block of [this.layer1, this.layer2, this.layer3, this.layer4].flat()) y = block.forward(y);
    return this.fc.forward(globalAvgPool(this.#family.leave(y)));
  }
}

const depths = { 26: [2, 2, 2, 2], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3] } as const;

export function resNet(depth: keyof typeof depths, options: ResolvedNetworkOptions) {
  return new ResNet(depths[depth], options, plain);
}

/** At alpha 0 the operator is the same: its stride-2 layers pool, and it is not the plain network. */
export function octResNet(depth: keyof typeof depths, options: ResolvedNetworkOptions) {
  return new ResNet(depths[depth], options, octave(options.alpha));
}
