/** The peer of all benches: onnxruntime-node on the same network, exported by us. */
import type { InferenceSession } from 'onnxruntime-node';
import { OctconvError } from '../error.js';
import type { Graph } from '../graph/graph.js';
import { type Ranges, type ReadParam, toOnnx } from '../graph/onnx.js';
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

/** With the batch size known and as many threads as we have. */
export const sessionOptions = (
  threads: number,
  batch: number,
  graphOptimizationLevel: 'all' | 'disabled' = 'all',
): InferenceSession.SessionOptions => ({
  graphOptimizationLevel,
  executionMode: 'sequential',
  intraOpNumThreads: threads,
  interOpNumThreads: 1,
  freeDimensionOverrides: { N: batch },
  logSeverityLevel: 3,
});

async function open(
  model: Uint8Array,
  inputs: readonly Tensor<'f32'>[],
  threads: number,
  graphOptimizationLevel: 'all' | 'disabled',
) {
  const ort = await onnxruntime();
  const options = sessionOptions(threads, inputs[0]?.shape[0] ?? 1, graphOptimizationLevel);
  const session = await ort.InferenceSession.create(model, options);
  const feeds = Object.fromEntries(
    session.inputNames.map((name, i) => {
      const input = inputs[i] as Tensor<'f32'>;
      const { shape, data } = input.shape.length > 2 ? toNCHW(input) : input;
      return [name, new ort.Tensor('float32', data, shape)];
    }),
  );
  return { session, feeds };
}

/** Its best settings. @param ranges what `probe` found, if the weights are quantised */
export async function openPeer(
  graph: Graph,
  read: ReadParam,
  inputs: readonly Tensor<'f32'>[],
  threads: number,
  ranges?: Ranges,
): Promise<Peer> {
  const { session, feeds } = await open(await toOnnx(graph, read, { ranges }), inputs, threads, 'all');
  const [name = ''] = session.outputNames;
  return {
    async run() {
      const { [name]: y } = await session.run(feeds, [name]);
      return new Tensor('f32', y?.dims ?? [], y?.data as Float32Array);
    },
    close: () => session.release(),
  };
}

/** Ranges of the sums between quantised layers: without them onnxruntime would compute half of the network in f32. */
export async function probe(graph: Graph, read: ReadParam, inputs: readonly Tensor<'f32'>[]): Promise<Ranges> {
  const { session, feeds } = await open(await toOnnx(graph, read, { probe: true }), inputs, 1, 'disabled');
  const ranges = new Map<string, [number, number]>();
  for (const [name, { data }] of Object.entries(await session.run(feeds))) {
    let [least, most] = [0, 0];
    for (const value of data as Float32Array) [least, most] = [Math.min(least, value), Math.max(most, value)];
    ranges.set(name, [least, most]);
  }
  await session.release();
  return ranges;
}
