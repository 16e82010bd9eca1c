/** How fast the CUDA kernels would be by a roofline (Williams et al., 2009), from what their plans say. Nothing is run. */
import { costsOf } from '../costs.js';
import { OctconvError } from '../error.js';
import type { ComputeType } from '../graph/graph.js';
import { registersOf } from '../kernels.js';
import { Model } from '../model.js';
import { buildNetwork, inputShape, type NetworkOptions, octaveForm } from '../models/index.js';
import type { Launch } from '../native.js';
import type { Plan } from '../plan.js';
import { initialize } from '../weights/random.js';
import { type Gpu, type GpuName, gpus } from './gpus.js';
import { framesOf, givenOf, optionsIn, share, sizeOf, table } from './table.js';

export interface EstimateOptions {
  readonly gpu: GpuName;
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
  readonly progress?: ((text: string) => void) | undefined;
}

/** What nobody here has measured. */
export const assumptions = {
  /** Of its roofline that cuDNN reaches on plain ResNet-50, and so that these kernels reach. */
  efficiency: 0.72,
  /** From the end of a kernel in a CUDA graph to the begin of the next. */
  launchMicroseconds: 1.5,
  /** From L2 into a multiprocessor, as reached: on H100 PCIe others measured some 5.6 TB/s in all. */
  bytesPerClock: 32,
  /** Products of mma.sync, which these kernels use, to those of wgmma and tcgen05, which cuDNN uses. */
  mmaShare: { sm_90: 0.62, sm_100: 0.31 } as Readonly<Record<string, number>>,
} as const;

/** Milliseconds. */
export interface Time {
  readonly total: number;
  /** Of the total what steps take that are bound by bytes of memory, by bytes from L2, by products. */
  readonly memory: number;
  readonly l2: number;
  readonly products: number;
  /** What it takes more that the busiest multiprocessor has more to do than the mean. */
  readonly waves: number;
  readonly gaps: number;
  /** If tiles, waves and L2 lost nothing. */
  readonly lossless: number;
}

export interface EstimateRow extends Time {
  readonly network: string;
  /** Absent for the plain network. */
  readonly alpha?: number | undefined;
  readonly dtype: ComputeType;
  readonly batch: number;
  readonly kernels: number;
  /** The plain network by cuDNN. */
  readonly cudnn: number;
  /** How many times faster than that it is, if nothing is lost, and should be. */
  readonly speedup: number;
  readonly losslessSpeedup: number;
  readonly goal?: number | undefined;
}

export interface EstimateResult {
  readonly bench: 'cuda estimate';
  readonly gpu: Gpu;
  /** Those that were given, of all networks; absent where none was. */
  readonly options?: NetworkOptions | undefined;
  readonly size: number;
  /** Of a clip; absent of images. */
  readonly frames?: number | undefined;
  readonly assumptions: typeof assumptions;
  readonly rows: readonly EstimateRow[];
}

/** Of ResNet-50 at 224 px in bf16 and batch 32; at batch 1 nothing should be slower than plain cuDNN. */
const goals: { readonly [gpu in GpuName]?: Readonly<Record<number, number>> } = {
  h100: { 0.5: 1.47, 0.25: 1.21, 0.125: 1.08 },
  a100: { 0.5: 1.57, 0.25: 1.26, 0.125: 1.12 },
};

// --- One launch -----------------------------------------------------------------------------------------------------

/** Blocks of a kernel that a multiprocessor has at a time. */
export function blocksAtATime(gpu: Gpu, { threads, sharedBytes }: Launch, registers: number): number {
  const warps = Math.ceil(threads / 32);
  const byRegisters = Math.floor(65536 / (Math.ceil((registers * 32) / 256) * 256 * warps));
  const byShared = Math.floor(gpu.sharedKiB / (sharedBytes / 1024 + 1)); // 1 KiB of each is the driver's
  return Math.max(1, Math.min(byRegisters, byShared, Math.floor(gpu.threads / threads), gpu.blocks));
}

/** Blocks that the busiest multiprocessor computes: whole waves, and its share of the last one. */
export function blocksOfBusiest({ multiprocessors }: Gpu, blocks: number, atATime: number): number {
  const waves = Math.floor(blocks / (multiprocessors * atATime));
  return waves * atATime + Math.ceil((blocks - waves * multiprocessors * atATime) / multiprocessors);
}

/** What bounds a launch or a step, in milliseconds. */
export interface Bounds {
  readonly memory: number;
  readonly l2: number;
  readonly products: number;
}

const l2Time = (gpu: Gpu, bytes: number) =>
  bytes / (assumptions.bytesPerClock * gpu.gigahertz * gpu.multiprocessors * 1e6);

/** Of products and bytes from L2, if all multiprocessors have the same to do. */
export const boundsOf = (gpu: Gpu, launch: Launch, dtype: ComputeType): Omit<Bounds, 'memory'> => ({
  products: (2 * launch.multiplyAdds) / (1e9 * ourTeraflops(gpu, dtype) * assumptions.efficiency),
  l2: l2Time(gpu, launch.operandBytes),
});

/** How much more than the mean the busiest multiprocessor has to do. */
export const unevenness = (gpu: Gpu, launch: Launch, registers: number): number =>
  (blocksOfBusiest(gpu, launch.blocks, blocksAtATime(gpu, launch, registers)) * gpu.multiprocessors) / launch.blocks;

function teraflopsOf({ name, teraflops }: Gpu, dtype: ComputeType): number {
  const found = teraflops[dtype];
  if (found === undefined) throw new OctconvError(`bench: ${name} has no tensor cores for ${dtype} in this table`);
  return found;
}
const ourTeraflops = (gpu: Gpu, dtype: ComputeType) =>
  teraflopsOf(gpu, dtype) * (assumptions.mmaShare[gpu.architecture] ?? 1);

// --- A plan ---------------------------------------------------------------------------------------------------------

const sum = (numbers: readonly number[]) => numbers.reduce((a, b) => a + b, 0);

const memoryTime = (gpu: Gpu, bytes: number) => bytes / (gpu.bandwidth * 1e9 * assumptions.efficiency);

/** Of each step: every byte moved once. */
const valuesTimes = (gpu: Gpu, plan: Plan) =>
  costsOf(plan).map(({ bytes }) => memoryTime(gpu, bytes.inputs + bytes.outputs + bytes.weights));

/** Written and read once: in L2 if it fills at most half of it, otherwise in memory. */
function scratchTimes(gpu: Gpu, bytes: number): Omit<Bounds, 'products'> {
  const inL2 = 2 * bytes <= gpu.l2MiB * 2 ** 20;
  return inL2 ? { memory: 0, l2: l2Time(gpu, 2 * bytes) } : { memory: memoryTime(gpu, 2 * bytes), l2: 0 };
}

/** Of one run. */
export function timeOf(
  gpu: Gpu,
  plan: Plan,
  dtype: ComputeType,
  registers: Readonly<Record<string, number>> = registersOf(plan.target) ?? {},
): Time {
  const values = valuesTimes(gpu, plan);
  const flops = costsOf(plan).map(({ multiplyAdds }) => 2 * multiplyAdds);
  const time = { memory: 0, l2: 0, products: 0, waves: 0, gaps: 0, lossless: 0 };
  for (const [i, { launches, scratchBytes }] of plan.infos.entries()) {
    const tiled = launches.filter(({ tile }) => tile);
    const each = tiled.map((launch) => {
      const count = registers[launch.kernel];
      if (count === undefined)
        throw new OctconvError(
          `bench: an estimate needs to know the registers of ${launch.kernel}: npm run build:cuda tells them, without a GPU`,
        );
      const { l2, products } = boundsOf(gpu, launch, dtype);
      return { l2, products, uneven: Math.max(l2, products) * unevenness(gpu, launch, count) };
    });
    const scratch = scratchTimes(gpu, scratchBytes ?? 0);
    const step: Bounds = {
      memory: (values[i] ?? 0) + scratch.memory,
      l2: sum(each.map(({ l2 }) => l2)) + scratch.l2,
      products: sum(each.map(({ products }) => products)),
    };
    const by = (['memory', 'products', 'l2'] as const).reduce((a, b) => (step[b] > step[a] ? b : a));
    time[by] += step[by];
    time.waves += Math.max(0, sum(each.map(({ uneven }) => uneven)) - step[by]);
    const gap = (launches.length * assumptions.launchMicroseconds) / 1e3;
    time.gaps += gap;
    const products = (flops[i] ?? 0) / (1e9 * ourTeraflops(gpu, dtype) * assumptions.efficiency);
    time.lossless += Math.max(step.memory, products) + gap;
  }
  return { ...time, total: time.memory + time.l2 + time.products + time.waves + time.gaps };
}

/** Plain convolutions by cuDNN, with the same fused epilogues: a kernel for each step of our plan. */
export function cudnnTimeOf(gpu: Gpu, plan: Plan, dtype: ComputeType): number {
  const values = valuesTimes(gpu, plan);
  const times = costsOf(plan).map(({ multiplyAdds }, i) =>
    Math.max(values[i] ?? 0, (2 * multiplyAdds) / (1e9 * teraflopsOf(gpu, dtype) * assumptions.efficiency)),
  );
  return sum(times) + (times.length * assumptions.launchMicroseconds) / 1e3;
}

// --- Networks -------------------------------------------------------------------------------------------------------

export async function estimate(options: EstimateOptions): Promise<EstimateResult> {
  const { network, alphas, options: networkOptions = {}, size, dtypes, batches, progress } = options;
  const gpu: Gpu = gpus[options.gpu];
  const octave = octaveForm(network);
  if (octave === undefined) {
    throw new OctconvError(`bench: network '${network}', wanted the plain one, to which its octave forms are added`);
  }
  const shape = inputShape(
    { name: network, options: networkOptions },
    { height: size, width: size, frames: options.frames },
  );
  const nets: { name: string; options: NetworkOptions }[] = [
    { name: network, options: networkOptions },
    ...alphas.map((alpha) => ({ name: octave, options: { ...networkOptions, alpha } })),
  ];
  const rows: Omit<EstimateRow, 'cudnn' | 'speedup' | 'losslessSpeedup' | 'goal'>[] = [];
  const cudnn = new Map<string, number>();
  for (const { name, options } of nets)
    for (const dtype of dtypes) {
      progress?.(`planning ${name} ${options.alpha === undefined ? '' : `alpha ${options.alpha} `}in ${dtype}`);
      const built = buildNetwork(name, options);
      using model = new Model(built, initialize(built), { device: `cuda:${gpu.architecture}`, dtype });
      for (const batch of batches) {
        const plan = await model.plan(shape.with(0, batch));
        const key = `${dtype} ${batch}`;
        if (name === network) cudnn.set(key, cudnnTimeOf(gpu, plan, dtype));
        const kernels = sum(plan.infos.map(({ launches }) => launches.length));
        rows.push({ network: name, alpha: options.alpha, dtype, batch, kernels, ...timeOf(gpu, plan, dtype) });
      }
    }
  const complete = rows.map((row): EstimateRow => {
    const plain = cudnn.get(`${row.dtype} ${row.batch}`) ?? NaN;
    const aimed =
      network === 'resnet-50' &&
      !givenOf(networkOptions) &&
      size === 224 &&
      row.dtype === 'bf16' &&
      row.alpha !== undefined;
    const goal = { 1: 1, 32: goals[options.gpu]?.[row.alpha ?? 0] }[row.batch];
    const speedups = { speedup: plain / row.total, losslessSpeedup: plain / row.lossless };
    return { ...row, cudnn: plain, ...speedups, goal: aimed ? goal : undefined };
  });
  return {
    bench: 'cuda estimate',
    gpu,
    options: givenOf(networkOptions),
    size,
    frames: framesOf(shape),
    assumptions,
    rows: complete,
  };
}

export function estimateTable(result: EstimateResult): string {
  const { gpu, options, assumptions, rows } = result;
  const { efficiency, launchMicroseconds, bytesPerClock, mmaShare } = assumptions;
  const mma = mmaShare[gpu.architecture] ?? 1;
  const { f16, bf16, f32 } = gpu.teraflops;
  const head = ['network', 'alpha', 'dtype', 'batch', 'launches', 'ms', 'cuDNN ms', 'x cuDNN', 'goal', 'lossless'];
  head.push('memory', 'L2', 'mma', 'waves', 'gaps');
  const lines = rows.map((row) => [
    ...[row.network, String(row.alpha ?? 'plain'), row.dtype, String(row.batch), String(row.kernels)],
    ...[row.total.toFixed(3), row.cudnn.toFixed(3), row.speedup.toFixed(2)],
    ...[row.goal?.toFixed(2) ?? '', row.losslessSpeedup.toFixed(2)],
    ...[row.memory, row.l2, row.products, row.waves, row.gaps].map((ms) => share(ms / row.total)),
  ]);
  return [
    'ESTIMATE, nothing here was measured: the roofline of the kernels as they are planned, ms of a run',
    `${gpu.name}, ${optionsIn(options)}${sizeOf(result)}; data sheet: ${gpu.multiprocessors} multiprocessors, ${gpu.bandwidth} TB/s, dense ` +
      `TFLOP/s ${[f16 && `f16 ${f16}`, bf16 && `bf16 ${bf16}`, f32 && `tf32 ${f32}`].filter(Boolean).join(', ')}`,
    'assumed:',
    `- ${share(efficiency)} of the bandwidth of memory and of the peak, by cuDNN and by these kernels`,
    '- a step reads and writes each of its values once in memory; nothing of a step before is still in L2, but what',
    `  its launches leave for each other, if that is at most half of ${gpu.l2MiB} MiB`,
    `- blocks read their operands from L2, ${bytesPerClock} bytes per clock of ${gpu.gigahertz} GHz and multiprocessor`,
    `- products by mma.sync have ${share(mma)} of that peak; what fills up tiles is multiplied too`,
    '- a launch lasts as long as the multiprocessor that has the most blocks',
    `- ${launchMicroseconds} us from launch to launch, in a CUDA graph; no latency beside`,
    '- cuDNN: plain convolutions with fused epilogues at the whole peak; no tiles, no waves, no L2',
    'lossless: x cuDNN if tiles, waves and L2 lost nothing; memory, L2, mma: of the time, steps bound by them;',
    'waves: what the busiest multiprocessor has more to do than the mean; gaps: launches',
    '',
    table(head, lines, { drop: ['launches', 'network', 'cuDNN ms', 'gaps', 'goal'] }),
  ].join('\n');
}
