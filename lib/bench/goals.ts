/** What is wanted of ResNet-50 at 224 px: our time as a share of that of onnxruntime's plain network. */
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
const rows: readonly { dtype: string; alpha?: number; floor?: Shares; goal: Shares }[] = [
  { dtype: 'f32', goal: [0.88, 0.86, 0.82, 0.82] },
  { dtype: 'f32', alpha: 0.125, floor: [0.8, 0.8, 0.75, 0.78], goal: [0.68, 0.69, 0.66, 0.66] },
  { dtype: 'f32', alpha: 0.5, floor: [0.58, 0.58, 0.5, 0.5], goal: [0.47, 0.48, 0.43, 0.43] },
  { dtype: 'bf16', alpha: 0.5, floor: [0.34, 0.35, 0.31, 0.32], goal: [0.29, 0.29, 0.28, 0.28] },
  { dtype: 'i8', alpha: 0.125, goal: [0.78, 0.74, 0.76, 0.76] },
  { dtype: 'i8', alpha: 0.5, floor: [0.67, 0.6, 0.58, 0.58], goal: [0.52, 0.48, 0.5, 0.5] },
];

export function goalOf(size: number, row: Pick<ModelRow, 'network' | 'dtype' | 'alpha' | 'batch' | 'threads'>): Goal {
  if (size !== 224 || !/^(oct-)?resnet-50$/.test(row.network)) return {};
  const column = columns.indexOf(`${row.batch} ${row.threads}`);
  const { floor, goal } = rows.find(({ dtype, alpha }) => dtype === row.dtype && alpha === row.alpha) ?? {};
  return { floor: floor?.[column], goal: goal?.[column] };
}
