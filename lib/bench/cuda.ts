/** Networks on an NVIDIA GPU: plain ones and octave ones from cuDNN parts beside our kernels, round by round. */
import { targetOf } from '../devices.js';
import { OctconvError } from '../error.js';
import type { ComputeType } from '../graph/graph.js';
import { createModel, Model } from '../model.js';
import { inputShape, narrowed, type NetworkOptions, octaveForm } from '../models/index.js';
import { calling, type Device, native } from '../native.js';
import type { Plan } from '../plan.js';
import { type Shape, Tensor } from '../tensor.js';
import { fill, type Machine, machine, median, pairedRatio, relativeError, type Times, timesOf } from './measure.js';
import { Net } from './models.js';
import { framesOf, givenOf, optionsIn, roundsOf, sizeOf, table } from './table.js';

export interface BenchCudaOptions {
  /** `cuda`, or of several GPUs one by its number. */
  readonly device: Device;
  /** The plain network; its `oct-` namesakes at these alphas are added. */
  readonly network: string;
  readonly alphas: readonly number[];
  /** Of all of them, beside alpha. */
  readonly options?: NetworkOptions | undefined;
  readonly size: number;
  /** Of a clip, of a video network. */
  readonly frames?: number | undefined;
  readonly dtypes: readonly ComputeType[];
  readonly batches: readonly number[];
  readonly rounds: number;
  readonly progress?: ((text: string) => void) | undefined;
}

/** What is timed: a network by one device. */
interface Form {
  readonly net: Net;
  readonly by: 'cuDNN' | 'octconv';
  readonly device: Device;
  readonly cudaGraphs: boolean;
}

export interface CudaRow {
  readonly network: string;
  /** Absent for the plain network. */
  readonly alpha?: number | undefined;
  readonly by: Form['by'];
  readonly cudaGraphs: boolean;
  readonly dtype: ComputeType;
  readonly batch: number;
  /** Why it was not timed. */
  readonly why?: string | undefined;
  /** Milliseconds of a run: of the kernels, by events; and from call to result, with copies. */
  readonly kernels?: Times | undefined;
  readonly whole?: Times | undefined;
  /** Paired medians of the kernels' time to that of the plain network, by cuDNN and by octconv, both with graphs or not. */
  readonly toCudnn?: number | undefined;
  readonly toOurPlain?: number | undefined;
}

export interface CudaResult {
  readonly bench: 'cuda';
  readonly machine: Machine;
  readonly gpu: string;
  /** Those that were given, of all networks; absent where none was. */
  readonly options?: NetworkOptions | undefined;
  readonly size: number;
  /** Of a clip; absent of images. */
  readonly frames?: number | undefined;
  readonly rounds: number;
  /** What the GPU said of its clocks, temperature and power. */
  readonly before: Readonly<Record<string, number>>;
  readonly after: Readonly<Record<string, number>>;
  readonly rows: readonly CudaRow[];
}

/** Each round runs a network again and again for so long; the round's time is the median. */
const leastMilliseconds = 50;

/** @throws OctconvError if there is no such GPU. */
export async function benchCuda(options: BenchCudaOptions): Promise<CudaResult> {
  const { device, network, alphas, options: networkOptions = {}, size, dtypes, batches, rounds, progress } = options;
  const gpu = targetOf(device).traits.isa;
  const octave = octaveForm(network);
  if (octave === undefined) {
    throw new OctconvError(`bench: network '${network}', wanted the plain one, to which its octave forms are added`);
  }
  const nets = [
    new Net(network, networkOptions, size),
    ...alphas.map((alpha) => new Net(octave, { ...networkOptions, alpha }, size)),
  ];
  const forms = nets.flatMap((net) =>
    [true, false].flatMap((cudaGraphs): Form[] => [
      { net, by: 'cuDNN', device: device.replace(/^cuda/, 'cudnn'), cudaGraphs },
      { net, by: 'octconv', device, cudaGraphs },
    ]),
  );
  const shape = inputShape(
    { name: network, options: networkOptions },
    { height: size, width: size, frames: options.frames },
  );
  const before = calling(() => native.sensors(device));
  const rows: CudaRow[] = [];
  for (const dtype of dtypes) {
    const failed = new Map<Form, string>();
    for (const form of forms.filter(({ cudaGraphs }) => cudaGraphs)) {
      progress?.(`checking ${form.net.title} by ${form.by} in ${dtype} against the reference`);
      const both = forms.filter(({ net, by }) => net === form.net && by === form.by);
      await orWhy(failed, both, () => checkAgainstReference(form, dtype));
    }
    for (const batch of batches) {
      const group = { dtype, batch };
      rows.push(...(await timeGroup(forms, failed, group, shape.with(0, batch), options)));
    }
  }
  const after = calling(() => native.sensors(device));
  return {
    bench: 'cuda',
    machine: machine(),
    gpu,
    options: givenOf(networkOptions),
    size,
    frames: framesOf(shape),
    rounds,
    before,
    after,
    rows,
  };
}

/** The others go on: a run without anybody who watches it measures what can be measured. */
async function orWhy(failed: Map<Form, string>, forms: readonly Form[], work: () => Promise<void>): Promise<void> {
  if (forms.every((form) => failed.has(form))) return;
  try {
    await work();
  } catch (error) {
    for (const form of forms) failed.set(form, (error as Error).message);
  }
}

// --- Checks ---------------------------------------------------------------------------------------------------------

/**
 * What is multiplied is rounded by 2^-11 (TF32, f16) or 2^-8 (bf16) of itself at most, and the errors of layers one after
 * the other add up as steps of a random walk do.
 */
const boundOf = (dtype: ComputeType, layers: number) => (dtype === 'bf16' ? 2 ** -8 : 2 ** -11) * Math.sqrt(layers);

function expectEqual(what: string, got: Tensor<'f32'>, wanted: Tensor<'f32'>, limit: number): void {
  const error = relativeError(got.data, wanted.data);
  if (!(error < limit))
    throw new OctconvError(`${what} differ by ${error.toPrecision(2)}, wanted ${limit.toPrecision(2)}`);
}

const convolutions = (model: Model, shape: readonly number[]) =>
  model.record(shape).nodes.filter(({ op }) => op === 'conv' || op === 'octConv').length;

/** At a size that the slow loops can do, odd so that all borders are met. */
async function checkAgainstReference({ net: { name, options }, device }: Form, dtype: ComputeType): Promise<void> {
  const [height, width, frames] = [61, 45, framesOf(inputShape({ name, options })) && 3];
  const x = fill(Tensor.zeros('f32', inputShape({ name, options }, { height, width, frames })));
  const narrow = { ...options, ...narrowed(name, 16) };
  using model = createModel(name, narrow, { device, dtype });
  using reference = createModel(name, narrow, { device: 'reference' });
  const limit = boundOf(dtype, convolutions(reference, x.shape));
  const wanted = await reference.run(x);
  for (const how of ['', ' with a graph']) // the first run makes none
    expectEqual(`results${how} and those of reference`, await model.run(x), wanted, limit);
}

// --- Times ----------------------------------------------------------------------------------------------------------

interface Subject {
  readonly form: Form;
  readonly model: Model;
  readonly plan: Plan;
  readonly logits: Tensor<'f32'>;
  readonly kernels: number[];
  readonly whole: number[];
}

type Group = Pick<CudaRow, 'dtype' | 'batch'>;

async function timeGroup(
  forms: readonly Form[],
  known: ReadonlyMap<Form, string>,
  group: Group,
  shape: Shape,
  { rounds, progress }: BenchCudaOptions,
): Promise<CudaRow[]> {
  const { dtype, batch } = group;
  const x = fill(Tensor.zeros('f32', shape));
  const failed = new Map(known);
  const subjects = new Map<Form, Subject>();
  try {
    for (const form of forms) {
      progress?.(`${dtype}, batch ${batch}: opening ${form.net.title} by ${form.by}`);
      await orWhy(failed, [form], async () => {
        const model = new Model(form.net.network, form.net.weights, {
          device: form.device,
          cudaGraphs: form.cudaGraphs,
          dtype,
        });
        try {
          const plan = await model.plan(x.shape);
          await plan.run([x]);
          const [logits] = (await plan.run([x])) as [Tensor<'f32'>];
          const other = [...subjects.values()].find(({ form: { net } }) => net === form.net);
          const limit = 2 * boundOf(dtype, convolutions(model, x.shape));
          if (other) expectEqual(`results by ${form.by} and ${other.form.by}`, logits, other.logits, limit);
          subjects.set(form, { form, model, plan, logits, kernels: [], whole: [] });
        } catch (error) {
          model.dispose();
          throw error;
        }
      });
    }
    for (let round = 0; round <= rounds; round++) {
      progress?.(`${dtype}, batch ${batch}: round ${round} of ${rounds}`);
      for (const [form, subject] of subjects)
        await orWhy(failed, [form], async () => {
          const { kernels, whole } = await burst(subject.plan, x);
          if (round === 0) return; // it warms up
          subject.kernels.push(kernels);
          subject.whole.push(whole);
        });
    }
  } finally {
    for (const { model } of subjects.values()) model.dispose();
  }
  const timesFor = (form: Form | undefined, of: 'kernels' | 'whole') => {
    const subject = form && !failed.has(form) ? subjects.get(form) : undefined;
    return subject && timesOf(subject[of]);
  };
  const plain = (like: Form, by: Form['by']) => {
    const same = (form: Form) => form.net === forms[0]?.net && form.by === by && form.cudaGraphs === like.cudaGraphs;
    return timesFor(forms.find(same), 'kernels');
  };
  return forms.map((form) => {
    const { net, by, cudaGraphs } = form;
    const [kernels, whole] = [timesFor(form, 'kernels'), timesFor(form, 'whole')];
    const ratio = (to: Times | undefined) => kernels && to && pairedRatio(kernels, to);
    const times = { kernels, whole, toCudnn: ratio(plain(form, 'cuDNN')), toOurPlain: ratio(plain(form, 'octconv')) };
    return { network: net.name, alpha: net.options.alpha, by, cudaGraphs, ...group, why: failed.get(form), ...times };
  });
}

/** Runs one after the other, so that L2 holds what the run before left in it. */
async function burst(plan: Plan, x: Tensor<'f32'>): Promise<{ kernels: number; whole: number }> {
  const [kernels, whole]: [number[], number[]] = [[], []];
  const end = performance.now() + leastMilliseconds;
  do {
    const stepMilliseconds = new Float32Array(1);
    const start = performance.now();
    await plan.run([x], { stepMilliseconds });
    whole.push(performance.now() - start);
    kernels.push(stepMilliseconds[0] ?? NaN);
  } while (performance.now() < end);
  return { kernels: median(kernels), whole: median(whole) };
}

// --- Output ---------------------------------------------------------------------------------------------------------

export function cudaTable(result: CudaResult): string {
  const { machine, gpu, options, rounds, before, after, rows } = result;
  const head = ['network', 'alpha', 'by', 'graph', 'dtype', 'batch', 'min', 'median', 'whole min', 'whole median'];
  head.push('/cuDNN plain', '/our plain');
  const lines = rows.map(({ network, alpha, by, cudaGraphs, dtype, batch, kernels, whole, toCudnn, toOurPlain }) => [
    ...[network, String(alpha ?? 'plain'), by, cudaGraphs ? 'yes' : 'no', dtype, String(batch)],
    ...[kernels?.min, kernels?.median, whole?.min, whole?.median].map((ms) => ms?.toFixed(3) ?? ''),
    ...[toCudnn, toOurPlain].map((ratio) => ratio?.toFixed(2) ?? ''),
  ]);
  const told = (sensors: CudaResult['before']) =>
    Object.entries(sensors)
      .map(([name, value]) => `${name} ${Math.round(value)}`)
      .join(', ') || 'nothing without NVML';
  const reasons = new Map(rows.flatMap(({ by, network, why }) => (why ? [[`${network} by ${by}: ${why}`, true]] : [])));
  return [
    `${gpu}; ${machine.cpu}`,
    `before: ${told(before)}; after: ${told(after)}`,
    `${sizeOf(result)}, ${optionsIn(options)}random weights, ${roundsOf(rounds, 'interleaved ')} of at least ${leastMilliseconds} ms, L2 warm`,
    'ms of a run: kernels by events, and the whole from call to result with copies; ratios of kernels are paired medians',
    '',
    table(head, lines, { drop: ['whole median', 'median', '/our plain', 'whole min'] }),
    ...reasons.keys(),
  ].join('\n');
}
