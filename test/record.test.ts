/** Networks as graphs: names of parameters and constants, what a forward may give, and what errors say of the place. */
import { expect } from 'chai';
import {
  compile,
  type Feature,
  Graph,
  initialize,
  layers,
  Model,
  Module,
  namedParameters,
  type Network,
  Octave,
  OctconvError,
  ops,
  Parameter,
  runGraph,
  Tensor,
  tensor,
  toOnnx,
  type Value,
  type WeightSource,
} from '../lib/index.js';
import { targetOf } from '../lib/devices.js';
import { readerOf } from '../lib/graph/onnx.js';
import { record } from '../lib/model.js';
import { stepsFor } from '../lib/targets.js';
import { memoryWeights } from '../lib/weights/memory.js';
import { besideI8 } from '../lib/weights/source.js';
import { numbers } from './cases.js';

const filled = (shape: readonly number[], value: number) => Tensor.zeros('f32', shape).data.fill(value);
/** A weight or a constant whose elements are all equal. */
const constant = <const S extends readonly number[]>(shape: S, value: number) =>
  tensor('f32', shape, filled(shape, value));
const weights = (tensors: { readonly [name: string]: Tensor<'f32'> }): WeightSource =>
  memoryWeights(new Map(Object.entries(tensors)));
const first = async (network: Network, x: Tensor<'f32'>, source: WeightSource) => {
  const results: number[] = [];
  for (const device of ['cpu', 'reference'] as const) {
    using model = new Model(network, source, { device });
    const { data } = await model.run(x);
    results.push(data[0] as number);
  }
  expect(results[0]).to.equal(results[1]);
  return results[0];
};
const problem = (call: () => unknown): string => {
  try {
    call();
  } catch (error) {
    expect(error).to.be.instanceOf(OctconvError);
    return (error as Error).message;
  }
  throw new Error('no error');
};

describe('record: shapes', () => {
  it('are those that were given in the call, whatever the caller does with them afterwards', async () => {
    const network = new (class extends Module<Feature, Feature> {
      forward(x: Feature) {
        return ops.relu(x);
      }
    })();
    using model = new Model(network, initialize(network));
    const shape = [1, 4, 4, 1];
    const plan = model.plan(shape);
    shape[1] = 8;
    expect((await plan).inputs[0]?.shape).to.deep.equal([1, 4, 4, 1]);
    expect((await model.run(Tensor.zeros('f32', [1, 4, 4, 1]))).shape).to.deep.equal([1, 4, 4, 1]);
  });
});

describe('record: names of parameters and constants', () => {
  const x = constant([1, 1, 1, 1], 1);

  it('a constant never takes the place of a parameter', async () => {
    class Net extends Module {
      readonly conv0 = new layers.Conv(1, 1, { kernel: 1 });
      forward(x: Feature) {
        return this.conv0.forward(ops.conv(x, { weight: constant([1, 1, 1, 1], 2) }));
      }
    }
    expect(await first(new Net(), x, weights({ 'conv0.weight': constant([1, 1, 1, 1], 10) }))).to.equal(20);
  });

  it('no field can be called as a constant or as a path', () => {
    const net = (key: string) => Object.assign(new layers.Linear(1, 1, { bias: false }), { [key]: new Parameter([1]) });
    for (const key of ['#1', 'a.b', '']) {
      expect(problem(() => namedParameters(net(key)))).to.equal(
        `module: '${key}' has a field with '.' or '#' in its name, wanted none`,
      );
    }
  });

  it('constants that differ by input size are packed apart', async () => {
    class Net extends Module {
      forward(x: Feature) {
        return ops.conv(x, { weight: constant([1, 1, 1, 1], x.shape[1] as number) });
      }
    }
    using model = new Model(new Net(), weights({}));
    for (const size of [1, 2, 3]) expect((await model.run(constant([1, size, 1, 1], 1))).data[0]).to.equal(size);
  });

  it('one tensor is one constant', () => {
    const graph = new Graph();
    const weight = constant([1, 1, 1, 1], 2);
    const y = ops.conv(ops.conv(graph.input('f32', [1, 2, 2, 1]), { weight }), { weight });
    ops.add(y, constant([1, 2, 2, 1], 0));
    expect(graph.constants.size).to.equal(2);
    expect([...graph.params.keys()]).to.deep.equal([...graph.constants.keys()]);
  });

  it('a module has the names of the network that is recorded, whatever others hold it', async () => {
    class Net extends Module {
      readonly norm = new layers.ConvNorm(2, 2, { kernel: 1 });
      forward(x: Feature) {
        return this.norm.forward(x);
      }
    }
    class Outer extends Module {
      constructor(readonly inner: Net) {
        super();
      }
      forward(x: Feature) {
        return this.inner.forward(x);
      }
    }
    const [net, other] = [new Net(), new Net()];
    const [source, wanted] = [initialize(net), initialize(other)];
    const outer = new Outer(net);
    expect([...namedParameters(outer).keys()][0]).to.equal('inner.norm.0.weight');
    for (const key of source.tensors.keys()) expect(await source.read(key), key).to.deep.equal(await wanted.read(key));
    const graph = new Graph(namedParameters(net));
    outer.forward(graph.input('f32', [1, 2, 2, 2]));
    expect([...graph.params.keys()]).to.deep.equal([...namedParameters(net).keys()]);
  });

  it('random weights of an octave convolution count both paths under any root', async () => {
    const block = new layers.OctConv(8, 8, { kernel: 1, alphaIn: 0.5, alphaOut: 0.5 });
    const source = initialize(block);
    namedParameters(Object.assign(new layers.Linear(1, 1), { block }));
    const data = (await source.read('conv_h2h.weight')) as Float32Array;
    const bound = Math.sqrt(6 / 8); // 4 inputs of each branch
    expect(Math.max(...data.map(Math.abs))).to.be.within(bound / 2, bound);
  });
});

describe('record: what a network may hold and give', () => {
  const recorded = (forward: (x: Feature) => unknown) =>
    problem(() => record({ forward } as unknown as Network, [1, 4, 4, 2]));
  const other = new Graph().input('f32', [1, 4, 4, 2]);

  const structure = 'wanted a Value, or arrays, objects or Octaves of Values';
  const loop: unknown[] = [];
  loop.push(loop);
  for (const [title, forward, message] of [
    ['nothing', () => undefined, `nothing, ${structure}`],
    ['null', () => null, `nothing, ${structure}`],
    ['a promise', async (x: Feature) => x, `a Promise, ${structure}`],
    ['a tensor', () => constant([1, 2], 1), `a Tensor, ${structure}`],
    ['a number', () => 7, `a number, ${structure}`],
    ['a number among values', (x: Feature) => ({ scores: [ops.relu(x), 7] }), `a number at 'scores.1', ${structure}`],
    ['null among values', (x: Feature) => [ops.relu(x), null], `nothing at '1', ${structure}`],
    ['a Map', (x: Feature) => ({ all: new Map([['a', ops.relu(x)]]) }), `a Map at 'all', ${structure}`],
    ['an octave of numbers', () => new Octave(1), `a number at 'high', ${structure}`],
    ['an empty array', () => [], 'an Array without a Value'],
    ['an object without a class', () => Object.create(null), 'an object without a Value'],
    ['an object of nothing', () => ({ a: undefined }), 'an Object without a Value'],
    ['a structure that holds itself', () => loop, "a structure that holds itself at '0', wanted a tree"],
    ['its input', (x: Feature) => x, 'input 0 as it is, wanted what an op makes of it'],
    [
      'its input beside more',
      (x: Feature) => new Octave(ops.relu(x), x),
      "input 0 as it is at 'low', wanted what an op makes of it",
    ],
    ['a value of elsewhere', () => other, 'a value of another recording, wanted one of its own inputs'],
    [
      'a pair with one of elsewhere',
      (x: Feature) => [ops.relu(x), other],
      "a value of another recording at '1', wanted one of its own inputs",
    ],
  ] as [string, (x: Feature) => unknown, string][]) {
    it(`a forward that gives ${title}`, () => {
      expect(recorded(forward)).to.equal(`model: forward gives ${message}`);
    });
  }

  it('a forward that mistakes what an op takes throws at once: no rejection is left behind', async () => {
    const parameter = new Parameter([1, 2]);
    expect(recorded((x) => ops.relu(new Octave(x) as never))).to.equal(
      'relu: got an Octave, wanted a Value or a Tensor',
    );
    expect(recorded(() => ops.relu(parameter as never))).to.equal('relu: got a Parameter, wanted a Value or a Tensor');
    const convolve = () => ops.conv(constant([1, 1, 1, 1], 1), { weight: new Parameter([1, 1, 1, 1]) });
    expect(recorded(convolve)).to.equal('conv: weight is a Parameter, wanted a Tensor as x is one');
    await new Promise((resolve) => setImmediate(resolve)); // an unhandled rejection would end the process
  });

  it('modules that hold each other', () => {
    const [a, b] = [new layers.Linear(1, 1), new layers.Linear(1, 1)];
    Object.assign(a, { child: Object.assign(b, { parent: a }) });
    expect(problem(() => namedParameters(a))).to.equal(
      "module: 'child.parent' leads back to a module that holds it, wanted a tree",
    );
  });

  it('a layer in a private field', () => {
    class Net extends Module {
      readonly #hidden = new layers.Linear(2, 2);
      readonly last = new layers.Linear(2, 2);
      forward(x: Feature) {
        return this.last.forward(this.#hidden.forward(ops.globalAvgPool(x)));
      }
    }
    expect(problem(() => record(new Net(), [1, 4, 4, 2]))).to.match(
      /^linear: the parameter 'weight' \[2,2\] is in no public field or array of the network: /,
    );
  });

  for (const [title, hold] of [
    ['a Map', (layer: layers.Conv) => ({ held: new Map([['a', layer]]) })],
    ['an object', (layer: layers.Conv) => ({ held: { layer } })],
    ['no field', () => ({})],
  ] as const) {
    it(`a layer in ${title}`, () => {
      const layer = new layers.Conv(2, 2, { kernel: 1 });
      class Net extends Module {
        readonly last = new layers.Conv(2, 2, { kernel: 1 });
        readonly fields = Object.assign(this, hold(layer));
        forward(x: Feature) {
          return this.last.forward(layer.forward(x));
        }
      }
      const net = new Net();
      Reflect.deleteProperty(net, 'fields');
      expect(problem(() => record(net, [1, 4, 4, 2]))).to.equal(
        "conv: the parameter 'weight' [2,2,1,1] is in no public field or array of the network: " +
          'layers in private fields, Maps, objects and classes that do not extend Module have no names, nor have those ' +
          'that forward makes',
      );
    });
  }

  it('no layer that has a name: made in forward, or held by a class that is no Module', () => {
    class Made extends Module {
      forward(x: Feature) {
        return new layers.Conv(2, 2, { kernel: 1 }).forward(x);
      }
    }
    class Bare {
      readonly layer = new layers.Conv(2, 2, { kernel: 1 });
      forward(x: Feature) {
        return this.layer.forward(x);
      }
    }
    class Holder extends Module {
      readonly bare = new Bare();
      forward(x: Feature) {
        return this.bare.forward(x);
      }
    }
    for (const net of [new Made(), new Holder(), new Bare()]) {
      expect(problem(() => record(net, [1, 4, 4, 2]))).to.match(
        /^conv: the parameter 'weight' \[2,2,1,1\] is in no public field or array of the network: /,
      );
    }
  });
});

describe('record: a mistake in forward', () => {
  it('reaches the caller as it is, with its place', async () => {
    class Wrong extends Module {
      forward(x: Feature): Feature {
        return (ops as unknown as { rellu: typeof ops.relu }).rellu(x);
      }
    }
    const net = new Wrong();
    using model = new Model(net as unknown as Network, weights({}));
    const x = constant([1, 4, 4, 2], 1);
    const calls = [
      () => model.run(x),
      () => model.run(x),
      () => model.plan(x.shape),
      async () => model.record(x.shape),
    ];
    for (const call of [...calls, () => compile((a) => net.forward(a), [[1, 4, 4, 2]])]) {
      const error: unknown = await call().catch((e: unknown) => e);
      expect(error).to.be.instanceOf(TypeError);
      expect((error as Error).message).to.match(/rellu is not a function/);
      expect((error as Error).stack).to.match(/\bWrong\.forward .*record\.test\.ts/);
    }
  });
});

describe('record: a dilated convolution', () => {
  it('keeps the size at stride 1, and takes its padding from the dilation', () => {
    const graphOf = (options: layers.ConvLayerOptions) => {
      const network = new layers.Conv(2, 3, options);
      return record(network as unknown as Network, [1, 9, 9, 2]);
    };
    for (const [dilation, padding] of [
      [2, [0, 2, 2]],
      [
        [1, 3],
        [0, 1, 3],
      ],
    ] as const) {
      const { nodes, values, outputs } = graphOf({ kernel: 3, dilation });
      expect(nodes[0]?.attrs.padding).to.deep.equal(padding);
      expect(nodes[0]?.attrs.dilation).to.deep.equal(dilation === 2 ? [1, 2, 2] : [1, 1, 3]);
      expect(values[outputs[0] ?? -1]?.shape).to.deep.equal([1, 9, 9, 3]);
    }
    expect(graphOf({ kernel: 3, dilation: 2, padding: 0 }).values[1]?.shape).to.deep.equal([1, 5, 5, 3]);
  });
});

describe('record: errors name the layer', () => {
  class Net extends Module {
    readonly stem = new layers.ConvNorm(2, 4, { kernel: 3 });
    readonly blocks = [new layers.Conv(4, 8, { kernel: 3, stride: 2 }), new layers.Conv(3, 4, { kernel: 1 })];
    readonly fc = new layers.Linear(9, 5);
    readonly norm = new layers.BatchNorm(5);
    constructor(readonly run: (net: Net, x: Feature) => unknown) {
      super();
    }
    forward(x: Feature) {
      return this.run(this, x) as Feature;
    }
  }
  for (const [title, run, message] of [
    [
      'a convolution',
      ({ stem, blocks }, x) => blocks[1]?.forward(stem.forward(x)),
      "conv: weight [4,3,1,1] needs 3 input channels, got x [1,8,8,4] (layer 'blocks.1')",
    ],
    [
      'a linear layer',
      ({ fc }, x) => fc.forward(ops.globalAvgPool(x)),
      "linear: weight [5,9], wanted [K,2] for x [1,2] (layer 'fc')",
    ],
    ['a normalisation', ({ norm }, x) => norm.forward(x), "batchNorm: weight [5], wanted [2] (layer 'norm')"],
    [
      'an op between layers',
      ({ stem, blocks }, x) => {
        const y = ops.relu(stem.forward(x));
        return ops.add(y, ops.relu(blocks[0]?.forward(y) ?? y));
      },
      "add: got [1,8,8,4] and [1,4,4,8], wanted sizes that are equal or 1 (behind 'stem.1' and 'blocks.0')",
    ],
    [
      'a pair and a high branch alone',
      ({ stem }, x) => new Octave(stem.forward(x), x).zip(new Octave(x), (a) => a),
      "octave: one operand has a low branch, the other has none (behind 'stem.1')",
    ],
    [
      'an op on the input',
      (_, x) => ops.maxPool(x, { kernel: 9 }),
      'maxPool: the kernel [9,9] does not fit into x [1,8,8,2] with its padding',
    ],
  ] as [string, (net: Net, x: Feature) => unknown, string][]) {
    it(title, () => {
      expect(problem(() => record(new Net(run), [1, 8, 8, 2]))).to.equal(message);
    });
  }
});

describe('record: parameters and constants beside values', () => {
  class Net extends Module {
    readonly shift = new Parameter([2, 3, 3, 2]);
    readonly gate = new Parameter([2, 1, 1, 2]);
    readonly conv = new layers.Conv(5, 3, { kernel: 1 });
    readonly more = tensor('f32', [2, 3, 3, 1], numbers(18, 5));
    forward(x: Feature) {
      const y = ops.relu(ops.mul(ops.add(x, this.shift), this.gate));
      return this.conv.forward(ops.concat([y, this.more, ops.add(x, this.shift)]) as Feature);
    }
  }
  const net = new Net();
  const source = weights({
    shift: tensor('f32', [2, 3, 3, 2], numbers(36, 1)),
    gate: tensor('f32', [2, 1, 1, 2], numbers(4, 2)),
    'conv.weight': tensor('f32', [3, 5, 1, 1], numbers(15, 3)),
  });
  const x = tensor('f32', [2, 3, 3, 2], numbers(36, 4));

  /** The same of tensors, op by op. */
  const wanted = async () => {
    const read = (name: string) =>
      (source as unknown as { tensors: Map<string, Tensor<'f32', [number, number, number, number]>> }).tensors.get(
        name,
      )!;
    const sum = await ops.add(x, read('shift'));
    const y = await ops.relu(await ops.mul(sum, read('gate') as never));
    const joined = await ops.concat([y, net.more, sum] as never);
    return ops.conv(joined as never, { weight: read('conv.weight') as never }) as unknown as Promise<Tensor<'f32'>>;
  };
  const close = (got: Tensor<'f32'>, right: Tensor<'f32'>) => {
    expect(got.shape).to.deep.equal(right.shape);
    for (const [i, value] of right.data.entries()) expect(got.data[i]).to.be.closeTo(value, 1e-6);
  };

  for (const device of ['cpu', 'reference'] as const) {
    it(`give what tensors give, on ${device}`, async () => {
      using model = new Model(net, source, { device, threads: 2 });
      close(await model.run(x), await wanted());
      close(await model.run(x), await wanted());
    });
  }

  it('are read from 16-bit files, and not from integers', async () => {
    class Shift extends Module {
      readonly shift = new Parameter([1, 1, 1, 4]);
      forward(x: Feature) {
        return ops.add(x, this.shift);
      }
    }
    const run = async (shift: Tensor) => {
      using model = new Model(new Shift(), memoryWeights(new Map(Object.entries({ shift, ...beside }))), {
        dtype: 'f32',
      });
      return [...(await model.run(constant([1, 1, 1, 4], 1))).data];
    };
    let beside = {};
    expect(await run(tensor('f16', [1, 1, 1, 4], new Uint16Array(4).fill(0x4000)))).to.deep.equal([3, 3, 3, 3]);
    expect(await run(tensor('bf16', [1, 1, 1, 4], new Uint16Array(4).fill(0x4000)))).to.deep.equal([3, 3, 3, 3]);
    const { weightScale, inputScale, inputZeroPoint } = besideI8('shift', 1);
    const scales = [weightScale, inputScale].map(({ name }) => [name, constant([1], 1)] as const);
    beside = Object.fromEntries([...scales, [inputZeroPoint.name, tensor('u8', [1], new Uint8Array(1))]]);
    const refused = await run(tensor('i8', [1, 1, 1, 4], new Int8Array(4))).catch(String);
    expect(refused).to.equal("OctconvError: plan: 'shift' is i8, wanted floats");
  });

  it('of a graph without a network', async () => {
    const graph = new Graph();
    graph.outputs.push(ops.add(graph.input('f32', [1, 2]), constant([1, 2], 3)).id);
    const [y] = await runGraph(graph, [constant([1, 2], 1)]);
    expect([...(y?.data ?? [])]).to.deep.equal([4, 4]);
  });

  it('are exported', async () => {
    const ort = await import('onnxruntime-node');
    const { toNCHW, toNHWC } = await import('../lib/layout.js');
    const session = await ort.InferenceSession.create(await toOnnx(record(net, x.shape), readerOf(source)));
    const { shape, data } = toNCHW(x);
    const { logits } = await session.run({ input: new ort.Tensor('float32', data, shape) });
    close(toNHWC(new Tensor('f32', logits?.dims ?? [], logits?.data as Float32Array)), await wanted());
    await session.release();
  });

  it('numbers are constants', async () => {
    const x = tensor('f32', [1, 2, 2, 1], Float32Array.of(1, 2, 3, 4));
    expect([...(await ops.mul(x, 0.5)).data]).to.deep.equal([0.5, 1, 1.5, 2]);
    expect([...(await ops.div(await ops.sub(x, 1), 2)).data]).to.deep.equal([0, 0.5, 1, 1.5]);
    const graph = new Graph();
    ops.add(graph.input('f32', x.shape), 7);
    expect([...graph.constants.values()].map(({ shape, data }) => [shape, [...data]])).to.deep.equal([[[1, 1], [7]]]);
  });
});

describe('record: batches some images at a time', () => {
  const { traits } = targetOf('cpu');
  /** Convolutions of a batch around an op. */
  const graphWith = (op: (x: Value<'f32', readonly [number, number, number, number]>) => Value) => {
    const graph = new Graph();
    const weight = <const S extends readonly [number, number, number, number]>(shape: S, seed: number) =>
      tensor('f32', shape, numbers(shape[0] * shape[1], seed));
    const x = ops.relu(ops.conv(graph.input('f32', [4, 20, 4, 3]), { weight: weight([4, 3, 1, 1], 1) }));
    graph.outputs.push(ops.globalAvgPool(ops.relu(op(x) as typeof x)).id);
    return graph;
  };
  const segments = (graph: Graph) => stepsFor(graph, { traits, threads: 1 }).segments?.map(({ images }) => images);
  const agree = async (graph: Graph) => {
    const x = tensor('f32', [4, 20, 4, 3], numbers(960, 3));
    const [[wanted], [got]] = [
      await runGraph(graph, [x], { device: 'reference' }),
      await runGraph(graph, [x], { threads: 1 }),
    ];
    for (const [i, value] of (wanted?.data ?? []).entries()) expect(got?.data[i]).to.be.closeTo(value, 1e-6);
  };

  for (const [title, op] of [
    ['a number', (x) => ops.mul(x, 0.5)],
    ['one number a channel', (x) => ops.add(x, tensor('f32', [1, 1, 1, 4], Float32Array.of(1, 2, 3, 4)))],
    ['one picture', (x) => ops.sub(x, tensor('f32', [1, 20, 4, 4], numbers(320, 5)))],
    ['one number an image', (x) => ops.mul(x, tensor('f32', [4, 1, 1, 1], Float32Array.of(1, 2, 3, 4)))],
  ] as [string, (x: Value<'f32', readonly [number, number, number, number]>) => Value][]) {
    it(`${title} serves all of them`, async () => {
      expect(segments(graphWith(op))?.[0]).to.equal(1);
      await agree(graphWith(op));
    });
  }

  it('not where an axis takes the place of N', async () => {
    const turned = graphWith((x) => ops.transpose(x, { axes: [3, 1, 2, 0] }));
    expect(segments(turned)).to.equal(undefined);
    await agree(turned);
  });

  it('a sum of other sizes is no residual', async () => {
    const graph = new Graph();
    const x = graph.input('f32', [2, 4, 4, 3]);
    const weight = tensor('f32', [3, 3, 1, 1], numbers(9, 1));
    const y = ops.conv(x, { weight });
    graph.outputs.push(
      ops.add(y, ops.conv(ops.avgPool(x, { kernel: 4 }), { weight })).id,
      ops.add(ops.conv(x, { weight }), ops.globalAvgPool(x)).id,
    );
    const given = tensor('f32', [2, 4, 4, 3], numbers(96, 3));
    const [wanted, got] = [await runGraph(graph, [given], { device: 'reference' }), await runGraph(graph, [given])];
    wanted.forEach(({ data }, k) => {
      for (const [i, value] of data.entries()) expect(got[k]?.data[i]).to.be.closeTo(value, 1e-6);
    });
  });
});
