/** What `npm run demo` shows: photographs classified, then the claim of the paper on this machine. */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Command } from 'commander';
import type { Times } from '../bench/measure.js';
import { terminalWidth } from '../bench/table.js';
import { classify } from '../classify.js';
import { OctconvError } from '../error.js';
import { createModel, loadModel } from '../model.js';
import { Tensor } from '../tensor.js';
import { describe } from './classify.js';
import { deviceLine, integer, shippedModel } from './common.js';
import { print, style } from './output.js';
import { Progress } from './progress.js';

const photographs = fileURLToPath(new URL('../../test/images', import.meta.url));

/** Photographs of none of the ten classes. */
const strangers = ['coffee.jpg', 'astronaut.jpg', 'rocket.jpg'];

export function demoCommand(program: Command): void {
  program
    .command('demo', { hidden: true })
    .description('photographs from JPEG to label, and octave against plain convolution')
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
  await compare(rounds);
}

async function compare(rounds: number): Promise<void> {
  const { interleave, pairedRatio } = await import('../bench/measure.js');
  const line = new Progress();
  using plain = createModel('resnet-50');
  using octave = createModel('oct-resnet-50', { alpha: 0.5 });
  print(style('bold', 'The claim: octave convolution does the work of a plain one in less time'));
  print(style('dim', `224 x 224, random weights, ${deviceLine(plain)}, ${rounds} interleaved rounds\n`));
  const x = Tensor.zeros('f32', [1, 224, 224, 3]);
  x.data.fill(0.5);
  await line.start();
  const subjects = [plain, octave].map((model) => () => model.run(x));
  const progress = (round: number) => line.show(`round ${round} of ${rounds}`);
  const [a, b] = (await interleave(subjects, rounds, progress)) as [Times, Times];
  line.stop();
  const room = Math.max(0, Math.min(20, terminalWidth() - 59));
  const bar = (ms: number) => style('cyan', '█'.repeat(Math.round((room * ms) / Math.max(a.median, b.median))));
  for (const [name, { min, median }] of [
    ['ResNet-50', a],
    ['Oct-ResNet-50, alpha .5', b],
  ] as const) {
    const [least, middle] = [min, median].map((ms) => ms.toFixed(1).padStart(7));
    print(`  ${name.padEnd(23)} min${least} ms, median${middle} ms  ${bar(median)}`.trimEnd());
  }
  const ratio = style('bold', `${(100 * pairedRatio(b, a)).toFixed(0)} %`);
  print(`\n  The octave network takes ${ratio} of the plain one's time.`);
  print(style('dim', '  Compared with onnxruntime: node dist/cli.js bench models'));
}
