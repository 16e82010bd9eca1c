/** What goes along with calls of the gRPC door: health, the access log, and spans. */
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import * as grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { context, propagation, type TextMapPropagator, trace } from '@opentelemetry/api';
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks';
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base';
import { expect } from 'chai';
import { pino } from 'pino';
import { type GrpcOptions, type GrpcServer, serveGrpc } from '../lib/service/grpc.js';
import { accessLog } from '../lib/service/log.js';
import { Service } from '../lib/service/service.js';
import { openSpans } from '../lib/service/spans.js';
import { methods, pixels } from './hostile.js';

const pathOf = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const shipped = pathOf('../models/cifar10-oct-resnet-26-a50');
const form = { enums: String, defaults: true } as const;
const health = loadSync(pathOf('../schemas/health.proto'), form)['grpc.health.v1.Health'] as grpc.ServiceDefinition;
const { status } = grpc;

// biome-ignore lint/suspicious/noExplicitAny: clients that are made of definitions
type Any = any;

describe('service: calls of gRPC', function () {
  this.timeout(60_000);
  let service: Service;
  const closers: (() => unknown)[] = [];
  beforeEach(async () => {
    service = await Service.open({ octave: shipped }, { maxBatch: 1 });
  });
  afterEach(async () => {
    for (const close of closers.splice(0).reverse()) await close();
    await service.close();
  });

  async function serve(options: GrpcOptions = {}): Promise<GrpcServer> {
    const server = await serveGrpc(service, options);
    closers.push(() => server.close(0));
    return server;
  }
  function clientOf({ port }: GrpcServer, definition = methods): Any {
    const client = new (grpc.makeClientConstructor(definition, 'Client'))(
      `127.0.0.1:${port}`,
      grpc.credentials.createInsecure(),
      { 'grpc.use_local_subchannel_pool': 1 },
    );
    closers.push(() => client.close());
    return client;
  }
  /** The answer, or the code of the error. */
  const ask = (
    client: Any,
    method: string,
    message: object = {},
    metadata: Record<string, string> = {},
  ): Promise<Any> =>
    new Promise((resolve) => {
      const sent = new grpc.Metadata();
      for (const [name, value] of Object.entries(metadata)) sent.set(name, value);
      client[method](message, sent, (error: grpc.ServiceError | null, answer: object) =>
        resolve(error?.code ?? answer),
      );
    });
  const request = (more: object = {}) => ({
    model_name: 'octave',
    inputs: [{ name: 'input', datatype: 'UINT8', shape: [1, 32, 32, 3] }],
    raw_input_contents: [pixels(1)],
    ...more,
  });

  describe('health', () => {
    const own = 'inference.GRPCInferenceService';

    /** What a watch is told, one after the other. */
    function watch(client: Any, name: string) {
      const call: grpc.ClientReadableStream<Any> = client.Watch({ service: name });
      const ended = new Promise<number>((resolve) => call.on('status', ({ code }) => resolve(code)));
      call.on('error', () => undefined);
      const told: string[] = [];
      call.on('data', ({ status }) => void told.push(status));
      return {
        told,
        ended,
        leave: () => call.cancel(),
        async until(wanted: string): Promise<void> {
          while (told.at(-1) !== wanted) await once(call, 'data');
        },
      };
    }

    it('of the server and of models, without a token', async () => {
      const client = clientOf(await serve({ token: 'secret' }), health);
      const check = (name: string) => ask(client, 'Check', { service: name });
      for (const name of ['', own, 'octave']) expect(await check(name)).to.deep.equal({ status: 'SERVING' });
      for (const name of ['nothing', '../octave', '__proto__', 'grpc.health.v1.Health'])
        expect(await check(name), name).to.equal(status.NOT_FOUND);
      await service.unload('octave');
      expect(await check('octave')).to.deep.equal({ status: 'NOT_SERVING' });
      await service.load('octave');
      service.leaving = true;
      for (const name of ['', own, 'octave']) expect(await check(name)).to.deep.equal({ status: 'NOT_SERVING' });
      expect(await check('nothing')).to.equal(status.NOT_FOUND);
    });

    it('is told when it changes, until the client leaves or the door closes', async () => {
      const server = await serve();
      const client = clientOf(server, health);
      const [all, model, nothing, leaving] = ['', 'octave', 'nothing', ''].map((name) => watch(client, name)) as [
        ReturnType<typeof watch>,
        ReturnType<typeof watch>,
        ReturnType<typeof watch>,
        ReturnType<typeof watch>,
      ];
      await Promise.all([all.until('SERVING'), model.until('SERVING'), leaving.until('SERVING')]);
      await nothing.until('SERVICE_UNKNOWN');
      leaving.leave();
      expect(await leaving.ended).to.equal(status.CANCELLED);
      await service.unload('octave');
      await model.until('NOT_SERVING');
      await service.load('octave');
      await model.until('SERVING');
      service.leaving = true;
      await Promise.all([all.until('NOT_SERVING'), model.until('NOT_SERVING')]);
      expect(model.told).to.deep.equal(['SERVING', 'NOT_SERVING', 'SERVING', 'NOT_SERVING']);
      expect([nothing.told, leaving.told]).to.deep.equal([['SERVICE_UNKNOWN'], ['SERVING']]);
      expect(service.listenerCount('health')).to.equal(1);
      await server.close();
      for (const { ended } of [all, model, nothing]) expect(await ended).to.equal(status.UNAVAILABLE);
      expect(service.listenerCount('health')).to.equal(0);
    });

    it('is not ready while models are loaded, and when the service closes', async () => {
      await service.close();
      service = new Service({ octave: shipped }, { maxBatch: 1 });
      const client = clientOf(await serve(), health);
      const [all, model] = [watch(client, ''), watch(client, 'octave')];
      await Promise.all([all.until('SERVING'), model.until('SERVING')]);
      expect(all.told).to.deep.equal(['NOT_SERVING', 'SERVING']);
      await service.close();
      await Promise.all([all.until('NOT_SERVING'), model.until('NOT_SERVING')]);
    });

    it('messages that cannot be read are refused', async () => {
      const client = clientOf(await serve(), health);
      const { path } = health.Check as grpc.MethodDefinition<object, object>;
      const bytes = (value: Buffer) => value;
      const failed = await new Promise<grpc.ServiceError | null>((resolve) =>
        client.makeUnaryRequest(path, bytes, bytes, Buffer.from([0x0a, 5, 1]), resolve),
      );
      expect([failed?.code, failed?.details]).to.match(/^3,Check: a message that cannot be read: /);
      const watching = client.makeServerStreamRequest(health.Watch?.path, bytes, bytes, Buffer.from([0x0a, 5, 1]));
      watching.on('data', () => undefined);
      expect((await once(watching, 'error'))[0].code).to.equal(status.INVALID_ARGUMENT);
    });
  });

  describe('the log', () => {
    interface Line {
      readonly level: string;
      readonly msg: string;
      readonly method: string;
      readonly peer: string;
      readonly status: string;
      readonly milliseconds: number;
    }
    /** A door that logs, and its lines; `line` waits for one. */
    async function logging(every: number, options: GrpcOptions = {}) {
      const lines: Line[] = [];
      const heard: (() => void)[] = [];
      const formatters = { level: (name: string) => ({ level: name }) };
      const write = (text: string) => {
        lines.push(JSON.parse(text));
        for (const one of heard.splice(0)) one();
      };
      const server = await serve({ ...options, onEnd: accessLog(pino({ formatters }, { write }), every) });
      const line = async (wanted: (line: Line) => boolean): Promise<Line> => {
        for (;;) {
          const found = lines.find(wanted);
          if (found) return found;
          await new Promise<void>((resolve) => heard.push(resolve));
        }
      };
      return { server, lines, line };
    }

    it('has a line for each call that fails, and for every so many-th other', async () => {
      const { server, lines, line } = await logging(3);
      const client = clientOf(server);
      for (let i = 0; i < 7; i++) expect(await ask(client, 'ServerLive')).to.deep.equal({ live: true });
      expect(await ask(client, 'ModelMetadata', { name: 'nothing' })).to.equal(status.NOT_FOUND);
      const failed = await line(({ status }) => status === 'NOT_FOUND');
      expect(lines.map(({ status }) => status)).to.deep.equal(['OK', 'OK', 'OK', 'NOT_FOUND']);
      expect(failed).to.include({ level: 'warn', method: 'inference.GRPCInferenceService/ModelMetadata' });
      expect(failed.peer).to.match(/^127\.0\.0\.1:\d+$/);
      expect(failed.milliseconds).to.be.above(0);
      expect(failed.msg).to.match(/^inference\.GRPCInferenceService\/ModelMetadata NOT_FOUND [\d.]+ ms$/);
      expect(lines[0]).to.include({ level: 'info', method: 'inference.GRPCInferenceService/ServerLive' });
    });

    it('tells who was refused or has left, and what gRPC refuses by itself', async () => {
      const { server, lines, line } = await logging(1, { token: 'secret', maxBytes: 4096 });
      const client = clientOf(server);
      const authorization = 'Bearer secret';
      await ask(client, 'ServerMetadata');
      await line(({ status }) => status === 'UNAUTHENTICATED');
      const large = request({ raw_input_contents: [Buffer.alloc(2 ** 22)] });
      expect(await ask(client, 'ModelInfer', large, { authorization })).to.equal(status.RESOURCE_EXHAUSTED);
      await line(({ status }) => status === 'RESOURCE_EXHAUSTED');
      const watching = clientOf(server, health).Watch({ service: '' });
      watching.on('error', () => undefined).on('data', () => watching.cancel());
      const left = await line(({ status }) => status === 'CANCELLED');
      expect(left).to.include({ level: 'warn', method: 'grpc.health.v1.Health/Watch' });
      const metadata = new grpc.Metadata();
      metadata.set('authorization', authorization);
      const ended = client.ModelStreamInfer(metadata).on('data', () => undefined);
      ended.write(request({ model_name: 'nothing' }));
      ended.end();
      await line(({ method, status }) => /ModelStreamInfer$/.test(method) && status === 'OK');
      expect(lines).to.have.length(4);
    });
  });

  describe('spans', () => {
    const exporter = new InMemorySpanExporter();
    const provider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
    /** What W3C calls `traceparent`. */
    const propagator: TextMapPropagator = {
      inject: () => undefined,
      extract: (parent, carrier, { get }) => {
        const [, traceId, spanId] = /^00-(\w{32})-(\w{16})-01$/.exec(String(get(carrier, 'traceparent'))) ?? [];
        if (!traceId || !spanId) return parent;
        return trace.setSpanContext(parent, { traceId, spanId, traceFlags: 1, isRemote: true });
      },
      fields: () => ['traceparent'],
    };
    before(() => {
      trace.setGlobalTracerProvider(provider);
      context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
      propagation.setGlobalPropagator(propagator);
    });
    after(() => {
      for (const part of [trace, context, propagation]) part.disable();
    });

    /** The spans of some calls, when so many have ended. */
    async function spansOf(count: number, calls: (client: Any) => unknown, options: GrpcOptions = {}) {
      exporter.reset();
      const spans = await openSpans(service);
      if (!spans) throw new Error('no spans');
      closers.push(() => spans[Symbol.dispose]());
      await calls(clientOf(await serve({ ...options, onStart: spans.ofCall })));
      while (exporter.getFinishedSpans().length < count) await new Promise(setImmediate);
      return exporter.getFinishedSpans();
    }
    const [traceId, spanId] = ['a'.repeat(32), 'b'.repeat(16)];
    const traceparent = `00-${traceId}-${spanId}-01`;
    const infer = 'inference.GRPCInferenceService/ModelInfer';

    it('are within the trace of the caller', async () => {
      const spans = await spansOf(5, (client) => ask(client, 'ModelInfer', request(), { traceparent }));
      const called = (name: string) => spans.find((span) => span.name === name);
      expect(spans.map(({ name }) => name)).to.have.members([infer, 'infer octave', 'prepare', 'queue', 'compute']);
      expect(new Set(spans.map((span) => span.spanContext().traceId))).to.deep.equal(new Set([traceId]));
      expect(called(infer)?.parentSpanContext?.spanId).to.equal(spanId);
      expect(called(infer)?.attributes).to.deep.equal({
        'rpc.system': 'grpc',
        'rpc.service': 'inference.GRPCInferenceService',
        'rpc.method': 'ModelInfer',
        'rpc.grpc.status_code': 0,
      });
      expect(called('infer octave')?.parentSpanContext?.spanId).to.equal(called(infer)?.spanContext().spanId);
      expect(called('compute')?.parentSpanContext?.spanId).to.equal(called('infer octave')?.spanContext().spanId);
    });

    it('are of streams, too: one for all of their requests', async () => {
      const spans = await spansOf(9, async (client) => {
        const metadata = new grpc.Metadata();
        metadata.set('traceparent', traceparent);
        const stream = client.ModelStreamInfer(metadata).on('data', () => undefined);
        for (let i = 0; i < 2; i++) stream.write(request());
        stream.end();
        await once(stream, 'end');
      });
      const names = spans.map(({ name }) => name);
      expect(names.filter((name) => name === 'infer octave')).to.have.length(2);
      expect(names.filter((name) => name === 'inference.GRPCInferenceService/ModelStreamInfer')).to.have.length(1);
      expect(new Set(spans.map((span) => span.spanContext().traceId))).to.deep.equal(new Set([traceId]));
    });

    it('tell faults of the server, and nothing of calls that are not let in', async () => {
      const spans = await spansOf(
        2,
        async (client) => {
          await ask(client, 'ModelInfer', request());
          const authorization = 'Bearer secret';
          await ask(client, 'ModelInfer', request({ model_name: 'nothing' }), { authorization });
          await service.unload('octave');
          await ask(client, 'ModelInfer', request(), { authorization });
        },
        { token: 'secret' },
      );
      expect(
        spans.map(({ name, status, attributes }) => [name, status.code, attributes['rpc.grpc.status_code']]),
      ).to.deep.equal([
        [infer, 0, status.NOT_FOUND],
        [infer, 2, status.UNAVAILABLE],
      ]);
    });
  });
});
