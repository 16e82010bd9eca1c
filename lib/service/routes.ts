/** What the HTTP door answers: the Open Inference Protocol v2 with Triton's extensions, and `classify`. */
import { setTimeout as sleep } from 'node:timers/promises';
import multipart from '@fastify/multipart';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import * as v from 'valibot';
import { OctconvError, show } from '../error.js';
import { object, parse } from '../files/schema.js';
import { checkOptions } from '../options.js';
import { checkMayChange, isLocal } from './door.js';
import { ServiceError } from './errors.js';
import { parseBody, readQuestion, writeAnswer } from './http-infer.js';
import { askedOf, modelConfig, modelMetadata, repositoryIndex, serverMetadata, statistics } from './protocol.js';
import type { Service, ServiceClassified } from './service.js';
import type { TraceFile } from './trace-file.js';

export interface RouteOptions {
  readonly maxBytes: number;
  /** Milliseconds that a form may take. */
  readonly uploadTimeout: number;
  /** Whether callers may load and unload models, and change settings of traces; `local`: those that call this machine by a name of its own. */
  readonly repository: boolean | 'local';
  readonly trace: TraceFile;
}

type Named = { Params: { model: string; version?: string } };

const asItIs = async (_: FastifyRequest, body: Buffer): Promise<Buffer> => body;

/** A path of a model, and of one of its versions. */
const ofModel = (rest = ''): string[] => [`/v2/models/:model${rest}`, `/v2/models/:model/versions/:version${rest}`];

export async function addRoutes(app: FastifyInstance, service: Service, options: RouteOptions): Promise<void> {
  // A text would be taken for the path of a picture on this machine: bodies are bytes.
  app.removeAllContentTypeParsers();
  app.addContentTypeParser(
    /^application\/(json|octet-stream|x-www-form-urlencoded)(;|$)/,
    { parseAs: 'buffer' },
    asItIs,
  ); // the last is curl's
  // Clients of the protocol send no type.
  app.addHook('onRequest', async ({ raw: { headers } }, reply) => {
    headers['content-type'] ??= 'application/octet-stream';
    const { 'content-encoding': encoding = 'identity' } = headers;
    if (encoding !== 'identity')
      return reply
        .code(415)
        .send({ error: `content-encoding ${show(encoding)}, wanted a body that is not compressed` });
  });
  const find = ({ params: { model, version } }: FastifyRequest<Named>) => service.readyVersion(model, version);

  app.get('/v2/health/live', { config: { open: true } }, () => ({ live: true }));
  app.get('/v2/health/ready', { config: { open: true } }, (_, reply) => {
    const states = service.versions().map(({ state }) => state);
    const counted = (wanted: string) => states.filter((state) => state === wanted).length;
    if (!service.ready) reply.code(503).header('retry-after', 1);
    return { ready: service.ready, loading: counted('loading'), unavailable: counted('unavailable') };
  });
  app.get('/v2', () => serverMetadata);
  app.get('/v2/models/stats', () => statistics(service));
  for (const path of ofModel()) app.get<Named>(path, (request) => modelMetadata(service, find(request)));
  for (const path of ofModel('/config')) app.get<Named>(path, (request) => modelConfig(service, find(request)));
  for (const path of ofModel('/ready')) app.get<Named>(path, (request) => ({ name: find(request).name, ready: true }));
  for (const path of ofModel('/stats'))
    app.get<Named>(path, ({ params: { model, version } }) => statistics(service, model, version));
  // Before its body is read.
  const onRequest = async ({ params: { model, version } }: FastifyRequest<Named>) => service.admit(model, version);
  for (const path of ofModel('/infer'))
    app.post<Named>(path, { onRequest }, (request, reply) => infer(service, request, reply));
  addRepository(app, service, options);
  addTrace(app, options);
  await app.register(async (pictures) => addClassify(pictures, service, options, onRequest));
}

/** Aborts when the client has gone. `request.signal` aborts as soon as the body is read, so the answer is watched. */
function goneOf(reply: FastifyReply): AbortSignal {
  const gone = new AbortController();
  reply.raw.once('close', () => {
    if (!reply.raw.writableFinished) gone.abort();
  });
  return gone.signal;
}

async function infer(service: Service, request: FastifyRequest<Named>, reply: FastifyReply): Promise<FastifyReply> {
  const { model, version } = request.params;
  const ready = service.readyVersion(model, version);
  const header = request.headers['inference-header-content-length'] as string | undefined;
  const question = readQuestion(bytesOf(request), header, ready);
  const asked = { ...question.asked, signal: goneOf(reply), version: ready.version };
  const inferred = await service.infer(model, question.input, asked);
  const { body, header: json } = writeAnswer(question, inferred, ready);
  if (json === undefined) return reply.type('application/json').send(body);
  return reply.header('inference-header-content-length', json).type('application/octet-stream').send(body);
}

const bytesOf = ({ body }: FastifyRequest): Buffer => (body as Buffer | undefined) ?? Buffer.alloc(0);

// --- Repository -------------------------------------------------------------------------------------------------

const indexBody = object({ ready: v.optional(v.boolean('true or false')) });
const loadBody = object({
  parameters: v.optional(object({ unload_dependents: v.optional(v.boolean('true or false')) }), {}),
});

/** A body of JSON that may be left out. */
const jsonOf = (request: FastifyRequest): unknown => (bytesOf(request).length ? parseBody(bytesOf(request)) : {});

type Change = Parameters<typeof checkMayChange>[1];

/** @throws ServiceError for a caller who may not do what changes the server. */
function checkCaller({ headers }: FastifyRequest, repository: RouteOptions['repository'], what: Change): void {
  checkMayChange(repository, what);
  // A page may have another name made that leads to this machine (DNS rebinding).
  const { host = '' } = headers;
  if (repository === 'local' && !isLocal(host.replace(/:\d+$/, '').replace(/^\[(.*)\]$/, '$1')))
    throw new ServiceError('forbidden', `${what}: host ${show(host)}, wanted localhost, or repository: true`);
}

function addRepository(app: FastifyInstance, service: Service, { repository }: RouteOptions): void {
  const change = (what: 'load' | 'unload') => async (request: FastifyRequest<Named>) => {
    checkCaller(request, repository, what);
    parse(loadBody, jsonOf(request), what, 'request');
    await service[what](request.params.model);
    return {};
  };
  app.post('/v2/repository/index', (request) =>
    repositoryIndex(service, parse(indexBody, jsonOf(request), 'index', 'request').ready),
  );
  app.post('/v2/repository/models/:model/load', change('load'));
  app.post('/v2/repository/models/:model/unload', change('unload'));
}

function addTrace(app: FastifyInstance, { repository, trace }: RouteOptions): void {
  for (const path of ['/v2/trace/setting', '/v2/models/:model/trace/setting']) {
    app.get<{ Params: { model?: string } }>(path, ({ params: { model } }) => trace.settings(model));
    app.post<{ Params: { model?: string } }>(path, (request) => {
      checkCaller(request, repository, 'trace');
      return trace.update(jsonOf(request), request.params.model);
    });
  }
}

// --- Classify ---------------------------------------------------------------------------------------------------

const mostFiles = 256;
/** Bytes of a form beside its files. */
const formRest = 2 ** 20;
/** A form may have some, which nobody reads. */
const mostFields = 16;
const query = { top: true, clips: true, crops: true, priority: true, timeout: true };

/** `POST /v2/models/M/classify`: a picture or video as the body, or files of a form. */
async function addClassify(
  app: FastifyInstance,
  service: Service,
  options: RouteOptions,
  onRequest: (request: FastifyRequest<Named>) => Promise<void>,
): Promise<void> {
  app.removeAllContentTypeParsers();
  app.addContentTypeParser(/^(image|video)\/|^application\/octet-stream(;|$)/, { parseAs: 'buffer' }, asItIs);
  await app.register(multipart, {
    throwFileSizeLimit: true,
    limits: { fileSize: options.maxBytes, files: mostFiles, parts: mostFiles, fields: mostFields, fieldSize: 1024 },
  });
  for (const path of ofModel('/classify'))
    app.post<Named>(path, { onRequest }, async (request, reply) => {
      const { model, version } = request.params;
      const signal = goneOf(reply);
      checkOptions('classify', request.query as object, query);
      const { top, clips, crops, ...policy } = numbersOf(request.query as Record<string, unknown>);
      const files: Upload[] = request.isMultipart() ? await uploads(request, options) : [{ bytes: bytesOf(request) }];
      if (files.every(({ bytes }) => bytes.length === 0))
        throw new OctconvError('classify: no picture or video, as the body or as files of a form');
      const asked = { ...askedOf(policy), signal, version };
      const views = { top, clips, crops: crops as 1 };
      const answer = await service.classify(
        model,
        files.map(({ bytes }) => bytes),
        { ...asked, ...views },
      );
      return {
        model_name: answer.model,
        model_version: answer.version,
        results: answer.top.map((top, i) => ({ file: files[i]?.file, top })),
        milliseconds: rounded(answer.milliseconds),
      };
    });
}

/** To microseconds: what lies behind them is noise. */
const rounded = (milliseconds: ServiceClassified['milliseconds']) =>
  Object.fromEntries(Object.entries(milliseconds).map(([name, value]) => [name, Number(value.toFixed(3))]));

/** `timeout` is in microseconds, as that of `infer`. */
function numbersOf(query: Record<string, unknown>): { [Name in keyof typeof query]?: number } {
  return Object.fromEntries(
    Object.entries(query).map(([name, value]) => {
      if (typeof value === 'string' && /^\d{1,15}$/.test(value)) return [name, Number(value)];
      throw new OctconvError(`classify: ${name}=${show(value)}, wanted an integer`);
    }),
  );
}

interface Upload {
  /** As the client calls it. */
  readonly file?: string;
  readonly bytes: Uint8Array;
}

/** The files of a form. The parser never ends some that are broken. */
async function uploads(request: FastifyRequest, { maxBytes, uploadTimeout }: RouteOptions): Promise<Upload[]> {
  const stop = new AbortController();
  const late = sleep(uploadTimeout, undefined, { signal: stop.signal }).then(
    () => Promise.reject(new OctconvError('classify: the form does not end')),
    () => undefined,
  );
  try {
    const all = readForm(request, maxBytes);
    all.catch(() => undefined); // when it is late
    return (await Promise.race([all, late])) as Upload[];
  } catch (error) {
    // The parser's errors of forms have no status.
    if (error instanceof OctconvError || (error as { statusCode?: number }).statusCode) throw error;
    throw new OctconvError(`classify: form: ${(error as Error).message}`, { cause: error });
  } finally {
    stop.abort();
  }
}

async function readForm(request: FastifyRequest, maxBytes: number): Promise<Upload[]> {
  const files: Upload[] = [];
  let total = 0;
  const tooLarge = () => new ServiceError('tooLarge', `classify: a form of more than ${maxBytes} bytes`);
  if (Number(request.headers['content-length'] ?? 0) > maxBytes + formRest) throw tooLarge();
  for await (const part of request.files()) {
    const bytes = await part.toBuffer();
    total += bytes.length;
    if (total > maxBytes) throw tooLarge();
    files.push({ file: part.filename, bytes });
  }
  return files;
}
