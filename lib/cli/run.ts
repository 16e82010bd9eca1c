import { type Command, Option } from 'commander';
import { devices } from '../devices.js';
import { OctconvError } from '../error.js';
import { toNHWC } from '../layout.js';
import { readNpy, writeNpy } from '../npy.js';
import { Tensor } from '../tensor.js';
import { type DeviceOptions, deviceLine, modelFrom, modelOptions, type NetworkFlags, print, printJson, withDevice, withNetwork } from './common.js';

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
  if (shape.length !== 4) throw new OctconvError(`${options.input}: shape [${shape}], wanted ${options.layout === 'nchw' ? '[N,C,H,W]' : '[N,H,W,C]'}`);
  const given = new Tensor('f32', shape, data);
  const x = options.layout === 'nchw' ? toNHWC(given) : given;
  await model.plan(x.shape);
  const start = performance.now();
  const y = await model.run(x);
  const milliseconds = performance.now() - start;
  await writeNpy(options.output, y.shape, y.data);
  const { name: network, options: networkOptions, device, threads } = model;
  if (options.json) {
    const isa = device === 'cpu' ? devices().isa : undefined;
    printJson({ network, options: networkOptions, input: x.shape, output: y.shape, file: options.output, milliseconds, device, isa, threads });
  } else {
    print(`${options.output}: logits [${y.shape}], ${milliseconds.toFixed(2)} ms, ${deviceLine(model)}`);
  }
}
