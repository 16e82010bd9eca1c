/** Work queues on a real server of NATS: what becomes of jobs, whatever fails. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { type AddressInfo, connect, createServer as createTcpServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { StoredMsg } from '@nats-io/jetstream';
import { expect } from 'chai';
import { type Job, NatsQueue, type NatsOptions, type Result, Worker, type WorkerOptions } from '../lib/queue/index.js';
import { decodeImage } from '../lib/input/image.js';
import { codeOf, ServiceError } from '../lib/service/errors.js';
import { Service } from '../lib/service/service.js';
import { failure, until } from './expect.js';
import { hasNats, NatsServers } from './nats.js';
import { skip } from './skip.js';

const pathOf = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const octave = pathOf('../models/cifar10-oct-resnet-26-a50');
const file = (name: string) => readFileSync(pathOf(`images/${name}`));
const cat = file('cat.jpg');

describe('queue', function () {
  this.timeout(60_000);
  let servers: NatsServers;
  let service: Service;
  let queue: NatsQueue;
  let folder: string;
  const workers = new Set<Worker>();

  before(async function () {
    if (!hasNats) skip(this, 'nats');
    folder = mkdtempSync(join(tmpdir(), 'octconv-'));
    servers = await NatsServers.start();
    service = await Service.open({ octave }, { maxBatch: 1 });
    queue = await NatsQueue.open({ servers: servers.urls });
  });
  after(async () => {
    await queue?.close();
    await service?.close();
    await servers?.stop();
    if (folder) rmSync(folder, { recursive: true });
  });
  afterEach(async () => {
    for (const worker of workers) await worker.close(0);
    workers.clear();
  });

  /** Of the queue, for the service or what classifies in its place. */
  async function work(
    options: WorkerOptions = {},
    classify?: (...args: Parameters<Service['classify']>) => Promise<unknown>,
    of = queue,
  ): Promise<Worker> {
    const worker = new Worker(classify ? standIn(classify) : service, [await of.source('octave')], options);
    workers.add(worker);
    return worker;
  }
  const standIn = (classify: (...args: Parameters<Service['classify']>) => Promise<unknown>) =>
    ({ checkRoom: () => undefined, classify }) as unknown as Service;
  const nothing = { version: '1', top: [], milliseconds: {} };
  async function resultOf(id: string, of = queue): Promise<Result> {
    for (;;) {
      const found = await of.result(id);
      if (found) return found;
      await sleep(20);
    }
  }
  /** One job that a test takes itself. */
  async function taken(of = queue): Promise<Job> {
    const source = await of.source('octave');
    for await (const job of source.take(1, new AbortController().signal)) return job;
    return expect.fail('no job has come');
  }
  async function manager(of = queue) {
    const { jetstreamManager } = await import('@nats-io/jetstream');
    return await jetstreamManager(of.connection);
  }
  async function messages(stream: string, of = queue): Promise<number> {
    return (await (await manager(of)).streams.info(`${of.name}_${stream}`)).state.messages;
  }
  /** The dead letter of an id, which comes behind its result. */
  async function letterOf(id: string) {
    const { streams } = await manager();
    let letter: Awaited<ReturnType<typeof streams.getMessage>> = null;
    await until(async () => {
      letter = await streams.getMessage('octconv_dead', { last_by_subj: `octconv.dead.${id}` });
      return letter !== null;
    });
    return letter as unknown as StoredMsg;
  }
  async function files() {
    const { Objm } = await import('@nats-io/obj');
    return await new Objm(queue.connection).open('octconv_files');
  }
  const fileNames = async (): Promise<string[]> => (await (await files()).list()).map(({ name }) => name);
  /** The result of a job that came without an id. */
  async function numbered(seq: number): Promise<Result> {
    const stop = new AbortController();
    try {
      for await (const result of queue.results('seq', stop.signal))
        if (result.id.startsWith(`seq.${seq}.`)) return result;
    } finally {
      stop.abort();
    }
    return expect.fail();
  }

  it('jobs have the results of the service, each once', async () => {
    await work();
    const top = 3;
    const names = ['cat.jpg', 'coffee.jpg', 'rocket.jpg'];
    for (const [i, name] of names.entries())
      expect(await queue.submit(`first.${i}`, 'octave', file(name), { top })).to.equal(true);
    expect(await queue.submit('first.0', 'octave', cat), 'the same id').to.equal(false);
    const stop = new AbortController();
    const results = new Map<string, Result>();
    for await (const result of queue.results('first', stop.signal)) {
      results.set(result.id, result);
      if (results.size === names.length) stop.abort();
    }
    const wanted = await service.classify('octave', names.map(file), { top });
    for (const [i, guesses] of wanted.top.entries()) {
      const result = results.get(`first.${i}`) as Result;
      if (result.error !== undefined) expect.fail(result.error);
      expect([result.model, result.version, result.top.length]).to.deep.equal(['octave', '1', top]);
      expect(result.top.map(({ label }) => label)).to.deep.equal(guesses.map(({ label }) => label));
      expect(result.milliseconds.compute).to.be.above(0);
    }
    expect(await messages('jobs')).to.equal(0);
  });

  it('a reply goes to who asked, and to no other subject', async () => {
    await work();
    const [inbox, ours] = ['_INBOX.answers', 'octconv.replies.answers'];
    for (const [id, reply] of [
      ['asked', inbox],
      ['asked.too', ours],
    ] as const) {
      const subscription = queue.connection.subscribe(reply, { max: 1 });
      await queue.submit(id, 'octave', cat, { reply });
      for await (const message of subscription) expect(message.json<Result>().id).to.equal(id);
    }
    const purge = '$JS.API.STREAM.PURGE.octconv_results';
    const wrong = /reply "\$JS.API.STREAM.PURGE.octconv_results", wanted _INBOX.ANY or octconv.replies.ANY$/;
    expect(await failure(queue.submit('other', 'octave', cat, { reply: purge }))).to.match(wrong);
    const before = await messages('results');
    const headers = queue.headers();
    headers.set('Octconv-Reply', purge);
    headers.set('Nats-Msg-Id', 'other');
    await queue.publish('jobs', 'octave', cat, headers);
    expect((await resultOf('other')).error).to.match(wrong);
    expect(await messages('results')).to.equal(before + 1);
  });

  it('one that cannot be done is dead at once, with the reason; others go on', async () => {
    const before = await messages('dead');
    await work();
    await queue.submit('bad', 'octave', new Uint8Array(100));
    await queue.submit('clips', 'octave', cat, { clips: 2 });
    await queue.submit('top', 'octave', cat, { top: -1 });
    await queue.submit('good', 'octave', cat);
    const told = await Promise.all(['bad', 'clips', 'top', 'good'].map((id) => resultOf(id)));
    expect(told.map(({ error }) => error)).to.deep.equal([
      'picture: is not a picture, wanted JPEG, PNG or WebP',
      'octave: clips and crops are for video networks',
      'top: -1, wanted a positive integer',
      undefined,
    ]);
    await until(async () => (await messages('dead')) === before + 3);
    const letter = await letterOf('clips');
    expect(letter.header.get('Octconv-Error')).to.equal('octave: clips and crops are for video networks');
    expect(letter.header.get('Octconv-Clips')).to.equal('2');
    expect(Buffer.compare(letter.data, cat)).to.equal(0);
  });

  it('what fails is tried again, so often; then it is dead', async () => {
    let calls = 0;
    const worker = await work({ tries: 3 }, async (...args) => {
      calls++;
      if (calls === 2) return service.classify(...args);
      throw new ServiceError(calls > 2 ? 'internal' : 'unavailable', `fails ${calls}`, { retryAfter: 0.01 });
    });
    const retried: number[] = [];
    worker.on('retried', ({ delivery }) => retried.push(delivery));
    await queue.submit('second', 'octave', cat);
    expect((await resultOf('second')).error).to.equal(undefined);
    expect([calls, retried]).to.deep.equal([2, [1]]);
    await queue.submit('never', 'octave', cat);
    expect(await resultOf('never')).to.deep.equal({ id: 'never', model: 'octave', code: 'internal', error: 'fails 5' });
    expect(retried).to.deep.equal([1, 1, 2]);
  });

  it('a full service lets a job wait, which costs it no try', async () => {
    let calls = 0;
    await work({ tries: 1 }, async (...args) => {
      if (++calls > 5) return service.classify(...args);
      throw new ServiceError('overloaded', 'the queue is full', { retryAfter: 0.01 });
    });
    await queue.submit('waits', 'octave', cat);
    expect((await resultOf('waits')).error).to.equal(undefined);
    expect(calls).to.equal(6);
  });

  it('a worker that is gone has not lost its job; one that was slow changes no result', async () => {
    await queue.submit('slow', 'octave', cat);
    const slow = await taken();
    slow.retry(0); // as where its time is over
    await work();
    const result = await resultOf('slow');
    const late: Result = { id: 'slow', model: 'octave', code: 'internal', error: 'late' };
    expect(await slow.done(late), 'what it has').to.deep.equal(result);
    // Not by the ids of messages, which are known for two minutes.
    expect(await queue.publish('results', 'slow', Buffer.from(JSON.stringify(late)))).to.include({
      isNew: false,
    });
    expect(await queue.result('slow')).to.deep.equal(result);
    for (const worker of workers) await worker.close();
    workers.clear();

    await queue.submit('unsaid', 'octave', cat);
    const unsaid = await taken();
    const given = { id: 'unsaid', model: 'octave', version: '9', top: [] } as unknown as Result;
    await queue.publish('results', 'unsaid', Buffer.from(JSON.stringify(given)));
    unsaid.retry(0);
    let calls = 0;
    await work({}, async () => calls++);
    await until(async () => (await messages('jobs')) === 0);
    expect(calls, 'not done again').to.equal(0);
    expect(await queue.result('unsaid')).to.deep.equal(given);
  });

  it('one that takes longer than others wait is not given to them; one that takes too long is tried again', async () => {
    await using beats = await NatsQueue.open({ servers: servers.urls, name: 'beats', ackWait: 1 });
    const deliveries: number[] = [];
    const worker = await work(
      { timeout: 4, tries: 2 },
      () => sleep(deliveries.length > 1 ? 60_000 : 2500, nothing),
      beats,
    );
    worker.on('done', ({ delivery }) => deliveries.push(delivery));
    worker.on('retried', ({ delivery }) => deliveries.push(delivery));
    await beats.submit('long', 'octave', cat);
    expect((await resultOf('long', beats)).error).to.equal(undefined);
    await until(() => deliveries.length > 0);
    expect(deliveries).to.deep.equal([1]);
    await worker.close(0);
    const hasty = await work(
      { timeout: 0.2, tries: 2 },
      (_, __, { signal } = {}) => sleep(60_000, 0, { signal: signal as AbortSignal }),
      beats,
    );
    hasty.on('retried', ({ delivery }) => deliveries.push(delivery));
    await beats.submit('longer', 'octave', cat);
    expect((await resultOf('longer', beats)).error).to.equal('has no result after 0.2 s');
    expect(deliveries).to.deep.equal([1, 1]);
    await hasty.close(0);
    expect(
      await failure(
        NatsQueue.open({ servers: servers.urls, name: 'beats', ackWait: 2 }).then((other) =>
          other.source('octave').finally(() => other.close()),
        ),
      ),
    ).to.equal('queue: ackWait: 2, but the workers of "octave" have 1');
    expect(await failure(NatsQueue.open({ servers: servers.urls, name: 'beats', replicas: 3 }))).to.equal(
      'queue: replicas: 3, but beats_jobs has 1',
    );
  });

  it('one that was given too often is dead, though no worker says why', async () => {
    await queue.submit('poison', 'octave', cat);
    for (let delivery = 1; delivery <= 2; delivery++) {
      const job = await taken();
      expect(job.delivery).to.equal(delivery);
      job.retry(0);
    }
    await work({ tries: 2 });
    expect((await resultOf('poison')).error).to.equal('was given to workers 2 times, and none had a result');
  });

  it('what is larger than a message goes through the object store, which is empty then', async () => {
    const large = Buffer.concat([cat, Buffer.alloc(3 * 2 ** 20)]); // a JPEG may have bytes behind its end
    await work();
    await queue.submit('large', 'octave', large, { top: 1 });
    const { error, ...result } = await resultOf('large');
    expect([error, 'top' in result && result.top[0]?.label]).to.deep.equal([undefined, 'cat']);
    await until(async () => (await fileNames()).length === 0);
    // One that is queued twice has left nothing either.
    await queue.submit('large', 'octave', large);
    expect(await fileNames()).to.deep.equal([]);
  });

  it('a job has no other files than its own, and none that are too large', async () => {
    const victim = await queue.putFile('victim', cat);
    const headers = queue.headers();
    headers.set('Octconv-File', victim);
    headers.set('Nats-Msg-Id', 'thief');
    await work();
    await queue.publish('jobs', 'octave', new Uint8Array(), headers);
    expect((await resultOf('thief')).error).to.equal(`queue: file "${victim}", wanted one of job thief`);
    expect(await fileNames()).to.deep.equal([victim]);
    await queue.removeFile(victim);
    for (const worker of workers) await worker.close();
    await work({ maxBytes: 2 ** 21 });
    await queue.submit('huge', 'octave', new Uint8Array(2 ** 21 + 1));
    expect((await resultOf('huge')).error).to.equal('a file of more than 2097152 bytes');
    // The file of a dead letter stays with it.
    const name = (await letterOf('huge')).header.get('Octconv-File');
    expect(await fileNames()).to.deep.equal([name]);
    await queue.removeFile(name);
  });

  it('a job of somebody who knows nothing of this has a number for its id', async () => {
    await work();
    const headers = queue.headers();
    headers.set('Nats-Msg-Id', 'a b');
    const { jetstream } = await import('@nats-io/jetstream');
    const client = jetstream(queue.connection);
    const [none, wrong] = [
      await client.publish('octconv.jobs.octave', cat),
      await client.publish('octconv.jobs.octave', cat, { headers }),
    ];
    expect((await numbered(none.seq)).error).to.equal(undefined);
    expect((await numbered(wrong.seq)).error).to.match(/^queue: id "a b", wanted letters/);
    // A message as large as the server allows leaves no room for the reason.
    const most = queue.connection.info?.max_payload as number;
    const { seq } = await client.publish('octconv.jobs.octave', new Uint8Array(most));
    const { id, error } = await numbered(seq);
    expect(error).to.match(/is not a picture/);
    const letter = await letterOf(id);
    const [own] = await fileNames();
    expect(letter.header.get('Octconv-File')).to.equal(own);
    await queue.removeFile(own as string);
  });

  it('no more jobs at a time than a worker wants, also where a connection is made again', async () => {
    await using few = await NatsQueue.open({ servers: servers.urls, name: 'few', ackWait: 1 });
    let [most, calls] = [0, 0];
    const busy = async () => {
      most = Math.max(most, worker.inFlight);
      calls++;
      return await sleep(50, nothing);
    };
    const worker = await work({ concurrency: 4 }, busy, few);
    await few.submit('few.0', 'octave', cat);
    await until(() => calls === 1);
    await few.connection.reconnect(); // while a pull waits for three more
    for (let i = 1; i < 60; i++) await few.submit(`few.${i}`, 'octave', cat);
    await until(async () => (await messages('jobs', few)) === 0, 20_000);
    expect(most).to.be.within(3, 4);
    await worker.close();
  });

  it('a job that comes where there is no room for it has lost no tries', async () => {
    await using full = await NatsQueue.open({ servers: servers.urls, name: 'full', ackWait: 1 });
    let release = () => {};
    const released = new Promise<void>((resolve) => (release = resolve));
    let calls = 0;
    const worker = await work(
      { concurrency: 8, tries: 3 },
      async () => {
        calls++;
        await released;
        return nothing;
      },
      full,
    );
    for (let i = 0; i < 6; i++) await full.submit(`full.${i}`, 'octave', cat);
    await until(() => calls === 6);
    await full.connection.reconnect(); // while a pull waits for two more: it is made again for eight
    for (let i = 6; i < 12; i++) await full.submit(`full.${i}`, 'octave', cat);
    await until(() => calls === 8, 10_000);
    await sleep(500);
    release();
    for (let i = 0; i < 12; i++) expect((await resultOf(`full.${i}`, full)).error, `${i}`).to.equal(undefined);
    await worker.close();
  });

  it('one whose answer is lost is queued, with its bytes', async () => {
    const large = Buffer.concat([cat, Buffer.alloc(2 ** 21)]);
    const client = (queue as unknown as { connection: { request: (...args: never[]) => Promise<unknown> } }).connection;
    const request = client.request.bind(client);
    const { errors } = await import('@nats-io/transport-node');
    client.request = async (...args: never[]) => {
      const answer = await request(...args);
      if (args[0] !== 'octconv.jobs.octave') return answer;
      client.request = request;
      throw new errors.TimeoutError();
    };
    expect(await queue.submit('lost', 'octave', large)).to.equal(true);
    expect(await fileNames()).to.have.length(1);
    expect(await queue.submit('lost', 'octave', large), 'another one').to.equal(false);
    expect(await fileNames()).to.have.length(1);
    await work();
    expect((await resultOf('lost')).error).to.equal(undefined);
    await until(async () => (await fileNames()).length === 0);
  });

  it('headers that nobody can read are dead alone', async () => {
    const { getServer } = queue.connection;
    const [host, port] = getServer.call(queue.connection).split(':');
    const socket = connect(Number(port), host);
    const header = 'NATS/1.0\r\nX-Any: a\rb\r\n\r\n';
    socket.write(
      `CONNECT {"headers":true}\r\nHPUB octconv.jobs.octave ${header.length} ${header.length + 1}\r\n${header}x\r\nPING\r\n`,
    );
    for await (const text of socket) if (String(text).includes('PONG')) break;
    const before = await messages('dead');
    for (let i = 0; i < 5; i++) await queue.submit(`beside.${i}`, 'octave', cat);
    await work();
    for (let i = 0; i < 5; i++) expect((await resultOf(`beside.${i}`)).error).to.equal(undefined);
    await until(async () => (await messages('jobs')) === 0 && (await messages('dead')) === before + 1);
  });

  it('a model that is away takes no jobs', async () => {
    let away = true;
    const checkRoom = () => {
      if (away) throw new ServiceError('unavailable', 'octave: is away');
    };
    const absent = { checkRoom, classify: service.classify.bind(service) } as unknown as Service;
    const worker = new Worker(absent, [await queue.source('octave')], { tries: 1 });
    workers.add(worker);
    await queue.submit('patient', 'octave', cat);
    await sleep(500);
    expect([worker.inFlight, await messages('jobs')]).to.deep.equal([0, 1]);
    away = false;
    expect((await resultOf('patient')).error).to.equal(undefined);
  });

  it('a result that somebody has removed is made again', async () => {
    await using purge = await NatsQueue.open({ servers: servers.urls, name: 'purge' });
    const { streams } = await manager(purge);
    await streams.update('purge_jobs', { duplicate_window: 100e6 });
    const worker = await work({}, async () => nothing, purge);
    for (let i = 0; i < 2; i++) {
      expect(await purge.submit('purged', 'octave', cat)).to.equal(true);
      expect((await resultOf('purged', purge)).error).to.equal(undefined);
      await streams.purge('purge_results');
      await sleep(300);
    }
    await worker.close();
  });

  it('who reads results misses none that was sent to a connection that has ended', async () => {
    const put = (i: number) => queue.publish('results', `gap.${i}`, Buffer.from(JSON.stringify({ id: `gap.${i}` })));
    for (let i = 0; i < 50; i++) await put(i);
    const protocol = (queue.connection as unknown as { protocol: { processMsg(...args: unknown[]): void } }).protocol;
    const process = protocol.processMsg.bind(protocol);
    let lost = 0;
    protocol.processMsg = (...args) => {
      if (
        /octconv_results/.test(Buffer.from((args[0] as { reply?: Uint8Array }).reply ?? []).toString()) &&
        ++lost === 20
      )
        return;
      process(...args);
    };
    const ids: string[] = [];
    const stop = new AbortController();
    try {
      for await (const { id } of queue.results('gap', stop.signal)) if (ids.push(id) === 50) stop.abort();
    } finally {
      protocol.processMsg = process;
    }
    expect(lost).to.be.above(20);
    expect(ids).to.deep.equal(Array.from({ length: 50 }, (_, i) => `gap.${i}`));
  });

  it('what hands out jobs is made again if somebody deletes it; without streams there is an error', async () => {
    const named = await NatsQueue.open({ servers: servers.urls, name: 'deleted' });
    const worker = await work({}, async () => nothing, named);
    const { consumers, streams } = await manager(named);
    await consumers.delete('deleted_jobs', 'worker_octave');
    await named.submit('after', 'octave', cat);
    expect((await resultOf('after', named)).error).to.equal(undefined);
    await worker.close();
    await streams.delete('deleted_jobs');
    expect(await failure(named.submit('gone', 'octave', cat))).to.equal('queue: there is no stream deleted_jobs');
    await named.close();
  });

  it('streams that give an id several results, or forget jobs, are not used', async () => {
    const { streams } = await manager();
    await streams.add({ name: 'odd_results', subjects: ['odd.results.>'] });
    expect(await failure(NatsQueue.open({ servers: servers.urls, name: 'odd' }))).to.equal(
      'queue: odd_results has discard "old", wanted "new"',
    );
  });

  it('where there is no room for a job or its file, who submits it is told, and no file is left', async () => {
    await using narrow = await NatsQueue.open({ servers: servers.urls, name: 'narrow' });
    const { streams } = await manager(narrow);
    const large = Buffer.concat([cat, Buffer.alloc(3 * 2 ** 20)]);
    const stored = async () => (await streams.info('OBJ_narrow_files')).state.bytes;
    await streams.update('OBJ_narrow_files', { max_bytes: 2 ** 20 });
    expect(await failure(narrow.submit('file', 'octave', large))).to.match(
      /^queue: narrow_files: maximum bytes exceeded/,
    );
    await streams.update('OBJ_narrow_files', { max_bytes: 2 ** 24 });
    await streams.update('narrow_jobs', { max_msgs: 1 });
    await narrow.submit('first', 'octave', cat);
    const before = await stored();
    expect(await failure(narrow.submit('second', 'octave', large))).to.match(
      /^queue: narrow.jobs.octave: maximum messages exceeded/,
    );
    expect(await stored()).to.be.below(before + 2 ** 16);
  });

  it('ends with its signal where no server answers', async () => {
    const alone = await NatsServers.start();
    const queue = await NatsQueue.open({ servers: alone.urls });
    await alone.stop();
    const signal = AbortSignal.timeout(300);
    const ended = await queue.submit('never', 'octave', cat, { signal }).catch((error: unknown) => error);
    expect(ended).to.equal(signal.reason);
    await queue.close();
  });

  it('a URL that waits for its turn has all its bytes, and one that is not read leaves no connection', async () => {
    setFlagsFromString('--expose-gc');
    const gc = runInNewContext('gc') as () => void;
    let closed = 0;
    const large = Buffer.alloc(2 ** 22);
    const http = createServer((_, response) => {
      response.once('close', () => closed++);
      response.end(large);
    }).listen(0, '127.0.0.1');
    await once(http, 'listening');
    const base = `http://127.0.0.1:${(http.address() as AddressInfo).port}/`;
    const read: number[] = [];
    try {
      await work({ allow: [base] }, async (_, source) => {
        for (let i = 0; i < 5; i++) {
          gc();
          await sleep(20);
        }
        if (closed > 0) return nothing; // the second job reads nothing
        let bytes = 0;
        for await (const part of source as AsyncIterable<Uint8Array>) bytes += part.length;
        read.push(bytes);
        return nothing;
      });
      await queue.submit('later', 'octave', new URL(`${base}a`));
      expect((await resultOf('later')).error).to.equal(undefined);
      expect(read).to.deep.equal([large.length]);
      await queue.submit('unread', 'octave', new URL(`${base}b`));
      await resultOf('unread');
      await until(() => closed === 2);
    } finally {
      http.closeAllConnections();
      http.close();
    }
  });

  it('what is not read in time, or is not mounted yet, is read another time', async () => {
    const stalled = (async function* () {
      yield cat.subarray(0, 1000);
      await sleep(60_000, undefined, { ref: false });
    })();
    const error = await decodeImage(stalled, { timeout: 0.05 }).catch((error: unknown) => error);
    expect(codeOf(error)).to.equal('unavailable');
    const mount = join(folder, 'mount');
    const worker = await work({ allow: [pathToFileURL(`${mount}/`).href] });
    worker.once('retried', () => {
      mkdirSync(mount);
      writeFileSync(join(mount, 'cat.jpg'), cat);
    });
    await queue.submit('mounted', 'octave', pathToFileURL(join(mount, 'cat.jpg')));
    expect((await resultOf('mounted')).error).to.equal(undefined);
  });

  it('a dead letter has its model and all header fields that it came with', async () => {
    await work();
    const headers = queue.headers();
    headers.set('traceparent', '00-1-2-01');
    headers.set('Nats-Expected-Stream', 'octconv_jobs'); // a server would refuse the letter
    headers.set('Nats-Msg-Id', 'traced');
    await queue.publish('jobs', 'octave', new Uint8Array(9), headers);
    const { header } = await letterOf('traced');
    expect([header.get('traceparent'), header.get('Octconv-Model')]).to.deep.equal(['00-1-2-01', 'octave']);
    // Fields for which a letter has no room are left out.
    headers.set('Nats-Msg-Id', 'long');
    headers.set('Octconv-Url', `https://nowhere.example/${'a'.repeat(60_000)}`);
    await queue.publish('jobs', 'octave', new Uint8Array(9), headers);
    const letter = await letterOf('long');
    expect([letter.header.get('traceparent'), letter.header.get('Octconv-Url')]).to.deep.equal(['00-1-2-01', '']);
    const url = new URL(`https://nowhere.example/${'a'.repeat(9000)}`);
    expect(await failure(queue.submit('longer', 'octave', url))).to.match(/^submit: a URL of 90\d\d characters/);
  });

  it('URLs are read where the worker allows them', async () => {
    const [data, other] = ['data', 'other'].map((name) => join(folder, name)) as [string, string];
    for (const each of [data, other]) {
      mkdirSync(each);
      writeFileSync(join(each, 'cat.jpg'), cat);
    }
    symlinkSync(join(other, 'cat.jpg'), join(data, 'link.jpg'));
    for (const name of ['data2', 'data/frames']) mkdirSync(join(folder, name));
    symlinkSync(join(other, 'cat.jpg'), join(data, 'frames/0.jpg'));
    writeFileSync(join(folder, 'data2', 'cat.jpg'), cat);
    let [busy, broken] = [0, 0];
    const http = createServer((request, response) => {
      if (request.url === '/data/busy' && busy++ < 2) response.writeHead(503).end();
      else if (request.url === '/data/broken' && broken++ < 1)
        response
          .writeHead(200, { 'content-length': cat.length })
          .write(cat.subarray(0, 1000), () => response.destroy());
      else if (request.url === '/data/none') response.writeHead(404).end();
      else if (request.url === '/data/moved') response.writeHead(302, { location: '/other' }).end();
      else response.end(cat);
    }).listen(0, '127.0.0.1');
    await once(http, 'listening');
    const base = `http://127.0.0.1:${(http.address() as AddressInfo).port}`;
    try {
      const allow = [`${base.replace('http', 'HTTP')}/data/`, pathToFileURL(`${data}/`).href, 'file:///not/there/'];
      await work({ allow, tries: 3 });
      const at = (folder: string, name: string) => pathToFileURL(join(folder, name)).href;
      const jobs: [url: string, error: RegExp | undefined][] = [
        [`${base}/data/cat.jpg`, undefined],
        [`${base}/data/busy`, undefined],
        [`${base}/data/broken`, undefined],
        [at(data, 'cat.jpg'), undefined],
        [`${base}/other.jpg`, /^URL "http.*\/other.jpg", wanted one that begins with http.*\/data\/ or file:/],
        [`${base}/data/../other.jpg`, /^URL /],
        [`${base.replace('//', '//user:secret@')}/data/cat.jpg`, /^URL /],
        [`${base}/data/none`, /none: status 404$/],
        [`${base}/data/moved`, /moved: leads to another URL$/],
        [`${base}/data/%2e%2e/other.jpg`, /^URL /],
        [`${base}/data/..%2fother.jpg`, /^URL /],
        [at(other, 'cat.jpg'), /^URL /],
        [at(data, 'link.jpg'), /^URL /],
        [at(data, '../other/cat.jpg'), /^URL /],
        [at(data, 'none.jpg'), /^URL /],
        [at(data, 'frames/'), /^URL /],
        [`${pathToFileURL(data).href}/%00.jpg`, /^URL /],
        [at(folder, 'data2/cat.jpg'), /^URL /],
        ['file://host/cat.jpg', /^URL /],
        [`${pathToFileURL(data).href}/..%2fother%2fcat.jpg`, /^URL /],
        ['ftp://127.0.0.1/cat.jpg', /^URL /],
      ];
      for (const [i, [url]] of jobs.entries()) await queue.submit(`url.${i}`, 'octave', new URL(url));
      for (const [i, [url, error]] of jobs.entries()) {
        const result = await resultOf(`url.${i}`);
        if (error) expect(result.error, url).to.match(error);
        else expect(result.error, url).to.equal(undefined);
      }
    } finally {
      http.closeAllConnections();
      http.close();
    }
    await work();
    await queue.submit('no-url', 'octave', new URL('file:///etc/passwd'));
    expect((await resultOf('no-url')).error).to.match(/URL/);
  });

  it('a worker that closes ends what it has, or gives it back', async () => {
    let started = () => {};
    const begun = new Promise<void>((resolve) => (started = resolve));
    const worker = await work({}, (_, __, { signal } = {}) => {
      started();
      return sleep(60_000, undefined, { signal: signal as AbortSignal });
    });
    await queue.submit('held', 'octave', cat);
    await begun;
    await worker.close(50);
    workers.delete(worker);
    await work();
    expect((await resultOf('held')).error).to.equal(undefined);
  });

  it('goes on when the server is there again', async () => {
    await work();
    await servers.kill(0);
    const submitted = queue.submit('away', 'octave', cat);
    await sleep(500);
    await servers.run(0);
    expect(await submitted).to.equal(true);
    expect((await resultOf('away')).error).to.equal(undefined);
  });

  describe('a server that says nothing, as behind a cut network', () => {
    let pair: NatsServers;
    let cut: NatsQueue;
    const at = () => pair.ports.findIndex((port) => cut.connection.getServer().endsWith(`:${port}`));
    beforeEach(async () => {
      pair = await NatsServers.start(2);
      cut = await NatsQueue.open({ servers: pair.urls });
    });
    afterEach(async () => {
      for (const i of pair.ports.keys()) pair.goOn(i);
      await cut.close();
      await pair.stop();
    });

    it('is left for another one in seconds, also where more was written than the network holds', async () => {
      const left = at();
      pair.pause(left);
      for (let i = 0; i < 64; i++) cut.connection.publish('nobody', new Uint8Array(5e5));
      for (const start = performance.now(); at() === left; await sleep(100))
        expect(performance.now() - start).to.be.below(30_000);
    });

    it('does not keep who waits for results', async () => {
      const stop = new AbortController();
      const reading = cut.results('never', stop.signal).next();
      for (const i of pair.ports.keys()) pair.pause(i);
      await sleep(500);
      const start = performance.now();
      stop.abort();
      expect((await reading).done).to.equal(true);
      expect(performance.now() - start).to.be.below(2000);
    });

    it('does not keep a worker, or a queue that is closed', async () => {
      const source = await cut.source('octave');
      await cut.submit('unsaid', 'octave', cat);
      const worker = new Worker(
        standIn(() => sleep(500, nothing)),
        [source],
      );
      while (worker.inFlight === 0) await sleep(10);
      for (const i of pair.ports.keys()) pair.pause(i);
      const start = performance.now();
      await worker.close(1000);
      await cut.close();
      expect(performance.now() - start).to.be.within(1000, 8000);
      expect(cut.connection.isClosed()).to.equal(true);
    });
  });

  it('one that cannot be reached leaves no socket behind', async () => {
    // It takes connections and never says what it is.
    const sockets = new Set<Socket>();
    const mute = createTcpServer((socket) => sockets.add(socket)).listen(0, '127.0.0.1');
    await once(mute, 'listening');
    const url = `nats://127.0.0.1:${(mute.address() as AddressInfo).port}`;
    expect(await failure(NatsQueue.open({ servers: url }))).to.match(/timeout/);
    for (const socket of sockets) if (!socket.readableEnded) await once(socket.resume(), 'end');
    mute.close();
  });

  it('what a stream is about to take is not queued yet', async () => {
    const named = await NatsQueue.open({ servers: servers.urls, name: 'about' });
    const { jetstreamManager } = await import('@nats-io/jetstream');
    const { streams } = await jetstreamManager(named.connection);
    await streams.update('about_jobs', { subjects: ['elsewhere'] });
    const answers = [
      { stream: 'about_jobs', seq: 0, duplicate: true }, // older servers say this of it, newer ones that
      { error: { code: 409, err_code: 10158, description: 'duplicate message id is in process' } },
      { stream: 'about_jobs', seq: 7, duplicate: true },
    ];
    named.connection.subscribe('about.jobs.octave', {
      callback: (_, message) => void message.respond(JSON.stringify(answers.shift())),
    });
    expect(await named.submit('one', 'octave', cat)).to.equal(false);
    expect(answers).to.deep.equal([]);
    await named.close();
  });

  it('a part of a file that does not come is asked for again', async () => {
    const bytes = new Uint8Array(2 ** 21).fill(7);
    const name = await queue.putFile('parts', bytes);
    await (await manager()).streams.purge('OBJ_octconv_files', { filter: '$O.octconv_files.C.>' });
    const read = queue.file(name, 2 ** 22, new AbortController().signal);
    await sleep(1000);
    await (await files()).putBlob({ name }, bytes);
    expect(Buffer.compare(await read, bytes)).to.equal(0);
    await queue.removeFile(name);
  });

  it('says what is wrong', async () => {
    for (const [options, message] of [
      [{ servers: 'nats://user:secret@127.0.0.1:1' }, /^queue: nats:\/\/127.0.0.1:1: .*ECONNREFUSED/],
      [{ name: 'a.b' }, /^queue: name "a.b", wanted letters, digits, _ and -, 64 at most$/],
      [{ servers: servers.urls, credentials: '/nowhere' }, /^\/nowhere: no such file/],
      [{ replica: 3 }, /^queue: unknown option "replica" \(did you mean "replicas"\?\)/],
      [{ replicas: 0 }, /^queue: replicas: 0, wanted an integer from 1 to 5$/],
    ] as const)
      expect(await failure(NatsQueue.open(options as NatsOptions))).to.match(message);
    for (const [options, message] of [
      [{ concurrency: 0 }, 'worker: concurrency: 0, wanted a positive integer'],
      [{ allow: ['data/'] }, 'worker: allow: "data/", wanted https://HOST/'],
      [{ allow: ['https://host/data'] }, 'worker: allow: "https://host/data", wanted'],
      [{ allow: ['file://host/'] }, 'worker: allow: "file://host/", wanted'],
      [{ timeout: 0 }, 'worker: timeout: 0, wanted seconds'],
      [{ retries: 3 }, 'worker: unknown option "retries"'],
    ] as const)
      expect(() => new Worker(service, [], options as WorkerOptions)).to.throw(message);
    expect(await failure(queue.submit('a b', 'octave', cat))).to.match(/^queue: id "a b", wanted letters/);
    expect(await failure(queue.submit('seq.1', 'octave', cat))).to.match(
      /^queue: id "seq.1", .* not beginning with seq\.$/,
    );
    expect(await failure(queue.submit('a', '>', cat))).to.match(/^queue: model ">", wanted letters/);
    expect(await failure(queue.submit('a', 'octave', 'abc' as never))).to.match(/^submit: got .*, wanted a Uint8Array/);
    expect(await failure(queue.submit('a', 'octave', new Uint8Array()))).to.match(
      /wanted a Uint8Array that is not empty/,
    );
    expect(await failure(queue.submit('a', 'octave', cat, { url: 'x' } as never))).to.match(
      /^submit: unknown option "url"/,
    );
  });

  it('examples/jetstream', async () => {
    const model = 'cifar10-oct-resnet-26-a50';
    await using named = await Service.open({ [model]: octave }, { maxBatch: 1 });
    const worker = new Worker(named, [await queue.source(model)]);
    workers.add(worker);
    const files = ['cat.jpg', 'rocket.jpg'].map((name) => pathOf(`images/${name}`));
    const child = spawn(process.execPath, ['--import=tsx', 'examples/jetstream/submit.ts', ...files], {
      cwd: pathOf('..'),
      env: { ...process.env, NATS_URL: servers.urls[0] },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const lines: string[] = [];
    createInterface(child.stdout as NodeJS.ReadableStream).on('line', (line) => lines.push(line));
    expect(await once(child, 'close')).to.deep.equal([0, null]);
    expect(lines).to.have.members([`${files[0]}: cat`, `${files[1]}: ship`]);
    await worker.close();
    workers.delete(worker);
  });

  it('says which packages it wants', () => {
    const resolve = `export const resolve = (name, context, next) => {
      if (name.startsWith('@nats-io/')) throw Object.assign(new Error(name), { code: 'ERR_MODULE_NOT_FOUND' });
      return next(name, context);
    };`;
    const script = `
      import { register } from 'node:module';
      const { NatsQueue } = await import(${JSON.stringify(new URL('../lib/queue/index.ts', import.meta.url).href)});
      register('data:text/javascript,' + encodeURIComponent(${JSON.stringify(resolve)}));
      console.log((await NatsQueue.open().catch((error) => error)).message);`;
    const args = ['--import', 'tsx', '--input-type=module', '--eval', script];
    const { stdout } = spawnSync(process.execPath, args, { encoding: 'utf8', cwd: pathOf('..') });
    expect(stdout).to.equal(
      'queue: the packages of NATS are not installed: npm install @nats-io/transport-node @nats-io/jetstream @nats-io/obj\n',
    );
  });

  it('as commands: worker and submit', async () => {
    const cli = pathOf('../lib/cli.ts');
    const nats = ['--nats', servers.urls.join(','), '--queue', 'commands'];
    const child = spawn(
      process.execPath,
      ['--import=tsx', cli, 'worker', octave, ...nats, '--metrics-port', '0', '--drain', '5'],
      { stdio: ['ignore', 'pipe', 'pipe'] },
    );
    const ended = once(child, 'exit');
    try {
      const log: string[] = [];
      createInterface(child.stderr).on('line', (line) => log.push(JSON.parse(line).msg));
      const [line] = await once(createInterface(child.stdout), 'line');
      const url = /^metrics +(http.*)\/metrics$/.exec(line)?.[1] as string;
      await until(async () => (await fetch(`${url}/v2/health/ready`)).ok);
      const model = 'cifar10-oct-resnet-26-a50';
      const submit = (...args: string[]) =>
        spawnSync(process.execPath, ['--import=tsx', cli, 'submit', ...nats, '--model', model, ...args], {
          encoding: 'utf8',
          timeout: 30_000,
        });
      const fine = submit(pathOf('images/cat.jpg'), '--run', 'one');
      expect([fine.status, fine.stdout], fine.stderr).to.deep.equal([0, `${pathOf('images/cat.jpg')}: cat 90.6 %\n`]);
      const bad = submit(pathOf('images/cat.jpg'), pathOf('../package.json'), '--json');
      expect([bad.status, bad.stderr]).to.deep.equal([1, 'octconv: submit: 1 failed\n']);
      expect(
        bad.stdout
          .trim()
          .split('\n')
          .map((text) => JSON.parse(text).error),
      ).to.have.members([undefined, 'picture: is not a picture, wanted JPEG, PNG or WebP']);
      const late = submit(pathOf('images/cat.jpg'), '--model', 'nobody', '--run', 'late', '--timeout', '1');
      expect([late.status, late.stderr]).to.deep.equal([
        1,
        'octconv: submit: 1 had no result after 1 s; the same files with --run late wait on\n',
      ]);
      const missing = submit(pathOf('images/cat.jpg'), '/nowhere.jpg');
      expect([missing.status, missing.stderr]).to.deep.equal([1, 'octconv: /nowhere.jpg: no such file\n']);
      const again = submit(pathOf('images/coffee.jpg'), '--run', 'one');
      expect(again.stderr).to.equal('one.0 was queued before: its result is that of the first\n');
      expect(await (await fetch(`${url}/metrics`)).text()).to.contain(
        `octconv_jobs{model="${model}",outcome="done"} 2`,
      );
      child.kill('SIGTERM');
      expect(await ended).to.deep.equal([0, null]);
      expect(log.at(-1)).to.equal('ends: no more jobs are taken');
    } finally {
      child.kill('SIGKILL');
    }
  });
});
