import { OctconvError, show } from '../error.js';
import { channelCount, defaultInput, type InputConfig } from '../input/preprocess.js';
import { didYouMean } from '../options.js';
import type { Shape } from '../tensor.js';
import type { Classifier, Family } from './family.js';
import { type NetworkOptions, type ResolvedNetworkOptions, withDefaults } from './options.js';
import { denseNets } from './densenet.js';
import { i3ds } from './i3d.js';
import { mobileNetsV1 } from './mobilenet-v1.js';
import { mobileNetsV2 } from './mobilenet-v2.js';
import { resNets } from './resnet.js';
import { resNetsV1e } from './resnet-v1e.js';
import { resNetsV2 } from './resnet-v2.js';
import { resNeXts } from './resnext.js';
import { resNeXtsV2 } from './resnext-v2.js';
import { seResNetsV2 } from './se-resnet-v2.js';

export type { Classifier, Family, NetworkOptions };

const registered = [
  resNets,
  resNeXts,
  resNetsV2,
  resNeXtsV2,
  seResNetsV2,
  denseNets,
  resNetsV1e,
  mobileNetsV1,
  mobileNetsV2,
  i3ds,
] as const;

/** Every family of networks; one that is added to the list is known everywhere. */
export const families: Family[] = [...registered];

/** Name of a network that comes with the package. */
export type NetworkName = (typeof registered)[number]['names'][number];

/** Names that complete in an editor; a family that the user registers has others. */
export type AnyNetworkName = NetworkName | (string & Record<never, never>);

/** The networks that come with the package. */
export const networkNames: readonly AnyNetworkName[] = registered.flatMap(({ names }): readonly NetworkName[] => names);

function familyOf(name: string): Family {
  const family = families.find(({ names }) => names.includes(name));
  if (family) return family;
  const known = families.flatMap(({ names }) => names);
  const found = typeof name === 'string' ? `'${show(name).slice(1, -1)}'` : show(name);
  throw new OctconvError(`network ${found}${didYouMean(name, known)}, wanted one of ${known.join(', ')}`);
}

/** @throws OctconvError for an unknown name or an option out of range. */
export function buildNetwork(name: AnyNetworkName, options: NetworkOptions = {}): Classifier {
  return familyOf(name).build(name, resolveNetworkOptions(name, options));
}

/** The options with what was left out, see `withDefaults`; errors name the network. */
export function resolveNetworkOptions(
  name: AnyNetworkName,
  options: NetworkOptions,
  where: string = name,
  beside?: Readonly<Record<string, true>>,
): ResolvedNetworkOptions {
  return withDefaults(where, options, familyOf(name).options(name), beside);
}

/** Options of a narrow network, of about so many channels behind the stem, for what would take long with the usual ones. */
export function narrowed(name: AnyNetworkName, width: number): NetworkOptions {
  const { groups, multiplier } = resolveNetworkOptions(name, {});
  if (multiplier !== undefined) return { multiplier: width / 32 };
  return { width, ...(groups !== undefined && { groups: width / 4 }) };
}

/**
 * How a picture or a clip becomes the input of a network, unless a model folder says it; undefined where none can.
 * `ofRecords`: of weights from the authors' MXNet files.
 */
export function defaultInputOf(
  name: AnyNetworkName,
  options: NetworkOptions,
  ofRecords = false,
): InputConfig | undefined {
  return familyOf(name).defaultInput(name, resolveNetworkOptions(name, options), ofRecords);
}

/** Sizes of an input that differ from those that a network is made for. */
export interface InputSize {
  readonly height?: number | undefined;
  readonly width?: number | undefined;
  /** Of a clip. */
  readonly frames?: number | undefined;
}

/**
 * One input of a network, [1, H, W, C] or [1, T, H, W, C]: of the size that it was made for, unless another is given.
 * @throws OctconvError for frames of a network of images.
 */
export function inputShape({ name, options = {}, input }: Described, given: InputSize = {}): Shape {
  // Where there is no input of so many channels, of the size of one of 3.
  const usualOf = (known: string) =>
    familyOf(known).defaultInput(known, { ...resolveNetworkOptions(known, options), channels: 3 });
  const usual = input ?? (name === undefined ? undefined : usualOf(name));
  const { height, width, frames } = usual ?? defaultInput(options.stem);
  if (frames === undefined && given.frames !== undefined)
    throw new OctconvError(`${name ?? 'network'}: ${given.frames} frames, wanted none: its input is an image`);
  const time = frames === undefined ? [] : [given.frames ?? frames];
  return [1, ...time, given.height ?? height, given.width ?? width, options.channels ?? channelCount(usual ?? {})];
}

/** @throws OctconvError for an input of another rank, or with its channels in another place, than a registered network has. */
export function checkInput({ name, options = {} }: Described, shape: Shape): void {
  if (name === undefined || !families.some(({ names }) => names.includes(name))) return;
  const wanted = inputShape({ name, options });
  const channels = wanted.at(-1);
  const [ours, theirs] =
    wanted.length === 5 ? [`clips [N,T,H,W,${channels}]`, '[N,C,T,H,W]'] : [`images [N,H,W,${channels}]`, '[N,C,H,W]'];
  const fits = shape.length === wanted.length;
  const turned = fits && shape.at(-1) !== channels && shape[1] === channels;
  if (!fits || turned)
    throw new OctconvError(
      `${name}: got [${shape}], wanted ${ours}${turned ? `; this looks like ${theirs}, which toNHWC turns` : ''}`,
    );
}

interface Described {
  readonly name?: string | undefined;
  readonly options?: NetworkOptions | undefined;
  readonly input?: InputConfig | undefined;
}

/** The octave form of a plain network, if there is one. */
export function octaveForm(name: AnyNetworkName): string | undefined {
  return families.some(({ names }) => names.includes(name) && names.includes(`oct-${name}`))
    ? `oct-${name}`
    : undefined;
}
