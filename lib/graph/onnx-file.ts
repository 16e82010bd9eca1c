/**
 * A graph as an ONNX file in the making: names of values, nodes, initialisers, and the grids of quantised values. What
 * each op becomes is said in onnx.ts.
 */
import { arrayFor, type DType, type TypedArray } from '../dtype.js';
import { OctconvError } from '../error.js';
import { toNCHW } from '../layout.js';
import { Tensor } from '../tensor.js';
import { toFloats } from '../weights/floats.js';
import { besideI8 } from '../weights/source.js';
import type { Graph, GraphNode } from './graph.js';
import { encode, type Message } from './onnx-proto.js';

export interface Param {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly data: TypedArray;
}

/** How a parameter is read: raw elements in PyTorch's layout. Of an i8 weight the scales are read too. */
export type ReadParam = (name: string) => Promise<Param>;

/** Least and largest value of activations, by their names in the file. */
export type Ranges = ReadonlyMap<string, readonly [least: number, most: number]>;

/** Quantised weights know the ranges of what their layers read, but not of the sums between: those stay f32 without. */
export interface OnnxOptions {
  readonly ranges?: Ranges | undefined;
  /** Makes outputs of all activations whose ranges could be given. */
  readonly probe?: boolean;
}

export type Sizes = readonly number[];
export type Names = readonly string[];
/** Numbers are INT attributes unless they are marked as FLOAT. */
export type OnnxAttrs = { readonly [name: string]: number | { readonly float: number } | string | Sizes };

const elementTypes: Record<DType, number> = { f32: 1, u8: 2, i8: 3, i32: 6, f16: 10, bf16: 16 };
const int64 = 7;
const float = 1;

// --- Quantisation -------------------------------------------------------------------------------------------------

/** x = scale (q - zeroPoint), q a byte */
export interface Grid {
  readonly scale: number;
  readonly zeroPoint: number;
}

/** w = scales[o] q, and the grid of what is convolved with it. */
export interface Quantization {
  readonly scales: TypedArray;
  readonly grid: Grid;
}

export async function quantizationOf(weight: string, read: ReadParam): Promise<Quantization> {
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

/** A convolution or a linear layer, and the batch normalisation behind it. */
export interface Layer {
  readonly weight?: string | undefined;
  readonly bias?: string | undefined;
  readonly norm?: GraphNode | undefined;
  /** Without the constants of the sum that it is a part of. */
  readonly bare?: boolean;
}

export class OnnxFile {
  readonly #nodes: Message<'NodeProto'>[] = [];
  readonly #initializers: Message<'TensorProto'>[] = [];
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
    for (const [id, name] of graph.bound) this.#names.set(id, this.#operand(name));
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
        fold.set(
          id,
          weights.every((role) => this.quantized.has(params[role] ?? '')),
        );
      }
    }
    const read = [...nodes.flatMap(({ inputs }) => inputs), ...this.graph.outputs];
    for (const node of nodes) {
      const [x = -1] = node.inputs;
      const alone = read.indexOf(x) === read.lastIndexOf(x);
      if (node.op === 'batchNorm' && fold.get(x) && alone) this.#norms.set(x, node);
    }
  }

  // --- Nodes ------------------------------------------------------------------------------------------------------

  /** `write` puts what a node becomes; nothing where it has gone into the layer before it. */
  node(node: GraphNode, write: () => void): void {
    this.#layer = node.name;
    if (this.#norms.get(node.inputs[0] ?? -1) !== node) write();
    for (const id of node.outputs) this.#settle(id);
  }

  /** NodeProto */
  put(type: string, inputs: Names, attrs: OnnxAttrs = {}, output = this.fresh()): string {
    const attribute = Object.entries(attrs).map(([name, value]) => attributeOf(name, value));
    this.#nodes.push({ input: inputs, output: [output], op_type: type, attribute });
    return output;
  }

  /**
   * A convolution or a linear layer, with its bias and the batch normalisation behind it. Where several are summed up,
   * all but one are `bare`: without the constants of the sum.
   */
  weighted(type: 'Conv' | 'Gemm', x: string, layer: Layer, attrs: OnnxAttrs, y: string): string {
    const { weight = '', bias } = layer;
    const quantization = this.quantized.get(weight);
    const params = quantization
      ? this.#quantizedParams(layer, quantization)
      : [weight, bias].flatMap((name) => (name === undefined ? [] : this.param(name)));
    return this.put(type, [x, ...params], attrs, y);
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
      return this.put('DequantizeLinear', [q, scale, zero], { axis: 0 });
    };
    const w = dequantized('weight', 'i8', shape, folded);
    return constant ? [w, dequantized('bias', 'i32', [outputs], constants)] : [w];
  }

  /** P(x), once for all that read it. Padding does not count, so the border is the mean of what exists. */
  pool(x: string, shape: Sizes, grid: Grid | undefined): string {
    const extent = shape.slice(1, -1);
    const window = extent.map((_, i) => (i < extent.length - 2 ? 1 : 2));
    const pads = [...extent.map(() => 0), ...extent.map((size, i) => size % (window[i] ?? 1))];
    const attrs = { kernel_shape: window, strides: window, pads, count_include_pad: 0 };
    const y = this.#pooled.get(x) ?? this.quantize(this.put('AveragePool', [x], attrs), grid);
    this.#pooled.set(x, y);
    return y;
  }

  // --- Grids ------------------------------------------------------------------------------------------------------

  /** A value that is there becomes what its readers read. */
  #settle(id: number): void {
    const name = this.name(id);
    const grid = this.#grids.get(id) ?? (this.#summands.has(id) ? this.sumGrid(name) : undefined);
    this.#onGrid.set(id, this.quantize(name, grid));
  }

  /** Grid of a sum or of a part of one, if the caller knows its range. */
  sumGrid(name: string): Grid | undefined {
    if (this.quantized.size === 0) return undefined;
    if (this.options.probe) this.#probed.push(name);
    const range = this.options.ranges?.get(name);
    return range && gridOf(...range);
  }

  /** Rounded to a grid; as it is without one. */
  quantize(x: string, grid: Grid | undefined): string {
    if (!grid) return x;
    const names = this.#gridNames.get(grid) ?? [
      this.#tensor('scale', 'f32', [], Float32Array.of(grid.scale)),
      this.#tensor('zero', 'u8', [], Uint8Array.of(grid.zeroPoint)),
    ];
    this.#gridNames.set(grid, names);
    return this.put('DequantizeLinear', [this.put('QuantizeLinear', [x, ...names]), ...names]);
  }

  // --- Parameters and constants -------------------------------------------------------------------------------------

  /** A parameter under its own name, written by the first that reads it; a cast if it is not f32. */
  param(name: string): string {
    const param = this.params.get(name);
    if (!param || this.#written.has(name)) return name;
    this.#written.add(name);
    const { dtype, shape, data } = param;
    const stored = dtype === 'f32' ? name : `${name}.${dtype}`;
    this.#initializer(stored, elementTypes[dtype], shape, data);
    return stored === name ? name : this.put('Cast', [stored], { to: float }, name);
  }

  /** A parameter or a constant that is read as values are. */
  #operand(name: string): string {
    const { dtype, shape, data } = this.params.get(name) as Param;
    const x = new Tensor('f32', shape, toFloats(dtype, data));
    const moved = shape.length > 2 ? toNCHW(x) : x;
    return this.#initializer(`/${name}`, float, moved.shape, moved.data);
  }

  #tensor(kind: string, dtype: DType, shape: Sizes, data: TypedArray): string {
    return this.#initializer(this.fresh(kind), elementTypes[dtype], shape, data);
  }

  /** One value is a scalar, more are a vector. */
  constant(values: Sizes): string {
    return this.#initializer(
      this.fresh('constant'),
      float,
      values.length === 1 ? [] : [values.length],
      Float32Array.from(values),
    );
  }

  /** Integers as a vector, also if there is but one. */
  vector(values: Sizes): string {
    return this.#initializer(this.fresh('constant'), int64, [values.length], BigInt64Array.from(values, BigInt));
  }

  /** TensorProto */
  #initializer(name: string, type: number, shape: Sizes, data: ArrayBufferView): string {
    const raw_data = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    this.#initializers.push({ dims: shape, data_type: type, name, raw_data });
    return name;
  }

  // --- Values -------------------------------------------------------------------------------------------------------

  /** The slash keeps it apart from the parameters' names. */
  fresh(kind = 'part'): string {
    return `/${this.#layer}/${kind}.${this.#count++}`;
  }

  name(id: number): string {
    const norm = this.#norms.get(id);
    if (norm) return this.name(norm.outputs[0] ?? -1);
    const name = this.#names.get(id) ?? `/${this.#layer}/value.${id}`;
    this.#names.set(id, name);
    return name;
  }

  /** The name under which a value is read. */
  read(id: number): string {
    return this.#onGrid.get(id) ?? this.name(id);
  }

  shape(id: number | undefined): Sizes {
    return this.graph.values[id ?? -1]?.shape ?? [];
  }

  /** [h, w] or [t, h, w] */
  extent(id: number | undefined): Sizes {
    return this.shape(id).slice(1, -1);
  }

  /** The batch normalisation that goes into the layer which makes a value. */
  normBehind(id: number | undefined): GraphNode | undefined {
    return this.#norms.get(id ?? -1);
  }

  gridOf(id: number): Grid | undefined {
    return this.#grids.get(id);
  }

  /** The size of a batch is symbolic. */
  #valueInfo(id: number): Message<'ValueInfoProto'> {
    const { dtype, shape } = this.graph.values[id] ?? { dtype: 'f32' as const, shape: [] };
    const rest = [shape.at(-1), ...shape.slice(1, -1)];
    const [n = 1] = shape;
    const batch = n === this.graph.values[this.graph.inputs[0] ?? -1]?.shape[0];
    return valueInfo(this.name(id), dtype, [
      batch ? { dim_param: 'N' } : { dim_value: n },
      ...rest.map((size) => ({ dim_value: size ?? 0 })),
    ]);
  }

  finish(): Uint8Array {
    const { inputs, outputs } = this.graph;
    const graph: Message<'GraphProto'> = {
      node: this.#nodes,
      name: 'octconv',
      initializer: this.#initializers,
      input: inputs.map((id) => this.#valueInfo(id)),
      output: [...outputs.map((id) => this.#valueInfo(id)), ...this.#probed.map((name) => valueInfo(name, 'f32'))],
    };
    return Buffer.concat(
      encode('ModelProto', { ir_version: 8, producer_name: 'octconv', graph, opset_import: [{ version: 17 }] }),
    );
  }
}

function attributeOf(name: string, value: OnnxAttrs[string]): Message<'AttributeProto'> {
  if (typeof value === 'number') return { name, i: value, type: 2 };
  if (typeof value === 'string') return { name, s: value, type: 3 };
  return 'float' in value ? { name, f: value.float, type: 1 } : { name, ints: value, type: 7 };
}

function valueInfo(
  name: string,
  dtype: DType,
  dim?: readonly Message<'TensorShapeProto.Dimension'>[],
): Message<'ValueInfoProto'> {
  return { name, type: { tensor_type: { elem_type: elementTypes[dtype], ...(dim && { shape: { dim } }) } } };
}
