/** convert and export: from one kind of file to another. */
import { readFile, writeFile } from 'node:fs/promises';
import type { Command } from 'commander';
import { toOnnx } from '../graph/onnx.js';
import { defaultInput } from '../input/preprocess.js';
import { namedParameters } from '../layers/index.js';
import { record } from '../model.js';
import { buildNetwork } from '../models/index.js';
import { inferOptions } from '../models/infer.js';
import { checkWeights } from '../weights/check.js';
import { fileError } from '../weights/file.js';
import { writeModelFolder } from '../weights/folder.js';
import { openWeights, type WeightSource } from '../weights/source.js';
import { count, integer, type NetworkFlags, networkFrom, print, withNetwork } from './common.js';

export function convertCommand(program: Command): void {
  program
    .command('convert <file> <dir>')
    .description('makes a model folder of a PyTorch checkpoint (.pth) or .safetensors file')
    .option('--labels <file>', 'names of the classes, one per line (default: class 0, class 1, ...)')
    .option('--size <pixels>', 'height and width of the input (default: the usual for the stem)', integer(1))
    .action(convert);
}

async function convert(file: string, folder: string, { labels, size }: { labels?: string; size?: number }): Promise<void> {
  const source = await openWeights(file);
  try {
    const { network, options } = inferOptions(source);
    checkWeights(new Map([...namedParameters(buildNetwork(network, options))].map(([name, { shape }]) => [name, shape])), source);
    const usual = defaultInput(options.stem);
    const input = size ? { ...usual, height: size, width: size, resize: Math.max(size, usual.resize) } : usual;
    const names = labels ? await lines(labels) : Array.from({ length: options.classes }, (_, i) => `class ${i}`);
    await writeModelFolder(folder, { network, options, input }, names, source);
    print(`${folder}: ${network}, alpha ${options.alpha}, width ${options.width}, ${options.classes} classes, ${count(source.tensors.size)} tensors`);
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
  const { name, network, source, input } = await networkFrom(flags);
  try {
    const { height, width } = size ? { height: size, width: size } : input;
    const bytes = await toOnnx(record(network, [1, height, width, 3]), reader(source));
    await writeFile(onnx, bytes).catch((error) => {
      throw fileError(onnx, error);
    });
    print(`${onnx}: ${name}, input [N,3,${height},${width}], ${count(bytes.length)} bytes`);
  } finally {
    await source.close();
  }
}

const reader = (source: WeightSource) => async (name: string) => {
  const { dtype = 'f32', shape = [] } = source.tensors.get(name) ?? {};
  return { dtype, shape, data: await source.read(name) } as const;
};
