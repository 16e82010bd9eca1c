import { show } from '../error.js';
import type { WeightSource } from './source.js';

/** What DataParallel and torch.compile put in front of every name. */
const wrappers = ['module.', '_orig_mod.'];
/** Fields that people keep a network in, which none of our networks has. */
const holders = ['model.', 'backbone.', 'net.', 'network.', 'encoder.', 'resnet.'];

/** Counters that PyTorch, profilers and averages keep beside the parameters: no network reads them. */
const ignored = new Set(['num_batches_tracked', '_extra_state', 'total_ops', 'total_params', 'n_averaged']);

export function isIgnored(name: string): boolean {
  return ignored.has(name.slice(name.lastIndexOf('.') + 1));
}

/** `there are "a", "b", "c" and 20 more` */
export function someOf(names: Iterable<string>): string {
  const all = [...names];
  return all.length === 0 ? 'there is none' : `there ${all.length === 1 ? 'is' : 'are'} ${firstOf(all)}`;
}

function firstOf(names: readonly string[]): string {
  const rest = names.length - 3;
  return names.slice(0, 3).map(show).join(', ') + (rest > 0 ? ` and ${rest} more` : '');
}

/** What a reader has to say about a file. */
export function readingNotes(doubles: number, unreadable: Iterable<string>): string[] {
  const notes: string[] = [];
  if (doubles > 0) notes.push(`float64 read as f32: ${doubles} tensor${doubles === 1 ? '' : 's'}`);
  const left = [...unreadable];
  if (left.length > 0) notes.push(`left out, cannot be read: ${firstOf(left)}`);
  return notes;
}

/** The same tensors without what a wrapper put in front of every name. */
export function withoutWrappers(source: WeightSource): WeightSource {
  return withoutPrefixes(source, wrappers);
}

/**
 * The tensors of a registered network by their usual names: without prefixes that all have, and with the classifier
 * called `fc`, which is `fc.1` behind a dropout. For other networks those names may be right.
 */
export function withUsualNames(source: WeightSource): WeightSource {
  return withPlainHead(withoutPrefixes(source, [...wrappers, ...holders]));
}

function withoutPrefixes(source: WeightSource, prefixes: readonly string[]): WeightSource {
  const names = [...source.tensors.keys()];
  let prefix = '';
  for (;;) {
    const next = prefixes.find((each) => names.every((name) => name.startsWith(each, prefix.length)));
    if (next === undefined || names.length === 0) break;
    prefix += next;
  }
  if (prefix === '') return source;
  return renamed(
    source,
    (name) => (name.startsWith(prefix) ? name.slice(prefix.length) : name),
    `every name without its ${show(prefix)}`,
  );
}

function withPlainHead(source: WeightSource): WeightSource {
  const head = [...source.tensors].filter(([name]) => name.startsWith('fc.'));
  const [layer] = /^fc\.\d+\./.exec(head[0]?.[0] ?? '') ?? [];
  const ranks = new Map([
    [`${layer}weight`, 2],
    [`${layer}bias`, 1],
  ]);
  if (layer === undefined || !head.every(([name, { shape }]) => ranks.get(name) === shape.length)) return source;
  const rename = (name: string) => (name.startsWith(layer) ? `fc.${name.slice(layer.length)}` : name);
  return renamed(source, rename, `${show(layer.slice(0, -1))} is the classifier "fc"`);
}

/** A source whose tensors have other names, all of them different. */
function renamed(source: WeightSource, rename: (name: string) => string, note: string): WeightSource {
  const before = new Map([...source.tensors.keys()].map((name) => [rename(name), name]));
  return {
    ...source,
    tensors: new Map([...source.tensors].map(([name, info]) => [rename(name), info])),
    unreadable: new Map([...(source.unreadable ?? [])].map(([name, why]) => [rename(name), why])),
    notes: [...(source.notes ?? []), note],
    read: (name, memory) => source.read(before.get(name) ?? name, memory),
    close: () => source.close(),
  };
}
