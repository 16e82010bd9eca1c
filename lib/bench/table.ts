/** Columns; the first one is flush left, and so are those called `left`. */
export function table(head: readonly string[], lines: readonly (readonly string[])[], left: readonly string[] = []): string {
  const widths = head.map((name, i) => Math.max(name.length, ...lines.map((line) => line[i]?.length ?? 0)));
  const flush = head.map((name, i) => i === 0 || left.includes(name));
  const cell = (text: string, i: number) => (flush[i] ? text.padEnd(widths[i] ?? 0) : text.padStart(widths[i] ?? 0));
  return [head, ...lines].map((row) => row.map(cell).join('  ').trimEnd()).join('\n');
}

export const share = (part: number): string => `${(100 * part).toFixed(0)} %`;

export const threadsOf = (count: number | string): string => `${count} thread${Number(count) === 1 ? '' : 's'}`;
