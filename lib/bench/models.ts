/** Whole networks, plain and octave at several alphas: ours and onnxruntime's, round by round. */
import { OctconvError } from '../error.js';
import { countFlops } from '../flops.js';
import { createModel, Model, type ModelOptions } from '../model.js';
import { buildNetwork, type NetworkOptions } from '../models/index.js';
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
import { openPeer, type Peer, peerVersion } from './peer.js';
import { share, table, threadsOf } from './table.js';

export interface BenchModelsOptions {
  /** The plain network; its `oct-` namesakes at these alphas are added. */
  readonly network: string;
  readonly alphas: readonly number[];
  readonly size: number;
  readonly batch: number;
  readonly threads: readonly number[];
  readonly rounds: number;
  readonly device?: ModelOptions['device'];
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
  /** What our fastest round reaches, also as a share of the measured peak. */
  readonly gflops: number;
  readonly ofPeak: number;
  /** Paired medians: ours to onnxruntime's same network, and to its plain one. */
  readonly ratio: number;
  readonly ratioToPlain: number;
}

export interface ModelsResult {
  readonly bench: 'models';
  readonly machine: Machine;
  /** Version of onnxruntime-node. */
  readonly peer: string;
  readonly size: number;
  readonly batch: number;
  readonly rounds: number;
  /** GFLOP/s by thread count. */
  readonly peak: { readonly [threads: number]: number };
  readonly rows: readonly ModelRow[];
}

interface Net {
  readonly name: string;
  readonly options: NetworkOptions;
}
interface Subject extends Net {
  readonly model: Model;
  readonly peer: Peer;
  readonly gmadds: number;
}

/** Largest error of the logits that counts as equal, as a share of the largest. */
const tolerance = 1e-4;

/** @throws OctconvError if a network's results differ from the reference or from onnxruntime. */
export async function benchModels(options: BenchModelsOptions): Promise<ModelsResult> {
  const { network, alphas, size, batch, threads, rounds, device, progress } = options;
  if (network.startsWith('oct-')) {
    throw new OctconvError(`bench: network '${network}', wanted the plain one, to which its octave forms are added`);
  }
  const peer = await peerVersion();
  const octave = alphas.map((alpha): Net => ({ name: `oct-${network}`, options: { alpha } }));
  const nets: Net[] = [{ name: network, options: {} }, ...octave];
  for (const net of nets) {
    progress?.(`checking ${title(net)} against the reference`);
    await checkAgainstReference(net, { device });
  }
  const x = fill(Tensor.zeros('f32', [batch, size, size, 3]));
  const peak: Record<number, number> = {};
  const rows: ModelRow[] = [];
  for (const count of threads) {
    const subjects: Subject[] = [];
    try {
      peak[count] = measurePeak(count);
      for (const net of nets) {
        progress?.(`${threadsOf(count)}: checking ${title(net)} against onnxruntime`);
        subjects.push(await open(net, x, { device, threads: count }));
      }
      const times = await interleave(
        subjects.flatMap(({ model, peer }) => [() => model.run(x), () => peer.run()]),
        rounds,
        (round) => progress?.(`${threadsOf(count)}: round ${round} of ${rounds}`),
      );
      const perImage = times.map((all) => timesOf(all.rounds.map((ms) => ms / batch)));
      rows.push(...subjects.map((subject, i) => rowOf(subject, i, perImage, count, peak[count] ?? NaN)));
    } finally {
      for (const { model, peer } of subjects) {
        model.dispose();
        await peer.close();
      }
    }
  }
  return { bench: 'models', machine: machine(), peer, size, batch, rounds, peak, rows };
}

/** `times` has ours and onnxruntime's of each subject; the first subject is the plain network. */
function rowOf({ name, options, gmadds }: Subject, i: number, times: Times[], threads: number, peak: number): ModelRow {
  const [, plain] = times;
  const [ours, theirs] = times.slice(2 * i);
  if (!plain || !ours || !theirs) throw new OctconvError(`bench: ${name} was not timed`);
  const gflops = (2e3 * gmadds) / ours.min;
  const ratios = { ratio: pairedRatio(ours, theirs), ratioToPlain: pairedRatio(ours, plain) };
  const { alpha } = options;
  return { network: name, alpha, threads, gmadds, ours, theirs, gflops, ofPeak: gflops / peak, ...ratios };
}

const title = ({ name, options: { alpha } }: Net) => (alpha === undefined ? name : `${name} alpha ${alpha}`);

/** At a size that the slow loops can do, odd so that all borders are met. */
async function checkAgainstReference(net: Net, options: ModelOptions): Promise<void> {
  const x = fill(Tensor.zeros('f32', [1, 61, 45, 3]));
  const narrow = { ...net.options, width: 16 };
  using model = createModel(net.name, narrow, options);
  using reference = createModel(net.name, narrow, { device: 'reference' });
  expectEqual(`${title(net)} and the reference`, await model.run(x), await reference.run(x));
}

async function open(net: Net, x: Tensor<'f32'>, options: ModelOptions & { threads: number }): Promise<Subject> {
  const network = buildNetwork(net.name, net.options);
  const weights = initialize(network);
  const model = new Model(network, weights, options);
  const graph = model.record(x.shape);
  const read = async (name: string) => ({
    dtype: 'f32' as const,
    shape: graph.params.get(name) ?? [],
    data: await weights.read(name),
  });
  const peer = await openPeer(graph, read, [x], options.threads);
  expectEqual(`${title(net)} and onnxruntime`, await model.run(x), await peer.run());
  return { ...net, model, peer, gmadds: countFlops(graph).multiplyAdds / (x.shape[0] ?? 1) / 1e9 };
}

function expectEqual(what: string, got: Tensor<'f32'>, wanted: Tensor<'f32'>): void {
  const error = relativeError(got.data, wanted.data);
  if (!(error < tolerance)) throw new OctconvError(`bench: ${what} differ by ${error}, wanted less than ${tolerance}`);
}

export function modelsTable({ rows, peak, machine, peer, size, batch, rounds }: ModelsResult): string {
  const head = ['network', 'alpha', 'thr', 'GMAdd', 'ours min', 'median', 'GFLOP/s', 'of peak'];
  head.push('ort min', 'median', 'ours/ort', 'ours/ort plain');
  const lines = rows.map((row) => [
    row.network,
    String(row.alpha ?? 'plain'),
    String(row.threads),
    row.gmadds.toFixed(2),
    row.ours.min.toFixed(2),
    row.ours.median.toFixed(2),
    row.gflops.toFixed(0),
    share(row.ofPeak),
    row.theirs.min.toFixed(2),
    row.theirs.median.toFixed(2),
    row.ratio.toFixed(2),
    row.ratioToPlain.toFixed(2),
  ]);
  const peaks = Object.entries(peak).map(([count, gflops]) => `${threadsOf(count)} ${gflops.toFixed(0)}`);
  return [
    `${machine.cpu}, ${machine.isa}; measured peak, GFLOP/s: ${peaks.join(', ')}; ort: onnxruntime-node ${peer}`,
    `${size} x ${size}, batch ${batch}, ${rounds} interleaved rounds, ms per image, ratios are paired medians`,
    '',
    table(head, lines),
  ].join('\n');
}
