import type { Command } from 'commander';
import { classify } from '../classify.js';
import { OctconvError } from '../error.js';
import type { Views } from '../input/clips.js';
import { loadModel } from '../model.js';
import {
  deviceLine,
  type DeviceOptions,
  integer,
  modelOptions,
  placeOf,
  viewsFor,
  viewsOption,
  withDevice,
} from './common.js';
import { count, percent, printJson, say } from './output.js';
import { Progress } from './progress.js';
import { classFolders, kindOf } from './sources.js';

export function evalCommand(program: Command): void {
  withDevice(program.command('eval'))
    .description('accuracy on pictures, or videos, that lie in one folder per class')
    .requiredOption('--model <dir>', 'a model folder')
    .requiredOption(
      '--data <folder>',
      'holds a folder for each class, named like its label; else in the order of the classes',
    )
    .option('--batch <n>', 'pictures per run (default: 64, of few pictures fewer), or views of a video (1)', integer(1))
    .addOption(viewsOption())
    .action(run);
}

async function run(
  options: DeviceOptions & { model: string; data: string; batch?: number; views?: Views },
): Promise<void> {
  using model = await loadModel(options.model, modelOptions(options));
  const kind = kindOf(model.input);
  const views = viewsFor(model, options.views);
  const { files, classes, others, by } = await classFolders(
    options.data,
    model.labels,
    model.options?.classes ?? model.labels?.length ?? 0,
    kind,
  );
  // Of few pictures a tenth, so that the bar moves.
  const { batch = kind.one === 'video' ? 1 : Math.min(64, Math.ceil(files.length / 10)) } = options;
  const progress = new Progress();
  let [seen, top1, top5, bad, milliseconds, frames] = [0, 0, 0, 0, 0, 0];
  const begin = performance.now();
  const rate = () => (1000 * frames) / (performance.now() - begin);
  const failed = (error: Error) => {
    bad++;
    progress.error(error.message);
    process.exitCode = 1;
  };
  /** Of what is done, all of it or until an interrupt. */
  function report(): void {
    const interrupted = seen + bad < files.length;
    if (options.json) {
      printJson({
        ...(interrupted && { interrupted }),
        [kind.many]: seen,
        failed: bad,
        others,
        classesBy: by,
        top1,
        top5,
        [kind.one === 'video' ? 'millisecondsPerVideo' : 'millisecondsPerPicture']: milliseconds / seen,
        ...(frames && { ...views, frames, framesPerSecond: rate() }),
        ...placeOf(model),
      });
      return;
    }
    if (interrupted) say(`interrupted after ${count(seen + bad)} of ${count(files.length)} ${kind.many}`);
    say(`top-1 ${count(top1)} of ${count(seen)}, ${percent(top1 / seen)}`);
    say(`top-5 ${count(top5)} of ${count(seen)}, ${percent(top5 / seen)}`);
    if (others) say(`passed over, no ${kind.many} by their names: ${count(others)} file${others === 1 ? '' : 's'}`);
    if (by === 'order')
      say('folders are classes by their order, as in ImageFolder: their names are no labels of one class');
    say(`${(milliseconds / seen).toFixed(2)} ms per ${kind.one} in the network, ${deviceLine(model)}`);
    if (frames) say(`${count(frames)} frames seen, ${rate().toFixed(1)} a second with decoding`);
  }

  const stop = new AbortController();
  const interrupt = () => stop.abort();
  process.once('SIGINT', interrupt);
  const { signal } = stop;
  if (!options.json) await progress.start(files.length, kind.many);
  try {
    for await (const { index, top, ...result } of classify(model, files, { top: 5, batch, failed, signal, ...views })) {
      // By index: labels may repeat.
      const place = top.findIndex((guess) => guess.index === classes[index]);
      seen++;
      if (place === 0) top1++;
      if (place >= 0) top5++;
      milliseconds += result.milliseconds;
      frames += result.frames ?? 0;
      const speed = frames ? `, ${rate().toFixed(0)} frames/s` : '';
      progress.update(seen + bad, `${kind.many}, top-1 ${percent(top1 / seen)}${speed}`);
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  } finally {
    process.off('SIGINT', interrupt);
    progress.stop();
  }
  if (seen > 0) report();
  if (signal.aborted)
    process.kill(process.pid, 'SIGINT'); // nobody listens any longer: it ends the process
  else if (seen === 0)
    throw new OctconvError(`${options.data}: none of ${count(files.length)} ${kind.many} could be read`);
}
