/** Options that nobody knows are errors: a misspelt one would silently be a default. */
import { OctconvError, show } from './error.js';
import { kindOf } from './graph/graph.js';

/** The names of an object's fields, all of them: `{ device: true, threads: true } satisfies Known<PlanOptions>`. */
export type Known<T> = { readonly [K in keyof T]-?: true };

/**
 * @throws OctconvError for options that are no plain object (what a class inherits may be anything), and for one that is
 * not known, with the name that may be meant.
 */
export function checkOptions(where: string, given: object | undefined, known: Readonly<Record<string, unknown>>): void {
  if (given === undefined) return;
  if (!isPlain(given)) {
    const found = typeof given === 'object' && given !== null ? kindOf(given) : show(given);
    throw new OctconvError(`${where}: options: ${found}, wanted { ${Object.keys(known).join(', ')} }`);
  }
  for (const name in given) if (!Object.hasOwn(known, name)) throw unknownOption(where, name, Object.keys(known));
}

/** Also one of another realm, as test runners make them, whose `Object` is not ours. */
function isPlain(given: object): boolean {
  if (typeof given !== 'object' || given === null) return false;
  const prototype: unknown = Object.getPrototypeOf(given);
  return prototype === Object.prototype || prototype === null || Object.getPrototypeOf(prototype) === null;
}

function unknownOption(where: string, name: string, known: readonly string[]): OctconvError {
  return new OctconvError(
    `${where}: unknown option ${show(name)}${didYouMean(name, known)}, wanted ${known.join(', ')}`,
  );
}

/** ` (did you mean "threads"?)`, where a known name is near. */
export function didYouMean(name: unknown, known: Iterable<string>): string {
  const near = typeof name === 'string' ? nearest(name, known) : undefined;
  return near === undefined ? '' : ` (did you mean ${show(near)}?)`;
}

/** A file may have any names: so long ones, and so many, are looked at. */
const [longest, most] = [64, 1000];

/** The known name that differs least, in case and in less than a third of the letters. */
function nearest(name: string, known: Iterable<string>): string | undefined {
  let [best, least]: [string | undefined, number] = [undefined, Number.POSITIVE_INFINITY];
  let seen = 0;
  for (const other of name.length > longest ? [] : known) {
    if (seen++ === most) break;
    const limit = Math.max(name.length, other.length) / 3;
    if (other.length > longest || Math.abs(name.length - other.length) >= limit) continue;
    const edits = editsBetween(name.toLowerCase(), other.toLowerCase());
    if (edits < least && edits < limit) [best, least] = [other, edits];
  }
  return best;
}

/** Letters to insert, delete, replace or exchange with their neighbour (optimal string alignment). */
function editsBetween(a: string, b: string): number {
  const rows = [Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const at = (up: number, left: number) => rows[i - up]?.[j - left] ?? Number.POSITIVE_INFINITY;
      const replaced = at(1, 1) + Number(a[i - 1] !== b[j - 1]);
      const exchanged = a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1] ? at(2, 2) + 1 : replaced;
      row.push(Math.min(at(1, 0) + 1, (row[j - 1] as number) + 1, replaced, exchanged));
    }
    rows.push(row);
  }
  return rows.at(-1)?.at(-1) ?? 0;
}
