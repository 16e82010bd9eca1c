/** Milliseconds over multiply-adds as alpha grows, like figure 4 of the paper; a curve for each engine. SVG. */
import type { ModelRow, ModelsResult } from './models.js';
import { threadsOf } from './table.js';

const [width, height] = [800, 460];
const plot = { left: 64, right: width - 190, top: 60, bottom: height - 56 };

const engines = [
  { name: 'onnxruntime', colour: '#c8553d', time: (row: ModelRow) => row.theirs.median },
  { name: 'octconv', colour: '#0b6e4f', time: (row: ModelRow) => row.ours.median },
];

/** @param threads which rows of the result are drawn */
export function chart(result: ModelsResult, threads: number): string {
  const rows = result.rows.filter((row) => row.threads === threads).sort((a, b) => a.gmadds - b.gmadds);
  const octave = rows.filter(({ alpha }) => alpha !== undefined);
  const plain = rows.filter(({ alpha }) => alpha === undefined);
  const most = (of: (row: ModelRow) => number) => roundUp(Math.max(...rows.map(of)));
  const mostX = most(({ gmadds }) => gmadds);
  const mostY = Math.max(...engines.map(({ time }) => most(time)));
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
  const curves = engines.flatMap(({ colour, time }) => [
    line(octave.map((row) => `${x(row.gmadds)},${y(time(row))}`), colour),
    ...octave.map((row) => dot(x(row.gmadds), y(time(row)), colour)),
    ...plain.map((row) => square(x(row.gmadds), y(time(row)), colour)),
  ]);
  const alphas = rows.map(({ gmadds, alpha }) =>
    text(x(gmadds), plot.bottom - 10, alpha === undefined ? 'plain' : `α ${alpha}`, 'middle'),
  );
  const right = plot.right + 24;
  const legend = engines.flatMap(({ name, colour }, i) => [
    dot(right, plot.top + 8 + 48 * i, colour),
    text(right + 14, plot.top + 12 + 48 * i, `${name}, octave`),
    square(right, plot.top + 30 + 48 * i, colour),
    text(right + 14, plot.top + 34 + 48 * i, `${name}, plain`),
  ]);
  const name = plain[0]?.network.replace('resnet', 'ResNet') ?? '';
  const title = `${name} and octave ${name}, ${result.size} px, batch ${result.batch}, ${threadsOf(threads)}`;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="13">`,
    `<title>${title}</title>`,
    '<rect width="100%" height="100%" fill="white"/>',
    `<g font-size="15" font-weight="bold">${text(plot.left, 26, title)}</g>`,
    text(plot.left, plot.top - 12, 'ms per image, median', 'start'),
    text((plot.left + plot.right) / 2, height - 16, 'G multiply-adds per image', 'middle'),
    ...grid,
    ...curves,
    ...alphas,
    ...legend,
    '</svg>',
    '',
  ].join('\n');
}

function text(x: number, y: number, content: string, anchor: 'start' | 'middle' | 'end' = 'start'): string {
  return `<text x="${x}" y="${y}" text-anchor="${anchor}" fill="#333">${content}</text>`;
}

function line(points: readonly string[], colour: string): string {
  return `<polyline points="${points.join(' ')}" fill="none" stroke="${colour}" stroke-width="2"/>`;
}

const dot = (x: number, y: number, colour: string) => `<circle cx="${x}" cy="${y}" r="4.5" fill="${colour}"/>`;

function square(x: number, y: number, colour: string): string {
  return `<rect x="${round(x - 5)}" y="${round(y - 5)}" width="10" height="10" fill="${colour}"/>`;
}

/** The next number that a scale can end with. */
function roundUp(value: number): number {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((step) => step * unit).find((step) => step >= value) ?? value;
}

const ticks = (end: number) => Array.from({ length: 6 }, (_, i) => (end * i) / 5);
const label = (value: number) => String(Number(value.toPrecision(3)));
const round = (value: number) => Math.round(10 * value) / 10;
