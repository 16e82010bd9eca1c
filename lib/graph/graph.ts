/**
 * A network as plain data. `lib/ops.ts` records it, the passes in `lib/graph/` rewrite it, `lib/graph/onnx.ts` exports
 * it, and `lib/plan.ts` compiles it to native steps.
 */
import type { DType } from '../dtype.js';
import { OctconvError, show } from '../error.js';
import type { Tensor } from '../tensor.js';

/** Named attributes of a node: numbers, strings, lists and objects of them. Sizes are `[time, height, width]`. */
export type Attr = number | boolean | string | readonly Attr[] | { readonly [key: string]: Attr | undefined };
export type Attrs = { readonly [key: string]: Attr | undefined };

/** What convolutions may multiply: activations and weights of f32, bf16 or f16, or u8 and i8. */
export const computeTypes = ['f32', 'bf16', 'f16', 'i8'] as const;
export type ComputeType = (typeof computeTypes)[number];

/** Shapes are [N, C], [N, H, W, C] or [N, T, H, W, C]. */
export interface TensorType {
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Elements q of u8 inside of a network stand for scale * (q - zero). */
  readonly scale?: number | undefined;
  readonly zero?: number | undefined;
}

/**
 * One step. `inputs` and `outputs` index `Graph.values`; `params` maps a role ('weight') to a name in `Graph.params`.
 */
export interface GraphNode {
  readonly op: string;
  /** Path of the layer that recorded it, e.g. `layer1.0.conv2`. */
  readonly name: string;
  readonly inputs: readonly number[];
  readonly outputs: readonly number[];
  readonly attrs: Attrs;
  readonly params: { readonly [role: string]: string };
}

/** A tensor that a graph will compute: what an op gives when it is recorded. */
export class Value<D extends DType = DType, S extends readonly number[] = readonly number[]> {
  constructor(
    readonly graph: Graph,
    readonly id: number,
    readonly dtype: D,
    readonly shape: Readonly<S>,
  ) {}
}

/** A learned tensor of a layer, in PyTorch's layout. The network that is recorded gives it its name, see `Module`. */
export class Parameter<const S extends readonly number[] = readonly number[]> {
  /** Tells it apart from all else that has a shape, for the compiler alone. */
  declare protected readonly parameter: true;
  constructor(readonly shape: S) {
    if (Array.isArray(shape) && shape.every((size) => Number.isInteger(size) && size > 0)) return;
    throw new OctconvError(`parameter: shape ${show(shape)}, wanted a list of positive integers`);
  }
}

/** What a node reads beside its inputs, by role. */
export type Params = { readonly [role: string]: Parameter | Tensor | undefined };

const constantNames = new WeakMap<Tensor, string>();
let constantCount = 0;

/** `#1`, `#2`, ...: no parameter has such a name, and no other tensor of the process gets it. */
function constantName(tensor: Tensor): string {
  const name = constantNames.get(tensor) ?? `#${++constantCount}`;
  constantNames.set(tensor, name);
  return name;
}

export class Graph {
  readonly values: TensorType[] = [];
  readonly nodes: GraphNode[] = [];
  readonly inputs: number[] = [];
  readonly outputs: number[] = [];
  /** Values that a run makes histograms of (`Plan.observe`): no pass takes them away. */
  readonly observed: number[] = [];
  /** Every parameter and constant that is read: its shape, of a layer's in PyTorch's layout. */
  readonly params = new Map<string, readonly number[]>();
  /** Those of them that are tensors; their names begin with `#`. */
  readonly constants = new Map<string, Tensor>();
  /** Values that are no step's and no input but one of these parameters or constants. */
  readonly bound = new Map<number, string>();
  readonly #operands = new Map<string, number>();
  readonly #names = new Map<Parameter, string>();
  readonly #ofNetwork: boolean;

  /** `parameters` are those that nodes may read, as `namedParameters(network)` gives them. */
  constructor(parameters?: ReadonlyMap<string, Parameter>) {
    this.#ofNetwork = parameters !== undefined;
    // A network has up to 1,800: before this is optimised `for...of` takes three times as long.
    parameters?.forEach((parameter, name) => {
      this.#names.set(parameter, name);
    });
  }

  /** A parameter of this graph alone. */
  parameter<const S extends readonly number[]>(name: string, shape: S): Parameter<S> {
    const parameter = new Parameter(shape);
    this.#names.set(parameter, name);
    return parameter;
  }

  input<D extends DType, const S extends readonly number[]>(dtype: D, shape: S): Value<D, S> {
    const value = this.value(dtype, shape);
    this.inputs.push(value.id);
    return value;
  }

  /**
   * A parameter or a constant as an operand of an op. Its shape is that of a value: [N, C], [N, H, W, C] or
   * [N, T, H, W, C].
   */
  operand(op: string, param: Parameter | Tensor): Value {
    const name = this.#param(op, 'operand', param);
    const known = this.#operands.get(name);
    const dtype = param instanceof Parameter ? 'f32' : param.dtype;
    if (known !== undefined) return new Value(this, known, dtype, param.shape);
    const value = this.value(dtype, param.shape);
    this.bound.set(value.id, name);
    this.#operands.set(name, value.id);
    return value;
  }

  /** Appends a node; `params` are a layer's parameters or constant tensors; gives one value per output type. */
  add(op: string, inputs: readonly Value[], attrs: Attrs, params: Params, outputs: readonly TensorType[]): Value[] {
    for (const input of inputs) {
      if (input.graph !== this) throw new OctconvError(`${op}: an input was recorded in another graph`);
    }
    const names: Record<string, string> = {};
    for (const role in params) {
      const param = params[role];
      if (param) names[role] = this.#param(op, role, param);
    }
    const values = outputs.map((type) => this.value(type.dtype, type.shape));
    const name = this.#layerOf(params) || `${op}${this.nodes.length}`;
    this.nodes.push({
      op,
      name,
      inputs: inputs.map((v) => v.id),
      outputs: values.map((v) => v.id),
      attrs,
      params: names,
    });
    return values;
  }

  value<D extends DType, const S extends readonly number[]>(dtype: D, shape: S): Value<D, S> {
    this.values.push({ dtype, shape });
    return new Value<D, S>(this, this.values.length - 1, dtype, shape);
  }

  #param(op: string, role: string, param: Parameter | Tensor): string {
    const name = param instanceof Parameter ? this.#names.get(param) : constantName(param);
    if (name === undefined) {
      const found = this.#ofNetwork
        ? 'is in no public field or array of the network: layers in private fields, Maps, objects and classes that do not extend Module have no names, nor have those that forward makes'
        : 'has no name: record it through a model, or in a new Graph(namedParameters(network))';
      throw new OctconvError(`${op}: the parameter '${role}' [${param.shape}] ${found}`);
    }
    if (!(param instanceof Parameter)) {
      if (param.device !== 'cpu')
        throw new OctconvError(
          `${op}: '${role}' is on ${param.device}, wanted on the host, where it is packed: await toHost()`,
        );
      this.constants.set(name, param);
    }
    this.params.set(name, param.shape);
    return name;
  }

  /** The layer that holds all of these parameters: `a.b.weight`, `a.b.bias` -> `a.b`. */
  #layerOf(params: Params): string {
    let layer: string | undefined;
    for (const role in params) {
      const param = params[role];
      const name = param instanceof Parameter ? this.#names.get(param) : undefined;
      if (name === undefined) continue;
      layer ??= holderOf(name);
      while (layer && !name.startsWith(`${layer}.`)) layer = holderOf(layer);
    }
    return layer ?? '';
  }

  /** The layer of a node with such parameters, or else the layers before it, as the end of an error; empty without. */
  where(inputs: readonly unknown[], params: Params): string {
    const layer = this.#layerOf(params);
    if (layer) return ` (layer '${layer}')`;
    const before = inputs.flatMap((x) =>
      x instanceof Value && x.graph === this ? (this.#layerBefore(x.id) ?? []) : [],
    );
    return before.length ? ` (behind ${[...new Set(before)].map((name) => `'${name}'`).join(' and ')})` : '';
  }

  #layerBefore(id: number | undefined): string | undefined {
    const node = this.nodes.find(({ outputs }) => outputs.includes(id ?? -1));
    const layer = node && Object.values(node.params).some((name) => !this.constants.has(name));
    return layer ? node.name : node && this.#layerBefore(node.inputs[0]);
  }
}

/** @throws OctconvError unless it is a graph. */
export function checkGraph(where: string, graph: Graph): void {
  if (!(graph instanceof Graph)) throw new OctconvError(`${where}: got ${kindOf(graph)}, wanted a Graph`);
}

const holderOf = (path: string): string => path.slice(0, Math.max(0, path.lastIndexOf('.')));

/** What somebody gave instead of what was wanted. */
export function kindOf(x: unknown): string {
  if (x === undefined || x === null) return 'nothing';
  const name = typeof x === 'object' ? (x.constructor?.name ?? 'object') : typeof x;
  return `${/^[aeiou]/i.test(name) ? 'an' : 'a'} ${name}`;
}

/** A shape as native code sees it: N T H W C. */
export function toNTHWC(shape: readonly number[]): readonly [number, number, number, number, number] {
  const [n, ...rest] = shape;
  const c = rest.pop();
  const [w = 1, h = 1, t = 1] = rest.reverse();
  if (n === undefined || c === undefined || rest.length > 3) {
    throw new OctconvError(`shape [${shape.join(',')}]: wanted [N,C], [N,H,W,C] or [N,T,H,W,C]`);
  }
  return [n, t, h, w, c];
}
