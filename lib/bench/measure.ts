/** What the benches share: interleaved rounds, what came of them, and the machine. */
import { cpus } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { devices } from '../devices.js';
import { calling, native } from '../native.js';
import { threadsOf } from '../plan.js';
import type { Tensor } from '../tensor.js';

export interface Times {
  /** Milliseconds of every round. */
  readonly rounds: readonly number[];
  readonly min: number;
  readonly median: number;
}

export function timesOf(rounds: readonly number[]): Times {
  return { rounds, min: Math.min(...rounds), median: median(rounds) };
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? (sorted[middle] ?? NaN) : ((sorted[middle - 1] ?? NaN) + (sorted[middle] ?? NaN)) / 2;
}

/** The ratio round by round, then the median: slow phases of a shared machine hit both sides of a round. */
export function pairedRatio(ours: Times, theirs: Times): number {
  return median(ours.rounds.map((ms, i) => ms / (theirs.rounds[i] ?? NaN)));
}

/**
 * Rests until nothing of this process runs any more. onnxruntime's threads go on spinning after a run, for 47 ms where
 * this was measured: with a rest of 30 ms the next run, which was always ours, still shared the cores with them.
 */
async function settle(rest = 30, slice = 10, atMost = 1000): Promise<void> {
  await sleep(rest);
  for (let waited = 0; waited < atMost; waited += slice) {
    const before = process.cpuUsage();
    await sleep(slice);
    const { user, system } = process.cpuUsage(before);
    if (user + system < 0.1 * 1e3 * slice) return; // microseconds
  }
}

/**
 * Runs all subjects in turn, round by round, after one round that warms up and does not count. What takes less than
 * `least` milliseconds is run again and again for so long, and its mean is the round's.
 */
export async function interleave(
  subjects: readonly (() => Promise<unknown>)[],
  rounds: number,
  progress?: (round: number) => void,
  least = 0,
): Promise<Times[]> {
  const all: number[][] = subjects.map(() => []);
  for (let round = 0; round <= rounds; round++) {
    progress?.(round);
    for (const [i, run] of subjects.entries()) {
      await settle();
      let [runs, ms] = [0, 0];
      const start = performance.now();
      do {
        await run();
        runs++;
        ms = performance.now() - start;
      } while (ms < least);
      if (round > 0) all[i]?.push(ms / runs);
    }
  }
  return all.map(timesOf);
}

/** Measured GFLOP/s of nothing but fused multiply-adds (native/cpu/peak.cc). */
export const measurePeak = (threads: number): number => calling(() => native.peak(threadsOf(threads)));

export interface Machine {
  readonly cpu: string;
  readonly cores: number;
  readonly isa: string;
  readonly node: string;
}

export function machine(): Machine {
  const all = cpus();
  return { cpu: all[0]?.model.trim() ?? 'unknown', cores: all.length, isa: devices().isa, node: process.versions.node };
}

/** Numbers in -1 .. 1 without structure, so that nothing cancels out or is zero. */
export function fill<T extends Tensor<'f32'>>(x: T): T {
  let state = x.data.length;
  for (let i = 0; i < x.data.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    x.data[i] = state / 2 ** 31 - 1;
  }
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
