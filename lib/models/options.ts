import { OctconvError, show } from '../error.js';
import { splitChannels } from '../octave.js';

export interface NetworkOptions {
  /** Share of the channels in the low branch, in [0, 1); default .5 for the octave networks, which alone have one. */
  readonly alpha?: number | undefined;
  /** Channels of the stem; default 64. */
  readonly width?: number | undefined;
  /** Default 1000. */
  readonly classes?: number | undefined;
  /** `imagenet` (default): 7x7 stride 2 and 3x3 max-pool stride 2. `cifar`: 3x3 stride 1, no max-pool. */
  readonly stem?: 'imagenet' | 'cifar' | undefined;
}

export type ResolvedNetworkOptions = { readonly [K in keyof NetworkOptions]-?: Exclude<NetworkOptions[K], undefined> };

/** Fills in what was left out. @throws OctconvError that names the network and the option that is out of range. */
export function checkOptions(name: string, given: NetworkOptions, octave: boolean): ResolvedNetworkOptions {
  const { alpha = octave ? 0.5 : 0, width = 64, classes = 1000, stem = 'imagenet', ...others } = given;
  const wrong = (what: string): never => {
    throw new OctconvError(`${name}: ${what}`);
  };
  const [unknown] = Object.keys(others);
  if (unknown !== undefined) wrong(`option '${unknown}', wanted alpha, width, classes or stem`);
  for (const [key, value] of Object.entries({ width, classes })) {
    const fine = Number.isInteger(value) && value >= 1 && value <= 65536;
    if (!fine) wrong(`${key} ${show(value)}, wanted an integer from 1 to 65536`);
  }
  if (stem !== 'imagenet' && stem !== 'cifar') wrong(`stem ${show(stem)}, wanted imagenet or cifar`);
  if (!octave && alpha !== 0) wrong(`alpha ${show(alpha)}, but only the octave networks have one`);
  splitChannels(width, alpha);
  return { alpha, width, classes, stem };
}
