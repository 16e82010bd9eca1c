import type { Command } from 'commander';
import { terminalWidth } from '../bench/table.js';
import { type Classified, type ClassifiedWindow, classify, classifyStream } from '../classify.js';
import type { Views } from '../input/clips.js';
import { loadModel, type Model } from '../model.js';
import {
  deviceLine,
  type DeviceOptions,
  integer,
  modelOptions,
  number,
  placeOf,
  shippedModel,
  viewsFor,
  viewsOption,
  withDevice,
} from './common.js';
import { percent, print, printError, printJson, style, UsageError } from './output.js';
import { Progress } from './progress.js';
import { expand, kindOf } from './sources.js';
import { standardInput } from './streams.js';

export function classifyCommand(program: Command): void {
  withDevice(program.command('classify <source...>'))
    .description(
      'what pictures (JPEG, PNG, WebP) show, or videos to a video network: files, folders, patterns; - is standard input',
    )
    .option('--model <dir>', 'a model folder or weight file (default: the shipped CIFAR-10 network)')
    .option('--top <n>', 'guesses per picture or video', integer(1), 5)
    .addOption(viewsOption())
    .option('--stream', 'one video, window by window, as it is decoded; with --json a line for each')
    .option('--window <seconds>', 'of --stream (default: as many frames as the network was trained on)', number)
    .option('--hop <seconds>', 'of --stream, from one window to the next (default: the window)', number)
    .action(run);
}

interface Options extends DeviceOptions {
  model?: string;
  top: number;
  views?: Views;
  stream?: boolean;
  window?: number;
  hop?: number;
}

async function run(args: string[], options: Options): Promise<void> {
  const { json, top, stream, window, hop } = options;
  if (!stream && (window ?? hop) !== undefined) throw new UsageError('--window and --hop need --stream');
  using model = await loadModel(options.model ?? shippedModel, modelOptions(options));
  const kind = kindOf(model.input);
  const views = viewsFor(model, options.views);
  const files = await expand(args, kind);
  if (stream) {
    if (files.length !== 1 || options.views) throw new UsageError('--stream wants one video, and no --views');
    return await follow(model, files[0] as string, options);
  }
  const shown = (file: string, index: number) => (files[index] === '-' ? standardInput : file);
  const failures: { file: string; error: string }[] = [];
  const failed = ({ message }: Error, name: string, index: number) => {
    const file = shown(name, index);
    const error = files[index] === '-' ? standardInput + message.slice(name.length) : message;
    failures.push({ file, error });
    printError(error);
    process.exitCode = 1;
  };
  const results: Omit<Classified, 'index'>[] = [];
  // One picture a run: each is shown as soon as it is known, and the milliseconds are those of one picture.
  const sources = files.map((file) => (file === '-' ? process.stdin : file));
  for await (const { index, ...one } of classify(model, sources, { top, failed, batch: 1, ...views })) {
    const result = { ...one, file: shown(one.file, index) };
    results.push(result);
    if (!json) print(describe(result));
  }
  if (json) {
    printJson({ network: model.name, options: model.options, ...placeOf(model), ...views, results, failures });
  } else if (results.length) {
    const mean = results.reduce((sum, r) => sum + r.milliseconds, 0) / results.length;
    print(style('dim', `${mean.toFixed(2)} ms per ${kind.one} in the network, ${deviceLine(model)}`));
  }
}

/** Window by window, until the video ends or somebody interrupts. */
async function follow(model: Model, file: string, { json, top, window, hop }: Options): Promise<void> {
  const stop = new AbortController();
  const interrupt = () => stop.abort();
  process.once('SIGINT', interrupt);
  const progress = new Progress();
  if (!process.stdout.isTTY) await progress.start(); // else the lines show it
  const begin = performance.now();
  let [windows, milliseconds, seen] = [0, 0, 0];
  const speed = () => `${((1000 * seen) / (performance.now() - begin)).toFixed(0)} frames/s`;
  try {
    const source = file === '-' ? process.stdin : file;
    for await (const part of classifyStream(model, source, { top, window, hop, signal: stop.signal })) {
      windows++;
      milliseconds += part.milliseconds;
      seen = part.frames;
      if (json) printJson(part);
      else print(describeWindow(part));
      progress.show(`${clock(part.end)}, ${speed()}`);
    }
  } catch (error) {
    if (!stop.signal.aborted) throw error;
  } finally {
    process.off('SIGINT', interrupt);
    progress.stop();
  }
  if (windows && !json) {
    const mean = (milliseconds / windows).toFixed(2);
    print(style('dim', `${mean} ms per window in the network, ${speed()} with decoding, ${deviceLine(model)}`));
  }
  if (stop.signal.aborted) process.kill(process.pid, 'SIGINT'); // nobody listens any longer: it ends the process
}

/** `0:01:02.3` */
const clock = (seconds: number): string => {
  const [minutes, rest] = [Math.floor(seconds / 60), (seconds % 60).toFixed(1).padStart(4, '0')];
  return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, '0')}:${rest}`;
};

const describeWindow = ({ start, end, top }: ClassifiedWindow): string => {
  const guesses = top.map(({ label, probability }) => `${label} ${percent(probability)}`);
  return `${style('dim', `${clock(start)} - ${clock(end)}`)}  ${style('bold', guesses[0] ?? '')}  ${guesses.slice(1).join('  ')}`.trimEnd();
};

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
