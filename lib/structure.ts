/** What a recorded function takes and gives: several inputs, and values in arrays, objects and `Octave`s, nested. */
import { type DType, dtypes, type TypedArrayOf } from './dtype.js';
import { OctconvError } from './error.js';
import { Graph, kindOf, type TensorType, Value } from './graph/graph.js';
import { Octave } from './octave.js';
import { elementCount, type Shape, Tensor } from './tensor.js';
import { atOnce, type Work } from './turns.js';

/** An input of a recording: its shape, with a data type unless it is f32. A tensor is one too. */
export type InputSpec = Shape | { readonly dtype?: DType; readonly shape: Shape };

/** The values that inputs are while a function is recorded. */
export type Values<I extends readonly InputSpec[]> = { readonly [K in keyof I]: ValueOf<I[K]> };
export type ValueOf<I> = I extends Shape
  ? Value<'f32', I>
  : I extends { readonly dtype: infer D extends DType; readonly shape: infer S extends Shape }
    ? Value<D, S>
    : I extends { readonly shape: infer S extends Shape }
      ? Value<'f32', S>
      : never;

/** What a run takes for a value: a tensor, or data with its shape, of f32 unless `dtype` says otherwise. */
export type Input<D extends DType = 'f32', S extends Shape = Shape> =
  | Tensor<D, S>
  | ({ readonly data: TypedArrayOf<D>; readonly shape: Readonly<S> } & ('f32' extends D
      ? { readonly dtype?: D }
      : { readonly dtype: D }));

/** What a run gives: the structure of what the function gave, with tensors in place of values. */
export type Tensors<Y> =
  Y extends Value<infer D, infer S>
    ? Tensor<D, S>
    : Y extends Octave<infer H, infer L>
      ? Octave<Tensors<H>, Tensors<L>>
      : Y extends object
        ? { readonly [K in keyof Y]: Tensors<Y[K]> }
        : Y;

export interface Recorded<Y> {
  readonly graph: Graph;
  /** Puts the graph's outputs where the function gave them. */
  arrange(outputs: readonly Tensor[]): Tensors<Y>;
}

/** Calls a function with one value for each input, see `recordWork`. */
export function recordCall<Y>(
  name: string,
  f: (...inputs: never[]) => Y,
  inputs: readonly InputSpec[],
  graph = new Graph(),
): Recorded<Y> {
  const call = function* (...values: never[]): Work<Y> {
    yield; // a generator without one is a mistake to the linter
    return f(...values);
  };
  return atOnce(recordWork(name, f.length, call, inputs, graph));
}

/**
 * Does the work `call` with one value for each input, of which it needs `least`. Errors begin with `name`.
 * @throws OctconvError if it takes more inputs or fewer, or gives anything but values that it computes.
 */
export function* recordWork<Y>(
  name: string,
  least: number,
  call: (...inputs: never[]) => Work<Y>,
  inputs: readonly InputSpec[],
  graph: Graph,
): Work<Recorded<Y>> {
  const checkCount = (fine: boolean, takes: number) => {
    if (!fine) throw new OctconvError(`${name} takes ${takes} input${takes === 1 ? '' : 's'}, got ${inputs.length}`);
  };
  checkCount(least <= inputs.length, least);
  const values = typesOf(name, inputs).map(({ dtype, shape }) => graph.input(dtype, shape));
  const y = yield* call(...(values as never[]));
  const arrange = arrangement(name, y, graph, []);
  if (graph.outputs.length === 0) throw new OctconvError(`${name} gives ${kindOf(y)} without a Value`);
  // Behind those that it needs may be optional ones.
  const unread = values.findIndex(({ id }, i) => i >= least && !graph.nodes.some((node) => node.inputs.includes(id)));
  checkCount(unread < 0, unread);
  return { graph, arrange: (outputs) => arrange(outputs) as Tensors<Y> };
}

/** @throws OctconvError for one that is neither a shape nor has one, or has an unknown data type. */
export function typesOf(name: string, inputs: readonly InputSpec[]): TensorType[] {
  return inputs.map((input, i) => {
    const { dtype = 'f32', shape } = Array.isArray(input) || !input ? { shape: input as Shape } : (input as TensorType);
    if (!Array.isArray(shape))
      throw new OctconvError(`${name}: input ${i} is ${kindOf(input)}, wanted a shape or { dtype, shape }`);
    if (!dtypes.includes(dtype))
      throw new OctconvError(`${name}: input ${i} is '${dtype}', wanted ${dtypes.join(', ')}`);
    elementCount(shape);
    return { dtype, shape: [...shape] }; // the caller's may change before the network is recorded
  });
}

type Arrange = (outputs: readonly Tensor[]) => unknown;

/** Appends the values of a structure to the graph's outputs, each once; what makes the structure of their tensors. */
function arrangement(
  name: string,
  y: unknown,
  graph: Graph,
  place: readonly { readonly key: string; readonly holder: unknown }[],
): Arrange {
  const at = place.length ? ` at '${place.map(({ key }) => key).join('.')}'` : '';
  const wrong = (given: string, wanted: string): never => {
    throw new OctconvError(`${name} gives ${given}${at}, wanted ${wanted}`);
  };
  if (y instanceof Value) {
    if (y.graph !== graph) wrong('a value of another recording', 'one of its own inputs');
    if (graph.inputs.includes(y.id)) wrong(`input ${graph.inputs.indexOf(y.id)} as it is`, 'what an op makes of it');
    const known = graph.outputs.indexOf(y.id);
    const index = known < 0 ? graph.outputs.push(y.id) - 1 : known;
    return (outputs) => outputs[index];
  }
  if (y === undefined && place.length) return () => undefined; // an octave without a low branch
  const prototype: unknown = typeof y === 'object' && y !== null ? Object.getPrototypeOf(y) : undefined;
  const plain = prototype === Object.prototype || prototype === null;
  if (!plain && !Array.isArray(y) && !(y instanceof Octave))
    return wrong(kindOf(y), 'a Value, or arrays, objects or Octaves of Values');
  if (place.some(({ holder }) => holder === y)) return wrong('a structure that holds itself', 'a tree');
  const entries = Array.isArray(y)
    ? Array.from(y, (part: unknown, i) => [`${i}`, part] as const)
    : Object.entries(y as object);
  const parts = entries.map(
    ([key, part]) => [key, arrangement(name, part, graph, [...place, { key, holder: y }])] as const,
  );
  return (outputs) => {
    const made = parts.map(([key, arrange]) => [key, arrange(outputs)] as const);
    if (Array.isArray(y)) return made.map(([, part]) => part);
    const object = Object.fromEntries(made);
    return y instanceof Octave ? new Octave(object.high, object.low) : object;
  };
}

/** The inputs of a run, and the options that may stand behind them. @throws OctconvError for what is neither. */
export function splitArguments<O extends object>(
  name: string,
  args: readonly unknown[],
): { inputs: Tensor[]; options: O | undefined } {
  const last = args.at(-1);
  const hasOptions = last === undefined || (args.length > 1 && !isInput(last));
  const inputs = args.slice(0, hasOptions ? -1 : args.length).map((x, i) => {
    if (x instanceof Tensor) return x;
    const { dtype = 'f32', data, shape } = (x ?? {}) as Partial<Input<DType>>;
    if (data && shape && ArrayBuffer.isView(data)) return new Tensor<DType>(dtype, shape, data);
    const found = data && shape ? `${kindOf(data)} with its shape` : kindOf(x);
    throw new OctconvError(`${name}: input ${i} is ${found}, wanted a Tensor, or a typed array with its shape`);
  });
  return { inputs, options: (hasOptions ? last : undefined) as O | undefined };
}

/** Whether it stands for an input, right or wrong, rather than for the options behind the inputs. */
function isInput(last: unknown): boolean {
  if (typeof last !== 'object' || last === null || Array.isArray(last) || ArrayBuffer.isView(last)) return true;
  return last instanceof Octave || 'data' in last || 'shape' in last;
}
