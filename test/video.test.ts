import { createReadStream, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { setTimeout } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { expect } from 'chai';
import type { Frame, Picture } from '../lib/input/image.js';
import { readFrames, type VideoOptions, type VideoSource } from '../lib/input/video.js';
import { failure, rejects } from './expect.js';
import { encode, ffmpeg, noise, numbered, plain, processes, run, version } from './ffmpeg.js';
import { skip } from './skip.js';

async function read(source: VideoSource, options?: VideoOptions): Promise<Frame[]> {
  const frames: Frame[] = [];
  for await (const frame of readFrames(source, options)) frames.push(frame);
  return frames;
}

const bytesOf = (frames: readonly Picture[]) => frames.map(({ data }) => Buffer.from(data));
const numbersOf = (frames: readonly Picture[]) => frames.map(({ data }) => data[0]);
const until = async (what: () => boolean) => {
  for (let i = 0; i < 100 && !what(); i++) await setTimeout(20);
  return what();
};

describe('video: frames by ffmpeg', () => {
  const folder = mkdtempSync(join(tmpdir(), 'octconv-video-'));
  const at = (name: string) => join(folder, name);
  before(function () {
    if (!ffmpeg) skip(this, 'ffmpeg');
  });
  afterEach(() => expect(processes()).to.deep.equal([]));
  after(() => rmSync(folder, { recursive: true }));

  it('are those that were encoded, with their times, whatever the size', async () => {
    for (const [height, width, count] of [
      [47, 33, 7],
      [1, 1, 3],
      [5, 260, 1],
      [64, 48, 30],
    ] as const) {
      const frames = noise(count, height, width);
      encode(at('a.mkv'), frames, { rate: 10 });
      const found = await read(at('a.mkv'));
      expect(bytesOf(found)).to.deep.equal(bytesOf(frames));
      for (const [i, frame] of found.entries()) {
        expect([frame.height, frame.width]).to.deep.equal([height, width]);
        expect(frame.seconds).to.be.closeTo(i / 10, 1e-3);
      }
    }
  });

  it('come from a path, a URL, bytes, a blob, streams of any pieces', async () => {
    encode(at('a.mkv'), numbered(9));
    // Its index lies at its end, behind more than ffmpeg remembers.
    encode(at('a.mp4'), noise(9, 160, 160), { args: ['-c:v', 'mpeg4', '-q:v', '1'] });
    for (const file of [at('a.mkv'), at('a.mp4')]) {
      const wanted = bytesOf(await read(file));
      expect(wanted.length).to.equal(9);
      const bytes = readFileSync(file);
      const small = async function* () {
        const sizes = [1, 5, 3000];
        for (let i = 0, at = 0; at < bytes.length; at += sizes[i++ % 3] as number)
          yield bytes.subarray(at, at + (sizes[i % 3] as number));
      };
      const sources: VideoSource[] = [
        pathToFileURL(file),
        new Uint8Array(bytes),
        bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length) as ArrayBuffer,
        new Blob([bytes]),
        createReadStream(file, { highWaterMark: 100 }),
        new Blob([bytes]).stream() as unknown as AsyncIterable<Uint8Array>,
        small(),
      ];
      for (const [i, source] of sources.entries())
        expect(bytesOf(await read(source)), `source ${i}`).to.deep.equal(wanted);
    }
    const kept = createReadStream(at('a.mp4'));
    await rejects(read(kept, { maxBytes: 1000 }), /^video: is larger than 1000 bytes \(maxBytes\)$/);
    expect(kept.destroyed).to.equal(true);
  });

  it('of file names that look like options, URLs and patterns', async () => {
    const before = process.cwd();
    process.chdir(folder);
    try {
      encode(at('plain.mkv'), numbered(2));
      for (const name of [
        '-i.mp4',
        'http:x.mp4',
        'concat:a|b.mp4',
        'pipe:0',
        '%03d.mp4',
        "a 'b' $(c);\n.mp4",
        '*.mkv',
      ]) {
        writeFileSync(at(name), readFileSync(at('plain.mkv')));
        expect((await read(name)).length, name).to.equal(2);
      }
      await rejects(read('http://127.0.0.1:1/x.mp4'), /^http:\/\/127\.0\.0\.1:1\/x\.mp4: no such file$/);
      await rejects(read('nowhere.mp4'), /^nowhere\.mp4: no such file$/);
    } finally {
      process.chdir(before);
    }
  });

  it('are turned as a viewer shows them', async () => {
    const frame = {
      data: Uint8Array.from({ length: 16 * 32 * 3 }, (_, i) => (i % 96 < 48 ? 250 : 5)),
      height: 16,
      width: 32,
    };
    encode(at('a.mov'), [frame, frame], { args: ['-c:v', 'mjpeg', '-q:v', '1', '-pix_fmt', 'yuvj444p'] });
    // A quarter turn clockwise, as a telephone held upright writes it in the track's header.
    const bytes = readFileSync(at('a.mov'));
    const matrix = bytes.indexOf('tkhd') + 4 + 40;
    for (const [i, value] of [0, 0x10000, 0, -0x10000, 0, 0].entries()) bytes.writeInt32BE(value, matrix + 4 * i);
    writeFileSync(at('turned.mov'), bytes);
    const [first] = await read(at('turned.mov'));
    expect([first?.height, first?.width]).to.deep.equal([32, 16]);
    expect(first?.data[0]).to.be.above(240);
    expect(first?.data.at(-1)).to.be.below(15);
  });

  it('of ten bits, grey, and with transparent parts are 8-bit RGB', async () => {
    for (const format of ['yuv420p10le', 'gray', 'yuva420p']) {
      encode(at('a.mkv'), [plain(32, 32, [90, 90, 90])], { args: ['-c:v', 'ffv1', '-pix_fmt', format] });
      const [frame] = await read(at('a.mkv'));
      expect(frame?.data.length, format).to.equal(32 * 32 * 3);
      for (const value of frame?.data.subarray(0, 3) ?? []) expect(value, format).to.be.closeTo(90, 2);
    }
  });

  it('of a varying rate come once each, when they are shown', async () => {
    encode(at('even.mkv'), numbered(6), { rate: 10 });
    const times = [0, 0.1, 0.15, 1, 5, 5.04];
    const expression = times.map((time, i) => `eq(N,${i})*${time}`).join('+');
    const rate = Number(/version n?(\d+)/.exec(version())?.[1]) >= 6 ? ['-fps_mode', 'vfr'] : ['-vsync', 'vfr'];
    const filter = ['-vf', `settb=1/1000,setpts='(${expression})/TB'`, ...rate, '-enc_time_base', '1:1000'];
    run(['-i', at('even.mkv'), ...filter, '-c:v', 'ffv1', at('a.mkv')]);
    const frames = await read(at('a.mkv'));
    expect(numbersOf(frames)).to.deep.equal([0, 1, 2, 3, 4, 5]);
    for (const [i, { seconds }] of frames.entries()) expect(seconds).to.be.closeTo(times[i] as number, 2e-3);
  });

  it('of what is no video: one error that names the file', async () => {
    encode(at('good.mp4'), noise(40, 64, 64), { args: ['-c:v', 'mpeg4', '-movflags', 'faststart'] });
    run(['-f', 'lavfi', '-i', 'sine=duration=0.1', '-c:a', 'aac', at('audio.mp4')]);
    run(['-f', 'lavfi', '-i', 'color=size=16x16', '-frames:v', '0', '-c:v', 'mpeg4', at('none.mov')]);
    const good = readFileSync(at('good.mp4'));
    const files: Record<string, [Uint8Array, RegExp]> = {
      'text.mp4': [Buffer.from('no video at all\n'.repeat(99)), /cannot be decoded: |is a playlist or of a format/],
      'noise.mp4': [noise(1, 99, 99)[0]?.data as Uint8Array, /cannot be decoded: /],
      'empty.mp4': [new Uint8Array(), /: is empty, wanted a video$/],
      'cut.mp4': [good.subarray(0, good.length / 2), /: cannot be decoded: |: is truncated$/],
      'head.mp4': [good.subarray(0, 60), /: cannot be decoded: |: has no (frames|video stream)$/],
      'audio.mp4': [readFileSync(at('audio.mp4')), /: has no video stream$/],
      'none.mov': [readFileSync(at('none.mov')), /: cannot be decoded: |: has no (frames|video stream)$/],
    };
    for (const [name, [bytes, wanted]] of Object.entries(files)) {
      writeFileSync(at(name), bytes);
      const message = await failure(read(at(name)));
      expect(message.startsWith(`${at(name)}: `), message).to.equal(true);
      expect(message).to.match(wanted);
      expect(await failure(read(Readable.from([bytes]))), name).to.match(/^video: /);
    }
    expect((await read(at('cut.mp4'), { skipDamaged: true })).length).to.be.within(1, 39);
  });

  it('of a truncated Matroska file, which ffmpeg takes for a whole one: an error', async () => {
    encode(at('a.mkv'), noise(9, 64, 64));
    const bytes = readFileSync(at('a.mkv'));
    writeFileSync(at('cut.mkv'), bytes.subarray(0, bytes.length * 0.6));
    await rejects(read(at('cut.mkv')), /cut\.mkv: (is truncated|cannot be decoded: .*)$/);
  });

  it('of playlists: none of the files that they name is opened', async () => {
    encode(at('a.mkv'), numbered(2));
    let asked = 0;
    const server = createServer((_, response) => {
      asked++;
      response.end();
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/a.ts`;
    try {
      const lists = {
        'list.m3u8': `#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n${url}\n#EXT-X-ENDLIST\n`,
        'file.m3u8': `#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n${at('a.mkv')}\n#EXT-X-ENDLIST\n`,
        'list.txt': `ffconcat version 1.0\nfile '${at('a.mkv')}'\n`,
        'list.sdp': 'v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n',
      };
      for (const [name, text] of Object.entries(lists)) {
        writeFileSync(at(name), text);
        await rejects(read(at(name)), /is a playlist or of a format that is not read$|cannot be decoded: /);
        await rejects(read(Buffer.from(text)), /^video: (is a playlist|cannot be decoded: )/);
      }
      expect(asked).to.equal(0);
    } finally {
      server.close();
    }
  });

  it('of more pixels than are allowed: an error before they are decoded', async () => {
    encode(at('a.mkv'), numbered(2, 30, 40));
    expect((await read(at('a.mkv'), { maxPixels: 1200 })).length).to.equal(2);
    await rejects(
      read(at('a.mkv'), { maxPixels: 1199 }),
      /is too large, frames of 40 x 30, wanted at most 1199 pixels \(maxPixels\)$/,
    );
    encode(at('b.mkv'), numbered(1, 1000, 1000));
    await rejects(read(at('b.mkv'), { maxPixels: 10 }), /is too large, frames of 1000 x 1000, wanted/);
  });

  it('an abort, an early return and a limit end ffmpeg', async () => {
    encode(at('long.mkv'), numbered(200, 200, 200));
    const stop = new AbortController();
    const seen = (async () => {
      let n = 0;
      for await (const _ of readFrames(at('long.mkv'), { signal: stop.signal })) if (++n === 3) stop.abort('enough');
    })();
    expect(await seen.catch((reason: unknown) => reason)).to.equal('enough');
    expect(processes()).to.deep.equal([]);
    for await (const _ of readFrames(at('long.mkv'))) break;
    expect(processes()).to.deep.equal([]);
    const aborted = read(at('long.mkv'), { signal: AbortSignal.abort('before') });
    expect(await aborted.catch((reason: unknown) => reason)).to.equal('before');
    // A stream that stalls behind its beginning.
    const bytes = readFileSync(at('long.mkv')).subarray(0, 5000);
    const stalled = () => new Readable({ read() {} });
    const late = stalled();
    late.push(bytes);
    await rejects(read(late, { timeout: 0.3 }), /^video: gives (no frame|nothing) for 0\.3 s \(timeout\)$/);
    expect(late.destroyed).to.equal(true);
    const ended = stalled();
    ended.push(bytes);
    const broken = read(ended);
    await setTimeout(50);
    ended.destroy(new Error('gone'));
    await rejects(broken, /^video: cannot be read: gone$/);
  });

  it('back-pressure: ffmpeg waits for the loop', async () => {
    encode(at('long.mkv'), numbered(120, 400, 400), { args: ['-c:v', 'mpeg4'] }); // 58 MB as frames
    const frames = readFrames(at('long.mkv'));
    await frames.next();
    const time = () => {
      const [pid] = processes();
      return /\) \S \S+ \S+ \S+ \S+ \S+ \S+ \S+ \S+ \S+ \S+ (\d+) /.exec(
        readFileSync(`/proc/${pid}/stat`, 'latin1'),
      )?.[1];
    };
    await setTimeout(300);
    const before = time();
    await setTimeout(200);
    expect(time()).to.equal(before); // it takes no more time: it stands still, with most of the frames before it
    expect(await until(() => processes().length === 1)).to.equal(true);
    let left = 0;
    for await (const _ of frames) left++;
    expect(left).to.equal(119);
  });

  it('by a program that writes something else without end: an error', async () => {
    const { OCTCONV_FFMPEG } = process.env;
    const program = at('endless');
    writeFileSync(program, "#!/bin/sh\nprintf 'nut/multimedia container\\0'\nexec cat /dev/zero\n", { mode: 0o755 });
    encode(at('a.mkv'), numbered(1));
    try {
      process.env.OCTCONV_FFMPEG = program;
      expect(await failure(read(at('a.mkv')))).to.match(/a\.mkv: /);
    } finally {
      if (OCTCONV_FFMPEG === undefined) delete process.env.OCTCONV_FFMPEG;
      else process.env.OCTCONV_FFMPEG = OCTCONV_FFMPEG;
    }
  });

  it('without ffmpeg: how to install it', async () => {
    const { OCTCONV_FFMPEG, PATH } = process.env;
    encode(at('a.mkv'), numbered(1));
    try {
      process.env.OCTCONV_FFMPEG = '/nowhere/ffmpeg';
      expect(await failure(read(at('a.mkv')))).to.equal(
        'OCTCONV_FFMPEG: /nowhere/ffmpeg: cannot be run (ENOENT), wanted ffmpeg or its folder',
      );
      delete process.env.OCTCONV_FFMPEG;
      process.env.PATH = folder;
      await rejects(read(at('a.mkv')), /^ffmpeg: not found on the PATH, .*apt-get install ffmpeg/);
    } finally {
      Object.assign(process.env, { OCTCONV_FFMPEG, PATH });
    }
  });
});
