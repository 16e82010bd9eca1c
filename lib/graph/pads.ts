/**
 * Channels that are no multiple of what a device reads at once: behind those of each pixel lie zeros, which go with the
 * value. Whoever writes it keeps them, and products read it as it lies.
 */
import { bytesPerElement } from '../dtype.js';
import type { Traits } from '../targets.js';
import { aligned } from '../tensor.js';
import type { Steps } from './lower.js';
import { fixedValues, sliceOf } from './slices.js';

/** Pads what pitched kernels alone write and read. What the caller sees has no pads. */
export function padChannels(
  given: Steps,
  { ops, channelAlign, pitchAlign }: Pick<Traits, 'ops' | 'channelAlign' | 'pitchAlign'>,
): Steps {
  const fixed = fixedValues(given, ops);
  const pads = new Map<number, number>();
  for (const id of given.steps.flatMap(({ outputs }) => outputs).filter((id) => !fixed.has(id))) {
    const { of } = sliceOf(given, id);
    const size = bytesPerElement[given.values[of]?.dtype ?? 'f32'];
    const bytes = channelsOf(given, of) * size;
    const wide = aligned(bytes, Math.max(channelAlign, pitchAlign)) - bytes;
    const pad = wide * 32 <= bytes ? wide : aligned(bytes, channelAlign) - bytes;
    if (pad) pads.set(of, pad / size);
  }
  return { ...given, pads };
}

const channelsOf = ({ values }: Pick<Steps, 'values'>, id: number): number => values[id]?.shape.at(-1) ?? 1;

/** Zeros behind a value's channels: of slices those of the last one. */
export function padOf(given: Steps, id: number): number {
  const { of, channel } = sliceOf(given, id);
  const last = channel + channelsOf(given, id) === channelsOf(given, of);
  return last ? (given.pads?.get(of) ?? 0) : 0;
}

/** Elements from pixel to pixel of a value. */
export function pitchOf(given: Steps, id: number): number {
  const { of } = sliceOf(given, id);
  return channelsOf(given, of) + padOf(given, of);
}
