/** What `bench serve` loads, each in a process of its own: the service, or Express around onnxruntime-node. */
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { type IntervalHistogram, monitorEventLoopDelay } from 'node:perf_hooks';
import type { Request, Response } from 'express';
import { classify } from '../classify.js';
import { OctconvError } from '../error.js';
import type { InputConfig } from '../input/preprocess.js';
import { loadModel } from '../model.js';
import { serveHttp } from '../service/server.js';
import { Service } from '../service/service.js';
import { Tensor, tensor } from '../tensor.js';
import { median } from './measure.js';
import { sessionOptions } from './peer.js';

export type Job = { readonly input: InputConfig; readonly jpeg: boolean } & (
  | { readonly folder: string; readonly queue: number }
  | { readonly onnx: string; readonly threads: number }
);

/** The name of the model in the service. */
export const served = 'model';

export interface Started {
  /** Where pictures are sent. */
  readonly url: string;
  /** Of the service: batches that are run, and how many at a time. */
  readonly sizes?: readonly number[];
  readonly instances?: number;
}

export interface Raw {
  /** Milliseconds of one picture. */
  readonly single: number;
  /** Pictures per second in batches of eight. */
  readonly rate: number;
  /** Of one picture, of tensors. */
  readonly logits?: readonly number[];
}

/** Milliseconds between two turns of the event loop. */
export interface Delay {
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

/** `raw`: the library without a service, on this picture. `delay`: since the last time it was asked. */
export type Ask = { readonly raw: Uint8Array; readonly seconds: number } | { readonly delay: true };
export type Said = Started | Raw | Delay | { readonly error: string };

async function start(job: Job): Promise<Started> {
  if ('onnx' in job) return { url: await express(job) };
  const service = await Service.open({ [served]: job.folder }, { batching: { queue: job.queue } });
  const { url } = await serveHttp(service);
  const { sizes, instances = 1 } = service.version(served).batching ?? {};
  return {
    url: `${url}/v2/models/${served}/${job.jpeg ? 'classify' : 'infer'}`,
    ...(sizes && { sizes }),
    instances,
  };
}

/** As a user writes it, who has read how onnxruntime is made fast. */
async function express({ onnx, threads, input, jpeg }: Extract<Job, { onnx: string }>): Promise<string> {
  const { default: express } = await import('express').catch((error: Error) => {
    throw new OctconvError(`bench: it compares with Express (npm install express): ${error.message.split('\n')[0]}`);
  });
  const { InferenceSession, Tensor } = await import('onnxruntime-node');
  const { default: sharp } = await import('sharp');
  const session = await InferenceSession.create(await readFile(onnx), sessionOptions(threads, 1));
  const [name = ''] = session.inputNames;
  const [output = ''] = session.outputNames;
  const { height, width, scale, mean, std } = input;
  const app = express();
  app.post('/infer', express.raw({ type: () => true, limit: '64mb' }), async (request: Request, response: Response) => {
    const body = request.body as Buffer;
    const pixels = jpeg ? await sharp(body).resize(width, height).removeAlpha().raw().toBuffer() : body;
    const area = height * width;
    const data = new Float32Array(3 * area);
    for (let c = 0; c < 3; c++)
      for (let i = 0; i < area; i++)
        data[c * area + i] = ((pixels[3 * i + c] as number) * scale - (mean[c] as number)) / (std[c] as number);
    const results = await session.run({ [name]: new Tensor('float32', data, [1, 3, height, width]) });
    response.json({ logits: Array.from(results[output]?.data as Float32Array) });
  });
  const server = app.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/infer`;
}

const batch = 8;

/** The library alone. Of a JPEG decoding counts, which goes on while the network runs. */
async function raw(job: Job, picture: Uint8Array, seconds: number): Promise<Raw> {
  if ('onnx' in job) throw new OctconvError('bench: the raw loop is of octconv');
  const model = await loadModel(job.folder);
  try {
    const { height, width } = job.input;
    const x = Tensor.zeros('u8', [batch, height, width, 3]);
    if (!job.jpeg) for (let i = 0; i < batch; i++) x.data.set(picture, i * picture.length);
    const one = job.jpeg ? undefined : tensor('u8', [1, height, width, 3], picture);
    const single = () => (one ? model.run(one) : model.classify(picture));
    const first = await single();
    const times: number[] = [];
    await during(seconds / 2, async () => {
      const began = performance.now();
      await single();
      times.push(performance.now() - began);
    });
    const rate = one ? await rateOf(() => model.run(x), seconds) : await rateOfPictures(classifying(), seconds);
    return { single: median(times), rate, ...(first instanceof Tensor && { logits: [...first.data] }) };
  } finally {
    model.dispose();
  }

  async function* classifying() {
    for (;;) yield* classify(model, Array(100 * batch).fill(picture), { batch });
  }
}

/** At least once. */
async function during(seconds: number, work: () => Promise<void>): Promise<void> {
  const began = performance.now();
  do await work();
  while (performance.now() - began < 1000 * seconds);
}

async function rateOf(run: () => Promise<unknown>, seconds: number): Promise<number> {
  await run();
  let runs = 0;
  const began = performance.now();
  await during(seconds, async () => {
    await run();
    runs++;
  });
  return (1000 * batch * runs) / (performance.now() - began);
}

/** Whole batches, behind the first. */
async function rateOfPictures(answers: AsyncGenerator<unknown>, seconds: number): Promise<number> {
  const next = async () => {
    for (let i = 0; i < batch; i++) await answers.next();
  };
  const rate = await rateOf(next, seconds);
  await answers.return(undefined);
  return rate;
}

const histogram = monitorEventLoopDelay({ resolution: 1 });

function delay(): Delay {
  const milliseconds = (nanoseconds: number) => nanoseconds / 1e6;
  const { max } = histogram as IntervalHistogram;
  const [p50, p99] = [50, 99].map((share) => milliseconds(histogram.percentile(share))) as [number, number];
  histogram.reset();
  return { p50, p99, max: milliseconds(max) };
}

async function say(said: () => Promise<Said> | Said): Promise<void> {
  const answer = await (async () => said())().catch((error: Error) => ({ error: error.message }));
  if (process.connected) process.send?.(answer);
}

const job = JSON.parse(process.argv[2] ?? '{}') as Job;
process.on('message', (ask: Ask) => void say(() => ('raw' in ask ? raw(job, ask.raw, ask.seconds) : delay())));
process.once('disconnect', () => process.exit(0));
await say(() => start(job));
histogram.enable();
