/** What `npm run demo` shows: photographs and clips classified, then the claim of the paper on this machine. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Command } from 'commander';
import { inFolder } from '../bench/folder.js';
import type { Times } from '../bench/measure.js';
import { roundsOf, terminalWidth } from '../bench/table.js';
import { classify } from '../classify.js';
import { OctconvError } from '../error.js';
import { ffmpegProgram } from '../input/ffmpeg.js';
import type { Picture } from '../input/image.js';
import { createModel, loadModel, type Model } from '../model.js';
import { Tensor } from '../tensor.js';
import { describe } from './classify.js';
import { deviceLine, integer, shippedModel, videoModel } from './common.js';
import { percent, print, style } from './output.js';
import { Progress } from './progress.js';

const photographs = fileURLToPath(new URL('../../test/images', import.meta.url));

/** Photographs of none of the ten classes. */
const strangers = ['coffee.jpg', 'astronaut.jpg', 'rocket.jpg'];

/** Of the clips: the sky behind the rocket hardly moves. */
const filmed = ['coffee.jpg', 'astronaut.jpg', 'cat.jpg'];

export function demoCommand(program: Command): void {
  program
    .command('demo', { hidden: true })
    .description('photographs and clips from file to label, and octave against plain convolution')
    .option('--rounds <n>', 'of the comparison', integer(1), 10)
    .action(run);
}

async function run({ rounds }: { rounds: number }): Promise<void> {
  const files = await readdir(photographs).catch(() => {
    throw new OctconvError('demo: it shows the photographs of a checkout, which are not in the package');
  });
  const pictures = files.filter((file) => file.endsWith('.jpg'));
  pictures.sort((a, b) => strangers.indexOf(a) - strangers.indexOf(b));
  {
    using model = await loadModel(shippedModel);
    print(style('bold', `An octave network, ${model.name} at alpha ${model.options?.alpha}, looks at photographs`));
    print(style('dim', `Trained on the 32 x 32 pictures of CIFAR-10; device ${deviceLine(model)}.`));
    print(style('dim', `It knows ${model.labels?.join(', ')}.\n`));
    for (const file of pictures) {
      for await (const result of classify(model, [join(photographs, file)])) {
        print(describe({ ...result, file }));
        if (strangers.includes(file)) {
          const what = file.replace('.jpg', '');
          print(style('yellow', `  ${what} is none of the ten, and the network knows nothing else.`));
        }
        print('');
      }
    }
  }
  await watch();
  {
    using plain = createModel('resnet-50');
    using octave = createModel('oct-resnet-50', { alpha: 0.5 });
    print(style('bold', 'The claim: octave convolution does the work of a plain one in less time'));
    print(style('dim', `Random weights, ${deviceLine(plain)}, ${roundsOf(rounds, 'interleaved ')}.`));
    await compare(
      'an image of 224 x 224',
      [1, 224, 224, 3],
      { 'ResNet-50': plain, 'Oct-ResNet-50, alpha .5': octave },
      rounds,
    );
  }
  using plain = createModel('i3d-50');
  using octave = createModel('oct-i3d-50', { alpha: 0.5 });
  await compare(
    'a clip of 8 x 224 x 224',
    [1, 8, 224, 224, 3],
    { 'I3D-50': plain, 'Oct-I3D-50, alpha .5': octave },
    rounds,
  );
  print(style('dim', '\n  Compared with onnxruntime: node dist/cli.js bench models'));
}

/** Frames to a second of the clips. */
const frameRate = 30;

/** Clips of a known camera motion, encoded where there is ffmpeg, and what a video network makes of them. */
async function watch(): Promise<void> {
  const { film, motions } = await import('./motion.js'); // with sharp, which no other command needs at once
  using model = await loadModel(videoModel);
  print(
    style(
      'bold',
      `An octave network for video, ${model.name} at alpha ${model.options?.alpha}, tells how a camera moves`,
    ),
  );
  await inFolder(async (folder) => {
    const size = 160;
    const sources: (string | AsyncIterable<Picture>)[] = [];
    for (const [i, motion] of motions.entries()) {
      const photograph = join(photographs, filmed[i % filmed.length] as string);
      const frames = await film(photograph, motion, { frames: frameRate, step: 0.015, size });
      const file = join(folder, `${motion.replace(' ', '-')}.mp4`);
      sources.push((await encode(frames, size, file)) ? file : framesOf(frames));
    }
    const how =
      typeof sources[0] === 'string' ? 'encoded as MP4 and decoded again' : 'as frames, since there is no ffmpeg';
    print(style('dim', `A second of a photograph each, ${how}; device ${deviceLine(model)}.\n`));
    let right = 0;
    for await (const { index, top, milliseconds } of classify(model, sources)) {
      const [{ label = '', probability = 0 } = {}] = top;
      const truth = motions[index] as string;
      if (label === truth) right++;
      const verdict = style(
        label === truth ? 'reset' : 'yellow',
        `${label.padEnd(10)} ${percent(probability).padStart(7)}`,
      );
      print(`  ${truth.padEnd(10)}  is called  ${verdict}  ${style('dim', `${milliseconds.toFixed(2)} ms`)}`);
    }
    print(`\n  ${right} of ${motions.length} right.\n`);
  });
}

async function* framesOf(frames: readonly Picture[]): AsyncGenerator<Picture> {
  yield* frames;
}

/** Whether there was an ffmpeg, and the file is written. */
async function encode(frames: readonly Picture[], size: number, file: string): Promise<boolean> {
  const raw = ['-f', 'rawvideo', '-pix_fmt', 'rgb24', '-s', `${size}x${size}`, '-r', String(frameRate), '-i', 'pipe:0'];
  const args = ['-loglevel', 'error', ...raw, '-c:v', 'mpeg4', '-q:v', '3', file];
  const ffmpeg = spawn(await ffmpegProgram(), args, { stdio: ['pipe', 'ignore', 'ignore'] });
  ffmpeg.stdin.on('error', () => undefined); // its exit says it
  ffmpeg.stdin.end(Buffer.concat(frames.map(({ data }) => data)));
  return once(ffmpeg, 'close').then(
    ([code]) => code === 0,
    () => false,
  );
}

/** How long two models take for an input, and the second one's share of the first one's time. */
async function compare(
  what: string,
  shape: readonly number[],
  models: { readonly [name: string]: Model },
  rounds: number,
): Promise<void> {
  const { interleave, pairedRatio } = await import('../bench/measure.js');
  const line = new Progress();
  const x = Tensor.zeros('f32', shape);
  x.data.fill(0.5);
  await line.start();
  const subjects = Object.values(models).map((model) => () => model.run(x));
  const progress = (round: number) => line.show(`round ${round} of ${rounds}`);
  const [a, b] = (await interleave(subjects, rounds, progress)) as [Times, Times];
  line.stop();
  const room = Math.max(0, Math.min(20, terminalWidth() - 59));
  const bar = (ms: number) => style('cyan', '█'.repeat(Math.round((room * ms) / Math.max(a.median, b.median))));
  print('');
  for (const [i, name] of Object.keys(models).entries()) {
    const { min, median } = [a, b][i] as Times;
    const [least, middle] = [min, median].map((ms) => ms.toFixed(1).padStart(7));
    print(`  ${name.padEnd(23)} min${least} ms, median${middle} ms  ${bar(median)}`.trimEnd());
  }
  const ratio = style('bold', `${(100 * pairedRatio(b, a)).toFixed(0)} %`);
  print(`  For ${what} the octave network takes ${ratio} of the plain one's time (median of the rounds' ratios).`);
}
