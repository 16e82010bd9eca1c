import { type Command, Option } from 'commander';
import { OctconvError } from '../error.js';
import { toNHWC } from '../layout.js';
import { readNpy, writeNpy } from '../npy.js';
import { Tensor } from '../tensor.js';
import {
  deviceLine,
  type DeviceOptions,
  modelFrom,
  modelOptions,
  type NetworkFlags,
  placeOf,
  withDevice,
  withNetwork,
} from './common.js';
import { print, printJson } from './output.js';

export function runCommand(program: Command): void {
  withDevice(withNetwork(program.command('run')))
    .description('a network on a .npy file of images: f32 [N,H,W,C] in, f32 logits [N,classes] out')
    .requiredOption('--input <file>', '.npy of images')
    .requiredOption('--output <file>', '.npy of logits')
    .addOption(new Option('--layout <order>', 'of the input').choices(['nhwc', 'nchw']).default('nhwc'))
    .action(run);
}

type Options = DeviceOptions & NetworkFlags & { input: string; output: string; layout: 'nhwc' | 'nchw' };

async function run(options: Options): Promise<void> {
  using model = await modelFrom(options, modelOptions(options));
  const { shape, data } = await readNpy(options.input);
  if (shape.length !== 4) {
    const wanted = options.layout === 'nchw' ? '[N,C,H,W]' : '[N,H,W,C]';
    throw new OctconvError(`${options.input}: shape [${shape}], wanted ${wanted}`);
  }
  const given = new Tensor('f32', shape, data);
  const x = options.layout === 'nchw' ? toNHWC(given) : given;
  await model.plan(x.shape);
  const start = performance.now();
  const y = await model.run(x);
  const milliseconds = performance.now() - start;
  await writeNpy(options.output, y.shape, y.data);
  if (options.json) {
    const { name: network, options: networkOptions } = model;
    const shapes = { input: x.shape, output: y.shape };
    const result = { network, options: networkOptions, ...shapes, file: options.output, milliseconds };
    printJson({ ...result, ...placeOf(model) });
  } else {
    print(`${options.output}: logits [${y.shape}], ${milliseconds.toFixed(2)} ms, ${deviceLine(model)}`);
  }
}
