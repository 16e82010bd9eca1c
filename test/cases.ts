/**
 * The one table of op cases, for tests and benches: sizes around the tiles and vector widths (1, N-1, N, N+1, 3N+2 for
 * 4, 8 and 16 lanes), odd channels, odd sizes. A case is an op, what it takes, and how it is recorded by lib/ops.ts.
 */
import { Graph, type Value } from '../lib/graph/graph.js';
import { Octave } from '../lib/octave.js';
import * as ops from '../lib/ops.js';
import { Tensor } from '../lib/tensor.js';

export interface Case {
  readonly op: keyof typeof ops;
  readonly title: string;
  readonly inputs: readonly (readonly number[])[];
  readonly dtype?: 'f32' | 'u8';
  /** Products or sums that one output element takes at most; the tolerance grows with it. */
  readonly terms: number;
  // biome-ignore lint/suspicious/noExplicitAny: the rows are data, lib/ops.ts checks them
  readonly record: (xs: any[]) => unknown;
}

/** Deterministic numbers in about -1 .. 1, without zeros. */
export function numbers(length: number, seed: number): Float32Array<ArrayBuffer> {
  const data = new Float32Array(length);
  let state = (seed * 2654435761 + 12345) >>> 0;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    data[i] = state / 2 ** 31 - 1 + 1e-6;
  }
  return data;
}

const named = { ...ops };
let seeds = 0;
const weight = (...shape: number[]) =>
  new Tensor(
    'f32',
    shape,
    numbers(
      shape.reduce((a, b) => a * b, 1),
      ++seeds,
    ),
  ) as never;
/** Variances must be positive. */
const positive = (n: number) =>
  new Tensor(
    'f32',
    [n],
    numbers(n, ++seeds).map((x) => 1.5 + x),
  ) as never;

const small = [1, 2, 5, 6, 3] as const; // a video
const widths = [1, 3, 4, 5, 7, 8, 9, 14, 15, 16, 17, 26, 50];
const large = [2, 40, 51, 33] as const; // several tasks of the elementwise ops

const unary = (
  op: Case['op'],
  call: (x: Value<'f32', readonly [number, number]>) => unknown,
  tasks: readonly number[] = large,
): Case[] =>
  [
    ...widths.flatMap((c) => [
      [2, 3, 5, c],
      [3, c],
    ]),
    small,
    tasks,
  ].map((x) => ({
    op,
    title: x.join('x'),
    inputs: [x],
    terms: x.at(-1) ?? 1,
    record: ([v]) => call(v),
  }));

type Binary = 'add' | 'sub' | 'mul' | 'div';
const binary = (op: Binary, x: readonly number[], y: readonly number[] | number = x): Case => ({
  op,
  title: `${x.join('x')} by ${typeof y === 'number' ? y : y.join('x')}`,
  inputs: typeof y === 'number' ? [x] : [x, y],
  terms: 2,
  record: ([a, b]) => named[op](a, typeof y === 'number' ? y : b),
});

const binaries = (op: Binary): Case[] => [
  ...widths.flatMap((c) => [
    binary(op, [2, 3, 5, c]),
    binary(op, [2, 3, 5, c], [2, 1, 1, c]),
    binary(op, [2, 3, 5, c], [2, c]),
    binary(op, [2, 3, 5, c], [2, 3, 5, 1]),
    binary(op, [2, 3, 5, c], [1, 1, 1, c]),
    binary(op, [3, c]),
  ]),
  ...[small, [1, 1, 1, 1, 3], [1, 3], [1, 2, 1, 1, 1], [1, 1, 5, 6, 1]].map((y) => binary(op, small, y)),
  binary(op, [2, 3, 1, 5], [1, 3, 7, 1]),
  binary(op, [1, 1, 4, 9], [3, 5, 1, 9]),
  binary(op, [2, 3], [2, 4, 5, 3]),
  binary(op, [1, 9], [4, 1]),
  ...[[2, 3, 5, 9], [3, 17], small].flatMap((x) => [binary(op, x, [1, 1]), binary(op, x, 0.75)]),
  ...[large, [2, 1, 1, 33], [2, 40, 51, 1], [1, 1]].map((y) => binary(op, large, y)),
  binary(op, [1, 70, 51, 33], [1, 1, 1, 33]),
];

/** An op of one operand with options. */
const one = (op: Case['op'], x: readonly number[], options: object, terms = 1): Case => ({
  op,
  title: `${x.join('x')} ${JSON.stringify(options)}`,
  inputs: [x],
  terms,
  record: ([v]) => (named[op] as (v: unknown, options: object) => unknown)(v, options),
});

const orders = (rank: number): number[][] =>
  rank === 0
    ? [[]]
    : orders(rank - 1).flatMap((order) => Array.from({ length: rank }, (_, at) => order.toSpliced(at, 0, rank - 1)));

const views: Case[] = [
  ...widths.map((c) => one('slice', [2, 5, 7, c], { axes: [1, -1], starts: [1, 0], ends: [-1, Math.ceil(c / 2)] })),
  one('slice', [3, 9], { starts: [1, -4], ends: [3, 100] }),
  one('slice', [3, 4, 5, 6], { starts: [-2, 1, 2, 3] }),
  one('slice', small, { axes: [1, 4], starts: [1, 1], ends: [2, 3] }),
  one('slice', large, { axes: [2], starts: [3] }),
  one('slice', [2, 3, 4, 5], { starts: [], ends: [] }),
  ...[[3, 7], [2, 3, 5, 17], small].flatMap((x) => orders(x.length).map((axes) => one('transpose', x, { axes }))),
  ...widths.map((c) => one('transpose', [2, 3, c, 5], { axes: [0, 3, 1, 2] })),
  one('transpose', large, { axes: [0, 3, 1, 2] }),
  ...[
    [2, -1],
    [2, 7, 3, 5],
    [5, 3, 7, 2],
    [2, 1, -1, 7],
  ].flatMap((shape) =>
    [
      [2, 3, 5, 7],
      [2, 105],
    ].map((x) => one('reshape', x, { shape })),
  ),
  ...[
    [1, 2, 5, -1],
    [5, 2, 3, 1, 6],
  ].map((shape) => one('reshape', small, { shape })),
  one('reshape', large, { shape: [2, 20, 102, 33] }),
];

const reductions: Case[] = [
  ...widths.map((c) => one('mean', [2, 5, 3, c], { axes: [1, 2] }, 15)),
  ...[[1], [2], [3], [1, 3], [-1, -2, -3]].map((axes) => one('mean', [2, 5, 3, 70], { axes, keepDims: true }, 1050)),
  ...[
    [1, 3],
    [2, 3],
  ].map((axes) => one('mean', [2, 5, 3, 70], { axes }, 350)),
  ...[[1], [4], [1, 2, 3], [2, 3, 4]].map((axes) => one('mean', [2, 4, 5, 6, 3], { axes }, 90)),
  one('mean', [3, 150], { axes: [1], keepDims: true }, 150),
];

const matmul = (x: readonly number[], y: readonly number[]): Case => ({
  op: 'matmul',
  title: `${x.join('x')} by ${y.join('x')}`,
  inputs: [x, y],
  terms: x.at(-1) ?? 1,
  record: ([a, b]) => ops.matmul(a, b),
});

const matmuls: Case[] = [
  ...widths.flatMap((size) => [
    matmul([2, 3, 9, 7], [2, 3, 7, size]),
    matmul([1, 2, size, 5], [1, 2, 5, 6]),
    matmul([1, 2, 3, size], [1, 2, size, 6]),
  ]),
  matmul([2, 1, 4, 5], [1, 3, 5, 6]),
  matmul([1, 1, 4, 5], [2, 3, 5, 6]),
  matmul([2, 3, 4, 5, 6], [2, 1, 4, 6, 7]),
  matmul([1, 2, 75, 64], [1, 2, 64, 75]),
];

const attention = (
  q: readonly number[],
  positions: readonly number[],
  channels: number,
  options?: { scale: number },
): Case => {
  const [n = 1, d = 1] = [q[0], q.at(-1)];
  return {
    op: 'attention',
    title: `${q.join('x')} to ${positions.join('x')}, ${channels} channels${options ? ` ${JSON.stringify(options)}` : ''}`,
    inputs: [q, [n, ...positions, d], [n, ...positions, channels]],
    // A score is an exponent: its rounding error is as large as it is.
    terms: ((options?.scale ?? d ** -0.5) * d) ** 2 + positions.reduce((a, b) => a * b, 1),
    record: ([a, b, c]) => ops.attention(a, b, c, options),
  };
};

const attentions: Case[] = [
  ...widths.flatMap((size) => [
    attention([2, 3, 2, size], [2, 5], 7), // channels of q and k
    attention([1, 1, size, 5], [2, 2], 6), // queries
    attention([1, 2, 2, 6], [1, size], 5), // keys
    attention([1, 2, 3, 5], [3, 3], size), // channels of v
  ]),
  attention([1, 2, 2, 4], [2, 3], 4, { scale: 0 }),
  attention([1, 2, 3, 5], [3, 4], 300), // several slices of channels on GPUs
  attention([1, 7, 9, 8], [5, 6], 9, { scale: -0.5 }),
  attention([1, 2, 3, 9, 12], [4, 5, 3], 20),
  attention([2, 1, 7, 7, 33], [3, 2, 1], 70, { scale: 0.3 }),
  // several blocks of queries and of keys
  attention([1, 2, 25, 2], [2, 150], 70),
  attention([2, 9, 11, 3], [3, 171], 2, { scale: 0.9 }),
];

const interpolations: Case[] = [
  ...widths.map((c) => one('interpolate', [2, 5, 4, c], { height: 10, width: 9 }, 4)),
  ...(
    [
      [7, 9, 3, 4],
      [1, 1, 5, 6],
      [4, 6, 4, 6],
      [3, 8, 6, 1],
      [30, 40, 7, 93],
    ] as const
  ).map(([h, w, height, width]) => one('interpolate', [1, h, w, 3], { height, width }, 4)),
  one('interpolate', small, { height: 7, width: 5 }, 4),
];

type Sizes = number | readonly number[];

interface ConvRow {
  x: readonly number[];
  to: number;
  kernel: readonly number[];
  options?: { stride?: Sizes; padding?: Sizes; dilation?: Sizes; groups?: number };
  bias?: boolean;
}

const conv = ({ x, to, kernel, options = {}, bias = false }: ConvRow): Case => {
  const inputs = (x.at(-1) ?? 0) / (options.groups ?? 1);
  const w = weight(to, inputs, ...kernel);
  const b = bias ? weight(to) : undefined;
  const title = `${x.join('x')} -> ${to}, ${kernel.join('x')} ${JSON.stringify(options)}${bias ? ' bias' : ''}`;
  const terms = inputs * kernel.reduce((p, q) => p * q, 1);
  return {
    op: 'conv',
    title,
    inputs: [x],
    terms,
    record: ([v]) => ops.conv(v, { weight: w, bias: b }, options as never),
  };
};

const convs: Case[] = [
  ...widths.map((c) => conv({ x: [1, 5, 7, 9], to: c, kernel: [1, 1] })),
  ...widths.map((c) => conv({ x: [2, 4, 5, c], to: 18, kernel: [3, 3], options: { padding: 1 }, bias: true })),
  // images of few channels, whose taps lie together
  ...[1, 2, 3].flatMap((c) =>
    [2, 3, 4].map((stride) => conv({ x: [2, 9, 12, c], to: 9, kernel: [3, 5], options: { stride, padding: 2 } })),
  ),
  ...[1, 2, 5, 6, 7, 8, 9, 13, 49].map((w) => conv({ x: [1, 1, w, 20], to: 70, kernel: [1, 1] })), // around the tiles' pixels
  ...[5, 7].map((k) =>
    conv({ x: [1, 13, 11, 3], to: 33, kernel: [k, k], options: { padding: (k - 1) / 2, stride: 2 } }),
  ),
  conv({ x: [2, 9, 9, 17], to: 8, kernel: [3, 3], options: { stride: 2, padding: 1 } }),
  conv({ x: [1, 10, 11, 6], to: 9, kernel: [3, 3], options: { stride: 3 } }),
  conv({ x: [1, 9, 12, 6], to: 9, kernel: [3, 3], options: { dilation: 2, padding: 2 } }),
  conv({ x: [1, 9, 12, 20], to: 9, kernel: [1, 3] }),
  conv({ x: [1, 9, 12, 20], to: 9, kernel: [2, 2], options: { stride: 2 } }),
  conv({ x: [1, 3, 3, 5], to: 4, kernel: [5, 5], options: { padding: 4 } }), // more padding than image
  conv({ x: [2, 6, 5, 12], to: 18, kernel: [3, 3], options: { padding: 1, groups: 3 }, bias: true }),
  conv({ x: [1, 6, 5, 40], to: 40, kernel: [3, 3], options: { padding: 1, groups: 4 } }),
  ...widths.map((c) =>
    conv({ x: [1, 6, 5, c], to: c, kernel: [3, 3], options: { padding: 1, groups: c, stride: 2 }, bias: true }),
  ),
  conv({ x: [1, 6, 5, 7], to: 21, kernel: [3, 3], options: { padding: 1, groups: 7 } }), // three outputs a channel
  // several groups to a vector: inputs and outputs of each, and how many
  ...(
    [
      [4, 4, 32],
      [4, 4, 3],
      [2, 2, 17],
      [3, 3, 11],
      [1, 3, 12],
      [3, 1, 33],
      [8, 8, 5],
      [5, 2, 9],
      [2, 5, 9],
      [16, 1, 9],
      // CUDA's tiles of 32, 64 and 128 columns, and what they read
      [32, 32, 3],
      [12, 12, 9],
      [5, 20, 7],
      [40, 64, 2],
      [24, 70, 3],
      [72, 130, 2],
    ] as const
  ).map(([i, o, groups]) =>
    conv({ x: [2, 6, 5, i * groups], to: o * groups, kernel: [3, 3], options: { padding: 1, groups }, bias: true }),
  ),
  conv({ x: [1, 33, 40, 48], to: 48, kernel: [3, 3], options: { padding: 1, groups: 12, stride: 2 } }), // several blocks
  // depthwise, around what is computed at once: columns, rows, channels
  ...[1, 2, 3, 4, 5, 6].flatMap((w) =>
    [1, 2, 3].map((stride) =>
      conv({ x: [2, 7 - w, w, 9], to: 9, kernel: [3, 3], options: { padding: 1, groups: 9, stride } }),
    ),
  ),
  ...[
    [5, 5],
    [1, 7],
    [4, 2],
    [2, 8],
  ].map((kernel) => conv({ x: [1, 9, 10, 17], to: 17, kernel, options: { padding: 2, groups: 17 }, bias: true })),
  conv({ x: [1, 9, 10, 17], to: 17, kernel: [3, 3], options: { padding: 2, groups: 17, dilation: [2, 3] } }),
  conv({ x: [1, 9, 10, 17], to: 17, kernel: [5, 5], options: { padding: 2, groups: 17, stride: [3, 2] } }),
  // rows of 3 taps that do not share their inputs, and some that do
  conv({ x: [1, 9, 10, 17], to: 17, kernel: [3, 3], options: { padding: 2, groups: 17, dilation: [2, 1] } }),
  conv({ x: [1, 9, 10, 17], to: 17, kernel: [3, 3], options: { padding: 1, groups: 17, stride: [2, 1] } }),
  conv({ x: [2, 5, 6, 7, 9], to: 9, kernel: [1, 3, 3], options: { padding: [0, 1, 1], stride: [2, 1, 1], groups: 9 } }),
  conv({ x: [2, 4, 6, 7, 9], to: 9, kernel: [1, 3, 3], options: { padding: [1, 1, 1], groups: 9 } }),
  conv({ x: [2, 4, 6, 7, 9], to: 9, kernel: [1, 3, 3], options: { padding: [0, 1, 1], groups: 9 } }),
  ...(
    [
      [[3, 3], [5, 5], 1],
      [[3, 3], [1, 3], 1],
      [[1, 3], [5, 3], 2],
    ] as const
  ).map(
    ([a, b, stride]): Case => ({
      op: 'conv',
      title: `two depthwise ones in one sum, ${a} and ${b}, stride ${stride}`,
      inputs: [[2, 6, 5, 13]],
      terms: 34,
      record: ([x]) => {
        const of = ([h, w]: readonly [number, number]) => {
          const padding = [(h - 1) / 2, (w - 1) / 2] as const;
          return ops.conv(x, { weight: weight(13, 1, h, w) }, { padding, stride, groups: 13 }) as never;
        };
        return ops.add(of(a), of(b));
      },
    }),
  ),
  conv({ x: [1, 4, 6, 5, 10], to: 19, kernel: [3, 1, 1], options: { padding: 1 } }),
  conv({ x: [2, 5, 6, 7, 3], to: 8, kernel: [5, 7, 7], options: { padding: 3, stride: 2 } }),
  conv({
    x: [2, 7, 5, 6, 2],
    to: 9,
    kernel: [3, 1, 4],
    options: { padding: [2, 0, 1], stride: [2, 1, 1], dilation: [3, 1, 1] },
  }),
  conv({ x: [3, 4, 5, 6, 9], to: 10, kernel: [3, 3, 3], options: { padding: [2, 1, 1], dilation: [2, 1, 1] } }),
  conv({ x: [2, 7, 4, 5, 6], to: 8, kernel: [3, 1, 3], options: { padding: [0, 0, 1], stride: [3, 1, 2], groups: 2 } }),
  conv({ x: [2, 3, 6, 5, 11], to: 11, kernel: [3, 3, 3], options: { padding: 1, groups: 11 }, bias: true }),
  conv({ x: [1, 3, 41, 37, 5], to: 12, kernel: [3, 3, 3], options: { padding: 1 } }),
  // frames around Winograd's tile of 4
  ...[2, 3, 4, 5, 7, 8, 9].flatMap((t) => [
    conv({ x: [2, t, 5, 6, 17], to: 18, kernel: [3, 1, 1], options: { padding: [1, 0, 0] }, bias: true }),
    conv({ x: [1, t, 9, 11, 3], to: 17, kernel: [5, 7, 7], options: { padding: [2, 3, 3], stride: [1, 2, 2] } }),
  ]),
  conv({ x: [1, 5, 7, 9, 20], to: 33, kernel: [5, 3, 1], options: { padding: [2, 2, 0], dilation: [1, 2, 1] } }),
  conv({ x: [1, 4, 28, 28, 64], to: 48, kernel: [3, 1, 1], options: { padding: [1, 0, 0] } }), // several blocks
  conv({ x: [1, 16, 14, 128], to: 128, kernel: [3, 3], options: { padding: 1 } }), // CUDA's largest tile, shared
  // several blocks of rows, of images
  conv({ x: [1, 56, 56, 32], to: 24, kernel: [3, 3], options: { padding: 1 } }),
  conv({ x: [1, 61, 67, 3], to: 20, kernel: [7, 7], options: { padding: 3, stride: 2 } }),
  conv({ x: [9, 7, 7, 512], to: 20, kernel: [1, 1] }),
];

interface OctRow {
  n?: number;
  /** Frames of a video; then a number as kernel is for time too. */
  t?: number;
  h: number;
  w: number;
  from: readonly [high: number, low: number];
  to: readonly [high: number, low: number];
  /** Default 3 x 3. */
  kernel?: number | readonly [t: number, h: number, w: number];
  stride?: 1 | 2;
  groups?: number;
  bias?: boolean;
  depthwise?: boolean;
}

const octConv = ({
  n = 1,
  t,
  h,
  w,
  from: [ih, il],
  to: [oh, ol],
  kernel: size = 3,
  stride = 1,
  groups = 1,
  bias = false,
  depthwise = false,
}: OctRow): Case => {
  const kernel = typeof size === 'number' ? Array<number>(t === undefined ? 2 : 3).fill(size) : size;
  const path = (o: number, i: number, crosses: boolean) =>
    o && i && !(depthwise && crosses) ? weight(o, depthwise ? 1 : i / groups, ...kernel) : undefined;
  const frames = t === undefined ? [] : [t];
  const taps = kernel.reduce((p, q) => p * q, 1);
  const params = {
    h2h: path(oh, ih, false) as never,
    l2h: path(oh, il, true),
    h2l: path(ol, ih, true),
    l2l: path(ol, il, false),
    ...(bias && { biasH: weight(oh), ...(ol && { biasL: weight(ol) }) }),
  };
  const options = { stride, groups: depthwise ? ih + il : groups };
  return {
    op: 'octConv',
    title: `${[n, ...frames, h, w].join('x')}, ${ih}+${il} -> ${oh}+${ol}, ${kernel.join('x')} ${JSON.stringify(options)}${bias ? ' bias' : ''}`,
    inputs: [[n, ...frames, h, w, ih], ...(il ? [[n, ...frames, Math.ceil(h / 2), Math.ceil(w / 2), il]] : [])],
    terms: depthwise ? taps : (2 * (ih + il) * taps) / groups,
    record: ([high, low]) => {
      const y = ops.octConv(new Octave(high, low), params, options) as unknown as Octave<Value>;
      return y.low === undefined ? [y.high] : [y.high, y.low];
    },
  };
};

const octConvs: Case[] = [
  // every alpha in and out
  ...(
    [
      [20, 0],
      [13, 7],
      [3, 17],
    ] as const
  ).flatMap((from) =>
    (
      [
        [20, 0],
        [13, 7],
        [3, 17],
      ] as const
    ).flatMap((to) => [
      octConv({ h: 8, w: 10, from, to }),
      octConv({ h: 9, w: 7, from, to, kernel: 1, bias: true }),
      octConv({ n: 2, h: 7, w: 5, from, to, stride: 2 }),
      octConv({ h: 11, w: 13, from, to, stride: 2, kernel: 1 }),
    ]),
  ),
  ...widths.map((c) => octConv({ h: 6, w: 6, from: [c, c], to: [c, c] })),
  ...[1, 2, 3, 4, 5].flatMap((h) => [1, 2, 3].map((w) => octConv({ h, w, from: [5, 3], to: [6, 4] }))),
  ...[1, 2, 3, 4, 5].map((h) => octConv({ h, w: 3, from: [5, 3], to: [6, 4], stride: 2 })),
  octConv({ h: 12, w: 12, from: [8, 4], to: [4, 8], kernel: 5 }),
  // videos
  octConv({ t: 3, h: 7, w: 6, from: [5, 3], to: [9, 4] }),
  octConv({ n: 2, t: 4, h: 6, w: 5, from: [12, 4], to: [8, 8], stride: 2, bias: true }),
  octConv({ n: 3, t: 5, h: 4, w: 4, from: [7, 0], to: [6, 5], stride: 2 }),
  octConv({ t: 2, h: 33, w: 29, from: [24, 8], to: [24, 8], kernel: 1 }),
  octConv({ n: 2, t: 3, h: 5, w: 6, from: [6, 2], to: [6, 2], depthwise: true }),
  ...(
    [
      [1, 3, 3],
      [3, 1, 1],
      [3, 3, 3],
      [5, 7, 7],
    ] as const
  ).flatMap((kernel) => [
    octConv({ t: 5, h: 9, w: 7, from: [12, 5], to: [9, 6], kernel }),
    octConv({ n: 2, t: 3, h: 7, w: 11, from: [3, 0], to: [10, 6], kernel, stride: 2, bias: true }),
    octConv({ t: 4, h: 6, w: 5, from: [5, 9], to: [17, 0], kernel }),
  ]),
  octConv({ t: 1, h: 6, w: 5, from: [5, 9], to: [9, 4], kernel: [3, 3, 3], stride: 2 }), // a clip of one frame
  octConv({ t: 4, h: 5, w: 7, from: [8, 4], to: [12, 8], kernel: [3, 1, 1], groups: 4, bias: true }),
  octConv({ n: 2, t: 9, h: 7, w: 5, from: [17, 9], to: [18, 16], kernel: [3, 1, 1], bias: true }),
  octConv({ t: 4, h: 28, w: 26, from: [64, 64], to: [32, 32], kernel: [3, 1, 1], stride: 2 }),
  octConv({ h: 16, w: 14, from: [64, 64], to: [64, 64] }),
  // several blocks of rows, of images
  octConv({ h: 41, w: 37, from: [64, 64], to: [12, 7] }),
  octConv({ h: 83, w: 73, from: [64, 64], to: [24, 40], kernel: 1, stride: 2 }),
  octConv({ h: 30, w: 34, from: [9, 5], to: [80, 72], bias: true }), // CUDA's largest tiles
  octConv({ n: 7, h: 7, w: 7, from: [256, 256], to: [20, 9], kernel: 1 }),
  octConv({ n: 3, h: 7, w: 7, from: [24, 40], to: [36, 20], kernel: 7 }),
  octConv({ h: 8, w: 9, from: [8, 4], to: [12, 8], groups: 4, bias: true }),
  octConv({ h: 8, w: 9, from: [8, 4], to: [12, 8], groups: 4, stride: 2 }),
  octConv({ h: 8, w: 9, from: [34, 34], to: [34, 34], groups: 17, bias: true }),
  octConv({ h: 8, w: 9, from: [33, 11], to: [33, 11], groups: 11 }),
  octConv({ h: 7, w: 9, from: [33, 11], to: [33, 11], groups: 11, stride: 2 }),
  octConv({ h: 9, w: 10, from: [13, 5], to: [13, 5], depthwise: true, bias: true }),
  ...[1, 2, 3, 8, 17].map((w) => octConv({ n: 2, h: 5, w, from: [37, 16], to: [37, 16], depthwise: true })),
  ...[1, 3, 9, 17].map((w) => octConv({ n: 2, h: 5, w, from: [32, 16], to: [32, 16], groups: 8 })),
  octConv({ h: 9, w: 10, from: [13, 5], to: [13, 5], depthwise: true, stride: 2 }),
];

const linear = (n: number, c: number, k: number, bias = true): Case => {
  const params = { weight: weight(k, c), ...(bias && { bias: weight(k) }) };
  return {
    op: 'linear',
    title: `${n}x${c} -> ${k}`,
    inputs: [[n, c]],
    terms: c,
    record: ([x]) => ops.linear(x, params as never),
  };
};

const batchNorm = (x: readonly number[]): Case => {
  const c = x.at(-1) ?? 1;
  const params = { weight: weight(c), bias: weight(c), running_mean: weight(c), running_var: positive(c) };
  return { op: 'batchNorm', title: x.join('x'), inputs: [x], terms: 3, record: ([v]) => ops.batchNorm(v, params) };
};

const concat = (outer: readonly number[], ...channels: number[]): Case => ({
  op: 'concat',
  title: `${outer.join('x')}x(${channels.join(' + ')})`,
  inputs: channels.map((c) => [...outer, c]),
  terms: 1,
  record: (xs) => ops.concat(xs as never),
});

const pools = (op: 'maxPool' | 'avgPool', call: typeof ops.avgPool): Case[] => {
  const row = (x: readonly number[], options: Record<string, unknown>): Case => ({
    op,
    title: `${x.join('x')} ${JSON.stringify(options)}`,
    inputs: [x],
    terms: 64,
    record: ([v]) => call(v, options as never),
  });
  const counted = op === 'avgPool' ? [{ countIncludePad: true }, { countIncludePad: false }] : [{}];
  return counted.flatMap((more) => [
    ...widths.map((c) => row([1, 7, 9, c], { kernel: 3, stride: 2, padding: 1, ...more })),
    row([2, 8, 8, 5], { kernel: 2, ...more }),
    row([1, 7, 5, 5], { kernel: 2, ceilMode: true, ...more }),
    row([1, 7, 5, 5], { kernel: 3, stride: 2, padding: 1, ceilMode: true, ...more }),
    row([1, 5, 5, 3], { kernel: 2, stride: 3, padding: 1, ceilMode: true, ...more }), // the last window would start in the padding
    row([1, 9, 9, 3], { kernel: [3, 1], stride: [1, 2], ...more }),
    row([1, 13, 14, 17], { kernel: 9, stride: 4, padding: 4, ...more }), // many inputs to a window
    row([1, 4, 5, 6, 3], { kernel: [2, 1, 1], ...more }),
    row([2, 5, 7, 9, 5], { kernel: [3, 3, 2], stride: [2, 2, 1], padding: [1, 1, 0], ...more }),
    row([1, 6, 7, 5, 9], { kernel: [1, 3, 3], stride: [1, 2, 2], padding: [0, 1, 1], ...more }),
    row([1, 5, 6, 7, 3], { kernel: 2, padding: [1, 0, 1], ceilMode: true, ...more }),
    row([1, 1, 1, 3], { kernel: 2, padding: 1, ...more }),
    // larger than what is there, padding included
    row([2, 1, 5, 3], { kernel: 2, ceilMode: true, ...more }),
    row([1, 1, 3, 3], { kernel: 4, padding: 1, ceilMode: true, ...more }),
  ]);
};

const pictures: Case[] = [
  ...(['bilinear', 'bicubic'] as const).flatMap((interpolation) =>
    (
      [
        [5, 7, 11, 4],
        [40, 30, 8, 9],
        [1, 1, 6, 5],
        [9, 33, 9, 12],
      ] as const
    ).map(
      ([h, w, height, width]): Case => ({
        op: 'resize',
        title: `${interpolation} ${h}x${w} -> ${height}x${width}`,
        inputs: [[1, h, w, 3]],
        dtype: 'u8',
        terms: 1,
        record: ([x]) => ops.resize(x, { height, width, interpolation }) as never,
      }),
    ),
  ),
  ...(['bilinear', 'bicubic'] as const).flatMap((interpolation) =>
    (
      [
        [5, 7, 11, 4],
        [40, 30, 8, 9],
        [1, 1, 6, 5],
      ] as const
    ).map(
      ([h, w, height, width]): Case => ({
        op: 'resize',
        title: `${interpolation} without antialiasing ${h}x${w} -> ${height}x${width}`,
        inputs: [[1, h, w, 3]],
        dtype: 'u8',
        terms: 1,
        record: ([x]) => ops.resize(x, { height, width, interpolation, antialias: false }) as never,
      }),
    ),
  ),
  ...[
    [2, 3, 5, 3],
    [1, 2, 4, 5, 3],
    [1, 180, 200, 3],
  ].map(
    (x): Case => ({
      op: 'normalize',
      title: x.join('x'),
      inputs: [x],
      dtype: 'u8',
      terms: 3,
      record: ([v]) => ops.normalize(v, { scale: 1 / 255, mean: [0.4, 0.5, 0.6], std: [0.2, 0.3, 0.4] }),
    }),
  ),
];

export const cases: readonly Case[] = [
  ...unary('relu', ops.relu),
  ...unary('relu6', ops.relu6),
  ...(['sigmoid', 'silu', 'hardSigmoid', 'hardSwish', 'gelu'] as const).flatMap((op) => unary(op, named[op])),
  ...unary('leakyRelu', ops.leakyRelu),
  ...unary('leakyRelu', (x) => ops.leakyRelu(x, { slope: 0.2 })),
  ...unary('softmax', ops.softmax, [2, 20, 23, 9]),
  ...[[2, 3, 5, 7], [3, 9], small].flatMap((x) =>
    x.slice(1).map((_, i) => one('softmax', x, { axis: i + 1 }, x[i + 1])),
  ),
  ...widths.map((c) => one('softmax', [2, 3, 5, c], { axis: 2 }, 5)),
  one('softmax', [1, 40, 51, 33], { axis: -3 }, 40),
  ...(['add', 'sub', 'mul', 'div'] as const).flatMap(binaries),
  ...matmuls,
  ...attentions,
  ...views,
  ...reductions,
  ...interpolations,
  ...widths.map((c) => concat([2, 3, 4], 5, c, 2)),
  ...[concat([3], 4, 1), concat([1, 2, 2, 3], 7, 9), concat([2, 40, 51], 5, 30), concat([2, 3, 2, 4], 7, 9)],
  ...convs,
  ...octConvs,
  ...widths.map((c) => linear(3, c, 17)),
  ...widths.map((k) => linear(1, 33, k, false)),
  linear(65, 100, 1000),
  ...[...widths.map((c) => [2, 3, 4, c]), [3, 5], small, large].map(batchNorm),
  ...pools('maxPool', ops.maxPool),
  ...pools('avgPool', ops.avgPool),
  ...widths.map(
    (c): Case => ({
      op: 'globalAvgPool',
      title: `2x5x3x${c}`,
      inputs: [[2, 5, 3, c]],
      terms: 15,
      record: ([x]) => ops.globalAvgPool(x),
    }),
  ),
  {
    op: 'globalAvgPool',
    title: '1x7x7x200',
    inputs: [[1, 7, 7, 200]],
    terms: 49,
    record: ([x]) => ops.globalAvgPool(x),
  },
  one('mean', [1, 1, 300, 3], { axes: [1, 2] }, 300), // more pixels than are summed up at once
  { op: 'globalAvgPool', title: 'video', inputs: [small], terms: 60, record: ([x]) => ops.globalAvgPool(x) },
  ...([{ scale: 2 }, { scale: [3, 2] }, { scale: 2, size: [9, 7] }] as const).map(
    (options): Case => ({
      op: 'upsampleNearest',
      title: JSON.stringify(options),
      inputs: [[2, 5, 4, 7]],
      terms: 1,
      record: ([x]) => ops.upsampleNearest(x, options as never),
    }),
  ),
  {
    op: 'upsampleNearest',
    title: 'video',
    inputs: [small],
    terms: 1,
    record: ([x]) => ops.upsampleNearest(x, { scale: [1, 2, 2] } as never),
  },
  {
    op: 'upsampleNearest',
    title: 'video, in time',
    inputs: [small],
    terms: 1,
    record: ([x]) => ops.upsampleNearest(x, { scale: [3, 1, 2], size: [5, 5, 11] } as never),
  },
  one('pad', small, { before: [2, 0, 1], after: [0, 3, 1], value: 0.5 }),
  one('pad', small, { before: 1 }),
  ...([{ before: 1, after: 2 }, { before: [0, 3], value: -1.5 }, { after: 1 }] as const).map(
    (options): Case => ({
      op: 'pad',
      title: JSON.stringify(options),
      inputs: [[2, 3, 4, 5]],
      terms: 1,
      record: ([x]) => ops.pad(x, options as never),
    }),
  ),
  ...pictures,
];

/** A case as a graph of its own. */
export function graphOf({ inputs, dtype = 'f32', record }: Case): Graph {
  const graph = new Graph();
  const y = record(inputs.map((shape) => graph.input(dtype, shape))) as Value | Value[];
  graph.outputs.push(...[y].flat().map((value) => value.id));
  return graph;
}
