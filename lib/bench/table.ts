import { stripVTControlCharacters } from 'node:util';
import type { NetworkOptions } from '../models/options.js';
import type { Shape } from '../tensor.js';

export interface TableOptions {
  /** Columns that are flush left beside the first one. */
  readonly left?: readonly string[];
  /** Whether the names are shown; by default they are. */
  readonly named?: boolean;
  /** Columns that go when the table is too wide, in this order. */
  readonly drop?: readonly string[];
  /** Where those can be seen that went. */
  readonly elsewhere?: string;
  /** Characters of a line; default: as the terminal has. */
  readonly width?: number;
}

/** Characters of a line on the terminal; without one lines may be of any length. */
export const terminalWidth = (): number => process.stdout.columns ?? Number.POSITIVE_INFINITY;

/**
 * Columns as wide as their content. A last line names those that went; rows
 * are in several lines where no column is left that could go.
 */
export function table(
  head: readonly string[],
  lines: readonly (readonly string[])[],
  options: TableOptions = {},
): string {
  const { left = [], elsewhere, named = true, width = terminalWidth() } = options;
  const drop = (options.drop ?? []).map((name) => head.indexOf(name)).filter((at) => at >= 0);
  const titles = head.map((name) => (named ? name : ''));
  const widths = titles.map((title, i) => Math.max(title.length, ...lines.map((line) => line[i]?.length ?? 0)));
  const flush = head.map((name, i) => i === 0 || left.includes(name));
  const kept = new Set(head.keys());
  const total = () => [...kept].reduce((sum, i) => sum + (widths[i] ?? 0) + 2, -2);
  for (const at of drop) if (total() > width) kept.delete(at);
  if (total() > width) {
    const cellsOf = (line: readonly string[]) => titles.map((title, i) => [title, line[i] ?? ''] as const);
    return lines.map((line) => stacked(cellsOf(line), width)).join('\n');
  }
  for (const at of drop.toReversed()) {
    // Behind a wide one that went, narrow ones fit again.
    if (!kept.has(at) && total() + 2 + (widths[at] ?? 0) <= width) kept.add(at);
  }
  const cells = [...head.keys()].filter((i) => kept.has(i));
  const cell = (text: string, i: number) => (flush[i] ? text.padEnd(widths[i] ?? 0) : text.padStart(widths[i] ?? 0));
  const rows = [...(named ? [head] : []), ...lines].map((row) =>
    cells
      .map((i) => cell(row[i] ?? '', i))
      .join('  ')
      .trimEnd(),
  );
  const gone = head.filter((_, i) => !kept.has(i));
  const [first, ...others] = gone;
  const note = first === undefined ? [] : wrapped([`no room for ${first}`, ...others], width, ', ');
  const hint = first === undefined || elsewhere === undefined ? [] : wrapped(elsewhere.split(' '), width);
  return [...rows, ...note, ...hint].join('\n');
}

/** A row as its first cell, and the others with their names below it. */
function stacked([[, title] = ['', ''], ...cells]: readonly (readonly [string, string])[], width: number): string {
  const words = cells.filter(([, text]) => text).map(([name, text]) => `${name} ${text}`.trim());
  const lines = wrapped(words, width - 2, ', ').map((line) => hanging('  ', line, 4, width));
  return [title, ...lines].join('\n');
}

/** A text behind the head of its first line, which may be coloured, the other lines indented. */
export function hanging(head: string, text: string, indent: number, width = terminalWidth()): string {
  if (stripVTControlCharacters(head).length + text.length <= width) return head + text;
  const lines = wrapped(text.split(' '), Math.max(16, width - indent));
  return head + lines.join(`\n${' '.repeat(indent)}`);
}

/** Pieces of text in as few lines as hold them. */
export function wrapped(pieces: readonly string[], width: number, comma = ' '): string[] {
  const lines: string[] = [];
  for (const piece of pieces) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + comma.length + piece.length <= width)
      lines[lines.length - 1] = last + comma + piece;
    else lines.push(piece);
  }
  return lines;
}

export const kindOf = (frames: number | undefined): string => (frames === undefined ? 'image' : 'clip');

export const share = (part: number): string => `${(100 * part).toFixed(0)} %`;

const counted = (count: number | string, thing: string) => `${count} ${thing}${Number(count) === 1 ? '' : 's'}`;
export const threadsOf = (count: number | string): string => counted(count, 'thread');
export const roundsOf = (count: number, kind = ''): string => counted(count, `${kind}round`);

/** Options of a network; undefined where there are none. */
export const givenOf = (options: NetworkOptions = {}): NetworkOptions | undefined =>
  Object.keys(options).length > 0 ? options : undefined;

/** What an option of a network is, in a word. */
export const wordOf = (value: unknown): string => (Array.isArray(value) ? JSON.stringify(value) : String(value));

/** The options of a network in words, each with a comma behind it. */
export const optionsIn = (options: NetworkOptions = {}): string =>
  Object.entries(options)
    .map(([name, value]) => (name === 'nonLocal' ? 'non-local blocks, ' : `${name} ${wordOf(value)}, `))
    .join('');

/** Of an input; undefined of images. */
export const framesOf = ({ length, 1: frames }: Shape) => (length === 5 ? frames : undefined);
/** What a table says of the inputs. */
export const sizeOf = ({ size, frames }: { size: number; frames?: number | undefined }) =>
  `${frames === undefined ? '' : `${frames} x `}${size} x ${size}`;
