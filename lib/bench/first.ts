/** What `bench memory` starts in a process of its own: one engine opens one network and runs one image or clip. */
import { readFileSync } from 'node:fs';
import type { InferenceSession } from 'onnxruntime-node';
import type { ComputeType } from '../graph/graph.js';
import { elementCount, type Shape } from '../tensor.js';

export type First = { readonly shape: Shape } & (
  | { readonly folder: string; readonly dtype: ComputeType; readonly threads: number }
  | { readonly onnx: string; readonly session: InferenceSession.SessionOptions }
);

export interface Seen {
  /** From opening the file to the first result. */
  readonly milliseconds: number;
  /**
   * Bytes: the most that was resident, and how much of it before the file was opened, Node.js and the engine's code.
   */
  readonly peak: number;
  readonly before: number;
}

function peak(): number {
  const [, kibi] = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? [];
  return Number(kibi) * 1024;
}

async function first(job: First): Promise<Seen> {
  const data = new Float32Array(elementCount(job.shape)).fill(0.5);
  const run = 'folder' in job ? await octconv(job, data) : await onnxruntime(job, data);
  const before = peak();
  const start = performance.now();
  await run();
  return { milliseconds: performance.now() - start, peak: peak(), before };
}

async function octconv({ folder, dtype, threads, shape }: Extract<First, { folder: string }>, data: Float32Array) {
  const { loadModel } = await import('../index.js');
  return async () => {
    const model = await loadModel(folder, { dtype, threads });
    await model.run({ data, shape });
  };
}

async function onnxruntime({ onnx, session, shape }: Extract<First, { onnx: string }>, data: Float32Array) {
  const { InferenceSession, Tensor } = await import('onnxruntime-node');
  return async () => {
    const network = await InferenceSession.create(onnx, session);
    const [input = ''] = network.inputNames;
    await network.run({ [input]: new Tensor('float32', data, [1, 3, ...shape.slice(1, -1)]) });
  };
}

console.log(JSON.stringify(await first(JSON.parse(process.argv[2] ?? '{}'))));
