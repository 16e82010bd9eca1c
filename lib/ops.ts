/**
 * The ops. Given recorded values an op is recorded into their graph and gives values, where tensors beside them are
 * constants; given tensors alone it is run at once, where they are, and gives promises. Shapes are [N, C], images
 * [N, H, W, C] and video [N, T, H, W, C]; weights are in PyTorch's layout, [O, I / groups, kh, kw] or
 * [O, I / groups, kt, kh, kw], and in memory of the host.
 *
 * A call on tensors records, packs its weights and plans every time, since a tensor's elements may have changed: an
 * octConv 3 x 3 on one image takes 3 times (64 channels at 56 x 56) to 20 times (512 at 14 x 14) as long as its step in
 * a plan. It is for trying things out; what runs more than once is made with `compile` (lib/compile.ts) or a `Model`,
 * which do this once and fuse the ops.
 *
 * What does not fit does not compile where sizes are literal, and is an OctconvError otherwise: thrown while recording,
 * a rejected promise for tensors, and thrown for what is neither.
 */
import type { DType } from './dtype.js';
import { OctconvError, show } from './error.js';
import { type Attrs, Graph, kindOf, Parameter, Value } from './graph/graph.js';
import {
  axesOf,
  broadcast,
  channels,
  check,
  checkNumbers,
  checkRank,
  checkVector,
  checkWeight,
  extentOf,
  halved,
  inNative,
  kernelOf,
  list,
  nativeAxes,
  of,
  same,
  type Size,
  sizes,
  windowed,
  withExtent,
  wrong,
} from './graph/shape.js';
import { Octave, type Paths } from './octave.js';
import { checkOptions, type Known } from './options.js';
import { type PlanOptions, planOptions, runGraph } from './plan.js';
import {
  type Channels,
  deviceOf,
  elementCount,
  type Image,
  type Match,
  type Matrix,
  type Shape,
  type Spatial,
  Tensor,
  type Vector,
  type Video,
} from './tensor.js';

/** What an op takes: a recorded value or a tensor. */
export type Operand<S extends Shape = Shape, D extends DType = 'f32'> = Value<D, S> | Tensor<D, S>;
/** What an op gives for an operand: a value, or the promise of a tensor. */
export type Result<X, S extends Shape, D extends DType = 'f32'> = X extends Value ? Value<D, S> : Promise<Tensor<D, S>>;
/** A layer's parameter, or a tensor as a constant. A call on tensors takes only tensors. */
export type Weight<S extends Shape = Shape> = Parameter<S> | Tensor<'f32' | 'f16' | 'bf16', S>;
/** Where and how a call on tensors runs; says nothing to a recording. */
export type RunAt = PlanOptions;
export type { Size };

/** The shape of a convolution's weight, of images or of video. */
export type Kernel =
  | readonly [o: number, i: number, h: number, w: number]
  | readonly [o: number, i: number, t: number, h: number, w: number];
/** The result of what works on H and W (and T), with K channels. */
export type Windowed<S extends Shape, K extends number = Channels<S>> = S extends Image
  ? readonly [S[0], number, number, K]
  : S extends Video
    ? readonly [S[0], number, number, number, K]
    : never;
/** An operand of the same kind and rank, of any sizes. */
export type Beside<X extends Operand> = X extends Value
  ? Value<'f32', Wide<X['shape']>>
  : Tensor<'f32', Wide<X['shape']>>;
/** The same, or beside a recorded value a parameter or a tensor as a constant, in the layout of values. */
export type Other<X extends Operand> =
  | Beside<X>
  | (X extends Value ? Tensor<'f32', Wide<X['shape']>> | Parameter<Wide<X['shape']>> : never);
/** The same rank, any sizes. */
export type Wide<S extends Shape> = { readonly [K in keyof S]: number };
/** What stands on the other side of `add`, `sub`, `mul` and `div`. */
export type Arithmetic<X extends Operand> = Other<X> | Vectors<X> | number;
/** A shape as native code sees it, N T H W C. */
export type Full<S extends Shape> = S extends Video
  ? S
  : S extends Image
    ? readonly [S[0], 1, S[1], S[2], S[3]]
    : S extends Matrix
      ? readonly [S[0], 1, 1, 1, S[1]]
      : readonly [number, number, number, number, number];
export type Fits<A extends number, B extends number> = [A & B] extends [never]
  ? 1 extends A | B
    ? true
    : false
  : true;
export type Joint<A extends number, B extends number> = A extends 1 ? B : B extends 1 ? A : number extends A ? B : A;
export type AllFit<A extends Video, B extends Video> = false extends
  | Fits<A[0], B[0]>
  | Fits<A[1], B[1]>
  | Fits<A[2], B[2]>
  | Fits<A[3], B[3]>
  | Fits<A[4], B[4]>
  ? false
  : true;
export type AllJoint<A extends Video, B extends Video> = readonly [
  Joint<A[0], B[0]>,
  Joint<A[1], B[1]>,
  Joint<A[2], B[2]>,
  Joint<A[3], B[3]>,
  Joint<A[4], B[4]>,
];
export type OfRank<S extends Shape, F extends Video> = S extends Video
  ? F
  : S extends Image
    ? readonly [F[0], F[2], F[3], F[4]]
    : readonly [F[0], F[4]];
/** The type of an operand if its sizes can be those of x or 1, otherwise a text that no operand is. */
export type Broadcasting<S extends Shape, Y> = Y extends { readonly shape: infer T extends Shape }
  ? AllFit<Full<S>, Full<T>> extends true
    ? Y
    : 'wanted: sizes that are equal or 1'
  : Y;
/** The larger of both sizes along each axis. */
export type Broadcast<S extends Shape, Y> = Y extends { readonly shape: infer T extends Shape }
  ? OfRank<S, AllJoint<Full<S>, Full<T>>>
  : S;
/** An op of two operands, whose sizes are equal or 1. */
export type BinaryOp = <X extends Operand<Matrix | Spatial>, Y extends Arithmetic<X>>(
  x: X,
  y: Broadcasting<X['shape'], Y>,
  run?: RunAt,
) => Result<X, Broadcast<X['shape'], Y>>;
export type Vectors<X extends Operand> = X extends Value
  ?
      | Value<'f32', readonly [number, number]>
      | Tensor<'f32', readonly [number, number]>
      | Parameter<readonly [number, number]>
  : Tensor<'f32', readonly [number, number]>;
type PlainParams<S extends Shape> = { readonly weight: Weight<S>; readonly bias?: Weight<Vector> | undefined };
/** An op of one operand that keeps its shape. */
export type Unary = <X extends Operand<Matrix | Spatial>>(x: X, run?: RunAt) => Result<X, X['shape']>;

// --- Elementwise ------------------------------------------------------------------------------------------------

/** max(x, 0). NaN stays NaN, here and in all the others. */
export const relu = unary('relu');
/** min(max(x, 0), 6) */
export const relu6 = unary('relu6');
/** 1 / (1 + exp(-x)) */
export const sigmoid = unary('sigmoid');
/** x sigmoid(x), also known as swish. */
export const silu = unary('silu');
/** relu6(x + 3) / 6 */
export const hardSigmoid = unary('hardSigmoid');
/** x relu6(x + 3) / 6 */
export const hardSwish = unary('hardSwish');
/** x times the probability that a normal variable is below x: (1 + erf(x / sqrt(2))) / 2, exact, not its tanh form. */
export const gelu = unary('gelu');

/** exp(x - max) / sum along `axis` (default -1, the channels), which is not that of N. */
export function softmax<X extends Operand<Matrix | Spatial>>(
  x: X,
  options: RunAt & { readonly axis?: number } = {},
): Result<X, X['shape']> {
  return apply('softmax', [x], {}, options, () => {
    const { axis = -1 } = options;
    const [given = 0] = axesOf('softmax', x, [axis]);
    check('softmax', given > 0, `axis ${axis}, wanted another one than that of N`);
    return { shape: x.shape, attrs: { axis: nativeAxes(x)[given] } };
  });
}
/** x where it is positive, otherwise `slope` (default 0.01) times x. */
export function leakyRelu<X extends Operand<Matrix | Spatial>>(
  x: X,
  options: RunAt & { readonly slope?: number } = {},
): Result<X, X['shape']> {
  return apply('leakyRelu', [x], {}, options, () => {
    const { slope = 0.01 } = options;
    check('leakyRelu', Number.isFinite(slope), `slope ${slope}, wanted a finite number`);
    return { shape: x.shape, attrs: { slope } };
  });
}

/**
 * x + y. Sizes are equal, or one of them is 1 and stands for all of the other's, as in PyTorch; [N, C] is one number
 * per image and channel, also beside [N, H, W, C]; y may be a number.
 */
export const add = binary('add');
/** x - y; sizes as in `add`. */
export const sub = binary('sub');
/** x * y; sizes as in `add`. */
export const mul = binary('mul');
/** x / y; sizes as in `add`. */
export const div = binary('div');

/**
 * [N, H, M, K] times [N, H, K, P] -> [N, H, M, P], a product of matrices for each n and h; sizes N and H are equal or
 * 1. Video alike.
 */
export function matmul<X extends Operand<Spatial>, Y extends Other<X>>(
  x: X,
  y: Match<
    Channels<X['shape']>,
    Y['shape'] extends readonly [...Shape, infer K, number] ? K : number,
    Y,
    'wanted: as many rows as x has columns'
  >,
  run?: RunAt,
): Result<X, Windowed<X['shape'], Channels<Y['shape']>>>;
export function matmul(x: Operand, y: Operand | Parameter, run?: RunAt): unknown {
  return apply('matmul', [x, y], {}, run, () => {
    checkRank('matmul', x, 4, 5);
    const products = x.shape.length - 2;
    const fine = y.shape.length === x.shape.length && y.shape[products] === x.shape.at(-1);
    const outer = fine && broadcast(x.shape.slice(0, products), y.shape.slice(0, products));
    const wanted = products === 2 ? '[N,H,M,K] and [N,H,K,P]' : '[N,T,H,M,K] and [N,T,H,K,P]';
    if (!outer) wrong('matmul', `got ${of(x)} and ${of(y)}, wanted ${wanted}`);
    return { shape: [...outer, x.shape[products] ?? 1, channels(y)] };
  });
}

/**
 * softmax(scale q k^T) v: each position of q [N, H, W, D] attends to all positions of k [N, H', W', D] of the same n,
 * and gives the mean of their channels in v [N, H', W', E], weighted so: [N, H, W, E]. Video alike, over T, H and W.
 * `scale` is 1 / sqrt(D) unless given. PyTorch's scaled_dot_product_attention with one head; the scores are not kept
 * in memory.
 */
export function attention<Q extends Operand<Spatial>, K extends Other<Q>, V extends Other<Q>>(
  q: Q,
  k: Match<Channels<Q['shape']>, Channels<K['shape']>, K, 'wanted: as many channels as q has'>,
  v: V,
  options?: RunAt & { readonly scale?: number },
): Result<Q, Windowed<Q['shape'], Channels<V['shape']>>>;
export function attention(
  q: Operand,
  k: Operand | Parameter,
  v: Operand | Parameter,
  options: RunAt & { readonly scale?: number } = {},
): unknown {
  return apply('attention', [q, k, v], {}, options, () => {
    const { scale = 1 / Math.sqrt(channels(q)) } = options;
    check('attention', Number.isFinite(scale), `scale ${show(scale)}, wanted a finite number`);
    checkRank('attention', q, 4, 5);
    const positions = k.shape.slice(1, -1);
    const fine =
      k.shape.length === q.shape.length &&
      same(k.shape, [q.shape[0] ?? 1, ...positions, channels(q)]) &&
      same(v.shape, [q.shape[0] ?? 1, ...positions, channels(v)]);
    const wanted = q.shape.length === 4 ? ["[N,H',W',D]", "[N,H',W',E]"] : ["[N,T',H',W',D]", "[N,T',H',W',E]"];
    const got = `got q ${of(q)}, k ${of(k)} and v ${of(v)}`;
    if (!fine) wrong('attention', `${got}, wanted k ${wanted[0]} and v ${wanted[1]} with N and D of q`);
    return { shape: [...q.shape.slice(0, -1), channels(v)], attrs: { scale } };
  });
}

/** Side by side along the channels; all other sizes must be equal. */
export function concat<X extends Operand<Matrix | Spatial>>(
  xs: readonly [X, ...Other<NoInfer<X>>[]],
  run?: RunAt,
): Result<X, Windowed<X['shape'], number> | (X['shape'] extends Matrix ? readonly [X['shape'][0], number] : never)> {
  check('concat', Array.isArray(xs), `got ${kindOf(xs)}, wanted an Array`);
  check('concat', xs.length > 0, 'got an empty Array, wanted one value or more');
  return apply('concat', xs, {}, run, () => {
    const [first] = xs;
    const outer = first.shape.slice(0, -1);
    const odd = xs.find((x) => !same(x.shape.slice(0, -1), outer));
    if (odd) wrong('concat', `got ${of(first)} and ${of(odd)}, wanted equal sizes except for the channels`);
    return { shape: [...outer, xs.reduce((sum, x) => sum + channels(x), 0)] };
  });
}

// --- Convolutions and linear layers -----------------------------------------------------------------------------

export interface ConvOptions extends RunAt {
  /** Default 1. */
  readonly stride?: Size;
  /** Zeros on both sides; default 0. */
  readonly padding?: Size;
  /** Default 1. */
  readonly dilation?: Size;
  /** Default 1; C and O are divisible by it. */
  readonly groups?: number;
}

/** [N, H, W, C] -> [N, H', W', O] with H' = floor((H + 2 padding - dilation (kh - 1) - 1) / stride) + 1. */
export function conv<
  X extends Operand<Spatial>,
  W extends Weight<Kernel>,
  O extends ConvOptions = Record<never, never>,
>(
  x: X,
  params: {
    readonly weight: Match<
      X['shape']['length'],
      W['shape']['length'],
      'groups' extends keyof O
        ? W
        : Match<Channels<X['shape']>, W['shape'][1], W, 'wanted: as many input channels as x has'>,
      'wanted: [O, I, kh, kw] for images, [O, I, kt, kh, kw] for video'
    >;
    readonly bias?: Weight<Vector> | undefined;
  },
  options?: O,
): Result<X, Windowed<X['shape'], W['shape'][0]>>;
export function conv(x: Operand, params: PlainParams<Kernel>, options?: ConvOptions): unknown {
  const { weight, bias } = paramsOf('conv', params);
  return apply('conv', [x], { weight, bias }, options, () => {
    const { stride = 1, padding = 0, dilation = 1, groups = 1 } = options ?? {};
    check('conv', weight !== undefined, 'weight is missing');
    checkWeight('conv', 'weight', weight, 'x', x, groups);
    checkVector('conv', 'bias', bias, weight.shape[0]);
    const attrs = {
      kernel: sizes('conv', 'kernel', x, kernelOf(weight), 1),
      stride: sizes('conv', 'stride', x, stride, 1),
      padding: sizes('conv', 'padding', x, padding, 0),
      dilation: sizes('conv', 'dilation', x, dilation, 1),
      groups,
    };
    return { shape: windowed('conv', x, attrs, weight.shape[0]), attrs };
  });
}

export interface OctConvOptions extends RunAt {
  /** 1 (default) or 2, of height and width; at 2 the operands are pooled, no convolution ever strides. */
  readonly stride?: number;
  /** Default 1; every width is divisible by it. The number of all channels, Ch + Cl, makes it depthwise. */
  readonly groups?: number;
}

export interface OctConvParams extends Paths<Weight<Kernel>> {
  readonly biasH?: Weight<Vector> | undefined;
  readonly biasL?: Weight<Vector> | undefined;
}

/**
 * Octave convolution (arXiv 1904.05049, section 3.2; stride 2 as in the authors' code) with "same" zero padding for any
 * odd kernel. P is 2x2 average pooling, U nearest upsampling, over height and width:
 *
 *     stride 1:  yH = conv(xH; h2h) + U(conv(xL; l2h))     yL = conv(xL; l2l) + conv(P(xH); h2l)
 *     stride 2:  yH = conv(P(xH); h2h) + conv(xL; l2h)     yL = conv(P(xL); l2l) + conv(P(P(xH)); h2l)
 *
 * The weights say what there is: without xL no l2h and l2l, without yL no h2l and l2l, and depthwise only h2h and l2l.
 * Odd sizes: P rounds up and averages what exists, U is cropped to the high size.
 */
export function octConv<X extends Operand<Spatial>, L extends Beside<X>>(
  x: Octave<X, L>,
  params: OctConvParams,
  options: OctConvOptions = {},
): X extends Value
  ? Octave<Value<'f32', Windowed<X['shape'], number>>>
  : Promise<Octave<Tensor<'f32', Windowed<X['shape'], number>>>> {
  if (!(x instanceof Octave)) wrong('octConv', `got ${kindOf(x)}, wanted an Octave`);
  const { h2h, l2h, h2l, l2l, biasH, biasL } = paramsOf('octConv', params);
  const weights = { h2h, l2h, h2l, l2l, biasH, biasL };
  const inputs = x.low === undefined ? [x.high] : [x.high, x.low];
  const rule = () => octConvRule(x, weights, options);
  return apply('octConv', inputs, weights, options, rule, ([high, low]) => new Octave(high, low));
}

function octConvRule({ high: xH, low: xL }: Octave<Operand>, params: OctConvParams, options: OctConvOptions): Inferred {
  const op = 'octConv';
  const { stride = 1, groups = 1 } = options;
  check(op, stride === 1 || stride === 2, `stride ${stride}, wanted 1 or 2`);
  check(op, params.h2h !== undefined, 'weight h2h is missing');
  const window = params.h2h.shape.slice(2);
  const odd = window.every((size) => size % 2 === 1);
  if (!odd) wrong(op, `kernel ${list(window)}, wanted odd sizes`);
  const half = halved(xH.shape).slice(0, -1);
  if (xL) {
    const fine = same(xL.shape.slice(0, -1), half);
    if (!fine) wrong(op, `got xH ${of(xH)} and xL ${of(xL)}, wanted xL ${list([...half, channels(xL)])}`);
  }

  const depthwise = groups > 1 && groups === channels(xH) + (xL ? channels(xL) : 0);
  const high = params.h2h.shape[0];
  const low = (params.h2l ?? params.l2l)?.shape[0];
  for (const path of ['h2h', 'l2h', 'h2l', 'l2l'] as const) {
    const weight = params[path];
    const [from, input] = path.startsWith('h') ? (['xH', xH] as const) : (['xL', xL] as const);
    const [to, width] = path.endsWith('h') ? (['yH', high] as const) : (['yL', low] as const);
    const crosses = depthwise && path !== 'h2h' && path !== 'l2l';
    if (!input || width === undefined || crosses) {
      const why = crosses ? 'it is depthwise' : `there is no ${from}`;
      if (weight) wrong(op, `got weight ${path} ${of(weight)}, wanted none: ${why}`);
      continue;
    }
    if (weight === undefined) wrong(op, `weight ${path} is missing: ${from} and ${to} are there`);
    checkWeight(op, `weight ${path}`, weight, from, input, depthwise ? channels(input) : groups);
    const shape = [width, weight.shape[1], ...window];
    if (!same(weight.shape, shape)) wrong(op, `weight ${path} ${of(weight)}, wanted ${list(shape)}`);
  }
  checkVector(op, 'biasH', params.biasH, high);
  if (low === undefined && params.biasL) wrong(op, `biasL ${of(params.biasL)}, wanted none: there is no yL`);
  checkVector(op, 'biasL', params.biasL, low ?? 0);

  const kernel = sizes(op, 'kernel', xH, kernelOf(params.h2h), 1);
  const yH = [...(stride === 2 ? half : xH.shape.slice(0, -1)), high];
  const yL = low === undefined ? [] : [[...halved(yH).slice(0, -1), low]];
  return { shape: yH, more: yL, attrs: { kernel, stride, groups } };
}

/** [N, C] -> [N, K] */
export function linear<X extends Operand<Matrix>, W extends Weight<readonly [k: number, c: number]>>(
  x: X,
  params: {
    readonly weight: Match<X['shape'][1], W['shape'][1], W, 'wanted: as many columns as x has'>;
    readonly bias?: Weight<Vector> | undefined;
  },
  run?: RunAt,
): Result<X, readonly [X['shape'][0], W['shape'][0]]>;
export function linear(x: Operand<Matrix>, params: PlainParams<readonly [number, number]>, run?: RunAt): unknown {
  const { weight, bias } = paramsOf('linear', params);
  return apply('linear', [x], { weight, bias }, run, () => {
    checkRank('linear', x, 2);
    check('linear', weight !== undefined, 'weight is missing');
    const fine = weight.shape.length === 2 && weight.shape[1] === x.shape[1];
    check('linear', fine, `weight ${of(weight)}, wanted [K,${x.shape[1]}] for x ${of(x)}`);
    checkVector('linear', 'bias', bias, weight.shape[0]);
    return { shape: [x.shape[0], weight.shape[0]] };
  });
}

export interface BatchNormParams {
  readonly weight: Weight<Vector>;
  readonly bias: Weight<Vector>;
  readonly running_mean: Weight<Vector>;
  readonly running_var: Weight<Vector>;
}

/** In evaluation mode, per channel: (x - running_mean) / sqrt(running_var + eps) * weight + bias. `eps` is 1e-5. */
export function batchNorm<X extends Operand<Matrix | Spatial>>(
  x: X,
  params: BatchNormParams,
  options: RunAt & { readonly eps?: number } = {},
): Result<X, X['shape']> {
  const { weight, bias, running_mean, running_var } = paramsOf('batchNorm', params);
  const vectors = { weight, bias, running_mean, running_var };
  return apply('batchNorm', [x], vectors, options, () => {
    const { eps = 1e-5 } = options;
    check('batchNorm', typeof eps === 'number' && eps >= 0 && eps < Infinity, `eps ${show(eps)}, wanted at least 0`);
    for (const [role, vector] of Object.entries(vectors)) {
      if (vector === undefined) wrong('batchNorm', `${role} is missing`);
      checkVector('batchNorm', role, vector, channels(x));
    }
    return { shape: x.shape, attrs: { eps } };
  });
}

// --- Pooling and resampling -------------------------------------------------------------------------------------

export interface PoolOptions extends RunAt {
  readonly kernel: Size;
  /** Default: the kernel. */
  readonly stride?: Size;
  /** On both sides, at most half of the kernel; default 0. */
  readonly padding?: Size;
  /** Round output sizes up, as long as the last window starts inside of x or its left padding; default false. */
  readonly ceilMode?: boolean;
}

/** Largest of each window; padding never wins, NaN does. */
export function maxPool<X extends Operand<Spatial>>(x: X, options: PoolOptions): Result<X, Windowed<X['shape']>> {
  return apply('maxPool', [x], {}, options, () => pooled('maxPool', x, options, {}));
}

/** Mean of each window; `countIncludePad` (default true) counts padding as zeros, else the mean is over what exists. */
export function avgPool<X extends Operand<Spatial>>(
  x: X,
  options: PoolOptions & { readonly countIncludePad?: boolean },
): Result<X, Windowed<X['shape']>> {
  return apply('avgPool', [x], {}, options, () => {
    const { countIncludePad = true } = options;
    return pooled('avgPool', x, options, { countIncludePad });
  });
}

function pooled(op: string, x: Operand, options: PoolOptions, more: Attrs): Inferred {
  const { kernel, stride = kernel, padding = 0, ceilMode = false } = options;
  const attrs = {
    kernel: sizes(op, 'kernel', x, kernel, 1),
    stride: sizes(op, 'stride', x, stride, 1),
    padding: sizes(op, 'padding', x, padding, 0),
  };
  const fine = attrs.padding.every((size, i) => 2 * size <= (attrs.kernel[i] ?? 1));
  check(op, fine, `padding ${show(padding)}, wanted at most half of kernel ${show(kernel)}`);
  return { shape: windowed(op, x, attrs, channels(x), ceilMode), attrs: { ...attrs, ceilMode, ...more } };
}

/** Mean over H and W (and T): [N, H, W, C] -> [N, C] */
export function globalAvgPool<X extends Operand<Spatial>>(
  x: X,
  run?: RunAt,
): Result<X, readonly [X['shape'][0], Channels<X['shape']>]> {
  return apply('globalAvgPool', [x], {}, run, () => {
    checkRank('globalAvgPool', x, 4, 5);
    return { shape: [x.shape[0], channels(x)] };
  });
}

/**
 * Every position `scale` times along each axis. `size` crops the end, by less than one `scale`, which undoes pooling
 * that rounded up.
 */
export function upsampleNearest<X extends Operand<Spatial>>(
  x: X,
  options: RunAt & { readonly scale: Size; readonly size?: Size },
): Result<X, Windowed<X['shape']>> {
  return apply('upsampleNearest', [x], {}, options, () => {
    const op = 'upsampleNearest';
    const scale = sizes(op, 'scale', x, options.scale, 1);
    const extent = extentOf(x);
    const full = extent.map((size, i) => size * (scale[i] ?? 1));
    const size = options.size === undefined ? full : sizes(op, 'size', x, options.size, 1);
    const fine = size.every((s, i) => Math.ceil(s / (scale[i] ?? 1)) === extent[i]);
    const wanted = `${list(full.slice(5 - x.shape.length))} of x ${of(x)}, or less than one scale less`;
    check(op, fine, `size ${show(options.size)}, wanted ${wanted}`);
    return { shape: withExtent(x, size, channels(x)), attrs: { scale, size } };
  });
}

/** `before` and `after` more positions of `value` (default 0) along H and W (and T). */
export function pad<X extends Operand<Spatial>>(
  x: X,
  options: RunAt & { readonly before?: Size; readonly after?: Size; readonly value?: number } = {},
): Result<X, Windowed<X['shape']>> {
  return apply('pad', [x], {}, options, () => {
    const { value = 0 } = options;
    check('pad', typeof value === 'number', `value ${show(value)}, wanted a number`);
    const before = sizes('pad', 'before', x, options.before ?? 0, 0);
    const after = sizes('pad', 'after', x, options.after ?? 0, 0);
    const size = extentOf(x).map((s, i) => s + (before[i] ?? 0) + (after[i] ?? 0));
    return { shape: withExtent(x, size, channels(x)), attrs: { before, after, value } };
  });
}

/**
 * Bilinear to another height and width, without antialiasing, as PyTorch's `interpolate` with align_corners=False.
 * (`resize` is for pictures.)
 */
export function interpolate<X extends Operand<Spatial>>(
  x: X,
  options: RunAt & { readonly height: number; readonly width: number },
): Result<X, Windowed<X['shape'], Channels<X['shape']>>> {
  return apply('interpolate', [x], {}, options, () => {
    const { height, width } = options;
    checkRank('interpolate', x, 4, 5);
    const fine = [height, width].every((size) => Number.isInteger(size) && size > 0);
    check('interpolate', fine, `height ${height} and width ${width}, wanted positive integers`);
    const [t = 1] = extentOf(x);
    return { shape: withExtent(x, [t, height, width], channels(x)) };
  });
}

// --- Axes -------------------------------------------------------------------------------------------------------

export interface SliceOptions extends RunAt {
  /** Default: the first ones; negative ones count from the last. */
  readonly axes?: readonly number[];
  /** The first position along each of the axes; negative ones count from the end. */
  readonly starts: readonly number[];
  /** The position behind the last; default: the end of each axis. What lies beyond an axis is its end. */
  readonly ends?: readonly number[];
}

/** A part of x: `slice(x, { axes: [-1], starts: [2], ends: [-1] })` is x[..., 2:-1] in NumPy. */
export function slice<X extends Operand<Matrix | Spatial>>(x: X, options: SliceOptions): Result<X, Wide<X['shape']>> {
  return apply('slice', [x], {}, options, () => {
    checkNumbers('slice', 'starts', options.starts);
    const { starts, ends = starts.map(() => Infinity), axes = starts.map((_, i) => i) } = options;
    checkNumbers('slice', 'ends', ends);
    checkNumbers('slice', 'axes', axes);
    const fine = starts.length === axes.length && ends.length === axes.length;
    check('slice', fine, `axes ${list(axes)}, starts ${list(starts)} and ends ${list(ends)}, wanted as many of each`);
    const first = x.shape.map(() => 0);
    const shape = [...x.shape];
    for (const [i, axis] of axesOf('slice', x, axes).entries()) {
      const size = x.shape[axis] ?? 1;
      const place = (at = 0) => Math.min(Math.max(at < 0 ? at + size : at, 0), size);
      const [start, end] = [place(starts[i]), place(ends[i])];
      check(
        'slice',
        Number.isInteger(start) && Number.isInteger(end),
        `starts ${list(starts)} and ends ${list(ends)}, wanted integers`,
      );
      check('slice', start < end, `got ${of(x)}, and nothing of axis ${axis} from ${starts[i]} to ${ends[i]}`);
      [first[axis], shape[axis]] = [start, end - start];
    }
    return { shape, attrs: { starts: inNative(x, first, [0, 0, 0, 0, 0]) } };
  });
}

/** Axis i of the result is axis `axes[i]` of x. */
export function transpose<X extends Operand<Matrix | Spatial>>(
  x: X,
  options: RunAt & { readonly axes: Wide<X['shape']> },
): Result<X, Wide<X['shape']>>;
export function transpose(x: Operand, options: RunAt & { readonly axes: readonly number[] }): unknown {
  return apply('transpose', [x], {}, options, () => {
    const axes = axesOf('transpose', x, options.axes);
    check('transpose', axes.length === x.shape.length, `axes ${list(options.axes)}, wanted each axis of ${of(x)} once`);
    const native = axes.map((axis) => nativeAxes(x)[axis] ?? 0);
    return { shape: axes.map((axis) => x.shape[axis] ?? 1), attrs: { axes: inNative(x, native, [0, 1, 2, 3, 4]) } };
  });
}

/** The same elements, row-major, in another shape; one size may be -1, which is what the others leave. */
export function reshape<X extends Operand<Matrix | Spatial>, const S extends Matrix | Spatial>(
  x: X,
  options: RunAt & { readonly shape: S },
): Result<X, { readonly [K in keyof S]: S[K] extends -1 ? number : S[K] }>;
export function reshape(x: Operand, options: RunAt & { readonly shape: Shape }): unknown {
  return apply('reshape', [x], {}, options, () => {
    const elements = elementCount(x.shape);
    checkNumbers('reshape', 'shape', options.shape);
    const known = options.shape.reduce((all, size) => (size === -1 ? all : all * size), 1);
    const shape = options.shape.map((size) => (size === -1 ? elements / known : size));
    const fine =
      shape.every((size) => Number.isInteger(size) && size > 0) &&
      shape.reduce((all, size) => all * size, 1) === elements;
    check('reshape', fine, `got ${of(x)} and shape ${list(options.shape)}, wanted as many elements`);
    checkRank('reshape', { shape }, 2, 4, 5);
    return { shape };
  });
}

/** What is left of a shape without the last of A axes. */
export type Reduced<S extends Shape, A extends Shape, K> = K extends true
  ? Wide<S>
  : S extends Image
    ? readonly [S[0], number]
    : S extends Video
      ? A['length'] extends 1
        ? readonly [S[0], number, number, number]
        : readonly [S[0], number]
      : never;

/**
 * Mean over some axes, of which N is none. They go, or stay with size 1 if `keepDims`; what is left is [N, C],
 * [N, H, W, C] or [N, T, H, W, C].
 */
export function mean<X extends Operand<Matrix | Spatial>, const A extends Shape, K extends boolean = false>(
  x: X,
  options: RunAt & { readonly axes: A; readonly keepDims?: K },
): Result<X, Reduced<X['shape'], A, K>>;
export function mean(x: Operand, options: RunAt & { readonly axes: Shape; readonly keepDims?: boolean }): unknown {
  return apply('mean', [x], {}, options, () => {
    const { keepDims = false } = options;
    const axes = axesOf('mean', x, options.axes);
    check('mean', axes.length > 0 && !axes.includes(0), `axes ${list(options.axes)}, wanted some, without that of N`);
    const shape = x.shape.flatMap((size, i) => (!axes.includes(i) ? size : keepDims ? 1 : []));
    checkRank('mean', { shape }, 2, 4, 5);
    return { shape, attrs: { axes: axes.map((axis) => nativeAxes(x)[axis] ?? 0), keepDims } };
  });
}

// --- Pictures ---------------------------------------------------------------------------------------------------

export interface ResizeOptions extends RunAt {
  readonly height: number;
  readonly width: number;
  /** With antialiasing exactly as Pillow does it, without as OpenCV does it (bicubic: a = -.75), up to one level. */
  readonly interpolation: 'bilinear' | 'bicubic';
  /** Default true. */
  readonly antialias?: boolean | undefined;
  /** The part of the resized picture that is wanted; default: all of it. */
  readonly crop?: { readonly top: number; readonly left: number; readonly height: number; readonly width: number };
}

/** Bytes [N, H, W, 3] -> bytes [N, height, width, 3], or the crop of it. */
export function resize<X extends Operand<Spatial, 'u8'>>(
  x: X,
  options: ResizeOptions,
): Result<X, Windowed<X['shape']>, 'u8'> {
  return apply('resize', [x], {}, options, () => {
    const { height, width, interpolation, antialias = true, crop = { top: 0, left: 0, height, width } } = options;
    const [t = 1] = extentOf(x);
    check('resize', channels(x) === 3, `got ${of(x)}, wanted 3 channels`);
    const inside = (begin: number, size: number, all: number) =>
      [begin, size, all].every(Number.isInteger) && begin >= 0 && size >= 1 && begin + size <= all;
    const fine = inside(crop.top, crop.height, height) && inside(crop.left, crop.width, width);
    const place = `${crop.height} x ${crop.width} at (${crop.top}, ${crop.left})`;
    check('resize', fine, `a crop of ${place} is not inside of ${height} x ${width}`);
    const shape = withExtent(x, [t, crop.height, crop.width], 3);
    return { shape, dtype: 'u8', attrs: { height, width, interpolation, antialias, crop } };
  });
}

/** Bytes to f32: (x * scale - mean) / std, with a mean and a std for each channel. */
export function normalize<X extends Operand<Spatial, 'u8'>>(
  x: X,
  options: RunAt & { readonly scale: number; readonly mean: readonly number[]; readonly std: readonly number[] },
): Result<X, X['shape']> {
  return apply('normalize', [x], {}, options, () => {
    const { scale, mean, std } = options;
    check('normalize', typeof scale === 'number', `scale ${show(scale)}, wanted a number`);
    checkNumbers('normalize', 'mean', mean);
    checkNumbers('normalize', 'std', std);
    const fine = mean.length === channels(x) && std.length === channels(x);
    check('normalize', fine, `mean ${list(mean)} and std ${list(std)}, wanted a number per channel of x ${of(x)}`);
    return { shape: x.shape, attrs: { scale, mean, std } };
  });
}

// --- The one way through ----------------------------------------------------------------------------------------

/** What a rule infers: the shape of the result (and of further ones), and the node's attributes. */
interface Inferred {
  readonly shape: Shape;
  readonly more?: readonly Shape[];
  readonly dtype?: DType;
  readonly attrs?: Attrs;
}

const poolOptions = { kernel: true, stride: true, padding: true, ceilMode: true } satisfies Own<PoolOptions>;

/** The options of the ops that have other ones than where they run. */
const ownOptions: { readonly [op: string]: Readonly<Record<string, true>> } = {
  leakyRelu: { slope: true },
  softmax: { axis: true },
  attention: { scale: true },
  conv: { stride: true, padding: true, dilation: true, groups: true } satisfies Own<ConvOptions>,
  octConv: { stride: true, groups: true } satisfies Own<OctConvOptions>,
  batchNorm: { eps: true },
  maxPool: poolOptions,
  avgPool: { ...poolOptions, countIncludePad: true },
  upsampleNearest: { scale: true, size: true },
  pad: { before: true, after: true, value: true },
  interpolate: { height: true, width: true },
  slice: { axes: true, starts: true, ends: true } satisfies Own<SliceOptions>,
  transpose: { axes: true },
  reshape: { shape: true },
  mean: { axes: true, keepDims: true },
  resize: { height: true, width: true, interpolation: true, antialias: true, crop: true } satisfies Own<ResizeOptions>,
  normalize: { scale: true, mean: true, std: true },
};
const optionsOf: typeof ownOptions = Object.fromEntries(
  Object.entries(ownOptions).map(([op, own]) => [op, { ...own, ...planOptions }]),
);

/** Those of them that have no default. */
const required: { readonly [op: string]: readonly string[] } = {
  maxPool: ['kernel'],
  avgPool: ['kernel'],
  upsampleNearest: ['scale'],
  interpolate: ['height', 'width'],
  slice: ['starts'],
  transpose: ['axes'],
  reshape: ['shape'],
  mean: ['axes'],
  resize: ['height', 'width', 'interpolation'],
  normalize: ['scale', 'mean', 'std'],
};

/** All other ops take f32. */
const takeBytes: ReadonlySet<string> = new Set(['resize', 'normalize']);
type Own<O extends RunAt> = Known<Omit<O, keyof RunAt>>;
type AnyOperand = Operand<Shape, DType> | Parameter;
type Params = { readonly [role: string]: Weight | undefined };

/** @throws OctconvError unless they are an object. */
function paramsOf<P extends object>(op: string, params: P): P {
  check(
    op,
    typeof params === 'object' && params !== null,
    `got ${kindOf(params)} for the parameters, wanted an object`,
  );
  return params;
}

function unary(op: string): Unary {
  return (x, run) => apply(op, [x], {}, run, () => ({ shape: x.shape }));
}

function binary(op: string): BinaryOp {
  return (x, given, run) => {
    const y = (typeof given === 'number' ? new Tensor('f32', [1, 1], Float32Array.of(given)) : given) as AnyOperand;
    return apply(op, [x, y], {}, run, () => {
      const [a, b] = x.shape.length >= y.shape.length ? [x.shape, y.shape] : [y.shape, x.shape];
      const beside = b.length === 2 ? [b[0] ?? 1, ...a.slice(1, -1).map(() => 1), b[1] ?? 1] : b;
      const shape = broadcast(a, beside);
      if (!shape) wrong(op, `got ${of(x)} and ${of(y)}, wanted sizes that are equal or 1`);
      return { shape };
    });
  };
}

/**
 * Records one node, or runs it alone. `R` is what the op's signature promises: a value, or the promise of a tensor;
 * `results` makes something else of them.
 */
function apply<R>(
  op: string,
  inputs: readonly AnyOperand[],
  params: Params,
  run: RunAt | undefined,
  rule: () => Inferred,
  results: (all: readonly AnyOperand[]) => unknown = ([first]) => first,
): R {
  const graph = inputs.find((x) => x instanceof Value)?.graph;
  if (graph) return results(record(graph, op, inputs, params, run, rule)) as R;
  // At once: within a network nobody would catch a rejection.
  for (const x of inputs) check(op, x instanceof Tensor, `got ${kindOf(x)}, wanted a Value or a Tensor${hint(x)}`);
  for (const [role, weight] of Object.entries(params)) {
    check(op, !(weight instanceof Parameter), `${role} is a Parameter, wanted a Tensor as x is one`);
  }
  return runAlone(op, inputs as readonly Tensor[], params, run, rule).then(results) as R;
}

/** In JavaScript a forward may take its inputs apart as if they were an object. */
const hint = (x: unknown): string => (x === undefined ? '; a forward gets one value per input, as forward(a, b)' : '');

async function runAlone(
  op: string,
  tensors: readonly Tensor[],
  params: Params,
  run: RunAt | undefined,
  rule: () => Inferred,
): Promise<Tensor[]> {
  const graph = new Graph();
  const values = tensors.map((x) => graph.input(x.dtype, x.shape));
  graph.outputs.push(...record(graph, op, values, params, run, rule).map((value) => value.id));
  const device = deviceOf(op, tensors, run?.device);
  return runGraph(graph, tensors, { device, threads: run?.threads });
}

function record(
  graph: Graph,
  op: string,
  inputs: readonly AnyOperand[],
  params: Params,
  run: RunAt | undefined,
  rule: () => Inferred,
): Value[] {
  try {
    checkOptions(op, run, optionsOf[op] ?? planOptions);
    const missing = required[op]?.find((name) => (run as Attrs | undefined)?.[name] === undefined);
    if (missing !== undefined) wrong(op, `option '${missing}' is missing`);
    const takes = takeBytes.has(op) ? 'u8' : 'f32';
    const values = inputs.map((x) => (x instanceof Tensor || x instanceof Parameter ? graph.operand(op, x) : x));
    for (const x of values) {
      if (!(x instanceof Value)) wrong(op, `got ${kindOf(x)}, wanted a Value, a Parameter or a Tensor${hint(x)}`);
      if (x.dtype !== takes) wrong(op, `got ${x.dtype} ${of(x)}, wanted ${takes}`);
      checkRank(op, x, 2, 4, 5);
    }
    for (const role in params) {
      const weight = params[role];
      const fine = weight === undefined || weight instanceof Parameter || weight instanceof Tensor;
      if (!fine) wrong(op, `${role} is ${kindOf(weight)}, wanted a Parameter or a Tensor`);
    }
    const { shape, more = [], dtype = 'f32', attrs = {} } = rule();
    const types = [shape, ...more].map((s) => ({ dtype, shape: s }));
    for (const type of types) elementCount(type.shape);
    return graph.add(op, values, attrs, params, types);
  } catch (error) {
    throw error instanceof OctconvError ? new OctconvError(error.message + graph.where(inputs, params)) : error;
  }
}
