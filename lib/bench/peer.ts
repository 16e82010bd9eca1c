/** The peer of all benches: onnxruntime-node on the same network, exported by us. */
import type { InferenceSession } from 'onnxruntime-node';
import { OctconvError } from '../error.js';
import type { Graph } from '../graph/graph.js';
import { type ReadParam, toOnnx } from '../graph/onnx.js';
import { toNCHW } from '../layout.js';
import type { Tensor } from '../tensor.js';

export interface Peer {
  /** Runs once; gives the first output, [N, C] or NCHW. */
  run(): Promise<Float32Array>;
  close(): Promise<void>;
}

async function onnxruntime() {
  try {
    return await import('onnxruntime-node');
  } catch {
    throw new OctconvError('bench: onnxruntime-node is not installed, which the benches compare with (npm install onnxruntime-node)');
  }
}

/** Its best settings: all graph optimisations, the same number of threads. */
export async function openPeer(graph: Graph, read: ReadParam, inputs: readonly Tensor<'f32'>[], threads: number): Promise<Peer> {
  const ort = await onnxruntime();
  const options: InferenceSession.SessionOptions = {
    graphOptimizationLevel: 'all',
    executionMode: 'sequential',
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
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
  const [output = ''] = session.outputNames;
  return {
    run: async () => (await session.run(feeds, [output]))[output]?.data as Float32Array,
    close: () => session.release(),
  };
}
