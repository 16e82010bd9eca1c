import { OctconvError, show } from '../error.js';
import { kindOf } from '../graph/graph.js';
import { same } from '../graph/shape.js';
import { isIgnored } from './names.js';
import { besideI8, type TensorInfo, type WeightSource } from './source.js';

/** @throws OctconvError unless it has parameters to read. */
export function checkSource(source: Pick<WeightSource, 'tensors' | 'read'>): void {
  if (typeof source?.tensors?.get === 'function' && typeof source.read === 'function') return;
  const wanted = 'wanted { tensors, read }, as await openWeights(file) and initialize(network) give them';
  throw new OctconvError(`weights: got ${kindOf(source)}, ${wanted}`);
}

/**
 * Compares a source with the parameters that a network expects: what is missing, extra or wrongly shaped becomes one
 * error that names the first ten and counts the rest. Counters as `num_batches_tracked` are optional; weights of i8
 * have their scales beside them.
 */
export function checkWeights(
  expected: ReadonlyMap<string, readonly number[]>,
  source: Pick<WeightSource, 'name' | 'tensors' | 'unreadable'>,
): void {
  const wanted = new Map<string, Partial<TensorInfo> & Pick<TensorInfo, 'shape'>>();
  for (const [name, shape] of expected) {
    wanted.set(name, { shape });
    if (source.tensors.get(name)?.dtype !== 'i8') continue;
    for (const { name: beside, ...info } of Object.values(besideI8(name, shape[0] ?? 0))) wanted.set(beside, info);
  }
  const [wrong, extra]: [string[], string[]] = [[], []];
  for (const [name, { dtype, shape }] of wanted) {
    const got = source.tensors.get(name);
    if (!got) {
      const why = source.unreadable?.get(name);
      if (!isIgnored(name)) wrong.push(why ? `${show(name)} ${why}` : `missing ${show(name)} ${show(shape)}`);
    } else if (!same(got.shape, shape)) {
      wrong.push(`${show(name)} is ${show(got.shape)}, wanted ${show(shape)}`);
    } else if (dtype && got.dtype !== dtype) wrong.push(`${show(name)} is ${got.dtype}, wanted ${dtype}`);
  }
  for (const [name, { shape }] of source.tensors) {
    if (!wanted.has(name) && !isIgnored(name)) extra.push(`extra ${show(name)} ${show(shape)}`);
  }
  const count = wrong.length + extra.length;
  if (count === 0) return;
  // Three of the names that are there say more than an eighth that is missing.
  const extras = extra.slice(0, Math.max(3, 10 - wrong.length));
  const list = [...wrong.slice(0, 10 - extras.length), ...extras];
  const rest = count > list.length ? `; and ${count - list.length} more` : '';
  throw new OctconvError(
    `${source.name ?? 'weights'}: the parameters do not fit the network: ${list.join('; ')}${rest}`,
  );
}
