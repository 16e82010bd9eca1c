/**
 * Requests to both doors of the service: good ones, and hostile ones, which are good ones changed at random. Hostile
 * request i of a seed is always the same, so that one that does harm can be sent again.
 */
import { readFileSync } from 'node:fs';
import { type Agent, request as httpRequest } from 'node:http';
import type { ClientHttp2Session } from 'node:http2';
import { fileURLToPath } from 'node:url';
import type { ServiceDefinition } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

const pathOf = (path: string) => fileURLToPath(new URL(path, import.meta.url));
/** A photograph, as JPEG. */
export const cat = readFileSync(pathOf('images/cat.jpg'));

const form = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };
/** The methods of schemas/grpc.proto. */
export const methods = loadSync(pathOf('../schemas/grpc.proto'), form)[
  'inference.GRPCInferenceService'
] as ServiceDefinition;

// --- Good requests ------------------------------------------------------------------------------------------------

/** A POST over HTTP. */
export interface Posted {
  readonly path: string;
  readonly headers: { readonly [name: string]: string };
  readonly body: Buffer;
}

/** A call over gRPC; `frames` are the bytes of its request. */
export interface Called {
  readonly method: string;
  readonly frames: Buffer;
}

/** Bytes of some pictures, each another. */
export const pixels = (rows: number, seed = 0) =>
  Buffer.from(Uint8Array.from({ length: rows * 3072 }, (_, i) => (i * (31 + seed) + (i >> 7)) % 256));

const rowsOf = (x: Uint8Array) => ({ name: 'input', datatype: 'UINT8', shape: [x.length / 3072, 32, 32, 3] });
const binaryHeader = 'inference-header-content-length';

/** `infer` of pixels as a binary tensor, answered so too. `more` are other fields of the request. */
export function binaryInfer(model: string, x: Uint8Array, more: object = {}): Posted {
  const inputs = [{ ...rowsOf(x), parameters: { binary_data_size: x.length } }];
  const json = Buffer.from(JSON.stringify({ inputs, parameters: { binary_data_output: true }, ...more }));
  const headers = { 'content-type': 'application/octet-stream', [binaryHeader]: `${json.length}` };
  return { path: `/v2/models/${model}/infer`, headers, body: Buffer.concat([json, x]) };
}

/** `infer` in JSON. */
export function jsonInfer(model: string, x: Uint8Array, more: object = {}): Posted {
  const body = Buffer.from(JSON.stringify({ inputs: [{ ...rowsOf(x), data: [...x] }], ...more }));
  return { path: `/v2/models/${model}/infer`, headers: { 'content-type': 'application/json' }, body };
}

/** `classify` of the photograph. */
export const jpegClassify = (model: string): Posted => ({
  path: `/v2/models/${model}/classify?top=1`,
  headers: { 'content-type': 'image/jpeg' },
  body: cat,
});

/** A message, as it goes over the wire. */
export function frameOf(flag: number, message: Uint8Array): Buffer {
  const head = Buffer.alloc(5);
  head[0] = flag;
  head.writeUInt32BE(message.length, 1);
  return Buffer.concat([head, message]);
}

/** `ModelInfer` of pixels. `more` are other fields of the request. */
export function grpcInfer(model: string, x: Uint8Array, more: object = {}): Called {
  const message = { model_name: model, inputs: [rowsOf(x)], raw_input_contents: [x], ...more };
  return { method: 'ModelInfer', frames: frameOf(0, methods.ModelInfer!.requestSerialize(message)) };
}

// --- Hostile requests ---------------------------------------------------------------------------------------------

/** So many for each door in the suite; where sanitizers watch some of them (tools/test-under.mjs). */
export const hostileCount = Math.ceil(5000 / Number(process.env.OCTCONV_TEST_ONE_IN || 1));

/** An integer from 0, below another one. */
type Random = (below: number) => number;

/** mulberry32, for a request of a seed. */
function randomOf(seed: number, request: number): Random {
  let state = (Math.imul(seed, 2 ** 22) + request) | 0;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

const pick = <T>(list: readonly T[], random: Random): T => list[random(list.length)] as T;

const words =
  '-1 0 1e99 null "" [] {} [[ 9007199254740993 4294967295 "FP16" "BYTES" "FP32" __proto__ \0 ] " , \ud800'.split(' ');

/** One to three changes, of which most lie in the first `head` bytes: those describe a tensor, the others are it. */
function changed(given: Buffer, head: number, random: Random): Buffer {
  let bytes = given;
  for (let n = 1 + random(3); n > 0; n--) {
    const at = random(random(4) ? Math.min(bytes.length, head) : bytes.length);
    const [before, after] = [bytes.subarray(0, at), bytes.subarray(at)];
    const first = after[0] ?? 0;
    const parts = pick(
      [
        [before],
        [before, Buffer.of(random(256)), after.subarray(1)],
        [before, Buffer.of(first ^ (1 << random(8))), after.subarray(1)],
        [before, Buffer.alloc(1 + random(9), random(256)), after],
        [before, Buffer.from(pick(words, random)), after],
        [before, after.subarray(1 + random(9))],
        [bytes, after],
      ],
      random,
    );
    bytes = Buffer.concat(parts);
  }
  return bytes;
}

const length = Buffer.alloc(4);
length.writeUInt32LE(cat.length);
const file = Buffer.concat([length, cat]);
const ofFile = { name: 'input', datatype: 'BYTES', shape: [1] };

/** Hostile requests to a model over HTTP. */
export function hostilePosts(model: string): (seed: number, i: number) => Posted {
  const inputs = [{ ...ofFile, parameters: { binary_data_size: file.length } }];
  const json = Buffer.from(JSON.stringify({ inputs }));
  const tensors = [binaryInfer(model, pixels(1), { parameters: {} }), binaryInfer(model, pixels(2))];
  const good = [
    ...tensors,
    ...tensors,
    jsonInfer(model, pixels(1), { outputs: [{ name: 'logits', parameters: { classification: 3 } }] }),
    jsonInfer(model, pixels(1), { parameters: { priority: 1 } }),
    { ...tensors[0]!, headers: { [binaryHeader]: `${json.length}` }, body: Buffer.concat([json, file]) },
    jpegClassify(model),
  ];
  return (seed, i) => {
    const random = randomOf(seed, i);
    const { path, headers, body } = pick(good, random);
    const given: Record<string, string> = { ...headers };
    const size = given[binaryHeader];
    if (size && !random(3)) given[binaryHeader] = `${random(2) ? Number(size) + random(5) - 2 : random(4000)}`;
    if (!random(16)) given[binaryHeader] = escaped(pick(words, random));
    if (!random(32)) given['content-type'] = escaped(changed(Buffer.from(given['content-type'] ?? 'a/b'), 99, random));
    const to = random(16) ? path : `/${escaped(changed(Buffer.from(path.slice(1)), 99, random))}`;
    return { path: to, headers: given, body: random(16) ? changed(body, Number(size ?? 300), random) : body };
  };
}

/** Node's client sends no other characters in paths and headers. */
const escaped = (bytes: Buffer | string): string =>
  bytes
    .toString('latin1')
    .replace(/[^!-~]/g, (character) => `%${character.charCodeAt(0).toString(16).padStart(2, '0')}`);

/** Hostile calls about a model over gRPC. */
export function hostileCalls(model: string): (seed: number, i: number) => Called {
  const contents = { uint_contents: [...pixels(1)] };
  const good = [
    { id: 'a', parameters: { priority: { int64_param: 1 } }, outputs: [{ name: 'logits' }] },
    { inputs: [{ ...rowsOf(pixels(1)), contents }], raw_input_contents: [] },
    { inputs: [ofFile], raw_input_contents: [file] },
  ].map((more) => grpcInfer(model, pixels(1), more).frames);
  const called = ['ModelInfer', 'ModelInfer', 'ModelStreamInfer', 'ModelMetadata', 'RepositoryIndex'];
  return (seed, i) => {
    const random = randomOf(seed, i);
    const frames = changed(pick(good, random), 80, random);
    // The frame's length fits most of the time.
    if (frames.length >= 5 && random(4)) frames.writeUInt32BE(frames.length - 5, 1);
    return { method: pick(called, random), frames };
  };
}

// --- Sending ------------------------------------------------------------------------------------------------------

/** What HTTP answers; the status 0 says that the connection ended without an answer. */
export interface Answer {
  readonly status: number;
  readonly headers: { readonly [name: string]: string | string[] | undefined };
  readonly body: Buffer;
}

/** Sends a request over HTTP, once more where a connection was used before and has ended meanwhile. */
export function post(url: string, posted: Posted, agent: Agent): Promise<Answer> {
  const { path, headers, body } = posted;
  return new Promise((resolve) => {
    const options = { method: 'POST', agent, headers: { ...headers, 'content-length': body.length } };
    const sent = httpRequest(url + path, options, async (answer) => {
      const parts: Buffer[] = [];
      answer.on('data', (part: Buffer) => parts.push(part));
      answer.on('error', () => resolve({ status: 0, headers: {}, body: Buffer.alloc(0) }));
      answer.on('end', () =>
        resolve({ status: answer.statusCode ?? 0, headers: answer.headers, body: Buffer.concat(parts) }),
      );
    });
    sent.on('error', ({ code }: NodeJS.ErrnoException) => {
      if (sent.reusedSocket && code === 'ECONNRESET') resolve(post(url, posted, agent));
      else resolve({ status: 0, headers: {}, body: Buffer.alloc(0) });
    });
    sent.end(body);
  });
}

/** Why an answer to a hostile request is a fault: it is none of 200 and 4xx, or does not tell an error as it should. */
export function faultOfPost({ status, body }: Answer): string | undefined {
  if (status === 200) return undefined;
  if (status < 400 || status > 499) return `status ${status}: ${body.subarray(0, 500)}`;
  try {
    const { error } = JSON.parse(body.toString());
    return typeof error === 'string' && !/\n +at /.test(error) ? undefined : `error ${JSON.stringify(error)}`;
  } catch {
    return `status ${status}, body ${body.subarray(0, 500)}`;
  }
}

export interface CallOptions {
  readonly headers?: { readonly [name: string]: string };
  /** Whether the request ends; default true. */
  readonly end?: boolean;
}

/** Headers of a call. */
export const callHeaders = (method: string) => ({
  ':method': 'POST',
  ':path': `/inference.GRPCInferenceService/${method}`,
  'content-type': 'application/grpc',
  te: 'trailers',
});

/** The status of a call on a connection, and the bytes of its answer; NaN if it ended without a status. */
export async function call(
  session: ClientHttp2Session,
  { method, frames }: Called,
  { headers = {}, end = true }: CallOptions = {},
): Promise<[code: number, body: Buffer]> {
  const stream = session.request({ ...callHeaders(method), ...headers });
  let code: unknown;
  const keep = (headers: object) => {
    code = (headers as { 'grpc-status'?: string })['grpc-status'] ?? code;
  };
  stream.on('response', keep).on('trailers', keep);
  stream.write(frames);
  if (end) stream.end();
  const parts: Buffer[] = [];
  stream.on('data', (part) => void parts.push(part));
  // Streams that are reset too often end the connection: only one that does not end by itself is.
  if (!end) stream.on('end', () => stream.close());
  await new Promise((resolve) => stream.on('error', resolve).on('close', resolve));
  return [code === undefined ? Number.NaN : Number(code), Buffer.concat(parts)];
}

/** Statuses that a hostile call may have: OK, INVALID_ARGUMENT, NOT_FOUND, RESOURCE_EXHAUSTED, UNIMPLEMENTED. */
export const harmless: readonly number[] = [0, 3, 5, 8, 12];
