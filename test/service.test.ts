import { once } from 'node:events';
import {
  cpSync,
  createReadStream,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  type ReadStream,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { loadModel } from '../lib/model.js';
import type { Engine } from '../lib/service/engine.js';
import { type Code, codeOf } from '../lib/service/errors.js';
import { isolate, type Patience } from '../lib/service/isolated.js';
import { Served } from '../lib/service/served.js';
import { Service } from '../lib/service/service.js';
import { Tensor } from '../lib/tensor.js';
import { error, failure } from './expect.js';
import { childrenThat } from './processes.js';

const shipped = (name: string) => fileURLToPath(new URL(`../models/${name}`, import.meta.url));
const picture = (name: string) => fileURLToPath(new URL(`images/${name}`, import.meta.url));
const [octave, plain, video] = [
  shipped('cifar10-oct-resnet-26-a50'),
  shipped('cifar10-oct-resnet-26-a0'),
  shipped('camera-motion-oct-i3d-26-a50'),
];
const cat = picture('cat.jpg');
const small = { maxBatch: 1 } as const; // quick to measure

/** Bytes of some pictures, each another. */
function noise(rows: number, seed = 1): Tensor<'u8'> {
  const x = Tensor.zeros('u8', [rows, 32, 32, 3]);
  for (let i = 0; i < x.data.length; i++) x.data[i] = (i * 31 * seed + (i >> 7)) % 256;
  return x;
}

/** The code that a promise rejects with. */
async function codeFor(promise: Promise<unknown>): Promise<Code | undefined> {
  return promise.then(
    () => undefined,
    (error: unknown) => codeOf(error),
  );
}

/** Processes of isolated models. */
const children = () => childrenThat((_, commandLine) => commandLine.includes('engine-child'));

describe('service: requests', () => {
  let service: Service;
  before(async () => {
    service = await Service.open({ octave, plain, video }, { ...small, batching: { sizes: [1, 2, 4, 8] } });
  });
  after(() => service.close());

  it('logits are those of the model itself, whatever shares the batch', async () => {
    using model = await loadModel(octave);
    const inputs = Array.from({ length: 40 }, (_, i) => noise(1 + (i % 5), i));
    const answers = await Promise.all(inputs.map((x) => service.infer('octave', x)));
    for (const [i, { logits, model: name, version }] of answers.entries()) {
      const alone = await model.run(inputs[i] as never);
      expect([name, version]).to.deep.equal(['octave', '1']);
      expect(logits.shape).to.deep.equal(alone.shape);
      expect(error(logits.data, alone.data)).to.be.lessThan(1e-5); // the algorithm depends on the batch
    }
    const { counts } = service.version('octave');
    expect(counts?.executions).to.be.lessThan(counts?.inferences ?? 0);
  });

  it('pictures and videos are classified, one or many', async () => {
    const { top, milliseconds } = await service.classify('octave', cat, { top: 2 });
    expect(top.map((guesses) => guesses.map(({ label }) => label))).to.deep.equal([['cat', 'dog']]);
    expect(Object.values(milliseconds).every((ms) => ms >= 0)).to.equal(true);
    const both = await service.classify('plain', [readFileSync(cat), picture('rocket.jpg')], { top: 1 });
    expect(both.top.map(([best]) => best?.label)).to.deep.equal(['cat', 'ship']);
    const clip = fileURLToPath(new URL('clips/pan-left.webp', import.meta.url));
    const moved = await service.classify('video', clip, { top: 1, clips: 2 });
    expect(moved.top[0]?.[0]?.label).to.equal('pan left');
    const { logits } = await service.infer('octave', [cat, cat]);
    expect(logits.shape).to.deep.equal([2, 10]);
  });

  it('what does not fit is refused with a code', async () => {
    const x = noise(1);
    for (const [request, code, message] of [
      [() => service.infer('nobody', x), 'notFound', 'no model "nobody"'],
      [() => service.infer('__proto__', x), 'notFound', 'no model "__proto__"'],
      [() => service.infer('octave', x, { version: '2' }), 'notFound', 'octave: no version "2"'],
      [
        () => service.infer('octave', Tensor.zeros('u8', [1, 33, 32, 3])),
        'invalid',
        'octave: input is u8 [1,33,32,3], wanted f32 or u8 [N,32,32,3]',
      ],
      [() => service.infer('octave', Tensor.zeros('i8', [1, 32, 32, 3]) as never), 'invalid', 'octave: input is i8'],
      [() => service.infer('octave', noise(300)), 'invalid', 'octave: 300 rows, wanted at most 256'],
      [() => service.infer('octave', x, { priority: 2 }), 'invalid', 'priority'],
      [() => service.infer('octave', x, { timeout: -1 }), 'invalid', 'timeout'],
      [() => service.infer('octave', x, { colour: 1 } as never), 'invalid', 'unknown option "colour"'],
      [() => service.classify('octave', []), 'invalid', 'octave: no picture, wanted one or more'],
      [() => service.classify('octave', Buffer.from('text')), 'invalid', 'picture: is not a picture'],
      [() => service.classify('octave', '/nowhere.jpg'), 'invalid', '/nowhere.jpg: no such file'],
      [
        () => service.classify('octave', cat, { clips: 3 }),
        'invalid',
        'octave: clips and crops are for video networks',
      ],
      [() => service.classify('octave', cat, { top: 0 }), 'invalid', 'top: 0, wanted a positive integer'],
    ] as const) {
      const refused = request();
      expect(await failure(refused)).to.include(message);
      expect(await codeFor(refused)).to.equal(code);
    }
    const signal = AbortSignal.abort(new Error('gone'));
    expect(await service.infer('octave', x, { signal }).catch((e: Error) => e.message)).to.equal('gone');
    expect((await service.infer('octave', x)).logits.shape).to.deep.equal([1, 10]);
  });

  it('what the machine lacks is no fault of a request', async () => {
    const before = process.env.OCTCONV_FFMPEG;
    process.env.OCTCONV_FFMPEG = '/nowhere/ffmpeg';
    try {
      expect(await codeFor(service.classify('video', Buffer.alloc(5000, 'video')))).to.equal('internal');
    } finally {
      if (before === undefined) delete process.env.OCTCONV_FFMPEG;
      else process.env.OCTCONV_FFMPEG = before;
    }
  });

  it('streams of refused requests are closed', async () => {
    const streams = Array.from({ length: 4 }, () => createReadStream(cat));
    const [first, second, third, fourth] = streams as [ReadStream, ReadStream, ReadStream, ReadStream];
    expect(await codeFor(service.classify('nobody', first))).to.equal('notFound');
    expect(await codeFor(service.infer('octave', [second], { version: '7' }))).to.equal('notFound');
    expect(await codeFor(service.classify('octave', third, { top: 0 }))).to.equal('invalid');
    expect(await codeFor(service.classify('octave', fourth, { clips: 2 }))).to.equal('invalid');
    expect(streams.map(({ destroyed }) => destroyed)).to.deep.equal([true, true, true, true]);
  });

  it('who leaves costs nothing more; the others are answered', async () => {
    const stop = new AbortController();
    const leaving = Array.from({ length: 60 }, () => service.infer('octave', noise(4), { signal: stop.signal }));
    const staying = service.infer('octave', noise(2));
    const ended = Promise.allSettled(leaving);
    const before = service.version('octave').counts?.executions ?? 0;
    stop.abort(new Error('gone'));
    expect((await ended).every(({ status }) => status === 'rejected')).to.equal(true);
    expect((await staying).logits.shape).to.deep.equal([2, 10]);
    const { counts, waiting } = service.version('octave');
    expect((counts?.executions ?? 0) - before).to.be.lessThan(10);
    expect(waiting).to.equal(0);
    expect(counts?.failures.get('cancelled')).to.be.at.least(60);
  });
});

describe('service: load', () => {
  it('threads of runs give way to the event loop', async () => {
    await using service = await Service.open({ octave }, small);
    await service.infer('octave', noise(1));
    const niceOf = (thread: string) => {
      const fields = readFileSync(`/proc/self/task/${thread}/stat`, 'latin1')
        .replace(/^.*\) /s, '')
        .split(' ');
      return Number(fields[16]);
    };
    const own = niceOf(`${process.pid}`);
    const others = readdirSync('/proc/self/task').map(niceOf);
    expect(others.filter((nice) => nice === own + 5)).to.have.length.at.least(1);
    expect(others.filter((nice) => ![own, own + 5].includes(nice))).to.deep.equal([]);
  });

  it('a full queue refuses at once and says when to come again; what was taken is answered', async () => {
    await using service = await Service.open({ octave }, { ...small, batching: { queue: 16 } });
    const started = performance.now();
    const all = await Promise.allSettled(Array.from({ length: 200 }, () => service.infer('octave', noise(1))));
    const refused = all.flatMap((one) => (one.status === 'rejected' ? [one.reason] : []));
    expect(refused.length).to.be.within(150, 190);
    expect(refused.every((error) => error.code === 'overloaded' && error.retryAfter >= 1)).to.equal(true);
    expect(all.filter(({ status }) => status === 'fulfilled').length).to.be.at.least(16);
    expect(performance.now() - started).to.be.lessThan(5000);
    expect((await service.infer('octave', noise(1))).logits.shape).to.deep.equal([1, 10]);
  });

  it('who waits for too long is too late, unless late ones go behind the others', async () => {
    await using service = await Service.open(
      { octave },
      { ...small, batching: { sizes: [1], timeout: 1, queue: 1000 } },
    );
    const ask = () => Array.from({ length: 300 }, () => service.infer('octave', noise(1)));
    const all = await Promise.allSettled([...ask(), service.infer('octave', noise(1), { timeout: 0 })]);
    const late = all.filter((one) => one.status === 'rejected' && codeOf(one.reason) === 'late');
    expect(late.length).to.be.within(1, 300);
    expect(all.at(-1)?.status).to.equal('fulfilled'); // it had no timeout
    await using patient = await Service.open(
      { octave },
      { ...small, batching: { sizes: [1], timeout: 1, queue: 1000, onTimeout: 'delay' } },
    );
    const some = await Promise.all(Array.from({ length: 300 }, () => patient.infer('octave', noise(1))));
    expect(some.length).to.equal(300);
  });

  it('closing answers what has come, and takes nothing more', async () => {
    const service = await Service.open({ octave }, small);
    const taken = Array.from({ length: 50 }, () => service.infer('octave', noise(1)));
    const closed = service.close();
    expect(await codeFor(service.infer('octave', noise(1)))).to.equal('unavailable');
    expect((await Promise.all(taken)).length).to.equal(50);
    await closed;
    expect(service.ready).to.equal(false);
  });

  it('closing ends what is not answered in time', async () => {
    const service = await Service.open({ octave }, { ...small, batching: { sizes: [1], queue: 5000 } });
    const taken = Array.from({ length: 3000 }, () => codeFor(service.infer('octave', noise(1))));
    await service.close(20);
    const codes = await Promise.all(taken);
    expect(new Set(codes)).to.deep.equal(new Set([undefined, 'unavailable']));
  });
});

describe('service: a version that serves', () => {
  it('gives each row its own answer, however requests are split and padded', async () => {
    let state = 1;
    const below = (count: number) => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.floor((state / 2 ** 32) * count);
    };
    for (let seed = 0; seed < 60; seed++) {
      const sizes = [
        [1, 4],
        [1, 2, 4],
        [1, 2, 4, 8],
        [1, 3, 8],
      ][seed % 4] as number[];
      let time = 1;
      const milliseconds = sizes.map(() => (time += below(3) / 2)); // padding is often worth it
      const batching = { sizes, milliseconds, instances: 1 + (seed % 2), overlap: seed % 3 === 0 };
      const engine: Engine = {
        about: { row: [1], batching, dtype: 'f32' } as never,
        async run(x) {
          const y = Float32Array.from(x.data, (value) => 2 * value); // a copy: the batch is filled again
          await sleep(below(3));
          return new Tensor('f32', [y.length, 1], y);
        },
        close: async () => undefined,
      };
      const events = { request: () => undefined, batch: () => undefined };
      const served = new Served('x', [engine], {}, events);
      let next = 0;
      const requests = Array.from({ length: 24 }, async () => {
        const rows = 1 + below(9);
        const values = Float32Array.from({ length: rows }, () => ++next);
        if (below(3) === 0) await sleep(below(4));
        const signal = below(8) === 0 ? AbortSignal.timeout(below(4)) : undefined;
        const { logits } = await served.infer(rows, () => new Tensor('f32', [rows, 1], values), { signal });
        expect([...logits.data], `seed ${seed}`).to.deep.equal([...values].map((value) => 2 * value));
      });
      for (const one of await Promise.allSettled(requests))
        if (one.status === 'rejected') expect(one.reason.name, one.reason.message).to.equal('TimeoutError');
      await served.close(0);
    }
  });

  it('counts the time of what fails in the network', async () => {
    const row = [2, 2, 3];
    const batching = { sizes: [1], milliseconds: [1], instances: 1 };
    const engine: Engine = {
      about: { row, batching, dtype: 'f32' } as never,
      run: () => sleep(50).then(() => Promise.reject(new Error('broken'))),
      close: async () => undefined,
    };
    const codes: string[] = [];
    const served = new Served('x', [engine], {}, { request: ({ code }) => codes.push(code), batch: () => undefined });
    const x = Tensor.zeros('f32', [1, ...row]);
    expect(await failure(served.infer(1, () => x, {}))).to.equal('x: broken');
    expect(codes).to.deep.equal(['internal']);
    expect(served.counts.milliseconds.failed).to.be.at.least(45);
    await served.close(0);
  });
});

describe('service: repository', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'octconv-service-'));
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  it('versions: the newest that is ready, all or some of them', async () => {
    for (const version of ['1', '2', '10']) {
      mkdirSync(join(folder, 'cifar'), { recursive: true });
      symlinkSync(version === '2' ? plain : octave, join(folder, 'cifar', version));
    }
    symlinkSync(octave, join(folder, 'flat'));
    writeFileSync(join(folder, 'README.txt'), 'no model');
    const served = async (versions: 'latest' | 'all' | readonly number[]) => {
      await using service = await Service.open(folder, { ...small, versions });
      expect(service.ready).to.equal(true);
      return service.versions().map(({ name, version }) => `${name}/${version}`);
    };
    expect(await served('latest')).to.deep.equal(['cifar/10', 'flat/1']);
    expect(await served('all')).to.deep.equal(['cifar/1', 'cifar/2', 'cifar/10', 'flat/1']);
    expect(await served([2, 1])).to.deep.equal(['cifar/1', 'cifar/2', 'flat/1']);
    await using service = await Service.open(folder, { ...small, models: { cifar: { versions: 'all' } } });
    expect((await service.infer('cifar', noise(1))).version).to.equal('10');
    expect((await service.infer('cifar', noise(1), { version: '2' })).version).to.equal('2');
  });

  it('a changed model serves when it is loaded; until then, and if it is broken, the old one does', async () => {
    cpSync(octave, join(folder, 'cifar'), { recursive: true });
    await using service = await Service.open(folder, small);
    const before = await service.infer('cifar', noise(1));
    const replace = (file: string, bytes: string | Uint8Array) => {
      writeFileSync(join(folder, 'next'), bytes);
      renameSync(join(folder, 'next'), join(folder, 'cifar', file));
    };
    let failed = 0;
    let running = true;
    const load = (async () => {
      while (running) await service.infer('cifar', noise(1)).catch(() => failed++);
    })();
    const config = readFileSync(join(folder, 'cifar', 'config.json'), 'utf8');
    replace('config.json', '{');
    await service.refresh();
    const broken = service.version('cifar');
    expect(broken.state).to.equal('ready');
    expect(broken.reason).to.match(/config\.json/);
    expect(await codeFor(service.load('cifar'))).to.equal('invalid');
    replace('config.json', readFileSync(join(plain, 'config.json')));
    replace('model.safetensors', readFileSync(join(plain, 'model.safetensors')));
    const states: string[] = [];
    service.on('state', ({ state }) => states.push(state));
    await service.refresh();
    expect(service.version('cifar')).to.deep.include({ state: 'ready', reason: undefined });
    expect(states).to.deep.equal(['ready']);
    running = false;
    await load;
    expect(failed).to.equal(0);
    expect((await service.infer('cifar', noise(1))).logits.data).to.not.deep.equal(before.logits.data);
    replace('config.json', config);
    rmSync(join(folder, 'cifar'), { recursive: true });
    await service.refresh();
    expect(service.versions()).to.deep.equal([]);
    expect(await codeFor(service.infer('cifar', noise(1)))).to.equal('notFound');
  });

  it('a newer version that is broken leaves the older one serving', async () => {
    mkdirSync(join(folder, 'cifar', '2'), { recursive: true });
    symlinkSync(octave, join(folder, 'cifar', '1'));
    renameSync(join(folder, 'cifar', '2'), join(folder, 'two'));
    await using service = await Service.open({ cifar: join(folder, 'cifar') }, small);
    renameSync(join(folder, 'two'), join(folder, 'cifar', '2'));
    await service.refresh();
    expect(service.versions().map(({ version, state }) => [version, state])).to.deep.equal([
      ['1', 'ready'],
      ['2', 'unavailable'],
    ]);
    expect((await service.infer('cifar', noise(1))).version).to.equal('1');
    expect(await failure(service.load('cifar'))).to.match(/^cifar, version 2: .*config\.json/);
    rmSync(join(folder, 'cifar', '2'), { recursive: true });
    symlinkSync(plain, join(folder, 'cifar', '2'));
    await service.refresh();
    expect(service.versions().map(({ version, state }) => [version, state])).to.deep.equal([['2', 'ready']]);
  });

  it('one that cannot be read does not keep the others from being served', async () => {
    symlinkSync(octave, join(folder, 'cifar'));
    symlinkSync(join(folder, 'nowhere'), join(folder, 'dangling'));
    await using service = new Service(folder, small);
    await service.loaded;
    expect(service.versions().map(({ name, state }) => [name, state])).to.deep.equal([
      ['cifar', 'ready'],
      ['dangling', 'unavailable'],
    ]);
    expect((await service.infer('cifar', noise(1))).model).to.equal('cifar');
  });

  it('closing while models load loads no more of them, and may be asked for twice', async () => {
    for (const name of ['a', 'b', 'c']) symlinkSync(octave, join(folder, name));
    const service = new Service(folder, small);
    await Promise.all([service.close(), service.close(10)]);
    await service.close();
    expect(service.versions()).to.deep.equal([]);
    expect(await codeFor(service.loaded)).to.be.oneOf([undefined, 'unavailable']);
  });

  it('unloads and loads, and looks by itself', async () => {
    symlinkSync(octave, join(folder, 'cifar'));
    await using service = await Service.open(folder, { ...small, watch: 0.05 });
    const taken = Array.from({ length: 20 }, () => service.infer('cifar', noise(1)));
    await service.unload('cifar');
    expect(await codeFor(service.infer('cifar', noise(1)))).to.equal('unavailable');
    expect((await Promise.all(taken)).length).to.equal(20);
    await sleep(150); // nobody loads it again
    expect(service.version('cifar')).to.deep.include({ state: 'unavailable', reason: 'unloaded' });
    await service.load('cifar');
    expect((await service.infer('cifar', noise(1))).version).to.equal('1');
    expect(await codeFor(service.load('nobody'))).to.equal('notFound');
    expect(await codeFor(service.unload('nobody'))).to.equal('notFound');
    symlinkSync(plain, join(folder, 'other'));
    for (
      let i = 0;
      i < 100 && !service.versions().some(({ name, state }) => name === 'other' && state === 'ready');
      i++
    )
      await sleep(50);
    expect((await service.infer('other', noise(1))).model).to.equal('other');
  });

  it('what cannot be served is said when it opens', async () => {
    expect(await failure(Service.open(join(folder, 'nothing')))).to.match(/nothing: no such file/);
    expect(await failure(Service.open(folder))).to.match(/holds no model folders$/);
    mkdirSync(join(folder, 'empty'));
    expect(await failure(Service.open(folder))).to.match(/^service: empty, version 1: .*config\.json/);
    expect(await failure(Service.open({ '../up': octave }))).to.include('model "../up", wanted a name of letters');
    expect(await failure(Service.open({ octave }, { batching: { sizes: [3] } }))).to.match(/sizes/);
    const misspelt = Service.open({ octave }, { ...small, models: { oktave: {} } });
    expect(await failure(misspelt)).to.equal('service: models.oktave: there is no such model (did you mean "octave"?)');
    expect(() => new Service({}, { watch: 0 })).to.throw('watch: 0, wanted seconds');
    expect(() => new Service({}, { models: { a: { batching: { sizes: [3] } } } })).to.throw(
      'sizes [3], wanted ascending',
    );
    expect(() => new Service({}, { batching: { queue: 0 } })).to.throw('queue 0, wanted a positive integer');
    expect(() => new Service({}, { models: { a: { colour: 1 } as never } })).to.throw('unknown option "colour"');
  });
});

describe('service: a process of its own', function () {
  this.timeout(20_000);

  it('a crash costs the batches in flight, which get an error; the process is started again', async () => {
    await using service = await Service.open({ octave }, { ...small, isolated: true });
    const x = noise(2);
    using model = await loadModel(octave);
    const wanted = await model.run(x as never);
    expect(error((await service.infer('octave', x)).logits.data, wanted.data)).to.be.lessThan(1e-5);
    const [pid] = children();
    const ends: string[] = [];
    service.on('ended', (name, version, why) => ends.push(`${name} ${version} ${why}`));
    const all = Array.from({ length: 100 }, () => codeFor(service.infer('octave', noise(1))));
    process.kill(pid as number, 'SIGKILL');
    const codes = await Promise.all(all);
    expect(new Set(codes)).to.deep.equal(new Set([undefined, 'unavailable']));
    expect(codes.filter((code) => code === 'unavailable').length).to.be.within(1, 4);
    expect(children()).to.have.lengthOf(1).and.not.include(pid);
    expect(ends).to.deep.equal(['octave 1 ended: SIGKILL']);
  });

  it('one that cannot be started again fails what waits, and runs when it can', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'octconv-service-'));
    try {
      cpSync(octave, join(folder, 'cifar'), { recursive: true });
      await using service = await Service.open(folder, { ...small, isolated: true });
      const [config, hidden] = [join(folder, 'cifar', 'config.json'), join(folder, 'hidden.json')];
      renameSync(config, hidden);
      const ended = once(service, 'ended');
      process.kill(children()[0] as number, 'SIGKILL');
      await ended;
      expect(await failure(service.infer('cifar', noise(1)))).to.match(/files have changed/);
      while (service.version('cifar').state !== 'unavailable') await sleep(20);
      expect([service.ready, service.version('cifar').reason]).to.deep.equal([
        false,
        'the process of the model: its files have changed, it must be loaded again',
      ]);
      renameSync(hidden, config);
      while (!service.ready) await sleep(20);
      expect((await service.infer('cifar', noise(1))).logits.shape).to.deep.equal([1, 10]);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it('is not there any more when the service is closed, or could not open', async () => {
    const service = await Service.open({ octave }, { ...small, isolated: true });
    await service.close();
    expect(await failure(Service.open({ octave: cat }, { isolated: true }))).to.match(/cat\.jpg/);
    for (let i = 0; i < 50 && children().length; i++) await sleep(20);
    expect(children()).to.deep.equal([]);
  });

  describe('that hangs', () => {
    const ends: string[] = [];
    const options = { maxBatch: 1 };
    const open = (patience: Partial<Patience>) =>
      isolate(octave, options, { ended: (why) => ends.push(why), patience });
    /** The process, as soon as there is one. */
    async function itsProcess(): Promise<number> {
      for (;;) {
        const [pid] = children();
        if (pid !== undefined) return pid;
        await sleep(5);
      }
    }
    beforeEach(() => ends.splice(0));
    afterEach(() => {
      for (const pid of children()) process.kill(pid, 'SIGKILL');
    });

    it('its runs fail as unavailable, and it is started again', async () => {
      const engine = await open({ look: 0.1, silent: 3 });
      process.kill(await itsProcess(), 'SIGSTOP');
      const waits = await Promise.allSettled([engine.run(noise(1)), engine.run(noise(1))]);
      for (const one of waits) {
        const { reason } = one as PromiseRejectedResult;
        expect(codeOf(reason)).to.equal('unavailable');
        expect(reason.message).to.equal('the process of the model ended: it has not answered for 3 s');
      }
      expect(ends).to.deep.equal(['ended: it has not answered for 3 s']);
      expect((await engine.run(noise(2))).shape).to.deep.equal([2, 10]);
      await engine.close();
      expect(ends).to.have.lengthOf(1);
    });

    it('while it loads it cannot be loaded', async () => {
      const opened = failure(open({ look: 0.1, loading: 1 }));
      process.kill(await itsProcess(), 'SIGSTOP');
      expect(await opened).to.equal('the process of the model ended: it has not answered for 1 s');
      expect(ends).to.deep.equal([]);
    });

    it('in a run of the usual size: it does not end; one of another size has the time that it takes', async () => {
      // As a native loop without an end, beside which the event loop goes on, would look.
      const engine = await open({ look: 0.1, silent: 1000, running: 2 });
      const pid = await itsProcess();
      process.kill(pid, 'SIGSTOP');
      const large = engine.run(Tensor.zeros('u8', [1, 64, 64, 3]));
      const both = Promise.all([large, engine.run(noise(1))]);
      await sleep(3500);
      process.kill(pid, 'SIGCONT');
      expect((await both).map(({ shape }) => shape)).to.deep.equal([
        [1, 10],
        [1, 10],
      ]);
      process.kill(pid, 'SIGSTOP');
      expect(await failure(engine.run(noise(1)))).to.match(/: no run has ended for \d+ s$/);
      expect(ends).to.match(/^ended: no run has ended for/);
      await engine.close();
    });

    it('is killed when it is closed', async () => {
      const engine = await open({ closing: 0.2 });
      process.kill(await itsProcess(), 'SIGSTOP');
      const waits = codeFor(engine.run(noise(1)));
      await engine.close();
      expect(await waits).to.equal('unavailable');
      expect(children()).to.deep.equal([]);
      expect(ends).to.deep.equal([]);
    });

    it('a service closes whether it serves or loads', async () => {
      const serves = await Service.open({ octave }, { ...small, isolated: true });
      process.kill(await itsProcess(), 'SIGSTOP');
      const waits = codeFor(serves.infer('octave', noise(1)));
      await serves.close(100);
      expect(await waits).to.equal('unavailable');
      expect(children()).to.deep.equal([]);
      const states: string[] = [];
      const loads = new Service({ octave }, { ...small, isolated: true });
      loads.on('state', ({ state }) => states.push(state));
      process.kill(await itsProcess(), 'SIGSTOP');
      await loads.close();
      expect(states).to.deep.equal(['loading']);
      for (let i = 0; i < 50 && children().length; i++) await sleep(20);
      expect(children()).to.deep.equal([]);
    });
  });
});
