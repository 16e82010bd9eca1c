/**
 * Milliseconds over multiply-adds as alpha grows, like figure 4 of the paper: a curve for each engine and data type or,
 * of several networks, for each engine and network, at the first batch size and thread count of a result. SVG.
 */
import type { ComputeType } from '../graph/graph.js';
import { splitName } from '../models/family.js';
import type { ModelRow, ModelsResult } from './models.js';
import { kindOf, optionsIn, sizeOf, threadsOf } from './table.js';

const [width, height] = [800, 460];
const plot = { left: 64, right: width - 190, top: 60, bottom: height - 56 };

const colours: Record<ComputeType, string> = { f32: '#0b6e4f', bf16: '#4a6fa5', f16: '#8e6c8a', i8: '#c8553d' };
/** Of networks, in their order. */
const palette = ['#0b6e4f', '#c8553d', '#4a6fa5', '#b8860b', '#8e6c8a', '#2a9d8f', '#7f4f24', '#d1495b', '#5c677d'];

interface Style {
  readonly colour: string;
  readonly dashed: boolean;
}

interface Curve extends Style {
  readonly name: string;
  readonly network: string;
  /** By alpha; the plain network has none. */
  readonly points: Map<number | undefined, { readonly gmadds: number; readonly ms: number }>;
}

const plainOf = ({ network }: ModelRow): string => splitName(network).plain;

/** onnxruntime's f32 is one curve, though it is timed beside our f32 and our bf16. */
function curvesOf(rows: readonly ModelRow[], networks: readonly string[]): Curve[] {
  const curves = new Map<string, Curve>();
  const add = (engine: string, dtype: ComputeType, row: ModelRow, ms: number) => {
    const network = plainOf(row);
    const several = networks.length > 1;
    const name = `${engine} ${several ? network : dtype}`;
    const colour = several ? (palette[networks.indexOf(network) % palette.length] as string) : colours[dtype];
    const curve = curves.get(name) ?? { name, network, colour, dashed: engine !== 'octconv', points: new Map() };
    curves.set(name, curve);
    if (!curve.points.has(row.alpha)) curve.points.set(row.alpha, { gmadds: row.gmadds, ms });
  };
  for (const row of rows) {
    add('onnxruntime', row.peerDType, row, row.theirs.median);
    add('octconv', row.dtype, row, row.ours.median);
  }
  return [...curves.values()];
}

export function chart(result: ModelsResult): string {
  const { batch, threads, dtype } = result.rows[0] ?? { batch: 1, threads: 1, dtype: 'f32' };
  const networks = [...new Set(result.rows.map(plainOf))];
  const several = networks.length > 1;
  const rows = result.rows
    .filter((row) => row.batch === batch && row.threads === threads && !(several && row.dtype !== dtype))
    .sort((a, b) => a.gmadds - b.gmadds);
  const curves = curvesOf(rows, networks);
  const points = curves.flatMap((curve) => [...curve.points.values()]);
  const scaleOf = several ? logarithmic : linear;
  const across = scaleOf(points.map(({ gmadds }) => gmadds));
  const up = scaleOf(points.map(({ ms }) => ms));
  const x = (gmadds: number) => round(plot.left + across.at(gmadds) * (plot.right - plot.left));
  const y = (ms: number) => round(plot.bottom - up.at(ms) * (plot.bottom - plot.top));

  const grid = across.ticks.flatMap((at) => [
    `<path d="M${x(at)} ${plot.bottom}V${plot.top}" stroke="#ddd"/>`,
    text(x(at), plot.bottom + 18, label(at), 'middle'),
  ]);
  for (const at of up.ticks) {
    grid.push(`<path d="M${plot.left} ${y(at)}H${plot.right}" stroke="#ddd"/>`);
    grid.push(text(plot.left - 8, y(at) + 4, label(at), 'end'));
  }
  const drawn = curves.flatMap(({ points, ...style }) => {
    // The plain network stands alone, but where several have to be told apart.
    const octave = [...points].flatMap(([alpha, point]) => (alpha === undefined ? [] : point));
    const plain = points.get(undefined);
    const joined = several ? [...points.values()] : octave;
    return [
      line(
        joined.map(({ gmadds, ms }) => `${x(gmadds)},${y(ms)}`),
        style,
      ),
      ...octave.map(({ gmadds, ms }) => dot(x(gmadds), y(ms), style)),
      ...(plain ? [square(x(plain.gmadds), y(plain.ms), style)] : []),
    ];
  });
  const { size, frames, options } = result;
  const kind = kindOf(frames);
  const extent = frames === undefined ? `${size} px` : sizeOf({ size, frames });
  const [network = ''] = networks;
  const name = network.replace('resnet', 'ResNet').replace(/^(i3d|c2d)/, (video) => video.toUpperCase());
  const what = several ? `Plain networks and their octave forms in ${dtype}` : `${name} and octave ${name}`;
  const title = `${what}, ${optionsIn(options)}${extent}, batch ${batch}, ${threadsOf(threads)}`;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="13">`,
    `<title>${title}</title>`,
    '<rect width="100%" height="100%" fill="white"/>',
    `<g font-size="15" font-weight="bold">${text(plot.left, 26, title)}</g>`,
    text(plot.left, plot.top - 12, `ms per ${kind}, median`, 'start'),
    text((plot.left + plot.right) / 2, height - 16, `G multiply-adds per ${kind}`, 'middle'),
    ...grid,
    ...drawn,
    ...(several ? [] : alphas(curves[0], x)),
    ...legend(several ? byNetwork(curves) : curves),
    '</svg>',
    '',
  ].join('\n');
}

/** The alphas of a curve's points, below them. */
function alphas(curve: Curve | undefined, x: (gmadds: number) => number): string[] {
  let [last, raised] = [Number.NEGATIVE_INFINITY, false];
  return [...(curve?.points ?? [])].map(([alpha, { gmadds }]) => {
    const at = x(gmadds);
    raised = !raised && at - last < 48; // else it would cover the one before
    last = at;
    return text(at, plot.bottom - (raised ? 28 : 10), alpha === undefined ? 'plain' : `α ${alpha}`, 'middle');
  });
}

const black = { colour: '#333', dashed: false };

/** What the colours of networks mean, and what the lines of engines. */
function byNetwork(curves: readonly Curve[]): (Style & { name: string })[] {
  const ours = curves.filter(({ dashed }) => !dashed);
  const networks = ours.map((curve) => ({ ...curve, name: curve.network }));
  return [...networks, { ...black, name: 'octconv' }, { ...black, dashed: true, name: 'onnxruntime' }];
}

function legend(entries: readonly (Style & { name: string })[]): string[] {
  const right = plot.right + 24;
  const lines = entries.flatMap((entry, i) => {
    const at = plot.top + 8 + 24 * i;
    return [line([`${right},${at}`, `${right + 28},${at}`], entry), text(right + 38, at + 4, entry.name)];
  });
  const below = plot.top + 8 + 24 * entries.length;
  return [
    ...lines,
    dot(right + 14, below, black),
    text(right + 38, below + 4, 'octave'),
    square(right + 14, below + 24, black),
    text(right + 38, below + 28, 'plain'),
  ];
}

function text(x: number, y: number, content: string, anchor: 'start' | 'middle' | 'end' = 'start'): string {
  return `<text x="${x}" y="${y}" text-anchor="${anchor}" fill="#333">${content}</text>`;
}

function line(points: readonly string[], { colour, dashed }: Style): string {
  const dashes = dashed ? ' stroke-dasharray="6 4"' : '';
  return `<polyline points="${points.join(' ')}" fill="none" stroke="${colour}" stroke-width="2"${dashes}/>`;
}

/** Hollow on a dashed curve. */
const filled = ({ colour, dashed }: Style) => `fill="${dashed ? 'white' : colour}" stroke="${colour}" stroke-width="2"`;

const dot = (x: number, y: number, style: Style) => `<circle cx="${x}" cy="${y}" r="4" ${filled(style)}/>`;

function square(x: number, y: number, style: Style): string {
  return `<rect x="${round(x - 4.5)}" y="${round(y - 4.5)}" width="9" height="9" ${filled(style)}/>`;
}

/** Where numbers lie, from 0 to 1. */
interface Scale {
  readonly ticks: readonly number[];
  at(value: number): number;
}

/** From 0 to the next round number. */
function linear(values: readonly number[]): Scale {
  const most = Math.max(...values);
  const unit = 10 ** Math.floor(Math.log10(most));
  const end = [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((step) => step * unit).find((step) => step >= most) ?? most;
  return { ticks: Array.from({ length: 6 }, (_, i) => (end * i) / 5), at: (value) => value / end };
}

/** Between round numbers around all. */
function logarithmic(values: readonly number[]): Scale {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const steps = [1, 2, 5];
  const all = Array.from({ length: 60 }, (_, i) => (steps[i % 3] as number) * 10 ** (Math.floor(i / 3) - 10));
  const [from, to] = [all.findLastIndex((tick) => tick <= least), all.findIndex((tick) => tick > most)];
  const ticks = all.slice(from, to + 1);
  const [first = 1, last = 1] = [ticks[0], ticks.at(-1)];
  return { ticks, at: (value) => Math.log(value / first) / Math.log(last / first) };
}

const label = (value: number) => String(Number(value.toPrecision(3)));
const round = (value: number) => Math.round(10 * value) / 10;
