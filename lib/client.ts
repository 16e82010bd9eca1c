/**
 * A client of the Open Inference Protocol v2 over HTTP: `octconv serve`, and others that speak it with binary tensors.
 * It needs `fetch` and nothing else, no native code.
 *
 *     const client = new Client('http://127.0.0.1:8000');
 *     const { top } = await client.classify('resnet', jpeg, { top: 3 });
 *     const { outputs } = await client.infer('resnet', tensor('u8', [1, 224, 224, 3], pixels));
 */
import { onAbort } from './abort.js';
import type { Guess } from './classify.js';
import { OctconvError, show } from './error.js';
import { checkOptions, type Known } from './options.js';
import type { ModelMetadata, modelStatistics } from './service/protocol.js';
import type { Answered } from './service/served.js';
import type { Tensor } from './tensor.js';

export type { Guess, ModelMetadata };

/** Elements by datatype. FP16 and BF16 are raw bits. */
const arrays = {
  BOOL: Uint8Array,
  UINT8: Uint8Array,
  UINT16: Uint16Array,
  UINT32: Uint32Array,
  UINT64: BigUint64Array,
  INT8: Int8Array,
  INT16: Int16Array,
  INT32: Int32Array,
  INT64: BigInt64Array,
  FP16: Uint16Array,
  BF16: Uint16Array,
  FP32: Float32Array,
  FP64: Float64Array,
} as const;

type NumberType = keyof typeof arrays;
export type Datatype = NumberType | 'BYTES';
type Elements<D extends NumberType> = InstanceType<(typeof arrays)[D]>;

/** The datatype of a tensor's elements. */
const datatypes = { f32: 'FP32', f16: 'FP16', bf16: 'BF16', i8: 'INT8', u8: 'UINT8', i32: 'INT32' } as const;

interface Described<D extends Datatype> {
  readonly datatype: D;
  readonly shape: readonly number[];
}

/** BYTES are pictures, videos or texts. `name` is by default `input`. */
export type InferInput = {
  readonly [D in Datatype]: Described<D> & {
    readonly name?: string | undefined;
    readonly data: D extends NumberType ? Elements<D> : readonly (string | Uint8Array)[];
  };
}[Datatype];

/** BYTES are texts. */
export type InferOutput = {
  readonly [D in Datatype]: Described<D> & {
    readonly name: string;
    readonly data: D extends NumberType ? Elements<D> : readonly string[];
  };
}[Datatype];

export interface Inferred {
  readonly model: string;
  readonly version: string | undefined;
  /** By their names; of networks here `logits`, FP32 [N, classes]. */
  readonly outputs: { readonly [name: string]: InferOutput };
}

export interface ClientClassified {
  readonly model: string;
  readonly version: string;
  /** The likeliest first. */
  readonly top: readonly Guess[];
  /** What the server took. */
  readonly milliseconds: Answered['milliseconds'];
}

export interface ServerMetadata {
  readonly name: string;
  readonly version: string;
  readonly extensions: readonly string[];
}

/** A version in the server's repository. */
export interface IndexEntry {
  readonly name: string;
  readonly version: string;
  readonly state: string;
  /** Why it is unavailable. */
  readonly reason: string;
}

/** Triton's statistics of a version; durations are in nanoseconds. */
export type ModelStatistics = ReturnType<typeof modelStatistics>;

export interface ClientOptions {
  /** Sent as `Authorization: Bearer TOKEN`. */
  readonly token?: string | undefined;
  /** How often a request is sent again that was answered 429 or 503 with Retry-After; default 3. */
  readonly retries?: number | undefined;
  /** Milliseconds that a call may take, retries included; default: as long as it takes. */
  readonly timeout?: number | undefined;
  /** Default: the global one. */
  readonly fetch?: typeof fetch | undefined;
}
const clientOptions = { token: true, retries: true, timeout: true, fetch: true } satisfies Known<ClientOptions>;

interface RequestOptions {
  /** Default: the newest that is ready. */
  readonly version?: string | undefined;
  readonly signal?: AbortSignal | undefined;
  /** 1 is answered first; how many there are the server says. */
  readonly priority?: number | undefined;
  /** Milliseconds that it may wait in the queue, at each try; by default the server decides. */
  readonly timeout?: number | undefined;
}
const requestOptions = { version: true, signal: true, priority: true, timeout: true } satisfies Known<RequestOptions>;

export interface ClientInferOptions extends RequestOptions {
  /** Default: all. `classification` asks for the largest so many as texts `value:index:label`. */
  readonly outputs?: readonly { readonly name: string; readonly classification?: number | undefined }[] | undefined;
}
const inferOptions = { ...requestOptions, outputs: true } satisfies Known<ClientInferOptions>;

export interface ClientClassifyOptions extends RequestOptions {
  /** Guesses; default 5. */
  readonly top?: number | undefined;
  /** Views of a video, that are averaged. */
  readonly clips?: number | undefined;
  readonly crops?: number | undefined;
}
const classifyOptions = {
  ...requestOptions,
  top: true,
  clips: true,
  crops: true,
} satisfies Known<ClientClassifyOptions>;

/** What a server refuses, or that it cannot be reached. */
export class ClientError extends OctconvError {
  /** Undefined if there was no answer. */
  readonly status: number | undefined;
  /** Seconds after which it may be tried again. */
  readonly retryAfter: number | undefined;

  constructor(
    message: string,
    { status, retryAfter, ...options }: ErrorOptions & { readonly status?: number; readonly retryAfter?: number } = {},
  ) {
    super(message, options);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** The server is overloaded, or not ready. */
const retried = [429, 503];
/** Milliseconds of the first pause at most, which doubles at each try, beside what the server asks for. */
const backoff = 100;
const lengthHeader = 'inference-header-content-length';

interface Sent {
  readonly body?: Uint8Array | ArrayBuffer | Blob | ReadableStream;
  readonly headers?: { readonly [name: string]: string };
  readonly signal?: AbortSignal | undefined;
  readonly retries?: number;
}

interface Received {
  readonly status: number;
  readonly headers: Headers;
  readonly bytes: ArrayBuffer;
}

/**
 * Calls throw ClientError for what the server refuses, `signal.reason` when they are aborted, and a TimeoutError after
 * the client's `timeout`.
 */
export class Client {
  readonly #url: string;
  readonly #headers: { readonly [name: string]: string };
  readonly #retries: number;
  readonly #timeout: number | undefined;
  readonly #fetch: typeof fetch;

  /**
   * @param url where `/v2` is, as `http://127.0.0.1:8000`
   * @throws OctconvError for a URL or options that make no sense.
   */
  constructor(url: string | URL, options: ClientOptions = {}) {
    checkOptions('client', options, clientOptions);
    const { token, retries = 3, timeout, fetch: ask = globalThis.fetch } = options;
    const parsed = URL.canParse(String(url)) ? new URL(url) : undefined;
    if (!parsed || !/^https?:$/.test(parsed.protocol))
      throw new OctconvError(`client: url ${show(String(url))}, wanted one as http://127.0.0.1:8000`);
    if (!(Number.isInteger(retries) && retries >= 0))
      throw new OctconvError(`client: retries: ${show(retries)}, wanted an integer of at least 0`);
    if (timeout !== undefined && !(timeout > 0 && timeout < 2 ** 31))
      throw new OctconvError(`client: timeout: ${show(timeout)}, wanted milliseconds`);
    this.#url = `${parsed.origin}${parsed.pathname.replace(/\/+$/, '')}/v2`;
    this.#headers = token === undefined ? {} : { authorization: `Bearer ${token}` };
    this.#retries = retries;
    this.#timeout = timeout;
    this.#fetch = ask;
  }

  /** Whether the server lives. */
  live(): Promise<boolean> {
    return this.#health('/health/live');
  }

  /** Whether the server, or a model, answers requests. */
  ready(model?: string, version?: string): Promise<boolean> {
    return this.#health(model === undefined ? '/health/ready' : `${pathOf(model, version)}/ready`);
  }

  metadata(): Promise<ServerMetadata>;
  metadata(model: string, version?: string): Promise<ModelMetadata>;
  metadata(model?: string, version?: string): Promise<ServerMetadata | ModelMetadata> {
    return this.#json('GET', model === undefined ? '' : pathOf(model, version));
  }

  /** All versions of all models. */
  index(): Promise<IndexEntry[]> {
    return this.#json('POST', '/repository/index');
  }

  /** Loads a model that was unloaded, is new or has changed. */
  async load(model: string): Promise<void> {
    await this.#json('POST', `/repository/models/${segment(model)}/load`);
  }

  /** The server answers what has come, and lets go of the model. */
  async unload(model: string): Promise<void> {
    await this.#json('POST', `/repository/models/${segment(model)}/unload`);
  }

  /** Of all versions that are ready, of one model or of all. */
  async statistics(model?: string): Promise<ModelStatistics[]> {
    const path = model === undefined ? '/models/stats' : `${pathOf(model)}/stats`;
    return (await this.#json<{ model_stats: ModelStatistics[] }>('GET', path)).model_stats;
  }

  /** What a network computes of one input. Elements go over the wire as they are in memory. */
  async infer(
    model: string,
    input: InferInput | Pick<Tensor, 'dtype' | 'shape' | 'data'>,
    options: ClientInferOptions = {},
  ): Promise<Inferred> {
    checkOptions('client: infer', options, inferOptions);
    const { version, signal, ...asked } = options;
    const { body, header } = inferBody(input, asked);
    const headers = { 'content-type': 'application/octet-stream', [lengthHeader]: String(header) };
    const path = `${pathOf(model, version)}/infer`;
    const { headers: got, bytes } = await this.#ask('POST', path, { body, headers, signal });
    try {
      return readAnswer(bytes, got.get(lengthHeader));
    } catch (error) {
      throw new ClientError(`${this.#url}${path}: ${(error as Error).message}`, { cause: error });
    }
  }

  /** What a picture or a video shows. A stream is sent once: it cannot be repeated. */
  async classify(
    model: string,
    source: Uint8Array | ArrayBuffer | Blob | ReadableStream<Uint8Array>,
    options: ClientClassifyOptions = {},
  ): Promise<ClientClassified> {
    checkOptions('client: classify', options, classifyOptions);
    const { version, signal, timeout, ...asked } = options;
    const query = new URLSearchParams();
    for (const [key, value] of Object.entries({ ...asked, timeout: microseconds(timeout) }))
      if (value !== undefined) query.set(key, String(value));
    const path = `${pathOf(model, version)}/classify?${query}`;
    const type = (source instanceof Blob && source.type) || 'application/octet-stream';
    const once = source instanceof ReadableStream && { retries: 0 };
    const sent = { body: source, headers: { 'content-type': type }, signal, ...once };
    const { model_name, model_version, results, milliseconds } = await this.#json<{
      model_name: string;
      model_version: string;
      results: readonly [{ top: Guess[] }];
      milliseconds: Answered['milliseconds'];
    }>('POST', path, sent);
    return { model: model_name, version: model_version, top: results[0].top, milliseconds };
  }

  /** 503, and Triton's 400, say that it is not. */
  async #health(path: string): Promise<boolean> {
    try {
      await this.#ask('GET', path, { retries: 0 });
      return true;
    } catch (error) {
      if (error instanceof ClientError && [400, 503].includes(error.status ?? 0)) return false;
      throw error;
    }
  }

  async #json<T>(method: string, path: string, sent: Sent = {}): Promise<T> {
    const { status, bytes } = await this.#ask(method, path, sent);
    const answer = jsonOf(bytes);
    if (typeof answer === 'object' && answer !== null) return answer as T;
    throw new ClientError(`${this.#url}${path}: the answer is no JSON`, { status });
  }

  /** The answer to one request, tried again where the server says so. */
  async #ask(method: string, path: string, { signal, retries = this.#retries, ...sent }: Sent): Promise<Received> {
    const timeout = this.#timeout === undefined ? undefined : AbortSignal.timeout(this.#timeout);
    const ends = signal && timeout ? AbortSignal.any([signal, timeout]) : (signal ?? timeout);
    for (let tried = 0; ; tried++) {
      const { status, headers, bytes } = await this.#once(method, path, sent, ends);
      if (status >= 200 && status < 300) return { status, headers, bytes };
      const retryAfter = secondsOf(headers.get('retry-after'));
      if (tried === retries || retryAfter === undefined || !retried.includes(status)) {
        const { error } = (jsonOf(bytes) ?? {}) as { error?: unknown };
        const why = typeof error === 'string' ? `: ${error}` : '';
        throw new ClientError(`${this.#url}${path}: status ${status}${why}`, {
          status,
          ...(retryAfter !== undefined && { retryAfter }),
        });
      }
      await pause(retryAfter * 1000 + Math.random() * backoff * 2 ** tried, ends);
    }
  }

  async #once(
    method: string,
    path: string,
    { body, headers }: Omit<Sent, 'signal' | 'retries'>,
    signal: AbortSignal | undefined,
  ): Promise<Received> {
    try {
      const ask = this.#fetch;
      const answer = await ask(`${this.#url}${path}`, {
        method,
        headers: { ...this.#headers, ...headers },
        ...(body && { body: body as Blob }),
        ...(body instanceof ReadableStream && { duplex: 'half' }),
        ...(signal && { signal }),
      });
      return { status: answer.status, headers: answer.headers, bytes: await answer.arrayBuffer() };
    } catch (error) {
      signal?.throwIfAborted();
      // fetch tells the reason in the cause alone.
      const { cause, message } = error as Error;
      const why = cause instanceof Error ? cause.message || (cause as NodeJS.ErrnoException).code : message;
      throw new ClientError(`${this.#url}${path}: ${why}`, { cause: error });
    }
  }
}

/** Dots would be another path. */
function segment(name: string): string {
  if (typeof name === 'string' && name !== '' && !/^\.{1,2}$/.test(name)) return encodeURIComponent(name);
  throw new OctconvError(`client: ${show(name)}, wanted the name of a model or version`);
}

const pathOf = (model: string, version?: string): string =>
  `/models/${segment(model)}${version === undefined ? '' : `/versions/${segment(version)}`}`;

/** At least one: 0 is none. */
const microseconds = (milliseconds: number | undefined): number | undefined =>
  milliseconds === undefined || !(milliseconds > 0) ? milliseconds : Math.max(1, Math.round(milliseconds * 1000));

/** Undefined if it is no JSON. */
function jsonOf(bytes: ArrayBuffer): unknown {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return undefined;
  }
}

/** Of `Retry-After`: seconds or a date. */
function secondsOf(text: string | null): number | undefined {
  if (text === null) return undefined;
  const seconds = /^\d+$/.test(text) ? Number(text) : (Date.parse(text) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, seconds) : undefined;
}

function pause(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  signal?.throwIfAborted();
  return new Promise((resolve, reject) => {
    const timer = setTimeout(
      () => {
        forget();
        resolve();
      },
      Math.min(milliseconds, 2 ** 31 - 1), // a timer takes no more
    );
    const forget = onAbort(signal, () => {
      clearTimeout(timer);
      reject(signal?.reason);
    });
  });
}

/** A request of one binary tensor, which follows `header` bytes of JSON. @internal */
export function inferBody(
  input: InferInput | Pick<Tensor, 'dtype' | 'shape' | 'data'>,
  { priority, timeout, outputs }: Pick<ClientInferOptions, 'priority' | 'timeout' | 'outputs'> = {},
): { readonly body: Uint8Array<ArrayBuffer>; readonly header: number } {
  const { name = 'input', datatype = undefined } = 'dtype' in input ? { datatype: datatypes[input.dtype] } : input;
  const { shape, data } = input;
  const known = datatype === 'BYTES' || (datatype !== undefined && Object.hasOwn(arrays, datatype));
  if (!known) throw new OctconvError(`client: datatype ${show(datatype)}, wanted BYTES or ${Object.keys(arrays)}`);
  const bytes = ArrayBuffer.isView(data)
    ? [new Uint8Array(data.buffer, data.byteOffset, data.byteLength)]
    : data.flatMap(prefixed);
  const json = new TextEncoder().encode(
    JSON.stringify({
      parameters: {
        priority,
        timeout: microseconds(timeout),
        binary_data_output: true,
      },
      inputs: [{ name, datatype, shape, parameters: { binary_data_size: lengthOf(bytes) } }],
      outputs: outputs?.map(({ name, classification }) => ({
        name,
        parameters: { binary_data: true, classification },
      })),
    }),
  );
  const body = new Uint8Array(json.length + lengthOf(bytes));
  let at = 0;
  for (const part of [json, ...bytes]) {
    body.set(part, at);
    at += part.length;
  }
  return { body, header: json.length };
}

const lengthOf = (parts: readonly Uint8Array[]): number => parts.reduce((sum, { length }) => sum + length, 0);

/** An element of BYTES, behind its length. */
function prefixed(element: string | Uint8Array): Uint8Array[] {
  const bytes = typeof element === 'string' ? new TextEncoder().encode(element) : element;
  const length = new Uint8Array(4);
  new DataView(length.buffer).setUint32(0, bytes.length, true);
  return [length, bytes];
}

interface Answer {
  readonly model_name: string;
  readonly model_version?: string;
  readonly outputs: readonly (Described<Datatype> & {
    readonly name: string;
    readonly parameters?: { readonly binary_data_size?: number };
    readonly data?: readonly unknown[];
  })[];
}

/** @param header bytes of JSON; null: all of it */
function readAnswer(bytes: ArrayBuffer, header: string | null): Inferred {
  let at = header === null ? bytes.byteLength : Number(header);
  if (!(at <= bytes.byteLength))
    throw new OctconvError(`the answer has ${bytes.byteLength} bytes, wanted ${show(header)} of JSON`);
  const answer = jsonOf(bytes.slice(0, at)) as Answer | undefined;
  if (!Array.isArray(answer?.outputs)) throw new OctconvError('the answer has no outputs');
  const outputs = (answer as Answer).outputs.map(
    ({ name, datatype, shape, parameters, data }): [string, InferOutput] => {
      if (datatype !== 'BYTES' && !Object.hasOwn(arrays, datatype))
        throw new OctconvError(`output ${show(name)}: datatype ${show(datatype)}`);
      const { binary_data_size: size } = parameters ?? {};
      const binary = size === undefined ? undefined : bytes.slice(at, at + size);
      at += size ?? 0;
      const read = binary
        ? elementsOf(datatype, binary)
        : valuesOf(datatype, data?.flat(Number.POSITIVE_INFINITY) ?? []);
      const count = shape.reduce((a, b) => a * b, 1);
      if (read.length !== count)
        throw new OctconvError(`output ${show(name)}: ${read.length} elements, wanted [${shape}]`);
      return [name, { name, datatype, shape, data: read } as InferOutput];
    },
  );
  const { model_name: model, model_version: version } = answer as Answer;
  return { model, version, outputs: Object.fromEntries(outputs) };
}

/** Elements of whole bytes; what is cut off is missing, and so their number is wrong. */
function elementsOf(datatype: Datatype, bytes: ArrayBuffer): InferOutput['data'] {
  if (datatype !== 'BYTES') {
    const ArrayType = arrays[datatype];
    return new ArrayType(bytes, 0, Math.floor(bytes.byteLength / ArrayType.BYTES_PER_ELEMENT));
  }
  const view = new DataView(bytes);
  const texts: string[] = [];
  for (let at = 0; at + 4 <= bytes.byteLength; ) {
    const length = view.getUint32(at, true);
    at += 4 + length;
    if (at <= bytes.byteLength) texts.push(new TextDecoder().decode(bytes.slice(at - length, at)));
  }
  return texts;
}

/** Of servers that answer in JSON. */
function valuesOf(datatype: Datatype, values: readonly unknown[]): InferOutput['data'] {
  if (datatype === 'BYTES') return values.map(String);
  if (datatype === 'INT64') return BigInt64Array.from(values as number[], BigInt);
  if (datatype === 'UINT64') return BigUint64Array.from(values as number[], BigInt);
  return arrays[datatype].from(values as number[]);
}
