import { mkdir, readFile, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { OctconvError, show } from '../error.js';
import { type InputConfig, parseInput } from '../input/preprocess.js';
import { checkOptions, type NetworkOptions, type ResolvedNetworkOptions } from '../models/options.js';
import { fileError } from './file.js';
import { writeSafetensors } from './safetensors.js';
import { openWeights, type WeightSource } from './source.js';

/** config.json of a model folder. */
export interface ModelConfig {
  readonly network: string;
  readonly options: ResolvedNetworkOptions;
  readonly input: InputConfig;
}

export interface ModelFolder {
  readonly config: ModelConfig;
  /** One per class. */
  readonly labels: readonly string[];
  /** The open model.safetensors: close it. */
  readonly weights: WeightSource;
}

/** Whether a path is to be read as a model folder: whether it is a folder at all. */
export async function isModelFolder(path: string): Promise<boolean> {
  const stats = await stat(path).catch(() => undefined);
  return stats?.isDirectory() ?? false;
}

/** Reads config.json and labels.txt, and opens the parameters. */
export async function readModelFolder(folder: string): Promise<ModelFolder> {
  const read = await readConfig(folder);
  return { ...read, weights: await openWeights(join(folder, 'model.safetensors')) };
}

/** config.json and labels.txt in the folder of a checkpoint, as a training leaves them; other programs' are ignored. */
export async function readConfigBeside(checkpoint: string): Promise<Omit<ModelFolder, 'weights'> | undefined> {
  if (await isModelFolder(checkpoint)) return undefined;
  const folder = dirname(checkpoint);
  const text = await readText(join(folder, 'config.json')).catch(() => '');
  return /"network"\s*:/.test(text) && /"input"\s*:/.test(text) ? readConfig(folder) : undefined;
}

async function readConfig(folder: string): Promise<Omit<ModelFolder, 'weights'>> {
  const configFile = join(folder, 'config.json');
  const config = parseConfig(await readText(configFile), configFile);
  const labelsFile = join(folder, 'labels.txt');
  const labels = (await readText(labelsFile)).replace(/\r/g, '').replace(/\n+$/, '').split('\n');
  checkLabels(labels, config.options.classes, labelsFile);
  return { config, labels };
}

/** Writes a model folder, config.json last: without it, it is none. */
export async function writeModelFolder(
  folder: string,
  config: ModelConfig,
  labels: readonly string[],
  source: Pick<WeightSource, 'tensors' | 'read'>,
): Promise<void> {
  const configFile = join(folder, 'config.json');
  const json = `${JSON.stringify(config, null, 2)}\n`;
  parseConfig(json, configFile);
  const labelsFile = join(folder, 'labels.txt');
  checkLabels(labels, config.options.classes, labelsFile);
  try {
    await makeFolder(folder);
    await writeSafetensors(join(folder, 'model.safetensors'), source);
    await writeFile(labelsFile, `${labels.join('\n')}\n`);
    await writeFile(configFile, json);
  } catch (error) {
    throw fileError(folder, error);
  }
}

async function readText(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    throw fileError(path, error);
  }
}

/** Checks the text of a config.json, which `file` names in errors, and fills in what was left out. */
export function parseConfig(text: string, file: string): ModelConfig {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new OctconvError(`${file}: not JSON: ${(error as Error).message.split('\n')[0]}`);
  }
  const config = fields(value, ['network', 'options', 'input'], '', file);
  if (typeof config.network !== 'string' || config.network === '') {
    throw new OctconvError(`${file}: network is ${show(config.network)}, wanted a name as "oct-resnet-50"`);
  }
  return {
    network: config.network,
    options: parseOptions(config.options, config.network, file),
    input: parseInput(config.input, file),
  };
}

function parseOptions(value: unknown, network: string, file: string): ResolvedNetworkOptions {
  const given = fields(value, ['alpha', 'width', 'classes', 'stem'], 'options', file);
  const { alpha = 0 } = given;
  if (typeof alpha !== 'number' || !(alpha >= 0 && alpha < 1)) {
    throw new OctconvError(`${file}: options.alpha is ${show(alpha)}, wanted a number in [0, 1)`);
  }
  try {
    return checkOptions('options', given as NetworkOptions, network.startsWith('oct-'));
  } catch (error) {
    throw new OctconvError(`${file}: ${(error as Error).message}`);
  }
}

/** An object that has no other fields than these: a misspelt one would silently be a default. */
function fields(value: unknown, known: readonly string[], path: string, file: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new OctconvError(`${file}: ${path || 'the file'} is ${show(value)}, wanted an object`);
  }
  const other = Object.keys(value).find((key) => !known.includes(key));
  if (other === undefined) return value as Record<string, unknown>;
  const name = path ? `${path}.${other}` : other;
  throw new OctconvError(`${file}: unknown field ${show(name)}, wanted ${known.join(', ')}`);
}

function checkLabels(labels: readonly string[], classes: number, file: string): void {
  if (labels.length !== classes) {
    throw new OctconvError(`${file}: ${labels.length} labels, wanted ${classes} (classes)`);
  }
  const bad = labels.findIndex((label) => label.trim() === '' || label.includes('\n'));
  if (bad !== -1) throw new OctconvError(`${file}: line ${bad + 1} is no label`);
}

/** mkdir's own `recursive` never ends where a folder cannot be made in one that is there, as in /proc. */
export async function makeFolder(path: string): Promise<void> {
  try {
    await mkdir(path);
  } catch (error) {
    const exists = async (folder: string) => (await stat(folder).catch(() => undefined))?.isDirectory() ?? false;
    if (await exists(path)) return;
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || (await exists(dirname(path)))) throw error;
    await makeFolder(dirname(path));
    await mkdir(path);
  }
}
