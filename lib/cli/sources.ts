/** Which pictures or videos a command is about: files, folders, patterns; a folder for each class. */
import { readdir, realpath, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { OctconvError, show } from '../error.js';
import { isClip } from '../input/clips.js';
import type { InputConfig } from '../input/preprocess.js';
import { isPictureFile, pictureNames } from '../input/source.js';
import { fileError } from '../weights/file.js';
import { count } from './output.js';

/** What a network takes. */
export interface Kind {
  readonly one: 'picture' | 'video';
  readonly many: 'pictures' | 'videos';
  readonly names: string;
  isFile(name: string): boolean;
  /** Whether a folder of such files is one source, not many. */
  isFolder(files: readonly string[]): boolean;
}

const pictures: Kind = {
  one: 'picture',
  many: 'pictures',
  names: pictureNames,
  isFile: isPictureFile,
  isFolder: () => false,
};

const videos: Kind = {
  one: 'video',
  many: 'videos',
  names: `.mp4, .mov, .mkv, .webm, .avi, .mpg, .ts, .gif, .npy or the like, or folders of pictures: ${pictureNames}`,
  isFile: (name) => /\.(mp4|m4v|mov|mkv|webm|avi|mpe?g|m?ts|m2ts|flv|wmv|asf|ogv|3gp|mxf|nut|gif|npy)$/i.test(name),
  isFolder: (files) => files.some(isPictureFile) && !files.some(videos.isFile),
};

/** By what the input of a network says. */
export const kindOf = (input: InputConfig | undefined): Kind => (isClip(input) ? videos : pictures);

/**
 * Arguments as sources: `-` and what exists stand for themselves, a folder for what is below it, the rest may be
 * patterns.
 */
export async function expand(args: readonly string[], kind: Kind): Promise<string[]> {
  const files: string[] = [];
  for (const arg of args) {
    const there = arg === '-' ? undefined : await stat(arg).catch(() => undefined);
    if (there?.isDirectory()) {
      for (const source of await sourcesBelow(arg, kind)) files.push(source);
    } else if (there || !/[*?[{]/.test(arg)) files.push(arg);
    else for (const match of await matches(arg)) files.push(match);
  }
  return files;
}

/** @throws OctconvError if there is none. */
export async function sourcesBelow(folder: string, kind: Kind): Promise<string[]> {
  const { sources } = await allBelow(folder, kind);
  if (sources.length === 0) throw new OctconvError(`${folder}: no ${kind.many} (${kind.names})`);
  return sources;
}

async function matches(pattern: string): Promise<string[]> {
  const { glob } = await import('tinyglobby');
  const found = await glob(pattern, { expandDirectories: false });
  if (found.length === 0) throw new OctconvError(`${pattern}: no such file`);
  return found.sort(byBytes);
}

/** As Python sorts text. */
const byBytes = (a: string, b: string): number => Buffer.compare(Buffer.from(a), Buffer.from(b));

interface Entries {
  readonly files: string[];
  readonly folders: string[];
}

/** What lies in a folder, in order; links are followed, hidden files are none. */
async function list(folder: string): Promise<Entries> {
  const entries = await readdir(folder, { withFileTypes: true }).catch(async (error) => {
    const found = await stat(folder).catch(() => undefined);
    throw found?.isDirectory() === false
      ? new OctconvError(`${folder}: a file, wanted a folder`)
      : fileError(folder, error);
  });
  const [files, folders]: [string[], string[]] = [[], []];
  for (const entry of entries.filter(({ name }) => !name.startsWith('.')).sort((a, b) => byBytes(a.name, b.name))) {
    const path = join(folder, entry.name);
    const kind = entry.isSymbolicLink() ? ((await stat(path).catch(() => undefined)) ?? entry) : entry;
    (kind.isDirectory() ? folders : files).push(path);
  }
  return { files, folders };
}

interface Below {
  readonly sources: string[];
  /** How many files are none. */
  readonly others: number;
}

/** Everything below a folder; a link to a folder that it is in is not followed. */
async function allBelow(folder: string, kind: Kind, above: readonly string[] = []): Promise<Below> {
  const here = await realpath(folder).catch(() => folder);
  if (above.includes(here)) return { sources: [], others: 0 };
  const { files, folders } = await list(folder);
  if (kind.isFolder(files)) return { sources: [folder], others: 0 };
  const sources = files.filter(kind.isFile);
  let others = files.length - sources.length;
  for (const inner of folders) {
    const below = await allBelow(inner, kind, [...above, here]);
    for (const source of below.sources) sources.push(source);
    others += below.others;
  }
  return { sources, others };
}

export interface ClassFolders {
  readonly files: readonly string[];
  /** The class of each file. */
  readonly classes: readonly number[];
  /** How many files are none by their names. */
  readonly others: number;
  /** How folders became classes: by their names, or by their order as torchvision's ImageFolder does. */
  readonly by: 'name' | 'order';
}

/**
 * The sources of a folder that holds a folder for each class. Folders are classes by name; if none is the name of one
 * class, or names repeat, by their order, where there are as many as classes.
 * @throws OctconvError that names the folder if neither fits.
 */
export async function classFolders(
  data: string,
  labels: readonly string[] | undefined,
  classes: number,
  kind: Kind,
): Promise<ClassFolders> {
  const { files, folders } = await list(data);
  if (folders.length === 0) {
    const found = files.length ? `${count(files.length)} files and no folders` : `no ${kind.many}`;
    throw new OctconvError(`${data}: ${found}, wanted one folder per class`);
  }
  const indices = folders.map((folder) => labels?.indexOf(basename(folder)) ?? -1);
  const repeats = (i: number) => labels?.indexOf(labels[i] as string, i + 1) !== -1;
  const by = indices.every((i) => i >= 0 && !repeats(i)) ? 'name' : 'order';
  if (by === 'order') {
    const fits = folders.length === classes && (new Set(labels).size < classes || indices.every((i) => i < 0));
    if (!fits) throw noClass(folders, indices, labels, classes);
  }
  const [all, wanted]: [string[], number[]] = [[], []];
  let others = 0;
  for (const [place, folder] of folders.entries()) {
    const below = await allBelow(folder, kind);
    others += below.others;
    for (const source of below.sources) {
      all.push(source);
      wanted.push(by === 'name' ? (indices[place] as number) : place);
    }
  }
  if (all.length === 0)
    throw new OctconvError(`${data}: no ${kind.many} (${kind.names}), wanted one folder of them per class`);
  return { files: all, classes: wanted, others, by };
}

function noClass(
  folders: readonly string[],
  indices: readonly number[],
  labels: readonly string[] | undefined,
  classes: number,
): OctconvError {
  if (!labels) {
    const wanted = `wanted ${classes} folders in the order of the classes, or a model folder: octconv convert FILE DIR --labels FILE`;
    return new OctconvError(
      `${dirname(folders[0] as string)}: ${folders.length} folders, and the model has no labels; ${wanted}`,
    );
  }
  const place = Math.max(0, indices.indexOf(-1));
  const folder = folders[place] as string;
  const name = show(basename(folder));
  const known = `${labels.slice(0, 10).join(', ')}${labels.length > 10 ? ', ...' : ''}`;
  const why = labels.includes(basename(folder))
    ? `${name} is the name of several classes`
    : `${name} is no label of the model (${known})`;
  const counted = folders.length === classes ? '' : `, and ${folders.length} folders are not its ${classes} classes`;
  return new OctconvError(`${folder}: ${why}${counted}`);
}
