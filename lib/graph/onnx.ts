/**
 * ONNX export of a graph as it was recorded, before any fusion, so that any other runtime can check a network and be
 * compared with ours. Channels come second: input `input` [N, C, H, W] or [N, C, T, H, W], output `logits`; N is
 * dynamic.
 *
 * Quantised weights are written the way int8 runtimes recognise: DequantizeLinear behind the weight, QuantizeLinear and
 * DequantizeLinear behind each value that such a layer reads. Batch normalisation behind such a layer goes into its
 * scales, since no runtime would fold it there.
 *
 * Operator set 17; the messages are described in onnx-proto.ts.
 */
import { OctconvError } from '../error.js';
import { checkOptions, type Known } from '../options.js';
import type { WeightSource } from '../weights/source.js';
import type { Attrs, Graph, GraphNode } from './graph.js';
import { halved, nativeAxes } from './shape.js';
import {
  type Names,
  type OnnxAttrs,
  OnnxFile,
  type OnnxOptions,
  type Param,
  type Quantization,
  quantizationOf,
  type ReadParam,
  type Sizes,
} from './onnx-file.js';

export type { OnnxOptions, Param, Ranges, ReadParam } from './onnx-file.js';

export const readerOf =
  (source: Pick<WeightSource, 'tensors' | 'read'>): ReadParam =>
  async (name) => {
    const { dtype = 'f32', shape = [] } = source.tensors.get(name) ?? {};
    return { dtype, shape, data: await source.read(name) };
  };

/** What one message of protobuf holds. */
const mostBytes = 2 ** 31 - 1;

/** @throws OctconvError for ops on pictures' bytes, and for parameters that no file holds: 2 GiB and more. */
export async function toOnnx(
  graph: Graph,
  weights: ReadParam | Pick<WeightSource, 'tensors' | 'read'>,
  options: OnnxOptions = {},
): Promise<Uint8Array> {
  checkOptions('toOnnx', options, { ranges: true, probe: true } satisfies Known<OnnxOptions>);
  const read = typeof weights === 'function' ? weights : readerOf(weights);
  const params = new Map<string, Param>();
  const quantized = new Map<string, Quantization>();
  let bytes = 0;
  for (const name of graph.params.keys()) {
    const given = graph.constants.get(name);
    const param = given ?? (await read(name));
    bytes += param.data.byteLength;
    if (bytes > mostBytes)
      throw new OctconvError(`onnx: the parameters up to '${name}' are ${bytes} bytes, wanted at most ${mostBytes}`);
    params.set(name, param);
    if (!given && param.dtype === 'i8') quantized.set(name, await quantizationOf(name, read));
  }
  const file = new OnnxFile(graph, params, quantized, options);
  for (const node of graph.nodes) {
    const form = forms[node.op];
    if (!form) throw new OctconvError(`onnx: op '${node.op}' of '${node.name}' cannot be exported`);
    const [y] = node.outputs;
    file.node(node, () =>
      form(
        file,
        node,
        node.inputs.map((id) => file.read(id)),
        y === undefined ? '' : file.name(y),
      ),
    );
  }
  return file.finish();
}

/** Puts what a node becomes: `x` are the names of its inputs, `y` is that of its first output. */
type Form = (file: OnnxFile, node: GraphNode, x: Names, y: string) => void;

const same =
  (type: string, attrs: OnnxAttrs = {}): Form =>
  (file, _, x, y) =>
    file.put(type, x, attrs, y);

/** Sizes that are equal or 1; [N, C] beside an image is [N, C, 1, 1], beside video [N, C, 1, 1, 1]. */
const broadcasting =
  (type: string): Form =>
  (file, { inputs }, x, y) => {
    const ranks = inputs.map((id) => file.shape(id).length);
    const most = Math.max(...ranks);
    const wide = (name: string, i: number) =>
      (ranks[i] ?? 0) < most
        ? file.put('Unsqueeze', [name, file.vector(Array.from({ length: most - 2 }, (_, axis) => axis + 2))])
        : name;
    file.put(type, x.map(wide), {}, y);
  };

/** Which of our axes each axis in the file is: channels come second. */
const inOnnx = (rank: number): Sizes => [0, rank - 1, ...Array.from({ length: rank - 2 }, (_, i) => i + 1)];

/** The axes in another order. */
function transposed(file: OnnxFile, x: string, perm: Sizes, y?: string): string {
  if (perm.some((axis, i) => axis !== i)) return file.put('Transpose', [x], { perm }, y);
  return y === undefined ? x : file.put('Identity', [x], {}, y);
}

/** A value with the axes in our order, for what looks at the last ones. */
function ours(file: OnnxFile, x: string, rank: number): string {
  const order = inOnnx(rank);
  return transposed(
    file,
    x,
    order.map((_, axis) => order.indexOf(axis)),
  );
}

/** The output of a node, from one with the axes in our order. */
const reordered = (file: OnnxFile, { outputs: [id] }: GraphNode, from: string, y: string): string =>
  transposed(file, from, inOnnx(file.shape(id).length), y);

const forms: { readonly [op: string]: Form } = {
  relu: same('Relu'),
  sigmoid: same('Sigmoid'),
  add: broadcasting('Add'),
  sub: broadcasting('Sub'),
  mul: broadcasting('Mul'),
  div: broadcasting('Div'),
  silu: (file, _, [x = ''], y) => file.put('Mul', [x, file.put('Sigmoid', [x])], {}, y),
  hardSigmoid: same('HardSigmoid', { alpha: { float: 1 / 6 }, beta: { float: 0.5 } }),
  hardSwish: same('HardSwish'),
  leakyRelu: (file, { attrs }, x, y) => file.put('LeakyRelu', x, { alpha: { float: attrs.slope as number } }, y),
  gelu: (file, _, [x = ''], y) => {
    const erf = file.put('Erf', [file.put('Mul', [x, file.constant([Math.SQRT1_2])])]);
    const twice = file.put('Mul', [x, file.put('Add', [erf, file.constant([1])])]);
    file.put('Mul', [twice, file.constant([0.5])], {}, y);
  },
  matmul: (file, node, [x = '', by = ''], y) => {
    const rank = file.shape(node.inputs[0]).length;
    reordered(file, node, file.put('MatMul', [ours(file, x, rank), ours(file, by, rank)]), y);
  },
  slice: (file, { attrs, inputs: [from], outputs: [to] }, [x = ''], y) => {
    const [shape, part] = [file.shape(from), file.shape(to)];
    const order = inOnnx(shape.length);
    const cut = nativeAxes({ shape }).flatMap((native, i) => {
      const start = (attrs.starts as Sizes)[native] ?? 0;
      return shape[i] === part[i] ? [] : { axis: order.indexOf(i), start, size: part[i] ?? 0 };
    });
    if (cut.length === 0) return void file.put('Identity', [x], {}, y);
    const [starts, ends, axes] = [
      cut.map(({ start }) => start),
      cut.map(({ start, size }) => start + size),
      cut.map(({ axis }) => axis),
    ];
    file.put('Slice', [x, ...[starts, ends, axes].map((list) => file.vector(list))], {}, y);
  },
  transpose: (file, { attrs, inputs: [from] }, [x = ''], y) => {
    const shape = file.shape(from);
    const order = inOnnx(shape.length);
    const native = nativeAxes({ shape });
    const axes = native.map((axis) => native.indexOf((attrs.axes as Sizes)[axis] ?? 0));
    file.put('Transpose', [x], { perm: order.map((axis) => order.indexOf(axes[axis] ?? 0)) }, y);
  },
  reshape: (file, node, [x = ''], y) => {
    const [from, to] = [file.shape(node.inputs[0]), file.shape(node.outputs[0])];
    const sizes = from[0] === to[0] ? [0, ...to.slice(1)] : to; // 0 is N, whatever it is
    reordered(file, node, file.put('Reshape', [ours(file, x, from.length), file.vector(sizes)]), y);
  },
  mean: (file, { attrs, inputs: [from], outputs: [to] }, x, y) => {
    const shape = file.shape(from);
    const order = inOnnx(shape.length);
    const gone = (attrs.axes as Sizes).map((axis) => nativeAxes({ shape }).indexOf(axis));
    const reduce = { axes: gone.map((axis) => order.indexOf(axis)), keepdims: Number(attrs.keepDims) };
    if (attrs.keepDims) return void file.put('ReduceMean', x, reduce, y);
    // Without C the last axis that is left is the channels.
    const left = order.filter((axis) => !gone.includes(axis));
    const sorted = left.toSorted((a, b) => a - b);
    const perm = inOnnx(file.shape(to).length).map((axis) => left.indexOf(sorted[axis] ?? 0));
    const inOrder = perm.every((axis, i) => axis === i);
    const mean = file.put('ReduceMean', x, reduce, inOrder ? y : undefined);
    if (!inOrder) transposed(file, mean, perm, y);
  },
  interpolate: (file, { outputs: [to = -1] }, [x = ''], y) => {
    const size = file.put('Concat', [file.put('Shape', [x], { start: 0, end: 2 }), file.vector(file.extent(to))], {
      axis: 0,
    });
    file.put('Resize', [x, '', '', size], { mode: 'linear', coordinate_transformation_mode: 'half_pixel' }, y);
  },
  softmax: (file, { attrs, inputs: [from] }, x, y) => {
    const shape = file.shape(from);
    const axis = inOnnx(shape.length).indexOf(nativeAxes({ shape }).indexOf(attrs.axis as number));
    file.put('Softmax', x, { axis }, y);
  },
  attention: (file, { attrs, inputs, outputs: [to] }, x, y) => {
    const [q = '', k = '', v = ''] = x.map((name, i) => {
      const channels = file.shape(inputs[i]).at(-1) ?? 0;
      return file.put('Reshape', [name, file.vector([0, channels, -1])]); // [N, channels, positions]; 0 is N
    });
    const turned = (name: string) => file.put('Transpose', [name], { perm: [0, 2, 1] });
    const scaled = file.put('Mul', [turned(q), file.constant([attrs.scale as number])]);
    const weights = file.put('Softmax', [file.put('MatMul', [scaled, k])], { axis: -1 });
    const [, ...sizes] = file.shape(to);
    const shape = [0, sizes.at(-1) ?? 0, ...sizes.slice(0, -1)];
    file.put('Reshape', [file.put('MatMul', [v, turned(weights)]), file.vector(shape)], {}, y);
  },
  concat: same('Concat', { axis: 1 }),
  relu6: (file, _, [x = ''], y) => file.put('Clip', [x, file.constant([0]), file.constant([6])], {}, y),
  conv: (file, { attrs, params, inputs, outputs }, [x = ''], y) =>
    file.weighted('Conv', x, { ...params, norm: file.normBehind(outputs[0]) }, window(attrs, file.shape(inputs[0])), y),
  octConv,
  linear: (file, { params }, [x = ''], y) => file.weighted('Gemm', x, params, { transB: 1 }, y),
  batchNorm: (file, { attrs, params }, [x = ''], y) => {
    const { weight = '', bias = '', running_mean = '', running_var = '' } = params;
    const all = [weight, bias, running_mean, running_var].map((name) => file.param(name));
    file.put('BatchNormalization', [x, ...all], { epsilon: { float: attrs.eps as number } }, y);
  },
  maxPool: (file, node, [x = ''], y) => file.put('MaxPool', [x], fitted(file, node), y),
  avgPool: (file, node, [x = ''], y) => {
    // Counted padding is data; what lies beyond it never counts.
    const [shape, none] = [file.shape(node.inputs[0]), [0, 0, 0]];
    const padding = spatial(node.attrs.countIncludePad ? node.attrs.padding : none, shape);
    const counted = padding.some(Boolean) ? pad(file, x, padding, padding, 0) : x;
    file.put('AveragePool', [counted], { ...fitted(file, node, padding), count_include_pad: 0 }, y);
  },
  globalAvgPool: (file, _, x, y) => file.put('Flatten', [file.put('GlobalAveragePool', x)], {}, y),
  upsampleNearest: (file, { attrs, inputs, outputs }, [x = ''], y) =>
    upsample(file, x, spatial(attrs.scale, file.shape(inputs[0])), file.extent(inputs[0]), file.extent(outputs[0]), y),
  pad: (file, { attrs, inputs }, [x = ''], y) => {
    const [before, after] = [attrs.before, attrs.after].map((sizes) => spatial(sizes, file.shape(inputs[0])));
    pad(file, x, before ?? [], after ?? [], attrs.value as number, y);
  },
};

/** The definition, part by part: see `octConv` in lib/ops.ts. */
function octConv(file: OnnxFile, { inputs: [xH, xL], outputs: [yH, yL], attrs, params, name: layer }: GraphNode): void {
  const { kernel, stride, groups } = attrs as { kernel: Sizes; stride: number; groups: number };
  const channels = (id: number | undefined) => file.shape(id).at(-1) ?? 0;
  const depthwise = groups > 1 && groups === channels(xH) + channels(xL);
  const padding = kernel.map((size) => (size - 1) / 2);
  type Path = readonly [role: string, from: number | undefined, pools: number];
  const branch = (y: number | undefined, bias: string | undefined, ...paths: readonly Path[]) => {
    if (y === undefined) return;
    const norm = file.normBehind(y);
    const there = paths.flatMap(([role, from, pools]) => {
      const weight = params[role];
      return weight === undefined || from === undefined ? [] : { role, weight, from, pools };
    });
    const parts = there.map(({ role, weight, from, pools }, i) => {
      let x = file.read(from);
      let shape = file.shape(from);
      for (let pool = 0; pool < pools; pool++) {
        x = file.pool(x, shape, file.gridOf(from));
        shape = halved(shape);
      }
      const one = kernel.map(() => 1);
      const attrs = window({ kernel, stride: one, padding, groups: depthwise ? channels(from) : groups }, shape);
      const held = { weight, norm, ...(i === 0 ? { bias } : { bare: true }) };
      const name = there.length === 1 ? file.name(y) : `/${layer}/${role}.${y}`;
      const part = file.weighted('Conv', x, held, attrs, name);
      if (there.length === 1) return part;
      const grid = file.sumGrid(part);
      const rounded = file.quantize(part, grid);
      const up = role === 'l2h' && stride === 1;
      const whole = () => upsample(file, rounded, spatial([1, 2, 2], shape), shape.slice(1, -1), file.extent(y));
      return up ? file.quantize(whole(), grid) : rounded;
    });
    if (parts.length > 1) file.put('Add', parts, {}, file.name(y));
  };
  const down = stride === 2 ? 1 : 0;
  branch(yH, params.biasH, ['h2h', xH, down], ['l2h', xL, 0]);
  branch(yL, params.biasL, ['l2l', xL, down], ['h2l', xH, down + 1]);
}

/**
 * The window of a pooling, padded at the end for just as many positions as it has: runtimes differ in what
 * `ceil_mode` makes of windows that start in the padding. `done` is how much of the padding x has already.
 */
function fitted(file: OnnxFile, { attrs, inputs, outputs }: GraphNode, done: Sizes = []): OnnxAttrs {
  const { kernel_shape, strides, pads } = window(attrs, file.shape(inputs[0])) as { [name: string]: Sizes };
  const [x, y] = [file.extent(inputs[0]), file.extent(outputs[0])];
  const at = (sizes: Sizes | undefined, i: number) => sizes?.[i] ?? 0;
  const begin = x.map((_, i) => at(pads, i) - at(done, i));
  const end = x.map((_, i) => {
    const reach = (at(y, i) - 1) * at(strides, i) + at(kernel_shape, i);
    return Math.max(0, reach - at(begin, i) - at(x, i) - 2 * at(done, i));
  });
  return { kernel_shape, strides, pads: [...begin, ...end] } as OnnxAttrs;
}

function pad(file: OnnxFile, x: string, before: Sizes, after: Sizes, value: number, y = file.fresh()): string {
  const pads = file.vector([0, 0, ...before, 0, 0, ...after]);
  return file.put('Pad', [x, pads, file.constant([value])], {}, y);
}

/** Nearest upsampling, cropped to the size that is wanted. */
function upsample(file: OnnxFile, x: string, scale: Sizes, from: Sizes, to: Sizes, y = file.fresh()): string {
  const whole = from.every((size, i) => size * (scale[i] ?? 1) === to[i]);
  const attrs = { mode: 'nearest', nearest_mode: 'floor', coordinate_transformation_mode: 'asymmetric' };
  const up = file.put('Resize', [x, '', file.constant([1, 1, ...scale])], attrs, whole ? y : file.fresh());
  if (whole) return y;
  const [starts, axes] = [file.vector(to.map(() => 0)), file.vector(to.map((_, i) => i + 2))];
  return file.put('Slice', [up, starts, file.vector(to), axes], {}, y);
}

/** Of sizes [t, h, w] those of the axes that a shape has. */
const spatial = (sizes: unknown, shape: Sizes): Sizes => (sizes as Sizes).slice(5 - shape.length);

/** Kernel, stride, padding, dilation and groups in ONNX's words, for an input of a shape. */
function window({ kernel, stride, padding, dilation, groups }: Attrs, shape: Sizes): OnnxAttrs {
  const pads = spatial(padding, shape);
  return {
    kernel_shape: spatial(kernel, shape),
    strides: spatial(stride, shape),
    pads: [...pads, ...pads],
    ...(dilation !== undefined && { dilations: spatial(dilation, shape) }),
    ...(groups !== undefined && { group: groups as number }),
  };
}
