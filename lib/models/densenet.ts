/** DenseNets and octave DenseNets (arXiv 1608.06993; 1904.05049): each layer reads all before it. */
import { Module } from '../layers/index.js';
import { splitChannels } from '../octave.js';
import { avgPool, concat } from '../ops.js';
import { type ResolvedNetworkOptions, widthOption } from './options.js';
import {
  alphasOf,
  type MakeUnit,
  type Pair,
  type Part,
  PreActivationNet,
  preActivationFamily,
  type Widths,
} from './preactivation.js';

/** x and beside it 3x3(1x1(x)), of `growth` channels; a branch that x does not have is just the new one. */
class DenseLayer extends Module<Pair, Pair> {
  readonly conv1: Part;
  readonly conv2: Part;

  constructor(unit: MakeUnit, from: Widths, inner: Widths, growth: Widths) {
    super();
    this.conv1 = new unit(from, inner, { kernel: 1 });
    this.conv2 = new unit(inner, growth, { kernel: 3 });
  }

  forward(x: Pair): Pair {
    return x.join(this.conv2.forward(this.conv1.forward(x)), (old, added) => concat([old, added]));
  }
}

/** A 1x1 convolution to half of the channels, then 2x2 average pooling of each branch. */
class Transition extends Module<Pair, Pair> {
  readonly conv1: Part;
  readonly #ceilMode: boolean;

  /** Odd sizes: the plain network leaves the last row out, the octave operator averages what is there of it. */
  constructor(unit: MakeUnit, from: Widths, to: Widths, ceilMode: boolean) {
    super();
    this.conv1 = new unit(from, to, { kernel: 1 });
    this.#ceilMode = ceilMode;
  }

  forward(x: Pair): Pair {
    const options = { kernel: 2, ceilMode: this.#ceilMode, countIncludePad: false };
    return this.conv1.forward(x).map((branch) => avgPool(branch, options));
  }
}

class DenseNet extends PreActivationNet {
  readonly transition1: Transition;
  readonly transition2: Transition;
  readonly transition3: Transition;

  constructor(unit: MakeUnit, blocks: readonly number[], options: ResolvedNetworkOptions, octave: boolean) {
    const growth = options.width / 2;
    const alphas = alphasOf(options);
    const sum = (a: number, b: number) => a + b;
    const transitions: Transition[] = [];
    let from = splitChannels(options.width, 0);
    const layers = blocks.map((count, i) => {
      const [inner, added] = [4, 1].map((times) => splitChannels(times * growth, alphas[i + 1] ?? 0)) as [
        Widths,
        Widths,
      ];
      const layer = Array.from({ length: count }, () => {
        const made = new DenseLayer(unit, from, inner, added);
        from = from.join(added, sum);
        return made;
      });
      if (i < 3) {
        const to = splitChannels(Math.trunc(from.merge(sum) / 2), alphas[i + 2] ?? 0);
        transitions.push(new Transition(unit, from, to, octave));
        from = to;
      }
      return layer;
    });
    super(options, layers, from.high);
    [this.transition1, this.transition2, this.transition3] = transitions as [Transition, Transition, Transition];
  }

  protected override parts(): readonly Part[] {
    const { layer1, transition1, layer2, transition2, layer3, transition3, layer4 } = this;
    return [...layer1, transition1, ...layer2, transition2, ...layer3, transition3, ...layer4];
  }
}

export const denseNets = preActivationFamily({
  blocks: { densenet: [6, 12, 24, 16], 'densenet-121': [6, 12, 24, 16] },
  options: { width: widthOption('an even integer from 2', (width) => width % 2 === 0) }, // the growth is half of it
  build: (unit, blocks, options, octave) => new DenseNet(unit, blocks, options, octave),
  infer: (parameters) =>
    ['bn', 'bn_h'].some((bn) => parameters.has(`transition1.conv1.${bn}.weight`)) ? {} : undefined,
});
