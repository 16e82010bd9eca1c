/** Where the time goes: every step of a network beside its bound, and its convolutions one by one beside onnxruntime's. */
import { countFlops } from '../flops.js';
import { Graph, type GraphNode, Parameter, type Value } from '../graph/graph.js';
import { Model } from '../model.js';
import { buildNetwork, type NetworkOptions } from '../models/index.js';
import { PackedWeights, Plan } from '../plan.js';
import { Tensor } from '../tensor.js';
import { initialize } from '../weights/random.js';
import { fill, interleave, type Machine, machine, measurePeak, median, pairedRatio, relativeError, type Times } from './measure.js';
import { table } from './models.js';
import { openPeer } from './peer.js';
import { OctconvError } from '../error.js';

export interface BenchOpsOptions {
  readonly network: string;
  readonly options: NetworkOptions;
  readonly size: number;
  readonly batch: number;
  readonly threads: number;
  readonly rounds: number;
  readonly progress?: (text: string) => void;
}

export interface StepRow {
  readonly name: string;
  readonly op: string;
  readonly algorithm: string;
  readonly gflop: number;
  /** Milliseconds: least and median over the rounds, and FLOPs at the measured peak. */
  readonly min: number;
  readonly median: number;
  readonly bound: number;
}

export interface OpRow {
  readonly op: string;
  readonly shape: string;
  /** How often the network has it. */
  readonly count: number;
  readonly gflop: number;
  readonly ours: Times;
  readonly theirs: Times;
  readonly ratio: number;
}

export interface OpsResult {
  readonly bench: 'ops';
  readonly machine: Machine;
  readonly network: string;
  readonly alpha?: number | undefined;
  readonly size: number;
  readonly batch: number;
  readonly threads: number;
  readonly rounds: number;
  readonly peak: number;
  readonly steps: readonly StepRow[];
  readonly ops: readonly OpRow[];
}

export async function benchOps(options: BenchOpsOptions): Promise<OpsResult> {
  const { network: name, options: networkOptions, size, batch, threads, rounds, progress } = options;
  const peak = measurePeak(threads);
  const network = buildNetwork(name, networkOptions);
  using model = new Model(network, initialize(network), { threads });
  const x = fill(Tensor.zeros('f32', [batch, size, size, 3]));
  const steps = await timeSteps(await model.plan(x.shape), x, rounds, peak);
  const ops: OpRow[] = [];
  const single = singleOps(model.record(x.shape));
  for (const [i, op] of single.entries()) {
    progress?.(`op ${i + 1} of ${single.length}`);
    ops.push(await timeOp(op, threads, rounds));
  }
  const { alpha } = networkOptions;
  return { bench: 'ops', machine: machine(), network: name, alpha, size, batch, threads, rounds, peak, steps, ops };
}

async function timeSteps(plan: Plan, x: Tensor<'f32'>, rounds: number, peak: number): Promise<StepRow[]> {
  const times: Float32Array[] = [];
  for (let round = -1; round < rounds; round++) {
    const stepMilliseconds = new Float32Array(plan.steps.length);
    await plan.run([x], { stepMilliseconds });
    if (round >= 0) times.push(stepMilliseconds);
  }
  // The multiply-adds of a step are those of the recorded nodes whose weights it reads.
  const flops = new Map<string, number>();
  for (const node of plan.graph.nodes) {
    const { multiplyAdds } = countFlops(only(plan.graph, node));
    const [param] = Object.values(node.params);
    if (param && multiplyAdds) flops.set(param, 2 * multiplyAdds);
  }
  return plan.steps.map(({ name, op, params }, i) => {
    const gflop = Object.values(params).reduce((sum, param) => sum + (flops.get(param) ?? 0), 0) / 1e9;
    const ms = times.map((t) => t[i] ?? NaN);
    const algorithm = plan.algorithms[i] ?? '';
    return { name, op, algorithm, gflop, min: Math.min(...ms), median: median(ms), bound: (1e3 * gflop) / peak };
  });
}

/** The same graph with one node. */
function only(graph: Graph, node: GraphNode): Graph {
  const alone = new Graph();
  alone.values.push(...graph.values);
  alone.nodes.push(node);
  for (const name of Object.values(node.params)) alone.params.set(name, graph.params.get(name) ?? []);
  return alone;
}

interface SingleOp {
  readonly node: GraphNode;
  readonly inputs: readonly Tensor<'f32'>[];
  readonly graph: Graph;
  readonly weights: ReturnType<typeof initialize>;
  count: number;
}

/** Every different convolution and pooling of a network, alone. */
function singleOps(graph: Graph): SingleOp[] {
  const found = new Map<string, SingleOp>();
  for (const node of graph.nodes) {
    if (!['conv', 'octConv', 'maxPool'].includes(node.op)) continue;
    const types = (ids: readonly number[]) => ids.map((id) => graph.values[id]?.shape ?? []);
    const key = JSON.stringify([node.op, node.attrs, types(node.inputs), types(node.outputs)]);
    const known = found.get(key);
    if (known) known.count++;
    else found.set(key, { ...record(graph, node), node, count: 1 });
  }
  return [...found.values()];
}

function record(from: Graph, node: GraphNode) {
  const graph = new Graph();
  const shape = (id: number) => from.values[id]?.shape ?? [];
  const inputs = node.inputs.map((id) => fill(Tensor.zeros('f32', shape(id))));
  const params = Object.fromEntries(
    Object.entries(node.params).map(([role, name]) => [role, Object.assign(new Parameter(from.params.get(name) ?? []), { name })]),
  );
  const values: Value[] = inputs.map((x) => graph.input('f32', x.shape));
  const outputs = node.outputs.map((id) => ({ dtype: 'f32' as const, shape: shape(id) }));
  graph.outputs.push(...graph.add(node.op, values, node.attrs, params, outputs).map((value) => value.id));
  const tensors = new Map([...graph.params].map(([name, size]) => [name, { dtype: 'f32' as const, shape: size }]));
  const read = async (name: string) => fill(Tensor.zeros('f32', graph.params.get(name) ?? [])).data;
  return { graph, inputs, weights: { name: 'bench', tensors, read, close: async () => {} } };
}

async function timeOp({ node, graph, inputs, weights, count }: SingleOp, threads: number, rounds: number): Promise<OpRow> {
  const plan = await Plan.compile(graph, new PackedWeights(weights, 'cpu'), threads);
  const reference = await Plan.compile(graph, new PackedWeights(weights, 'reference'), threads);
  const peer = await openPeer(graph, async (name) => ({ dtype: 'f32', shape: graph.params.get(name) ?? [], data: await weights.read(name) }), inputs, threads);
  const [got, wanted] = [await plan.run(inputs), await reference.run(inputs)];
  for (const [i, y] of got.entries()) {
    const error = relativeError(y.data as Float32Array, wanted[i]?.data as Float32Array);
    if (!(error < 1e-4)) throw new OctconvError(`bench: ${node.name} differs from the reference by ${error}, wanted below 1e-4`);
  }
  const [ours, theirs] = (await interleave([() => plan.run(inputs), () => peer.run()], rounds)) as [Times, Times];
  const gflop = (2 * countFlops(graph).multiplyAdds) / 1e9;
  plan.dispose();
  reference.dispose();
  await peer.close();
  return { op: node.op, shape: describe(graph, node), count, gflop, ours, theirs, ratio: pairedRatio(ours, theirs) };
}

function describe(graph: Graph, { attrs }: GraphNode): string {
  const sizes = (ids: readonly number[]) => ids.map((id) => graph.values[id]?.shape.slice(1).join('x')).join(' + ');
  const { kernel, stride } = attrs as { kernel: readonly number[]; stride: number | readonly number[] };
  return `${sizes(graph.inputs)} -> ${sizes(graph.outputs)}, ${kernel.slice(1).join('x')} s${typeof stride === 'number' ? stride : stride[1]}`;
}

export function opsTable(result: OpsResult): string {
  const { steps, ops, machine, network, alpha, size, batch, threads, rounds, peak } = result;
  const total = steps.reduce((sum, step) => sum + step.min, 0);
  const stepLines = steps.map((s) => [
    s.name,
    s.op,
    s.gflop.toFixed(3),
    s.min.toFixed(3),
    s.median.toFixed(3),
    s.bound.toFixed(3),
    s.gflop ? `${((100 * s.bound) / s.min).toFixed(0)} %` : '',
    `${((100 * s.min) / total).toFixed(1)} %`,
    s.algorithm,
  ]);
  const opLines = ops.map((o) => [
    `${o.op} ${o.shape}`,
    String(o.count),
    o.ours.min.toFixed(3),
    o.ours.median.toFixed(3),
    o.gflop ? `${((1e5 * o.gflop) / peak / o.ours.min).toFixed(0)} %` : '',
    o.theirs.min.toFixed(3),
    o.theirs.median.toFixed(3),
    o.ratio.toFixed(2),
  ]);
  return [
    `${machine.cpu}, ${machine.isa}, ${threads} threads; measured peak ${peak.toFixed(0)} GFLOP/s`,
    `${network}${alpha === undefined ? '' : ` alpha ${alpha}`}, ${size} x ${size}, batch ${batch}, ${rounds} rounds, milliseconds`,
    '',
    'Steps of the fused network; the bound is their FLOPs at the peak:',
    table(['step', 'op', 'GFLOP', 'min', 'median', 'bound', 'reached', 'of all', 'algorithm'], stepLines),
    '',
    'Single ops, unfused, against onnxruntime:',
    table(['op', 'count', 'ours min', 'median', 'of peak', 'ort min', 'median', 'ours/ort'], opLines),
  ].join('\n');
}
