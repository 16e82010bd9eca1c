/**
 * Traces of requests for OpenTelemetry, where `@opentelemetry/api` is installed and an application has registered a
 * provider: a span for each HTTP request that is let in, within the caller's trace; in it one for what the service does, and in that
 * one each for `prepare`, `queue` and `compute`.
 */
import type { Context, Span } from '@opentelemetry/api';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import type { RequestEnded } from './served.js';
import type { Service } from './service.js';

export interface Traces extends Disposable {
  /** Adds hooks, which are for routes that are added later. */
  addHooks(app: FastifyInstance): void;
}

/** Traces of what the service does from now on; nothing, and no cost, where nobody has registered a provider. */
export async function openTraces(service: Service): Promise<Traces | undefined> {
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
      app.addHook('onResponse', (request, { statusCode }, done) => {
        const { span } = open.get(request) ?? {};
        span?.setAttribute('http.response.status_code', statusCode);
        if (statusCode >= 500) span?.setStatus({ code: SpanStatusCode.ERROR });
        span?.end();
        done();
      });
    },
    [Symbol.dispose]: () => void service.off('request', ended),
  };
}
