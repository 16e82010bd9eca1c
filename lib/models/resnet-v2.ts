/** Pre-activation ResNets and octave ResNets with bottlenecks, stride in the 3x3 (arXiv 1603.05027; 1904.05049). */
import { Module } from '../layers/index.js';
import { splitChannels } from '../octave.js';
import { add } from '../ops.js';
import type { ResolvedNetworkOptions } from './options.js';
import {
  alphasOf,
  type MakeUnit,
  type Pair,
  type Part,
  PreActivationNet,
  preActivationFamily,
  type Widths,
} from './preactivation.js';
import { checkInner, inferInner, type Shapes } from './shapes.js';

/** What a block takes and gives. */
export interface Place {
  readonly from: Widths;
  readonly inner: Widths;
  readonly to: Widths;
  readonly stride: number;
  readonly groups?: number | undefined;
  readonly projected: boolean;
}

/** x + 1x1(3x3(1x1(x))), where x is projected, behind a normalisation of its own, if the shape changes. */
export class Block extends Module<Pair, Pair> {
  readonly conv1: Part;
  readonly conv2: Part;
  readonly conv3: Part;
  readonly downsample: Part | undefined;

  constructor(unit: MakeUnit, { from, inner, to, stride, groups, projected }: Place) {
    super();
    this.conv1 = new unit(from, inner, { kernel: 1 });
    this.conv2 = new unit(inner, inner, { kernel: 3, stride, groups });
    this.conv3 = new unit(inner, to, { kernel: 1 });
    this.downsample = projected ? new unit(from, to, { kernel: 1, stride }) : undefined;
  }

  protected residual(x: Pair): Pair {
    return this.conv3.forward(this.conv2.forward(this.conv1.forward(x)));
  }

  forward(x: Pair): Pair {
    return this.residual(x).zip(this.downsample?.forward(x) ?? x, (a, b) => add(a, b));
  }
}

/** The network of these blocks; the channels of their 3x3 are `factor` times the usual ones. */
export function network(
  blocks: readonly number[],
  options: ResolvedNetworkOptions,
  block: (place: Place, layer: number) => Part,
  factor = 1,
) {
  const { width } = options;
  const alphas = alphasOf(options);
  let from = splitChannels(width, 0);
  const layers = blocks.map((count, i) => {
    const [inner, to] = [factor, 4].map((times) => splitChannels(times * width * 2 ** i, alphas[i + 1] ?? 0)) as [
      Widths,
      Widths,
    ];
    return Array.from({ length: count }, (_, j) => {
      const made = block({ from, inner, to, stride: i > 0 && j === 0 ? 2 : 1, projected: j === 0 }, i + 1);
      from = to;
      return made;
    });
  });
  return new PreActivationNet(options, layers, from.high);
}

/** What parameters of bottlenecks tell; nothing of others. */
export function inferBottlenecks(parameters: Shapes, weightOf: (layer: string) => string) {
  if (!parameters.has(weightOf('layer1.0.conv3'))) return undefined;
  const count = [...parameters.keys()].filter((name) => name.endsWith(weightOf('.conv3'))).length;
  const width = parameters.get('conv1.weight')?.[0] ?? 0;
  return { inner: inferInner(parameters, weightOf), width, depth: 3 * count + 2 };
}

/** Whether its blocks have squeeze-and-excitation. */
export const hasGates = (parameters: Shapes): boolean =>
  ['fc2', 'fc2_h2h'].some((fc) => parameters.has(`layer1.0.se.${fc}.weight`));

export const resNetsV2 = preActivationFamily({
  blocks: {
    'resnet-v2': [3, 4, 6, 3],
    'resnet-v2-26': [2, 2, 2, 2],
    'resnet-v2-50': [3, 4, 6, 3],
    'resnet-v2-101': [3, 4, 23, 3],
    'resnet-v2-200': [3, 24, 36, 3],
  },
  build: (unit, blocks, options) => network(blocks, options, (place) => new Block(unit, place)),
  infer(parameters, weightOf) {
    const found = inferBottlenecks(parameters, weightOf);
    if (!found || found.inner.groups > 1 || hasGates(parameters)) return undefined;
    checkInner(found.inner, found.width, found.depth);
    return {};
  },
});
