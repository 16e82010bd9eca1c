/** The log of a server: JSON lines, or lines for people. */
import type { FastifyInstance, FastifyReply } from 'fastify';
import { type DestinationStream, type Logger, type LoggerOptions, pino, stdTimeFunctions } from 'pino';
import { printable } from '../error.js';
import type { ServeConfig } from './config.js';
import type { GrpcListeners } from './grpc-listeners.js';
import type { Service } from './service.js';

export interface Log {
  readonly log: Logger;
  /** Fastify's own log, on the same stream. It has no lines of what goes well. */
  readonly logger: LoggerOptions & { readonly stream: DestinationStream };
}

export function openLog({ level, format }: ServeConfig['log'], stream: DestinationStream): Log {
  const options = {
    level,
    base: null, // no host name, no process id
    timestamp: stdTimeFunctions.isoTime,
    formatters: { level: (name: string) => ({ level: name }) },
  };
  const written = format !== 'text' ? stream : { write: (line: string) => stream.write(forPeople(line)) };
  const quiet = ['debug', 'info'].includes(level) ? 'warn' : level;
  return { log: pino(options, written), logger: { ...options, level: quiet, stream: written } };
}

/** `12:30:59 warn message`, with the stack of an error below it. */
function forPeople(line: string): string {
  const { time, level, msg, err } = JSON.parse(line);
  const first = `${new Date(time).toTimeString().slice(0, 8)} ${level === 'info' ? '' : `${level} `}${msg}`;
  const stack: string[] = err?.stack?.split('\n').slice(1) ?? [];
  return [first, ...stack].map((text) => `${printable(text)}\n`).join('');
}

/** A line when a model changes its state. */
export function logStates(service: Service, log: Logger): void {
  service.on('state', ({ name, version, state, reason, about, batching }) => {
    const place = state === 'ready' && about ? `, ${about.device} ${about.isa}, ${about.dtype}` : '';
    const sizes = place && batching ? `, batches of ${batching.sizes.join(', ')}` : '';
    const why = reason === undefined ? '' : `: ${reason}`;
    const level = reason === undefined ? 'info' : 'warn';
    log[level]({ model: name, version, state, reason }, `${name}, version ${version}: ${state}${place}${sizes}${why}`);
  });
}

/** A line when the process of an isolated model ends, and when `watch` cannot read the repository. */
export function logFaults(service: Service, log: Logger): void {
  service.on('ended', (name, version, why) =>
    log.error({ model: name, version }, `${name}, version ${version}: ${why}`),
  );
  service.on('unreadable', (error) => log.error(error.message));
}

/** The status that a client has seen; 499 for one that has gone. */
export const statusOf = ({ raw, statusCode }: FastifyReply): number => (raw.writableFinished ? statusCode : 499);

/** Tells which have a line: each that fails, and every so many-th other. */
function sampler(every: number): (failed: boolean) => boolean {
  let successes = 0;
  return (failed) => failed || successes++ % every === 0;
}

/** A line for each request that fails, and for every so many-th other. The hook is for routes that are added later. */
export function addAccessLog(app: FastifyInstance, log: Logger, every: number): void {
  const hasLine = sampler(every);
  app.addHook('onResponse', ({ id, method, url, ip }, reply, done) => {
    const status = statusOf(reply);
    const failed = status >= 400;
    if (hasLine(failed)) {
      const milliseconds = Number(reply.elapsedTime.toFixed(3));
      log[failed ? 'warn' : 'info'](
        { reqId: id, ip, method, url, status, milliseconds },
        `${method} ${url} ${status} ${milliseconds} ms`,
      );
    }
    done();
  });
}

/** The same of calls of gRPC: it is the `onEnd` of that door. A stream is one call. */
export function accessLog(log: Logger, every: number): NonNullable<GrpcListeners['onEnd']> {
  const hasLine = sampler(every);
  return ({ method, peer }, { status, milliseconds: exact }) => {
    const failed = status !== 'OK';
    if (!hasLine(failed)) return;
    const milliseconds = Number(exact.toFixed(3));
    log[failed ? 'warn' : 'info']({ peer, method, status, milliseconds }, `${method} ${status} ${milliseconds} ms`);
  };
}
