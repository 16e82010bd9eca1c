import type { Command } from 'commander';
import { type Classified, classify } from '../classify.js';
import { loadModel } from '../model.js';
import { deviceLine, type DeviceOptions, integer, modelOptions, placeOf, shippedModel, withDevice } from './common.js';
import { percent, print, printable, printError, printJson, style } from './output.js';

export function classifyCommand(program: Command): void {
  withDevice(program.command('classify <picture...>'))
    .description('what pictures (JPEG, PNG, WebP) show')
    .option('--model <dir>', 'a model folder or weight file (default: the shipped CIFAR-10 network)')
    .option('--top <n>', 'guesses per picture', integer(1), 5)
    .action(run);
}

async function run(files: string[], options: DeviceOptions & { model?: string; top: number }): Promise<void> {
  const { json, top } = options;
  using model = await loadModel(options.model ?? shippedModel, modelOptions(options));
  const failures: { file: string; error: string }[] = [];
  const failed = (error: Error, file: string) => {
    failures.push({ file, error: error.message });
    printError(error.message);
    process.exitCode = 1;
  };
  const results: Classified[] = [];
  // One picture a run: each is shown as soon as it is known, and the milliseconds are those of one picture.
  for await (const result of classify(model, files, { top, failed, batch: 1 })) {
    results.push(result);
    if (!json) print(describe(result));
  }
  if (json) {
    printJson({ network: model.name, options: model.options, ...placeOf(model), results, failures });
  } else if (results.length) {
    const mean = results.reduce((sum, r) => sum + r.milliseconds, 0) / results.length;
    print(style('dim', `${mean.toFixed(2)} ms per picture in the network, ${deviceLine(model)}`));
  }
}

/** The file and its guesses, with a bar for each probability. */
export function describe({ file, top, milliseconds }: Classified): string {
  const widest = Math.max(10, ...top.map(({ label }) => label.length));
  const lines = top.map(({ label, probability }, i) => {
    const text = `  ${label.padEnd(widest)}  ${percent(probability).padStart(7)}  `;
    return style(i ? 'reset' : 'bold', text) + style('cyan', '█'.repeat(Math.round(probability * 30)));
  });
  const title = `${style('bold', printable(file))}  ${style('dim', `${milliseconds.toFixed(2)} ms`)}`;
  return [title, ...lines].map((line) => line.trimEnd()).join('\n');
}
