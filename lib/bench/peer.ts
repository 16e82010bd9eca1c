/** The peer of all benches: onnxruntime-node on the same network, exported by us. */
import type { InferenceSession } from 'onnxruntime-node';
import { OctconvError } from '../error.js';
import type { Graph } from '../graph/graph.js';
import { type ReadParam, toOnnx } from '../graph/onnx.js';
import { toNCHW } from '../layout.js';
import { Tensor } from '../tensor.js';

export interface Peer {
  /** Runs once; gives the first output, [N, C] or NCHW. */
  run(): Promise<Tensor<'f32'>>;
  close(): Promise<void>;
}

/** It is a development dependency: the package works without it. */
async function onnxruntime() {
  try {
    return await import('onnxruntime-node');
  } catch (error) {
    const why = (error as Error).message.split('\n')[0];
    throw new OctconvError(`bench: it compares with onnxruntime-node (npm install onnxruntime-node): ${why}`);
  }
}

/** @throws OctconvError if there is no onnxruntime-node: before anything is measured. */
export async function peerVersion(): Promise<string> {
  const { env } = await onnxruntime();
  return env.versions.node ?? env.versions.common;
}

/** Its best settings: all optimisations, the batch size known, as many threads as we have. */
export async function openPeer(
  graph: Graph,
  read: ReadParam,
  inputs: readonly Tensor<'f32'>[],
  threads: number,
): Promise<Peer> {
  const ort = await onnxruntime();
  const options: InferenceSession.SessionOptions = {
    graphOptimizationLevel: 'all',
    executionMode: 'sequential',
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    freeDimensionOverrides: { N: inputs[0]?.shape[0] ?? 1 },
    logSeverityLevel: 3,
  };
  const session = await ort.InferenceSession.create(await toOnnx(graph, read), options);
  const feeds = Object.fromEntries(
    session.inputNames.map((name, i) => {
      const input = inputs[i] as Tensor<'f32'>;
      const { shape, data } = input.shape.length === 4 ? toNCHW(input) : input;
      return [name, new ort.Tensor('float32', data, shape)];
    }),
  );
  const [name = ''] = session.outputNames;
  return {
    async run() {
      const { [name]: y } = await session.run(feeds, [name]);
      return new Tensor('f32', y?.dims ?? [], y?.data as Float32Array);
    },
    close: () => session.release(),
  };
}
