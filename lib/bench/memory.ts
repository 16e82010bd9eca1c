/** How much memory a network takes and how soon it answers, in a fresh process: ours and onnxruntime's. */
import { execFile } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { OctconvError } from '../error.js';
import type { ComputeType } from '../graph/graph.js';
import { readerOf, toOnnx } from '../graph/onnx.js';
import { record } from '../model.js';
import { type NetworkOptions, resolveNetworkOptions } from '../models/index.js';
import { writeModelFolder } from '../weights/folder.js';
import type { First, Seen } from './first.js';
import { inFolder } from './folder.js';
import { elsewhere, type MemoryGoal, memoryGoalOf } from './goals.js';
import { type Machine, machine, type Times, timesOf } from './measure.js';
import { Net, peerDTypes } from './models.js';
import { peerVersion, sessionOptions } from './peer.js';
import { givenOf, optionsIn, roundsOf, sizeOf, table, threadsOf } from './table.js';

export interface BenchMemoryOptions {
  readonly network: string;
  readonly options: NetworkOptions;
  readonly size: number;
  /** Of a video network; default: as many as it is made for. */
  readonly frames?: number | undefined;
  readonly dtypes: readonly ComputeType[];
  readonly threads: number;
  readonly rounds: number;
  readonly progress?: (text: string) => void;
}

/** Of every round, their minimum and median. */
export interface Process {
  readonly milliseconds: Times;
  /** MiB: the peak, and what of it was there before the network was opened. */
  readonly peak: Times;
  readonly before: Times;
}

export interface MemoryRow {
  readonly dtype: ComputeType;
  readonly peerDType: ComputeType;
  readonly ours: Process;
  readonly theirs: Process;
  /** What is wanted of ours, for the networks that goals are about. */
  readonly goal?: MemoryGoal | undefined;
}

export interface MemoryResult {
  readonly bench: 'memory';
  readonly machine: Machine;
  /** Version of onnxruntime-node. */
  readonly peer: string;
  readonly network: string;
  readonly alpha: number;
  /** The others that were given; absent where none was. */
  readonly options?: NetworkOptions | undefined;
  readonly size: number;
  /** Absent for images. */
  readonly frames?: number | undefined;
  readonly threads: number;
  readonly rounds: number;
  readonly rows: readonly MemoryRow[];
}

export async function benchMemory(given: BenchMemoryOptions): Promise<MemoryResult> {
  const { network, size, dtypes, threads, rounds, progress } = given;
  const peer = await peerVersion();
  const { alpha = resolveNetworkOptions(network, given.options).alpha, ...others } = given.options;
  const options = givenOf(others);
  const net = new Net(network, given.options, size, given.frames);
  const { shape, frames } = net;
  const rows = await inFolder(async (folder) => {
    for (const kind of new Set(dtypes.map((dtype) => peerDTypes[dtype]))) {
      progress?.(`writing the network in ${kind}`);
      await write(net, kind, folder);
    }
    const session = sessionOptions(threads, 1);
    const jobs = dtypes.flatMap((dtype): First[] => {
      const files = filesOf(folder, peerDTypes[dtype]);
      return [
        { folder: files.ours, shape, dtype, threads },
        { onnx: files.theirs, shape, session },
      ];
    });
    const seen: Seen[][] = jobs.map(() => []);
    for (let round = 0; round < rounds; round++) {
      progress?.(`round ${round + 1} of ${rounds}`);
      for (const [i, job] of jobs.entries()) seen[i]?.push(await inProcess(job));
    }
    return dtypes.map((dtype, i): MemoryRow => {
      const [ours, theirs] = seen.slice(2 * i).map(processOf) as [Process, Process];
      const goal = options ? undefined : memoryGoalOf(shape, { network, dtype, alpha });
      return { dtype, peerDType: peerDTypes[dtype], ours, theirs, goal };
    });
  });
  return { bench: 'memory', machine: machine(), peer, network, alpha, options, size, frames, threads, rounds, rows };
}

const filesOf = (folder: string, dtype: string) => ({
  ours: join(folder, dtype),
  theirs: join(folder, `${dtype}.onnx`),
});

/** The network as a model folder and as ONNX. */
async function write(net: Net, dtype: 'f32' | 'i8', folder: string): Promise<void> {
  const { weights, ranges } = dtype === 'i8' ? await net.quantized() : { weights: net.weights };
  const { config, labels } = net.described;
  const { ours, theirs } = filesOf(folder, dtype);
  await writeModelFolder(ours, config, labels, weights);
  await writeFile(theirs, await toOnnx(record(net.network, net.shape), readerOf(weights), { ranges }));
}

/** Beside this file, and like it compiled or not. */
const first = fileURLToPath(new URL(`first${extname(import.meta.url)}`, import.meta.url));

async function inProcess(job: First): Promise<Seen> {
  try {
    const args = [...process.execArgv, first, JSON.stringify(job)];
    const { stdout } = await promisify(execFile)(process.execPath, args);
    return JSON.parse(stdout);
  } catch (error) {
    const { stderr = '', message } = error as Error & { stderr?: string };
    throw new OctconvError(`bench: ${/^\w*Error: (.*)$/m.exec(stderr)?.[1] ?? message}`);
  }
}

function processOf(seen: readonly Seen[]): Process {
  const mebi = (of: (one: Seen) => number) => timesOf(seen.map((one) => of(one) / 2 ** 20));
  return {
    milliseconds: timesOf(seen.map((one) => one.milliseconds)),
    peak: mebi(({ peak }) => peak),
    before: mebi(({ before }) => before),
  };
}

export function memoryTable({
  machine,
  peer,
  network,
  alpha,
  options,
  size,
  frames,
  threads,
  rounds,
  rows,
}: MemoryResult): string {
  const goals = rows.some(({ goal }) => goal);
  const line = (name: string, { before, peak, milliseconds }: Process, goal?: MemoryRow['goal']) => {
    const memory = [before.median, peak.min, peak.median, ...(goals ? [goal?.peak] : [])];
    const times = [milliseconds.min, milliseconds.median, ...(goals ? [goal?.milliseconds] : [])];
    return [name, ...[...memory, ...times].map((value) => value?.toFixed(0) ?? '')];
  };
  const lines = rows.flatMap(({ dtype, peerDType, ours, theirs, goal }) => [
    line(`octconv ${dtype}`, ours, goal),
    line(`onnxruntime ${peerDType}`, theirs),
  ]);
  const goalOf = goals ? ['goal'] : [];
  const head = ['in a fresh process', 'MiB before', 'peak min', 'median', ...goalOf, 'ms min', 'median', ...goalOf];
  return [
    `${machine.cpu}, ${machine.isa}, ${threadsOf(threads)}; onnxruntime-node ${peer}`,
    `${network}, alpha ${alpha}, ${optionsIn(options)}${sizeOf({ size, frames })}, ${roundsOf(rounds)}, random weights; ms from opening the file, which is in the page`,
    'cache, to the first result; before: Node.js and the code of the engine, without a network',
    ...elsewhere(
      machine,
      rows.map(({ goal }) => goal),
    ),
    '',
    table(head, lines),
  ].join('\n');
}
