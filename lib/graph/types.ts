/**
 * Data types: what each convolution multiplies, and as what each value between the steps is kept. The recorded graph is
 * f32; here bf16, f16 or u8 take its place wherever the maker and all readers of a value can deal with them.
 */
import type { Traits } from '../targets.js';
import { besideI8 } from '../weights/source.js';
import type { ComputeType, TensorType } from './graph.js';
import { type Branch, convStep, seenValues, sourcesOf, type Step, type Steps } from './lower.js';

/** How a quantized layer sees its input, as u8: x = scale * (q - zero). */
export interface InputType {
  readonly scale: number;
  readonly zero: number;
}

/** The quantized layers: by the name of the weight, `X.weight` of i8, whose scales are `X.weight_scale`. */
export type Quantized = ReadonlyMap<string, InputType>;

export const weightScaleOf = (weight: string): string => besideI8(weight).weightScale.name;

/**
 * A branch is i8 if all of its weights are. One that reads the network's own f32 alone stays f32 where bf16 or f16 would
 * be no faster: what it makes may be of that type all the same.
 */
function typed(branch: Branch, { compute, quantized, traits }: Typing, inputs: readonly number[]): Branch {
  if (branch.gated) return branch;
  const integers = compute === 'i8' && sourcesOf(branch).every(({ weight }) => quantized.has(weight));
  const terms = branch.terms.map((term) => ({
    ...term,
    sources: term.sources.map((source) => {
      const input = quantized.get(source.weight);
      if (!input) return source;
      return { ...source, weightScale: weightScaleOf(source.weight), ...(integers && input) };
    }),
  }));
  const given = !traits.dotProducts.includes(compute) && sourcesOf(branch).every(({ input }) => inputs.includes(input));
  const own = (compute === 'i8' ? !integers : given) ? 'f32' : compute;
  return { ...branch, terms, ...(own !== 'f32' && { compute: own }) };
}

export interface Typing {
  readonly compute: ComputeType;
  readonly quantized: Quantized;
  readonly traits: Pick<Traits, 'dotProducts' | 'ops'>;
}

type Type = Omit<TensorType, 'shape'>;

export function assignTypes(given: Steps, typing: Typing): Steps {
  const { compute, quantized } = typing;
  if (compute === 'f32' && quantized.size === 0) return given;
  const steps = given.steps.map((step) =>
    step.branches
      ? convStep(
          step.name,
          step.branches.map((branch) => typed(branch, typing, given.inputs)),
        )
      : step,
  );
  if (compute === 'f32') return { ...given, steps };
  const types = narrowTypes({ ...given, steps }, typing);
  return { ...given, steps, values: given.values.map((value, id) => ({ ...value, ...types.get(id) })) };
}

/** The values that may be kept as another type than f32: of which their maker and all of their readers have kernels. */
function narrowTypes(given: Steps, { compute, traits }: Typing): Map<number, Type> {
  const types = new Map<number, Type>();
  const readers = new Map<number, Step[]>();
  for (const step of given.steps) {
    for (const id of step.inputs) {
      const others = readers.get(id);
      if (others) others.push(step);
      else readers.set(id, [step]);
    }
  }
  const ends = new Set(seenValues(given));
  const takes = ({ op }: Step, { dtype }: Type) => traits.ops[op]?.dtypes.includes(dtype) ?? false;
  const keeps = ({ op }: Step) => traits.ops[op]?.keepsType ?? false;
  const mixes = ({ op, branches }: Step) => branches !== undefined || (traits.ops[op]?.mixesTypes ?? false);

  const stores = given.steps.flatMap(({ branches = [] }) => branches.flatMap((branch) => branch.stores));
  // Means are f32. P is of elements as they are stored: as u8 of the range of P they would be clipped before it.
  const wide = new Set(
    stores.flatMap(({ value, mean, pool }) => (mean || (compute === 'i8' && pool > 0) ? value : [])),
  );
  const wanted = (id: number): Type | undefined => {
    const all = readers.get(id) ?? [];
    if (wide.has(id) || ends.has(id) || all.length === 0) return undefined;
    const type = compute === 'i8' ? scaleOf(id, all) : { dtype: compute };
    return type && all.every((step) => takes(step, type)) ? type : undefined;
  };
  /** The scale is the one that convolutions read it with, or what comes out of an op that keeps its type. */
  const scaleOf = (id: number, all: readonly Step[]): Type | undefined => {
    const sources = all.flatMap(({ branches = [] }) => branches.flatMap(sourcesOf)).filter(({ input }) => input === id);
    if (sources.some(({ prologue }) => prologue)) return undefined;
    const scales = sources.flatMap(({ scale, zero }) => (scale === undefined ? [] : [{ scale, zero }]));
    const kept = all.filter(keeps).flatMap(({ outputs }) => types.get(outputs[0] ?? -1) ?? []);
    const [first, ...others] = [...scales, ...kept];
    if (!first || others.some(({ scale, zero }) => scale !== first.scale || zero !== first.zero)) return undefined;
    return { dtype: 'u8', scale: first.scale, zero: first.zero };
  };
  for (const step of [...given.steps].reverse()) {
    for (const id of step.outputs) {
      const type = mixes(step) || keeps(step) ? wanted(id) : undefined;
      if (type && takes(step, type)) types.set(id, type);
    }
  }
  keepTypes(given.steps.filter(keeps), types);
  return types;
}

/** An op that keeps its type has one type for all that it reads and writes. */
function keepTypes(steps: readonly Step[], types: Map<number, Type>): void {
  const name = (id: number) => JSON.stringify(types.get(id) ?? null);
  for (let settled = false; !settled; ) {
    settled = true;
    for (const { inputs, outputs } of steps) {
      const ends = [...inputs, ...outputs];
      if (new Set(ends.map(name)).size <= 1) continue;
      for (const id of ends) types.delete(id);
      settled = false;
    }
  }
}
