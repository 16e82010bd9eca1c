/** Where each value lies: one arena whose pieces are used again as soon as their last reader is done. */
import { bytesPerElement } from '../dtype.js';
import { aligned, bytesOf } from '../tensor.js';
import type { Work } from '../turns.js';
import type { Traits } from '../targets.js';
import { sourcesOf, type Steps } from './lower.js';
import { pitchOf } from './pads.js';
import { sliceOf } from './slices.js';
import { batchOf, segmentsByStep, wholeValues } from './subbatch.js';

export interface MemoryPlan {
  /** Byte offset by value, for every value that a step makes and the caller does not see. */
  readonly offsets: ReadonlyMap<number, number>;
  readonly bytes: number;
}

interface Life {
  readonly id: number;
  readonly from: number;
  to: number;
  readonly bytes: number;
}

/**
 * Largest first, each at the lowest multiple of `align` where it overlaps nothing that lives at the same time. What a
 * convolution stores takes the place of its residual, if nobody else reads that any more.
 */
export function* planMemory(
  given: Steps,
  { align, inPlace = false }: Pick<Traits, 'align'> & { readonly inPlace?: boolean },
): Work<MemoryPlan> {
  const { values, steps, inputs, outputs } = given;
  const outside = new Set([...inputs, ...outputs]);
  const batch = batchOf(given);
  const segments = segmentsByStep(given, batch);
  const whole = wholeValues(given);
  /** By value, slices those of the one that they lie in. */
  const lives = new Map<number, Life>();
  for (const [at, step] of steps.entries()) {
    yield;
    // A value of the whole batch lives as long as its segments, which go round and round.
    const { first, last, images } = segments[at] ?? { first: at, last: at, images: batch };
    for (const id of step.outputs) {
      const { of } = sliceOf(given, id);
      const type = values[of];
      if (!type || outside.has(id)) continue;
      const share = whole.has(id) ? 1 : images / batch;
      const padded = { dtype: type.dtype, shape: [...type.shape.slice(0, -1), pitchOf(given, of)] };
      const bytes = aligned(bytesOf(padded) * share, align);
      const life = lives.get(of) ?? { id: of, from: whole.has(id) ? first : at, to: at, bytes };
      lives.set(of, Object.assign(life, { to: Math.max(life.to, at) }));
    }
    for (const id of step.inputs) {
      const life = lives.get(sliceOf(given, id).of);
      if (life) life.to = Math.max(life.to, whole.has(id) ? last : at);
    }
  }
  const replaced = inPlace ? replaceResiduals(given, lives, whole) : new Map<number, number>();
  const placed: { from: number; to: number; begin: number; end: number }[] = [];
  const offsets = new Map<number, number>();
  let bytes = 0;
  for (const life of [...lives.values()].sort((a, b) => b.bytes - a.bytes || a.from - b.from)) {
    yield;
    let begin = 0;
    for (const other of placed) {
      if (other.begin >= begin + life.bytes) break; // they are in the order of their beginnings
      const together = other.from <= life.to && life.from <= other.to;
      if (together && other.end > begin) begin = other.end;
    }
    const behind = placed.findIndex((other) => other.begin > begin);
    const place = { from: life.from, to: life.to, begin, end: begin + life.bytes };
    placed.splice(behind < 0 ? placed.length : behind, 0, place);
    offsets.set(life.id, begin);
    bytes = Math.max(bytes, begin + life.bytes);
  }
  for (const [id, residual] of replaced) offsets.set(id, offsets.get(residual) ?? 0);
  for (const [id, { of, channel }] of given.slices ?? []) {
    offsets.set(id, (offsets.get(of) ?? 0) + channel * bytesPerElement[values[id]?.dtype ?? 'f32']);
  }
  return { offsets, bytes };
}

/** Values that lie where a residual does, and which. Its life goes on with theirs. */
function replaceResiduals(given: Steps, lives: Map<number, Life>, whole: ReadonlySet<number>): Map<number, number> {
  const replaced = new Map<number, number>();
  const wide = new Set([...(given.slices ?? [])].map(([, { of }]) => of));
  const alone = (id: number) => !whole.has(id) && !wide.has(id) && !given.slices?.has(id);
  // What is stored takes the bytes of what is added, element by element.
  const alike = (a: number, b: number) =>
    given.values[a]?.dtype === given.values[b]?.dtype && pitchOf(given, a) === pitchOf(given, b);
  for (const [at, { branches = [] }] of given.steps.entries()) {
    const reads = branches.flatMap((branch) => [
      ...sourcesOf(branch).map(({ input }) => input),
      ...(branch.gated ? [branch.gated.input, branch.gated.gate] : []),
      ...(branch.residual === undefined ? [] : [branch.residual]),
    ]);
    for (const { residual = -1, stores } of branches) {
      const place = replaced.get(residual) ?? residual;
      const old = lives.get(place);
      const store = stores.find(({ pool, mean }) => pool === 0 && !mean)?.value ?? -1;
      const made = lives.get(store);
      const once = reads.filter((id) => id === residual).length === 1;
      if (!old || !made || old.to !== at || !once || !alone(residual) || !alone(store) || !alike(residual, store))
        continue;
      old.to = made.to;
      lives.delete(store);
      replaced.set(store, place);
    }
  }
  return replaced;
}
