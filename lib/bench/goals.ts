/** What is wanted: our time as a share of that of onnxruntime's plain network, and memory. */
import type { ComputeType } from '../graph/graph.js';
import { splitName } from '../models/family.js';
import type { Shape } from '../tensor.js';
import type { Machine } from './measure.js';
import type { ModelRow } from './models.js';

export interface Goal {
  /** What it must not miss. */
  readonly floor?: number | undefined;
  readonly goal?: number | undefined;
  /** The most that it may take of the time of our own plain network. */
  readonly ofOurPlain?: number | undefined;
  /** The level of lib/devices.ts that they are meant for; absent: any. */
  readonly goalIsa?: string | undefined;
}

const forImages = 'avx512bf16';

/** A line that says so if goals are meant for another machine. */
export function elsewhere({ isa }: Machine, goals: readonly (Pick<Goal, 'goalIsa'> | undefined)[]): string[] {
  const other = goals.some((goal) => goal?.goalIsa !== undefined && goal.goalIsa !== isa);
  return other ? [`goals are for AVX-512 with VNNI and BF16; this machine is ${isa}`] : [];
}

/** Batch and threads of each column. */
const columns = ['1 1', '1 2', '8 1', '8 2'];
type Shares = readonly [batch1: number, number, batch8?: number, number?];
const all = (share: number): Shares => [share, share, share, share];
const single = (share: number): Shares => [share, share];

interface GoalRow extends Pick<ModelRow, 'network' | 'dtype' | 'alpha'> {
  readonly floor?: Shares;
  readonly goal?: Shares;
  readonly ofOurPlain?: number;
}

const rows: readonly GoalRow[] = [
  { network: 'resnet-50', dtype: 'f32', goal: [0.88, 0.86, 0.82, 0.82] },
  { network: 'resnet-50', dtype: 'f32', alpha: 0.125, floor: [0.8, 0.8, 0.75, 0.78], goal: [0.68, 0.69, 0.66, 0.66] },
  { network: 'resnet-50', dtype: 'f32', alpha: 0.5, floor: [0.58, 0.58, 0.5, 0.5], goal: [0.47, 0.48, 0.43, 0.43] },
  { network: 'resnet-50', dtype: 'bf16', alpha: 0.5, floor: [0.34, 0.35, 0.31, 0.32], goal: [0.29, 0.29, 0.28, 0.28] },
  { network: 'resnet-50', dtype: 'i8', alpha: 0.125, goal: [0.78, 0.74, 0.76, 0.76] },
  { network: 'resnet-50', dtype: 'i8', alpha: 0.5, floor: [0.67, 0.6, 0.58, 0.58], goal: [0.52, 0.48, 0.5, 0.5] },
  { network: 'se-resnet-v2-50', dtype: 'f32', alpha: 0.5, goal: all(0.58) },
  { network: 'densenet-121', dtype: 'f32', alpha: 0.25, floor: all(0.75), goal: all(0.65) },
  { network: 'resnext-v2-50', dtype: 'f32', goal: all(0.85) },
  { network: 'resnext-v2-50', dtype: 'f32', alpha: 0.5, floor: all(0.5), goal: all(0.45) },
  { network: 'mobilenet-v1', dtype: 'f32', floor: all(1), goal: all(0.8) },
  { network: 'mobilenet-v1', dtype: 'f32', alpha: 0.5, floor: all(0.6), goal: all(0.5) },
  { network: 'mobilenet-v2', dtype: 'f32', floor: all(1), goal: all(0.8) },
  { network: 'mobilenet-v2', dtype: 'f32', alpha: 0.375, floor: all(0.8), goal: all(0.65) },
  { network: 'resnet-152-v1f', dtype: 'f32', alpha: 0.125, floor: all(0.75), goal: all(0.7) },
  { network: 'i3d-50', dtype: 'f32', floor: single(0.66), goal: single(0.58) },
  { network: 'i3d-50', dtype: 'f32', alpha: 0.1, floor: single(0.56), goal: single(0.5) },
  { network: 'i3d-50', dtype: 'f32', alpha: 0.125, floor: single(0.56), goal: single(0.5) },
  { network: 'i3d-50', dtype: 'f32', alpha: 0.25, floor: single(0.5), goal: single(0.44) },
  { network: 'i3d-50', dtype: 'f32', alpha: 0.5, floor: single(0.42), goal: single(0.35) },
  { network: 'i3d-50', dtype: 'bf16', alpha: 0.5, goal: single(0.26) },
  { network: 'i3d-50', dtype: 'i8', alpha: 0.5, ofOurPlain: 0.52 },
];

const plainOf = (network: string): string => splitName(network).plain;
/** Their goals are for any level of lib/devices.ts, and in i8 what multiply-adds promise. */
const onAnyLevel = new Set(['resnext-v2-50', 'mobilenet-v1', 'mobilenet-v2', 'resnet-152-v1f']);
const isVideo = (network: string) => plainOf(network) === 'i3d-50';
/** Goals are for images of 224 px, and for clips of 8 such frames. */
const fits = (network: string, shape: Shape) =>
  shape.slice(1, -1).join() === (isVideo(network) ? '8,224,224' : '224,224');

/** @param shape of one input */
export function goalOf(
  shape: Shape,
  row: Pick<ModelRow, 'network' | 'dtype' | 'alpha' | 'batch' | 'threads' | 'flopRatio'>,
): Goal {
  const { network, dtype, alpha, batch, threads, flopRatio } = row;
  if (!fits(network, shape)) return {};
  const found = rows.find((r) => r.network === plainOf(network) && r.dtype === dtype && r.alpha === alpha);
  const column = columns.indexOf(`${batch} ${threads}`);
  // What multiply-adds promise, and a little for what comes between them.
  const promised = alpha === undefined ? undefined : flopRatio + 0.06;
  const isOnAny = onAnyLevel.has(plainOf(network));
  const floor = found?.floor?.[column];
  const goal = found?.goal?.[column] ?? (isOnAny && dtype === 'i8' && column >= 0 ? promised : undefined);
  const { ofOurPlain = isVideo(network) ? promised : undefined } = found ?? {};
  const isBound = !isOnAny && !(isVideo(network) && dtype === 'f32');
  const goalIsa = goal !== undefined && isBound ? forImages : undefined;
  return { floor, goal, ofOurPlain, goalIsa };
}

export interface MemoryGoal extends Pick<Goal, 'goalIsa'> {
  /** MiB */
  readonly peak: number;
  readonly milliseconds?: number;
}

const peaks: { readonly [dtype in ComputeType]?: number } = { f32: 260, bf16: 150, i8: 110 };

/** Of Oct-ResNet-50, alpha .5, and of I3D-50 in any form. @param shape of one input */
export function memoryGoalOf(
  shape: Shape,
  { network, dtype, alpha }: { network: string; dtype: ComputeType; alpha: number },
): MemoryGoal | undefined {
  if (!fits(network, shape)) return undefined;
  if (isVideo(network)) return dtype === 'f32' ? { peak: 350 } : undefined;
  const peak = network === 'oct-resnet-50' && alpha === 0.5 ? peaks[dtype] : undefined;
  return peak === undefined ? undefined : { peak, milliseconds: 400, goalIsa: forImages };
}
