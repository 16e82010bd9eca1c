import type { Dirent } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { Command } from 'commander';
import { classify } from '../classify.js';
import { OctconvError } from '../error.js';
import { loadModel } from '../model.js';
import { fileError } from '../weights/file.js';
import { deviceLine, type DeviceOptions, integer, modelOptions, placeOf, withDevice } from './common.js';
import { count, percent, print, printError, printJson, progressBar } from './output.js';

export function evalCommand(program: Command): void {
  withDevice(program.command('eval'))
    .description('accuracy on pictures that lie in one folder per class')
    .requiredOption('--model <dir>', 'a model folder')
    .requiredOption('--data <folder>', 'holds a folder for each class, named like its label')
    .option('--batch <n>', 'pictures per run', integer(1), 64)
    .action(run);
}

async function run(options: DeviceOptions & { model: string; data: string; batch: number }): Promise<void> {
  using model = await loadModel(options.model, modelOptions(options));
  const { labels } = model;
  if (!labels) throw new OctconvError(`${options.model}: no labels, wanted a model folder`);
  const files = await picturesOf(options.data, labels);

  const format = '{bar} {value}/{total} pictures, {eta_formatted} left, top-1 {top1}';
  const bar = options.json ? undefined : await progressBar(format);
  const interrupted = () => {
    bar?.stop();
    process.exit(130);
  };
  process.once('SIGINT', interrupted);
  let [seen, top1, top5, bad, milliseconds] = [0, 0, 0, 0, 0];
  const failed = (error: Error) => {
    bad++;
    if (bar) process.stderr.write('\r\x1b[2K'); // the bar comes back with the next picture
    printError(error.message);
    process.exitCode = 1;
  };
  bar?.start(files.length, 0, { top1: '-' });
  try {
    for await (const result of classify(model, files, { top: 5, batch: options.batch, failed })) {
      const wanted = basename(dirname(result.file));
      const place = result.top.findIndex(({ label }) => label === wanted);
      seen++;
      if (place === 0) top1++;
      if (place >= 0) top5++;
      milliseconds += result.milliseconds;
      bar?.update(seen, { top1: percent(top1 / seen) });
    }
  } finally {
    bar?.stop();
    process.off('SIGINT', interrupted);
  }
  if (seen === 0) throw new OctconvError(`${options.data}: none of ${count(files.length)} pictures could be read`);
  if (options.json) {
    const millisecondsPerPicture = milliseconds / seen;
    printJson({ pictures: seen, failed: bad, top1, top5, millisecondsPerPicture, ...placeOf(model) });
  } else {
    print(`top-1 ${count(top1)} of ${count(seen)}, ${percent(top1 / seen)}`);
    print(`top-5 ${count(top5)} of ${count(seen)}, ${percent(top5 / seen)}`);
    print(`${(milliseconds / seen).toFixed(2)} ms per picture in the network, ${deviceLine(model)}`);
  }
}

/** Every file of every class folder, in order; links are followed, hidden files are none. */
export async function picturesOf(folder: string, labels: readonly string[]): Promise<string[]> {
  const list = async (path: string) => {
    try {
      const entries = await readdir(path, { withFileTypes: true });
      return entries.filter(({ name }) => !name.startsWith('.')).sort((a, b) => (a.name < b.name ? -1 : 1));
    } catch (error) {
      throw fileError(path, error);
    }
  };
  const isFolder = async (entry: Dirent) =>
    entry.isSymbolicLink()
      ? ((await stat(join(entry.parentPath, entry.name)).catch(() => undefined))?.isDirectory() ?? false)
      : entry.isDirectory();
  const classes: string[] = [];
  for (const entry of await list(folder)) if (await isFolder(entry)) classes.push(entry.name);
  const unknown = classes.find((name) => !labels.includes(name));
  if (unknown !== undefined) {
    const known = `${labels.slice(0, 10).join(', ')}${labels.length > 10 ? ', ...' : ''}`;
    throw new OctconvError(`${join(folder, unknown)}: '${unknown}' is no label of the model (${known})`);
  }
  const files: string[] = [];
  for (const name of classes) {
    for (const entry of await list(join(folder, name))) {
      if (!(await isFolder(entry))) files.push(join(folder, name, entry.name));
    }
  }
  if (files.length === 0) throw new OctconvError(`${folder}: no pictures, wanted one folder per class`);
  return files;
}
