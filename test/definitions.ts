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
type Definition = (p: Position, x: Input, others: readonly Input[], attrs: Attrs) => number;

/** The elements under the window at p, and how many positions of the input with its padding lie under it. */
function windowAt([n, t, h, w, c]: Position, x: Input, attrs: Attrs): { values: number[]; padded: number } {
  const [kernel, stride, padding] = [attrs.kernel, attrs.stride, attrs.padding] as Axes[];
  const [, ...extent] = x.sizes;
  const inside = (at: Axes, border?: Axes) =>
    at.every((o, axis) => o >= -(border?.[axis] ?? 0) && o < (extent[axis] as number) + (border?.[axis] ?? 0));
  const [t0, h0, w0] = [t, h, w].map((o, axis) => o * (stride?.[axis] as number) - (padding?.[axis] as number)) as unknown as Axes;
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

const definitions: Readonly<Record<string, Definition>> = {
  maxPool: (p, x, _, attrs) => Math.max(...windowAt(p, x, attrs).values),
  avgPool: (p, x, _, attrs) => {
    const { values, padded } = windowAt(p, x, attrs);
    return values.reduce((a, b) => a + b) / (attrs.countIncludePad ? padded : values.length);
  },
  sigmoid: (p, x) => 1 / (1 + Math.exp(-x.at(p))),
  softmax: ([n, t, h, w, c], x) => {
    const all = Array.from({ length: x.sizes[4] }, (_, k) => Math.exp(x.at([n, t, h, w, k])));
    return (all[c] as number) / all.reduce((a, b) => a + b);
  },
  add: (p, x, [y]) => x.at(p) + (y as Input).at(p),
  mul: (p, x, [y]) => x.at(p) * (y as Input).at(zip(p, (y as Input).sizes, (i, size) => i % size)),
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
export function byDefinition(graph: Graph, [x, ...others]: readonly Input[]): Float32Array {
  const [node] = graph.nodes;
  const definition = definitions[node?.op ?? ''] as Definition;
  const [n, t, h, w, c] = toNTHWC(graph.values[graph.outputs[0] ?? -1]?.shape ?? []);
  return Float32Array.from({ length: n * t * h * w * c }, (_, i) => {
    const [pixel, row, plane] = [Math.floor(i / c), Math.floor(i / (c * w)), Math.floor(i / (c * w * h))];
    return definition([Math.floor(plane / t), plane % t, row % h, pixel % w, i % c], x as Input, others, node?.attrs ?? {});
  });
}
