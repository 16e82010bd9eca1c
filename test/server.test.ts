/** The server that the README shows, examples/server/server.ts, with uploads over sockets. */
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { type AddressInfo, connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import type { FastifyInstance } from 'fastify';
import sharp from 'sharp';
import type { Classified, Model } from '../lib/index.js';

const pathOf = (name: string) => fileURLToPath(new URL(`images/${name}`, import.meta.url));
const limit = 8 * 2 ** 20;

describe('examples: server', function () {
  this.timeout(60_000);
  let app: FastifyInstance;
  let port = 0;
  let cat: Buffer;
  /** What the server has called, and what it waits for before it does. */
  const calls: { readonly model: Model; readonly result: Promise<unknown> }[] = [];
  let first: (signal: AbortSignal) => Promise<unknown> = () => Promise.resolve();
  /** Of the server's own copy of the library: mocha requires this file, the server is imported. */
  let library: typeof import('octconv');
  let classify: Model['classify'];

  before(async () => {
    cat = await readFile(pathOf('cat.jpg'));
    library = await import('octconv');
    ({ classify } = library.Model.prototype);
    library.Model.prototype.classify = function (this: Model, ...[pictures, options]: Parameters<typeof classify>) {
      const result = first(options?.signal as AbortSignal).then(() => classify.call(this, pictures, options));
      calls.push({ model: this, result });
      return result;
    } as typeof classify;
    Object.assign(process.env, { PORT: '0', UPLOAD_MILLISECONDS: '3000' });
    ({ app } = await import('../examples/server/server.js'));
    ({ port } = app.server.address() as AddressInfo);
  });
  beforeEach(() => {
    calls.length = 0;
    first = () => Promise.resolve();
  });
  after(async () => {
    delete process.env.PORT;
    delete process.env.UPLOAD_MILLISECONDS;
    library.Model.prototype.classify = classify;
    await app.close();
  });

  /** The answer to an upload: of a picture as it is, of a form as multipart. */
  async function post(
    body: Buffer | FormData | string,
    type?: string,
  ): Promise<{ status: number; body: Classified[] & { message: string } }> {
    const headers = type === undefined ? undefined : { 'content-type': type };
    const sent = Buffer.isBuffer(body) ? new Uint8Array(body) : body;
    const response = await fetch(`http://localhost:${port}/classify`, {
      method: 'POST',
      body: sent,
      ...(headers && { headers }),
    });
    return { status: response.status, body: (await response.json()) as never };
  }

  function form(...files: readonly Uint8Array[]): FormData {
    const data = new FormData();
    for (const [i, file] of files.entries()) data.append('file', new Blob([new Uint8Array(file)]), `${i}.jpg`);
    return data;
  }

  const labels = (answer: readonly Classified[]) => answer.map(({ top }) => top[0]?.label);

  it('answers a picture, and several in a form', async () => {
    const one = await post(cat, 'image/jpeg');
    expect([one.status, labels(one.body)]).to.deep.equal([200, ['cat']]);
    expect(one.body[0]?.top).to.have.length(3);
    const png = await sharp(pathOf('rocket.jpg')).resize(64).png().toBuffer();
    const two = await post(form(cat, png));
    expect([two.status, two.body.length, labels(two.body)[0]]).to.deep.equal([200, 2, 'cat']);
  });

  it('refuses what is no picture that it takes, and reads no file of its own machine', async () => {
    for (const type of ['text/plain', 'application/json']) {
      const path = type === 'text/plain' ? pathOf('cat.jpg') : JSON.stringify(pathOf('cat.jpg'));
      expect((await post(path, type)).status).to.equal(415);
    }
    const path = Buffer.from(pathOf('cat.jpg'));
    const cut = cat.subarray(0, cat.length / 2);
    const gif = await sharp(cat).resize(8).gif().toBuffer();
    const bomb = await sharp({ create: { width: 5001, height: 5000, channels: 3, background: 'red' } })
      .png()
      .toBuffer();
    expect(bomb.length).to.be.below(limit / 10);
    for (const [bytes, message] of [
      [path, /^picture 0: is not a picture, wanted JPEG or PNG$/],
      [cut, /^picture 0: .*(premature|truncated)/i],
      [gif, /^picture 0: is GIF, wanted JPEG or PNG/],
      [bomb, /^picture 0: is too large, 5001 x 5000, wanted at most 25000000 pixels/],
    ] as const) {
      const { status, body } = await post(bytes, 'image/png');
      expect(status).to.equal(400);
      expect(body.message).to.match(message);
      const both = await post(form(cat, bytes));
      expect(both.status).to.equal(400);
      expect(both.body.message).to.match(/^picture 1: /);
    }
    expect((await post(Buffer.alloc(0))).status).to.equal(400);
    expect((await post('nothing', 'multipart/form-data; boundary=x')).status).to.equal(400);
    expect((await post('--x\r\nfoo', 'multipart/form-data; boundary=x')).status).to.equal(400);
    for (const boundary of ['', '; boundary=', `; boundary=${'x'.repeat(300)}`])
      expect((await post('--x\r\n', `multipart/form-data${boundary}`)).status, boundary).to.equal(400);
    const endless = `--x\r\nX: y\r\n\r\n${'h'.repeat(20_000)}\r\n--x--\r\n`;
    const { status, body } = await post(endless, 'multipart/form-data; boundary=x');
    expect([status, body.message]).to.deep.equal([400, 'Multipart: the form does not end']);
    const half = Buffer.from('--x\r\ncontent-disposition: form-data; name="file"; filename="a.jpg"\r\n\r\nhalf');
    expect((await post(half, 'multipart/form-data; boundary=x')).status).to.equal(400);
    const empty = new FormData();
    empty.append('file', 'cat.jpg'); // text, no file
    for (const none of [await post(empty), await post(Buffer.alloc(0))]) {
      expect([none.status, none.body.message]).to.deep.equal([400, 'no picture, as a body or in a form']);
    }
    expect(labels((await post(cat, 'image/jpeg')).body)).to.deep.equal(['cat']);
  });

  it("answers 503 when it takes too long, 500 for what is nobody's fault but its own", async () => {
    const { timeout } = AbortSignal;
    AbortSignal.timeout = () => timeout.call(AbortSignal, 20);
    try {
      first = (signal) => once(signal, 'abort');
      for (const late of [await post(cat, 'image/jpeg'), await post(form(cat))])
        expect([late.status, late.body.message]).to.deep.equal([503, 'The operation was aborted due to timeout']);
    } finally {
      AbortSignal.timeout = timeout;
    }
    for (const mistake of [new TypeError('a mistake'), new library.OctconvError('conv: a mistake')]) {
      first = () => Promise.reject(mistake);
      for (const wrong of [await post(cat, 'image/jpeg'), await post(form(cat))])
        expect([wrong.status, wrong.body.message]).to.deep.equal([500, mistake.message]);
    }
  });

  it('begins to count the time when all of a form is there', async () => {
    const { timeout } = AbortSignal;
    let counts = 0;
    let slow: ReturnType<typeof request> | undefined;
    AbortSignal.timeout = (ms) => {
      counts++;
      return timeout.call(AbortSignal, ms);
    };
    try {
      const head = '--x\r\ncontent-disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n';
      const whole = Buffer.concat([Buffer.from(head), cat, Buffer.from('\r\n--x--\r\n')]);
      const came = once(app.server, 'request');
      slow = request(whole.subarray(0, 1000), whole.length, 'multipart/form-data; boundary=x');
      await came;
      await sleep(50);
      expect(counts).to.equal(0);
      slow.write(whole.subarray(1000));
      expect(Buffer.concat(await slow.toArray()).toString()).to.match(/^HTTP\/1\.1 200 OK[\s\S]*"label":"cat"/);
      expect(counts).to.equal(1);
    } finally {
      slow?.destroy();
      AbortSignal.timeout = timeout;
    }
  });

  it('refuses what is too large or too much', async () => {
    const large = Buffer.alloc(limit + 1);
    expect((await post(large, 'image/jpeg')).status).to.equal(413);
    expect((await post(form(cat, large))).status).to.equal(413);
    expect((await post(form(cat, cat, cat, cat, cat))).status).to.equal(413);
    expect(calls).to.be.empty;
    const most = await post(form(cat, cat, cat, cat));
    expect([most.status, most.body.length]).to.deep.equal([200, 4]);
  });

  /** A request over a socket of its own, of which not all need be sent. */
  function request(body: Uint8Array, length = body.length, type = 'image/jpeg') {
    const socket = connect(port, 'localhost');
    socket.on('error', () => undefined);
    socket.write(
      `POST /classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: ${type}\r\nContent-Length: ${length}\r\n\r\n`,
    );
    socket.write(body);
    return socket;
  }

  it('stops when the client goes', async () => {
    const half = request(cat.subarray(0, cat.length / 2), cat.length);
    await once(half, 'connect');
    half.destroy();

    let socket: ReturnType<typeof request> | undefined;
    const gone = new Promise<void>((resolve) => {
      first = async (signal) => {
        expect(signal.aborted).to.equal(false);
        socket?.destroy();
        if (!signal.aborted) await once(signal, 'abort');
        resolve();
      };
    });
    socket = request(cat);
    await gone;
    expect(calls).to.have.length(1);
    expect(await calls[0]?.result.catch(({ name }) => name)).to.equal('AbortError');
    first = () => Promise.resolve();
    expect(labels((await post(cat, 'image/jpeg')).body)).to.deep.equal(['cat']);
  });

  it('gives the model back when it closes, after what is in flight', async () => {
    let closed: Promise<unknown> | undefined;
    first = async () => {
      closed = app.close();
    };
    const answer = Buffer.concat(await request(cat).toArray()).toString();
    expect(answer).to.match(/^HTTP\/1\.1 200 OK[\s\S]*"label":"cat"/);
    await closed;
    const { model } = calls[0] as (typeof calls)[0];
    expect(await model.run(library.Tensor.zeros('f32', [1, 32, 32, 3])).catch(String)).to.match(
      /model: it was disposed/,
    );
  });
});
