import { OctconvError, show } from '../error.js';
import type { Octave } from '../octave.js';
import { checkOptions } from '../options.js';

export interface NetworkOptions {
  /** Share of the channels in the low branch, in [0, 1); default .5 for the octave networks, which alone have one. */
  readonly alpha?: number | undefined;
  /** Channels of the stem; default 64. Deep stems have `stemWidths`, MobileNets `multiplier`. */
  readonly width?: number | undefined;
  /** Default 1000, of video networks 400. */
  readonly classes?: number | undefined;
  /** `imagenet` (default): 7x7 stride 2 and 3x3 max-pool stride 2. `cifar`: 3x3 stride 1, no max-pool. */
  readonly stem?: 'imagenet' | 'cifar' | undefined;
  /** Channels of the input, any number; pictures want 3 (default), or 1 to be grey. */
  readonly channels?: number | undefined;
  /** Blocks of the four stages, for names without a depth (`resnet-v2`). */
  readonly blocks?: readonly number[] | undefined;
  /** Of ResNeXts: groups of the 3x3 convolutions; default 32. */
  readonly groups?: number | undefined;
  /** Of MobileNets, which have no `width`: what all widths are multiplied by; default 1. */
  readonly multiplier?: number | undefined;
  /** Of deep stems: channels of their three convolutions. */
  readonly stemWidths?: readonly number[] | undefined;
  /** Of video networks: whether they have non-local blocks (arXiv 1711.07971); default false. */
  readonly nonLocal?: boolean | undefined;
  /** Of video networks: taps over time of conv1, a list of odd numbers for each layer; default: those of its name. */
  readonly temporalKernels?: readonly (readonly number[])[] | undefined;
}

export interface ResolvedNetworkOptions {
  readonly alpha: number;
  readonly width: number;
  readonly classes: number;
  readonly channels: number;
  /** The others are absent where a network has no such option. */
  readonly stem?: 'imagenet' | 'cifar';
  readonly blocks?: readonly number[];
  readonly groups?: number;
  readonly multiplier?: number;
  readonly stemWidths?: readonly number[];
  readonly nonLocal?: boolean;
  readonly temporalKernels?: readonly (readonly number[])[];
}

/** What an option may be, in words too, and what it is when it is left out. */
export interface Option<T = unknown> {
  readonly usual: T;
  readonly wanted: string;
  fits(value: unknown): boolean;
}
type Given = Required<NetworkOptions>;
export type OptionSchema = { readonly [K in keyof NetworkOptions]?: Option<Exclude<Given[K], undefined>> };

const isSize = (value: unknown): boolean => Number.isInteger(value) && Number(value) >= 1 && Number(value) <= 65536;
const size = (usual: number): Option<number> => ({ usual, wanted: 'an integer from 1 to 65536', fits: isSize });

/** The options that every network has; more, or narrower ones, are spread behind it. */
export function commonOptions(octave: boolean) {
  const alpha: Option<number> = octave
    ? { usual: 0.5, wanted: 'at least 0 and less than 1', fits: (x) => typeof x === 'number' && x >= 0 && x < 1 }
    : { usual: 0, wanted: '0: only the octave networks have one', fits: (x) => x === 0 };
  const stem: Option<'imagenet' | 'cifar'> = {
    usual: 'imagenet',
    wanted: 'imagenet or cifar',
    fits: (x) => x === 'imagenet' || x === 'cifar',
  };
  return { alpha, width: size(64), classes: size(1000), stem, channels: size(3) } satisfies OptionSchema;
}

/** An option that is there or not. */
export const flag: Option<boolean> = {
  usual: false,
  wanted: 'true or false',
  fits: (x) => typeof x === 'boolean',
};

/** `temporalKernels`, as many as a network has by its name. */
export function temporalKernelsOption(usual: readonly (readonly number[])[]): Option<typeof usual> {
  const counts = usual.map(({ length }) => length);
  const isKernel = (x: unknown) => isSize(x) && Number(x) % 2 === 1 && Number(x) < 64;
  const fits = (x: unknown) =>
    Array.isArray(x) &&
    x.length === counts.length &&
    x.every((layer, i) => Array.isArray(layer) && layer.length === counts[i] && layer.every(isKernel));
  return { usual, wanted: `lists of ${counts.join(', ')} odd integers from 1 to 63`, fits };
}

/** `width`, for a network that cannot have every one. */
export function widthOption(wanted: string, fits: (width: number) => boolean): Option<number> {
  return { usual: 64, wanted: `${wanted} to 65536`, fits: (x) => isSize(x) && fits(Number(x)) };
}

/** `width`, for a network with squeeze-and-excitation: a sixteenth of 4 width channels is one. */
export const gatedWidthOption = widthOption('an integer from 4', (width) => width >= 4);

export const groupsOption: Option<number> = size(32);

/** @throws OctconvError unless each branch of a layer has groups of equal size. */
export function checkGroups(layer: string, { high, low = 0 }: Octave<number>, groups: number): void {
  if (high % groups === 0 && low % groups === 0) return;
  const found = low === 0 ? `${high}` : `${high} high and ${low} low`;
  throw new OctconvError(`${layer}: ${found} channels, wanted multiples of ${groups}, its groups`);
}

export const multiplierOption: Option<number> = {
  usual: 1,
  wanted: 'a number from 1/16 to 16',
  fits: (x) => typeof x === 'number' && x >= 1 / 16 && x <= 16,
};

/** `stemWidths`, of a network with a deep stem. */
export function stemWidthsOption(usual: readonly number[]): Option<readonly number[]> {
  const fits = (x: unknown) => Array.isArray(x) && x.length === 3 && x.every(isSize);
  return { usual, wanted: 'three integers from 1 to 65536', fits };
}

/** `blocks`, for a network that has it. */
export function blocksOption(usual: readonly number[]): Option<readonly number[]> {
  const fits = (x: unknown) => Array.isArray(x) && x.length === 4 && x.every((n) => isSize(n) && n <= 256);
  return { usual, wanted: 'four integers from 1 to 256', fits };
}

/**
 * Fills in what was left out; options of the names `beside` are somebody else's.
 * @throws OctconvError that begins with `where` for an option that is not known or out of range.
 */
export function withDefaults(
  where: string,
  given: NetworkOptions,
  schema: OptionSchema,
  beside: Readonly<Record<string, true>> = {},
): ResolvedNetworkOptions {
  checkOptions(where, given, { ...schema, ...beside });
  const resolved = Object.entries(schema).map(([key, { usual, wanted, fits }]) => {
    const { [key as keyof NetworkOptions]: value = usual } = given;
    if (!fits(value)) throw new OctconvError(`${where}: ${key} ${show(value)}, wanted ${wanted}`);
    return [key, value] as const;
  });
  return Object.fromEntries(resolved) as unknown as ResolvedNetworkOptions;
}
