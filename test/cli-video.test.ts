/** Videos on the command line. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import sharp from 'sharp';
import { decodeImage, type Picture } from '../lib/input/image.js';
import { loadModel } from '../lib/model.js';
import { encode, ffmpeg, processes } from './ffmpeg.js';
import { skip } from './skip.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const shipped = 'camera-motion-oct-i3d-26-a50';

describe('command line: video', function () {
  this.timeout(60_000);
  const folder = mkdtempSync(join(tmpdir(), 'octconv-cli-video-'));
  const at = (name: string) => join(folder, name);
  const octconv = (...args: string[]) => {
    const { status, stdout, stderr } = spawnSync(process.execPath, [join(root, 'dist/cli.js'), ...args], {
      encoding: 'utf8',
      cwd: folder,
    });
    return { code: status, stdout, stderr };
  };
  const json = (...args: string[]) => {
    const { stdout, stderr } = octconv(...args, '--json');
    expect(stderr).to.equal('');
    return JSON.parse(stdout);
  };

  /** A camera that moves over a photograph by 4 % of what it sees from frame to frame. */
  async function pan(count: number, direction: 1 | -1): Promise<Picture[]> {
    const photograph = sharp(join(root, 'test/images/coffee.jpg')).resize(400, 240, { fit: 'cover' });
    const bytes = await photograph.png().toBuffer();
    const frame = async (i: number) => {
      const left = direction === 1 ? 4 * i : 4 * (count - 1 - i);
      return decodeImage(await sharp(bytes).extract({ left, top: 60, width: 100, height: 100 }).png().toBuffer());
    };
    return Promise.all(Array.from({ length: count }, (_, i) => frame(i)));
  }

  before(async function () {
    if (!ffmpeg) skip(this, 'ffmpeg');
    const made = octconv('convert', join(root, 'models', shipped), 'model', '--frame-stride', '1');
    expect(made.stderr).to.equal('');
    expect(made.stdout).to.contain('8 frames, each the short side to 64');
    encode(at('right.mkv'), await pan(40, 1), { rate: 10 });
    encode(at('left.mp4'), await pan(40, -1), { rate: 10, args: ['-c:v', 'mpeg4', '-q:v', '3'] });
    writeFileSync(at('broken.mp4'), 'no video');
  });
  after(() => rmSync(folder, { recursive: true }));

  it('info says what a clip is, and convert keeps it', () => {
    const { input, preprocessing } = json('info', 'model');
    expect(input).to.deep.equal([1, 8, 64, 64, 3]);
    expect([preprocessing.frames, preprocessing.frameStride]).to.deep.equal([8, 1]);
    expect(octconv('info', 'model').stdout).to.match(/\n {2}of a video +8 frames, each the short side to 64/);
    const refused = octconv('convert', join(root, 'models/cifar10-oct-resnet-26-a50'), 'other', '--frames', '8');
    expect([refused.code, refused.stderr]).to.deep.equal([
      2,
      'octconv: --frames and --frame-stride are for video networks\n',
    ]);
  });

  it('classify: files, a folder of pictures, views, standard input; what is no video is an error', () => {
    const files = ['right.mkv', 'left.mp4'];
    const { results, clips, crops } = json('classify', '--model', 'model', '--top', '1', '--views', '2x3', ...files);
    expect([clips, crops]).to.deep.equal([2, 3]);
    const usual = json('classify', '--model', shipped, '--top', '1', '--views', '30', 'right.mkv');
    expect([usual.clips, usual.crops, usual.results[0].top[0].label]).to.deep.equal([10, 3, 'pan right']);
    expect(
      results.map(({ file, top }: { file: string; top: [{ label: string }] }) => [file, top[0].label]),
    ).to.deep.equal([
      ['right.mkv', 'pan right'],
      ['left.mp4', 'pan left'],
    ]);
    const input = readFileSync(at('left.mp4'));
    const args = [join(root, 'dist/cli.js'), 'classify', '--model', 'model', '-'];
    const piped = spawnSync(process.execPath, args, { input, cwd: folder, encoding: 'utf8' });
    expect(piped.stdout).to.match(/^standard input .*\n {2}pan left /);
    const mixed = octconv('classify', '--model', 'model', 'broken.mp4', 'right.mkv');
    expect(mixed.code).to.equal(1);
    expect(mixed.stderr).to.match(/^octconv: broken\.mp4: [^\n]+\n$/);
    expect(mixed.stdout).to.match(/^right\.mkv .*\n {2}pan right /);
  });

  it('classify --stream: a line for each window, JSON too, also of standard input', () => {
    const { code, stdout, stderr } = octconv('classify', '--model', 'model', '--stream', '--top', '1', 'right.mkv');
    expect([code, stderr]).to.deep.equal([0, '']);
    const lines = stdout.trimEnd().split('\n');
    expect(lines.length).to.equal(6);
    expect(lines[1]).to.match(/^0:00:00\.8 - 0:00:01\.6 {2}pan right \d+\.\d %$/);
    expect(lines[5]).to.match(/ms per window in the network, \d+ frames\/s with decoding/);
    const input = readFileSync(at('left.mp4'));
    const flags = ['--stream', '--window', '1', '--hop', '.5', '--json', '--model', 'model', '-'];
    const piped = spawnSync(process.execPath, [join(root, 'dist/cli.js'), 'classify', ...flags], {
      input,
      cwd: folder,
    });
    const windows = piped.stdout
      .toString()
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(windows.map(({ start, end, top }) => [start, end, top[0].label])).to.deep.equal(
      [0, 0.5, 1, 1.5, 2, 2.5, 3].map((start) => [start, start + 1, 'pan left']),
    );
    const refused: string[][] = [
      ['--window', '1', 'right.mkv'],
      ['--stream', 'right.mkv', 'left.mp4'],
      ['--stream', '--views', '3x1', 'right.mkv'],
      ['--views', '7x7', 'right.mkv'],
      ['--views', '12', 'right.mkv'],
    ];
    for (const args of refused) {
      const { code, stderr, stdout } = octconv('classify', '--model', 'model', ...args);
      expect(code, stderr).to.equal(2);
      expect(stderr).to.match(/^octconv: [^\n]+\n$/);
      expect(stdout).to.equal('');
    }
    const pictures = octconv('classify', '--views', '3x1', join(root, 'test/images/cat.jpg'));
    expect([pictures.code, pictures.stderr]).to.deep.equal([2, 'octconv: --views is for video networks\n']);
  });

  it('classify --stream: an interrupt ends it and ffmpeg', async () => {
    const args = [join(root, 'dist/cli.js'), 'classify', '--model', 'model', '--stream', '--json', '-'];
    const child = spawn(process.execPath, args, { cwd: folder, stdio: ['pipe', 'pipe', 'inherit'] });
    child.stdin.write(readFileSync(at('right.mkv')));
    await once(child.stdout, 'data');
    const started = processes(child.pid);
    expect(started.length).to.equal(1);
    child.kill('SIGINT');
    expect(await once(child, 'exit')).to.deep.equal([null, 'SIGINT']);
    expect(started.filter((pid) => existsSync(`/proc/${pid}`))).to.deep.equal([]);
  });

  it('eval and quantize: a folder of videos, or of folders of frames, for each class', async () => {
    mkdirSync(at('data/pan left/frames'), { recursive: true });
    mkdirSync(at('data/pan right'));
    for (const [i, { data, height, width }] of (await pan(12, -1)).entries())
      await sharp(data, { raw: { height, width, channels: 3 } })
        .png()
        .toFile(at(`data/pan left/frames/${i}.png`));
    cpSync(at('left.mp4'), at('data/pan left/a.mp4'));
    cpSync(at('right.mkv'), at('data/pan right/b.mkv'));
    writeFileSync(at('data/pan right/notes.txt'), '');
    const found = json('eval', '--model', 'model', '--data', 'data', '--views', '2x1');
    const { videos, failed, others, top1, frames, clips } = found;
    expect({ videos, failed, others, top1, clips }).to.deep.equal({
      videos: 3,
      failed: 0,
      others: 1,
      top1: 3,
      clips: 2,
    });
    expect(frames).to.be.within(30, 48);
    const { code, stdout } = octconv('eval', '--model', 'model', '--data', 'data');
    expect(code).to.equal(0);
    expect(stdout).to.match(
      /^top-1 3 of 3, 100\.0 %\n.*\n.*no videos by their names: 1 file\n.*ms per video in the network/,
    );
    expect(stdout).to.match(/\n24 frames seen, [\d.]+ a second with decoding\n$/);
    const quantized = json('quantize', 'model', '--data', 'data', '--out', 'int8');
    expect([quantized.videos, quantized.same]).to.deep.equal([3, 3]);
    using model = await loadModel(at('int8'));
    expect((await model.classify(at('left.mp4'))).top[0]?.label).to.equal('pan left');
  });
});
