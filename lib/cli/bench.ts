import { writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Command } from 'commander';
import { chart } from '../bench/chart.js';
import { benchModels, modelsTable } from '../bench/models.js';
import { benchOps, opsTable } from '../bench/ops.js';
import { devices } from '../devices.js';
import { fileError } from '../weights/file.js';
import { makeFolder } from '../weights/folder.js';
import { type DeviceOptions, deviceOption, integer, listOf, number } from './common.js';
import { print, printJson, progressLine } from './output.js';

export function benchCommand(program: Command): void {
  const bench = program.command('bench').description('timed against onnxruntime-node, round by round, checked first');
  common(bench.command('models'))
    .description('whole networks, plain and octave at several alphas')
    .option('--network <name>', 'the plain network; its octave forms are added', 'resnet-50')
    .option('--alphas <list>', 'shares of the low branch', listOf(number), [0.125, 0.25, 0.5, 0.75])
    .option('--threads <list>', 'threads of a run (default: 1 and all cores)', listOf(integer(1)))
    .option('--chart <file>', 'SVG of milliseconds over FLOPs')
    .action(models);
  common(bench.command('ops'))
    .description('every step of a network beside its bound, its ops one by one beside onnxruntime')
    .option('--network <name>', 'a registered network', 'oct-resnet-50')
    .option('--alpha <share>', 'share of the low branch', number)
    .option('--threads <n>', 'threads of a run', integer(1), 1)
    .action(ops);
}

function common(command: Command): Command {
  return command
    .option('--size <pixels>', 'height and width of the input', integer(1), 224)
    .option('--batch <n>', 'images per run', integer(1), 1)
    .addOption(deviceOption())
    .option('--rounds <n>', 'interleaved rounds', integer(1), 20)
    .option('--out <file>', 'keep the result as JSON')
    .option('--json', 'print one JSON object');
}

interface Common {
  size: number;
  batch: number;
  device: DeviceOptions['device'];
  rounds: number;
  out?: string;
  json?: boolean;
}

type ModelsOptions = Common & { network: string; alphas: number[]; threads?: number[]; chart?: string };

async function models(options: ModelsOptions): Promise<void> {
  await prepare(options.out, options.chart);
  const line = progressLine();
  const { threads = [...new Set([1, devices().threads])] } = options;
  const result = await benchModels({ ...options, threads, progress: line.show });
  line.clear();
  if (options.chart) await write(options.chart, chart(result, Math.max(...threads)));
  await report(options, result, modelsTable(result));
}

type OpsOptions = Common & { network: string; alpha?: number; threads: number };

async function ops({ alpha, ...options }: OpsOptions): Promise<void> {
  await prepare(options.out);
  const line = progressLine();
  const result = await benchOps({ ...options, options: alpha === undefined ? {} : { alpha }, progress: line.show });
  line.clear();
  await report(options, result, opsTable(result));
}

async function report({ out, json }: Common, result: object, table: string): Promise<void> {
  if (out) await write(out, `${JSON.stringify(result, null, 1)}\n`);
  if (json) printJson(result);
  else print(table);
}

/** Minutes of measuring are not lost to a folder that cannot be made. */
async function prepare(...files: (string | undefined)[]): Promise<void> {
  for (const file of files) {
    if (file === undefined) continue;
    await makeFolder(dirname(file)).catch((error) => {
      throw fileError(file, error);
    });
  }
}

async function write(file: string, text: string): Promise<void> {
  await writeFile(file, text).catch((error) => {
    throw fileError(file, error);
  });
}
