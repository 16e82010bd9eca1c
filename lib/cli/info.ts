import { stat } from 'node:fs/promises';
import type { Command } from 'commander';
import { table, terminalWidth, wordOf } from '../bench/table.js';
import { costsOf, type StepCost } from '../costs.js';
import { arrayFor, type TypedArray } from '../dtype.js';
import { OctconvError } from '../error.js';
import { countFlops } from '../flops.js';
import type { ComputeType, GraphNode, TensorType } from '../graph/graph.js';
import { isClip } from '../input/clips.js';
import { describeInput } from '../input/preprocess.js';
import { registersOf } from '../kernels.js';
import { Model, type ModelOptions } from '../model.js';
import { inputShape, networkNames } from '../models/index.js';
import type { Launch } from '../native.js';
import { didYouMean } from '../options.js';
import type { Plan } from '../plan.js';
import { quantizedTensors } from '../quantize.js';
import { type Measured, measureBatching, powersOfTwo, usualMaxBatch } from '../service/engine.js';
import type { Shape } from '../tensor.js';
import { elementCount, type TensorInfo } from '../weights/source.js';
import {
  deviceLine,
  deviceOption,
  type DeviceOptions,
  dtypeOption,
  integer,
  pixels,
  isShaped,
  modelFrom,
  type NetworkFlags,
  networkFrom,
  placeOf,
  withShape,
} from './common.js';
import { printCosts, printNetworks } from './networks.js';
import { count, paragraph, print, printJson, style, UsageError } from './output.js';

export function infoCommand(program: Command): void {
  withShape(program.command('info [network]'))
    .description('layers, parameters, FLOPs, fused steps and memory of a network name, model folder or weight file')
    .option('--model <dir>', 'a model folder, as other commands name it')
    .option('--size <pixels>', 'height and width of the input (default: what the network was made for)', pixels)
    .option('--frames <n>', 'frames of the input, of a video network', integer(1))
    .option('--batch <n>', 'images or clips per run', integer(1), 1)
    .addOption(
      deviceOption('what the plan is for: auto, a device that octconv devices lists, or cuda:sm_90, without a GPU'),
    )
    .addOption(dtypeOption())
    .option('--threads <n>', 'threads of a run (default: all cores)', integer(1))
    .option('--graph', 'every step, before and after fusion, and its shapes')
    .option('--plan', 'every step after fusion, and what it costs')
    .option('--networks', 'the names of all networks, and their options')
    .option('--table', 'parameters and FLOPs of all networks, of those of the paper also as published')
    .option('--batching', 'how long batches take, and which of them octconv serve runs')
    .option('--json', 'print one JSON object')
    .action(run);
}

interface Options extends NetworkFlags {
  size?: number;
  frames?: number;
  batch: number;
  device: DeviceOptions['device'];
  dtype?: ComputeType;
  threads?: number;
  graph?: boolean;
  plan?: boolean;
  batching?: boolean;
  networks?: boolean;
  table?: boolean;
  json?: boolean;
}

async function run(network: string | undefined, options: Options): Promise<void> {
  const { size, frames, batch, json } = options;
  if ((options.networks || options.table) && (network !== undefined || isShaped(options)))
    throw new UsageError('--networks and --table are of all networks: no network beside them, and no option of one');
  if (options.networks) return printNetworks(json);
  if (options.table) return printCosts(json);
  using model = await open(network, options);
  const input = inputShape(model, { height: size, width: size, frames }).with(0, batch);
  const plan = await model.plan(input);
  const { graph, memory } = plan;
  const flops = countFlops(graph);
  const layers: Record<string, number> = {};
  for (const { op } of graph.nodes) layers[op] = (layers[op] ?? 0) + 1;
  const recorded = graph.nodes.map((node) => describe(node, graph.values));
  const fused = stepsOf(plan);
  const measured = options.batching ? await batchingOf(model, input.slice(1)) : undefined;
  if (json) {
    const { name, options: networkOptions } = model;
    const about = {
      network: name,
      options: networkOptions,
      input,
      preprocessing: model.input,
      ...placeOf(model),
      layers,
      ...flops,
    };
    const steps = {
      ...(options.graph && { graph: recorded }),
      ...((options.graph || options.plan) && { plan: fused }),
    };
    printJson({ ...about, steps: plan.steps.length, memory, ...steps, ...(measured && { batching: measured }) });
    return;
  }
  const given = Object.entries(model.options ?? {}).map(([key, value]) => `${key} ${wordOf(value)}`);
  print(style('bold', paragraph('', `${model.name} ${given.join(', ')}`.trim(), 2)));
  const facts = {
    input: `[${input.join(', ')}]`,
    ...(model.input &&
      size === undefined &&
      frames === undefined && {
        [isClip(model.input) ? 'of a video' : 'of a picture']: describeInput(model.input),
      }),
    layers: Object.entries(layers)
      .map(([op, n]) => `${n} ${op}`)
      .join(', '),
    parameters: count(flops.parameters),
    ...(network !== undefined &&
      networkNames.includes(network) && { weights: 'none given; the numbers here are the same for any' }),
    'multiply-adds': `${(flops.multiplyAdds / 1e9).toFixed(3)} G`,
    "the authors' count": `${(flops.authors / 1e9).toFixed(3)} G, with pooling and ReLU`,
    steps: `${graph.nodes.length} recorded, ${plan.steps.length} after fusion`,
    device: deviceLine(model),
    'memory of a run': `${mebi(memory.activations)} of activations, ${mebi(memory.run)} with scratch`,
  };
  for (const [key, value] of Object.entries(facts)) print(paragraph(`  ${key.padEnd(20)}`, value, 22));
  if (options.graph) {
    show('recorded', shapesTable(recorded));
    show('after fusion', shapesTable(fused));
  }
  if (measured) show('batches that octconv serve runs', batchTable(measured));
  if (options.plan) {
    show('plan', fused.some(({ launches }) => launches.length > 0) ? launchTable(fused) : planTable(fused));
    const weights = fused.reduce((sum, { bytes }) => sum + bytes.weights, 0);
    print(paragraph('  ', `${mebi(weights)} of weights; a run has ${facts['memory of a run']}`, 2));
  }
}

/** The batches that are worth it, on this machine and now. */
async function batchingOf(model: Model, row: Shape): Promise<Measured> {
  const sizes = powersOfTwo(usualMaxBatch(model.device));
  return (await measureBatching(model, row, sizes, true)).batching;
}

function batchTable({ sizes, milliseconds, instances, overlap }: Measured): string {
  const rows = sizes.map((size, i) => {
    const taken = milliseconds[i] as number;
    return [`${size}`, taken.toFixed(2), ((1000 * size) / taken).toFixed(1)];
  });
  return `${table(['batch', 'ms', 'rows/s'], rows)}\n${instances} in flight at a time${overlap ? ', and another one that is full' : ''}`;
}

const mebi = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

function show(title: string, lines: string): void {
  print(style('bold', `\n${title}`));
  print(lines.replace(/^/gm, '  '));
}

interface Shown {
  readonly name: string;
  readonly op: string;
  readonly shapes: string;
}

function describe(
  { name, op, inputs, outputs }: Omit<GraphNode, 'attrs' | 'params'>,
  values: readonly TensorType[],
): Shown {
  const list = (ids: readonly number[]) => ids.map((id) => values[id]?.shape.join('x')).join(' + ');
  return { name, op, shapes: `${list(inputs)} -> ${list(outputs)}` };
}

type PlanStep = Shown &
  StepCost & { readonly algorithm: string; readonly launches: readonly ShownLaunch[]; readonly scratchBytes: number };
type ShownLaunch = Launch & { readonly registers?: number | undefined };

function stepsOf(plan: Plan): PlanStep[] {
  const costs = costsOf(plan);
  const registers = registersOf(plan.target);
  return plan.steps.map((step, i) => {
    const { algorithm = '', launches = [], scratchBytes = 0 } = plan.infos[i] ?? {};
    return {
      ...describe(step, plan.values),
      ...(costs[i] as StepCost),
      algorithm,
      scratchBytes,
      launches: launches.map((launch) => ({ ...launch, registers: registers?.[launch.kernel] })),
    };
  });
}

function shapesTable(steps: readonly (Shown & { algorithm?: string })[]): string {
  const lines = steps.map(({ name, op, shapes, algorithm = '' }) => [name, op, `${shapes}  ${algorithm}`.trim()]);
  return table(['step', 'op', 'shapes'], lines, { left: ['op', 'shapes'], named: false, width: terminalWidth() - 2 });
}

/** `tile 6x16 2 blocks x 1` as `6x16 2x1`, `winograd 4x4` as `w4`, over time as `wt`. */
const shortened = (algorithm: string): string =>
  algorithm
    .replaceAll(/winograd (\d)x\d, /g, 'w$1 ')
    .replaceAll(/winograd \d over time, /g, 'wt ')
    .replaceAll(/tile (\S+) (\d+) blocks x (\d+)/g, '$1 $2x$3');

const kibi = (bytes: number) => count(Math.ceil(bytes / 1024));

/** A line for each launch; FLOPs and bytes are those of the step. */
function launchTable(steps: readonly PlanStep[]): string {
  const mega = (n: number) => count(Math.round(n / 1e6));
  const sum = (some: readonly PlanStep[], of: (step: PlanStep) => number) =>
    some.reduce((total, step) => total + of(step), 0);
  const costs = (some: readonly PlanStep[]) => [
    mega(2 * sum(some, ({ multiplyAdds }) => multiplyAdds)),
    kibi(sum(some, ({ bytes, scratchBytes }) => bytes.inputs + bytes.weights + scratchBytes)),
    kibi(sum(some, ({ bytes, scratchBytes }) => bytes.outputs + scratchBytes)),
  ];
  const lines = steps.flatMap((step) =>
    step.launches.map(({ kernel, tile, blocks, threads, registers, sharedBytes }, i) => [
      ...[i === 0 ? step.name : '', kernel, tile, count(blocks), count(threads), String(registers ?? '')],
      ...[sharedBytes ? kibi(sharedBytes) : '', ...(i === 0 ? costs([step]) : [])],
    ]),
  );
  lines.push(['all', `${lines.length} launches`, '', '', '', '', '', ...costs(steps)]);
  const head = ['step', 'kernel', 'tile', 'blocks', 'threads', 'regs', 'KiB shared', 'MFLOP', 'KiB in', 'KiB out'];
  const known = steps.some(({ launches }) => launches.some(({ registers }) => registers !== undefined));
  const at = head.indexOf('regs');
  const shown = (line: readonly string[]) => (known ? line : line.toSpliced(at, 1));
  const launches = table(shown(head), lines.map(shown), {
    left: ['kernel', 'tile'],
    drop: ['threads', 'KiB shared', 'regs', 'KiB out', 'KiB in', 'tile', 'MFLOP'],
    elsewhere: '--json, or | cat, shows all',
    width: terminalWidth() - 2,
  });
  const legend = ['tile: pixels x channels of a block / blocks that share one', 'MFLOP and KiB in, out: of the step'];
  return [launches, ...legend].join('\n');
}

function planTable(steps: readonly PlanStep[]): string {
  const narrow = terminalWidth() < 160;
  const mega = (n: number) => (n / 1e6).toFixed(1);
  const sum = (of: (step: PlanStep) => number) => steps.reduce((total, step) => total + of(step), 0);
  const bytes = (['inputs', 'outputs', 'weights'] as const).map((kind) => kibi(sum((step) => step.bytes[kind])));
  const lines = steps.map(({ name, op, inputs, outputs, computes, multiplyAdds, bytes, algorithm }) => [
    ...[name, op, narrow ? shortened(algorithm) : algorithm],
    ...[`${inputs.join('+')} -> ${outputs.join('+')}`, computes.join('+')],
    ...[mega(multiplyAdds), kibi(bytes.inputs), kibi(bytes.outputs), kibi(bytes.weights)],
  ]);
  lines.push(['all', '', '', '', '', mega(sum((step) => step.multiplyAdds)), ...bytes]);
  const head = ['step', 'op', 'algorithm', 'types', 'products', 'M MAdd', 'KiB in', 'KiB out', 'KiB weights'];
  return table(head, lines, {
    left: ['op', 'types', 'products', 'algorithm'],
    drop: ['KiB in', 'KiB out', 'KiB weights', 'products', 'types', 'op', 'M MAdd', 'algorithm'],
    elsewhere: '--json, or | cat, shows all',
    width: terminalWidth() - 2,
  });
}

/**
 * A network by its name alone. A plan depends on the types and shapes of weights, in i8 also on which layers see a value
 * with the same scale and zero point: `quantize` gives all that read one value the same, so all weights are ones here.
 */
async function named(flags: NetworkFlags, options: ModelOptions): Promise<Model> {
  const { network, source, ...described } = await networkFrom(flags);
  const tensors =
    options.dtype === 'i8' ? quantizedTensors(network, source.tensors, inputShape(described)) : source.tensors;
  const read = async (name: string): Promise<TypedArray> => {
    const { dtype, shape } = tensors.get(name) as TensorInfo;
    return new (arrayFor(dtype))(elementCount(shape)).fill(1);
  };
  return Object.assign(new Model(network, { tensors, read }, options), described);
}

async function open(network: string | undefined, flags: Options): Promise<Model> {
  const { device, dtype, threads, model } = flags;
  const options = { device, dtype, threads };
  if ((network === undefined) === (model === undefined))
    throw new UsageError('wanted either a network or --model; --networks lists the networks');
  if (network === undefined) return modelFrom(flags, options);
  if (networkNames.includes(network)) return named({ ...flags, network }, options);
  const found = await stat(network).catch(() => undefined);
  if (!found) {
    const near = didYouMean(network, networkNames);
    throw new OctconvError(`${network}: no such file, and no network${near}; info --networks lists those`);
  }
  return modelFrom({ ...flags, ...(found.isDirectory() ? { model: network } : { weights: network }) }, options);
}
