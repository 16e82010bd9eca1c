/** What is seen of a service from outside: metrics, and the figures of the last minute. */
import { EventEmitter, once } from 'node:events';
import { cpSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { context, propagation, type TextMapPropagator, trace } from '@opentelemetry/api';
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks';
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base';
import { expect } from 'chai';
import Fastify from 'fastify';
import { Live } from '../lib/service/live.js';
import { Metrics } from '../lib/service/metrics.js';
import type { ServiceEvents, State } from '../lib/service/models.js';
import { Service } from '../lib/service/service.js';
import { serveHttp } from '../lib/service/server.js';
import { openSpans } from '../lib/service/spans.js';
import { Tensor } from '../lib/tensor.js';
import { readMetrics } from './metrics.js';

const shipped = fileURLToPath(new URL('../models/cifar10-oct-resnet-26-a50', import.meta.url));
const cat = fileURLToPath(new URL('images/cat.jpg', import.meta.url));
const rows = (n: number) => Tensor.zeros('u8', [n, 32, 32, 3]);

/** The name of the error of a request whose caller leaves. */
function cancelled(service: Service): Promise<string> {
  const gone = new AbortController();
  const answer = service.infer('octave', rows(1), { signal: gone.signal });
  gone.abort();
  return answer.then(
    () => 'answered',
    ({ name }) => name,
  );
}

describe('metrics', () => {
  let folder: string;
  let service: Service;
  let metrics: Metrics;
  const read = async () => readMetrics(await metrics.registry.metrics());
  const of = { model: 'octave', version: '1' };
  /** When the version that is unloaded has answered. */
  const ended = async () => {
    while (states.at(-1) !== 'unavailable') await once(service, 'state');
  };
  const states: State[] = [];

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'octconv-metrics-'));
    cpSync(shipped, join(folder, 'octave'), { recursive: true });
    service = new Service(folder, { maxBatch: 4, batching: { queue: 8 } });
    metrics = new Metrics(service);
    service.on('state', ({ state }) => states.push(state));
    await service.loaded;
  });
  after(async () => {
    await service.close();
    rmSync(folder, { recursive: true, force: true });
  });

  it('count from 0 when a model is loaded', async () => {
    const all = await read();
    for (const name of ['request_success', 'count', 'exec_count', 'request_duration_us', 'pending_request_count'])
      expect(all.of(`nv_inference_${name}`, of), name).to.equal(0);
    expect(all.of('nv_inference_request_failure', { ...of, reason: 'REJECTED' })).to.equal(0);
    const states = ['loading', 'ready', 'unloading', 'unavailable'];
    expect(states.map((state) => all.of('octconv_model_state', { ...of, state }))).to.deep.equal([0, 1, 0, 0]);
  });

  it('count requests, rows, batches and times', async () => {
    const before = await read();
    const since = (after: Awaited<ReturnType<typeof read>>, name: string, more: object = {}) =>
      (after.of(name, { ...of, ...more }) ?? 0) - (before.of(name, { ...of, ...more }) ?? 0);
    const answers = [await service.infer('octave', rows(3)), await service.infer('octave', cat)];
    expect(await cancelled(service)).to.equal('AbortError');
    const many = await Promise.allSettled(Array.from({ length: 12 }, () => service.infer('octave', rows(2))));
    const refused = many.filter(({ status }) => status === 'rejected').length;
    expect(refused).to.be.within(1, 11);
    const after = await read();
    expect(since(after, 'nv_inference_request_success')).to.equal(14 - refused);
    expect(since(after, 'nv_inference_count')).to.equal(4 + 2 * (12 - refused));
    expect(since(after, 'nv_inference_request_failure', { reason: 'REJECTED' })).to.equal(refused);
    expect(since(after, 'nv_inference_request_failure', { reason: 'CANCELED' })).to.equal(1);
    expect(since(after, 'nv_inference_exec_count')).to.equal(service.version('octave').counts?.executions);
    expect(since(after, 'octconv_batch_rows_sum')).to.equal(since(after, 'nv_inference_count'));
    expect(since(after, 'octconv_batch_rows_count')).to.equal(since(after, 'nv_inference_exec_count'));
    const { milliseconds } = service.version('octave').counts as { milliseconds: { compute: number; prepare: number } };
    expect(since(after, 'nv_inference_compute_infer_duration_us')).to.be.closeTo(1000 * milliseconds.compute, 14);
    expect(since(after, 'octconv_prepare_duration_seconds_sum')).to.be.closeTo(milliseconds.prepare / 1000, 1e-6);
    expect(answers[1]?.milliseconds.prepare).to.be.greaterThan(0);
    for (const part of ['request', 'queue', 'compute', 'prepare']) {
      expect(since(after, `octconv_${part}_duration_seconds_count`), part).to.equal(14 - refused);
      expect(after.of(`octconv_${part}_duration_seconds_bucket`, { ...of, le: '+Inf' })).to.equal(14 - refused);
    }
  });

  it('go on when a model is loaded anew, and end when it is unloaded', async () => {
    const before = await read();
    cpSync(shipped, join(folder, 'octave'), { recursive: true }); // other times of files
    await service.refresh();
    expect(service.version('octave').counts?.success).to.equal(0);
    const after = await read();
    for (const name of ['nv_inference_count', 'octconv_batch_rows_count'])
      expect(after.of(name, of)).to.be.greaterThan(0).and.equal(before.of(name, of));
    await service.unload('octave');
    await ended();
    const text = await metrics.registry.metrics();
    expect(text).to.not.match(/^nv_inference_(?!pending).*octave/m);
    expect(text).to.not.match(/_seconds_.*octave/);
    expect(readMetrics(text).of('octconv_model_state', { ...of, state: 'unavailable' })).to.equal(1);
    await service.load('octave');
    expect((await read()).of('nv_inference_count', of)).to.equal(0);
    rmSync(join(folder, 'octave'), { recursive: true });
    await service.refresh();
    await ended();
    expect(await metrics.registry.metrics()).to.not.include('octave');
    cpSync(shipped, join(folder, 'octave'), { recursive: true });
    await service.refresh();
  });

  it('are given up', async () => {
    const more = new Metrics(service);
    more[Symbol.dispose]();
    await service.infer('octave', rows(1));
    expect(readMetrics(await more.registry.metrics()).of('nv_inference_count', of)).to.equal(undefined);
  });
});

describe('live figures', () => {
  it('are of whole seconds, the oldest first', async () => {
    const service = await Service.open({ octave: shipped }, { maxBatch: 2 });
    using live = new Live(service);
    try {
      expect(live.snapshot().models[0]?.seconds).to.deep.equal([]);
      const answers = [await service.infer('octave', rows(1)), await service.infer('octave', rows(2))];
      await cancelled(service);
      live.tick();
      live.tick();
      const app = Fastify();
      live.addRoute(app);
      const answer = await app.inject('/live');
      await app.close();
      expect(answer.headers['cache-control']).to.equal('no-store');
      const { now, models } = answer.json() as ReturnType<Live['snapshot']>;
      expect(Date.now() - now).to.be.within(0, 10_000);
      const [{ seconds, ...facts }] = models as unknown as [(typeof models)[number]];
      const { about, batching } = service.version('octave');
      expect(facts).to.deep.equal({
        name: 'octave',
        version: '1',
        state: 'ready',
        network: 'oct-resnet-26',
        alpha: 0.5,
        device: 'cpu',
        dtype: 'f32',
        threads: about?.threads,
        multiplyAdds: about?.multiplyAdds,
        parameters: about?.parameters,
        takes: 'pictures',
        classes: 10,
        height: 32,
        width: 32,
        sizes: batching?.sizes,
        waiting: 0,
        inFlight: 0,
      });
      // The timer may have ended a second too.
      const sum = (of: (second: (typeof seconds)[number]) => number) => seconds.reduce((all, one) => all + of(one), 0);
      expect([sum((one) => one.requests), sum((one) => one.rows), sum((one) => one.failures)]).to.deep.equal([2, 3, 1]);
      const { requests, p50, batch, waiting } = seconds.at(-1) as (typeof seconds)[number];
      expect([requests, p50, batch, waiting]).to.deep.equal([0, null, null, 0]);
      const most = Math.max(
        ...answers.map(({ milliseconds: { prepare, queue, compute } }) => prepare + queue + compute),
      );
      expect(Math.max(...seconds.map(({ p99 }) => p99 ?? 0))).to.be.closeTo(most, most / 50);
    } finally {
      await service.close();
    }
  });

  it('are a minute at most, of versions that there are', () => {
    class Fake extends EventEmitter<ServiceEvents> {
      names = ['a', 'b'];
      versions = () => this.names.map((name) => ({ name, version: '1', state: 'ready', waiting: 7, inFlight: 1 }));
    }
    const fake = new Fake();
    using live = new Live(fake as unknown as Service);
    for (let second = 1; second <= 70; second++) {
      for (let i = 1; i <= 100; i++)
        fake.emit('request', 'a', '1', {
          rows: 1,
          code: 'success',
          milliseconds: { prepare: i * second, queue: 0, compute: 0 },
        });
      fake.emit('batch', 'a', '1', { rows: 3, size: 4, milliseconds: 1 });
      fake.emit('batch', 'a', '1', { rows: 4, size: 4, milliseconds: 1 });
      live.tick();
    }
    const [a, b] = live.snapshot().models;
    expect([a?.seconds.length, b?.seconds.length]).to.deep.equal([60, 60]);
    const last = a?.seconds.at(-1);
    expect(last).to.deep.include({ requests: 100, rows: 100, failures: 0, batch: 3.5, waiting: 7 });
    expect([last?.p50, last?.p95, last?.p99].map((ms) => Math.round((ms as number) / 70))).to.deep.equal([50, 95, 99]);
    expect(a?.seconds[0]?.p99).to.be.closeTo(99 * 11, 11);
    expect(b?.seconds[0]).to.include({ requests: 0, p50: null, batch: null, waiting: 7 });
    fake.emit('request', 'a', '1', { rows: 1, code: 'late', milliseconds: { prepare: 1e9, queue: 0, compute: 0 } });
    fake.names = ['b'];
    live.tick();
    fake.names = ['a', 'b'];
    expect(live.snapshot().models[0]?.seconds).to.deep.equal([]);
    live[Symbol.dispose]();
    expect(fake.listenerCount('request') + fake.listenerCount('batch')).to.equal(0);
  });
});

describe('spans', () => {
  const exporter = new InMemorySpanExporter();
  const provider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
  /** What W3C calls `traceparent`. */
  const propagator: TextMapPropagator = {
    inject: () => undefined,
    extract: (parent, carrier, { get }) => {
      const [, traceId = '', spanId = ''] = /^00-(\w{32})-(\w{16})-01$/.exec(String(get(carrier, 'traceparent'))) ?? [];
      return trace.setSpanContext(parent, { traceId, spanId, traceFlags: 1, isRemote: true });
    },
    fields: () => ['traceparent'],
  };
  let service: Service;

  before(async () => {
    service = await Service.open({ octave: shipped }, { maxBatch: 1 });
  });
  after(async () => {
    for (const part of [trace, context, propagation]) part.disable();
    await service.close();
  });

  it('are none where nobody has registered a provider', async () => {
    expect(await openSpans(service)).to.equal(undefined);
    expect(service.listenerCount('request')).to.equal(0);
  });

  it('are within the trace of the caller, whatever carries the request', async () => {
    trace.setGlobalTracerProvider(provider);
    context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
    propagation.setGlobalPropagator(propagator);
    using spans = await openSpans(service);
    const http = await serveHttp(service, { extend: (app) => spans?.addHooks(app) });
    try {
      const [traceId, spanId] = ['a'.repeat(32), 'b'.repeat(16)];
      const headers = { 'content-type': 'image/jpeg', traceparent: `00-${traceId}-${spanId}-01` };
      const body = new Uint8Array(readFileSync(cat));
      const form = new FormData();
      form.append('file', new Blob([body]), 'cat.jpg');
      const url = `${http.url}/v2/models/octave/classify?top=1`;
      for (const sent of [
        { headers, body },
        { headers: { traceparent: headers.traceparent }, body: form },
      ]) {
        exporter.reset();
        const start = Date.now();
        expect((await fetch(url, { method: 'POST', ...sent })).status).to.equal(200);
        const spans = exporter.getFinishedSpans();
        const called = (name: string) => spans.find((span) => span.name === name);
        const [request, infer] = [called('POST /v2/models/:model/classify'), called('infer octave')];
        expect(spans.map(({ name }) => name).sort()).to.deep.equal(
          ['POST /v2/models/:model/classify', 'compute', 'infer octave', 'prepare', 'queue'].sort(),
        );
        expect(new Set(spans.map((span) => span.spanContext().traceId))).to.deep.equal(new Set([traceId]));
        expect(request?.parentSpanContext?.spanId).to.equal(spanId);
        expect(request?.attributes).to.deep.equal({
          'http.request.method': 'POST',
          'http.route': '/v2/models/:model/classify',
          'url.path': '/v2/models/octave/classify',
          'http.response.status_code': 200,
        });
        expect(infer?.parentSpanContext?.spanId).to.equal(request?.spanContext().spanId);
        expect(infer?.attributes).to.deep.equal({
          'octconv.model': 'octave',
          'octconv.version': '1',
          'octconv.rows': 1,
        });
        const milliseconds = ([seconds, nanoseconds]: readonly [number, number]) => 1000 * seconds + nanoseconds / 1e6;
        let end = milliseconds(infer?.startTime as [number, number]);
        expect(end).to.be.within(start - 1, Date.now());
        for (const name of ['prepare', 'queue', 'compute']) {
          const part = called(name);
          expect(part?.parentSpanContext?.spanId).to.equal(infer?.spanContext().spanId);
          expect(milliseconds(part?.startTime as [number, number])).to.be.closeTo(end, 0.01);
          end = milliseconds(part?.endTime as [number, number]);
        }
        expect(milliseconds(infer?.endTime as [number, number])).to.be.closeTo(end, 0.01);
      }
      exporter.reset();
      expect(await cancelled(service)).to.equal('AbortError');
      expect(exporter.getFinishedSpans().at(-1)?.status).to.deep.equal({ code: 2, message: 'cancelled' });
    } finally {
      await http.close();
    }
  });
});
