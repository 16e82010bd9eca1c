/** Video is decoded by the program `ffmpeg`, whichever version from 4.2 on a machine has: it is no part of the package. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { checkSignal, onAbort } from '../abort.js';
import { MachineError, OctconvError, SourceError } from '../error.js';
import type { Frame } from './image.js';
import { readNut } from './nut.js';

/** Limits of what a video may cost. */
export interface VideoLimits {
  /** Pixels of a frame. */
  readonly maxPixels: number;
  /** Seconds in which the next frame must come. */
  readonly timeout: number;
  /** Whether frames that are damaged are left out or shown as far as they go, and a file may end too early. */
  readonly skipDamaged: boolean;
  /** Scales frames to 2 x 2, to count them. */
  readonly tiny?: boolean;
  readonly signal?: AbortSignal | undefined;
}

/** What ffmpeg may read: files that hold their own streams. Playlists name other files, which it would open too. */
const formats =
  'mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,vvc,av1,obu,ivf,flv,ogg,asf,mxf,nut,dv,gif,apng,yuv4mpegpipe,rm,wtv,mjpeg,amv,vc1,h261,h263';

/**
 * Decodes the first video stream of an open file, or of a stream of bytes, frame by frame: 8-bit RGB at its native size,
 * as a viewer shows it (rotation is applied), every frame once whatever the frame rate. It is decoded as fast as frames
 * are taken, a few ahead. Whatever ends the loop ends ffmpeg. ffmpeg gets files open: it sees no name that it could take
 * for an option, a URL or a pattern.
 * @throws OctconvError that begins with `name` for what cannot be decoded, and without it if there is no ffmpeg; the
 * signal's reason if it is aborted.
 */
export async function* decodeVideo(
  source: number | Readable,
  name: string,
  { maxPixels, timeout, skipDamaged, tiny = false, signal }: VideoLimits,
): AsyncGenerator<Frame, void, void> {
  checkSignal(signal);
  const isFile = typeof source === 'number';
  const args = [
    ...['-hide_banner', '-nostdin', '-loglevel', 'error', ...(skipDamaged ? [] : ['-xerror'])],
    ...['-protocol_whitelist', 'file,pipe', '-format_whitelist', formats, '-max_pixels', decoderPixels(maxPixels)],
    ...['-i', isFile ? 'file:/proc/self/fd/3' : 'pipe:0'],
    // V: no pictures of covers. So fine a time base that no two frames share a time: NUT would lack one.
    ...['-map', '0:V:0', '-enc_time_base', '1:90000', '-sws_flags', 'bicubic+accurate_rnd+full_chroma_int'],
    ...(tiny ? ['-vf', 'scale=2:2:flags=neighbor'] : []),
    ...['-c:v', 'rawvideo', '-pix_fmt', 'rgb24', '-f', 'nut', 'pipe:1'],
  ];
  const stdio = isFile ? (['ignore', 'pipe', 'pipe', source] as const) : (['pipe', 'pipe', 'pipe'] as const);
  const child = spawn(await ffmpegProgram(), args, { stdio: [...stdio] });
  const said = new LastLines(child.stderr as Readable);
  const ended = endOf(child);

  let why: { readonly error: unknown } | undefined;
  const stop = (error: unknown) => {
    why ??= { error };
    end(child);
  };
  const forget = onAbort(signal, () => stop(signal?.reason));
  if (signal?.aborted) stop(signal.reason); // while the program was looked for
  if (!isFile) feed(source, child, name, stop);

  const tooLarge = (height: number, width: number) =>
    new SourceError(
      `${name}: is too large, frames of ${width} x ${height}, wanted at most ${maxPixels} pixels (maxPixels)`,
    );
  const checkSize = (height: number, width: number) => {
    if (height * width > maxPixels) throw tooLarge(height, width);
  };
  const late = () => stop(new SourceError(`${name}: gives no frame for ${timeout} s (timeout)`));

  let count = 0;
  const frames = readNut(child.stdout as Readable, checkSize);
  const next = async () => {
    const timer = setTimeout(late, timeout * 1000);
    try {
      return await frames.next();
    } finally {
      clearTimeout(timer);
    }
  };
  const failed = async (error: unknown): Promise<unknown> => {
    const result = await ended;
    if (why) return why.error;
    if (result instanceof Error) return notRun(result);
    const big = /Picture size (\d+)x(\d+) exceeds/.exec(said.text);
    if (big) return tooLarge(Number(big[2]), Number(big[1]));
    if (result.code === 0) return error;
    return new SourceError(`${name}: ${said.cause ?? `ffmpeg ended with ${result.signal ?? result.code}`}`);
  };
  try {
    for (;;) {
      const { done, value } = await next();
      if (done) break;
      count++;
      yield value;
      if (why) break;
    }
    const result = await ended;
    if (why || result instanceof Error || result.code !== 0) throw await failed(undefined);
    if (!skipDamaged && said.endsEarly) throw new SourceError(`${name}: is truncated`);
    if (count === 0) throw new SourceError(`${name}: has no frames`);
  } catch (error) {
    if (error instanceof SourceError) throw error;
    if (why) throw why.error;
    (child.stdout as Readable).destroy(); // what nobody reads any more would hold it up
    const timer = setTimeout(() => end(child), 1000);
    try {
      throw await failed(error);
    } finally {
      clearTimeout(timer);
    }
  } finally {
    forget();
    end(child);
    if (!isFile) source.destroy();
    await ended;
  }
}

/** What a decoder refuses before it allocates: it counts whole macroblocks. */
const decoderPixels = (maxPixels: number) => String(Math.min(2 * maxPixels + 2 ** 16, 2 ** 31 - 1));

/** ffmpeg of OCTCONV_FFMPEG, its file or its folder, else of the PATH. */
export async function ffmpegProgram(): Promise<string> {
  const given = process.env.OCTCONV_FFMPEG;
  if (!given) return 'ffmpeg';
  const isFolder = (await stat(given).catch(() => undefined))?.isDirectory();
  return isFolder ? join(given, 'ffmpeg') : resolve(given);
}

function notRun(error: NodeJS.ErrnoException): MachineError {
  const { OCTCONV_FFMPEG: given } = process.env;
  if (given)
    return new MachineError(`OCTCONV_FFMPEG: ${given}: cannot be run (${error.code}), wanted ffmpeg or its folder`);
  if (error.code !== 'ENOENT') return new MachineError(`ffmpeg: cannot be run (${error.code})`);
  return new MachineError(
    'ffmpeg: not found on the PATH, wanted to decode video: install it (apt-get install ffmpeg, or ffmpeg.org), or name its file or folder in OCTCONV_FFMPEG',
  );
}

interface End {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

function end(child: ChildProcess): void {
  child.kill('SIGKILL');
  for (const pipe of [child.stdin, child.stdout, child.stderr]) pipe?.destroy(); // what nobody reads keeps it open
}

/** When its process and its pipes are gone. */
async function endOf(child: ChildProcess): Promise<End | Error> {
  try {
    const [code, signal] = await once(child, 'close');
    return { code, signal };
  } catch (error) {
    return error as Error;
  }
}

/** Writes a stream to ffmpeg, which may end before it; `stop` hears of a stream that fails. */
function feed(source: Readable, child: ChildProcess, name: string, stop: (error: unknown) => void): void {
  let broken: unknown;
  source.once('error', (error) => {
    broken = error;
  });
  pipeline(source, child.stdin as NodeJS.WritableStream).catch(() => {
    if (broken instanceof OctconvError) stop(broken);
    else if (broken)
      stop(new SourceError(`${name}: cannot be read: ${(broken as Error).message ?? broken}`, { cause: broken }));
  });
}

/** Lines of ffmpeg that say no more than that it ended. */
const useless =
  /^(Task finished|Terminating thread|Error opening input files?\b|Error opening output|Conversion failed|Error while decoding stream|Nothing was written|Could not open encoder)/;

/** Lines that say something only where no other does. */
const vague = /^(Invalid data found when processing input|Invalid argument|Last message repeated .*)$/;

/** The last of what ffmpeg says: of a damaged file it may say megabytes. */
class LastLines {
  text = '';

  constructor(stream: Readable) {
    stream.setEncoding('utf8').on('data', (more: string) => {
      this.text = (this.text + more).slice(-8192);
    });
  }

  /** `[h264 @ 0x55bb9ad60740] Invalid NAL unit size` without where it is said. */
  get #lines(): string[] {
    return this.text.split(/[\r\n]+/).map((line) =>
      line
        .replace(/^(\[[^\]]*\] ?)+/, '')
        .replace(/^(file|pipe):[^:]*: /, '')
        .trim(),
    );
  }

  /** The last line that says what is wrong. */
  get cause(): string | undefined {
    const lines = this.#lines.map((line) => line.replace(/^Error opening input: /, ''));
    if (lines.some((line) => /matches no streams/.test(line))) return 'has no video stream';
    if (lines.some((line) => /not on whitelist|Not detecting m3u8/.test(line)))
      return 'is a playlist or of a format that is not read';
    const line =
      lines.findLast((line) => line !== '' && !useless.test(line) && !vague.test(line)) ??
      lines.findLast((line) => vague.test(line));
    return line && `cannot be decoded: ${line}`;
  }

  /** ffmpeg takes the end of a truncated Matroska file for the end of the video, and says so. */
  get endsEarly(): boolean {
    return /ended prematurely|partial file/i.test(this.text);
  }
}
