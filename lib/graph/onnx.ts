/**
 * ONNX export of a graph as it was recorded, before any fusion, so that any other runtime can check a network and be
 * compared with ours. NHWC becomes ONNX's NCHW: input `input` [N, C, H, W], output `logits`; N is dynamic.
 *
 * Quantised weights are written the way int8 runtimes recognise: DequantizeLinear behind the weight, QuantizeLinear and
 * DequantizeLinear behind each value that such a layer reads. Batch normalisation behind such a layer goes into its
 * scales, since no runtime would fold it there.
 *
 * The messages are those of onnx.proto3 (ONNX 1.12, operator set 17); @bufbuild/protobuf writes them.
 */
import { BinaryWriter, WireType } from '@bufbuild/protobuf/wire';
import { arrayFor, type DType, type TypedArray } from '../dtype.js';
import { OctconvError } from '../error.js';
import { besideI8, type WeightSource } from '../weights/source.js';
import type { Attrs, Graph, GraphNode } from './graph.js';

interface Param {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly data: TypedArray;
}

/** How a parameter is read: raw elements in PyTorch's layout. Of an i8 weight the scales are read too. */
export type ReadParam = (name: string) => Promise<Param>;

export const readerOf =
  (source: Pick<WeightSource, 'tensors' | 'read'>): ReadParam =>
  async (name) => {
    const { dtype = 'f32', shape = [] } = source.tensors.get(name) ?? {};
    return { dtype, shape, data: await source.read(name) };
  };

/** Least and largest value of activations, by their names in the file. */
export type Ranges = ReadonlyMap<string, readonly [least: number, most: number]>;

/** Quantised weights know the ranges of what their layers read, but not of the sums between: those stay f32 without. */
export interface OnnxOptions {
  readonly ranges?: Ranges | undefined;
  /** Makes outputs of all activations whose ranges could be given. */
  readonly probe?: boolean;
}

type Sizes = readonly number[];
type Names = readonly string[];
/** Numbers are INT attributes unless they are marked as FLOAT. */
type OnnxAttr = number | { readonly float: number } | string | Sizes;
type OnnxAttrs = { readonly [name: string]: OnnxAttr };

const elementTypes: Record<DType, number> = { f32: 1, u8: 2, i8: 3, i32: 6, f16: 10, bf16: 16 };
const int64 = 7;
const float = 1;

/** @throws OctconvError for video, and for ops on pictures' bytes. */
export async function toOnnx(graph: Graph, read: ReadParam, options: OnnxOptions = {}): Promise<Uint8Array> {
  const params = new Map<string, Param>();
  const quantized = new Map<string, Quantization>();
  for (const name of graph.params.keys()) {
    const given = graph.constants.get(name);
    const param = given ?? (await read(name));
    params.set(name, param);
    if (!given && param.dtype === 'i8') quantized.set(name, await quantizationOf(name, read));
  }
  const out = new Exporter(graph, params, quantized, options);
  for (const node of graph.nodes) out.node(node);
  return out.finish();
}

// --- Quantisation -------------------------------------------------------------------------------------------------

/** x = scale (q - zeroPoint), q a byte */
interface Grid {
  readonly scale: number;
  readonly zeroPoint: number;
}

/** w = scales[o] q, and the grid of what is convolved with it. */
interface Quantization {
  readonly scales: TypedArray;
  readonly grid: Grid;
}

async function quantizationOf(weight: string, read: ReadParam): Promise<Quantization> {
  const { weightScale, inputScale, inputZeroPoint } = besideI8(weight);
  const data = async ({ name }: { name: string }) => (await read(name)).data;
  const [scale = 1] = await data(inputScale);
  const [zeroPoint = 0] = await data(inputZeroPoint);
  return { scales: await data(weightScale), grid: { scale, zeroPoint } };
}

/** Zero is on it: padding. */
function gridOf(least: number, most: number): Grid {
  const low = Math.min(least, 0);
  const scale = (Math.max(most, 0) - low) / 255 || 1;
  return { scale, zeroPoint: Math.round(-low / scale) };
}

// --- Export -------------------------------------------------------------------------------------------------------

class Exporter {
  readonly #nodes: BinaryWriter[] = [];
  /** Pieces of the file: parameters are copied once, into the whole. */
  readonly #initializers: Uint8Array[] = [];
  readonly #names = new Map<number, string>();
  readonly #written = new Set<string>();
  readonly #pooled = new Map<string, string>();
  /** Values that lie on a grid, and under which name they are read there. */
  readonly #grids = new Map<number, Grid>();
  readonly #onGrid = new Map<number, string>();
  readonly #gridNames = new Map<Grid, Names>();
  /** Batch normalisations that go into the layer before them, by the value between the two. */
  readonly #norms = new Map<number, GraphNode>();
  readonly #summands = new Set<number>();
  readonly #probed: string[] = [];
  /** Layer whose node is being written; what is made up is called after it. */
  #layer = '';
  #count = 0;

  constructor(
    readonly graph: Graph,
    readonly params: ReadonlyMap<string, Param>,
    readonly quantized: ReadonlyMap<string, Quantization>,
    readonly options: OnnxOptions,
  ) {
    for (const [i, id] of graph.inputs.entries()) this.#names.set(id, i ? `input${i}` : 'input');
    for (const [i, id] of graph.outputs.entries()) this.#names.set(id, i ? `logits${i}` : 'logits');
    for (const node of graph.nodes) for (const id of node.op === 'add' ? node.inputs : []) this.#summands.add(id);
    this.#placeGrids();
    this.#findNorms();
    for (const id of graph.inputs) this.#settle(id);
  }

  #placeGrids(): void {
    for (const { inputs, params } of this.graph.nodes) {
      for (const [role, name] of Object.entries(params)) {
        const grid = this.quantized.get(name)?.grid;
        if (!grid) continue;
        const [x = -1, low = -1] = inputs;
        const id = role.startsWith('l2') ? low : x;
        const known = this.#grids.get(id) ?? grid;
        if (known.scale !== grid.scale || known.zeroPoint !== grid.zeroPoint) {
          throw new OctconvError(`onnx: '${name}' reads what another layer reads with another input scale`);
        }
        this.#grids.set(id, known);
      }
    }
  }

  #findNorms(): void {
    const { nodes } = this.graph;
    /** Whether the weights of all that is summed up in a value are quantised. */
    const fold = new Map<number, boolean>();
    for (const { op, outputs, params } of nodes) {
      for (const [i, id] of op === 'conv' || op === 'octConv' ? outputs.entries() : []) {
        const weights = Object.keys(params).filter((role) => role === 'weight' || role.endsWith(i ? '2l' : '2h'));
        fold.set(id, weights.every((role) => this.quantized.has(params[role] ?? '')));
      }
    }
    const read = [...nodes.flatMap(({ inputs }) => inputs), ...this.graph.outputs];
    for (const node of nodes) {
      const [x = -1] = node.inputs;
      const alone = read.indexOf(x) === read.lastIndexOf(x);
      if (node.op === 'batchNorm' && fold.get(x) && alone) this.#norms.set(x, node);
    }
  }

  // --- Ops --------------------------------------------------------------------------------------------------------

  node(node: GraphNode): void {
    this.#layer = node.name;
    if (this.#norms.get(node.inputs[0] ?? -1) !== node) this.#op(node);
    for (const id of node.outputs) this.#settle(id);
  }

  #op(node: GraphNode): void {
    const inputs = node.inputs.map((id) => this.#read(id));
    const [x = ''] = inputs;
    const [y = ''] = node.outputs.map((id) => this.#name(id));
    const { attrs, params } = node;
    const put = (type: string, from: Names, more: OnnxAttrs = {}) => this.#put(type, from, more, y);
    const plain: { readonly [op: string]: string } = { relu: 'Relu', sigmoid: 'Sigmoid', add: 'Add' };
    switch (node.op) {
      case 'conv':
        this.#weighted('Conv', x, { ...params, norm: this.#norms.get(node.outputs[0] ?? -1) }, window(attrs), y);
        break;
      case 'octConv':
        this.#octConv(node);
        break;
      case 'linear':
        this.#weighted('Gemm', x, params, { transB: 1 }, y);
        break;
      case 'batchNorm': {
        const { weight = '', bias = '', running_mean = '', running_var = '' } = params;
        const all = [weight, bias, running_mean, running_var].map((name) => this.#param(name));
        put('BatchNormalization', [x, ...all], { epsilon: { float: attrs.eps as number } });
        break;
      }
      case 'relu6':
        put('Clip', [x, this.#constant([0]), this.#constant([6])]);
        break;
      case 'softmax':
        put('Softmax', [x], { axis: 1 });
        break;
      case 'mul': {
        const [image, gate] = node.inputs.map((id) => this.graph.values[id]?.shape.length);
        const [, by = ''] = inputs;
        put('Mul', [x, image === gate ? by : this.#put('Unsqueeze', [by, this.#constant([2, 3], 'i64')])]);
        break;
      }
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
    const padding = kernel.map((size) => (size - 1) / 2);
    type Path = readonly [role: string, from: number | undefined, pools: number];
    const branch = (y: number | undefined, bias: string | undefined, ...paths: readonly Path[]) => {
      if (y === undefined) return;
      const norm = this.#norms.get(y);
      const there = paths.flatMap(([role, from, pools]) => {
        const weight = params[role];
        return weight === undefined || from === undefined ? [] : { role, weight, from, pools };
      });
      const parts = there.map(({ role, weight, from, pools }, i) => {
        let x = this.#read(from);
        let size = this.#extent(from);
        for (let pool = 0; pool < pools; pool++) {
          x = this.#pool(x, size, this.#grids.get(from));
          size = size.map((s) => Math.ceil(s / 2));
        }
        const one = kernel.map(() => 1);
        const attrs = window({ kernel, stride: one, padding, groups: depthwise ? channels(from) : groups });
        const layer = { weight, norm, ...(i === 0 ? { bias } : { bare: true }) };
        const name = there.length === 1 ? this.#name(y) : `/${this.#layer}/${role}.${y}`;
        const part = this.#weighted('Conv', x, layer, attrs, name);
        if (there.length === 1) return part;
        const grid = this.#sumGrid(part);
        const rounded = this.#quantize(part, grid);
        const up = role === 'l2h' && stride === 1;
        return up ? this.#quantize(this.#upsample(rounded, [2, 2], size, this.#extent(y)), grid) : rounded;
      });
      if (parts.length > 1) this.#put('Add', parts, {}, this.#name(y));
    };
    const down = stride === 2 ? 1 : 0;
    branch(yH, params.biasH, ['h2h', xH, down], ['l2h', xL, 0]);
    branch(yL, params.biasL, ['l2l', xL, down], ['h2l', xH, down + 1]);
  }

  /**
   * A convolution or a linear layer, with its bias and the batch normalisation behind it. Where several are summed up,
   * all but one are `bare`: without the constants of the sum.
   */
  #weighted(type: 'Conv' | 'Gemm', x: string, layer: Layer, attrs: OnnxAttrs, y: string): string {
    const { weight = '', bias } = layer;
    const quantization = this.quantized.get(weight);
    const params = quantization
      ? this.#quantizedParams(layer, quantization)
      : [weight, bias].flatMap((name) => (name === undefined ? [] : this.#param(name)));
    return this.#put(type, [x, ...params], attrs, y);
  }

  #quantizedParams({ weight = '', bias, norm, bare }: Layer, { scales, grid }: Quantization): Names {
    const { data: levels = new Int8Array(), shape = [] } = this.params.get(weight) ?? {};
    const read = (name: string | undefined) => this.params.get(name ?? '')?.data;
    const [offset, gamma, beta] = [bias, norm?.params.weight, norm?.params.bias].map(read);
    const [mean, variance] = [norm?.params.running_mean, norm?.params.running_var].map(read);
    const epsilon = (norm?.attrs.eps as number | undefined) ?? 0;
    const constant = !bare && (bias !== undefined || norm !== undefined);

    const outputs = scales.length;
    const each = levels.length / outputs;
    const folded = { levels: new Int8Array(levels.length), scales: new Float32Array(outputs) };
    const constants = { levels: new Int32Array(outputs), scales: new Float32Array(outputs) };
    for (let o = 0; o < outputs; o++) {
      const factor = (gamma?.[o] ?? 1) / Math.sqrt((variance?.[o] ?? 1) + epsilon);
      const shift = constant ? (beta?.[o] ?? 0) + factor * ((offset?.[o] ?? 0) - (mean?.[o] ?? 0)) : 0;
      // Scales are positive, so a negative factor turns the levels round. The constant has to fit into 32 bits, on a
      // grid that the weight determines: a channel that is next to nothing but a constant gets a wider one.
      const wanted = factor * (scales[o] ?? 0);
      const scale = Math.fround(Math.max(Math.abs(wanted), Math.abs(shift) / (grid.scale * 2 ** 30))) || 1;
      for (let i = o * each; i < (o + 1) * each; i++) {
        folded.levels[i] = Math.round((levels[i] ?? 0) * (wanted / scale));
      }
      folded.scales[o] = scale;
      constants.scales[o] = scale * grid.scale;
      constants.levels[o] = Math.round(shift / (scale * grid.scale));
    }
    const dequantized = (kind: string, dtype: 'i8' | 'i32', dims: Sizes, from: typeof folded | typeof constants) => {
      const q = this.#tensor(kind, dtype, dims, from.levels);
      const scale = this.#tensor('scale', 'f32', [outputs], from.scales);
      // onnxruntime makes a zero point that it refuses if there is none.
      const zero = this.#tensor('zero', dtype, [outputs], new (arrayFor(dtype))(outputs));
      return this.#put('DequantizeLinear', [q, scale, zero], { axis: 0 });
    };
    const w = dequantized('weight', 'i8', shape, folded);
    return constant ? [w, dequantized('bias', 'i32', [outputs], constants)] : [w];
  }

  /** P(x), once for all that read it. Padding does not count, so the border is the mean of what exists. */
  #pool(x: string, size: Sizes, grid: Grid | undefined): string {
    const pads = [0, 0, ...size.map((s) => s % 2)];
    const attrs = { kernel_shape: [2, 2], strides: [2, 2], pads, count_include_pad: 0 };
    const y = this.#pooled.get(x) ?? this.#quantize(this.#put('AveragePool', [x], attrs), grid);
    this.#pooled.set(x, y);
    return y;
  }

  // --- Grids ------------------------------------------------------------------------------------------------------

  /** A value that is there becomes what its readers read. */
  #settle(id: number): void {
    const name = this.#name(id);
    const grid = this.#grids.get(id) ?? (this.#summands.has(id) ? this.#sumGrid(name) : undefined);
    this.#onGrid.set(id, this.#quantize(name, grid));
  }

  /** Grid of a sum or of a part of one, if the caller knows its range. */
  #sumGrid(name: string): Grid | undefined {
    if (this.quantized.size === 0) return undefined;
    if (this.options.probe) this.#probed.push(name);
    const range = this.options.ranges?.get(name);
    return range && gridOf(...range);
  }

  /** Rounded to a grid; as it is without one. */
  #quantize(x: string, grid: Grid | undefined): string {
    if (!grid) return x;
    const names = this.#gridNames.get(grid) ?? [
      this.#tensor('scale', 'f32', [], Float32Array.of(grid.scale)),
      this.#tensor('zero', 'u8', [], Uint8Array.of(grid.zeroPoint)),
    ];
    this.#gridNames.set(grid, names);
    return this.#put('DequantizeLinear', [this.#put('QuantizeLinear', [x, ...names]), ...names]);
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
  #put(type: string, inputs: Names, attrs: OnnxAttrs = {}, output = this.#fresh()): string {
    const node = new BinaryWriter();
    for (const name of inputs) node.tag(1, WireType.LengthDelimited).string(name);
    node.tag(2, WireType.LengthDelimited).string(output);
    node.tag(4, WireType.LengthDelimited).string(type);
    for (const [name, value] of Object.entries(attrs)) message(node, 5, attribute(name, value));
    this.#nodes.push(node);
    return output;
  }

  /** A parameter under its own name, written by the first that reads it; a cast if it is not f32. */
  #param(name: string): string {
    const param = this.params.get(name);
    if (!param || this.#written.has(name)) return name;
    this.#written.add(name);
    const { dtype, shape, data } = param;
    const stored = dtype === 'f32' ? name : `${name}.${dtype}`;
    this.#initializer(stored, elementTypes[dtype], shape, data);
    return stored === name ? name : this.#put('Cast', [stored], { to: float }, name);
  }

  #tensor(kind: string, dtype: DType, shape: Sizes, data: TypedArray): string {
    return this.#initializer(this.#fresh(kind), elementTypes[dtype], shape, data);
  }

  /** One value is a scalar, more are a vector. */
  #constant(values: Sizes, type: 'f32' | 'i64' = 'f32'): string {
    const shape = values.length === 1 ? [] : [values.length];
    const data = type === 'f32' ? Float32Array.from(values) : BigInt64Array.from(values, BigInt);
    return this.#initializer(this.#fresh('constant'), type === 'f32' ? float : int64, shape, data);
  }

  /** TensorProto */
  #initializer(name: string, type: number, shape: Sizes, data: ArrayBufferView): string {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    const tensor = new BinaryWriter();
    for (const size of shape) tensor.tag(1, WireType.Varint).int64(size);
    tensor.tag(2, WireType.Varint).int32(type);
    tensor.tag(8, WireType.LengthDelimited).string(name);
    const head = tensor.tag(9, WireType.LengthDelimited).uint32(bytes.length).finish();
    this.#initializers.push(lengthOf(new BinaryWriter(), 5, [head, bytes]).finish(), head, bytes);
    return name;
  }

  /** Batch size symbolic. */
  #valueInfo(id: number): BinaryWriter {
    const { dtype, shape } = this.graph.values[id] ?? { dtype: 'f32' as const, shape: [] };
    const [, ...rest] = shape.length === 4 ? [shape[0], shape[3], shape[1], shape[2]] : shape;
    const dimensions = new BinaryWriter();
    message(dimensions, 1, new BinaryWriter().tag(2, WireType.LengthDelimited).string('N'));
    for (const size of rest) message(dimensions, 1, new BinaryWriter().tag(1, WireType.Varint).int64(size ?? 0));
    return valueInfo(this.#name(id), dtype, dimensions);
  }

  /** ModelProto */
  finish(): Uint8Array {
    const nodes = new BinaryWriter();
    for (const node of this.#nodes) message(nodes, 1, node);
    nodes.tag(2, WireType.LengthDelimited).string('octconv');
    const ends = new BinaryWriter();
    for (const id of this.graph.inputs) message(ends, 11, this.#valueInfo(id));
    for (const id of this.graph.outputs) message(ends, 12, this.#valueInfo(id));
    for (const name of this.#probed) message(ends, 12, valueInfo(name, 'f32'));
    const graph = [nodes.finish(), ...this.#initializers, ends.finish()];
    const model = new BinaryWriter().tag(1, WireType.Varint).int64(8); // IR version
    model.tag(2, WireType.LengthDelimited).string('octconv');
    message(model, 8, new BinaryWriter().tag(2, WireType.Varint).int64(17)); // operator set
    return Buffer.concat([lengthOf(model, 7, graph).finish(), ...graph]);
  }

  /** The slash keeps it apart from the parameters' names. */
  #fresh(kind = 'part'): string {
    return `/${this.#layer}/${kind}.${this.#count++}`;
  }

  #name(id: number): string {
    const { shape = [] } = this.graph.values[id] ?? {};
    if (shape.length === 5) throw new OctconvError(`onnx: got [${shape}], only images [N,H,W,C] can be exported`);
    const norm = this.#norms.get(id);
    if (norm) return this.#name(norm.outputs[0] ?? -1);
    const name = this.#names.get(id) ?? `/${this.#layer}/value.${id}`;
    this.#names.set(id, name);
    return name;
  }

  /** The name under which a value is read. */
  #read(id: number): string {
    return this.#onGrid.get(id) ?? this.#name(id);
  }

  #extent(id: number | undefined): Sizes {
    return this.graph.values[id ?? -1]?.shape.slice(1, 3) ?? [];
  }
}

interface Layer {
  readonly weight?: string | undefined;
  readonly bias?: string | undefined;
  readonly norm?: GraphNode | undefined;
  readonly bare?: boolean;
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

/** ValueInfoProto */
function valueInfo(name: string, dtype: DType, dimensions?: BinaryWriter): BinaryWriter {
  const tensor = new BinaryWriter().tag(1, WireType.Varint).int32(elementTypes[dtype]);
  if (dimensions) message(tensor, 2, dimensions);
  return message(named(name), 2, message(new BinaryWriter(), 1, tensor));
}

const named = (name: string) => new BinaryWriter().tag(1, WireType.LengthDelimited).string(name);

function message(to: BinaryWriter, field: number, inner: BinaryWriter): BinaryWriter {
  return to.tag(field, WireType.LengthDelimited).bytes(inner.finish());
}

/** Begins a message that consists of these pieces. */
function lengthOf(to: BinaryWriter, field: number, pieces: readonly Uint8Array[]): BinaryWriter {
  return to.tag(field, WireType.LengthDelimited).uint32(pieces.reduce((sum, piece) => sum + piece.length, 0));
}
