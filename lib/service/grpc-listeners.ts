/** What those see who watch calls of the gRPC door; of no package, so that it is typed without those of gRPC. */

/** A call that has begun. */
export interface GrpcCall {
  /** `inference.GRPCInferenceService/ModelInfer` */
  readonly method: string;
  /** Address and port of the client. */
  readonly peer: string;
  /** A field of its metadata. */
  header(name: string): string | undefined;
}

/** How a call has ended. */
export interface GrpcEnded {
  readonly code: number;
  /** The name of the code, as `NOT_FOUND`. */
  readonly status: string;
  /** Since it has begun. */
  readonly milliseconds: number;
}

/** What goes along with a call. */
export interface GrpcRun {
  /** Does a step of the call. */
  run(step: () => void): void;
  end(ended: GrpcEnded): void;
}

export interface GrpcListeners {
  /** Is told of each call that is let in. */
  readonly onStart?: ((call: GrpcCall) => GrpcRun) | undefined;
  /** Is told of each call when it has ended, also of one that was refused. A method that there is not is no call. */
  readonly onEnd?: ((call: GrpcCall, ended: GrpcEnded) => void) | undefined;
}
