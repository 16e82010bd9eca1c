/** Whole networks, plain and octave at several alphas: ours and onnxruntime's, round by round. */
import { devices } from '../devices.js';
import { OctconvError } from '../error.js';
import { countFlops } from '../flops.js';
import type { ComputeType } from '../graph/graph.js';
import { type Ranges, readerOf } from '../graph/onnx.js';
import { pictureInput } from '../input/preprocess.js';
import { createModel, Model, type ModelOptions, record } from '../model.js';
import {
  buildNetwork,
  defaultInputOf,
  inputShape,
  narrowed,
  type NetworkOptions,
  octaveForm,
  resolveNetworkOptions,
} from '../models/index.js';
import { type Shape, Tensor } from '../tensor.js';
import { initialize } from '../weights/random.js';
import type { WeightSource } from '../weights/source.js';
import { elsewhere, type Goal, goalOf } from './goals.js';
import {
  angularError,
  fill,
  interleave,
  type Machine,
  machine,
  measurePeak,
  pairedRatio,
  quantizeOnNoise,
  relativeError,
  type Times,
  timesOf,
} from './measure.js';
import { alphasOf } from './paper.js';
import { openPeer, type Peer, peerVersion, probe } from './peer.js';
import { framesOf, givenOf, kindOf, optionsIn, roundsOf, share, sizeOf, table, threadsOf } from './table.js';

export interface BenchModelsOptions {
  /** Plain networks, all of pictures or all of videos; their `oct-` namesakes at these alphas are added. */
  readonly networks: readonly string[];
  /** Default: those of the paper. */
  readonly alphas?: readonly number[] | undefined;
  /** Of all of them, beside alpha. */
  readonly options?: NetworkOptions | undefined;
  readonly size: number;
  /** Of a video network; default: as many as it is made for. */
  readonly frames?: number | undefined;
  readonly dtypes: readonly ComputeType[];
  readonly batches: readonly number[];
  readonly threads: readonly number[];
  readonly rounds: number;
  readonly device?: ModelOptions['device'];
  readonly progress?: (text: string) => void;
}

/** The best that onnxruntime can do beside it: on CPUs it has neither bf16 nor f16. */
export const peerDTypes = { f32: 'f32', bf16: 'f32', f16: 'f32', i8: 'i8' } as const;

export interface ModelRow extends Goal {
  readonly network: string;
  /** Absent for the plain network. */
  readonly alpha?: number | undefined;
  readonly dtype: ComputeType;
  readonly peerDType: ComputeType;
  readonly batch: number;
  readonly threads: number;
  /** Multiply-adds of one image or clip, in G. */
  readonly gmadds: number;
  /** Milliseconds per image or clip. */
  readonly ours: Times;
  readonly theirs: Times;
  /** What our fastest round reaches, also as a share of the measured peak of f32. */
  readonly gflops: number;
  readonly ofPeak: number;
  /** Paired medians: ours to onnxruntime's same network, to its plain one, and to our plain one. */
  readonly ratio: number;
  readonly ratioToPlain: number;
  readonly ratioToOurPlain: number;
  /** Multiply-adds to those of the plain network. */
  readonly flopRatio: number;
}

export interface ModelsResult {
  readonly bench: 'models';
  readonly machine: Machine;
  /** Version of onnxruntime-node. */
  readonly peer: string;
  /** Those that were given, of all networks; absent where none was. */
  readonly options?: NetworkOptions | undefined;
  readonly size: number;
  /** Absent for images. */
  readonly frames?: number | undefined;
  readonly rounds: number;
  /** GFLOP/s of f32 by thread count. */
  readonly peak: { readonly [threads: number]: number };
  readonly rows: readonly ModelRow[];
}

/** What is timed at once, since models and sessions take much memory. */
interface Group {
  readonly dtype: ComputeType;
  readonly batch: number;
  readonly threads: number;
}

/** Largest error of the logits that counts as equal: of f32 relative to the largest, else by the angle. */
const tolerances = { f32: 1e-4, bf16: 1e-4, f16: 1e-4, i8: 1e-3 } as const;

/** @throws OctconvError if a network's results differ from the reference, from our f32, or from onnxruntime. */
export async function benchModels(options: BenchModelsOptions): Promise<ModelsResult> {
  const { size, rounds } = options;
  const families = once(options.networks).map((network) => netsOf(network, options));
  const shapes = families.map(([{ shape }]) => shape);
  const [shape = [], ...others] = shapes;
  if (others.some((other) => other.join() !== shape.join()))
    throw new OctconvError(`bench: inputs of ${shapes.map((one) => `[${one}]`).join(' and ')}, wanted one shape`);
  const frames = framesOf(shape);
  const peer = await peerVersion();
  const peak: Record<number, number> = {};
  const rows: Omit<ModelRow, 'ofPeak'>[] = [];
  for (const nets of families) rows.push(...(await benchFamily(nets, options, peak)));
  const given = givenOf(options.options);
  const complete = rows.map((row) => ({
    ...row,
    ofPeak: row.gflops / (peak[row.threads] ?? NaN),
    ...(given ? {} : goalOf(shape, row)),
  }));
  return { bench: 'models', machine: machine(), peer, options: given, size, frames, rounds, peak, rows: complete };
}

/** What is given twice is measured once. */
const once = <T>(values: readonly T[]): T[] => [...new Set(values)];

/** A plain network, and its octave forms. */
type Nets = readonly [plain: Net, ...octave: Net[]];

function netsOf(network: string, { alphas, options = {}, size, frames }: BenchModelsOptions): Nets {
  const plain = new Net(network, options, size, frames);
  const octave = octaveForm(network);
  if (octave === undefined) {
    throw new OctconvError(`bench: network '${network}', wanted the plain one, to which its octave forms are added`);
  }
  const octaves = once(alphas ?? alphasOf(network)).map(
    (alpha) => new Net(octave, { ...options, alpha }, size, plain.frames),
  );
  return [plain, ...octaves];
}

/** `peak` by threads is the best that was measured at any time. */
async function benchFamily(
  nets: Nets,
  { dtypes, batches, threads, rounds, device, progress }: BenchModelsOptions,
  peak: Record<number, number>,
): Promise<Omit<ModelRow, 'ofPeak'>[]> {
  for (const net of nets) {
    progress?.(`checking ${net.title} against the reference`);
    await checkAgainstReference(net, { device });
  }
  const [plain] = nets;
  const rows: Omit<ModelRow, 'ofPeak'>[] = [];
  const groups = once(dtypes).flatMap((dtype) =>
    once(batches).flatMap((batch) => once(threads).map((count): Group => ({ dtype, batch, threads: count }))),
  );
  for (const group of groups) {
    const { dtype, batch, threads } = group;
    const say = (text: string) => progress?.(`${plain.name}, ${dtype}, batch ${batch}, ${threadsOf(threads)}: ${text}`);
    const x = plain.input(batch);
    const subjects: Subject[] = [];
    try {
      peak[threads] = Math.max(peak[threads] ?? 0, await measurePeak(threads)); // threads may share a core for a while
      for (const net of nets) {
        say(`checking ${net.title} against onnxruntime`);
        subjects.push(await open(net, x, group, device));
      }
      const times = await interleave(
        subjects.flatMap(({ model, peer }) => [() => model.run(x), () => peer.run()]),
        rounds,
        (round) => say(`round ${round} of ${rounds}`),
      );
      const perInput = times.map((all) => timesOf(all.rounds.map((ms) => ms / batch)));
      rows.push(...subjects.map((_, i) => rowOf(subjects, i, perInput, group)));
    } finally {
      for (const { model, peer } of subjects) {
        model.dispose();
        await peer.close();
      }
    }
  }
  return rows;
}

/** A network with random weights, in f32 and, when they are asked for, in i8. */
export class Net {
  readonly network;
  readonly weights: WeightSource;
  /** One input, [1, size, size, 3] or [1, frames, size, size, 3]. */
  readonly shape: Shape;
  #quantized: Promise<{ weights: WeightSource; ranges: Ranges }> | undefined;

  constructor(
    readonly name: string,
    readonly options: NetworkOptions,
    readonly size: number,
    frames?: number,
  ) {
    this.shape = inputShape({ name, options }, { height: size, width: size, frames });
    try {
      this.network = buildNetwork(name, options);
    } catch (error) {
      if (!(error instanceof OctconvError)) throw error;
      throw new OctconvError(`bench: ${this.title}: ${error.message}`); // a layer's message names neither network nor alpha
    }
    this.weights = initialize(this.network);
  }

  /** Of a clip; undefined for images. */
  get frames(): number | undefined {
    return framesOf(this.shape);
  }

  /** Inputs without structure. */
  input(batch: number): Tensor<'f32'> {
    return fill(Tensor.zeros('f32', this.shape.with(0, batch)));
  }

  get title(): string {
    return this.options.alpha === undefined ? this.name : `${this.name} alpha ${this.options.alpha}`;
  }

  /** What a model folder of it says beside the weights. */
  get described() {
    const options = resolveNetworkOptions(this.name, this.options);
    const usual = pictureInput(this.name, { input: defaultInputOf(this.name, options), options });
    const { size, frames } = this;
    const input = { ...usual, ...(frames && { frames }), height: size, width: size, resize: size };
    const labels = Array.from({ length: options.classes }, (_, i) => `class ${i}`);
    return { config: { network: this.name, options, input }, labels };
  }

  /** The i8 weights, and what onnxruntime is told beside them. */
  quantized() {
    this.#quantized ??= this.#quantize();
    return this.#quantized;
  }

  async #quantize() {
    const x = this.input(1);
    const weights = await quantizeOnNoise(this.network, this.weights, this.shape);
    return { weights, ranges: await probe(record(this.network, x.shape), readerOf(weights), [x]) };
  }
}

interface Subject {
  readonly net: Net;
  readonly model: Model;
  readonly peer: Peer;
  readonly gmadds: number;
}

/** `times` has ours and onnxruntime's of each subject; the first subject is the plain network. */
function rowOf(subjects: readonly Subject[], i: number, times: Times[], group: Group): Omit<ModelRow, 'ofPeak'> {
  const [ourPlain, theirPlain] = times;
  const [ours, theirs] = times.slice(2 * i);
  const [plain, subject] = [subjects[0], subjects[i]];
  if (!ourPlain || !theirPlain || !ours || !theirs || !plain || !subject) {
    throw new OctconvError('bench: a network was not timed');
  }
  const { net, gmadds } = subject;
  const gflops = (2e3 * gmadds) / ours.min;
  return {
    network: net.name,
    alpha: net.options.alpha,
    ...group,
    peerDType: peerDTypes[group.dtype],
    gmadds,
    ours,
    theirs,
    gflops,
    ratio: pairedRatio(ours, theirs),
    ratioToPlain: pairedRatio(ours, theirPlain),
    ratioToOurPlain: pairedRatio(ours, ourPlain),
    flopRatio: gmadds / plain.gmadds,
  };
}

/** At a size that the slow loops can do, odd so that all borders are met. */
async function checkAgainstReference({ name, options, title, frames }: Net, modelOptions: ModelOptions): Promise<void> {
  const size = { height: 61, width: 45, frames: frames && 5 };
  const x = fill(Tensor.zeros('f32', inputShape({ name, options }, size)));
  const narrow = { ...options, ...narrowed(name, 16) };
  using model = createModel(name, narrow, modelOptions);
  using reference = createModel(name, narrow, { device: 'reference' });
  expectEqual(`${title} and the reference`, 'f32', await model.run(x), await reference.run(x));
}

async function open(net: Net, x: Tensor<'f32'>, group: Group, device: ModelOptions['device']): Promise<Subject> {
  const { dtype, batch, threads } = group;
  const { weights, ranges } = dtype === 'i8' ? await net.quantized() : { weights: net.weights };
  const model = new Model(net.network, weights, { device, threads, dtype });
  const logits = await model.run(x);
  if (dtype !== 'f32') {
    using float = new Model(net.network, net.weights, { device, threads });
    expectEqual(`${net.title} in ${dtype} and in f32`, dtype, logits, await float.run(x));
  }
  const graph = model.record(x.shape);
  const peer = await openPeer(graph, readerOf(weights), [x], threads, ranges);
  // Without VNNI onnxruntime's sums of two products overflow.
  const lenient = dtype === 'i8' && !/vnni|bf16/.test(devices().isa) ? 5 : 1;
  expectEqual(`${net.title} and onnxruntime`, dtype, logits, await peer.run(), lenient);
  return { net, model, peer, gmadds: countFlops(graph).multiplyAdds / batch / 1e9 };
}

function expectEqual(what: string, dtype: ComputeType, got: Tensor<'f32'>, wanted: Tensor<'f32'>, lenient = 1): void {
  const error = (dtype === 'f32' ? relativeError : angularError)(got.data, wanted.data);
  const limit = lenient * tolerances[dtype];
  if (!(error < limit)) throw new OctconvError(`bench: ${what} differ by ${error}, wanted less than ${limit}`);
}

export function modelsTable({ rows, peak, machine, peer, options, size, frames, rounds }: ModelsResult): string {
  const goals = rows.some(({ goal }) => goal !== undefined);
  const most = rows.some(({ ofOurPlain }) => ofOurPlain !== undefined);
  const head = ['network', 'alpha', 'batch', 'thr', 'dtype', 'GMAdd', 'ours min', 'ours median', 'GFLOP/s', 'of peak'];
  head.push('ort', 'ort min', 'ort median', '/ort', '/ort plain', ...(goals ? ['floor', 'goal'] : []));
  head.push('/our plain', ...(most ? ['at most'] : []), 'FLOP ratio');
  const drop = [
    'ours median',
    'ort median',
    'GFLOP/s',
    'ort',
    'of peak',
    'GMAdd',
    '/our plain',
    'at most',
    'FLOP ratio',
    'floor',
    'goal',
  ];
  const ratio = (value: number | undefined) => value?.toFixed(2) ?? '';
  const kind = kindOf(frames);
  const ms = (value: number) => value.toFixed(value < 1 ? 3 : 2);
  const lines = rows.map((row) => [
    row.network,
    String(row.alpha ?? 'plain'),
    String(row.batch),
    String(row.threads),
    row.dtype,
    row.gmadds.toFixed(2),
    ms(row.ours.min),
    ms(row.ours.median),
    row.gflops.toFixed(0),
    share(row.ofPeak),
    row.peerDType,
    ms(row.theirs.min),
    ms(row.theirs.median),
    ...[row.ratio, row.ratioToPlain, ...(goals ? [row.floor, row.goal] : [])].map(ratio),
    ...[row.ratioToOurPlain, ...(most ? [row.ofOurPlain] : []), row.flopRatio].map(ratio),
  ]);
  const peaks = Object.entries(peak).map(([count, gflops]) => `${threadsOf(count)} ${gflops.toFixed(0)}`);
  return [
    `${machine.cpu}, ${machine.isa}; measured peak of f32, GFLOP/s: ${peaks.join(', ')}; ort: onnxruntime-node ${peer}`,
    `${sizeOf({ size, frames })}, ${optionsIn(options)}${roundsOf(rounds, 'interleaved ')}, random weights, ms per ${kind}, ratios (/ort: ours to it) are paired medians`,
    ...(goals ? ['floor, goal: what this project wants of /ort plain'] : []),
    ...elsewhere(machine, rows),
    '',
    table(head, lines, { drop }),
  ].join('\n');
}
