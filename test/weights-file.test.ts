// The file under a model: what may be opened, and what happens to it while it is open.
import { expect } from 'chai';
import { execFileSync } from 'node:child_process';
import {
  appendFile,
  copyFile,
  mkdtemp,
  open,
  rename,
  rm,
  symlink,
  truncate,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { OctconvError, show } from '../lib/error.js';
import { RandomFile, readWhole } from '../lib/weights/file.js';
import { openWeights } from '../lib/weights/source.js';
import { dict, pth, tensor } from './weights-files.js';
import { rejects } from './expect.js';

const golden = fileURLToPath(new URL('golden/', import.meta.url));

describe('files of weights', () => {
  let folder: string;
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'octconv-file-'));
  });
  after(() => rm(folder, { recursive: true }));
  const at = (name: string) => join(folder, name);

  describe('are regular files', () => {
    it('a pipe that nobody writes to is refused at once', async () => {
      execFileSync('mkfifo', [at('pipe')]);
      await symlink(at('pipe'), at('link'));
      for (const name of ['pipe', 'link']) await rejects(openWeights(at(name)), /: not a regular file, wanted a file$/);
      await rejects(readWhole(at('pipe'), 10), /: not a regular file/);
    });

    it('devices, sockets and folders are refused', async () => {
      await symlink('/dev/zero', at('zero'));
      const server = createServer().listen(at('socket'));
      await new Promise((resolve) => server.once('listening', resolve));
      for (const path of ['/dev/zero', '/dev/null', '/dev/tty', at('zero'), at('socket')]) {
        await rejects(openWeights(path), /: not a regular file, wanted a file$/);
      }
      server.close();
      await rejects(openWeights(folder), /: a folder, wanted a file$/);
      await rejects(openWeights(at('nothing')), /: no such file$/);
    });

    it('of a bounded size where they are read whole', async () => {
      await writeFile(at('text'), 'hello');
      expect(Buffer.from(await readWhole(at('text'), 5)).toString()).to.equal('hello');
      await rejects(readWhole(at('text'), 4), /text: 5 bytes, wanted at most 4$/);
      await truncate(at('text'), 2 ** 40).catch(() => undefined); // no bytes of its own
      await rejects(readWhole(at('text'), 2 ** 20), /wanted at most 1048576$/);
    });
  });

  describe('that are written to while they are open', () => {
    const changes: [string, (path: string) => Promise<unknown>][] = [
      ['longer', (path) => appendFile(path, 'more')],
      ['shorter', (path) => truncate(path, 100)],
      ['empty', (path) => writeFile(path, '')],
      [
        'another of the same size',
        async (path) => {
          const file = await open(path, 'r+');
          await file.write(Buffer.alloc(64, 255), 0, 64, 600);
          await file.close();
          await utimes(path, 1, 1); // the clock of a file system ticks in ms
        },
      ],
      ['a copy of another', (path) => copyFile(join(golden, 'octconv.safetensors'), path)],
    ];
    for (const name of ['pth/module.pth', 'pth/module-deflated.pth', 'pth/module-legacy.pth', 'octconv.safetensors']) {
      for (const [what, change] of changes) {
        if (what === 'a copy of another' && name.startsWith('oct')) continue;
        it(`${name}, ${what}: an error`, async () => {
          const path = at('changed');
          await copyFile(join(golden, name), path);
          await utimes(path, 2, 2);
          const source = await openWeights(path);
          const [first] = source.tensors.keys();
          expect((await source.read(first!)).length).to.be.above(0);
          await change(path);
          for (let i = 0; i < 2; i++)
            await rejects(source.read(first!), /changed: was written to since it was opened$/);
          await source.close();
        });
      }
    }

    it('large tensors too', async () => {
      const size = 2 ** 17;
      const path = at('large');
      await writeFile(
        path,
        pth(dict({ w: tensor({ elements: size, size: [size], stride: [1] }) }), { 0: Buffer.alloc(4 * size) }),
      );
      const source = await openWeights(path);
      expect((await source.read('w')).length).to.equal(size);
      await utimes(path, 1, 1);
      await rejects(source.read('w'), /large: was written to/);
      await source.close();
    });

    it('one that another took the name of, or that was removed, stays as it is', async () => {
      const path = at('renamed');
      await copyFile(join(golden, 'pth/module.pth'), path);
      const source = await openWeights(path);
      const before = await source.read('conv.weight');
      await writeFile(at('other'), 'other');
      await rename(at('other'), path);
      expect(await source.read('conv.weight')).to.deep.equal(before);
      await rm(path);
      expect(await source.read('conv.weight')).to.deep.equal(before);
      await source.close();
    });
  });

  it('are an error once they are closed', async () => {
    for (const name of ['pth/module.pth', 'pth/module-deflated.pth', 'pth/module-legacy.pth', 'octconv.safetensors']) {
      const source = await openWeights(join(golden, name));
      const [first] = source.tensors.keys();
      const reading = source.read(first!).then(
        () => undefined,
        (error: unknown) => error,
      );
      await source.close();
      const error = await reading; // it was in time, or it says so
      if (error !== undefined) expect((error as Error).message).to.match(/: was closed$/);
      await rejects(source.read(first!), /: was closed$/);
      await source.close();
    }
    const file = await RandomFile.open(join(golden, 'octconv.safetensors'));
    const large = file.read(0, file.size).then(
      () => undefined,
      (error: unknown) => error,
    );
    await file.close();
    expect((await large) ?? new OctconvError('x')).to.be.instanceOf(OctconvError);
    for (const [position, length] of [
      [-1, 1],
      [0, -1],
      [0, Number.NaN],
      [Number.NaN, 1],
      [0, file.size + 1],
    ] as const) {
      await rejects(file.read(position, length), /truncated at/);
    }
  });
});

describe('errors', () => {
  it('are one line of a bounded length, with beginning and end', () => {
    const { message } = new OctconvError(`x: ${'n'.repeat(100_000)}, wanted less`);
    expect(message)
      .to.have.length.below(2010)
      .and.match(/^x: n+ \.\.\. n+, wanted less$/);
    const esc = '\u001b';
    const control = new OctconvError(`a\nb\r${esc}[2J\u0000\u009b\u202e\u2028c`);
    expect(control.message).to.equal('a\\u000ab\\u000d\\u001b[2J\\u0000\\u009b\\u202e\\u2028c');
    expect(new OctconvError('Grüße, 猫 🐈').message).to.equal('Grüße, 猫 🐈');
    expect(new OctconvError('a', { cause: 1 })).to.include({ cause: 1, name: 'OctconvError' });
  });

  it('show values as JSON, cut', () => {
    const cases: [unknown, string][] = [
      ['a"\n', '"a\\"\\n"'],
      [1.5, '1.5'],
      [Number.NaN, 'NaN'],
      [2n ** 70n, '1180591620717411303424'],
      [null, 'null'],
      [true, 'true'],
      [undefined, 'nothing'],
      [[], '[]'],
      [[1, 'a', [null]], '[1,"a",[null]]'],
      [{}, '{}'],
      [{ a: [1], 'b c': { d: 'e' } }, '{"a":[1],"b c":{"d":"e"}}'],
    ];
    for (const [value, text] of cases) expect(show(value)).to.equal(text);
    expect(show('n'.repeat(1e6))).to.equal(`"${'n'.repeat(116)}...`);
    expect(show(Array(1e6).fill(7)))
      .to.match(/^\[7,7,.*\.\.\.$/)
      .and.have.lengthOf(120);
  });

  it('show what is shared, deep or contains itself, without walking all of it', () => {
    let laughs: unknown = 'lol';
    for (let i = 0; i < 40; i++) laughs = Array(10).fill(laughs);
    expect(show(laughs)).to.have.lengthOf(120);
    let deep: unknown = 1;
    for (let i = 0; i < 100_000; i++) deep = i % 2 ? [deep] : { a: deep };
    expect(show(deep)).to.have.lengthOf(120);
    const itself: unknown[] = [];
    itself.push(itself);
    expect(show(itself)).to.equal(`${'['.repeat(117)}...`);
  });
});
