import { expect } from 'chai';
import {
  Graph,
  Octave,
  OctconvError,
  ops,
  Parameter,
  splitChannels,
  Tensor,
  tensor,
  toNCHW,
  toNHWC,
  type Value,
} from '../lib/index.js';
import { paths } from '../lib/octave.js';

/** The message of the OctconvError that a call throws or rejects with. */
async function problem(call: () => unknown): Promise<string> {
  try {
    await call();
  } catch (error) {
    expect(error).to.be.instanceOf(OctconvError);
    return (error as Error).message;
  }
  return 'no error';
}

describe('tensor', () => {
  it('is a view of the data, until it is disposed of', async () => {
    const data = new Float32Array(24);
    const x = tensor('f32', [1, 2, 4, 3], data);
    expect(x.data).to.equal(data);
    expect(x.shape).to.deep.equal([1, 2, 4, 3]);
    x.dispose();
    expect(await problem(() => x.data)).to.equal('tensor: [1,2,4,3] was disposed of');
    let kept: Tensor;
    {
      using y = Tensor.zeros('i8', [2, 3]);
      kept = y;
      expect(y.data).to.deep.equal(new Int8Array(6));
    }
    expect(() => kept.data).to.throw(OctconvError);
  });

  it('moves the channels of images and video, and refuses all else', () => {
    const x = tensor('f32', [1, 1, 2, 3], Float32Array.of(1, 2, 3, 4, 5, 6));
    const moved = toNCHW(x);
    expect([moved.shape, [...moved.data]]).to.deep.equal([
      [1, 3, 1, 2],
      [1, 4, 2, 5, 3, 6],
    ]);
    expect([toNHWC(moved).shape, [...toNHWC(moved).data]]).to.deep.equal([x.shape, [...x.data]]);
    const video = tensor('f32', [1, 2, 1, 2, 2], Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8));
    const planes = toNCHW(video);
    expect([planes.shape, [...planes.data]]).to.deep.equal([
      [1, 2, 2, 1, 2],
      [1, 3, 5, 7, 2, 4, 6, 8],
    ]);
    expect([toNHWC(planes).shape, [...toNHWC(planes).data]]).to.deep.equal([video.shape, [...video.data]]);
    const matrix = Tensor.zeros('f32', [2, 3]);
    expect(() => toNCHW(matrix)).to.throw(OctconvError, 'toNCHW: got [2,3], wanted [N,H,W,C] or [N,T,H,W,C]');
    expect(() => toNHWC(matrix)).to.throw(OctconvError, 'toNHWC: got [2,3], wanted [N,C,H,W] or [N,C,T,H,W]');
  });

  it('takes only data that fits', async () => {
    expect(await problem(() => tensor('f32', [2, 3], new Float32Array(5)))).to.equal(
      'tensor: [2,3] holds 6 elements, got 5',
    );
    expect(await problem(() => tensor('f32', [2, 0], new Float32Array(0)))).to.equal(
      'tensor: shape [2,0], wanted a list of positive integers',
    );
    expect(await problem(() => tensor('f32', [2, 1.5], new Float32Array(3)))).to.match(/positive integers/);
    expect(await problem(() => Tensor.zeros('u8', [2 ** 31, 2 ** 31]))).to.equal(
      'tensor: shape [2147483648,2147483648], wanted at most 2^53 - 1 elements',
    );
    expect(await problem(() => Tensor.zeros('f32', [2 ** 20, 2 ** 20]))).to.equal(
      'tensor: shape [1048576,1048576] of f32: no memory for 1099511627776 elements',
    );
    expect(await problem(() => tensor('bf16', [3], new Uint8Array(3) as never))).to.equal(
      'tensor: bf16 data is Uint8Array, wanted a Uint16Array',
    );
    expect(await problem(() => tensor('f32', [3], undefined as never))).to.match(
      /data is nothing, wanted a Float32Array/,
    );
    expect(await problem(() => tensor('f64' as never, [3], new Float32Array(3) as never))).to.match(
      /^tensor: data type 'f64', wanted one of/,
    );
    expect(tensor('u8', [3], Buffer.from([1, 2, 3])).length).to.equal(3);
  });
});

describe('octave', () => {
  it('splits channels in double precision', async () => {
    const of = (channels: number, alpha: number) => {
      const { high, low } = splitChannels(channels, alpha);
      return [high, low];
    };
    expect(of(64, 0.5)).to.deep.equal([32, 32]);
    expect(of(20, 0.9)).to.deep.equal([2, 18]);
    expect(of(64, 0.125)).to.deep.equal([56, 8]);
    expect(of(64, 0)).to.deep.equal([64, undefined]);
    expect(of(3, 0.25)).to.deep.equal([3, undefined]); // trunc(.75) = 0: there is no low branch
    for (const alpha of [1, 1.5, -0.1, Number.NaN]) {
      expect(await problem(() => splitChannels(64, alpha))).to.equal(
        `octave: alpha ${alpha}, wanted at least 0 and less than 1`,
      );
    }
  });

  it('maps and zips the branches that are there', async () => {
    const both = new Octave(3, 4);
    expect(both.map((x) => x * 2)).to.deep.equal(new Octave(6, 8));
    expect(new Octave(3).map((x) => x * 2)).to.deep.equal(new Octave(6, undefined));
    expect(both.zip(new Octave(1, 1), (x, y) => x + y)).to.deep.equal(new Octave(4, 5));
    expect(await both.map(async (x) => x * 2)).to.deep.equal(new Octave(6, 8));
    expect(await problem(() => both.zip(new Octave(1), (x) => x))).to.match(/one operand has a low branch/);
    expect(paths(new Octave('H'), new Octave('h', 'l'), (a, b, name) => a + b + name)).to.deep.equal({
      h2h: 'Hhh2h',
      l2h: undefined,
      h2l: 'Hlh2l',
      l2l: undefined,
    });
    const { height, width } = new Octave(Tensor.zeros('f32', [1, 7, 9, 2]));
    expect([height, width]).to.deep.equal([7, 9]);
  });
});

describe('ops: shapes', () => {
  const graph = new Graph();
  const input = <const S extends readonly number[]>(shape: S): Value<'f32', S> => graph.input('f32', shape);
  const zeros = <const S extends readonly number[]>(shape: S): Tensor<'f32', S> => Tensor.zeros('f32', shape);
  const x = input([2, 8, 6, 12]);
  const attrs = () => graph.nodes.at(-1)?.attrs;

  it('conv', () => {
    expect(ops.conv(x, { weight: zeros([5, 12, 3, 3]) }).shape).to.deep.equal([2, 6, 4, 5]);
    expect(
      ops.conv(x, { weight: zeros([5, 12, 3, 1]) }, { stride: [2, 1], padding: [1, 0], dilation: [2, 1] }).shape,
    ).to.deep.equal([2, 3, 6, 5]);
    expect(attrs()).to.deep.equal({
      kernel: [1, 3, 1],
      stride: [1, 2, 1],
      padding: [0, 1, 0],
      dilation: [1, 2, 1],
      groups: 1,
    });
    expect(ops.conv(x, { weight: zeros([8, 3, 1, 1]) }, { groups: 4 }).shape).to.deep.equal([2, 8, 6, 8]);
    const video = input([1, 5, 8, 6, 3]);
    expect(ops.conv(video, { weight: zeros([4, 3, 3, 1, 1]) }, { stride: [1, 2, 2] }).shape).to.deep.equal([
      1, 3, 4, 3, 4,
    ]);
    expect(attrs()).to.deep.include({ kernel: [3, 1, 1], stride: [1, 2, 2], padding: [0, 0, 0] });
  });

  it('octConv, also of odd sizes', () => {
    const shapes = (y: Octave<{ shape: readonly number[] }>) => [y.high.shape, y.low?.shape];
    const pair = new Octave(input([1, 7, 9, 6]), input([1, 4, 5, 2]));
    const to = (i: number, o: number) => zeros([o, i, 3, 3]);
    const all = { h2h: to(6, 5), l2h: to(2, 5), h2l: to(6, 3), l2l: to(2, 3) };
    expect(shapes(ops.octConv(pair, all))).to.deep.equal([
      [1, 7, 9, 5],
      [1, 4, 5, 3],
    ]);
    expect(attrs()).to.deep.equal({ kernel: [1, 3, 3], stride: 1, groups: 1 });
    expect(shapes(ops.octConv(pair, all, { stride: 2 }))).to.deep.equal([
      [1, 4, 5, 5],
      [1, 2, 3, 3],
    ]);
    const { h2h, l2h, h2l } = all;
    expect(shapes(ops.octConv(pair, { h2h, l2h }, { stride: 2 }))).to.deep.equal([[1, 4, 5, 5], undefined]);
    expect(shapes(ops.octConv(new Octave(pair.high), { h2h, h2l }))).to.deep.equal([
      [1, 7, 9, 5],
      [1, 4, 5, 3],
    ]);
    const depthwise = { h2h: zeros([6, 1, 3, 3]), l2l: zeros([2, 1, 3, 3]) };
    expect(shapes(ops.octConv(pair, depthwise, { groups: 8 }))).to.deep.equal([
      [1, 7, 9, 6],
      [1, 4, 5, 2],
    ]);
  });

  it('pooling, ceil mode as in PyTorch', () => {
    const of = (size: number, options: ops.PoolOptions) => ops.maxPool(input([1, size, 8, 3]), options).shape[1];
    expect(of(8, { kernel: 3, stride: 2, padding: 1 })).to.equal(4);
    expect(of(7, { kernel: 2 })).to.equal(3);
    expect(of(7, { kernel: 2, ceilMode: true })).to.equal(4);
    expect(of(5, { kernel: 2, stride: 3, padding: 1, ceilMode: true })).to.equal(2); // a third window would start at 5
    expect(ops.avgPool(x, { kernel: 2 }).shape).to.deep.equal([2, 4, 3, 12]);
    expect(attrs()).to.deep.include({ stride: [1, 2, 2], ceilMode: false, countIncludePad: true });
    expect(ops.globalAvgPool(x).shape).to.deep.equal([2, 12]);
  });

  it('the others', () => {
    expect(ops.linear(input([3, 12]), { weight: zeros([10, 12]), bias: zeros([10]) }).shape).to.deep.equal([3, 10]);
    expect(ops.concat([x, input([2, 8, 6, 1]), x]).shape).to.deep.equal([2, 8, 6, 25]);
    expect(ops.upsampleNearest(x, { scale: 2, size: [15, 12] }).shape).to.deep.equal([2, 15, 12, 12]);
    expect(attrs()).to.deep.equal({ scale: [1, 2, 2], size: [1, 15, 12] });
    expect(ops.pad(x, { before: [1, 0], after: [2, 3] }).shape).to.deep.equal([2, 11, 9, 12]);
    expect(attrs()).to.deep.equal({ before: [0, 1, 0], after: [0, 2, 3], value: 0 });
    expect(ops.mul(x, input([2, 1, 1, 12])).shape).to.deep.equal([2, 8, 6, 12]);
    expect(ops.mul(x, input([2, 12])).shape).to.deep.equal([2, 8, 6, 12]);
    for (const op of [ops.relu, ops.relu6, ops.sigmoid, ops.softmax]) expect(op(x).shape).to.equal(x.shape);
  });

  it('errors name the op, what was found, and what was wanted', async () => {
    const high = input([8, 56, 56, 32]);
    const low = input([8, 28, 28, 16]);
    const pair = new Octave(high, low);
    const weight = (...shape: readonly [number, number, number, number]) => zeros(shape);
    const vector = zeros([12]);
    const norm = { weight: vector, bias: vector, running_mean: vector, running_var: zeros([11]) };
    const cases: [call: () => unknown, message: string][] = [
      [() => ops.relu(input([1, 2, 3]) as never), 'relu: got [1,2,3], wanted [N,C] or [N,H,W,C] or [N,T,H,W,C]'],
      [() => ops.relu(graph.input('i8', [1, 3]) as never), 'relu: got i8 [1,3], wanted f32'],
      [() => ops.relu(7 as never), 'relu: got a number, wanted a Value or a Tensor'],
      [
        () => ops.add(x, input([2, 8, 6, 4]) as never),
        'add: got [2,8,6,12] and [2,8,6,4], wanted sizes that are equal or 1',
      ],
      [() => ops.add(x, input([3, 12]) as never), 'add: got [2,8,6,12] and [3,12], wanted sizes that are equal or 1'],
      [
        () => ops.sub(x, input([2, 1, 8, 6, 12]) as never),
        'sub: got [2,8,6,12] and [2,1,8,6,12], wanted sizes that are equal or 1',
      ],
      [() => ops.leakyRelu(x, { slope: Number.NaN }), 'leakyRelu: slope NaN, wanted a finite number'],
      [
        () => ops.matmul(x, input([2, 8, 11, 3]) as never),
        'matmul: got [2,8,6,12] and [2,8,11,3], wanted [N,H,M,K] and [N,H,K,P]',
      ],
      [
        () => ops.matmul(x, input([2, 7, 12, 3]) as never),
        'matmul: got [2,8,6,12] and [2,7,12,3], wanted [N,H,M,K] and [N,H,K,P]',
      ],
      [
        () => ops.matmul(input([2, 3]) as never, input([3, 4]) as never),
        'matmul: got [2,3], wanted [N,H,W,C] or [N,T,H,W,C]',
      ],
      [
        () => ops.attention(x, input([2, 3, 4, 12]), input([2, 4, 3, 5])),
        "attention: got q [2,8,6,12], k [2,3,4,12] and v [2,4,3,5], wanted k [N,H',W',D] and v [N,H',W',E] with N and D of q",
      ],
      [() => ops.attention(x, x, x, { scale: Number.NaN }), 'attention: scale NaN, wanted a finite number'],
      [() => ops.softmax(x, { axis: 4 }), 'softmax: axes [4], wanted different ones of the 4 of x [2,8,6,12]'],
      [() => ops.softmax(x, { axis: -4 }), 'softmax: axis -4, wanted another one than that of N'],
      [
        () => ops.slice(x, { axes: [1], starts: [8] }),
        'slice: got [2,8,6,12], and nothing of axis 1 from 8 to Infinity',
      ],
      [
        () => ops.slice(x, { starts: [0], axes: [4] }),
        'slice: axes [4], wanted different ones of the 4 of x [2,8,6,12]',
      ],
      [() => ops.slice(x, { starts: [0.5] }), 'slice: starts [0.5] and ends [Infinity], wanted integers'],
      [
        () => ops.slice(x, { starts: [0, 1], ends: [1] }),
        'slice: axes [0,1], starts [0,1] and ends [1], wanted as many of each',
      ],
      [
        () => ops.transpose(x, { axes: [0, 1, 1, 2] }),
        'transpose: axes [0,1,1,2], wanted different ones of the 4 of x [2,8,6,12]',
      ],
      [() => ops.transpose(x, { axes: [0, 1] as never }), 'transpose: axes [0,1], wanted each axis of [2,8,6,12] once'],
      [
        () => ops.reshape(x, { shape: [2, -1, 5, 12] }),
        'reshape: got [2,8,6,12] and shape [2,-1,5,12], wanted as many elements',
      ],
      [
        () => ops.reshape(x, { shape: [2, -1, -1, 12] }),
        'reshape: got [2,8,6,12] and shape [2,-1,-1,12], wanted as many elements',
      ],
      [
        () => ops.reshape(x, { shape: [2, 48, 12] as never }),
        'reshape: got [2,48,12], wanted [N,C] or [N,H,W,C] or [N,T,H,W,C]',
      ],
      [() => ops.mean(x, { axes: [0] }), 'mean: axes [0], wanted some, without that of N'],
      [() => ops.mean(x, { axes: [1] }), 'mean: got [2,6,12], wanted [N,C] or [N,H,W,C] or [N,T,H,W,C]'],
      [
        () => ops.interpolate(x, { height: 4.5, width: 2 }),
        'interpolate: height 4.5 and width 2, wanted positive integers',
      ],
      [() => ops.add(x, new Octave(x) as never), 'add: got an Octave, wanted a Value, a Parameter or a Tensor'],
      [
        () => ops.add(x, undefined as never),
        'add: got nothing, wanted a Value, a Parameter or a Tensor; a forward gets one value per input, as forward(a, b)',
      ],
      [
        () => ops.add(x, zeros([2, 8, 6, 4]) as never),
        'add: got [2,8,6,12] and [2,8,6,4], wanted sizes that are equal or 1',
      ],
      [() => ops.concat(x as never), 'concat: got a Value, wanted an Array'],
      [() => ops.octConv(x as never, { h2h: weight(8, 12, 1, 1) }), 'octConv: got a Value, wanted an Octave'],
      [() => ops.add(x, new Graph().input('f32', x.shape)), 'add: an input was recorded in another graph'],
      [
        () => ops.concat([x, input([2, 8, 5, 1])]),
        'concat: got [2,8,6,12] and [2,8,5,1], wanted equal sizes except for the channels',
      ],
      [() => ops.conv(x, {} as never), 'conv: weight is missing'],
      [() => ops.conv(x, { weight: [1] as never }), 'conv: weight is an Array, wanted a Parameter or a Tensor'],
      [
        () => ops.conv(x, { weight: weight(5, 4, 3, 3) as never }),
        'conv: weight [5,4,3,3] needs 4 input channels, got x [2,8,6,12]',
      ],
      [
        () => ops.conv(x, { weight: weight(5, 4, 3, 3) }, { groups: 3 }),
        'conv: weight [5,4,3,3] has 5 output channels, wanted a multiple of 3 groups',
      ],
      [
        () => ops.conv(x, { weight: weight(6, 4, 3, 3) }, { groups: 2 }),
        'conv: weight [6,4,3,3] needs 8 input channels in 2 groups, got x [2,8,6,12]',
      ],
      [
        () => ops.conv(x, { weight: weight(6, 12, 3, 3) }, { groups: 0.5 }),
        'conv: groups 0.5, wanted a positive integer',
      ],
      [
        () => ops.conv(x, { weight: zeros([5, 12, 3]) as never }),
        'conv: weight [5,12,3], wanted [O,I,kh,kw] for x [2,8,6,12]',
      ],
      [
        () => ops.conv(x, { weight: weight(5, 12, 9, 3) }),
        'conv: the kernel [9,3] does not fit into x [2,8,6,12] with its padding',
      ],
      [() => ops.conv(x, { weight: weight(5, 12, 3, 3), bias: vector }), 'conv: bias [12], wanted [5]'],
      [
        () => ops.conv(x, { weight: weight(5, 12, 3, 3) }, { stride: 0 }),
        'conv: stride 0 for x [2,8,6,12], wanted a number or 2 numbers, integers of at least 1',
      ],
      [
        () => ops.conv(x, { weight: weight(5, 12, 3, 3) }, { padding: [0, 1, 1] }),
        'conv: padding [0,1,1] for x [2,8,6,12], wanted a number or 2 numbers, integers of at least 0',
      ],
      [
        () => ops.octConv(pair, { h2h: weight(64, 48, 3, 3) }),
        'octConv: weight h2h [64,48,3,3] needs 48 input channels, got xH [8,56,56,32]',
      ],
      [() => ops.octConv(pair, { h2h: weight(64, 32, 3, 3) }), 'octConv: weight l2h is missing: xL and yH are there'],
      [() => ops.octConv(pair, {} as never), 'octConv: weight h2h is missing'],
      [
        () => ops.octConv(new Octave(high), { h2h: weight(8, 32, 1, 1), l2h: weight(8, 16, 1, 1) }),
        'octConv: got weight l2h [8,16,1,1], wanted none: there is no xL',
      ],
      [
        () =>
          ops.octConv(
            pair,
            { h2h: weight(32, 1, 3, 3), l2l: weight(16, 1, 3, 3), h2l: weight(16, 1, 3, 3) },
            { groups: 48 },
          ),
        'octConv: got weight h2l [16,1,3,3], wanted none: it is depthwise',
      ],
      [() => ops.octConv(new Octave(high), { h2h: weight(8, 32, 2, 2) }), 'octConv: kernel [2,2], wanted odd sizes'],
      [
        () => ops.octConv(new Octave(high), { h2h: weight(8, 32, 1, 1) }, { stride: 3 }),
        'octConv: stride 3, wanted 1 or 2',
      ],
      [
        () => ops.octConv(new Octave(high), { h2h: weight(8, 32, 1, 1), biasL: vector }),
        'octConv: biasL [12], wanted none: there is no yL',
      ],
      [
        () => ops.octConv(new Octave(high, input([8, 27, 28, 16])), { h2h: weight(8, 32, 1, 1) }),
        'octConv: got xH [8,56,56,32] and xL [8,27,28,16], wanted xL [8,28,28,16]',
      ],
      [
        () => ops.octConv(pair, { h2h: weight(8, 32, 3, 3), l2h: weight(8, 16, 1, 1) }),
        'octConv: weight l2h [8,16,1,1], wanted [8,16,3,3]',
      ],
      [
        () => ops.linear(input([3, 12]), { weight: zeros([10, 11]) as never }),
        'linear: weight [10,11], wanted [K,12] for x [3,12]',
      ],
      [() => ops.linear(x as never, { weight: zeros([10, 12]) as never }), 'linear: got [2,8,6,12], wanted [N,C]'],
      [() => ops.batchNorm(x, norm), 'batchNorm: running_var [11], wanted [12]'],
      [() => ops.batchNorm(x, { ...norm, running_var: undefined as never }), 'batchNorm: running_var is missing'],
      [() => ops.maxPool(x, { kernel: 2, padding: 2 }), 'maxPool: padding 2, wanted at most half of kernel 2'],
      [
        () => ops.avgPool(x, { kernel: 9 }),
        'avgPool: the kernel [9,9] does not fit into x [2,8,6,12] with its padding',
      ],
      [() => ops.globalAvgPool(input([1, 3]) as never), 'globalAvgPool: got [1,3], wanted [N,H,W,C] or [N,T,H,W,C]'],
      [
        () => ops.upsampleNearest(x, { scale: 2, size: [14, 12] }),
        'upsampleNearest: size [14,12], wanted [16,12] of x [2,8,6,12], or less than one scale less',
      ],
      [() => ops.relu(Tensor.zeros('u8', [1, 3]) as never), 'relu: got u8 [1,3], wanted f32'],
      [
        () => ops.conv(zeros([1, 4, 4, 3]), { weight: new Parameter([4, 3, 1, 1]) }),
        'conv: weight is a Parameter, wanted a Tensor as x is one',
      ],
      [
        () => ops.conv(x, { weight: new Parameter([4, 12, 1, 1]) }),
        "conv: the parameter 'weight' [4,12,1,1] has no name: record it through a model, or in a new Graph(namedParameters(network))",
      ],
    ];
    for (const [call, message] of cases) expect(await problem(call)).to.equal(message);
  });

  it('a call on tensors rejects, it does not throw', async () => {
    const promise = ops.add(zeros([2, 3]), zeros([2, 4]) as never);
    expect(await promise.catch((error: Error) => error.message)).to.equal(
      'add: got [2,3] and [2,4], wanted sizes that are equal or 1',
    );
  });
});

describe('ops: on tensors', () => {
  for (const device of ['cpu', 'reference'] as const) {
    it(`run at once on ${device}`, async () => {
      const x = tensor('f32', [1, 1, 2, 2], Float32Array.of(-1, 2, 3, -4));
      expect([...(await ops.relu(x, { device, threads: 1 })).data]).to.deep.equal([0, 2, 3, 0]);
      const weight = tensor('f32', [1, 2, 1, 1], Float32Array.of(10, 1));
      const bias = tensor('f32', [1], Float32Array.of(100));
      const y = await ops.conv(x, { weight, bias }, { device });
      expect(y.shape).to.deep.equal([1, 1, 2, 1]);
      expect([...y.data]).to.deep.equal([92, 126]);
    });

    it(`octConv gives the pair on ${device}`, async () => {
      const one = tensor('f32', [1, 1, 1, 1], Float32Array.of(1));
      const x = new Octave(
        tensor('f32', [1, 2, 3, 1], Float32Array.of(1, 2, 3, 4, 5, 6)),
        tensor('f32', [1, 1, 2, 1], Float32Array.of(10, 20)),
      );
      const y = await ops.octConv(x, { h2h: one, l2h: one, h2l: one, l2l: one }, { device });
      expect([...y.high.data]).to.deep.equal([11, 12, 23, 14, 15, 26]); // U(xL) cropped to 3 columns
      expect([...(y.low?.data ?? [])]).to.deep.equal([13, 24.5]); // P averages 2 x 2, then 2 x 1
    });
  }
});
