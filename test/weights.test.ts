import { expect } from 'chai';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { DType } from '../lib/dtype.js';
import { OctconvError } from '../lib/error.js';
import { checkWeights } from '../lib/weights/check.js';
import { type MemoryTensor, memoryWeights } from '../lib/weights/memory.js';
import { writeSafetensors } from '../lib/weights/safetensors.js';
import { openWeights, type WeightSource } from '../lib/weights/source.js';
import { call, counted, dict, floats, int, legacyPth, pth, str, tensor, tuple } from './weights-files.js';
import { skip } from './skip.js';
import { rejects } from './expect.js';

const golden = fileURLToPath(new URL('golden/', import.meta.url));
const torchNames: Record<string, DType> = {
  float32: 'f32',
  float16: 'f16',
  bfloat16: 'bf16',
  int8: 'i8',
  uint8: 'u8',
  int32: 'i32',
};

/** Every tensor as dtype, shape and hexadecimal bits, in file order. */
async function contents(source: WeightSource): Promise<[string, string, number[], string][]> {
  const found: [string, string, number[], string][] = [];
  for (const [name, { dtype, shape }] of source.tensors) {
    const { buffer, byteOffset, byteLength } = await source.read(name);
    found.push([name, dtype, [...shape], Buffer.from(buffer, byteOffset, byteLength).toString('hex')]);
  }
  return found;
}

describe('weights', () => {
  let folder: string;
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'octconv-weights-'));
  });
  after(() => rm(folder, { recursive: true }));

  async function save(name: string, bytes: Buffer): Promise<string> {
    const path = join(folder, name);
    await writeFile(path, bytes);
    return path;
  }

  describe('.pth', () => {
    interface Expected {
      [set: string]: Record<string, { dtype: string; shape: number[]; bytes: string }>;
    }
    const files: [string, string][] = [
      ['module.pth', 'module'],
      ['module-deflated.pth', 'module'],
      ['module-legacy.pth', 'module'],
      ['checkpoint.pth', 'module'],
      ['views.pth', 'views'],
      ['views-legacy.pth', 'views'],
      ['views-protocol4.pth', 'views'],
    ];
    for (const [file, set] of files) {
      it(`reads ${file} as PyTorch does`, async () => {
        const all = JSON.parse(await readFile(join(golden, 'pth/expected.json'), 'utf8')) as Expected;
        const wanted = Object.entries(all[set]!).map(([name, t]) => [name, torchNames[t.dtype], t.shape, t.bytes]);
        const source = await openWeights(join(golden, 'pth', file));
        expect(await contents(source)).to.deep.equal(wanted);
        await source.close();
      });
    }

    it('reads every golden and trained network', async function () {
      const paths = ['golden', 'weights'].flatMap((name) =>
        fileURLToPath(new URL(`../../shared/${name}/`, import.meta.url)),
      );
      if (!paths.every(existsSync)) skip(this, 'shared');
      const counts: Record<string, number> = {};
      for (const path of paths) {
        for (const file of (await readdir(path)).filter((name) => name.endsWith('.pth'))) {
          const source = await openWeights(join(path, file));
          let count = 0;
          for (const [name, { shape }] of source.tensors) {
            const data = (await source.read(name)) as Float32Array;
            expect(data.length).to.equal(shape.reduce((a, b) => a * b, 1));
            expect(data.every(Number.isFinite)).to.equal(true);
            if (!/running_/.test(name)) count += data.length;
          }
          counts[file] = count;
          await source.close();
        }
      }
      expect(counts).to.include({
        'cifar10-oct-resnet-26-a0.pth': 882_394,
        'cifar10-oct-resnet-26-a50.pth': 882_394,
        'camera-motion-oct-i3d-26-a50.pth': 1_047_321,
      });
    });

    it('reads a part of a legacy storage', async () => {
      const part = tuple(str('view'), int(1), int(2));
      const bytes = legacyPth(
        dict({ w: tensor({ elements: 4, size: [2], stride: [1], part }) }),
        ['0'],
        counted(4, floats(1, 2, 3, 4)),
      );
      const source = await openWeights(await save('part.pth', bytes));
      expect(await source.read('w')).to.deep.equal(new Float32Array([2, 3]));
      await source.close();
    });

    it('puts what it reads where it is told, strided or not', async () => {
      const plain = tensor({ elements: 6, offset: 1, size: [2], stride: [1] });
      const across = tensor({ elements: 6, size: [3, 2], stride: [1, 3] });
      const [entries, numbers] = [dict({ plain, across }), floats(1, 2, 3, 4, 5, 6)];
      const files = {
        'zip.pth': pth(entries, { 0: numbers }),
        'old.pth': legacyPth(entries, ['0'], counted(6, numbers)),
      };
      for (const [name, bytes] of Object.entries(files)) {
        const source = await openWeights(await save(name, bytes));
        const asked: number[] = [];
        const memory = (bytes: number) => {
          asked.push(bytes);
          return new Uint8Array(new ArrayBuffer(256), 64, bytes).fill(255);
        };
        const read = await source.read('plain', memory);
        expect([read.byteOffset, ...read]).to.deep.equal([64, 2, 3]);
        expect([...(await source.read('across', memory))]).to.deep.equal([1, 4, 2, 5, 3, 6]);
        expect(asked).to.deep.equal([8, 24]);
        await source.close();
      }
    });

    it('reads a legacy file whose pickles are longer than the first look', async () => {
      const many = Object.fromEntries(
        Array.from({ length: 1000 }, (_, i) => [
          `layer${i}.weight`,
          tensor({ elements: 4, offset: i % 4, size: [1], stride: [1] }),
        ]),
      );
      const bytes = legacyPth(dict(many), ['0'], counted(4, floats(1, 2, 3, 4)));
      expect(bytes.length).to.be.above(2 * 2 ** 16);
      const source = await openWeights(await save('long.pth', bytes));
      expect(await source.read('layer997.weight')).to.deep.equal(new Float32Array([2]));
      await source.close();
    });

    it('takes a parameter, a torch.Size, an OrderedDict made of pairs and its attributes', async () => {
      const size = call('torch', 'Size', tuple(int(1), int(2)));
      const plain = tensor({ elements: 2, size: [2], stride: [1] });
      const sized = plain.replace(tuple(int(2)), size).replace(tuple(int(1)), tuple(int(2), int(1)));
      const parameter = call('torch._utils', '_rebuild_parameter', plain, '\x88', call('collections', 'OrderedDict'));
      const pairs = call('collections', 'OrderedDict', `](${tuple(str('a'), sized)}]${str('b')}a${parameter}ae`);
      const source = await openWeights(
        await save('pairs.pth', pth(`${pairs}${dict({ _metadata: 'N' })}b`, { 0: floats(5, 6) })),
      );
      expect([...source.tensors].map(([name, { shape }]) => [name, shape])).to.deep.equal([
        ['a', [1, 2]],
        ['b', [2]],
      ]);
      await source.close();
    });

    it('keeps the `module.` of a network of which only a part is called so', async () => {
      const t = tensor({ elements: 1, size: [1], stride: [1] });
      const source = await openWeights(await save('mixed.pth', pth(dict({ 'module.a': t, b: t }), { 0: floats(1) })));
      expect([...source.tensors.keys()]).to.deep.equal(['module.a', 'b']);
      await source.close();
    });
  });

  describe('.safetensors', () => {
    const tensors = new Map<string, MemoryTensor>([
      ['byte', { dtype: 'u8', shape: [3], data: new Uint8Array([1, 2, 255]) }],
      ['weight', { dtype: 'f32', shape: [2, 2], data: new Float32Array([1, -2, 3.5, 1e-40]) }],
      ['half', { dtype: 'f16', shape: [1, 3], data: new Uint16Array([0x3c00, 0x7bff, 0x8001]) }],
      ['brain', { dtype: 'bf16', shape: [2], data: new Uint16Array([0x3f80, 0xff7f]) }],
      ['empty', { dtype: 'f32', shape: [4, 0], data: new Float32Array(0) }],
      ['scalar', { dtype: 'i32', shape: [], data: new Int32Array([-7]) }],
      ['int', { dtype: 'i8', shape: [1], data: new Int8Array([-128]) }],
      ['__proto__', { dtype: 'f32', shape: [1], data: new Float32Array([1]) }],
      ['7', { dtype: 'f32', shape: [1], data: new Float32Array([7]) }],
    ]);

    it('reads the golden file', async () => {
      const source = await openWeights(join(golden, 'octconv.safetensors'));
      const xH = await source.read('00.xH');
      expect(source.tensors.get('00.xH')).to.deep.include({ dtype: 'f32', shape: [1, 8, 8, 8] });
      expect(xH).to.be.instanceOf(Float32Array).with.lengthOf(512);
      expect(source.tensors.size).to.equal(90);
      await source.close();
    });

    it('gives back what it wrote, to the bit', async () => {
      const path = join(folder, 'round.safetensors');
      await writeSafetensors(path, memoryWeights(tensors), { format: 'pt' });
      const source = await openWeights(path);
      const sorted = (list: [string, ...unknown[]][]) => list.sort(([a], [b]) => (a < b ? -1 : 1));
      expect(sorted(await contents(source))).to.deep.equal(sorted(await contents(memoryWeights(tensors))));
      await source.close();

      const bytes = await readFile(path);
      const length = Number(bytes.readBigUInt64LE());
      expect(length % 8).to.equal(0);
      const header = JSON.parse(bytes.toString('utf8', 8, 8 + length));
      expect(header.__metadata__).to.deep.equal({ format: 'pt' });
      for (const {
        dtype,
        data_offsets: [begin],
      } of [header.weight, header.half, header.scalar, header.byte]) {
        expect(begin % { F32: 4, F16: 2, I32: 4, U8: 1 }[dtype as 'F32']).to.equal(0);
      }
    });

    it('puts what it reads where it is told', async () => {
      const source = await openWeights(join(folder, 'round.safetensors'));
      const buffer = new ArrayBuffer(256);
      for (const [name, { data }] of tensors) {
        const read = await source.read(name, (bytes) => new Uint8Array(buffer, 64, bytes));
        expect(read).to.deep.equal(data);
        expect([read.buffer, read.byteOffset]).to.deep.equal([buffer, 64]);
      }
      await source.close();
    });

    it('reads a header that others wrote, with spaces and escapes', async () => {
      const header = '{ "\\u0061b" : {"dtype":"F32","shape":[1],"data_offsets":[0, 4]} }';
      const length = Buffer.alloc(8);
      length.writeBigUInt64LE(BigInt(header.length));
      const source = await openWeights(
        await save('other.safetensors', Buffer.concat([length, Buffer.from(header), floats(3)])),
      );
      expect([...(await source.read('ab'))]).to.deep.equal([3]);
      await source.close();
    });

    it('reads many tensors at once', async () => {
      const path = join(folder, 'round.safetensors');
      const source = await openWeights(path);
      const all = await Promise.all([...tensors.keys()].map((name) => source.read(name)));
      expect(all).to.deep.equal([...tensors.values()].map(({ data }) => data));
      await source.close();
    });

    it('leaves the old file, and nothing else, where writing fails', async () => {
      const path = await save('old.safetensors', Buffer.from('old'));
      const before = await readdir(folder);
      const source = {
        tensors: new Map<string, MemoryTensor>([
          ...tensors,
          ['late', { dtype: 'u8', shape: [1], data: new Uint8Array(1) }],
        ]),
        async read(name: string) {
          if (name === 'late') throw new OctconvError('late: gone');
          return tensors.get(name)!.data;
        },
      };
      await rejects(writeSafetensors(path, source), /^late: gone$/);
      expect(await readFile(path, 'utf8')).to.equal('old');
      expect(await readdir(folder)).to.deep.equal(before);
    });

    it('says where it could not write', async () => {
      await rejects(
        writeSafetensors(join(folder, 'none/x.safetensors'), memoryWeights(tensors)),
        /none\/x\.safetensors: there is no folder/,
      );
    });
  });

  it('names a file that is not there, a folder, and a file of another kind', async () => {
    await rejects(openWeights(join(folder, 'nothing')), /nothing: no such file$/);
    await rejects(openWeights(folder), /: a folder, wanted a file$/);
    for (const text of ['', 'PK', 'Hello, this is a text file.', '{"a": 1}']) {
      await rejects(
        openWeights(await save('text.pth', Buffer.from(text))),
        /text\.pth: (not a weight file|damaged zip)/,
      );
    }
  });

  it('asks memory for data that fits', async () => {
    const wrong = (data: MemoryTensor['data']) => new Map([['w', { dtype: 'f32' as const, shape: [2], data }]]);
    expect(() => memoryWeights(wrong(new Float32Array(3)))).to.throw(
      OctconvError,
      'tensor "w" is a Float32Array of 3, wanted f32 [2]',
    );
    expect(() => memoryWeights(wrong(new Int32Array(2)))).to.throw(OctconvError, 'a Int32Array of 2, wanted f32 [2]');
    await rejects(memoryWeights(new Map()).read('w'), /no tensor "w"/);
  });

  describe('checkWeights', () => {
    const info = (shape: number[]) => ({ dtype: 'f32' as const, shape });

    it('accepts what fits, with and without num_batches_tracked', () => {
      const expected = new Map([
        ['a', [2, 3]],
        ['bn.num_batches_tracked', []],
      ]);
      checkWeights(expected, { tensors: new Map([['a', info([2, 3])]]) });
      checkWeights(new Map([['a', [2, 3]]]), {
        tensors: new Map([
          ['a', info([2, 3])],
          ['bn.num_batches_tracked', info([])],
        ]),
      });
    });

    it('names all that is missing, extra or of another shape in one error', () => {
      const expected = new Map([
        ['same', [1]],
        ['gone', [2, 3]],
        ['bent', [4, 5]],
        ['flat', [4]],
      ]);
      const tensors = new Map([
        ['same', info([1])],
        ['bent', info([5, 4])],
        ['flat', info([4, 1])],
        ['new', info([6])],
      ]);
      expect(() => checkWeights(expected, { name: 'x.pth', tensors })).to.throw(
        OctconvError,
        'x.pth: the parameters do not fit the network: missing "gone" [2,3]; "bent" is [5,4], wanted [4,5]; ' +
          '"flat" is [4,1], wanted [4]; extra "new" [6]',
      );
    });

    it('names the first ten and counts the rest', () => {
      const expected = new Map(Array.from({ length: 23 }, (_, i) => [`p${i}`, [1]]));
      expect(() => checkWeights(expected, { tensors: new Map() })).to.throw(
        OctconvError,
        /missing "p9" \[1\]; and 13 more$/,
      );
      const other = new Map(['a', 'b', 'c', 'd'].map((name) => [name, info([2])]));
      expect(() => checkWeights(expected, { tensors: other })).to.throw(
        OctconvError,
        /missing "p6" \[1\]; extra "a" \[2\]; extra "b" \[2\]; extra "c" \[2\]; and 17 more$/,
      );
      const ten = new Map([...expected].slice(0, 10));
      expect(() => checkWeights(ten, { tensors: new Map() })).to.throw(OctconvError, /missing "p9" \[1\]$/);
    });
  });
});
