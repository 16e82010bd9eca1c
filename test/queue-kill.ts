/**
 * Whether a work queue loses anything: three servers of NATS, workers, and somebody who kills them with SIGKILL again and
 * again, the leader of the jobs among them. Every job must have exactly one result.
 *
 *     npm run test:queue-kill -- --minutes 2 --jobs 2000
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { jetstreamManager } from '@nats-io/jetstream';
import { NatsQueue } from '../lib/queue/index.js';
import { NatsServers } from './nats.js';

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '2' },
    jobs: { type: 'string', default: '2000' },
    workers: { type: 'string', default: '2' },
  },
});
const [minutes, jobs, workerCount] = [values.minutes, values.jobs, values.workers].map(Number) as [
  number,
  number,
  number,
];
const pathOf = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const model = pathOf('../models/cifar10-oct-resnet-26-a50');
const name = 'cifar10-oct-resnet-26-a50';
const pictures = ['cat.jpg', 'coffee.jpg', 'rocket.jpg'].map((file) => readFileSync(pathOf(`images/${file}`)));

const servers = await NatsServers.start(3);
const options = { servers: servers.urls, replicas: 3, ackWait: 5 };
const queue = await NatsQueue.open(options);
const workers: ChildProcess[] = [];
const killed = { workers: 0, leaders: 0 };

/** `octconv worker` with a short wait, so that what a killed one had comes again soon. */
function startWorker(i: number): void {
  const args = [pathOf('../lib/cli.ts'), 'worker', model, '--nats', servers.urls.join(','), '--replicas', '3'];
  const child = spawn(process.execPath, ['--import=tsx', ...args, '--tries', '1000', '--ack-wait', '5'], {
    stdio: ['ignore', 'inherit', 'ignore'],
  });
  workers[i] = child;
}

async function killWorker(i: number): Promise<void> {
  const child = workers[i] as ChildProcess;
  if (child.exitCode === null && child.signalCode === null) {
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
    killed.workers++;
  }
  startWorker(i);
}

/** The server that leads the jobs. */
async function killLeader(): Promise<void> {
  const manager = await jetstreamManager(queue.connection);
  const { cluster } = await manager.streams.info('octconv_jobs');
  const leader = Number(cluster?.leader?.slice(1));
  if (!Number.isInteger(leader)) return;
  await servers.kill(leader);
  killed.leaders++;
  await sleep(2000);
  await servers.run(leader);
}

/** After a leader was killed nobody answers until there is another one. */
async function insisting<T>(work: () => Promise<T>): Promise<T> {
  for (let tries = 0; tries < 10; tries++) {
    try {
      return await work();
    } catch {
      await sleep(1000);
    }
  }
  return work();
}

const end = new AbortController();
const results = new Map<string, number>();
let failed = 0;

async function read(): Promise<void> {
  for await (const { id, error } of queue.results('kill', end.signal)) {
    results.set(id, (results.get(id) ?? 0) + 1);
    if (error !== undefined) {
      failed++;
      console.error(`${id}: ${error}`);
    }
  }
}

/** A hundred at a time, so that workers have many when they are killed. */
async function submit(): Promise<void> {
  const burst = 100;
  for (let from = 0; from < jobs; from += burst) {
    const ids = Array.from({ length: Math.min(burst, jobs - from) }, (_, i) => from + i);
    await Promise.all(ids.map((i) => queue.submit(`kill.${i}`, name, pictures[i % pictures.length] as Buffer, {})));
    await sleep((minutes * 60_000 * ids.length) / jobs);
  }
}

async function disturb(): Promise<void> {
  for (let i = 0; !end.signal.aborted; i++) {
    await sleep(3000);
    if (end.signal.aborted) return;
    await (i % 3 === 2 ? killLeader() : killWorker(i % workerCount)).catch((error) => console.error(error.message));
  }
}

for (let i = 0; i < workerCount; i++) startWorker(i);
const reading = read();
const disturbing = disturb();
const started = performance.now();
await submit();
// As long again for what is left.
while (results.size < jobs && performance.now() - started < 2 * minutes * 60_000 + 60_000) await sleep(200);
end.abort();
await disturbing;
const manager = await jetstreamManager(queue.connection, { checkAPI: false });
const stored = (await insisting(() => manager.streams.info('octconv_results'))).state.messages;
const consumer = await insisting(() => manager.consumers.info('octconv_jobs', `worker_${name}`));
const redelivered = consumer.delivered.consumer_seq - jobs;
const missing = Array.from({ length: jobs }, (_, i) => `kill.${i}`).filter((id) => !results.has(id));
const left = (await insisting(() => manager.streams.info('octconv_jobs'))).state.messages;
for (const worker of workers) worker.kill('SIGKILL');
await reading.catch(() => undefined);
await queue.close();
await servers.stop();
const seconds = ((performance.now() - started) / 1000).toFixed(0);
console.log(
  `${jobs} jobs in ${seconds} s, ${killed.workers} workers and ${killed.leaders} leaders killed, ` +
    `${redelivered} deliveries more than jobs: ${stored} results, ${missing.length} missing, ${failed} failed, ${left} left`,
);
process.exit(missing.length === 0 && stored === jobs && failed === 0 ? 0 : 1);
