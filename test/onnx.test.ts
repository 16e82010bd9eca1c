/** The export, judged by onnxruntime: what it computes from the file is what we compute from the graph. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BinaryReader } from '@bufbuild/protobuf/wire';
import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import { angularError } from '../lib/bench/measure.js';
import { probe } from '../lib/bench/peer.js';
import {
  buildNetwork,
  createModel,
  type Feature,
  Graph,
  layers,
  Model,
  Module,
  type Network,
  networkNames,
  Octave,
  ops,
  Tensor,
  tensor,
  type Value,
  type WeightSource,
} from '../lib/index.js';
import { type OnnxOptions, type ReadParam, readerOf, toOnnx } from '../lib/graph/onnx.js';
import { type Message, type MessageName, messages } from '../lib/graph/onnx-proto.js';
import { namedParameters } from '../lib/layers/index.js';
import { toNCHW, toNHWC } from '../lib/layout.js';
import { record } from '../lib/model.js';
import { families, inputShape, narrowed, resolveNetworkOptions } from '../lib/models/index.js';
import { runGraph } from '../lib/plan.js';
import { quantize } from '../lib/quantize.js';
import { elementCount } from '../lib/tensor.js';
import { type MemoryTensor, memoryWeights } from '../lib/weights/memory.js';
import { initialize } from '../lib/weights/random.js';
import { cases, graphOf, numbers } from './cases.js';

type F32 = Tensor<'f32'>;

const moved = (x: F32, move: (x: F32) => F32): F32 => (x.shape.length > 2 ? move(x) : x);

/** Node by node, as the file says: its optimiser takes seconds for the deepest networks. */
function open(model: Uint8Array): Promise<ort.InferenceSession> {
  return ort.InferenceSession.create(model, { graphOptimizationLevel: 'disabled', intraOpNumThreads: 1 });
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
    const fine = difference <= tolerance * largest;
    if (!fine) expect.fail(`element ${i} is ${got.data[i]}, wanted ${value}; the largest is ${largest}`);
  }
}

const none: ReadParam = (name) => Promise.reject(new Error(`${name} is read, yet all parameters are constants`));

describe('onnx: networks', () => {
  /** A name without a depth takes the blocks of each stage. */
  const small = (name: string, alpha: number | undefined) => {
    const blocks = resolveNetworkOptions(name, {}).blocks && { blocks: [1, 2, 1, 1] };
    return { ...narrowed(name, 8), classes: 5, alpha, ...blocks, ...(/[23]d-50$/.test(name) && { nonLocal: true }) };
  };
  const randomWeights = (name: string, alpha: number | undefined) => {
    const network = buildNetwork(name, small(name, alpha));
    return { network, read: readerOf(initialize(network)) };
  };
  for (const name of networkNames) {
    // The deepest are the others with more of the same blocks: at one alpha and one size.
    const deep = /-(101|152|200)(-|$)|(c2d|i3d)-50$/.test(name);
    // At alpha .1 the first layers have no low branch: .1 x 8 channels are none.
    // A branch in groups wants as many channels.
    const few = name.includes('resnext') ? 0.125 : 0.1;
    for (const alpha of name.startsWith('oct-') ? [0.5, few].slice(0, deep ? 1 : 2) : [undefined]) {
      // How sizes are halved does not depend on how wide a branch is.
      const odd = [75, 53] as const;
      for (const [h, w] of deep || alpha === few ? [odd] : [odd, [64, 64] as const]) {
        it(`${name}${alpha ? ` alpha ${alpha}` : ''} at ${h} x ${w}, batch 1 and 2`, async function () {
          this.timeout(60_000);
          const { network, read } = randomWeights(name, alpha);
          const { length } = inputShape({ name });
          const shape = length === 5 ? [h % 2 ? 5 : 8, h, w, 3] : [h, w, 3];
          const session = await open(await toOnnx(record(network, [1, ...shape]), read));
          expect([session.inputNames, session.outputNames]).to.deep.equal([['input'], ['logits']]);
          using model = createModel(name, small(name, alpha), { device: 'cpu' });
          using reference = createModel(name, small(name, alpha), { device: 'reference' });
          for (const n of [1, 2]) {
            const x = new Tensor('f32', [n, ...shape], numbers(n * elementCount(shape), n));
            const [logits] = await run(session, [x]);
            expectClose(await model.run(x), logits as F32, 1e-4);
            if (/-(18|26)$|[^\d]$|v[12]$/.test(name) && n === 1)
              expectClose(await reference.run(x), logits as F32, 1e-4);
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
    const types = 'Add AveragePool BatchNormalization Conv Flatten Gemm GlobalAveragePool MaxPool Relu Resize';
    expect([...new Set(nodes)].sort().join(' ')).to.equal(types);
    for (const [key, { shape }] of parameters) expect(initializers.get(key), key).to.deep.equal(shape);
    expect([input, output]).to.deep.equal([
      ['N', 3, 64, 64],
      ['N', 5],
    ]);
  });
});

// --- Quantised networks -------------------------------------------------------------------------------------------

function cosine(a: F32, b: F32): number {
  expect(a.shape).to.deep.equal(b.shape);
  return 1 - angularError(a.data, b.data);
}
const topOf = ({ data }: F32) => data.indexOf(Math.max(...data));

/** What the levels stand for, in some layers or in all. */
async function dequantized(source: WeightSource, layers = /^/): Promise<WeightSource> {
  const tensors = new Map<string, MemoryTensor>();
  for (const [name, { dtype, shape }] of source.tensors) {
    const data = await source.read(name);
    const whole = !layers.test(name);
    if (!whole && /\.(weight_scale|input_scale|input_zero_point)$/.test(name)) continue;
    if (whole || dtype !== 'i8') {
      tensors.set(name, { dtype, shape, data });
      continue;
    }
    const scales = await source.read(name.replace(/weight$/, 'weight_scale'));
    const each = data.length / scales.length;
    const floats = Float32Array.from(data, (q, i) => q * (scales[Math.floor(i / each)] ?? NaN));
    tensors.set(name, { dtype: 'f32', shape, data: floats });
  }
  return memoryWeights(tensors);
}

/** Octave convolutions with biases: to two branches, at stride 2, depthwise, and to one. */
class Biased extends Module {
  readonly split = new layers.OctConv(3, 24, { kernel: 3, alphaIn: 0, alphaOut: 0.5, bias: true });
  readonly down = new layers.OctConv(24, 32, { kernel: 3, stride: 2, alphaIn: 0.5, alphaOut: 0.25, bias: true });
  readonly each = new layers.OctConv(32, 32, { kernel: 3, groups: 32, alphaIn: 0.25, alphaOut: 0.25, bias: true });
  readonly merge = new layers.OctConv(32, 48, { kernel: 1, alphaIn: 0.25, alphaOut: 0, bias: true });
  readonly fc = new layers.Linear(48, 7);
  forward(x: Feature) {
    const rectified = (y: Octave<Feature>) => y.map((branch) => ops.relu(branch));
    const y = rectified(this.split.forward(new Octave(x)));
    const z = rectified(this.each.forward(rectified(this.down.forward(y))));
    return this.fc.forward(ops.globalAvgPool(ops.relu(this.merge.forward(z).high)));
  }
}

/** A small network of clips: temporal, spatial and full kernels, odd sizes, a branch that comes and goes. */
class OfClips extends Module {
  readonly stem = new layers.Conv(3, 8, { kernel: [5, 7, 7], stride: [1, 2, 2], padding: [2, 3, 3] });
  readonly bn = new layers.BatchNorm(8);
  readonly split = new layers.OctConvNorm(8, 24, { kernel: [3, 1, 1], alphaIn: 0, alphaOut: 0.5 });
  readonly down = new layers.OctConvNorm(24, 32, { kernel: [1, 3, 3], stride: 2, alphaIn: 0.5, alphaOut: 0.25 });
  readonly both = new layers.OctConvNorm(32, 32, { kernel: [3, 3, 3], alphaIn: 0.25, alphaOut: 0.25 });
  readonly merge = new layers.OctConv(32, 48, { kernel: [1, 1, 1], alphaIn: 0.25, alphaOut: 0, bias: true });
  readonly fc = new layers.Linear(48, 7);
  forward(x: Feature) {
    const rectified = (y: Octave<Feature>) => y.map((branch) => ops.relu(branch));
    const stem = ops.relu(this.bn.forward(this.stem.forward(x)));
    const pooled = ops.maxPool(stem, { kernel: [2, 3, 3], stride: [2, 2, 2], padding: [0, 1, 1] });
    const y = rectified(this.down.forward(rectified(this.split.forward(new Octave(pooled)))));
    const z = rectified(y.zip(this.both.forward(y), (a, b) => ops.add(a, b)));
    return this.fc.forward(ops.globalAvgPool(ops.relu(this.merge.forward(z).high)));
  }
}

describe('onnx: models', () => {
  it('give the bytes of a file: one network in f32 and in i8, for a given height and width and any batch', async () => {
    const network = new Biased();
    const weights = initialize(network);
    const x = new Tensor('f32', [2, 45, 61, 3], numbers(2 * 45 * 61 * 3, 1));
    for (const [source, tolerance] of [
      [weights, 1e-5],
      [await quantize(network, weights, [x]), 2e-2],
    ] as const) {
      using model = new Model(network, source);
      const bytes = await model.toOnnx([1, 45, 61, 3]);
      expect(bytes).to.be.instanceOf(Uint8Array);
      const session = await open(bytes);
      const [logits] = await run(session, [x]);
      expectClose(await model.run(x), logits as F32, tolerance);
      const other = new Tensor('f32', [1, 46, 61, 3], new Float32Array(46 * 61 * 3));
      expect(await run(session, [other]).catch(String)).to.match(/Got: 46 Expected: 45/);
      await session.release();
    }
  });

  it('of clips take [N,T,H,W,C], in the file [N,C,T,H,W] of any batch', async () => {
    const network = new OfClips();
    using model = new Model(network, initialize(network));
    const bytes = await model.toOnnx([1, 8, 45, 61, 3]);
    expect(decode(bytes).input).to.deep.equal(['N', 3, 8, 45, 61]);
    const session = await open(bytes);
    for (const n of [1, 2]) {
      const x = new Tensor('f32', [n, 8, 45, 61, 3], numbers(n * 8 * 45 * 61 * 3, n));
      const [logits] = await run(session, [x]);
      expectClose(await model.run(x), logits as F32, 1e-5);
    }
    const other = new Tensor('f32', [1, 9, 45, 61, 3], new Float32Array(9 * 45 * 61 * 3));
    expect(await run(session, [other]).catch(String)).to.match(/Got: 9 Expected: 8/);
    await session.release();
  });

  it('of several inputs take a shape for each', async () => {
    class Two extends Module<never, Feature> {
      readonly conv = new layers.Conv(3, 4, { kernel: 3 });
      forward(x: Feature, y: Feature) {
        return ops.add(this.conv.forward(x), y);
      }
    }
    const network = new Two();
    using model = new Model(network, initialize(network));
    const x = new Tensor('f32', [1, 8, 6, 3], numbers(8 * 6 * 3, 1));
    const y = new Tensor('f32', [1, 8, 6, 4], numbers(8 * 6 * 4, 2));
    const session = await open(await model.toOnnx(x.shape, y.shape));
    expect(session.inputNames).to.deep.equal(['input', 'input1']);
    const [sum] = await run(session, [x, y]);
    expectClose(await model.run(x, y), sum as F32, 1e-5);
    await session.release();
  });

  it('say what does not fit', async () => {
    const model = createModel('oct-resnet-26', { alpha: 0.5, width: 8, classes: 5 });
    expect(await model.toOnnx([1, 32, 32, 4]).catch(String)).to.match(/channels/);
    expect(await model.toOnnx().catch(String)).to.match(/forward takes 1 input, got 0/);
    expect(await model.toOnnx('32' as never).catch(String)).to.match(/input 0 is .*wanted a shape/);
    model.dispose();
    expect(await model.toOnnx([1, 32, 32, 3]).catch(String)).to.match(/model: it was disposed/);
  });
});

describe('onnx: quantised networks', () => {
  const resnet = (name: string, alpha?: number) => buildNetwork(name, { width: 16, classes: 50, alpha });
  /** In onnxruntime node by node, beside our f32 with what the levels stand for. */
  const check = async (network: Network, x: F32, source: WeightSource, options: OnnxOptions = {}) => {
    const session = await open(await toOnnx(record(network, x.shape), readerOf(source), options));
    const [logits] = await run(session, [x]);
    await session.release();
    using model = new Model(network, await dequantized(source));
    const wanted = await model.run(x);
    expect(cosine(logits as F32, wanted)).to.be.above(0.999);
    expect(topOf(logits as F32)).to.equal(topOf(wanted));
  };
  const input = (...extent: readonly number[]) =>
    new Tensor('f32', [1, ...extent, 3], numbers(elementCount(extent) * 3, 1));

  /** One of each family, beside those above. */
  const others = [
    ...['resnet-v2', 'resnext-50', 'resnext-v2', 'se-resnet-v2', 'densenet'],
    ...['resnet-v1f', 'se-resnet-v1e', 'mobilenet-v1', 'mobilenet-v2'],
  ];
  it('of every family of images', () => {
    const known = new Set(['resnet-26', ...others].map((name) => families.find(({ names }) => names.includes(name))));
    const images = families.filter(({ names: [name = ''] }) => inputShape({ name }).length === 4);
    expect([...known]).to.have.members(images);
  });
  for (const [title, network] of [
    ['resnet-26', resnet('resnet-26')],
    ['oct-resnet-26', resnet('oct-resnet-26', 0.5)],
    ['oct-resnet-26, without a low branch at first', resnet('oct-resnet-26', 0.05)],
    ...others.flatMap((name) =>
      [undefined, 0.25].map((alpha) => {
        const blocks = resolveNetworkOptions(name, {}).blocks && { blocks: [1, 2, 2, 1] };
        const full = alpha === undefined ? name : `oct-${name}`;
        return [full, buildNetwork(full, { ...narrowed(name, 16), classes: 50, alpha, ...blocks })] as const;
      }),
    ),
    ['biases', new Biased()],
  ] as const) {
    it(`${title}, sums in f32 and in i8`, async function () {
      this.timeout(60_000);
      for (const x of [input(64, 64), input(75, 53)]) {
        const source = await quantize(network, initialize(network), [x]);
        await check(network, x, source);
        await check(network, x, source, { ranges: await probe(record(network, x.shape), readerOf(source), [x]) });
      }
    });
  }

  it('of clips, sums in f32 and in i8', async () => {
    const network = new OfClips();
    const x = input(8, 45, 61);
    const source = await quantize(network, initialize(network), [x]);
    await check(network, x, source);
    await check(network, x, source, { ranges: await probe(record(network, x.shape), readerOf(source), [x]) });
  });

  it('factors of batch normalisation may be negative, zero or next to it', async () => {
    const network = resnet('oct-resnet-26', 0.5);
    const random = initialize(network);
    const factors = [1, -1, 0, 1e-12, 0.5];
    const source: WeightSource = {
      ...random,
      async read(name) {
        const data = (await random.read(name)) as Float32Array;
        if (!/(bn\d?|bn_[hl]|1)\.weight$/.test(name)) return data;
        return data.map((value, i) => value * (factors[i % factors.length] ?? 1));
      },
    };
    await check(network, input(64, 64), await quantize(network, source, [input(64, 64)]));
  });

  it('layers that are not quantised stay as they are', async () => {
    const network = resnet('oct-resnet-26', 0.5);
    const x = input(64, 64);
    const all = await quantize(network, initialize(network), [x]);
    const source = await dequantized(all, /^conv1|^fc|layer2.*l2h|layer1.*h2l/);
    await check(network, x, source);
    const { nodes } = decode(await toOnnx(record(network, x.shape), readerOf(source)));
    expect(nodes).to.include('BatchNormalization');
  });

  for (const [name, alpha] of [
    ['resnet-26', undefined],
    ['oct-resnet-26', 0.5],
  ] as const) {
    it(`${name}: onnxruntime finds what it has in int8`, async function () {
      this.timeout(60_000);
      const network = resnet(name, alpha);
      const x = input(64, 64);
      const graph = record(network, x.shape);
      const read = readerOf(await quantize(network, initialize(network), [x]));
      const bytes = await toOnnx(graph, read, { ranges: await probe(graph, read, [x]) });
      const folder = mkdtempSync(join(tmpdir(), 'octconv-'));
      try {
        const file = join(folder, 'optimized.onnx');
        const options = { graphOptimizationLevel: 'all', optimizedModelFilePath: file, logSeverityLevel: 3 } as const;
        await (await ort.InferenceSession.create(bytes, options)).release();
        const count = (type: string) => nodes.filter((node) => node === type).length;
        const { nodes } = decode(readFileSync(file));
        expect(count('QLinearConv')).to.equal([...graph.params.values()].filter(({ length }) => length === 4).length);
        expect(nodes).to.include.members(['QLinearAdd', 'QGemm']);
        expect(nodes.filter((node) => /^(Fused)?Conv$|^Gemm$|Norm/.test(node))).to.deep.equal([]);
        // The picture; the last sum, which no convolution reads, and what becomes of it.
        expect([count('QuantizeLinear'), count('DequantizeLinear')]).to.deep.equal([2, 2]);
      } finally {
        rmSync(folder, { recursive: true });
      }
    });
  }
});

// --- Ops ----------------------------------------------------------------------------------------------------------

const rows = cases.filter(({ dtype }) => dtype !== 'u8');

/** A graph of one op on an image of 6 channels. */
const graphOn = (op: (x: Value<'f32', [2, 8, 10, 6]>) => Value): Graph => {
  const graph = new Graph();
  graph.outputs.push(op(graph.input('f32', [2, 8, 10, 6])).id);
  return graph;
};

async function check(graph: Graph): Promise<void> {
  // Values up to 10: relu6 has two bends.
  const inputs = graph.inputs.map((id, i) => {
    const { shape = [] } = graph.values[id] ?? {};
    return new Tensor(
      'f32',
      shape,
      numbers(elementCount(shape), i + 1).map((value) => 10 * value),
    );
  });
  const session = await open(await toOnnx(graph, none));
  const wanted = await run(session, inputs);
  await session.release();
  for (const device of ['reference', 'cpu'] as const) {
    const got = await runGraph(graph, inputs, { device });
    expect(got.length).to.equal(wanted.length);
    for (const [i, y] of got.entries()) expectClose(y as F32, wanted[i] as F32, 1e-5);
  }
}

describe('onnx: ops', () => {
  for (const op of new Set(rows.map((row) => row.op))) {
    it(`${op}, every row of the table`, async function () {
      this.timeout(30_000);
      for (const row of rows.filter((one) => one.op === op)) {
        await check(graphOf(row)).catch((error: Error) => {
          error.message = `${row.title}: ${error.message}`;
          throw error;
        });
      }
    });
  }

  it('has a row for each op', () => {
    const pictures = ['resize', 'normalize'];
    expect([...new Set(rows.map(({ op }) => op))].sort()).to.deep.equal(
      Object.keys(ops)
        .filter((op) => !pictures.includes(op))
        .sort(),
    );
  });

  for (const [dtype, one] of [
    ['bf16', 0x3f80],
    ['f16', 0x3c00],
  ] as const) {
    it(`a convolution with ${dtype} weights`, async () => {
      const weight = tensor(
        dtype,
        [5, 6, 1, 1],
        Uint16Array.from({ length: 30 }, (_, i) => one + 5 * i),
      );
      await check(graphOn((x) => ops.conv(x, { weight })));
    });
  }

  it('avgPool in all its modes', async () => {
    for (const [kernel, padding] of [
      [2, 0],
      [2, 1],
      [3, 0],
      [3, 1],
    ] as const) {
      for (const ceilMode of [false, true]) {
        for (const countIncludePad of [false, true]) {
          const window = { kernel: [kernel, 3], stride: [2, 3], padding: [padding, 1] } as const;
          await check(graphOn((x) => ops.avgPool(x, { ...window, ceilMode, countIncludePad })));
        }
      }
    }
  });

  it('poolings whose only window is larger than the image', async () => {
    const window = { kernel: [12, 2], stride: [12, 2], padding: [1, 0], ceilMode: true } as const;
    await check(graphOn((x) => ops.maxPool(x, window)));
    for (const countIncludePad of [false, true])
      await check(graphOn((x) => ops.avgPool(x, { ...window, countIncludePad })));
  });

  it('parameters that no file holds are refused', async () => {
    const graph = record(buildNetwork('resnet-18', { width: 4 }), [1, 32, 32, 3]);
    const [, second] = graph.params.keys();
    const data = new Float32Array(2 ** 28); // a GiB, of which no byte is touched
    expect(await toOnnx(graph, async () => ({ dtype: 'f32', shape: [2 ** 28], data })).catch(String)).to.equal(
      `OctconvError: onnx: the parameters up to '${second}' are 2147483648 bytes, wanted at most 2147483647`,
    );
  });

  it('pictures of bytes are refused', async () => {
    const bytes = new Graph();
    const options = { height: 4, width: 4, interpolation: 'bilinear' } as const;
    bytes.outputs.push(ops.resize(bytes.input('u8', [1, 8, 8, 3]), options).id);
    expect(await toOnnx(bytes, none).catch(String)).to.match(/onnx: op 'resize' of 'resize0' cannot be exported/);
  });
});

// --- Reading a model ----------------------------------------------------------------------------------------------

/** A message as an object; what `messages` does not name is left out. */
function decodeMessage<M extends MessageName>(name: M, bytes: Uint8Array): Message<M> {
  const specs: [string, readonly [number, unknown]][] = Object.entries(messages[name]);
  const reader = new BinaryReader(bytes);
  const found: Record<string, unknown> = {};
  while (reader.pos < reader.len) {
    const [number, wire] = reader.tag();
    const [field, [, kind] = []] = specs.find(([, [known]]) => known === number) ?? [];
    const type = [kind].flat()[0] as string | undefined;
    const read: { readonly [type: string]: () => unknown } = {
      int64: () => Number(reader.int64()),
      float: () => reader.float(),
      string: () => reader.string(),
      bytes: () => reader.bytes(),
    };
    if (field === undefined || type === undefined) reader.skip(wire, number);
    else {
      const value = (read[type] ?? (() => decodeMessage(type as MessageName, reader.bytes())))();
      found[field] = Array.isArray(kind) ? [...((found[field] as unknown[]) ?? []), value] : value;
    }
  }
  return found as Message<M>;
}

/** Operator set, types of the nodes, shapes of the initialisers, of the input and of the output. */
function decode(bytes: Uint8Array) {
  const { graph = {}, opset_import: [opset] = [] } = decodeMessage('ModelProto', bytes);
  const sizes = ([info]: Message<'GraphProto'>['input'] = []) =>
    info?.type?.tensor_type?.shape?.dim?.map(({ dim_value, dim_param }) => dim_value ?? dim_param);
  return {
    opset: opset?.version,
    nodes: (graph.node ?? []).map(({ op_type = '' }) => op_type),
    initializers: new Map((graph.initializer ?? []).map(({ name, dims }) => [name, dims])),
    input: sizes(graph.input),
    output: sizes(graph.output),
  };
}
