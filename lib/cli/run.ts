import { type Command, Option } from 'commander';
import { OctconvError, show } from '../error.js';
import { toNHWC } from '../layout.js';
import { inputShape } from '../models/index.js';
import { decodeNpy, encodeNpy, type NpyArray, readNpy } from '../npy.js';
import { type Shape, Tensor } from '../tensor.js';
import {
  areRandom,
  deviceLine,
  type DeviceOptions,
  inputsOf,
  modelFrom,
  modelOptions,
  type NetworkFlags,
  placeOf,
  withDevice,
  withNetwork,
} from './common.js';
import { note, print, printable, say } from './output.js';
import { checkOut, readStdin, standardInput, writeOut } from './streams.js';

export function runCommand(program: Command): void {
  withDevice(withNetwork(program.command('run')))
    .description(
      'a network on a .npy file of images or clips: f32 [N,H,W,C] or [N,T,H,W,C] in, f32 logits [N,classes] out',
    )
    .requiredOption('--input <file>', '.npy of images or clips; - is standard input')
    .requiredOption('--output <file>', '.npy of logits; - is standard output')
    .addOption(
      new Option('--layout <order>', 'of the input; of video these are N,T,H,W,C and N,C,T,H,W')
        .choices(['nhwc', 'nchw'])
        .default('nhwc'),
    )
    .action(run);
}

type Options = DeviceOptions & NetworkFlags & { input: string; output: string; layout: 'nhwc' | 'nchw' };

/** Bytes of standard input. */
const most = 2 ** 31;

async function run(options: Options): Promise<void> {
  const { input, output } = options;
  await checkOut(output, [input, ...(await inputsOf(options))]);
  const array = input === '-' ? await decodeNpy(await readStdin(most), standardInput) : await readNpy(input);
  using model = await modelFrom(options, modelOptions(options));
  const x = inputFrom(input === '-' ? standardInput : input, array, options.layout, inputShape(model));
  const begin = performance.now();
  await model.plan(x.shape);
  const start = performance.now();
  const y = await model.run(x);
  const [compile, milliseconds] = [start - begin, performance.now() - start];
  await writeOut(output, encodeNpy(output, y.shape, y.data));
  const tell = output === '-' ? note : options.json ? print : say;
  if (options.json) {
    const { name: network, options: networkOptions } = model;
    const shapes = { input: x.shape, output: y.shape };
    const result = {
      network,
      options: networkOptions,
      ...(areRandom(options) && { weights: 'random' }),
      ...shapes,
      file: output,
      milliseconds,
      compileMilliseconds: compile,
    };
    tell(JSON.stringify({ ...result, ...placeOf(model) }));
  } else {
    const times = `${milliseconds.toFixed(2)} ms after ${compile.toFixed(0)} ms of compiling`;
    tell(
      `${printable(output)}: logits [${y.shape}]${areRandom(options) ? ' of random weights' : ''}, ${times}, ${deviceLine(model)}`,
    );
  }
}

/** @throws OctconvError if the array is no batch of such inputs, or seems to be in the other layout. */
function inputFrom(name: string, { shape, data }: NpyArray, layout: Options['layout'], wanted: Shape): Tensor<'f32'> {
  const [rank, channels] = [wanted.length, wanted.at(-1)];
  const orders = rank === 5 ? { nhwc: '[N,T,H,W,C]', nchw: '[N,C,T,H,W]' } : { nhwc: '[N,H,W,C]', nchw: '[N,C,H,W]' };
  const other = layout === 'nchw' ? 'nhwc' : 'nchw';
  const wrong = (why: string) => new OctconvError(`${name}: shape ${show(shape)}, wanted ${orders[layout]}${why}`);
  if (shape.length !== rank) throw wrong('');
  const found = { nhwc: shape.at(-1) === channels, nchw: shape[1] === channels };
  if (!found[layout])
    throw wrong(
      ` with ${channels} channels${found[other] ? `; this looks like ${orders[other]}: --layout ${other}` : ''}`,
    );
  const given = new Tensor('f32', shape, data);
  return layout === 'nchw' ? toNHWC(given) : given;
}
