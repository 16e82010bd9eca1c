/**
 * What the pre-activation networks of the authors' ablation share (arXiv 1904.05049, section 4; their MXNet symbols):
 * batch normalisation and ReLU in front of each convolution, and once more at the end, the tail. Plain networks stride,
 * octave ones pool, at alpha 0 too.
 */
import type { Value } from '../graph/graph.js';
import { defaultInput, type InputConfig, inputOf } from '../input/preprocess.js';
import { BatchNorm, Conv, DeepModule, type Feature, Linear, Module, OctConv } from '../layers/index.js';
import { Octave } from '../octave.js';
import { globalAvgPool, maxPool, relu } from '../ops.js';
import type { Matrix } from '../tensor.js';
import type { Work } from '../turns.js';
import { type Classifier, type Family, splitName, withOctave } from './family.js';
import {
  blocksOption,
  commonOptions,
  type NetworkOptions,
  type OptionSchema,
  type ResolvedNetworkOptions,
} from './options.js';
import { countBlocks, inferAlpha, inferEnds, type Shapes } from './shapes.js';

export type Pair = Octave<Feature>;
export type Widths = Octave<number>;
/** A part of such a network; plain ones have a high branch only. */
export type Part = Module<Pair, Pair>;
interface UnitOptions {
  readonly kernel: number;
  readonly stride?: number;
  readonly groups?: number | undefined;
}
export type MakeUnit = new (from: Widths, to: Widths, options: UnitOptions) => Part;

const eps = 1e-4;

/** conv(relu(bn(x))) */
class PlainUnit extends Module<Pair, Pair> {
  readonly bn: BatchNorm;
  readonly conv: Conv;

  constructor({ high: from }: Widths, { high: to }: Widths, options: UnitOptions) {
    super();
    this.bn = new BatchNorm(from, eps);
    this.conv = new Conv(from, to, options);
  }

  forward(x: Pair): Pair {
    return x.map((branch) => this.conv.forward(relu(this.bn.forward(branch))));
  }
}

/** The same of an octave convolution. */
class OctUnit extends Module<Pair, Pair> {
  readonly bn_h: BatchNorm;
  readonly bn_l: BatchNorm | undefined;
  readonly conv: OctConv;

  constructor(from: Widths, to: Widths, options: UnitOptions) {
    super();
    const { high, low } = from.map((width) => new BatchNorm(width, eps));
    this.bn_h = high;
    this.bn_l = low;
    this.conv = new OctConv(from, to, options);
  }

  forward(x: Pair): Pair {
    return this.conv.forward(new Octave(this.bn_h, this.bn_l).zip(x, (bn, branch) => relu(bn.forward(branch))));
  }
}

/** [N, H, W, channels] -> logits [N, classes] */
export class PreActivationNet extends DeepModule<Feature, Value<'f32', Matrix>> {
  readonly conv1: Conv;
  readonly bn1: BatchNorm;
  readonly layer1: readonly Part[];
  readonly layer2: readonly Part[];
  readonly layer3: readonly Part[];
  readonly layer4: readonly Part[];
  readonly tail: BatchNorm;
  readonly fc: Linear;
  readonly #pools: boolean;

  constructor({ width, classes, stem, channels }: ResolvedNetworkOptions, layers: readonly Part[][], last: number) {
    super();
    this.#pools = stem === 'imagenet';
    this.conv1 = new Conv(channels, width, stem === 'imagenet' ? { kernel: 7, stride: 2 } : { kernel: 3 });
    this.bn1 = new BatchNorm(width, eps);
    [this.layer1 = [], this.layer2 = [], this.layer3 = [], this.layer4 = []] = layers;
    this.tail = new BatchNorm(last, eps);
    this.fc = new Linear(last, classes);
  }

  /** All between the stem and the tail, in order. */
  protected parts(): readonly Part[] {
    return [this.layer1, this.layer2, this.layer3, this.layer4].flat();
  }

  *work(x: Feature): Work<Value<'f32', Matrix>> {
    const stem = relu(this.bn1.forward(this.conv1.forward(x)));
    let y = new Octave(this.#pools ? maxPool(stem, { kernel: 3, stride: 2, padding: 1 }) : stem);
    for (const part of this.parts()) {
      yield;
      y = part.forward(y);
    }
    return this.fc.forward(globalAvgPool(relu(this.tail.forward(y.high))));
  }
}

/** Alpha of what `layer0` (the stem) to `layer4` give: the first block of layer1 splits, layer4 has one branch. */
export const alphasOf = ({ alpha }: ResolvedNetworkOptions): readonly number[] => [0, alpha, alpha, alpha, 0];

/**
 * What the authors trained these on: (v - (124, 117, 104)) * 0.0167 of a picture resized by OpenCV's bicubic, which,
 * unlike ours, does not antialias.
 */
export function symbolInput(stem: 'imagenet' | 'cifar' = 'imagenet'): InputConfig {
  if (stem === 'cifar') return defaultInput(stem);
  return {
    ...defaultInput(stem),
    interpolation: 'bicubic',
    antialias: false,
    scale: 0.0167,
    mean: [2.0708, 1.9539, 1.7368],
    std: [1, 1, 1],
  };
}

const normParts: Readonly<Record<string, string>> = {
  gamma: 'weight',
  beta: 'bias',
  moving_mean: 'running_mean',
  moving_var: 'running_var',
};

/** The parameter of a record of the authors' symbols: `L2_B01_conv1_bn-h_gamma` is `layer1.0.conv1.bn_h.weight`. */
function parameterOf(record: string): string | undefined {
  const [, place = '', last = ''] = /^(.*)_(weight|bias|gamma|beta|moving_mean|moving_var)$/.exec(record) ?? [];
  const part = normParts[last] ?? last;
  const [, end] = /^(conv1_conv|conv1_bn|tail_bn|classifier)$/.exec(place) ?? [];
  if (end) return `${{ conv1_conv: 'conv1', conv1_bn: 'bn1', tail_bn: 'tail', classifier: 'fc' }[end]}.${part}`;
  const [, stage, block, unit, layer = '', path] =
    /^L([2-5])_(B\d+|Trans)_(conv[1-4]?|se)_(conv|bn|fc1|fc2)(?:-(\w+))?$/.exec(place) ?? [];
  if (!stage || !block || !unit) return undefined;
  const where =
    block === 'Trans' ? `transition${Number(stage) - 2}` : `layer${Number(stage) - 1}.${Number(block.slice(1)) - 1}`;
  const name = unit === 'conv4' ? 'downsample' : unit === 'conv' ? 'conv1' : unit;
  const branch = path ? `${layer}${layer === 'conv' ? '.conv' : ''}_${path}` : layer;
  return `${where}.${name}.${branch}.${part}`;
}

/** What a family of these has of its own. */
interface Kind<N extends string> {
  /** Blocks by name; the first name has no depth, takes `blocks`, and has these if there are none. */
  readonly blocks: { readonly [K in N]: readonly number[] };
  readonly options?: OptionSchema;
  build(unit: MakeUnit, blocks: readonly number[], options: ResolvedNetworkOptions, octave: boolean): Classifier;
  /** `options` of a network with a tail that is of this family. @throws OctconvError if it nearly is. */
  infer(parameters: Shapes, weightOf: (layer: string) => string): NetworkOptions | undefined;
}

export function preActivationFamily<const N extends string>({
  blocks,
  options,
  build,
  infer,
}: Kind<N>): Family<N | `oct-${N}`> {
  const plainNames = Object.keys(blocks) as N[];
  const [general, ...numbered] = plainNames as [N, ...N[]];
  const names = withOctave(plainNames);
  return {
    names,
    options(name) {
      const { plain, octave } = splitName<N>(name);
      return {
        ...commonOptions(octave),
        ...options,
        ...(plain === general && { blocks: blocksOption(blocks[plain]) }),
      };
    },
    build(name, resolved) {
      const { plain, octave } = splitName<N>(name);
      return build(octave ? OctUnit : PlainUnit, resolved.blocks ?? blocks[plain], resolved, octave);
    },
    defaultInput: (_, { stem, channels }) => inputOf(symbolInput(stem), channels),
    parameterOf,
    infer(parameters) {
      const octave = parameters.has('layer1.0.conv1.conv.conv_h2h.weight');
      const weightOf = (layer: string) => `${layer}.conv${octave ? '.conv_h2h' : ''}.weight`;
      const own = parameters.has('tail.weight') ? infer(parameters, weightOf) : undefined;
      if (!own) return undefined;
      const found = { alpha: octave ? inferAlpha(parameters) : 0, ...inferEnds(parameters), ...own };
      const counted = countBlocks(parameters);
      const named = numbered.find((name) => blocks[name].join() === counted.join());
      const plain = named ?? general;
      return { network: octave ? `oct-${plain}` : plain, options: { ...found, ...(!named && { blocks: counted }) } };
    },
  };
}
