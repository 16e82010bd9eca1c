/**
 * A network as plain data. `lib/ops.ts` records it, the passes in `lib/graph/` rewrite it, `lib/graph/onnx.ts` exports
 * it, and `lib/plan.ts` compiles it to native steps.
 */
import type { DType } from '../dtype.js';
import { OctconvError } from '../error.js';
import type { Tensor } from '../tensor.js';

/** Named attributes of a node: numbers, strings, lists and objects of them. Sizes are `[time, height, width]`. */
export type Attr = number | boolean | string | readonly Attr[] | { readonly [key: string]: Attr | undefined };
export type Attrs = { readonly [key: string]: Attr | undefined };

/** What convolutions multiply: activations and weights of f32, bf16, or u8 and i8. */
export type ComputeType = 'f32' | 'bf16' | 'i8';

/** Shapes are [N, C], [N, H, W, C] or [N, T, H, W, C]. */
export interface TensorType {
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Elements q of u8 inside of a network stand for scale * (q - zero). */
  readonly scale?: number | undefined;
  readonly zero?: number | undefined;
}

/** One step. `inputs` and `outputs` index `Graph.values`; `params` maps a role ('weight') to a parameter's name. */
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

/** A learned tensor of a layer, in PyTorch's layout. Its name is its property path in the network. */
export class Parameter<const S extends readonly number[] = readonly number[]> {
  name = '';
  constructor(readonly shape: S) {}
}

export class Graph {
  readonly values: TensorType[] = [];
  readonly nodes: GraphNode[] = [];
  readonly inputs: number[] = [];
  readonly outputs: number[] = [];
  /** Every parameter that a node reads: its shape in PyTorch's layout. */
  readonly params = new Map<string, readonly number[]>();
  /** Parameters whose values were given as tensors when the graph was recorded. */
  readonly constants = new Map<string, Tensor>();

  input<D extends DType, const S extends readonly number[]>(dtype: D, shape: S): Value<D, S> {
    const value = this.value(dtype, shape);
    this.inputs.push(value.id);
    return value;
  }

  /** Appends a node; `params` are a layer's parameters or constant tensors; gives one value per output type. */
  add(
    op: string,
    inputs: readonly Value[],
    attrs: Attrs,
    params: { readonly [role: string]: Parameter | Tensor | undefined },
    outputs: readonly TensorType[],
  ): Value[] {
    for (const input of inputs) {
      if (input.graph !== this) throw new OctconvError(`${op}: an input was recorded in another graph`);
    }
    const names: Record<string, string> = {};
    for (const [role, param] of Object.entries(params)) if (param) names[role] = this.#param(op, role, param);
    const values = outputs.map((type) => this.value(type.dtype, type.shape));
    const name = commonPath(Object.values(names)) || `${op}${this.nodes.length}`;
    this.nodes.push({ op, name, inputs: inputs.map((v) => v.id), outputs: values.map((v) => v.id), attrs, params: names });
    return values;
  }

  value<D extends DType, const S extends readonly number[]>(dtype: D, shape: S): Value<D, S> {
    this.values.push({ dtype, shape });
    return new Value<D, S>(this, this.values.length - 1, dtype, shape);
  }

  #param(op: string, role: string, param: Parameter | Tensor): string {
    if (param instanceof Parameter) {
      if (!param.name) throw new OctconvError(`${op}: the parameter '${role}' has no name: record it through a model`);
      this.params.set(param.name, param.shape);
      return param.name;
    }
    for (const [name, known] of this.constants) if (known === param) return name;
    const name = `${op}${this.nodes.length}.${role}`;
    this.constants.set(name, param);
    this.params.set(name, param.shape);
    return name;
  }
}

/** The layer that holds all of these parameters: `a.b.weight`, `a.b.bias` -> `a.b`. */
function commonPath(names: readonly string[]): string {
  const [first = [], ...rest] = names.map((name) => name.split('.').slice(0, -1));
  let length = first.length;
  for (const path of rest) while (first.slice(0, length).some((part, i) => path[i] !== part)) length--;
  return first.slice(0, length).join('.');
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
