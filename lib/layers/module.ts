import { OctconvError, show } from '../error.js';
import { Parameter, type Value } from '../graph/graph.js';
import { check } from '../graph/shape.js';
import type { Spatial } from '../tensor.js';
import { atOnce, type Work } from '../turns.js';

/** A recorded image or video, what layers take and give: [N, H, W, C] or [N, T, H, W, C]. */
export type Feature = Value<'f32', Spatial>;

/**
 * A part of a network: its fields, which are parameters, other modules and arrays of these, and a `forward` that
 * records ops. A parameter's name is its property path, `layer1.0.conv1.weight`, as in PyTorch.
 */
export abstract class Module<X = never, Y = unknown> {
  abstract forward(x: X, ...more: never[]): Y;
}

/**
 * A network of many parts: `work` is its `forward` with a `yield` behind each part. A `Model` records it in turns of
 * the event loop; hundreds of ops take longer than others should wait.
 */
export abstract class DeepModule<X = never, Y = unknown> extends Module<X, Y> {
  abstract work(x: X): Work<Y>;

  forward(x: X): Y {
    return atOnce(this.work(x));
  }
}

/** @throws OctconvError for a number of channels, or of their groups, that is none. */
export function checkCounts(where: string, counts: { readonly [name: string]: number }): void {
  for (const [name, count] of Object.entries(counts))
    check(where, Number.isInteger(count) && count > 0, `${name} ${show(count)}, wanted a positive integer`);
}

/** Every parameter of a network by property path, in the order of the fields. */
export const namedParameters = (module: Module): Map<string, Parameter> => atOnce(findParameters(module));

/** The same as work. */
export function* findParameters(module: Module): Work<Map<string, Parameter>> {
  if (typeof module !== 'object' || module === null)
    throw new OctconvError(`module: got ${show(module)}, wanted a Module`);
  const found = new Map<string, Parameter>();
  const places = new Map<Parameter, string>();
  const open = new Set<unknown>();
  const wrong = (path: string, what: string): never => {
    throw new OctconvError(`module: '${path}' ${what}`);
  };
  const walk = function* (part: unknown, path: string, named: boolean): Work<void> {
    if (part instanceof Parameter) {
      if (places.has(part)) wrong(path, `is also '${places.get(part)}', wanted one place`);
      // Two paths must not read the same, and constants of a graph are called #1, #2, ...
      if (!named) wrong(path, `has a field with '.' or '#' in its name, wanted none`);
      places.set(part, path);
      found.set(path, part);
    } else if (part instanceof Module || Array.isArray(part)) {
      if (open.has(part)) wrong(path, 'leads back to a module that holds it, wanted a tree');
      open.add(part);
      for (const [key, value] of Object.entries(part)) {
        if (typeof value !== 'object') continue;
        const fine = key !== '' && !key.includes('.') && !key.includes('#');
        yield* walk(value, part === module ? key : `${path}.${key}`, named && fine);
      }
      open.delete(part);
      yield;
    }
  };
  yield* walk(module, '', true);
  return found;
}

/** What a weight file must hold for a network. */
export const parameterShapes = (module: Module): Map<string, readonly number[]> => shapesOf(namedParameters(module));

export const shapesOf = (parameters: ReadonlyMap<string, Parameter>): Map<string, readonly number[]> =>
  new Map([...parameters].map(([name, { shape }]) => [name, shape]));
