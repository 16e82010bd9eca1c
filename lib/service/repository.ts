/**
 * A model repository, a folder of models: `NAME/VERSION/config.json`, versions are positive integers; or model folders
 * as they are, `NAME/config.json`, which are version 1. A model folder by itself is a repository of one.
 */
import { readdir, stat } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { OctconvError, show } from '../error.js';
import { kindOf } from '../graph/graph.js';
import { didYouMean } from '../options.js';
import { fileError } from '../weights/file.js';

/** Model folders by model and version. */
export type Folders = ReadonlyMap<string, ReadonlyMap<string, string>>;

/** A repository, or model folders by name. */
export type Models = string | URL | { readonly [name: string]: string | URL };

/** Which versions of a model are served. */
export type Versions = 'latest' | 'all' | readonly (string | number)[];

/** Names are parts of paths and URLs: letters, digits, `_`, `-` and `.`, which is not the first. */
const name = /^[A-Za-z0-9_-][\w.-]{0,127}$/;
const version = /^[1-9]\d{0,8}$/;

/** @throws OctconvError if a folder cannot be read, or a model cannot be called so. */
export async function foldersOf(models: Models): Promise<Folders> {
  if (typeof models === 'string' || models instanceof URL) return readRepository(pathOf(models));
  if (typeof models !== 'object' || models === null)
    throw new OctconvError(`service: models: got ${kindOf(models)}, wanted a folder, or folders by name`);
  const found = new Map<string, ReadonlyMap<string, string>>();
  for (const [given, folder] of Object.entries(models)) found.set(checkName(given), await versionsIn(pathOf(folder)));
  return found;
}

const pathOf = (path: string | URL): string => (path instanceof URL ? fileURLToPath(path) : path);

function checkName(given: string): string {
  if (name.test(given)) return given;
  throw new OctconvError(`service: model ${show(given)}, wanted a name of letters, digits, _, - and .`);
}

async function readRepository(root: string): Promise<Folders> {
  if (await isThere(join(root, 'config.json'))) {
    return new Map([[checkName(basename(resolve(root))), new Map([['1', root]])]]);
  }
  const found = new Map<string, ReadonlyMap<string, string>>();
  for (const entry of await entriesOf(root)) {
    const folder = join(root, entry);
    if (!name.test(entry) || (await isFile(folder))) continue;
    // One that cannot be read is found again, with the reason, when it is loaded.
    found.set(entry, await versionsIn(folder).catch(() => new Map([['1', folder]])));
  }
  return found;
}

/** The versions of a model; one that has no numbered folders, or is a file of weights, is version 1. */
async function versionsIn(folder: string): Promise<ReadonlyMap<string, string>> {
  if (await isFile(folder)) return new Map([['1', folder]]);
  const versions = (await entriesOf(folder)).filter((entry) => version.test(entry));
  if (versions.length === 0 || (await isThere(join(folder, 'config.json')))) return new Map([['1', folder]]);
  return new Map(versions.sort((a, b) => Number(a) - Number(b)).map((entry) => [entry, join(folder, entry)]));
}

async function entriesOf(folder: string): Promise<string[]> {
  try {
    return (await readdir(folder)).sort();
  } catch (error) {
    throw fileError(folder, error as Error);
  }
}

const isFile = (path: string): Promise<boolean> =>
  stat(path).then(
    (found) => found.isFile(),
    () => false,
  );

const isThere = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );

/** @throws OctconvError if there are settings of a model that is not there: a misspelt name would have none. */
export function checkNames(settings: object | undefined, models: Iterable<string>): void {
  const names = [...models];
  const missing = Object.keys(settings ?? {}).find((name) => !names.includes(name));
  if (missing === undefined) return;
  throw new OctconvError(`service: models.${missing}: there is no such model${didYouMean(missing, names)}`);
}

/** The versions that are served, the newest last. */
export function chosen(versions: ReadonlyMap<string, string>, wanted: Versions): ReadonlyMap<string, string> {
  if (wanted === 'all') return versions;
  const some = wanted === 'latest' ? [...versions.keys()].slice(-1) : wanted.map(String);
  return new Map([...versions].filter(([each]) => some.includes(each)));
}

/** Changes with the files of a model folder, or with the file that a model is. */
export async function stampOf(folder: string): Promise<string> {
  const files = await readdir(folder).catch(() => ['']);
  const stamps = files.sort().map(async (file) => {
    const { size, mtimeMs, ino } = await stat(join(folder, file)).catch(() => ({ size: 0, mtimeMs: 0, ino: 0 }));
    return `${file} ${size} ${mtimeMs} ${ino}`;
  });
  return (await Promise.all(stamps)).join('\n');
}
