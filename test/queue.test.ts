/** Work queues on a real server of NATS: what becomes of jobs, whatever fails. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { expect } from 'chai';
import { type Job, NatsQueue, type NatsOptions, type Result, Worker, type WorkerOptions } from '../lib/queue/index.js';
import { ServiceError } from '../lib/service/errors.js';
import { Service } from '../lib/service/service.js';
import { failure } from './expect.js';
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

  async function work(options: WorkerOptions = {}, of: Pick<Service, 'classify'> = service): Promise<Worker> {
    const worker = new Worker(of as Service, [await queue.source('octave')], options);
    workers.add(worker);
    return worker;
  }
  async function resultOf(id: string, of = queue): Promise<Result> {
    for (;;) {
      const found = await of.result(id);
      if (found) return found;
      await sleep(20);
    }
  }
  /** One job that a test takes itself. */
  async function taken(): Promise<Job> {
    const source = await queue.source('octave');
    for await (const job of source.take(1, new AbortController().signal)) return job;
    return expect.fail('no job has come');
  }
  async function messages(stream: string, of = queue): Promise<number> {
    const { jetstreamManager } = await import('@nats-io/jetstream');
    return (await (await jetstreamManager(of.connection)).streams.info(`${of.name}_${stream}`)).state.messages;
  }

  it('jobs have the results of the service, each once', async () => {
    await work();
    const [top, milliseconds] = [3, { top: 3 }];
    const names = ['cat.jpg', 'coffee.jpg', 'rocket.jpg'];
    for (const [i, name] of names.entries())
      expect(await queue.submit(`first.${i}`, 'octave', file(name), milliseconds)).to.equal(true);
    expect(await queue.submit('first.0', 'octave', cat, {}), 'the same id').to.equal(false);
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

  it('a reply goes to who asked', async () => {
    await work();
    const subscription = queue.connection.subscribe('answers', { max: 1 });
    await queue.submit('asked', 'octave', cat, {}, 'answers');
    for await (const message of subscription) expect(message.json<Result>().id).to.equal('asked');
  });

  it('one that cannot be done is dead at once, with the reason; others go on', async () => {
    const before = await messages('dead');
    await work();
    await queue.submit('bad', 'octave', new Uint8Array(100), {});
    await queue.submit('clips', 'octave', cat, { clips: 2 });
    await queue.submit('top', 'octave', cat, { top: -1 });
    await queue.submit('good', 'octave', cat, {});
    const told = await Promise.all(['bad', 'clips', 'top', 'good'].map((id) => resultOf(id)));
    expect(told.map(({ error }) => error)).to.deep.equal([
      'picture: is not a picture, wanted JPEG, PNG or WebP',
      'octave: clips and crops are for video networks',
      'top: -1, wanted a positive integer',
      undefined,
    ]);
    expect(await messages('dead')).to.equal(before + 3);
  });

  it('what fails is tried again, so often; then it is dead', async () => {
    let calls = 0;
    const failing = {
      classify: async (...args: Parameters<Service['classify']>) => {
        calls++;
        if (calls === 2) return service.classify(...args);
        throw new ServiceError(calls > 2 ? 'internal' : 'unavailable', `fails ${calls}`, { retryAfter: 0.01 });
      },
    };
    const worker = await work({ tries: 3 }, failing);
    const retried: number[] = [];
    worker.on('retried', ({ delivery }) => retried.push(delivery));
    await queue.submit('second', 'octave', cat, {});
    expect((await resultOf('second')).error).to.equal(undefined);
    expect([calls, retried]).to.deep.equal([2, [1]]);
    await queue.submit('never', 'octave', cat, {});
    expect(await resultOf('never')).to.deep.equal({ id: 'never', model: 'octave', code: 'internal', error: 'fails 5' });
    expect(retried).to.deep.equal([1, 1, 2]);
  });

  it('a full service lets a job wait, which costs it no try', async () => {
    let calls = 0;
    const full = {
      classify: async (...args: Parameters<Service['classify']>) => {
        if (++calls > 5) return service.classify(...args);
        throw new ServiceError('overloaded', 'the queue is full', { retryAfter: 0.01 });
      },
    };
    await work({ tries: 1 }, full);
    await queue.submit('waits', 'octave', cat);
    expect((await resultOf('waits')).error).to.equal(undefined);
    expect(calls).to.equal(6);
  });

  it('a worker that is gone has not lost its job; one that was slow changes no result', async () => {
    await queue.submit('slow', 'octave', cat, {});
    const slow = await taken();
    slow.retry(0); // as where its time is over
    await work();
    const result = await resultOf('slow');
    await slow.done({ id: 'slow', model: 'octave', code: 'internal', error: 'late' });
    expect(await queue.result('slow')).to.deep.equal(result);

    await queue.submit('said', 'octave', cat, {});
    for (const worker of workers) await worker.close();
    workers.clear();
    await queue.submit('unsaid', 'octave', cat, {});
    const unsaid = await taken();
    const given = { id: 'unsaid', model: 'octave', version: '9', top: [] } as unknown as Result;
    await queue.publish(`${queue.name}.results.unsaid`, Buffer.from(JSON.stringify(given)), {});
    unsaid.retry(0);
    await work();
    await sleep(300);
    expect(await queue.result('unsaid'), 'not done again').to.deep.equal(given);
    expect(await messages('jobs')).to.equal(0);
  });

  it('one that was given too often is dead, though no worker says why', async () => {
    await queue.submit('poison', 'octave', cat, {});
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
    for (const start = performance.now(); performance.now() - start < 5000; await sleep(20))
      if ((await queue.file('large').catch((error: Error) => error.message)) === 'queue: octconv_files has no "large"')
        return;
    expect.fail('its file is still there');
  });

  it('URLs are read where the worker allows them', async () => {
    const [data, other] = ['data', 'other'].map((name) => join(folder, name)) as [string, string];
    for (const each of [data, other]) {
      mkdirSync(each);
      writeFileSync(join(each, 'cat.jpg'), cat);
    }
    symlinkSync(join(other, 'cat.jpg'), join(data, 'link.jpg'));
    let asked = 0;
    const http = createServer((request, response) => {
      asked++;
      if (request.url === '/away') response.writeHead(302, { location: '/data/cat.jpg' }).end();
      else if (request.url === '/data/busy' && asked < 3) response.writeHead(503).end();
      else if (request.url === '/data/none') response.writeHead(404).end();
      else if (request.url === '/data/moved') response.writeHead(302, { location: '/other' }).end();
      else response.end(cat);
    }).listen(0, '127.0.0.1');
    await once(http, 'listening');
    const base = `http://127.0.0.1:${(http.address() as AddressInfo).port}`;
    try {
      const allow = [`${base}/data/`, pathToFileURL(`${data}/`).href];
      await work({ allow, tries: 3 });
      const at = (folder: string, name: string) => pathToFileURL(join(folder, name)).href;
      const jobs: [url: string, error: RegExp | undefined][] = [
        [`${base}/data/cat.jpg`, undefined],
        [`${base}/data/busy`, undefined],
        [at(data, 'cat.jpg'), undefined],
        [`${base}/other.jpg`, /^URL "http.*\/other.jpg", wanted one that begins with http.*\/data\/ or file:/],
        [`${base}/data/../other.jpg`, /^URL /],
        [`${base.replace('//', '//user:secret@')}/data/cat.jpg`, /^URL /],
        [`${base}/data/none`, /none: status 404$/],
        [`${base}/data/moved`, /moved: /],
        [at(other, 'cat.jpg'), /^URL /],
        [at(data, 'link.jpg'), /^URL /],
        [at(data, '../other/cat.jpg'), /^URL /],
        [at(data, 'none.jpg'), /^URL /],
        ['ftp://127.0.0.1/cat.jpg', /^URL /],
      ];
      for (const [i, [url]] of jobs.entries()) await queue.submit(`url.${i}`, 'octave', new URL(url), {});
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
    await queue.submit('no-url', 'octave', new URL('file:///etc/passwd'), {});
    expect((await resultOf('no-url')).error).to.match(/URL/);
  });

  it('a worker that closes ends what it has, or gives it back', async () => {
    let started = () => {};
    const begun = new Promise<void>((resolve) => (started = resolve));
    const hanging = {
      classify: (_: string, __: unknown, { signal }: { signal?: AbortSignal } = {}) => {
        started();
        return new Promise<never>((_, reject) => signal?.addEventListener('abort', () => reject(signal.reason)));
      },
    };
    const worker = await work({}, hanging);
    await queue.submit('held', 'octave', cat, {});
    await begun;
    await worker.close(50);
    workers.delete(worker);
    await work();
    expect((await resultOf('held')).error).to.equal(undefined);
  });

  it('goes on when the server is there again', async () => {
    await work();
    await servers.kill(0);
    const submitted = queue.submit('away', 'octave', cat, {});
    await sleep(500);
    await servers.run(0);
    expect(await submitted).to.equal(true);
    expect((await resultOf('away')).error).to.equal(undefined);
  });

  it('says what is wrong', async () => {
    for (const [options, message] of [
      [{ servers: 'nats://127.0.0.1:1' }, /^queue: "nats:\/\/127.0.0.1:1": .*ECONNREFUSED/],
      [{ name: 'a.b' }, /^queue: name "a.b", wanted letters, digits, _ and -$/],
      [{ servers: servers.urls, credentials: '/nowhere' }, /^\/nowhere: no such file/],
      [{ replica: 3 }, /^queue: unknown option "replica" \(did you mean "replicas"\?\)/],
      [{ replicas: 0 }, /^queue: replicas: 0, wanted a number of at least 1$/],
    ] as const)
      expect(await failure(NatsQueue.open(options as NatsOptions))).to.match(message);
    for (const [options, message] of [
      [{ concurrency: 0 }, 'worker: concurrency: 0, wanted a positive integer'],
      [{ allow: ['data/'] }, 'worker: allow: "data/", wanted https://HOST/, http://HOST/ or file:///'],
      [{ allow: ['https://host'] }, 'worker: allow: "https://host", wanted'],
      [{ retries: 3 }, 'worker: unknown option "retries"'],
    ] as const)
      expect(() => new Worker(service, [], options as WorkerOptions)).to.throw(message);
    expect(await failure(queue.submit('a b', 'octave', cat))).to.match(/^queue: id "a b", wanted letters/);
    expect(await failure(queue.submit('a', '>', cat))).to.match(/^queue: model ">", wanted letters/);
  });

  it('examples/jetstream', async () => {
    const model = 'cifar10-oct-resnet-26-a50';
    await using named = await Service.open({ [model]: octave }, { maxBatch: 1 });
    const worker = new Worker(named, [await queue.source(model)]);
    workers.add(worker);
    const files = ['cat.jpg', 'rocket.jpg'].map((name) => pathOf(`images/${name}`));
    const child = spawn(process.execPath, ['--import=tsx', 'examples/jetstream/submit.ts', ...files], {
      ...{
        cwd: pathOf('..'),
        env: { ...process.env, NATS_URL: servers.urls[0] },
        stdio: ['ignore', 'pipe', 'inherit'],
      },
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
      expect(await (await fetch(`${url}/v2/health/ready`)).json()).to.deep.equal({ ready: true });
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
