/** What nvcc made of the kernels: `octconv.kernels.json` lies beside octconv.fatbin (tools/cuda.mjs). */
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Target } from './devices.js';
import { nativeFile } from './native.js';

/** `sm_90` of a GPU, there or not; undefined of other devices. */
export const architectureOf = ({ traits }: Target): string | undefined => /^sm_\d+/.exec(traits.isa)?.[0];

/** Registers of a thread, of each kernel; undefined on other devices than GPUs and where the kernels were not built. */
export function registersOf(target: Target): Readonly<Record<string, number>> | undefined {
  try {
    const file = join(dirname(nativeFile), 'octconv.kernels.json');
    return JSON.parse(readFileSync(file, 'utf8'))[architectureOf(target) ?? ''];
  } catch {
    return undefined;
  }
}
