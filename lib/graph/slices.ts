/**
 * Concatenations without a copy: their inputs are slices of the channels of one wide value, and whoever makes or reads
 * a slice goes from pixel to pixel by the pitch of that value. DenseNet's layers all write into one buffer of a block's
 * last width.
 */
import type { Traits } from '../targets.js';
import { seenValues, type Step, type Steps } from './lower.js';

/** Where a value lies in a wider one: from which channel on. */
export interface Slice {
  readonly of: number;
  readonly channel: number;
}

/** The value whose memory another one lies in: most lie in their own. */
export const sliceOf = ({ slices }: Pick<Steps, 'slices'>, id: number): Slice =>
  slices?.get(id) ?? { of: id, channel: 0 };

/** The values that must lie as they are: what is seen, and what other kernels than pitched ones take. */
export function fixedValues(given: Steps, ops: Traits['ops']): Set<number> {
  const fixed = new Set(seenValues(given));
  for (const { op, inputs, outputs } of given.steps) {
    if (!ops[op]?.pitched) for (const id of [...inputs, ...outputs]) fixed.add(id);
  }
  return fixed;
}

/**
 * Takes those concatenations out that pitched kernels alone write and read. A value is a slice of one other value at
 * most, so other concatenations still copy.
 */
export function sliceConcats(given: Steps, { ops }: Pick<Traits, 'ops'>): Steps {
  const fixed = fixedValues(given, ops);
  const slices = new Map<number, Slice>();
  const taken = ({ op, inputs, outputs: [whole = -1] }: Step): boolean => {
    const free = inputs.every((id) => !fixed.has(id) && !slices.has(id)) && new Set(inputs).size === inputs.length;
    if (op !== 'concat' || !free || fixed.has(whole)) return false;
    let channel = 0;
    for (const id of inputs) {
      slices.set(id, { of: whole, channel });
      channel += given.values[id]?.shape.at(-1) ?? 0;
    }
    return true;
  };
  const steps = given.steps.filter((step) => !taken(step));
  const outermost = ({ of, channel }: Slice): Slice => {
    const outer = slices.get(of);
    return outer ? outermost({ of: outer.of, channel: outer.channel + channel }) : { of, channel };
  };
  return { ...given, steps, slices: new Map([...slices].map(([id, slice]) => [id, outermost(slice)])) };
}
