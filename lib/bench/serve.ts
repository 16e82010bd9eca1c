/**
 * The service under load: open loop over HTTP, stage by stage to saturation and beyond, beside the library without a
 * service, Express around onnxruntime-node and MLServer around onnxruntime. The server has a process of its own, the
 * load is in this one.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import sharp from 'sharp';
import { inferBody } from '../client.js';
import { devices } from '../devices.js';
import { OctconvError, show } from '../error.js';
import { readerOf, toOnnx } from '../graph/onnx.js';
import { isClip } from '../input/clips.js';
import type { InputConfig } from '../input/preprocess.js';
import { openNetwork, record } from '../model.js';
import { type NetworkOptions, resolveNetworkOptions } from '../models/index.js';
import { tensor } from '../tensor.js';
import { writeModelFolder } from '../weights/folder.js';
import { offer, saturate, type Stage, Target } from './load.js';
import { type Machine, machine, relativeError } from './measure.js';
import { inFolder } from './folder.js';
import { findMlServer, MlServer, mlServerRequest, without } from './mlserver.js';
import { Net } from './models.js';
import { peerVersion } from './peer.js';
import type { Ask, Delay, Job, Raw, Said, Started } from './serve-child.js';
import { share, table } from './table.js';

export interface BenchServeOptions {
  /** A model folder; otherwise a network with random weights. */
  readonly model?: string | undefined;
  readonly network: string;
  readonly options?: NetworkOptions | undefined;
  readonly size: number;
  /** Of a stage. */
  readonly seconds: number;
  /** Pictures per second, ascending; default: shares of what a closed loop reaches. Saturation ends them. */
  readonly rates?: readonly number[] | undefined;
  /** JPEGs instead of tensors: a file, or true for a made one of 500 x 375. */
  readonly jpeg?: string | true | undefined;
  /** Rows that may wait in the service. */
  readonly queue: number;
  /** Whether Express is loaded too, and with tensors MLServer, where OCTCONV_PYTHON names a Python that has it. */
  readonly peers: boolean;
  readonly progress?: (text: string) => void;
}

export interface StageRow extends Stage {
  /** Of the event loop of the server, if it is in Node. */
  readonly loop?: Delay | undefined;
}

export interface ServerRow {
  readonly by: 'octconv' | 'express' | 'mlserver';
  readonly network: string;
  /** Absent for a plain network. */
  readonly alpha?: number | undefined;
  /** Of rising rate; they end with the second in a row in which the server did not keep up. */
  readonly stages: readonly StageRow[];
  /** Whether it did not in the last one. */
  readonly saturated: boolean;
  /** The most pictures per second in any of them. */
  readonly saturation: number;
  /** At half of that, and at twice. */
  readonly half: StageRow;
  readonly beyond: StageRow;
}

export interface ServeGoal {
  readonly goal: string;
  readonly wanted: string;
  readonly found: string;
  readonly met: boolean;
}

export interface ServeResult {
  readonly bench: 'serve';
  readonly machine: Machine;
  /** Version of onnxruntime-node, where it was loaded. */
  readonly peer?: string | undefined;
  /** Versions of MLServer and its onnxruntime, or why it was left out, where peers were loaded. */
  readonly mlserver?: string | undefined;
  readonly network: string;
  readonly options: NetworkOptions;
  readonly input: 'u8' | 'jpeg';
  /** Of a picture as the network sees it, and of a request. */
  readonly height: number;
  readonly width: number;
  readonly bytes: number;
  readonly seconds: number;
  readonly queue: number;
  readonly batching: Omit<Started, 'url'>;
  /** The better of before and after the load. */
  readonly raw: Omit<Raw, 'logits'>;
  readonly servers: readonly ServerRow[];
  /** None where the service was not saturated: what it can do is not known then. */
  readonly goals: readonly ServeGoal[];
}

/** Of what a closed loop reaches. */
const shares = [0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.35, 1.5, 2];
/** A server that answers less of what it is asked does not keep up. */
const keepsUp = 0.95;
/** Requests in flight of that closed loop, where the queue has room for them. */
const closed = 32;

/** @throws OctconvError if the service gives other logits than the library, or onnxruntime on the same network does. */
export async function benchServe(given: BenchServeOptions): Promise<ServeResult> {
  const { seconds, queue, jpeg, peers, progress } = given;
  const peer = peers ? await peerVersion() : undefined;
  const found = peers ? await findMlServer(!!jpeg) : undefined;
  return inFolder(async (folder) => {
    progress?.('writing the networks');
    const subject = await prepare(given, folder);
    const { input, network, options } = subject;
    const { height, width } = input;
    const picture = jpeg ? await (jpeg === true ? madePicture() : readFile(jpeg)) : noise(3 * height * width);
    const common = { input, jpeg: !!jpeg };
    const alpha = network.startsWith('oct-') ? options.alpha : undefined;

    const request = requestOf(picture, input, !!jpeg);
    const { row, batching, raws } = await inProcess({ ...common, folder: subject.folder, queue }, async (server) => {
      progress?.('the library alone');
      const before = await server.raw(picture, seconds);
      if (before.logits) await checkLogits(server.started.url, request, 'the service and the library', before.logits);
      const row = { by: 'octconv', network, alpha, ...(await loadServer(server, request, given, 'octconv')) } as const;
      progress?.('the library alone');
      const after = await server.raw(picture, seconds);
      const { url: _, ...batching } = server.started;
      return { row, batching, raws: [before, after] as const };
    });
    const servers: ServerRow[] = [row];
    const raw = {
      single: Math.min(...raws.map(({ single }) => single)),
      rate: Math.max(...raws.map(({ rate }) => rate)),
    };
    const plainRequest = { ...request, body: picture, headers: { 'content-type': 'application/octet-stream' } };
    for (const { onnx, ...of } of peers ? subject.onnx : []) {
      const row = await inProcess({ ...common, onnx, threads: devices().threads }, async (server) => {
        if (of.network === network && raws[0].logits)
          await checkLogits(server.started.url, plainRequest, 'onnxruntime and the library', raws[0].logits);
        return loadServer(server, plainRequest, given, `express, ${of.network}`);
      });
      servers.push({ by: 'express', ...of, ...row });
    }
    let mlserver = found?.about;
    if (found?.python !== undefined)
      for (const { onnx, ...of } of subject.onnx) {
        const { python } = found;
        const job = { python, onnx, threads: devices().threads, input, folder: join(folder, `mlserver-${of.network}`) };
        const server = await MlServer.start(job).catch(({ message }: Error) => message);
        if (typeof server === 'string') {
          mlserver = without(`${of.network}: ${server}`); // what is measured is not lost
          break;
        }
        try {
          const asked = mlServerRequest(picture);
          if (of.network === network && raws[0].logits)
            await checkLogits(server.url, asked, 'MLServer and the library', raws[0].logits);
          const row = await loadServer(server, asked, given, `mlserver, ${of.network}`);
          servers.push({ by: 'mlserver', ...of, ...row });
        } finally {
          await server.stop();
        }
      }
    const sent = jpeg ? ('jpeg' as const) : ('u8' as const);
    const measured = { raw, servers, input: sent, machine: machine() };
    return {
      bench: 'serve',
      peer,
      mlserver,
      network,
      options,
      height,
      width,
      bytes: picture.length,
      seconds,
      queue,
      batching,
      ...measured,
      goals: row.saturated ? goalsOf(row, measured) : [],
    };
  });
}

// --- What is served ---------------------------------------------------------------------------------------------

interface Subject {
  readonly network: string;
  readonly options: NetworkOptions;
  readonly input: InputConfig;
  /** For the service. */
  readonly folder: string;
  /** For the peers: the same network, and its plain form where it is an octave network. */
  readonly onnx: readonly { readonly network: string; readonly alpha?: number | undefined; readonly onnx: string }[];
}

async function prepare({ model, network, options = {}, size, peers }: BenchServeOptions, to: string): Promise<Subject> {
  const own = model === undefined ? new Net(network, options, size) : undefined;
  const folder = model ?? join(to, 'model');
  if (own) await writeModelFolder(folder, own.described.config, own.described.labels, own.weights);
  const opened = await openNetwork(folder);
  try {
    const { name = network, input } = opened;
    const { alpha, ...others } = opened.options as NetworkOptions;
    if (!input || isClip(input) || input.channels === 'gray' || input.channels === 'bgr')
      throw new OctconvError(`bench: serve: ${show(name)}, wanted a network of RGB pictures`);
    const onnx: Subject['onnx'][number][] = [];
    const shape = [1, input.height, input.width, 3];
    const write = async (network: string, alpha: number | undefined, model: Uint8Array) => {
      const file = join(to, `${network}.onnx`);
      await writeFile(file, model);
      onnx.push({ network, alpha, onnx: file });
    };
    if (peers) {
      const octave = name.startsWith('oct-');
      const source = readerOf(opened.source);
      await write(name, octave ? alpha : undefined, await toOnnx(record(opened.network, shape), source));
      if (octave) {
        const plain = new Net(name.slice('oct-'.length), others, input.height);
        await write(plain.name, undefined, await toOnnx(record(plain.network, shape), readerOf(plain.weights)));
      }
    }
    return {
      network: name,
      options: resolveNetworkOptions(name, { ...others, ...(alpha !== undefined && { alpha }) }),
      input,
      folder,
      onnx,
    };
  } finally {
    await opened.source.close();
  }
}

/** Bytes without structure. */
function noise(length: number): Uint8Array {
  let state = length;
  return Uint8Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 24;
  });
}

/** Smooth as a photograph, with some noise: as many bytes as one of its size has. */
async function madePicture(width = 500, height = 375): Promise<Uint8Array> {
  const [w, h] = [40, 30];
  const smooth = sharp(noise(3 * w * h), { raw: { width: w, height: h, channels: 3 } }).resize(width, height);
  const pixels = await smooth.raw().toBuffer();
  const fine = noise(pixels.length);
  const grainy = pixels.map((value, i) => Math.min(255, value + ((fine[i] as number) >> 4)));
  return sharp(grainy, { raw: { width, height, channels: 3 } })
    .jpeg({ quality: 90 })
    .toBuffer();
}

// --- Servers ----------------------------------------------------------------------------------------------------

interface PictureRequest {
  readonly headers: { readonly [name: string]: string };
  readonly body: Uint8Array;
}

/** One picture for our server. */
function requestOf(picture: Uint8Array, { height, width }: InputConfig, jpeg: boolean): PictureRequest {
  if (jpeg) return { headers: { 'content-type': 'image/jpeg' }, body: picture };
  const { body, header } = inferBody(tensor('u8', [1, height, width, 3], picture));
  const headers = { 'content-type': 'application/octet-stream', 'inference-header-content-length': String(header) };
  return { headers, body };
}

/** Beside this file, and like it compiled or not. */
const childFile = fileURLToPath(new URL(`serve-child${extname(import.meta.url)}`, import.meta.url));

class Server {
  private constructor(
    readonly child: ChildProcess,
    readonly started: Started,
  ) {}

  static async start(job: Job): Promise<Server> {
    const stdio = ['ignore', 'ignore', 'inherit', 'ipc'] as const;
    const child = fork(childFile, [JSON.stringify(job)], { serialization: 'advanced', stdio: [...stdio] });
    try {
      return new Server(child, (await answerOf(child)) as Started);
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
  }

  get url(): string {
    return this.started.url;
  }

  raw(picture: Uint8Array, seconds: number): Promise<Raw> {
    return this.#ask({ raw: picture, seconds });
  }

  /** Since the last call. */
  delay(): Promise<Delay> {
    return this.#ask({ delay: true });
  }

  async #ask<T>(ask: Ask): Promise<T> {
    const answer = answerOf(this.child);
    this.child.send(ask);
    return (await answer) as T;
  }

  async stop(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const ended = once(this.child, 'exit');
    this.child.kill('SIGKILL'); // nobody waits for its answers any more
    await ended;
  }
}

/** What it says next. */
async function answerOf(child: ChildProcess): Promise<Said> {
  const settled = new AbortController();
  const { signal } = settled;
  try {
    const [said] = (await Promise.race([
      once(child, 'message', { signal }),
      once(child, 'exit', { signal }).then(([code, by]) => {
        throw new OctconvError(`bench: the server ended: ${by ?? `exit code ${code}`}`);
      }),
    ])) as [Said];
    if ('error' in said) throw new OctconvError(said.error);
    return said;
  } finally {
    settled.abort();
  }
}

async function inProcess<T>(job: Job, work: (server: Server) => Promise<T>): Promise<T> {
  const server = await Server.start(job);
  try {
    return await work(server);
  } finally {
    await server.stop();
  }
}

async function checkLogits(
  url: string,
  { body, headers }: PictureRequest,
  what: string,
  wanted: readonly number[],
): Promise<void> {
  const answer = await fetch(url, { method: 'POST', body: new Uint8Array(body), headers });
  const bytes = Buffer.from(await answer.arrayBuffer());
  if (!answer.ok) throw new OctconvError(`bench: ${url}: status ${answer.status}: ${bytes}`);
  const header = answer.headers.get('inference-header-content-length');
  const logits =
    header === null
      ? Float32Array.from(logitsOf(JSON.parse(String(bytes))))
      : new Float32Array(new Uint8Array(bytes.subarray(Number(header))).buffer);
  const error = relativeError(logits, Float32Array.from(wanted));
  if (!(error < 1e-3)) throw new OctconvError(`bench: ${what} differ by ${error}, wanted less than 0.001`);
}

/** As Express and MLServer tell them. */
const logitsOf = (
  json: { readonly logits: number[] } | { readonly outputs: [{ readonly data: number[] }] },
): number[] => ('logits' in json ? json.logits : json.outputs[0].data);

// --- Load -------------------------------------------------------------------------------------------------------

async function loadServer(
  server: Pick<Server, 'url'> & Partial<Pick<Server, 'delay'>>,
  { headers, body }: PictureRequest,
  { seconds, rates, queue, progress }: BenchServeOptions,
  name: string,
): Promise<Omit<ServerRow, 'by' | 'network' | 'alpha'>> {
  const { url } = server;
  const stage = async (rate: number): Promise<StageRow> => {
    progress?.(`${name}: ${rate.toFixed(1)} pictures/s`);
    await server.delay?.();
    return { ...(await offer(new Target(url, headers, body), rate, seconds)), loop: await server.delay?.() };
  };
  progress?.(`${name}: a closed loop`);
  const reached = await saturate(new Target(url, headers, body), Math.min(closed, queue), seconds / 2);
  if (!(reached > 0)) throw new OctconvError(`bench: ${name}: a closed loop has no answer`);
  const stages: StageRow[] = [];
  const isBehind = ({ rate, refused, goodput }: Stage) => refused > 0 || goodput < keepsUp * rate;
  for (const rate of rates ?? shares.map((share) => share * reached)) {
    stages.push(await stage(rate));
    if (stages.length > 1 && stages.slice(-2).every(isBehind)) break; // one may be bad luck
  }
  const saturated = isBehind(stages.at(-1) as StageRow);
  const saturation = Math.max(...stages.map(({ goodput }) => goodput));
  if (!(saturation > 0))
    throw new OctconvError(`bench: ${name}: no answer in stages of ${seconds} s, wanted longer ones`);
  const half = await stage(saturation / 2);
  return { stages, saturated, saturation, half, beyond: await stage(2 * saturation) };
}

// --- Result -----------------------------------------------------------------------------------------------------

function goalsOf(
  { stages, saturation, half, beyond }: ServerRow,
  { raw, input, machine }: Pick<ServeResult, 'raw' | 'input' | 'machine'>,
): ServeGoal[] {
  const ms = (value: number | undefined) => (value === undefined ? 'none' : `${value.toFixed(1)} ms`);
  const least = (goal: string, found: number, wanted: number): ServeGoal => {
    const exact = `${(100 * found).toFixed(1)} %`; // 94.9 is not 95
    return { goal, wanted: `>= ${share(wanted)}`, found: exact, met: found >= wanted };
  };
  const below = (goal: string, found: number | undefined, wanted: number): ServeGoal => {
    return { goal, wanted: `< ${ms(wanted)}`, found: ms(found), met: found !== undefined && found < wanted };
  };
  const most = stages.find(({ goodput }) => goodput === saturation) as StageRow;
  const [ofRaw, wanted] = [saturation / raw.rate, input === 'jpeg' ? 0.85 : 0.95];
  return [
    least('throughput at saturation, of the library alone', ofRaw, wanted),
    least('... on the cores that the load leaves', ofRaw / (1 - most.cores / machine.cores), wanted),
    below('event loop p99 at saturation', most.loop?.p99, 5),
    below('p99 at half of saturation: 3 x one picture alone', half.latency?.p99, 3 * raw.single),
    least('goodput at twice saturation', beyond.goodput / saturation, 0.95),
    ...(beyond.refused > 0 ? [below('refused in, p99', beyond.refusal?.p99, 10)] : []),
  ];
}

export function serveTable(result: ServeResult): string {
  const { machine, peer, mlserver, network, options, input, height, width, bytes, seconds, queue, batching, raw } =
    result;
  const head = ['server', 'network', 'alpha', 'stage', 'offered/s', 'answered/s', 'p50', 'p99', 'p99.9'];
  head.push('refused', 'in p99', 'failed', 'loop p99', 'lag p99', 'load');
  const ms = (value: number | undefined) => value?.toFixed(1) ?? '';
  const lines = result.servers.flatMap(({ by, network, alpha, stages, half, beyond }) =>
    [...stages.map((row) => ['rising', row] as const), ['half', half] as const, ['twice', beyond] as const].map(
      ([stage, { rate, goodput, latency, sent, refused, refusal, failed, loop, lag, cores }]) => [
        ...[by, network, String(alpha ?? 'plain'), stage, rate.toFixed(1), goodput.toFixed(1)],
        ...[latency?.p50, latency?.p99, latency?.p999].map(ms),
        ...[refused ? share(refused / sent) : '', ms(refusal?.p99), String(failed || ''), ms(loop?.p99), ms(lag.p99)],
        cores.toFixed(2),
      ],
    ),
  );
  const [ours] = result.servers as readonly [ServerRow];
  const most = result.servers.map(({ by, network, alpha, saturation, saturated }) => [
    by,
    network,
    String(alpha ?? 'plain'),
    `${saturation.toFixed(1)}${saturated ? '' : ' (not saturated)'}`,
    `${(ours.saturation / saturation).toFixed(2)} x`,
  ]);
  const goals = result.goals.map(({ goal, wanted, found, met }) => [goal, wanted, found, met ? 'met' : 'missed']);
  const octave = options.alpha === undefined ? '' : `, alpha ${options.alpha}`;
  return [
    `${machine.cpu}, ${machine.isa}, ${machine.cores} cores, node ${machine.node}${peer ? `; onnxruntime-node ${peer}` : ''}`,
    ...(mlserver === undefined ? [] : [mlserver]),
    `${network}${octave}, ${height} x ${width}, ${input === 'jpeg' ? 'JPEGs' : 'binary u8 tensors'} of ${bytes} bytes, one per request; stages of ${seconds} s, open loop`,
    `batches of ${batching.sizes?.join(', ')}, ${batching.instances} at a time, a queue of ${queue}`,
    `the library alone: ${raw.rate.toFixed(1)} pictures/s in batches of 8, ${raw.single.toFixed(1)} ms for one`,
    'ms from when a request was due; in: of those that were refused; loop: turns of the event loop of the server;',
    'lag: how late the load itself was, which is in the others; load: cores that it took',
    '',
    table(head, lines, { left: ['network', 'alpha', 'stage'], drop: ['p50', 'lag p99', 'alpha', 'failed'] }),
    '',
    table(['server', 'network', 'alpha', 'most/s', 'octconv to it'], most, { left: ['network', 'alpha'] }),
    '',
    goals.length ? table(['goal', 'wanted', 'found', ''], goals, { left: [''] }) : 'not saturated: no goal is judged',
  ].join('\n');
}
