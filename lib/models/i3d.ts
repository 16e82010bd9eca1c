/**
 * The video networks of the paper (arXiv 1904.05049, section 4.4): C2D and I3D of "Non-local Neural Networks" (arXiv
 * 1711.07971, table 1 and section 4; the code video-nonlocal-net), plain and octave. They are post-activation ResNets
 * of bottlenecks with the same parameter names, where every 3x3 is 1x3x3, and I3D's stem and some conv1 have taps over
 * time. Octave convolutions halve height and width alone. No file of the authors of the octave forms is public: what
 * the paper leaves open is chosen here.
 */
import { OctconvError, show } from '../error.js';
import { defaultInput, inputOf } from '../input/preprocess.js';
import { BatchNorm, Conv, type Feature, Module } from '../layers/index.js';
import { Octave, splitChannels } from '../octave.js';
import { add, attention, maxPool } from '../ops.js';
import { type Family, splitName, withOctave } from './family.js';
import { commonOptions, flag, type OptionSchema, temporalKernelsOption } from './options.js';
import { Bottleneck, bottleneck, OctBottleneck, octaveForm, oneConv, type Place, plainForm, ResNet } from './resnet.js';
import { checkInner, countBlocks, inferAlpha, inferInner, nameOf, type Shapes, shapeOf } from './shapes.js';

/**
 * x + bn(conv_out(attention(conv_theta(x), conv_phi(p), conv_g(p)))), where p is x after a 1x2x2 max-pool; names as in
 * PySlowFast. (arXiv 1711.07971, section 3.3: embedded Gaussian, bottleneck, subsampling.)
 */
class NonLocal extends Module<Feature, Feature> {
  readonly conv_theta: Conv;
  readonly conv_phi: Conv;
  readonly conv_g: Conv;
  readonly conv_out: Conv;
  readonly bn: BatchNorm;

  constructor(channels: number) {
    super();
    const inner = Math.ceil(channels / 2);
    const options = { kernel: [1, 1, 1], bias: true } as const;
    this.conv_theta = new Conv(channels, inner, options);
    this.conv_phi = new Conv(channels, inner, options);
    this.conv_g = new Conv(channels, inner, options);
    this.conv_out = new Conv(inner, channels, options);
    this.bn = new BatchNorm(channels);
  }

  forward(x: Feature): Feature {
    const pooled = maxPool(x, { kernel: [1, 2, 2], stride: [1, 2, 2], ceilMode: true });
    const [q, k, v] = [this.conv_theta.forward(x), this.conv_phi.forward(pooled), this.conv_g.forward(pooled)];
    const y = attention(q, k, v);
    return add(x, this.bn.forward(this.conv_out.forward(y)));
  }
}

class NonLocalBottleneck extends Bottleneck {
  readonly nonlocal: NonLocal;

  constructor(place: Place) {
    super(place);
    this.nonlocal = new NonLocal(place.to);
  }

  override forward(x: Feature): Feature {
    return this.nonlocal.forward(super.forward(x));
  }
}

/** The high branch alone is non-local. */
class OctNonLocalBottleneck extends OctBottleneck {
  readonly nonlocal: NonLocal;

  constructor(place: Place) {
    super(place);
    this.nonlocal = new NonLocal(splitChannels(place.to, place.alphaOut).high);
  }

  override forward(x: Octave<Feature>): Octave<Feature> {
    const { high, low } = super.forward(x);
    return new Octave(this.nonlocal.forward(high), low);
  }
}

/** Whether a non-local block is behind a block: in layer2 and layer3 behind every second one, of 23 every seventh. */
function isNonLocal(blocks: readonly number[], layer: number, index: number): boolean {
  const every = blocks[layer - 1] === 23 ? 7 : 2;
  return (layer === 2 || layer === 3) && index % every === every - 1;
}

const depths = {
  '26': bottleneck['resnet-26'],
  '50': bottleneck['resnet-50'],
  '101': bottleneck['resnet-101'],
} as const;
type Depth = '26' | '50' | '101';
type Name = `${'c2d' | 'i3d'}-${Depth}`;
const isI3d = (name: Name) => name.startsWith('i3d');
const blocksOf = (name: Name): readonly number[] => depths[name.slice(4) as Depth];

const plainNames = (['c2d', 'i3d'] as const).flatMap((kind) =>
  (['26', '50', '101'] as const).map((depth): Name => `${kind}-${depth}`),
);
const names = withOctave(plainNames);

/** Taps over time of the conv1 of I3D, again and again in the blocks of layer1 to layer4. */
const taps = [[3], [3, 1], [3, 1], [1, 3]];

function usualKernels(name: Name): number[][] {
  return blocksOf(name).map((count, layer) => {
    const some = isI3d(name) ? (taps[layer] ?? []) : [1];
    return Array.from({ length: count }, (_, i) => some[i % some.length] ?? 1);
  });
}

export const i3ds: Family<(typeof names)[number]> = {
  names,

  options(name) {
    const { plain, octave } = splitName<Name>(name);
    const { alpha, width, classes, channels } = commonOptions(octave);
    return {
      alpha,
      width,
      classes: { ...classes, usual: 400 },
      channels,
      nonLocal: flag,
      temporalKernels: temporalKernelsOption(usualKernels(plain)),
    } satisfies OptionSchema;
  },

  build(name, options) {
    const { plain, octave } = splitName<Name>(name);
    const { nonLocal, temporalKernels } = options;
    const blocks = blocksOf(plain);
    // Rounded up, so that there may be any number of frames.
    const halveTime = { kernel: [2, 1, 1], stride: [2, 1, 1], ceilMode: true } as const;
    const layout = {
      stem: oneConv(options, { kernel: [isI3d(plain) ? 5 : 1, 7, 7], stride: [1, 2, 2] }),
      pools: [{ kernel: [1, 3, 3], stride: [1, 2, 2], padding: [0, 1, 1] }, halveTime] as const,
      blocks,
      expansion: 4,
    };
    const timed = (place: Place, layer: number, i: number) => ({ ...place, time: temporalKernels?.[layer - 1]?.[i] });
    const attends = (layer: number, i: number) => nonLocal === true && isNonLocal(blocks, layer, i);
    return octave
      ? new ResNet(options, octaveForm, {
          ...layout,
          block: (place, layer, i) =>
            new (attends(layer, i) ? OctNonLocalBottleneck : OctBottleneck)(timed(place, layer, i)),
        })
      : new ResNet(options, plainForm, {
          ...layout,
          block: (place, layer, i) => new (attends(layer, i) ? NonLocalBottleneck : Bottleneck)(timed(place, layer, i)),
        });
  },

  // Of 64 frames of Kinetics every eighth.
  defaultInput: (_, { channels }) => inputOf({ ...defaultInput(), frames: 8, frameStride: 8 }, channels),

  infer(parameters) {
    const octave = parameters.has('layer1.0.conv1.conv.conv_h2h.weight');
    const { length } = parameters.get('conv1.weight') ?? [];
    if (length !== 5 || (!octave && !parameters.has('layer1.0.conv1.weight'))) return undefined;
    const [width = 0, channels = 0, ...stem] = shapeOf(parameters, 'conv1.weight', 5);
    const kind = ({ '5,7,7': 'i3d', '1,7,7': 'c2d' } as const)[String(stem)];
    if (!kind) throw new OctconvError(`'conv1.weight' is ${stem.join('x')}, wanted 5x7x7 (i3d) or 1x7x7 (c2d)`);
    const [classes = 0] = shapeOf(parameters, 'fc.weight', 2);
    const weightOf = (layer: string) => `${layer}${octave ? '.conv.conv_h2h' : ''}.weight`;
    const blocks = countBlocks(parameters);
    checkInner(inferInner(parameters, weightOf, 5), width, 3 * blocks.reduce((a, b) => a + b, 0) + 2);
    const depth = nameOf<Depth>(depths, blocks);
    const possible = Object.values(depths).map(show).join(' or ');
    if (!depth) throw new OctconvError(`layer1 to layer4 have ${show(blocks)} bottlenecks, wanted ${possible}`);
    const name = `${kind}-${depth}` as const;
    const temporalKernels = blocks.map((count, layer) =>
      Array.from({ length: count }, (_, i) => shapeOf(parameters, weightOf(`layer${layer + 1}.${i}.conv1`), 5)[2] ?? 1),
    );
    return {
      network: octave ? `oct-${name}` : name,
      options: {
        alpha: octave ? inferAlpha(parameters) : 0,
        width,
        classes,
        channels,
        nonLocal: inferNonLocal(parameters, blocks),
        temporalKernels,
      },
    };
  },
};

/** @throws OctconvError if some of the non-local blocks are there, or others. */
function inferNonLocal(parameters: Shapes, blocks: readonly number[]): boolean {
  const all = blocks.flatMap((count, layer) => Array.from({ length: count }, (_, i) => [layer + 1, i] as const));
  const places = (holds: (layer: number, i: number) => boolean) =>
    all.filter(([layer, i]) => holds(layer, i)).map(([layer, i]) => `layer${layer}.${i}`);
  const found = places((layer, i) => parameters.has(`layer${layer}.${i}.nonlocal.conv_theta.weight`));
  const wanted = places((layer, i) => isNonLocal(blocks, layer, i));
  if (found.length === 0) return false;
  if (show(found) === show(wanted)) return true;
  throw new OctconvError(`non-local blocks in ${show(found)}, wanted them in ${show(wanted)}, or in none`);
}
