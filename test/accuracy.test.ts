/**
 * How many of CIFAR-10's test pictures the shipped networks get right, in f32 and quantised by the command: of every
 * fourth one. f32 may differ in one picture from machine to machine, i8 from f32 in half a point. README has the counts
 * of all 10,000, by `octconv eval`.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { type Batch, loadBatches } from '../lib/input/batches.js';
import { loadModel } from '../lib/index.js';
import { skip } from './skip.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const archive = (part: string) => join(root, `../shared/cifar10/${part}.tar.xz`);
const shipped = (name: string) => join(root, `models/cifar10-oct-resnet-26-${name}`);

describe("accuracy on 2,500 of CIFAR-10's test pictures @slow", function () {
  this.timeout(300_000);
  let folder: string;
  const batches: Batch[] = [];
  const inFolder = (name: string) => join(folder, name);
  const octconv = (...args: string[]) => {
    const { status, stdout, stderr } = spawnSync(process.execPath, [join(root, 'dist/cli.js'), ...args, '--json'], {
      encoding: 'utf8',
      cwd: folder,
    });
    expect([status, stderr]).to.deep.equal([0, '']);
    return JSON.parse(stdout);
  };

  // Decoding takes three times as long as a network: it is done once for all, as `octconv eval` does it.
  before(async function () {
    if (!existsSync(archive('test'))) skip(this, 'shared');
    folder = mkdtempSync(join(tmpdir(), 'octconv-accuracy-'));
    spawnSync('tar', ['-xJf', archive('test'), '-C', folder]);
    // What quantize takes of all 50,000: the first 51 or 52 of each class.
    spawnSync('tar', ['-xJf', archive('train'), '-C', folder, '--wildcards', 'train/*/00[0-5]*.jpg']);
    const [a50, a0] = await Promise.all(['a50', 'a0'].map((name) => loadModel(shipped(name))));
    expect(a0?.input).to.deep.equal(a50?.input);
    const files = readdirSync(inFolder('test'), { recursive: true, encoding: 'utf8' })
      .filter((file) => file.endsWith('.jpg'))
      .sort()
      .filter((_, i) => i % 4 === 0)
      .map((file) => inFolder(`test/${file}`));
    for await (const batch of loadBatches(files, a50?.input as never, { batch: 100 })) batches.push(batch);
    for (const model of [a50, a0]) model?.dispose();
  });
  after(() => folder && rmSync(folder, { recursive: true, force: true }));

  /** For each picture how many classes have a larger logit than its own. */
  async function ranks(path: string, dtype: string): Promise<Map<string, number>> {
    using model = await loadModel(path);
    expect(model.dtype).to.equal(dtype);
    const found = new Map<string, number>();
    for (const { x, files } of batches) {
      const { data, shape } = await model.run(x);
      for (const [i, file] of files.entries()) {
        const logits = data.subarray(i * (shape[1] as number), (i + 1) * (shape[1] as number));
        const own = logits[model.labels?.indexOf(basename(dirname(file))) ?? -1] as number;
        found.set(file, logits.filter((logit) => logit > own).length);
      }
    }
    expect(found.size).to.equal(2500);
    return found;
  }
  const countOf = (found: Iterable<number>, most: number) => [...found].filter((rank) => rank < most).length;

  const recorded = { a50: [2198, 2482], a0: [2201, 2486] } as const;
  for (const [name, [right, amongFive]] of Object.entries(recorded)) {
    it(`${name}: ${right} right, ${amongFive} among five; eval counts the same on a tenth`, async () => {
      const found = await ranks(shipped(name), 'f32');
      expect(countOf(found.values(), 1)).to.be.closeTo(right, 1);
      expect(countOf(found.values(), 5)).to.be.closeTo(amongFive, 1);
      const some = [...found].filter((_, i) => i % 10 === 0);
      for (const [file] of some) {
        const target = join(folder, `some-${name}`, basename(dirname(file)), basename(file));
        mkdirSync(dirname(target), { recursive: true });
        symlinkSync(file, target);
      }
      const of = (most: number) =>
        countOf(
          some.map(([, rank]) => rank),
          most,
        );
      const shown = octconv('eval', '--model', shipped(name), '--data', `some-${name}`);
      expect(shown).to.include({ pictures: 250, top1: of(1), top5: of(5) });
    });

    it(`${name} in i8: within half a point of ${right} right`, async () => {
      expect(octconv('quantize', shipped(name), '--data', 'train', '--out', name).cosine).to.be.above(0.999);
      expect(countOf((await ranks(inFolder(name), 'i8')).values(), 1)).to.be.within(right - 12, right + 12);
    });
  }
});
