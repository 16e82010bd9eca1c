// What test/fuzz.test.ts watches: `fuzz-child.ts COUNT SEED [FIRST]` makes COUNT calls of the addon, most of them with
// a mutation or more, from call FIRST on. Each succeeds, or throws or rejects an Error of one line. Call i is made from
// SEED and i alone, so that `fuzz-child.ts 1 SEED i` makes it again. The number of the call is kept in the file
// OCTCONV_FUZZ_AT, for a process that does not live. Prints what happened.
import { copyFileSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { native, nativeFile } from '../lib/native.js';

type Fields = Record<string, unknown>;
const addon = native as unknown as Record<keyof typeof native, (...args: unknown[]) => unknown>;

const [count = 1, seed = 1, first = 0] = process.argv.slice(2).map(Number);
let state = 0;
const random = () => {
  state = (state + 0x6d2b79f5) | 0;
  let t = Math.imul(state ^ (state >>> 15), 1 | state);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
};
const below = (n: number) => Math.floor(random() * n);
const pick = <T>(list: readonly T[]): T => list[below(list.length)] as T;

// --- Calls that are right ------------------------------------------------------------------------------------------

const floats = (n: number) => Float32Array.from({ length: n }, (_, i) => ((i * 7) % 13) / 13 - 0.4);
const param = (...shape: number[]) => ({ dtype: 'f32', shape, data: floats(shape.reduce((a, b) => a * b, 1)) });
const norm = (name: string, channels: number) =>
  Object.fromEntries(
    ['weight', 'bias', 'running_mean', 'running_var'].map((role) => [
      `${name}.${role}`,
      { ...param(channels), data: floats(channels).fill(0.5) },
    ]),
  );

const source = (more: Fields = {}) => ({
  input: 0,
  weight: 'w',
  kernel: [1, 3, 3],
  stride: [1, 1, 1],
  padding: [0, 1, 1],
  dilation: [1, 1, 1],
  groups: 1,
  pool: 0,
  upsample: false,
  ...more,
});
const convolution = (sources: Fields[], more: Fields = {}, term: Fields = {}) => ({
  branches: [
    { terms: [{ sources, ...term }], stores: [{ output: 0, pool: 0, activation: { least: 0, most: 6 } }], ...more },
  ],
});

interface Layer {
  readonly attrs: Fields;
  readonly params: Fields;
  readonly op?: string;
}
const layers: Record<string, () => Layer> = {
  plain: () => ({
    attrs: convolution([source()], { residual: 0 }, { bias: 'b', batchNorm: 'n', eps: 1e-5 }),
    params: { w: param(4, 4, 3, 3), b: param(4), ...norm('n', 4) },
  }),
  octave: () => ({
    attrs: convolution([source(), source({ input: 1, weight: 'l', upsample: true })], { hints: { winograd: 2 } }),
    params: { w: param(4, 4, 3, 3), l: param(4, 3, 3, 3) },
  }),
  overTime: () => ({
    attrs: convolution([source({ kernel: [3, 1, 1], padding: [1, 0, 0] })], { hints: { winograd: 4, overTime: true } }),
    params: { w: param(4, 4, 3, 1, 1) },
  }),
  pooled: () => ({
    attrs: convolution([source({ pool: 1, prologue: { batchNorm: 'n', least: 0 } })], {
      compute: 'bf16',
      stores: [
        { output: 0, pool: 0 },
        { output: 1, pool: 1, activation: { batchNorm: 's', least: 0 } },
      ],
    }),
    params: { w: param(4, 4, 3, 3), ...norm('n', 4), ...norm('s', 4) },
  }),
  depthwise: () => ({ attrs: convolution([source({ groups: 4 })]), params: { w: param(4, 1, 3, 3) } }),
  grouped: () => ({
    attrs: convolution([source({ groups: 2, stride: [1, 2, 2], dilation: [1, 2, 2] })]),
    params: { w: param(4, 2, 3, 3) },
  }),
  gated: () => ({
    attrs: {
      branches: [
        {
          terms: [],
          gated: { input: 0, gate: 1 },
          residual: 0,
          stores: [
            { output: 0, activation: { batchNorm: 's', function: 'silu' } },
            { output: 1, mean: true },
          ],
        },
      ],
    },
    params: norm('s', 4),
  }),
  integers: () => ({
    attrs: convolution([source({ scale: 0.1, zero: 3 })], { compute: 'i8' }),
    params: {
      w: { dtype: 'i8', shape: [4, 4, 3, 3], data: new Int8Array(144).fill(-128) },
      'w.scale': { ...param(4), data: floats(4).fill(0.1) },
    },
  }),
  batchNorm: () => ({
    op: 'batchNorm',
    attrs: { eps: 1e-5 },
    params: Object.fromEntries(
      ['weight', 'bias', 'running_mean', 'running_var'].map((role) => [
        role,
        { ...param(4), data: floats(4).fill(0.5) },
      ]),
    ),
  }),
};
const layerNames = Object.keys(layers);
const devices = ['cpu', 'reference'];

/** Handles that live through all calls, by device and layer. */
const packed = new Map<string, unknown>();
const held = (device: string, layer: string) => packed.get(`${device}/${layer}`);

const x = [1, 1, 6, 5, 4];
type Step = { op: string; from: number[]; to: number[]; attrs?: Fields; layer?: string };
const window = { kernel: [1, 3, 3], stride: [1, 2, 2], padding: [0, 1, 1], ceilMode: false, countIncludePad: true };

/** Plans: shapes of the values, which are all places of the arena but the first and last; and steps. */
const plans: Record<string, { values: (number[] | [number[], string])[]; steps: Step[] }> = {
  relu: { values: [x, x], steps: [{ op: 'relu', from: [0], to: [1] }] },
  plain: {
    values: [x, x, x, x],
    steps: [
      { op: 'octConv', layer: 'plain', from: [0], to: [1] },
      { op: 'octConv', layer: 'integers', from: [1], to: [2] },
      { op: 'add', from: [1, 2], to: [3] },
    ],
  },
  octave: {
    values: [x, [1, 1, 3, 3, 3], x],
    steps: [
      { op: 'pad', from: [0], to: [0], attrs: { before: [0, 0, 0], after: [0, 0, 0], value: 1 } },
      { op: 'octConv', layer: 'octave', from: [0, 1], to: [2] },
    ],
  },
  pooled: {
    values: [x, [1, 1, 2, 2, 4], [1, 1, 3, 3, 4]],
    steps: [{ op: 'octConv', layer: 'pooled', from: [0], to: [2, 1] }],
  },
  gated: {
    values: [x, [1, 1, 1, 1, 4], x, [1, 1, 1, 1, 4]],
    steps: [{ op: 'octConv', layer: 'gated', from: [0, 1], to: [2, 3] }],
  },
  groups: {
    values: [x, x, [1, 1, 2, 2, 4]],
    steps: [
      { op: 'octConv', layer: 'depthwise', from: [0], to: [1] },
      { op: 'octConv', layer: 'grouped', from: [1], to: [2] },
    ],
  },
  small: {
    values: [
      x,
      [1, 1, 3, 3, 4],
      [1, 1, 2, 2, 4],
      [1, 1, 3, 3, 4],
      [1, 1, 6, 5, 4],
      [1, 1, 6, 5, 8],
      [1, 1, 1, 1, 8],
      [1, 1, 1, 1, 8],
    ],
    steps: [
      { op: 'maxPool', from: [0], to: [1, 2], attrs: window },
      { op: 'avgPool', from: [0], to: [3], attrs: window },
      { op: 'mul', from: [1, 3], to: [3] },
      { op: 'upsampleNearest', from: [3], to: [4], attrs: { scale: [1, 2, 2] } },
      { op: 'batchNorm', layer: 'batchNorm', from: [4], to: [4] },
      { op: 'concat', from: [0, 4], to: [5] },
      { op: 'globalAvgPool', from: [5], to: [6] },
      { op: 'softmax', from: [6], to: [7] },
    ],
  },
  picture: {
    values: [
      [[1, 1, 9, 7, 3], 'u8'],
      [[1, 1, 4, 5, 3], 'u8'],
      [1, 1, 4, 5, 3],
    ],
    steps: [
      {
        op: 'resize',
        from: [0],
        to: [1],
        attrs: { height: 6, width: 6, crop: { top: 1, left: 0 }, interpolation: 'bicubic' },
      },
      { op: 'normalize', from: [1], to: [2], attrs: { scale: 1 / 255, mean: [0.4, 0.4, 0.4], std: [0.2, 0.2, 0.2] } },
    ],
  },
};

function specOf(device: string, name: string) {
  const plan = plans[name] as (typeof plans)[string];
  const last = plan.values.length - 1;
  const values: Fields[] = plan.values.map((value, i) => {
    const [shape, dtype] = Array.isArray(value[0]) ? (value as [number[], string]) : [value as number[], 'f32'];
    return {
      dtype,
      shape: [...shape],
      place: i === 0 ? 'input' : i === last ? 'output' : 'arena',
      at: i === 0 || i === last ? 0 : 1024 * i,
    };
  });
  const steps = plan.steps.map(({ op, from, to, attrs, layer }, i) => ({
    op,
    name: `step${i}`,
    attrs: structuredClone(attrs ?? (layer ? (layers[layer] as () => Layer)().attrs : {})),
    inputs: [...from],
    outputs: [...to],
    packed: layer ? [held(device, layer)] : [],
  }));
  return {
    threads: 2,
    arenaBytes: 1024 * values.length,
    values,
    steps,
    segments: [{ steps: steps.length, rounds: 1 }] as Fields[],
    observed: [last],
  };
}

/** Four images, one at a time. */
function inSegments() {
  const all = (place: string, rounds: number) => ({ dtype: 'f32', shape: [...x], place, at: 0, rounds });
  const relu = { op: 'relu', name: 'a', attrs: {}, inputs: [0], outputs: [1], packed: [] };
  return {
    threads: 1,
    arenaBytes: 0,
    values: [all('input', 4), all('output', 4)],
    steps: [relu],
    segments: [{ steps: 1, rounds: 4 }],
    observed: [1],
  };
}

const bytesPer: Record<string, number> = { f32: 4, i32: 4, bf16: 2, f16: 2 };
function inputsFor(spec: { values: Fields[] }): unknown[] {
  const inputs: unknown[] = [];
  for (const { place, at, dtype, shape, rounds = 1 } of spec.values) {
    if (place !== 'input' || typeof at !== 'number' || at > 9) continue;
    const bytes = (shape as number[]).reduce((a, b) => a * b, Number(rounds)) * (bytesPer[String(dtype)] ?? 1);
    inputs[at] = new Uint8Array(bytes <= 2 ** 20 ? bytes : 0).fill(60);
  }
  return inputs;
}

// --- Mutations -----------------------------------------------------------------------------------------------------

type Spot = [holder: Fields, key: string];

function spotsOf(tree: unknown, into: Spot[] = []): Spot[] {
  if (typeof tree !== 'object' || tree === null || ArrayBuffer.isView(tree)) return into;
  if (!Array.isArray(tree) && Object.getPrototypeOf(tree) !== Object.prototype) return into;
  for (const key of Object.keys(tree)) {
    into.push([tree as Fields, key]);
    spotsOf((tree as Fields)[key], into);
  }
  return into;
}

const detach = (array: ArrayBufferView): void => {
  if (array.buffer instanceof ArrayBuffer && array.buffer.byteLength)
    structuredClone(array.buffer, { transfer: [array.buffer] });
};
const resizable = (bytes: number, then: number): Uint8Array => {
  const Buffer = ArrayBuffer as unknown as new (
    bytes: number,
    options: object,
  ) => ArrayBuffer & { resize(bytes: number): void };
  const buffer = new Buffer(bytes, { maxByteLength: 2 * bytes + 1024 });
  const view = new Uint8Array(buffer, 0, bytes);
  buffer.resize(then);
  return view;
};
const numbers = [
  0,
  -0,
  -1,
  1,
  2,
  3,
  0.5,
  255,
  256,
  2 ** 20,
  2 ** 31,
  2 ** 32,
  2 ** 40,
  2 ** 53,
  2 ** 62,
  -(2 ** 53),
  1e300,
  1e-300,
  Number.NaN,
  Infinity,
  -Infinity,
];
const strangers: (() => unknown)[] = [
  () => undefined,
  () => null,
  () => '',
  () => 'a\nb\tc\u001b[1m',
  () => 'long '.repeat(10_000),
  () =>
    pick([
      'f32',
      'f16',
      'bf16',
      'i8',
      'u8',
      'i32',
      'input',
      'output',
      'arena',
      'relu',
      'octConv',
      'concat',
      'cpu:7',
      'reference',
      'w',
      'n',
    ]),
  () => random() < 0.5,
  () => ({}),
  () => [],
  () => new Array(5),
  () => [1, 1, 1],
  () => Symbol('s'),
  () => 10n,
  () => () => 1,
  () =>
    new Proxy(
      {},
      {
        get: () => {
          throw new Error('proxy');
        },
        ownKeys: () => {
          throw new Error('proxy');
        },
      },
    ),
  () => new DataView(new ArrayBuffer(8)),
  () => new Float32Array(0),
  () => new Float64Array(9),
  () => new BigInt64Array(2),
  () => new Uint8Array(new SharedArrayBuffer(480)),
  () => resizable(480, 480),
  () => resizable(480, 100),
  () => pick([...packed.values()]),
  () => pick(handles),
];

function bend(args: unknown[]): void {
  const spots = spotsOf(args);
  const [holder, key] = pick(spots);
  const old = holder[key];
  const views = () =>
    spots.map(([h, k]) => Object.getOwnPropertyDescriptor(h, k)?.value).filter((value) => ArrayBuffer.isView(value));
  const kind = below(12);
  if (kind < 3 && typeof old === 'number')
    holder[key] = pick([old + 1, old - 1, old * 2, -old, old + 0.5, pick(numbers)]);
  else if (kind < 4) holder[key] = pick(numbers);
  else if (kind < 6) holder[key] = pick(strangers)();
  else if (kind === 6) Array.isArray(holder) ? holder.splice(Number(key), 1) : delete holder[key];
  else if (kind === 7) {
    const [other, place] = pick(spots);
    holder[key] = other[place] === holder ? 1 : other[place];
  } else if (kind === 8 && Array.isArray(holder))
    pick([() => holder.reverse(), () => holder.push(old), () => holder.unshift(pick(holder))])();
  else if (kind === 9) for (const view of views()) detach(view);
  else if (ArrayBuffer.isView(old) && kind === 10)
    holder[key] = pick([
      (old as Uint8Array).slice(1),
      resizable(old.byteLength, old.byteLength - 1),
      resizable(old.byteLength, old.byteLength),
    ]);
  else if (!Array.isArray(holder) || holder !== args) {
    let reads = 0;
    const other = pick(strangers)();
    const get = pick([
      () => {
        throw new Error('getter');
      },
      () => {
        for (const view of views()) detach(view);
        return old;
      },
      () => (reads++ === 0 ? old : other),
    ]);
    Object.defineProperty(holder, key, { get, enumerable: true, configurable: true });
  }
}

// --- Calls ---------------------------------------------------------------------------------------------------------

const folder = mkdtempSync(join(tmpdir(), 'octconv-'));
const copy = join(folder, 'copy.node');
copyFileSync(nativeFile, copy);
const foreign = createRequire(import.meta.url)(copy) as typeof native;

/** What is no live handle of this addon, and plans that are. */
const handles: unknown[] = [];
const live: { plan: unknown; inputs: () => unknown[] }[] = [];

async function prepare(): Promise<void> {
  for (const device of devices)
    for (const name of layerNames) {
      const { op = 'octConv', attrs, params } = (layers[name] as () => Layer)();
      packed.set(`${device}/${name}`, await addon.pack(device, op, attrs, params));
    }
  for (const device of devices)
    for (const spec of [...Object.keys(plans).map((name) => specOf(device, name)), inSegments()]) {
      const { plan } = (await addon.compile(device, spec)) as { plan: unknown };
      live.push({ plan, inputs: () => inputsFor(spec as { values: Fields[] }) });
    }
  const { attrs, params } = (layers.plain as () => Layer)();
  handles.push(await foreign.pack('cpu', 'octConv', attrs as never, params as never));
  handles.push((await foreign.compile('cpu', specOf('cpu', 'relu') as never)).plan);
  const released = (await native.compile('cpu', specOf('cpu', 'relu') as never)).plan;
  native.release(released);
  handles.push(released, ...live.map(({ plan }) => plan));
}

async function settle(run: unknown): Promise<void> {
  const { done, cancel } = run as ReturnType<typeof native.run>;
  const timer = setTimeout(cancel, 20);
  try {
    await done;
  } finally {
    clearTimeout(timer);
  }
}

const kinds: Record<string, (bent: (args: unknown[]) => unknown[]) => Promise<void>> = {
  async format(bent) {
    addon.format(...bent([pick(devices), 'octConv', (layers[pick(layerNames.slice(0, -1))] as () => Layer)().attrs]));
  },
  async pack(bent) {
    const { op = 'octConv', attrs, params } = (layers[pick(layerNames)] as () => Layer)();
    const handle = await addon.pack(...bent([pick(devices), op, attrs, params]));
    addon.tell(...bent([[handle]]));
    addon.release(handle);
  },
  async compile(bent) {
    const device = pick(devices);
    const spec = below(8) ? specOf(device, pick(Object.keys(plans))) : inSegments();
    const { plan, runBytes } = (await addon.compile(...bent([device, spec]))) as { plan: unknown; runBytes: number };
    try {
      if (!(runBytes >= 0 && runBytes <= 2 ** 41)) throw new Error(`runBytes ${runBytes}\nout of range`);
      const values = spec.values as Fields[];
      const large = values.some(({ shape }) => !Array.isArray(shape) || shape.reduce((a, b) => a * b, 1) > 2 ** 16);
      // What would take much memory or many threads is compiled only.
      if (runBytes < 2 ** 24 && !large && spec.threads <= 8)
        await settle(addon.run(plan, inputsFor(spec as { values: Fields[] }), 1));
    } finally {
      addon.release(plan);
    }
  },
  async part(bent) {
    const device = pick(devices);
    const spec = specOf(device, pick(Object.keys(plans)));
    const first = addon.part({ ...spec, steps: [] });
    const both = addon.part(...bent([{ ...spec, values: [] }, first]));
    addon.release(((await addon.compile(device, both)) as { plan: unknown }).plan);
  },
  async run(bent) {
    const { plan, inputs } = pick(live);
    await settle(addon.run(...bent([plan, inputs(), random() < 0.5 ? 1 : 0])));
  },
  async release(bent) {
    const { plan } = (await addon.compile('cpu', inSegments())) as { plan: unknown };
    const args = bent([plan]);
    if (![...packed.values(), ...live.map((each) => each.plan)].includes(args[0])) addon.release(...args);
    addon.release(plan);
  },
};
const names = ['format', 'pack', 'pack', 'compile', 'compile', 'compile', 'compile', 'part', 'run', 'release'];

await prepare();
const at = process.env.OCTCONV_FUZZ_AT ? openSync(process.env.OCTCONV_FUZZ_AT, 'w') : undefined;
const told = { valid: 0, passed: 0, refused: 0, wrong: [] as string[] };
for (let i = first; i < first + count; i++) {
  if (at !== undefined) writeSync(at, `${i}`.padEnd(12), 0);
  state = Math.imul(seed, 0x9e3779b1) ^ i;
  const name = pick(names);
  const mutations = below(5);
  try {
    await kinds[name]?.((args) => {
      for (let m = 0; m < mutations; m++) bend(args);
      return args;
    });
    told[mutations ? 'passed' : 'valid']++;
  } catch (error) {
    const message = error instanceof Error ? error.message : `no Error: ${String(error)}\n`;
    if (!mutations || /[\n\r]/.test(message) || message.length > 1100 || message === '')
      told.wrong.push(`call ${i}, ${name}: ${message}`);
    told.refused++;
  }
  if (told.wrong.length > 9) break;
}
rmSync(folder, { recursive: true });
console.log(JSON.stringify(told));
