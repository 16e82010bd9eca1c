import { execFileSync } from 'node:child_process';
import { expect } from 'chai';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { decodeNpy, readNpy, writeNpy } from '../lib/npy.js';
import { failure } from './expect.js';

function npy(dict: string, data: number | Uint8Array, version = 1): Buffer {
  const head = Buffer.alloc(version === 1 ? 10 : 12);
  head.write('\x93NUMPY', 'latin1');
  head[6] = version;
  if (version === 1) head.writeUInt16LE(dict.length, 8);
  else head.writeUInt32LE(dict.length, 8);
  return Buffer.concat([head, Buffer.from(dict, 'latin1'), typeof data === 'number' ? Buffer.alloc(data) : data]);
}

describe('.npy', () => {
  let path: string;
  before(async () => {
    path = join(await mkdtemp(join(tmpdir(), 'octconv-npy-')), 'x.npy');
  });
  after(() => rm(join(path, '..'), { recursive: true }));

  it('reads what NumPy wrote', async () => {
    const golden = fileURLToPath(new URL('golden/oct-resnet-26-w8-a25-cifar', import.meta.url));
    const x = await readNpy(`${golden}.x.npy`);
    expect(x.shape).to.deep.equal([3, 32, 32, 3]);
    expect(x.data.slice(0, 2)).to.deep.equal(new Float32Array([-1.1633646488189697, 0.2427026629447937]));
    expect(x.data.length).to.equal(9216);
    expect((await readNpy(`${golden}.y.npy`)).shape).to.deep.equal([3, 10]);
  });

  it('reads what it wrote', async () => {
    for (const shape of [[], [3], [2, 3], [1, 2, 3, 4], [2, 0]]) {
      const data = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => i - 0.5);
      await writeNpy(path, shape, data);
      expect(await readNpy(path)).to.deep.equal({ shape, data });
    }
    await writeNpy(path, [2], new Float32Array([9, 1, 2, 9]).subarray(1, 3)); // a part of its memory only
    expect((await readNpy(path)).data).to.deep.equal(new Float32Array([1, 2]));
  });

  it('takes other versions, orders of fields and spaces', async () => {
    for (const version of [1, 2, 3]) {
      await writeFile(path, npy('{"shape":(2,1),"fortran_order":False,"descr":"<f4"}\n', 8, version));
      expect((await readNpy(path)).shape).to.deep.equal([2, 1]);
    }
  });

  // [[0, 1, 2.5], [100, -3.25, 65504]], [[0, 1, 2], [100, 127, 3]] and [[0, 1, 1], [1, 0, 1]] as NumPy 2.4 writes them
  const fractions = [0, 1, 2.5, 100, -3.25, 65504];
  const integers = [0, 1, 2, 100, 127, 3];
  const numbers: [string, string, number[]][] = [
    ['<f2', '0000003c00414056 80c2ff7b', fractions],
    ['>f2', '00003c0041005640 c2807bff', fractions],
    ['>f4', '000000003f80000040200000 42c80000c0500000477fe000', fractions],
    [
      '<f8',
      '0000000000000000000000000000f03f0000000000000440 00000000000059400000000000000ac00000000000fcef40',
      fractions,
    ],
    [
      '>f8',
      '00000000000000003ff00000000000004004000000000000 4059000000000000c00a00000000000040effc0000000000',
      fractions,
    ],
    ['|u1', '000102647f03', integers],
    ['|i1', '000102647f03', integers],
    ['<u2', '000001000200 64007f000300', integers],
    ['>i2', '000000010002 0064007f0003', integers],
    ['<i4', '000000000100000002000000 640000007f00000003000000', integers],
    ['>u4', '000000000000000100000002 000000640000007f00000003', integers],
    [
      '<i8',
      '000000000000000001000000000000000200000000000000 64000000000000007f000000000000000300000000000000',
      integers,
    ],
    [
      '>u8',
      '000000000000000000000000000000010000000000000002 0000000000000064000000000000007f0000000000000003',
      integers,
    ],
    ['|b1', '000101010001', [0, 1, 1, 1, 0, 1]],
  ];
  for (const [descr, hex, wanted] of numbers) {
    it(`converts ${descr}`, async () => {
      const bytes = npy(dict(`'${descr}'`), Buffer.from(hex.replace(' ', ''), 'hex'));
      await writeFile(path, bytes);
      const read = await readNpy(path);
      expect(read).to.deep.equal({ shape: [2, 3], data: new Float32Array(wanted) });
      expect(await decodeNpy(bytes)).to.deep.equal(read);
    });
  }

  it('converts Fortran order', async () => {
    // numpy.arange(24).reshape(2, 3, 4)
    const hex = '000c0410081401 0d051109150 20e06120a16030f07130b17';
    const bytes = npy(dict("'|u1'", 'True', '(2, 3, 4)'), Buffer.from(hex.replaceAll(' ', ''), 'hex'));
    const { shape, data } = await decodeNpy(bytes);
    expect(shape).to.deep.equal([2, 3, 4]);
    expect(data).to.deep.equal(Float32Array.from({ length: 24 }, (_, i) => i));
  });

  it('reads a header of Python 2', async () => {
    const bytes = npy(dict("'<f4'", 'False', '(2L, 1L)'), 8);
    expect((await decodeNpy(bytes)).shape).to.deep.equal([2, 1]);
  });

  it('reads what has no aligned data', async () => {
    const x = decodeNpy(Buffer.concat([Buffer.alloc(1), npy(dict("'<f4'", 'False', '(2,)'), 8)]).subarray(1));
    expect((await x).data).to.deep.equal(new Float32Array(2));
  });

  for (const [what, filler] of [
    ['spaces', ' '],
    ['digits', '1'],
    ['quotes', "'"],
    ['commas', '1,'],
    ['words', 'shape'],
  ] as const) {
    it(`65,000 bytes of ${what} in the header take no time`, async () => {
      for (const order of ['False', 'True']) {
        const start = performance.now();
        const text = filler.repeat(64000 / filler.length);
        for (const header of [dict("'<f4'", order, `(${text}`), `{'shape': (${text}x`]) {
          await writeFile(path, npy(header, 24));
          await failure(readNpy(path));
        }
        expect(performance.now() - start).to.be.below(2000);
      }
    });
  }

  const dict = (descr: string, order = 'False', shape = '(2, 3)') =>
    `{'descr': ${descr}, 'fortran_order': ${order}, 'shape': ${shape}, }\n`;
  const cases: [string, Buffer, RegExp][] = [
    ['records', npy(dict("[('a', '<f4')]"), 24), /x\.npy: elements are "records", wanted numbers$/],
    ['objects', npy(dict("'|O'"), 24), /elements are "\|O"/],
    ['complex numbers', npy(dict("'<c8'"), 48), /elements are "<c8"/],
    ['text', npy(dict("'<U1'"), 24), /elements are "<U1"/],
    ['a kind that is no kind', npy(dict("'<toString'"), 24), /elements are "<toString"/],
    ['half of a float64', npy(dict("'<f8'"), 24), /24 bytes of data, wanted 48 for \[2,3\]/],
    ['truncated data', npy(dict("'<f4'"), 23), /23 bytes of data, wanted 24 for \[2,3\]/],
    ['more data', npy(dict("'<f4'"), 25), /25 bytes of data, wanted 24/],
    [
      'a huge shape',
      npy(dict("'<f4'", 'False', '(99999999999, 99999999999)'), 24),
      /shape \[99999999999,99999999999\] is impossible/,
    ],
    ['a negative size', npy(dict("'<f4'", 'False', '(-1, 6)'), 24), /damaged \.npy header/],
    ['a size that is no number', npy(dict("'<f4'", 'False', `(${'9'.repeat(400)}, 0)`), 0), /damaged \.npy header/],
    ['a dict that does not end', npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)", 24), /damaged/],
    ['a header nested 60,000 deep', npy(`{'descr': ${'['.repeat(60000)}`, 24), /damaged \.npy header/],
    ['no shape', npy("{'descr': '<f4', 'fortran_order': False}", 24), /damaged \.npy header/],
    ['a header beyond the file', npy(dict("'<f4'"), 24).subarray(0, 40), /truncated at 40 bytes/],
    ['a header of 4 GiB', Buffer.from('\x93NUMPY\x02\x00\xff\xff\xff\xff', 'latin1'), /a header of 4294967295 bytes/],
    ['another version', npy(dict("'<f4'"), 24, 9), /\.npy version 9/],
    ['a text file', Buffer.from('hello, this is a text'), /not a \.npy file/],
    ['an empty file', Buffer.alloc(0), /not a \.npy file/],
  ];
  for (const [what, bytes, message] of cases) {
    it(`refuses ${what}`, async () => {
      await writeFile(path, bytes);
      expect(await failure(readNpy(path))).to.match(message);
    });
  }

  it('a pipe and a device are no files', async () => {
    const fifo = join(path, '../fifo');
    execFileSync('mkfifo', [fifo]);
    expect(await failure(readNpy(fifo))).to.match(/fifo: not a regular file, wanted a file$/);
    expect(await failure(readNpy('/dev/zero'))).to.match(/^\/dev\/zero: not a regular file/);
  });

  it('names files that cannot be used', async () => {
    expect(await failure(readNpy(join(path, '../none.npy')))).to.match(/none\.npy: no such file$/);
    expect(await failure(readNpy(join(path, '..')))).to.match(/a folder, wanted a file$/);
    expect(await failure(writeNpy(join(path, '../none/x.npy'), [1], new Float32Array(1)))).to.match(
      /x\.npy: there is no folder /,
    );
    expect(await failure(writeNpy(path, [2], new Float32Array(3)))).to.match(/3 elements, wanted shape \[2\]/);
  });
});
