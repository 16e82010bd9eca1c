/** What can go wrong with a request: one table of codes for all doors of the service. */
import { MachineError, OctconvError, PassingError } from '../error.js';

/** HTTP status and gRPC status of each code. */
export const codes = {
  /** The request is at fault. */
  invalid: { http: 400, grpc: 3 },
  unauthorized: { http: 401, grpc: 16 },
  /** Callers may not do it. */
  forbidden: { http: 403, grpc: 7 },
  /** No such model, version or path. */
  notFound: { http: 404, grpc: 5 },
  /** More bytes than the service takes. */
  tooLarge: { http: 413, grpc: 8 },
  /** The queue is full: the request was not started, and may be sent again after `retryAfter` seconds. */
  overloaded: { http: 429, grpc: 8 },
  /** The caller left. */
  cancelled: { http: 499, grpc: 1 },
  /** A fault of the service. */
  internal: { http: 500, grpc: 13 },
  /** The model is loading or broken, the service is closing, or a source could not be read in time. */
  unavailable: { http: 503, grpc: 14 },
  /** The request waited for longer than its timeout. */
  late: { http: 503, grpc: 4 },
} as const;

export type Code = keyof typeof codes;

export class ServiceError extends OctconvError {
  /** Seconds after which it may be tried again. */
  readonly retryAfter: number | undefined;

  constructor(
    readonly code: Code,
    message: string,
    { retryAfter, ...options }: ErrorOptions & { readonly retryAfter?: number } = {},
  ) {
    super(message, options);
    this.retryAfter = retryAfter;
  }
}

/** Whether callers are told of an error: not of faults of the server that say how it is set up. */
export const isTold = (error: unknown): boolean => error instanceof OctconvError && !(error instanceof MachineError);

/** The code of whatever was thrown while a request was read: errors that the library explains are the request's. */
export function codeOf(error: unknown): Code {
  if (error instanceof ServiceError) return error.code;
  if (error instanceof MachineError) return 'internal';
  if (error instanceof PassingError) return 'unavailable';
  if (error instanceof OctconvError) return 'invalid';
  const { name } = (error ?? {}) as Partial<Error>;
  return name === 'AbortError' ? 'cancelled' : name === 'TimeoutError' ? 'late' : 'internal';
}
