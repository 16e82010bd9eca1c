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
import { bearerOf, doorOptions, isLocal, type Tls, tokenCheck } from './door.js';
import { codeOf, codes, ServiceError } from './errors.js';
import { maxRest, type Methods, methodsOf, read } from './grpc-methods.js';
import type { Service } from './service.js';

export interface GrpcOptions {
  /** Default 127.0.0.1: other machines reach it only where it is asked for. */
  readonly host?: string | undefined;
  /** Default 0: the system chooses. */
  readonly port?: number | undefined;
  /** Bytes of a request's tensors; default 64 MiB. 1 MiB more is taken for what is not raw. */
  readonly maxBytes?: number | undefined;
  /** Seconds in which the message of a call must come; default 60. Streams stay open. */
  readonly requestTimeout?: number | undefined;
  /** What callers must send, as metadata `authorization: Bearer TOKEN`. Without it health is answered. */
  readonly token?: string | undefined;
  /** PEM. With `ca` clients must have a certificate of it. */
  readonly tls?: Tls | undefined;
  /** Whether callers may load and unload models; default: where `host` is this machine alone. */
  readonly repository?: boolean | undefined;
  /** Is told of faults of the server; one of pino fits. */
  readonly logger?: { error(fault: unknown): void } | undefined;
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
  logger: v.optional(v.custom<NonNullable<GrpcOptions['logger']>>(isLogger, 'an object with error()')),
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
  const { repository = isLocal(host) } = settings;
  const { grpc, definition } = await packages();
  const server = new grpc.Server({
    'grpc.max_receive_message_length': maxBytes + maxRest,
    'grpc.max_concurrent_streams': maxCalls,
    'grpc.max_connection_idle_ms': idle,
    'grpc.keepalive_time_ms': ping,
    interceptors: [guard(grpc, token, settings.requestTimeout)],
  });
  const closing = new AbortController();
  const methods = methodsOf(service, repository);
  const messageOf = (name: Name, bytes: Buffer) => read(name, definition[name].requestDeserialize, bytes);

  const statusOf = (error: unknown): Grpc.StatusObject => {
    const code = codeOf(error);
    const metadata = new grpc.Metadata();
    const { message, retryAfter } = error as ServiceError;
    if (retryAfter !== undefined) metadata.set('grpc-retry-pushback-ms', String(Math.ceil(retryAfter * 1000)));
    if (code === 'internal') logger?.error(error);
    const hidden = code === 'internal' && !(error instanceof OctconvError);
    return { code: codes[code].grpc as number, details: hidden ? 'internal error' : short(message), metadata };
  };

  const unary =
    (name: keyof Methods): Grpc.handleUnaryCall<Buffer, object> =>
    async (call, done) => {
      try {
        done(null, await methods[name](messageOf(name, call.request), goneOf(call)));
      } catch (error) {
        done(statusOf(error));
      }
    };

  /** A request that fails does not end the stream. */
  const streamed = async (bytes: Buffer, signal: AbortSignal) => {
    let id = '';
    try {
      const message = messageOf('ModelStreamInfer', bytes);
      id = message.id;
      const infer_response = await methods.ModelInfer(message, signal);
      return { infer_response: { ...infer_response, parameters: { triton_final_response: { bool_param: true } } } };
    } catch (error) {
      return { error_message: statusOf(error).details, infer_response: { id } };
    }
  };
  const closed = () => statusOf(new ServiceError('unavailable', 'the service is closing'));

  // A message is read by its handler, which has a better error for one that cannot be.
  const raw = Object.entries(definition).map(([name, method]) => [
    name,
    { ...method, requestDeserialize: (bytes: Buffer) => bytes },
  ]);
  const calls = Object.keys(methods).map((name) => [name, unary(name as keyof Methods)]);
  server.addService(Object.fromEntries(raw), {
    ...Object.fromEntries(calls),
    ModelStreamInfer: stream(streamed, closing.signal, closed),
  });
  return {
    port: await listen(grpc, server, host, port, tls),
    close: (milliseconds = 30_000) =>
      new Promise((resolve) => {
        closing.abort();
        const late = setTimeout(() => server.forceShutdown(), milliseconds);
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
type Definition = Readonly<Record<Name, Grpc.MethodDefinition<object, object>>>;

/** gRPC is loaded where it is served, so that others need not install it. */
async function packages(): Promise<{ grpc: typeof Grpc; definition: Definition }> {
  try {
    const [grpc, { load }] = await Promise.all([import('@grpc/grpc-js'), import('@grpc/proto-loader')]);
    const file = fileURLToPath(new URL('../../schemas/grpc.proto', import.meta.url));
    const form = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };
    const { 'inference.GRPCInferenceService': definition } = await load(file, form);
    return { grpc, definition: definition as Grpc.ServiceDefinition as Definition };
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

/** Refuses who has no token before the message is read, and who does not send it. */
function guard(grpc: typeof Grpc, token: string | undefined, requestTimeout: number): Grpc.ServerInterceptor {
  const check = token === undefined ? () => true : tokenCheck(token);
  return ({ path, requestStream }, call) => {
    const refuse = (code: 'unauthorized' | 'late', details: string) =>
      call.sendStatus({ code: codes[code].grpc as number, details });
    let late: NodeJS.Timeout | undefined;
    return new grpc.ServerInterceptingCall(call, {
      start: (next) =>
        next({
          onReceiveMetadata: (metadata, pass) => {
            const given = bearerOf(metadata.get('authorization')[0] as string | undefined) ?? '';
            if (!/\/Server(Live|Ready)$/.test(path) && !check(given))
              return refuse('unauthorized', 'wanted the token, as metadata authorization: Bearer');
            const tooLate = () => refuse('late', `the message took longer than ${requestTimeout} s`);
            if (!requestStream) late = setTimeout(tooLate, requestTimeout * 1000);
            pass(metadata);
          },
          onReceiveHalfClose: (pass) => {
            clearTimeout(late);
            pass();
          },
          onCancel: () => clearTimeout(late),
        }),
    });
  };
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
