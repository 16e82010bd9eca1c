/**
 * Data types: what each convolution multiplies, and as what each value between the steps is kept. The recorded graph is
 * f32; here bf16 or u8 take its place wherever the maker and all readers of a value can deal with them.
 */
import { calling, native } from '../native.js';
import { besideI8 } from '../weights/source.js';
import type { ComputeType, TensorType } from './graph.js';
import { type Branch, convStep, sourcesOf, type Step, type Steps } from './lower.js';

/** How a quantized layer sees its input, as u8: x = scale * (q - zero). */
export interface InputType {
  readonly scale: number;
  readonly zero: number;
}

/** The quantized layers: by the name of the weight, `X.weight` of i8, whose scales are `X.weight_scale`. */
export type Quantized = ReadonlyMap<string, InputType>;

export const weightScaleOf = (weight: string): string => besideI8(weight).weightScale.name;

const { isa } = calling(() => native.info());
/** Whether the CPU multiplies two bf16 at once, and four u8 by i8. */
export const hasDotProductOfBFloat16 = isa === 'avx512bf16';
export const hasDotProductOfBytes = hasDotProductOfBFloat16 || isa === 'avx512vnni';

/**
 * A branch is i8 if all of its weights are. One that reads the network's own f32 alone stays f32 where bf16 would be no
 * faster: what it makes may be bf16 all the same.
 */
function typed(branch: Branch, compute: ComputeType, quantized: Quantized, inputs: readonly number[]): Branch {
  const integers = compute === 'i8' && sourcesOf(branch).every(({ weight }) => quantized.has(weight));
  const terms = branch.terms.map((term) => ({
    ...term,
    sources: term.sources.map((source) => {
      const input = quantized.get(source.weight);
      if (!input) return source;
      return { ...source, weightScale: weightScaleOf(source.weight), ...(integers && input) };
    }),
  }));
  const given = !hasDotProductOfBFloat16 && sourcesOf(branch).every(({ input }) => inputs.includes(input));
  const own = (compute === 'i8' && !integers) || (compute === 'bf16' && given) ? 'f32' : compute;
  return { ...branch, terms, ...(own !== 'f32' && { compute: own }) };
}

export function assignTypes(given: Steps, compute: ComputeType, quantized: Quantized): Steps {
  if (compute === 'f32' && quantized.size === 0) return given;
  const steps = given.steps.map((step) =>
    step.branches ? convStep(step.name, step.branches.map((branch) => typed(branch, compute, quantized, given.inputs))) : step,
  );
  if (compute === 'f32') return { ...given, steps };

  const readers = new Map<number, Step[]>();
  for (const step of steps) for (const id of step.inputs) readers.set(id, [...(readers.get(id) ?? []), step]);

  /** The type of a value, if it may be kept as another than f32. */
  const wanted = (id: number): Omit<TensorType, 'shape'> | undefined => {
    const all = readers.get(id) ?? [];
    if (given.outputs.includes(id) || given.inputs.includes(id) || all.length === 0) return undefined;
    if (!all.every(({ op, branches }) => branches || op === 'maxPool' || op === 'globalAvgPool')) return undefined;
    if (compute === 'bf16') return { dtype: 'bf16' };
    // The scale is the one that convolutions read it with, or what comes out of a pooling.
    const sources = all.flatMap(({ branches = [] }) => branches.flatMap(sourcesOf)).filter(({ input }) => input === id);
    const scales = sources.flatMap(({ scale, zero }) => (scale === undefined ? [] : [{ scale, zero }]));
    const pooled = all.flatMap(({ op, outputs }) => (op === 'maxPool' ? (types.get(outputs[0] ?? -1) ?? []) : []));
    const [first, ...others] = [...scales, ...pooled];
    if (!first || others.some(({ scale, zero }) => scale !== first.scale || zero !== first.zero)) return undefined;
    return { dtype: 'u8', scale: first.scale, zero: first.zero };
  };
  const types = new Map<number, Omit<TensorType, 'shape'>>();
  for (const step of [...steps].reverse()) {
    if (!step.branches && step.op !== 'maxPool') continue;
    for (const id of step.outputs) {
      const type = wanted(id);
      if (type) types.set(id, type);
    }
  }
  // A pooling gives what it takes.
  for (let settled = false; !settled; ) {
    settled = true;
    for (const { op, inputs, outputs } of steps) {
      const ends = [inputs[0] ?? -1, outputs[0] ?? -1];
      if (op !== 'maxPool' || ends.every((id) => types.has(id)) || !ends.some((id) => types.has(id))) continue;
      for (const id of ends) types.delete(id);
      settled = false;
    }
  }
  return { ...given, steps, values: given.values.map((value, id) => ({ ...value, ...types.get(id) })) };
}
