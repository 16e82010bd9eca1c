import { mkdirSync, mkdtempSync, readdirSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import sharp from 'sharp';
import { kindOf, sourcesBelow } from '../lib/cli/sources.js';
import { OctconvError } from '../lib/error.js';
import { classify, classifyStream, type Guess, type StreamOptions } from '../lib/classify.js';
import type { Value } from '../lib/graph/graph.js';
import { loadBatches } from '../lib/input/batches.js';
import { type ClipConfig, cropsOf, loadViews, sampleClips, type WindowOptions, windowsOf } from '../lib/input/clips.js';
import { decodeImage, type Frame, type Picture } from '../lib/input/image.js';
import { type InputConfig, parseInput, preprocess, resizeGeometry } from '../lib/input/preprocess.js';
import { checkVideoLimits, openVideo, readFrames, type VideoOptions, type VideoSource } from '../lib/input/video.js';
import { Linear, Module } from '../lib/layers/index.js';
import { loadModel, Model } from '../lib/model.js';
import * as ops from '../lib/ops.js';
import { tensor } from '../lib/tensor.js';
import { failure, rejects } from './expect.js';
import { encode, ffmpeg, noise, numbered, plain, processes } from './ffmpeg.js';
import { skip } from './skip.js';

const cat = fileURLToPath(new URL('images/cat.jpg', import.meta.url));

async function all<T>(given: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const each of given) found.push(each);
  return found;
}
const read = (source: VideoSource, options?: VideoOptions) => all(readFrames(source, options));
async function* from<T>(list: readonly T[]): AsyncGenerator<T, void, void> {
  yield* list;
}

/** Bytes as they are. */
const raw: ClipConfig = {
  ...{ frames: 4, frameStride: 2, height: 8, width: 8, resize: 8, interpolation: 'bilinear' },
  ...{ scale: 1, mean: [0, 0, 0], std: [1, 1, 1] },
};

async function viewsOf(
  source: VideoSource,
  input: ClipConfig,
  clips = 1,
  crops: 1 | 3 | 10 = 1,
): Promise<Float32Array[]> {
  const limits = checkVideoLimits({});
  const video = await openVideo(source, 'clip', limits);
  const { count, view } = await loadViews(video, 'clip', input, { clips, crops, maxBytes: limits.maxBytes });
  await video.close();
  return Promise.all(Array.from({ length: count }, (_, i) => view(i)));
}

const bits = (x: Float32Array = new Float32Array()) => Buffer.from(x.buffer, x.byteOffset, x.byteLength);

/** The number of each frame of a clip of numbered ones. */
const numbersOf = (clip: Float32Array, { height, width }: InputConfig = raw): number[] =>
  Array.from({ length: clip.length / (height * width * 3) }, (_, i) => clip[i * height * width * 3] as number);

describe('clips: frames that no ffmpeg decodes', () => {
  const folder = mkdtempSync(join(tmpdir(), 'octconv-clips-'));
  const at = (name: string) => join(folder, name);
  after(() => rmSync(folder, { recursive: true }));

  it('of a folder: its pictures, as people count', async () => {
    for (const i of [1, 2, 10, 9]) {
      const { data, ...info } = plain(5, 4, [i, i, i]);
      await sharp(data, { raw: { ...info, channels: 3 } })
        .png()
        .toFile(at(`frame ${i}.png`));
    }
    writeFileSync(at('.hidden.png'), '');
    writeFileSync(at('notes.txt'), '');
    const frames = await read(folder, { frameRate: 10 });
    expect(frames.map(({ data }) => data[0])).to.deep.equal([1, 2, 9, 10]);
    expect(frames.map(({ seconds }) => seconds)).to.deep.equal([0, 0.1, 0.2, 0.3]);
    writeFileSync(at('frame 3.png'), 'text');
    await rejects(read(folder), /frame 3\.png: is not a picture/);
    const { data, ...info } = plain(6, 4, [0, 0, 0]);
    await sharp(data, { raw: { ...info, channels: 3 } })
      .png()
      .toFile(at('frame 3.png'));
    expect(await failure(read(folder))).to.match(
      /frame 3\.png: \d x \d, and .*frame 1\.png \d x \d: frames of one video are of one size$/,
    );
    rmSync(at('frame 3.png'));
    const none = mkdtempSync(join(folder, 'none-'));
    expect(await failure(read(none))).to.equal(`${none}: no pictures (.jpg, .jpeg, .png, .webp), wanted frames`);
  });

  it('of animations: all, with their times; of a picture one', async () => {
    const colours = [
      [200, 0, 0],
      [0, 200, 0],
      [0, 0, 200],
    ] as const;
    const pages = colours.map((colour) => {
      const { data, ...info } = plain(12, 9, colour);
      return sharp(data, { raw: { ...info, channels: 3 } })
        .png()
        .toBuffer();
    });
    for (const format of ['gif', 'webp'] as const) {
      const animation = sharp(await Promise.all(pages), { join: { animated: true } });
      const options = { delay: [100, 300, 50], lossless: true };
      const bytes = await (format === 'gif' ? animation.gif(options) : animation.webp(options)).toBuffer();
      writeFileSync(at(`a.${format}`), bytes);
      for (const source of [at(`a.${format}`), bytes, Readable.from([bytes.subarray(0, 3), bytes.subarray(3)])]) {
        const frames = await read(source);
        expect(frames.map(({ seconds }) => seconds)).to.deep.equal([0, 0.1, 0.4]);
        for (const [i, { data, height, width }] of frames.entries()) {
          expect([height, width, data.length]).to.deep.equal([12, 9, 12 * 9 * 3]);
          for (const [c, value] of colours[i]?.entries() ?? []) expect(data[c]).to.be.closeTo(value, 8);
        }
      }
      await rejects(
        read(bytes, { maxBytes: bytes.length }),
        /3 frames of 9 x 12, wanted at most \d+ bytes of them \(maxBytes\)$/,
      );
      await rejects(read(bytes, { maxPixels: 107 }), /^video: is too large, 9 x 12, wanted at most 107 pixels/);
      await rejects(read(bytes.subarray(0, bytes.length / 2)), /^video: (cannot be decoded: |is truncated$)/);
    }
    const [still, ...more] = await read(cat);
    expect(more.length).to.equal(0);
    expect(Buffer.from(still?.data ?? [])).to.deep.equal(Buffer.from((await decodeImage(cat)).data));
  });

  const npy = (descr: string, shape: readonly number[], data: Uint8Array, order = 'False') => {
    const dict = `{'descr': '${descr}', 'fortran_order': ${order}, 'shape': (${shape.join(', ')}), }`;
    const head = Buffer.from(`\x93NUMPY\x01\x00??${dict.padEnd(117)}\n`, 'latin1');
    head.writeUInt16LE(118, 8);
    return Buffer.concat([head, data]);
  };

  it('of a .npy: u8 [T,H,W,3]', async () => {
    const frames = noise(3, 6, 5);
    const bytes = npy('|u1', [3, 6, 5, 3], Buffer.concat(frames.map(({ data }) => data)));
    writeFileSync(at('a.npy'), bytes);
    for (const source of [at('a.npy'), bytes]) {
      const found = await read(source, { frameRate: 2 });
      expect(found.map(({ data }) => [...data])).to.deep.equal(frames.map(({ data }) => [...data]));
      expect(found.map(({ seconds }) => seconds)).to.deep.equal([0, 0.5, 1]);
    }
    const refused: [Uint8Array, RegExp][] = [
      [npy('<f4', [1, 2, 2, 3], new Uint8Array(48)), /^video: <f4 \[1,2,2,3\], wanted frames, u8 \[T,H,W,3\]$/],
      [npy('|u1', [2, 2, 3], new Uint8Array(12)), /\[2,2,3\], wanted frames/],
      [npy('|u1', [1, 2, 2, 4], new Uint8Array(16)), /\[1,2,2,4\], wanted frames/],
      [npy('|u1', [1, 2, 2, 3], new Uint8Array(12), 'True'), /in Fortran order, wanted frames/],
      [npy('|u1', [0, 2, 2, 3], new Uint8Array(0)), /has no frames$/],
      [npy('|u1', [2, 2, 2, 3], new Uint8Array(12)), /12 bytes of data, wanted 24/],
    ];
    for (const [given, wanted] of refused) await rejects(read(given), wanted);
  });

  it('that somebody else decodes, checked', async () => {
    const frames = [plain(2, 3, [1, 2, 3]), { ...plain(4, 4, [5, 5, 5]), seconds: 7 }];
    const found = await read(from(frames));
    expect(found.map(({ height, width, seconds }) => [height, width, seconds])).to.deep.equal([
      [2, 3, 0],
      [4, 4, 7],
    ]);
    for (const bad of [
      {},
      7,
      { ...plain(2, 2, [0, 0, 0]), height: 3 },
      { ...plain(2, 2, [0, 0, 0]), seconds: Number.NaN },
    ])
      await rejects(
        read(from([frames[0], bad]) as never),
        /^video: frame 1 is no \{ data: Uint8Array \[height, width, 3\]/,
      );
    await rejects(read(from(frames), { maxPixels: 15 }), /^video: is too large, frames of 4 x 4, wanted at most 15/);
    await rejects(
      read(from([new Uint8Array(20), 'text']) as never),
      /^video: the stream gives string, wanted Uint8Array$/,
    );
    await rejects(read(7 as never), /^video: got Number, wanted a path/);
    await rejects(read(from([]), {}), /^video: is empty, wanted a video$/);
  });

  it('of a stream that is kept: in a file that has no name from the first byte on', async () => {
    const { TMPDIR } = process.env;
    process.env.TMPDIR = mkdtempSync(join(folder, 'kept-'));
    try {
      const stream = new Readable({ read() {} });
      stream.push(npy('|u1', [1, 2, 2, 3], new Uint8Array(6)));
      const opening = openVideo(stream, 'kept', checkVideoLimits({}));
      const isOpen = () =>
        readdirSync('/proc/self/fd').some((fd) => {
          try {
            return readlinkSync(`/proc/self/fd/${fd}`).startsWith(`${process.env.TMPDIR}/octconv-`);
          } catch {
            return false; // it was closed meanwhile
          }
        });
      while (!isOpen()) await setTimeout(2);
      await setTimeout(20);
      expect(readdirSync(process.env.TMPDIR)).to.deep.equal([]);
      stream.push(new Uint8Array(6).fill(7));
      stream.push(null);
      const video = await opening;
      const [frame] = await all(video.frames());
      expect([...(frame?.data ?? [])]).to.deep.equal([...new Uint8Array(6), ...new Uint8Array(6).fill(7)]);
      await video.close();
      expect(isOpen()).to.equal(false);
    } finally {
      if (TMPDIR === undefined) delete process.env.TMPDIR;
      else process.env.TMPDIR = TMPDIR;
    }
  });

  it('of an MP4 as a stream: kept unless its index comes before its frames', async () => {
    const box = (type: string, content: number, size = content + 8) => {
      const bytes = Buffer.alloc(8 + content);
      bytes.writeUInt32BE(size, 0);
      bytes.write(type, 4, 'latin1');
      return bytes;
    };
    const long = (type: string, content: number) => {
      const bytes = box(type, content + 8, 1);
      bytes.writeBigUInt64BE(BigInt(content + 16), 8);
      return bytes;
    };
    const [ftyp, index, frames] = [box('ftyp', 24), box('moov', 400), box('mdat', 400)];
    const isKept: [string, Buffer[], boolean][] = [
      ['the index first', [ftyp, index, frames], false],
      ['the frames first', [ftyp, frames, index], true],
      ['a long free box', [ftyp, box('free', 5000), frames, index], true],
      ['a long free box, then the index', [ftyp, box('free', 5000), index, frames], false],
      ['boxes of other types', [ftyp, box('uuid', 90), box('abcd', 0), frames, index], true],
      ['64-bit sizes', [ftyp, long('uuid', 300), long('mdat', 300), index], true],
      ['fragments', [box('styp', 8), box('sidx', 40), box('moof', 100), frames], false],
      ['a box to the end of the file', [ftyp, box('free', 400, 0)], true],
      ['an index far from the begin', [ftyp, box('free', 2 ** 21), index, frames], true],
      ['no whole box', [ftyp, box('free', 2)], true],
      ['a damaged size', [ftyp, box('free', 400, 3)], false],
      ['no MP4', [box('abcd', 0), frames], false],
    ];
    for (const [what, boxes, wanted] of isKept) {
      const bytes = Buffer.concat(boxes);
      const pieces = Array.from({ length: bytes.length / 1000 + 1 }, (_, i) =>
        bytes.subarray(i * 1000, i * 1000 + 1000),
      );
      const video = await openVideo(from(pieces), 'mp4', checkVideoLimits({}), true);
      expect(video.count !== undefined, what).to.equal(wanted);
      await video.close();
    }
  });

  it('on the command line: pictures are the same files, and a folder of them is one video', async () => {
    const data = mkdtempSync(join(folder, 'data-'));
    for (const [inner, files] of Object.entries({
      stills: ['1.webp', '2.webp', '.3.png'],
      videos: ['a.mp4', 'b.gif', 'c.webp'],
      hidden: ['.1.png'],
    })) {
      mkdirSync(join(data, inner));
      for (const file of files) writeFileSync(join(data, inner, file), '');
    }
    const found = await sourcesBelow(data, kindOf(raw));
    expect(found).to.deep.equal([join(data, 'stills'), join(data, 'videos/a.mp4'), join(data, 'videos/b.gif')]);
    const pictures = await sourcesBelow(data, kindOf(undefined));
    expect(pictures).to.deep.equal(['stills/1.webp', 'stills/2.webp', 'videos/c.webp'].map((file) => join(data, file)));
  });

  it('options that make no sense are errors', async () => {
    const wrong: [object, RegExp][] = [
      [{ frameRate: 0 }, /^frameRate: 0, wanted frames per second, from 0.001 to 1000000$/],
      [{ frameRate: 1e-300 }, /^frameRate: 1e-300, wanted frames per second/],
      [{ skipDamaged: 1 }, /^skipDamaged: 1, wanted true or false$/],
      [{ timeout: 0 }, /^timeout: 0/],
      [{ maxPixels: -1 }, /^maxPixels: -1/],
      [{ formats: ['png'] }, /^readFrames: unknown option "formats"/],
    ];
    for (const [options, wanted] of wrong) await rejects(read(cat, options), wanted);
  });
});

describe('clips: which frames, which part of them', () => {
  it('config.json says it', () => {
    const size = { height: 8, width: 8 };
    expect(parseInput({ ...size, frames: 8 }, 'file')).to.include({ frames: 8, frameStride: 1 });
    expect(parseInput({ ...size, frames: 32, frameStride: 2 }, 'file')).to.include({ frames: 32, frameStride: 2 });
    expect(parseInput(size, 'file')).to.not.have.any.keys('frames', 'frameStride');
    const wrong: [object, RegExp][] = [
      [{ frames: 0 }, /^file: input\.frames is 0, wanted an integer from 1 to 65536$/],
      [{ frames: 8, frameStride: 1.5 }, /^file: input\.frameStride is 1\.5, wanted an integer/],
      [{ frameStride: 2 }, /^file: input: frameStride without frames, wanted both$/],
    ];
    for (const [given, wanted] of wrong)
      expect(() => parseInput({ ...size, ...given }, 'file')).to.throw(OctconvError, wanted);
  });

  it('samples as mmaction2 does in tests', () => {
    const starts = (total: number, clips: number, frames = 8, frameStride = 8) =>
      sampleClips(total, { frames, frameStride }, clips).map(([first]) => first);
    expect(starts(300, 10)).to.deep.equal([0, 27, 54, 81, 108, 135, 162, 189, 216, 243]);
    expect(starts(250, 10, 32, 2)).to.deep.equal([0, 21, 42, 62, 83, 104, 125, 145, 166, 187]);
    expect(starts(100, 3)).to.deep.equal([0, 22, 43]); // 21.5
    expect(starts(98, 3)).to.deep.equal([0, 20, 41]); // 20.5
    expect(starts(100, 1)).to.deep.equal([21]);
    expect(starts(57, 3)).to.deep.equal([0, 0, 0]);
    expect(sampleClips(100, { frames: 4, frameStride: 3 }, 1)).to.deep.equal([[45, 48, 51, 54]]);
    // The last frame is repeated.
    expect(sampleClips(5, { frames: 4, frameStride: 3 }, 2)).to.deep.equal([
      [0, 3, 4, 4],
      [0, 3, 4, 4],
    ]);
    expect(sampleClips(1, { frames: 3 }, 1)).to.deep.equal([[0, 0, 0]]);
  });

  it('crops: the middle, three along the long side, ten', () => {
    const wide = resizeGeometry(256, 341, { height: 224, width: 224, resize: 256 });
    const places = (crops: 1 | 3 | 10, geometry = wide) => cropsOf(geometry, crops).map(({ top, left }) => [top, left]);
    expect(places(1)).to.deep.equal([[16, 58]]);
    expect(places(3)).to.deep.equal([
      [16, 0],
      [16, 58],
      [16, 117],
    ]);
    expect(places(3, resizeGeometry(341, 256, { height: 224, width: 224, resize: 256 }))).to.deep.equal([
      [0, 16],
      [58, 16],
      [117, 16],
    ]);
    const corners = [
      [0, 0],
      [0, 117],
      [32, 0],
      [32, 117],
      [16, 58],
    ];
    expect(places(10)).to.deep.equal([...corners, ...corners]);
  });

  it('reads these frames of any source', async () => {
    const frames = numbered(30, 9, 16);
    const wanted = [
      [0, 2, 4, 6],
      [12, 14, 16, 18],
      [23, 25, 27, 29],
    ];
    expect((await viewsOf(from(frames), raw, 3)).map((clip) => numbersOf(clip))).to.deep.equal(wanted);
    expect((await viewsOf(from(frames.slice(0, 3)), raw, 1)).map((clip) => numbersOf(clip))).to.deep.equal([
      [0, 2, 2, 2],
    ]);
    const folder = mkdtempSync(join(tmpdir(), 'octconv-clips-'));
    try {
      for (const [i, { data, ...info }] of frames.entries())
        await sharp(data, { raw: { ...info, channels: 3 } })
          .png()
          .toFile(join(folder, `${i}.png`));
      expect((await viewsOf(folder, raw, 3)).map((clip) => numbersOf(clip))).to.deep.equal(wanted);
      writeFileSync(join(folder, '1.png'), 'text'); // nobody asks for it
      expect((await viewsOf(folder, raw, 3)).map((clip) => numbersOf(clip))).to.deep.equal(wanted);
      if (ffmpeg) {
        encode(join(folder, 'a.mkv'), frames);
        expect((await viewsOf(join(folder, 'a.mkv'), raw, 3)).map((clip) => numbersOf(clip))).to.deep.equal(wanted);
      }
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it('to the byte what pictures become', async () => {
    const sizes: [Picture[], InputConfig][] = [
      [noise(4, 61, 90), { ...raw, height: 24, width: 24, resize: 32, mean: [4, 5, 6], std: [0.5, 1, 2] }],
      [
        noise(4, 90, 61),
        { ...raw, height: 20, width: 30, resize: [41, 33], interpolation: 'bicubic', channels: 'bgr' },
      ],
      [
        noise(4, 30, 30),
        { ...raw, height: 16, width: 16, resize: 40, channels: 'gray', mean: [3], std: [2], antialias: false },
      ],
      [noise(4, 8, 8), raw],
    ];
    for (const [frames, input] of sizes) {
      const { data } = await preprocess(frames, input);
      const [clip] = await viewsOf(from(frames), { ...input, frames: 4, frameStride: 1 });
      expect(bits(clip)).to.deep.equal(bits(data));
      const batches = await all(loadBatches(from(frames), { ...input, frames: 4, frameStride: 1 }));
      expect(batches.map(({ x }) => x.shape)).to.deep.equal([
        [1, 4, input.height, input.width, input.channels === 'gray' ? 1 : 3],
      ]);
      expect(bits(batches[0]?.x.data)).to.deep.equal(bits(data));
    }
  });

  it('crops and their mirror images are parts of the resized frame', async () => {
    const frames = noise(2, 50, 70);
    const input = { ...raw, frames: 2, frameStride: 1, height: 20, width: 24, resize: 32 };
    const { height, width } = resizeGeometry(50, 70, input);
    const whole = (await preprocess(frames, { ...input, height, width, resize: [height, width] })).data;
    for (const crops of [1, 3, 10] as const) {
      const views = await viewsOf(from(frames), input, 1, crops);
      const places = cropsOf(resizeGeometry(50, 70, input), crops);
      expect(views.length).to.equal(crops);
      for (const [i, { top, left, mirrored }] of places.entries()) {
        for (const [t, y, x, c] of [
          [0, 0, 0, 0],
          [1, 19, 23, 2],
          [0, 7, 11, 1],
        ] as const) {
          const column = left + (mirrored ? 23 - x : x);
          const wanted = whole[((t * height + top + y) * width + column) * 3 + c];
          expect(views[i]?.[((t * 20 + y) * 24 + x) * 3 + c], `crop ${i} of ${crops}`).to.equal(wanted);
        }
      }
    }
  });

  const at = (seconds: readonly number[]): Frame[] =>
    numbered(seconds.length, 8, 8).map((frame, i) => ({ ...frame, seconds: seconds[i] as number }));
  const even = (count: number, rate: number) => at(Array.from({ length: count }, (_, i) => i / rate));
  const windows = async (frames: readonly Frame[], options: WindowOptions = {}, input = raw) => {
    const found = await all(windowsOf(from(frames), input, options, {}));
    return found.map(({ start, end, x }) => [Number(start.toFixed(3)), Number(end.toFixed(3)), numbersOf(x.data)]);
  };

  it('windows by count: as many frames as the network was trained on, each in one', async () => {
    expect(await windows(even(20, 10))).to.deep.equal([
      [0, 0.8, [0, 2, 4, 6]],
      [0.8, 1.6, [8, 10, 12, 14]],
      [1.6, 2, [16, 18, 19, 19]],
    ]);
    expect(await windows(even(16, 10))).to.deep.equal([
      [0, 0.8, [0, 2, 4, 6]],
      [0.8, 1.6, [8, 10, 12, 14]],
    ]);
    expect(await windows(even(1, 10))).to.deep.equal([[0, 0.04, [0, 0, 0, 0]]]);
    expect(await windows([])).to.deep.equal([]);
  });

  it('a frame that windows share is resized once, one that none sees never', async () => {
    const used = new Map<number, number>();
    const frames = even(40, 10).map((frame, i) =>
      Object.defineProperty({ ...frame }, 'data', {
        get: () => {
          used.set(i, (used.get(i) ?? 0) + 1);
          return frame.data;
        },
      }),
    );
    const seen = (await windows(frames, { window: 1.6, hop: 0.8 })).map(([, , numbers]) => numbers);
    expect(seen.slice(0, 3)).to.deep.equal([
      [0, 4, 8, 12],
      [8, 12, 16, 20],
      [16, 20, 24, 28],
    ]);
    expect([...used]).to.deep.equal([...new Set(seen.flat())].map((i) => [i, 1]));
  });

  it('windows by seconds: what is shown at the time, whatever the rate', async () => {
    expect(await windows(even(30, 10), { window: 1, hop: 0.5 })).to.deep.equal([
      [0, 1, [0, 2, 5, 7]],
      [0.5, 1.5, [5, 7, 10, 12]],
      [1, 2, [10, 12, 15, 17]],
      [1.5, 2.5, [15, 17, 20, 22]],
      [2, 3, [20, 22, 25, 27]],
    ]);
    // Gaps between windows; the time of the first frame is where they begin.
    expect(
      await windows(
        even(30, 10).map((frame) => ({ ...frame, seconds: frame.seconds + 100 })),
        { window: 0.4, hop: 2 },
      ),
    ).to.deep.equal([
      [100, 100.4, [0, 1, 2, 3]],
      [102, 102.4, [20, 21, 22, 23]],
    ]);
    // A long still, in which no other frame begins, and times that go back.
    expect(await windows(at([0, 0.1, 0.2, 3, 2.9, 3.5]), { window: 1 })).to.deep.equal([
      [0, 1, [0, 2, 2, 2]],
      [3, 4, [4, 4, 5, 5]],
    ]);
    // A time stamp that is wrong by years, also of the last frame.
    expect(await windows(at([0, 0.5, 1e9, 1e9 + 0.5, 3e9]), { window: 1, hop: 0.5 })).to.deep.equal([
      [0, 1, [0, 0, 1, 1]],
      [0.5, 1.5, [1, 1, 1, 1]],
      [1e9 - 0.5, 1e9 + 0.5, [1, 1, 2, 2]],
      [1e9, 1e9 + 1, [2, 2, 3, 3]],
      [1e9 + 0.5, 1e9 + 1.5, [3, 3, 3, 3]],
      [3e9 - 0.5, 3e9 + 0.5, [3, 3, 4, 4]],
      [3e9, 3e9 + 1, [4, 4, 4, 4]],
    ]);
    // Half a window that is left is one more, less is none.
    expect(await windows(even(25, 25), { window: 0.8 })).to.deep.equal([[0, 0.8, [0, 5, 10, 15]]]);
    expect(await windows(even(30, 25), { window: 0.8 })).to.deep.equal([
      [0, 0.8, [0, 5, 10, 15]],
      [0.8, 1.2, [20, 25, 29, 29]],
    ]);
  });
});

describe('clips: classified', () => {
  /** Tells the colour that is there most, of video. */
  class Colour extends Module {
    readonly fc = new Linear(3, 3);
    forward(x: Value<'f32', readonly number[]>): Value<'f32'> {
      return this.fc.forward(ops.globalAvgPool(x as Value<'f32', readonly [number, number, number, number, number]>));
    }
  }
  const values = { 'fc.weight': [1, 0, 0, 0, 1, 0, 0, 0, 1], 'fc.bias': [0, 0, 0] };
  const tensors = new Map([
    ['fc.weight', { dtype: 'f32' as const, shape: [3, 3] }],
    ['fc.bias', { dtype: 'f32' as const, shape: [3] }],
  ]);
  const readValues = async (name: string) => Float32Array.from(values[name as keyof typeof values]);
  const input: ClipConfig = { ...raw, scale: 1 / 64, frames: 4, frameStride: 2 };
  let model: Model;
  before(() => {
    model = Object.assign(new Model(new Colour(), { tensors, read: readValues }), {
      input,
      labels: ['red', 'green', 'blue'],
    });
  });
  after(() => model.dispose());
  const [red, green, blue] = [plain(8, 12, [250, 0, 0]), plain(8, 12, [0, 250, 0]), plain(8, 12, [0, 0, 250])];
  const times = (count: number, frame: Picture) => Array<Picture>(count).fill(frame);

  it('one for one, many for many, in order; what cannot be read is told', async () => {
    const one = await model.classify(from(times(9, green)), { top: 2 });
    expect([one.file, one.index, one.top.length, one.top[0]?.label, one.frames]).to.deep.equal([
      'video',
      0,
      2,
      'green',
      4,
    ]);
    const told: string[] = [];
    const sources = [from(times(9, red)), new Uint8Array(), from(times(2, blue)), cat];
    const many = await model.classify(sources, { failed: ({ message }) => told.push(message) });
    expect(many.map(({ index, file, top }) => [index, file, index < 3 && top[0]?.label])).to.deep.equal([
      [0, 'video 0', 'red'],
      [2, 'video 2', 'blue'],
      [3, cat, false],
    ]);
    expect(told).to.deep.equal(['video 1: is empty, wanted a video']);
    await rejects(model.classify([new Uint8Array()]), /^video 0: is empty, wanted a video$/);
    await rejects(
      model.classify(from([...times(3, red), red]), { maxBytes: 2 * 8 * 8 * 3 }),
      /^video: more than 384 bytes of frames \(maxBytes\); classifyStream keeps/,
    );
  });

  it('a bad frame of a folder is told too, and so are more frames than maxBytes; a lack of ffmpeg ends all', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'octconv-clips-'));
    const { OCTCONV_FFMPEG } = process.env;
    const before = process.cwd();
    process.chdir(folder);
    try {
      const { data, ...info } = green;
      for (const name of ['frames', 'bad']) {
        mkdirSync(name);
        for (const i of [1, 2, 3, 4])
          await sharp(data, { raw: { ...info, channels: 3 } })
            .png()
            .toFile(`${name}/${i}.png`);
      }
      writeFileSync('bad/3.png', 'text');
      const told: string[] = [];
      const failed = ({ message }: Error, file: string) => told.push(`${file}: ${message}`);
      const found = await all(classify(model, ['./bad', './frames'], { failed }));
      expect(found.map(({ file, top }) => [file, top[0]?.label])).to.deep.equal([['./frames', 'green']]);
      expect(told).to.have.length(1);
      expect(told[0]).to.match(/^\.\/bad: bad\/3\.png: is not a picture/);
      const fits = { clips: 1, maxBytes: 3 * 8 * 8 * 3 };
      expect((await all(classify(model, 'frames', fits))).length).to.equal(1);
      await rejects(
        all(classify(model, 'frames', { clips: 1, maxBytes: fits.maxBytes - 1 })),
        /^frames: more than 575 bytes of frames \(maxBytes\); classifyStream keeps/,
      );
      process.env.OCTCONV_FFMPEG = '/nowhere/ffmpeg';
      writeFileSync('OCTCONV_FFMPEG', 'some video');
      await rejects(
        all(classify(model, ['OCTCONV_FFMPEG'], { failed })),
        /^OCTCONV_FFMPEG: \/nowhere\/ffmpeg: cannot be run/,
      );
      expect(told).to.have.length(1);
    } finally {
      if (OCTCONV_FFMPEG === undefined) delete process.env.OCTCONV_FFMPEG;
      else process.env.OCTCONV_FFMPEG = OCTCONV_FFMPEG;
      process.chdir(before);
      rmSync(folder, { recursive: true });
    }
  });

  it('many calls decode no more videos at a time than there are cores; waiting ends with the signal', async function () {
    if (!ffmpeg) skip(this, 'ffmpeg');
    const folder = mkdtempSync(join(tmpdir(), 'octconv-clips-'));
    let most = 0;
    const watch = setInterval(() => (most = Math.max(most, processes().length)), 20);
    try {
      const file = join(folder, 'red.mkv');
      encode(file, times(600, plain(64, 64, [250, 0, 0])));
      const cores = availableParallelism();
      const stop = new AbortController();
      const started = Array.from({ length: 3 * cores }, () => model.classify(file));
      const waiting = model.classify(file, { signal: stop.signal });
      let ended = 0;
      for (const one of started) one.finally(() => ended++).catch(() => undefined);
      while (processes().length === 0 && ended === 0) await setTimeout(1);
      stop.abort(new Error('enough'));
      expect(await waiting.catch((error: unknown) => error)).to.have.property('message', 'enough');
      expect(ended).to.be.lessThan(started.length); // it did not wait for its turn
      for (const { top } of await Promise.all(started)) expect(top[0]?.label).to.equal('red');
      expect(most).to.be.within(1, cores);
      expect(processes()).to.deep.equal([]);
    } finally {
      clearInterval(watch);
      rmSync(folder, { recursive: true });
    }
  });

  it('many views: the mean of their probabilities, run in batches of any size', async () => {
    const frames = [...times(20, red), ...times(20, green), ...noise(20, 8, 12)];
    const views = await viewsOf(from(frames), input, 10, 3);
    const x = tensor('f32', [30, 4, 8, 8, 3], Float32Array.from(views.flatMap((view) => [...view])));
    const { data } = (await ops.softmax((await model.run(x)) as never)) as unknown as { data: Float32Array };
    const mean = [0, 1, 2].map((c) => views.reduce((sum, _, i) => sum + (data[i * 3 + c] as number) / 30, 0));
    for (const batch of [1, 7, 30]) {
      const { top } = await model.classify(from(frames), { clips: 10, crops: 3, batch });
      for (const { index, probability } of top) expect(probability).to.be.closeTo(mean[index] as number, 1e-5);
    }
  });

  it('options that make no sense are errors, and streams are destroyed', async () => {
    const wrong: [object, RegExp][] = [
      [{ clips: 0 }, /^clips: 0, wanted an integer from 1 to 1000$/],
      [{ crops: 2 }, /^crops: 2, wanted 1, 3 or 10$/],
      [{ batch: 0 }, /^batch: 0/],
      [{ top: 0 }, /^top: 0/],
      [{ formats: ['png'] }, /^classify: unknown option "formats"/],
      [{ frameRate: -1 }, /^frameRate: -1/],
    ];
    for (const [options, wanted] of wrong) {
      const source = new Readable({ read() {} });
      await rejects(model.classify(source, options), wanted);
      expect(source.destroyed).to.equal(true);
    }
    const streams: [StreamOptions, RegExp][] = [
      [{ window: 0 }, /^window: 0, wanted seconds, from 0\.001 to 86400$/],
      [{ window: 1, hop: 0.001 }, /^hop: 0\.001, wanted at least a 100th of the window, 1$/],
      [{ hop: 1 }, /^hop: needs a window$/],
      [{ top: 1.5 }, /^top: 1\.5/],
      [{ clips: 3 } as never, /^classifyStream: unknown option "clips"/],
    ];
    for (const [options, wanted] of streams) {
      const source = new Readable({ read() {} });
      await rejects(all(classifyStream(model, source, options)), wanted);
      expect(source.destroyed).to.equal(true);
    }
    using pictures = await loadModel(fileURLToPath(new URL('../models/cifar10-oct-resnet-26-a50', import.meta.url)));
    await rejects(
      all(classifyStream(pictures, cat)),
      /^classifyStream: wanted a video network, whose input has frames$/,
    );
    await rejects(pictures.classify(cat, { clips: 3 }), /^classify: unknown option "clips"/);
  });

  it('a stream: window by window, with its times', async () => {
    const frames = [...times(40, red), ...times(20, green), ...times(40, blue)];
    const found = await all(classifyStream(model, from(frames), { window: 0.8, hop: 0.4, frameRate: 25 }));
    const seen = (top: readonly Guess[]) =>
      top
        .filter(({ probability }) => probability > 0.4)
        .map(({ label }) => label)
        .sort()
        .join(', ');
    expect(found.map(({ start, end, top }) => [start.toFixed(1), end.toFixed(1), seen(top)])).to.deep.equal([
      ['0.0', '0.8', 'red'],
      ['0.4', '1.2', 'red'],
      ['0.8', '1.6', 'red'],
      ['1.2', '2.0', 'green, red'],
      ['1.6', '2.4', 'green'],
      ['2.0', '2.8', 'blue, green'],
      ['2.4', '3.2', 'blue'],
      ['2.8', '3.6', 'blue'],
      ['3.2', '4.0', 'blue'],
    ]);
  });

  it('a stream without an end: no more is decoded ahead than a window, and leaving the loop ends it', async () => {
    let [taken, ended] = [0, false];
    async function* endless(): AsyncGenerator<Picture> {
      try {
        for (;;) {
          taken++;
          yield green;
        }
      } finally {
        ended = true;
      }
    }
    let windows = 0;
    for await (const { frames, top } of classifyStream(model, endless())) {
      expect(top[0]?.label).to.equal('green');
      expect(frames).to.equal(8 * (windows + 1));
      await setTimeout(5);
      expect(taken).to.be.at.most(8 * (windows + 2) + 2);
      if (++windows === 20) break;
    }
    expect(ended).to.equal(true);
  });

  it('an abort ends a stream at once, also one that stalls', async () => {
    async function* stalling(): AsyncGenerator<Picture> {
      for (let i = 0; i < 20; i++) yield red;
      await new Promise(() => undefined);
    }
    const stop = new AbortController();
    const start = performance.now();
    let windows = 0;
    const running = (async () => {
      for await (const _ of classifyStream(model, stalling(), { signal: stop.signal }))
        if (++windows === 2) setTimeout(20).then(() => stop.abort('enough'));
    })();
    expect(await running.catch((reason: unknown) => reason)).to.equal('enough');
    expect(performance.now() - start).to.be.below(2000);
    for await (const _ of classifyStream(model, stalling())) break;
    await rejects(
      all(classifyStream(model, stalling(), { timeout: 0.2 })),
      /^video: gives nothing for 0\.2 s \(timeout\)$/,
    );
    expect(performance.now() - start).to.be.below(3000);
  });

  it('a file: clips and windows, by ffmpeg', async function () {
    if (!ffmpeg) skip(this, 'ffmpeg');
    const folder = mkdtempSync(join(tmpdir(), 'octconv-clips-'));
    try {
      const file = join(folder, 'a.mp4');
      const frames = [...times(30, red), ...times(30, blue)].map(({ data }) => ({
        data: new Uint8Array(64 * 48 * 3).map((_, i) => data[i % 3] as number),
        height: 48,
        width: 64,
      }));
      encode(file, frames, { args: ['-c:v', 'mpeg4', '-q:v', '2'] });
      const [answer] = await all(classify(model, [file], { clips: 2 }));
      expect(answer?.top[0]?.probability).to.be.closeTo(0.5, 0.03);
      const found = await all(classifyStream(model, file, { window: 1.2 }));
      expect(found.map(({ start, end, top }) => [start, end, top[0]?.label])).to.deep.equal([
        [0, 1.2, 'red'],
        [1.2, 2.4, 'blue'],
      ]);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});
