/** Traces in files, and Triton's trace extension at both doors: lib/service/trace-file.ts. */
import { EventEmitter } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as grpc from '@grpc/grpc-js';
import { expect } from 'chai';
import { readServeConfig } from '../lib/service/config.js';
import { serveGrpc } from '../lib/service/grpc.js';
import type { ServiceEvents } from '../lib/service/models.js';
import type { RequestEnded } from '../lib/service/served.js';
import { serveHttp } from '../lib/service/server.js';
import { Service } from '../lib/service/service.js';
import { start } from '../lib/service/start.js';
import { TraceFile, type TraceOptions } from '../lib/service/trace-file.js';
import { Tensor } from '../lib/tensor.js';
import { failure } from './expect.js';
import { methods } from './hostile.js';

const shipped = fileURLToPath(new URL('../models/cifar10-oct-resnet-26-a50', import.meta.url));
const picture = Tensor.zeros('u8', [1, 32, 32, 3]);

// biome-ignore lint/suspicious/noExplicitAny: what a server answers
type Any = any;
interface Traced {
  readonly id: number;
  readonly model_name?: string;
  readonly model_version?: number;
  readonly timestamps?: readonly { readonly name: string; readonly ns: number }[];
}

type Ended = Partial<RequestEnded['milliseconds']> & { readonly code?: RequestEnded['code'] };

/** A service whose requests the test makes up. */
class Fake extends EventEmitter<ServiceEvents> {
  version(name: string) {
    if (!['a', 'b'].includes(name)) throw new Error(`no model ${name}`);
  }
  answer(name: string, requests = 1, { code = 'success', ...milliseconds }: Ended = {}): void {
    const times = { prepare: 3, queue: 2, compute: 1, ...milliseconds };
    for (let i = 0; i < requests; i++) this.emit('request', name, '7', { rows: 1, code, milliseconds: times });
  }
}

describe('service: traces', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'octconv-trace-'));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  const files = () => readdirSync(folder).sort();
  const read = (name: string): Traced[] => JSON.parse(readFileSync(join(folder, name), 'utf8'));
  /** Of what model the traces of a file are. */
  const models = (name: string) => read(name).flatMap(({ model_name }) => model_name ?? []);
  const options = (more: Partial<TraceOptions> = {}): TraceOptions => ({
    ...{ file: join(folder, 'trace'), level: 'TIMESTAMPS', rate: 1 },
    ...more,
  });
  const open = async (more: Partial<TraceOptions> = {}, failed?: (error: Error) => void) => {
    const service = new Fake();
    return { service, trace: await TraceFile.open(service as unknown as Service, options(more), failed) };
  };

  describe('in files', () => {
    it('say when each step began and ended', async () => {
      const { service, trace } = await open();
      service.answer('a');
      service.answer('b', 1, { code: 'late', compute: 0 });
      service.answer('b', 1, { code: 'invalid', queue: 0, compute: 0 });
      service.answer('b', 1, { queue: 0 });
      await trace.close();
      const all = read('trace');
      expect(all.filter(({ timestamps }) => !timestamps)).to.deep.equal([
        { id: 1, model_name: 'a', model_version: 7 },
        ...[2, 3, 4].map((id) => ({ id, model_name: 'b', model_version: 7 })),
      ]);
      const [first, late, invalid, quick] = all.flatMap(({ timestamps }) => (timestamps ? [timestamps] : []));
      expect(all.map(({ id }) => id)).to.deep.equal([1, 1, 2, 2, 3, 3, 4, 4]);
      const begin = first?.[0]?.ns ?? 0;
      expect(first?.map(({ name, ns }) => [name, Math.round((ns - begin) / 1e5) / 10])).to.deep.equal([
        ['REQUEST_START', 0],
        ['QUEUE_START', 3],
        ['COMPUTE_START', 5],
        ['COMPUTE_INPUT_END', 5],
        ['COMPUTE_OUTPUT_START', 6],
        ['COMPUTE_END', 6],
        ['REQUEST_END', 6],
      ]);
      expect(first?.every(({ ns }) => Number.isSafeInteger(ns))).to.equal(true);
      expect(late?.map(({ name }) => name)).to.deep.equal(['REQUEST_START', 'QUEUE_START', 'REQUEST_END']);
      expect(invalid?.map(({ name }) => name)).to.deep.equal(['REQUEST_START', 'REQUEST_END']);
      expect(quick?.map(({ name }) => name)).to.include('QUEUE_START');
    });

    it('that are numbered where a file has so many, the rest in the last', async () => {
      const { service, trace } = await open({ logFrequency: 3 });
      service.answer('a', 8);
      await trace.close();
      service.answer('a', 8);
      expect(files()).to.deep.equal(['trace.0', 'trace.1', 'trace.2']);
      expect(files().map((name) => models(name).length)).to.deep.equal([3, 3, 2]);
      expect(read('trace.2').at(-1)?.id).to.equal(8);
      expect(service.listenerCount('request')).to.equal(0);
    });

    it('that get longer are valid as soon as more is written', async () => {
      const { service, trace } = await open();
      /** Of a file that may be being written. */
      const written = () => {
        try {
          return models('trace').length;
        } catch {
          return 0;
        }
      };
      for (let sent = 100; sent <= 300; sent += 100) {
        service.answer('a', 100);
        while (written() < sent) await new Promise(setImmediate);
      }
      service.answer('a', 7);
      await trace.close();
      expect(files()).to.deep.equal(['trace']);
      expect(new Set(read('trace').map(({ id }) => id)).size).to.equal(307);
    });

    it('1 of so many requests, and no more than so many', async () => {
      const { service, trace } = await open({ rate: 10, count: 4 });
      service.answer('a', 29);
      expect(trace.settings().trace_count).to.equal('2');
      service.answer('a', 100);
      expect(trace.settings().trace_count).to.equal('0');
      await trace.close();
      // The last of them are a file of their own, as Triton's.
      expect(files()).to.deep.equal(['trace.0']);
      expect(models('trace.0')).to.have.length(4);
    });

    it('are not made while nobody wants them', async () => {
      const { service, trace } = await open({ level: 'OFF' });
      expect(service.listenerCount('request')).to.equal(0);
      trace.update({ trace_level: 'TIMESTAMPS' }, 'b');
      expect(service.listenerCount('request')).to.equal(1);
      service.answer('a', 5);
      service.answer('b', 2);
      trace.update({ trace_level: 'OFF' }, 'b'); // what there is is written
      expect(service.listenerCount('request')).to.equal(0);
      while (!files().includes('trace')) await new Promise(setImmediate);
      service.answer('b', 2);
      await trace.close();
      expect(models('trace')).to.deep.equal(['b', 'b']);
      const none = new TraceFile(service as unknown as Service);
      expect(service.listenerCount('request')).to.equal(0);
      await none.close();
    });

    it('whose file is moved away begin a new one', async () => {
      const told: string[] = [];
      const { service, trace } = await open({}, ({ message }) => told.push(message));
      const written = () => (files().includes('trace') ? models('trace').length : 0);
      service.answer('a', 100);
      while (written() < 100) await new Promise(setImmediate);
      renameSync(join(folder, 'trace'), join(folder, 'old'));
      service.answer('a', 100); // these find no file
      while (told.length < 1) await new Promise(setImmediate);
      service.answer('a', 7);
      while (written() < 7) await new Promise(setImmediate); // within a second
      expect([models('old').length, models('trace').length, told.length]).to.deep.equal([100, 7, 1]);
      await trace.close();
    });

    it('that cannot be written are told once, until one can', async () => {
      const failed: string[] = [];
      const { service, trace } = await open({ logFrequency: 1 }, ({ message }) => failed.push(message));
      for (const name of ['trace.0', 'trace.1', 'trace.3']) mkdirSync(join(folder, name));
      service.answer('a', 4);
      await trace.close();
      expect(failed).to.have.length(2);
      expect(failed[0]).to.match(/^trace: .*trace\.0: .*folder/);
      expect(failed[1]).to.match(/^trace: .*trace\.3: .*folder/);
      expect(models('trace.2')).to.deep.equal(['a']);
    });

    it('are refused where they cannot be', async () => {
      const nobody = new Fake() as unknown as Service;
      for (const [given, message] of [
        [{ file: join(folder, 'none', 'trace') }, /trace: there is no folder /],
        [{ file: folder }, /: a folder, wanted a file$/],
        [{ file: '' }, /^trace: file is "", wanted the path of a file$/],
        [{ rate: 0 }, /^trace: rate is 0, wanted an integer from 1 to /],
        [{ level: 'TENSORS' }, /^trace: level is "TENSORS", wanted "OFF" or "TIMESTAMPS"$/],
        [{ logFrequency: 10_001 }, /^trace: logFrequency is 10001, wanted an integer from 0 to 10000$/],
        [{ frequency: 1 }, /^trace: unknown field "frequency"/],
      ] as const)
        expect(await failure(TraceFile.open(nobody, options(given as object)))).to.match(message);
    });
  });

  describe('settings', () => {
    const usual = { trace_rate: '1000', trace_count: '-1', log_frequency: '0', trace_mode: 'triton' };

    it('of a model are over those of all, which are over those of the start', async () => {
      const { service, trace } = await open({ rate: 5, level: 'OFF' });
      const first = { ...usual, trace_file: 'trace', trace_level: ['OFF'], trace_rate: '5' };
      expect(trace.settings()).to.deep.equal(first);
      expect(trace.settings('a')).to.deep.equal(first);
      trace.update({ trace_rate: 2, log_frequency: '10' }, 'a');
      expect(trace.update({ trace_level: ['TIMESTAMPS'], trace_rate: '3' })).to.include({ trace_rate: '3' });
      expect(trace.settings('a')).to.deep.include({
        trace_rate: '2',
        log_frequency: '10',
        trace_level: ['TIMESTAMPS'],
      });
      expect(trace.settings('b')).to.deep.include({ trace_rate: '3', log_frequency: '0', trace_level: ['TIMESTAMPS'] });
      service.answer('a', 4);
      service.answer('b', 4);
      expect(trace.update({ trace_rate: null, log_frequency: [] }, 'a').trace_rate).to.equal('3');
      expect(trace.update({ trace_rate: '', trace_level: null })).to.deep.equal(first);
      expect(trace.update({ trace_mode: 'triton' })).to.deep.equal(first);
      await trace.close();
      // Traces of `a` were for a file of their own until then.
      expect(files().flatMap(models).sort()).to.deep.equal(['a', 'a', 'b']);
    });

    it('count again where the count is another, or is told again', async () => {
      const { service, trace } = await open({ count: 5 });
      service.answer('a', 2);
      expect(trace.update({ log_frequency: 2 }).trace_count).to.equal('3');
      expect(trace.update({ trace_rate: 1 }, 'a').trace_count).to.equal('5');
      service.answer('a', 1);
      expect([trace.settings('a').trace_count, trace.settings().trace_count]).to.deep.equal(['4', '3']);
      expect(trace.update({ trace_count: 5 }).trace_count).to.equal('5');
      expect(trace.update({ trace_count: 0 }, 'a').trace_count).to.equal('0');
      service.answer('a', 1);
      service.answer('b', 9);
      await trace.close();
      expect(
        files()
          .flatMap(models)
          .filter((name) => name === 'b'),
      ).to.have.length(5);
    });

    it('that make no sense are errors', async () => {
      const { trace } = await open();
      for (const [given, message] of [
        [3, /^trace: the request is 3, wanted an object of trace_level, trace_rate, /],
        [[], /^trace: the request is \[\], wanted an object/],
        [null, /^trace: the request is null, wanted/],
        [{ trace_rate: 'x' }, /^trace: trace_rate is "x", wanted an integer of at least 1$/],
        [{ trace_rate: 0 }, /^trace: trace_rate is 0, wanted an integer of at least 1$/],
        [{ trace_rate: 1.5 }, /^trace: trace_rate is 1.5, wanted/],
        [{ trace_rate: 2 ** 31 }, /^trace: trace_rate is 2147483648, wanted/],
        [{ trace_rate: ['1', '2'] }, /^trace: trace_rate is \["1","2"\], wanted an integer/],
        [{ trace_rate: [[1]] }, /^trace: trace_rate is \[\[1\]\], wanted an integer/],
        [{ trace_rate: {} }, /^trace: trace_rate is {}, wanted/],
        [{ trace_count: -2 }, /^trace: trace_count is -2, wanted an integer of at least -1$/],
        [{ log_frequency: '1e5' }, /^trace: log_frequency is "1e5", wanted an integer from 0 to 10000$/],
        [{ trace_level: 'TENSORS' }, /^trace: trace_level is "TENSORS", wanted "OFF" or "TIMESTAMPS"$/],
        [
          { trace_level: ['TIMESTAMPS', 'TENSORS'] },
          /^trace: trace_level is \["TIMESTAMPS","TENSORS"\], wanted "OFF" or/,
        ],
        [{ trace_mode: 'opentelemetry' }, /^trace: trace_mode is "opentelemetry", wanted "triton"$/],
        [{ trace_speed: 1 }, /^trace: unknown setting "trace_speed", wanted trace_level, /],
        [JSON.parse('{"__proto__":1}'), /^trace: unknown setting "__proto__"/],
        [{ trace_file: '/etc/passwd' }, /^trace: trace_file is set, wanted .*: the server decides where it is$/],
        [{ trace_file: null }, /^trace: trace_file is set/],
      ] as const)
        expect(() => trace.update(given)).to.throw(message);
      // Nothing of a request that is refused holds.
      expect(() => trace.update({ trace_rate: 7, trace_count: 'x' })).to.throw(/trace_count/);
      expect(trace.settings().trace_rate).to.equal('1');
      expect(() => trace.update({}, 'c')).to.throw('no model c');
      expect(() => trace.settings('c')).to.throw('no model c');
      const none = new TraceFile(new Fake() as unknown as Service);
      expect(none.settings()).to.deep.equal({ ...usual, trace_file: '', trace_level: ['OFF'] });
      expect(() => none.update({ trace_level: ['TIMESTAMPS'] })).to.throw(
        /^trace: trace_level is "TIMESTAMPS", wanted "OFF": this server has no trace file$/,
      );
      expect(none.update({ trace_rate: 3 }).trace_rate).to.equal('3');
    });
  });

  describe('at the doors', function () {
    this.timeout(60_000);
    const Client = grpc.makeClientConstructor(methods, 'GRPCInferenceService');
    let service: Service;
    before(async () => {
      service = await Service.open({ octave: shipped }, { maxBatch: 1 });
    });
    after(() => service.close());

    /** Both doors of one object. */
    async function doors(trace: TraceFile | undefined, repository?: boolean) {
      const http = await serveHttp(service, { trace, repository });
      const server = await serveGrpc(service, { trace, repository });
      const client = new Client(`127.0.0.1:${server.port}`, grpc.credentials.createInsecure(), {
        'grpc.use_local_subchannel_pool': 1,
      });
      return {
        async ask(path: string, body?: unknown, headers: object = {}): Promise<[status: number, json: Any]> {
          const sent: RequestInit = {
            method: 'POST',
            body: JSON.stringify(body),
            headers: { ...headers, 'content-type': 'application/json' },
          };
          const answer = await fetch(`${http.url}${path}`, body === undefined ? {} : sent);
          return [answer.status, (await answer.json()) as Any];
        },
        call: (message: object): Promise<[code: number, answer: unknown]> =>
          new Promise((resolve) =>
            (client as Any).TraceSetting(message, (error: grpc.ServiceError | null, answer: object) =>
              resolve(error ? [error.code, error.details] : [0, answer]),
            ),
          ),
        async close() {
          client.close();
          await Promise.all([http.close(0), server.close(0)]);
        },
      };
    }

    it('are told and changed by HTTP and gRPC, of one object', async () => {
      const trace = await TraceFile.open(service, options({ level: 'OFF' }));
      const { ask, call, close } = await doors(trace);
      try {
        const [, extensions] = await ask('/v2');
        expect(extensions.extensions).to.include('trace');
        expect((await ask('/v2/trace/setting'))[1]).to.deep.equal(trace.settings());
        expect((await ask('/v2/models/octave/trace/setting'))[1]).to.deep.equal(trace.settings());
        const wanted = { trace_level: ['TIMESTAMPS'], trace_rate: '2' };
        const sent = { trace_level: { value: ['TIMESTAMPS'] }, trace_rate: { value: ['2'] } };
        const [code, told] = await call({ model_name: 'octave', settings: sent });
        expect([code, (told as { settings: object }).settings]).to.deep.equal([
          0,
          {
            ...{ trace_file: { value: ['trace'] }, trace_count: { value: ['-1'] }, log_frequency: { value: ['0'] } },
            ...{ trace_mode: { value: ['triton'] }, ...sent },
          },
        ]);
        expect((await ask('/v2/models/octave/trace/setting'))[1]).to.deep.include(wanted);
        expect((await ask('/v2/trace/setting'))[1]).to.deep.include({ trace_level: ['OFF'], trace_rate: '1' });
        for (let i = 0; i < 4; i++) await service.infer('octave', picture);
        const cleared = await call({ model_name: 'octave', settings: { trace_rate: {}, trace_level: {} } });
        expect(cleared[0]).to.equal(0);
        expect(await call({})).to.deep.equal(await call({ model_name: 'octave' }));
        expect(await ask('/v2/trace/setting', { trace_rate: '7' })).to.deep.equal([200, trace.settings()]);
        expect(await ask('/v2/trace/setting', {})).to.deep.equal([200, trace.settings()]);
        expect(trace.settings().trace_rate).to.equal('7');
      } finally {
        await close();
        await trace.close();
      }
      const all = read('trace');
      expect(all.filter(({ model_name }) => model_name)).to.deep.equal([
        { id: 1, model_name: 'octave', model_version: 1 },
        { id: 2, model_name: 'octave', model_version: 1 },
      ]);
      for (const { timestamps } of all.filter(({ timestamps }) => timestamps)) {
        expect(timestamps).to.have.length(7);
        const ns = (timestamps ?? []).map(({ ns }) => ns);
        expect(ns).to.deep.equal([...ns].sort((a, b) => a - b));
      }
    });

    it('are changed by those who may load models alone, and where they lie by nobody', async () => {
      const trace = await TraceFile.open(service, options());
      const [free, closed] = [await doors(trace), await doors(trace, false)];
      try {
        const change = { trace_rate: '3' };
        const no = 'trace: this server lets no caller change settings';
        expect(await closed.ask('/v2/trace/setting', change)).to.deep.equal([403, { error: no }]);
        expect(await closed.ask('/v2/models/octave/trace/setting', change)).to.deep.equal([403, { error: no }]);
        const settings = { trace_rate: { value: ['3'] } };
        expect(await closed.call({ settings })).to.deep.equal([grpc.status.PERMISSION_DENIED, no]);
        expect((await closed.ask('/v2/trace/setting'))[0]).to.equal(200);
        expect((await closed.call({}))[0]).to.equal(0);
        const [rebound, { error }] = await free.ask('/v2/trace/setting', change, { origin: 'http://evil.example' });
        expect([rebound, error]).to.match(/^403,a page of http:\/\/evil\.example/);

        const file = { trace_file: '/tmp/x' };
        const [status, refused] = await free.ask('/v2/trace/setting', file);
        expect([status, refused.error]).to.match(/^403,trace: trace_file is set, wanted /);
        const [code, details] = await free.call({ settings: { trace_file: { value: ['/tmp/x'] } } });
        expect([code, details]).to.match(/^7,trace: trace_file is set, wanted /);
        for (const path of ['/v2/models/nothing/trace/setting'])
          for (const body of [undefined, {}])
            expect(await free.ask(path, body)).to.deep.equal([404, { error: 'no model "nothing"' }]);
        expect(await free.call({ model_name: 'nothing' })).to.deep.equal([grpc.status.NOT_FOUND, 'no model "nothing"']);
        const [bad, { error: why }] = await free.ask('/v2/trace/setting', { trace_level: ['TENSORS'] });
        expect([bad, why]).to.deep.equal([400, 'trace: trace_level is ["TENSORS"], wanted "OFF" or "TIMESTAMPS"']);
        expect(await free.call({ settings: { trace_count: { value: ['1', '2'] } } })).to.deep.equal([
          grpc.status.INVALID_ARGUMENT,
          'trace: trace_count is ["1","2"], wanted an integer of at least -1',
        ]);
        expect((await free.ask('/v2/trace/setting', 'no object'))[0]).to.equal(400);
      } finally {
        await Promise.all([free.close(), closed.close()]);
        await trace.close();
      }
    });

    it('of a door without any are off', async () => {
      const { ask, call, close } = await doors(undefined);
      try {
        const [, told] = await ask('/v2/trace/setting');
        expect(told).to.deep.include({ trace_file: '', trace_level: ['OFF'] });
        expect((await call({}))[0]).to.equal(0);
        const [status, { error }] = await ask('/v2/trace/setting', { trace_level: ['TIMESTAMPS'] });
        expect([status, error]).to.match(/^400,.*this server has no trace file$/);
        expect(service.listenerCount('request')).to.equal(0);
      } finally {
        await close();
      }
      const wrong = { trace: {} as TraceFile };
      expect(await failure(serveHttp(service, wrong))).to.equal('http: trace is {}, wanted a TraceFile');
      expect(await failure(serveGrpc(service, wrong))).to.equal('grpc: trace is {}, wanted a TraceFile');
    });

    it('are what serve.json says, in its folder, and are written when the server ends', async () => {
      const config = {
        ...{ models: { octave: shipped }, grpc: false, metrics: false, log: { level: 'silent' }, http: { port: 0 } },
        trace: { file: 'traces.json', level: 'TIMESTAMPS', rate: 1 },
        service: { maxBatch: 1 },
      };
      writeFileSync(join(folder, 'serve.json'), JSON.stringify(config));
      const read = await readServeConfig(join(folder, 'serve.json'));
      expect(read.trace).to.deep.equal({
        ...{ file: join(folder, 'traces.json'), level: 'TIMESTAMPS', rate: 1, count: -1, logFrequency: 0 },
      });
      const server = await start(read, process.stderr);
      await server.service.loaded;
      await server.service.infer('octave', picture);
      await server.close();
      expect(models('traces.json')).to.deep.equal(['octave']);
      const nowhere = { ...read, trace: { ...(read.trace as TraceOptions), file: join(folder, 'none', 'x') } };
      expect(await failure(start(nowhere as typeof read, process.stderr))).to.match(/there is no folder .*none$/);
    });
  });
});
