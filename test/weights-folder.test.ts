import { toJsonSchema } from '@valibot/to-json-schema';
import { expect } from 'chai';
import { execFileSync } from 'node:child_process';
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createModel, loadModel } from '../lib/model.js';
import { saveModel } from '../lib/save.js';
import { Tensor } from '../lib/tensor.js';
import {
  configSchema,
  isModelFolder,
  type ModelConfig,
  parseConfig,
  readModelFolder,
  writeModelFolder,
} from '../lib/weights/folder.js';
import { inHalf } from '../lib/weights/half.js';
import { memoryWeights } from '../lib/weights/memory.js';
import { openWeights } from '../lib/weights/source.js';
import { failure } from './expect.js';

const models = fileURLToPath(new URL('../models/', import.meta.url));
const config: ModelConfig = {
  network: 'oct-resnet-26',
  options: { alpha: 0.25, width: 8, classes: 3, stem: 'cifar', channels: 3 },
  input: { height: 32, width: 24, resize: 40, interpolation: 'bicubic', scale: 1, mean: [1, 2, 3], std: [4, 5, 6] },
};
const labels = ['cat', 'dog', 'Österreich 1'];
const weights = memoryWeights(new Map([['w', { dtype: 'f32' as const, shape: [2], data: new Float32Array([1, 2]) }]]));

describe('model folders', () => {
  let folder: string;
  before(async () => {
    folder = join(await mkdtemp(join(tmpdir(), 'octconv-folder-')), 'new/model');
    await writeModelFolder(folder, config, labels, weights);
  });
  after(() => rm(join(folder, '../..'), { recursive: true }));

  it('are read as they were written', async () => {
    const model = await readModelFolder(folder);
    expect(model.config).to.deep.equal(config);
    expect(model.labels).to.deep.equal(labels);
    expect(await model.weights.read('w')).to.deep.equal(new Float32Array([1, 2]));
    await model.weights.close();
    expect(await readdir(folder)).to.have.members(['config.json', 'labels.txt', 'model.safetensors']);
  });

  it('are told from files', async () => {
    expect(await isModelFolder(folder)).to.equal(true);
    expect(await isModelFolder(join(folder, 'config.json'))).to.equal(false);
    expect(await isModelFolder(join(folder, 'nothing'))).to.equal(false);
  });

  for (const [name, alpha, tensors] of [
    ['cifar10-oct-resnet-26-a50', 0.5, 292],
    ['cifar10-oct-resnet-26-a0', 0, 147],
  ] as const) {
    it(`ships ${name}, which is the trained one with kernels in f16`, async () => {
      const model = await readModelFolder(join(models, name));
      expect(model.config.network).to.equal('oct-resnet-26');
      expect(model.config.options).to.deep.equal({ alpha, width: 16, classes: 10, stem: 'cifar', channels: 3 });
      expect(model.config.input).to.deep.equal({
        height: 32,
        width: 32,
        resize: 32,
        interpolation: 'bilinear',
        scale: 1 / 255,
        mean: [0.4914, 0.4822, 0.4465],
        std: [0.247, 0.2435, 0.2616],
      });
      expect(model.labels.join(' ')).to.equal('airplane automobile bird cat deer dog frog horse ship truck');
      expect(model.weights.tensors.size).to.equal(tensors);
      const trained = fileURLToPath(new URL(`../../shared/weights/${name}.pth`, import.meta.url));
      if (existsSync(trained)) {
        const source = inHalf(await openWeights(trained), 'f16');
        for (const key of source.tensors.keys())
          expect(await model.weights.read(key)).to.deep.equal(await source.read(key));
        await source.close();
      } else console.log('      not compared with the training: ../shared is not here');
      await model.weights.close();
    });
  }

  it('name the file and the field that is wrong', async () => {
    const copy = `${folder}-copy`;
    await cp(folder, copy, { recursive: true });
    const path = join(copy, 'config.json');
    const text = await readFile(path, 'utf8');
    const change = (key: string, value: unknown) => {
      const changed = JSON.parse(text);
      const [outer, inner] = key.split('.') as [string, string?];
      if (inner === undefined) changed[outer] = value;
      else changed[outer][inner] = value;
      return JSON.stringify(changed);
    };
    const cases: [string, RegExp][] = [
      ['', /not JSON/],
      ['[]', /the file is \[\], wanted an object$/],
      ['['.repeat(1e5) + ']'.repeat(1e5), /the file nests deeper than 16$/],
      [`${'{"input":'.repeat(1e5)}1${'}'.repeat(1e5)}`, /the file nests deeper than 16$/],
      ['{"network": "x"', /not JSON/],
      [change('network', 26), /network is 26/],
      [change('network', undefined), /network is nothing/],
      [change('weights', '../x'), /weights is "\.\.\/x", wanted the name of a file/],
      [
        change('weight', 'x'),
        /unknown field "weight" \(did you mean "weights"\?\), wanted \$schema, network, options, input, weights, labels$/,
      ],
      [change('x'.repeat(1e5), 'x'), /unknown field "x{100,}\.\.\., wanted/],
      [change('options', undefined), /options is nothing, wanted an object/],
      [change('options.depth', 26), /unknown field "options\.depth"/],
      [change('options.alpha', 1), /options\.alpha is 1, wanted a number in \[0, 1\)/],
      [change('options.alpha', '.5'), /options\.alpha is "\.5"/],
      [change('options.alpha', null), /options\.alpha is null/],
      [change('options.width', 0), /options\.width is 0, wanted an integer from 1 to 65536$/],
      [change('options.classes', 2.5), /options\.classes is 2\.5/],
      [change('options.stem', 'deep'), /options\.stem is "deep", wanted "imagenet" or "cifar"$/],
      [change('input', 224), /input is 224, wanted an object/],
      [change('input.height', 0), /input\.height is 0/],
      [change('input.mean', [1, 2]), /input\.mean is \[1,2\]/],
      [change('input.std', [1, 1, 0]), /input\.std\[2\] is 0, wanted a positive number$/],
      [change('input.scale', 1e300), /input\.scale is 1e\+300/],
      [
        change('input.scale', 1 / 255),
        /input\.mean is \[1,2,3\], but the scale 1\/255 makes pictures 0 \.\. 1: wanted/,
      ],
      [change('input.men', [1, 2, 3]), /unknown field "input\.men" \(did you mean "mean"\?\), wanted height, /],
      [change('input.bgr', true), /unknown field "input\.bgr"/],
      [
        change('input', { height: 32, width: 32, channels: 'gray' }),
        /config\.json: options\.channels is 3, wanted 1: input\.channels is "gray"$/,
      ],
      [change('options.channels', 4), /options\.channels is 4, wanted 3: input\.channels is left out, which is "rgb"$/],
      [change('input.interpolation', 'nearest'), /input\.interpolation is "nearest"/],
      [change('options.classes', 4), /labels\.txt: 3 labels, wanted 4 \(classes\)$/],
    ];
    for (const [changed, message] of cases) {
      await writeFile(path, changed);
      const error = await failure(readModelFolder(copy));
      expect(error).to.match(message);
      expect(error.startsWith(join(copy, /labels\.txt/.test(error) ? 'labels.txt: ' : 'config.json: '))).to.equal(true);
    }
    await writeFile(path, text);
  });

  it('name what is missing', async () => {
    for (const file of ['model.safetensors', 'labels.txt', 'config.json']) {
      const copy = `${folder}-without`;
      await rm(copy, { recursive: true, force: true });
      await cp(folder, copy, { recursive: true });
      await rm(join(copy, file));
      expect(await failure(readModelFolder(copy))).to.equal(`${join(copy, file)}: no such file`);
    }
  });

  it('take labels with Windows line ends and none that is empty', async () => {
    const copy = `${folder}-labels`;
    await cp(folder, copy, { recursive: true });
    await writeFile(join(copy, 'labels.txt'), 'a\r\nb\r\nc');
    const model = await readModelFolder(copy);
    expect(model.labels).to.deep.equal(['a', 'b', 'c']);
    await model.weights.close();
    await writeFile(join(copy, 'labels.txt'), 'a\n\nc\n');
    expect(await failure(readModelFolder(copy))).to.match(/labels\.txt: line 2 is "", wanted a label$/);
  });

  it('take labels that begin with a byte order mark; Latin-1 is an error', async () => {
    const copy = `${folder}-marked`;
    await cp(folder, copy, { recursive: true });
    await writeFile(join(copy, 'labels.txt'), '\ufeffa\nb\nc\n\n');
    const model = await readModelFolder(copy);
    expect(model.labels).to.deep.equal(['a', 'b', 'c']);
    await model.weights.close();
    await writeFile(join(copy, 'labels.txt'), Buffer.from('ä\nb\nc\n', 'latin1'));
    expect(await failure(readModelFolder(copy))).to.match(/labels\.txt: not UTF-8/);
    await rm(join(copy, 'config.json'));
    execFileSync('mkfifo', [join(copy, 'config.json')]);
    expect(await failure(readModelFolder(copy))).to.match(/config\.json: not a regular file, wanted a file$/);
  });

  it('are replaced only when forced; what else is in the folder stays', async () => {
    const copy = `${folder}-force`;
    await cp(folder, copy, { recursive: true });
    await writeFile(join(copy, 'README'), 'mine');
    expect(await failure(writeModelFolder(copy, config, labels, weights))).to.match(
      /-force: has a config\.json already; --force/,
    );
    await writeModelFolder(copy, config, ['x', 'y', 'z'], weights, { force: true });
    const model = await readModelFolder(copy);
    expect(model.labels).to.deep.equal(['x', 'y', 'z']);
    await model.weights.close();
    const files = (await readdir(copy)).sort();
    expect(files)
      .to.have.length(4)
      .and.include.members(['README', 'config.json', model.config.labels, model.config.weights]);
  });

  it('have as many channels in `options` as in `input`, of which one may be left out', () => {
    const channelsOf = (options: object, input: object) => {
      const { options: has, input: order } = parseConfig(
        JSON.stringify({ network: 'resnet-18', options, input: { height: 32, width: 32, ...input } }),
        'config.json',
      );
      return [has.channels, order.channels];
    };
    expect(channelsOf({}, {})).to.deep.equal([3, undefined]);
    expect(channelsOf({}, { channels: 'gray' })).to.deep.equal([1, 'gray']);
    expect(channelsOf({ channels: 1 }, {})).to.deep.equal([1, 'gray']);
    expect(channelsOf({ channels: 3 }, { channels: 'bgr' })).to.deep.equal([3, 'bgr']);
    expect(() => channelsOf({ channels: 1 }, { channels: 'rgb' })).to.throw(
      'config.json: options.channels is 1, wanted 3: input.channels is "rgb"',
    );
  });

  it('have a list of `temporalKernels` for each of the four layers', () => {
    const options = { temporalKernels: [[3], [3], [3]] };
    const text = JSON.stringify({ network: 'oct-i3d-26', options, input: { height: 32, width: 32, frames: 8 } });
    expect(() => parseConfig(text, 'config.json')).to.throw(
      /^config\.json: options\.temporalKernels is \[\[3\],\[3\],\[3\]\], wanted four lists of integers$/,
    );
  });

  it('have no dictionaries: `key` is an error', async () => {
    const path = join(models, 'cifar10-oct-resnet-26-a50');
    expect(await failure(loadModel(path, { key: 'ema' }))).to.equal(
      `${path}: no .pth file, only those have dictionaries as "ema"`,
    );
  });

  it('have a JSON schema, which ships', async () => {
    const file = fileURLToPath(new URL('../schemas/config.schema.json', import.meta.url));
    const schema = toJsonSchema(configSchema, { typeMode: 'input' });
    if (process.env.OCTCONV_UPDATE) await writeFile(file, `${JSON.stringify(schema, null, 2)}\n`);
    expect(JSON.parse(await readFile(file, 'utf8'))).to.deep.equal(schema);
  });

  it('are made of a model', async () => {
    const path = `${folder}-saved`;
    using made = createModel('oct-resnet-26', { width: 8, classes: 3, stem: 'cifar', seed: 3 });
    await saveModel(path, made);
    using read = await loadModel(path);
    const x = Tensor.zeros('f32', [1, 32, 32, 3]);
    expect((await read.run(x)).data).to.deep.equal((await made.run(x)).data);
    expect([read.name, read.input, read.labels]).to.deep.equal([
      made.name,
      made.input,
      ['class 0', 'class 1', 'class 2'],
    ]);
    expect(await failure(saveModel(path, read))).to.match(/-saved: has a config\.json already/);
    read.labels = ['a', 'b', 'c'];
    await saveModel(path, read, { force: true });
    using again = await loadModel(path);
    expect([again.labels, (await again.run(x)).data]).to.deep.equal([['a', 'b', 'c'], (await made.run(x)).data]);
    made.name = undefined;
    expect(await failure(saveModel(`${path}-2`, made))).to.match(/the model has no name, wanted a registered network/);
  });

  it('are not written where something is wrong', async () => {
    const path = `${folder}-bad`;
    expect(await failure(writeModelFolder(path, config, ['one'], weights))).to.match(/labels\.txt: 1 labels, wanted 3/);
    const options = { ...config.options, alpha: 2 };
    expect(await failure(writeModelFolder(path, { ...config, options }, labels, weights))).to.match(
      /options\.alpha is 2/,
    );
    expect(existsSync(path)).to.equal(false);
    expect(await failure(writeModelFolder(join(folder, 'config.json'), config, labels, weights))).to.match(
      /config\.json: exists/,
    );
  });
});
