import { randomBytes } from 'node:crypto';
import { link, mkdir, readdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import * as v from 'valibot';
import { OctconvError, show } from '../error.js';
import { readText } from '../files/read.js';
import { integerIn, numberIn, object, oneOf, parse } from '../files/schema.js';
import {
  isFolder,
  makeFolder,
  refuseInput,
  resolved,
  syncFolder,
  withSibling,
  writeNew,
  writeWhole,
} from '../files/write.js';
import { channelCount, type InputConfig, inputSchema, parseInput } from '../input/preprocess.js';
import { type NetworkOptions, resolveNetworkOptions } from '../models/index.js';
import type { ResolvedNetworkOptions } from '../models/options.js';
import { fileError } from './file.js';
import { parseJson } from './json.js';
import { encodeSafetensors } from './safetensors.js';
import { openWeights, type WeightSource } from './source.js';

/** config.json of a model folder. */
export interface ModelConfig {
  readonly network: string;
  readonly options: ResolvedNetworkOptions;
  readonly input: InputConfig;
  /** The files beside it; by default `model.safetensors` and `labels.txt`. */
  readonly weights?: string;
  readonly labels?: string;
}

const usualFiles = { weights: 'model.safetensors', labels: 'labels.txt' } as const;
const wantedFile = 'the name of a file in this folder';
const file = (usual: string) =>
  v.optional(v.pipe(v.string(wantedFile), v.regex(/^(?!config\.json$)[^./\\][^/\\]*$/, wantedFile)), usual);
const wantedName = 'a name as "oct-resnet-50"';
const wantedBlocks = 'four integers';
const wantedWidths = 'three integers';
const wantedKernels = 'four lists of integers';
const size = integerIn(1, 65536);

/** What a network accepts of the options, its family says (lib/models). */
const optionsSchema = object({
  alpha: v.optional(v.pipe(numberIn(0, 1, 'a number in [0, 1)'), v.ltValue(1, 'a number in [0, 1)'))),
  width: v.optional(size),
  classes: v.optional(size),
  stem: v.optional(oneOf('imagenet', 'cifar')),
  channels: v.optional(size),
  blocks: v.optional(v.pipe(v.array(size, wantedBlocks), v.maxLength(4, wantedBlocks))),
  groups: v.optional(size),
  multiplier: v.optional(numberIn(1 / 16, 16, 'a number from 1/16 to 16')),
  stemWidths: v.optional(v.pipe(v.array(size, wantedWidths), v.length(3, wantedWidths))),
  nonLocal: v.optional(v.boolean('true or false')),
  temporalKernels: v.optional(v.pipe(v.array(v.array(size, wantedKernels), wantedKernels), v.length(4, wantedKernels))),
});

/** The whole config.json, as `schemas/config.schema.json` describes it to editors. */
export const configSchema = object({
  $schema: v.optional(v.string('text')),
  network: v.pipe(v.string(wantedName), v.minLength(1, wantedName)),
  options: optionsSchema,
  input: inputSchema,
  weights: file(usualFiles.weights),
  labels: file(usualFiles.labels),
});

export interface ModelFolder {
  readonly config: ModelConfig;
  /** One per class. */
  readonly labels: readonly string[];
  /** The open model.safetensors: close it. */
  readonly weights: WeightSource;
}

/** Whether a path is to be read as a model folder: whether it is a folder at all. */
export const isModelFolder = isFolder;

/** Reads config.json and labels.txt, and opens the parameters. */
export async function readModelFolder(folder: string): Promise<ModelFolder> {
  const configFile = join(folder, 'config.json');
  const text = await readText(configFile);
  const config = parseConfig(text, configFile);
  const { weights, labels } = { ...usualFiles, ...config };
  try {
    const names = await readLabels(join(folder, labels), config.options.classes);
    return { config, labels: names, weights: await openWeights(join(folder, weights)) };
  } catch (error) {
    // Another process may have replaced the model meanwhile.
    if ((await readText(configFile).catch(() => text)) === text) throw error;
    return readModelFolder(folder);
  }
}

/**
 * What describes a checkpoint in its own folder, as training leaves it: config.json and labels.txt. Other programs' are
 * none.
 */
export async function readConfigBeside(
  checkpoint: string,
): Promise<(ModelConfig & { names: readonly string[] }) | undefined> {
  if (await isFolder(checkpoint)) return undefined;
  const configFile = join(dirname(checkpoint), 'config.json');
  const text = await readText(configFile).catch(() => '');
  if (!text.includes('"network"') || !text.includes('"input"')) return undefined;
  const config = parseConfig(text, configFile);
  const { labels } = { ...usualFiles, ...config };
  return { ...config, names: await readLabels(join(dirname(checkpoint), labels), config.options.classes) };
}

export interface WriteOptions {
  /** Whether a model that is there is replaced; by default it is an error. */
  readonly force?: boolean | undefined;
}

/**
 * Writes a model folder. A new one appears under its name when it is complete. In a folder that is there, the new files
 * lie beside the old ones until config.json, which names them, is replaced. So whatever ends the process, a reader
 * finds the old model or the new one, and of two writers one.
 * @throws OctconvError that names the file; if there is a model already, unless `force` is given.
 */
export async function writeModelFolder(
  folder: string,
  config: ModelConfig,
  labels: readonly string[],
  source: Pick<WeightSource, 'tensors' | 'read'>,
  { force = false }: WriteOptions = {},
): Promise<void> {
  const { network, options, input } = config;
  const textOf = (more: object) => `${JSON.stringify({ network, options, input, ...more }, null, 2)}\n`;
  parseConfig(textOf({}), join(folder, 'config.json'));
  checkLabels(labels, options.classes, join(folder, usualFiles.labels));
  try {
    await checkModelOutput(folder, { force });
    await makeFolder(dirname(folder));
    const target = await resolved(folder);
    await withSibling((await isFolder(target)) ? join(target, 'model') : target, async (stage) => {
      await mkdir(stage);
      const staged = (name: string) => join(stage, name);
      await writeNew(staged(usualFiles.weights), encodeSafetensors(join(folder, usualFiles.weights), source));
      await writeNew(staged(usualFiles.labels), [`${labels.join('\n')}\n`]);
      await writeNew(staged('config.json'), [textOf({})]);
      await syncFolder(stage);
      if (dirname(stage) !== target) {
        if (await renamed(stage, target)) return;
        await checkModelOutput(folder, { force }); // another writer was first
      }
      await moveInto(target, staged, textOf);
    });
  } catch (error) {
    throw fileError(folder, error);
  }
}

/**
 * Says before long work that a model cannot be written.
 * @throws OctconvError if the folder is no folder, is one of `inputs`, or holds a model or a part of one and `force` is not given.
 */
export async function checkModelOutput(
  folder: string,
  { force, inputs = [] }: WriteOptions & { readonly inputs?: readonly string[] },
): Promise<void> {
  const there = await stat(folder).catch(() => undefined);
  if (there && !there.isDirectory()) throw new OctconvError(`${folder}: exists and is not a folder`);
  for (const input of inputs) {
    await refuseInput(folder, input);
    await refuseInput(folder, dirname(await resolved(input)), input);
  }
  const files = there && !force ? await readdir(folder) : [];
  const found = ['config.json', ...Object.values(usualFiles)].find((name) => files.includes(name));
  if (found !== undefined)
    throw new OctconvError(`${folder}: has a ${found} already; --force (force: true) replaces a model`);
}

/** Whether a complete folder could take its name; not if another one has it. */
async function renamed(stage: string, target: string): Promise<boolean> {
  try {
    await rename(stage, target);
  } catch (error) {
    if (await isFolder(target)) return false;
    throw error;
  }
  await syncFolder(dirname(target));
  return true;
}

/**
 * Moves staged files into a folder. Names that a config.json there may mean are left alone until it is replaced; then
 * what it named is removed.
 */
async function moveInto(
  target: string,
  staged: (name: string) => string,
  textOf: (more: object) => string,
): Promise<void> {
  const configFile = join(target, 'config.json');
  const oldText = await readText(configFile).catch(() => undefined);
  const id = randomBytes(4).toString('hex');
  const names: Partial<Record<'weights' | 'labels', string>> = {};
  for (const [key, other] of [
    ['weights', `model-${id}.safetensors`],
    ['labels', `labels-${id}.txt`],
  ] as const) {
    const from = staged(usualFiles[key]);
    // A link, unlike a rename, replaces nothing.
    if (
      oldText === undefined &&
      (await link(from, join(target, usualFiles[key])).then(
        () => true,
        () => false,
      ))
    )
      continue;
    await rename(from, join(target, other));
    names[key] = other;
  }
  await syncFolder(target);
  await writeWhole(configFile, [textOf(names)]);
  for (const name of filesOf(oldText)) await rm(join(target, name), { force: true });
}

/** The files of a model folder. */
export async function modelFiles(folder: string): Promise<string[]> {
  const configFile = join(folder, 'config.json');
  return [configFile, ...filesOf(await readText(configFile)).map((name) => join(folder, name))];
}

/** What a config.json names, if it is one. */
function filesOf(text: string | undefined): string[] {
  try {
    const { weights, labels } = { ...usualFiles, ...parseConfig(text ?? '', '') };
    return [weights, labels];
  } catch {
    return [];
  }
}

/** Checks the text of a config.json, which `file` names in errors, and fills in what was left out. */
export function parseConfig(text: string, file: string): ModelConfig {
  const value = parseJson(Buffer.from(text), 16, `${file}: the file`);
  const { network, options, weights, labels, input } = parse(configSchema, value, file);
  // Of one that is left out the other one is the default.
  const { channels: order = options.channels === 1 ? 'gray' : undefined } = input;
  const { channels = order === 'gray' ? 1 : undefined } = options;
  const config = {
    network,
    options: optionsOf(network, { ...options, ...(channels !== undefined && { channels }) }, file),
    input: parseInput({ ...input, channels: order }, file),
  };
  const { channels: has } = config.options;
  const wanted = channelCount(config.input);
  if (has !== undefined && has !== wanted)
    throw new OctconvError(
      `${file}: options.channels is ${has}, wanted ${wanted}: input.channels is ${order === undefined ? 'left out, which is "rgb"' : `"${order}"`}`,
    );
  return {
    ...config,
    ...(weights !== usualFiles.weights && { weights }),
    ...(labels !== usualFiles.labels && { labels }),
  };
}

function optionsOf(network: string, given: NetworkOptions, file: string): ResolvedNetworkOptions {
  try {
    return resolveNetworkOptions(network, given, 'options');
  } catch (error) {
    throw new OctconvError(`${file}: ${(error as Error).message}`);
  }
}

/** Reads names of classes, one a line. @throws OctconvError that names the file, if there are not `classes`. */
export async function readLabels(file: string, classes: number): Promise<string[]> {
  const labels = (await readText(file)).trimEnd().split(/\r?\n/);
  checkLabels(labels, classes, file);
  return labels;
}

/** @throws OctconvError that names the file, if there are not `classes`, or one is empty. */
export function checkLabels(labels: readonly string[], classes: number, file: string): void {
  if (labels.length !== classes) {
    throw new OctconvError(`${file}: ${labels.length} labels, wanted ${classes} (classes)`);
  }
  const bad = labels.findIndex((label) => label.trim() === '' || /[\r\n]/.test(label));
  if (bad !== -1) throw new OctconvError(`${file}: line ${bad + 1} is ${show(labels[bad])}, wanted a label`);
}
