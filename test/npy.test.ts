import { expect } from 'chai';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { OctconvError } from '../lib/error.js';
import { readNpy, writeNpy } from '../lib/npy.js';

function npy(dict: string, data: number, version = 1): Buffer {
  const head = Buffer.alloc(version === 1 ? 10 : 12);
  head.write('\x93NUMPY', 'latin1');
  head[6] = version;
  if (version === 1) head.writeUInt16LE(dict.length, 8);
  else head.writeUInt32LE(dict.length, 8);
  return Buffer.concat([head, Buffer.from(dict, 'latin1'), Buffer.alloc(data)]);
}

describe('.npy', () => {
  let path: string;
  before(async () => {
    path = join(await mkdtemp(join(tmpdir(), 'octconv-npy-')), 'x.npy');
  });
  after(() => rm(join(path, '..'), { recursive: true }));

  async function failure(promise: Promise<unknown>): Promise<string> {
    const error = await promise.then(
      () => undefined,
      (e: unknown) => e,
    );
    expect(error).to.be.instanceOf(OctconvError);
    return (error as Error).message;
  }

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

  const dict = (descr: string, order = 'False', shape = '(2, 3)') =>
    `{'descr': ${descr}, 'fortran_order': ${order}, 'shape': ${shape}, }\n`;
  const cases: [string, Buffer, RegExp][] = [
    ['float64', npy(dict("'<f8'"), 48), /x\.npy: elements are "<f8", wanted "<f4" \(float32\)$/],
    ['big-endian', npy(dict("'>f4'"), 24), /elements are ">f4"/],
    ['records', npy(dict("[('a', '<f4')]"), 24), /elements are "a record"/],
    ['objects', npy(dict("'|O'"), 24), /elements are "\|O"/],
    ['Fortran order', npy(dict("'<f4'", 'True'), 24), /Fortran order, wanted C order/],
    ['truncated data', npy(dict("'<f4'"), 23), /23 bytes of data, wanted 24 for \[2,3\]/],
    ['more data', npy(dict("'<f4'"), 25), /25 bytes of data, wanted 24/],
    [
      'a huge shape',
      npy(dict("'<f4'", 'False', '(99999999999, 99999999999)'), 24),
      /shape \[99999999999,99999999999\] is impossible/,
    ],
    ['a negative size', npy(dict("'<f4'", 'False', '(-1, 6)'), 24), /damaged \.npy header/],
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

  it('names files that cannot be used', async () => {
    expect(await failure(readNpy(join(path, '../none.npy')))).to.match(/none\.npy: no such file$/);
    expect(await failure(readNpy(join(path, '..')))).to.match(/a folder, wanted a file$/);
    expect(await failure(writeNpy(join(path, '../none/x.npy'), [1], new Float32Array(1)))).to.match(
      /x\.npy: no such file$/,
    );
    expect(await failure(writeNpy(path, [2], new Float32Array(3)))).to.match(/3 elements, wanted shape \[2\]/);
  });
});
