/**
 * Every error that a user can cause: `prefix: what was found, what was wanted`; the prefix is an op or a file. The
 * message is one line of a bounded length, whatever foreign text is in it.
 */
export class OctconvError extends Error {
  override readonly name = 'OctconvError';

  constructor(message: string, options?: ErrorOptions) {
    super(oneLine(message), options);
  }
}

/** The source, a file or what stands for one, is at fault; the prefix is its name, or the file in it. */
export class SourceError extends OctconvError {}

/** A source that could be read another time: it came too slowly, or what holds it does not answer. */
export class PassingError extends SourceError {}

/** This machine lacks something: no input is at fault. */
export class MachineError extends OctconvError {}

/** The longest message. The end is kept when it is cut: it says what was wanted. */
const longest = 2000;
const end = 400;

/** Characters that end a line, move the cursor of a terminal, or turn the direction of text. */
const control = /[\p{Cc}\u2028\u2029\u202a-\u202e\u2066-\u2069]/gu;

function oneLine(text: string): string {
  const cut = text.length > longest ? `${text.slice(0, longest - end)} ... ${text.slice(-end)}` : text;
  return printable(cut);
}

/** Foreign text on one line, in which nothing is a command to a terminal. */
export function printable(text: string): string {
  return text.replace(control, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

/** What was wanted, as in `f32, bf16 or i8`. */
export const oneOf = (names: readonly string[]): string => names.join(', ').replace(/, ([^,]*)$/, ' or $1');

const shown = 120;

/**
 * A value from a file as one short line of an error: JSON, cut. What is cut off costs no work, even where values share
 * parts.
 */
export function show(value: unknown): string {
  const text = write(value, shown + 1);
  return text.length > shown ? `${text.slice(0, shown - 3)}...` : text;
}

/** The beginning of a value as JSON: `room` characters or more if there are as many, in work of that order. */
function write(value: unknown, room: number): string {
  if (typeof value === 'string') return JSON.stringify(value.slice(0, room));
  if (typeof value === 'number' || typeof value === 'bigint') return String(value);
  if (typeof value !== 'object' || value === null) return JSON.stringify(value) ?? 'nothing';
  const list = Array.isArray(value);
  let text = list ? '[' : '{';
  for (const key of list ? value.keys() : Object.keys(value)) {
    if (text.length >= room) return text;
    if (text.length > 1) text += ',';
    if (!list) text += `${write(String(key), room)}:`;
    text += write((value as Record<string | number, unknown>)[key], room - text.length);
  }
  return text + (list ? ']' : '}');
}
