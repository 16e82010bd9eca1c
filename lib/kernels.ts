/** What nvcc made of the kernels: `octconv.kernels.json` lies beside octconv.fatbin (tools/cuda.mjs). */
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Target } from './devices.js';
import { nativeFile } from './native.js';

/** Registers of a thread, of each kernel; undefined on other devices than GPUs and where the kernels were not built. */
export function registersOf({ traits }: Target): Readonly<Record<string, number>> | undefined {
  const [architecture = ''] = /^sm_\d+/.exec(traits.isa) ?? [];
  try {
    return JSON.parse(readFileSync(join(dirname(nativeFile), 'octconv.kernels.json'), 'utf8'))[architecture];
  } catch {
    return undefined;
  }
}
