/** Where each value lies: one arena whose pieces are used again as soon as their last reader is done. */
import { bytesPerElement } from '../dtype.js';
import { bytesOf } from '../tensor.js';
import type { Work } from '../turns.js';
import type { Steps } from './lower.js';
import { pitchOf } from './pads.js';
import { sliceOf } from './slices.js';
import { batchOf, segmentsByStep, wholeValues } from './subbatch.js';

export interface MemoryPlan {
  /** Byte offset by value, for every value that a step makes and the caller does not see. */
  readonly offsets: ReadonlyMap<number, number>;
  readonly bytes: number;
}

export const aligned = (bytes: number, align: number): number => Math.ceil(bytes / align) * align;

/** Largest first, each at the lowest multiple of `align` where it overlaps nothing that lives at the same time. */
export function* planMemory(given: Steps, align: number): Work<MemoryPlan> {
  const { values, steps, inputs, outputs } = given;
  const outside = new Set([...inputs, ...outputs]);
  const batch = batchOf(given);
  const segments = segmentsByStep(given, batch);
  const whole = wholeValues(given);
  /** By value, slices those of the one that they lie in. */
  const lives = new Map<number, { id: number; from: number; to: number; bytes: number }>();
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
  for (const [id, { of, channel }] of given.slices ?? []) {
    offsets.set(id, (offsets.get(of) ?? 0) + channel * bytesPerElement[values[id]?.dtype ?? 'f32']);
  }
  return { offsets, bytes };
}
