// What test/cuda.test.ts and test/cudnn.test.ts look at, with the addon, the CUDA driver and the device that its
// environment names:
// `cuda-child.ts TASK JSON` prints what a task gives for its arguments as one JSON object.
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { relativeError } from '../lib/bench/measure.js';
import {
  compile,
  createModel,
  devices,
  type DType,
  type Feature,
  initialize,
  layers,
  loadModel,
  Model,
  Module,
  Octave,
  OctconvError,
  ops,
  replicate,
  Tensor,
} from '../lib/index.js';
import { native } from '../lib/native.js';
import { readNpy } from '../lib/npy.js';
import type { Plan } from '../lib/plan.js';
import { openWeights } from '../lib/weights/source.js';

const device = process.env.OCTCONV_TEST_DEVICE ?? 'cuda';
const path = (relative: string) => fileURLToPath(new URL(relative, import.meta.url));
const shared = path('../../shared/golden');
const golden = existsSync(shared) ? shared : path('golden');

type Floats = Tensor<'f32', [number, number, number, number]>;

function picture(shape: readonly number[], seed = 1): Floats {
  const x = Tensor.zeros('f32', shape as [number, number, number, number]);
  x.data.forEach((_, i) => {
    x.data[i] = Math.sin(i * 1.7 + seed);
  });
  return x;
}

const messageOf = (error: unknown) => (error instanceof OctconvError ? error.message : `not ours: ${error}`);
const messageOfNative = ({ message }: Error) => message;
const refusal = async (f: () => unknown) => {
  try {
    await f();
    return 'nothing was refused';
  } catch (error) {
    return messageOf(error);
  }
};
const digest = (...arrays: Float32Array[]) => {
  const hash = createHash('sha256');
  for (const x of arrays) hash.update(new Uint8Array(x.buffer, x.byteOffset, x.byteLength));
  return hash.digest('hex');
};

/** Two convolutions with a pooled branch between: few steps, all that a plan has. */
class Small extends Module<Feature, Feature> {
  readonly first;
  readonly last = new layers.OctConv(8, 6, { kernel: 1, alphaIn: 0.5, alphaOut: 0 });
  constructor(kernel = 1) {
    super();
    this.first = new layers.OctConv(3, 8, { kernel, alphaIn: 0, alphaOut: 0.5 });
  }
  forward(x: Feature): Feature {
    return this.last.forward(this.first.forward(new Octave(x)).map((v) => ops.relu(v as Feature))).high as Feature;
  }
}
function small(options: object = {}): Model<Feature, [x: Feature]> {
  const network = new Small();
  return new Model(network as never, initialize(network as never), { device, ...options }) as never;
}
const smallShape = [1, 6, 6, 3];

const tasks = {
  /** Cases of octConv: their errors. */
  async operators() {
    const source = await openWeights(join(golden, 'octconv.safetensors'));
    const read = async (name: string) => {
      const info = source.tensors.get(name);
      return info && new Tensor('f32', info.shape, (await source.read(name)) as Float32Array);
    };
    const results = [];
    for (const c of JSON.parse(readFileSync(join(golden, 'octconv.json'), 'utf8'))) {
      const params: Record<string, unknown> = {};
      for (const each of ['h2h', 'l2h', 'h2l', 'l2l']) params[each] = await read(`${c.case}.conv_${each}.weight`);
      params.biasH = await read(`${c.case}.conv_h2h.bias`);
      params.biasL = await read(`${c.case}.conv_l2l.bias`);
      const x = new Octave((await read(`${c.case}.xH`)) as Floats, (await read(`${c.case}.xL`)) as never);
      const wanted = [await read(`${c.case}.yH`), await read(`${c.case}.yL`)];
      const told = { name: `${c.case}: ${c.in} -> ${c.out}` };
      try {
        const y = await ops.octConv(x, params as never, { stride: c.stride, groups: c.groups, device });
        const outputs = [y.high, y.low] as (Floats | undefined)[];
        const shapes = JSON.stringify(outputs.map((t) => t?.shape)) === JSON.stringify(wanted.map((t) => t?.shape));
        const errors = outputs.flatMap((t, i) => (t && wanted[i] ? relativeError(t.data, wanted[i].data) : []));
        results.push({ ...told, shapes, errors, bits: digest(...outputs.flatMap((t) => t?.data ?? [])) });
      } catch (error) {
        results.push({ ...told, refused: messageOf(error) });
      }
    }
    await source.close();
    return results;
  },

  /** Networks with stored outputs. */
  async networks(dtype: 'f32' | 'f16') {
    const results = [];
    const files = readdirSync(golden).filter((name) => name.endsWith('.pth'));
    for (const file of dtype === 'f32' ? files : files.slice(0, 1)) {
      const stored = (end: string) => readNpy(join(golden, file.replace('.pth', end)));
      const [x, y] = [await stored('.x.npy'), await stored('.y.npy')];
      using model = await loadModel(join(golden, file), { device, dtype });
      const got = await model.run(x);
      const plan = await model.plan(x.shape);
      results.push({ file, depth: depthOf(plan), error: relativeError(got.data, y.data as Float32Array) });
    }
    return results;
  },

  /** The same as `reference`. */
  async compared({
    networks,
    dtype,
  }: {
    networks: { name: string; shape: number[]; options?: object; file?: string }[];
    dtype: 'f32' | 'bf16' | 'f16';
  }) {
    const all = [];
    for (const { name, shape, options, file } of networks) {
      const x = picture(shape);
      const open = async (device: string): Promise<Model> =>
        file ? loadModel(file, { device, dtype }) : createModel(name as 'oct-resnet-26', options, { device, dtype });
      using reference = await open('reference');
      using model = await open(device);
      const wanted = await reference.run(x);
      const [first, ...others] = await Promise.all([model.run(x), model.run(x)]);
      const bits = new Set([first, ...others, await model.run(x)].map(({ data }) => digest(data)));
      const depth = depthOf(await model.plan(x.shape));
      all.push({ depth, error: relativeError(first.data, wanted.data), bits: [...bits] });
    }
    return all;
  },

  /** What a GPU of sm_75 says to f32, to bf16, to ops and to i8. */
  async sm75() {
    const x = picture(smallShape);
    const said = [];
    for (const dtype of ['f32', 'bf16'] as const) said.push(await refusal(() => small({ dtype })));
    said.push(await refusal(() => ops.conv(x, { weight: Tensor.zeros('f32', [1, 3, 1, 1]) } as never, { device })));
    said.push(await refusal(() => ops.relu(x, { device })), await refusal(() => small({ dtype: 'i8' })));
    return said;
  },

  /** What packing the weights of a 1x1 with these fields says, of its source. */
  async packing(sources: object[]) {
    const params = { w: { dtype: 'f32', shape: [1, 1, 1, 1], data: Float32Array.of(1) } } as const;
    const packed = (more: object) => {
      const source = { input: 0, weight: 'w', kernel: [1, 1, 1], padding: [0, 0, 0], ...more };
      const attrs = { branches: [{ terms: [{ sources: [source] }], stores: [{ output: 0 }] }] };
      return native.pack(device, 'octConv', attrs as never, params);
    };
    const said = [];
    for (const more of sources) said.push(await packed(more).then(() => 'nothing was refused', messageOfNative));
    return said;
  },

  /** The largest number of f16, and what is more. */
  async overflow() {
    const weight = new Tensor('f32', [1, 1, 1, 1], Float32Array.of(1));
    const conv = (x: unknown) => ops.conv(x as never, { weight } as never);
    const x = new Tensor('f32', [1, 1, 2, 1], Float32Array.of(65519, 65520));
    const results: Record<string, unknown> = {};
    for (const on of ['reference', device]) {
      using op = await compile((v) => conv(conv(v)), [x.shape], { device: on, dtype: 'f16' } as never);
      results[on] = [...((await op.run(x as never)) as Tensor<'f32'>).data].map(String);
    }
    return results;
  },

  /**
   * Each call of a small network's life, or each second or so, fails in turn: what is said then, what is left, and whether another model still
   * runs.
   */
  async failures({ error, every = 1 }: { error: number; every?: number }) {
    const keeper = small();
    const x = picture(smallShape);
    const wanted = digest((await keeper.run(x)).data);
    await keeper.run(x); // now it has all that it ever will
    const life = async () => {
      const said: string[] = [];
      const saying = (promise: Promise<unknown>) => promise.catch((e) => said.push(messageOf(e)));
      using model = small();
      for (let i = 0; i < 2; i++) await saying(model.run(x)); // the second one with a graph
      await saying(Promise.all([model.run(x), model.run(x)]));
      const onDevice = async () => {
        using d = await x.to(device);
        for (let i = 0; i < 2; i++) {
          using y = await model.run(d);
          if (digest((await y.toHost()).data) !== wanted) throw new Error('other bits on the device');
        }
      };
      await saying(onDevice());
      await saying(
        model.plan(smallShape).then((plan) => {
          const stepMilliseconds = new Float32Array(plan.steps.length);
          return plan.run([x], { stepMilliseconds });
        }),
      );
      return said;
    };
    const { live: before } = await settled();
    const lives = [];
    for (let n = 1, beyond = 0; beyond < 5; n += every) {
      fail(n, error);
      const said = await life();
      for (let i = 0; i < 3; i++) await fence();
      const { failed, errors } = await report();
      const later = await keeper.run(x).then(({ data }) => digest(data) === wanted, messageOf);
      await keeper.run(x); // what it gave back where memory was short is there again
      const { live } = await settled(before);
      lives.push({ n, failed, said, errors, live, later });
      beyond = failed ? 0 : beyond + 1;
    }
    keeper.dispose();
    return { live: before, lives };
  },

  /** A network whose input is u8, and the same without that step: bytes that are sent for a run. */
  async pictures() {
    class Pictures extends Small {
      override forward(x: Feature): Feature {
        const options = { scale: 1 / 255, mean: [0.4, 0.5, 0.6], std: [0.2, 0.3, 0.25] };
        return super.forward(ops.normalize(x as never, options) as never);
      }
    }
    const network = new Pictures(3);
    const make = (device: string) => new Model(network as never, initialize(network as never), { device }) as Model;
    const shape = [2, 9, 11, 3] as const;
    const bytes = new Tensor('u8', shape, new Uint8Array(2 * 9 * 11 * 3).map((_, i) => i * 7) as never);
    const [model, reference, floats] = [make('cuda'), make('reference'), small()];
    const wanted = (await reference.run(bytes as never)).data;
    const first = (await model.run(bytes as never)).data;
    const x = picture(shape);
    await floats.run(x);
    const sending = async (run: () => Promise<unknown>) => {
      const before = (await report()).bytesToDevice;
      await run();
      return (await report()).bytesToDevice - before;
    };
    const bits = [digest(first)];
    const sent = [
      await sending(async () => bits.push(digest((await model.run(bytes as never)).data))),
      await sending(() => floats.run(x)),
    ];
    for (const each of [model, reference, floats]) each.dispose();
    return { error: relativeError(first, wanted), sent, bits };
  },

  /** Of images that are wider and longer than convolutions take. */
  async large() {
    const results = [];
    for (const shape of [
      [1, 1, 65537, 1],
      [1, 65537, 1, 1],
    ]) {
      const x = picture(shape);
      const pooled = (device: string) => ops.maxPool(x, { kernel: 3, stride: 2, padding: 1, device });
      const same = digest((await pooled('cuda')).data) === digest((await pooled('reference')).data);
      const weight = Tensor.zeros('f32', [1, 1, 1, 1]);
      results.push({ same, refused: await refusal(() => ops.conv(x, { weight } as never, { device: 'cuda' })) });
    }
    return results;
  },

  /** The bits of a run, and of three that replay a graph, and what the driver was told to launch in them. */
  async graphs({ cudaGraphs }: { cudaGraphs?: boolean }) {
    const [x, other] = [picture(smallShape), picture(smallShape, 2)];
    using model = small({ cudaGraphs });
    const plan = await model.plan(smallShape);
    const bits: string[] = [];
    const launched: { launches: number; graphLaunches: number }[] = [];
    const counting = async (run: () => Promise<Tensor<'f32'>[]>) => {
      const before = await report();
      const [y] = await run();
      const after = await report();
      bits.push(digest(y?.data as Float32Array));
      launched.push({
        launches: after.launches - before.launches,
        graphLaunches: after.graphLaunches - before.graphLaunches,
      });
    };
    for (const given of [x, x, other, x]) await counting(() => plan.run([given]) as Promise<Tensor<'f32'>[]>);
    const stepMilliseconds = new Float32Array(plan.steps.length);
    await counting(() => plan.run([x], { stepMilliseconds }) as Promise<Tensor<'f32'>[]>);
    const wrong = await refusal(() => small({ cudaGraphs: 'no' }).plan(smallShape));
    return { bits, launched, steps: plan.steps.length, wrong };
  },

  /** A context that is lost is lost; the process is not. */
  async lost({ n, error }: { n: number; error: number }) {
    const x = picture(smallShape);
    using model = small();
    const wanted = digest((await model.run(x)).data);
    fail(n, error);
    const runs = await Promise.all([1, 2, 3].map(() => refusal(() => model.run(x))));
    const later = await refusal(() => model.run(x));
    const cpu = await refusal(() => ops.relu(x, { device: 'cpu' }));
    return { wanted, runs, later, cpu };
  },

  /** Many at once, on one model and on two, with some that are aborted, and disposal in between. */
  async flights() {
    const [x, other] = [picture(smallShape, 1), picture([3, 9, 7, 3], 2)];
    const [a, b] = [small(), small()];
    const alone = [digest((await a.run(x)).data), digest((await b.run(other)).data)];
    const enough = new Error('enough');
    const controller = new AbortController();
    let turns = 0;
    let ended = false;
    const count = (async () => {
      for (; !ended; turns++) await turn();
    })();
    const runs = Array.from({ length: 64 }, async (_, i) => {
      const y = await (i % 2 ? b.run(other) : a.run(x));
      return digest(y.data) === alone[i % 2];
    });
    const same = Array.from({ length: 64 }, async () => digest((await a.run(x)).data) === alone[0]);
    const aborted = Array.from({ length: 8 }, () => a.run(x, { signal: controller.signal }).catch((e) => e === enough));
    await turn();
    controller.abort(enough);
    const late = a.run(x, { signal: controller.signal }).catch((e) => e === enough);
    const last = a.run(x).then(({ data }) => digest(data) === alone[0]);
    await turn();
    a.dispose();
    b.dispose();
    const well = await Promise.all([...runs, ...same, ...aborted, late, last]);
    ended = true;
    await count;
    const refused = await refusal(() => a.run(x));
    return { well: well.map(Boolean), turns, refused };
  },

  /** What plans keep. */
  async memory() {
    const shape = [1, 64, 64, 3];
    const x = picture(shape);
    using model = small({ idleBytes: 0 });
    const plan = await model.plan(shape);
    await Promise.all(Array.from({ length: 16 }, () => model.run(x)));
    await model.run(x);
    const idle = [plan.idleBytes];
    await model.run(picture(smallShape));
    await sleep(50);
    idle.push(plan.idleBytes);
    const { allocations } = (await settled()).live;
    using limited = small({ maxBytes: 1000 });
    return { run: plan.memory.run, idle, allocations, limited: await refusal(() => limited.run(x)) };
  },

  /** Which of two plans keeps memory after a run of each. */
  async idle() {
    using model = small();
    const plans = [];
    for (const shape of [
      [1, 64, 64, 3],
      [1, 63, 63, 3],
    ]) {
      await model.run(picture(shape));
      plans.push(await model.plan(shape));
    }
    return plans.map((plan) => plan.idleBytes > 0);
  },

  /** On a GPU with little memory: what is too large, and what follows it. */
  async outOfMemory() {
    const [x, large] = [picture([1, 64, 64, 3]), picture([1, 256, 256, 3])];
    using model = small({ idleBytes: 0 });
    const first = digest((await model.run(x)).data);
    const refused = await Promise.all([refusal(() => model.run(large)), refusal(() => model.run(large))]);
    // Not two of them fit.
    const after = await Promise.all(Array.from({ length: 6 }, () => model.run(x)));
    // What one plan keeps is given back when another one needs it.
    using other = small();
    // As do values that stay on the GPU.
    const d = await x.to('cuda');
    for (let i = 0; i < 4; i++) {
      using y = await model.run(d);
      after.push(await y.toHost());
    }
    d.dispose();
    const others = [await model.run(x), await other.run(x), await model.run(x)].every(
      ({ data }) => digest(data) === first,
    );
    return { refused, same: after.every(({ data }) => digest(data) === first), others };
  },

  /** Tensors on GPUs, of which there are two. */
  async tensors() {
    const x = picture(smallShape);
    const y = await small().run(x);
    const moves = [];
    for (const [dtype, data] of Object.entries({
      f32: Float32Array.of(1, Number.NaN, -0, 2),
      f16: Uint16Array.of(1, 2, 3, 65535),
      bf16: Uint16Array.of(1, 2, 3, 65535),
      i8: Int8Array.of(1, 2, 3, -128),
      u8: Uint8Array.of(1, 2, 3, 255),
      i32: Int32Array.of(1, 2, 3, -(2 ** 31)),
    })) {
      const host = new Tensor<DType>(dtype as DType, [2, 2], data as never);
      const first = await host.to('cuda:0');
      const second = await first.to('cuda:1');
      const back = await second.to('cpu');
      const same = Buffer.from(back.data.buffer).equals(Buffer.from(data.buffer));
      const stays = (await first.to('cuda')) === first && (await host.to('reference')) === host;
      moves.push({ same, stays, devices: [host, first, second, back].map(({ device }) => device) });
    }
    using model = small();
    using d = await x.to('cuda');
    using other = await x.to('cuda:1');
    // Before its plan is there, and the tensor is disposed of in the call.
    const early = await x.to('cuda');
    const runs = [model.run(early)];
    early.dispose();
    await runs[0];
    const late = await x.to('cuda');
    runs.push(model.run(late));
    late.dispose();
    runs.push(model.run(d), model.run(d));
    const outputs = await Promise.all(runs);
    const same = await Promise.all(outputs.map(async (o) => digest((await o.toHost()).data) === digest(y.data)));
    for (const o of outputs) o.dispose();
    const before = await report();
    const again = await model.run(d);
    const sum = await ops.add(await ops.relu(again), 1);
    const after = await report();
    const copied = [after.bytesToDevice - before.bytesToDevice, after.bytesToHost - before.bytesToHost];
    const wanted = y.data.map((value) => Math.max(0, value) + 1);
    const computed = digest((await sum.toHost()).data) === digest(wanted) && sum.device;
    // An output of one run is an input of the next one.
    const chain = async () => {
      let z: Tensor<'f32', readonly number[]> = d;
      for (let i = 0; i < 5; i++) {
        const next = await ops.relu(z as Floats);
        if (z !== d) z.dispose();
        z = next;
      }
      using last = z;
      return digest((await last.toHost()).data) === digest(x.data.map((value) => Math.max(0, value)));
    };
    using d1 = await Tensor.zeros('f32', [1, 1]).to('cuda');
    const gone = await x.to('cuda');
    gone.dispose();
    gone.dispose();
    const controller = new AbortController();
    const aborted = model.run(d, { signal: controller.signal }).catch((error: Error) => error.message);
    controller.abort(new Error('enough'));
    const said = [
      await refusal(() => d.data),
      await refusal(() => gone.toHost()),
      await refusal(() => model.run(gone)),
      await refusal(() => model.run(other)),
      await refusal(() => ops.add(d, other)),
      await refusal(() => ops.add(x, d)),
      await refusal(() => ops.relu(d, { device: 'cpu' })),
      await refusal(() => small({ device: 'cpu' }).run(d)),
      await refusal(() => ops.linear(d1 as never, { weight: d1 as never })),
      await refusal(() => d.to('cuda:2')),
      await aborted,
    ];
    return { moves, same, copied, computed, chain: await chain(), said };
  },

  /** What native code says of buffers that do not fit, whatever stands above it. */
  async buffers() {
    const value = (place: 'input' | 'output') => ({ dtype: 'f32', shape: [1, 1, 1, 1, 4], place, at: 0 }) as const;
    const relu = { op: 'relu', name: 'r', attrs: {}, inputs: [0], outputs: [1], packed: [] };
    const spec = { threads: 1, arenaBytes: 0, values: [value('input'), value('output')], steps: [relu] };
    const plans = await Promise.all(['cuda', 'cuda:1', 'cpu'].map((name) => native.compile(name, spec)));
    const buffer = await native.toDevice('cuda', Float32Array.of(-1, 2, -3, 4));
    const short = await native.toDevice('cuda', Float32Array.of(1));
    const say = async (f: () => unknown) => {
      try {
        await f();
        return 'nothing was refused';
      } catch (error) {
        return (error as Error).message;
      }
    };
    const [first, second, cpu] = plans.map(
      ({ plan }) =>
        (input: typeof buffer) =>
          native.run(plan, [input], 0).done,
    );
    const { outputs } = (await first?.(buffer)) ?? {};
    const y = [...new Float32Array(await native.toHost(outputs?.[0] as never))];
    const said = [
      await say(() => first?.(short)),
      await say(() => second?.(buffer)),
      await say(() => cpu?.(buffer)),
      await say(() => native.run(plans[0]?.plan as never, [buffer, buffer], 0).done),
      await say(() => native.toHost(plans[0]?.plan as never)),
      await say(() => native.toDevice('cpu', Float32Array.of(1))),
    ];
    native.release(buffer);
    native.release(buffer);
    said.push(await say(() => native.toHost(buffer)));
    return { y, said };
  },

  /** Tensors of 1 MiB that nobody disposes of, more than the GPU has memory for, and then a collection. */
  async garbage(count: number) {
    const x = Tensor.zeros('f32', [1, 64, 64, 64]);
    (await x.to('cuda')).dispose();
    const { live: before } = await settled();
    for (let i = 0; i < count; i++) await x.to('cuda');
    await turn(); // nothing holds the last one any longer
    globalThis.gc?.();
    return { before, after: (await settled(before)).live };
  },

  /** How much `external` of process.memoryUsage() grows with 8 MiB on the GPU. */
  async external() {
    const x = Tensor.zeros('f32', [1, 64, 64, 64]);
    (await x.to(device)).dispose();
    const before = process.memoryUsage().external;
    const all = await Promise.all(Array.from({ length: 8 }, () => x.to(device)));
    const { external } = process.memoryUsage();
    for (const each of all) each.dispose();
    return external - before;
  },

  /** Replicas on all GPUs, of which there are two. */
  async replicas() {
    const x = picture(smallShape);
    const ran: string[] = [];
    using replicas = await replicate('cuda:*', (device) => {
      const model = small({ device });
      const run = model.run.bind(model);
      return Object.assign(model, {
        run: (...args: Parameters<typeof run>) => {
          ran.push(device);
          return run(...args);
        },
      });
    });
    await replicas.warmUp([smallShape]);
    const outputs = await Promise.all(Array.from({ length: 6 }, () => replicas.run(x)));
    using d = await x.to('cuda:1');
    const kept = await Promise.all([replicas.run(d), replicas.run(d)]);
    const bits = [...outputs, ...(await Promise.all(kept.map((y) => y.toHost())))].map(({ data }) => digest(data));
    return { ran, kept: kept.map(({ device }) => device), bits: [...new Set(bits)] };
  },

  async twoGpus() {
    const x = picture(smallShape);
    using a = small();
    using b = small({ device: 'cuda:1' });
    const results = await Promise.all([a.run(x), b.run(x), a.run(x), b.run(x)]);
    return { bits: [...new Set(results.map(({ data }) => digest(data)))], devices: [a.device, b.device] };
  },

  /** Ends with runs in flight: of itself, or by process.exit. */
  async ends({ exits }: { exits: boolean }) {
    const x = picture([2, 32, 32, 3]);
    const model = small();
    await model.plan(x.shape);
    for (let i = 0; i < 16; i++) void model.run(x);
    await turn();
    if (exits) setImmediate(() => process.exit(0));
    return 'in flight';
  },
};

/** From now on the n-th call fails. */
let settings = 0;
function fail(n: number, error = 999): void {
  process.env.OCTCONV_STAND_IN_FAIL = `${n}:${error}:${settings++}`;
}

/** Jobs of the library that were there before have ended. */
const fence = () => ops.relu(Tensor.zeros('f32', [1, 1, 1, 1]), { device: 'reference' });

interface Report {
  readonly calls: number;
  readonly failed: string;
  readonly launches: number;
  readonly graphLaunches: number;
  readonly bytesToDevice: number;
  readonly bytesToHost: number;
  readonly slowOnMain: readonly string[];
  readonly errors: string;
  readonly live: Readonly<Record<string, number>>;
}

/** What the stand-in reports, of calls since `fail`. */
async function report(): Promise<Report> {
  await fence();
  fail(0);
  devices(); // calls the driver, which writes the report
  return JSON.parse(readFileSync(process.env.OCTCONV_STAND_IN_REPORT ?? '', 'utf8'));
}

/**
 * What the stand-in reports of the calls since `fail`, when what is there is `wanted`, or does not change for five
 * seconds.
 */
async function settled(wanted?: object): Promise<Report> {
  const first = await report();
  let { live } = first;
  const same = (other?: object) => JSON.stringify(live) === JSON.stringify(other);
  for (let still = 0; !same(wanted) && still < 50; ) {
    const before = live;
    await sleep(wanted ? 100 : 2);
    ({ live } = await report());
    still = same(before) ? still + 1 : 0;
  }
  return { ...first, live };
}

/** Convolutions one after the other. */
const depthOf = (plan: Plan) => plan.steps.filter(({ op }) => op === 'octConv').length;

const [task = '', argument = 'null'] = process.argv.slice(2);
const result = await tasks[task as keyof typeof tasks](JSON.parse(argument) as never);
// The end of an environment gives back what it holds on its own thread.
if (task !== 'ends') {
  const { slowOnMain } = await report();
  if (slowOnMain.length) throw new Error(`the main thread has called ${slowOnMain}`);
}
console.log(JSON.stringify(result));
