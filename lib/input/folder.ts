/** Picture files by folder or pattern. */
import { readdir, stat } from 'node:fs/promises';
import { extname, join, relative } from 'node:path';
import { OctconvError } from '../error.js';
import { fileError } from '../weights/file.js';

const endings = new Set(['.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp']);

/**
 * The files that are meant by paths: a folder means the JPEG, PNG and WebP files in it and below, by their endings; a path
 * with `*`, `?` or `**` (any number of folders) means what it matches, unless a file has this very name; any other path
 * means itself. Sorted for each path. Only regular files are found, hidden ones only by name; links to folders are not
 * followed.
 * @throws OctconvError if nothing is found in a folder or by a pattern.
 */
export async function findPictures(paths: readonly string[]): Promise<string[]> {
  const found: string[] = [];
  for (const path of paths) {
    const kind = await stat(path).catch(() => undefined);
    if (kind?.isDirectory()) found.push(...(await inFolder(path)));
    else if (kind || !/[*?]/.test(path)) found.push(path);
    else found.push(...(await matching(path)));
  }
  return found;
}

async function inFolder(folder: string): Promise<string[]> {
  const files = (await below(folder)).filter((file) => endings.has(extname(file).toLowerCase()));
  if (files.length === 0) throw new OctconvError(`${folder}: no pictures, wanted JPEG, PNG or WebP files`);
  return files;
}

async function matching(pattern: string): Promise<string[]> {
  const parts = pattern.split('/');
  const fixed = parts.findIndex((part) => /[*?]/.test(part));
  const folder = parts.slice(0, fixed).join('/') || (pattern.startsWith('/') ? '/' : '.');
  const rest = parts.slice(fixed);
  const wanted = rest.map((part) => (part === '**' ? part : partMatcher(part)));
  const all = await below(folder, rest.includes('**') ? undefined : rest.length, rest.some(isHidden));
  const files = all.filter((file) => fits(relative(folder, file).split('/'), wanted));
  if (files.length === 0) throw new OctconvError(`${pattern}: matches no file`);
  return files;
}

type Part = '**' | RegExp;

/** Whether the folders and the file of a path fit the parts of a pattern. */
function fits(names: readonly string[], [part, ...rest]: readonly Part[]): boolean {
  if (part === undefined) return names.length === 0;
  if (part !== '**') return names[0] !== undefined && part.test(names[0]) && fits(names.slice(1), rest);
  return fits(names, rest) || (names[0] !== undefined && !isHidden(names[0]) && fits(names.slice(1), [part, ...rest]));
}

/** Like a shell's, it finds hidden names only if it begins with a dot. */
function partMatcher(part: string): RegExp {
  const text = part.replace(/[^*?]+/g, (plain) => plain.replace(/[\\^$.|+()[\]{}]/g, '\\$&')).replace(/\*+/g, '.*').replaceAll('?', '.');
  return new RegExp(`^${isHidden(part) ? '' : '(?!\\.)'}${text}$`, 'su');
}

const isHidden = (name: string): boolean => name.startsWith('.');

/** All regular files in at most `depth` levels of a folder, links to files included. */
async function below(folder: string, depth = Number.POSITIVE_INFINITY, hidden = false): Promise<string[]> {
  const files: string[] = [];
  try {
    for (const entry of await readdir(folder, { withFileTypes: true })) {
      if (isHidden(entry.name) && !hidden) continue;
      const path = join(folder, entry.name);
      if (entry.isDirectory()) files.push(...(depth > 1 ? await below(path, depth - 1, hidden) : []));
      else if (entry.isFile() || (await stat(path).catch(() => undefined))?.isFile()) files.push(path);
    }
  } catch (error) {
    throw fileError(folder, error);
  }
  return files.sort();
}
