/** What the commands print. Nothing here needs the native addon, so that its absence can be told in a line. */
import { styleText } from 'node:util';
import { hanging, terminalWidth } from '../bench/table.js';
import { printable } from '../error.js';

export { printable };

/** A command was used in a way that its options allow but that makes no sense: exit code 2. */
export class UsageError extends Error {}

const coloured = Boolean(process.stdout.isTTY) && !process.env.NO_COLOR;

/** Lines for people: of what can move the cursor only our colours pass. */
export function print(text: string): void {
  process.stdout.write(`${safe(text)}\n`);
}

/** One line for people, wrapped at words where the terminal is narrower. */
export function say(text: string): void {
  print(hanging('', text, 2));
}

/** A text behind its head, in lines of 80 characters, or fewer on a narrow terminal, but the first one indented. */
export const paragraph = (head: string, text: string, indent: number): string =>
  hanging(head, text, indent, Math.min(terminalWidth(), 80));

const safe = (text: string): string =>
  text.replace(/\p{Cc}\[\d+m|\p{Cc}/gu, (found) =>
    found === '\n' || (coloured && found.startsWith('\x1b[')) ? found : printable(found),
  );

export function printJson(value: unknown): void {
  process.stdout.write(`${printable(JSON.stringify(value))}\n`);
}

/** The same on stderr, where standard output is a file's content. */
export function note(text: string): void {
  process.stderr.write(`${printable(text)}\n`);
}

/** One line, whatever the message. */
export const errorLine = (message: string): string => `octconv: ${printable(message)}\n`;

export function printError(message: string): void {
  const { columns = Number.POSITIVE_INFINITY } = process.stderr;
  process.stderr.write(`${hanging('', errorLine(message).trimEnd(), 2, columns)}\n`);
}

/** Colour on a terminal only; the text has none of its own. */
export function style(format: Parameters<typeof styleText>[0], text: string): string {
  return coloured ? styleText(format, text.replaceAll('\x1b', printable)) : text;
}

export const count = (n: number): string => n.toLocaleString('en-US');
export const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
