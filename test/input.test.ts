import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { crc32 } from 'node:zlib';
import { expect } from 'chai';
import sharp, { type Color, type Sharp } from 'sharp';
import { OctconvError } from '../lib/error.js';
import { Graph } from '../lib/graph/graph.js';
import { loadBatches } from '../lib/input/batches.js';
import { type DecodeOptions, decodeImage, type PictureFormat } from '../lib/input/image.js';
import { defaultInput, parseInput, preprocess, preprocessBytes, resizeGeometry } from '../lib/input/preprocess.js';
import type { PictureSource } from '../lib/input/source.js';
import { createModel } from '../lib/model.js';
import type { Device } from '../lib/native.js';
import { normalize, resize } from '../lib/ops.js';
import { runGraph } from '../lib/plan.js';
import { tensor } from '../lib/tensor.js';
import { png, profile } from './pictures.js';
import { failure } from './expect.js';

const cat = readFileSync(new URL('images/cat.jpg', import.meta.url));
const plain = (width: number, height: number, background: Color, channels: 3 | 4 = 3): Sharp =>
  sharp({ create: { width, height, channels, background } });

describe('input: decoding', () => {
  it('gives the bytes that Pillow gives', async () => {
    const { data, height, width } = await decodeImage(cat);
    expect([height, width, data.length]).to.deep.equal([300, 451, 300 * 451 * 3]);
    expect([...data.subarray(0, 6)]).to.deep.equal([143, 119, 107, 142, 118, 106]);
  });

  const orange = { r: 200, g: 100, b: 50 };
  const kinds: [string, () => Sharp, readonly number[], number?][] = [
    ['grey JPEG', () => plain(8, 8, { r: 90, g: 90, b: 90 }).greyscale().jpeg(), [90, 90, 90]],
    ['grey 16-bit PNG', () => plain(3, 2, { r: 90, g: 90, b: 90 }).toColourspace('grey16').png(), [90, 90, 90]],
    ['16-bit PNG', () => plain(3, 2, orange).toColourspace('rgb16').png(), [200, 100, 50]],
    ['palette PNG', () => plain(3, 2, orange).png({ palette: true }), [200, 100, 50]],
    ['CMYK JPEG', () => plain(8, 8, orange).toColourspace('cmyk').jpeg({ quality: 100 }), [200, 100, 50], 40],
    ['half transparent PNG', () => plain(3, 2, { ...orange, alpha: 0.5 }, 4).png(), [228, 178, 153], 2],
    [
      'transparent black WebP',
      () => plain(3, 2, { r: 0, g: 0, b: 0, alpha: 0 }, 4).webp({ lossless: true }),
      [255, 255, 255],
    ],
    ['transparent grey PNG', () => plain(3, 2, { r: 0, g: 0, b: 0, alpha: 0 }, 4).greyscale().png(), [255, 255, 255]],
    ['Display P3 PNG', () => plain(3, 2, orange).withIccProfile('p3').png(), [200, 100, 50], 2],
    ['1 x 1', () => plain(1, 1, orange).png(), [200, 100, 50]],
  ];
  for (const [name, make, colour, tolerance = 1] of kinds) {
    it(`${name}: RGB as a viewer shows it`, async () => {
      const picture = await decodeImage(await make().toBuffer());
      expect(picture.data.length).to.equal(picture.height * picture.width * 3);
      for (const [c, value] of colour.entries()) expect(picture.data[c]).to.be.closeTo(value, tolerance);
    });
  }

  it('an animation: the first frame', async () => {
    const frames = await Promise.all(['#c86432', '#0000ff'].map((colour) => plain(4, 4, colour).png().toBuffer()));
    const animation = await sharp(frames, { join: { animated: true } })
      .webp({ lossless: true })
      .toBuffer();
    const { data, height, width } = await decodeImage(animation);
    expect([height, width, ...data.subarray(0, 3)]).to.deep.equal([4, 4, 200, 100, 50]);
  });

  // Where the stored pixel (row, column) of a 2 x 3 picture is shown, by the EXIF standard's table of orientations.
  const shown: ((y: number, x: number) => [number, number])[] = [
    (y, x) => [y, x],
    (y, x) => [y, 2 - x],
    (y, x) => [1 - y, 2 - x],
    (y, x) => [1 - y, x],
    (y, x) => [x, y],
    (y, x) => [x, 1 - y],
    (y, x) => [2 - x, 1 - y],
    (y, x) => [2 - x, y],
  ];
  shown.forEach((place, i) => {
    it(`EXIF orientation ${i + 1} is obeyed`, async () => {
      const raw = Uint8Array.from({ length: 18 }, (_, k) => k * 10);
      const file = await sharp(raw, { raw: { width: 3, height: 2, channels: 3 } })
        .withMetadata({ orientation: i + 1 })
        .webp({ lossless: true })
        .toBuffer();
      const { data, height, width } = await decodeImage(file);
      expect([height, width]).to.deep.equal(i < 4 ? [2, 3] : [3, 2]);
      for (let y = 0; y < 2; y++) {
        for (let x = 0; x < 3; x++) {
          const [row, column] = place(y, x);
          const from = 3 * (y * 3 + x);
          const to = 3 * (row * width + column);
          expect([...data.subarray(to, to + 3)]).to.deep.equal([...raw.subarray(from, from + 3)]);
        }
      }
    });
  });
});

describe('input: colour profiles', () => {
  const rgb = [
    [255, 0, 0],
    [0, 255, 0],
    [0, 0, 255],
    [255, 255, 255],
    [128, 128, 128],
    [200, 120, 40],
    [10, 20, 30],
  ];
  const grey = [0, 10, 64, 128, 192, 255].map((value) => [value]);
  const adobe = [
    [0.60974, 0.31111, 0.01947],
    [0.20528, 0.62567, 0.06087],
    [0.14919, 0.06322, 0.74457],
  ];
  const prophoto = [
    [0.79767, 0.28803, 0],
    [0.13519, 0.71188, 0],
    [0.03134, 0.00009, 0.82491],
  ];
  const srgb = [
    [0.43607, 0.22249, 0.01392],
    [0.38515, 0.71687, 0.09708],
    [0.14307, 0.06061, 0.7141],
  ];
  const ofSharp = async (name: string) =>
    (await sharp(await plain(1, 1, 'red').withIccProfile(name).png().toBuffer()).metadata()).icc as Buffer;

  // What LittleCMS 2.19 (Pillow's ImageCms) makes of these colours in 8 bits.
  const table: [string, () => Promise<Buffer | undefined> | Buffer, number[][], number[][]][] = [
    ['none', async () => undefined, rgb, rgb],
    ['sRGB', () => ofSharp('srgb'), rgb, rgb],
    [
      'Display P3',
      () => ofSharp('p3'),
      rgb,
      [
        [255, 0, 0],
        [0, 255, 0],
        [2, 0, 255],
        [255, 255, 255],
        [128, 128, 128],
        [213, 115, 0],
        [7, 20, 31],
      ],
    ],
    [
      'Adobe RGB',
      () => profile('RGB ', 2.2, adobe),
      rgb,
      [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [255, 255, 255],
        [129, 129, 129],
        [224, 121, 25],
        [0, 12, 24],
      ],
    ],
    [
      'ProPhoto',
      () => profile('RGB ', 1.8, prophoto),
      rgb,
      [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [255, 255, 255],
        [146, 146, 146],
        [255, 114, 0],
        [0, 28, 42],
      ],
    ],
    [
      'linear RGB',
      () => profile('RGB ', 1, srgb),
      rgb,
      [
        [255, 0, 0],
        [1, 255, 0],
        [0, 0, 255],
        [255, 255, 255],
        [188, 188, 188],
        [229, 182, 110],
        [56, 79, 96],
      ],
    ],
    ['linear grey', () => profile('GRAY', 1), grey, [0, 55, 137, 188, 225, 255].map((v) => [v, v, v])],
    ['grey of gamma 2.2', () => profile('GRAY', 2.2), grey, [0, 3, 62, 129, 193, 255].map((v) => [v, v, v])],
    ['damaged', () => Buffer.from('nonsense'), rgb, rgb],
    ['grey for RGB', () => profile('GRAY', 2.2), rgb, rgb],
  ];
  const expectClose = (data: Uint8Array, wanted: readonly number[][], tolerance: number, what: string) => {
    expect(data.length).to.equal(wanted.length * 3);
    for (const [i, value] of wanted.flat().entries())
      expect(data[i], `${what}, byte ${i}`).to.be.closeTo(value, tolerance);
  };
  for (const [name, make, pixels, wanted] of table) {
    for (const depth of [8, 16] as const) {
      it(`${name}, ${depth} bits: LittleCMS' colours, with and without alpha, PNG and TIFF`, async () => {
        for (const alpha of [undefined, 255, 128]) {
          const given = pixels.map((pixel) => (alpha === undefined ? pixel : [...pixel, alpha]));
          const shown = wanted.map((pixel) =>
            pixel.map((v) => (v * (alpha ?? 255) + 255 * (255 - (alpha ?? 255))) / 255),
          );
          const file = png(given, depth, await make());
          const space = pixels === grey ? { 8: 'b-w', 16: 'grey16' } : { 8: 'srgb', 16: 'rgb16' };
          const tiff = await sharp(file)
            .keepIccProfile()
            .toColourspace(space[depth])
            .tiff({ compression: 'none' })
            .toBuffer();
          expect((await sharp(tiff).metadata()).depth).to.equal(depth === 8 ? 'uchar' : 'ushort');
          for (const [format, bytes] of Object.entries({ png: file, tiff })) {
            const { data } = await decodeImage(bytes, { formats: ['png', 'tiff'] });
            expectClose(data, shown, 1, `${format}, alpha ${alpha}`);
          }
        }
      });
    }
    // JPEG rounds, and one level of a dark linear colour is 13 of sRGB.
    if (pixels !== rgb || ['damaged', 'grey for RGB', 'linear RGB'].includes(name)) continue;
    it(`${name}: LittleCMS' colours, JPEG and WebP`, async () => {
      const blocks = png(
        pixels.flatMap((pixel) => Array<number[]>(16).fill(pixel)),
        8,
        await make(),
      );
      const tall = () =>
        sharp(blocks)
          .keepIccProfile()
          .resize(pixels.length * 16, 16, { fit: 'fill', kernel: 'nearest' });
      const files = [tall().jpeg({ quality: 100, chromaSubsampling: '4:4:4' }), tall().webp({ lossless: true })];
      for (const file of files) {
        const { data, width } = await decodeImage(await file.toBuffer());
        const row = (8 * width + 8) * 3;
        const got = wanted.flatMap((_, i) => [...data.subarray(row + i * 48, row + i * 48 + 3)]);
        expectClose(Uint8Array.from(got), wanted, 3, 'a block');
      }
    });
  }
});

describe('input: files that are no pictures', () => {
  const folder = mkdtempSync(join(tmpdir(), 'octconv-input-'));
  after(() => rmSync(folder, { recursive: true }));
  const file = (name: string, bytes: Uint8Array | string): string => {
    writeFileSync(join(folder, name), bytes);
    return join(folder, name);
  };

  const wrong: [string, () => Promise<Uint8Array> | Uint8Array | string, RegExp][] = [
    ['truncated.jpg', () => cat.subarray(0, cat.length / 2), /cannot be decoded: .*premature end/],
    ['no-end.jpg', () => cat.subarray(0, -2), /cannot be decoded/],
    ['header.jpg', () => cat.subarray(0, 300), /cannot be decoded/],
    ['truncated.png', async () => (await sharp(cat).png().toBuffer()).subarray(0, 20000), /cannot be decoded/],
    ['truncated.webp', async () => (await sharp(cat).webp().toBuffer()).subarray(0, 3000), /cannot be decoded/],
    ['text.jpg', () => 'this is no picture\n', /is not a picture, wanted JPEG, PNG or WebP/],
    ['empty.png', () => '', /is empty, wanted a picture/],
    ['bomb.png', bomb, /is too large, 60000 x 60000, wanted at most 89478485 pixels \(maxPixels\)/],
  ];
  for (const [name, make, message] of wrong) {
    it(`${name}: an error of one line that begins with the file`, async () => {
      const path = file(name, await make());
      const text = await failure(decodeImage(path));
      expect(text.startsWith(`${path}: `)).to.equal(true);
      expect(text).to.match(message).and.not.include('\n');
    });
  }

  it('a missing file and a folder', async () => {
    const missing = join(folder, 'missing.jpg');
    expect(await failure(decodeImage(missing))).to.equal(`${missing}: no such file`);
    expect(await failure(decodeImage(folder))).to.equal(`${folder}: a folder, wanted a file`);
  });

  it('bytes without a name are called a picture', async () => {
    expect(await failure(decodeImage(new Uint8Array(0)))).to.equal('picture: is empty, wanted a picture');
  });

  it('a file that has changed is read again', async () => {
    const path = file('changing.png', await plain(1, 1, '#010203').png().toBuffer());
    await decodeImage(path);
    file('changing.png', await plain(1, 1, '#040506').png().toBuffer());
    expect([...(await decodeImage(path)).data]).to.deep.equal([4, 5, 6]);
  });

  /** A PNG of one pixel whose header says more. */
  async function bomb(width = 60000, height = 60000): Promise<Uint8Array> {
    const png = await plain(1, 1, 'red').png().toBuffer();
    png.writeUInt32BE(width, 16);
    png.writeUInt32BE(height, 20);
    png.writeUInt32BE(crc32(png.subarray(12, 29)), 29);
    return png;
  }

  it('169 megapixels are refused by the header', async () => {
    const message = await failure(decodeImage(await bomb(13000, 13000)));
    expect(message).to.equal('picture: is too large, 13000 x 13000, wanted at most 89478485 pixels (maxPixels)');
  });

  it('a pipe and a device are errors, also through links', async () => {
    const fifo = join(folder, 'fifo.png');
    execFileSync('mkfifo', [fifo]);
    symlinkSync('/dev/zero', join(folder, 'zero.png'));
    for (const path of [fifo, join(folder, 'zero.png'), '/dev/zero']) {
      expect(await failure(decodeImage(path))).to.equal(`${path}: not a regular file, wanted a file`);
    }
  });

  const svg = (content: string): Buffer =>
    Buffer.from(`<svg xmlns="http://www.w3.org/2000/svg" width="700" height="700">${content}</svg>`);
  const slowSvg =
    svg(`<filter id="f"><feTurbulence baseFrequency=".9" numOctaves="9"/><feGaussianBlur stdDeviation="3"/></filter>
    <rect width="700" height="700" filter="url(#f)"/>`);
  const head = (text: string): Buffer => Buffer.from(text, 'latin1');
  const aVideo = 'is a video, which video networks take, wanted JPEG, PNG or WebP';
  const others: [string, () => Promise<Uint8Array> | Uint8Array, string][] = [
    ['GIF', () => plain(8, 8, 'red').gif().toBuffer(), 'is GIF, wanted JPEG, PNG or WebP (others: the option formats)'],
    [
      'TIFF',
      () => plain(8, 8, 'red').tiff({ compression: 'none' }).toBuffer(),
      'is TIFF, wanted JPEG, PNG or WebP (others: the option formats)',
    ],
    [
      'AVIF',
      () => plain(8, 8, 'red').avif().toBuffer(),
      'is AVIF, wanted JPEG, PNG or WebP (others: the option formats)',
    ],
    [
      'SVG',
      () => svg('<rect width="700" height="700" fill="red"/>'),
      'is SVG, wanted JPEG, PNG or WebP (others: the option formats)',
    ],
    [
      'HEIC',
      () => head('\0\0\0\x18ftypheic\0\0\0\0mif1heic'),
      'is HEIC, which cannot be decoded, wanted JPEG, PNG or WebP',
    ],
    ['BMP', () => head('BM\x46\0\0\0'), 'is BMP, which cannot be decoded, wanted JPEG, PNG or WebP'],
    ['JPEG XL', () => head('\xff\x0a\0'), 'is JPEG XL, which cannot be decoded, wanted JPEG, PNG or WebP'],
    ['a video, MP4', () => head('\0\0\0\x18ftypisom\0\0\0\0isommp41'), aVideo],
    ['a video, Matroska', () => head('\x1a\x45\xdf\xa3'), aVideo],
    ['a video, AVI', () => head('RIFF\0\0\0\0AVI LIST'), aVideo],
    ['HTML with SVG', () => head('<!DOCTYPE html><svg>'), 'is not a picture, wanted JPEG, PNG or WebP'],
  ];
  for (const [name, make, message] of others) {
    it(`${name} is refused by name`, async () => {
      expect(await failure(decodeImage(await make()))).to.equal(`picture: ${message}`);
    });
  }
  for (const [name, make] of others.slice(0, 4)) {
    it(`${name} is decoded on request, and then alone`, async () => {
      const formats = [name.toLowerCase() as PictureFormat];
      const { data } = await decodeImage(await make(), { formats });
      expect([...data.subarray(0, 3)]).to.deep.equal([name === 'AVIF' ? 254 : 255, 0, 0]);
      expect(await failure(decodeImage(cat, { formats }))).to.equal(
        `picture: is JPEG, wanted ${name} (others: the option formats)`,
      );
    });
  }

  it('the cause is the last line of the decoder', async () => {
    const avif = (await sharp(cat).avif().toBuffer()).subarray(0, 3000);
    const message = await failure(decodeImage(avif, { formats: ['avif'] }));
    expect(message).to.match(/^picture: cannot be decoded: heif: Invalid input: Unexpected end of file/);
  });

  it('an abort and the time limit end decoding at once, not when the decoder is done', async () => {
    const formats = ['svg'] as const;
    for (const [options, wanted] of [
      [{ signal: AbortSignal.timeout(50) }, /aborted due to timeout/],
      [{ timeout: 0.05 }, /^picture: is not decoded after 0\.05 s \(timeout\)$/],
    ] as const) {
      const start = performance.now();
      const error = await decodeImage(slowSvg, { formats, ...options }).catch((e: Error) => e);
      expect(error).to.be.instanceOf(Error).with.property('message').that.matches(wanted);
      expect(performance.now() - start).to.be.below(1000);
    }
  });

  it('starts no decoder for a picture that nobody waits for any more', async () => {
    const large = await sharp({ create: { width: 3000, height: 3000, channels: 3, background: 'red' } })
      .png()
      .toBuffer();
    const gone = new AbortController();
    const all = Array.from({ length: 40 }, () =>
      decodeImage(large, { signal: gone.signal }).then(
        () => 'decoded',
        ({ message }) => message,
      ),
    );
    const begun = () => sharp.counters().queue + sharp.counters().process;
    while (begun() === 0) await new Promise(setImmediate);
    for (let turns = 0; turns < 20; turns++) await new Promise(setImmediate);
    expect(begun()).to.be.at.most(4);
    gone.abort(new Error('gone'));
    expect(await Promise.all(all)).to.include('gone');
    expect((await decodeImage(cat)).width).to.be.above(0);
  });

  it('limits that make no sense are errors', async () => {
    const wrong: [DecodeOptions, RegExp][] = [
      [{ maxPixels: 0 }, /^maxPixels: 0, wanted a positive integer$/],
      [{ maxBytes: 1.5 }, /^maxBytes: 1\.5, wanted a positive integer$/],
      [{ timeout: -1 }, /^timeout: -1, wanted seconds, at most 3600$/],
      [{ timeout: Number.NaN }, /^timeout: NaN/],
      [{ formats: [] }, /^formats: none, wanted some of jpeg, png, webp, gif, tiff, avif, svg$/],
      [{ formats: ['jpg' as PictureFormat] }, /^formats: jpg, wanted some of jpeg/],
    ];
    for (const [options, message] of wrong) expect(await failure(decodeImage(cat, options))).to.match(message);
  });
});

describe('input: sources', () => {
  const path = fileURLToPath(new URL('images/cat.jpg', import.meta.url));
  const bytes = Uint8Array.from(cat);
  const halves = () => [cat.subarray(0, 1000), cat.subarray(1000)];
  const sources: [string, () => PictureSource][] = [
    ['a path', () => path],
    ['a URL', () => new URL('images/cat.jpg', import.meta.url)],
    ['a Buffer', () => cat],
    ['a part of an ArrayBuffer', () => Uint8Array.from([0, 0, 0, ...cat]).subarray(3)],
    ['an ArrayBuffer', () => bytes.buffer],
    ['a Blob', () => new Blob([cat])],
    ['a Readable', () => Readable.from(halves())],
    ['a stream of single bytes', () => Readable.from(Array.from(cat, (byte) => Uint8Array.of(byte)))],
    ['an empty chunk and a large one', () => Readable.from([new Uint8Array(0), cat])],
    ['a file stream', () => createReadStream(path, { highWaterMark: 777 })],
    ['a web stream', () => new Response(cat).body as AsyncIterable<Uint8Array>],
    [
      'an async generator',
      async function* () {
        yield* halves();
      },
    ],
  ];
  for (const [what, make] of sources) {
    it(what, async () => {
      expect(await decodeImage(make())).to.deep.equal(await decodeImage(cat));
    });
    it(`${what}: more than maxBytes is an error`, async () => {
      const source = make();
      const message = await failure(decodeImage(source, { maxBytes: cat.length - 1 }));
      expect(message).to.match(/(picture|cat\.jpg): is larger than \d+ bytes \(maxBytes\)$/);
      if (source instanceof Readable) expect(source.destroyed).to.equal(true);
      await decodeImage(make(), { maxBytes: cat.length });
    });
  }

  it('bytes are copied: the caller may change or transfer them at once', async () => {
    const own = Uint8Array.from(cat);
    const decoding = decodeImage(own);
    structuredClone(own.buffer, { transfer: [own.buffer] });
    expect(await decoding).to.deep.equal(await decodeImage(cat));
  });

  it('an endless stream is read no further than maxBytes', async () => {
    let given = 0;
    const endless = new Readable({
      read() {
        given += 65536;
        this.push(Buffer.alloc(65536));
      },
    });
    expect(await failure(decodeImage(endless, { maxBytes: 2 ** 20 }))).to.match(/larger than 1048576 bytes/);
    expect(given).to.be.below(2 ** 21);
    expect(endless.destroyed).to.equal(true);
  });

  const ends: [string, () => DecodeOptions][] = [
    ['the time limit', () => ({ timeout: 0.05 })],
    ['a signal', () => ({ signal: AbortSignal.timeout(50) })],
    ['a signal that was aborted before', () => ({ signal: AbortSignal.abort() })],
  ];
  for (const [what, make] of ends) {
    it(`a stream that stalls is destroyed by ${what}`, async () => {
      const stalled = new Readable({ read() {} });
      let cancelled = false;
      const cancel = () => {
        cancelled = true;
      };
      const web = new ReadableStream<Uint8Array>({ cancel });
      for (const source of [stalled, web]) {
        const start = performance.now();
        expect(await decodeImage(source, make()).catch((error: Error) => error)).to.be.instanceOf(Error);
        expect(performance.now() - start).to.be.below(1000);
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
      expect([stalled.destroyed, cancelled]).to.deep.equal([true, true]);
    });
  }

  it('what is no source is an error that says so', async () => {
    const locked = new Response(cat).body as ReadableStream<Uint8Array>;
    locked.getReader();
    const broken = new Readable({ read() {} });
    broken.on('error', () => undefined).destroy(new Error('the client left'));
    const wrong: [unknown, RegExp][] = [
      [null, /^picture: got Null, wanted a path, URL, Uint8Array, ArrayBuffer, Blob or stream of bytes$/],
      [7, /^picture: got Number, wanted/],
      [new Uint16Array(4), /^picture: got Uint16Array, wanted/],
      [{ path: 'cat.jpg' }, /^picture: got Object, wanted/],
      [Readable.from(['text']), /^picture: the stream gives string, wanted Uint8Array$/],
      [broken, /^picture: cannot be read: the client left$/],
      [locked, /^picture: cannot be read: .*locked/],
      [new URL('https://example.org/cat.jpg'), /^https:\/\/example\.org\/cat\.jpg: wanted a file: URL$/],
      [`${path}\0`, /: is no path; its bytes are wanted as a Uint8Array$/],
    ];
    for (const [source, message] of wrong)
      expect(await failure(decodeImage(source as PictureSource))).to.match(message);
  });

  it('a hundred pictures on one signal are no warning', async () => {
    const warnings: string[] = [];
    const warned = (warning: Error) => void warnings.push(warning.message);
    process.on('warning', warned);
    const { signal } = new AbortController();
    const one = await plain(1, 1, 'red').png().toBuffer();
    await Promise.all(Array.from({ length: 100 }, () => decodeImage(one, { signal })));
    await new Promise((resolve) => setImmediate(resolve));
    process.off('warning', warned);
    expect(warnings).to.deep.equal([]);
  });
});

describe('input: sizes', () => {
  // [height, width] to [resize, crop]: the resized size and the corner that torchvision's Resize and CenterCrop give.
  const table: [number, number, number, [number, number], [number, number, number, number]][] = [
    [300, 451, 32, [32, 32], [32, 48, 0, 8]],
    [451, 300, 32, [32, 32], [48, 32, 8, 0]],
    [427, 640, 256, [224, 224], [256, 383, 16, 80]],
    [500, 333, 256, [224, 224], [384, 256, 80, 16]],
    [512, 512, 256, [224, 224], [256, 256, 16, 16]],
    [32, 32, 32, [32, 32], [32, 32, 0, 0]],
    [1, 1, 32, [32, 32], [32, 32, 0, 0]],
    [1, 40, 32, [32, 32], [32, 1280, 0, 624]],
    [10, 11, 10, [10, 10], [10, 11, 0, 0]],
    [10, 13, 10, [10, 10], [10, 13, 0, 2]],
    [10, 15, 10, [10, 10], [10, 15, 0, 2]],
    [1, 3, 100, [96, 64], [100, 300, 2, 118]],
  ];
  for (const [height, width, resize, [cropHeight, cropWidth], wanted] of table) {
    it(`${height} x ${width}, short side ${resize}, crop ${cropHeight} x ${cropWidth}`, () => {
      const got = resizeGeometry(height, width, { resize, height: cropHeight, width: cropWidth });
      const [wholeHeight, wholeWidth, top, left] = wanted;
      const crop = { top, left, height: cropHeight, width: cropWidth };
      expect(got).to.deep.equal({ height: wholeHeight, width: wholeWidth, crop });
    });
  }

  it('a size of both sides squashes', () => {
    const got = resizeGeometry(300, 451, { resize: [40, 30], height: 36, width: 28 });
    expect(got).to.deep.equal({ height: 40, width: 30, crop: { top: 2, left: 1, height: 36, width: 28 } });
  });

  it('config.json: a crop percentage, both sides, blue first, one channel', () => {
    const of = (more: object) => parseInput({ height: 224, width: 224, ...more }, 'config.json');
    expect(of({ cropPct: 0.875 }).resize).to.equal(256);
    expect(of({ cropPct: 0.9 }).resize).to.equal(248); // timm's floor of 248.9
    expect(of({ resize: [256, 240] }).resize).to.deep.equal([256, 240]);
    expect(of({ channels: 'bgr' })).to.deep.include({ channels: 'bgr', mean: [0, 0, 0] });
    expect(of({ channels: 'gray', mean: [0.5] })).to.deep.include({ mean: [0.5], std: [1] });
    expect(of({ channels: 'rgb' })).to.not.have.property('channels');
  });

  it('config.json: what is left out', () => {
    expect(parseInput({ height: 32, width: 48 }, 'config.json')).to.deep.equal({
      height: 32,
      width: 48,
      resize: 48,
      interpolation: 'bilinear',
      scale: 1 / 255,
      mean: [0, 0, 0],
      std: [1, 1, 1],
    });
  });

  const bad: [unknown, RegExp][] = [
    [null, /^config\.json: input is null, wanted an object$/],
    [{ width: 32 }, /^config\.json: input\.height is nothing, wanted an integer from 1 to 65536$/],
    [{ height: 32.5, width: 32 }, /input\.height is 32\.5/],
    [{ height: 32, width: 1e9 }, /input\.width is 1000000000/],
    [{ height: 32, width: 32, resize: 31 }, /input\.resize is 31, wanted at least the size, 32 x 32/],
    [{ height: 32, width: 32, interpolation: 'lanczos' }, /"lanczos", wanted "bilinear" or "bicubic"/],
    [{ height: 32, width: 32, scale: 0 }, /input\.scale is 0, wanted a positive number/],
    [{ height: 32, width: 32, cropPct: 0.5, resize: 64 }, /input: cropPct and resize say the same/],
    [{ height: 32, width: 64, cropPct: 0.5 }, /input: cropPct beside 32 x 64, wanted resize/],
    [{ height: 32, width: 32, resize: [32, 31] }, /input\.resize is \[32,31\], wanted at least the size/],
    [
      { height: 32, width: 32, channels: 'gray', mean: [0, 0, 0] },
      /input\.mean is \[0,0,0\], wanted one number for "gray"/,
    ],
    [
      { height: 32, width: 32, mean: [123.7, 116.3, 103.5] },
      /input\.mean is .*, but the scale 1\/255 makes pictures 0 \.\. 1: wanted/,
    ],
    [{ height: 32, width: 32, mean: [1, 2] }, /input\.mean is \[1,2\], wanted three numbers/],
    [{ height: 32, width: 32, std: [1, 0, 1] }, /input\.std\[1\] is 0, wanted a positive number/],
  ];
  for (const [value, message] of bad) {
    it(`config.json: ${JSON.stringify(value)} is an error`, () => {
      expect(() => parseInput(value, 'config.json')).to.throw(OctconvError, message);
    });
  }
});

type Interpolation = 'bilinear' | 'bicubic';
type Size = readonly [height: number, width: number];

/** A picture of noise, half of it black and white only, so that bicubic overshoots. */
function noise([height, width]: Size): Uint8Array {
  return Uint8Array.from({ length: height * width * 3 }, (_, i) => {
    let x = Math.imul(i + 1, 2654435761) >>> 0;
    x = Math.imul(x ^ (x >>> 15), 2246822519) >>> 24;
    return i % 2 ? x : x < 128 ? 0 : 255;
  });
}

async function resized(
  x: Uint8Array,
  [height, width]: Size,
  to: Size,
  interpolation: Interpolation,
  device: Device,
  window: readonly [top: number, left: number, height: number, width: number] = [0, 0, ...to],
): Promise<Uint8Array> {
  const graph = new Graph();
  const [top, left, cropHeight, cropWidth] = window;
  const crop = { top, left, height: cropHeight, width: cropWidth };
  const attrs = { height: to[0], width: to[1], crop, interpolation };
  graph.outputs.push(resize(graph.input('u8', [1, height, width, 3]), attrs).id);
  const [y] = await runGraph(graph, [tensor('u8', [1, height, width, 3], x)], { device });
  return y?.data as Uint8Array;
}

/** Resizing by its definition: every output pixel is a weighted mean of all input pixels; rows, rounding, columns. */
function definition(x: ArrayLike<number>, [height, width]: Size, to: Size, interpolation: Interpolation): number[] {
  const filter = (distance: number): number => {
    const d = Math.abs(distance);
    if (interpolation === 'bilinear') return Math.max(0, 1 - d);
    if (d >= 2) return 0;
    return d < 1 ? 1.5 * d ** 3 - 2.5 * d ** 2 + 1 : -0.5 * d ** 3 + 2.5 * d ** 2 - 4 * d + 2;
  };
  const axis = (from: number, size: number) =>
    Array.from({ length: size }, (_, i) => {
      const scale = from / size;
      const weights = Array.from({ length: from }, (_, p) =>
        filter((p + 0.5 - (i + 0.5) * scale) / Math.max(1, scale)),
      );
      const sum = weights.reduce((a, b) => a + b);
      return weights.map((weight) => weight / sum);
    });
  const mean = (weights: number[], at: (p: number) => number): number =>
    Math.min(255, Math.max(0, Math.round(weights.reduce((sum, weight, p) => sum + weight * at(p), 0))));
  const channels = [0, 1, 2];
  const across = axis(width, to[1]);
  const rows = Array.from({ length: height }, (_, y) =>
    across.flatMap((weights) => channels.map((c) => mean(weights, (p) => x[(y * width + p) * 3 + c] as number))),
  );
  return axis(height, to[0]).flatMap((weights) =>
    Array.from({ length: to[1] * 3 }, (_, j) => mean(weights, (p) => rows[p]?.[j] as number)),
  );
}

describe('input: resize', () => {
  const sizes: [Size, Size][] = [
    [
      [97, 61],
      [32, 20],
    ],
    [
      [17, 23],
      [50, 67],
    ],
    [
      [64, 48],
      [64, 9],
    ],
    [
      [64, 48],
      [7, 48],
    ],
    [
      [30, 70],
      [45, 31],
    ],
    [
      [1, 40],
      [32, 129],
    ],
    [
      [40, 1],
      [33, 32],
    ],
    [
      [1, 1],
      [9, 9],
    ],
    [
      [31, 45],
      [1, 1],
    ],
    [
      [12, 13],
      [12, 13],
    ],
  ];
  for (const [from, to] of sizes) {
    for (const interpolation of ['bilinear', 'bicubic'] as const) {
      it(`${from} to ${to}, ${interpolation}: the definition within one grey level`, async () => {
        const x = noise(from);
        const wanted = definition(x, from, to, interpolation);
        for (const device of ['cpu', 'reference'] as const) {
          const got = await resized(x, from, to, interpolation, device);
          const worst = wanted.reduce((worst, value, i) => Math.max(worst, Math.abs(value - (got[i] as number))), 0);
          expect(got.length).to.equal(wanted.length);
          expect(worst).to.be.at.most(1);
        }
      });
    }
  }

  // sha256 of what Pillow 13.0 makes of the same noise; where the height is resized first, Pillow 12 makes other bytes.
  const pillow: [Size, Size, Interpolation, string][] = [
    [[97, 61], [32, 20], 'bilinear', '56e350a252eebc59'],
    [[97, 61], [32, 20], 'bicubic', '696208f5725fffba'],
    [[17, 23], [50, 67], 'bilinear', '0c0c23be05729b54'],
    [[17, 23], [50, 67], 'bicubic', '89483eb38dea3474'],
    [[300, 451], [256, 384], 'bicubic', '5ea9d3770ec43e6d'],
    [[120, 40], [96, 32], 'bilinear', 'df65e2c86a608404'],
    [[120, 40], [96, 32], 'bicubic', 'd858ae4ac8392b74'],
    [[120, 40], [24, 8], 'bicubic', 'a853a146ddfee14a'],
    [[500, 5], [100, 1], 'bicubic', '1852103dbb20d25a'],
    [[90, 30], [30, 40], 'bilinear', '1141ed97b4aa1256'],
    [[90, 30], [30, 30], 'bicubic', '2b0ff4a104b1bd37'],
    [[66, 20], [64, 19], 'bicubic', '98e5fd5381956845'], // two pixels and one: the width first
    [[67, 20], [64, 19], 'bicubic', 'f6a5de90d40f24d4'],
    [[300, 2], [299, 2], 'bicubic', '23390aeceb09417c'],
    [[20, 100], [4, 33], 'bicubic', 'b4e2b23a683678c5'],
  ];
  for (const [from, to, interpolation, hash] of pillow) {
    it(`${from} to ${to}, ${interpolation}: the bytes of Pillow`, async () => {
      for (const device of ['cpu', 'reference'] as const) {
        const y = await resized(noise(from), from, to, interpolation, device);
        expect(createHash('sha256').update(y).digest('hex').slice(0, 16)).to.equal(hash);
      }
    });
  }

  for (const [from, to] of [
    [
      [40, 50],
      [60, 30],
    ],
    [
      [120, 40],
      [60, 30],
    ],
  ] as const) {
    it(`${from} to ${to}: a crop is that part of the whole`, async () => {
      for (const device of ['cpu', 'reference'] as const) {
        const whole = await resized(noise(from), from, to, 'bicubic', device);
        const part = await resized(noise(from), from, to, 'bicubic', device, [11, 7, 20, 18]);
        for (let y = 0; y < 20; y++) {
          const row = ((y + 11) * 30 + 7) * 3;
          expect(part.slice(y * 54, (y + 1) * 54)).to.deep.equal(whole.slice(row, row + 54));
        }
      }
    });
  }

  const wrong: [string, Size, readonly [number, number, number, number], string, RegExp][] = [
    [
      'a crop that sticks out',
      [8, 8],
      [1, 0, 8, 8],
      'bilinear',
      /^resize: a crop of 8 x 8 at \(1, 0\) is not inside of 8 x 8/,
    ],
    [
      'an unknown filter',
      [8, 8],
      [0, 0, 8, 8],
      'lanczos',
      /^resize: interpolation 'lanczos', wanted bilinear or bicubic/,
    ],
  ];
  for (const [what, to, window, interpolation, message] of wrong) {
    it(`${what} is an error`, async () => {
      const run = resized(noise([4, 4]), [4, 4], to, interpolation as Interpolation, 'cpu', window);
      expect(await failure(run)).to.match(message);
    });
  }
});

describe('input: resize without antialiasing', () => {
  /** What OpenCV 5.0 makes of the noise below, 7 x 5 to 4 x 3. */
  const table: readonly [interpolation: 'bilinear' | 'bicubic', wanted: readonly number[]][] = [
    [
      'bilinear',
      [
        187, 40, 137, 27, 122, 172, 109, 83, 36, 66, 82, 155, 212, 88, 154, 194, 145, 85, 116, 191, 89, 52, 182, 10, 56,
        79, 166, 146, 79, 200, 44, 108, 167, 222, 162, 139,
      ],
    ],
    [
      'bicubic',
      [
        204, 35, 136, 15, 126, 169, 110, 74, 28, 51, 78, 158, 229, 82, 163, 200, 157, 79, 127, 191, 84, 49, 190, 1, 45,
        67, 178, 152, 75, 209, 45, 103, 175, 241, 172, 135,
      ],
    ],
  ];
  let state = 12345n;
  const noise = Uint8Array.from({ length: 7 * 5 * 3 }, () => {
    state = (state * 1103515245n + 12345n) & 0x7fffffffn;
    return Number((state >> 16n) & 255n);
  });

  for (const [interpolation, wanted] of table) {
    for (const device of ['cpu', 'reference'] as const) {
      it(`${interpolation} as OpenCV's, to one level, on ${device}`, async () => {
        const options = { height: 4, width: 3, interpolation, antialias: false, device };
        const { data } = await resize(tensor('u8', [1, 7, 5, 3], noise), options);
        const off = [...data].map((x, i) => Math.abs(x - (wanted[i] as number)));
        expect(Math.max(...off)).to.be.at.most(1);
      });
    }
  }
});

describe('input: preprocess', () => {
  it('normalize is (x * scale - mean) / std, rounded once', async () => {
    const x = Uint8Array.from({ length: 768 }, (_, i) => i % 256);
    const attrs = { scale: 1 / 255, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] } as const;
    for (const device of ['cpu', 'reference'] as const) {
      const graph = new Graph();
      graph.outputs.push(normalize(graph.input('u8', [1, 16, 16, 3]), attrs).id);
      const [y] = await runGraph(graph, [tensor('u8', [1, 16, 16, 3], x)], { device });
      const wanted = Float32Array.from(x, (v, i) => (v * attrs.scale - attrs.mean[i % 3]!) / attrs.std[i % 3]!);
      expect(y?.data).to.deep.equal(wanted);
    }
  });

  it('pictures of different sizes become one batch; both devices agree to the bit', async () => {
    const pictures = await Promise.all([decodeImage(cat), decodeImage(await plain(1, 1, '#ff0000').png().toBuffer())]);
    const x = await preprocess(pictures, defaultInput('cifar'));
    expect([x.dtype, ...x.shape]).to.deep.equal(['f32', 2, 32, 32, 3]);
    expect(x.data).to.deep.equal((await preprocess(pictures, defaultInput('cifar'), { device: 'reference' })).data);
    const pixel = (i: number): number[] =>
      [...x.data.subarray(i * 3, i * 3 + 3)].map((v) => Math.round(v * 1000) / 1000);
    expect([0, 31, 528, 1023].map(pixel)).to.deep.equal([
      [0.249, -0.483, -0.493],
      [0.583, -0.064, 0.017],
      [0.979, 0.291, -0.133],
      [0.884, 0.58, 0.482],
    ]);
    expect([1024, 2047].map(pixel)).to.deep.equal([
      [2.059, -1.98, -1.707],
      [2.059, -1.98, -1.707],
    ]);
  });

  it('blue comes first, or luma alone, with the means in that order', async () => {
    const picture = { data: Uint8Array.of(255, 0, 0, 10, 200, 30), height: 1, width: 2 };
    const base = { height: 1, width: 2, resize: [1, 2], interpolation: 'bilinear', scale: 1, std: [1, 1, 1] } as const;
    const bgr = await preprocess([picture], { ...base, channels: 'bgr', mean: [1, 2, 3] });
    expect([...bgr.data]).to.deep.equal([-1, -2, 252, 29, 198, 7]);
    const gray = await preprocess([picture], { ...base, channels: 'gray', mean: [1], std: [2] });
    expect(gray.shape).to.deep.equal([1, 1, 2, 1]);
    expect([...gray.data]).to.deep.equal([(76 - 1) / 2, (124 - 1) / 2]); // (19595 r + 38470 g + 7471 b) / 65536, rounded
  });

  it('a picture of one row and 30,000 columns costs no more than its crop', async () => {
    const picture = { data: new Uint8Array(90_000).fill(255), height: 1, width: 30_000 };
    const x = await preprocess([picture], { ...defaultInput('imagenet'), mean: [0, 0, 0], std: [1, 1, 1] });
    expect(x.data.every((value) => value === 1)).to.equal(true);
  });
});

describe('input: batches', () => {
  const folder = mkdtempSync(join(tmpdir(), 'octconv-batches-'));
  after(() => rmSync(folder, { recursive: true }));
  const input = {
    ...defaultInput('cifar'),
    height: 2,
    width: 2,
    resize: 2,
    scale: 1,
    mean: [0, 0, 0],
    std: [1, 1, 1],
  } as const;

  async function files(name: string, count: number): Promise<string[]> {
    const paths = Array.from({ length: count }, (_, i) => join(folder, `${name}${i}.png`));
    for (const [i, path] of paths.entries()) await plain(3, 3, { r: i, g: 0, b: 0 }).png().toFile(path);
    return paths;
  }

  it('keep the order; a file that is no picture is told and left out', async () => {
    const paths = await files('order', 7);
    writeFileSync(paths[3]!, 'text');
    const seen: number[][] = [];
    const failed: string[] = [];
    for await (const { x, files } of loadBatches(paths, input, {
      batch: 3,
      failed: (error) => failed.push(error.message),
    })) {
      expect(x.shape).to.deep.equal([files.length, 2, 2, 3]);
      expect(files.map((file) => paths.indexOf(file))).to.deep.equal(files.map((_, i) => x.data[i * 12]));
      seen.push(files.map((file) => paths.indexOf(file)));
    }
    expect(seen).to.deep.equal([[0, 1, 2], [4, 5], [6]]);
    expect(failed).to.deep.equal([`${paths[3]}: is not a picture, wanted JPEG, PNG or WebP`]);
  });

  it('without `failed` such a file ends the loop', async () => {
    const all = async () => {
      for await (const _ of loadBatches([join(folder, 'none.png')], input)) expect.fail('no batch was wanted');
    };
    expect(await failure(all())).to.match(/none\.png: no such file$/);
  });

  it('the next batch is read while the caller works, and no more than that', async () => {
    const paths = await files('ahead', 6);
    const seen: number[] = [];
    const failed: string[] = [];
    for await (const { files } of loadBatches(paths, input, { batch: 2, failed: (_, file) => failed.push(file) })) {
      seen.push(files.length);
      if (seen.length > 1) continue;
      await new Promise((resolve) => setTimeout(resolve, 500));
      for (const path of paths.slice(2)) rmSync(path);
    }
    expect(seen).to.deep.equal([2, 2]);
    expect(failed).to.deep.equal(paths.slice(4));
  });

  it('one source needs no list; sources that are not files have numbers', async () => {
    const [path = ''] = await files('one', 1);
    for (const sources of [path, [path]]) {
      for await (const { files, indices } of loadBatches(sources, input))
        expect([files, indices]).to.deep.equal([[path], [0]]);
    }
    const seen: unknown[] = [];
    const bytes = readFileSync(path);
    const failed = (error: OctconvError, file: string, index: number) => seen.push([error.message, file, index]);
    for await (const { files, indices } of loadBatches([bytes, Buffer.from('text'), path], input, { failed }))
      seen.push([files, indices]);
    expect(seen).to.deep.equal([
      ['picture 1: is not a picture, wanted JPEG, PNG or WebP', 'picture 1', 1],
      [
        ['picture 0', path],
        [0, 2],
      ],
    ]);
  });

  it('a stream that fails while it waits is told in its turn; those not read are destroyed', async () => {
    const [path = ''] = await files('stream', 1);
    const late = new Readable({ read() {} });
    const unread = new Readable({ read() {} });
    const told: string[] = [];
    for await (const _ of loadBatches([path, late, path, unread], input, {
      batch: 1,
      failed: (error) => told.push(error.message),
    })) {
      if (late.destroyed) break;
      late.destroy(new Error('the client left'));
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    expect(told).to.deep.equal(['picture 1: cannot be read: the client left']);
    expect(unread.destroyed).to.equal(true);
  });

  it('a signal ends the loop', async () => {
    const paths = await files('abort', 4);
    const stop = new AbortController();
    let batches = 0;
    let reason: unknown;
    try {
      for await (const _ of loadBatches(paths, input, { batch: 1, signal: stop.signal })) {
        batches++;
        stop.abort('enough');
      }
    } catch (error) {
      reason = error;
    }
    expect(reason).to.equal('enough');
    expect(batches).to.be.at.most(2);
  });
});

describe('input: bytes of pictures to a model', () => {
  const network = { alpha: 0.5, width: 8, classes: 10, stem: 'cifar' } as const;
  const bytes = Uint8Array.from({ length: 2 * 8 * 8 * 3 }, (_, i) => (i * 97) % 256);
  const config = { height: 8, width: 8, resize: 8, interpolation: 'bilinear', scale: 1 / 255 } as const;

  for (const [channels, mean, std] of [
    ['rgb', [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]],
    ['bgr', [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]],
    ['gray', [0.5], [0.25]],
  ] as const) {
    it(`${channels}: the same logits as of what preprocess makes of them`, async () => {
      const input = { ...config, channels, mean, std };
      const pictures = [0, 1].map((i) => ({ data: bytes.slice(i * 192, (i + 1) * 192), height: 8, width: 8 }));
      const rows = await Promise.all(pictures.map((picture) => preprocessBytes(picture, input)));
      const count = channels === 'gray' ? 1 : 3;
      const x = tensor('u8', [2, 8, 8, count], Uint8Array.from(rows.flatMap((row) => [...row])));
      for (const device of ['cpu', 'reference']) {
        using model = createModel('oct-resnet-26', { ...network, channels: count }, { device });
        model.input = input;
        const wanted = await model.run(await preprocess(pictures, input));
        expect((await model.run(x)).data).to.deep.equal(wanted.data);
      }
    });
  }

  it('are no input of a model without preprocessing, nor of another channel count', async () => {
    using model = createModel('oct-resnet-26', network);
    const x = tensor('u8', [2, 8, 8, 3], bytes);
    model.input = undefined;
    expect(await failure(model.run(x))).to.match(/u8/);
    using gray = createModel('oct-resnet-26', { ...network, channels: 1 });
    expect(await failure(gray.run(x))).to.match(/\[2,8,8,3\]/);
  });
});
