import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { expect } from 'chai';
import sharp, { type Color, type Sharp } from 'sharp';
import { OctconvError } from '../lib/error.js';
import { decodeImage } from '../lib/input/image.js';
import { parseInput, resizeGeometry } from '../lib/input/preprocess.js';

const cat = readFileSync(new URL('images/cat.jpg', import.meta.url));
const plain = (width: number, height: number, background: Color, channels: 3 | 4 = 3): Sharp =>
  sharp({ create: { width, height, channels, background } });

async function failure(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
  } catch (error) {
    expect(error).to.be.instanceOf(OctconvError);
    return (error as Error).message;
  }
  throw new Error('expected an error');
}

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
    ['transparent black WebP', () => plain(3, 2, { r: 0, g: 0, b: 0, alpha: 0 }, 4).webp({ lossless: true }), [255, 255, 255]],
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
    const animation = await sharp(frames, { join: { animated: true } }).webp({ lossless: true }).toBuffer();
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
    ['text.jpg', () => 'this is no picture\n', /is not a picture, wanted JPEG, PNG, WebP/],
    ['empty.png', () => '', /is empty, wanted a picture/],
    ['bomb.png', bomb, /is too large, wanted at most 178956970 pixels/],
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

  /** A PNG of one pixel whose header says 60,000 x 60,000. */
  async function bomb(): Promise<Uint8Array> {
    const png = await plain(1, 1, 'red').png().toBuffer();
    png.writeUInt32BE(60000, 16);
    png.writeUInt32BE(60000, 20);
    png.writeUInt32BE(crc32(png.subarray(12, 29)), 29);
    return png;
  }
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
      expect([got.height, got.width, got.top, got.left]).to.deep.equal(wanted);
    });
  }

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
    [{ height: 32, width: 32, resize: 31 }, /input\.resize is 31, wanted an integer from 32/],
    [{ height: 32, width: 32, interpolation: 'lanczos' }, /"lanczos", wanted "bilinear" or "bicubic"/],
    [{ height: 32, width: 32, scale: 0 }, /input\.scale is 0, wanted a positive number/],
    [{ height: 32, width: 32, mean: [1, 2] }, /input\.mean is \[1,2\], wanted three numbers/],
    [{ height: 32, width: 32, std: [1, 0, 1] }, /input\.std is \[1,0,1\], wanted three numbers/],
  ];
  for (const [value, message] of bad) {
    it(`config.json: ${JSON.stringify(value)} is an error`, () => {
      expect(() => parseInput(value, 'config.json')).to.throw(OctconvError, message);
    });
  }
});
