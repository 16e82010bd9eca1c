import { OctconvError, show } from '../error.js';
import { isCounter, type WeightSource } from './source.js';

/**
 * Compares a source with the parameters that a network expects: what is missing, extra or wrongly shaped becomes one
 * error that names the first ten and counts the rest. `num_batches_tracked` is optional.
 */
export function checkWeights(
  expected: ReadonlyMap<string, readonly number[]>,
  source: Pick<WeightSource, 'name' | 'tensors'>,
): void {
  const problems: string[] = [];
  for (const [name, shape] of expected) {
    const got = source.tensors.get(name)?.shape;
    if (!got) {
      if (!isCounter(name)) problems.push(`missing ${show(name)} ${show(shape)}`);
    } else if (got.length !== shape.length || got.some((size, i) => size !== shape[i])) {
      problems.push(`${show(name)} is ${show(got)}, wanted ${show(shape)}`);
    }
  }
  for (const [name, { shape }] of source.tensors) {
    if (!expected.has(name) && !isCounter(name)) problems.push(`extra ${show(name)} ${show(shape)}`);
  }
  if (problems.length === 0) return;
  const rest = problems.length - 10;
  const list = problems.slice(0, 10).join('; ') + (rest > 0 ? `; and ${rest} more` : '');
  throw new OctconvError(`${source.name ?? 'weights'}: the parameters do not fit the network: ${list}`);
}
