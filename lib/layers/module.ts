import { OctconvError } from '../error.js';
import { Parameter, type Value } from '../graph/graph.js';
import type { Spatial } from '../tensor.js';

/** A recorded image or video, what layers take and give: [N, H, W, C] or [N, T, H, W, C]. */
export type Feature = Value<'f32', Spatial>;

/**
 * A part of a network: its fields, which are parameters, other modules and arrays of these, and a `forward` that
 * records ops. A parameter's name is its property path, `layer1.0.conv1.weight`, as in PyTorch.
 */
export abstract class Module<X = never, Y = unknown> {
  abstract forward(x: X, ...more: never[]): Y;
}

/** Every parameter of a network by property path, in the order of the fields. */
export function namedParameters(module: Module): Map<string, Parameter> {
  const found = new Map<string, Parameter>();
  const places = new Map<Parameter, string>();
  const open = new Set<unknown>();
  const walk = (part: unknown, path: string, named: boolean): void => {
    const wrong = (what: string): never => {
      throw new OctconvError(`module: '${path}' ${what}`);
    };
    if (part instanceof Parameter) {
      if (places.has(part)) wrong(`is also '${places.get(part)}', wanted one place`);
      // Two paths must not read the same, and constants of a graph are called #1, #2, ...
      if (!named) wrong(`has a field with '.' or '#' in its name, wanted none`);
      places.set(part, path);
      found.set(path, part);
    } else if (part instanceof Module || Array.isArray(part)) {
      if (open.has(part)) wrong('leads back to a module that holds it, wanted a tree');
      open.add(part);
      for (const [key, value] of Object.entries(part)) {
        const fine = key !== '' && !key.includes('.') && !key.includes('#');
        walk(value, part === module ? key : `${path}.${key}`, named && fine);
      }
      open.delete(part);
    }
  };
  walk(module, '', true);
  return found;
}

/** What a weight file must hold for a network. */
export const parameterShapes = (module: Module): Map<string, readonly number[]> => shapesOf(namedParameters(module));

export const shapesOf = (parameters: ReadonlyMap<string, Parameter>): Map<string, readonly number[]> =>
  new Map([...parameters].map(([name, { shape }]) => [name, shape]));
