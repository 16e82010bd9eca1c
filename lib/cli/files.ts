/** convert and export: from one kind of file to another. */
import { readFile, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { OctconvError } from '../error.js';
import { openNetwork, record } from '../model.js';
import { fileError } from '../weights/file.js';
import { readConfigBeside, writeModelFolder } from '../weights/folder.js';
import { integer, listOf, type NetworkFlags, networkFrom, number, withNetwork } from './common.js';
import { count, print } from './output.js';

export function convertCommand(program: Command): void {
  program
    .command('convert <file> <dir>')
    .description('makes a model folder of a PyTorch checkpoint (.pth) or .safetensors file')
    .option('--labels <file>', 'names of the classes, one per line (default: class 0, class 1, ...)')
    .option('--size <pixels>', 'height and width of the input, as trained', integer(1))
    .option('--resize <pixels>', 'short side of a picture before the crop to --size', integer(1))
    .addOption(new Option('--interpolation <kind>', 'of the resize').choices(['bilinear', 'bicubic']))
    .option('--mean <r,g,b>', 'subtracted from 0 .. 1', colour)
    .option('--std <r,g,b>', 'divides', colour)
    .addHelpText(
      'after',
      '\nThe input and the labels are otherwise those of config.json and labels.txt in the folder of the checkpoint, as\n' +
        'examples/train writes them; without these the input is as usual for ImageNet, with a 3x3 stem for CIFAR-10.',
    )
    .action(convert);
}

function colour(text: string): number[] {
  const values = listOf(number)(text);
  if (values.length === 3) return values;
  throw new InvalidArgumentError('wanted three numbers with commas between them.');
}

interface ConvertOptions {
  labels?: string;
  size?: number;
  resize?: number;
  interpolation?: 'bilinear' | 'bicubic';
  mean?: [number, number, number];
  std?: [number, number, number];
}

async function convert(file: string, folder: string, { labels, size, ...given }: ConvertOptions): Promise<void> {
  const beside = await readConfigBeside(file);
  const trained = beside && { network: beside.config.network, ...beside.config.options };
  const { name: network, options, source, ...read } = await openNetwork(file, trained).catch((error: Error) => {
    throw beside ? new OctconvError(`${error.message} (the network is that of config.json in its folder)`) : error;
  });
  try {
    const { input: usual, labels: known } = { ...read, ...(beside && { input: beside.config.input, labels: beside.labels }) };
    const sizes = size ? { height: size, width: size, resize: Math.max(size, usual.resize) } : {};
    const input = { ...usual, ...sizes, ...given };
    const unnamed = () => Array.from({ length: options.classes }, (_, i) => `class ${i}`);
    const names = labels ? await lines(labels) : (known ?? unnamed());
    await writeModelFolder(folder, { network, options, input }, names, source);
    const { alpha, width, classes } = options;
    const tensors = count(source.tensors.size);
    const from = beside ? `, input and labels from ${dirname(file)}` : '';
    print(`${folder}: ${network}, alpha ${alpha}, width ${width}, ${classes} classes, ${tensors} tensors${from}`);
  } finally {
    await source.close();
  }
}

async function lines(file: string): Promise<string[]> {
  try {
    return (await readFile(file, 'utf8')).replace(/\r/g, '').replace(/\n+$/, '').split('\n');
  } catch (error) {
    throw fileError(file, error);
  }
}

export function exportCommand(program: Command): void {
  withNetwork(program.command('export'))
    .description('a network as it was recorded, unfused, in another format')
    .requiredOption('--onnx <file>', 'ONNX: input [N,3,H,W], output logits [N,classes], N dynamic')
    .option('--size <pixels>', 'height and width of the input (default: what the network was made for)', integer(1))
    .action(toFile);
}

async function toFile({ onnx, size, ...flags }: NetworkFlags & { onnx: string; size?: number }): Promise<void> {
  const { readerOf, toOnnx } = await import('../graph/onnx.js');
  const { name, network, source, input } = await networkFrom(flags);
  try {
    const { height, width } = size ? { height: size, width: size } : input;
    const bytes = await toOnnx(record(network, [1, height, width, 3]), readerOf(source));
    await writeFile(onnx, bytes).catch((error) => {
      throw fileError(onnx, error);
    });
    print(`${onnx}: ${name}, input [N,3,${height},${width}], ${count(bytes.length)} bytes`);
  } finally {
    await source.close();
  }
}
