/** Pictures as files, made byte by byte: depths, alpha and colour profiles that no encoder at hand writes. */
import { crc32, deflateSync } from 'node:zlib';

/**
 * A matrix profile (ICC version 2) of one gamma: sRGB-like primaries unless others are given as XYZ (D50) of red,
 * green, blue.
 */
export function profile(space: 'RGB ' | 'GRAY', gamma: number, primaries: readonly (readonly number[])[] = []): Buffer {
  const fixed = (x: number) => Math.round(x * 65536);
  const words = (...values: number[]) => {
    const bytes = Buffer.alloc(values.length * 4);
    values.forEach((value, i) => void bytes.writeInt32BE(value, i * 4));
    return bytes;
  };
  const xyz = (values: readonly number[]) => Buffer.concat([Buffer.from('XYZ \0\0\0\0'), words(...values.map(fixed))]);
  const text = Buffer.from('\0\0\0\0\0\0\0\x05test\0\0\0\0\0\0\0\0\0\0\0\0\0'.padEnd(92, '\0'));
  const curve = Buffer.concat([
    Buffer.from('curv\0\0\0\0\0\0\0\x01'),
    Buffer.from([Math.round(gamma * 256) >> 8, Math.round(gamma * 256) & 255, 0, 0]),
  ]);
  const tags: [string, Buffer][] = [
    ['desc', Buffer.concat([Buffer.from('desc'), text])],
    ['cprt', Buffer.from('text\0\0\0\0none\0\0\0\0')],
    ['wtpt', xyz([0.9642, 1, 0.8249])],
    ...primaries.map((values, i): [string, Buffer] => [`${'rgb'[i]}XYZ`, xyz(values)]),
    ...(space === 'GRAY' ? ['kTRC'] : ['rTRC', 'gTRC', 'bTRC']).map((name): [string, Buffer] => [name, curve]),
  ];
  let at = 128 + 4 + tags.length * 12;
  const table = tags.map(([name, bytes]) => {
    at += bytes.length;
    return Buffer.concat([Buffer.from(name), words(at - bytes.length, bytes.length)]);
  });
  const head = Buffer.alloc(128);
  head.writeUInt32BE(at, 0);
  head.writeUInt32BE(0x02400000, 8);
  head.write(`mntr${space}XYZ `, 12);
  head.write('acsp', 36);
  words(...[0.9642, 1, 0.8249].map(fixed)).copy(head, 68);
  return Buffer.concat([head, words(tags.length), ...table, ...tags.map(([, bytes]) => bytes)]);
}

/** A PNG of one row. Each pixel is its channels, 0 .. 255, alpha last; 16 bits hold 257 times as much. */
export function png(pixels: readonly (readonly number[])[], depth: 8 | 16, icc?: Uint8Array): Buffer {
  const chunk = (type: string, data: Uint8Array) => {
    const bytes = Buffer.concat([Buffer.alloc(4), Buffer.from(type), data, Buffer.alloc(4)]);
    bytes.writeUInt32BE(data.length, 0);
    bytes.writeUInt32BE(crc32(bytes.subarray(4, -4)), data.length + 8);
    return bytes;
  };
  const channels = pixels[0]?.length as 1 | 2 | 3 | 4;
  const header = Buffer.from([
    ...[0, 0, pixels.length >> 8, pixels.length & 255, 0, 0, 0, 1],
    depth,
    { 1: 0, 2: 4, 3: 2, 4: 6 }[channels],
    0,
    0,
    0,
  ]);
  const samples = pixels.flatMap((pixel) => pixel.flatMap((value) => (depth === 8 ? [value] : [value, value])));
  return Buffer.concat([
    Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'),
    chunk('IHDR', header),
    ...(icc ? [chunk('iCCP', Buffer.concat([Buffer.from('icc\0\0'), deflateSync(icc)]))] : []),
    chunk('IDAT', deflateSync(Buffer.from([0, ...samples]))),
    chunk('IEND', Buffer.alloc(0)),
  ]);
}
