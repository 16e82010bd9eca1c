/** Milliseconds over FLOPs as alpha grows, like figure 4 of the paper; one curve for each engine. SVG. */
import type { ModelRow, ModelsResult } from './models.js';

const size = { width: 760, height: 460, left: 64, right: 150, top: 48, bottom: 56 };
const colours = { ours: '#0b6e4f', onnxruntime: '#c8553d' };

/** @param threads which rows of the result are drawn */
export function chart(result: ModelsResult, threads: number): string {
  const rows = result.rows.filter((row) => row.threads === threads).sort((a, b) => a.gmadds - b.gmadds);
  const most = { x: ceil(Math.max(...rows.map((r) => r.gmadds))), y: ceil(Math.max(...rows.flatMap((r) => [r.ours.median, r.theirs.median]))) };
  const x = (gmadds: number) => size.left + (gmadds / most.x) * (size.width - size.left - size.right);
  const y = (ms: number) => size.height - size.bottom - (ms / most.y) * (size.height - size.top - size.bottom);
  const text = (at: [number, number], content: string, more = '') => `<text x="${at[0].toFixed(1)}" y="${at[1].toFixed(1)}" ${more}>${content}</text>`;
  const ticks = (limit: number) => Array.from({ length: 6 }, (_, i) => (limit * i) / 5);
  const grid = [
    ...ticks(most.x).map((t) => `<path d="M${x(t)} ${y(0)}V${y(most.y)}"/>${text([x(t), y(0) + 18], label(t), 'text-anchor="middle"')}`),
    ...ticks(most.y).map((t) => `<path d="M${x(0)} ${y(t)}H${x(most.x)}"/>${text([x(0) - 8, y(t) + 4], label(t), 'text-anchor="end"')}`),
  ];
  const curve = (name: 'ours' | 'onnxruntime', time: (row: ModelRow) => number) => {
    const octave = rows.filter((row) => row.alpha !== undefined);
    const plain = rows.find((row) => row.alpha === undefined);
    const dots = octave.map((row) => `<circle cx="${x(row.gmadds).toFixed(1)}" cy="${y(time(row)).toFixed(1)}" r="4"/>`);
    const square = plain ? `<rect x="${(x(plain.gmadds) - 5).toFixed(1)}" y="${(y(time(plain)) - 5).toFixed(1)}" width="10" height="10"/>` : '';
    const points = octave.map((row) => `${x(row.gmadds).toFixed(1)},${y(time(row)).toFixed(1)}`).join(' ');
    return `<g fill="${colours[name]}"><polyline points="${points}" fill="none" stroke="${colours[name]}" stroke-width="2"/>${dots.join('')}${square}</g>`;
  };
  const alphas = rows.filter((row) => row.alpha !== undefined).map((row) => text([x(row.gmadds), y(row.ours.median) + 20], `α ${row.alpha}`, 'text-anchor="middle" fill="#555"'));
  const legend = (['ours', 'onnxruntime'] as const).map((name, i) => {
    const at = size.top + 24 * i;
    return `<circle cx="${size.width - 134}" cy="${at - 4}" r="5" fill="${colours[name]}"/>${text([size.width - 122, at], name === 'ours' ? 'octconv' : name)}`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${size.width} ${size.height}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="white"/>
${text([size.left, 26], `${rows[0]?.network.replace('oct-', '')} with octave convolution: milliseconds per image, ${threads} thread${threads > 1 ? 's' : ''}, batch ${result.batch}`, 'font-size="15" font-weight="bold"')}
<g stroke="#ddd" fill="#333" stroke-width="1">${grid.join('\n').replaceAll('<text', '<text stroke="none"')}</g>
${text([(size.left + size.width - size.right) / 2, size.height - 14], 'multiply-adds, G', 'text-anchor="middle"')}
${curve('onnxruntime', (row) => row.theirs.median)}
${curve('ours', (row) => row.ours.median)}
${alphas.join('\n')}
${legend.join('\n')}
${text([size.width - 140, size.top + 54], '● octave, by alpha')}
${text([size.width - 140, size.top + 74], '■ plain network')}
</svg>
`;
}

/** The next round number. */
function ceil(value: number): number {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((step) => step * unit).find((step) => step >= value) ?? value;
}

const label = (value: number) => String(Number(value.toPrecision(3)));
