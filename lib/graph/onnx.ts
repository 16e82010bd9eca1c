/**
 * ONNX export of a graph as it was recorded, before any fusion, so that any other runtime can check a network and be
 * compared with ours. NHWC becomes ONNX's NCHW: input `input` [N, C, H, W], output `logits`; N is dynamic.
 *
 * The messages are those of onnx.proto3 (ONNX 1.12, operator set 17); @bufbuild/protobuf writes them.
 */
import { BinaryWriter, WireType } from '@bufbuild/protobuf/wire';
import type { DType, TypedArray } from '../dtype.js';
import { OctconvError } from '../error.js';
import type { Attrs, Graph, GraphNode } from './graph.js';

/** How a parameter is read: raw elements in PyTorch's layout. */
export type ReadParam = (name: string) => Promise<{ dtype: DType; shape: readonly number[]; data: TypedArray }>;

type Sizes = readonly number[];
type Names = readonly string[];
/** Numbers are INT attributes unless they are marked as FLOAT. */
type OnnxAttr = number | { readonly float: number } | string | Sizes;
type OnnxAttrs = { readonly [name: string]: OnnxAttr };

const elementTypes: Record<DType, number> = { f32: 1, u8: 2, i8: 3, i32: 6, f16: 10, bf16: 16 };
const int64 = 7;
const float = 1;

/** @throws OctconvError for video, and for ops on pictures' bytes. */
export async function toOnnx(graph: Graph, read: ReadParam): Promise<Uint8Array> {
  const out = new Exporter(graph);
  for (const node of graph.nodes) out.node(node);
  for (const name of graph.params.keys()) {
    const { dtype, shape, data } = graph.constants.get(name) ?? (await read(name));
    out.param(name, dtype, shape, data);
  }
  return out.finish();
}

class Exporter {
  readonly #nodes: BinaryWriter[] = [];
  /** Casts of parameters to f32 stand before all other nodes. */
  readonly #casts: BinaryWriter[] = [];
  /** Pieces of the file: parameters are copied once, into the whole. */
  readonly #initializers: Uint8Array[] = [];
  readonly #names = new Map<number, string>();
  readonly #pooled = new Map<string, string>();
  /** Layer whose node is being written; what is made up is called after it. */
  #layer = '';
  #count = 0;

  constructor(readonly graph: Graph) {
    for (const [i, id] of graph.inputs.entries()) this.#names.set(id, i ? `input${i}` : 'input');
    for (const [i, id] of graph.outputs.entries()) this.#names.set(id, i ? `logits${i}` : 'logits');
  }

  // --- Ops --------------------------------------------------------------------------------------------------------

  node(node: GraphNode): void {
    this.#layer = node.name;
    const inputs = node.inputs.map((id) => this.#name(id));
    const [x = ''] = inputs;
    const [y = ''] = node.outputs.map((id) => this.#name(id));
    const { attrs, params } = node;
    const put = (type: string, from: Names, more: OnnxAttrs = {}) => this.#put(type, from, more, y);
    const plain: { readonly [op: string]: string } = { relu: 'Relu', sigmoid: 'Sigmoid', add: 'Add', mul: 'Mul' };
    switch (node.op) {
      case 'conv':
        put('Conv', [x, params.weight, params.bias].flatMap((name) => name ?? []), window(attrs));
        break;
      case 'octConv':
        this.#octConv(node);
        break;
      case 'linear':
        put('Gemm', [x, params.weight, params.bias].flatMap((name) => name ?? []), { transB: 1 });
        break;
      case 'batchNorm': {
        const { weight = '', bias = '', running_mean = '', running_var = '' } = params;
        const epsilon = { float: attrs.eps as number };
        put('BatchNormalization', [x, weight, bias, running_mean, running_var], { epsilon });
        break;
      }
      case 'relu6':
        put('Clip', [x, this.#constant([0]), this.#constant([6])]);
        break;
      case 'softmax':
        put('Softmax', [x], { axis: 1 });
        break;
      case 'concat':
        put('Concat', inputs, { axis: 1 });
        break;
      case 'maxPool':
        put('MaxPool', [x], this.#fitted(node));
        break;
      case 'avgPool': {
        // Counted padding is data; what lies beyond it never counts.
        const padding = attrs.countIncludePad ? image(attrs.padding) : [0, 0];
        const counted = padding.some(Boolean) ? this.#pad(x, padding, padding, 0) : x;
        put('AveragePool', [counted], { ...this.#fitted(node, padding), count_include_pad: 0 });
        break;
      }
      case 'globalAvgPool':
        put('Flatten', [this.#put('GlobalAveragePool', [x])]);
        break;
      case 'upsampleNearest': {
        const [from, to] = [this.#extent(node.inputs[0]), this.#extent(node.outputs[0])];
        this.#upsample(x, image(attrs.scale), from, to, y);
        break;
      }
      case 'pad':
        this.#pad(x, image(attrs.before), image(attrs.after), attrs.value as number, y);
        break;
      default: {
        const type = plain[node.op];
        if (!type) throw new OctconvError(`onnx: op '${node.op}' of '${node.name}' cannot be exported`);
        put(type, inputs);
      }
    }
  }

  /** The definition, part by part: see `octConv` in lib/ops.ts. */
  #octConv({ inputs: [xH, xL], outputs: [yH, yL], attrs, params }: GraphNode): void {
    const { kernel, stride, groups } = attrs as { kernel: Sizes; stride: number; groups: number };
    const channels = (id: number | undefined) => this.graph.values[id ?? -1]?.shape.at(-1) ?? 0;
    const depthwise = groups > 1 && groups === channels(xH) + channels(xL);
    const one = kernel.map(() => 1);
    const path = (role: string, from: number | undefined, pool: number, bias?: string): string | undefined => {
      const weight = params[role];
      if (weight === undefined || from === undefined) return undefined;
      let x = this.#name(from);
      let size = this.#extent(from);
      for (let i = 0; i < pool; i++) {
        x = this.#pool(x, size);
        size = size.map((s) => Math.ceil(s / 2));
      }
      const padding = kernel.map((size) => (size - 1) / 2);
      const attrs = window({ kernel, stride: one, padding, groups: depthwise ? channels(from) : groups });
      return this.#put('Conv', bias ? [x, weight, bias] : [x, weight], attrs);
    };
    const sum = (a: string | undefined, b: string | undefined, y: number) => {
      const parts = [a, b].flatMap((name) => name ?? []);
      this.#put(parts.length === 2 ? 'Add' : 'Identity', parts, {}, this.#name(y));
    };
    const down = stride === 2 ? 1 : 0;
    const lowToHigh = path('l2h', xL, 0);
    const [from, to] = [this.#extent(xL), this.#extent(yH)];
    const up = stride === 1 && lowToHigh ? this.#upsample(lowToHigh, [2, 2], from, to) : lowToHigh;
    if (yH !== undefined) sum(path('h2h', xH, down, params.biasH), up, yH);
    if (yL !== undefined) {
      const lowBias = params.l2l ? params.biasL : undefined;
      sum(path('l2l', xL, down, lowBias), path('h2l', xH, down + 1, params.l2l ? undefined : params.biasL), yL);
    }
  }

  /** P(x), once for all that read it. Padding does not count, so the border is the mean of what exists. */
  #pool(x: string, size: Sizes): string {
    const pads = [0, 0, ...size.map((s) => s % 2)];
    const attrs = { kernel_shape: [2, 2], strides: [2, 2], pads, count_include_pad: 0 };
    const y = this.#pooled.get(x) ?? this.#put('AveragePool', [x], attrs);
    this.#pooled.set(x, y);
    return y;
  }

  /**
   * The window of a pooling, padded at the end for just as many positions as it has: runtimes differ in what
   * `ceil_mode` makes of windows that start in the padding. `done` is how much of the padding x has already.
   */
  #fitted({ attrs, inputs, outputs }: GraphNode, done: Sizes = [0, 0]): OnnxAttrs {
    const { kernel_shape, strides, pads } = window(attrs) as { [name: string]: Sizes };
    const [x, y] = [this.#extent(inputs[0]), this.#extent(outputs[0])];
    const at = (sizes: Sizes | undefined, i: number) => sizes?.[i] ?? 0;
    const begin = [0, 1].map((i) => at(pads, i) - at(done, i));
    const end = [0, 1].map((i) => {
      const reach = (at(y, i) - 1) * at(strides, i) + at(kernel_shape, i);
      return Math.max(0, reach - at(begin, i) - at(x, i) - 2 * at(done, i));
    });
    return { kernel_shape, strides, pads: [...begin, ...end] } as OnnxAttrs;
  }

  #pad(x: string, before: Sizes, after: Sizes, value: number, y = this.#fresh()): string {
    const pads = this.#constant([0, 0, ...before, 0, 0, ...after], 'i64');
    return this.#put('Pad', [x, pads, this.#constant([value])], {}, y);
  }

  /** Nearest upsampling, cropped to the size that is wanted. */
  #upsample(x: string, scale: Sizes, from: Sizes, to: Sizes, y = this.#fresh()): string {
    const whole = from.every((size, i) => size * (scale[i] ?? 1) === to[i]);
    const attrs = { mode: 'nearest', nearest_mode: 'floor', coordinate_transformation_mode: 'asymmetric' };
    const up = this.#put('Resize', [x, '', this.#constant([1, 1, ...scale])], attrs, whole ? y : this.#fresh());
    if (whole) return y;
    const [starts, axes] = [this.#constant([0, 0], 'i64'), this.#constant([2, 3], 'i64')];
    return this.#put('Slice', [up, starts, this.#constant(to, 'i64'), axes], {}, y);
  }

  // --- Messages ---------------------------------------------------------------------------------------------------

  /** NodeProto */
  #put(type: string, inputs: Names, attrs: OnnxAttrs = {}, output = this.#fresh(), to = this.#nodes): string {
    const node = new BinaryWriter();
    for (const name of inputs) node.tag(1, WireType.LengthDelimited).string(name);
    node.tag(2, WireType.LengthDelimited).string(output);
    node.tag(4, WireType.LengthDelimited).string(type);
    for (const [name, value] of Object.entries(attrs)) message(node, 5, attribute(name, value));
    to.push(node);
    return output;
  }

  /** TensorProto of a parameter, and a cast if it is not f32. */
  param(name: string, dtype: DType, shape: Sizes, data: TypedArray): void {
    const stored = dtype === 'f32' ? name : `${name}.${dtype}`;
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    this.#initializer(stored, elementTypes[dtype], shape, bytes);
    if (stored !== name) this.#put('Cast', [stored], { to: float }, name, this.#casts);
  }

  /** One value is a scalar, more are a vector. */
  #constant(values: Sizes, type: 'f32' | 'i64' = 'f32'): string {
    const shape = values.length === 1 ? [] : [values.length];
    const name = this.#fresh('constant');
    const data = type === 'f32' ? Float32Array.from(values) : BigInt64Array.from(values, BigInt);
    this.#initializer(name, type === 'f32' ? float : int64, shape, new Uint8Array(data.buffer));
    return name;
  }

  #initializer(name: string, type: number, shape: Sizes, bytes: Uint8Array): void {
    const tensor = new BinaryWriter();
    for (const size of shape) tensor.tag(1, WireType.Varint).int64(size);
    tensor.tag(2, WireType.Varint).int32(type);
    tensor.tag(8, WireType.LengthDelimited).string(name);
    const head = tensor.tag(9, WireType.LengthDelimited).uint32(bytes.length).finish();
    this.#initializers.push(lengthOf(new BinaryWriter(), 5, [head, bytes]).finish(), head, bytes);
  }

  /** ValueInfoProto, batch size symbolic. */
  #valueInfo(id: number): BinaryWriter {
    const { dtype, shape } = this.graph.values[id] ?? { dtype: 'f32' as const, shape: [] };
    const [, ...rest] = shape.length === 4 ? [shape[0], shape[3], shape[1], shape[2]] : shape;
    const dimensions = new BinaryWriter();
    message(dimensions, 1, new BinaryWriter().tag(2, WireType.LengthDelimited).string('N'));
    for (const size of rest) message(dimensions, 1, new BinaryWriter().tag(1, WireType.Varint).int64(size ?? 0));
    const tensor = message(new BinaryWriter().tag(1, WireType.Varint).int32(elementTypes[dtype]), 2, dimensions);
    return message(named(this.#name(id)), 2, message(new BinaryWriter(), 1, tensor));
  }

  /** ModelProto */
  finish(): Uint8Array {
    const nodes = new BinaryWriter();
    for (const node of [...this.#casts, ...this.#nodes]) message(nodes, 1, node);
    nodes.tag(2, WireType.LengthDelimited).string('octconv');
    const ends = new BinaryWriter();
    for (const id of this.graph.inputs) message(ends, 11, this.#valueInfo(id));
    for (const id of this.graph.outputs) message(ends, 12, this.#valueInfo(id));
    const graph = [nodes.finish(), ...this.#initializers, ends.finish()];
    const model = new BinaryWriter().tag(1, WireType.Varint).int64(8); // IR version
    model.tag(2, WireType.LengthDelimited).string('octconv');
    message(model, 8, new BinaryWriter().tag(2, WireType.Varint).int64(17)); // operator set
    return Buffer.concat([lengthOf(model, 7, graph).finish(), ...graph]);
  }

  /** The slash keeps it apart from the parameters' names. */
  #fresh(kind = 'value'): string {
    return `/${this.#layer}/${kind}.${this.#count++}`;
  }

  #name(id: number): string {
    const { shape = [] } = this.graph.values[id] ?? {};
    if (shape.length === 5) throw new OctconvError(`onnx: got [${shape}], only images [N,H,W,C] can be exported`);
    const name = this.#names.get(id) ?? this.#fresh();
    this.#names.set(id, name);
    return name;
  }

  #extent(id: number | undefined): Sizes {
    return this.graph.values[id ?? -1]?.shape.slice(1, 3) ?? [];
  }
}

/** Our sizes are [t, h, w]. */
const image = (sizes: unknown): Sizes => (sizes as Sizes).slice(1);

/** Kernel, stride, padding, dilation and groups in ONNX's words. */
function window({ kernel, stride, padding, dilation, groups }: Attrs): OnnxAttrs {
  return {
    kernel_shape: image(kernel),
    strides: image(stride),
    pads: [...image(padding), ...image(padding)],
    ...(dilation !== undefined && { dilations: image(dilation) }),
    ...(groups !== undefined && { group: groups as number }),
  };
}

/** AttributeProto */
function attribute(name: string, value: OnnxAttr): BinaryWriter {
  const out = named(name);
  const type = (kind: number) => out.tag(20, WireType.Varint).int32(kind);
  if (typeof value === 'number') return type(2).tag(3, WireType.Varint).int64(value);
  if (typeof value === 'string') return type(3).tag(4, WireType.LengthDelimited).string(value);
  if ('float' in value) return type(1).tag(2, WireType.Bit32).float(value.float);
  for (const x of value) out.tag(8, WireType.Varint).int64(x);
  return type(7);
}

const named = (name: string) => new BinaryWriter().tag(1, WireType.LengthDelimited).string(name);

function message(to: BinaryWriter, field: number, inner: BinaryWriter): BinaryWriter {
  return to.tag(field, WireType.LengthDelimited).bytes(inner.finish());
}

/** Begins a message that consists of these pieces. */
function lengthOf(to: BinaryWriter, field: number, pieces: readonly Uint8Array[]): BinaryWriter {
  return to.tag(field, WireType.LengthDelimited).uint32(pieces.reduce((sum, piece) => sum + piece.length, 0));
}
