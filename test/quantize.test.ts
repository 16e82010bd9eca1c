import { spawnSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  symlinkSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import {
  buildNetwork,
  defaultInput,
  type Feature,
  initialize,
  layers,
  loadModel,
  Model,
  Module,
  type Network,
  Octave,
  ops,
  quantize,
  Tensor,
  tensor,
  type WeightSource,
} from '../lib/index.js';
import { inputShape } from '../lib/models/index.js';
import { quantizedTensors } from '../lib/quantize.js';
import { toFloats } from '../lib/weights/floats.js';
import { readModelFolder, writeModelFolder } from '../lib/weights/folder.js';
import { type MemoryTensor, memoryWeights } from '../lib/weights/memory.js';
import { numbers } from './cases.js';

/** The values over and over. */
function image(shape: readonly number[], values: readonly number[]): Tensor<'f32'> {
  const length = shape.reduce((a, b) => a * b);
  return new Tensor(
    'f32',
    shape,
    Float32Array.from({ length }, (_, i) => values[i % values.length]!),
  );
}

/** Weights by name: the given ones, the others random. */
async function weightsOf(network: Network, given: Record<string, readonly number[]>): Promise<WeightSource> {
  const random = initialize(network);
  const tensors = new Map<string, MemoryTensor>();
  for (const [name, info] of random.tensors) {
    const values = given[name] ?? (await random.read(name));
    tensors.set(name, { ...info, data: Float32Array.from(values as ArrayLike<number>) });
  }
  return memoryWeights(tensors);
}

async function rejects(promise: Promise<unknown>, pattern: RegExp): Promise<void> {
  const error = await promise.then(
    () => undefined,
    (reason) => reason,
  );
  expect(error).to.be.instanceOf(Error);
  expect(error.message).to.match(pattern);
}

async function cosine(
  network: Network,
  weights: WeightSource,
  quantized: WeightSource,
  x: Tensor<'f32'>,
): Promise<number> {
  using f32 = new Model(network, weights, { threads: 1 });
  using i8 = new Model(network, quantized, { threads: 1 });
  expect([f32.dtype, i8.dtype]).to.deep.equal(['f32', 'i8']);
  const [a, b] = [(await f32.run(x)).data, (await i8.run(x)).data];
  const dot = (p: Float32Array, q: Float32Array) => p.reduce((sum, value, i) => sum + value * q[i]!, 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

/** relu(bn(conv a) + bn(conv b)), read by a second convolution. */
class Sum extends Module {
  readonly a = new layers.ConvNorm(2, 2, { kernel: 1 });
  readonly b = new layers.ConvNorm(2, 2, { kernel: 1 });
  readonly last = new layers.Conv(2, 1, { kernel: 1, bias: true });
  forward(x: Feature) {
    return this.last.forward(ops.relu(ops.add(this.a.forward(x), this.b.forward(x))));
  }
}
const plain = { 'a.1.running_var': [1 - 1e-5, 1 - 1e-5], 'b.1.running_var': [1 - 1e-5, 1 - 1e-5] };
const shift = { 'a.1.bias': [0, 0], 'a.1.running_mean': [0, 0], 'b.1.bias': [0, 0], 'b.1.running_mean': [0, 0] };

describe('quantize', () => {
  it('gives each value the range that it has, 0 as a level, and each weight its largest sum of neighbours', async () => {
    const network = new Sum();
    const given = { 'a.0.weight': [1, 0.5, 0, 0], 'b.0.weight': [0, 0, 1, -1], 'last.weight': [0.25, -2] };
    const weights = await weightsOf(network, {
      ...plain,
      ...shift,
      ...given,
      'a.1.weight': [1, 1],
      'b.1.weight': [1, 1],
    });
    // x is -1 or 3; relu(a + b) is 0, 1.5 * 3, or |3 - -1|
    const q = await quantize(network, weights, [image([1, 2, 2, 2], [-1, -1, 3, 3, 3, -1, -1, 3])]);
    expect(q.tensors.size).to.equal(weights.tensors.size + 9);
    expect(q.tensors.get('a.0.weight'))
      .to.include({ dtype: 'i8' })
      .and.deep.include({ shape: [2, 2, 1, 1] });
    for (const layer of ['a.0', 'b.0']) {
      expect(await q.read(`${layer}.input_scale`)).to.deep.equal(Float32Array.of(4 / 255));
      expect(await q.read(`${layer}.input_zero_point`)).to.deep.equal(Uint8Array.of(64)); // round(63.75)
    }
    expect((await q.read('last.input_scale'))[0]).to.be.closeTo(4.5 / 255, 1e-6);
    expect(await q.read('last.input_zero_point')).to.deep.equal(Uint8Array.of(0));
    expect(await q.read('last.weight')).to.deep.equal(Int8Array.of(16, -127));
    expect(await q.read('last.weight_scale')).to.deep.equal(Float32Array.of(2 / 127));
    expect(await q.read('a.0.weight')).to.deep.equal(Int8Array.of(85, 42, 0, 0));
    expect(await q.read('b.0.weight')).to.deep.equal(Int8Array.of(0, 0, 127, -127));
    expect(await q.read('a.1.weight')).to.deep.equal(await weights.read('a.1.weight'));
    expect(q.tensors.get('last.bias')?.dtype).to.equal('f32');
  });

  it('makes products of one sum worth the same, whatever the batch normalisations', async () => {
    const network = new Sum();
    const gammas = { 'a.1.weight': [0.5, 0], 'b.1.weight': [-2, 0.5] };
    const given = { ...plain, ...shift, ...gammas, 'a.0.weight': [1, 0.5, 3, 1], 'b.0.weight': [1, -0.5, 0, 0] };
    const weights = await weightsOf(network, given);
    const x = image([1, 4, 4, 2], [0, 1, 2, 3, 4, 2, 1]);
    const q = await quantize(network, weights, [x]);
    const [a, b] = [await q.read('a.0.weight_scale'), await q.read('b.0.weight_scale')];
    // b of channel 0 has products four times as large; a of channel 1 counts for nothing, b is zeros
    expect(b[0]! * 2).to.be.closeTo(a[0]! * 0.5, 1e-8);
    expect(b[0]).to.be.closeTo(1 / 127, 1e-8);
    expect(a[1]).to.be.closeTo(4 / 127, 1e-8);
    expect(b[1]).to.equal(1);
    const levels = [...(await q.read('a.0.weight'))].map((level, i) => level * a[i >> 1]!);
    for (const [i, w] of [1, 0.5, 3, 1].entries()) expect(levels[i]).to.be.closeTo(w, Math.abs(a[i >> 1]!) / 2 + 1e-6);
    expect(Math.max(...levels.map((_, i) => Math.abs(levels[i]! / a[i >> 1]!)))).to.be.at.most(127.001);
    expect(await cosine(network, weights, q, x)).to.be.above(0.999);
  });

  it('leaves out what is next to nothing in a sum, as a weight of scale 0', async () => {
    const network = new Sum();
    const weights = await weightsOf(network, { ...plain, 'a.1.weight': [1e-41, 1], 'b.1.weight': [1, 1] });
    const x = image([1, 4, 4, 2], [0, 1, 2, 3, 4, 2, 1]);
    const q = await quantize(network, weights, [x]);
    expect((await q.read('a.0.weight_scale'))[0]).to.equal(0);
    expect(await cosine(network, weights, q, x)).to.be.above(0.997); // of sums of two or three products
  });

  it('clips what is rare and large', async () => {
    const network = new (class extends Module {
      readonly conv = new layers.Conv(1, 1, { kernel: 1 });
      forward(x: Feature) {
        return this.conv.forward(x);
      }
    })();
    const values = Array.from({ length: 2 ** 20 }, (_, i) => i / 2 ** 20);
    const scale = async (most: number) => {
      const q = await quantize(network, initialize(network), [image([1, 1024, 1024, 1], values.with(0, most))]);
      return (await q.read('conv.input_scale'))[0]!;
    };
    expect(await scale(1)).to.equal(Math.fround(1 / 255));
    // rounding costs (c / 255)^2 / 12 for each of 2^20, clipping at c costs (100 - c)^2: least at 43
    expect((await scale(100)) * 255).to.be.within(41, 45);
  });

  it('measures all batches, of any shape', async () => {
    const network = new Sum();
    const weights = initialize(network);
    const scale = async (...batches: Tensor<'f32'>[]) => {
      const q = await quantize(network, weights, batches);
      return (await q.read('a.0.input_scale'))[0];
    };
    const [low, high] = [image([1, 2, 2, 2], [1]), image([3, 4, 2, 2], [2])];
    expect(await scale(low)).to.equal(Math.fround(1 / 255));
    expect(await scale(low, high))
      .to.equal(await scale(high, low))
      .and.to.equal(Math.fround(2 / 255));
  });

  it('one scale for all that read a value, pooled or not; two for two', async () => {
    const network = new (class extends Module {
      readonly split = new layers.OctConvNorm(3, 16, { kernel: 3, alphaIn: 0, alphaOut: 0.5 });
      readonly mix = new layers.OctConvNorm(16, 16, { kernel: 3, groups: 2, alphaIn: 0.5, alphaOut: 0.5 });
      readonly depth = new layers.OctConvNorm(16, 16, { kernel: 3, groups: 16, alphaIn: 0.5, alphaOut: 0.5 });
      readonly merge = new layers.OctConvNorm(16, 8, { kernel: 1, stride: 2, alphaIn: 0.5, alphaOut: 0 });
      readonly fc = new layers.Linear(8, 5);
      forward(x: Feature) {
        const blocks = [this.split, this.mix, this.depth, this.merge];
        const y = blocks.reduce((z, block) => block.forward(z).map((branch) => ops.relu(branch)), new Octave(x));
        return this.fc.forward(ops.globalAvgPool(y.high));
      }
    })();
    const weights = initialize(network);
    const x = image([2, 17, 15, 3], [-1, 2, 0.5, -0.25, 0, 1.5, 0.75]);
    const q = await quantize(network, weights, [x]);
    const kinds = [...q.tensors.values()].filter(({ dtype }) => dtype === 'i8');
    expect(kinds).to.have.length(11);
    const scale = async (path: string) => (await q.read(`${path}.input_scale`))[0];
    expect(await scale('split.conv.conv_h2h')).to.equal(await scale('split.conv.conv_h2l'));
    expect(await scale('mix.conv.conv_h2h')).to.equal(await scale('mix.conv.conv_h2l'));
    expect(await scale('mix.conv.conv_l2h')).to.equal(await scale('mix.conv.conv_l2l'));
    expect(await scale('mix.conv.conv_h2h')).to.not.equal(await scale('mix.conv.conv_l2h'));
    expect(await q.read('split.conv.conv_h2h.input_zero_point')).to.deep.equal(Uint8Array.of(85));
    expect(await cosine(network, weights, q, x)).to.be.above(0.999);
  });

  it('an average pooling averages what is larger than its means', async () => {
    const network = new (class extends Module<Feature, Feature> {
      readonly a = new layers.Conv(1, 1, { kernel: 1 });
      readonly b = new layers.Conv(1, 1, { kernel: 1 });
      forward(x: Feature) {
        return this.b.forward(ops.avgPool(ops.relu(this.a.forward(x)), { kernel: 2, stride: 2 }));
      }
    })();
    const weights = await weightsOf(network, { 'a.weight': [1], 'b.weight': [1] });
    const x = tensor(
      'f32',
      [1, 4, 4, 1],
      Float32Array.from({ length: 16 }, (_, i) => (i % 2 || i & 4 ? 0 : 4)),
    );
    const quantized = await quantize(network, weights, [x]);
    for (const device of ['cpu', 'reference'] as const) {
      using model = new Model(network, quantized, { device });
      for (const mean of (await model.run(x)).data) expect(mean, device).to.be.closeTo(1, 0.02);
    }
  });

  it('leaves a layer in f32 that is used twice', async () => {
    const network = new (class extends Module {
      readonly twice = new layers.Conv(2, 2, { kernel: 3 });
      readonly once = new layers.Conv(2, 3, { kernel: 1 });
      forward(x: Feature) {
        return this.once.forward(this.twice.forward(this.twice.forward(x)));
      }
    })();
    const weights = initialize(network);
    const x = image([1, 4, 4, 2], [-1, 2, 0.5, 1, 0.25]);
    const q = await quantize(network, weights, [x]);
    expect(q.tensors.get('twice.weight')?.dtype).to.equal('f32');
    expect(q.tensors.get('once.weight')?.dtype).to.equal('i8');
    expect(await cosine(network, weights, q, x)).to.be.above(0.999);
  });

  it('parameters of a layer may be constants', async () => {
    const four = (...values: number[]) => tensor('f32', [4] as const, Float32Array.from(values));
    const norm = {
      weight: four(1, -2, 0.5, 3),
      bias: four(0, 1, -1, 0.5),
      running_mean: four(0.1, 0, -0.5, 1),
      running_var: four(1, 4, 0.25, 2),
    };
    const network = new (class extends Module {
      readonly conv = new layers.Conv(3, 4, { kernel: 3 });
      readonly fc = new layers.Linear(4, 5);
      forward(x: Feature) {
        const y = ops.conv(x, { weight: this.conv.weight, bias: norm.bias }, { padding: 1 });
        return this.fc.forward(ops.globalAvgPool(ops.relu(ops.batchNorm(y, norm))));
      }
    })();
    const weights = initialize(network);
    const x = image([1, 8, 8, 3], [-1, 2, 0.5, 1, 0.25]);
    const q = await quantize(network, weights, [x]);
    expect(q.tensors.get('conv.weight')?.dtype).to.equal('i8');
    expect(await cosine(network, weights, q, x)).to.be.above(0.999);
  });

  it('an input that is not finite is an error where a byte would hide it', async () => {
    const network = new Sum();
    const weights = initialize(network);
    const x = image([2, 3, 5, 2], [1, 2, 3]);
    const q = await quantize(network, weights, [x]);
    for (const device of ['cpu', 'reference'] as const) {
      using i8 = new Model(network, q, { device });
      using floats = new Model(network, q, { device, dtype: 'f32' });
      for (const [at, bad] of [
        [0, Number.NaN],
        [58, Infinity],
        [59, -Infinity],
      ] as const) {
        const wrong = image(x.shape, [1, 2, 3]);
        wrong.data[at] = bad;
        await rejects(i8.run(wrong), new RegExp(`^plan: input 0 has ${bad} at ${at}, wanted finite numbers in i8$`));
        expect((await floats.run(wrong)).data.every(Number.isFinite)).to.equal(false);
      }
      expect((await i8.run(x)).data.every(Number.isFinite)).to.equal(true);
      expect((await i8.run(image(x.shape, [3e38, -3e38, 3e38]))).shape).to.deep.equal([2, 3, 5, 1]);
    }
  });

  it('reads weights of 16 bits', async () => {
    const bits = Uint16Array.of(0x3c00, 0xc000, 0x0001, 0x7bff, 0x8000, 0x7c00);
    expect([...toFloats('f16', bits)]).to.deep.equal([1, -2, 2 ** -24, 65504, -0, Infinity]);
    expect(toFloats('f16', Uint16Array.of(0x7e00))[0]).to.be.NaN;
    expect([...toFloats('bf16', Uint16Array.of(0x3f80, 0xc040, 0xff80))]).to.deep.equal([1, -3, -Infinity]);
    expect([...toFloats('i8', Int8Array.of(-3))]).to.deep.equal([-3]);

    const network = new Sum();
    const tensors = new Map<string, MemoryTensor>();
    const floats = initialize(network);
    const half = (x: number) => new Uint16Array(Float32Array.of(x).buffer)[1]!;
    for (const [name, { shape }] of floats.tensors) {
      tensors.set(name, { dtype: 'bf16', shape, data: Uint16Array.from(await floats.read(name), half) });
    }
    const x = image([1, 4, 4, 2], [0, 1, 2, 3, 4, 2, 1]);
    const weights = memoryWeights(tensors);
    expect(await cosine(network, weights, await quantize(network, weights, [x]), x)).to.be.above(0.999);
  });

  for (const [name, options] of [
    ['oct-resnet-26', { alpha: 0.5, width: 16, classes: 10, stem: 'cifar' }],
    ['oct-resnet-50', { alpha: 0.25, width: 16, classes: 100 }],
    ['resnet-26', { width: 16, classes: 10 }],
    ['oct-se-resnet-v2', { alpha: 0.5, width: 16, classes: 10, blocks: [1, 2, 1, 2] }],
    ['oct-densenet', { alpha: 0.25, width: 16, classes: 10, blocks: [2, 3, 2, 2] }],
    ['oct-i3d-26', { alpha: 0.5, width: 16, classes: 10, nonLocal: true }],
  ] as const) {
    it(`${name}: the logits are those of f32 to a thousandth`, async () => {
      const network = buildNetwork(name, options);
      const weights = initialize(network);
      let state = 1;
      const noise = Array.from({ length: 9973 }, () => {
        state = (state * 48271) % 0x7fffffff;
        return (state / 0x7fffffff) * 4 - 2;
      });
      const [, ...extent] = inputShape({ name }, { height: 64, width: 64 });
      const [seen, unseen] = [image([2, ...extent], noise), image([1, ...extent], noise.reverse())];
      const q = await quantize(network, weights, [seen]);
      expect(await cosine(network, weights, q, unseen)).to.be.above(0.999);
      const infos = ({ tensors }: Pick<WeightSource, 'tensors'>) =>
        new Map([...tensors].map(([name, { dtype, shape }]) => [name, { dtype, shape }]));
      const tensors = quantizedTensors(network, weights.tensors, unseen.shape);
      expect(infos({ tensors })).to.deep.equal(infos(q));
    });
  }

  it('an input that is always zero costs the others of its sum nothing', async () => {
    // One low channel, and with these weights it is 0 behind the ReLU.
    const network = buildNetwork('oct-resnet-26', { alpha: 0.05, width: 16, classes: 50 });
    const x = new Tensor('f32', [2, 64, 64, 3], numbers(2 * 64 * 64 * 3, 1));
    const weights = initialize(network, 1);
    expect(await cosine(network, weights, await quantize(network, weights, [x]), x)).to.be.above(0.999); // was .974
  });

  it('refuses what cannot be', async () => {
    const network = new Sum();
    const weights = initialize(network);
    const x = image([1, 2, 2, 2], [1, 2]);
    const q = await quantize(network, weights, [x]);
    await rejects(quantize(network, q, [x]), /^seed 0: quantized already$/);
    await rejects(quantize(network, weights, []), /^quantize: no inputs/);
    await rejects(quantize(network, weights, [1] as never), /^quantize: input 0: got a number, wanted a Tensor/);
    const nan = image([1, 2, 2, 2], [1, Number.NaN]);
    await rejects(quantize(network, weights, [nan]), /^quantize: .*'a\.0\.weight'.* finite$/);
    await rejects(quantize(network, weights, [image([1, 2, 2, 2], [1, Infinity])]), /finite$/);
    await rejects(
      quantize(network, weights, [x, image([2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1, 1, Infinity])]),
      /^quantize: input 2: what/,
    );
    for (const [name, value, message] of [
      [
        'last.weight',
        Number.NaN,
        /^quantize: (input 0: the result is not finite|parameter 'last\.weight' has NaN at 0, wanted finite numbers)$/,
      ],
      ['last.bias', Infinity, /^quantize: (input 0: the result is not finite|parameter 'last\.bias' has Infinity)/],
    ] as const) {
      if (!weights.tensors.has(name)) continue;
      const read = async (key: string) =>
        key === name ? (await weights.read(key)).map(() => value) : weights.read(key);
      await rejects(quantize(network, { ...weights, read: read as typeof weights.read }, [x]), message);
    }
    await rejects(quantize(network, weights, [image([1, 2, 2, 3], [1])]), /channels/);
    await rejects(
      quantize(
        new (class extends Sum {
          readonly more = new layers.Linear(1, 1);
        })(),
        weights,
        [x],
      ),
      /missing "more\.weight"/,
    );
    const signal = AbortSignal.abort(new Error('enough'));
    await rejects(quantize(network, weights, [x], { signal }), /^enough$/);
    async function* failing() {
      yield x;
      throw new Error('no more');
    }
    await rejects(quantize(network, weights, failing()), /^no more$/);
  });

  it('a model wants all that lies beside an i8 weight', async () => {
    const network = new Sum();
    const q = await quantize(network, initialize(network), [image([1, 2, 2, 2], [1, 2])]);
    const tensors = q.tensors as ReadonlyMap<string, MemoryTensor>;
    const model = (change: (tensors: Map<string, MemoryTensor>) => void) => {
      const changed = new Map(tensors);
      change(changed);
      return () => new Model(network, memoryWeights(changed));
    };
    expect(model((all) => all.delete('a.0.weight_scale'))).to.throw(/missing "a\.0\.weight_scale" \[2\]/);
    expect(model((all) => all.delete('last.input_zero_point'))).to.throw(/missing "last\.input_zero_point" \[1\]/);
    const scale: MemoryTensor = { dtype: 'f32', shape: [3], data: new Float32Array(3) };
    expect(model((all) => all.set('b.0.input_scale', scale))).to.throw(/"b\.0\.input_scale" is \[3\], wanted \[1\]/);
    expect(model((all) => all.set('b.1.weight_scale', scale))).to.throw(/extra "b\.1\.weight_scale" \[3\]/);
    const zero: MemoryTensor = { dtype: 'i8', shape: [1], data: new Int8Array(1) };
    expect(model((all) => all.set('a.0.input_zero_point', zero))).to.throw(/"a\.0\.input_zero_point" is i8, wanted u8/);
  });
});

describe('quantized model folders', function () {
  this.timeout(300_000);
  const root = fileURLToPath(new URL('..', import.meta.url));
  const shipped = (name: string) => join(root, `models/cifar10-oct-resnet-26-${name}`);
  let folder: string;
  const inFolder = (name: string) => join(folder, name);
  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'octconv-quantize-'));
    for (const [label, pictures] of Object.entries({ cat: ['cat'], frog: ['coffee', 'rocket'], ship: ['astronaut'] })) {
      mkdirSync(inFolder(`data/${label}`), { recursive: true });
      for (const name of pictures.map((picture) => `${picture}.jpg`)) {
        copyFileSync(join(root, 'test/images', name), inFolder(`data/${label}/${name}`));
      }
    }
    writeFileSync(inFolder('data/README.md'), 'no picture, and no error');
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  const octconv = (...args: string[]) => {
    const cli = join(root, 'dist/cli.js');
    const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args], { encoding: 'utf8', cwd: folder });
    return { code: status, stdout, stderr };
  };
  const toI8 = (...args: string[]) => octconv('quantize', shipped('a50'), '--data', 'data', '--out', 'i8', ...args);

  it('are read as they were written', async () => {
    const options = { alpha: 0.5, width: 8, classes: 3, stem: 'cifar', channels: 3 } as const;
    const network = buildNetwork('oct-resnet-26', options);
    const x = image([1, 32, 32, 3], [-1, 2, 0.5, 1, 0.25]);
    const q = await quantize(network, initialize(network), [x]);
    const config = { network: 'oct-resnet-26', options, input: defaultInput('cifar') };
    await writeModelFolder(inFolder('round'), config, ['a', 'b', 'c'], q);
    const { weights } = await readModelFolder(inFolder('round'));
    expect([...weights.tensors.keys()]).to.have.members([...q.tensors.keys()]);
    for (const [name, { dtype, shape }] of q.tensors) {
      expect(weights.tensors.get(name)).to.deep.include({ dtype, shape });
      expect(await weights.read(name)).to.deep.equal(await q.read(name));
    }
    await weights.close();
    using read = await loadModel(inFolder('round'));
    using made = new Model(network, q);
    expect(read.dtype).to.equal('i8');
    expect((await read.run(x)).data).to.deep.equal((await made.run(x)).data);
  });

  it('the command makes one that classifies', () => {
    const { code, stdout, stderr } = toI8();
    expect([code, stderr]).to.deep.equal([0, '']);
    expect(stdout).to.match(/^i8: written: oct-resnet-26, 91 weights in int8, 1,811,080 bytes are 961,735\n/);
    expect(stdout).to.match(
      /\nthe same first guess as in f32 on [34] of 4 pictures, .* \(measured on these\); .* logits 0?\.99\d+\n$/,
    );
    expect(readdirSync(inFolder('i8')).sort()).to.deep.equal(['config.json', 'labels.txt', 'model.safetensors']);
    const [given, made] = [shipped('a50'), inFolder('i8')].map(
      (path) => (name: string) => readFileSync(join(path, name), 'utf8'),
    ) as [(name: string) => string, (name: string) => string];
    expect(made('labels.txt')).to.equal(given('labels.txt'));
    const { options, ...config } = JSON.parse(given('config.json'));
    expect(JSON.parse(made('config.json'))).to.deep.equal({ ...config, options: { ...options, channels: 3 } });
    const { top } = JSON.parse(octconv('classify', 'data/cat/cat.jpg', '--model', 'i8', '--json').stdout).results[0];
    expect(top[0].label).to.equal('cat');
    expect(top[0].probability).to.be.closeTo(0.906, 0.05);
  });

  it('takes as many pictures of each class, and goes on after a bad one', () => {
    expect(JSON.parse(toI8('--images', '3', '--json', '--force').stdout)).to.include({
      weights: 91,
      pictures: 3,
      failed: 0,
    });
    mkdirSync(inFolder('spoilt/frog'), { recursive: true });
    mkdirSync(inFolder('spoilt/cat'));
    copyFileSync(inFolder('data/cat/cat.jpg'), inFolder('spoilt/frog/a.jpg'));
    copyFileSync(inFolder('data/cat/cat.jpg'), inFolder('spoilt/frog/b.jpg'));
    writeFileSync(inFolder('spoilt/cat/z.jpg'), 'text');
    const args = ['quantize', shipped('a0'), '--data', 'spoilt', '--out', 'i8', '--images', '2', '--json', '--force'];
    const { code, stdout, stderr } = octconv(...args);
    expect(code).to.equal(1);
    expect(stderr).to.match(/^octconv: spoilt\/cat\/z\.jpg: [^\n]+\n$/);
    expect(JSON.parse(stdout)).to.include({ pictures: 1, failed: 1, same: 1 });
  });

  it('says in a line what is wrong', () => {
    const fails = ({ code, stdout, stderr }: ReturnType<typeof octconv>, wanted: number, pattern: RegExp) => {
      expect([code, stdout]).to.deep.equal([wanted, '']);
      expect(stderr)
        .to.match(pattern)
        .and.match(/^octconv: [^\n]+\n$/);
    };
    mkdirSync(inFolder('bare'));
    const to = ['--data', 'data', '--out', 'new'];
    expect(toI8('--force').code).to.equal(0);
    fails(toI8(), 1, /i8: has a config\.json already; --force/);
    symlinkSync(shipped('a50'), inFolder('link'));
    fails(
      octconv('quantize', shipped('a50'), '--data', 'data', '--out', 'link', '--force'),
      1,
      /link: is read, as .*; wanted another folder/,
    );
    fails(octconv('quantize', 'i8', ...to), 1, /i8\/model\S*\.safetensors: quantized already/);
    fails(octconv('quantize', 'nowhere', ...to), 1, /nowhere: no such file/);
    fails(octconv('quantize', join(shipped('a0'), 'model.safetensors'), ...to), 1, /no labels, wanted a model folder/);
    fails(octconv('quantize', shipped('a50'), '--data', 'bare', '--out', 'new'), 1, /bare: no pictures/);
    fails(
      octconv('quantize', shipped('a50'), '--data', 'data', '--out', shipped('a50'), '--force'),
      1,
      /wanted another folder/,
    );
    fails(octconv('quantize', shipped('a50'), '--data', 'data'), 2, /'--out <dir>' not specified/);
    fails(toI8('--images', '0'), 2, /wanted an integer of at least 1/);
    expect(existsSync(inFolder('new'))).to.equal(false);
  });
});
