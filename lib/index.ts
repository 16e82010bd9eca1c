/// <reference lib="esnext.disposable" preserve="true" />
/**
 * octconv: octave-convolution networks, fused and native.
 *
 *     const model = await loadModel('models/cifar10-oct-resnet-26-a50');
 *     const logits = await model.run(tensor('f32', [1, 32, 32, 3], data));
 */
export { type Classified, classify, type ClassifyOptions, type Guess } from './classify.js';
export { type DeviceInfo, type Devices, devices } from './devices.js';
export type { DType, TypedArray, TypedArrayOf } from './dtype.js';
export { OctconvError } from './error.js';
export { Graph, type GraphNode, Parameter, type TensorType, Value } from './graph/graph.js';
export { countFlops, type Flops } from './flops.js';
export { type Batch, type BatchOptions, loadBatches } from './input/batches.js';
export { type DecodeOptions, decodeImage, type Picture, type PictureFormat } from './input/image.js';
export { defaultInput, type InputConfig, preprocess } from './input/preprocess.js';
export type { PictureSource } from './input/source.js';
export * as layers from './layers/index.js';
export { type Feature, Module, namedParameters } from './layers/index.js';
export { toNCHW, toNHWC } from './layout.js';
export { createModel, loadModel, Model, type ModelInput, type ModelOptions, type Network } from './model.js';
export { buildNetwork, type Classifier, type Family, type NetworkName, type NetworkOptions, networkNames } from './models/index.js';
export type { Device } from './native.js';
export { Octave, type Paths, splitChannels } from './octave.js';
export * as ops from './ops.js';
export { type PlanOptions, runGraph, type RunOptions } from './plan.js';
export { quantize, type QuantizeOptions } from './quantize.js';
export { saveModel } from './save.js';
export { type Image, type Matrix, type Shape, type Spatial, Tensor, tensor, type Video } from './tensor.js';
export { initialize } from './weights/random.js';
export type { WriteOptions } from './weights/folder.js';
export { openWeights, type WeightSource } from './weights/source.js';

/** Exports a recorded graph as ONNX. @throws OctconvError for video, and for ops on pictures' bytes. */
export const toOnnx: typeof import('./graph/onnx.js').toOnnx = async (...given) =>
  (await import('./graph/onnx.js')).toOnnx(...given); // with protobuf, 5 MiB that nothing else needs
