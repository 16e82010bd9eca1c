/** How long a network keeps the event loop: in a server nobody else is answered meanwhile. */
import { readFileSync } from 'node:fs';
import { type IntervalHistogram, monitorEventLoopDelay } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { loadModel } from '../model.js';
import { type NetworkOptions, resolveNetworkOptions } from '../models/index.js';
import { Tensor } from '../tensor.js';
import { writeModelFolder } from '../weights/folder.js';
import { inFolder } from './folder.js';
import { type Machine, machine } from './measure.js';
import { Net } from './models.js';
import { roundsOf, table, threadsOf } from './table.js';

export interface BenchLoopOptions {
  readonly network: string;
  readonly options: NetworkOptions;
  readonly size: number;
  readonly threads: number;
  readonly rounds: number;
  readonly progress?: (text: string) => void;
}

/** Milliseconds between two turns of the event loop; the timer that measures it has a resolution of one. */
export interface LoopRow {
  readonly phase: string;
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
  /** The most CPU time of the thread between two: what others do on the machine is not in it. */
  readonly cpu: number;
}

export interface LoopResult {
  readonly bench: 'loop';
  readonly machine: Machine;
  readonly network: string;
  readonly options: NetworkOptions;
  readonly size: number;
  readonly threads: number;
  readonly rounds: number;
  readonly rows: readonly LoopRow[];
}

const goals = { p99: 5, max: 10 };
const batches = [1, 2, 4];

export async function benchLoop({
  network,
  options: given,
  size,
  threads,
  rounds,
  progress,
}: BenchLoopOptions): Promise<LoopResult> {
  const options = resolveNetworkOptions(network, given);
  const rows: LoopRow[] = [];
  const whole = monitorEventLoopDelay({ resolution: 1 });
  const phase = async <T>(name: string, work: () => Promise<T>): Promise<T> => {
    progress?.(name);
    const histogram = monitorEventLoopDelay({ resolution: 1 });
    await sleep(5); // what was before is none of its business
    for (const each of [histogram, whole]) each.enable();
    let [before, cpu] = [cpuTime(), 0];
    const timer = setInterval(() => {
      const now = cpuTime();
      cpu = Math.max(cpu, now - before);
      before = now;
    }, 1);
    try {
      const result = await work();
      await sleep(5);
      return result;
    } finally {
      clearInterval(timer);
      for (const each of [histogram, whole]) each.disable();
      rows.push(rowOf(name, histogram, cpu));
    }
  };
  await inFolder(async (folder) => {
    progress?.('writing the network');
    const net = new Net(network, given, size);
    const { config, labels } = net.described;
    await writeModelFolder(folder, config, labels, net.weights);
    const model = await phase('load', () => loadModel(folder, { threads }));
    const shapes = batches.map((batch) => net.shape.with(0, batch));
    await phase(`warm up batch ${batches.join(', ')}`, () => model.warmUp(shapes));
    const inputs = shapes.map((shape) => Tensor.zeros('f32', shape));
    await phase('run', async () => {
      for (let round = 0; round < rounds; round++) for (const x of inputs) await model.run(x);
    });
    await phase('dispose', async () => model.dispose());
  });
  rows.push(rowOf('all', whole, Math.max(...rows.map(({ cpu }) => cpu))));
  return { bench: 'loop', machine: machine(), network, options, size, threads, rounds, rows };
}

/** Milliseconds of this thread; while it runs, Linux counts a tick of some milliseconds at a time. */
const cpuTime = () => Number(readFileSync('/proc/thread-self/schedstat', 'latin1').split(' ')[0]) / 1e6;

function rowOf(phase: string, histogram: Pick<IntervalHistogram, 'max' | 'percentile'>, cpu: number): LoopRow {
  const milliseconds = (nanoseconds: number) => nanoseconds / 1e6;
  return {
    phase,
    p50: milliseconds(histogram.percentile(50)),
    p99: milliseconds(histogram.percentile(99)),
    max: milliseconds(histogram.max),
    cpu,
  };
}

export function loopTable({ machine, network, options, size, threads, rounds, rows }: LoopResult): string {
  const lines = rows.map(({ phase, p50, p99, max, cpu }) => [
    phase,
    ...[p50, p99, max, cpu].map((value) => value.toFixed(1)),
  ]);
  return [
    `${machine.cpu}, ${machine.isa}, ${threadsOf(threads)}`,
    `${network}, alpha ${options.alpha}, ${size} x ${size}, random weights, ${roundsOf(rounds)} of batch ${batches.join(', ')}`,
    'milliseconds between two turns of the event loop, by a timer of 1 ms;',
    'cpu max: CPU time of its thread between two, however busy the machine is;',
    `goal for all: p99 < ${goals.p99}, max < ${goals.max}`,
    '',
    table(['event loop', 'p50', 'p99', 'max', 'cpu max'], lines),
  ].join('\n');
}
