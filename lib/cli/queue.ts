/** `octconv worker` and `octconv submit`: work queues. */
import { randomBytes } from 'node:crypto';
import { access, constants, readFile, stat } from 'node:fs/promises';
import { type Command, Option } from 'commander';
import { OctconvError } from '../error.js';
import type { ComputeType } from '../graph/graph.js';
import type { Device } from '../native.js';
import type { NatsOptions, Result } from '../queue/index.js';
import type { NatsQueue } from '../queue/nats.js';
import { fileError } from '../weights/file.js';
import { deviceOption, dtypeOption, integer, number } from './common.js';
import { note, percent, print, printJson } from './output.js';

interface QueueFlags {
  nats: string;
  queue: string;
  replicas?: number;
  ackWait?: number;
  credentials?: string;
}

function addQueueOptions(command: Command): Command {
  return command
    .addOption(
      new Option('--nats <urls>', 'servers of NATS, joined by commas')
        .default('nats://localhost:4222')
        .env('OCTCONV_NATS'),
    )
    .option('--queue <name>', 'of the queue', 'octconv')
    .option('--replicas <n>', 'copies of each stream (default: as it is, 1 where it is made)', integer(1, 5))
    .option('--credentials <file>', 'NATS credentials');
}

const natsOf = ({ nats, queue, replicas, ackWait, credentials }: QueueFlags): NatsOptions => ({
  servers: nats.split(','),
  name: queue,
  replicas,
  ackWait,
  credentials,
});

// --- Worker -----------------------------------------------------------------------------------------------------

interface WorkerFlags extends QueueFlags {
  concurrency: number;
  tries: number;
  timeout: number;
  maxBytes: number;
  allow?: string[];
  device?: Device | 'auto';
  dtype?: ComputeType;
  threads?: number;
  isolated?: boolean;
  metricsPort?: number;
  host: string;
  drain: number;
}

export function workerCommand(program: Command): void {
  addQueueOptions(
    program
      .command('worker')
      .description('does the jobs of a work queue on NATS JetStream')
      .argument('<models>', 'a folder of model folders NAME or NAME/VERSION, or one model folder'),
  )
    .option('--concurrency <n>', 'jobs of a model at a time', integer(1, 4096), 16)
    .option('--tries <n>', 'deliveries after which a job without a result is dead', integer(1), 5)
    .option('--timeout <seconds>', 'that a job may take, then it is tried again', integer(1, 1_000_000), 600)
    .option(
      '--ack-wait <seconds>',
      'in which a worker must say that it still works on a job (default: as it is, 30 for the first worker)',
      number,
    )
    .option('--max-bytes <n>', 'of a job; two that are larger than a message are in memory', integer(1), 2 ** 28)
    .option('--allow <prefix...>', 'what URLs of jobs may begin with, https://HOST/ or file:///FOLDER/')
    .addOption(deviceOption().default(undefined))
    .addOption(dtypeOption())
    .option('--threads <n>', 'threads of a run (default: all cores)', integer(1))
    .option('--isolated', 'each model runs in a process of its own, so that a crash costs its jobs in flight alone')
    .option('--metrics-port <n>', 'of health and metrics; 0: the system chooses (default: none)', integer(0, 65_535))
    .option('--host <address>', 'where health and metrics are told', '127.0.0.1')
    .option('--drain <seconds>', 'in which jobs are ended when it is told to end', number, 30)
    .action(work);
}

async function work(models: string, flags: WorkerFlags): Promise<void> {
  const { startWorker } = await import('../queue/start.js');
  const {
    concurrency,
    tries,
    timeout,
    maxBytes,
    allow,
    device,
    dtype,
    threads,
    isolated,
    metricsPort: port,
    host,
    drain,
  } = flags;
  const format = process.stderr.isTTY ? ('text' as const) : ('json' as const);
  const worker = await startWorker(
    {
      models,
      service: { device, dtype, threads, isolated },
      nats: natsOf(flags),
      worker: { concurrency, tries, timeout, maxBytes, allow },
      host,
      port,
      drain,
      log: { level: 'info', format, every: 100 },
    },
    process.stderr,
  );
  if (worker.url) print(`metrics  ${worker.url}/metrics`);
  const told = new Promise<void>((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => resolve());
  });
  try {
    await Promise.race([told, worker.ended]);
    worker.log.info('ends: no more jobs are taken');
    await worker.close();
  } catch (error) {
    await worker.close(0); // nobody hears of results
    throw error;
  } finally {
    setTimeout(() => process.exit(), 1000).unref(); // a connection that is just being made cannot be ended
  }
}

// --- Submit -----------------------------------------------------------------------------------------------------

interface SubmitFlags extends QueueFlags {
  model: string;
  top: number;
  clips?: number;
  crops?: number;
  run?: string;
  wait: boolean;
  timeout?: number;
  json?: boolean;
}

export function submitCommand(program: Command): void {
  addQueueOptions(
    program
      .command('submit')
      .description('queues pictures or videos for workers, and prints what they are')
      .argument('<files...>', 'pictures or videos; http://, https:// and file:// URLs are read by workers'),
  )
    .requiredOption('--model <name>', 'what a worker calls the model')
    .option('--top <n>', 'guesses', integer(1), 1)
    .option('--clips <n>', 'of a video', integer(1))
    .option('--crops <n>', 'of a clip: 1, 3 or 10', integer(1))
    .option('--run <name>', 'ids are NAME.0, NAME.1, ...; one that has a result keeps it')
    .option('--no-wait', 'print the ids and do not wait for results')
    .option('--timeout <seconds>', 'to queue all and wait for results (default: no limit)', integer(1, 1_000_000))
    .option('--json', 'print a JSON object a line')
    .action(submit);
}

async function submit(files: string[], flags: SubmitFlags): Promise<void> {
  const { NatsQueue } = await import('../queue/nats.js');
  const { run = randomBytes(8).toString('hex'), top, clips, crops, model, wait, json, timeout } = flags;
  // What cannot be queued is told before others are.
  for (const file of files) await checkInput(file);
  await using queue = await NatsQueue.open(natsOf(flags));
  const stop = new AbortController();
  const late = timeout === undefined ? undefined : setTimeout(() => stop.abort(), 1000 * timeout);
  const names = new Map<string, string>();
  try {
    for (const [i, file] of files.entries()) {
      const id = `${run}.${i}`;
      const input = isUrl(file) ? new URL(file) : await readFile(file);
      const isNew = await queue.submit(id, model, input, { top, clips, crops: crops as 1, signal: stop.signal });
      if (!isNew) note(`${id} was queued before: its result is that of the first`);
      names.set(id, file);
      if (!wait) json ? printJson({ id, file }) : print(`${id}  ${file}`);
    }
    if (wait) await printResults(queue, run, names, stop, flags);
  } catch (error) {
    if (!stop.signal.aborted || error !== stop.signal.reason) throw error;
    const queued = `${names.size} of ${files.length} were queued after ${timeout} s`;
    throw new OctconvError(`submit: ${queued}; the same files with --run ${run} go on`);
  } finally {
    clearTimeout(late);
  }
}

const isUrl = (file: string) => /^(https?|file):\/\//.test(file);

async function checkInput(file: string): Promise<void> {
  if (isUrl(file)) {
    if (!URL.canParse(file)) throw new OctconvError(`${file}: is no URL`);
    return;
  }
  try {
    await access(file, constants.R_OK);
    const stats = await stat(file);
    if (!stats.isFile())
      throw new OctconvError(`${file}: ${stats.isDirectory() ? 'a folder' : 'not a regular file'}, wanted a file`);
    if (stats.size === 0) throw new OctconvError(`${file}: is empty`);
  } catch (error) {
    throw fileError(file, error);
  }
}

async function printResults(
  queue: NatsQueue,
  run: string,
  names: Map<string, string>,
  stop: AbortController,
  { timeout, json }: SubmitFlags,
) {
  let failed = 0;
  for await (const result of queue.results(run, stop.signal)) {
    const file = names.get(result.id);
    if (file === undefined) continue;
    names.delete(result.id);
    if (result.error !== undefined) failed++;
    json ? printJson({ file, ...result }) : print(`${file}: ${wordsOf(result)}`);
    if (names.size === 0) stop.abort();
  }
  const why = stop.signal.aborted ? `after ${timeout} s` : 'when the connection ended';
  const wrong = [
    ...(failed > 0 ? [`${failed} failed`] : []),
    ...(names.size > 0 ? [`${names.size} had no result ${why}; the same files with --run ${run} wait on`] : []),
  ];
  if (wrong.length > 0) throw new OctconvError(`submit: ${wrong.join(', ')}`);
}

const wordsOf = (result: Result): string =>
  result.error !== undefined
    ? `error: ${result.error}`
    : result.top.map(({ label, index, probability }) => `${label ?? index} ${percent(probability)}`).join(', ');
