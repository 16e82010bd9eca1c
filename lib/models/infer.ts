import { OctconvError, show } from '../error.js';
import { someOf } from '../weights/names.js';
import type { WeightSource } from '../weights/source.js';
import type { ResolvedNetworkOptions } from './options.js';

export interface Inferred {
  readonly network: string;
  readonly options: ResolvedNetworkOptions;
}

/** All that can be said of a network: what `resolveOptions` is given any part of. */
export interface ResolvedOptions extends ResolvedNetworkOptions {
  readonly network: string;
}

type Source = Pick<WeightSource, 'name' | 'tensors' | 'unreadable'>;

const depths = new Map([['2,2,2,2', 26], ['3,4,6,3', 50], ['3,4,23,3', 101], ['3,8,36,3', 152]]);

/** A ResNet's or octave ResNet's name and options, from the names and shapes of its parameters. */
export function inferOptions(source: Source): Inferred {
  const { network, options, splits } = inspect(source);
  return { network, options: { alpha: simplestAlpha(source, splits), ...options } };
}

/** The same with what a user said: that stays where the weights agree with it, and is an error where they do not. */
export function resolveOptions(
  source: Source,
  given: { readonly [K in keyof ResolvedOptions]?: ResolvedOptions[K] | undefined },
): Inferred {
  const { network, options, splits } = inspect(source);
  const wrong = (key: string, asked: unknown, found: unknown): OctconvError =>
    new OctconvError(`${where(source)}: ${key} ${show(asked)} was asked for, the weights have ${show(found)}`);
  if (given.network !== undefined && given.network !== network) throw wrong('network', given.network, network);
  for (const key of ['width', 'classes', 'stem'] as const) {
    if (given[key] !== undefined && given[key] !== options[key]) throw wrong(key, given[key], options[key]);
  }
  const { alpha = simplestAlpha(source, splits) } = given;
  if (!(alpha >= 0 && alpha < 1 && fits(alpha, splits))) throw wrong('alpha', alpha, simplestAlpha(source, splits));
  return { network, options: { alpha, ...options } };
}

/** A layer's C output channels, of which `low` are in the low branch: low = trunc(alpha C). */
interface Split {
  readonly layer: string;
  readonly channels: number;
  readonly low: number;
}

function where(source: Source): string {
  return source.name ?? 'weights';
}

function inspect(source: Source): { network: string; options: Omit<ResolvedNetworkOptions, 'alpha'>; splits: Split[] } {
  const { tensors } = source;
  const fail = (what: string): OctconvError => new OctconvError(`${where(source)}: ${what}`);
  const shape = (name: string, rank: number): readonly number[] => {
    const found = tensors.get(name)?.shape;
    const why = source.unreadable?.get(name);
    if (why) throw fail(`'${name}' ${why}`);
    if (!found) throw fail(`no '${name}', wanted a ResNet (torchvision's names) or an octave ResNet (d-li14's); ${someOf(tensors.keys())}`);
    if (found.length !== rank) throw fail(`'${name}' has shape ${show(found)}, wanted ${rank} sizes`);
    return found;
  };

  const [width = 0, , kernel, kernelWidth] = shape('conv1.weight', 4);
  const [classes = 0] = shape('fc.weight', 2);
  const stem = kernel === 7 ? 'imagenet' : 'cifar';
  if (kernel !== kernelWidth || (kernel !== 3 && kernel !== 7)) {
    throw fail(`'conv1.weight' is ${kernel}x${kernelWidth}, wanted 7x7 (imagenet) or 3x3 (cifar)`);
  }

  const blocks: [Set<string>, Set<string>, Set<string>, Set<string>] = [new Set(), new Set(), new Set(), new Set()];
  for (const name of tensors.keys()) {
    const [, layer, block] = /^layer([1-4])\.(\d+)\./.exec(name) ?? [];
    if (layer && block) blocks[Number(layer) - 1]!.add(block);
  }
  const counts = blocks.map((block) => block.size);
  const depth = depths.get(counts.join());
  const possible = [...depths.keys()].map((key) => `[${key}]`).join(' or ');
  if (!depth) throw fail(`blocks per layer are ${show(counts)}, wanted ${possible}`);

  // An octave network at alpha 0 has one branch, yet the octave operator: its names say so.
  const octave = tensors.has('layer1.0.conv1.conv.conv_h2h.weight');
  shape(octave ? 'layer1.0.conv3.conv.conv_h2h.weight' : 'layer1.0.conv3.weight', 4);
  const splits: Split[] = [];
  if (octave) {
    for (const [name, { shape: [high = 0] }] of tensors) {
      // layer4 begins with the merge: from there on everything is in the high branch.
      const layer = /^(layer[1-3]\..*\.conv)\.conv_h2h\.weight$/.exec(name)?.[1];
      if (!layer) continue;
      const low = tensors.get(`${layer}.conv_h2l.weight`)?.shape[0] ?? 0;
      splits.push({ layer, channels: high + low, low });
    }
  }
  return { network: `${octave ? 'oct-' : ''}resnet-${depth}`, options: { width, classes, stem }, splits };
}

function fits(alpha: number, splits: readonly Split[]): boolean {
  // A plain network has no splits, and no alpha but 0.
  return splits.length === 0 ? alpha === 0 : splits.every(({ channels, low }) => Math.trunc(alpha * channels) === low);
}

/** The alpha that a person would have written, out of those with low = trunc(alpha C) in every layer. */
function simplestAlpha(source: Source, splits: readonly Split[]): number {
  let from = 0;
  let to = 1;
  for (const { channels, low } of splits) {
    from = Math.max(from, low / channels);
    to = Math.min(to, (low + 1) / channels);
  }
  const candidates = [0, 0.5, 0.25, 0.75, 0.125, 0.375, 0.625, 0.875];
  for (let digits = 1; digits <= 15; digits++) candidates.push(Math.ceil(from * 10 ** digits) / 10 ** digits);
  candidates.push((from + to) / 2);
  const alpha = candidates.find((candidate) => candidate < 1 && fits(candidate, splits));
  if (alpha !== undefined) return alpha;
  const lows = splits.slice(0, 4).map(({ layer, channels, low }) => `${layer} ${low} of ${channels}`);
  throw new OctconvError(`${where(source)}: no alpha gives every layer its low channels (${lows.join(', ')}, ...)`);
}
