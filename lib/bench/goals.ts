/** What is wanted at 224 px: our time as a share of that of onnxruntime's plain network. */
import type { ModelRow } from './models.js';

export interface Goal {
  /** What it must not miss. */
  readonly floor?: number | undefined;
  readonly goal?: number | undefined;
}

/** The level of lib/devices.ts that they are meant for, and what it has. */
export const goalsIsa = 'avx512bf16';
export const goalsMachine = 'AVX-512 with VNNI and BF16';

/** Batch and threads of each column. */
const columns = ['1 1', '1 2', '8 1', '8 2'];
type Shares = readonly [number, number, number, number];
const all = (share: number): Shares => [share, share, share, share];
const rows: readonly { network: string; dtype: string; alpha?: number; floor?: Shares; goal: Shares }[] = [
  { network: 'resnet-50', dtype: 'f32', goal: [0.88, 0.86, 0.82, 0.82] },
  { network: 'resnet-50', dtype: 'f32', alpha: 0.125, floor: [0.8, 0.8, 0.75, 0.78], goal: [0.68, 0.69, 0.66, 0.66] },
  { network: 'resnet-50', dtype: 'f32', alpha: 0.5, floor: [0.58, 0.58, 0.5, 0.5], goal: [0.47, 0.48, 0.43, 0.43] },
  { network: 'resnet-50', dtype: 'bf16', alpha: 0.5, floor: [0.34, 0.35, 0.31, 0.32], goal: [0.29, 0.29, 0.28, 0.28] },
  { network: 'resnet-50', dtype: 'i8', alpha: 0.125, goal: [0.78, 0.74, 0.76, 0.76] },
  { network: 'resnet-50', dtype: 'i8', alpha: 0.5, floor: [0.67, 0.6, 0.58, 0.58], goal: [0.52, 0.48, 0.5, 0.5] },
  { network: 'se-resnet-v2-50', dtype: 'f32', alpha: 0.5, goal: all(0.58) },
  { network: 'densenet-121', dtype: 'f32', alpha: 0.25, floor: all(0.75), goal: all(0.65) },
];

export function goalOf(size: number, row: Pick<ModelRow, 'network' | 'dtype' | 'alpha' | 'batch' | 'threads'>): Goal {
  const column = columns.indexOf(`${row.batch} ${row.threads}`);
  const network = row.network.replace(/^oct-/, '');
  const { floor, goal } =
    rows.find((r) => size === 224 && r.network === network && r.dtype === row.dtype && r.alpha === row.alpha) ?? {};
  return { floor: floor?.[column], goal: goal?.[column] };
}
