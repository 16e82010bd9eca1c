/** User-defined ops, and networks of several inputs and outputs: one way to record what a function takes and gives. */
import { expect } from 'chai';
import {
  createModel,
  compile,
  type Feature,
  initialize,
  layers,
  Model,
  Module,
  Octave,
  OctconvError,
  ops,
  quantize,
  Tensor,
  tensor,
  type Value,
} from '../lib/index.js';
import { checkLogits } from '../lib/classify.js';
import { elementCount } from '../lib/tensor.js';
import { memoryWeights } from '../lib/weights/memory.js';
import { numbers } from './cases.js';

const filled = <const S extends readonly number[]>(shape: S, seed: number) =>
  tensor('f32', shape, numbers(elementCount(shape), seed));
const failure = async (call: () => Promise<unknown>): Promise<string> => {
  const error = await call().then(
    () => 'no error',
    (e) => e,
  );
  expect(error).to.be.instanceOf(OctconvError);
  return error.message;
};
const devices = ['cpu', 'reference'] as const;

const weights = {
  h2h: filled([6, 4, 3, 3], 1),
  l2h: filled([6, 3, 3, 3], 2),
  h2l: filled([2, 4, 3, 3], 3),
  l2l: filled([2, 3, 3, 3], 4),
};
const high = filled([2, 9, 7, 4], 5);
const low = filled([2, 5, 4, 3], 6);

describe('compile', () => {
  for (const device of devices) {
    it(`gives what calls on tensors give, run after run, on ${device}`, async () => {
      using op = await compile((h, l) => ops.octConv(new Octave(h, l), weights), [high.shape, low.shape], {
        device,
        threads: 2,
      });
      for (const scale of [1, -2, 0.5]) {
        const [h, l] = [
          tensor(
            'f32',
            high.shape,
            high.data.map((v) => v * scale),
          ),
          low,
        ];
        const wanted = await ops.octConv(new Octave(h, l), weights, { device, threads: 2 });
        const y = await op.run(h, l);
        expect(y).to.be.instanceOf(Octave);
        expect(y.high.data).to.deep.equal(wanted.high.data);
        expect(y.low?.data).to.deep.equal(wanted.low?.data);
        expect([y.high.shape, y.low?.shape]).to.deep.equal([
          [2, 9, 7, 6],
          [2, 5, 4, 2],
        ]);
      }
    });
  }

  it('fuses, which calls one by one cannot', async () => {
    using op = await compile(
      (h, l) => ops.octConv(new Octave(h, l), weights).map((y) => ops.relu(y)),
      [high.shape, low.shape],
    );
    expect(op.plan.steps).to.have.length(1);
    const y = await op.run(high, low);
    const wanted = await (await ops.octConv(new Octave(high, low), weights)).map((branch) => ops.relu(branch));
    expect(y.high.data).to.deep.equal(wanted.high.data);
  });

  it('gives the structure that the function gave: arrays, objects, octaves with and without a low branch', async () => {
    using op = await compile(
      (x) => {
        const y = ops.relu(x);
        const pair = new Octave(y, ops.sigmoid(x));
        return {
          list: [y, [ops.globalAvgPool(x)]] as const,
          pair,
          alone: new Octave(ops.relu6(x)),
          nothing: undefined,
          again: y,
        };
      },
      [[1, 2, 2, 1]],
    );
    const { list, pair, alone, nothing, again, ...rest } = await op.run(
      tensor('f32', [1, 2, 2, 1], Float32Array.of(-1, 1, 3, 9)),
    );
    expect(rest).to.deep.equal({});
    expect([...list[0].data]).to.deep.equal([0, 1, 3, 9]);
    expect([list[1][0].shape, [...list[1][0].data]]).to.deep.equal([[1, 1], [3]]);
    expect([pair instanceof Octave, pair.high === list[0], pair.low?.data[0]]).to.deep.equal([
      true,
      true,
      Math.fround(1 / (1 + Math.E)),
    ]);
    expect([alone instanceof Octave, alone.low, [...alone.high.data]]).to.deep.equal([true, undefined, [0, 1, 3, 6]]);
    expect([nothing, again === list[0]]).to.deep.equal([undefined, true]);
  });

  it('a name in an object may be any', async () => {
    using op = await compile(
      (x) =>
        JSON.parse('{"__proto__":0,"a b":0}', (_, v) => (v === 0 ? ops.relu(x) : v)) as { 'a b': Value<'f32', [1, 1]> },
      [[1, 1]],
    );
    const y = await op.run(filled([1, 1], 1));
    expect(Object.keys(y)).to.deep.equal(['__proto__', 'a b']);
    expect(Object.getPrototypeOf(y)).to.equal(Object.prototype);
  });

  it('takes bytes beside floats, tensors as examples, and data with its shape', async () => {
    const bytes = tensor('u8', [1, 1, 2, 3], Uint8Array.of(0, 51, 102, 153, 204, 255));
    const normalized = (x: Value<'u8', readonly [1, 1, 2, 3]>) =>
      ops.normalize(x, { scale: 1 / 255, mean: [0, 0, 0], std: [1, 1, 1] });
    using op = await compile(
      (x, y) => ops.add(normalized(x), y),
      [{ dtype: 'u8', shape: [1, 1, 2, 3] }, filled([1, 1, 2, 3], 1)],
    );
    const shape = [1, 1, 2, 3] as const;
    const ones = new Float32Array(6).fill(1);
    for (const y of [
      await op.run(bytes, tensor('f32', shape, ones)),
      await op.run({ dtype: 'u8', data: bytes.data, shape }, { data: ones, shape }, {}),
    ]) {
      expect([...y.data].map((v) => Math.round(v * 5))).to.deep.equal([5, 6, 7, 8, 9, 10]);
    }
  });

  it('computes in bf16 if it is told to', async () => {
    const run = async (dtype: 'f32' | 'bf16') => {
      const weight = filled([4, 6, 1, 1], 7);
      using op = await compile(
        (h, l) => ops.conv(ops.octConv(new Octave(h, l), weights).high, { weight }),
        [high.shape, low.shape],
        { dtype },
      );
      return (await op.run(high, low)).data;
    };
    const [exact, rounded] = [await run('f32'), await run('bf16')];
    const worst =
      Math.max(...exact.map((x, i) => Math.abs(x - (rounded[i] as number)))) / Math.max(...exact.map(Math.abs));
    expect(worst).to.be.within(1e-5, 3e-2);
  });

  it('packs once: constants are not read again', async () => {
    const weight = filled([1, 1, 1, 1], 1);
    const before = weight.data[0] as number;
    using op = await compile((x) => ops.conv(x, { weight }), [[1, 1, 1, 1]]);
    weight.data.fill(7);
    expect((await op.run(tensor('f32', [1, 1, 1, 1], Float32Array.of(1)))).data[0]).to.equal(before);
  });

  it('runs overlap, and see inputs as they were', async () => {
    using op = await compile((x) => ops.relu(x), [[1, 1, 1, 4]]);
    const x = tensor('f32', [1, 1, 1, 4], new Float32Array(4));
    const runs = Array.from({ length: 20 }, (_, i) => {
      x.data.fill(i);
      return op.run(x);
    });
    expect((await Promise.all(runs)).map(({ data }) => data[3])).to.deep.equal(Array.from({ length: 20 }, (_, i) => i));
  });

  it('stops at a signal', async () => {
    using op = await compile((x) => ops.relu(x), [[1, 4]]);
    const signal = AbortSignal.abort(new Error('enough'));
    expect(await op.run(filled([1, 4], 1), { signal }).catch((e) => e.message)).to.equal('enough');
  });

  it('says what it was given in place of a function and shapes, as warmUp does', async () => {
    const error = (made: Promise<unknown>) => made.then(String, ({ message }) => message);
    const relu = (x: Value) => ops.relu(x as never);
    expect(await error(compile(relu as never, undefined as never))).to.equal(
      'compile: got a function and nothing, wanted a function and a list of shapes',
    );
    expect(await error(compile(undefined as never, [[1, 2, 2, 3]]))).to.equal(
      'compile: got nothing and an Array, wanted a function and a list of shapes',
    );
    using model = createModel('oct-resnet-26', { width: 8, classes: 3 });
    for (const given of [undefined, [1, 32, 32, 3]])
      expect(await error(model.warmUp(given as never))).to.match(/^model: warmUp: got .*, wanted a list of shapes$/);
  });

  it('is disposed of once its runs have ended, and refuses new ones', async () => {
    const op = await compile((x) => ops.relu(x), [[1, 4]]);
    const run = op.run(filled([1, 4], 1));
    op.dispose();
    op.dispose();
    expect((await run).shape).to.deep.equal([1, 4]);
    expect(await failure(() => op.run(filled([1, 4], 1)))).to.equal('a plan was disposed of');
  });

  const image = filled([1, 4, 4, 2], 1);
  const one = (f: (x: Feature) => unknown, options?: object) => () => compile(f as never, [image.shape], options);
  const run =
    (...args: unknown[]) =>
    async () => {
      using op = await compile((a, b) => ops.add(a, b), [image.shape, image.shape]);
      return op.run(...(args as [typeof image, typeof image]));
    };
  for (const [title, call, message] of [
    [
      'a function of more inputs',
      () => compile(((a: Feature, b: Feature) => ops.add(a, b as never)) as never, [image.shape]),
      'compile: the function takes 2 inputs, got 1',
    ],
    ['no shapes', () => compile((x: Feature) => x, [] as never), 'compile: the function takes 1 input, got 0'],
    [
      'a shape that is none',
      () => compile((x) => ops.relu(x), [[1, 0]]),
      'tensor: shape [1,0], wanted a list of positive integers',
    ],
    [
      'no shape',
      () => compile((x) => x, [7] as never),
      'compile: the function: input 0 is a number, wanted a shape or { dtype, shape }',
    ],
    [
      'an unknown data type',
      () => compile((x) => x, [{ dtype: 'f64', shape: [1, 2] }] as never),
      /^compile: the function: input 0 is 'f64', wanted f32, /,
    ],
    [
      'an op that does not fit',
      one((x) => ops.maxPool(x, { kernel: 9 })),
      'maxPool: the kernel [9,9] does not fit into x [1,4,4,2] with its padding',
    ],
    [
      'a layer',
      one((x) => new layers.Conv(2, 2, { kernel: 1 }).forward(x)),
      /^conv: the parameter 'weight' \[2,2,1,1\] has no name: record it through a model/,
    ],
    [
      'an async function',
      one(async (x) => ops.relu(x)),
      'compile: the function gives a Promise, wanted a Value, or arrays, objects or Octaves of Values',
    ],
    [
      'its own input',
      one((x) => ({ x })),
      "compile: the function gives input 0 as it is at 'x', wanted what an op makes of it",
    ],
    [
      'i8',
      one((x) => ops.relu(x), { dtype: 'i8' }),
      "dtype 'i8': wanted quantized weights, as 'octconv quantize' makes them",
    ],
    [
      'f16 on the CPU',
      one((x) => ops.relu(x), { dtype: 'f16' }),
      /^dtype 'f16': device 'cpu' \(\w+\) multiplies f32, bf16 or i8$/,
    ],
    ['another dtype', one((x) => ops.relu(x), { dtype: 'f64' }), "dtype 'f64': wanted f32, bf16, f16 or i8"],
    ['another device', one((x) => ops.relu(x), { device: 'tpu' }), /^device 'tpu': wanted auto, /],
    ['no threads', one((x) => ops.relu(x), { threads: 0 }), 'threads: 0, wanted an integer from 1 to 1024'],
    ['a run without an input', run(image), 'plan: input 1 is missing, wanted f32 [1,4,4,2]'],
    ['a run without any', run(), 'plan: input 0 is missing, wanted f32 [1,4,4,2]'],
    ['a run with too many', run(image, image, image), 'plan: got 3 inputs, wanted 2'],
    [
      'a run on another shape',
      run(image, filled([1, 4, 4, 3], 1)),
      'plan: input 1 is f32 [1,4,4,3], wanted f32 [1,4,4,2]',
    ],
    [
      'a run on another type',
      run(image, tensor('u8', [1, 4, 4, 2], new Uint8Array(32))),
      'plan: input 1 is u8 [1,4,4,2], wanted f32 [1,4,4,2]',
    ],
    [
      'a run on an array',
      run([1, 2], image),
      'compile: input 0 is an Array, wanted a Tensor, or a typed array with its shape',
    ],
    [
      'a run on nothing',
      run(undefined, image),
      'compile: input 0 is nothing, wanted a Tensor, or a typed array with its shape',
    ],
    [
      'a run on a pair',
      run(new Octave(image, image), image),
      'compile: input 0 is an Octave, wanted a Tensor, or a typed array with its shape',
    ],
    [
      'a run on bare data',
      run({ data: image.data }, image),
      'compile: input 0 is an Object, wanted a Tensor, or a typed array with its shape',
    ],
  ] as [string, () => Promise<unknown>, string | RegExp][]) {
    it(`refuses ${title}`, async () => {
      const message_ = await failure(call);
      if (typeof message === 'string') expect(message_).to.equal(message);
      else expect(message_).to.match(message);
    });
  }
});

describe('models of several inputs and outputs', () => {
  /** Two pictures of different sizes, one gate: a pair, a list and a name. */
  class Many extends Module {
    readonly split = new layers.OctConvNorm(3, 8, { kernel: 3, alphaIn: 0, alphaOut: 0.5 });
    readonly other = new layers.ConvNorm(2, 4, { kernel: 3 });
    readonly fc = new layers.Linear(4, 5);
    forward(x: Feature, side: Feature, gate: Value<'f32', readonly [number, number]>) {
      const pair = this.split.forward(new Octave(x)).map((y) => ops.relu(y));
      const gated = ops.mul(this.other.forward(side), gate as never) as Feature;
      return {
        pair,
        levels: [gated, ops.maxPool(gated, { kernel: 2 })] as const,
        scores: this.fc.forward(ops.globalAvgPool(pair.high)),
      };
    }
  }
  const network = new Many();
  const source = initialize(network);
  const inputsOf = (n: number) => [filled([n, 9, 11, 3], 1), filled([n, 6, 6, 2], 2), filled([n, 4], 3)] as const;
  const largest = (x: Float32Array) => Math.max(...x.map(Math.abs));
  const close = (got: Tensor<'f32'>, wanted: Tensor<'f32'>) => {
    expect(got.shape).to.deep.equal(wanted.shape);
    for (const [i, value] of wanted.data.entries())
      expect(got.data[i]).to.be.closeTo(value, 1e-5 * largest(wanted.data));
  };

  it('give the same structure on every device, at every batch size', async () => {
    using cpu = new Model(network, source, { device: 'cpu', threads: 2 });
    using reference = new Model(network, source, { device: 'reference' });
    for (const n of [1, 3, 1]) {
      const [y, wanted] = [await cpu.run(...inputsOf(n)), await reference.run(...inputsOf(n), {})];
      expect([Object.keys(y), y.pair instanceof Octave, Array.isArray(y.levels)]).to.deep.equal([
        ['pair', 'levels', 'scores'],
        true,
        true,
      ]);
      expect([y.pair.high.shape, y.pair.low?.shape, y.levels.map(({ shape }) => shape), y.scores.shape]).to.deep.equal([
        [n, 9, 11, 4],
        [n, 5, 6, 4],
        [
          [n, 6, 6, 4],
          [n, 3, 3, 4],
        ],
        [n, 5],
      ]);
      for (const [a, b] of [
        [y.pair.high, wanted.pair.high],
        [y.pair.low, wanted.pair.low],
        [y.levels[0], wanted.levels[0]],
        [y.levels[1], wanted.levels[1]],
        [y.scores, wanted.scores],
      ] as const)
        close(a as Tensor<'f32'>, b as Tensor<'f32'>);
    }
  });

  it('keep a plan for the shapes and types of all inputs', async () => {
    using model = new Model(network, source, { plans: 2 });
    const shapes = inputsOf(1).map(({ shape }) => shape);
    const plan = await model.plan(...shapes);
    await model.run(...inputsOf(1));
    expect(await model.plan(...shapes)).to.equal(plan);
    const [x, , gate] = inputsOf(1);
    expect((await model.run(x, filled([1, 8, 8, 2], 1), gate)).levels[1].shape).to.deep.equal([1, 4, 4, 4]);
    expect(await model.plan(...shapes)).to.equal(plan);
    await model.warmUp([
      inputsOf(2),
      [
        [4, 9, 11, 3],
        [4, 6, 6, 2],
        [4, 4],
      ],
    ]);
    expect(plan.disposed).to.equal(true);
    expect(model.record(...shapes).inputs).to.have.length(3);
  });

  it('see their inputs as they were when the run began, the first one too', async () => {
    using model = new Model(network, source);
    const [x, side, gate] = inputsOf(1);
    const wanted = await model.run(...inputsOf(1));
    using fresh = new Model(network, source);
    const run = fresh.run(x, side, gate);
    for (const { data } of [x, side, gate]) data.fill(NaN);
    expect((await run).levels[1].data).to.deep.equal(wanted.levels[1].data);
  });

  it('are told what is missing, too much, or does not fit', async () => {
    using model = new Model(network, source);
    const [x, side, gate] = inputsOf(1);
    const run = (...args: unknown[]) => failure(() => model.run(...(args as [typeof x, typeof side, typeof gate])));
    expect(await run(x, side)).to.equal('model: forward takes 3 inputs, got 2');
    expect(await run()).to.equal('model: forward takes 3 inputs, got 0');
    expect(await run(x, side, 7)).to.equal(
      'model: input 2 is a number, wanted a Tensor, or a typed array with its shape',
    );
    expect(await run(x, x, gate)).to.equal(
      "conv: weight [4,2,3,3] needs 2 input channels, got x [1,9,11,3] (layer 'other.0')",
    );
    expect(await run(x, side, gate, gate)).to.equal('model: forward takes 3 inputs, got 4');
  });

  it('do not classify', async () => {
    using model = Object.assign(new Model(network, source), { input: undefined });
    expect(await failure(async () => checkLogits((await model.run(...inputsOf(1))) as never, ['a.png']))).to.equal(
      'classify: the network gives an Object, wanted logits',
    );
  });

  it('are quantized where they take one', async () => {
    class Two extends Module {
      readonly stem = new layers.ConvNorm(3, 16, { kernel: 3 });
      readonly heads = [new layers.Conv(16, 4, { kernel: 1 }), new layers.Conv(16, 6, { kernel: 3, bias: true })];
      forward(x: Feature) {
        const y = ops.relu(this.stem.forward(x));
        return { y, heads: this.heads.map((head) => head.forward(y)) };
      }
    }
    const two = new Two();
    const floats = initialize(two);
    const x = filled([2, 8, 8, 3], 1);
    using f32 = new Model(two, floats);
    using i8 = new Model(two, await quantize(two, floats, [x]));
    const [wanted, got] = [await f32.run(x), await i8.run(x)];
    expect(i8.dtype).to.equal('i8');
    for (const [a, b] of [
      [got.y, wanted.y],
      [got.heads[0], wanted.heads[0]],
      [got.heads[1], wanted.heads[1]],
    ] as const) {
      const bound = largest(b?.data as Float32Array) * 0.05;
      expect(a?.shape).to.deep.equal(b?.shape);
      for (const [i, value] of (b?.data ?? []).entries()) expect(a?.data[i]).to.be.closeTo(value, bound);
    }
    expect(await failure(() => quantize(network as never, source, [x]))).to.equal(
      'model: forward takes 3 inputs, got 1',
    );
  });

  it('take bytes, which the network itself makes floats of', async () => {
    class Bytes extends Module {
      readonly conv = new layers.Conv(3, 2, { kernel: 1 });
      forward(x: Value<'u8', readonly [number, number, number, number]>) {
        return this.conv.forward(
          ops.normalize(x, { scale: 1 / 255, mean: [0.5, 0.5, 0.5], std: [1, 1, 1] }) as Feature,
        );
      }
    }
    const weight = tensor('f32', [2, 3, 1, 1], Float32Array.of(1, 0, 0, 0, 0, 2));
    using model = new Model(new Bytes(), memoryWeights(new Map([['conv.weight', weight]])));
    const y = await model.run(tensor('u8', [1, 1, 1, 3], Uint8Array.of(255, 9, 0)));
    expect([...y.data].map((v) => Math.round(v * 1000) / 1000)).to.deep.equal([0.5, -1]);
  });

  it('batch normalisations of one set of parameters with different eps', async () => {
    const vector = (x: number) => new Tensor('f32', [1] as const, Float32Array.of(x));
    const params = { weight: vector(1), bias: vector(0), running_mean: vector(0), running_var: vector(1) };
    for (const device of ['cpu', 'reference'] as const) {
      using op = await compile(
        (x) => [3, 0].map((eps) => ops.sigmoid(ops.batchNorm(x, params, { eps }))),
        [[1, 1, 1, 1]],
        { device },
      );
      const [a, b] = await op.run(new Tensor('f32', [1, 1, 1, 1], Float32Array.of(2)));
      expect(a?.data[0]).to.be.closeTo(1 / (1 + Math.exp(-1)), 1e-6);
      expect(b?.data[0]).to.be.closeTo(1 / (1 + Math.exp(-2)), 1e-6);
    }
  });
});
