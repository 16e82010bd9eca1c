/** What MobileNet V1 and V2 share: units of a convolution, its normalisation and a ReLU, and widths by a multiplier. */
import { OctconvError } from '../error.js';
import type { Value } from '../graph/graph.js';
import { defaultInput, inputOf } from '../input/preprocess.js';
import {
  BatchNorm,
  Conv,
  type ConvLayerOptions,
  DeepModule,
  type Feature,
  type Linear,
  Module,
  OctConvNorm,
} from '../layers/index.js';
import { Octave } from '../octave.js';
import { globalAvgPool } from '../ops.js';
import type { Matrix } from '../tensor.js';
import type { Work } from '../turns.js';
import { type Family, splitName } from './family.js';
import { gluonInput, gluonParameter } from './gluon.js';
import { commonOptions, multiplierOption } from './options.js';
import type { Pair, Part, Widths } from './preactivation.js';

type Logits = Value<'f32', Matrix>;
interface UnitOptions extends Pick<ConvLayerOptions, 'groups'> {
  readonly kernel: number;
  readonly stride?: number | undefined;
  /** Default: none. */
  readonly activation?: (x: Feature) => Feature;
}
const linear = (x: Feature): Feature => x;

/** The names are torchvision's. */
export class PlainUnit extends Module<Pair, Pair> {
  readonly 0: Conv;
  readonly 1: BatchNorm;
  readonly #activation: (x: Feature) => Feature;

  constructor({ high: from }: Widths, { high: to }: Widths, { activation = linear, ...options }: UnitOptions) {
    super();
    this[0] = new Conv(from, to, options);
    this[1] = new BatchNorm(to);
    this.#activation = activation;
  }

  forward(x: Pair): Pair {
    return x.map((branch) => this.#activation(this[1].forward(this[0].forward(branch))));
  }
}

export class OctUnit extends OctConvNorm {
  readonly #activation: (x: Feature) => Feature;

  constructor(from: Widths, to: Widths, { activation = linear, ...options }: UnitOptions) {
    super(from, to, options);
    this.#activation = activation;
  }

  override forward(x: Pair): Pair {
    return super.forward(x).map((branch) => this.#activation(branch));
  }
}

/** All channels: the groups of a depthwise convolution. */
export const channelsOf = (widths: Widths): number => widths.merge((high, low) => high + low);

/** [N, H, W, channels] -> logits [N, classes] */
export abstract class MobileNet extends DeepModule<Feature, Logits> {
  constructor(readonly features: readonly Part[]) {
    super();
  }

  /** The classifier. */
  protected abstract get head(): Linear;

  *work(x: Feature): Work<Logits> {
    let y: Pair = new Octave(x);
    for (const part of this.features) {
      yield;
      y = part.forward(y);
    }
    return this.head.forward(globalAvgPool(y.high));
  }
}

/** Options and input; octave ones are as in the authors' Gluon code, which trains on pictures of its own. */
export const mobileNets = {
  options(name: string) {
    const { alpha, classes, channels } = commonOptions(splitName(name).octave);
    return { alpha, multiplier: multiplierOption, classes, channels };
  },
  defaultInput: (name, { channels }) => inputOf(splitName(name).octave ? gluonInput : defaultInput(), channels),
} satisfies Pick<Family, 'options' | 'defaultInput'>;

/** The parameter of a record of the authors' files, where L1 to L5 have `stages` blocks and the stem is L1_B0. */
export function featureOf(record: string, stages: readonly number[]): string | undefined {
  const name = gluonParameter(record);
  const [layer = '', stage = 6, block = 0] = /^layer(\d)\.(\d+)/.exec(name ?? '') ?? [];
  if (layer && !(Number(block) < (stages[Number(stage) - 1] ?? 0))) return undefined; // of another network
  const index = stages.slice(0, Number(stage) - 1).reduce((a, b) => a + b, Number(block));
  return name?.replace(/^stem/, 'features.0').replace(layer || /^tail/, `features.${index}`);
}

/** Multipliers are looked for in steps of 1, 1/10, ..., as a person would write them; 1/10000 tells all widths apart. */
const steps = [1, 10, 20, 100, 1000, 10000];

/**
 * The multiplier that a person would have written, out of those at which layers have these widths, each found for the
 * width at 1; the first is the stem's.
 * @throws OctconvError if there is none.
 */
export function inferMultiplier(
  widths: readonly (readonly [usual: number, found: number])[],
  widthAt: (multiplier: number, usual: number) => number,
): number {
  const [[usual, found] = [1, 0]] = widths;
  for (const step of steps) {
    const last = Math.min(16, (found + 8) / usual) * step; // 16 is the largest, and widths are rounded by less than 8
    for (let n = Math.max(1, Math.floor(((found - 8) / usual) * step)); n <= last; n++)
      if (widths.every(([at, width]) => widthAt(n / step, at) === width)) return n / step;
  }
  const some = widths.slice(0, 4).map(([at, width]) => `${width} for ${at}`);
  throw new OctconvError(`no multiplier gives every layer its channels (${some.join(', ')}, ...)`);
}
