import { OctconvError } from '../error.js';
import type { Value } from '../graph/graph.js';
import type { Feature, Module } from '../layers/index.js';
import type { Matrix } from '../tensor.js';
import { checkOptions, type NetworkOptions, type ResolvedNetworkOptions } from './options.js';
import { octResNet, resNet } from './resnet.js';

export type { NetworkOptions };

/** A network that classifies: [N, H, W, 3] -> logits [N, classes]. */
export type Classifier = Module<Feature, Value<'f32', Matrix>>;

const networks: { readonly [name: string]: (options: ResolvedNetworkOptions) => Classifier } = {
  'resnet-26': (options) => resNet(26, options),
  'resnet-50': (options) => resNet(50, options),
  'resnet-101': (options) => resNet(101, options),
  'resnet-152': (options) => resNet(152, options),
  'oct-resnet-26': (options) => octResNet(26, options),
  'oct-resnet-50': (options) => octResNet(50, options),
  'oct-resnet-101': (options) => octResNet(101, options),
  'oct-resnet-152': (options) => octResNet(152, options),
};

/** Every name that `buildNetwork` knows. */
export const networkNames: readonly string[] = Object.keys(networks);

/** @throws OctconvError for an unknown name or an option out of range. */
export function buildNetwork(name: string, options: NetworkOptions = {}): Classifier {
  const build = Object.hasOwn(networks, name) ? networks[name] : undefined;
  if (!build) throw new OctconvError(`network '${name}', wanted one of ${networkNames.join(', ')}`);
  return build(resolveNetworkOptions(name, options));
}

/** The options with what was left out. @throws OctconvError for one that is out of range. */
export function resolveNetworkOptions(name: string, options: NetworkOptions): ResolvedNetworkOptions {
  return checkOptions(name, options, name.startsWith('oct-'));
}
