/** What `octconv serve` starts: a service, its doors, and what is seen of it. */
import { setTimeout as sleep } from 'node:timers/promises';
import Fastify, { type FastifyInstance } from 'fastify';
import type { DestinationStream, Logger } from 'pino';
import { collectDefaultMetrics } from 'prom-client';
import { OctconvError, show } from '../error.js';
import { readText } from '../files/read.js';
import { readToken, type ServeConfig, usualGrpc } from './config.js';
import { type GrpcOptions, type GrpcServer, serveGrpc } from './grpc.js';
import { Live } from './live.js';
import { accessLog, addAccessLog, logFaults, logStates, openLog } from './log.js';
import { Metrics } from './metrics.js';
import { addPage } from './page.js';
import { checkNames, foldersOf } from './repository.js';
import { serveHttp } from './server.js';
import { Service } from './service.js';
import { openSpans } from './spans.js';
import { TraceFile } from './trace-file.js';

export interface Started {
  readonly service: Service;
  readonly log: Logger;
  /** URLs, of gRPC `127.0.0.1:8001`. */
  readonly addresses: { readonly http: string; readonly grpc?: string; readonly metrics?: string };
  /** Is not ready any more, takes requests for `grace` seconds, answers what has come for `drain`, gives all back. */
  close(): Promise<void>;
}

/**
 * Starts a server; its models are loaded from then on.
 * @throws OctconvError for a configuration that makes no sense, if there is no model, or a port cannot be had.
 */
export async function start(config: ServeConfig, stream: DestinationStream): Promise<Started> {
  const { models, host, tokenFile, tls, repository, grace, drain } = config;
  if (models === undefined) throw new OctconvError('serve: no models, wanted a folder');
  const folders = await foldersOf(models);
  if (folders.size === 0) throw new OctconvError(`serve: ${show(models)} holds no model folders`);
  checkNames(config.service.models, folders.keys());
  const { log, logger } = openLog(config.log, stream);
  const door = {
    host,
    repository,
    token: tokenFile === undefined ? undefined : await readToken(tokenFile),
    tls: tls && {
      key: await readText(tls.key),
      cert: await readText(tls.cert),
      ca: tls.ca === undefined ? undefined : await readText(tls.ca),
    },
  };

  const service = new Service(models, config.service);
  const doors: { close(milliseconds: number): Promise<void> }[] = [];
  const closers: (() => unknown)[] = [
    async () => {
      // What is not answered in time is told so, before its connection is closed.
      const late = setTimeout(() => void service.close(0), drain * 1000);
      try {
        await Promise.all(doors.map((one) => one.close((drain + 1) * 1000)));
      } finally {
        clearTimeout(late);
        await service.close(0);
      }
    },
  ];
  const close = async () => {
    const ended = [];
    for (const closer of closers.splice(0)) ended.push(...(await Promise.allSettled([closer()])));
    for (const one of ended) if (one.status === 'rejected') throw one.reason;
  };
  try {
    logStates(service, log);
    logFaults(service, log);
    const live = new Live(service);
    closers.push(() => live[Symbol.dispose]());
    const spans = await openSpans(service);
    if (spans) closers.push(() => spans[Symbol.dispose]());
    const trace = config.trace
      ? await TraceFile.open(service, config.trace, ({ message }) => log.error(message))
      : new TraceFile(service);
    closers.push(() => trace.close());
    const metrics = new Metrics(service);
    closers.push(() => metrics[Symbol.dispose]());
    // Milliseconds, which the delays that are told include. 1 costs 2 % of a core where nothing happens, 2 a quarter of it.
    collectDefaultMetrics({ register: metrics.registry, eventLoopMonitoringPrecision: 2 });
    // Two that the system chooses are never the same.
    const together = config.metrics && config.metrics.port === config.http.port && config.http.port !== 0;

    const extend = (app: FastifyInstance) => {
      addAccessLog(app, log, config.log.every);
      spans?.addHooks(app);
      live.addRoute(app);
      addPage(app);
      if (together) metrics.addRoute(app);
    };
    const http = await serveHttp(service, { ...door, ...config.http, trace, logger, extend });
    doors.push(http);
    const addresses: { http: string; grpc?: string; metrics?: string } = { http: http.url };
    const watch = { onStart: spans?.ofCall, onEnd: accessLog(log, config.log.every) };
    const grpc =
      config.grpc === false
        ? undefined
        : await openGrpc(service, { ...door, ...watch, trace, logger: log }, config.grpc, log);
    if (grpc) {
      doors.push(grpc);
      addresses.grpc = `${host.includes(':') ? `[${host}]` : host}:${grpc.port}`;
    }
    if (together) addresses.metrics = `${http.url}/metrics`;
    else if (config.metrics) {
      const app = Fastify({ forceCloseConnections: true });
      closers.push(() => app.close());
      metrics.addRoute(app);
      addresses.metrics = `${await listen(app, host, config.metrics.port)}/metrics`;
    }
    const leave = async () => {
      service.leaving = true;
      await sleep(grace * 1000);
      await close();
    };
    return { service, log, addresses, close: leave };
  } catch (error) {
    await close();
    throw error;
  }
}

/** gRPC, or a line that says why not, if its packages are not there and nobody has asked for it. */
async function openGrpc(
  service: Service,
  door: GrpcOptions,
  asked: ServeConfig['grpc'],
  log: Logger,
): Promise<GrpcServer | undefined> {
  process.env.GRPC_VERBOSITY ??= 'NONE'; // it writes to stderr what it throws
  try {
    return await serveGrpc(service, { ...door, ...(asked || usualGrpc) });
  } catch (error) {
    const { cause, message } = error as Error;
    if (asked || (cause as NodeJS.ErrnoException | undefined)?.code !== 'ERR_MODULE_NOT_FOUND') throw error;
    log.warn(message);
    return undefined;
  }
}

async function listen(app: FastifyInstance, host: string, port: number): Promise<string> {
  return app.listen({ host, port }).catch((error: Error) => {
    throw new OctconvError(`metrics: ${error.message}`, { cause: error });
  });
}
