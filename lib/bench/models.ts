/** Whole networks at several alphas, ours and onnxruntime's, round by round. */
import { OctconvError } from '../error.js';
import { countFlops } from '../flops.js';
import { createModel, Model } from '../model.js';
import { buildNetwork, type NetworkOptions } from '../models/index.js';
import { Tensor } from '../tensor.js';
import { initialize } from '../weights/random.js';
import { fill, interleave, type Machine, machine, measurePeak, pairedRatio, relativeError, type Times } from './measure.js';
import { openPeer, type Peer } from './peer.js';

export interface BenchModelsOptions {
  /** The plain network; the octave ones are its `oct-` namesakes. */
  readonly network: string;
  readonly alphas: readonly number[];
  readonly size: number;
  readonly batch: number;
  readonly threads: readonly number[];
  readonly rounds: number;
  readonly progress?: (text: string) => void;
}

export interface ModelRow {
  readonly network: string;
  /** Absent for the plain network. */
  readonly alpha?: number | undefined;
  readonly threads: number;
  /** Multiply-adds of one image, in G. */
  readonly gmadds: number;
  /** Milliseconds per image. */
  readonly ours: Times;
  readonly theirs: Times;
  /** Share of the measured peak that our minimum reaches. */
  readonly ofPeak: number;
  /** Paired medians: ours to onnxruntime's same network, and to its plain one. */
  readonly ratio: number;
  readonly ratioToPlain: number;
}

export interface ModelsResult {
  readonly bench: 'models';
  readonly machine: Machine;
  readonly size: number;
  readonly batch: number;
  readonly rounds: number;
  /** GFLOP/s by thread count. */
  readonly peak: { readonly [threads: number]: number };
  readonly rows: readonly ModelRow[];
}

interface Subject {
  readonly network: string;
  readonly options: NetworkOptions;
  readonly model: Model;
  readonly peer: Peer;
  readonly gmadds: number;
}

/** Largest error of the logits that counts as equal, as a share of the largest. */
const tolerance = 1e-4;

export async function benchModels(options: BenchModelsOptions): Promise<ModelsResult> {
  const { network, alphas, size, batch, threads, rounds, progress } = options;
  if (network.startsWith('oct-')) throw new OctconvError(`bench: network '${network}', wanted the plain one, whose octave forms are added`);
  const x = fill(Tensor.zeros('f32', [batch, size, size, 3]));
  const nets: { name: string; options: NetworkOptions }[] = [{ name: network, options: {} }, ...alphas.map((alpha) => ({ name: `oct-${network}`, options: { alpha } }))];
  for (const net of nets) await checkAgainstReference(net.name, net.options, progress);
  const peak: Record<number, number> = {};
  const rows: ModelRow[] = [];
  for (const count of threads) {
    peak[count] = measurePeak(count);
    const subjects: Subject[] = [];
    for (const net of nets) {
      progress?.(`${count} threads: opening ${net.name} ${net.options.alpha ?? ''}`);
      subjects.push(await open(net.name, net.options, x, count));
    }
    const times = await interleave(
      subjects.flatMap(({ model, peer }) => [() => model.run(x), () => peer.run()]),
      rounds,
      (round) => progress?.(`${count} threads: round ${round} of ${rounds}`),
    );
    const perImage = times.map((t) => ({ rounds: t.rounds.map((ms) => ms / batch), min: t.min / batch, median: t.median / batch }));
    const plain = perImage[1] as Times;
    for (const [i, { network, options, model, peer, gmadds }] of subjects.entries()) {
      const [ours, theirs] = [perImage[2 * i] as Times, perImage[2 * i + 1] as Times];
      const ofPeak = (2e3 * gmadds) / ours.min / (peak[count] ?? NaN);
      const ratios = { ratio: pairedRatio(ours, theirs), ratioToPlain: pairedRatio(ours, plain) };
      rows.push({ network, alpha: options.alpha, threads: count, gmadds, ours, theirs, ofPeak, ...ratios });
      model.dispose();
      await peer.close();
    }
  }
  return { bench: 'models', machine: machine(), size, batch, rounds, peak, rows };
}

/** The fused network against the specification, at a size that the slow loops can do. */
async function checkAgainstReference(name: string, options: NetworkOptions, progress?: (text: string) => void): Promise<void> {
  progress?.(`checking ${name} ${options.alpha ?? ''} against the reference`);
  const x = fill(Tensor.zeros('f32', [1, 61, 45, 3]));
  const narrow = { ...options, width: 16 };
  using reference = createModel(name, narrow, { device: 'reference' });
  using model = createModel(name, narrow);
  const error = relativeError((await model.run(x)).data, (await reference.run(x)).data);
  if (!(error < tolerance)) throw new OctconvError(`bench: ${name} differs from the reference by ${error}, wanted below ${tolerance}`);
}

async function open(name: string, options: NetworkOptions, x: Tensor<'f32'>, threads: number): Promise<Subject> {
  const network = buildNetwork(name, options);
  const weights = initialize(network);
  const model = new Model(network, weights, { threads });
  const graph = model.record(x.shape);
  const peer = await openPeer(graph, async (param) => ({ ...known(weights.tensors.get(param)), data: await weights.read(param) }), [x], threads);
  const error = relativeError((await model.run(x)).data, await peer.run());
  if (!(error < tolerance)) throw new OctconvError(`bench: ${name} differs from onnxruntime by ${error}, wanted below ${tolerance}`);
  return { network: name, options, model, peer, gmadds: countFlops(graph).multiplyAdds / (x.shape[0] ?? 1) / 1e9 };
}

function known<T>(value: T | undefined): T {
  if (value === undefined) throw new OctconvError('bench: a parameter is missing');
  return value;
}

export function modelsTable({ rows, peak, machine, size, batch, rounds }: ModelsResult): string {
  const head = ['network', 'alpha', 'thr', 'GMAdd', 'ours min', 'median', 'GFLOP/s', 'of peak', 'ort min', 'median', 'ours/ort', 'ours/ort plain'];
  const lines = rows.map((r) => [
    r.network,
    r.alpha === undefined ? 'plain' : String(r.alpha),
    String(r.threads),
    r.gmadds.toFixed(2),
    r.ours.min.toFixed(2),
    r.ours.median.toFixed(2),
    ((2e3 * r.gmadds) / r.ours.min).toFixed(0),
    `${(100 * r.ofPeak).toFixed(0)} %`,
    r.theirs.min.toFixed(2),
    r.theirs.median.toFixed(2),
    r.ratio.toFixed(2),
    r.ratioToPlain.toFixed(2),
  ]);
  const peaks = Object.entries(peak).map(([threads, gflops]) => `${threads} thread${threads === '1' ? '' : 's'} ${gflops.toFixed(0)}`);
  return [
    `${machine.cpu}, ${machine.isa}; measured peak, GFLOP/s: ${peaks.join(', ')}`,
    `${size} x ${size}, batch ${batch}, ${rounds} interleaved rounds, milliseconds per image, ratios are paired medians`,
    table(head, lines),
  ].join('\n');
}

/** Columns, the first flush left. */
export function table(head: readonly string[], lines: readonly (readonly string[])[]): string {
  const widths = head.map((name, i) => Math.max(name.length, ...lines.map((line) => line[i]?.length ?? 0)));
  const row = (cells: readonly string[]) => cells.map((cell, i) => (i ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0))).join('  ');
  return [row(head), ...lines.map(row)].join('\n');
}

