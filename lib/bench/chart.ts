/**
 * Milliseconds over multiply-adds as alpha grows, like figure 4 of the paper: a curve for each engine and data type, at
 * the first batch size and thread count of a result. SVG.
 */
import type { ComputeType } from '../graph/graph.js';
import type { ModelRow, ModelsResult } from './models.js';
import { kindOf, sizeOf, threadsOf } from './table.js';

const [width, height] = [800, 460];
const plot = { left: 64, right: width - 190, top: 60, bottom: height - 56 };

const colours: Record<ComputeType, string> = { f32: '#0b6e4f', bf16: '#4a6fa5', f16: '#8e6c8a', i8: '#c8553d' };

interface Curve {
  readonly name: string;
  readonly colour: string;
  readonly dashed: boolean;
  /** By alpha; the plain network has none. */
  readonly points: Map<number | undefined, { readonly gmadds: number; readonly ms: number }>;
}

/** onnxruntime's f32 is one curve, though it is timed beside our f32 and our bf16. */
function curvesOf(rows: readonly ModelRow[]): Curve[] {
  const curves = new Map<string, Curve>();
  const add = (engine: string, dtype: ComputeType, { alpha, gmadds }: ModelRow, ms: number) => {
    const name = `${engine} ${dtype}`;
    const curve = curves.get(name) ?? { name, colour: colours[dtype], dashed: engine !== 'octconv', points: new Map() };
    curves.set(name, curve);
    if (!curve.points.has(alpha)) curve.points.set(alpha, { gmadds, ms });
  };
  for (const row of rows) {
    add('onnxruntime', row.peerDType, row, row.theirs.median);
    add('octconv', row.dtype, row, row.ours.median);
  }
  return [...curves.values()];
}

export function chart(result: ModelsResult): string {
  const { batch, threads } = result.rows[0] ?? { batch: 1, threads: 1 };
  const rows = result.rows
    .filter((row) => row.batch === batch && row.threads === threads)
    .sort((a, b) => a.gmadds - b.gmadds);
  const curves = curvesOf(rows);
  const points = curves.flatMap((curve) => [...curve.points.values()]);
  const mostX = roundUp(Math.max(...points.map(({ gmadds }) => gmadds)));
  const mostY = roundUp(Math.max(...points.map(({ ms }) => ms)));
  const x = (gmadds: number) => round(plot.left + (gmadds / mostX) * (plot.right - plot.left));
  const y = (ms: number) => round(plot.bottom - (ms / mostY) * (plot.bottom - plot.top));

  const grid = ticks(mostX).flatMap((at) => [
    `<path d="M${x(at)} ${plot.bottom}V${plot.top}" stroke="#ddd"/>`,
    text(x(at), plot.bottom + 18, label(at), 'middle'),
  ]);
  for (const at of ticks(mostY)) {
    grid.push(`<path d="M${plot.left} ${y(at)}H${plot.right}" stroke="#ddd"/>`);
    grid.push(text(plot.left - 8, y(at) + 4, label(at), 'end'));
  }
  const drawn = curves.flatMap(({ points, ...style }) => {
    const octave = [...points].flatMap(([alpha, point]) => (alpha === undefined ? [] : point));
    const plain = points.get(undefined);
    return [
      line(
        octave.map(({ gmadds, ms }) => `${x(gmadds)},${y(ms)}`),
        style,
      ),
      ...octave.map(({ gmadds, ms }) => dot(x(gmadds), y(ms), style)),
      ...(plain ? [square(x(plain.gmadds), y(plain.ms), style)] : []),
    ];
  });
  let [last, raised] = [Number.NEGATIVE_INFINITY, false];
  const alphas = [...(curves[0]?.points ?? [])].map(([alpha, { gmadds }]) => {
    const at = x(gmadds);
    raised = !raised && at - last < 48; // else it would cover the one before
    last = at;
    return text(at, plot.bottom - (raised ? 28 : 10), alpha === undefined ? 'plain' : `α ${alpha}`, 'middle');
  });
  const right = plot.right + 24;
  const legend = curves.flatMap((curve, i) => {
    const at = plot.top + 8 + 24 * i;
    return [line([`${right},${at}`, `${right + 28},${at}`], curve), text(right + 38, at + 4, curve.name)];
  });
  const below = plot.top + 8 + 24 * curves.length;
  const black = { colour: '#333', dashed: false };
  legend.push(dot(right + 14, below, black), text(right + 38, below + 4, 'octave'));
  legend.push(square(right + 14, below + 24, black), text(right + 38, below + 28, 'plain'));
  const { size, frames, nonLocal } = result;
  const kind = kindOf(frames);
  const network = rows.find(({ alpha }) => alpha === undefined)?.network ?? '';
  const name = network.replace('resnet', 'ResNet').replace(/^(i3d|c2d)/, (video) => video.toUpperCase());
  const extent = frames === undefined ? `${size} px` : sizeOf({ size, frames });
  const title = `${name} and octave ${name}${nonLocal ? ' with non-local blocks' : ''}, ${extent}, batch ${batch}, ${threadsOf(threads)}`;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="13">`,
    `<title>${title}</title>`,
    '<rect width="100%" height="100%" fill="white"/>',
    `<g font-size="15" font-weight="bold">${text(plot.left, 26, title)}</g>`,
    text(plot.left, plot.top - 12, `ms per ${kind}, median`, 'start'),
    text((plot.left + plot.right) / 2, height - 16, `G multiply-adds per ${kind}`, 'middle'),
    ...grid,
    ...drawn,
    ...alphas,
    ...legend,
    '</svg>',
    '',
  ].join('\n');
}

function text(x: number, y: number, content: string, anchor: 'start' | 'middle' | 'end' = 'start'): string {
  return `<text x="${x}" y="${y}" text-anchor="${anchor}" fill="#333">${content}</text>`;
}

type Style = Pick<Curve, 'colour' | 'dashed'>;

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

/** The next number that a scale can end with. */
function roundUp(value: number): number {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((step) => step * unit).find((step) => step >= value) ?? value;
}

const ticks = (end: number) => Array.from({ length: 6 }, (_, i) => (end * i) / 5);
const label = (value: number) => String(Number(value.toPrecision(3)));
const round = (value: number) => Math.round(10 * value) / 10;
