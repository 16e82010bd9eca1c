/** The command line as a user meets it: what it prints, where, and with which exit code. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, existsSync, linkSync, mkdirSync, mkdtempSync, readdirSync, readFileSync } from 'node:fs';
import { rmdirSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import sharp, { type Sharp } from 'sharp';
import { angularError, quantizeOnNoise, relativeError } from '../lib/bench/measure.js';
import { countFlops } from '../lib/flops.js';
import { loadModel, Model, record } from '../lib/model.js';
import { buildNetwork, networkNames, resolveNetworkOptions } from '../lib/models/index.js';
import { readNpy, writeNpy } from '../lib/npy.js';
import { Tensor } from '../lib/tensor.js';
import { readModelFolder, writeModelFolder } from '../lib/weights/folder.js';
import { initialize } from '../lib/weights/random.js';
import { levels } from './levels.js';
import { skip } from './skip.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const cat = join(root, 'test/images/cat.jpg');
const shipped = join(root, 'models/cifar10-oct-resnet-26-a50');
const golden = join(root, 'test/golden');
const checkpoint = join(golden, 'oct-resnet-26-w8-a25-cifar');

let folder: string;
const inFolder = (name: string) => join(folder, name);

const cli = join(root, 'dist/cli.js');
const words = (text: string) => text.split(' ');

function octconv(...args: string[]) {
  return octconvWith({}, ...args);
}

function octconvWith(variables: NodeJS.ProcessEnv, ...args: string[]) {
  const env = { ...process.env, ...variables };
  const options = { encoding: 'utf8', cwd: folder, env, timeout: 300_000 } as const; // an endless loop is a failure
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...args], options);
  return { code: status, stdout, stderr };
}

/** The same on a terminal: what it shows there. */
function onTerminal(variables: NodeJS.ProcessEnv, ...args: string[]): string {
  return onTerminalOf(80, variables, ...args);
}

function onTerminalOf(columns: number, variables: NodeJS.ProcessEnv, ...args: string[]): string {
  const { NO_COLOR: _, FORCE_COLOR: __, CI: ___, ...others } = process.env; // Node shows no colours in CI
  const env = { ...others, TERM: 'xterm', ...variables };
  const command = `stty cols ${columns}; ${[process.execPath, cli, ...args].map((arg) => `'${arg}'`).join(' ')}`;
  return spawnSync('script', ['-qec', command, '/dev/null'], { encoding: 'utf8', cwd: folder, env }).stdout;
}
const noTerminal = Boolean(spawnSync('script', ['--version']).error);

/** One line on stderr, no stack, nothing on stdout. */
function expectError(result: ReturnType<typeof octconv>, code: number, text: string | RegExp): void {
  expect(result.stderr).to.match(/^octconv: [^\n]+\n$/);
  if (typeof text === 'string') expect(result.stderr).to.contain(text);
  else expect(result.stderr).to.match(text);
  expect(result.stderr).to.not.match(/ at .*:\d+/);
  expect(result.stdout).to.equal('');
  expect(result.code).to.equal(code);
}

describe('command line', function () {
  this.timeout(60_000);
  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'octconv-cli-'));
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  describe('classify', () => {
    it('shows five guesses, the time, the device and the instruction set', () => {
      const { code, stdout, stderr } = octconv('classify', cat);
      expect(code, stderr).to.equal(0);
      expect(stdout).to.match(/cat\.jpg {2}[\d.]+ ms\n {2}cat +90\.6 %.*\n {2}dog +6\.2 %.*\n {2}frog +0\.8 %/);
      expect(stdout).to.match(
        new RegExp(`[\\d.]+ ms per picture in the network, cpu (${levels.join('|')}), f32, \\d+ threads?\n$`),
      );
      expect(stdout).to.not.contain('\x1b');
    });

    it('prints one JSON object and nothing else', () => {
      const flags = words('--json --top 2 --device reference --threads 1');
      const { code, stdout, stderr } = octconv('classify', cat, ...flags);
      expect([code, stderr]).to.deep.equal([0, '']);
      const { results, device, threads } = JSON.parse(stdout);
      expect([device, threads]).to.deep.equal(['reference', 1]);
      expect(results[0].top.map((guess: { label: string }) => guess.label)).to.deep.equal(['cat', 'dog']);
      expect(results[0].top[0].probability).to.be.closeTo(0.906, 0.001);
    });

    it('computes in bf16, and in i8 where the weights are', () => {
      const { dtype, results } = JSON.parse(octconv('classify', cat, ...words('--dtype bf16 --json')).stdout);
      expect([dtype, results[0].top[0].label]).to.deep.equal(['bf16', 'cat']);
      expectError(octconv('classify', cat, '--dtype', 'i8'), 1, "dtype 'i8': wanted quantized weights");
      expectError(octconv('classify', cat, '--dtype', 'f64'), 2, 'Allowed choices are f32, bf16, f16, i8');
      expectError(octconv('classify', cat, '--dtype', 'f16'), 1, "dtype 'f16': device 'cpu' (");
    });

    it('reports bad pictures, classifies the others, and ends with 1', () => {
      writeFileSync(inFolder('text.jpg'), 'this is no picture');
      writeFileSync(inFolder('empty.png'), '');
      writeFileSync(inFolder('short.jpg'), readFileSync(cat).subarray(0, 9000));
      const bad = ['text.jpg', 'empty.png', 'short.jpg', 'missing.jpg'];
      const { code, stdout, stderr } = octconv('classify', cat, ...bad, cat);
      expect(code).to.equal(1);
      expect(stdout.match(/90\.6 %/g)).to.have.length(2);
      const lines = stderr.trim().split('\n');
      expect(lines.map((line) => line.split(': ')[1])).to.deep.equal(bad);
      for (const line of lines) expect(line).to.match(/^octconv: \S+: .+/);
    });

    it('prints one JSON object of what was and what was not a picture', () => {
      writeFileSync(inFolder('text.jpg'), 'this is no picture');
      const { code, stdout, stderr } = octconv('classify', 'text.jpg', cat, '--json');
      expect(code).to.equal(1);
      expect(stderr).to.match(/^octconv: text\.jpg: [^\n]+\n$/);
      const { results, failures } = JSON.parse(stdout);
      expect([results.length, failures.length, failures[0].file]).to.deep.equal([1, 1, 'text.jpg']);
    });

    it('says a name of control characters in one line, and gives the terminal none of them', () => {
      expectError(
        octconv('classify', 'two\nlines\x1b[2J.jpg'),
        1,
        'octconv: two\\u000alines\\u001b[2J.jpg: no such file',
      );
      copyFileSync(cat, inFolder('red\x1b[31m.jpg'));
      expect(octconv('classify', 'red\x1b[31m.jpg').stdout).to.match(/^red\\u001b\[31m\.jpg {2}/);
      const labels = Array.from({ length: 10 }, (_, i) => `\x1b]0;label ${i}\x9b31m`);
      writeFileSync(inFolder('wild.txt'), labels.join('\n'));
      expect(octconv('convert', `${checkpoint}.pth`, 'wild', '--labels', 'wild.txt').stderr).to.equal('');
      for (const json of [[], ['--json']]) {
        const { code, stdout } = octconv('classify', cat, '--model', 'wild', ...json);
        expect(code).to.equal(0);
        expect(stdout.replaceAll('\n', ''))
          .to.match(/label \d/)
          .and.not.match(/\p{Cc}/u);
      }
    });

    it('has colours on a terminal, unless NO_COLOR is set', function () {
      if (noTerminal) skip(this, 'terminal');
      const bold = '\x1b[1m';
      expect(onTerminal({}, 'classify', cat)).to.contain(bold + cat);
      expect(onTerminal({ NO_COLOR: '1' }, 'classify', cat))
        .to.contain(cat)
        .and.not.contain('\x1b');
    });

    it('takes pictures of every kind', async () => {
      const picture = sharp(cat).resize(40, 30);
      const kinds: Record<string, Sharp> = {
        'grey.png': picture.clone().greyscale(),
        'cmyk.jpg': picture.clone().toColourspace('cmyk').jpeg(),
        'deep.png': picture.clone().toColourspace('rgb16').png(),
        'glass.png': picture.clone().ensureAlpha(0.5).png(),
        'web.webp': picture.clone().webp(),
        'dot.png': sharp({ create: { width: 1, height: 1, channels: 3, background: 'red' } }).png(),
      };
      for (const [name, image] of Object.entries(kinds)) await image.toFile(inFolder(name));
      const { code, stdout, stderr } = octconv('classify', '--json', ...Object.keys(kinds));
      expect([code, stderr]).to.deep.equal([0, '']);
      expect(JSON.parse(stdout).results).to.have.length(6);
    });

    it('obeys the EXIF orientation', async () => {
      await sharp(cat).rotate(90).withMetadata({ orientation: 8 }).toFile(inFolder('turned.jpg'));
      const { stdout } = octconv('classify', 'turned.jpg', '--json');
      expect(JSON.parse(stdout).results[0].top[0].label).to.equal('cat');
    });

    it('ends with 1 for a missing model, with 2 without a picture', () => {
      expectError(octconv('classify', cat, '--model', 'nowhere'), 1, 'nowhere: no such file');
      expectError(octconv('classify'), 2, "missing required argument 'source'");
      expectError(octconv('classify', cat, '--device', 'gpu'), 2, 'wanted auto, cpu, cuda, cudnn, reference');
      expectError(octconv('classify', cat, '--threads', '0'), 2, 'wanted an integer of at least 1');
      expectError(octconv('classify', cat, '--what'), 2, "unknown option '--what'");
      expectError(octconv('classify', cat, '--thread', '1'), 2, "unknown option '--thread' (Did you mean --threads?)");
      expectError(
        octconv('classify', cat, '--device', 'cpuu'),
        2,
        'wanted auto, cpu, cuda, cudnn, reference (did you mean "cpu"?)',
      );
    });
  });

  describe('run', () => {
    const weights = ['--weights', `${checkpoint}.pth`];
    const input = ['--input', `${checkpoint}.x.npy`];

    const compare = async (file: string) => {
      const [got, wanted] = [await readNpy(inFolder(file)), await readNpy(`${checkpoint}.y.npy`)];
      expect(got.shape).to.deep.equal(wanted.shape);
      const largest = Math.max(...wanted.data.map(Math.abs));
      for (const [i, y] of wanted.data.entries()) expect(got.data[i]).to.be.closeTo(y, 1e-4 * largest);
    };

    it('reads every option off the weights', async () => {
      const { code, stdout, stderr } = octconv('run', ...weights, ...input, '--output', 'y.npy', '--json');
      expect([code, stderr]).to.deep.equal([0, '']);
      const { network, options } = JSON.parse(stdout);
      expect(network).to.equal('oct-resnet-26');
      expect(options).to.deep.equal({ alpha: 0.25, width: 8, classes: 10, stem: 'cifar', channels: 3 });
      await compare('y.npy');
    });

    it('takes options that agree, on the reference too', async () => {
      const flags = words('--network oct-resnet-26 --alpha .25 --width 8 --classes 10 --stem cifar --device reference');
      const { code, stderr } = octconv('run', ...flags, ...weights, ...input, '--output', 'y2.npy');
      expect(code, stderr).to.equal(0);
      await compare('y2.npy');
    });

    it('takes NCHW', async () => {
      const { shape, data } = await readNpy(`${checkpoint}.x.npy`);
      const [n = 0, h = 0, w = 0, c = 0] = shape;
      const moved = data.map((_, i) => {
        const [pixel, channel, image] = [i % (h * w), Math.floor(i / (h * w)) % c, Math.floor(i / (h * w * c))];
        return data[(image * h * w + pixel) * c + channel] as number;
      });
      await writeNpy(inFolder('nchw.npy'), [n, c, h, w], moved);
      const { code, stderr } = octconv('run', ...weights, ...words('--layout nchw --input nchw.npy --output y3.npy'));
      expect(code, stderr).to.equal(0);
      await compare('y3.npy');
    });

    it('gives the same logits for a converted folder', async () => {
      expect(octconv('convert', `${checkpoint}.pth`, 'folder').code).to.equal(0);
      const { code, stderr } = octconv('run', ...input, ...words('--model folder --output y4.npy'));
      expect(code, stderr).to.equal(0);
      await compare('y4.npy');
    });

    it('has random weights by seed', async () => {
      const run = (seed: string, file: string) =>
        octconv('run', ...words('--network resnet-26 --width 8 --classes 5 --seed'), seed, ...input, '--output', file);
      const logits = async (seed: string, file: string) => {
        expect(run(seed, file).code).to.equal(0);
        return readNpy(inFolder(file));
      };
      const [a, b, c] = [await logits('1', 'a.npy'), await logits('1', 'b.npy'), await logits('2', 'c.npy')];
      expect(a.data).to.deep.equal(b.data);
      expect(a.data).to.not.deep.equal(c.data);
    });

    it('says where weights are random, and nowhere else', () => {
      const flags = words('--network resnet-26 --width 8 --classes 5');
      const run = (...args: string[]) => octconv('run', ...input, '--output', 'r.npy', ...args).stdout;
      expect(run(...flags)).to.match(/^r\.npy: logits \[3,5\] of random weights, /);
      expect(JSON.parse(run(...flags, '--json')).weights).to.equal('random');
      expect(run(...weights)).to.match(/^r\.npy: logits \[3,10\], /);
      expect(JSON.parse(run(...weights, '--json'))).to.not.have.property('weights');
      expect(octconv('info', 'resnet-26').stdout).to.match(/\n {2}weights +none given; /);
      expect(octconv('info', shipped).stdout).to.not.match(/\n {2}weights/);
    });

    it('says on a terminal that it quantizes', function () {
      if (noTerminal) skip(this, 'terminal');
      const flags = words('--network resnet-50 --dtype i8 --output q.npy');
      expect(onTerminal({}, 'run', ...input, ...flags)).to.contain('quantizing random weights');
    });

    it('quantizes random weights where i8 is wanted', async () => {
      const flags = words('--network oct-resnet-26 --width 8 --stem cifar --classes 10 --json --dtype');
      const run = async (dtype: string) => {
        const { stdout, stderr } = octconv('run', ...flags, dtype, ...input, '--output', `${dtype}.npy`);
        expect(JSON.parse(stdout).dtype, stderr).to.equal(dtype);
        return (await readNpy(inFolder(`${dtype}.npy`))).data;
      };
      const [f32, i8] = [await run('f32'), await run('i8')];
      expect(angularError(i8, f32)).to.be.within(1e-9, 0.02);
    });

    it('names what contradicts', () => {
      const bare = (...flags: string[]) => octconv('run', ...input, '--output', 'z.npy', ...flags);
      const run = (...flags: string[]) => bare(...weights, ...flags);
      expectError(run('--alpha', '.5'), 1, 'alpha 0.5 was asked for, the weights have 0.25');
      expectError(run('--classes', '7'), 1, 'classes 7 was asked for, the weights have 10');
      expectError(run('--network', 'resnet-26'), 1, /network "?resnet-26"? was asked for/);
      expectError(run('--model', shipped), 2, '--model says it all: no --weights beside it');
      expectError(bare('--network', 'oct-resnet-26', '--alpha', '1'), 1, 'alpha 1');
      expectError(bare(), 2, 'one of --network, --weights and --model');
      expectError(run('--layout', 'chwn'), 2, 'Allowed choices are nhwc, nchw');
      expect(existsSync(inFolder('z.npy'))).to.equal(false);
    });

    it('refuses inputs that are no images, and files that cannot be', async () => {
      await writeNpy(inFolder('flat.npy'), [2, 3], new Float32Array(6));
      await writeNpy(inFolder('deep.npy'), [1, 8, 8, 4], new Float32Array(256));
      const run = (from: string, to = 'z.npy') => octconv('run', '--model', shipped, '--input', from, '--output', to);
      expectError(run('flat.npy'), 1, 'flat.npy: shape [2,3], wanted [N,H,W,C]');
      expectError(run('deep.npy'), 1, 'deep.npy: shape [1,8,8,4], wanted [N,H,W,C] with 3 channels');
      await writeNpy(inFolder('second.npy'), [1, 3, 8, 8], new Float32Array(192));
      expectError(run('second.npy'), 1, 'with 3 channels; this looks like [N,C,H,W]: --layout nchw');
      expectError(run('nothing.npy'), 1, 'nothing.npy: no such file');
      expectError(run(cat), 1, 'not a .npy file');
      expectError(run(`${checkpoint}.x.npy`, 'no/where/y.npy'), 1, 'no/where/y.npy: there is no folder no/where');
      expectError(run('flat.npy', 'flat.npy'), 1, 'flat.npy: is read, as flat.npy; wanted another file');
      expectError(run('second.npy', join(shipped, 'model.safetensors')), 1, 'model.safetensors; wanted another file');
    });
  });

  describe('eval', () => {
    before(() => {
      for (const name of ['data/cat', 'data/dog', 'spoilt/cat', 'spoilt/dog']) {
        mkdirSync(inFolder(name), { recursive: true });
        copyFileSync(cat, inFolder(`${name}/picture.jpg`));
      }
      writeFileSync(inFolder('spoilt/cat/z.jpg'), 'text');
    });

    it('counts what is right, by the names of the folders', () => {
      const { code, stdout, stderr } = octconv('eval', '--model', shipped, '--data', 'data', '--json');
      expect([code, stderr]).to.deep.equal([0, '']);
      expect(JSON.parse(stdout)).to.include({ pictures: 2, failed: 0, top1: 1, top5: 2, dtype: 'f32' });
      const shown = octconv('eval', '--model', shipped, '--data', 'data').stdout;
      expect(shown).to.match(/^top-1 1 of 2, 50\.0 %\ntop-5 2 of 2, 100\.0 %\n/);
    });

    it('follows links, of pictures and of folders, and leaves hidden files out', () => {
      mkdirSync(inFolder('linked/cat'), { recursive: true });
      symlinkSync(cat, inFolder('linked/cat/link.jpg'));
      symlinkSync(inFolder('data/dog'), inFolder('linked/dog'));
      writeFileSync(inFolder('linked/cat/.DS_Store'), 'text');
      const { code, stdout, stderr } = octconv('eval', '--model', shipped, '--data', 'linked', '--json');
      expect([code, stderr]).to.deep.equal([0, '']);
      expect(JSON.parse(stdout)).to.include({ pictures: 2, failed: 0, top1: 1 });
    });

    it('goes on after a bad picture and ends with 1', () => {
      const { code, stdout, stderr } = octconv('eval', '--model', shipped, '--data', 'spoilt', '--json');
      expect(code).to.equal(1);
      expect(stderr).to.contain('z.jpg');
      expect(JSON.parse(stdout)).to.include({ pictures: 2, failed: 1 });
    });

    it('passes over what is no picture by its name, and says how many', () => {
      mkdirSync(inFolder('littered/cat'), { recursive: true });
      copyFileSync(cat, inFolder('littered/cat/picture.jpg'));
      for (const name of ['Thumbs.db', 'notes.txt']) writeFileSync(inFolder(`littered/cat/${name}`), 'text');
      const run = (...json: string[]) => octconv('eval', '--model', shipped, '--data', 'littered', ...json);
      const { code, stdout, stderr } = run('--json');
      expect([code, stderr]).to.deep.equal([0, '']);
      expect(JSON.parse(stdout)).to.include({ pictures: 1, failed: 0, others: 2 });
      expect(run().stdout).to.match(/\npassed over, no pictures by their names: 2 files\n/);
    });

    it('says at an interrupt what is done so far, and ends by it', async () => {
      mkdirSync(inFolder('many/cat'), { recursive: true });
      for (const name of ['a1', 'a2', 'a3', ...Array.from({ length: 3000 }, (_, i) => `c${i}`)])
        symlinkSync(cat, inFolder(`many/cat/${name}.jpg`));
      writeFileSync(inFolder('many/cat/b.jpg'), 'text');
      const child = spawn(process.execPath, [cli, ...words('eval --batch 1 --data many --model'), shipped], {
        cwd: folder,
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      const ended = once(child, 'exit');
      child.stderr.once('data', () => child.kill('SIGINT')); // of b.jpg, behind three others
      const shown = (await child.stdout.toArray()).join('');
      expect((await ended)[1]).to.equal('SIGINT');
      expect(shown).to.match(/^interrupted after [\d,]+ of 3,004 pictures\ntop-1 [\d,]+ of [\d,]+, 100\.0 %\ntop-5 /);
    });

    it('has a progress bar on a terminal, which errors leave alone', function () {
      if (noTerminal) skip(this, 'terminal');
      for (const columns of [50, 60, 80]) {
        const shown = onTerminalOf(columns, {}, 'eval', '--model', shipped, '--data', 'spoilt').replaceAll('\r', '');
        const bars = shown.match(/[█░]+ \d\/3 pictures[^\p{Cc}]*/gu) ?? [];
        expect(bars).to.not.be.empty;
        for (const bar of bars) expect(bar.length).to.be.within(20, columns - 1);
        expect(shown).to.match(/3\/3 pictures, top-1 50\.0 %/);
        // The reason has a line of its own, whole.
        expect(shown).to.match(/\dKoctconv: spoilt\/cat\/z\.jpg: is not a picture, wanted JPEG, PNG or WebP\n/);
      }
    });

    it('counts by index where labels repeat, and takes folders in their order then', () => {
      const { labels } = { labels: readFileSync(join(shipped, 'labels.txt'), 'utf8').replace('dog', 'cat') };
      writeFileSync(inFolder('twice.txt'), labels);
      expect(octconv('convert', join(shipped, 'model.safetensors'), 'twice', '--labels', 'twice.txt').code).to.equal(0);
      for (const [i, name] of 'abcdefghij'.split('').entries()) {
        mkdirSync(inFolder(`ordered/${name}/inner`), { recursive: true });
        if (i === 3) copyFileSync(cat, inFolder(`ordered/${name}/inner/picture.jpg`));
      }
      const { code, stdout, stderr } = octconv('eval', '--model', 'twice', '--data', 'ordered', '--json');
      expect([code, stderr]).to.deep.equal([0, '']);
      expect(JSON.parse(stdout)).to.include({ pictures: 1, top1: 1, classesBy: 'order' });
      expect(octconv('eval', '--model', 'twice', '--data', 'ordered').stdout).to.contain(
        'classes by their order, as in ImageFolder',
      );
      expectError(octconv('eval', '--model', 'twice', '--data', 'data'), 1, '"dog" is no label of the model');
      mkdirSync(inFolder('single/cat'), { recursive: true });
      expectError(
        octconv('eval', '--model', 'twice', '--data', 'single'),
        1,
        '"cat" is the name of several classes, and 1 folders are not its 10',
      );
    });

    it('logits that are not finite are an error that names the picture and the class', async () => {
      const { config, labels, weights } = await readModelFolder(shipped);
      const large = new Map([
        ['fc.bias', new Float32Array(10).fill(3e38)],
        ['fc.weight', new Float32Array(10 * 512).fill(3e38)],
      ]);
      await writeModelFolder(inFolder('infinite'), config, labels, {
        tensors: new Map(weights.tensors).set('fc.weight', { dtype: 'f32', shape: [10, 512] }),
        read: async (name) => large.get(name) ?? weights.read(name),
      });
      await weights.close();
      expectError(
        octconv('eval', '--model', 'infinite', '--data', 'data'),
        1,
        /data\/cat\/picture\.jpg: the network gives \S+ for class \d/,
      );
    });

    it('refuses folders that are no labels, and no folders at all', () => {
      mkdirSync(inFolder('other/unicorn'), { recursive: true });
      mkdirSync(inFolder('bare'), { recursive: true });
      expectError(octconv('eval', '--model', shipped, '--data', 'other'), 1, '"unicorn" is no label of the model');
      expectError(
        octconv('eval', '--model', shipped, '--data', 'data/cat'),
        1,
        'data/cat: 1 files and no folders, wanted one folder per class',
      );
      expectError(octconv('eval', '--model', shipped, '--data', 'bare'), 1, 'no pictures');
      expectError(octconv('eval', '--model', shipped, '--data', 'nowhere'), 1, 'nowhere: no such file');
      const isFile = `${cat}: a file, wanted a folder`;
      expectError(octconv('eval', '--model', shipped, '--data', cat), 1, isFile);
      expectError(octconv('quantize', shipped, '--data', cat, '--out', 'never'), 1, isFile);
      expectError(
        octconv('eval', '--model', `${checkpoint}.pth`, '--data', 'data'),
        1,
        'data: 2 folders, and the model has no labels; wanted 10 folders in the order of the classes, or a model folder',
      );
    });
  });

  describe('info', () => {
    it('knows the numbers of the paper', () => {
      const { code, stdout, stderr } = octconv('info', 'oct-resnet-50', '--alpha', '.5', '--json');
      expect([code, stderr]).to.deep.equal([0, '']);
      const { parameters, multiplyAdds, steps } = JSON.parse(stdout);
      expect(parameters).to.equal(25_557_032);
      expect((multiplyAdds / 1e9).toFixed(3)).to.equal('2.367');
      expect(steps).to.be.at.most(58);
    });

    it('shows the options that were left out', () => {
      const { options } = JSON.parse(octconv('info', 'oct-resnet-26', '--width', '8', '--json').stdout);
      expect(options).to.deep.equal({ alpha: 0.5, width: 8, classes: 1000, stem: 'imagenet', channels: 3 });
    });

    it('shows a model folder and a weight file, and the graph before and after', () => {
      for (const target of [shipped, `${checkpoint}.pth`]) {
        const { code, stdout, stderr } = octconv('info', target, '--graph', '--size', '32');
        expect(code, stderr).to.equal(0);
        expect(stdout).to.match(/^oct-resnet-26 alpha/);
        const [, recorded, fused] = stdout.split(/\nrecorded\n|\nafter fusion\n/);
        expect(recorded).to.contain('batchNorm');
        expect(fused).to.contain('octConv').and.not.contain('batchNorm');
      }
      expectError(
        octconv('info', 'oct-resnet50'),
        1,
        'oct-resnet50: no such file, and no network (did you mean "oct-resnet-50"?); info --networks lists those',
      );
    });

    it('shows what the steps of a plan cost', () => {
      const { code, stdout, stderr } = octconv('info', '--model', shipped, ...words('--plan --dtype bf16 --threads 1'));
      expect(code, stderr).to.equal(0);
      expect(stdout).to.match(/\n {2}device +cpu \w+, bf16, 1 thread\n/);
      expect(stdout).to.match(
        /\nplan\n {2}step +op +algorithm +types +products +M MAdd +KiB in +KiB out +KiB weights\n/,
      );
      expect(stdout).to.match(/\n {2}conv1 +octConv +tile .* f32 -> bf16 +(f32|bf16) +[\d.]+ +12 +\d+ +\d+\n/);
      expect(stdout).to.match(
        /\n {2}all +[\d.]+ .*\n.* MiB of weights; a run has .* of activations, .* with scratch\n$/,
      );
      expectError(octconv('info', shipped, '--model', shipped), 2, 'wanted either a network or --model');
      expectError(octconv('info'), 2, 'wanted either a network or --model');
    });

    it('says of i8 what a quantized network has, without quantizing one', async () => {
      const shape = { width: 8, classes: 5, stem: 'cifar' } as const;
      const network = buildNetwork('oct-resnet-26', shape);
      const weights = await quantizeOnNoise(network, initialize(network), [1, 32, 32, 3]);
      using model = new Model(network, weights, { threads: 1 });
      const { algorithms, memory } = await model.plan([1, 32, 32, 3]);
      const flags = words('--width 8 --classes 5 --stem cifar --threads 1 --dtype i8 --plan --json');
      const { plan, memory: told } = JSON.parse(octconv('info', 'oct-resnet-26', ...flags).stdout);
      expect(plan.map(({ algorithm }: { algorithm: string }) => algorithm)).to.deep.equal(algorithms);
      expect(told).to.deep.equal(memory);
    });

    it('fits the terminal, and says what has no room there', function () {
      if (noTerminal) skip(this, 'terminal');
      const folderFlags = ['--model', shipped, '--threads', '1'];
      // Where columns go and lines are broken, where columns go, and where all have room.
      for (const columns of [40, 60, 120]) {
        const shown = (...args: string[]) => onTerminalOf(columns, { NO_COLOR: '1' }, ...args).replaceAll('\r', '');
        const plan = ['info', ...folderFlags, '--plan'];
        const texts = new Map<string[], string>();
        for (const args of [
          plan,
          ['info', ...folderFlags, '--graph'],
          ['info', 'oct-resnet-26', '--width', '8', '--dtype', 'i8', '--graph'],
          ['devices'],
          ['info', 'no-such-network'],
          ['info', '--networks'],
          ['info', '--table'],
          ['convert', join(shipped, 'model.safetensors'), `wrapped-${columns}`],
          ['run', '--model', shipped, '--input', `${checkpoint}.x.npy`, '--output', 'wrapped.npy'],
        ]) {
          const text = shown(...args);
          texts.set(args, text);
          const long = text
            .split('\n')
            .filter((line) => line.length > columns && !/octconv\.node|config\.json/.test(line)); // a path is not broken
          expect(long, `${args.join(' ')} at ${columns}`).to.be.empty;
        }
        const all = (texts.get(plan) ?? '').replaceAll(/\n */g, ' ');
        const [, head = '', gone = ''] = /\bplan +(step .*?) conv1 .* no room for (.*?) [\d.]+ MiB/.exec(all) ?? [];
        for (const column of ['op', 'types', 'products', 'M MAdd', 'KiB in', 'KiB out', 'KiB weights', 'algorithm'])
          expect(`${head} ${gone}`, `${column} at ${columns}`).to.contain(column);
        if (columns >= 60) expect(head, `${columns}`).to.contain('algorithm');
        if (gone) expect(gone).to.contain(' --json, or | cat, shows all');
      }
    });

    it('tells which batches a service would run', () => {
      const { batching } = JSON.parse(octconv('info', shipped, '--batching', '--json').stdout);
      expect(batching.sizes[0]).to.equal(1);
      expect(batching.milliseconds).to.have.lengthOf(batching.sizes.length);
      expect(batching.milliseconds.every((ms: number) => ms > 0)).to.equal(true);
      expect(octconv('info', shipped, '--batching').stdout).to.match(
        /batch +ms +rows\/s\n +1 .*\n(.*\n)* +\d in flight at a time(, and another one that is full)?\n/,
      );
    });

    it('says the same of a plan as JSON', () => {
      const flags = words('resnet-26 --width 8 --size 32 --dtype i8 --json');
      const info = (flag: string) => JSON.parse(octconv('info', ...flags, flag).stdout);
      const { plan, steps, multiplyAdds, dtype, memory, graph } = info('--plan');
      expect([dtype, graph, plan.length]).to.deep.equal(['i8', undefined, steps]);
      const sum = (of: (step: { multiplyAdds: number }) => number) =>
        plan.map(of).reduce((a: number, b: number) => a + b);
      expect(sum((step) => step.multiplyAdds)).to.equal(multiplyAdds);
      expect(plan[0]).to.deep.include({ computes: ['i8'], inputs: ['f32'], outputs: ['u8'] });
      expect(plan[0].bytes).to.include({ inputs: 4 * 3 * 32 ** 2, outputs: 8 * 16 ** 2 });
      expect(memory.run).to.be.at.least(memory.activations);
      expect(info('--graph').plan).to.deep.equal(plan);
    });

    for (const alpha of ['0', '.125', '.25', '.5', '.75', '.9']) {
      it(`Oct-ResNet-50 is at most 58 steps at alpha ${alpha}`, () => {
        const { stdout } = octconv('info', 'oct-resnet-50', '--alpha', alpha, '--width', '16', '--json');
        expect(JSON.parse(stdout).steps).to.be.at.most(58);
      });
    }
  });

  describe('the others', () => {
    it('convert refuses what is no checkpoint', () => {
      // where mkdir -p never ends
      expectError(octconv('convert', `${checkpoint}.pth`, '/proc/octconv'), 1, '/proc/octconv');
      writeFileSync(inFolder('bad.pth'), 'not a checkpoint');
      expectError(octconv('convert', 'bad.pth', 'out'), 1, 'bad.pth: not a weight file');
      expectError(octconv('convert', 'missing.pth', 'out'), 1, 'missing.pth: no such file');
      writeFileSync(inFolder('few.txt'), 'a\nb\n');
      expectError(
        octconv('convert', `${checkpoint}.pth`, 'out', '--labels', 'few.txt'),
        1,
        'few.txt: 2 labels, wanted 10 (classes)',
      );
      expectError(
        octconv('convert', `${checkpoint}.pth`, 'out', '--labels', 'imagenet-1k'),
        1,
        'imagenet-1k: 1000 labels, wanted 10',
      );
      expect(existsSync(inFolder('out/config.json'))).to.equal(false);
    });

    it('convert takes labels, and how pictures become the input', () => {
      writeFileSync(inFolder('ten.txt'), 'abcdefghij'.split('').join('\r\n'));
      const input = words('--size 48 --resize 64 --interpolation bicubic --mean .1,.2,.3 --std 1,2,3');
      expect(octconv('convert', `${checkpoint}.pth`, 'tuned', '--labels', 'ten.txt', ...input).code).to.equal(0);
      const config = JSON.parse(readFileSync(inFolder('tuned/config.json'), 'utf8'));
      expect(config.options).to.deep.equal({ alpha: 0.25, width: 8, classes: 10, stem: 'cifar', channels: 3 });
      expect(config.input).to.include({ height: 48, width: 48, resize: 64, interpolation: 'bicubic' });
      expect(config.input).to.deep.include({ mean: [0.1, 0.2, 0.3], std: [1, 2, 3] });
      const { top } = JSON.parse(octconv('classify', cat, '--model', 'tuned', '--json').stdout).results[0];
      expect(top.map(({ label }: { label: string }) => label).join('')).to.match(/^[a-j]{5}$/);
      expectError(octconv('convert', 'x', 'y', '--mean', '1,2'), 2, 'wanted 3 numbers');
      expectError(octconv('convert', 'x', 'y', '--std', '1,0,1'), 2, 'wanted 3 positive numbers');
      expectError(octconv('convert', 'x', 'y', '--crop-pct', '80'), 2, /--crop-pct .* wanted a number from 0\.01 to 1/);
      expectError(octconv('convert', 'x', 'y', '--scale', '0'), 2, /--scale .* wanted a number from 0\.000001 to 1000/);
      expectError(
        octconv('convert', 'x', 'y', '--size', '224x'),
        2,
        /--size .* wanted 224, or 256x128, from 1 to 65536/,
      );
      expectError(
        octconv('convert', `${checkpoint}.pth`, 'y', '--mean', '.5'),
        2,
        '--mean 0.5: wanted three numbers for rgb',
      );
      expectError(
        octconv('convert', `${checkpoint}.pth`, 'y', '--resize', '16'),
        1,
        'convert: input.resize is 16, wanted at least the size, 32 x 32',
      );
      expectError(
        octconv('convert', `${checkpoint}.pth`, 'y', '--mean', '123,117,104'),
        1,
        'but the scale 1/255 makes pictures 0 .. 1',
      );
    });

    it('info --table has every network, and the counts of the paper', () => {
      const rows: {
        network: string;
        flops: { multiplyAdds: number; authors: number; parameters: number };
        published?: Record<string, number>;
      }[] = JSON.parse(octconv('info', '--table', '--json').stdout);
      const sized = networkNames.filter((name) => !resolveNetworkOptions(name, {}).blocks);
      expect([...new Set(rows.map(({ network }) => network))]).to.have.members(sized);
      expect(rows.find(({ network }) => network === 'resnet-50')?.flops).to.include({
        multiplyAdds: 4_089_184_256,
        parameters: 25_557_032,
      });
      expect(rows.filter(({ published }) => published).length).to.be.above(20);
      for (const { network, flops, published } of rows) {
        if (!published) continue;
        // Those without ReLUs are less by a little.
        const most = /mobilenet|152/.test(network) ? 0.025 : 5e-4;
        expect(flops.authors / 1e9 / (published.flops as number), network).to.be.closeTo(1, most);
        expect(flops.parameters / 1e6 / (published.parameters as number), network).to.be.closeTo(1, 0.015);
      }
      expect(octconv('info', '--table').stdout).to.match(/\noct-resnet-v2-50 +0\.125 +3\.565 +3\.587 +3\.587 +0\.0 % /);
      for (const beside of [['oct-resnet-50'], ['--alpha', '.25']])
        expectError(octconv('info', '--table', ...beside), 2, '--networks and --table are of all networks');
    });

    it('info --networks has every name, with its options', () => {
      const { stdout } = octconv('info', '--networks');
      for (const name of networkNames.filter((name) => !name.startsWith('oct-')))
        expect(stdout).to.match(new RegExp(`(^|[ \n])${name}(,|\n)`));
      expect(stdout).to.match(/resnet-152-v1f, .*\n {2}options width, classes, channels, stemWidths\n/);
      const listed: { network: string; options: object }[] = JSON.parse(octconv('info', '--networks', '--json').stdout);
      expect(listed.map(({ network }) => network)).to.deep.equal(networkNames);
      for (const { network, options } of listed) expect(options).to.deep.equal(resolveNetworkOptions(network, {}));
    });

    it('info has lines of at most 80 characters, where there is no terminal too', () => {
      for (const args of ['oct-i3d-50', 'oct-se-resnet-152-v1e', shipped, '--networks'])
        for (const line of octconv('info', args).stdout.split('\n')) expect(line.length, line).to.be.at.most(80);
    });

    it('every option of a network has a flag', () => {
      const { stdout: help } = octconv('info', '--help');
      const keys = new Set(networkNames.flatMap((name) => Object.keys(resolveNetworkOptions(name, {}))));
      expect(keys.size).to.be.above(9);
      for (const key of keys) expect(help).to.include(`--${key.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)} `);
      const options = (args: string) => JSON.parse(octconv('info', ...words(args), '--json').stdout).options;
      expect(
        options('oct-resnet-v1f --stem-widths 4,8,16 --width 8 --blocks 1,1,1,1 --classes 3 --channels 1'),
      ).to.deep.equal({ alpha: 0.5, width: 8, classes: 3, channels: 1, stemWidths: [4, 8, 16], blocks: [1, 1, 1, 1] });
      const taps = '1,1/3,3/5,1/1,3';
      const video = options(`oct-i3d-26 --temporal-kernels ${taps} --width 8 --size 32 --non-local`);
      expect(video.temporalKernels).to.deep.equal(taps.split('/').map((stage) => stage.split(',').map(Number)));
      expect(video.nonLocal).to.equal(true);
      expectError(
        octconv('info', 'resnet-v1f', '--stem-widths', '4,8'),
        1,
        'resnet-v1f: stemWidths [4,8], wanted three integers from 1 to 65536',
      );
    });

    it('convert --dtype rounds the kernels to half of the bytes, which changes the logits little', async () => {
      const wanted = await readNpy(`${checkpoint}.y.npy`);
      for (const [dtype, most] of [
        ['f16', 2 ** -9],
        ['bf16', 2 ** -6],
      ] as const) {
        expect(octconv('convert', `${checkpoint}.pth`, dtype, '--dtype', dtype).code).to.equal(0);
        const { weights: source } = await readModelFolder(inFolder(dtype));
        for (const [name, { dtype: stored, shape }] of source.tensors)
          expect(stored, name).to.equal(shape.length > 1 ? dtype : 'f32');
        await source.close();
        using model = await loadModel(inFolder(dtype));
        const y = await model.run((await readNpy(`${checkpoint}.x.npy`)) as Tensor<'f32'>);
        expect(relativeError(y.data, wanted.data as Float32Array)).to.be.within(1e-5, most);
      }
      const twice = octconv('convert', 'f16/model.safetensors', 'rounded-twice', '--dtype', 'bf16');
      expectError(twice, 1, /tensor "\S+" is f16, wanted f32 to round$/m);
    });

    it('convert --inflate makes a video network of an image network: a still clip has the logits that PyTorch gave', async () => {
      const odd = join(golden, 'oct-resnet-50-w8-a12-odd');
      const labels = ['--labels', 'video.txt'];
      const { shape: image, data } = await readNpy(`${odd}.x.npy`);
      const { shape, data: wanted } = await readNpy(`${odd}.y.npy`);
      writeFileSync(
        inFolder('video.txt'),
        Array.from({ length: shape[1] as number }, (_, i) => `move ${i}`).join('\n'),
      );
      const { code, stdout, stderr } = octconv('convert', `${odd}.pth`, 'clips', '--inflate', 'c2d', ...labels);
      expect(code, stderr).to.equal(0);
      expect(stdout).to.match(/^clips: oct-c2d-50, alpha 0\.125, width 8, .* tensors, inflated from oct-resnet-50$/m);
      expect(stdout).to.contain('network: 8 frames, 8 apart, each the short side to 256 (bilinear), a crop of');
      using model = await loadModel(inFolder('clips'));
      expect(model.labels?.[0]).to.equal('move 0');
      const [n = 0, h = 0, w = 0, c = 0] = image;
      const clip = Tensor.zeros('f32', [n, 3, h, w, c]);
      const size = h * w * c;
      for (let i = 0; i < n; i++)
        for (let t = 0; t < 3; t++)
          clip.data.set((data as Float32Array).subarray(i * size, (i + 1) * size), (3 * i + t) * size);
      expect(relativeError((await model.run(clip)).data, wanted as Float32Array)).to.be.below(1e-5);

      const made = (...flags: string[]) =>
        octconv('convert', `${odd}.pth`, 'long', '--inflate', 'i3d', ...labels, ...flags);
      const { network, input } = JSON.parse(made('--frames', '32', '--frame-stride', '2', '--json').stdout);
      expect([network, input.frames, input.frameStride]).to.deep.equal(['oct-i3d-50', 32, 2]);
      expect(JSON.parse(readFileSync(inFolder('long/config.json'), 'utf8')).input).to.deep.equal(input);
      expectError(
        octconv('convert', 'long', 'again', '--inflate', 'i3d'),
        1,
        'cannot be inflated to i3d: oct-i3d-50, wanted',
      );
      expectError(
        octconv('convert', `${checkpoint}.pth`, 'cifar', '--inflate', 'i3d'),
        1,
        'stem cifar, wanted imagenet',
      );
      expect(existsSync(inFolder('cifar'))).to.equal(false);
      expectError(
        octconv('convert', `${odd}.pth`, 'x', '--frames', '8'),
        2,
        '--frames and --frame-stride are for video networks',
      );
      expectError(
        octconv('convert', `${odd}.pth`, 'x', '--frame-stride', '8'),
        2,
        '--frames and --frame-stride are for video networks',
      );
      expectError(octconv('convert', `${odd}.pth`, 'x', '--inflate', 'i3d-50'), 2, /Allowed choices are c2d, i3d/);
    });

    it('convert derives what depends on what is given, says it, and replaces a model only by force', () => {
      const convert = (...flags: string[]) =>
        octconv('convert', `${inFolder('big.safetensors')}`, 'derived', '--force', '--json', ...flags);
      const { stdout } = octconv('convert', join(shipped, 'model.safetensors'), 'plain');
      expect(stdout).to.match(
        /\ninput, as \S+config\.json says: the short side to 32 \(bilinear\), a crop of 32 x 32, rgb, 0 \.\. 1, mean /,
      );
      expect(octconv('convert', 'plain', 'again').stdout).to.contain('\ninput, as plain/config.json says: ');
      expectError(
        octconv('convert', join(shipped, 'model.safetensors'), 'plain'),
        1,
        'plain: has a config.json already; --force',
      );
      expectError(
        octconv('convert', 'plain', 'plain', '--force'),
        1,
        'plain: is read, as plain; wanted another folder',
      );
      symlinkSync('plain', inFolder('plain-link'));
      expectError(
        octconv('convert', 'plain/model.safetensors', 'plain-link', '--force'),
        1,
        'plain-link: is read, as plain/model.safetensors',
      );
      copyFileSync(join(shipped, 'model.safetensors'), inFolder('big.safetensors'));
      const inputOf = (...flags: string[]) => JSON.parse(convert(...flags).stdout).input;
      expect(inputOf('--size', '64')).to.include({ height: 64, width: 64, resize: 64 });
      expect(inputOf('--size', '48x24').resize).to.deep.equal([48, 24]);
      expect(inputOf('--size', '64', '--crop-pct', '.875').resize).to.equal(73);
      const { channels, mean, std } = inputOf('--bgr');
      expect([channels, mean, std]).to.deep.equal(['bgr', [0.4465, 0.4822, 0.4914], [0.2616, 0.2435, 0.247]]);
      expect(inputOf('--scale', '1', '--mean', '123,117,104')).to.deep.include({ scale: 1, mean: [123, 117, 104] });
    });

    it('classify takes folders, patterns and standard input; run takes and gives streams', () => {
      mkdirSync(inFolder('album/inner'), { recursive: true });
      for (const name of ['b.jpg', 'inner/a[1].JPG', 'notes.txt']) copyFileSync(cat, inFolder(`album/${name}`));
      const files = (...args: string[]) =>
        JSON.parse(octconv('classify', '--json', ...args).stdout).results.map(({ file }: { file: string }) => file);
      expect(files('album', 'album/*.jpg', 'album/inner/a[1].JPG')).to.deep.equal([
        'album/b.jpg',
        'album/inner/a[1].JPG',
        'album/b.jpg',
        'album/inner/a[1].JPG',
      ]);
      expectError(octconv('classify', 'album/*.png'), 1, 'album/*.png: no such file');
      const script = `"${process.execPath}" "${cli}"`;
      const shell = (command: string) => spawnSync('bash', ['-c', command], { encoding: 'buffer', cwd: folder });
      expect(shell(`${script} classify - < "${cat}"`).stdout.toString()).to.match(
        /^standard input {2}[\d.]+ ms\n {2}cat /,
      );
      expect(shell(`echo text | ${script} classify -`).stderr.toString()).to.match(
        /^octconv: standard input: is not a picture/,
      );
      const { stdout, stderr } = shell(
        `cat "${checkpoint}.x.npy" | ${script} run --weights "${checkpoint}.pth" --input - --output -`,
      );
      expect(stdout.subarray(0, 6).toString('latin1')).to.equal('\x93NUMPY');
      expect(stderr.toString()).to.match(/^-: logits \[3,10\], [\d.]+ ms after \d+ ms of compiling, cpu /);
    });

    it('a full disk is told; the end of whoever reads errors does not end the work', () => {
      const script = `"${process.execPath}" "${cli}"`;
      const shell = (command: string) => spawnSync('bash', ['-c', command], { encoding: 'utf8', cwd: folder });
      const full = shell(`${script} classify "${cat}" > /dev/full`);
      expect([full.status, full.stderr]).to.deep.equal([1, 'octconv: standard output: no space left on the device\n']);
      mkdirSync(inFolder('unheard'));
      copyFileSync(cat, inFolder('unheard/cat.jpg'));
      writeFileSync(inFolder('unheard/bad.jpg'), 'text');
      const deaf = shell(`${script} quantize "${shipped}" --data unheard --out deaf 2> >(exec true); echo $?`);
      expect(deaf.stdout).to.match(/^deaf: written: oct-resnet-26, 91 weights in int8.*; 1 picture left out\n.*\n1\n$/);
      expect(existsSync(inFolder('deaf/config.json'))).to.equal(true);
    });

    it('export writes ONNX', () => {
      const flags = words('--onnx net.onnx --network oct-resnet-26 --width 8 --size 64');
      const { code, stdout, stderr } = octconv('export', ...flags);
      expect(code, stderr).to.equal(0);
      expect(stdout).to.match(/net\.onnx: oct-resnet-26 of random weights, input \[N,3,64,64\]/);
      expect(existsSync(inFolder('net.onnx'))).to.equal(true);
      const clip = octconv('export', ...flags, '--frames', '8');
      expectError(clip, 1, 'oct-resnet-26: 8 frames, wanted none: its input is an image');
      const video = words('--onnx clip.onnx --network oct-i3d-26 --width 8 --size 64 --frames 4 --json');
      expect(JSON.parse(octconv('export', ...video).stdout).input).to.deep.equal([null, 3, 4, 64, 64]);
    });

    it('export and convert say the same as JSON; a network is not exported onto its own files', () => {
      const from = words('--network oct-resnet-26 --width 8 --size 64x32 --json --onnx');
      const made = JSON.parse(octconv('export', ...from, 'wide.onnx').stdout);
      expect(made).to.deep.include({
        file: 'wide.onnx',
        network: 'oct-resnet-26',
        input: [null, 3, 64, 32],
        bytes: statSync(inFolder('wide.onnx')).size,
      });
      copyFileSync(`${checkpoint}.pth`, inFolder('own.pth'));
      linkSync(inFolder('own.pth'), inFolder('hard.pth'));
      for (const name of ['own.pth', './own.pth', 'hard.pth']) {
        expectError(
          octconv('export', '--weights', 'own.pth', '--onnx', name),
          1,
          'is read, as own.pth; wanted another file',
        );
      }
      expect(readFileSync(inFolder('own.pth')).equals(readFileSync(`${checkpoint}.pth`))).to.equal(true);
      const {
        folder: target,
        network,
        input,
        tensors,
      } = JSON.parse(octconv('convert', 'own.pth', 'own', '--json').stdout);
      expect([target, network, input.resize, tensors > 100]).to.deep.equal(['own', 'oct-resnet-26', 32, true]);
    });

    it('devices says what was chosen, why, and which file was loaded', () => {
      const { code, stdout } = octconv('devices');
      expect(code).to.equal(0);
      expect(stdout).to.match(new RegExp(`^\\* cpu +fused kernels, (${levels.join('|')}); chosen: what auto means`));
      expect(stdout).to.match(/^ {2}reference +plain loops; by its name alone$/m);
      expect(stdout).to.match(/native file \S+\.node\n$/);
      expect(stdout).to.match(/^ {2}cuda +/m); // a GPU, or why there is none
      const { devices } = JSON.parse(octconv('devices', '--json').stdout);
      const names = devices.map(({ name }: { name: string }) => name);
      expect(names).to.include.members(['cpu', 'cuda', 'reference']);
    });

    it('an instruction set that is not there is an error in one line', () => {
      expectError(octconvWith({ OCTCONV_ISA: 'mmx' }, 'devices'), 1, "OCTCONV_ISA: 'mmx' is unknown, wanted baseline");
    });

    it('so is an addon that cannot be loaded', () => {
      const none = octconvWith({ OCTCONV_NATIVE: inFolder('none.node') }, 'classify', cat);
      expectError(none, 1, /^octconv: native: no addon could be loaded for \S+: Cannot find module/);
    });

    it('demo shows the cat, the strangers and the comparison', () => {
      const { code, stdout, stderr } = octconv('demo', '--rounds', '1');
      expect([code, stderr]).to.deep.equal([0, '']);
      expect(stdout).to.match(/cat\.jpg .*\n {2}cat +90\.6 %/);
      expect(stdout).to.contain('coffee is none of the ten, and the network knows nothing else');
      for (const network of [/\n {2}ResNet-50 +min +[\d.]+ ms/, /\n {2}Oct-ResNet-50, alpha \.5 +min +[\d.]+ ms/]) {
        expect(stdout).to.match(network);
      }
      expect(stdout).to.match(/ takes \d+ % of the plain one's time/);
    });

    it('an interrupt ends it at once and without a word', async () => {
      const child = spawn(process.execPath, [cli, 'demo', '--rounds', '100000'], { stdio: ['ignore', 'pipe', 'pipe'] });
      const ended = once(child, 'exit');
      const errors: Buffer[] = [];
      child.stderr.on('data', (chunk) => errors.push(chunk));
      for await (const chunk of child.stdout) if (String(chunk).includes('interleaved rounds')) break;
      child.kill('SIGINT');
      expect((await ended)[1]).to.equal('SIGINT');
      expect(Buffer.concat(errors).toString()).to.equal('');
    });

    it('a bench that a signal ends leaves no temporary folder', async () => {
      for (const signal of ['SIGHUP', 'SIGINT', 'SIGTERM'] as const) {
        const place = mkdtempSync(join(tmpdir(), 'octconv-signal-'));
        const options = ['--network', 'oct-resnet-26', '--width', '8', '--classes', '10', '--size', '32'];
        const child = spawn(process.execPath, [cli, 'bench', 'memory', ...options, '--rounds', '1000'], {
          stdio: 'ignore',
          env: { ...process.env, TMPDIR: place },
        });
        const ended = once(child, 'exit');
        while (readdirSync(place).length === 0 && child.exitCode === null) await sleep(20);
        child.kill(signal);
        expect((await ended)[1]).to.equal(signal);
        expect(readdirSync(place), signal).to.deep.equal([]);
        rmdirSync(place);
      }
    });

    it('help and version end with 0, an unknown command with 2', () => {
      expect(octconv('--help').code).to.equal(0);
      expect(octconv('run', '--help').stdout).to.contain('--layout');
      expect(octconv('--version').stdout).to.match(/^\d+\.\d+\.\d+\n$/);
      expectError(octconv('frobnicate'), 2, "unknown command 'frobnicate'");
    });

    it('a reader that has seen enough is no error', () => {
      const info = `"${process.execPath}" "${cli}" info oct-resnet-50 --width 8 --graph`;
      const script = `${info} | head -n 1; echo "\${PIPESTATUS[0]}"`;
      const { stdout, stderr } = spawnSync('bash', ['-c', script], { encoding: 'utf8' });
      expect(stderr).to.equal('');
      expect(stdout).to.match(/\n0\n$/);
    });

    it('bench says before it measures that a file has no place', () => {
      writeFileSync(inFolder('file'), '');
      for (const flags of [words('models --out file/r.json'), words('models --chart /proc/no/c.svg')]) {
        expectError(octconv('bench', ...flags), 1, flags[2] as string);
      }
      expectError(octconv('bench', ...words('ops --out /proc/no/r.json')), 1, '/proc/no/r.json');
    });

    it('bench models and ops: checked, timed, kept as JSON and chart', function () {
      this.timeout(120_000);
      const common = words('--size 48 --rounds 1 --device cpu');
      const networks = words('models --network resnet-26 --alphas .5 --threads 1 --out r.json --chart c.svg');
      const models = octconv('bench', ...networks, ...common);
      expect([models.code, models.stderr]).to.deep.equal([0, '']);
      expect(models.stdout).to.match(/\noct-resnet-26 +0\.5 +1 /);
      expect(JSON.parse(readFileSync(inFolder('r.json'), 'utf8')).rows).to.have.length(2);
      expect(readFileSync(inFolder('c.svg'), 'utf8')).to.match(/^<svg /);
      const ops = octconv('bench', 'ops', '--network', 'oct-resnet-26', '--json', ...common);
      expect([ops.code, ops.stderr]).to.deep.equal([0, '']);
      expect(JSON.parse(ops.stdout).steps.length).to.equal(27);
    });

    it('bench takes the options of a network: those of each form are the same', function () {
      this.timeout(120_000);
      const flags = words('--multiplier .25 --channels 1 --size 48 --rounds 1 --threads 1 --device cpu');
      const forms = words('--network mobilenet-v1 --alphas .5 --out m.json');
      const models = octconv('bench', 'models', ...forms, ...flags);
      expect([models.code, models.stderr]).to.deep.equal([0, '']);
      expect(models.stdout.split('\n')[1]).to.match(/^48 x 48, channels 1, multiplier 0.25, 1 interleaved round, /);
      const { options, rows } = JSON.parse(readFileSync(inFolder('m.json'), 'utf8'));
      expect(options).to.deep.equal({ channels: 1, multiplier: 0.25 });
      const wanted = ['mobilenet-v1', 'oct-mobilenet-v1'].map(
        (name) => countFlops(record(buildNetwork(name, options), [1, 48, 48, 1])).multiplyAdds / 1e9,
      );
      expect(rows.map(({ gmadds }: { gmadds: number }) => gmadds)).to.deep.equal(wanted);
      const ops = octconv('bench', 'ops', '--network', 'oct-mobilenet-v1', ...flags);
      expect([ops.code, ops.stderr]).to.deep.equal([0, '']);
      expect(ops.stdout.split('\n')[1]).to.match(/^oct-mobilenet-v1, channels 1, multiplier 0.25, f32, 48 x 48, /);
      expectError(octconv('bench', 'models', ...words('--network resnet-18 --multiplier 2')), 1, 'multiplier');
    });

    it('bench memory: ours and theirs in fresh processes', function () {
      this.timeout(120_000);
      const flags = words('--network resnet-26 --size 32 --dtypes f32 --rounds 1 --out m.json');
      const { code, stdout, stderr } = octconv('bench', 'memory', ...flags);
      expect([code, stderr]).to.deep.equal([0, '']);
      expect(stdout).to.match(/\noctconv f32 +\d+ +\d+ +\d+ +\d+ +\d+\nonnxruntime f32 +\d+ +\d+ +\d+ +\d+ +\d+\n$/);
      expect(JSON.parse(readFileSync(inFolder('m.json'), 'utf8')).rows).to.have.length(1);
    });
  });
});
