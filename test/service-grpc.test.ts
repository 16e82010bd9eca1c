/** The gRPC door over real connections: lib/service/grpc.ts. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { type ClientHttp2Session, connect as connectHttp2 } from 'node:http2';
import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import * as grpc from '@grpc/grpc-js';
import { expect } from 'chai';
import { type GrpcOptions, type GrpcServer, serveGrpc } from '../lib/service/grpc.js';
import { Service } from '../lib/service/service.js';
import { Tensor } from '../lib/tensor.js';
import { certificatesFor, expectFine } from './doors.js';
import { error, failure, until } from './expect.js';
import {
  call as callOn,
  callHeaders,
  frameOf,
  harmless,
  hostileCalls,
  hostileCount,
  methods as definition,
} from './hostile.js';

const pathOf = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const folder = pathOf('../models/cifar10-oct-resnet-26-a50');

/** Milliseconds that a request to `slow` waits for others: long enough to do something meanwhile. */
const wait = 300;

const Client = grpc.makeClientConstructor(definition, 'GRPCInferenceService');
const { status } = grpc;

// biome-ignore lint/suspicious/noExplicitAny: messages of many methods
type Any = any;
interface Asking extends grpc.CallOptions {
  readonly client?: grpc.Client;
  readonly metadata?: Record<string, string>;
  readonly cancelled?: AbortSignal;
}

describe('service: gRPC', function () {
  this.timeout(60_000);
  let service: Service;
  let server: GrpcServer;
  let client: grpc.Client;
  let cat: Buffer;
  const faults: unknown[] = [];
  const closers: (() => unknown)[] = [];

  before(async () => {
    cat = readFileSync(pathOf('images/cat.jpg'));
    service = await Service.open(
      { cifar: folder, slow: folder },
      {
        maxBatch: 1,
        models: { slow: { batching: { sizes: [1, 2, 4], maxDelay: wait * 1000, queue: 3, priorities: 2 } } },
      },
    );
    server = await serve();
    client = clientOf(server);
  });
  afterEach(async () => {
    for (const close of closers.splice(2)) await close();
  });
  after(async () => {
    for (const close of closers.splice(0).reverse()) await close();
    await service?.close();
    expect(faults).to.deep.equal([]);
  });

  async function serve(options: GrpcOptions = {}): Promise<GrpcServer> {
    const served = await serveGrpc(service, { logger: { error: (fault) => void faults.push(fault) }, ...options });
    closers.push(() => served.close(0));
    return served;
  }

  function clientOf({ port }: GrpcServer, credentials = grpc.credentials.createInsecure()): grpc.Client {
    // A pool of its own: a server that was closed would otherwise be known.
    const made = new Client(`127.0.0.1:${port}`, credentials, {
      'grpc.use_local_subchannel_pool': 1,
      'grpc.ssl_target_name_override': 'octconv.test', // of certificates: an address has no name
    });
    closers.push(() => made.close());
    return made;
  }

  /** The answer; rejects with a `ServiceError` of gRPC, which has `code` and `details`. */
  function ask(method: string, message: object = {}, asking: Asking = {}): Promise<Any> {
    const { client: from = client, metadata = {}, cancelled, ...options } = asking;
    const sent = new grpc.Metadata();
    for (const [name, value] of Object.entries(metadata)) sent.set(name, value);
    return new Promise((resolve, reject) => {
      const call = (from as Any)[method](message, sent, options, (failed: Error | null, answer: object) =>
        failed ? reject(failed) : resolve(answer),
      );
      cancelled?.addEventListener('abort', () => call.cancel());
    });
  }
  const refusal = (answer: Promise<unknown>): Promise<grpc.ServiceError> =>
    answer.then(
      (got) => expect.fail(`answered ${JSON.stringify(got)}`),
      (failed) => failed,
    );

  /** Pixels of pictures, each another. */
  const pixels = (rows: number) => Uint8Array.from({ length: rows * 3072 }, (_, i) => (i * 31 + (i >> 7)) % 256);
  const floats = (rows: number) => Float32Array.from(pixels(rows), (x) => x / 64 - 2);
  const described = (rows: number, datatype = 'UINT8') => ({ name: 'input', datatype, shape: [rows, 32, 32, 3] });
  const request = (rows: number, more: object = {}) => ({
    model_name: 'cifar',
    inputs: [described(rows)],
    raw_input_contents: [pixels(rows)],
    ...more,
  });
  const logitsOf = ({ raw_output_contents: [bytes] }: Any): Float32Array =>
    new Float32Array(new Uint8Array(bytes).buffer);
  const wantedOf = async (x: Tensor<'u8' | 'f32'>) => (await service.infer('cifar', x)).logits.data;
  const wanted = (rows: number) => wantedOf(new Tensor('u8', [rows, 32, 32, 3], pixels(rows)));
  const near = (got: ArrayLike<number>, expected: ArrayLike<number>) => expect(error(got, expected)).to.be.below(1e-4);
  const bytesOf = (array: Float32Array) => Buffer.from(array.buffer);
  const lengthed = (...parts: Uint8Array[]) =>
    Buffer.concat(parts.flatMap((part) => [Buffer.from(new Uint32Array([part.length]).buffer), part]));

  describe('what is there', () => {
    it('tells of its health, of itself and of models', async () => {
      expect(await ask('ServerLive')).to.deep.equal({ live: true });
      expect(await ask('ServerReady')).to.deep.equal({ ready: true });
      const { name, version, extensions } = await ask('ServerMetadata');
      expect([name, version]).to.deep.equal([
        'octconv',
        JSON.parse(readFileSync(pathOf('../package.json'), 'utf8')).version,
      ]);
      expect(extensions).to.include.members(['classification', 'model_repository', 'statistics']);
      for (const [message, ready] of [
        [{ name: 'cifar' }, true],
        [{ name: 'cifar', version: '1' }, true],
        [{ name: 'cifar', version: '2' }, false],
        [{ name: '../cifar' }, false],
        [{ name: '__proto__' }, false],
        [{}, false],
      ] as const)
        expect(await ask('ModelReady', message)).to.deep.equal({ ready });
      const metadata = await ask('ModelMetadata', { name: 'cifar' });
      expect(metadata).to.deep.equal({
        name: 'cifar',
        versions: ['1'],
        platform: 'octconv',
        inputs: [{ name: 'input', datatype: 'UINT8', shape: [-1, 32, 32, 3] }],
        outputs: [{ name: 'logits', datatype: 'FP32', shape: [-1, 10] }],
      });
      expect((await refusal(ask('ModelMetadata', { name: 'nothing' }))).code).to.equal(status.NOT_FOUND);
    });

    it('tells how models are batched and what they have done', async () => {
      const { config } = await ask('ModelConfig', { name: 'slow', version: '1' });
      expect(config.max_batch_size).to.equal(4);
      expect(config.input).to.deep.equal([
        { name: 'input', data_type: 'TYPE_UINT8', format: 'FORMAT_NHWC', dims: [32, 32, 3] },
      ]);
      expect(config.output).to.deep.equal([{ name: 'logits', data_type: 'TYPE_FP32', dims: [10] }]);
      expect(config.instance_group[0].kind).to.equal('KIND_CPU');
      expect(config.dynamic_batching).to.deep.include({
        max_queue_delay_microseconds: wait * 1000,
        priority_levels: 2,
        default_queue_policy: {
          timeout_action: 'REJECT',
          default_timeout_microseconds: 0,
          allow_timeout_override: true,
          max_queue_size: 3,
        },
      });
      const before = (await ask('ModelStatistics', { name: 'cifar' })).model_stats[0];
      await ask('ModelInfer', request(2));
      await refusal(ask('ModelInfer', request(2, { inputs: [described(1)] })));
      await refusal(ask('ModelInfer', request(300)));
      const [after] = (await ask('ModelStatistics', { name: 'cifar', version: '1' })).model_stats;
      expect(after.inference_count - before.inference_count).to.equal(2);
      expect(after.inference_stats.success.count - before.inference_stats.success.count).to.equal(1);
      expect(after.inference_stats.fail.count - before.inference_stats.fail.count).to.equal(1); // one came to the model
      expect(after.inference_stats.success.ns).to.be.above(before.inference_stats.success.ns);
      expect(Math.abs(after.last_inference - Date.now())).to.be.below(60_000);
      expect((await ask('ModelStatistics')).model_stats.map(({ name }: Any) => name)).to.have.members([
        'cifar',
        'slow',
      ]);
      expect((await refusal(ask('ModelStatistics', { name: 'nothing' }))).code).to.equal(status.NOT_FOUND);
    });

    it('loads and unloads models, where callers may', async () => {
      const closed = clientOf(await serve({ repository: false }));
      const no = await refusal(ask('RepositoryModelUnload', { model_name: 'slow' }, { client: closed }));
      expect([no.code, no.details]).to.deep.equal([
        status.PERMISSION_DENIED,
        'unload: this server lets no caller load or unload models',
      ]);
      const states = async (message = {}) =>
        (await ask('RepositoryIndex', message)).models.map(({ name, state }: Any) => [name, state]);
      await ask('RepositoryModelUnload', {
        model_name: 'slow',
        parameters: { unload_dependents: { bool_param: true } },
      });
      expect(await states()).to.deep.equal([
        ['cifar', 'READY'],
        ['slow', 'UNAVAILABLE'],
      ]);
      expect(await states({ ready: true })).to.deep.equal([['cifar', 'READY']]);
      expect(await ask('ServerReady')).to.deep.equal({ ready: true });
      expect(await ask('ModelReady', { name: 'slow' })).to.deep.equal({ ready: false });
      const gone = await refusal(ask('ModelInfer', request(1, { model_name: 'slow' })));
      expect([gone.code, gone.details]).to.deep.equal([
        status.UNAVAILABLE,
        'slow, version 1: is unavailable: unloaded',
      ]);
      await ask('RepositoryModelLoad', { model_name: 'slow' });
      expect(await states()).to.deep.equal([
        ['cifar', 'READY'],
        ['slow', 'READY'],
      ]);
      const config = { config: { string_param: '{}' } };
      const told = await refusal(ask('RepositoryModelLoad', { model_name: 'slow', parameters: config }));
      expect(told.details).to.equal('load: unknown parameter "config", wanted unload_dependents');
      for (const method of ['RepositoryModelLoad', 'RepositoryModelUnload'])
        expect((await refusal(ask(method, { model_name: '../etc' }))).code).to.equal(status.NOT_FOUND);
    });
  });

  describe('infer', () => {
    it('raw tensors of each type', async () => {
      const answer = await ask('ModelInfer', request(3, { id: 'seven', model_version: '1' }));
      expect(answer).to.deep.include({ model_name: 'cifar', model_version: '1', id: 'seven' });
      expect(answer.outputs).to.have.length(1);
      expect(answer.outputs[0]).to.deep.include({ name: 'logits', datatype: 'FP32', shape: [3, 10] });
      near(logitsOf(answer), await wanted(3));

      const x = floats(2);
      const given = { inputs: [described(2, 'FP32')], raw_input_contents: [bytesOf(x)] };
      const f32 = await wantedOf(new Tensor('f32', [2, 32, 32, 3], x));
      // Ids of some lengths: the tensor is at other places of the message, aligned and not.
      for (const id of ['', 'a', 'ab', 'abc', 'abcd'])
        near(logitsOf(await ask('ModelInfer', request(2, { ...given, id }))), f32);

      for (const shape of [[2], [2, 1]]) {
        const files = {
          inputs: [{ name: 'input', datatype: 'BYTES', shape }],
          raw_input_contents: [lengthed(cat, cat)],
        };
        near(
          logitsOf(await ask('ModelInfer', request(0, files))),
          (await service.infer('cifar', [cat, cat])).logits.data,
        );
      }
    });

    it('tensors as lists', async () => {
      const of = async (datatype: string, contents: object, shape = [1, 32, 32, 3]) =>
        logitsOf(
          await ask('ModelInfer', { model_name: 'cifar', inputs: [{ name: 'input', datatype, shape, contents }] }),
        );
      near(await of('UINT8', { uint_contents: [...pixels(1)] }), await wanted(1));
      const x = floats(1);
      near(await of('FP32', { fp32_contents: [...x] }), await wantedOf(new Tensor('f32', [1, 32, 32, 3], x)));
      near(await of('BYTES', { bytes_contents: [cat] }, [1]), (await service.infer('cifar', cat)).logits.data);
    });

    it('classification names the best, and an output may be asked for', async () => {
      const files = { inputs: [{ name: 'input', datatype: 'BYTES', shape: [1] }], raw_input_contents: [lengthed(cat)] };
      const outputs = [{ name: 'logits', parameters: { classification: { int64_param: 2 } } }];
      const answer = await ask('ModelInfer', request(0, { ...files, outputs }));
      expect(answer.outputs[0]).to.deep.include({ name: 'logits', datatype: 'BYTES', shape: [1, 2] });
      const bytes: Buffer = answer.raw_output_contents[0];
      const first = bytes.subarray(4, 4 + bytes.readUInt32LE(0)).toString();
      expect(first).to.match(/^\d+\.\d{6}:3:cat$/);
      const logits = logitsOf(await ask('ModelInfer', request(0, { ...files, outputs: [{ name: 'logits' }] })));
      expect(Number(first.split(':')[0])).to.be.closeTo(Math.max(...logits), 1e-4);
    });

    it('messages of many MiB, and compressed ones', async () => {
      const large = clientOf(await serve({ maxBytes: 2 ** 24 }));
      await ask('ModelInfer', { inputs: [], raw_input_contents: [Buffer.alloc(2 ** 24)] }, { client: large }).catch(
        ({ code }) => expect(code).to.equal(status.NOT_FOUND), // as there is no model of no name: it was read
      );
      const message = definition.ModelInfer!.requestSerialize(request(2));
      const [code, body] = await raw([[1, gzipSync(message)]], { encoding: 'gzip' });
      expect(code).to.equal(status.OK);
      near(logitsOf(definition.ModelInfer!.responseDeserialize(body.subarray(5))), await wanted(2));
    });
  });

  describe('refuses', () => {
    it('tensors that do not fit, and says why', async () => {
      const input = (more: object) => ({ inputs: [{ ...described(1), ...more }] });
      const list = (datatype: string, contents: object) => ({
        inputs: [{ ...described(1, datatype), contents }],
        raw_input_contents: [],
      });
      const files = (shape: number[], bytes: Uint8Array) => ({
        inputs: [{ name: 'input', datatype: 'BYTES', shape }],
        raw_input_contents: [bytes],
      });
      for (const [more, message, code = status.INVALID_ARGUMENT] of [
        [{ inputs: [] }, 'request.inputs[0] is nothing, wanted'],
        [{ inputs: [described(1), described(1)] }, 'wanted one input, "input"'],
        [input({ name: 'x' }), 'request.inputs[0].name is "x", wanted "input"'],
        [input({ name: '__proto__' }), 'wanted "input"'],
        [{ outputs: [{ name: 'y' }] }, 'wanted one output, "logits"'],
        [{ outputs: Array(3).fill({ name: 'logits' }) }, 'wanted one output, "logits"'],
        [input({ datatype: 'FP16' }), 'datatype "FP16", wanted FP32, UINT8 or BYTES'],
        [input({ datatype: 'constructor' }), 'datatype "constructor", wanted FP32, UINT8 or BYTES'],
        [input({ datatype: '' }), 'datatype "", wanted FP32, UINT8 or BYTES'],
        [input({ shape: [-1, 32, 32, 3] }), 'request.inputs[0].shape[0] is -1, wanted an integer from 0'],
        [input({ shape: [2 ** 40, 2 ** 40, 32, 3] }), 'shape [1099511627776,1099511627776,32,3], wanted'],
        [input({ shape: Array(2000).fill(1) }), 'a shape of 2000 axes, wanted at most 8'],
        [input({ shape: [0, 32, 32, 3] }), 'shape [0,32,32,3], wanted a list of positive integers'],
        [input({ shape: [] }), 'UINT8 [] is 3072 bytes, wanted 1'],
        [input({ shape: [1, 3072] }), 'input is u8 [1,3072], wanted f32 or u8 [N,32,32,3]'],
        [input({ shape: [3, 32, 32, 1] }), 'input is u8 [3,32,32,1], wanted f32 or u8 [N,32,32,3]'],
        [{ raw_input_contents: [pixels(1).subarray(1)] }, 'UINT8 [1,32,32,3] is 3071 bytes, wanted 3072'],
        [{ raw_input_contents: [pixels(2)] }, 'UINT8 [1,32,32,3] is 6144 bytes, wanted 3072'],
        [{ raw_input_contents: [pixels(1), pixels(1)] }, '2 raw_input_contents, wanted one for one input'],
        [input({ contents: { uint_contents: [1] } }), 'the input has contents and raw_input_contents, wanted one'],
        [{ raw_input_contents: [] }, 'UINT8 [1,32,32,3] has 0 elements, wanted 3072'],
        [list('UINT8', { uint_contents: Array(3072).fill(256) }), 'element 0 is 256, wanted an integer'],
        [list('UINT8', { fp32_contents: Array(3072).fill(1) }), 'has 0 elements, wanted 3072'],
        [list('FP32', { fp32_contents: Array(3071).fill(1) }), 'has 3071 elements, wanted 3072'],
        [files([2], lengthed(cat)), 'element 1 of 2 ends behind'],
        [files([1], lengthed(cat, cat)), 'of which 1 elements are'],
        [files([2 ** 40], lengthed(cat)), 'rows, wanted at most'],
        [files([1], lengthed(Buffer.from('no picture'))), 'is not a picture'],
        [files([1], lengthed(Buffer.from('/etc/passwd'))), 'is not a picture'],
        [{ parameters: { priority: { int64_param: 2 } } }, 'priority 2, wanted an integer from 1 to 1'],
        [{ parameters: { priority: { string_param: 'high' } } }, 'request.parameters.priority is "high"'],
        [{ parameters: { timeout: { int64_param: -1 } } }, 'request.parameters.timeout is -1'],
        [input({ parameters: { shared_memory_region: { string_param: 'r' } } }), 'shared memory is not taken'],
        [{ model_name: 'nothing' }, 'no model "nothing"', status.NOT_FOUND],
        [{ model_name: '' }, 'no model ""', status.NOT_FOUND],
        [{ model_version: '9' }, 'cifar: no version "9"', status.NOT_FOUND],
        [
          { id: 'x'.repeat(2 ** 20) },
          'ModelInfer: a message of more than 256 fields or 1048576 bytes',
          status.RESOURCE_EXHAUSTED,
        ],
        [
          { raw_input_contents: Array(300).fill(pixels(0)) },
          'a message of more than 256 fields',
          status.RESOURCE_EXHAUSTED,
        ],
        [input({ shape: Array(2 ** 20).fill(1) }), 'a message of more than 256 fields', status.RESOURCE_EXHAUSTED],
      ] as readonly (readonly [object, string, number?])[]) {
        const refused = await refusal(ask('ModelInfer', request(1, more)));
        expect(refused.details).to.include(message);
        expect(refused.code, refused.details).to.equal(code);
      }
      near(logitsOf(await ask('ModelInfer', request(1))), await wanted(1));
    });

    it('with a message that fits into trailers, whatever a name has in it', async () => {
      for (const start of ['', 'a', 'ab']) {
        const refused = await refusal(ask('ModelMetadata', { name: start + '🐈'.repeat(5000) }));
        expect(refused.code).to.equal(status.NOT_FOUND);
        expect(refused.details).to.match(/^no model "a?b?🐈+/u);
      }
      const input = { ...described(1), name: `\0\r\n%00\u202e${'€'.repeat(3000)}` };
      const refused = await refusal(ask('ModelInfer', request(1, { inputs: [input] })));
      expect(refused.details).to.match(/^infer: request.inputs\[0\].name is .* wanted "input"$/);
    });

    it('messages that cannot be read, or are too large', async () => {
      const size = 2 ** 16;
      const small = await serve({ maxBytes: size });
      const { port } = small;
      const large = await refusal(ask('ModelInfer', request(400), { client: clientOf(small) }));
      expect(large.code).to.equal(status.RESOURCE_EXHAUSTED);
      for (const [frames, code, options] of [
        [[[0, Buffer.from([0x0a, 5, 1])]], status.INVALID_ARGUMENT],
        [[[0, Buffer.alloc(2000, 0x43)]], status.INVALID_ARGUMENT], // groups in groups
        [[[0, Buffer.alloc(5000, Buffer.from([0x2a, 0]))]], status.RESOURCE_EXHAUSTED],
        [[[0, Buffer.alloc(0)]], status.NOT_FOUND], // a message of defaults
        [[[1, gzipSync(Buffer.alloc(2 ** 26))]], status.RESOURCE_EXHAUSTED, { port, encoding: 'gzip' }],
        [[[1, Buffer.from('no gzip')]], status.INTERNAL, { encoding: 'gzip' }],
        [[[1, Buffer.from('x')]], status.UNIMPLEMENTED, { encoding: 'unknown' }],
        [[], status.UNIMPLEMENTED],
        [[[0, Buffer.alloc(0)]], status.UNIMPLEMENTED, { method: 'Nothing' }],
      ] as readonly (readonly [Frames, number, RawOptions?])[])
        expect((await raw(frames, options))[0]).to.equal(code);
      const { details, code } = await refusal(
        new Promise((_, reject) => {
          const call = client.makeUnaryRequest(
            '/inference.GRPCInferenceService/ModelReady',
            (bytes: Buffer) => bytes,
            (bytes) => bytes,
            Buffer.from([0x0a, 5, 1]),
            reject,
          );
          closers.push(() => call.cancel());
        }),
      );
      expect(code).to.equal(status.INVALID_ARGUMENT);
      expect(details).to.match(/^ModelReady: a message that cannot be read: /);
    });

    it('who has no token, before the message is read; health is open', async () => {
      const token = 'secret';
      const guarded = await serve({ token });
      const from = { client: clientOf(guarded) };
      const bearer = (authorization: string) => ({ ...from, metadata: { authorization } });
      expect(await ask('ServerLive', {}, from)).to.deep.equal({ live: true });
      expect(await ask('ServerReady', {}, from)).to.deep.equal({ ready: true });
      for (const asking of [from, bearer('Bearer another'), bearer(token), bearer('Bearer ')])
        for (const method of ['ServerMetadata', 'ModelInfer', 'RepositoryModelUnload'])
          expect((await refusal(ask(method, {}, asking))).code).to.equal(status.UNAUTHENTICATED);
      expect((await ask('ServerMetadata', {}, bearer(`Bearer ${token}`))).name).to.equal('octconv');
      const [first] = await raw([], { port: guarded.port, end: false });
      expect(first).to.equal(status.UNAUTHENTICATED);
      const stream = (from.client as Any).ModelStreamInfer(new grpc.Metadata());
      const [refused] = await once(stream, 'error');
      expect(refused.code).to.equal(status.UNAUTHENTICATED);
    });

    it('faults of the server are logged, and not told', async () => {
      class Log {
        readonly faults: unknown[] = [];
        error(fault: unknown) {
          this.faults.push(fault);
        }
      }
      const logger = new Log();
      const logging = clientOf(await serve({ logger }));
      const fault = new TypeError('at /secret/path');
      service.infer = () => Promise.reject(fault);
      try {
        const { code, details } = await refusal(ask('ModelInfer', request(1), { client: logging }));
        expect([code, details]).to.deep.equal([status.INTERNAL, 'internal error']);
        expect(logger.faults).to.deep.equal([fault]);
      } finally {
        delete (service as { infer?: unknown }).infer;
      }
    });

    it('who does not send the message', async () => {
      const hasty = await serve({ requestTimeout: 0.1 });
      const start = performance.now();
      expect((await raw([], { port: hasty.port, end: false }))[0]).to.equal(status.DEADLINE_EXCEEDED);
      expect(performance.now() - start).to.be.within(90, 2000);
      const from = clientOf(hasty);
      await ask('ModelInfer', request(1, { model_name: 'slow' }), { client: from }); // longer, but sent in time
    });

    it('options that make no sense, a port that is taken, and absent packages', async () => {
      for (const [options, message] of [
        [{ port: 70_000 }, /^grpc: port is 70000, wanted an integer from 0 to 65535$/],
        [{ prot: 1 }, /^grpc: unknown field "prot" \(did you mean "port"\?\)/],
        [{ token: '' }, /^grpc: token is "", wanted a text$/],
        [{ maxBytes: 0 }, /^grpc: maxBytes is 0, wanted an integer from 1/],
        [{ logger: true }, /^grpc: logger is true, wanted an object with error\(\)$/],
        [{ port: server.port }, /^grpc: listen EADDRINUSE[^\]]*$/],
        [{ tls: { key: 'no key', cert: 'no certificate' } }, /^grpc: /],
      ] as const)
        expect(await failure(serveGrpc(service, options as GrpcOptions))).to.match(message);

      const resolve = `export const resolve = (name, context, next) => {
        if (name.startsWith('@grpc/')) throw Object.assign(new Error(name), { code: 'ERR_MODULE_NOT_FOUND' });
        return next(name, context);
      };`;
      const script = `
        import { register } from 'node:module';
        const { serveGrpc } = await import(${JSON.stringify(new URL('../lib/service/grpc.ts', import.meta.url).href)});
        register('data:text/javascript,' + encodeURIComponent(${JSON.stringify(resolve)}));
        const { message, cause } = await serveGrpc({}).catch((error) => error);
        console.log(message, cause.code);`;
      const out = execFileSync(process.execPath, ['--import', 'tsx', '--input-type=module', '--eval', script], {
        encoding: 'utf8',
        cwd: pathOf('..'),
      });
      expect(out).to.equal(
        'grpc: its packages are not installed: npm install @grpc/grpc-js @grpc/proto-loader ERR_MODULE_NOT_FOUND\n',
      );
    });
  });

  describe('under load', () => {
    const slow = (rows: number, more: object = {}) => request(rows, { model_name: 'slow', ...more });
    const waiting = () => service.version('slow').waiting;
    const cancelled = () => service.version('slow').counts?.failures.get('cancelled') ?? 0;

    it('refuses what the queue has no room for, at once', async () => {
      const first = ask('ModelInfer', slow(2));
      await until(() => waiting() === 2);
      const start = performance.now();
      const refused = await refusal(ask('ModelInfer', slow(2)));
      expect(performance.now() - start).to.be.below(wait / 2);
      expect([refused.code, refused.details]).to.deep.equal([
        status.RESOURCE_EXHAUSTED,
        'slow: 2 more rows than the 2 that wait, wanted at most 3',
      ]);
      expect(Number(refused.metadata.get('grpc-retry-pushback-ms')[0])).to.be.at.least(1000);
      near(logitsOf(await first), await wanted(2));
    });

    it('refuses messages that are too many with those that are not answered', async () => {
      const other = clientOf(await serve({ maxBytes: 10_000, maxBytesInFlight: 2 ** 20 + 10_000 }));
      const padded = (bytes: number) => request(1, { model_name: 'slow', id: 'x'.repeat(bytes) });
      const first = ask('ModelInfer', padded(1_000_000), { client: other });
      while (service.version('slow').waiting === 0) await sleep(5);
      const refused = await refusal(ask('ModelInfer', padded(100_000), { client: other }));
      expect([refused.code, refused.metadata.get('grpc-retry-pushback-ms')]).to.deep.equal([
        status.RESOURCE_EXHAUSTED,
        ['1000'],
      ]);
      expect(refused.details).to.match(
        /^10\d{4} more bytes of requests than the 100\d{4} that are not answered, wanted/,
      );
      expect(await ask('ServerLive', {}, { client: other })).to.deep.equal({ live: true });
      await first;
      await ask('ModelInfer', padded(100_000), { client: other });
      const few = await failure(serveGrpc(service, { maxBytes: 10_000, maxBytesInFlight: 10_000 }));
      expect(few).to.equal('grpc: maxBytesInFlight is 10000, wanted at least 1058576, of one request');
    });

    it('a request leaves the queue when its client has cancelled or gone, or its deadline has passed', async () => {
      const before = cancelled();
      const stop = new AbortController();
      const leaving = ask('ModelInfer', slow(2), { cancelled: stop.signal });
      await until(() => waiting() === 2);
      stop.abort();
      expect((await refusal(leaving)).code).to.equal(status.CANCELLED);
      await until(() => waiting() === 0 && cancelled() === before + 1);

      const late = await refusal(ask('ModelInfer', slow(2), { deadline: Date.now() + 80 }));
      expect(late.code).to.equal(status.DEADLINE_EXCEEDED);
      await until(() => waiting() === 0 && cancelled() === before + 2);

      const session = connectHttp2(`http://127.0.0.1:${server.port}`).on('error', () => undefined);
      void rawOf(session, [[0, definition.ModelInfer!.requestSerialize(slow(2))]]).catch(() => undefined);
      await until(() => waiting() === 2);
      session.destroy();
      await until(() => waiting() === 0 && cancelled() === before + 3);
    });

    it('a deadline that only the server knows, and the timeout of a request', async () => {
      const [code] = await raw([[0, definition.ModelInfer!.requestSerialize(slow(2))]], { timeout: '80m' });
      expect(code).to.equal(status.DEADLINE_EXCEEDED);
      const late = await refusal(ask('ModelInfer', slow(1, { parameters: { timeout: { int64_param: 50_000 } } })));
      expect([late.code, late.details]).to.deep.equal([
        status.DEADLINE_EXCEEDED,
        'slow: the request waited for longer than its timeout',
      ]);
    });
  });

  describe('streams', () => {
    function stream(from = client) {
      const call = (from as Any).ModelStreamInfer(new grpc.Metadata()) as grpc.ClientDuplexStream<object, Any>;
      const answers: Any[] = [];
      call.on('data', (answer) => void answers.push(answer));
      const ended = new Promise<grpc.StatusObject>((resolve) => call.on('status', resolve));
      call.on('error', () => undefined);
      return { call, answers, ended };
    }

    it('answers come when they are ready; a request that fails does not end the stream', async () => {
      const { call, answers, ended } = stream();
      call.write(request(2, { id: 'slow', model_name: 'slow' }));
      call.write(request(1, { id: 'bad', inputs: [described(2)] }));
      call.write(request(1, { id: 'nothing', model_name: 'nothing' }));
      call.write(request(1, { id: 'quick' }));
      call.end();
      expect((await ended).code).to.equal(status.OK);
      expect(answers.map(({ infer_response: { id } }) => id)).to.deep.equal(['bad', 'nothing', 'quick', 'slow']);
      expect(answers.map(({ error_message }) => error_message)).to.deep.equal([
        'input: UINT8 [2,32,32,3] is 3072 bytes, wanted 6144',
        'no model "nothing"',
        '',
        '',
      ]);
      near(logitsOf(answers[2].infer_response), await wanted(1));
      near(logitsOf(answers[3].infer_response), await wanted(2));
      expect(answers[3].infer_response.parameters.triton_final_response.bool_param).to.equal(true);
    });

    it('many requests, a message that cannot be read among them', async () => {
      const { serialize, answers, ended } = rawStream();
      for (let i = 0; i < 100; i++) serialize(definition.ModelInfer!.requestSerialize(request(1, { id: `${i}` })));
      serialize(Buffer.from([0x0a, 5, 1]));
      serialize(undefined);
      expect(await ended).to.equal(status.OK);
      expect(answers).to.have.length(101);
      const failed = answers.filter(({ error_message }) => error_message);
      expect(failed).to.have.length(1);
      expect(failed[0].error_message).to.include('a message that cannot be read');
    });

    /** A stream of bytes, which need be no messages. */
    function rawStream() {
      const { path, responseDeserialize } = definition.ModelStreamInfer!;
      const call = client.makeBidiStreamRequest(path, (bytes: Buffer) => bytes, responseDeserialize);
      const answers: Any[] = [];
      call.on('data', (answer) => void answers.push(answer));
      call.on('error', () => undefined);
      const ended = new Promise<number>((resolve) => call.on('status', ({ code }) => resolve(code)));
      return { serialize: (bytes?: Buffer) => (bytes ? call.write(bytes) : call.end()), answers, ended };
    }

    it('who does not read is not read from', async () => {
      const session = connectHttp2(`http://127.0.0.1:${server.port}`);
      closers.push(() => session.destroy());
      const call = session.request(callHeaders('ModelStreamInfer'));
      const id = 'x'.repeat(100_000); // in each answer
      const frame = frameOf(0, definition.ModelInfer!.requestSerialize({ model_name: 'nothing', id }));
      let taken = 0;
      for (; taken < 2000; taken++)
        if (!call.write(frame) && !(await Promise.race([once(call, 'drain').then(() => true), sleep(200, false)])))
          break;
      expect(taken).to.be.within(1, 1000);
      let answered = 0;
      call.on('data', (bytes: Buffer) => (answered += bytes.length));
      const start = performance.now();
      while (answered < taken * id.length && performance.now() - start < 10_000) await sleep(10);
      expect(answered).to.be.at.least(taken * id.length);
      call.close();
    });

    it('a client that leaves takes its requests with it', async () => {
      const { call, ended } = stream();
      call.write(request(2, { model_name: 'slow' }));
      while (service.version('slow').waiting < 2) await sleep(5);
      call.cancel();
      expect((await ended).code).to.equal(status.CANCELLED);
      for (let i = 0; i < 200 && service.version('slow').waiting > 0; i++) await sleep(5);
      expect(service.version('slow').waiting).to.equal(0);
    });

    it('closing: what has come is answered, then streams end', async () => {
      const closing = await serve();
      const from = clientOf(closing);
      const [idle, busy] = [stream(from), stream(from)];
      busy.call.write(request(2, { model_name: 'slow' }));
      const single = ask('ModelInfer', request(1, { model_name: 'slow' }), { client: from });
      while (service.version('slow').waiting < 3) await sleep(5);
      const start = performance.now();
      const closed = closing.close();
      expect(await idle.ended).to.include({ code: status.UNAVAILABLE, details: 'the service is closing' });
      expect((await busy.ended).code).to.equal(status.UNAVAILABLE);
      near(logitsOf(busy.answers[0].infer_response), await wanted(2));
      near(logitsOf(await single), await wanted(1));
      await closed;
      expect(performance.now() - start).to.be.below(3000);
      expect((await refusal(ask('ServerLive', {}, { client: from }))).code).to.equal(status.UNAVAILABLE);
      await closing.close(); // again
    });

    it('closing does not wait for longer than told', async () => {
      const closing = await serve();
      const late = refusal(ask('ModelInfer', request(2, { model_name: 'slow' }), { client: clientOf(closing) }));
      while (service.version('slow').waiting < 2) await sleep(5);
      const start = performance.now();
      await closing.close(20);
      expect(performance.now() - start).to.be.below(wait / 2);
      expect((await late).code).to.be.oneOf([status.UNAVAILABLE, status.CANCELLED]);
    });
  });

  // --- Frames -------------------------------------------------------------------------------------------------------

  type Frames = readonly (readonly [flag: number, message: Uint8Array])[];
  interface RawOptions {
    readonly port?: number;
    readonly method?: string;
    readonly encoding?: string;
    readonly timeout?: string;
    /** Whether the request ends. */
    readonly end?: boolean;
  }

  /** The status of a call on a connection, and what was answered. */
  function rawOf(
    session: ClientHttp2Session,
    frames: Frames,
    { method = 'ModelInfer', encoding, timeout, end = true }: RawOptions = {},
  ): Promise<[code: number, body: Buffer]> {
    const headers = { ...(encoding && { 'grpc-encoding': encoding }), ...(timeout && { 'grpc-timeout': timeout }) };
    return callOn(session, { method, frames: Buffer.concat(frames.map((each) => frameOf(...each))) }, { headers, end });
  }

  async function raw(frames: Frames, options: RawOptions = {}): Promise<[code: number, body: Buffer]> {
    const session = connectHttp2(`http://127.0.0.1:${options.port ?? server.port}`);
    try {
      return await rawOf(session, frames, options);
    } finally {
      session.destroy();
    }
  }

  it(`${hostileCount} calls, changed at random: each has a status, and the server is well`, async () => {
    const make = hostileCalls('cifar');
    const session = connectHttp2(`http://127.0.0.1:${server.port}`);
    closers.push(() => session.destroy());
    const codes = new Map<number, number>();
    let next = 0;
    const some = async () => {
      while (next < hostileCount) {
        const i = next++;
        const [code] = await callOn(session, make(1, i));
        expect(code, `call ${i}`).to.be.oneOf(harmless);
        codes.set(code, (codes.get(code) ?? 0) + 1);
      }
    };
    await Promise.all(Array.from({ length: 20 }, some));
    expect(codes.get(status.INVALID_ARGUMENT)).to.be.above(hostileCount / 10);
    expect(codes.get(status.OK)).to.be.above(hostileCount / 10);
    near(logitsOf(await ask('ModelInfer', request(2))), await wanted(2));
    expect(service.version('cifar').waiting).to.equal(0);
  });

  it('connections that are no HTTP/2, or end within a frame', async () => {
    for (const bytes of [
      'GET / HTTP/1.1\r\n\r\n',
      `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n${'\xff'.repeat(40)}`,
      '\0'.repeat(99),
    ]) {
      const socket = connect(server.port, '127.0.0.1', () => socket.write(bytes, 'latin1')).on(
        'error',
        () => undefined,
      );
      socket.resume();
      await once(socket, 'close');
    }
    const session = connectHttp2(`http://127.0.0.1:${server.port}`).on('error', () => undefined);
    for (let i = 0; i < 50; i++) {
      const call = session.request(callHeaders(i % 2 ? 'ModelInfer' : 'ModelStreamInfer')).on('error', () => undefined);
      call.write(frameOf(0, definition.ModelInfer!.requestSerialize(request(1))).subarray(0, 40 * (i + 1)));
      if (i % 3) call.close(8);
    }
    await sleep(50);
    session.destroy();
    near(logitsOf(await ask('ModelInfer', request(1))), await wanted(1));
  });

  describe('TLS', () => {
    const pem = certificatesFor('DNS:octconv.test');

    it('serves with a certificate, and asks clients for theirs where there is a CA', async () => {
      const tls = { key: pem('server.key'), cert: pem('server.pem') };
      const [one, both] = [await serve({ tls }), await serve({ tls: { ...tls, ca: pem('ca.pem') } })];
      const { createSsl, createInsecure } = grpc.credentials;
      const live = (from: GrpcServer, credentials: grpc.ChannelCredentials) =>
        ask('ServerLive', {}, { client: clientOf(from, credentials), deadline: Date.now() + 5000 });
      const mine = createSsl(pem('ca.pem'), pem('client.key'), pem('client.pem'));
      expect(await live(one, createSsl(pem('ca.pem')))).to.deep.equal({ live: true });
      expect(await live(both, mine)).to.deep.equal({ live: true });
      for (const [from, credentials] of [
        [one, createInsecure()],
        [one, createSsl()],
        [both, createSsl(pem('ca.pem'))],
      ] as const)
        expect((await refusal(live(from, credentials))).code).to.equal(status.UNAVAILABLE);
    });
  });

  it("answers Triton's Python client", async function () {
    await expectFine(this, 'triton-grpc.py', 'tritonclient.grpc', `127.0.0.1:${server.port}`);
  });
});
