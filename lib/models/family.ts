import type { Value } from '../graph/graph.js';
import type { InputConfig } from '../input/preprocess.js';
import type { Feature, Module } from '../layers/module.js';
import type { Matrix } from '../tensor.js';
import type { NetworkOptions, OptionSchema, ResolvedNetworkOptions } from './options.js';
import type { Shapes } from './shapes.js';

/** A network that classifies: [N, H, W, channels] -> logits [N, classes]. */
export type Classifier = Module<Feature, Value<'f32', Matrix>>;

/** Networks that one file describes. A new family is such a file and a line in `index.ts`. */
export interface Family<Name extends string = string> {
  readonly names: readonly Name[];
  /** The options of a network: what they may be, and what they are when they are left out. */
  options(name: Name): OptionSchema;
  build(name: Name, options: ResolvedNetworkOptions): Classifier;
  /**
   * How a picture becomes the input, unless a model folder says it; undefined where none can. `ofRecords`: of weights
   * from the authors' MXNet files.
   */
  defaultInput(name: Name, options: ResolvedNetworkOptions, ofRecords?: boolean): InputConfig | undefined;
  /**
   * The parameter that a record of the authors' MXNet files holds; null if no network reads it, undefined for one of no
   * network of the family. `records`: all of the file.
   */
  parameterOf?(record: string, records: ReadonlyMap<string, unknown>): string | null | undefined;
  /**
   * The network that has these parameters; undefined if it is not of this family.
   * @throws OctconvError if it seems to be, but is none of its networks.
   */
  infer(parameters: Shapes): { readonly network: Name; readonly options: NetworkOptions } | undefined;
}

/** Octave networks are called as the plain ones, with this in front. */
const prefix = 'oct-';

/** Plain names, then the same with `oct-` in front. */
export function withOctave<const N extends string>(names: readonly N[]): readonly (N | `oct-${N}`)[] {
  return [...names, ...names.map((name) => `oct-${name}` as const)];
}

/** The plain name of a network, and whether it is the octave form. */
export function splitName<N extends string>(name: N | `oct-${N}`): { readonly plain: N; readonly octave: boolean } {
  const octave = name.startsWith(prefix);
  return { plain: (octave ? name.slice(prefix.length) : name) as N, octave };
}
