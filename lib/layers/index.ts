export { Conv, type ConvLayerOptions, OctConv, type OctConvLayerOptions } from './conv.js';
export { Linear } from './linear.js';
export { DeepModule, type Feature, Module, namedParameters, parameterShapes } from './module.js';
export { BatchNorm, ConvNorm, OctBatchNorm, OctConvNorm } from './norm.js';
