/** What `octconv worker` starts: a service, a worker of a queue, and what is seen of both. */
import Fastify from 'fastify';
import type { DestinationStream, Logger } from 'pino';
import { collectDefaultMetrics, Counter, Gauge } from 'prom-client';
import { OctconvError } from '../error.js';
import type { ServeConfig } from '../service/config.js';
import { logFaults, logStates, openLog } from '../service/log.js';
import { Metrics } from '../service/metrics.js';
import type { ServiceOptions } from '../service/models.js';
import { Service } from '../service/service.js';
import { within } from './jobs.js';
import { type NatsOptions, NatsQueue } from './nats.js';
import { Worker, type WorkerOptions } from './worker.js';

export interface WorkerConfig {
  readonly models: string;
  readonly service: ServiceOptions;
  readonly nats: NatsOptions;
  readonly worker: WorkerOptions;
  /** Where health and metrics are told; default: nowhere. */
  readonly host: string;
  readonly port?: number | undefined;
  /** Seconds in which jobs that it has are ended when it is told to end. */
  readonly drain: number;
  readonly log: ServeConfig['log'];
}

export interface StartedWorker {
  readonly log: Logger;
  readonly queue: NatsQueue;
  /** Of health and metrics. */
  readonly url?: string | undefined;
  /** When the connection has ended and does not come back, or no jobs can be taken any more; rejects with the reason. */
  readonly ended: Promise<void>;
  /** Ends the jobs that it has, in `drain` seconds unless another time is given. */
  close(drain?: number): Promise<void>;
}

/**
 * Starts a worker for all models of a folder.
 * @throws OctconvError if a model cannot be loaded, no server of NATS answers, or the port cannot be had.
 */
export async function startWorker(config: WorkerConfig, stream: DestinationStream): Promise<StartedWorker> {
  const { log } = openLog(config.log, stream);
  const queue = await NatsQueue.open(config.nats);
  const closers: (() => unknown)[] = [() => queue.close()];
  let { drain } = config;
  const close = async (given = drain) => {
    drain = given;
    const ended = [];
    for (const closer of closers.splice(0).reverse()) ended.push(...(await Promise.allSettled([closer()])));
    for (const one of ended) if (one.status === 'rejected') throw one.reason;
  };
  try {
    const service = new Service(config.models, config.service);
    closers.push(() => service.close());
    logStates(service, log);
    logFaults(service, log);
    const metrics = new Metrics(service);
    closers.push(() => metrics[Symbol.dispose]());
    const isConnected = watchConnection(queue, log);
    countQueued(queue, metrics);
    // Is told from here until the last job has ended.
    const url =
      config.port === undefined ? undefined : await openHealth(config, service, isConnected, metrics, closers);
    await service.allReady();
    const names = [...new Set(service.versions().map(({ name }) => name))];
    const worker = new Worker(service, await Promise.all(names.map((name) => queue.source(name))), config.worker);
    closers.push(() => worker.close(drain * 1000));
    logJobs(worker, log);
    countJobs(worker, metrics);
    log.info(`takes jobs of ${names.join(', ')}`);
    const lost = queue.connection.closed().then((error) => {
      if (error) throw error;
    });
    return { log, queue, url, ended: Promise.race([lost, worker.ended]), close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Says what becomes of the connection; gives whether there is one now. */
function watchConnection({ connection }: NatsQueue, log: Logger): () => boolean {
  let connected = true;
  const watch = async () => {
    for await (const status of connection.status()) {
      if (status.type === 'error') log.warn(`NATS: ${status.error.message}`);
      if (status.type !== 'disconnect' && status.type !== 'reconnect') continue;
      connected = status.type === 'reconnect';
      const said = `NATS: ${connected ? 'connected again to' : 'no connection to'} ${status.server}`;
      connected ? log.info(said) : log.warn(said);
    }
  };
  void watch();
  return () => connected && !connection.isClosed();
}

function logJobs(worker: Worker, log: Logger): void {
  worker.on('retried', ({ id, model, delivery }, error) =>
    log.warn({ id, model, delivery }, `job ${id} of ${model}, delivery ${delivery}, comes again: ${error.message}`),
  );
  worker.on('dead', ({ id, model, delivery }, error) =>
    log.error({ id, model, delivery }, `job ${id} of ${model}, delivery ${delivery}, is dead: ${error.message}`),
  );
}

function countJobs(worker: Worker, { registry }: Metrics): void {
  collectDefaultMetrics({ register: registry });
  const help = 'Jobs by what became of them: done, retried, dead';
  const jobs = new Counter({ name: 'octconv_jobs', help, labelNames: ['model', 'outcome'], registers: [registry] });
  for (const outcome of ['done', 'retried', 'dead'] as const)
    worker.on(outcome, ({ model }: { model: string }) => jobs.inc({ model, outcome }));
  new Gauge({
    name: 'octconv_jobs_in_flight',
    help: 'Jobs that this worker has',
    registers: [registry],
    collect() {
      this.set(worker.inFlight);
    },
  });
}

/** What decides how many workers there should be: every worker tells the same of the whole queue. */
function countQueued(queue: NatsQueue, { registry }: Metrics): void {
  new Gauge({
    name: 'octconv_jobs_queued',
    help: 'Jobs that workers have, or that wait for them, of models that had a worker',
    labelNames: ['model'],
    registers: [registry],
    async collect() {
      this.reset();
      const counts = await within(2000, queue.queued()).catch(() => undefined); // no server answers: nothing is known
      for (const [model, count] of counts ?? []) this.set({ model }, count);
    },
  });
}

/** Health as `octconv serve` tells it, and metrics. */
async function openHealth(
  { host, port = 0 }: WorkerConfig,
  service: Service,
  isConnected: () => boolean,
  metrics: Metrics,
  closers: (() => unknown)[],
): Promise<string> {
  const app = Fastify({ forceCloseConnections: true });
  closers.push(() => app.close());
  app.get('/v2/health/live', () => ({ live: true }));
  app.get('/v2/health/ready', (_, reply) => {
    const ready = service.ready && isConnected();
    return reply.code(ready ? 200 : 503).send({ ready });
  });
  metrics.addRoute(app);
  return app.listen({ host, port }).catch((error: Error) => {
    throw new OctconvError(`worker: ${error.message}`, { cause: error });
  });
}
