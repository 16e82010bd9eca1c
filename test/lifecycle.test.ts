import { execFile } from 'node:child_process';
import { mkdtemp, readdir, readFile, readlink, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises';
import { promisify } from 'node:util';
import { expect } from 'chai';
import { relativeError } from '../lib/bench/measure.js';
import {
  buildNetwork,
  createModel,
  DeepModule,
  defaultInput,
  type Feature,
  initialize,
  layers,
  loadModel,
  Model,
  Module,
  ops,
  quantize,
  Tensor,
} from '../lib/index.js';
import { resolveNetworkOptions } from '../lib/models/index.js';
import { targetOf } from '../lib/devices.js';
import { native } from '../lib/native.js';
import { stepsFor } from '../lib/targets.js';
import { oneIn } from './running.js';
import { writeModelFolder } from '../lib/weights/folder.js';

const small = { alpha: 0.5, width: 8, classes: 10, stem: 'cifar' } as const;
const dist = new URL('../dist/index.js', import.meta.url).href;
const exec = promisify(execFile);

/** Runs a script in a process of its own, with the library's names at hand. */
async function child(script: string, ...flags: string[]): Promise<string> {
  const code = `import { createModel, Tensor } from ${JSON.stringify(dist)};\n${script}`;
  const { stdout } = await exec(process.execPath, [...flags, '--input-type=module', '-e', code], { timeout: 120_000 });
  return stdout.trim();
}

describe('lifecycle: runs', () => {
  let model: Model;
  const long = Tensor.zeros('f32', [oneIn > 1 ? 4 : 64, 64, 64, 3]); // a tenth of a second, under TSan some seconds
  before(() => {
    model = createModel('oct-resnet-26', { ...small, width: 16 }, { threads: 2 });
  });
  after(() => model.dispose());

  it('leave the event loop free', async () => {
    await model.plan(long.shape);
    let ended = false;
    const run = model.run(long).finally(() => {
      ended = true;
    });
    let turns = 0;
    for (; !ended; turns++) await turn();
    await run;
    expect(turns).to.be.above(100); // tens of thousands; with runs on the event loop two or three
  });

  it('are recorded in turns of the event loop, if the network is a deep module', async () => {
    const ms = 5; // more than a turn may take
    let turns = 0;
    const seen: number[] = [];
    const network = new (class extends DeepModule<Feature, Feature> {
      *work(x: Feature) {
        let y = x;
        for (let part = 0; part < 4; part++) {
          seen.push(turns);
          for (const end = performance.now() + ms; performance.now() < end; );
          y = ops.relu(y);
          yield;
        }
        return y;
      }
    })();
    using model = new Model(network, initialize(network));
    let recorded = false;
    const plan = model.plan([1, 2, 2, 4]).finally(() => {
      recorded = true;
    });
    for (; !recorded; turns++) await turn();
    expect((await plan).steps).to.have.length.above(0);
    expect(new Set(seen).size, `turns at ${seen}`).to.equal(4);
    expect(model.record([1, 2, 2, 4]).nodes).to.have.length(4);
  });

  it('are those of `forward`, where a deep module has its own', async () => {
    class Deep extends DeepModule<Feature, Feature> {
      *work(x: Feature) {
        yield;
        return ops.relu(x);
      }
    }
    class Shifted extends Deep {
      override forward(x: Feature) {
        return ops.add(super.forward(x), 1);
      }
    }
    using model = new Model(new Shifted(), initialize(new Shifted()));
    expect((await model.run(Tensor.zeros('f32', [1, 1, 1, 2]))).data).to.deep.equal(Float32Array.of(1, 1));
  });

  it("never take libuv's threads", async () => {
    let ended = 0;
    const runs = Array.from({ length: 12 }, () => model.run(long).then(() => ended++));
    await readFile(new URL(import.meta.url)); // with runs on libuv's four threads this would wait for eight of them
    expect(ended).to.be.below(8);
    await Promise.all(runs);
  });

  it('reject at once when their signal is aborted', async () => {
    const plan = await model.plan(long.shape);
    const controller = new AbortController();
    const { signal } = controller;
    const run = plan.run([long], { signal }).catch((error) => error);
    const reason = new Error('enough');
    controller.abort(reason);
    let turns = 0;
    const first = await Promise.race([
      run,
      (async () => {
        for (; turns < 3; turns++) await turn();
      })(),
    ]);
    expect(first).to.equal(reason); // not when the run has ended
    expect(await model.run(long, { signal }).catch((error) => error)).to.equal(reason);
  });

  // In processor time, which does not depend on what else the machine does.
  it('stop within a step too', async () => {
    const network = new (class extends Module {
      readonly conv = new layers.Conv(64, 64, { kernel: 3 });
      forward(x: Feature) {
        return this.conv.forward(x);
      }
    })();
    using model = new Model(network, initialize(network), { device: 'reference', threads: 2 });
    const size = oneIn > 1 ? 48 : 96;
    const x = Tensor.zeros('f32', [1, size, size, 64]);
    const plan = await model.plan(x.shape);
    expect(plan.steps).to.have.length(1);
    const microsecondsSince = (before: NodeJS.CpuUsage) => {
      const { user, system } = process.cpuUsage(before);
      return user + system;
    };
    let before = process.cpuUsage();
    await plan.run([x]);
    const whole = microsecondsSince(before);

    const controller = new AbortController();
    before = process.cpuUsage();
    const run = plan.run([x], { signal: controller.signal }).catch((error) => error);
    while (microsecondsSince(before) < whole / 8) await sleep(1);
    controller.abort();
    expect(await run).to.equal(controller.signal.reason);
    await model.run(Tensor.zeros('f32', [1, 1, 1, 64])); // waits for the threads that are still at it
    const aborted = microsecondsSince(before);
    expect(aborted).to.be.below(whole / 2);
  });

  it('of one signal add one listener to it', async () => {
    const warned: unknown[] = [];
    const warn = (warning: unknown) => warned.push(warning);
    process.on('warning', warn);
    const controller = new AbortController();
    const x = Tensor.zeros('f32', [1, 32, 32, 3]);
    await Promise.all(Array.from({ length: 100 }, () => model.run(x, { signal: controller.signal })));
    const aborted = Array.from({ length: 100 }, () =>
      model.run(long, { signal: controller.signal }).catch((error) => error),
    );
    controller.abort(new Error('all of them'));
    expect(new Set((await Promise.all(aborted)).map(String))).to.deep.equal(new Set(['Error: all of them']));
    await turn();
    process.off('warning', warn);
    expect(warned).to.deep.equal([]);
  });

  /** What a run gives for an input that something happens to right after the run has begun. */
  async function whileRunning(
    make: () => Float32Array<ArrayBuffer>,
    happens: (x: Float32Array<ArrayBuffer>) => unknown,
  ): Promise<void> {
    const fill = (data: Float32Array) =>
      data.forEach((_, i) => {
        data[i] = Math.sin(i);
      });
    const [kept, taken] = [make(), make()];
    fill(kept);
    fill(taken);
    const wanted = await model.run(new Tensor('f32', long.shape, kept));
    const run = model.run(new Tensor('f32', long.shape, taken));
    await happens(taken);
    expect((await run).data).to.deep.equal(wanted.data);
  }
  const elements = long.data.length;

  it('see an input as it was, whatever becomes of its buffer', async () => {
    await whileRunning(
      () => new Float32Array(elements),
      (x) => x.fill(7),
    );
    await whileRunning(
      () => new Float32Array(elements),
      (x) => {
        structuredClone(x.buffer, { transfer: [x.buffer] });
        expect(x.length).to.equal(0);
      },
    );
    await whileRunning(
      () => new Float32Array(elements),
      (x) => {
        const { port1, port2 } = new MessageChannel();
        port1.postMessage(x, [x.buffer]);
        port1.close();
        port2.close();
      },
    );
    const resizable = () =>
      new Float32Array(
        new (ArrayBuffer as unknown as new (n: number, o: object) => ArrayBuffer)(elements * 4, {
          maxByteLength: elements * 8,
        }),
      );
    await whileRunning(resizable, (x) => (x.buffer as unknown as { resize(n: number): void }).resize(0));
  });

  it('started in the tick in which the model is disposed of end well', async () => {
    const model = createModel('oct-resnet-26', small);
    const run = model.run(Tensor.zeros('f32', [2, 32, 32, 3]));
    model.dispose();
    expect((await run).shape).to.deep.equal([2, 10]);
  });

  it('compile a plan once more that was disposed of, or had to go', async () => {
    using model = createModel('oct-resnet-26', small, { plans: 2 });
    const shapes = [1, 2, 3].map((n) => [n, 32, 32, 3]);
    (await model.plan(shapes[0] ?? [])).dispose();
    for (let i = 0; i < 3; i++) {
      for (const y of await Promise.all(shapes.map((shape) => model.run(Tensor.zeros('f32', shape)))))
        expect(y.shape[1]).to.equal(10);
    }
  });

  it('tell why weights could not be packed, to all that wait, and try again', async () => {
    const { pack } = native;
    let failures = 1;
    native.pack = (...args) => (failures-- > 0 ? Promise.reject(new Error('no memory')) : pack(...args));
    try {
      using model = createModel('oct-resnet-26', small);
      const run = (n: number) => model.run(Tensor.zeros('f32', [n, 32, 32, 3])).catch((error) => error.message);
      expect(await Promise.all([run(1), run(2)])).to.include('no memory');
      expect((await model.run(Tensor.zeros('f32', [1, 32, 32, 3]))).shape).to.deep.equal([1, 10]);
    } finally {
      native.pack = pack;
    }
  });

  it('try again to read weights after a read that failed', async () => {
    const network = buildNetwork('oct-resnet-26', small);
    const weights = initialize(network);
    let failures = 3;
    const read = async (name: string) => {
      if (failures-- > 0) throw new Error('a cable was pulled');
      return weights.read(name);
    };
    using model = new Model(network, { tensors: weights.tensors, read });
    const x = Tensor.zeros('f32', [1, 32, 32, 3]);
    expect(await model.run(x).catch((error) => error.message)).to.equal('a cable was pulled');
    while (failures > 0) await model.run(x).catch(() => undefined);
    expect((await model.run(x)).shape).to.deep.equal([1, 10]);
  });

  it('wait, after a read that failed, for the others, which write into memory that is given back then', async () => {
    const network = buildNetwork('oct-resnet-26', small);
    const weights = initialize(network);
    let reading = 0;
    const read = async (name: string, memory?: (bytes: number) => Uint8Array) => {
      if (name.endsWith('.running_var')) throw new Error('a cable was pulled');
      reading++;
      const bytes = memory?.(64);
      await sleep(20);
      bytes?.fill(1);
      reading--;
      return weights.read(name);
    };
    using model = new Model(network, { tensors: weights.tensors, read });
    const failure = model.run(Tensor.zeros('f32', [1, 32, 32, 3])).then(
      () => '',
      (error) => error.message,
    );
    expect([await failure, reading]).to.deep.equal(['a cable was pulled', 0]);
  });

  it('may overlap, also of two models, and give what they give alone', async () => {
    const other = createModel('oct-resnet-26', { ...small, seed: 3 }, { threads: 1 });
    const inputs = Array.from({ length: 8 }, (_, i) => {
      const x = Tensor.zeros('f32', [1 + (i % 3), 32, 32, 3]);
      x.data.forEach((_, j) => {
        x.data[j] = Math.sin(j * (i + 1));
      });
      return x;
    });
    const alone = [];
    for (const x of inputs) alone.push([...(await model.run(x)).data], [...(await other.run(x)).data]);
    const together = await Promise.all(inputs.flatMap((x) => [model.run(x), other.run(x)]));
    expect(together.map((y) => [...y.data])).to.deep.equal(alone);
    other.dispose();
  });

  it('end well when the model is disposed of, after which it refuses new ones', async () => {
    const model = createModel('oct-resnet-26', small);
    const x = Tensor.zeros('f32', [8, 32, 32, 3]);
    await model.plan(x.shape);
    const run = model.run(x);
    await Promise.resolve();
    model.dispose();
    expect((await run).shape).to.deep.equal([8, 10]);
    expect(await model.run(x).catch((e) => e.message)).to.equal('model: it was disposed');
  });

  it('give the same bits for any number of threads', async () => {
    const x = Tensor.zeros('f32', [2, 45, 37, 3]);
    x.data.forEach((_, j) => {
      x.data[j] = Math.cos(j);
    });
    const results = [];
    for (const threads of [1, 2, 3, 8]) {
      using model = createModel('oct-resnet-26', { ...small, alpha: 0.25, width: 20 }, { threads });
      results.push([...(await model.run(x)).data]);
    }
    for (const result of results) expect(result).to.deep.equal(results[0]);
  });
});

describe('lifecycle: sub-batches', () => {
  const x = Tensor.zeros('f32', [6, 96, 80, 3]);
  x.data.forEach((_, i) => {
    x.data[i] = Math.sin(i * 0.7) * 2;
  });
  const options = { ...small, width: 16, stem: 'imagenet' } as const;

  it('give what the reference gives, the same bits for any number of threads', async () => {
    using reference = createModel('oct-resnet-26', options, { device: 'reference' });
    const wanted = await reference.run(x);
    const images = new Set<number>();
    let first: Float32Array | undefined;
    for (const threads of [1, 2, 3, 4, 8]) {
      using model = createModel('oct-resnet-26', options, { threads });
      const { segments = [{ steps: 0, images: 6 }] } = stepsFor(model.record(x.shape), {
        traits: targetOf('cpu').traits,
        threads,
      });
      for (const segment of segments) images.add(segment.images);
      const y = await model.run(x);
      first ??= y.data;
      expect(y.data, `${threads} threads`).to.deep.equal(first);
      expect(relativeError(y.data, wanted.data)).to.be.below(1e-4);
    }
    expect([...images].sort()).to.deep.equal([1, 2, 3, 6]);
  });

  it('of bytes too', async () => {
    const network = buildNetwork('oct-resnet-26', options);
    const weights = await quantize(network, initialize(network), [x]);
    using model = new Model(network, weights, { threads: 1 });
    const y = await model.run(x);
    const each = y.data.length / 6;
    for (let i = 0; i < 6; i += oneIn) {
      const size = x.data.length / 6;
      const alone = await model.run({ shape: [1, ...x.shape.slice(1)], data: x.data.slice(i * size, (i + 1) * size) });
      expect(y.data.slice(i * each, (i + 1) * each), `image ${i}`).to.deep.equal(alone.data);
    }
  });
});

describe('lifecycle: model folders', () => {
  const [name, given] = ['oct-resnet-26', { ...small, width: oneIn > 1 ? 32 : 64 }] as const;
  let folder: string;
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'octconv-lifecycle-'));
    const config = { network: name, options: resolveNetworkOptions(name, given), input: defaultInput('cifar') };
    const labels = Array.from({ length: given.classes }, (_, i) => `class ${i}`);
    await writeModelFolder(folder, config, labels, initialize(buildNetwork(name, given)));
  });
  after(() => rm(folder, { recursive: true }));

  /** Files of the folder that this process has open. */
  async function open(): Promise<string[]> {
    const links = (await readdir('/proc/self/fd')).map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => ''));
    return (await Promise.all(links)).filter((file) => file.startsWith(folder));
  }
  async function closed(): Promise<void> {
    for (let tries = 0; tries < 100 && (await open()).length; tries++) await sleep(10);
    expect(await open()).to.deep.equal([]);
  }

  // Winograd's algorithm is chosen by size, and has weights of its own, which are read when they are wanted.
  for (const dtype of ['f32', 'bf16'] as const) {
    it(`run at other sizes than their own, also at once, and are open until they are disposed of, ${dtype}`, async () => {
      using made = createModel(name, given, { dtype });
      const inputs = [
        [1, 32, 32],
        [1, 96, 64],
        [2, 17, 15],
        [3, 8, 8],
      ].map(([n = 1, h = 1, w = 1]) => {
        const x = Tensor.zeros('f32', [n, h, w, 3]);
        x.data.forEach((_, j) => {
          x.data[j] = Math.sin(j);
        });
        return x;
      });
      const wanted = [];
      for (const x of inputs) wanted.push([...(await made.run(x)).data]);

      const model = await loadModel(folder, { dtype });
      expect(await open()).to.have.length(1);
      const together = await Promise.all(inputs.map((x) => model.run(x)));
      expect(together.map((y) => [...y.data])).to.deep.equal(wanted);
      const plans = await Promise.all(inputs.map((x) => model.plan(x.shape)));
      if (dtype === 'f32') expect(new Set(plans.map(({ algorithms }) => algorithms.join())).size).to.be.above(2);
      expect(await open()).to.have.length(1);

      model.dispose();
      expect(await model.run(inputs[0] as Tensor<'f32'>).catch((e) => e.message)).to.equal('model: it was disposed');
      await closed();
    });
  }

  it('are closed again where they cannot be loaded', async () => {
    expect(await loadModel(folder, { dtype: 'i8' }).catch(String)).to.match(/wanted quantized weights/);
    expect(await loadModel(folder, { threads: -1 }).catch(String)).to.match(/threads: -1/);
    await closed();
  });
});

describe('lifecycle: environments', () => {
  it('a process loads no package that reads pictures, zip files or messages before it needs one', async () => {
    const out = await child(`
      import { createRequire } from 'node:module';
      const { sharedObjects } = process.report.getReport();
      const loaded = [...sharedObjects, ...Object.keys(createRequire(import.meta.url).cache)];
      console.log(JSON.stringify(loaded.filter((file) => file.includes('/node_modules/'))));`);
    expect(JSON.parse(out).filter((file: string) => !file.includes('/node-gyp-build/'))).to.deep.equal([]);
    const commands = JSON.stringify(new URL('cli/program.js', dist));
    const cli = await child(`
      await import(${commands});
      console.log(process.report.getReport().sharedObjects.filter((file) => file.includes('sharp')).length);`);
    expect(cli).to.equal('0');
  });

  it('a process exits in order with runs in flight', async () => {
    const out = await child(`
      const model = createModel('oct-resnet-26', ${JSON.stringify({ ...small, width: 16 })}, { threads: 2 });
      const x = Tensor.zeros('f32', [16, 64, 64, 3]);
      await model.plan(x.shape);
      for (let i = 0; i < 4; i++) model.run(x);
      setTimeout(() => { console.log('exit'); process.exit(0); }, 20);`);
    expect(out).to.equal('exit');
  });

  it('a run in flight keeps the process alive, an idle model does not', async () => {
    const out = await child(`
      const model = createModel('oct-resnet-26', ${JSON.stringify(small)});
      model.run(Tensor.zeros('f32', [1, 32, 32, 3])).then((y) => console.log('done', y.shape.join()));`);
    expect(out).to.equal('done 1,10');
  });

  it('memory does not grow over 2,000 runs and 200 load and dispose cycles @slow', async function () {
    this.timeout(240_000);
    const out = await child(
      `
      const options = ${JSON.stringify(small)};
      const x = Tensor.zeros('f32', [1, 32, 32, 3]);
      const resident = async () => {
        for (let i = 0; i < 4; i++) { gc(); await new Promise((resolve) => setTimeout(resolve, 20)); }
        return process.memoryUsage().rss / 1048576;
      };
      const cycle = async () => { const m = createModel('oct-resnet-26', options); await m.run(x); m.dispose(); };
      const model = createModel('oct-resnet-26', options);
      for (let i = 0; i < 200; i++) await model.run(x);
      const before = await resident();
      for (let i = 0; i < 2000; i++) await model.run(x);
      const runs = await resident() - before;
      for (let i = 0; i < 40; i++) await cycle();
      const middle = await resident();
      for (let i = 0; i < 200; i++) await cycle();
      console.log(JSON.stringify({ runs, cycles: await resident() - middle }));`,
      '--expose-gc',
    );
    const { runs, cycles } = JSON.parse(out);
    // One leaked input would be 24 MiB over the runs, one leaked set of weights 190 MiB over the cycles.
    expect(runs).to.be.below(12);
    expect(cycles).to.be.below(25);
  });
});
