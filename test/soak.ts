/**
 * A server under load for long: `npm run test:soak -- --minutes 15`. At 80 % of the load that saturates it, it gets
 * good requests, hostile ones (hostile.ts) and ones whose clients leave; its models are reloaded, and the process of
 * the isolated one is killed. It fails
 *
 * - if a good request to the other model fails, or has a wrong answer; one that is refused (429) is sent again,
 * - if one to the isolated model gets anything else than that, or 503 while its process is away,
 * - if a hostile one has a status other than 4xx and 200 (the change did no harm),
 * - if the server is not ready at the end, or its memory has grown.
 *
 * `--leak` is the control: the server keeps 64 KiB for each request (soak-leak.ts), and must fail for its memory.
 */
import {
  copyFileSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { Agent, request as httpRequest } from 'node:http';
import { type ClientHttp2Session, connect, constants } from 'node:http2';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath, URL } from 'node:url';
import { parseArgs } from 'node:util';
import {
  binaryInfer,
  type Called,
  call,
  callHeaders,
  faultOfPost,
  grpcInfer,
  harmless,
  hostileCalls,
  hostilePosts,
  jpegClassify,
  jsonInfer,
  methods,
  pixels,
  post,
  type Posted,
} from './hostile.js';
import { childrenThat } from './processes.js';
import { serving } from './serving.js';

/**
 * MiB between the medians of the second and the last quarter: V8's young generation is three spaces of up to 16 MiB,
 * which come and go. Half of the time lies in between, in which 15 minutes at 100 requests a second show a leak of
 * 1.1 KiB for each.
 */
const bound = 48;

const { values: flags } = parseArgs({ options: { minutes: { type: 'string' }, leak: { type: 'boolean' } } });
const minutes = Number(flags.minutes ?? (flags.leak ? 1 : 15));
if (!(minutes > 0)) throw new Error(`soak: --minutes ${flags.minutes}, wanted a number above 0`);

const [plain, isolated] = ['plain', 'isolated'] as const;
type Model = typeof plain | typeof isolated;

const counts = {
  ...{ requests: 0, answers: 0, refused: 0, unavailable: 0, aborted: 0, hostile: 0, kills: 0, reloads: 0 },
  ...{ failures: 0 },
};
function fail(what: string): void {
  if (counts.failures++ < 20) console.log(`failed: ${what}`);
}

// --- The server ---------------------------------------------------------------------------------------------------

const folder = mkdtempSync(join(tmpdir(), 'octconv-soak-'));
process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
const folderOf = (model: Model) => join(folder, 'models', model);
for (const [model, alpha] of [
  [plain, 50],
  [isolated, 0],
] as const)
  cpSync(fileURLToPath(new URL(`../models/cifar10-oct-resnet-26-a${alpha}`, import.meta.url)), folderOf(model), {
    recursive: true,
  });
mkdirSync(join(folder, 'new'));
const config = join(folder, 'serve.json');
const service = { maxBatch: 8, models: { isolated: { isolated: true } } };
writeFileSync(config, JSON.stringify({ models: 'models', service, log: { level: 'error' } }));
const server = await serving(config, flags.leak ? [`--import=${new URL('soak-leak.ts', import.meta.url)}`] : []);
let isOver = false;
void server.ended.then((how) => {
  if (!isOver) fail(`the server ended: ${how}\n${server.log.join('\n')}`);
  isOver = true;
});

const agent = new Agent({ keepAlive: true });
const sessions = new Map<string, ClientHttp2Session>();
/** A connection for gRPC; another one, when it has ended. */
function connection(use: 'good' | 'hostile'): ClientHttp2Session {
  const known = sessions.get(use);
  if (known && !known.closed && !known.destroyed) return known;
  const made = connect(`http://${server.grpc}`).on('error', () => undefined);
  sessions.set(use, made);
  return made;
}

/** MiB that are resident. */
function resident(): number {
  const [, kibibytes] = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${server.pid}/status`, 'latin1')) ?? [];
  return Number(kibibytes) / 1024;
}

// --- Good requests ------------------------------------------------------------------------------------------------

/** How a request has ended: `lost` are connections that end. */
interface Outcome {
  readonly kind: 'answered' | 'refused' | 'unavailable' | 'lost' | 'wrong';
  /** What is told of it. */
  readonly told: string;
  readonly answer?: unknown;
}

const kindOf: { readonly [status: number]: Outcome['kind'] } = { 429: 'refused', 503: 'unavailable', 0: 'lost' };
async function overHttp(posted: Posted, read: (body: Buffer) => unknown): Promise<Outcome> {
  const { status, headers, body } = await post(server.http, posted, agent);
  if (status === 200) return { kind: 'answered', told: 'answered', answer: read(body) };
  const told = `${posted.path}: status ${status} ${body}, Retry-After ${headers['retry-after']}`;
  const isTyped = status === 0 || (headers['retry-after'] && JSON.parse(body.toString()).error);
  return { kind: (isTyped && kindOf[status]) || 'wrong', told };
}

async function overGrpc(called: Called): Promise<Outcome> {
  const [code, body] = await call(connection('good'), called);
  const told = `ModelInfer: status ${code}`;
  if (code === 0) {
    const { raw_output_contents: raw } = methods.ModelInfer!.responseDeserialize(body.subarray(5)) as {
      raw_output_contents: Buffer[];
    };
    return { kind: 'answered', told, answer: floats(raw[0]!) };
  }
  if (code === 8) return { kind: 'refused', told };
  return { kind: code === 14 ? 'unavailable' : Number.isNaN(code) ? 'lost' : 'wrong', told };
}

/** The logits, which an answer ends with. */
const floats = (body: Buffer): number[] => [...new Float32Array(new Uint8Array(body.subarray(-40)).buffer)];
const ofJson = (body: Buffer): number[] => JSON.parse(body.toString()).outputs[0].data;
const ofPicture = (body: Buffer): string => JSON.parse(body.toString()).results[0].top[0].label;

/** Pictures of bytes, and what each model answers to them. */
const pictures = Array.from({ length: 8 }, (_, i) => pixels(1, i));
const wanted = { plain: [] as number[][], isolated: [] as number[][] };

const sent = {
  binary: (model: Model, i: number) => overHttp(binaryInfer(model, pictures[i]!), floats),
  json: (model: Model, i: number) => overHttp(jsonInfer(model, pictures[i]!), ofJson),
  picture: (model: Model) => overHttp(jpegClassify(model), ofPicture),
  ...(server.grpc && { call: (model: Model, i: number) => overGrpc(grpcInfer(model, pictures[i]!)) }),
};

function isRight(model: Model, i: number, answer: unknown): boolean {
  if (!Array.isArray(answer)) return answer === 'cat';
  const expected = wanted[model][i]!;
  return answer.length === expected.length && answer.every((x, at) => Math.abs(x - expected[at]!) < 1e-3);
}

/** When the process was killed, and when a request that was sent later was answered: in between it was away. */
let [killed, back] = [Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY];
/** Milliseconds in which a request that is refused is sent again. */
const patience = 120_000;

/** Sends a request, again where it is refused, and judges the answer. */
async function good(model: Model, how: keyof typeof sent, i: number): Promise<void> {
  const start = performance.now();
  counts.requests++;
  for (;;) {
    const begun = performance.now();
    const { kind, told, answer } = await sent[how]!(model, i);
    const wasAway = model === isolated && (killed > back || back > begun);
    if (isOver) return;
    if (kind === 'answered') {
      counts.answers++;
      if (!isRight(model, i, answer)) fail(`${model}, ${how}: wrong answer ${answer}`);
      if (model === isolated && begun > killed && killed > back) back = performance.now();
      return;
    }
    if (kind === 'unavailable' && wasAway) return void counts.unavailable++;
    if (kind !== 'refused' || performance.now() - start > patience) return fail(`${model}, ${how}: ${told}`);
    counts.refused++;
    await sleep(1000 + Math.random() * 500); // Retry-After
  }
}

// --- Others -------------------------------------------------------------------------------------------------------

const [posts, calls] = [hostilePosts(plain), hostileCalls(plain)];

async function hostile(i: number): Promise<void> {
  counts.hostile++;
  if (server.grpc && i % 2) {
    const [code] = await call(connection('hostile'), calls(1, i));
    if (!isOver && !Number.isNaN(code) && !harmless.includes(code)) fail(`hostile call ${i}: status ${code}`);
  } else {
    const answer = await post(server.http, posts(1, i), agent);
    const fault = answer.status ? faultOfPost(answer) : undefined;
    if (!isOver && fault) fail(`hostile request ${i}: ${fault}`);
  }
}

/** Sends all of a request, or half of it, and leaves. */
async function leave(i: number): Promise<void> {
  counts.aborted++;
  const model = i % 8 < 4 ? plain : isolated;
  if (server.grpc && i % 3 === 0) {
    const stream = connection('hostile')
      .request(callHeaders('ModelInfer'))
      .on('error', () => undefined);
    stream.write(grpcInfer(model, pictures[0]!).frames);
    if (i % 2) stream.end();
    await sleep(i % 20);
    return stream.close(constants.NGHTTP2_CANCEL);
  }
  const { path, headers, body } = i % 2 ? jpegClassify(model) : binaryInfer(model, pictures[0]!);
  const options = { method: 'POST', agent: false, headers: { ...headers, 'content-length': body.length } } as const;
  const left = httpRequest(server.http + path, options, (answer) => answer.resume()).on('error', () => undefined);
  left.write(i % 4 < 2 ? body : body.subarray(0, body.length / 2));
  await sleep(i % 20);
  left.destroy();
}

/** Writes the files of a model anew, each whole at once, and lets the server load it. */
async function reload(model: Model): Promise<void> {
  const there = folderOf(model);
  for (const name of readdirSync(there)) {
    copyFileSync(join(there, name), join(folder, 'new', name));
    renameSync(join(folder, 'new', name), join(there, name));
  }
  // A process that is killed while it loads the isolated model is an error of the call.
  for (let tries = 0; tries < 5; tries++) {
    const load = { path: `/v2/repository/models/${model}/load`, headers: {}, body: Buffer.alloc(0) };
    const { status, body } = await post(server.http, load, agent);
    if (isOver) return;
    if (status === 200) return void counts.reloads++;
    if (model === plain) return fail(`load: status ${status} ${body}`);
  }
  fail(`load of ${model}: five times`);
}

function kill(): void {
  const [pid] = childrenThat((_, commandLine) => commandLine.includes('engine-child'), server.pid);
  if (pid === undefined) return;
  killed = performance.now();
  process.kill(pid, 'SIGKILL');
  counts.kills++;
}

/** Does something again and again, the first time after half of the pause. */
async function every(pause: number, what: (n: number) => unknown): Promise<void> {
  await sleep(pause / 2);
  for (let n = 0; !isOver; n++) {
    await what(n);
    await sleep(pause);
  }
}

// --- Load ---------------------------------------------------------------------------------------------------------

const ways = Object.keys(sent) as (keyof typeof sent)[];
/** Of four requests three are for the model that is not isolated. */
const one = (n: number) => good(n % 4 ? plain : isolated, ways[(n % 5) % ways.length]!, n % pictures.length);

/** Requests answered in a second with 32 at a time. */
async function saturate(seconds: number): Promise<number> {
  const start = performance.now();
  let n = 0;
  const some = async () => {
    while (performance.now() - start < 1000 * seconds && !isOver) await one(n++);
  };
  await Promise.all(Array.from({ length: 32 }, some));
  return (1000 * n) / (performance.now() - start);
}

/** Requests that are open at most: where the machine has no time for the server, the load waits. */
const mostOpen = 256;

async function load(rate: number, until: number): Promise<void> {
  const open = new Set<Promise<void>>();
  let due = performance.now();
  for (let n = 0; due < until && !isOver; n++, due += 1000 / rate) {
    const early = due - performance.now();
    if (early > 1) await sleep(early);
    while (open.size >= mostOpen) {
      await Promise.race(open);
      due = performance.now();
    }
    const doing = n % 20 === 7 ? hostile((n - 7) / 20) : n % 40 === 9 ? leave((n - 9) / 40) : one(n);
    open.add(doing);
    void doing.finally(() => open.delete(doing));
  }
  await Promise.all(open);
}

function median(list: readonly number[]): number {
  return [...list].sort((a, b) => a - b)[list.length >> 1] ?? Number.NaN;
}

for (const model of [plain, isolated])
  for (const i of pictures.keys()) {
    const { answer, told } = await sent.binary(model, i);
    if (!answer) throw new Error(`soak: ${told}`);
    wanted[model].push(answer as number[]);
  }
const most = await saturate(5);
const rate = 0.8 * most;
console.log(`saturated at ${most.toFixed(0)} requests a second, ${rate.toFixed(0)} for ${minutes} minutes`);

const start = performance.now();
const memory: number[] = [];
void every(20_000, kill);
void every(15_000, (n) => reload(n % 2 ? isolated : plain));
void every(1000, () => memory.push(resident()));
const shown = () =>
  Object.entries(counts)
    .map(([name, n]) => `${name} ${n}`)
    .join(', ');
const minute = setInterval(() => {
  const past = Math.round((performance.now() - start) / 60_000);
  console.log(`${past} min: ${shown()}, ${resident().toFixed(0)} MiB`);
}, 60_000);
await load(rate, start + 60_000 * minutes);
clearInterval(minute);
if (!(await server.ready())) fail('the server is not ready at the end');
for (const name of ['answers', 'aborted', 'hostile', 'kills', 'reloads'] as const)
  if (counts[name] === 0) fail(`no ${name}: the time is too short`);

const quarters = [0, 1, 2, 3].map((quarter) =>
  median(memory.slice((quarter * memory.length) / 4, ((quarter + 1) * memory.length) / 4)),
);
const growth = quarters[3]! - quarters[1]!;
if (!(growth < bound)) fail(`memory grows by ${growth.toFixed(0)} MiB, wanted less than ${bound}`);
isOver = true;
const how = await server.end();
if (how !== 'exit code 0') fail(`the server, told to end, ended with ${how}`);

for (const [name, n] of Object.entries(counts)) console.log(`${name.padEnd(12)}${String(n).padStart(8)}`);
console.log(`resident, medians of quarters: ${quarters.map((median) => median.toFixed(0)).join(', ')} MiB`);
process.exit(counts.failures ? 1 : 0);
