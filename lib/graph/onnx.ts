/**
 * ONNX export of a graph as it was recorded, before any fusion, so that any other runtime can check a network and be
 * compared with ours. NHWC becomes ONNX's NCHW: input `input` [N, C, H, W], output `logits`; N is dynamic.
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
import { nativeAxes } from './shape.js';
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

/** @throws OctconvError for video, and for ops on pictures' bytes. */
export async function toOnnx(
  graph: Graph,
  weights: ReadParam | Pick<WeightSource, 'tensors' | 'read'>,
  options: OnnxOptions = {},
): Promise<Uint8Array> {
  checkOptions('toOnnx', options, { ranges: true, probe: true } satisfies Known<OnnxOptions>);
  const read = typeof weights === 'function' ? weights : readerOf(weights);
  const params = new Map<string, Param>();
  const quantized = new Map<string, Quantization>();
  for (const name of graph.params.keys()) {
    const given = graph.constants.get(name);
    const param = given ?? (await read(name));
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

/** Sizes that are equal or 1; [N, C] beside an image is [N, C, 1, 1]. */
const broadcasting =
  (type: string): Form =>
  (file, { inputs }, x, y) => {
    const ranks = inputs.map((id) => file.graph.values[id]?.shape.length ?? 0);
    const wide = (name: string, i: number) =>
      (ranks[i] ?? 0) < Math.max(...ranks) ? file.put('Unsqueeze', [name, file.vector([2, 3])]) : name;
    file.put(type, x.map(wide), {}, y);
  };

/** Which of our axes each axis in the file is. */
const inOnnx = (rank: number): Sizes => (rank === 4 ? [0, 3, 1, 2] : [0, 1]);

/** A value with the axes in our order, for what looks at the last ones. */
const ours = (file: OnnxFile, x: string, rank: number | undefined): string =>
  rank === 4 ? file.put('Transpose', [x], { perm: [0, 2, 3, 1] }) : x;

/** The output of a node, from one with the axes in our order. */
function reordered(file: OnnxFile, { outputs: [id = -1] }: GraphNode, from: string, y: string): void {
  const image = file.graph.values[id]?.shape.length === 4;
  file.put(image ? 'Transpose' : 'Identity', [from], image ? { perm: [0, 3, 1, 2] } : {}, y);
}

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
    const [a, b] = node.inputs.map((id) => file.graph.values[id]?.shape.length);
    reordered(file, node, file.put('MatMul', [ours(file, x, a), ours(file, by, b)]), y);
  },
  slice: (file, { attrs, inputs: [from = -1], outputs: [to = -1] }, [x = ''], y) => {
    const [shape, part] = [from, to].map((id) => file.graph.values[id] as { readonly shape: Sizes });
    if (!shape || !part) return;
    const order = inOnnx(shape.shape.length);
    const cut = nativeAxes(shape).flatMap((native, i) => {
      const start = (attrs.starts as Sizes)[native] ?? 0;
      return shape.shape[i] === part.shape[i] ? [] : { axis: order.indexOf(i), start, size: part.shape[i] ?? 0 };
    });
    if (cut.length === 0) return void file.put('Identity', [x], {}, y);
    const [starts, ends, axes] = [
      cut.map(({ start }) => start),
      cut.map(({ start, size }) => start + size),
      cut.map(({ axis }) => axis),
    ];
    file.put('Slice', [x, ...[starts, ends, axes].map((list) => file.vector(list))], {}, y);
  },
  transpose: (file, { attrs, inputs: [from = -1] }, [x = ''], y) => {
    const shaped = file.graph.values[from] ?? { shape: [] };
    const order = inOnnx(shaped.shape.length);
    const native = nativeAxes(shaped);
    const axes = native.map((axis) => native.indexOf((attrs.axes as Sizes)[axis] ?? 0));
    file.put('Transpose', [x], { perm: order.map((axis) => order.indexOf(axes[axis] ?? 0)) }, y);
  },
  reshape: (file, node, [x = ''], y) => {
    const [from, to] = [node.inputs[0], node.outputs[0]].map((id) => file.graph.values[id ?? -1]?.shape ?? []);
    if (!from || !to) return;
    const sizes = from[0] === to[0] ? [0, ...to.slice(1)] : to; // 0 is N, whatever it is
    reordered(file, node, file.put('Reshape', [ours(file, x, from.length), file.vector(sizes)]), y);
  },
  mean: (file, { attrs, inputs: [from = -1] }, x, y) => {
    const shaped = file.graph.values[from] ?? { shape: [] };
    const axes = (attrs.axes as Sizes).map((axis) =>
      inOnnx(shaped.shape.length).indexOf(nativeAxes(shaped).indexOf(axis)),
    );
    file.put('ReduceMean', x, { axes, keepdims: Number(attrs.keepDims) }, y);
  },
  interpolate: (file, { outputs: [to = -1] }, [x = ''], y) => {
    const size = file.put('Concat', [file.put('Shape', [x], { start: 0, end: 2 }), file.vector(file.extent(to))], {
      axis: 0,
    });
    file.put('Resize', [x, '', '', size], { mode: 'linear', coordinate_transformation_mode: 'half_pixel' }, y);
  },
  softmax: (file, { attrs, inputs: [from = -1] }, x, y) => {
    const shaped = file.graph.values[from] ?? { shape: [] };
    const axis = inOnnx(shaped.shape.length).indexOf(nativeAxes(shaped).indexOf(attrs.axis as number));
    file.put('Softmax', x, { axis }, y);
  },
  attention: (file, { attrs, inputs, outputs: [to = -1] }, x, y) => {
    const shapeOf = (id = -1): Sizes => file.graph.values[id]?.shape ?? [];
    const [q = '', k = '', v = ''] = x.map((name, i) => {
      const channels = shapeOf(inputs[i]).at(-1) ?? 0;
      return file.put('Reshape', [name, file.vector([0, channels, -1])]); // [N, channels, positions]; 0 is N
    });
    const turned = (name: string) => file.put('Transpose', [name], { perm: [0, 2, 1] });
    const scaled = file.put('Mul', [turned(q), file.constant([attrs.scale as number])]);
    const weights = file.put('Softmax', [file.put('MatMul', [scaled, k])], { axis: -1 });
    const [, ...sizes] = shapeOf(to);
    const shape = [0, sizes.at(-1) ?? 0, ...sizes.slice(0, -1)];
    file.put('Reshape', [file.put('MatMul', [v, turned(weights)]), file.vector(shape)], {}, y);
  },
  concat: same('Concat', { axis: 1 }),
  relu6: (file, _, [x = ''], y) => file.put('Clip', [x, file.constant([0]), file.constant([6])], {}, y),
  conv: (file, { attrs, params, outputs }, [x = ''], y) =>
    file.weighted('Conv', x, { ...params, norm: file.normBehind(outputs[0]) }, window(attrs), y),
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
    const padding = node.attrs.countIncludePad ? image(node.attrs.padding) : [0, 0];
    const counted = padding.some(Boolean) ? pad(file, x, padding, padding, 0) : x;
    file.put('AveragePool', [counted], { ...fitted(file, node, padding), count_include_pad: 0 }, y);
  },
  globalAvgPool: (file, _, x, y) => file.put('Flatten', [file.put('GlobalAveragePool', x)], {}, y),
  upsampleNearest: (file, { attrs, inputs, outputs }, [x = ''], y) =>
    upsample(file, x, image(attrs.scale), file.extent(inputs[0]), file.extent(outputs[0]), y),
  pad: (file, { attrs }, [x = ''], y) =>
    pad(file, x, image(attrs.before), image(attrs.after), attrs.value as number, y),
};

/** The definition, part by part: see `octConv` in lib/ops.ts. */
function octConv(file: OnnxFile, { inputs: [xH, xL], outputs: [yH, yL], attrs, params, name: layer }: GraphNode): void {
  const { kernel, stride, groups } = attrs as { kernel: Sizes; stride: number; groups: number };
  const channels = (id: number | undefined) => file.graph.values[id ?? -1]?.shape.at(-1) ?? 0;
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
      let size = file.extent(from);
      for (let pool = 0; pool < pools; pool++) {
        x = file.pool(x, size, file.gridOf(from));
        size = size.map((s) => Math.ceil(s / 2));
      }
      const one = kernel.map(() => 1);
      const attrs = window({ kernel, stride: one, padding, groups: depthwise ? channels(from) : groups });
      const held = { weight, norm, ...(i === 0 ? { bias } : { bare: true }) };
      const name = there.length === 1 ? file.name(y) : `/${layer}/${role}.${y}`;
      const part = file.weighted('Conv', x, held, attrs, name);
      if (there.length === 1) return part;
      const grid = file.sumGrid(part);
      const rounded = file.quantize(part, grid);
      const up = role === 'l2h' && stride === 1;
      return up ? file.quantize(upsample(file, rounded, [2, 2], size, file.extent(y)), grid) : rounded;
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
function fitted(file: OnnxFile, { attrs, inputs, outputs }: GraphNode, done: Sizes = [0, 0]): OnnxAttrs {
  const { kernel_shape, strides, pads } = window(attrs) as { [name: string]: Sizes };
  const [x, y] = [file.extent(inputs[0]), file.extent(outputs[0])];
  const at = (sizes: Sizes | undefined, i: number) => sizes?.[i] ?? 0;
  const begin = [0, 1].map((i) => at(pads, i) - at(done, i));
  const end = [0, 1].map((i) => {
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
  const [starts, axes] = [file.vector([0, 0]), file.vector([2, 3])];
  return file.put('Slice', [up, starts, file.vector(to), axes], {}, y);
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
