// Never run: `tsc` compiles it, and complains where an `@ts-expect-error` stands above something that does compile.
import {
  compile,
  createModel,
  type Feature,
  type Graph,
  initialize,
  type loadModel,
  type Matrix,
  Model,
  Module,
  Octave,
  ops,
  Parameter,
  type Spatial,
  type Tensor,
  tensor,
  type Value,
} from '../../lib/index.js';

declare const graph: Graph;
type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const equal = <_A extends true>() => undefined;

// --- Tensors ---
const x = tensor('f32', [1, 8, 6, 3], new Float32Array(144));
const exact: Tensor<'f32', [1, 8, 6, 3]> = x;
const loose: Tensor<'f32', [number, number, number, 3]> = x;
const any: Tensor = x;
export const fine = [exact, loose, any];
// @ts-expect-error another size
export const wrongSize: Tensor<'f32', [1, 8, 6, 4]> = x;
// @ts-expect-error another rank
export const wrongRank: Tensor<'f32', [number, number]> = x;
// @ts-expect-error another data type
export const wrongType: Tensor<'u8', [1, 8, 6, 3]> = x;
// @ts-expect-error f16 holds raw bits
tensor('f16', [2], new Float32Array(2));
// @ts-expect-error no such data type
tensor('f64', [2], new Float64Array(2));

// --- The same op records values and runs tensors ---
const v = graph.input('f32', [1, 8, 6, 3]);
const recorded = ops.relu(v);
const run = ops.relu(x);
equal<Equal<typeof recorded, Value<'f32', readonly [1, 8, 6, 3]>>>();
equal<Equal<typeof run, Promise<Tensor<'f32', readonly [1, 8, 6, 3]>>>>();
// @ts-expect-error bytes
ops.relu(graph.input('u8', [1, 8, 6, 3]));
// @ts-expect-error rank 3
ops.relu(graph.input('f32', [8, 6, 3]));
// @ts-expect-error a rank that nobody knows
ops.relu(graph.input('f32', [1, 2] as readonly number[]));

// --- Elementwise ---
const dynamic = graph.input('f32', [1 as number, 8, 6, 3]);
ops.add(v, graph.input('f32', [1, 8, 6, 3]));
ops.add(v, dynamic); // `number` fits every size
ops.add(dynamic, v);
// @ts-expect-error other sizes
ops.add(v, graph.input('f32', [1, 8, 6, 4]));
const perImage = ops.add(v, graph.input('f32', [1, 3]));
equal<Equal<typeof perImage, Value<'f32', readonly [1, 8, 6, 3]>>>();
const outer = ops.sub(graph.input('f32', [1, 1, 6, 3]), graph.input('f32', [1, 8, 1, 3]));
equal<Equal<typeof outer, Value<'f32', readonly [1, 8, 6, 3]>>>();
const known = ops.mul(dynamic, v);
equal<Equal<typeof known, Value<'f32', readonly [number, 8, 6, 3]>>>();
const scaled = ops.div(x, 2);
equal<Equal<typeof scaled, Promise<Tensor<'f32', readonly [1, 8, 6, 3]>>>>();
// @ts-expect-error a number is the second one
ops.sub(1, v);
// @ts-expect-error video beside an image
ops.add(v, graph.input('f32', [1, 1, 8, 6, 3]));
ops.add(v, x); // a constant
ops.add(v, new Parameter([1, 8, 6, 3]));
// @ts-expect-error a constant of other sizes
ops.add(v, new Parameter([1, 8, 6, 4]));
// @ts-expect-error a tensor and a recorded value
ops.add(x, v);
// @ts-expect-error a tensor and a parameter
ops.add(x, new Parameter([1, 8, 6, 3]));
ops.mul(v, v);
ops.mul(v, graph.input('f32', [1, 1, 1, 3]));
ops.mul(v, graph.input('f32', [1, 3]));
// @ts-expect-error other channels
ops.mul(v, graph.input('f32', [1, 4]));
ops.mul(v, graph.input('f32', [1, 1, 6, 3]));
// @ts-expect-error other channels
ops.mul(v, graph.input('f32', [1, 1, 1, 4]));
const joined = ops.concat([v, graph.input('f32', [1, 8, 6, 5])]);
equal<Equal<typeof joined, Value<'f32', readonly [1, number, number, number]>>>();
// @ts-expect-error another rank
ops.concat([v, graph.input('f32', [1, 3])]);
// @ts-expect-error nothing to join
ops.concat([]);

// --- Convolutions ---
const weight = new Parameter([16, 3, 3, 3]);
const y = ops.conv(v, { weight, bias: new Parameter([16]) }, { stride: 2, padding: [1, 1] });
equal<Equal<typeof y, Value<'f32', readonly [1, number, number, 16]>>>();
const z = ops.conv(x, { weight: tensor('f32', [16, 3, 1, 1], new Float32Array(48)) });
equal<Equal<typeof z, Promise<Tensor<'f32', readonly [1, number, number, 16]>>>>();
// @ts-expect-error 4 input channels, x has 3
ops.conv(v, { weight: new Parameter([16, 4, 3, 3]) });
ops.conv(v, { weight: new Parameter([6, 1, 3, 3]) }, { groups: 3 });
ops.conv(v, { weight: new Parameter([16, 4 as number, 3, 3]) });
// @ts-expect-error a weight for video
ops.conv(v, { weight: new Parameter([16, 3, 1, 3, 3]) });
// @ts-expect-error no weight
ops.conv(v, {});
// @ts-expect-error a vector is no picture
ops.conv(graph.input('f32', [1, 3]), { weight });
const video = ops.conv(graph.input('f32', [1, 4, 8, 6, 3]), { weight: new Parameter([16, 3, 1, 3, 3]) });
equal<Equal<typeof video, Value<'f32', readonly [1, number, number, number, 16]>>>();

const pair = new Octave(graph.input('f32', [1, 8, 6, 3]), graph.input('f32', [1, 4, 3, 2]));
ops.octConv(pair, { h2h: weight });
declare const octave: Octave<Value<'f32', [1, 8, 8, number]>>;
const split = ops.octConv(octave, { h2h: weight, h2l: weight });
equal<Equal<typeof split, Octave<Value<'f32', readonly [1, number, number, number]>>>>();
// @ts-expect-error no weight h2h
ops.octConv(octave, { h2l: weight });
// @ts-expect-error an image and video
ops.octConv(new Octave(v, graph.input('f32', [1, 4, 8, 6, 3])), { h2h: weight });
// @ts-expect-error a value and a tensor
ops.octConv(new Octave(v, x), { h2h: weight });
// @ts-expect-error not a pair
ops.octConv(v, { h2h: weight });

const logits = ops.linear(graph.input('f32', [2, 64]), { weight: new Parameter([10, 64]) });
equal<Equal<typeof logits, Value<'f32', readonly [2, 10]>>>();
// @ts-expect-error 32 columns, x has 64
ops.linear(graph.input('f32', [2, 64]), { weight: new Parameter([10, 32]) });
// @ts-expect-error pool first
ops.linear(v, { weight: new Parameter([10, 64]) });

// --- Pooling ---
const mean = ops.globalAvgPool(v);
equal<Equal<typeof mean, Value<'f32', readonly [1, 3]>>>();
const max = ops.maxPool(v, { kernel: 3, stride: 2, padding: 1 });
equal<Equal<typeof max, Value<'f32', readonly [1, number, number, 3]>>>();
// @ts-expect-error no kernel
ops.maxPool(v, {});
// @ts-expect-error pooled already
ops.globalAvgPool(mean);
// @ts-expect-error only a mean counts padding
ops.maxPool(v, { kernel: 2, countIncludePad: false });

// --- Axes ---
const part = ops.slice(v, { axes: [-1], starts: [1] });
equal<Equal<typeof part, Value<'f32', readonly [number, number, number, number]>>>();
const flat = ops.reshape(v, { shape: [1, -1] });
equal<Equal<typeof flat, Value<'f32', readonly [1, number]>>>();
ops.transpose(v, { axes: [0, 3, 1, 2] });
// @ts-expect-error an axis is missing
ops.transpose(v, { axes: [0, 2, 1] });
const overImage = ops.mean(v, { axes: [1, 2] });
equal<Equal<typeof overImage, Value<'f32', readonly [1, number]>>>();
const kept = ops.mean(v, { axes: [3], keepDims: true });
equal<Equal<typeof kept, Value<'f32', readonly [number, number, number, number]>>>();
const overTime = ops.mean(graph.input('f32', [1, 4, 8, 6, 3]), { axes: [1] });
equal<Equal<typeof overTime, Value<'f32', readonly [1, number, number, number]>>>();
const larger = ops.interpolate(v, { height: 16, width: 12 });
equal<Equal<typeof larger, Value<'f32', readonly [1, number, number, 3]>>>();
const product = ops.matmul(v, graph.input('f32', [1, 8, 3, 5]));
equal<Equal<typeof product, Value<'f32', readonly [1, number, number, 5]>>>();
// @ts-expect-error 4 rows, v has 3 columns
ops.matmul(v, graph.input('f32', [1, 8, 4, 5]));
const attended = ops.attention(v, graph.input('f32', [1, 2, 2, 3]), graph.input('f32', [1, 2, 2, 7]));
equal<Equal<typeof attended, Value<'f32', readonly [1, number, number, 7]>>>();
// @ts-expect-error 4 channels, v has 3
ops.attention(v, graph.input('f32', [1, 2, 2, 4]), graph.input('f32', [1, 2, 2, 7]));

// --- Pictures ---
const bytes = graph.input('u8', [1, 50, 40, 3]);
const small = ops.resize(bytes, { height: 8, width: 6, interpolation: 'bilinear' });
const floats = ops.normalize(small, { scale: 1 / 255, mean: [0, 0, 0], std: [1, 1, 1] });
equal<Equal<typeof floats, Value<'f32', readonly [1, number, number, 3]>>>();
// @ts-expect-error floats
ops.resize(v, { height: 8, width: 6, interpolation: 'bilinear' });

// --- Models ---
declare const classifier: Awaited<ReturnType<typeof loadModel>>;
const answer = classifier.run(x);
equal<Equal<typeof answer, Promise<Tensor<'f32', Matrix>>>>();
export const probabilities = async () => ops.softmax(await createModel('resnet-26').run(x));
class Tiny extends Module {
  forward(y: Feature) {
    return ops.globalAvgPool(y);
  }
}
export const pooled = async () => ops.softmax(await new Model(new Tiny(), initialize(new Tiny())).run(x));
export const anyModel: Model = classifier;
// @ts-expect-error a model of features does not classify
export const noClassifier: Model<Value<'f32', Matrix>> = new Model<Value<'f32', Spatial>>(
  { forward: () => v },
  initialize(new Tiny()),
);

// --- Several inputs and outputs ---
class Pyramid extends Module {
  forward(a: Feature, b: Value<'u8', readonly [number, number, number, 3]>) {
    return { levels: [ops.relu(a), ops.globalAvgPool(a)] as const, pair: new Octave(a), bytes: b };
  }
}
const pyramid = new Model(new Pyramid(), initialize(new Pyramid()));
const levels = pyramid.run(x, tensor('u8', [1, 2, 2, 3], new Uint8Array(12)), { signal: new AbortController().signal });
type Levels = {
  readonly levels: readonly [Tensor<'f32', Spatial>, Tensor<'f32', readonly [number, number]>];
  readonly pair: Octave<Tensor<'f32', Spatial>>;
  readonly bytes: Tensor<'u8', readonly [number, number, number, 3]>;
};
equal<Equal<typeof levels, Promise<Levels>>>();
// @ts-expect-error one input of two
pyramid.run(x);
// @ts-expect-error the second takes bytes
pyramid.run(x, x);
// @ts-expect-error it gives no logits
pyramid.classify('cat.jpg');
// @ts-expect-error it has two inputs and many outputs
export const noSimpleModel: Model = pyramid;

export const compiled = async () => {
  const op = await compile(
    (a, b) => [ops.globalAvgPool(a), { b: ops.relu(b) }] as const,
    [[1, 8, 6, 3], { shape: [2, 4] }],
  );
  const result = await op.run(x, { data: new Float32Array(8), shape: [2, 4] });
  equal<
    Equal<typeof result, readonly [Tensor<'f32', readonly [1, 3]>, { readonly b: Tensor<'f32', readonly [2, 4]> }]>
  >();
  // @ts-expect-error another rank
  await op.run(x, x);
  // @ts-expect-error an input is missing
  await op.run(x);
  // @ts-expect-error not f32
  await op.run(x, tensor('u8', [2, 4], new Uint8Array(8)));
  const floats = await compile(
    (a) => ops.normalize(a, { scale: 1, mean: [0, 0, 0], std: [1, 1, 1] }),
    [{ dtype: 'u8', shape: [1, 2, 2, 3] }],
  );
  equal<Equal<Awaited<ReturnType<typeof floats.run>>, Tensor<'f32', readonly [1, 2, 2, 3]>>>();
  await compile(
    // @ts-expect-error other sizes
    (a, b) => ops.add(a, b),
    [
      [1, 8, 6, 3],
      [1, 8, 6, 4],
    ],
  );
  // @ts-expect-error quantized weights are a model's
  await compile((a) => ops.relu(a), [[1, 8, 6, 3]], { dtype: 'i8' });
};
