/** From a weight file's names and shapes to the network that it is of. */
import { OctconvError, show } from '../error.js';
import { parameterShapes } from '../layers/module.js';
import { checkOptions } from '../options.js';
import { missingTensor, type TensorInfo, type WeightSource } from '../weights/source.js';
import type { Family } from './family.js';
import { buildNetwork, families, networkNames, resolveNetworkOptions } from './index.js';
import type { ResolvedNetworkOptions } from './options.js';

/** A network by its name and all of its options. */
export interface Inferred {
  readonly network: string;
  readonly options: ResolvedNetworkOptions;
}

/** All that can be said of a network: what `resolveOptions` is given any part of. */
export interface ResolvedOptions extends ResolvedNetworkOptions {
  readonly network: string;
}

type Source = Pick<WeightSource, 'name' | 'tensors' | 'unreadable'>;

/** The network and its options, from the names and shapes of its parameters, or of the records of an MXNet file. */
export function inferOptions(source: Source): Inferred {
  const { name: where = 'weights', tensors } = source;
  try {
    for (const family of families) {
      const records = recordsOf(tensors, family.parameterOf);
      const found = family.infer(
        new Map([...records].map(([name, record]) => [name, infoOf(tensors, name, record).shape])),
      );
      if (found) return { network: found.network, options: resolveNetworkOptions(found.network, found.options) };
    }
  } catch (error) {
    throw error instanceof OctconvError ? new OctconvError(`${where}: ${error.message}`) : error;
  }
  for (const [name, why] of source.unreadable ?? []) throw new OctconvError(`${where}: tensor ${show(name)} ${why}`);
  const some = [...tensors.keys()].slice(0, 3).map(show).join(', ') || 'nothing';
  throw new OctconvError(
    `${where}: no known network has these parameters (${some}), wanted one of ${networkNames.join(', ')}`,
  );
}

/** The same with what a user said: that stays where the weights agree with it, and is an error where they do not. */
export function resolveOptions(
  source: Source,
  given: { readonly [K in keyof ResolvedOptions]?: ResolvedOptions[K] | undefined },
): Inferred {
  const found = inferOptions(source);
  checkGiven(source.name ?? 'weights', 'the weights have', found, given, (alpha) => sameShapes(found, alpha));
  return { ...found, options: { ...found.options, ...(given.alpha !== undefined && { alpha: given.alpha }) } };
}

/** @throws OctconvError unless what a user said of a network is so. */
export function checkGiven(
  where: string,
  have: string,
  { network, options }: Inferred,
  given: { readonly [K in keyof ResolvedOptions]?: ResolvedOptions[K] | undefined },
  fits = (_alpha: number): boolean => false,
): void {
  const all: Partial<ResolvedOptions> = { network, ...options };
  checkOptions('network', given, all);
  for (const [key, asked] of Object.entries(given)) {
    const has = all[key as keyof ResolvedOptions];
    if (asked === undefined || show(asked) === show(has) || (key === 'alpha' && fits(Number(asked)))) continue;
    throw new OctconvError(`${where}: ${key} ${show(asked)} was asked for, ${have} ${show(has)}`);
  }
}

/** Whether the network has the same parameters at another alpha. */
function sameShapes({ network, options }: Inferred, alpha: number): boolean {
  const shapes = (a: number) => JSON.stringify([...parameterShapes(buildNetwork(network, { ...options, alpha: a }))]);
  try {
    return shapes(alpha) === shapes(options.alpha);
  } catch {
    return false;
  }
}

/** Parameter names, each with what a file calls it: an MXNet file has names of its own. */
function recordsOf(tensors: Source['tensors'], parameterOf?: Family['parameterOf']): Map<string, string> {
  const records = new Map<string, string>();
  for (const record of tensors.keys()) {
    const found = parameterOf?.(record, tensors);
    if (found === null) continue;
    const name = found ?? record;
    const other = records.get(name);
    if (other !== undefined) throw new OctconvError(`${show(other)} and ${show(record)} are both ${show(name)}`);
    records.set(name, record);
  }
  return records;
}

/** The authors' Gluon networks have 1x1 convolutions in place of linear layers. */
const linearWeight = /(^|\.)(fc\w*|classifier\.1)\.weight$/;

/** What a file has for a parameter: elements in the same order, in the shape of the parameter. */
function infoOf(tensors: Source['tensors'], name: string, record: string): TensorInfo {
  const { dtype, shape } = tensors.get(record) ?? { dtype: 'f32' as const, shape: [] };
  const [outputs = 0, inputs = 0, ...kernel] = shape;
  const flat = name !== record && linearWeight.test(name) && String(kernel) === '1,1';
  return { dtype, shape: flat ? [outputs, inputs] : shape };
}

/** A file of one of these networks with the network's names for its tensors. */
export function withParameterNames(source: WeightSource, network: string): WeightSource {
  const family = families.find(({ names }) => names.includes(network));
  const records = recordsOf(source.tensors, family?.parameterOf);
  if (records.size === source.tensors.size && [...records].every(([name, record]) => name === record)) return source;
  return {
    ...source,
    tensors: new Map([...records].map(([name, record]) => [name, infoOf(source.tensors, name, record)])),
    read(name, memory) {
      const record = records.get(name);
      return record === undefined ? Promise.reject(missingTensor(source, name)) : source.read(record, memory);
    },
    close: () => source.close(),
  };
}
