/** The HTTP door over real connections: lib/service/server.ts. */
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { Agent, request as httpRequest } from 'node:http';
import { request as httpsRequest, type RequestOptions } from 'node:https';
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import type { FastifyInstance } from 'fastify';
import { serveHttp, type HttpOptions, type HttpServer } from '../lib/service/server.js';
import type { RequestEnded } from '../lib/service/served.js';
import { Service } from '../lib/service/service.js';
import { Tensor } from '../lib/tensor.js';

import { certificatesFor, expectFine } from './doors.js';
import { faultOfPost, hostileCount, hostilePosts, post as send } from './hostile.js';

const pathOf = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const folder = pathOf('../models/cifar10-oct-resnet-26-a50');

/** The message of the error that a promise rejects with. */
const error = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'no error',
    ({ message }: Error) => message,
  );

/** Milliseconds that a request to `slow` waits for others: long enough to do something meanwhile. */
const wait = 300;

describe('service: HTTP', function () {
  this.timeout(60_000);
  let service: Service;
  let server: HttpServer;
  let cat: Buffer;
  let rocket: Buffer;

  before(async () => {
    cat = await readFile(pathOf('images/cat.jpg'));
    rocket = await readFile(pathOf('images/rocket.jpg'));
    service = await Service.open(
      { cifar: folder, slow: folder },
      {
        maxBatch: 1,
        models: { slow: { batching: { sizes: [1, 2, 4], maxDelay: wait * 1000, queue: 3, priorities: 2 } } },
      },
    );
    server = await serveHttp(service);
  });
  after(async () => {
    await server?.close();
    await service?.close();
  });

  /** Servers of one test. */
  const others: HttpServer[] = [];
  async function serve(options: HttpOptions): Promise<HttpServer> {
    const other = await serveHttp(service, options);
    others.push(other);
    return other;
  }
  afterEach(() => Promise.all(others.splice(0).map((other) => other.close(0))));

  interface Answer {
    readonly status: number;
    readonly headers: Headers;
    readonly bytes: Buffer;
    // biome-ignore lint/suspicious/noExplicitAny: what a server answers
    readonly json: any;
  }

  async function ask(path: string, init: RequestInit = {}, url = server.url): Promise<Answer> {
    const response = await fetch(`${url}${path}`, init);
    const bytes = Buffer.from(await response.arrayBuffer());
    const { status, headers } = response;
    const isJson = headers.get('content-type')?.includes('json');
    return { status, headers, bytes, json: isJson ? JSON.parse(bytes.toString()) : undefined };
  }

  type Body = string | Uint8Array<ArrayBuffer> | FormData;
  const post = (path: string, body: Body = '', headers: Record<string, string> = {}, url = server.url) => {
    const type = typeof body === 'string' ? { 'content-type': 'application/json' } : {};
    return ask(path, { method: 'POST', body, headers: { ...type, ...headers } }, url);
  };
  const inferPath = '/v2/models/cifar/infer';

  /** Pixels of pictures, each another. */
  const pixels = (rows: number) => Uint8Array.from({ length: rows * 3072 }, (_, i) => (i * 31 + (i >> 7)) % 256);
  const described = (rows: number, datatype = 'UINT8') => ({ name: 'input', datatype, shape: [rows, 32, 32, 3] });
  const inJson = (rows: number, more: object = {}) =>
    JSON.stringify({ inputs: [{ ...described(rows), data: [...pixels(rows)] }], ...more });

  /** A body of JSON and binary data, and its headers. */
  function binary(request: object, ...data: Uint8Array[]): [Uint8Array<ArrayBuffer>, Record<string, string>] {
    const json = Buffer.from(JSON.stringify(request));
    return [
      new Uint8Array(Buffer.concat([json, ...data])),
      { 'inference-header-content-length': `${json.length}`, 'content-type': 'application/octet-stream' },
    ];
  }
  const inBinary = (rows: number, more: object = {}) =>
    binary({ inputs: [{ ...described(rows), parameters: { binary_data_size: rows * 3072 } }], ...more }, pixels(rows));

  /** The JSON of a binary answer, and the floats behind it. */
  function parts({ bytes, headers }: Answer) {
    const length = Number(headers.get('inference-header-content-length'));
    const rest = new Uint8Array(bytes.subarray(length));
    return {
      json: JSON.parse(bytes.subarray(0, length).toString()),
      rest,
      floats: () => new Float32Array(rest.buffer),
    };
  }

  const wanted = async (rows: number) => [
    ...(await service.infer('cifar', new Tensor('u8', [rows, 32, 32, 3], pixels(rows)))).logits.data,
  ];
  function near(got: ArrayLike<number>, expected: readonly number[]): void {
    expect(got.length).to.equal(expected.length);
    for (const [i, value] of expected.entries()) expect(got[i]).to.be.closeTo(value, 1e-4);
  }

  describe('what is there', () => {
    it('tells of its health, of itself and of models', async () => {
      expect((await ask('/v2/health/live')).json).to.deep.equal({ live: true });
      expect((await ask('/v2/health/ready')).json).to.deep.equal({ ready: true, loading: 0, unavailable: 0 });
      const { json } = await ask('/v2');
      expect(json).to.include({ name: 'octconv' });
      expect(json.extensions).to.include.members(['binary_tensor_data', 'model_repository', 'statistics']);
      for (const path of ['/v2/models/cifar', '/v2/models/cifar/versions/1'])
        expect((await ask(path)).json).to.deep.equal({
          name: 'cifar',
          versions: ['1'],
          platform: 'octconv',
          inputs: [{ name: 'input', datatype: 'UINT8', shape: [-1, 32, 32, 3] }],
          outputs: [{ name: 'logits', datatype: 'FP32', shape: [-1, 10] }],
        });
      for (const path of ['/v2/models/cifar/ready', '/v2/models/cifar/versions/1/ready'])
        expect((await ask(path)).json).to.deep.equal({ name: 'cifar', ready: true });
      const { json: config } = await ask('/v2/models/slow/versions/1/config');
      expect(config).to.deep.include({
        max_batch_size: 4,
        input: [{ name: 'input', data_type: 'TYPE_UINT8', format: 'FORMAT_NHWC', dims: [32, 32, 3] }],
        output: [{ name: 'logits', data_type: 'TYPE_FP32', dims: [10] }],
      });
      expect(config.dynamic_batching).to.deep.include({
        max_queue_delay_microseconds: wait * 1000,
        priority_levels: 2,
      });
      expect(config.dynamic_batching.default_queue_policy).to.include({ timeout_action: 'REJECT', max_queue_size: 3 });
    });

    it('counts what it has done', async () => {
      const statistics = async () => (await ask('/v2/models/cifar/versions/1/stats')).json.model_stats[0];
      const before = await statistics();
      await post(inferPath, ...inBinary(3));
      await post(inferPath, inJson(1));
      const { inference_count, execution_count, inference_stats, last_inference, batch_stats } = await statistics();
      expect(inference_count - before.inference_count).to.equal(4);
      expect(execution_count - before.execution_count).to.equal(4);
      expect(inference_stats.success.count - before.inference_stats.success.count).to.equal(2);
      expect(inference_stats.success.ns).to.be.above(before.inference_stats.success.ns + 1000);
      expect(batch_stats.map(({ batch_size }: { batch_size: number }) => batch_size)).to.deep.equal([1]);
      expect(last_inference).to.be.closeTo(Date.now(), 10_000);
      const all = (await ask('/v2/models/stats')).json.model_stats.map(({ name }: { name: string }) => name);
      expect(all).to.deep.equal(['cifar', 'slow']);
    });

    it('loads and unloads models, where that is allowed', async () => {
      const { url } = await serve({ repository: false });
      for (const what of ['load', 'unload']) {
        const { status, json } = await post(`/v2/repository/models/cifar/${what}`, '', {}, url);
        expect([status, json.error]).to.deep.equal([403, `${what}: this server lets no caller load or unload models`]);
      }
      expect((await post('/v2/repository/models/cifar/unload', '{}')).status).to.equal(200);
      const gone = await post(inferPath, inJson(1));
      expect([gone.status, gone.headers.get('retry-after')]).to.deep.equal([503, '1']);
      const ready = await ask('/v2/health/ready');
      // Nobody waits for one that was unloaded.
      expect([ready.status, ready.json]).to.deep.equal([200, { ready: true, loading: 0, unavailable: 1 }]);
      expect((await ask('/v2/models/cifar/ready')).status).to.equal(503);
      const states = async (body: string) =>
        (await post('/v2/repository/index', body)).json.map(({ name, state }: never) => `${name} ${state}`);
      expect(await states('')).to.deep.equal(['cifar UNAVAILABLE', 'slow READY']);
      expect(await states('{"ready":true}')).to.deep.equal(['slow READY']);
      expect((await post('/v2/repository/models/cifar/load')).status).to.equal(200);
      expect((await post(inferPath, inJson(1))).status).to.equal(200);
      expect((await post('/v2/repository/models/nothing/load')).status).to.equal(404);
      const config = await post('/v2/repository/models/cifar/load', '{"parameters":{"config":"{}"}}');
      expect([config.status, config.json.error]).to.match(/^400,load: unknown field "request.parameters.config"/);
    });
  });

  describe('infer', () => {
    it('takes JSON, nested or not, and binary tensors, and gives both', async () => {
      const expected = await wanted(2);
      const flat = await post(inferPath, inJson(2, { id: 'seven' }));
      expect([flat.status, flat.json.id, flat.json.model_name]).to.deep.equal([200, 'seven', 'cifar']);
      expect(flat.json.outputs[0]).to.deep.include({ name: 'logits', datatype: 'FP32', shape: [2, 10] });
      near(flat.json.outputs[0].data, expected);

      const all = [...pixels(2)];
      const each = <T>(list: readonly T[], size: number): T[][] =>
        Array.from({ length: list.length / size }, (_, i) => list.slice(i * size, (i + 1) * size));
      const data = each(each(each(all, 3), 32), 32);
      const nested = await post(
        '/v2/models/cifar/versions/1/infer',
        JSON.stringify({ inputs: [{ ...described(2), data }] }),
      );
      near(nested.json.outputs[0].data, expected);

      near((await post(inferPath, ...inBinary(2))).json.outputs[0].data, expected);
      const asked = await post(inferPath, ...inBinary(2, { parameters: { binary_data_output: true } }));
      expect(parts(asked).json.outputs[0].parameters).to.deep.equal({ binary_data_size: 80 });
      near(parts(asked).floats(), expected);
      const output = { name: 'logits', parameters: { binary_data: true } };
      near(parts(await post(inferPath, inJson(2, { outputs: [output] }))).floats(), expected);
      const raw = await post(inferPath, pixels(2), { 'inference-header-content-length': '0' });
      near(parts(raw).floats(), expected);
    });

    it('takes floats, whatever their place in the body', async () => {
      const expected = await wanted(1);
      const [mean, std] = [
        [0.4914, 0.4822, 0.4465],
        [0.247, 0.2435, 0.2616],
      ] as const;
      const floats = Float32Array.from(pixels(1), (x, i) => (x / 255 - mean[i % 3]!) / std[i % 3]!);
      for (let pad = 0; pad < 4; pad++) {
        const input = { ...described(1, 'FP32'), parameters: { binary_data_size: floats.byteLength } };
        const request = { id: 'x'.repeat(pad), inputs: [input] };
        near((await post(inferPath, ...binary(request, new Uint8Array(floats.buffer)))).json.outputs[0].data, expected);
      }
      const inputs = [{ ...described(1, 'FP32'), data: [...floats] }];
      near((await post(inferPath, JSON.stringify({ inputs }))).json.outputs[0].data, expected);
    });

    it('takes pictures as BYTES, and names classes', async () => {
      const file = (bytes: Buffer) => {
        const length = Buffer.alloc(4);
        length.writeUInt32LE(bytes.length);
        return Buffer.concat([length, bytes]);
      };
      const outputs = [{ name: 'logits', parameters: { classification: 2 } }];
      const both = Buffer.concat([file(cat), file(rocket)]);
      const input = { name: 'input', datatype: 'BYTES', shape: [2, 1], parameters: { binary_data_size: both.length } };
      const { json } = await post(inferPath, ...binary({ inputs: [input], outputs }, both));
      expect(json.outputs[0]).to.deep.include({ datatype: 'BYTES', shape: [2, 2] });
      expect(json.outputs[0].data[0]).to.match(/^\d\.\d{6}:3:cat$/);
      expect(json.outputs[0].data[2]).to.match(/:\d:(ship|airplane)$/);
      const encoded = {
        inputs: [
          {
            name: 'input',
            datatype: 'BYTES',
            shape: [1],
            parameters: { content_type: 'base64' },
            data: [cat.toString('base64')],
          },
        ],
        outputs: [{ name: 'logits', parameters: { classification: 1, binary_data: true } }],
      };
      const { json: head, rest } = parts(await post(inferPath, JSON.stringify(encoded)));
      expect(head.outputs[0].shape).to.deep.equal([1, 1]);
      expect(Buffer.from(rest).readUInt32LE()).to.equal(rest.length - 4);
      expect(Buffer.from(rest.subarray(4)).toString()).to.match(/:3:cat$/);
    });

    it('says what of a request is wrong', async () => {
      const input = (more: object) => JSON.stringify({ inputs: [{ ...described(1), data: [1], ...more }] });
      const size = (n: unknown) =>
        binary({ inputs: [{ ...described(1), parameters: { binary_data_size: n } }] }, pixels(1));
      const bytes = (...data: number[]) =>
        binary(
          { inputs: [{ name: 'input', datatype: 'BYTES', shape: [2], parameters: { binary_data_size: data.length } }] },
          Uint8Array.from(data),
        );
      const header = (text: string): [Body, Record<string, string>] => [
        inJson(1),
        { 'inference-header-content-length': text },
      ];
      const cases: [RegExp, Body, Record<string, string>?][] = [
        [/^the body is no JSON/, '{"inputs":'],
        [/^the body is no JSON/, ''],
        [/^infer: request is 3, wanted an object with inputs$/, '3'],
        [/^infer: request is null/, 'null'],
        [/^infer: request.inputs is nothing/, '{}'],
        [/^infer: request.inputs is 5, wanted one input, "input"$/, '{"inputs":5}'],
        [/^infer: request.inputs\[0\] is nothing/, '{"inputs":[]}'],
        [/wanted one input, "input"$/, JSON.stringify({ inputs: Array(5000).fill({ ...described(1), data: [] }) })],
        [/inputs\[0\].name is "x", wanted "input"$/, input({ name: 'x' })],
        [/^input: datatype "FP16", wanted FP32, UINT8 or BYTES$/, input({ datatype: 'FP16' })],
        [/^input: datatype "BF16", wanted/, input({ datatype: 'BF16' })],
        [/^input: datatype "toString", wanted/, input({ datatype: 'toString' })],
        [/datatype is 8, wanted FP32, UINT8 or BYTES$/, input({ datatype: 8 })],
        [/shape is "1", wanted a list of sizes$/, input({ shape: '1' })],
        [/shape\[1\] is -1, wanted an integer/, input({ shape: [1, -1] })],
        [/shape\[0\] is 0.5, wanted an integer/, input({ shape: [0.5] })],
        [/^tensor: shape \[0,32,32,3\], wanted a list of positive/, input({ shape: [0, 32, 32, 3] })],
        [/^tensor: shape \[4294967296,4294967296\]/, input({ shape: [2 ** 32, 2 ** 32] })],
        [/^input: a shape of 1000 axes, wanted at most 8$/, input({ shape: Array(1000).fill(1) })],
        [/^input: UINT8 \[1,32,32,3\] has 1 elements, wanted 3072$/, input({})],
        [/^input: UINT8 \[9007199254740991\] has 1 elements/, input({ shape: [Number.MAX_SAFE_INTEGER] })],
        [/^cifar: input is u8 \[1\], wanted f32 or u8 \[N,32,32,3\]$/, input({ shape: [1] })],
        [
          /^cifar: 300 rows, wanted at most 256$/,
          ...binary({ inputs: [{ ...described(300), parameters: { binary_data_size: 921_600 } }] }, pixels(300)),
        ],
        [/^input: element 1 is 256, wanted an integer from 0 to 255$/, input({ shape: [2], data: [0, 256] })],
        [/^input: element 0 is "1", wanted an integer/, input({ shape: [1], data: ['1'] })],
        [
          /^input: element 0 is null, wanted a number that FP32 holds$/,
          input({ datatype: 'FP32', shape: [1], data: [null] }),
        ],
        [
          /^input: element 0 is 1e\+39, wanted a number that FP32/,
          input({ datatype: 'FP32', shape: [1], data: [1e39] }),
        ],
        [/^input: element 0 is \[\[1\]\], wanted/, input({ shape: [1], data: [[[1]]] })],
        [/the input has no data/, input({ data: undefined })],
        [/has data and binary_data_size/, input({ parameters: { binary_data_size: 0 } })],
        [/^infer: 3072 bytes behind the JSON, wanted 3071$/, ...size(3071)],
        [/binary_data_size is -1, wanted/, ...size(-1)],
        [/binary_data_size is "3072", wanted/, ...size('3072')],
        [/^infer: 3072 bytes behind the JSON, wanted 9007199254740991$/, ...size(Number.MAX_SAFE_INTEGER)],
        [/shared memory is not taken$/, input({ parameters: { shared_memory_region: 'x' } })],
        [/^input: element 0 of 2 ends behind the 3 bytes$/, ...bytes(1, 0, 0)],
        [/^input: element 1 of 2 ends behind the 9 bytes$/, ...bytes(1, 0, 0, 0, 7, 255, 255, 255, 255)],
        [/^input: 9 bytes, of which 2 elements are 8$/, ...bytes(0, 0, 0, 0, 0, 0, 0, 0, 1)],
        [
          /^input: BYTES \[2,2\], wanted \[N\] or \[N,1\]/,
          input({ datatype: 'BYTES', shape: [2, 2], data: ['', '', '', ''] }),
        ],
        [
          /^cifar: 16777216 rows, wanted at most 256$/,
          ...binary(
            { inputs: [{ name: 'input', datatype: 'BYTES', shape: [2 ** 24], parameters: { binary_data_size: 4 } }] },
            new Uint8Array(4),
          ),
        ],
        [
          /^infer: "a\*", wanted base64$/,
          input({ datatype: 'BYTES', shape: [1], data: ['a*'], parameters: { content_type: 'base64' } }),
        ],
        [
          /^picture: is not a picture, wanted JPEG, PNG or WebP$/,
          input({ datatype: 'BYTES', shape: [1], data: [pathOf('images/cat.jpg')] }),
        ],
        [/^input: element 0 is 5, wanted a text$/, input({ datatype: 'BYTES', shape: [1], data: [5] })],
        [/wanted one output, "logits"$/, inJson(1, { outputs: [{ name: 'x' }] })],
        [/wanted one output, "logits"$/, inJson(1, { outputs: [{ name: 'logits' }, { name: 'logits' }] })],
        [/priority is 1.5, wanted/, inJson(1, { parameters: { priority: 1.5 } })],
        [/^batching: priority 2, wanted an integer from 1 to 1$/, inJson(1, { parameters: { priority: 2 } })],
        [/timeout is "1", wanted/, inJson(1, { parameters: { timeout: '1' } })],
        [
          /^infer: 3071 bytes, wanted rows of 3072, UINT8 \[32,32,3\]$/,
          pixels(1).subarray(1),
          { 'inference-header-content-length': '0' },
        ],
        [/^Inference-Header-Content-Length: "99999999"/, ...header('99999999')],
        [/^Inference-Header-Content-Length: "-5"/, ...header('-5')],
        [/^Inference-Header-Content-Length: "1e3"/, ...header('1e3')],
        [/^the body is no JSON/, ...header('00')],
        [/^the body is no JSON/, ...header('12')],
      ];
      for (const [message, body, headers] of cases) {
        const { status, json } = await post(inferPath, body, headers);
        expect(json?.error, String(message)).to.match(message);
        expect(status, json.error).to.equal(400);
      }
      const brackets = `${'['.repeat(1e6)}${']'.repeat(1e6)}`;
      const deep = input({ shape: [1], data: [] }).replace('"data":[]', `"data":${brackets}`);
      const proto = inJson(1).replace('{', '{"__proto__":{"inputs":1},"constructor":{"prototype":1},');
      for (const body of [deep, `{"inputs":${brackets}}`]) expect((await post(inferPath, body)).status).to.equal(400);
      expect((await post(inferPath, proto)).status).to.equal(200);
      expect((await post(inferPath, inJson(1))).status).to.equal(200);
    });

    it('has no JSON for logits that are not finite', async () => {
      const floats = new Float32Array(3072).fill(Number.NaN);
      const inputs = [{ ...described(1, 'FP32'), parameters: { binary_data_size: floats.byteLength } }];
      const send = (more: object) => post(inferPath, ...binary({ inputs, ...more }, new Uint8Array(floats.buffer)));
      const { status, json } = await send({});
      expect([status, json.error]).to.match(
        /^400,cifar: the network gives NaN, which JSON has no form for: ask for binary/,
      );
      const named = await send({ outputs: [{ name: 'logits', parameters: { classification: 1 } }] });
      expect([named.status, named.json.error]).to.match(/^400,cifar: the network gives NaN, wanted numbers$/);
      const asked = await send({ parameters: { binary_data_output: true } });
      expect([...parts(asked).floats()].every(Number.isNaN)).to.equal(true);
    });
  });

  describe('classify', () => {
    const path = '/v2/models/cifar/classify';
    const jpeg = { 'content-type': 'image/jpeg' };
    const body = (bytes: Buffer) => new Uint8Array(bytes);

    function form(...files: readonly [string, Buffer][]): FormData {
      const data = new FormData();
      for (const [name, bytes] of files) data.append('file', new Blob([body(bytes)]), name);
      return data;
    }

    it('answers a picture, and the files of a form', async () => {
      const { json } = await post(`${path}?top=2`, body(cat), jpeg);
      expect(json).to.deep.include({ model_name: 'cifar', model_version: '1' });
      expect(json.milliseconds).to.have.all.keys('prepare', 'queue', 'compute');
      const [{ top, file }] = json.results;
      expect([file, top.length, top[0].label, top[0].index]).to.deep.equal([undefined, 2, 'cat', 3]);
      expect(top[0].probability).to.be.within(0.5, 1);
      for (const type of ['application/octet-stream', 'video/mp4'])
        expect((await post(path, body(cat), { 'content-type': type })).json.results[0].top[0].label).to.equal('cat');
      const two = await post('/v2/models/cifar/versions/1/classify?top=1', form(['a.jpg', cat], ['b.jpg', rocket]));
      const labels = two.json.results.map(({ file, top }: never) => [file, (top as { label: string }[])[0]?.label]);
      expect(labels[0]).to.deep.equal(['a.jpg', 'cat']);
      expect(labels[1][0]).to.equal('b.jpg');
    });

    it('says what is wrong', async () => {
      const wrong: [number, RegExp, string, Body, Record<string, string>?][] = [
        [415, /"application\/json", wanted image\/\*, video\/\*/, '', JSON.stringify(pathOf('images/cat.jpg'))],
        [415, /"text\/plain", wanted image\/\*/, '', pathOf('images/cat.jpg'), { 'content-type': 'text/plain' }],
        [400, /^picture: is not a picture/, '', body(Buffer.from(pathOf('images/cat.jpg'))), jpeg],
        [400, /^picture: .*(premature|truncated)/i, '', body(cat.subarray(0, 5000)), jpeg],
        [400, /^picture 1: is not a picture/, '', form(['a', cat], ['b', Buffer.from('x')])],
        [400, /^classify: no picture or video/, '', body(Buffer.alloc(0)), jpeg],
        [400, /^classify: no picture or video/, '', form()],
        [400, /^classify: form: /, '', '--x\r\nfoo', { 'content-type': 'multipart/form-data; boundary=x' }],
        [400, /^classify: form: /, '', '', { 'content-type': 'multipart/form-data' }],
        [400, /did you mean "top"\?/, '?topp=1', body(cat), jpeg],
        [400, /^classify: top="0.5", wanted an integer$/, '?top=0.5', body(cat), jpeg],
        [400, /^classify: top=\["1","2"\], wanted/, '?top=1&top=2', body(cat), jpeg],
        [400, /^top: 0, wanted a positive integer$/, '?top=0', body(cat), jpeg],
        [400, /^cifar: clips and crops are for video networks$/, '?clips=2', body(cat), jpeg],
      ];
      for (const [status, message, query, sent, headers] of wrong) {
        const answer = await post(`${path}${query}`, sent, headers);
        expect(answer.json?.error, String(message)).to.match(message);
        expect(answer.status, answer.json.error).to.equal(status);
      }
    });

    it('takes no form that is too large, or does not end', async () => {
      const small = await serve({ maxBytes: cat.length + 1000, requestTimeout: 1.5 });
      const each = await post(path, form(['a', Buffer.concat([cat, cat])]), {}, small.url);
      const all = await post(path, form(['a', cat], ['b', cat]), {}, small.url);
      const one = await post(path, body(Buffer.concat([cat, cat])), jpeg, small.url);
      expect([each.status, all.status, one.status]).to.deep.equal([413, 413, 413]);
      const endless = `--x\r\nX: y\r\n\r\n${'h'.repeat(20_000)}\r\n--x--\r\n`;
      const answer = await post(path, endless, { 'content-type': 'multipart/form-data; boundary=x' }, small.url);
      // The parser ends it in Node 26.
      expect(answer.json.error).to.match(/^classify: (the form does not end|no picture or video, .*)$/);
      expect(answer.status).to.equal(400);
      expect((await post(path, form(['a', cat]), {}, small.url)).status).to.equal(200);
    });
  });

  describe('refuses', () => {
    it('paths, methods, types and names that it does not know', async () => {
      for (const path of [
        '/',
        '/v2/models',
        '/v2/nothing',
        '/v2/models/nothing',
        '/v2/models/cifar/versions/2',
        '/v2/models/..%2f..%2fmodels%2fcifar',
        `/v2/models/${'x'.repeat(200)}`,
        '/v2/models/__proto__/ready',
        '/v2/models/cifar/versions/01',
      ]) {
        const { status, json } = await ask(path);
        expect([status, typeof json.error], path).to.deep.equal([404, 'string']);
      }
      expect((await post('/v2/models/nothing/infer', inJson(1))).status).to.equal(404);
      expect((await ask('/v2/models/%E0%A4')).status).to.equal(400);
      for (const [method, path, allow] of [
        ['GET', inferPath, 'POST'],
        ['DELETE', '/v2/models/cifar', 'GET, HEAD'],
        ['POST', '/v2/health/live', 'GET, HEAD'],
      ] as const) {
        const { status, headers, json } = await ask(path, { method });
        expect([status, headers.get('allow')], json?.error).to.deep.equal([405, allow]);
        expect(json.error).to.match(/, wanted /);
      }
      const text = await post(inferPath, inJson(1), { 'content-type': 'text/plain' });
      expect([text.status, text.json.error]).to.match(/^415,.*"text\/plain", wanted application\/json/);
      const gzip = await post(inferPath, inJson(1), { 'content-encoding': 'gzip' });
      expect([gzip.status, gzip.json.error]).to.match(/^415,content-encoding "gzip"/);
    });

    it('what is too large', async () => {
      const small = await serve({ maxBytes: 10_000 });
      expect((await post(inferPath, ...inBinary(3), small.url)).status).to.equal(200);
      const { status, json } = await post(inferPath, ...inBinary(4), small.url);
      expect([status, typeof json.error]).to.deep.equal([413, 'string']);
      const much = await post(inferPath, `"${'x'.repeat(2 ** 23)}"`);
      expect([much.status, much.json.error]).to.match(
        /^413,8388610 bytes of JSON, wanted at most 8388608: send binary/,
      );
    });

    it('who has no token, but for health and what is open', async () => {
      const token = 'a token';
      const extend = (app: FastifyInstance) => {
        app.get('/page', { config: { open: true } }, () => 'page');
        app.get('/live', () => 'live');
      };
      const guarded = await serve({ token, extend });
      const status = async (path: string, headers: Record<string, string> = {}) =>
        (await ask(path, { headers }, guarded.url)).status;
      for (const path of ['/v2/health/live', '/v2/health/ready', '/page']) expect(await status(path)).to.equal(200);
      for (const path of ['/v2', '/live', '/nothing']) expect(await status(path)).to.equal(401);
      expect(await status('/v2', { authorization: 'Bearer another' })).to.equal(401);
      expect(await status('/v2', { authorization: token })).to.equal(401);
      expect(await status('/v2', { authorization: `Bearer ${token}` })).to.equal(200);
      expect(await status('/live', { 'x-api-key': token })).to.equal(200);
      const { headers, json } = await ask('/v2', {}, guarded.url);
      expect([headers.get('www-authenticate'), json.error]).to.match(/^Bearer,wanted the token/);
    });

    it('names that others have for this machine, where models are loaded', async () => {
      const { port } = new URL(server.url);
      const status = await new Promise((resolve, reject) => {
        const headers = { host: 'evil.example', 'content-length': 0 };
        const path = '/v2/repository/models/nothing/unload';
        httpRequest({ host: '127.0.0.1', port, path, method: 'POST', headers }, (answer) => {
          answer.resume();
          resolve(answer.statusCode);
        })
          .on('error', reject)
          .end();
      });
      expect(status).to.equal(403);
    });

    it("no JSON that curl's -d sends", async () => {
      const headers = { 'content-type': 'application/x-www-form-urlencoded' };
      expect((await post(inferPath, inJson(1), headers)).status).to.equal(200);
    });

    it('base64 that is padding alone, at once', async () => {
      const started = performance.now();
      const input = { name: 'input', datatype: 'BYTES', shape: [1], parameters: { content_type: 'base64' } };
      const body = JSON.stringify({ inputs: [{ ...input, data: [`${'='.repeat(500_000)}a`] }] });
      expect((await post(inferPath, body)).status).to.equal(400);
      expect(performance.now() - started).to.be.lessThan(2000);
    });

    it('pages of other origins, unless they are allowed', async () => {
      const origin = 'https://a.example';
      const open = await serve({ cors: [origin] });
      const unload = (url: string, site: string | undefined, from = origin) =>
        post(
          '/v2/repository/models/nothing/unload',
          '',
          { origin: from, ...(site && { 'sec-fetch-site': site }) },
          url,
        );
      // fetch sets these headers itself in browsers, Node's lets them be given.
      expect((await unload(server.url, 'cross-site')).status).to.equal(403);
      expect((await unload(server.url, 'same-origin', server.url)).status).to.equal(404);
      // A browser tells no more over HTTP that is not localhost's.
      expect((await unload(server.url, undefined)).status).to.equal(403);
      expect((await unload(server.url, undefined, 'null')).status).to.equal(403);
      expect((await unload(server.url, undefined, server.url)).status).to.equal(404);
      expect((await unload(open.url, 'cross-site')).status).to.equal(404);
      expect((await unload(open.url, 'cross-site', 'https://b.example')).status).to.equal(403);
      const preflight = { method: 'OPTIONS', headers: { origin, 'access-control-request-method': 'POST' } };
      const { status, headers } = await ask(inferPath, preflight, open.url);
      expect([status, headers.get('access-control-allow-origin')]).to.deep.equal([204, origin]);
      const without = await ask(inferPath, preflight);
      expect([without.status, without.headers.get('access-control-allow-origin')]).to.deep.equal([405, null]);
    });

    it('options that make no sense, and a port that is taken', async () => {
      const port = Number(new URL(server.url).port);
      for (const [options, message] of [
        [{ port: 70_000 }, /^http: port is 70000, wanted an integer from 0 to 65535$/],
        [{ prot: 1 }, /^http: unknown field "prot" \(did you mean "port"\?\)/],
        [{ token: '' }, /^http: token is "", wanted a text$/],
        [{ requestTimeout: 0 }, /^http: requestTimeout is 0, wanted seconds/],
        [{ port }, /^http: listen EADDRINUSE/],
      ] as const)
        expect(await error(serveHttp(service, options as HttpOptions))).to.match(message);
    });
  });

  /** A connection of its own, on which not all of a request need be sent. */
  function open(url: string, text: string): Socket {
    const socket = connect(Number(new URL(url).port), '127.0.0.1');
    socket.on('error', () => undefined);
    socket.write(text);
    return socket;
  }
  const all = async (socket: Socket) => {
    const parts: Buffer[] = [];
    try {
      for await (const part of socket) parts.push(part);
    } catch (error) {
      if (parts.length === 0) throw error; // Node 26 answers and resets a connection that has more to say
    }
    return Buffer.concat(parts).toString();
  };
  const rawPost = (path: string, body: string, headers = '') =>
    `POST ${path} HTTP/1.1\r\nHost: x\r\n${headers}Content-Length: ${body.length}\r\n\r\n${body}`;

  describe('under load', () => {
    const slow = '/v2/models/slow/infer';

    it('refuses what the queue has no room for, at once', async () => {
      const first = post(slow, ...inBinary(2));
      while (service.version('slow').waiting < 2) await sleep(5);
      const start = performance.now();
      const refused = await post(slow, ...inBinary(2));
      expect(performance.now() - start).to.be.below(wait / 2);
      expect([refused.status, refused.headers.get('retry-after')]).to.deep.equal([429, '1']);
      expect(refused.json.error).to.equal('slow: 2 more rows than the 2 that wait, wanted at most 3');
      expect((await first).status).to.equal(200);
    });

    it('refuses before the body is there, which need not come', async () => {
      const before = service.version('slow').counts?.failures.get('overloaded') ?? 0;
      const first = post(slow, ...inBinary(3));
      while (service.version('slow').waiting < 3) await sleep(5);
      const socket = open(server.url, `POST ${slow} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3072\r\n\r\n`);
      const [answer] = (await once(socket, 'data')) as [Buffer];
      expect(`${answer}`).to.match(/^HTTP\/1\.1 429 [\s\S]*1 more row than the 3 that wait, wanted at most 3/);
      socket.destroy();
      expect(service.version('slow').counts?.failures.get('overloaded')).to.equal(before + 1);
      expect((await first).status).to.equal(200);
    });

    it('refuses bodies that are too many with those that are not answered, before they are read', async () => {
      const own = await serve({ maxBytes: 10_000, maxBytesInFlight: 12_000 });
      const head = (headers: string) => `POST ${inferPath} HTTP/1.1\r\nHost: x\r\n${headers}\r\n\r\n`;
      const chunk = `400\r\n${'x'.repeat(1024)}\r\n`;
      /** Waits until a body of so many bytes is refused, or is not. */
      const until = async (length: number, status: number) => {
        for (;;) {
          const socket = open(own.url, head(`Content-Length: ${length}`) + 'x'.repeat(length));
          const [answer] = (await once(socket, 'data')) as [Buffer];
          socket.destroy();
          if (`${answer}`.startsWith(`HTTP/1.1 ${status} `)) return `${answer}`;
          expect(`${answer}`).to.match(/^HTTP\/1\.1 4(00|29) /);
          await sleep(5);
        }
      };
      const known = open(own.url, `${head('Content-Length: 9000')}x`);
      const refused = await until(3001, 429);
      expect(refused).to.match(/retry-after: 1/i);
      expect(refused).to.contain(
        '3001 more bytes of requests than the 9000 that are not answered, wanted at most 12000',
      );
      // A body of unknown length may grow until there is no room.
      const growing = open(own.url, head('Transfer-Encoding: chunked') + chunk);
      expect(await until(3000, 429)).to.contain('than the 10024 that');
      growing.write(chunk.repeat(2));
      expect(await all(growing)).to.match(/^HTTP\/1\.1 429 [\s\S]*connection: close/i);
      // One that comes to its end, or whose client goes, makes room.
      const whole = open(own.url, `${head('Transfer-Encoding: chunked\r\nConnection: close')}${chunk}0\r\n\r\n`);
      expect(await all(whole)).to.match(/^HTTP\/1\.1 400 [\s\S]*the body is no JSON/);
      await until(3000, 400);
      known.destroy();
      await until(10_000, 400);
      const form = { 'Content-Type': 'multipart/form-data; boundary=a', 'Transfer-Encoding': 'chunked' };
      const lines = Object.entries(form).map(([name, value]) => `${name}: ${value}`);
      const inForm = open(own.url, head(lines.join('\r\n')).replace('infer', 'classify'));
      expect(await until(2001, 429)).to.contain('than the 10000 that'); // nobody knows how large it becomes
      inForm.destroy();
      await until(10_000, 400);
      expect(await error(serveHttp(service, { maxBytes: 10_000, maxBytesInFlight: 9999 }))).to.equal(
        'http: maxBytesInFlight is 9999, wanted at least 10000, of one request',
      );
    });

    it('answers late requests with 503, and none later than they ask', async () => {
      const late = await post(slow, ...inBinary(1, { parameters: { timeout: 20_000, priority: 2 } }));
      expect([late.status, late.headers.get('retry-after')]).to.deep.equal([503, null]);
      expect(late.json.error).to.match(/waited for longer than its timeout$/);
      expect((await post(slow, ...inBinary(1, { parameters: { timeout: 0, priority: 0 } }))).status).to.equal(200);
      const query = '?timeout=20000';
      const picture = await post(`/v2/models/slow/classify${query}`, new Uint8Array(cat), {
        'content-type': 'image/jpeg',
      });
      expect(picture.status).to.equal(503);
    });

    it('forgets a request whose client goes', async () => {
      const ended = once(service, 'request') as Promise<[string, string, RequestEnded]>;
      const socket = open(server.url, rawPost(slow, inJson(1)));
      while (service.version('slow').waiting === 0) await sleep(5);
      socket.destroy();
      const [name, , { code }] = await ended;
      expect([name, code]).to.deep.equal(['slow', 'cancelled']);
      expect(service.version('slow').waiting).to.equal(0);
      const half = open(server.url, rawPost(slow, inJson(1)).slice(0, 5000));
      await once(half, 'connect');
      half.destroy();
      expect((await post(inferPath, inJson(1))).status).to.equal(200);
    });

    it('answers what has come when it closes, and no more', async () => {
      const own = await serve({});
      const idle = open(own.url, 'GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n');
      await once(idle, 'data');
      const socket = open(own.url, rawPost(slow, inJson(1)));
      while (service.version('slow').waiting === 0) await sleep(5);
      const closed = own.close(5000);
      const start = performance.now();
      expect(await all(socket)).to.match(/^HTTP\/1\.1 200 OK[\s\S]*connection: close[\s\S]*"logits"/i);
      await closed;
      expect(performance.now() - start).to.be.below(3000);
      expect(await error(fetch(own.url))).to.match(/fetch failed/);
    });

    it('closes connections that do not end in time', async () => {
      const own = await serve({});
      const half = open(own.url, rawPost(slow, inJson(1)).slice(0, 100));
      await sleep(20);
      const start = performance.now();
      await own.close(100);
      expect(performance.now() - start).to.be.within(50, 3000);
      await Promise.race([once(half, 'close'), sleep(1000)]);
      expect(half.closed).to.equal(true);
    });

    it('ends slow requests, and closes what is more than it may have', async () => {
      const own = await serve({ headersTimeout: 0.5, requestTimeout: 1, maxConnections: 3 });
      const [header, body, third] = [
        open(own.url, 'POST / HTTP/1.1\r\nHost'),
        open(own.url, 'POST /v2/models/cifar/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{'),
        open(own.url, ''),
      ];
      await once(third, 'connect');
      const fourth = open(own.url, '');
      if (!fourth.closed) await once(fourth, 'close');
      for (const socket of [header, body]) expect(await all(socket)).to.match(/^HTTP\/1\.1 408 /);
    });
  });

  describe('hostile bytes', () => {
    it('are answered with 400, and end nothing', async () => {
      for (const text of [
        'nonsense\r\n\r\n',
        `GET /${'x'.repeat(100_000)} HTTP/1.1\r\n\r\n`,
        `GET /v2 HTTP/1.1\r\nHost: x\r\n${'a: b\r\n'.repeat(20_000)}\r\n`,
        'POST /v2/models/cifar/infer HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n',
        'POST /v2/models/cifar/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
        'POST /v2/models/cifar/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n',
        'GET /v2/models/../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n',
        rawPost(
          inferPath,
          inJson(1),
          'Connection: close\r\nInference-Header-Content-Length: 1\r\nInference-Header-Content-Length: 2\r\n',
        ),
      ]) {
        const answer = await all(open(server.url, text));
        expect(answer, text.slice(0, 80)).to.match(/^HTTP\/1\.1 4\d\d /);
        expect(answer).not.to.match(/ at .*\.[jt]s/);
      }
      expect((await ask('/v2/health/ready')).status).to.equal(200);
    });

    it(`${hostileCount} requests, changed at random: 200 or 4xx, and the server is well`, async () => {
      const make = hostilePosts('cifar');
      const agent = new Agent({ keepAlive: true });
      const statuses = new Map<number, number>();
      let next = 0;
      const some = async () => {
        while (next < hostileCount) {
          const i = next++;
          const answer = await send(server.url, make(1, i), agent);
          expect(faultOfPost(answer), `request ${i}`).to.equal(undefined);
          statuses.set(answer.status, (statuses.get(answer.status) ?? 0) + 1);
        }
      };
      await Promise.all(Array.from({ length: 10 }, some)).finally(() => agent.destroy());
      expect(statuses.get(200)).to.be.above(hostileCount / 20);
      expect(statuses.get(400)).to.be.above(hostileCount / 2);
      expect((await ask('/v2/health/ready')).status).to.equal(200);
      near((await post(inferPath, inJson(1))).json.outputs[0].data, await wanted(1));
    });
  });

  describe('TLS', () => {
    const pem = certificatesFor('IP:127.0.0.1');

    const status = (url: string, options: RequestOptions) =>
      new Promise<number | undefined>((resolve, reject) => {
        const asked = httpsRequest(`${url}/v2/health/live`, { ...options, agent: false }, (answer) => {
          answer.resume();
          resolve(answer.statusCode);
        });
        asked.on('error', reject).end();
      });

    it('serves with a certificate, and asks clients for theirs where there is a CA', async () => {
      const tls = { key: pem('server.key'), cert: pem('server.pem') };
      const [one, both] = [await serve({ tls }), await serve({ tls: { ...tls, ca: pem('ca.pem') } })];
      const ca = pem('ca.pem');
      expect(one.url).to.match(/^https:\/\/127\.0\.0\.1:\d+$/);
      expect(await status(one.url, { ca })).to.equal(200);
      expect(await error(status(one.url, {}))).to.match(/certificate/);
      expect(await status(both.url, { ca, key: pem('client.key'), cert: pem('client.pem') })).to.equal(200);
      expect(await error(status(both.url, { ca }))).to.match(/certificate required|socket hang up|ECONNRESET/);
      expect(await error(serveHttp(service, { tls: { key: 'x', cert: 'y' } }))).to.match(/PEM|no start line/i);
    });
  });

  it("answers Triton's Python client", async function () {
    await expectFine(this, 'triton-client.py', 'tritonclient.http', new URL(server.url).host);
  });
});
