/** Schemas of the files that people write, and errors in our words: what was found, what was wanted. */
import * as v from 'valibot';
import { OctconvError, show } from '../error.js';
import { didYouMean } from '../options.js';

export type { InferInput, InferOutput } from 'valibot';

/** A number within bounds, both included. */
export const numberIn = (least: number, most: number, wanted: string) =>
  v.pipe(v.number(wanted), v.minValue(least, wanted), v.maxValue(most, wanted));

export const integerIn = (least: number, most: number) => {
  const wanted = `an integer from ${least} to ${most}`;
  return v.pipe(v.number(wanted), v.integer(wanted), v.minValue(least, wanted), v.maxValue(most, wanted));
};

export const oneOf = <const Names extends readonly string[]>(...names: Names) =>
  v.picklist(names, names.map((name) => JSON.stringify(name)).join(' or '));

/** An object that has no other fields than these: a misspelt one would silently be a default. */
export const object = <const Entries extends v.ObjectEntries>(entries: Entries) =>
  v.strictObject(entries, ({ expected }) => {
    if (expected === 'never') return Object.keys(entries).join(', ');
    const missing = expected?.startsWith('"') ? entries[JSON.parse(expected)] : undefined;
    return (missing && v.safeParse(missing, undefined).issues?.[0].message) ?? 'an object';
  });

/**
 * A value that has the form of the schema, with its defaults.
 * @throws OctconvError `where: at.field is 3, wanted ...`
 */
export function parse<Schema extends v.GenericSchema>(
  schema: Schema,
  value: unknown,
  where: string,
  at = '',
  /** `abortEarly`: the first fault ends it. Strangers may send millions. */
  config: { readonly abortEarly?: boolean } = {},
): v.InferOutput<Schema> {
  const { success, output, issues } = v.safeParse(schema, value, config);
  if (success) return output;
  const unknown = issues.find(({ type, expected }) => type === 'strict_object' && expected === 'never');
  const issue = unknown ?? issues[0];
  // For valibot a list is an object, too, that lacks fields.
  const list = Array.isArray(issue.path?.at(-1)?.input) && issue.type === 'strict_object';
  const path = issue.path?.slice(0, list ? -1 : undefined) ?? [];
  const name = path.reduce(
    (text, { key }) => (typeof key === 'number' ? `${text}[${key}]` : text ? `${text}.${key}` : `${key}`),
    at,
  );
  if (unknown && !list) {
    const near = didYouMean(path.at(-1)?.key, issue.message.split(', '));
    throw new OctconvError(`${where}: unknown field ${show(name)}${near}, wanted ${issue.message}`);
  }
  const found = path.length ? path.at(-1)?.value : value;
  throw new OctconvError(
    `${where}: ${name || 'the file'} is ${show(found)}, wanted ${list ? 'an object' : issue.message}`,
  );
}
