/** What the tests of video share: an ffmpeg, and clips that it encodes. */
import { spawnSync } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Picture } from '../lib/input/image.js';
import { childrenThat } from './processes.js';

/** The library's own choice, else what `npm run setup` fetched. */
export const ffmpeg = [
  process.env.OCTCONV_FFMPEG,
  ...(process.env.PATH ?? '').split(delimiter).map((folder) => join(folder, 'ffmpeg')),
  fileURLToPath(new URL('../node_modules/.bin/ffmpeg', import.meta.url)),
].find((path) => {
  try {
    accessSync(path ?? '', constants.X_OK);
    return true;
  } catch {
    return false;
  }
});
if (ffmpeg) process.env.OCTCONV_FFMPEG ??= ffmpeg;

/** Runs ffmpeg; `input` is its standard input. */
export function run(args: readonly string[], input: Uint8Array = new Uint8Array()): void {
  const { status, stderr } = spawnSync(ffmpeg as string, ['-hide_banner', '-loglevel', 'error', '-y', ...args], {
    input,
  });
  if (status !== 0) throw new Error(`ffmpeg ${args.join(' ')}: ${stderr}`);
}

/** Without loss. */
export const lossless = ['-c:v', 'ffv1', '-pix_fmt', 'bgr0'];

/** Encodes frames of one size, by default as they are. */
export function encode(
  file: string,
  frames: readonly Picture[],
  { rate = 25, args = lossless }: { rate?: number; args?: readonly string[] } = {},
): void {
  const [{ height = 1, width = 1 } = {}] = frames as readonly Partial<Picture>[];
  const raw = ['-f', 'rawvideo', '-pix_fmt', 'rgb24', '-video_size', `${width}x${height}`, '-framerate', String(rate)];
  run([...raw, '-i', 'pipe:0', ...args, `file:${file}`], Buffer.concat(frames.map(({ data }) => data)));
}

/** A frame of one colour. */
export function plain(height: number, width: number, colour: readonly [number, number, number]): Picture {
  return { data: new Uint8Array(Buffer.alloc(height * width * 3, Uint8Array.from(colour))), height, width };
}

/** Frames whose bytes are their number. */
export const numbered = (count: number, height = 16, width = 16): Picture[] =>
  Array.from({ length: count }, (_, i) => plain(height, width, [i, i, i]));

/** Frames that differ everywhere. */
export function noise(count: number, height: number, width: number): Picture[] {
  let seed = 1;
  const next = () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return seed >>> 24;
  };
  const one = () => new Uint8Array(height * width * 3).map(next);
  return Array.from({ length: count }, () => ({ data: one(), height, width }));
}

/** Processes of ffmpeg that another one has started, this one unless given, and that are there, zombies included. */
export const processes = (of = process.pid): number[] => childrenThat((name) => name.startsWith('ffmpeg'), of);

export const version = (): string => spawnSync(ffmpeg as string, ['-version'], { encoding: 'utf8' }).stdout;
