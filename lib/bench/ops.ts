/** Where the time goes: each step of a network beside its bound, and ops one by one beside onnxruntime's. */
import { OctconvError } from '../error.js';
import { countFlops } from '../flops.js';
import { Graph, type GraphNode, Parameter, type TensorType } from '../graph/graph.js';
import { Model, type ModelOptions } from '../model.js';
import { buildNetwork, type NetworkOptions } from '../models/index.js';
import type { Device } from '../native.js';
import { PackedWeights, Plan } from '../plan.js';
import { Tensor } from '../tensor.js';
import { initialize } from '../weights/random.js';
import {
  fill,
  interleave,
  type Machine,
  machine,
  measurePeak,
  pairedRatio,
  relativeError,
  type Times,
  timesOf,
} from './measure.js';
import { openPeer, peerVersion } from './peer.js';
import { share, table, threadsOf } from './table.js';

export interface BenchOpsOptions {
  readonly network: string;
  readonly options: NetworkOptions;
  readonly size: number;
  readonly batch: number;
  readonly threads: number;
  readonly rounds: number;
  readonly device?: ModelOptions['device'];
  readonly progress?: (text: string) => void;
}

export interface StepRow {
  readonly name: string;
  readonly op: string;
  readonly algorithm: string;
  readonly gflop: number;
  readonly times: Times;
  /** Milliseconds of its FLOPs at the measured peak. */
  readonly bound: number;
}

export interface OpRow {
  readonly op: string;
  readonly title: string;
  /** How often the network has it. */
  readonly count: number;
  readonly gflop: number;
  readonly ours: Times;
  readonly theirs: Times;
  /** Paired median. */
  readonly ratio: number;
}

export interface OpsResult {
  readonly bench: 'ops';
  readonly machine: Machine;
  /** Version of onnxruntime-node. */
  readonly peer: string;
  readonly network: string;
  readonly alpha?: number | undefined;
  readonly size: number;
  readonly batch: number;
  readonly threads: number;
  readonly rounds: number;
  /** GFLOP/s. */
  readonly peak: number;
  readonly steps: readonly StepRow[];
  readonly ops: readonly OpRow[];
}

/** @throws OctconvError if an op's result differs from the reference. */
export async function benchOps(options: BenchOpsOptions): Promise<OpsResult> {
  const { network: name, options: networkOptions, size, batch, threads, rounds, device, progress } = options;
  const peer = await peerVersion();
  const peak = measurePeak(threads);
  const network = buildNetwork(name, networkOptions);
  using model = new Model(network, initialize(network), { threads, device });
  const x = fill(Tensor.zeros('f32', [batch, size, size, 3]));
  progress?.('steps');
  const steps = await timeSteps(await model.plan(x.shape), x, rounds, peak);
  const ops = await timeOps(singleOps(model.record(x.shape)), threads, rounds, model.device, progress);
  const { alpha } = networkOptions;
  const setting = { network: name, alpha, size, batch, threads, rounds };
  return { bench: 'ops', machine: machine(), peer, ...setting, peak, steps, ops };
}

// --- Steps --------------------------------------------------------------------------------------------------------

async function timeSteps(plan: Plan, x: Tensor<'f32'>, rounds: number, peak: number): Promise<StepRow[]> {
  const all: Float32Array[] = [];
  for (let round = 0; round <= rounds; round++) {
    const stepMilliseconds = new Float32Array(plan.steps.length);
    await plan.run([x], { stepMilliseconds });
    if (round > 0) all.push(stepMilliseconds); // the first one warms up
  }
  // A step has the multiply-adds of the recorded nodes whose weights it reads.
  const flops = new Map<string, number>();
  for (const node of plan.graph.nodes) {
    const [param] = Object.values(node.params);
    if (param !== undefined) flops.set(param, 2 * countFlops(only(plan.graph, node)).multiplyAdds);
  }
  return plan.steps.map(({ name, op, params }, i) => {
    const gflop = Object.values(params).reduce((sum, param) => sum + (flops.get(param) ?? 0), 0) / 1e9;
    const times = timesOf(all.map((ms) => ms[i] ?? NaN));
    return { name, op, algorithm: plan.algorithms[i] ?? '', gflop, times, bound: (1e3 * gflop) / peak };
  });
}

const typesOf = (graph: Graph, ids: readonly number[]): TensorType[] => ids.flatMap((id) => graph.values[id] ?? []);

/** A node as a graph of its own. Its parameters keep their names. */
function only(from: Graph, node: GraphNode): Graph {
  const graph = new Graph();
  const params = Object.entries(node.params).map(([role, name]) => {
    const parameter = new Parameter(from.params.get(name) ?? []);
    parameter.name = name;
    return [role, parameter] as const;
  });
  const inputs = typesOf(from, node.inputs).map(({ dtype, shape }) => graph.input(dtype, shape));
  const outputs = graph.add(node.op, inputs, node.attrs, Object.fromEntries(params), typesOf(from, node.outputs));
  graph.outputs.push(...outputs.map(({ id }) => id));
  return graph;
}

// --- Single ops ---------------------------------------------------------------------------------------------------

/** An op alone. Its parameters, unless they are constants, are made up. */
export interface SingleOp {
  readonly op: string;
  readonly title: string;
  readonly graph: Graph;
  /** How often the network has it. */
  readonly count: number;
}

/** Every different convolution and pooling of a network. */
function singleOps(graph: Graph): SingleOp[] {
  const found = new Map<string, SingleOp>();
  for (const node of graph.nodes) {
    if (!['conv', 'octConv', 'maxPool'].includes(node.op)) continue;
    const title = describe(graph, node);
    const { count } = found.get(title) ?? { count: 0 };
    found.set(title, { op: node.op, title, graph: only(graph, node), count: count + 1 });
  }
  return [...found.values()];
}

function describe(graph: Graph, { attrs, inputs, outputs }: GraphNode): string {
  const sizes = (ids: readonly number[]) =>
    typesOf(graph, ids).map(({ shape }) => shape.slice(1).join('x')).join(' + ');
  const { kernel, stride } = attrs as { kernel: readonly number[]; stride: number | readonly number[] };
  const step = typeof stride === 'number' ? stride : stride[1];
  return `${sizes(inputs)} -> ${sizes(outputs)}, ${kernel.slice(1).join('x')} s${step}`;
}

export async function timeOps(
  ops: readonly SingleOp[],
  threads: number,
  rounds: number,
  device: Device,
  progress?: (text: string) => void,
): Promise<OpRow[]> {
  const rows: OpRow[] = [];
  for (const [i, op] of ops.entries()) {
    progress?.(`op ${i + 1} of ${ops.length}`);
    rows.push(await timeOp(op, threads, rounds, device));
  }
  return rows;
}

async function timeOp(single: SingleOp, threads: number, rounds: number, device: Device): Promise<OpRow> {
  const { graph, op, title, count } = single;
  const shapeOf = (name: string) => graph.params.get(name) ?? [];
  const read = async (name: string) => fill(Tensor.zeros('f32', shapeOf(name))).data;
  const tensors = new Map([...graph.params].map(([name, shape]) => [name, { dtype: 'f32' as const, shape }]));
  const inputs = typesOf(graph, graph.inputs).map(({ shape }) => fill(Tensor.zeros('f32', shape)));
  const compile = (on: Device) => Plan.compile(graph, new PackedWeights({ tensors, read }, on), threads);

  const reference = await compile('reference');
  const plan = await compile(device);
  const [got, wanted] = [await plan.run(inputs), await reference.run(inputs)];
  reference.dispose();
  for (const [i, y] of got.entries()) {
    const error = relativeError(y.data as Float32Array, wanted[i]?.data as Float32Array);
    if (!(error < 1e-5)) throw new OctconvError(`bench: ${op} ${title} differs from the reference by ${error}`);
  }
  const readAll = async (name: string) => ({ dtype: 'f32' as const, shape: shapeOf(name), data: await read(name) });
  const peer = await openPeer(graph, readAll, inputs, threads);
  const [ours, theirs] = await interleave([() => plan.run(inputs), () => peer.run()], rounds, undefined, 5);
  plan.dispose();
  await peer.close();
  if (!ours || !theirs) throw new OctconvError(`bench: ${op} ${title} was not timed`);
  const gflop = (2 * countFlops(graph).multiplyAdds) / 1e9;
  return { op, title, count, gflop, ours, theirs, ratio: pairedRatio(ours, theirs) };
}

// --- Output -------------------------------------------------------------------------------------------------------

export function opsTable(result: OpsResult): string {
  const { machine, peer, network, alpha, size, batch, threads, rounds, peak, steps, ops } = result;
  const name = alpha === undefined ? network : `${network} alpha ${alpha}`;
  return [
    `${machine.cpu}, ${machine.isa}, ${threadsOf(threads)}; measured peak ${peak.toFixed(0)} GFLOP/s`,
    `${name}, ${size} x ${size}, batch ${batch}, ${rounds} rounds, ms`,
    '',
    'Steps of the fused network; the bound is their FLOPs at the peak',
    stepLines(steps),
    '',
    `Ops alone, without fusion, interleaved with onnxruntime-node ${peer}; ratios are paired medians`,
    opLines(ops, peak),
  ].join('\n');
}

function stepLines(steps: readonly StepRow[]): string {
  const sum = (of: (step: StepRow) => number) => steps.reduce((total, step) => total + of(step), 0);
  const whole = {
    ...{ name: 'all', op: '', algorithm: '', gflop: sum((s) => s.gflop), bound: sum((s) => s.bound) },
    times: { min: sum((s) => s.times.min), median: sum((s) => s.times.median) },
  };
  const lines = [...steps, whole].map(({ name, op, gflop, times, bound, algorithm }) => [
    name,
    op,
    gflop.toFixed(3),
    times.min.toFixed(3),
    times.median.toFixed(3),
    bound.toFixed(3),
    gflop ? share(bound / times.min) : '',
    share(times.min / whole.times.min),
    algorithm,
  ]);
  return table(['step', 'op', 'GFLOP', 'min', 'median', 'bound', 'reached', 'of all', 'algorithm'], lines);
}

export function opLines(ops: readonly OpRow[], peak: number): string {
  return table(
    ['op', 'count', 'ours min', 'median', 'of peak', 'ort min', 'median', 'ours/ort'],
    ops.map(({ op, title, count, gflop, ours, theirs, ratio }) => [
      `${op} ${title}`,
      String(count),
      ours.min.toFixed(3),
      ours.median.toFixed(3),
      gflop ? share((1e3 * gflop) / ours.min / peak) : '',
      theirs.min.toFixed(3),
      theirs.median.toFixed(3),
      ratio.toFixed(2),
    ]),
  );
}
