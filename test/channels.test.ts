/** Networks whose input has other channels than three: grey pictures, and what is no picture. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import sharp from 'sharp';
import { countFlops } from '../lib/flops.js';
import { toNCHW } from '../lib/layout.js';
import { createModel, loadModel, record } from '../lib/model.js';
import { buildNetwork, networkNames } from '../lib/models/index.js';
import { inferOptions, resolveOptions } from '../lib/models/infer.js';
import { saveModel } from '../lib/save.js';
import { Tensor } from '../lib/tensor.js';
import { initialize } from '../lib/weights/random.js';
import { writeSafetensors } from '../lib/weights/safetensors.js';
import { numbers } from './cases.js';
import { error, failure } from './expect.js';

const cli = fileURLToPath(new URL('../dist/cli.js', import.meta.url));

describe('input channels', function () {
  this.timeout(60_000);
  let folder: string;
  const inFolder = (name: string) => join(folder, name);
  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'octconv-channels-'));
    const colours = sharp(fileURLToPath(new URL('images/cat.jpg', import.meta.url))).resize(40, 30);
    for (const name of ['data/even', 'data/odd']) mkdirSync(inFolder(name), { recursive: true });
    await colours.toFile(inFolder('data/even/colour.png'));
    await colours.clone().greyscale().toColourspace('b-w').toFile(inFolder('data/odd/grey.png'));
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  function octconv(...args: string[]) {
    const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args], { encoding: 'utf8', cwd: folder });
    return { code: status, stdout, stderr };
  }

  const small = { width: 8, classes: 2, stem: 'cifar', channels: 1 } as const;

  for (const name of networkNames.filter((name) => /^(oct-)?(resnet-(18|26)|(se-)?resnet-v2|densenet)$/.test(name))) {
    it(`${name}: only the stem differs`, async () => {
      const blocks = /\d$/.test(name) ? {} : { blocks: [1, 1, 1, 1] };
      const options = { width: 8, classes: 2, ...blocks };
      const flops = (channels: number) =>
        countFlops(record(buildNetwork(name, { ...options, channels }), [1, 64, 64, channels]));
      const [one, three] = [flops(1), flops(3)];
      expect(three.parameters - one.parameters).to.equal(2 * 8 * 7 * 7);
      expect(three.multiplyAdds - one.multiplyAdds).to.equal(2 * 8 * 7 * 7 * 32 * 32);
      using model = createModel(name, { ...options, channels: 1 });
      expect(model.input).to.include({ channels: 'gray' });
      expect([model.input?.mean.length, model.input?.std.length]).to.deep.equal([1, 1]);
      expect((await model.run(Tensor.zeros('f32', [2, 64, 64, 1]))).shape).to.deep.equal([2, 2]);
      expect(await failure(model.run(Tensor.zeros('f32', [1, 64, 64, 3])))).to.match(/1 input channels?, got/);
    });
  }

  for (const name of ['resnet-18', 'oct-resnet-26'] as const) {
    describe(name, () => {
      const weights = initialize(buildNetwork(name, small), 1);
      const file = () => inFolder(`${name}.safetensors`);
      before(() => writeSafetensors(file(), weights));

      it('is read off the weights, and must agree with what is said', async () => {
        expect(inferOptions(weights).options).to.include(small);
        expect(() => resolveOptions(weights, { channels: 3 })).to.throw('channels 3 was asked for, the weights have 1');
        expect(resolveOptions(weights, { channels: 1 }).network).to.equal(name);
        using model = await loadModel(file());
        using made = createModel(name, { ...small, seed: 1 });
        expect([model.options, model.input]).to.deep.equal([made.options, made.input]);
        const x = new Tensor('f32', [2, 9, 11, 1], numbers(198, 1));
        expect((await model.run(x)).data).to.deep.equal((await made.run(x)).data);
      });

      it('classifies grey and coloured pictures, from a model folder too', async () => {
        using model = createModel(name, { ...small, seed: 1 });
        await saveModel(inFolder(`${name}-saved`), model);
        using read = await loadModel(inFolder(`${name}-saved`));
        const pictures = ['data/even/colour.png', 'data/odd/grey.png'].map(inFolder);
        const [colour, grey] = await model.classify(pictures);
        const probability = (one: typeof grey) => one?.top.find(({ index }) => index === 0)?.probability;
        // Luma of its own, and of sharp: to a level or two.
        expect(probability(colour)).to.be.closeTo(probability(grey) ?? 0, 0.02);
        const again = await read.classify(pictures);
        expect(again.map(({ top }) => top)).to.deep.equal([colour?.top, grey?.top]);
      });

      it('gives the same in onnxruntime', async () => {
        using model = createModel(name, { ...small, seed: 1 });
        const x = new Tensor('f32', [2, 32, 32, 1], numbers(2048, 1));
        const session = await ort.InferenceSession.create(await model.toOnnx([1, 32, 32, 1]));
        const { logits } = await session.run({ input: new ort.Tensor('float32', toNCHW(x).data, [2, 1, 32, 32]) });
        expect(error((await model.run(x)).data, logits?.data as Float32Array)).to.be.below(1e-4);
        await session.release();
      });

      it('is converted, shown, evaluated and exported on the command line', () => {
        const converted = octconv('convert', file(), name, '--mean', '.1307', '--std', '.3081', '--json');
        expect(converted.stderr).to.equal('');
        const { options, input } = JSON.parse(converted.stdout);
        expect(options).to.include({ channels: 1 });
        expect(input).to.deep.include({ channels: 'gray', mean: [0.1307], std: [0.3081] });
        const { pictures, failed } = JSON.parse(octconv('eval', '--model', name, '--data', 'data', '--json').stdout);
        expect([pictures, failed]).to.deep.equal([2, 0]);
        expect(JSON.parse(octconv('info', '--model', name, '--json').stdout).input).to.deep.equal([1, 32, 32, 1]);
        const quantized = octconv('quantize', name, '--data', 'data', '--out', `${name}-i8`);
        expect([quantized.code, quantized.stderr]).to.deep.equal([0, '']);
        const exported = octconv('export', '--model', name, '--onnx', 'grey.onnx', '--json');
        expect(JSON.parse(exported.stdout).input).to.deep.equal([null, 1, 32, 32]);
        expect(octconv('convert', file(), 'blue', '--bgr').stderr).to.contain('wanted three numbers for "bgr"');
      });
    });
  }

  it('that no picture has: everything but pictures', async () => {
    using made = createModel('resnet-18', { ...small, channels: 4 });
    expect(made.input).to.equal(undefined);
    expect(await failure(made.classify(inFolder('data/odd/grey.png')))).to.match(
      /^classify: the model has no preprocessing/,
    );
    expect(await failure(saveModel(inFolder('four'), made))).to.match(
      /the model has no input, wanted a registered network/,
    );
    await writeSafetensors(
      inFolder('four.safetensors'),
      initialize(buildNetwork('resnet-18', { ...small, channels: 4 })),
    );
    using read = await loadModel(inFolder('four.safetensors'));
    const x = new Tensor('f32', [1, 8, 8, 4], numbers(256, 1));
    expect((await read.run(x)).data).to.deep.equal((await made.run(x)).data);
    expect(JSON.parse(octconv('info', 'four.safetensors', '--json').stdout).input).to.deep.equal([1, 32, 32, 4]);
    expect(octconv('convert', 'four.safetensors', 'four').stderr).to.equal(
      'octconv: four.safetensors: the network takes 4 channels, wanted 3 or 1, which pictures have\n',
    );
  });
});
