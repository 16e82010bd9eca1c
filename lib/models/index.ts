import { OctconvError, show } from '../error.js';
import type { InputConfig } from '../input/preprocess.js';
import { didYouMean } from '../options.js';
import type { Classifier, Family } from './family.js';
import { type NetworkOptions, type ResolvedNetworkOptions, withDefaults } from './options.js';
import { denseNets } from './densenet.js';
import { resNets } from './resnet.js';
import { resNetsV2 } from './resnet-v2.js';
import { seResNetsV2 } from './se-resnet-v2.js';

export type { Classifier, Family, NetworkOptions };

const registered = [resNets, resNetsV2, seResNetsV2, denseNets] as const;

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

/** How a picture becomes the input of a network, unless a model folder says it; undefined where none can. */
export function defaultInputOf(name: AnyNetworkName, options: NetworkOptions): InputConfig | undefined {
  return familyOf(name).defaultInput(name, resolveNetworkOptions(name, options));
}

/** The octave form of a plain network, if there is one. */
export function octaveForm(name: AnyNetworkName): string | undefined {
  return families.some(({ names }) => names.includes(name) && names.includes(`oct-${name}`))
    ? `oct-${name}`
    : undefined;
}
