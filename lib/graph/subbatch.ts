/**
 * Sub-batches: a batch of images is larger than the caches, so the first steps, whose activations are large and whose
 * weights are small, go over it a few images at a time; the last ones, with large weights, over all images at once.
 * Batch 8 of Oct-ResNet-50 at alpha .5, one AVX2 thread: 51.6 ms per image all at once, 45.6 so.
 */
import { bytesOf } from '../tensor.js';
import type { TensorType } from './graph.js';
import type { Step, Steps } from './lower.js';
import { sliceOf } from './slices.js';

/** The segment of each step: its first and last step, and how many images they take at once. */
export function segmentsByStep(
  { steps, segments = [] }: Steps,
  batch: number,
): { first: number; last: number; images: number }[] {
  const all = segments.length ? segments : [{ steps: steps.length, images: batch }];
  return all.flatMap(({ steps: count, images }, i) => {
    const first = all.slice(0, i).reduce((sum, segment) => sum + segment.steps, 0);
    return Array.from({ length: count }, () => ({ first, last: first + count - 1, images }));
  });
}

/** Images of a batch. */
export const batchOf = ({ values, inputs }: Steps): number => values[inputs[0] ?? -1]?.shape[0] ?? 1;

/** What is kept for all images of a batch: what the caller sees, and memory that several segments use. */
export function wholeValues(given: Steps): ReadonlySet<number> {
  const segments = segmentsByStep(given, batchOf(given));
  const users = new Map<number, Set<number | undefined>>();
  const root = (id: number) => sliceOf(given, id).of;
  given.steps.forEach((step, at) => {
    for (const id of [...step.inputs, ...step.outputs])
      users.set(root(id), (users.get(root(id)) ?? new Set()).add(segments[at]?.first));
  });
  const used = given.steps.flatMap(({ inputs, outputs }) => [...inputs, ...outputs]);
  return new Set([...given.inputs, ...given.outputs, ...used.filter((id) => (users.get(root(id))?.size ?? 0) > 1)]);
}

/** Whether an axis takes the place of N. */
const mixesImages = (step: Step): boolean => step.op === 'transpose' && (step.attrs.axes as readonly number[])[0] !== 0;

/**
 * Cuts the steps in two where the fewest bytes are moved: before the cut weights are read again for each sub-batch,
 * behind it the activations of all images go through memory.
 */
export function subBatch(given: Steps, threads: number, weightBytes: (step: Step) => number): Steps {
  const batch = batchOf(given);
  // As many images as threads, so that each has its own.
  const images =
    Array.from({ length: Math.min(batch, threads) }, (_, i) => i + 1).findLast((n) => batch % n === 0) ?? 1;
  // What the caller or a constant gives once serves all images.
  const fits = ({ shape: [n] }: TensorType, id: number) => n === batch || (n === 1 && given.inputs.includes(id));
  if (images === batch || !given.values.every(fits) || given.steps.some(mixesImages)) return given;
  const bytes = given.values.map(bytesOf);
  const activations = given.steps.map(({ inputs, outputs }) =>
    [...inputs, ...outputs].reduce((sum, id) => sum + (bytes[id] ?? 0), 0),
  );
  const again = given.steps.map((step) => (batch / images - 1) * weightBytes(step));
  // What slices lie in is kept for all images if a segment ends between them: all of a dense block.
  const wide = new Set([...(given.slices ?? [])].map(([, { of }]) => of));
  const users = given.steps.map(
    ({ inputs, outputs }) => new Set([...inputs, ...outputs].map((id) => sliceOf(given, id).of)),
  );
  const spans = [...wide].map((id) => {
    const uses = (used: ReadonlySet<number>) => used.has(id);
    return { first: users.findIndex(uses), last: users.findLastIndex(uses) };
  });
  const splits = (at: number) => spans.some(({ first, last }) => first < at && at <= last);
  let moved = activations.reduce((a, b) => a + b, 0);
  let [least, cut] = [moved, 0];
  for (const [i, weights] of again.entries()) {
    moved += weights - (activations[i] ?? 0);
    if (moved < least && !splits(i + 1)) [least, cut] = [moved, i + 1];
  }
  const segments = [
    { steps: cut, images },
    { steps: given.steps.length - cut, images: batch },
  ];
  return cut === 0 ? given : { ...given, segments: segments.filter((segment) => segment.steps > 0) };
}
