/**
 * Spans of requests for OpenTelemetry, where `@opentelemetry/api` is installed and an application has registered a
 * provider: one for each HTTP request and gRPC call that is let in, within the caller's trace; in it one for what the
 * service does, and in that one each for `prepare`, `queue` and `compute`.
 */
import type { Context, Span } from '@opentelemetry/api';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import type { GrpcCall, GrpcRun } from './grpc-listeners.js';
import { statusOf } from './log.js';
import type { RequestEnded } from './served.js';
import type { Service } from './service.js';

export interface Spans extends Disposable {
  /** Adds hooks, which are for routes that are added later. */
  addHooks(app: FastifyInstance): void;
  /** Begins the span of a call; it is the `onStart` of the gRPC door. */
  ofCall(call: GrpcCall): GrpcRun;
}

/** Statuses of gRPC that are faults of the server: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE. */
const faults = [2, 4, 12, 13, 14];

/** Spans of what the service does from now on; nothing, and no cost, where nobody has registered a provider. */
export async function openSpans(service: Service): Promise<Spans | undefined> {
  const api = await import('@opentelemetry/api').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ERR_MODULE_NOT_FOUND') return undefined;
    throw error;
  });
  if (!api) return undefined;
  const { context, propagation, trace, ProxyTracerProvider, SpanKind, SpanStatusCode } = api;
  const provider = trace.getTracerProvider();
  if (provider instanceof ProxyTracerProvider && !provider.getDelegateTracer('octconv')) return undefined;
  const tracer = provider.getTracer('octconv');

  // It is told where the request ends, in the context of its caller.
  const ended = (model: string, version: string, { code, rows, milliseconds }: RequestEnded) => {
    const { prepare, queue, compute } = milliseconds;
    const end = performance.timeOrigin + performance.now();
    let at = end - prepare - queue - compute;
    const attributes = { 'octconv.model': model, 'octconv.version': version, 'octconv.rows': rows };
    const span = tracer.startSpan(`infer ${model}`, { startTime: at, attributes });
    const within = trace.setSpan(context.active(), span);
    for (const [name, time] of Object.entries({ prepare, queue, compute })) {
      if (time > 0) tracer.startSpan(name, { startTime: at }, within).end(at + time);
      at += time;
    }
    if (code !== 'success') span.setStatus({ code: SpanStatusCode.ERROR, message: code });
    span.end(end);
  };
  service.on('request', ended);

  const open = new WeakMap<FastifyRequest, { readonly span: Span; readonly within: Context }>();
  return {
    addHooks(app) {
      app.addHook('onRequest', (request, _, done) => {
        const { method, url, headers, routeOptions } = request;
        const attributes = {
          'http.request.method': method,
          'http.route': routeOptions.url,
          'url.path': url.replace(/\?.*/s, ''),
        };
        const caller = propagation.extract(context.active(), headers);
        const kind = SpanKind.SERVER;
        const span = tracer.startSpan(`${method} ${routeOptions.url}`, { kind, attributes }, caller);
        open.set(request, { span, within: trace.setSpan(caller, span) });
        done();
      });
      // The context is lost while a body is read.
      app.addHook('preHandler', (request, _, done) => {
        const { within = context.active() } = open.get(request) ?? {};
        context.with(within, done);
      });
      app.addHook('onResponse', (request, reply, done) => {
        const { span } = open.get(request) ?? {};
        const statusCode = statusOf(reply);
        span?.setAttribute('http.response.status_code', statusCode);
        if (statusCode >= 500) span?.setStatus({ code: SpanStatusCode.ERROR });
        span?.end();
        done();
      });
    },
    ofCall({ method, header }) {
      const [service, name] = method.split('/');
      const attributes = { 'rpc.system': 'grpc', 'rpc.service': service, 'rpc.method': name };
      const caller = propagation.extract(context.active(), header, { get: (of, key) => of(key), keys: () => [] });
      const span = tracer.startSpan(method, { kind: SpanKind.SERVER, attributes }, caller);
      const within = trace.setSpan(caller, span);
      return {
        run: (step) => context.with(within, step),
        end({ code }) {
          span.setAttribute('rpc.grpc.status_code', code);
          if (faults.includes(code)) span.setStatus({ code: SpanStatusCode.ERROR });
          span.end();
        },
      };
    },
    [Symbol.dispose]: () => void service.off('request', ended),
  };
}
