import { type Command, InvalidArgumentError, Option } from 'commander';
import { type GpuName, gpuNames, gpus } from '../bench/gpus.js';
import { devices, targetOf } from '../devices.js';
import { OctconvError } from '../error.js';
import { checkOutput, writeWhole } from '../files/write.js';
import type { ComputeType } from '../graph/graph.js';
import type { NetworkOptions } from '../models/index.js';
import {
  type DeviceOptions,
  deviceOption,
  dtype,
  dtypeOption,
  integer,
  listOf,
  number,
  pixels,
  shapeOf,
  withVariant,
} from './common.js';
import { print, printJson } from './output.js';
import { Progress } from './progress.js';

export function benchCommand(program: Command): void {
  const bench = program.command('bench').description('timed against onnxruntime-node, round by round, checked first');
  ofNetworks(common(bench.command('models'), 20))
    .description('whole networks, plain and octave at several alphas')
    .option('--network <list>', 'plain networks; their octave forms are added', listOf(named), ['resnet-50'])
    .option('--alphas <list>', 'shares of the low branch (default: those of the paper)', listOf(number))
    .option('--dtypes <list>', 'what the convolutions multiply: f32, bf16, f16, i8', listOf(dtype), ['f32'])
    .option('--batch <list>', 'images or clips per run', listOf(integer(1)), [1])
    .option('--threads <list>', 'threads of a run (default: 1 and all cores)', listOf(integer(1)))
    .addOption(deviceOption())
    .option('--chart <file>', 'SVG of milliseconds over FLOPs, at the first batch size and thread count')
    .action(models);
  ofNetworks(common(bench.command('ops'), 20))
    .description('every step of a network beside its bound, its ops one by one beside onnxruntime')
    .option('--network <name>', 'a registered network', 'oct-resnet-50')
    .option('--alpha <share>', 'share of the low branch', number)
    .addOption(dtypeOption('f32'))
    .option('--batch <n>', 'images per run', integer(1), 1)
    .option('--threads <n>', 'threads of a run', integer(1), 1)
    .addOption(deviceOption())
    .addOption(gpuOption('--gpu <name>', 'whose data sheet the bounds on a GPU are from (default: by its name)'))
    .action(ops);
  ofNetworks(common(bench.command('cuda'), 20))
    .description('networks on an NVIDIA GPU: by cuDNN, and by our kernels')
    .option('--network <name>', 'the plain network; its octave forms are added', 'resnet-50')
    .option('--alphas <list>', 'shares of the low branch', listOf(number), [0.125, 0.25, 0.5])
    .option(
      '--dtypes <list>',
      'what the convolutions multiply (default: f32, as TF32, and bf16; f16 on GPUs that have only that)',
      listOf(dtype),
    )
    .option('--batch <list>', 'images or clips per run', listOf(integer(1)), [1, 8, 32, 128])
    .option('--device <name>', 'cuda, or one of several GPUs, as cuda:1', 'cuda')
    .addOption(
      gpuOption(
        '--estimate <gpu>',
        'nothing is run: what a roofline of this GPU says of the plans (needs npm run build:cuda)',
      ).conflicts(['device', 'rounds']),
    )
    .action(cuda);
  ofNetworks(common(bench.command('memory'), 5))
    .description('peak memory of a fresh process, and milliseconds from opening a model folder to its first result')
    .option('--network <name>', 'a registered network', 'oct-resnet-50')
    .option('--alpha <share>', 'share of the low branch', number)
    .option('--dtypes <list>', 'what the convolutions multiply: f32, bf16, i8', listOf(dtype), ['f32', 'bf16', 'i8'])
    .option('--threads <n>', 'threads of a run (default: all cores)', integer(1))
    .action(memory);
  common(bench.command('loop'), 5)
    .description('how late the event loop comes while a model folder is loaded, warmed up, run and disposed of')
    .option('--network <name>', 'a registered network', 'oct-resnet-152')
    .option('--alpha <share>', 'share of the low branch', number, 0.5)
    .option('--threads <n>', 'threads of a run (default: all cores)', integer(1))
    .action(loop);
  bench
    .command('serve')
    .description(
      'the service over HTTP under rising load, beside the library alone, Express and MLServer around onnxruntime',
    )
    .addOption(new Option('--model <dir>', 'a model folder').conflicts(['network', 'alpha', 'size']))
    .option('--network <name>', 'a registered network, with random weights', 'oct-resnet-50')
    .option('--alpha <share>', 'share of the low branch', number)
    .option('--size <pixels>', 'height and width of the input', pixels, 224)
    .option('--seconds <n>', 'of a stage of constant rate', positive, 10)
    .option('--rates <list>', 'pictures per second (default: rising until saturation)', listOf(positive))
    .option('--jpeg [file]', 'JPEGs instead of tensors (default: a made one of 500 x 375)')
    .option('--queue <rows>', 'rows that may wait in the service', integer(1), 64)
    .option('--no-peers', 'without Express and MLServer')
    .option('--out <file>', 'keep the result as JSON')
    .option('--json', 'print one JSON object')
    .action(serve);
}

function positive(text: string): number {
  const value = number(text);
  if (value > 0) return value;
  throw new InvalidArgumentError('wanted a positive number.');
}

function named(text: string): string {
  if (text !== '') return text;
  throw new InvalidArgumentError('wanted names with commas between them.');
}

const gpuOption = (flags: string, text: string) => new Option(flags, text).choices(gpuNames);

function common(command: Command, rounds: number): Command {
  return command
    .option('--size <pixels>', 'height and width of the input', pixels, 224)
    .option('--rounds <n>', 'interleaved rounds', integer(1), rounds)
    .option('--out <file>', 'keep the result as JSON')
    .option('--json', 'print one JSON object');
}

/** Of a bench that takes any network. */
const ofNetworks = (command: Command): Command =>
  withVariant(
    command.option('--frames <n>', 'frames of a clip, of a video network (default: as it is made for)', integer(1)),
  );

interface Common {
  size: number;
  rounds: number;
  out?: string;
  json?: boolean;
}

interface ModelsOptions extends Common, NetworkOptions {
  frames?: number;
  network: string[];
  alphas?: number[];
  dtypes: ComputeType[];
  device: DeviceOptions['device'];
  batch: number[];
  threads?: number[];
  chart?: string;
}

async function models(options: ModelsOptions): Promise<void> {
  await prepare(options.out, options.chart);
  const { benchModels, modelsTable } = await import('../bench/models.js');
  const line = await progress();
  const { threads = [...new Set([1, devices().threads])] } = options;
  const result = await benchModels({
    ...options,
    networks: options.network,
    options: shapeOf(options),
    batches: options.batch,
    threads,
    progress: line.show,
  });
  line.stop();
  if (options.chart) await writeWhole(options.chart, [(await import('../bench/chart.js')).chart(result)]);
  await report(options, result, modelsTable(result));
}

interface OpsOptions extends Common, NetworkOptions {
  frames?: number;
  network: string;
  dtype?: ComputeType;
  device: DeviceOptions['device'];
  batch: number;
  threads: number;
  gpu?: GpuName;
}

async function ops(options: OpsOptions): Promise<void> {
  if (options.gpu && !targetOf(options.device).traits.ownMemory)
    throw new OctconvError(`bench: --gpu ${options.gpu} wants a GPU as --device, as cuda`);
  await prepare(options.out);
  const { benchOps, opsTable } = await import('../bench/ops.js');
  const line = await progress();
  const result = await benchOps({ ...options, options: shapeOf(options), progress: line.show });
  line.stop();
  await report(options, result, opsTable(result));
}

interface CudaOptions extends Common, NetworkOptions {
  network: string;
  alphas: number[];
  dtypes?: ComputeType[];
  frames?: number;
  batch: number[];
  device: string;
  estimate?: GpuName;
}

async function cuda({ batch: batches, estimate: gpu, ...options }: CudaOptions): Promise<void> {
  await prepare(options.out);
  const line = await progress();
  try {
    const { computes } = targetOf(gpu ? `cuda:${gpus[gpu].architecture}` : options.device).traits;
    const { dtypes = computes.includes('bf16') ? (['f32', 'bf16'] as const) : computes } = options;
    const given = { ...options, options: shapeOf(options), dtypes, batches, progress: line.show };
    if (gpu) {
      const { estimate, estimateTable } = await import('../bench/estimate.js');
      const result = await estimate({ ...given, gpu });
      line.stop();
      return await report(options, result, estimateTable(result));
    }
    const { benchCuda, cudaTable } = await import('../bench/cuda.js');
    const result = await benchCuda(given);
    line.stop();
    await report(options, result, cudaTable(result));
    const ours = result.rows.filter(({ by }) => by === 'octconv');
    const wrong = ours.filter(({ why }) => why).length;
    if (wrong) throw new OctconvError(`bench: ${wrong} of ${ours.length} rows of octconv were not measured`);
  } finally {
    line.stop();
  }
}

interface MemoryOptions extends Common, NetworkOptions {
  frames?: number;
  network: string;
  dtypes: ComputeType[];
  threads?: number;
}

async function memory({ threads = devices().threads, ...options }: MemoryOptions): Promise<void> {
  await prepare(options.out);
  const { benchMemory, memoryTable } = await import('../bench/memory.js');
  const line = await progress();
  const result = await benchMemory({
    ...options,
    threads,
    options: shapeOf(options),
    progress: line.show,
  });
  line.stop();
  await report(options, result, memoryTable(result));
}

interface LoopOptions extends Common {
  network: string;
  alpha: number;
  threads?: number;
}

async function loop({ alpha, threads = devices().threads, ...options }: LoopOptions): Promise<void> {
  await prepare(options.out);
  const { benchLoop, loopTable } = await import('../bench/loop.js');
  const line = await progress();
  const result = await benchLoop({ ...options, threads, options: { alpha }, progress: line.show });
  line.stop();
  await report(options, result, loopTable(result));
}

interface ServeOptions extends Pick<Common, 'size' | 'out' | 'json'> {
  model?: string;
  network: string;
  alpha?: number;
  seconds: number;
  rates?: number[];
  jpeg?: string | true;
  queue: number;
  peers: boolean;
}

async function serve(options: ServeOptions): Promise<void> {
  await prepare(options.out);
  const { benchServe, serveTable } = await import('../bench/serve.js');
  const line = await progress();
  try {
    const result = await benchServe({ ...options, options: shapeOf({ alpha: options.alpha }), progress: line.show });
    line.stop();
    await report(options, result, serveTable(result));
  } finally {
    line.stop();
  }
}

async function progress(): Promise<Progress> {
  const line = new Progress();
  await line.start();
  return line;
}

async function report({ out, json }: Pick<Common, 'out' | 'json'>, result: object, table: string): Promise<void> {
  if (out) await writeWhole(out, [`${JSON.stringify(result, null, 1)}\n`]);
  if (json) printJson(result);
  else print(table);
}

/** Minutes of measuring are not lost to a file that cannot be. */
async function prepare(...files: (string | undefined)[]): Promise<void> {
  for (const file of files) if (file !== undefined) await checkOutput(file);
}
