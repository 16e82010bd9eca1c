/** Where the time goes: each step of a network beside its bound, and ops one by one beside onnxruntime's. */
import { costsOf } from '../costs.js';
import { OctconvError } from '../error.js';
import { countFlops } from '../flops.js';
import { type ComputeType, Graph, type GraphNode, Parameter, type TensorType } from '../graph/graph.js';
import { Model, type ModelOptions } from '../model.js';
import { architectureOf } from '../kernels.js';
import { buildNetwork, inputShape, type NetworkOptions } from '../models/index.js';
import { targetOf } from '../devices.js';
import type { Device } from '../native.js';
import { PackedWeights, Plan } from '../plan.js';
import { Tensor } from '../tensor.js';
import { initialize } from '../weights/random.js';
import {
  angularError,
  fill,
  interleave,
  type Machine,
  machine,
  measureBandwidth,
  measurePeak,
  pairedRatio,
  peaksOf,
  quantizeOnNoise,
  relativeError,
  type Times,
  timesOf,
} from './measure.js';
import { type Gpu, type GpuName, gpuCalled, gpus } from './gpus.js';
import { openPeer, peerVersion } from './peer.js';
import { framesOf, givenOf, optionsIn, roundsOf, share, sizeOf, table, threadsOf } from './table.js';

export interface BenchOpsOptions {
  readonly network: string;
  readonly options: NetworkOptions;
  readonly size: number;
  /** Of a video network; default: as many as it is made for. */
  readonly frames?: number | undefined;
  /** Default f32. */
  readonly dtype?: ComputeType | undefined;
  readonly batch: number;
  readonly threads: number;
  readonly rounds: number;
  readonly device?: ModelOptions['device'];
  /** Whose data sheet the bounds are from, on a GPU; default: the one that it is by its name. */
  readonly gpu?: GpuName | undefined;
  readonly progress?: ((text: string) => void) | undefined;
}

export interface StepRow {
  readonly name: string;
  readonly op: string;
  readonly algorithm: string;
  readonly gflop: number;
  /** Of weights and activations. */
  readonly bytes: number;
  readonly times: Times;
  /** Milliseconds of its FLOPs at the peak of its data type, or of its bytes at the bandwidth, whichever are more. */
  readonly bound: number;
  readonly boundBy: 'products' | 'memory';
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
  /** Version of onnxruntime-node; absent on a GPU. */
  readonly peer?: string | undefined;
  /** What computes, if it is not the CPU, and whose data sheet its bounds are from. */
  readonly gpu?: { readonly about: string; readonly sheet: string } | undefined;
  readonly network: string;
  readonly alpha?: number | undefined;
  /** The others that were given; absent where none was. */
  readonly options?: NetworkOptions | undefined;
  readonly size: number;
  /** Absent for images. */
  readonly frames?: number | undefined;
  readonly dtype: ComputeType;
  readonly batch: number;
  readonly threads: number;
  readonly rounds: number;
  /** GFLOP/s, measured for f32, or of a data sheet. */
  readonly peaks: Readonly<Record<ComputeType, number>>;
  /** GB/s, measured, or of a data sheet. */
  readonly bandwidth: number;
  readonly steps: readonly StepRow[];
  /** None in i8: an op alone has no scales. None on a GPU: there onnxruntime-node would be no peer. */
  readonly ops: readonly OpRow[];
}

/** @throws OctconvError if an op's result differs from the reference. */
export async function benchOps(options: BenchOpsOptions): Promise<OpsResult> {
  const {
    network: name,
    options: networkOptions,
    size,
    dtype = 'f32',
    batch,
    threads,
    rounds,
    device,
    progress,
  } = options;
  const target = targetOf(device);
  const onGpu = architectureOf(target) !== undefined;
  const peer = onGpu ? undefined : await peerVersion();
  const sheet = onGpu ? gpus[options.gpu ?? gpuCalled(target.traits.isa)] : undefined;
  const gpu = sheet && { about: target.traits.isa, sheet: sheet.name };
  const roof = sheet
    ? roofOf(sheet)
    : { peaks: peaksOf(await measurePeak(threads)), bandwidth: await measureBandwidth(threads) };
  const shape = inputShape({ name, options: networkOptions }, { height: size, width: size, frames: options.frames });
  const frames = framesOf(shape);
  const network = buildNetwork(name, networkOptions);
  const f32 = initialize(network);
  const weights = dtype === 'i8' ? await quantizeOnNoise(network, f32, shape) : f32;
  using model = new Model(network, weights, { threads, device, dtype });
  const x = fill(Tensor.zeros('f32', shape.with(0, batch)));
  progress?.('steps');
  const steps = await timeSteps(await model.plan(x.shape), x, rounds, roof);
  const single = dtype === 'i8' || onGpu ? [] : singleOps(model.record(x.shape));
  const ops = await timeOps(single, threads, rounds, model.device, { dtype, progress });
  const { alpha, ...others } = networkOptions;
  const setting = { network: name, alpha, options: givenOf(others), size, frames, dtype, batch, threads, rounds };
  return { bench: 'ops', machine: machine(), peer, gpu, ...setting, ...roof, steps, ops };
}

// --- Steps --------------------------------------------------------------------------------------------------------

/** What bounds a step (Williams et al., Roofline, 2009). */
type Roof = Pick<OpsResult, 'peaks' | 'bandwidth'>;

function roofOf({ teraflops, bandwidth }: Gpu): Roof {
  const { f32 = NaN, bf16 = NaN, f16 = NaN, i8 = NaN } = teraflops;
  return { peaks: { f32: f32 * 1e3, bf16: bf16 * 1e3, f16: f16 * 1e3, i8: i8 * 1e3 }, bandwidth: bandwidth * 1e3 };
}

async function timeSteps(plan: Plan, x: Tensor<'f32'>, rounds: number, { peaks, bandwidth }: Roof): Promise<StepRow[]> {
  const all: Float32Array[] = [];
  for (let round = 0; round <= rounds; round++) {
    const stepMilliseconds = new Float32Array(plan.steps.length);
    await plan.run([x], { stepMilliseconds });
    if (round > 0) all.push(stepMilliseconds); // the first one warms up
  }
  const costs = costsOf(plan);
  return plan.steps.map(({ name, op }, i) => {
    const { multiplyAdds, computes, bytes } = costs[i]!;
    const gflop = (2 * multiplyAdds) / 1e9;
    const moved = bytes.inputs + bytes.outputs + bytes.weights;
    const products = computes.length ? (1e3 * gflop) / Math.max(...computes.map((compute) => peaks[compute])) : 0;
    const memory = moved / 1e6 / bandwidth;
    const bound = Math.max(products, memory);
    return {
      ...{ name, op, algorithm: plan.algorithms[i] ?? '', gflop, bytes: moved },
      ...{ times: timesOf(all.map((ms) => ms[i] ?? NaN)), bound, boundBy: bound === products ? 'products' : 'memory' },
    };
  });
}

const typesOf = (graph: Graph, ids: readonly number[]): TensorType[] => ids.flatMap((id) => graph.values[id] ?? []);

/** A node as a graph of its own. Its parameters keep their names. */
function only(from: Graph, node: GraphNode): Graph {
  const params = Object.entries(node.params).map(
    ([role, name]) => [role, name, new Parameter(from.params.get(name) ?? [])] as const,
  );
  const graph = new Graph(new Map(params.map(([, name, parameter]) => [name, parameter])));
  const inputs = typesOf(from, node.inputs).map(({ dtype, shape }) => graph.input(dtype, shape));
  const outputs = graph.add(
    node.op,
    inputs,
    node.attrs,
    Object.fromEntries(params.map(([role, , parameter]) => [role, parameter])),
    typesOf(from, node.outputs),
  );
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
    typesOf(graph, ids)
      .map(({ shape }) => shape.slice(1).join('x'))
      .join(' + ');
  interface Window {
    readonly kernel: readonly number[];
    readonly stride: number | readonly number[];
    readonly groups?: number; // of a convolution
  }
  const { kernel, stride, groups = 1 } = attrs as unknown as Window;
  const [kt, ...window] = kernel;
  const [st, step] = typeof stride === 'number' ? [1, stride] : stride;
  const over = (t: number | undefined, rest: string | number | undefined) => (t === 1 ? rest : `${t}x${rest}`);
  const size = `${over(kt, window.join('x'))} s${over(st, step)}`;
  return `${sizes(inputs)} -> ${sizes(outputs)}, ${size}${groups > 1 ? `, ${groups} groups` : ''}`;
}

export async function timeOps(
  ops: readonly SingleOp[],
  threads: number,
  rounds: number,
  device: Device,
  { dtype = 'f32', progress }: Pick<BenchOpsOptions, 'dtype' | 'progress'> = {},
): Promise<OpRow[]> {
  const rows: OpRow[] = [];
  for (const [i, op] of ops.entries()) {
    progress?.(`op ${i + 1} of ${ops.length}`);
    rows.push(await timeOp(op, threads, rounds, device, dtype));
  }
  return rows;
}

async function timeOp(
  single: SingleOp,
  threads: number,
  rounds: number,
  device: Device,
  dtype: ComputeType,
): Promise<OpRow> {
  const { graph, op, title, count } = single;
  const shapeOf = (name: string) => graph.params.get(name) ?? [];
  const read = async (name: string) => fill(Tensor.zeros('f32', shapeOf(name))).data;
  const tensors = new Map([...graph.params].map(([name, shape]) => [name, { dtype: 'f32' as const, shape }]));
  const inputs = typesOf(graph, graph.inputs).map(({ shape }) => fill(Tensor.zeros('f32', shape)));
  const compile = (on: Device) =>
    Plan.compile(graph, new PackedWeights({ tensors, read }, targetOf(on), dtype), { threads });

  const reference = await compile('reference');
  const plan = await compile(device);
  const [got, wanted] = [await plan.run(inputs), await reference.run(inputs)];
  reference.dispose();
  // Winograd's algorithm of a 3x3 of hundreds of channels rounds to some 1e-5 of the largest value.
  const winograd = plan.steps.some(({ branches }) => branches?.some(({ hints }) => hints));
  const limit = winograd || dtype !== 'f32' ? 1e-4 : 1e-5;
  for (const [i, y] of got.entries()) {
    const errorOf = dtype === 'f32' ? relativeError : angularError;
    const error = errorOf(y.data as Float32Array, wanted[i]?.data as Float32Array);
    if (!(error < limit)) throw new OctconvError(`bench: ${op} ${title} differs from the reference by ${error}`);
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
  const {
    machine,
    peer,
    gpu,
    network,
    alpha,
    options,
    size,
    frames,
    dtype,
    batch,
    threads,
    rounds,
    peaks,
    bandwidth,
    steps,
    ops,
  } = result;
  const name = alpha === undefined ? network : `${network} alpha ${alpha}`;
  const measured = `measured ${peaks.f32.toFixed(0)} GFLOP/s of f32 and ${bandwidth.toFixed(0)} GB/s`;
  const times = (peaks[dtype] / peaks.f32).toFixed(0);
  const taken = `; ${dtype} is taken for ${times} x f32, as many as an instruction of ${machine.isa} multiplies`;
  const single = [
    '',
    `Ops alone, without fusion, interleaved with onnxruntime-node ${peer} f32; ratios are paired medians`,
  ];
  const onGpu = `${gpu?.about}; data sheet of ${gpu?.sheet}: ${(peaks[dtype] / 1e3).toFixed(0)} TFLOP/s of ${
    dtype === 'f32' ? 'tf32' : dtype
  } and ${bandwidth.toFixed(0)} GB/s`;
  const onCpu = `${machine.cpu}, ${machine.isa}, ${threadsOf(threads)}; ${measured}${dtype === 'f32' ? '' : taken}`;
  return [
    gpu ? onGpu : onCpu,
    `${name}, ${optionsIn(options)}${dtype}, ${sizeOf({ size, frames })}, batch ${batch}, random weights, ${roundsOf(rounds)}, ms`,
    '',
    'Steps of the fused network; bound: their FLOPs at that peak (Winograd has fewer), or their bytes from memory',
    stepLines(steps),
    ...(ops.length ? [...single, opLines(ops, peaks[dtype])] : []),
    ...(dtype === 'i8' && !gpu ? ['', 'No ops alone in i8: an op by itself has no scales'] : []),
  ].join('\n');
}

function stepLines(steps: readonly StepRow[]): string {
  const sum = (of: (step: StepRow) => number) => steps.reduce((total, step) => total + of(step), 0);
  const whole = {
    ...{ name: 'all', op: '', algorithm: '', gflop: sum((s) => s.gflop), bytes: sum((s) => s.bytes) },
    ...{ bound: sum((s) => s.bound), boundBy: '' },
    times: { min: sum((s) => s.times.min), median: sum((s) => s.times.median) },
  };
  const lines = [...steps, whole].map(({ name, op, gflop, bytes, times, bound, boundBy, algorithm }) => [
    name,
    op,
    gflop.toFixed(3),
    (bytes / 2 ** 20).toFixed(2),
    times.min.toFixed(3),
    times.median.toFixed(3),
    bound.toFixed(3),
    boundBy,
    share(bound / times.min),
    share(times.min / whole.times.min),
    algorithm,
  ]);
  const head = ['step', 'op', 'GFLOP', 'MiB', 'min', 'median', 'bound', 'by', 'reached', 'of all', 'algorithm'];
  return table(head, lines, {
    left: ['op', 'by', 'algorithm'],
    drop: ['algorithm', 'MiB', 'by', 'median', 'op', 'GFLOP', 'bound'],
  });
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
