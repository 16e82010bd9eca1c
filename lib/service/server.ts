/** The HTTP door of the service: who may come in, what may come in, and how errors are told. Its routes: routes.ts. */
import { randomUUID } from 'node:crypto';
import type { ServerOptions } from 'node:https';
import { Readable } from 'node:stream';
import Fastify, {
  type FastifyError,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  type FastifyServerOptions,
  LogController,
} from 'fastify';
import * as v from 'valibot';
import { OctconvError, show } from '../error.js';
import { integerIn, object, parse } from '../files/schema.js';
import { bearerOf, BytesInFlight, doorOptions, isLocal, seconds, type Tls, text, tokenCheck } from './door.js';
import { codeOf, codes, isTold, ServiceError } from './errors.js';
import { addRoutes } from './routes.js';
import type { Service } from './service.js';
import { TraceFile } from './trace-file.js';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Answered without the token. */
    open?: boolean;
  }
}

export interface HttpOptions {
  /** Default 127.0.0.1: other machines reach it only where it is asked for. */
  readonly host?: string | undefined;
  /** Default 0: the system chooses. */
  readonly port?: number | undefined;
  /** Bytes of a request's body; default 64 MiB. Of JSON 8 MiB are taken at most (http-infer.ts). */
  readonly maxBytes?: number | undefined;
  /**
   * Bytes of all bodies that are being read, or whose requests are not answered yet; more are refused as overloaded, by
   * their content-length before they are read. Default: a quarter of the memory that this process may have, 1 GiB at
   * most, `maxBytes` at least.
   */
  readonly maxBytesInFlight?: number | undefined;
  /** Seconds in which the headers of a request must come; default 10. */
  readonly headersTimeout?: number | undefined;
  /** Seconds in which a request must come, its body included; default 60. */
  readonly requestTimeout?: number | undefined;
  /** Seconds that a connection may wait for another request; default 5. */
  readonly keepAliveTimeout?: number | undefined;
  /** Connections at a time, others are closed at once; default 1024. */
  readonly maxConnections?: number | undefined;
  /**
   * What callers must send, as `Authorization: Bearer TOKEN` or `X-Api-Key: TOKEN`. Without it health is answered, and
   * routes of `extend` that have `config: { open: true }`.
   */
  readonly token?: string | undefined;
  /** PEM. With `ca` clients must have a certificate of it. */
  readonly tls?: Tls | undefined;
  /** Origins whose pages may call, `*` for all; default none. */
  readonly cors?: readonly string[] | undefined;
  /** Options of pino; default false. Faults of the server are logged, requests are not. */
  readonly logger?: FastifyServerOptions['logger'];
  /**
   * Whether callers may load and unload models, and change settings of traces; default: where `host` is this machine
   * alone, and callers name it so.
   */
  readonly repository?: boolean | undefined;
  /** What callers see of traces and change; default: they are off. */
  readonly trace?: TraceFile | undefined;
  /** Adds routes and hooks. */
  readonly extend?: ((app: FastifyInstance) => void | Promise<void>) | undefined;
}

export interface HttpServer {
  /** `http://127.0.0.1:8000` */
  readonly url: string;
  readonly app: FastifyInstance;
  /**
   * Stops listening, answers what has come, and closes every connection that has no request any more. After so many
   * milliseconds, by default 30,000, the others are closed too.
   */
  close(milliseconds?: number): Promise<void>;
}

export const httpOptions = object({
  ...doorOptions,
  headersTimeout: v.optional(seconds, 10),
  keepAliveTimeout: v.optional(seconds, 5),
  maxConnections: v.optional(integerIn(1, 2 ** 20), 1024),
  cors: v.optional(v.array(text, 'a list of origins'), []),
  logger: v.optional(v.any(), false),
  extend: v.optional(v.function('a function')),
  trace: v.optional(v.instance(TraceFile, 'a TraceFile')),
});

/** Milliseconds in which nothing moves on a connection, longer than any answer should take. */
const stalled = 300_000;

/** Milliseconds between looks for connections that are too slow. */
const looks = 1000;

/**
 * Serves the Open Inference Protocol v2 (REST), and `classify`, over HTTP.
 * @throws OctconvError for options that make no sense, and if it cannot listen.
 */
export async function serveHttp(service: Service, options: HttpOptions = {}): Promise<HttpServer> {
  const settings = parse(httpOptions, options, 'http');
  const { host, port, maxBytes, tls, token, cors, logger, maxConnections } = settings;
  const { repository = isLocal(host) && 'local', trace = new TraceFile(service) } = settings;
  const inFlight = new BytesInFlight('http', maxBytes, settings.maxBytesInFlight);
  const millisecondsOf = (seconds: number) => Math.ceil(seconds * 1000);
  const headersTimeout = millisecondsOf(settings.headersTimeout);
  const requestTimeout = millisecondsOf(settings.requestTimeout);
  const keepAliveTimeout = millisecondsOf(settings.keepAliveTimeout);
  const timing = { headersTimeout, connectionsCheckingInterval: looks };
  const clients = { requestCert: !!tls?.ca, rejectUnauthorized: !!tls?.ca, handshakeTimeout: headersTimeout };
  const app: FastifyInstance = Fastify({
    ...(tls ? { https: { ...timing, ...clients, ...(tls as ServerOptions) } } : { http: timing }),
    bodyLimit: maxBytes,
    requestTimeout,
    keepAliveTimeout,
    logger,
    logController: new LogController({ disableRequestLogging: true }),
    genReqId: () => randomUUID(),
    // What comes on an open connection while the server closes is answered too; that connection ends then.
    return503OnClosing: false,
    // A client that reads no answers does not keep its connection for good.
    connectionTimeout: stalled,
    routerOptions: { maxParamLength: 256 },
    frameworkErrors: tell,
  } as object);
  app.server.maxConnections = maxConnections;
  app.setErrorHandler(tell);

  let closing = false;
  app.addHook('preClose', async () => {
    closing = true;
  });
  app.addHook('onSend', async (request, reply) => {
    reply.header('x-request-id', request.id);
    // Also before it closes: a connection that is closed between requests takes none with it.
    if (closing || service.leaving) reply.header('connection', 'close');
  });
  addOrigins(app, cors);
  if (token !== undefined) addToken(app, token);
  app.addHook('onRequest', async ({ is404, url }) => {
    if (is404) throw new ServiceError('notFound', `no path ${url}`);
  });
  addBytesInFlight(app, inFlight, maxBytes);

  const paths = new Map<string, Set<string>>();
  app.addHook('onRoute', ({ url, method }) => {
    const known = paths.get(url) ?? new Set();
    paths.set(url, new Set([...known, ...[method].flat()]));
  });
  try {
    await settings.extend?.(app); // before routes, which its hooks are for
    await addRoutes(app, service, { maxBytes, uploadTimeout: requestTimeout, repository, trace });
    await app.after(); // what `extend` has registered
    for (const [url, known] of [...paths]) refuseOthers(app, url, known);
    const url = await app.listen({ host, port });
    return {
      url,
      app,
      close: async (milliseconds = 30_000) => {
        const late = setTimeout(() => app.server.closeAllConnections(), milliseconds);
        await app.close().finally(() => clearTimeout(late));
      },
    };
  } catch (error) {
    await app.close();
    if ((error as NodeJS.ErrnoException).syscall === undefined) throw error;
    throw new OctconvError(`http: ${(error as Error).message}`, { cause: error });
  }
}

/** Tells an error: its status by the table of codes, or what Fastify gave it. Faults of the server are logged. */
function tell(error: FastifyError, request: FastifyRequest, reply: FastifyReply): void {
  const code = codeOf(error);
  const known = isTold(error) || code !== 'internal';
  const status = !known && error.statusCode && error.statusCode < 500 ? error.statusCode : codes[code].http;
  if (status === 500) request.log.error(error);
  if (status === 401) reply.header('www-authenticate', 'Bearer');
  // Who set the time that it may wait knows best whether to ask again.
  if (code !== 'late' && [429, 503].includes(status))
    reply.header('retry-after', (error as Partial<ServiceError>).retryAfter ?? 1);
  const hidden = status === 500 && !known;
  const type = status === 415 ? ` ${show(request.headers['content-type'])}, wanted ${wantedTypes(request)}` : '';
  reply.code(status).send({ error: hidden ? `internal error, request ${request.id}` : `${error.message}${type}` });
}

const wantedTypes = ({ url }: FastifyRequest): string =>
  /\/classify(\?|$)/.test(url)
    ? 'image/*, video/*, multipart/form-data or application/octet-stream'
    : 'application/json or application/octet-stream';

/** A path that is known for other methods. */
function refuseOthers(app: FastifyInstance, url: string, known: ReadonlySet<string>): void {
  const allow = [...known].join(', ');
  app.route({
    method: ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'].filter((method) => !known.has(method)),
    url,
    // Before its body is read.
    onRequest: async (request, reply) =>
      reply
        .code(405)
        .header('allow', allow)
        .send({ error: `${request.method} ${url}, wanted ${allow}` }),
    handler: () => undefined,
  });
}

function addToken(app: FastifyInstance, token: string): void {
  const check = tokenCheck(token);
  app.addHook('onRequest', async ({ headers, routeOptions }) => {
    if (routeOptions.config.open) return;
    const given = bearerOf(headers.authorization) ?? headers['x-api-key'];
    if (typeof given === 'string' && check(given)) return;
    throw new ServiceError('unauthorized', 'wanted the token, as Authorization: Bearer or X-Api-Key');
  });
}

/** Counts bodies until their requests are answered, and refuses those that are too many. */
function addBytesInFlight(app: FastifyInstance, inFlight: BytesInFlight, maxBytes: number): void {
  app.addHook('preParsing', async ({ raw, headers }, reply, payload) => {
    const { 'content-length': length, 'transfer-encoding': encoding, 'content-type': type = '' } = headers;
    if ((length === undefined && encoding === undefined) || raw.socket.destroyed) return payload;
    let taken = 0;
    const take = (bytes: number) => {
      if (reply.raw.closed) return;
      inFlight.take(bytes);
      taken += bytes;
    };
    reply.raw.once('close', () => inFlight.give(taken));
    // The parser of forms reads them from the connection itself.
    if (length === undefined && !/^multipart\//i.test(type)) return Readable.from(counted(payload, take));
    take(length === undefined ? maxBytes : Math.min(Number(length), maxBytes));
    return payload;
  });
}

/** A body whose length nobody has told. Where its bytes are not taken the connection stays open for an answer. */
async function* counted(body: Readable, take: (bytes: number) => void): AsyncGenerator<Buffer> {
  for await (const chunk of body.iterator({ destroyOnReturn: false })) {
    take((chunk as Buffer).length);
    yield chunk;
  }
}

/**
 * Which pages of browsers may call. A page of another site could otherwise not read answers, but unload a model: such
 * requests are refused. Browsers tell where they come from: by `Origin`, and on HTTPS and localhost by `Sec-Fetch-Site`.
 */
function addOrigins(app: FastifyInstance, allowed: readonly string[]): void {
  app.addHook('onRequest', async ({ headers, method }, reply) => {
    const { origin } = headers;
    if (origin !== undefined && (allowed.includes(origin) || allowed.includes('*'))) {
      reply.header('access-control-allow-origin', origin).header('vary', 'origin');
      reply.header('access-control-expose-headers', 'inference-header-content-length, retry-after, x-request-id');
      if (method !== 'OPTIONS' || !headers['access-control-request-method']) return;
      reply.header('access-control-allow-methods', 'GET, POST').header('access-control-max-age', '600');
      reply.header(
        'access-control-allow-headers',
        'authorization, content-type, inference-header-content-length, x-api-key',
      );
      return reply.code(204).send();
    }
    if (['GET', 'HEAD', 'OPTIONS'].includes(method)) return;
    const isOwn = origin === undefined || (URL.canParse(origin) && new URL(origin).host === headers.host);
    if (isOwn && !['cross-site', 'same-site'].includes(`${headers['sec-fetch-site']}`)) return;
    throw new ServiceError('forbidden', `a page of ${origin ?? 'another site'}, wanted an origin that is allowed`);
  });
}
