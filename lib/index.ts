/// <reference lib="esnext.disposable" preserve="true" />
/**
 * octconv: octave-convolution networks, fused and native.
 *
 *     const model = await loadModel('models/cifar10-oct-resnet-26-a50');
 *     const logits = await model.run(tensor('f32', [1, 32, 32, 3], data));
 */
export {
  type Classified,
  type ClassifiedWindow,
  classify,
  type ClassifyOptions,
  classifyStream,
  type Guess,
  type StreamOptions,
} from './classify.js';
export { compile, Compiled, type CompileOptions, type RankedInputs } from './compile.js';
export { type DeviceInfo, type Devices, devices, type Target } from './devices.js';
export type { DType, TypedArray, TypedArrayOf } from './dtype.js';
export { OctconvError } from './error.js';
export {
  type Attr,
  type Attrs,
  type ComputeType,
  Graph,
  type GraphNode,
  Parameter,
  type Params,
  type TensorType,
  Value,
} from './graph/graph.js';
export type {
  Activation,
  BatchNormParams,
  Branch,
  Gated,
  Packing,
  Size3,
  Source,
  Step,
  Store,
  Term,
} from './graph/lower.js';
export { countFlops, type Flops } from './flops.js';
export { type Batch, type BatchOptions, type ClipOptions, type Failed, loadBatches } from './input/batches.js';
export type { Views, WindowOptions } from './input/clips.js';
export { type DecodeOptions, decodeImage, type Frame, type Picture, type PictureFormat } from './input/image.js';
export {
  type ChannelOrder,
  type ClipTensor,
  defaultInput,
  type InputConfig,
  type InputTensor,
  type PerChannel,
  preprocess,
} from './input/preprocess.js';
export type { PictureSource } from './input/source.js';
export { readFrames, type VideoOptions, type VideoSource } from './input/video.js';
export * as layers from './layers/index.js';
export { DeepModule, type Feature, Module, namedParameters } from './layers/index.js';
export { toNCHW, toNHWC } from './layout.js';
export {
  createModel,
  type Inputs,
  loadModel,
  type LoadOptions,
  Model,
  type ModelOptions,
  type ModelWeights,
  type Network,
} from './model.js';
export {
  type AnyNetworkName,
  buildNetwork,
  type Classifier,
  type NetworkName,
  type NetworkOptions,
  networkNames,
} from './models/index.js';
export type { ResolvedOptions } from './models/infer.js';
export type { ResolvedNetworkOptions } from './models/options.js';
export type { Device, Launch, StepInfo } from './native.js';
export type { OpTraits, Traits } from './targets.js';
export { Octave, type Paths, type Settled, splitChannels } from './octave.js';
export * as ops from './ops.js';
export { type Plan, type PlanOptions, runGraph, type RunOptions, type TimedRunOptions } from './plan.js';
export { type Batches, quantize, type QuantizeOptions, type Weights } from './quantize.js';
export { Replicas, replicate } from './replicas.js';
export { saveModel } from './save.js';
export type { Input, InputSpec, Tensors, ValueOf, Values } from './structure.js';
export {
  type Channels,
  type Image,
  type Match,
  type Matrix,
  type Shape,
  type Spatial,
  Tensor,
  tensor,
  type Vector,
  type Video,
} from './tensor.js';
export type { Work } from './turns.js';
export { initialize } from './weights/random.js';
export type { WriteOptions } from './weights/folder.js';
export type { Memory } from './weights/file.js';
export { openWeights, type OpenOptions, type TensorInfo, type WeightSource } from './weights/source.js';

export type { OnnxOptions, Param, Ranges, ReadParam } from './graph/onnx.js';

/** Exports a recorded graph as ONNX. @throws OctconvError for video, and for ops on pictures' bytes. */
export const toOnnx: typeof import('./graph/onnx.js').toOnnx = async (...given) =>
  (await import('./graph/onnx.js')).toOnnx(...given); // with protobuf, 5 MiB that nothing else needs
