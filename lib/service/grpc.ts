/**
 * The gRPC door of the service: the Open Inference Protocol v2 with Triton's extensions (schemas/grpc.proto). It answers
 * what the HTTP door does, from the same objects (protocol.ts).
 */
import { fileURLToPath } from 'node:url';
import type * as Grpc from '@grpc/grpc-js';
import * as v from 'valibot';
import { onAbort } from '../abort.js';
import { OctconvError } from '../error.js';
import { object, parse } from '../files/schema.js';
import { BytesInFlight, doorOptions, isLocal, type Tls } from './door.js';
import { codeOf, codes, isTold, ServiceError } from './errors.js';
import { doorkeeper } from './grpc-calls.js';
import { checkHealth, type Health, HealthWatchers, type HealthRequest } from './grpc-health.js';
import { maxRest, type Methods, methodsOf, read } from './grpc-methods.js';
import type { GrpcListeners } from './grpc-listeners.js';
import type { Service } from './service.js';
import { TraceFile } from './trace-file.js';

export interface GrpcOptions extends GrpcListeners {
  /** Default 127.0.0.1: other machines reach it only where it is asked for. */
  readonly host?: string | undefined;
  /** Default 0: the system chooses. */
  readonly port?: number | undefined;
  /** Bytes of a request's tensors; default 64 MiB. 1 MiB more is taken for what is not raw. */
  readonly maxBytes?: number | undefined;
  /**
   * Bytes of all messages that are not answered yet; more are refused as overloaded. Messages that are still being read
   * do not count, since gRPC tells of one when all of it is there: each may have `maxBytes`, on a connection 1024 calls
   * are read at a time, and nothing limits connections. Default: as of HTTP.
   */
  readonly maxBytesInFlight?: number | undefined;
  /** Seconds in which the message of a call must come; default 60. Streams stay open. */
  readonly requestTimeout?: number | undefined;
  /** What callers must send, as metadata `authorization: Bearer TOKEN`. Without it health is answered. */
  readonly token?: string | undefined;
  /** PEM. With `ca` clients must have a certificate of it. */
  readonly tls?: Tls | undefined;
  /** Whether callers may load and unload models, and change settings of traces; default: where `host` is this machine alone. */
  readonly repository?: boolean | undefined;
  /** Is told of faults of the server; one of pino fits. */
  readonly logger?: { error(fault: unknown): void } | undefined;
  /** What callers see of traces and change; default: they are off. */
  readonly trace?: TraceFile | undefined;
}

export interface GrpcServer {
  readonly port: number;
  /**
   * Stops listening and answers what has come; streams then end as unavailable. After so many milliseconds, by default
   * 30,000, every connection is closed.
   */
  close(milliseconds?: number): Promise<void>;
}

const isLogger = (given: unknown) => typeof (given as GrpcOptions['logger'])?.error === 'function';
const grpcOptions = object({
  ...doorOptions,
  trace: v.optional(v.instance(TraceFile, 'a TraceFile')),
  logger: v.optional(v.custom<NonNullable<GrpcOptions['logger']>>(isLogger, 'an object with error()')),
  onStart: v.optional(v.function('a function')),
  onEnd: v.optional(v.function('a function')),
});

/** At a time on one connection. */
const maxCalls = 1024;

/** Milliseconds after which an unused connection is closed, and after which one is asked whether it is alive. */
const [idle, ping] = [300_000, 60_000];

/**
 * Serves the Open Inference Protocol v2 over gRPC.
 * @throws OctconvError for options that make no sense, if it cannot listen, and with the cause `ERR_MODULE_NOT_FOUND` if
 * the packages of gRPC are not installed.
 */
export async function serveGrpc(service: Service, options: GrpcOptions = {}): Promise<GrpcServer> {
  const settings = parse(grpcOptions, options, 'grpc');
  const { host, port, maxBytes, tls, token, logger } = settings;
  const { repository = isLocal(host), trace = new TraceFile(service) } = settings;
  const { grpc, definition, health } = await packages();
  const server = new grpc.Server({
    'grpc.max_receive_message_length': maxBytes + maxRest,
    'grpc.max_concurrent_streams': maxCalls,
    'grpc.max_connection_idle_ms': idle,
    'grpc.keepalive_time_ms': ping,
    interceptors: [doorkeeper(grpc, { token, requestTimeout: settings.requestTimeout }, options)],
  });
  const closing = new AbortController();
  const inFlight = new BytesInFlight('grpc', maxBytes + maxRest, settings.maxBytesInFlight);
  const counted = async <T>(bytes: Buffer, work: () => T | Promise<T>): Promise<T> => {
    inFlight.take(bytes.length);
    try {
      return await work();
    } finally {
      inFlight.give(bytes.length);
    }
  };
  const methods = methodsOf(service, { repository, trace });
  const messageOf = (name: Name, bytes: Buffer) => read(name, definition[name].requestDeserialize, bytes);

  const statusOf = (error: unknown): Grpc.StatusObject => {
    const code = codeOf(error);
    const metadata = new grpc.Metadata();
    const { message, retryAfter } = error as ServiceError;
    if (retryAfter !== undefined) metadata.set('grpc-retry-pushback-ms', String(Math.ceil(retryAfter * 1000)));
    if (code === 'internal') logger?.error(error);
    const hidden = code === 'internal' && !isTold(error);
    return { code: codes[code].grpc as number, details: hidden ? 'internal error' : short(message), metadata };
  };

  const unary =
    (name: keyof Methods): Grpc.handleUnaryCall<Buffer, object> =>
    async (call, done) => {
      try {
        const answer = () => methods[name](messageOf(name, call.request), goneOf(call));
        done(null, await counted(call.request, answer));
      } catch (error) {
        done(statusOf(error));
      }
    };

  /** A request that fails does not end the stream. */
  const streamed = async (bytes: Buffer, signal: AbortSignal) => {
    let id = '';
    try {
      const infer_response = await counted(bytes, () => {
        const message = messageOf('ModelStreamInfer', bytes);
        id = message.id;
        return methods.ModelInfer(message, signal);
      });
      return { infer_response: { ...infer_response, parameters: { triton_final_response: { bool_param: true } } } };
    } catch (error) {
      return { error_message: statusOf(error).details, infer_response: { id } };
    }
  };
  const closed = () => statusOf(new ServiceError('unavailable', 'the service is closing'));

  // A message is read by its handler, which has a better error for one that cannot be.
  const raw = (methods: object) =>
    Object.fromEntries(
      Object.entries(methods).map(([name, method]) => [
        name,
        { ...method, requestDeserialize: (bytes: Buffer) => bytes },
      ]),
    );
  const calls = Object.keys(methods).map((name) => [name, unary(name as keyof Methods)]);
  server.addService(raw(definition), {
    ...Object.fromEntries(calls),
    ModelStreamInfer: stream(streamed, closing.signal, closed),
  });

  const watchers = new HealthWatchers(service);
  const healthRequest = (name: 'Check' | 'Watch', bytes: Buffer) =>
    read(name, health[name].requestDeserialize, bytes) as unknown as HealthRequest;
  const Check: Grpc.handleUnaryCall<Buffer, object> = ({ request }, done) => {
    try {
      done(null, checkHealth(service, healthRequest('Check', request)));
    } catch (error) {
      done(statusOf(error));
    }
  };
  const Watch: Grpc.handleServerStreamingCall<Buffer, { status: Health }> = (call) => {
    try {
      closing.signal.throwIfAborted();
      watchers.add(call, healthRequest('Watch', call.request));
    } catch (error) {
      call.emit('error', closing.signal.aborted ? closed() : statusOf(error));
    }
  };
  server.addService(raw(health), { Check, Watch });
  return {
    port: await listen(grpc, server, host, port, tls).catch((error) => {
      watchers.close(closed());
      throw error;
    }),
    close: (milliseconds = 30_000) =>
      new Promise((resolve) => {
        closing.abort();
        watchers.close(closed());
        const late = setTimeout(() => {
          server.forceShutdown();
          resolve(); // gRPC waits on for clients that do not close their own side
        }, milliseconds);
        server.tryShutdown(() => {
          clearTimeout(late);
          resolve();
        });
      }),
  };
}

/** Requests and answers in one call. An answer comes when it is ready. */
function stream(
  answer: (bytes: Buffer, signal: AbortSignal) => Promise<object>,
  closing: AbortSignal,
  closed: () => Grpc.StatusObject,
): Grpc.handleBidiStreamingCall<Buffer, object> {
  return (call) => {
    const gone = goneOf(call);
    let open = 0;
    let ended = false;
    const end = () => {
      if (open > 0 || gone.aborted) return;
      if (ended) call.end();
      else if (closing.aborted) call.emit('error', closed());
    };
    call.on('data', async (bytes: Buffer) => {
      open++;
      const answered = await answer(bytes, gone);
      open--;
      if (gone.aborted) return;
      if (!call.write(answered)) call.pause(); // until the client has read
      end();
    });
    call.on('drain', () => {
      if (!closing.aborted) call.resume();
    });
    call.on('end', () => {
      ended = true;
      end();
    });
    const forget = onAbort(closing, () => {
      call.pause();
      end();
    });
    call.on('close', forget);
  };
}

type Name = keyof Methods | 'ModelStreamInfer';
type Definition<Names extends string> = Readonly<Record<Names, Grpc.MethodDefinition<object, object>>>;
interface Packages {
  readonly grpc: typeof Grpc;
  readonly definition: Definition<Name>;
  readonly health: Definition<'Check' | 'Watch'>;
}

/** gRPC is loaded where it is served, so that others need not install it. */
async function packages(): Promise<Packages> {
  try {
    const [grpc, { load }] = await Promise.all([import('@grpc/grpc-js'), import('@grpc/proto-loader')]);
    const files = ['grpc', 'health'].map((name) =>
      fileURLToPath(new URL(`../../schemas/${name}.proto`, import.meta.url)),
    );
    const form = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };
    const { 'inference.GRPCInferenceService': definition, 'grpc.health.v1.Health': health } = await load(files, form);
    return { grpc, definition, health } as unknown as Packages;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') throw error;
    throw new OctconvError('grpc: its packages are not installed: npm install @grpc/grpc-js @grpc/proto-loader', {
      cause: error,
    });
  }
}

async function listen(grpc: typeof Grpc, server: Grpc.Server, host: string, port: number, tls?: Tls): Promise<number> {
  try {
    const { ServerCredentials } = grpc;
    const credentials = tls
      ? ServerCredentials.createSsl(
          tls.ca === undefined ? null : Buffer.from(tls.ca),
          [{ private_key: Buffer.from(tls.key), cert_chain: Buffer.from(tls.cert) }],
          tls.ca !== undefined,
        )
      : ServerCredentials.createInsecure();
    const address = `${host.includes(':') ? `[${host}]` : host}:${port}`;
    return await new Promise((resolve, reject) =>
      server.bindAsync(address, credentials, (error, bound) => (error ? reject(error) : resolve(bound))),
    );
  } catch (error) {
    server.forceShutdown();
    const { message } = error as Error;
    const [, why = message] = /errors: \[(.*)\]$/s.exec(message) ?? [];
    throw new OctconvError(`grpc: ${why}`, { cause: error });
  }
}

/** Aborts when the client has gone, or its deadline has passed. */
function goneOf(call: { once(event: 'cancelled', listener: () => void): unknown }): AbortSignal {
  const gone = new AbortController();
  call.once('cancelled', () => gone.abort());
  return gone.signal;
}

/** Characters of a message in trailers: clients take 8 KiB, and a character may be 9 bytes there. */
const half = 400;

function short(message: string): string {
  const cut = message.length > 2 * half ? `${message.slice(0, half)} ... ${message.slice(-half)}` : message;
  // Half of a pair of surrogates, where a text was cut, has no encoding.
  return Buffer.from(cut).toString();
}
