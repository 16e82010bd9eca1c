/**
 * Whether a work queue loses anything: three servers of NATS, workers and producers, somebody who kills servers and workers
 * with SIGKILL again and again, the leader of the jobs among them, and somebody who cuts the networks between them. Every
 * job must have exactly one result, and a worker that is told to end must, whatever it reaches.
 *
 *     npm run test:queue-kill -- --minutes 2 --jobs 2000
 */
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { jetstreamManager } from '@nats-io/jetstream';
import { onExit } from 'signal-exit';
import { NatsQueue } from '../lib/queue/index.js';
import { NatsServers } from './nats.js';
import { hasNetworks, type Host, loopback, Networks, runWithNetworks, spawnOn } from './networks.js';

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '2' },
    jobs: { type: 'string', default: '2000' },
    workers: { type: 'string', default: '3' },
  },
});
const [minutes, jobs, workerCount] = [values.minutes, values.jobs, values.workers].map(Number) as [
  number,
  number,
  number,
];
if (!(minutes > 0 && jobs > 0 && workerCount >= 2)) throw new Error('wanted --minutes, --jobs and --workers from 2 on');

if (!hasNetworks) {
  const code = await runWithNetworks();
  if (code !== undefined) process.exit(code);
  console.log('no network is cut: that wants Linux with unshare(1), nsenter(1) and ip(8), and root');
}

const pathOf = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const octconv = [process.execPath, '--import=tsx', pathOf('../lib/cli.ts')];
const model = pathOf('../models/cifar10-oct-resnet-26-a50');
const name = 'cifar10-oct-resnet-26-a50';

const serverCount = 3;
const networks = hasNetworks ? await Networks.start(serverCount + workerCount + 1) : undefined;
const hosts = networks?.hosts ?? Array<Host>(serverCount + workerCount + 1).fill(loopback);
const serverHosts = hosts.slice(0, serverCount);
const workerHosts = hosts.slice(serverCount, -1);
const producerHost = hosts.at(-1) as Host;

const workers: (ChildProcess | undefined)[] = [];
const producers = new Set<ChildProcess>();
const servers = await NatsServers.start(serverCount, serverHosts);
onExit(() => {
  for (const child of [...workers, ...producers]) child?.kill('SIGKILL');
  servers.stopNow();
});
const queueOptions = ['--nats', servers.urls.join(','), '--replicas', `${serverCount}`];
/** Of an observer, whose network is never cut. */
const queue = await NatsQueue.open({ servers: servers.urls, replicas: serverCount, ackWait: 5 });
const manager = await jetstreamManager(queue.connection, { checkAPI: false });

/** From here on nobody disturbs them. */
const calm = new AbortController();
const count = { workers: 0, leaders: 0, cuts: 0, late: 0, crashes: 0 };

// --- Workers and producers ----------------------------------------------------------------------------------------

/** Seconds for which a worker that is told to end works on, and in which it must have ended. */
const [drain, ending] = [2, 12];

/** `octconv worker` with a short wait, so that what a killed one had comes again soon. */
function startWorker(i: number): void {
  const command = [...octconv, 'worker', model, ...queueOptions, '--tries', '1000', '--drain', `${drain}`];
  command.push('--ack-wait', '5');
  const child = spawnOn(workerHosts[i] as Host, command, ['ignore', 'inherit', 'ignore']);
  workers[i] = child;
  // Without a network there is no queue to open: whoever runs workers starts it again.
  child.once('exit', async (code, signal) => {
    if (workers[i] !== child) return; // it was told to
    if (code !== 1) {
      count.crashes++;
      console.error(`worker ${i} has ended by itself: ${code ?? signal}`);
    }
    await sleep(1000);
    if (workers[i] === child) startWorker(i);
  });
}

/** Ends by a signal; another one is started. */
async function endWorker(i: number, signal: 'SIGKILL' | 'SIGTERM'): Promise<void> {
  const child = workers[i] as ChildProcess;
  workers[i] = undefined;
  if (child.exitCode === null && child.signalCode === null) {
    const ended = once(child, 'exit');
    child.kill(signal);
    const late = setTimeout(() => {
      count.late++;
      console.error(`worker ${i} has not ended ${ending} s after ${signal}`);
      child.kill('SIGKILL');
    }, 1000 * ending);
    await ended;
    clearTimeout(late);
    if (signal === 'SIGKILL') count.workers++;
  }
  startWorker(i);
}

/**
 * Some are larger than a message, for the object store: a JPEG may have bytes behind its end. A nats-server before 2.9.18
 * that is started again may forget all files (its issue 4196).
 */
const [major, minor, patch] = (queue.connection.info?.version ?? '').split('.').map(Number) as [number, number, number];
const keepsFiles = major > 2 || minor > 9 || patch >= 18;
const files = ['cat.jpg', 'coffee.jpg', 'rocket.jpg'].map((file) => pathOf(`images/${file}`));
const large = join(servers.folder, 'large.jpg');
writeFileSync(large, Buffer.concat([readFileSync(files[0] as string), Buffer.alloc(3 * 2 ** 19)]));
const largeOneIn = 25;

const results = new Set<string>();
let [failed, slowest] = [0, 0];

/** `octconv submit`; where it ends with an error, it is started again with the same ids, as a user would. */
async function submit(run: string, given: readonly string[]): Promise<void> {
  const started = performance.now();
  const command = [...octconv, 'submit', ...queueOptions, '--model', name, '--run', run, '--json', ...given];
  for (let code: unknown; code !== 0; ) {
    const child = spawnOn(producerHost, command, ['ignore', 'pipe', 'ignore']);
    producers.add(child);
    const seen = new Set<string>();
    createInterface(child.stdout as Readable).on('line', (line) => {
      const { id, error } = JSON.parse(line);
      seen.add(id);
      if (error !== undefined) {
        failed++;
        console.error(`${id}: ${error}`);
      }
    });
    [code] = await once(child, 'close');
    producers.delete(child);
    if (code === 0) for (const id of seen) results.add(id);
    else if (code === 2) throw new Error('octconv submit: wrong usage');
    else await sleep(1000);
  }
  slowest = Math.max(slowest, performance.now() - started);
}

/** A hundred at a time, so that workers have many when they are killed. */
async function submitAll(): Promise<void> {
  const burst = 100;
  const bursts: Promise<void>[] = [];
  for (let from = 0; from < jobs; from += burst) {
    const size = Math.min(burst, jobs - from);
    const given = Array.from({ length: size }, (_, i) =>
      keepsFiles && i % largeOneIn === 0 ? large : (files[i % files.length] as string),
    );
    bursts.push(submit(`kill.${from / burst}`, given));
    await sleep((minutes * 60_000 * size) / jobs);
  }
  await Promise.all(bursts);
}

// --- Who disturbs them ----------------------------------------------------------------------------------------------

/** After a leader was killed or cut off nobody answers until there is another one. */
async function insisting<T>(work: () => Promise<T>): Promise<T> {
  for (const late = performance.now() + 120_000; ; await sleep(1000)) {
    try {
      return await work();
    } catch (error) {
      if (performance.now() > late) throw error;
    }
  }
}

/** The server that leads the jobs. */
async function leader(): Promise<number> {
  const { cluster } = await insisting(() => manager.streams.info('octconv_jobs'));
  return Math.max(0, Number(cluster?.leader?.slice(1) ?? 0));
}

/** A server is killed or cut off. Three can bear one, so that there is never another one. */
let away = false;

async function killLeader(): Promise<void> {
  if (away) return;
  away = true;
  try {
    const i = await leader();
    await servers.kill(i);
    count.leaders++;
    await sleep(2000);
    await servers.run(i);
  } finally {
    away = false;
  }
}

/** All but the last worker, which is cut off and told to end. */
async function kill(): Promise<void> {
  for (let i = 0; await goesOn(3000); i++)
    await (i % 3 === 2 ? killLeader() : endWorker(i % (workerCount - 1), 'SIGKILL')).catch((error) =>
      console.error(error.message),
    );
}

/** Whether they are still disturbed after so many milliseconds. */
const goesOn = (milliseconds: number): Promise<boolean> =>
  sleep(milliseconds, true, { signal: calm.signal }).catch(() => false);

type Ways = readonly (readonly [Host, Host])[];
const from = (host: Host, others = hosts): Ways => others.filter((to) => to !== host).map((to) => [host, to]);
const to = (host: Host, others = hosts): Ways => from(host, others).map(([a, b]) => [b, a]);
const both = (host: Host, others = hosts): Ways => [...from(host, others), ...to(host, others)];

/** Seconds of cuts: what TCP bridges, what is found lost, and what is found lost by those that wait longest. */
const lengths = [2, 7, 20];

interface Kind {
  /** Of a client; otherwise of the server that leads. */
  host?: Host;
  ways(host: Host): Ways;
  meanwhile?(): Promise<void>;
}

async function cut(networks: Networks): Promise<void> {
  const [first, last] = [workerHosts[0], workerHosts.at(-1)] as [Host, Host];
  const kinds: Kind[] = [
    { ways: both },
    { ways: both, host: last, meanwhile: () => endWorker(workerCount - 1, 'SIGTERM') },
    { ways: (host) => both(host, serverHosts) }, // clients reach it, and it reaches no other server
    { ways: both, host: producerHost },
    { ways: from }, // it hears and is not heard
    { ways: both, host: first },
    { ways: to },
    { ways: from, host: last },
  ];
  for (let i = 0; await goesOn(2000); i++) {
    const { ways, host, meanwhile } = kinds[i % kinds.length] as Kind;
    if (!host) {
      while (away) await sleep(100);
      away = true;
    }
    const mend = networks.cut(...ways(host ?? (serverHosts[await leader()] as Host)));
    count.cuts++;
    await Promise.all([goesOn(1000 * (lengths[i % lengths.length] as number)), meanwhile?.()]);
    mend();
    if (!host) away = false;
  }
}

// --- All together -------------------------------------------------------------------------------------------------

for (let i = 0; i < workerCount; i++) startWorker(i);
const disturbing = [kill(), networks && cut(networks)];
const started = performance.now();
// As long again for what is left.
await Promise.race([submitAll(), sleep(2 * minutes * 60_000 + 60_000)]);
calm.abort();
await Promise.all(disturbing);
const messagesOf = async (stream: string) => (await insisting(() => manager.streams.info(stream))).state.messages;
// Whose acknowledgement was lost comes once more.
for (let tries = 0; tries < 30 && (await messagesOf('octconv_jobs')) > 0; tries++) await sleep(1000);
const left = await messagesOf('octconv_jobs');
const stored = await messagesOf('octconv_results');
const consumer = await insisting(() => manager.consumers.info('octconv_jobs', `worker_${name}`));
const redelivered = consumer.delivered.consumer_seq - jobs;
const missing = jobs - results.size;
const seconds = (milliseconds: number) => (milliseconds / 1000).toFixed(0);
if (!keepsFiles) console.log('no job is larger than a message: this nats-server is before 2.9.18');
console.log(
  `${jobs} jobs in ${seconds(performance.now() - started)} s, ${count.workers} workers and ${count.leaders} leaders ` +
    `killed, ${count.cuts} cuts, ${redelivered} deliveries more than jobs: ${stored} results, ${missing} missing, ` +
    `${failed} failed, ${left} left; the slowest hundred took ${seconds(slowest)} s, ${count.late} workers ended late`,
);
process.exit(missing === 0 && stored === jobs && failed === 0 && count.late + count.crashes === 0 ? 0 : 1);
