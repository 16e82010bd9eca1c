/** convert and export: from one kind of file to another. */
import { dirname, join } from 'node:path';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { OctconvError } from '../error.js';
import { isClip } from '../input/clips.js';
import { describeInput, type InputConfig, type PerChannel, pictureInput, resolveInput } from '../input/preprocess.js';
import { Model, openNetwork } from '../model.js';
import { defaultInputOf, inputShape } from '../models/index.js';
import { inflate, type VideoKind, videoKinds } from '../models/inflate.js';
import { type HalfType, halfTypes, inHalf } from '../weights/half.js';
import { checkLabels, checkModelOutput, readConfigBeside, readLabels, writeModelFolder } from '../weights/folder.js';
import {
  areRandom,
  inputsOf,
  integer,
  type NetworkFlags,
  networkFrom,
  perChannel,
  withNetwork,
  withNotes,
} from './common.js';
import { count, note, print, printable, printJson, UsageError, say } from './output.js';
import { checkOut, writeOut } from './streams.js';

export function convertCommand(program: Command): void {
  program
    .command('convert <file> <dir>')
    .description('makes a model folder of a PyTorch checkpoint (.pth), .safetensors or MXNet .params file')
    .option('--key <name>', 'which dictionary of a .pth holds the parameters, e.g. model_ema')
    .option('--labels <file>', 'names of the classes, one per line, or imagenet-1k (default: class 0, class 1, ...)')
    .addOption(
      new Option(
        '--inflate <kind>',
        'weights of a ResNet to those of a video network: each kernel repeated over time, divided by the taps',
      ).choices(videoKinds),
    )
    .option('--size <pixels>', 'height and width of the input, as trained: 224, or 256x128', sides)
    .option(
      '--resize <pixels>',
      'short side of a picture before the crop to --size; 256x128: both, whatever its aspect ratio',
      sides,
    )
    .option('--crop-pct <share>', '--size as a share of --resize', within(0.01, 1))
    .addOption(new Option('--interpolation <kind>', 'of the resize').choices(['bilinear', 'bicubic']))
    .option('--frames <n>', 'of a clip, of a video network', integer(1))
    .option('--frame-stride <n>', 'frames of a video from one frame of a clip to the next', integer(1))
    .option('--bgr', 'the network takes blue first')
    .option('--scale <factor>', 'of the bytes 0 .. 255 (default: 1/255)', within(1e-6, 1000))
    .option('--mean <a,b,c>', 'subtracted, in the order of the channels', perChannel())
    .option('--std <a,b,c>', 'divides', perChannel(true))
    .addOption(
      new Option('--dtype <type>', 'round the kernels to half of the bytes; batch normalisation stays in f32').choices(
        halfTypes,
      ),
    )
    .option('--force', 'replace a model that is there')
    .option('--json', 'print one JSON object')
    .addHelpText(
      'after',
      '\nInput and labels are otherwise those of config.json and labels.txt beside the checkpoint, as examples/train writes\n' +
        'them; without these the input is as usual for ImageNet, with a 3x3 stem as usual for CIFAR-10.',
    )
    .action(convert);
}

interface InputFlags
  extends Partial<Pick<InputConfig, 'frames' | 'frameStride' | 'interpolation' | 'scale' | 'mean' | 'std'>> {
  readonly size?: readonly [number, number];
  readonly resize?: readonly [number, number];
  readonly cropPct?: number;
  readonly bgr?: boolean;
}

interface ConvertOptions extends InputFlags {
  readonly labels?: string;
  readonly key?: string;
  readonly inflate?: VideoKind;
  readonly dtype?: HalfType;
  readonly force?: boolean;
  readonly json?: boolean;
}

async function convert(
  file: string,
  folder: string,
  { labels, key, inflate: kind, dtype, force, json, ...flags }: ConvertOptions,
): Promise<void> {
  await checkModelOutput(folder, { force, inputs: [file] });
  const trained = await readConfigBeside(file);
  const given = trained && { network: trained.network, ...trained.options };
  const opened = await openNetwork(file, given, { key }).catch((error: Error) => {
    throw trained ? new OctconvError(`${error.message} (the network is that of config.json in its folder)`) : error;
  });
  const { labels: known } = withNotes(opened);
  try {
    const { name: network, options, source } = kind ? inflate(opened, kind) : opened;
    const seen = trained?.input ?? pictureInput(file, opened);
    const { frames, frameStride } = (kind && defaultInputOf(network, options)) ?? seen;
    const input = inputFrom(flags, { ...seen, frames, frameStride });
    const names = await namesOf(labels, options.classes, trained?.names ?? known);
    const weights = dtype ? inHalf(source, dtype) : source;
    await writeModelFolder(folder, { network, options, input }, names, weights, { force });
    const tensors = source.tensors.size;
    if (json) {
      printJson({ folder, network, options, input, tensors, ...(dtype && { dtype }) });
      return;
    }
    const { alpha, width, multiplier, groups, classes } = options;
    const grouped = groups === undefined ? '' : `, ${groups} groups`;
    const wide = (multiplier === undefined ? `width ${width}` : `multiplier ${multiplier}`) + grouped;
    say(
      `${printable(folder)}: ${network}, alpha ${alpha}, ${wide}, ${classes} classes, ${count(tensors)} tensors${dtype ? `, kernels in ${dtype}` : ''}${kind ? `, inflated from ${opened.name}` : ''}`,
    );
    const config = trained ? join(dirname(file), 'config.json') : known && join(file, 'config.json'); // a model folder
    const said = config ? `, as ${printable(config)} says` : ', as is usual for such a network';
    const assumed = Object.keys(flags).length ? '' : said;
    say(`input${assumed}: ${describeInput(input)}`);
  } finally {
    await opened.source.close();
  }
}

/**
 * What is left out is derived of what is given: the size that a picture is resized to, of the crop; the order of means,
 * of that of channels.
 */
function inputFrom({ size, resize, cropPct, bgr, ...given }: InputFlags, usual: InputConfig): InputConfig {
  if (!isClip(usual) && (given.frames ?? given.frameStride) !== undefined)
    throw new UsageError('--frames and --frame-stride are for video networks');
  const [height, width] = size ?? [usual.height, usual.width];
  const ratio = typeof usual.resize === 'number' ? usual.resize / Math.max(usual.height, usual.width) : 1;
  const derived = height === width ? Math.round(height * ratio) : ([height, width] as const);
  const asked = resize && (resize[0] === resize[1] ? resize[0] : resize);
  const order = (values: PerChannel) => (bgr ? ([...values].reverse() as unknown as PerChannel) : values);
  const resized =
    cropPct === undefined ? { resize: asked ?? (size ? derived : usual.resize) } : { resize: asked, cropPct };
  const channels = bgr ? { channels: 'bgr' as const, mean: order(usual.mean), std: order(usual.std) } : {};
  const seen = bgr ? 'bgr' : (usual.channels ?? 'rgb');
  const values = seen === 'gray' ? 1 : 3;
  for (const name of ['mean', 'std'] as const)
    if (given[name] && given[name].length !== values)
      throw new UsageError(
        `--${name} ${given[name].join(',')}: wanted ${values === 1 ? 'one number' : 'three numbers'} for ${seen}`,
      );
  return resolveInput({ ...usual, height, width, ...resized, ...channels, ...given }, 'convert: input');
}

async function namesOf(
  labels: string | undefined,
  classes: number,
  known: readonly string[] | undefined,
): Promise<readonly string[]> {
  if (labels === 'imagenet-1k') {
    const { imagenet1k } = await import('../input/imagenet-1k.js');
    checkLabels(imagenet1k, classes, labels);
    return imagenet1k;
  }
  return labels ? readLabels(labels, classes) : (known ?? Array.from({ length: classes }, (_, i) => `class ${i}`));
}

export function exportCommand(program: Command): void {
  withNetwork(program.command('export'))
    .description('a network as it was recorded, unfused, in another format')
    .requiredOption(
      '--onnx <file>',
      'ONNX: input [N,C,H,W] or [N,C,T,H,W], output logits [N,classes], N dynamic; - is standard output',
    )
    .option(
      '--size <pixels>',
      'height and width of the input, 224 or 256x128 (default: what the network was made for)',
      sides,
    )
    .option('--frames <n>', 'frames of the input, of a video network', integer(1))
    .option('--json', 'print one JSON object')
    .action(toFile);
}

interface ExportOptions extends NetworkFlags {
  readonly onnx: string;
  readonly size?: readonly [number, number];
  readonly frames?: number;
  readonly json?: boolean;
}

async function toFile({ onnx, size, frames, json, ...flags }: ExportOptions): Promise<void> {
  await checkOut(onnx, await inputsOf(flags));
  const { name, options, network, source, input } = await networkFrom(flags);
  using model = new Model(network, source); // closes it
  const shape = inputShape({ name, input, options }, { height: size?.[0], width: size?.[1], frames });
  const extent = [shape.at(-1), ...shape.slice(1, -1)];
  const bytes = await model.toOnnx(shape);
  await writeOut(onnx, [bytes]);
  const tell = onnx === '-' ? note : json ? print : say;
  const random = areRandom(flags);
  const about = { file: onnx, network: name, options, ...(random && { weights: 'random' }) };
  if (json) tell(JSON.stringify({ ...about, input: [null, ...extent], bytes: bytes.length }));
  else
    tell(
      `${printable(onnx)}: ${name}${random ? ' of random weights' : ''}, input [N,${extent}], ${count(bytes.length)} bytes`,
    );
}

/** `224` or `256x128`. */
function sides(text: string): readonly [number, number] {
  const [height = 0, width = height, ...more] = text.split('x').map(Number);
  const fine = [height, width].every((size) => Number.isInteger(size) && size >= 1 && size <= 65536);
  if (!fine || more.length) throw new InvalidArgumentError('wanted 224, or 256x128, from 1 to 65536 each.');
  return [height, width];
}

function within(least: number, most: number) {
  return (text: string): number => {
    const value = Number(text);
    if (text.trim() !== '' && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`wanted a number from ${least} to ${most}.`);
  };
}
