/**
 * The ops whose kernel is its own reference or shares its loops over windows, once more by definition: one element of
 * the result, in doubles.
 */
import { type Graph, toNTHWC } from '../lib/graph/graph.js';

type Position = readonly [n: number, t: number, h: number, w: number, c: number];
type Axes = readonly [t: number, h: number, w: number];

/** An input: its element at a position. */
export class Input {
  readonly sizes: Position;
  constructor(
    readonly data: ArrayLike<number>,
    shape: readonly number[],
  ) {
    this.sizes = toNTHWC(shape);
  }
  at([n, t, h, w, c]: Position): number {
    const [, T, H, W, C] = this.sizes;
    return this.data[(((n * T + t) * H + h) * W + w) * C + c] ?? Number.NaN;
  }
}

const zip = (a: Position, b: readonly number[], f: (x: number, y: number) => number) =>
  a.map((x, axis) => f(x, b[axis] as number)) as unknown as Position;

type Attrs = Readonly<Record<string, unknown>>;
type Definition = (p: Position, x: Input, others: readonly Input[], attrs: Attrs, index: number) => number;

/** The elements under the window at p, and how many positions of the input with its padding lie under it. */
function windowAt([n, t, h, w, c]: Position, x: Input, attrs: Attrs): { values: number[]; padded: number } {
  const [kernel, stride, padding] = [attrs.kernel, attrs.stride, attrs.padding] as Axes[];
  const [, ...extent] = x.sizes;
  const inside = (at: Axes, border?: Axes) =>
    at.every((o, axis) => o >= -(border?.[axis] ?? 0) && o < (extent[axis] as number) + (border?.[axis] ?? 0));
  const [t0, h0, w0] = [t, h, w].map(
    (o, axis) => o * (stride?.[axis] as number) - (padding?.[axis] as number),
  ) as unknown as Axes;
  const values: number[] = [];
  let padded = 0;
  for (const i of Array(kernel?.[0]).keys()) {
    for (const j of Array(kernel?.[1]).keys()) {
      for (const k of Array(kernel?.[2]).keys()) {
        const at: Axes = [t0 + i, h0 + j, w0 + k];
        if (inside(at, padding)) padded++;
        if (inside(at)) values.push(x.at([n, ...at, c]));
      }
    }
  }
  return { values, padded };
}

const hardSigmoid = (x: number) => Math.min(Math.max(x + 3, 0), 6) / 6;

/** Its series, for small numbers. */
function erf(x: number): number {
  let [sum, power] = [0, x];
  for (let n = 0; n < 60; n++, power *= (-x * x) / n) sum += power / (2 * n + 1);
  return (2 / Math.sqrt(Math.PI)) * sum;
}

const sum = (length: number, term: (i: number) => number) =>
  Array.from({ length }, (_, i) => term(i)).reduce((a, b) => a + b);

/** Where a size is 1, its element stands for all. */
const repeated = (p: Position, x: Input) => x.at(zip(p, x.sizes, (i, size) => i % size));

const definitions: Readonly<Record<string, Definition>> = {
  maxPool: (p, x, _, attrs) => Math.max(...windowAt(p, x, attrs).values),
  avgPool: (p, x, _, attrs) => {
    const { values, padded } = windowAt(p, x, attrs);
    return values.reduce((a, b) => a + b) / (attrs.countIncludePad ? padded : values.length);
  },
  sigmoid: (p, x) => 1 / (1 + Math.exp(-x.at(p))),
  softmax: (p, x, _, attrs) => {
    const axis = attrs.axis as number;
    const at = (i: number) => Math.exp(x.at(p.with(axis, i) as unknown as Position));
    return at(p[axis] as number) / sum(x.sizes[axis] as number, at);
  },
  relu: (p, x) => Math.max(x.at(p), 0),
  relu6: (p, x) => Math.min(Math.max(x.at(p), 0), 6),
  silu: (p, x) => x.at(p) / (1 + Math.exp(-x.at(p))),
  hardSigmoid: (p, x) => hardSigmoid(x.at(p)),
  hardSwish: (p, x) => x.at(p) * hardSigmoid(x.at(p)),
  leakyRelu: (p, x, _, { slope }) => Math.max(x.at(p), 0) + (slope as number) * Math.min(x.at(p), 0),
  gelu: (p, x) => (x.at(p) * (1 + erf(x.at(p) / Math.SQRT2))) / 2,
  add: (p, x, [y]) => repeated(p, x) + repeated(p, y as Input),
  sub: (p, x, [y]) => repeated(p, x) - repeated(p, y as Input),
  mul: (p, x, [y]) => repeated(p, x) * repeated(p, y as Input),
  div: (p, x, [y]) => repeated(p, x) / repeated(p, y as Input),
  matmul: ([n, t, h, row, column], x, [y]) => {
    let sum = 0;
    for (let k = 0; k < x.sizes[4]; k++)
      sum += repeated([n, t, h, row, k], x) * repeated([n, t, h, k, column], y as Input);
    return sum;
  },
  attention: (p, q, others, { scale }) => {
    const [k, v] = others as [Input, Input];
    const [, t, h, w, d] = k.sizes;
    const at = (key: number, c: number): Position => [
      p[0],
      Math.floor(key / (h * w)),
      Math.floor(key / w) % h,
      key % w,
      c,
    ];
    const score = (key: number) => sum(d, (c) => q.at(p.with(4, c) as unknown as Position) * k.at(at(key, c)));
    const weights = Array.from({ length: t * h * w }, (_, key) => Math.exp((scale as number) * score(key)));
    return (
      sum(weights.length, (key) => (weights[key] as number) * v.at(at(key, p[4]))) /
      sum(weights.length, (key) => weights[key] as number)
    );
  },
  slice: (p, x, _, { starts }) => x.at(zip(p, starts as number[], (i, start) => i + start)),
  transpose: (p, x, _, { axes }) =>
    x.at(p.map((_, axis) => p[(axes as number[]).indexOf(axis)]) as unknown as Position),
  reshape: (_p, x, _, _attrs, index) => x.data[index] as number,
  mean: (_p, x, _, { axes }, index) => {
    const over = axes as number[];
    let place = index; // of the sizes that are left
    const first = [...x.sizes];
    for (const axis of [4, 3, 2, 1, 0].filter((axis) => !over.includes(axis))) {
      first[axis] = place % (x.sizes[axis] as number);
      place = Math.floor(place / (x.sizes[axis] as number));
    }
    let all = [first];
    for (const axis of over)
      all = all.flatMap((at) =>
        Array.from({ length: x.sizes[axis] as number }, (_, i) => at.map((old, a) => (a === axis ? i : old))),
      );
    return all.reduce((sum, at) => sum + x.at(at as unknown as Position), 0) / all.length;
  },
  interpolate: ([n, t, h, w, c], x, _, attrs) => {
    const [height, width] = attrs.size as [number, number];
    /** Weighs all pixels of an axis by a triangle around the place; beyond the ends they repeat. */
    const axis = (i: number, from: number, to: number) => {
      const place = Math.min(Math.max(((i + 0.5) * from) / to - 0.5, 0), from - 1);
      return Array.from({ length: from }, (_, k) => Math.max(0, 1 - Math.abs(k - place)));
    };
    const columns = axis(w, x.sizes[3], width);
    return axis(h, x.sizes[2], height).reduce(
      (sum, a, i) => sum + a * columns.reduce((row, b, k) => row + (b ? b * x.at([n, t, i, k, c]) : 0), 0),
      0,
    );
  },
  concat: ([n, t, h, w, c], x, others) => {
    let channel = c;
    for (const input of [x, ...others]) {
      if (channel < input.sizes[4]) return input.at([n, t, h, w, channel]);
      channel -= input.sizes[4];
    }
    return Number.NaN;
  },
  globalAvgPool: ([n, , , , c], x) => {
    const [, t, h, w] = x.sizes;
    let sum = 0;
    for (let i = 0; i < t * h * w; i++) sum += x.at([n, Math.floor(i / (h * w)), Math.floor(i / w) % h, i % w, c]);
    return sum / (t * h * w);
  },
  upsampleNearest: (p, x, _, { scale }) => x.at(zip(p, [1, ...(scale as number[]), 1], (i, by) => Math.floor(i / by))),
  pad: (p, x, _, { before, value }) => {
    const from = zip(p, [0, ...(before as number[]), 0], (i, by) => i - by);
    return from.every((i, axis) => i >= 0 && i < (x.sizes[axis] as number)) ? x.at(from) : (value as number);
  },
};

export const definedOps = Object.keys(definitions);

/** The output of a graph of one of these ops. */
export function byDefinition(graph: Graph, [x, ...more]: readonly Input[]): Float32Array {
  const others = [...more, ...[...graph.constants.values()].map(({ data, shape }) => new Input(data, shape))];
  const [node] = graph.nodes;
  const definition = definitions[node?.op ?? ''] as Definition;
  const [n, t, h, w, c] = toNTHWC(graph.values[graph.outputs[0] ?? -1]?.shape ?? []);
  const attrs = { ...node?.attrs, size: [h, w] };
  return Float32Array.from({ length: n * t * h * w * c }, (_, i) => {
    const [pixel, row, plane] = [Math.floor(i / c), Math.floor(i / (c * w)), Math.floor(i / (c * w * h))];
    return definition([Math.floor(plane / t), plane % t, row % h, pixel % w, i % c], x as Input, others, attrs, i);
  });
}
