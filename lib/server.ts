/** The doors of a service (`octconv/server`): what `octconv serve` is made of, for servers of your own. */
export type { Tls } from './service/door.js';
export { type GrpcOptions, type GrpcServer, serveGrpc } from './service/grpc.js';
export type { GrpcCall, GrpcEnded, GrpcRun, GrpcListeners } from './service/grpc-listeners.js';
export { Live, type LiveModel, type Second, type Snapshot } from './service/live.js';
export { Metrics } from './service/metrics.js';
export { addPage } from './service/page.js';
export { type HttpOptions, type HttpServer, serveHttp } from './service/server.js';
export { TraceFile, type TraceOptions, type TraceSettings } from './service/trace-file.js';
