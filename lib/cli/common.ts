/** What the commands share: their options, and where a network comes from. */
import { fileURLToPath } from 'node:url';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { threadsOf } from '../bench/table.js';
import { deviceNames, mayBeDevice, targetOf } from '../devices.js';
import { oneOf } from '../error.js';
import { type ComputeType, computeTypes } from '../graph/graph.js';
import { checkViews, isClip, type Views } from '../input/clips.js';
import type { PerChannel } from '../input/preprocess.js';
import { loadModel, Model, type ModelOptions, type NetworkFile, openNetwork } from '../model.js';
import {
  buildNetwork,
  defaultInputOf,
  inputShape,
  type NetworkOptions,
  resolveNetworkOptions,
} from '../models/index.js';
import type { ResolvedOptions } from '../models/infer.js';
import type { Device } from '../native.js';
import { didYouMean } from '../options.js';
import { isModelFolder, modelFiles } from '../weights/folder.js';
import { initialize } from '../weights/random.js';
import { note, UsageError } from './output.js';
import { Progress } from './progress.js';

/** The network that `classify` and `demo` use unless told otherwise. */
export const shippedModel = fileURLToPath(new URL('../../models/cifar10-oct-resnet-26-a50', import.meta.url));

/** The video network that `demo` uses. */
export const videoModel = fileURLToPath(new URL('../../models/camera-motion-oct-i3d-26-a50', import.meta.url));

export function integer(least: number, most = Number.MAX_SAFE_INTEGER) {
  const wanted =
    most < Number.MAX_SAFE_INTEGER ? `an integer from ${least} to ${most}` : `an integer of at least ${least}`;
  return (text: string): number => {
    const value = Number(text);
    if (text.trim() !== '' && Number.isSafeInteger(value) && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`wanted ${wanted}.`);
  };
}

/** A height or a width, as a model folder takes it too. */
export const pixels = integer(1, 65536);

export function number(text: string): number {
  const value = Number(text);
  if (text.trim() !== '' && Number.isFinite(value)) return value;
  throw new InvalidArgumentError('wanted a number.');
}

/** A number for each channel: three, or one for grey pictures. */
export function perChannel(positive = false) {
  return (text: string): PerChannel => {
    const values = listOf(number)(text);
    if (![1, 3].includes(values.length) || (positive && values.some((x) => x <= 0))) {
      throw new InvalidArgumentError(
        `wanted 3 ${positive ? 'positive numbers' : 'numbers'} with commas between them, or one for grey pictures.`,
      );
    }
    return values as unknown as PerChannel;
  };
}

/** Parts with the separator between each two. */
export function listOf<T>(one: (text: string) => T, separator = ',') {
  return (text: string): T[] => text.split(separator).map(one);
}

export interface DeviceOptions {
  device: Device | 'auto';
  dtype?: ComputeType;
  threads?: number;
  json?: boolean;
}

function device(text: string): string {
  const known = deviceNames();
  if (mayBeDevice(text)) return text;
  throw new InvalidArgumentError(`wanted ${known.join(', ')}${didYouMean(text, known)}.`);
}

export const deviceOption = (purpose = 'what computes: auto, or a device that octconv devices lists'): Option =>
  new Option('--device <name>', purpose).argParser(device).default('auto');

export function dtype(text: string): ComputeType {
  const found = computeTypes.find((known) => known === text);
  if (found) return found;
  throw new InvalidArgumentError(`wanted ${oneOf(computeTypes)}.`);
}

export const dtypeOption = (usual = 'i8 if the weights are quantized, else f32'): Option =>
  new Option('--dtype <type>', `what the convolutions multiply (default: ${usual})`).choices(computeTypes);

export function withDevice(command: Command): Command {
  return command
    .addOption(deviceOption())
    .addOption(dtypeOption())
    .option('--threads <n>', 'threads of a run (default: all cores)', integer(1))
    .option('--json', 'print one JSON object');
}

/** `4x3` is 4 clips x 3 crops; `30`, as papers call it, is `10x3`. */
function views(text: string): Views {
  const [, clips, crops] = /^(\d{1,4})x(\d{1,2})$/.exec(text === '30' ? '10x3' : text) ?? [];
  try {
    return checkViews({ clips: Number(clips), crops: Number(crops) as 3 });
  } catch {
    throw new InvalidArgumentError('wanted CLIPSxCROPS as 4x3, of 1, 3 or 10 crops, or 30, which is 10x3.');
  }
}

export const viewsOption = (): Option =>
  new Option(
    '--views <clipsxcrops>',
    'of a video: 4x3 is 4 clips x 3 crops (1, 3 or 10), and 30 is 10x3 (default: 1x1, the middle)',
  ).argParser(views);

/** @throws UsageError for views of a picture. */
export function viewsFor({ input }: Pick<Model, 'input'>, given: Views | undefined): Views {
  if (given && !isClip(input)) throw new UsageError('--views is for video networks');
  return given ?? {};
}

/** The options of a network, each of which has a flag of its name. */
const shapeKeys = Object.keys({
  alpha: true,
  width: true,
  classes: true,
  stem: true,
  channels: true,
  blocks: true,
  groups: true,
  multiplier: true,
  stemWidths: true,
  nonLocal: true,
  temporalKernels: true,
} satisfies Record<keyof NetworkOptions, true>) as (keyof NetworkOptions)[];

export interface NetworkFlags extends NetworkOptions {
  network?: string;
  weights?: string;
  key?: string;
  model?: string;
  seed?: number;
}

export const withShape = (command: Command): Command =>
  withVariant(command.option('--alpha <share>', 'share of the low branch, 0 <= alpha < 1', number));

/** The options of a network beside alpha. */
export function withVariant(command: Command): Command {
  return command
    .option('--width <channels>', 'channels of the stem', integer(1))
    .option('--classes <n>', 'number of classes', integer(1))
    .addOption(new Option('--stem <kind>', 'imagenet: 7x7 and max-pool; cifar: 3x3').choices(['imagenet', 'cifar']))
    .option('--channels <n>', 'channels of the input: any number; pictures want 3, or 1 to be grey', integer(1))
    .option('--blocks <a,b,...>', 'blocks of each stage, of a network whose name has no depth', listOf(integer(1)))
    .option('--groups <n>', 'of the 3x3, of a ResNeXt', integer(1))
    .option('--multiplier <factor>', 'of all widths, of a MobileNet', number)
    .option('--stem-widths <a,b,c>', 'channels of the stem, of a v1f or v1e', listOf(integer(1)))
    .option('--non-local', 'with non-local blocks, of a video network')
    .option(
      '--temporal-kernels <a,b,.../...>',
      'taps over time of each conv1, of a video network, / between stages',
      listOf(listOf(integer(1)), '/'),
    );
}

export function withNetwork(command: Command): Command {
  return withShape(command.option('--network <name>', 'a registered network, e.g. oct-resnet-50'))
    .option('--weights <file>', '.pth, .safetensors or .params; what is not given is read off it')
    .option('--key <name>', 'which dictionary of a .pth holds the parameters')
    .option('--model <dir>', 'a model folder')
    .option('--seed <n>', 'of random weights, where there are no others (default: 0)', integer(0));
}

/** The options of a network that were given. */
export const shapeOf = (flags: NetworkOptions): NetworkOptions =>
  Object.fromEntries(shapeKeys.flatMap((key) => (flags[key] === undefined ? [] : [[key, flags[key]]])));

/** Whether there is a flag of a network's shape. */
export const isShaped = (flags: NetworkFlags): boolean => Object.keys(shapeOf(flags)).length > 0;

const flagOf = (key: string): string => `--${key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;

/** What must agree with a weight file. */
const givenTo = (flags: NetworkFlags): Partial<ResolvedOptions> =>
  ({ ...shapeOf(flags), ...(flags.network && { network: flags.network }) }) as Partial<ResolvedOptions>;

function checkFlags(flags: NetworkFlags): void {
  const { network, weights, model } = flags;
  if (!network && !weights && !model) throw new UsageError('one of --network, --weights and --model is needed');
  const other = model && (['network', 'weights', ...shapeKeys] as const).find((key) => flags[key] !== undefined);
  if (other) throw new UsageError(`--model says it all: no ${flagOf(other)} beside it`);
}

/** The files that they name. */
export async function inputsOf({ model, weights }: NetworkFlags): Promise<string[]> {
  if (weights !== undefined) return [weights];
  if (model === undefined) return [];
  return (await isModelFolder(model)) ? modelFiles(model) : [model];
}

/** Says what was chosen, renamed or converted in a file. */
export function withNotes<T extends { readonly notes?: readonly string[] | undefined }>(opened: T): T {
  for (const line of opened.notes ?? []) note(line);
  return opened;
}

/** A model from --model, --weights or --network. */
export async function modelFrom(flags: NetworkFlags, options: ModelOptions): Promise<Model> {
  checkFlags(flags);
  const file = flags.model ?? flags.weights;
  if (file !== undefined)
    return withNotes(await loadModel(file, { ...options, network: givenTo(flags), key: flags.key }));
  const { network, source, ...described } = await networkFrom(flags);
  if (options.dtype !== 'i8') return Object.assign(new Model(network, source, options), described);
  const { quantizeOnNoise } = await import('../bench/measure.js');
  const progress = new Progress();
  await progress.start();
  progress.show('quantizing random weights, with one input of noise');
  const weights = await quantizeOnNoise(network, source, inputShape(described)).finally(() => progress.stop());
  return Object.assign(new Model(network, weights, options), described);
}

/** Whether weights that nobody gave are random, and so is what comes of them. */
export const areRandom = ({ model, weights }: NetworkFlags): boolean => model === undefined && weights === undefined;

/** The same without a device: the network and where its parameters come from. Close the source. */
export async function networkFrom(flags: NetworkFlags): Promise<Omit<NetworkFile, 'labels'>> {
  checkFlags(flags);
  const { network: name = '', weights, model, seed = 0 } = flags;
  const file = model ?? weights;
  if (file !== undefined) return withNotes(await openNetwork(file, givenTo(flags), { key: flags.key }));
  const shape = shapeOf(flags);
  const network = buildNetwork(name, shape);
  const options = resolveNetworkOptions(name, shape);
  return { name, options, network, source: initialize(network, seed), input: defaultInputOf(name, options) };
}

export const modelOptions = ({ device, dtype, threads }: DeviceOptions): ModelOptions => ({ device, dtype, threads });

/** What a model runs on, and in. */
export function placeOf(model: Model): { device: string; isa: string; dtype: ComputeType; threads: number } {
  const { device, dtype, threads } = model;
  return { device, isa: targetOf(device).traits.isa, dtype, threads };
}

/** `cpu avx2, f32, 2 threads` */
export function deviceLine(model: Model): string {
  const { device, isa, dtype, threads } = placeOf(model);
  return `${device} ${isa}, ${dtype}, ${threadsOf(threads)}`;
}
