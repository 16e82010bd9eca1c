import type { Command } from 'commander';
import { terminalWidth } from '../bench/table.js';
import { type Classified, classify } from '../classify.js';
import { loadModel } from '../model.js';
import { deviceLine, type DeviceOptions, integer, modelOptions, placeOf, shippedModel, withDevice } from './common.js';
import { percent, print, printError, printJson, style } from './output.js';
import { expand } from './pictures.js';
import { standardInput } from './streams.js';

export function classifyCommand(program: Command): void {
  withDevice(program.command('classify <picture...>'))
    .description('what pictures (JPEG, PNG, WebP) show: files, folders, patterns; - is standard input')
    .option('--model <dir>', 'a model folder or weight file (default: the shipped CIFAR-10 network)')
    .option('--top <n>', 'guesses per picture', integer(1), 5)
    .action(run);
}

async function run(args: string[], options: DeviceOptions & { model?: string; top: number }): Promise<void> {
  const { json, top } = options;
  const files = await expand(args);
  using model = await loadModel(options.model ?? shippedModel, modelOptions(options));
  const shown = (file: string, index: number) => (files[index] === '-' ? standardInput : file);
  const failures: { file: string; error: string }[] = [];
  const failed = ({ message }: Error, name: string, index: number) => {
    const file = shown(name, index);
    const error = file + message.slice(name.length);
    failures.push({ file, error });
    printError(error);
    process.exitCode = 1;
  };
  const results: Omit<Classified, 'index'>[] = [];
  // One picture a run: each is shown as soon as it is known, and the milliseconds are those of one picture.
  const sources = files.map((file) => (file === '-' ? process.stdin : file));
  for await (const { index, ...one } of classify(model, sources, { top, failed, batch: 1 })) {
    const result = { ...one, file: shown(one.file, index) };
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

/** The file and its guesses, with a bar for each probability where the line has room. */
export function describe({ file, top, milliseconds }: Omit<Classified, 'index'>): string {
  const widest = Math.max(10, ...top.map(({ label }) => label.length));
  const room = Math.max(0, Math.min(30, terminalWidth() - widest - 13));
  const lines = top.map(({ label, probability }, i) => {
    const text = `  ${label.padEnd(widest)}  ${percent(probability).padStart(7)}  `;
    return style(i ? 'reset' : 'bold', text) + style('cyan', '█'.repeat(Math.round(probability * room)));
  });
  const title = `${style('bold', file)}  ${style('dim', `${milliseconds.toFixed(2)} ms`)}`;
  return [title, ...lines].map((line) => line.trimEnd()).join('\n');
}
