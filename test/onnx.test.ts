/** The export, judged by onnxruntime: what it computes from the file is what we compute from the graph. */
import { BinaryReader, WireType } from '@bufbuild/protobuf/wire';
import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import { buildNetwork, createModel, Graph, networkNames, Octave, ops, Tensor, tensor, type Value } from '../lib/index.js';
import { type ReadParam, toOnnx } from '../lib/graph/onnx.js';
import { namedParameters } from '../lib/layers/index.js';
import { toNCHW, toNHWC } from '../lib/layout.js';
import { record } from '../lib/model.js';
import { runGraph } from '../lib/plan.js';
import { initialize } from '../lib/weights/random.js';

type Image = [number, number, number, number];
type F32 = Tensor<'f32'>;

/** Numbers of both signs without a pattern. */
function random<const S extends readonly number[]>(shape: S, seed = 1): Tensor<'f32', S> {
  const x = Tensor.zeros('f32', shape);
  for (let i = 0; i < x.data.length; i++) x.data[i] = Math.sin((i + 1) * 12.9898 * seed) * 2;
  return x as unknown as Tensor<'f32', S>;
}

const moved = (x: F32, move: (x: F32) => F32): F32 => (x.shape.length === 4 ? move(x) : x);

async function open(model: Uint8Array): Promise<ort.InferenceSession> {
  return ort.InferenceSession.create(model, { intraOpNumThreads: 1, interOpNumThreads: 1, logSeverityLevel: 3 });
}

/** Runs on our tensors, and gives such. */
async function run(session: ort.InferenceSession, inputs: readonly F32[]): Promise<F32[]> {
  const feeds = session.inputNames.map((name, i) => {
    const { shape, data } = moved(inputs[i] as F32, toNCHW);
    return [name, new ort.Tensor('float32', data, shape)];
  });
  const results = await session.run(Object.fromEntries(feeds));
  return session.outputNames.map((name) => {
    const { data, dims } = results[name] as ort.Tensor;
    return moved(new Tensor('f32', dims, data as Float32Array), toNHWC);
  });
}

function expectClose(got: F32, wanted: F32, tolerance: number): void {
  expect(got.shape).to.deep.equal(wanted.shape);
  const largest = wanted.data.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  expect(largest).to.be.above(0);
  for (const [i, value] of wanted.data.entries()) {
    const difference = Math.abs((got.data[i] as number) - value);
    if (!(difference <= tolerance * largest)) expect.fail(`element ${i} is ${got.data[i]}, wanted ${value} of at most ${largest}`);
  }
}

const none: ReadParam = (name) => Promise.reject(new Error(`${name} is read, yet all parameters are constants`));

describe('onnx: networks', () => {
  const randomWeights = (name: string, alpha: number | undefined) => {
    const network = buildNetwork(name, { width: 8, classes: 5, alpha });
    const weights = initialize(network);
    const read: ReadParam = async (key) => ({ dtype: 'f32', shape: weights.tensors.get(key)?.shape ?? [], data: await weights.read(key) });
    return { network, read };
  };
  for (const name of networkNames) {
    // At alpha .1 the first layers have no low branch: .1 x 8 channels are none.
    for (const alpha of name.startsWith('oct-') ? [0.5, 0.1] : [undefined]) {
      for (const [h, w] of [[64, 64], [75, 53]] as const) {
        it(`${name}${alpha ? ` alpha ${alpha}` : ''} at ${h} x ${w}, batch 1 and 2`, async function () {
          this.timeout(60_000);
          const { network, read } = randomWeights(name, alpha);
          const session = await open(await toOnnx(record(network, [1, h, w, 3]), read));
          expect([session.inputNames, session.outputNames]).to.deep.equal([['input'], ['logits']]);
          using model = createModel(name, { width: 8, classes: 5, alpha }, { device: 'cpu' });
          using reference = createModel(name, { width: 8, classes: 5, alpha }, { device: 'reference' });
          for (const n of [1, 2]) {
            const x = random([n, h, w, 3]);
            const [logits] = await run(session, [x]);
            expectClose(await model.run(x), logits as F32, 1e-4);
            if (name.endsWith('-26') && n === 1) expectClose(await reference.run(x), logits as F32, 1e-4);
          }
          await session.release();
        });
      }
    }
  }

  it('are exported as recorded: batch normalisation unfused, parameters under their names', async () => {
    const { network, read } = randomWeights('oct-resnet-26', 0.5);
    const parameters = namedParameters(network);
    const { opset, nodes, initializers, input, output } = decode(await toOnnx(record(network, [1, 64, 64, 3]), read));
    const count = (type: string) => nodes.filter((node) => node === type).length;
    const having = (ending: string) => [...parameters.keys()].filter((key) => key.endsWith(ending)).length;
    expect(opset).to.equal(17);
    expect(count('BatchNormalization')).to.equal(having('running_mean'));
    expect(count('Conv')).to.equal([...parameters.values()].filter(({ shape }) => shape.length === 4).length);
    expect(new Set(nodes)).to.deep.equal(
      new Set(['Conv', 'BatchNormalization', 'Relu', 'MaxPool', 'AveragePool', 'Resize', 'Add', 'Identity', 'GlobalAveragePool', 'Flatten', 'Gemm']),
    );
    for (const [key, { shape }] of parameters) expect(initializers.get(key), key).to.deep.equal(shape);
    expect([input, output]).to.deep.equal([['N', 3, 64, 64], ['N', 5]]);
  });
});

// --- Ops ----------------------------------------------------------------------------------------------------------

type Images = Value<'f32', Image>;
/** A graph of one op; its shape is that of each input. */
const graphOf = (shapes: readonly (readonly number[])[], op: (...inputs: Images[]) => Value | readonly Value[]): Graph => {
  const graph = new Graph();
  const results = op(...shapes.map((shape) => graph.input('f32', shape) as Value as Images));
  for (const { id } of [results].flat() as Value[]) graph.outputs.push(id);
  return graph;
};
const both = ({ high, low }: Octave<Value>): Value[] => (low ? [high, low] : [high]);
const [image, odd]: [Image, Image] = [[2, 8, 10, 6], [2, 7, 9, 6]];

/** Octave weights for widths of both inputs and outputs. */
function octWeights(kernel: number, [inH, inL]: number[], [outH = 1, outL = 0]: number[], groups = 1, bias = true) {
  const weight = (o: number, i = 0) => (o && i ? random([o, i / groups, kernel, kernel], o + i) : undefined);
  return {
    h2h: weight(outH, inH) as Tensor<'f32', Image>,
    l2h: weight(outH, inL),
    h2l: weight(outL, inH),
    l2l: weight(outL, inL),
    ...(bias && { biasH: random([outH]), ...(outL && { biasL: random([outL], 3) }) }),
  };
}

const half = ([n, h, w]: Image, c: number) => [n, Math.ceil(h / 2), Math.ceil(w / 2), c];
const positive = (x: F32): F32 => new Tensor('f32', x.shape, x.data.map((value) => Math.abs(value) + 0.5));

const cases: { [name: string]: () => Graph } = {
  relu: () => graphOf([image], (x) => ops.relu(x)),
  relu6: () => graphOf([image], (x) => ops.relu6(ops.add(x, ops.add(x, ops.add(x, x))))),
  sigmoid: () => graphOf([image], (x) => ops.sigmoid(x)),
  softmax: () => graphOf([image], (x) => ops.softmax(x)),
  'softmax [N,C]': () => graphOf([[3, 7]], (x) => ops.softmax(x)),
  add: () => graphOf([image, image], (x, y) => ops.add(x, y)),
  mul: () => graphOf([image, image], (x, y) => ops.mul(x, y)),
  'mul by a gate': () => graphOf([image, [2, 1, 1, 6]], (x, y) => ops.mul(x, y)),
  concat: () => graphOf([image, [2, 8, 10, 1], image], (...xs) => ops.concat(xs as [Images, Images, Images])),
  'concat [N,C]': () => graphOf([[2, 3], [2, 4]], (...xs) => ops.concat(xs as [Images, Images])),
  conv: () => graphOf([odd], (x) => ops.conv(x, { weight: random([5, 6, 3, 3]), bias: random([5]) })),
  'conv 5x2 with all options': () =>
    graphOf([[2, 17, 15, 6]], (x) =>
      ops.conv(x, { weight: random([4, 3, 5, 2]) }, { stride: [2, 3], padding: [3, 1], dilation: [2, 3], groups: 2 }),
    ),
  'conv of bf16 weights': () => {
    const weight = tensor('bf16', [5, 6, 1, 1], Uint16Array.from({ length: 30 }, (_, i) => 0x3f80 + 5 * i));
    return graphOf([image], (x) => ops.conv(x, { weight }));
  },
  'conv of f16 weights': () => {
    const weight = tensor('f16', [5, 6, 1, 1], Uint16Array.from({ length: 30 }, (_, i) => 0x3c00 + 31 * i));
    return graphOf([image], (x) => ops.conv(x, { weight }));
  },
  linear: () => graphOf([[3, 7]], (x) => ops.linear(x as Value as Value<'f32', [3, 7]>, { weight: random([4, 7]), bias: random([4]) })),
  'linear without bias': () => graphOf([[3, 7]], (x) => ops.linear(x as Value as Value<'f32', [3, 7]>, { weight: random([4, 7]) })),
  batchNorm: () => graphOf([image], (x) => ops.batchNorm(x, norm(6), { eps: 0.01 })),
  'batchNorm [N,C]': () => graphOf([[3, 6]], (x) => ops.batchNorm(x, norm(6))),
  maxPool: () => graphOf([odd], (x) => ops.maxPool(x, { kernel: 3, stride: 2, padding: 1 })),
  'maxPool, ceil mode': () => graphOf([image], (x) => ops.maxPool(x, { kernel: [3, 2], stride: [2, 3], padding: [1, 0], ceilMode: true })),
  'maxPool, ceil mode, no window in the padding': () =>
    graphOf([odd], (x) => ops.maxPool(x, { kernel: 2, stride: 2, padding: 1, ceilMode: true })),
  'avgPool, ceil mode, no window in the padding': () =>
    graphOf([odd], (x) => ops.avgPool(x, { kernel: 2, stride: 2, padding: 1, ceilMode: true })),
  globalAvgPool: () => graphOf([odd], (x) => ops.globalAvgPool(x)),
  upsampleNearest: () => graphOf([odd], (x) => ops.upsampleNearest(x, { scale: [2, 3] })),
  'upsampleNearest, cropped': () => graphOf([odd], (x) => ops.upsampleNearest(x, { scale: 2, size: [13, 17] })),
  pad: () => graphOf([odd], (x) => ops.pad(x, { before: [1, 2], after: [0, 3], value: 1.5 })),
};
for (const size of [7, 8]) {
  for (const padding of [0, 1]) {
    for (const ceilMode of [false, true]) {
      for (const countIncludePad of [true, false]) {
        const options = { kernel: 3, stride: 2, padding, ceilMode, countIncludePad };
        cases[`avgPool of ${size}, ${JSON.stringify(options)}`] = () => graphOf([[2, size, size, 3]], (x) => ops.avgPool(x, options));
      }
    }
  }
}
for (const stride of [1, 2]) {
  for (const [h, w] of [[8, 8], [8, 7], [7, 10], [5, 9], [1, 3]] as const) {
    const high: Image = [2, h, w, 4];
    cases[`octConv stride ${stride} at ${h} x ${w}`] = () =>
      graphOf([high, half(high, 2)], (x, low) => both(ops.octConv(new Octave(x, low), octWeights(3, [4, 2], [5, 3]), { stride })));
  }
  cases[`octConv stride ${stride} from high only`] = () =>
    graphOf([odd], (x) => both(ops.octConv(new Octave(x), octWeights(1, [6, 0], [4, 2]), { stride })));
  cases[`octConv stride ${stride} to high only`] = () =>
    graphOf([odd, half(odd, 4)], (x, low) => both(ops.octConv(new Octave(x, low), octWeights(5, [6, 4], [5]), { stride })));
  cases[`octConv stride ${stride}, high only`] = () =>
    graphOf([odd], (x) => both(ops.octConv(new Octave(x), octWeights(3, [6], [5]), { stride })));
  cases[`octConv stride ${stride} in groups, no bias`] = () =>
    graphOf([odd, half(odd, 4)], (x, low) =>
      both(ops.octConv(new Octave(x, low), octWeights(3, [6, 4], [4, 2], 2, false), { stride, groups: 2 })),
    );
  cases[`octConv stride ${stride}, depthwise`] = () =>
    graphOf([odd, half(odd, 4)], (x, low) => {
      const params = { h2h: random([6, 1, 3, 3]), l2l: random([4, 1, 3, 3], 2), biasH: random([6]), biasL: random([4], 3) };
      return both(ops.octConv(new Octave(x, low), params, { stride, groups: 10 }));
    });
}

function norm(c: number) {
  return { weight: random([c]), bias: random([c], 2), running_mean: random([c], 3), running_var: positive(random([c], 4)) as Tensor<'f32', [number]> };
}

describe('onnx: ops', () => {
  for (const [name, graph] of Object.entries(cases)) {
    it(name, async () => {
      const recorded = graph();
      const inputs = recorded.inputs.map((id, i) => random(recorded.values[id]?.shape ?? [], i + 1));
      const session = await open(await toOnnx(recorded, none));
      const wanted = await run(session, inputs);
      await session.release();
      for (const device of ['reference', 'cpu'] as const) {
        const got = await runGraph(recorded, inputs, { device });
        expect(got.length).to.equal(wanted.length);
        for (const [i, y] of got.entries()) expectClose(y as F32, wanted[i] as F32, 1e-5);
      }
    });
  }

  it('video and pictures of bytes are refused', async () => {
    const graph = new Graph();
    graph.outputs.push(ops.relu(graph.input('f32', [1, 2, 8, 8, 3])).id);
    expect(await toOnnx(graph, none).catch(String)).to.match(/onnx: got \[1,2,8,8,3\], only images \[N,H,W,C\] can be exported/);
    const bytes = new Graph();
    bytes.outputs.push(ops.resize(bytes.input('u8', [1, 8, 8, 3]), { height: 4, width: 4, interpolation: 'bilinear' }).id);
    expect(await toOnnx(bytes, none).catch(String)).to.match(/onnx: op 'resize' of 'resize0' cannot be exported/);
  });
});

// --- Reading a model ----------------------------------------------------------------------------------------------

/** The fields of a message by number. */
function fields(bytes: Uint8Array): Map<number, (Uint8Array | number)[]> {
  const reader = new BinaryReader(bytes);
  const found = new Map<number, (Uint8Array | number)[]>();
  while (reader.pos < reader.len) {
    const [field, type] = reader.tag();
    if (type !== WireType.Varint && type !== WireType.LengthDelimited) reader.skip(type, field);
    else found.set(field, [...(found.get(field) ?? []), type === WireType.Varint ? Number(reader.int64()) : reader.bytes()]);
  }
  return found;
}

/** Operator set, types of the nodes, shapes of the initialisers, of the input and of the output. */
function decode(bytes: Uint8Array) {
  const text = (value: Uint8Array | number | undefined) => Buffer.from(value as Uint8Array).toString();
  const all = (from: Uint8Array | number | undefined, ...path: number[]): (Uint8Array | number)[] =>
    path.reduce<(Uint8Array | number)[]>((found, field) => found.flatMap((m) => fields(m as Uint8Array).get(field) ?? []), [from ?? 0]);
  const [graph] = all(bytes, 7);
  const sizes = (info: Uint8Array | number | undefined) => all(info, 2, 1, 2, 1).map((d) => all(d, 1)[0] ?? text(all(d, 2)[0]));
  return {
    opset: all(bytes, 8, 2)[0],
    nodes: all(graph, 1, 4).map(text),
    initializers: new Map(all(graph, 5).map((tensor) => [text(all(tensor, 8)[0]), all(tensor, 1)])),
    input: sizes(all(graph, 11)[0]),
    output: sizes(all(graph, 12)[0]),
  };
}
