/**
 * What GPUs are made of, from NVIDIA's data sheets: H100 SXM, A100 SXM 80 GB, T4, L4, GeForce RTX 4090 (Ada white
 * paper), HGX B200. Products are dense and summed in f32: a data sheet that gives figures with sparsity gives twice as
 * much. Clocks are those at which the multiprocessors reach these products.
 */
import { OctconvError } from '../error.js';
import type { ComputeType } from '../graph/graph.js';

export interface Gpu {
  readonly name: string;
  readonly architecture: string;
  readonly multiprocessors: number;
  readonly gigahertz: number;
  /** Dense products on tensor cores; f32 are TF32. Absent: it has none. */
  readonly teraflops: { readonly [dtype in ComputeType]?: number };
  /** TB/s of its memory. */
  readonly bandwidth: number;
  readonly l2MiB: number;
  /** Of a multiprocessor. */
  readonly sharedKiB: number;
  readonly threads: number;
  readonly blocks: number;
}

const ada = { architecture: 'sm_89', sharedKiB: 100, threads: 1536, blocks: 24 };

export const gpus = {
  h100: {
    name: 'H100 SXM',
    ...{ architecture: 'sm_90', multiprocessors: 132, gigahertz: 1.83, bandwidth: 3.35, l2MiB: 50 },
    ...{ teraflops: { bf16: 989, f16: 989, f32: 494 }, sharedKiB: 228, threads: 2048, blocks: 32 },
  },
  a100: {
    name: 'A100 SXM 80 GB',
    ...{ architecture: 'sm_80', multiprocessors: 108, gigahertz: 1.41, bandwidth: 2.04, l2MiB: 40 },
    ...{ teraflops: { bf16: 312, f16: 312, f32: 156 }, sharedKiB: 164, threads: 2048, blocks: 32 },
  },
  t4: {
    name: 'T4',
    ...{ architecture: 'sm_75', multiprocessors: 40, gigahertz: 1.59, bandwidth: 0.32, l2MiB: 4 },
    ...{ teraflops: { f16: 65 }, sharedKiB: 64, threads: 1024, blocks: 16 },
  },
  l4: {
    name: 'L4',
    ...{ ...ada, multiprocessors: 58, gigahertz: 2.04, bandwidth: 0.3, l2MiB: 48 },
    teraflops: { bf16: 121, f16: 121, f32: 60 },
  },
  rtx4090: {
    name: 'GeForce RTX 4090',
    ...{ ...ada, multiprocessors: 128, gigahertz: 2.52, bandwidth: 1.008, l2MiB: 72 },
    teraflops: { bf16: 165, f16: 165, f32: 82.6 },
  },
  b200: {
    name: 'B200',
    ...{ architecture: 'sm_100', multiprocessors: 148, gigahertz: 1.85, bandwidth: 8, l2MiB: 126 },
    ...{ teraflops: { bf16: 2250, f16: 2250, f32: 1125 }, sharedKiB: 228, threads: 2048, blocks: 32 },
  },
} as const satisfies Record<string, Gpu>;

export type GpuName = keyof typeof gpus;
export const gpuNames = Object.keys(gpus) as GpuName[];

/** By what the driver calls it. @throws OctconvError if it is none of them. */
export function gpuCalled(text: string): GpuName {
  const words = text
    .toLowerCase()
    .replaceAll(/rtx /g, 'rtx')
    .split(/[\s,-]+/);
  // H100 PCIe and A100 40 GB are slower than the sheets of this table say.
  const others = ['pcie', '40gb', 'nvl'].some((word) => words.includes(word));
  const found = others ? undefined : gpuNames.find((name) => words.includes(name));
  if (!found) throw new OctconvError(`bench: no figures of ${text}; wanted --gpu with one of ${gpuNames.join(', ')}`);
  return found;
}
