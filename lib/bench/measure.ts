/** What the benches share: interleaved rounds, what came of them, and the machine. */
import { cpus } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { devices } from '../devices.js';
import { calling, native } from '../native.js';
import type { Tensor } from '../tensor.js';

export interface Times {
  /** Milliseconds of every round. */
  readonly rounds: number[];
  readonly min: number;
  readonly median: number;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? (sorted[middle] ?? NaN) : ((sorted[middle - 1] ?? NaN) + (sorted[middle] ?? NaN)) / 2;
}

/** The ratio round by round, then the median: slow phases of a shared machine hit both sides of a round. */
export const pairedRatio = (ours: Times, theirs: Times) => median(ours.rounds.map((ms, i) => ms / (theirs.rounds[i] ?? NaN)));

/** onnxruntime's threads spin for a while after a run, ours for some microseconds: without a rest the next one pays. */
const rest = 30;

/** Runs all subjects once per round, in turn, after one warm-up round that does not count. */
export async function interleave(
  subjects: readonly (() => Promise<unknown>)[],
  rounds: number,
  progress?: (round: number) => void,
): Promise<Times[]> {
  const all: number[][] = subjects.map(() => []);
  for (let round = -1; round < rounds; round++) {
    progress?.(round + 1);
    for (const [i, run] of subjects.entries()) {
      await sleep(rest);
      const start = performance.now();
      await run();
      if (round >= 0) all[i]?.push(performance.now() - start);
    }
  }
  return all.map((ms) => ({ rounds: ms, min: Math.min(...ms), median: median(ms) }));
}

/** Measured GFLOP/s of nothing but fused multiply-adds (native/cpu/peak.cc). */
export const measurePeak = (threads: number): number => calling(() => native.peak(threads));

export interface Machine {
  readonly cpu: string;
  readonly cores: number;
  readonly isa: string;
  readonly node: string;
}

export function machine(): Machine {
  return { cpu: cpus()[0]?.model.trim() ?? 'unknown', cores: cpus().length, isa: devices().isa, node: process.versions.node };
}

/** Numbers without structure, so that nothing is zero or denormal by chance. */
export function fill<T extends Tensor<'f32'>>(x: T): T {
  for (let i = 0; i < x.data.length; i++) x.data[i] = Math.sin(i * 12.9898) * 1.5;
  return x;
}

/** Largest difference as a share of the largest value. */
export function relativeError(got: Float32Array, wanted: Float32Array): number {
  let [difference, largest] = [0, 0];
  for (const [i, value] of wanted.entries()) {
    const d = Math.abs((got[i] ?? NaN) - value);
    difference = Number.isNaN(d) ? Infinity : Math.max(difference, d);
    largest = Math.max(largest, Math.abs(value));
  }
  return difference / largest;
}
