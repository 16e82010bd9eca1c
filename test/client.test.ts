/** The typed client: beside a server that speaks the protocol by its text, and beside ours. */
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import {
  createServer,
  type IncomingHttpHeaders,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from 'node:http';
import type { AddressInfo } from 'node:net';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { Client, ClientError, type ClientOptions, type Datatype, type InferInput } from '../lib/client.js';
import { type HttpServer, serveHttp } from '../lib/service/server.js';
import { Service } from '../lib/service/service.js';
import { Tensor, tensor } from '../lib/tensor.js';

const pathOf = (name: string) => fileURLToPath(new URL(name, import.meta.url));

/** What a request was, its tensors read as the protocol says. */
interface Asked {
  readonly method: string | undefined;
  readonly url: string | undefined;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
}

type Reply = (asked: Asked, response: ServerResponse, nth: number) => void;

const failure = async (promise: Promise<unknown>): Promise<ClientError> =>
  promise.then(
    () => expect.fail('it did not fail'),
    (error: ClientError) => error,
  );

describe('client', () => {
  let server: Server;
  let url = '';
  let asked: Asked[] = [];
  let reply: Reply;
  before(async () => {
    server = createServer(async (request: IncomingMessage, response) => {
      const { method, url, headers } = request;
      const one = { method, url, headers, body: Buffer.concat(await request.toArray()) };
      asked.push(one);
      reply(one, response, asked.length);
    });
    await once(server.listen(0, '127.0.0.1'), 'listening');
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  beforeEach(() => {
    asked = [];
  });
  after(() => {
    server.close();
    server.closeAllConnections();
  });

  const client = (options?: ClientOptions) => new Client(url, options);
  const json =
    (body: unknown, status = 200, headers = {}): Reply =>
    (_, response) =>
      response.writeHead(status, headers).end(JSON.stringify(body));
  const jsonOf = ({ body, headers }: Asked) =>
    JSON.parse(body.toString('utf8', 0, Number(headers['inference-header-content-length'])));
  const tensorsOf = ({ body, headers }: Asked) => body.subarray(Number(headers['inference-header-content-length']));

  /** Gives the input back as the output `y`, behind a text of a length that puts it at an odd place. */
  const echo: Reply = (asked, response) => {
    const { inputs } = jsonOf(asked);
    const tensors = tensorsOf(asked);
    const [{ datatype, shape, parameters }] = inputs;
    const text = Buffer.from('\x03\0\0\0a:b\x04\0\0\0spä');
    const outputs = [
      { name: 'texts', datatype: 'BYTES', shape: [2], parameters: { binary_data_size: text.length } },
      { name: 'y', datatype, shape, parameters },
    ];
    const head = Buffer.from(JSON.stringify({ model_name: 'm', model_version: '7', outputs }).padEnd(332));
    response.setHeader('Inference-Header-Content-Length', head.length);
    response.end(Buffer.concat([head, text, tensors]));
  };

  it('infer: binary tensors of every datatype, there and back', async () => {
    reply = echo;
    const all: InferInput[] = [
      { datatype: 'BOOL', shape: [2], data: Uint8Array.of(1, 0) },
      { datatype: 'UINT8', shape: [3], data: Uint8Array.of(1, 2, 255) },
      { datatype: 'UINT16', shape: [1], data: Uint16Array.of(65535) },
      { datatype: 'UINT32', shape: [1], data: Uint32Array.of(2 ** 32 - 1) },
      { datatype: 'UINT64', shape: [1], data: BigUint64Array.of(2n ** 64n - 1n) },
      { datatype: 'INT8', shape: [1], data: Int8Array.of(-128) },
      { datatype: 'INT16', shape: [1], data: Int16Array.of(-32768) },
      { datatype: 'INT32', shape: [1], data: Int32Array.of(-(2 ** 31)) },
      { datatype: 'INT64', shape: [1], data: BigInt64Array.of(-(2n ** 63n)) },
      { datatype: 'FP16', shape: [1], data: Uint16Array.of(0x3c00) },
      { datatype: 'BF16', shape: [1], data: Uint16Array.of(0x3f80) },
      { datatype: 'FP32', shape: [2, 1], data: Float32Array.of(Number.NaN, -1.5) },
      { datatype: 'FP64', shape: [1], data: Float64Array.of(Math.PI) },
    ];
    for (const input of all) {
      const { model, version, outputs } = await client().infer('m', input);
      expect([model, version]).to.deep.equal(['m', '7']);
      expect(outputs.y, input.datatype).to.deep.equal({ name: 'y', ...input });
      expect(outputs.texts?.data).to.deep.equal(['a:b', 'spä']);
    }
    expect(asked.map(({ url }) => url)).to.deep.equal(all.map(() => '/v2/models/m/infer'));
  });

  it('infer: a view of a larger buffer, texts, and what is asked beside the input', async () => {
    reply = echo;
    const pixels = new Uint8Array(20).map((_, i) => i).subarray(3, 9);
    const x = tensor('u8', [1, 2, 1, 3], pixels);
    const outputs = [{ name: 'y', classification: 2 }, { name: 'texts' }];
    const got = await client().infer('m', x, { version: '3', priority: 2, timeout: 1.5, outputs });
    expect(got.outputs.y).to.deep.include({ datatype: 'UINT8', shape: [1, 2, 1, 3], data: pixels.slice() });
    const [first] = asked as [Asked];
    expect(first.url).to.equal('/v2/models/m/versions/3/infer');
    expect(jsonOf(first)).to.deep.equal({
      parameters: { priority: 2, timeout: 1500, binary_data_output: true },
      inputs: [{ name: 'input', datatype: 'UINT8', shape: [1, 2, 1, 3], parameters: { binary_data_size: 6 } }],
      outputs: [
        { name: 'y', parameters: { binary_data: true, classification: 2 } },
        { name: 'texts', parameters: { binary_data: true } },
      ],
    });
    expect([...tensorsOf(first)]).to.deep.equal([...pixels]);
    const data = ['ä', Uint8Array.of(0, 255)];
    await client().infer('m', { name: 'files', datatype: 'BYTES', shape: [2], data });
    expect(jsonOf(asked[1] as Asked).inputs[0]).to.deep.include({ name: 'files', datatype: 'BYTES', shape: [2] });
    expect(tensorsOf(asked[1] as Asked).toString('latin1')).to.equal('\x02\0\0\0\xc3\xa4\x02\0\0\0\0\xff');
  });

  it('infer: answers in JSON, nested or flat', async () => {
    const answers: [Datatype, number[], unknown[], unknown][] = [
      [
        'FP32',
        [2, 2],
        [
          [1, 2.5],
          [3, 4],
        ],
        Float32Array.of(1, 2.5, 3, 4),
      ],
      ['INT64', [2], [1, -2], BigInt64Array.of(1n, -2n)],
      ['UINT64', [1], [3], BigUint64Array.of(3n)],
      ['BYTES', [1, 2], ['a', 'b'], ['a', 'b']],
    ];
    for (const [datatype, shape, data, wanted] of answers) {
      reply = json({ model_name: 'm', outputs: [{ name: 'y', datatype, shape, data }] });
      const { version, outputs } = await client().infer('m', Tensor.zeros('f32', [1, 1]));
      expect(version).to.equal(undefined);
      expect(outputs).to.deep.equal({ y: { name: 'y', datatype, shape, data: wanted } });
    }
  });

  it('infer: an answer that is none is an error that says why', async () => {
    const y = { name: 'y', datatype: 'FP32', shape: [2] };
    const short = JSON.stringify({ outputs: [{ ...y, parameters: { binary_data_size: 8 } }] });
    const answers: [string, string | undefined, RegExp][] = [
      ['no', undefined, /no outputs/],
      ['{}', undefined, /no outputs/],
      ['{"outputs":[]}', '15', /has 14 bytes, wanted "15" of JSON/],
      ['{"outputs":[]}', 'x', /has 14 bytes, wanted "x" of JSON/],
      [JSON.stringify({ outputs: [{ ...y, data: [1] }] }), undefined, /output "y": 1 elements, wanted \[2\]/],
      [JSON.stringify({ outputs: [{ ...y, datatype: 'toString' }] }), undefined, /"y": datatype "toString"/],
      [`${short}1234567`, String(short.length), /output "y": 1 elements/],
    ];
    for (const [body, header, wanted] of answers) {
      reply = (_, response) => {
        if (header !== undefined) response.setHeader('Inference-Header-Content-Length', header);
        response.end(body);
      };
      const error = await failure(client().infer('m', Tensor.zeros('f32', [1, 1])));
      expect(error, body).to.be.instanceOf(ClientError);
      expect(error.message).to.match(wanted).and.contain(`${url}/v2/models/m/infer: `);
    }
    reply = (_, response) =>
      void response.writeHead(200, { 'content-length': 100 }).write('half', () => response.destroy());
    const cut = await failure(client().infer('m', Tensor.zeros('f32', [1, 1])));
    expect([cut instanceof ClientError, cut.status]).to.deep.equal([true, undefined]);
  });

  it('tries again after 429 and 503, as often as it may, and waits as long as it is told', async () => {
    reply = (_, response, nth) =>
      nth < 3
        ? response.writeHead(nth === 1 ? 429 : 503, { 'retry-after': '0' }).end('{"error":"busy"}')
        : response.end('{"name":"n","version":"1","extensions":[]}');
    expect((await client().metadata()).name).to.equal('n');
    expect(asked).to.have.length(3);

    asked = [];
    reply = json({ error: 'the queue is full' }, 429, { 'retry-after': '0' });
    const full = await failure(client({ retries: 1 }).metadata());
    expect(full).to.include({ status: 429, retryAfter: 0, message: `${url}/v2: status 429: the queue is full` });
    expect(asked).to.have.length(2);

    asked = [];
    reply = (_, response, nth) => response.writeHead(nth === 1 ? 429 : 200, { 'retry-after': '1' }).end('{}');
    const start = performance.now();
    await client().metadata();
    expect(performance.now() - start).to.be.within(990, 3000);

    const date = new Date(Date.now() + 10_000).toUTCString();
    reply = json({}, 503, { 'retry-after': date });
    expect((await failure(client({ retries: 0 }).metadata())).retryAfter).to.be.within(5, 10);
    reply = json({}, 503, { 'retry-after': 'soon' });
    expect((await failure(client({ retries: 0 }).metadata())).retryAfter).to.equal(undefined);
  });

  it('never tries again after any other status', async () => {
    for (const status of [400, 401, 404, 413, 499, 500, 502, 504]) {
      asked = [];
      reply = json({ error: `why ${status}` }, status, { 'retry-after': '0' });
      const error = await failure(client().infer('m', Tensor.zeros('f32', [1, 1])));
      expect(error).to.include({ status, message: `${url}/v2/models/m/infer: status ${status}: why ${status}` });
      expect(asked).to.have.length(1);
    }
    reply = (_, response) => response.writeHead(502).end('<html>');
    expect(await failure(client().metadata())).to.include({ message: `${url}/v2: status 502` });
  });

  it('sends a picture again, a stream only once', async () => {
    reply = json({ error: 'busy' }, 503, { 'retry-after': '0' });
    const bytes = Uint8Array.of(1, 2, 3);
    const sources = [bytes, bytes.buffer, new Blob([bytes], { type: 'image/png' }), new Blob([bytes]).stream()];
    const types = ['application/octet-stream', 'application/octet-stream', 'image/png', 'application/octet-stream'];
    for (const [i, source] of sources.entries()) {
      asked = [];
      const error = await failure(client({ retries: 2 }).classify('m', source, { top: 3, timeout: 0.5 }));
      expect(error.status).to.equal(503);
      expect(asked.map(({ body }) => [...body])).to.deep.equal(Array(i === 3 ? 1 : 3).fill([1, 2, 3]));
      expect(asked[0]?.headers['content-type']).to.equal(types[i]);
      expect(asked[0]?.url).to.equal('/v2/models/m/classify?top=3&timeout=500');
    }
  });

  it('ends with the signal, while it waits and while it asks, and after its own time', async () => {
    const reason = new Error('enough');
    const stop = new AbortController();
    reply = json({}, 429, { 'retry-after': '60' });
    const waits = failure(client().infer('m', Tensor.zeros('f32', [1, 1]), { signal: stop.signal }));
    setTimeout(() => stop.abort(reason), 100);
    expect(await waits).to.equal(reason);
    expect(asked).to.have.length(1);

    asked = [];
    expect(await failure(client().infer('m', Tensor.zeros('f32', [1, 1]), { signal: stop.signal }))).to.equal(reason);
    expect(asked).to.have.length(0);

    const gone = new Promise<void>((resolve) => {
      reply = (_, response) => void response.once('close', () => resolve());
    });
    const leave = new AbortController();
    setTimeout(() => leave.abort(reason), 50);
    expect(await failure(client().classify('m', new Uint8Array(1), { signal: leave.signal }))).to.equal(reason);
    await gone;

    expect((await failure(client({ timeout: 50 }).metadata())).name).to.equal('TimeoutError');
    reply = json({}, 503, { 'retry-after': '60' });
    const { signal } = new AbortController();
    const late = failure(client({ timeout: 50 }).infer('m', Tensor.zeros('f32', [1, 1]), { signal }));
    expect((await late).name).to.equal('TimeoutError');
  });

  it('health: not ready is an answer, not an error', async () => {
    for (const [status, wanted] of [
      [200, true],
      [400, false],
      [503, false],
    ] as const) {
      asked = [];
      reply = json({}, status, { 'retry-after': '0' });
      const all = [client().live(), client().ready(), client().ready('m'), client().ready('m', '2')];
      expect(await Promise.all(all)).to.deep.equal(all.map(() => wanted));
      expect(asked.map(({ method, url }) => `${method} ${url}`)).to.have.members([
        'GET /v2/health/live',
        'GET /v2/health/ready',
        'GET /v2/models/m/ready',
        'GET /v2/models/m/versions/2/ready',
      ]);
    }
    reply = json({ error: 'no model "m"' }, 404);
    expect(await failure(client().ready('m'))).to.include({ status: 404 });
    const nobody = createServer().listen(0, '127.0.0.1');
    await once(nobody, 'listening');
    const { port } = nobody.address() as AddressInfo;
    await new Promise((resolve) => nobody.close(resolve));
    const error = await failure(new Client(`http://127.0.0.1:${port}`).live());
    expect(error).to.be.instanceOf(ClientError).and.include({ status: undefined });
    expect(error.message).to.match(/^http:\/\/127.0.0.1:\d+\/v2\/health\/live: .*ECONNREFUSED/);
  });

  it('token, base path, names, another fetch', async () => {
    reply = json({ model_stats: [1] });
    const seen: string[] = [];
    const ask: typeof fetch = (url, init) => {
      seen.push(String(url));
      return fetch(url, init);
    };
    const based = new Client(new URL(`${url}/octconv/?a#b`), { token: 'secret', fetch: ask });
    expect(await based.statistics('a/b %')).to.deep.equal([1]);
    expect(seen).to.deep.equal([`${url}/octconv/v2/models/a%2Fb%20%25/stats`]);
    expect(asked[0]?.headers.authorization).to.equal('Bearer secret');
    for (const name of ['', '.', '..', 3 as never]) {
      const error = await failure(client().unload(name));
      expect(error.message).to.match(/^client: .*, wanted the name of a model or version$/);
    }
    expect(asked).to.have.length(1);
  });

  it('what makes no sense is an error', async () => {
    const wrong = (url: string, options?: object) => () => new Client(url, options);
    expect(wrong('localhost:8000')).to.throw('client: url "localhost:8000", wanted one as http://127.0.0.1:8000');
    expect(wrong('nowhere')).to.throw('url "nowhere"');
    expect(wrong(url, { retrys: 1 })).to.throw('client: unknown option "retrys" (did you mean "retries"?)');
    expect(wrong(url, { retries: -1 })).to.throw('client: retries: -1');
    for (const timeout of [0, Number.NaN, Number.POSITIVE_INFINITY])
      expect(wrong(url, { timeout })).to.throw('client: timeout: ');
    const input = { datatype: 'FP8', shape: [1], data: new Uint8Array(1) };
    expect((await failure(client().infer('m', input as never))).message).to.match(/^client: datatype "FP8", wanted/);
    const typo = failure(client().infer('m', Tensor.zeros('f32', [1, 1]), { prority: 1 } as never));
    expect((await typo).message).to.match(/did you mean "priority"/);
  });

  it('needs neither native code nor any package', () => {
    const hook = `export const resolve = (name, context, next) => {
      if (!/^[./]|^file:/.test(name)) throw new Error('client needs ' + name);
      return next(name, context);
    };`;
    const script = `
      import { register } from 'node:module';
      register('data:text/javascript,' + encodeURIComponent(${JSON.stringify(hook)}));
      process.dlopen = () => { throw new Error('client needs native code'); };
      const { Client } = await import('./lib/client.ts');
      console.log(typeof Client);`;
    const { stdout, stderr } = spawnSync(process.execPath, ['--import=tsx', '--input-type=module', '-e', script], {
      cwd: pathOf('..'),
      encoding: 'utf8',
    });
    expect([stdout, stderr]).to.deep.equal(['function\n', '']);
  });

  describe('beside our server', () => {
    const folder = pathOf('../models/cifar10-oct-resnet-26-a50');
    let service: Service;
    let ours: HttpServer;
    let client: Client;
    let cat: Buffer;
    before(async () => {
      cat = await readFile(pathOf('images/cat.jpg'));
      service = await Service.open({ cifar: folder });
      ours = await serveHttp(service, { token: 'secret' });
      client = new Client(ours.url, { token: 'secret', retries: 0 });
    });
    after(async () => {
      await ours.close();
      await service.close();
    });

    it('health, metadata, index', async () => {
      expect([await client.live(), await client.ready(), await client.ready('cifar', '1')]).to.deep.equal(
        Array(3).fill(true),
      );
      expect((await client.metadata()).extensions).to.include('binary_tensor_data');
      const { inputs, outputs } = await client.metadata('cifar');
      expect(inputs).to.deep.equal([{ name: 'input', datatype: 'UINT8', shape: [-1, 32, 32, 3] }]);
      expect(outputs).to.deep.equal([{ name: 'logits', datatype: 'FP32', shape: [-1, 10] }]);
      expect(await client.index()).to.deep.equal([{ name: 'cifar', version: '1', state: 'READY', reason: '' }]);
    });

    it('infer: tensors and files, as the service itself', async () => {
      const pixels = Uint8Array.from({ length: 2 * 32 * 32 * 3 }, (_, i) => (i * 37) % 256);
      const x = tensor('u8', [2, 32, 32, 3], pixels);
      const { outputs } = await client.infer('cifar', x, { timeout: 10_000 });
      const { logits } = await service.infer('cifar', x);
      expect(outputs.logits).to.deep.equal({ name: 'logits', datatype: 'FP32', shape: [2, 10], data: logits.data });
      const f32 = await client.infer('cifar', Tensor.zeros('f32', [1, 32, 32, 3]), { version: '1' });
      expect(f32.outputs.logits?.shape).to.deep.equal([1, 10]);
      const named = await client.infer(
        'cifar',
        { datatype: 'BYTES', shape: [1], data: [cat] },
        { outputs: [{ name: 'logits', classification: 2 }] },
      );
      expect(named.outputs.logits).to.deep.include({ datatype: 'BYTES', shape: [1, 2] });
      expect(named.outputs.logits?.data[0]).to.match(/^[\d.]+:3:cat$/);
    });

    it('classify: bytes, a blob, a stream', async () => {
      const bytes = new Uint8Array(cat);
      const blob = new Blob([bytes], { type: 'image/jpeg' });
      for (const source of [bytes, bytes.buffer, blob, blob.stream()]) {
        const { model, version, top, milliseconds } = await client.classify('cifar', source, { top: 2, priority: 1 });
        expect([model, version, top.length, top[0]?.label]).to.deep.equal(['cifar', '1', 2, 'cat']);
        expect(milliseconds.compute).to.be.above(0);
      }
    });

    it('errors are the ones of the server', async () => {
      expect(await failure(client.metadata('dog'))).to.include({ status: 404 });
      const small = await failure(client.infer('cifar', Tensor.zeros('u8', [1, 31, 32, 3])));
      expect(small.status).to.equal(400);
      expect(small.message).to.match(/input is u8 \[1,31,32,3\], wanted/);
      expect(await failure(client.classify('cifar', new Uint8Array(9)))).to.include({ status: 400 });
      expect(await failure(new Client(ours.url).metadata())).to.include({ status: 401 });
      expect(await new Client(ours.url).live()).to.equal(true);
    });

    it('statistics, unload, load', async () => {
      const [before] = await client.statistics('cifar');
      await client.infer('cifar', Tensor.zeros('u8', [3, 32, 32, 3]));
      const [one] = await client.statistics();
      expect((one?.inference_count ?? 0) - (before?.inference_count ?? 0)).to.equal(3);
      await client.unload('cifar');
      expect(await client.ready('cifar').catch(({ status }) => status)).to.equal(false);
      expect(await failure(client.infer('cifar', Tensor.zeros('u8', [1, 32, 32, 3])))).to.include({ status: 503 });
      await client.load('cifar');
      expect(await client.ready('cifar')).to.equal(true);
      expect(await failure(client.load('dog'))).to.include({ status: 404 });
    });
  });
});
