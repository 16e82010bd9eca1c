/** What `octconv serve` serves, and how: serve.json, which schemas/serve.schema.json describes to editors. */
import { dirname, resolve } from 'node:path';
import * as v from 'valibot';
import { deviceNames, mayBeDevice } from '../devices.js';
import { OctconvError } from '../error.js';
import { readText } from '../files/read.js';
import { type InferInput, type InferOutput, integerIn, numberIn, object, oneOf, parse } from '../files/schema.js';
import { computeTypes } from '../graph/graph.js';
import type { DecodeOptions } from '../input/image.js';
import { parseJson } from '../weights/json.js';
import type { BatchPolicy } from './batcher.js';
import { httpOptions } from './server.js';
import type { ModelSettings, ServiceOptions } from './models.js';
import { traceOptions } from './trace-file.js';

/** A schema for each of the fields. */
type Entries<T> = { readonly [K in keyof T]-?: v.GenericSchema };

const filled = (wanted: string) => v.pipe(v.string(wanted), v.minLength(1, wanted));
const yesNo = v.boolean('true or false');
const count = integerIn(1, 2 ** 20);
const counts = v.array(count, 'a list of integers');
const times = numberIn(0, 1e9, 'a number of at least 0');
const name = filled('a name');
const upToAnHour = numberIn(0, 3600, 'seconds, at most 3600');

const batching = {
  sizes: v.exactOptional(counts),
  milliseconds: v.optional(v.array(times, 'a list of numbers')),
  preferred: v.optional(counts),
  maxDelay: v.optional(times),
  instances: v.optional(count),
  overlap: v.optional(yesNo),
  queue: v.optional(count),
  priorities: v.optional(count),
  defaultPriority: v.optional(count),
  timeout: v.optional(times),
  allowTimeoutOverride: v.optional(yesNo),
  onTimeout: v.optional(oneOf('reject', 'delay')),
} satisfies Entries<BatchPolicy>;

const device = v.pipe(
  name,
  v.check(mayBeDevice, () => `one of ${deviceNames().join(', ')}`),
);

const modelSettings = {
  device: v.optional(v.union([device, v.array(device)], ({ issues }) => issues?.[0].message ?? 'a device')),
  dtype: v.optional(oneOf(...computeTypes)),
  threads: v.optional(count),
  maxBatch: v.optional(count),
  versions: v.optional(
    v.union([oneOf('latest', 'all'), v.array(integerIn(1, 999_999_999))], '"latest", "all" or a list of integers'),
  ),
  batching: v.optional(object(batching)),
  anySize: v.optional(yesNo),
  isolated: v.optional(yesNo),
} satisfies Entries<ModelSettings>;

const limits = {
  maxPixels: v.optional(integerIn(1, 2 ** 40)),
  maxBytes: v.optional(integerIn(1, 2 ** 40)),
  formats: v.optional(v.array(oneOf('jpeg', 'png', 'webp', 'gif', 'tiff', 'avif', 'svg'), 'a list of formats')),
  timeout: v.optional(numberIn(0.001, 3600, 'seconds, at most 3600')),
} satisfies Entries<Omit<DecodeOptions, 'signal'>>;

const service = {
  ...modelSettings,
  models: v.optional(v.record(name, object(modelSettings), 'settings by the name of a model')),
  limits: v.optional(object(limits)),
  watch: v.optional(numberIn(0.1, 86_400, 'seconds, from 0.1 to 86400')),
} satisfies Entries<ServiceOptions>;

const { maxBytes, maxBytesInFlight, headersTimeout, requestTimeout, keepAliveTimeout, maxConnections, cors } =
  httpOptions.entries;
const portOr = (usual: number) => v.optional(integerIn(0, 65_535), usual);
const http = object({
  port: portOr(8000),
  ...{ maxBytes, maxBytesInFlight, headersTimeout, requestTimeout, keepAliveTimeout, maxConnections, cors },
});
const grpc = object({ port: portOr(8001), maxBytes, maxBytesInFlight, requestTimeout });
const metrics = object({ port: portOr(8002) });
const orFalse = <Schema extends v.GenericSchema>(schema: Schema, fields: string) =>
  v.union([v.literal(false), schema], `false or an object of ${fields}`);

const file = filled('the path of a file');
const log = object({
  level: v.optional(oneOf('debug', 'info', 'warn', 'error', 'silent'), 'info'),
  /** Default: text on a terminal, else JSON. */
  format: v.optional(oneOf('json', 'text')),
  /** Of requests that are answered well every so many-th is logged. */
  every: v.optional(count, 100),
});

/** The whole serve.json. Paths are relative to its folder. */
export const serveSchema = object({
  $schema: v.optional(v.string('text')),
  /** A repository, or model folders by name. */
  models: v.optional(v.union([file, v.record(name, file)], 'a folder, or folders by name')),
  host: v.optional(filled('a host'), '127.0.0.1'),
  http: v.optional(http, {}),
  /** Default: where its packages are installed. */
  grpc: v.optional(orFalse(grpc, 'port, maxBytes, maxBytesInFlight, requestTimeout')),
  metrics: v.optional(orFalse(metrics, 'port'), {}),
  /** Holds what callers must send. */
  tokenFile: v.optional(file),
  /** PEM. With `ca` clients must have a certificate of it. */
  tls: v.optional(object({ key: file, cert: file, ca: v.optional(file) })),
  /** Whether callers may load and unload models, and change settings of traces; default: where `host` is local. */
  repository: v.optional(yesNo),
  /** Traces of requests in files, as Triton writes them; default none. */
  trace: v.optional(traceOptions),
  service: v.optional(object(service), {}),
  /** When it is told to end: seconds in which it is not ready but takes requests, until load balancers have seen it. */
  grace: v.optional(upToAnHour, 0),
  /** Then: seconds in which it answers what has come. */
  drain: v.optional(upToAnHour, 30),
  log: v.optional(log, {}),
});

export type ServeInput = InferInput<typeof serveSchema>;
export type ServeConfig = InferOutput<typeof serveSchema>;

/** Of gRPC where nobody asks for it. */
export const usualGrpc = parse(grpc, {}, 'grpc');

/**
 * The configuration in a file, over which lies what a command was told. Paths in it are absolute.
 * @throws OctconvError that names the file and the field.
 */
export async function readServeConfig(path: string | undefined, given: ServeInput = {}): Promise<ServeConfig> {
  const written = path === undefined ? {} : parseFile(await readText(path), path);
  return parse(serveSchema, over(written, given), 'serve');
}

/** Fields of one over those of the other. */
function over(below: unknown, above: unknown): unknown {
  if (above === undefined) return below;
  if (typeof above !== 'object' || Array.isArray(above)) return above;
  const fields = { ...(typeof below === 'object' ? below : {}) } as Record<string, unknown>;
  for (const [name, value] of Object.entries(above as object)) fields[name] = over(fields[name], value);
  return fields;
}

/** As it is written, without defaults, but with absolute paths. */
function parseFile(text: string, path: string): ServeInput {
  const value = parseJson(Buffer.from(text), 16, `${path}: the file`) as ServeInput;
  parse(serveSchema, value, path);
  const { models, tokenFile, tls, trace, $schema: _, ...others } = value;
  const found = (file: string) => resolve(dirname(path), file);
  const all = <Files extends object>(files: Files) =>
    Object.fromEntries(Object.entries(files).map(([name, file]) => [name, found(file)])) as Files;
  return {
    ...others,
    ...(models !== undefined && { models: typeof models === 'string' ? found(models) : all(models) }),
    ...(tokenFile !== undefined && { tokenFile: found(tokenFile) }),
    ...(tls && { tls: all(tls) }),
    ...(trace && { trace: { ...trace, file: found(trace.file) } }),
  };
}

/** The token in a file. @throws OctconvError if it is none. */
export async function readToken(file: string): Promise<string> {
  const token = (await readText(file)).trim();
  if (token === '' || /\s/.test(token)) throw new OctconvError(`${file}: wanted a token, without spaces, on one line`);
  return token;
}
