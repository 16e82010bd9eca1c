/** What the commands print. Nothing here needs the native addon, so that its absence can be told in a line. */
import { styleText } from 'node:util';
import type { SingleBar } from 'cli-progress';

/** A command was used in a way that its options allow but that makes no sense: exit code 2. */
export class UsageError extends Error {}

export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

export function printJson(value: unknown): void {
  print(JSON.stringify(value));
}

/** One line, whatever the message; nothing in a file's name reaches the terminal as a command. */
export function printError(message: string): void {
  process.stderr.write(`octconv: ${printable(message)}\n`);
}

/** Control characters become spaces. */
export const printable = (text: string): string => text.replace(/\p{Cc}+/gu, ' ');

const coloured = Boolean(process.stdout.isTTY) && !process.env.NO_COLOR;

/** Colour on a terminal only. */
export function style(format: Parameters<typeof styleText>[0], text: string): string {
  return coloured ? styleText(format, text) : text;
}

/** A line on a terminal's stderr that the next one replaces. */
export function progressLine(): { show(text: string): void; clear(): void } {
  if (!process.stderr.isTTY) return { show() {}, clear() {} };
  return {
    show: (text) => process.stderr.write(`\r\x1b[2K${text}`),
    clear: () => process.stderr.write('\r\x1b[2K'),
  };
}

/** A bar on a terminal's stderr. */
export async function progressBar(format: string): Promise<SingleBar | undefined> {
  if (!process.stderr.isTTY) return undefined;
  const { SingleBar } = await import('cli-progress');
  return new SingleBar({ format, stream: process.stderr, etaBuffer: 1000 });
}

export const count = (n: number): string => n.toLocaleString('en-US');
export const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
