/** What the benches share: interleaved rounds, what came of them, and the machine. */
import { once } from 'node:events';
import { cpus } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { devices, targetOf } from '../devices.js';
import type { ComputeType } from '../graph/graph.js';
import type { Network } from '../model.js';
import { calling, native } from '../native.js';
import { threadsOf } from '../plan.js';
import { quantize } from '../quantize.js';
import { type Shape, Tensor } from '../tensor.js';
import type { WeightSource } from '../weights/source.js';

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
export const measurePeak = (threads: number): Promise<number> =>
  calling(() => native.peak(threadsOf(targetOf('cpu'), threads)));

/** Products of an instruction to those of a multiply-add of f32, where there are such instructions. */
const products: Record<ComputeType, Readonly<Record<string, number>>> = {
  f32: {},
  bf16: { avx512bf16: 2 },
  f16: {},
  i8: { avx2: 2, avx512: 2, avx512vnni: 4, avx512bf16: 4 },
};

/** The peaks that follow from that of f32: only that one is measured. */
export function peaksOf(peak: number): Record<ComputeType, number> {
  const { isa } = devices();
  const of = (dtype: ComputeType) => peak * (products[dtype][isa] ?? 1);
  return { f32: of('f32'), bf16: of('bf16'), f16: of('f16'), i8: of('i8') };
}

/** Reads 128 MiB, which no cache holds, for a while: the fastest round in GB/s. */
const reader = `
  const { parentPort } = require('node:worker_threads');
  const [a, b] = [Buffer.alloc(2 ** 26, 1), Buffer.alloc(2 ** 26, 1)];
  parentPort.once('message', () => {
    let least = Infinity;
    for (const end = performance.now() + 200; performance.now() < end; ) {
      const start = performance.now();
      a.equals(b);
      least = Math.min(least, performance.now() - start);
    }
    parentPort.postMessage((a.length + b.length) / 1e6 / least);
  });
  parentPort.postMessage('ready');`;

/** Measured GB/s that as many threads read from memory together. */
export async function measureBandwidth(threads: number): Promise<number> {
  const workers = Array.from({ length: threads }, () => new Worker(reader, { eval: true }));
  await Promise.all(workers.map((worker) => once(worker, 'message')));
  const rates = workers.map((worker) => once(worker, 'message') as Promise<[number]>);
  for (const worker of workers) worker.postMessage('go');
  return (await Promise.all(rates)).reduce((sum, [rate]) => sum + rate, 0);
}

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

/** i8 weights for a bench: the ranges of activations are those of one input of noise. */
export function quantizeOnNoise(network: Network, weights: WeightSource, shape: Shape): Promise<WeightSource> {
  return quantize(network, weights, [fill(Tensor.zeros('f32', shape))]);
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

/** One less the cosine of the angle between the two. */
export function angularError(got: Float32Array, wanted: Float32Array): number {
  const dot = (a: Float32Array, b: Float32Array) => a.reduce((sum, value, i) => sum + value * (b[i] ?? NaN), 0);
  return 1 - dot(got, wanted) / Math.sqrt(dot(got, got) * dot(wanted, wanted));
}
