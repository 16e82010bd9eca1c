/** Writing: whatever ends the process, there is the old file or the new one, and never a mix. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, cpSync, existsSync, linkSync, mkdirSync, mkdtempSync, readdirSync, readFileSync } from 'node:fs';
import { rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { OctconvError } from '../lib/error.js';
import { readText } from '../lib/files/read.js';
import { checkOutput, writeWhole } from '../lib/files/write.js';
import { readModelFolder } from '../lib/weights/folder.js';
import { failure } from './expect.js';

const path = (name: string) => fileURLToPath(new URL(`files/${name}`, import.meta.url));
let folder: string;
const inFolder = (name: string) => join(folder, name);

/** Runs write.mjs; killed before its n-th change if `killAt` is given. Gives how many changes there were. */
function write(what: string, target: string, version: number, killAt = 0): { steps: number; killed: boolean } {
  const env = { ...process.env, KILL_AT: String(killAt) };
  const args = ['--import', path('kill-at-step.mjs'), path('write.mjs'), what, target, String(version)];
  const { stdout, stderr, signal } = spawnSync(process.execPath, args, { encoding: 'utf8', env });
  expect(stderr).to.equal('');
  return { steps: Number(stdout), killed: signal === 'SIGKILL' };
}

/** The version that every part of a model folder tells. */
async function versionOf(target: string): Promise<number | undefined> {
  if (!existsSync(join(target, 'config.json'))) return undefined;
  const { config, labels, weights } = await readModelFolder(target);
  const [w] = await weights.read('w');
  await weights.close();
  expect([labels[0], w]).to.deep.equal([String(config.input.height), config.input.height]);
  return config.input.height;
}

describe('writing', function () {
  this.timeout(120_000);
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'octconv-files-'));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  /** Each with what is there before: versions written one after the other, or an empty folder. */
  const kinds: [string, (number | 'empty')[]][] = [
    ['a new model folder', []],
    ['a model into an empty folder', ['empty']],
    ['a model over a model', [1]],
    ['a model over one that replaced another', [1, 2]],
  ];
  for (const [title, there] of kinds) {
    it(`${title}, killed at every step: the old or the new, then the new @slow`, async () => {
      for (const version of there) {
        if (version === 'empty') mkdirSync(inFolder('before'));
        else write('folder', inFolder('before'), version);
      }
      const prepare = (target: string) => there.length && cpSync(inFolder('before'), target, { recursive: true });
      const before = there.length ? await versionOf(inFolder('before')) : undefined;
      prepare(inFolder('count'));
      const { steps } = write('folder', inFolder('count'), 3);
      expect(steps).to.be.above(10);
      const seen = new Set<number | undefined>();
      for (let step = 1; step <= steps; step++) {
        const target = inFolder(`model-${step}`);
        prepare(target);
        expect(write('folder', target, 3, step).killed).to.equal(true);
        const version = await versionOf(target);
        expect(version, `step ${step}`).to.be.oneOf([before, 3]);
        seen.add(version);
        if (step % 8 === 0) {
          expect(write('folder', target, 3).killed).to.equal(false);
          expect(await versionOf(target)).to.equal(3);
        }
      }
      expect([...seen]).to.have.members([before, 3]);
      expect(readdirSync(inFolder('count'))).to.have.length(3);
      expect(readdirSync(folder).filter((name) => name.startsWith('.count'))).to.be.empty;
    });
  }

  it('a file, killed at every step', () => {
    const target = inFolder('file');
    writeFileSync(target, '1,1');
    const { steps } = write('file', target, 2);
    const seen = new Set<string>();
    for (let step = 1; step <= steps; step++) {
      writeFileSync(target, '1,1');
      expect(write('file', target, 2, step).killed).to.equal(true);
      seen.add(readFileSync(target, 'utf8'));
    }
    expect([...seen]).to.have.members(['1,1', '2,2']);
  });

  it('two writers at once: readers see one or the other', async () => {
    const target = inFolder('model');
    write('folder', target, 1);
    const writers = [2, 3].map((version) =>
      spawn(process.execPath, [path('write.mjs'), 'folder', target, String(version), '40'], {
        stdio: ['ignore', 'ignore', 'pipe'],
      }),
    );
    let errors = '';
    for (const { stderr } of writers) stderr.on('data', (chunk) => (errors += chunk));
    let running = true;
    const ended = Promise.all(writers.map((writer) => once(writer, 'close'))).finally(() => (running = false));
    let reads = 0;
    for (; running; reads++) expect(await versionOf(target)).to.be.oneOf([1, 2, 3]);
    expect([await ended, errors]).to.deep.equal([
      [
        [0, null],
        [0, null],
      ],
      '',
    ]);
    expect(reads).to.be.above(5);
    expect(await versionOf(target)).to.be.oneOf([2, 3]);
  });

  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    it(`${signal} leaves no temporary file, and ends the process`, async () => {
      const child = spawn(process.execPath, [path('write.mjs'), 'hang', inFolder('model'), '1'], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      await once(child.stdout, 'data');
      while (readdirSync(folder).length < 2) await new Promise((done) => setTimeout(done, 10));
      child.kill(signal);
      expect(await once(child, 'exit')).to.deep.equal([null, signal]);
      expect(readdirSync(folder)).to.be.empty;
    });
  }

  it('a link stays a link, rights stay, and what is no file is written to', async () => {
    writeFileSync(inFolder('file'), 'old');
    chmodSync(inFolder('file'), 0o600);
    symlinkSync('file', inFolder('link'));
    await writeWhole(inFolder('link'), ['new']);
    expect(readFileSync(inFolder('file'), 'utf8')).to.equal('new');
    expect(statSync(inFolder('file')).mode & 0o777).to.equal(0o600);
    expect(readdirSync(folder)).to.have.members(['file', 'link']);
    await writeWhole('/dev/null', ['nothing']);
    expect(statSync('/dev/null').isCharacterDevice()).to.equal(true);
  });

  it('file handles need no sync of their own: those of Yarn PnP have none', async () => {
    const handle = await open(folder);
    const prototype = Object.getPrototypeOf(handle);
    await handle.close();
    const { sync, datasync } = prototype;
    prototype.sync = prototype.datasync = () => {
      throw new Error('there is none, as in Yarn PnP');
    };
    try {
      await writeWhole(inFolder('unsynced'), ['some']);
    } finally {
      Object.assign(prototype, { sync, datasync });
    }
    expect(readFileSync(inFolder('unsynced'), 'utf8')).to.equal('some');
  });

  it('a failure leaves the old file and nothing else', async () => {
    writeFileSync(inFolder('file'), 'old');
    async function* failing() {
      yield 'new';
      throw new OctconvError('no more');
    }
    expect(await failure(writeWhole(inFolder('file'), failing()))).to.equal('no more');
    expect([readFileSync(inFolder('file'), 'utf8'), readdirSync(folder)]).to.deep.equal(['old', ['file']]);
    expect(await failure(writeWhole('/dev/full', ['new']))).to.equal('/dev/full: no space left on the device');
    expect(await failure(writeWhole(inFolder('none/file'), ['new']))).to.match(
      /none\/file: there is no folder .*none$/,
    );
    expect(await failure(writeWhole(folder, ['new']))).to.match(/: a folder, wanted a file$/);
  });

  it('files that are read are not written to, whatever they are called', async () => {
    writeFileSync(inFolder('input'), 'old');
    symlinkSync('input', inFolder('soft'));
    linkSync(inFolder('input'), inFolder('hard'));
    for (const name of ['input', 'soft', 'hard', `../${basename(folder)}/input`]) {
      expect(await failure(checkOutput(inFolder(name), [undefined, inFolder('input')]))).to.match(
        /: is read, as .*input; wanted another file/,
      );
    }
    await checkOutput(inFolder('other'), [inFolder('input')]);
    await checkOutput('/dev/null', ['/dev/null']);
  });

  it('text is read of regular files in UTF-8, of 16 MiB at most', async () => {
    writeFileSync(inFolder('bom'), '\ufeffäpfel');
    expect(await readText(inFolder('bom'))).to.equal('äpfel');
    writeFileSync(inFolder('latin1'), Buffer.from('äpfel', 'latin1'));
    expect(await failure(readText(inFolder('latin1')))).to.match(/latin1: not UTF-8/);
    spawnSync('mkfifo', [inFolder('fifo')]);
    expect(await failure(readText(inFolder('fifo')))).to.match(/fifo: not a regular file, wanted a file$/);
    symlinkSync('/dev/zero', inFolder('zero'));
    expect(await failure(readText(inFolder('zero')))).to.match(/zero: not a regular file/);
    spawnSync('truncate', ['-s', '17M', inFolder('large')]);
    expect(await failure(readText(inFolder('large')))).to.match(/17825792 bytes, wanted at most 16777216$/);
  });
});
