/** What the families read off a weight file's names and shapes. */
import { OctconvError, show } from '../error.js';
import type { ResolvedNetworkOptions } from './options.js';

/** Shapes by parameter name. */
export type Shapes = ReadonlyMap<string, readonly number[]>;

/** @throws OctconvError unless the parameter is there with that many sizes. */
export function shapeOf(parameters: Shapes, name: string, rank: number): readonly number[] {
  const found = parameters.get(name);
  if (!found) throw new OctconvError(`no '${name}', which the names beside it call for`);
  if (found.length === rank) return found;
  throw new OctconvError(`'${name}' has shape ${show(found)}, wanted ${rank} sizes`);
}

/** The stem, its width and the channels of the input, from `conv1.weight`; the classes, from `fc.weight`. */
export function inferEnds(
  parameters: Shapes,
): Pick<Required<ResolvedNetworkOptions>, 'width' | 'classes' | 'stem' | 'channels'> {
  const [width = 0, channels = 0, height, kernel] = shapeOf(parameters, 'conv1.weight', 4);
  const [classes = 0] = shapeOf(parameters, 'fc.weight', 2);
  if (height === kernel && kernel === 7) return { width, classes, stem: 'imagenet', channels };
  if (height === kernel && kernel === 3) return { width, classes, stem: 'cifar', channels };
  throw new OctconvError(`'conv1.weight' is ${height}x${kernel}, wanted 7x7 (imagenet) or 3x3 (cifar)`);
}

/** How many blocks `layer1` to `layer4` have. */
export function countBlocks(parameters: Shapes): readonly number[] {
  const blocks = Array.from({ length: 4 }, () => new Set<string>());
  for (const name of parameters.keys()) {
    const [, layer, block] = /^layer([1-4])\.(\d+)\./.exec(name) ?? [];
    if (layer && block) blocks[Number(layer) - 1]?.add(block);
  }
  return blocks.map(({ size }) => size);
}

/** The name whose blocks these are. */
export function nameOf<N extends string>(
  names: { readonly [K in N]?: readonly number[] },
  blocks: readonly number[],
): N | undefined {
  return (Object.keys(names) as N[]).find((name) => names[name]?.join() === blocks.join());
}

/** The 3x3 of layer1: its channels, and their groups. */
export interface Inner {
  readonly width: number;
  readonly groups: number;
}

/** From the convolutions of layer4. `weightOf` gives a layer's weight, of its high branch; layer4 has no other. */
export function inferInner(parameters: Shapes, weightOf: (layer: string) => string, rank: 4 | 5 = 4): Inner {
  const [out = 0] = shapeOf(parameters, weightOf('layer4.0.conv1'), rank);
  const [, perGroup = 1] = shapeOf(parameters, weightOf('layer4.0.conv2'), rank);
  return { width: out / 8, groups: out / perGroup };
}

/** @throws OctconvError for a ResNeXt or a wide ResNet, by its name, of a kind that has neither. */
export function checkInner(inner: Inner, width: number, depth: number): void {
  if (inner.groups > 1 || inner.width !== width) throw notHere(inner, width, depth);
}

/** For a ResNeXt or a wide ResNet whose widths no network has. */
export function notHere(inner: Inner, width: number, depth: number): OctconvError {
  const { groups } = inner;
  const wide = `Wide ResNet-${depth}-${inner.width / width}`;
  const name = groups > 1 ? `ResNeXt-${depth} ${groups}x${inner.width / groups}d` : wide;
  return new OctconvError(`${name}: this network does not exist here yet`);
}

/** What the parameters of a post-activation network of images tell, with a stem of one convolution; nothing of others. */
export function inferStages(parameters: Shapes) {
  const octave = parameters.has('layer1.0.conv1.conv.conv_h2h.weight');
  if (!octave && !parameters.has('layer1.0.conv1.weight')) return undefined;
  // Pre-activation networks have a last batch normalisation, the tail; the stem of others is deep, or of video.
  const others = ['tail.weight', 'tail.0.weight', 'conv1.0.weight', 'stem.3.weight'];
  if (others.some((name) => parameters.has(name))) return undefined;
  if (parameters.get('conv1.weight')?.length === 5) return undefined;
  const weightOf = (layer: string) => `${layer}${octave ? '.conv.conv_h2h' : ''}.weight`;
  const bottlenecks = parameters.has(weightOf('layer1.0.conv3'));
  const blocks = countBlocks(parameters);
  return {
    octave,
    bottlenecks,
    blocks,
    depth: (bottlenecks ? 3 : 2) * blocks.reduce((a, b) => a + b, 0) + 2,
    ends: inferEnds(parameters),
    inner: inferInner(parameters, weightOf),
  };
}

/** A layer's C output channels, of which `low` are in the low branch: low = trunc(alpha C). */
interface Split {
  readonly layer: string;
  readonly channels: number;
  readonly low: number;
}

/** layer4, or the transition before it, begins with the merge: from there on everything is in the high branch. */
const beforeLayer4 = /^(?:layer[1-3]|transition[12])\./;

/**
 * The alpha that a person would have written, out of those with low = trunc(alpha C) in every octave convolution before
 * the merge.
 */
export function inferAlpha(parameters: Shapes, beforeMerge = beforeLayer4): number {
  const splits: Split[] = [];
  for (const [name, [high = 0]] of parameters) {
    const layer = /^(.*\.conv)\.conv_h2h\.weight$/.exec(name)?.[1];
    if (!layer || !beforeMerge.test(layer)) continue;
    // A depthwise convolution has no path between the branches.
    const low = (parameters.get(`${layer}.conv_h2l.weight`) ?? parameters.get(`${layer}.conv_l2l.weight`))?.[0] ?? 0;
    splits.push({ layer, channels: high + low, low });
  }
  let from = 0;
  let to = 1;
  for (const { channels, low } of splits) {
    from = Math.max(from, low / channels);
    to = Math.min(to, (low + 1) / channels);
  }
  const fits = (alpha: number) => splits.every(({ channels, low }) => Math.trunc(alpha * channels) === low);
  const candidates = [0, 0.5, 0.25, 0.75, 0.125, 0.375, 0.625, 0.875];
  for (let digits = 1; digits <= 15; digits++) candidates.push(Math.ceil(from * 10 ** digits) / 10 ** digits);
  candidates.push((from + to) / 2);
  const alpha = candidates.find((candidate) => candidate < 1 && fits(candidate));
  if (alpha !== undefined) return alpha;
  const lows = splits.slice(0, 4).map(({ layer, channels, low }) => `${layer} ${low} of ${channels}`);
  throw new OctconvError(`no alpha gives every layer its low channels (${lows.join(', ')}, ...)`);
}
