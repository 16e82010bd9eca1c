/** Columns, the first flush left. */
export function table(head: readonly string[], lines: readonly (readonly string[])[]): string {
  const widths = head.map((name, i) => Math.max(name.length, ...lines.map((line) => line[i]?.length ?? 0)));
  const cell = (text: string, i: number) => (i ? text.padStart(widths[i] ?? 0) : text.padEnd(widths[i] ?? 0));
  return [head, ...lines].map((row) => row.map(cell).join('  ')).join('\n');
}

export const share = (part: number): string => `${(100 * part).toFixed(0)} %`;

export const threadsOf = (count: number | string): string => `${count} thread${Number(count) === 1 ? '' : 's'}`;
