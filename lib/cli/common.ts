/** What the commands share: options, output, and where a network comes from. */
import { styleText } from 'node:util';
import { fileURLToPath } from 'node:url';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { devices } from '../devices.js';
import { defaultInput, type InputConfig } from '../input/preprocess.js';
import { createModel, loadModel, type Model, type ModelOptions, type Network } from '../model.js';
import { buildNetwork, type NetworkOptions } from '../models/index.js';
import { type ResolvedOptions, resolveOptions } from '../models/infer.js';
import { checkWeights } from '../weights/check.js';
import { namedParameters } from '../layers/index.js';
import { isModelFolder, readModelFolder } from '../weights/folder.js';
import { initialize } from '../weights/random.js';
import { openWeights, type WeightSource } from '../weights/source.js';

/** The network that `classify` and `demo` use unless told otherwise. */
export const shippedModel = fileURLToPath(new URL('../../models/cifar10-oct-resnet-26-a50', import.meta.url));

// --- Options ------------------------------------------------------------------------------------------------------

export function integer(least: number) {
  return (text: string): number => {
    const value = Number(text);
    if (text.trim() !== '' && Number.isSafeInteger(value) && value >= least) return value;
    throw new InvalidArgumentError(`wanted an integer of at least ${least}.`);
  };
}

export function number(text: string): number {
  const value = Number(text);
  if (text.trim() !== '' && Number.isFinite(value)) return value;
  throw new InvalidArgumentError('wanted a number.');
}

/** A comma between each two. */
export function listOf<T>(one: (text: string) => T) {
  return (text: string): T[] => text.split(',').map(one);
}

/** A command was used in a way that its options allow but that makes no sense: exit code 2. */
export class UsageError extends Error {}

export interface DeviceOptions {
  device: 'auto' | 'cpu' | 'reference';
  threads?: number;
  json?: boolean;
}

export function withDevice(command: Command): Command {
  return command
    .addOption(new Option('--device <name>', 'what computes').choices(['auto', 'cpu', 'reference']).default('auto'))
    .option('--threads <n>', 'threads of a run (default: all cores)', integer(1))
    .option('--json', 'print one JSON object');
}

export interface NetworkFlags {
  network?: string;
  alpha?: number;
  width?: number;
  classes?: number;
  stem?: 'imagenet' | 'cifar';
  weights?: string;
  model?: string;
  seed?: number;
}

export function withShape(command: Command): Command {
  return command
    .option('--alpha <share>', 'share of the low branch, 0 <= alpha < 1', number)
    .option('--width <channels>', 'channels of the stem', integer(1))
    .option('--classes <n>', 'number of classes', integer(1))
    .addOption(new Option('--stem <kind>', 'imagenet: 7x7 and max-pool; cifar: 3x3').choices(['imagenet', 'cifar']));
}

export function withNetwork(command: Command): Command {
  return withShape(command.option('--network <name>', 'a registered network, e.g. oct-resnet-50'))
    .option('--weights <file>', '.pth or .safetensors; what is not given is read off it')
    .option('--model <dir>', 'a model folder')
    .option('--seed <n>', 'of random weights, without --weights (default: 0)', integer(0));
}

const shapeOf = ({ alpha, width, classes, stem }: NetworkFlags): NetworkOptions => ({
  ...(alpha !== undefined && { alpha }),
  ...(width !== undefined && { width }),
  ...(classes !== undefined && { classes }),
  ...(stem !== undefined && { stem }),
});

function checkFlags(flags: NetworkFlags): void {
  const { network, weights, model, seed } = flags;
  if (!network && !weights && !model) throw new UsageError('one of --network, --weights and --model is needed');
  if (model && (network || weights || Object.keys(shapeOf(flags)).length)) {
    throw new UsageError('--model says it all: it goes without --network, --weights, --alpha, --width, --classes and --stem');
  }
  if (seed !== undefined && (model || weights)) throw new UsageError('--seed is for random weights: it goes without --weights and --model');
}

/** A model from --model, --weights or --network. */
export async function modelFrom(flags: NetworkFlags, options: ModelOptions): Promise<Model> {
  checkFlags(flags);
  const { network, weights, model, seed = 0 } = flags;
  if (model) return loadModel(model, options);
  const shape = shapeOf(flags);
  if (weights) return loadModel(weights, { ...options, network: { ...shape, ...(network && { network }) } as Partial<ResolvedOptions> });
  return createModel(network ?? '', { ...shape, seed }, options);
}

export interface OpenNetwork {
  readonly name: string;
  readonly options: NetworkOptions;
  readonly network: Network;
  readonly source: WeightSource;
  readonly input: InputConfig;
}

/** The same without a device: the network and where its parameters come from. Close the source. */
export async function networkFrom(flags: NetworkFlags): Promise<OpenNetwork> {
  checkFlags(flags);
  const { network: name = '', weights, model, seed = 0 } = flags;
  const shape = shapeOf(flags);
  if (!model && !weights) {
    const network = buildNetwork(name, shape);
    return { name, options: shape, network, source: initialize(network, seed), input: defaultInput(shape.stem) };
  }
  const folder = model && (await isModelFolder(model)) ? await readModelFolder(model) : undefined;
  const source = folder?.weights ?? (await openWeights(model ?? weights ?? ''));
  const config = folder?.config ?? resolveOptions(source, { ...shape, ...(name && { network: name }) });
  const network = buildNetwork(config.network, config.options);
  checkWeights(new Map([...namedParameters(network)].map(([key, { shape }]) => [key, shape])), source);
  return { name: config.network, options: config.options, network, source, input: folder?.config.input ?? defaultInput(config.options.stem) };
}

export const modelOptions = ({ device, threads }: DeviceOptions): ModelOptions => ({ device, threads });

// --- Output -------------------------------------------------------------------------------------------------------

export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

export function printJson(value: unknown): void {
  print(JSON.stringify(value));
}

export function printError(message: string): void {
  process.stderr.write(`octconv: ${message}\n`);
}

const coloured = Boolean(process.stdout.isTTY) && !process.env.NO_COLOR;

/** Colour on a terminal only. */
export function style(format: Parameters<typeof styleText>[0], text: string): string {
  return coloured ? styleText(format, text) : text;
}

/** A line on a terminal's stderr that the next one replaces. */
export function progressLine(): { show(text: string): void; clear(): void } {
  if (!process.stderr.isTTY) return { show() {}, clear() {} };
  return {
    show: (text) => process.stderr.write(`\r\x1b[2K${text}`),
    clear: () => process.stderr.write('\r\x1b[2K'),
  };
}

/** `cpu avx2, 2 threads` */
export function deviceLine({ device, threads }: Model): string {
  return `${device}${device === 'cpu' ? ` ${devices().isa}` : ''}, ${threads} thread${threads === 1 ? '' : 's'}`;
}

export const count = (n: number): string => n.toLocaleString('en-US');
export const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
