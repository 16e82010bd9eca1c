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
  abstract forward(x: X): Y;
}

/** Every parameter of a network by property path, in the order of the fields; sets each one's `name`. */
export function namedParameters(module: Module): Map<string, Parameter> {
  const found = new Map<string, Parameter>();
  const seen = new Set<Parameter>();
  const walk = (part: unknown, path: string): void => {
    if (part instanceof Parameter) {
      if (seen.has(part)) throw new OctconvError(`module: '${path}' is also '${part.name}', wanted one place`);
      seen.add(part);
      part.name = path;
      found.set(path, part);
    } else if (part instanceof Module || Array.isArray(part)) {
      for (const [key, value] of Object.entries(part)) walk(value, path ? `${path}.${key}` : key);
    }
  };
  walk(module, '');
  return found;
}

/** What a weight file must hold for a network. */
export function parameterShapes(module: Module): Map<string, readonly number[]> {
  return new Map([...namedParameters(module)].map(([name, { shape }]) => [name, shape]));
}
