/** The service as a library (`octconv/service`): models behind one door, batched; no server package is loaded. */
export type { BatchPolicy } from './batcher.js';
export type { About, Measured } from './engine.js';
export { type Code, codes, codeOf, ServiceError } from './errors.js';
export type { ModelSettings, ServiceEvents, ServiceOptions, State, Version } from './models.js';
export type { Models, Versions } from './repository.js';
export type { Answered, Asked, BatchEnded, Counts, RequestEnded } from './served.js';
export {
  type Inferred,
  type InferOptions,
  Service,
  type ServiceClassified,
  type ServiceClassifyOptions,
} from './service.js';
