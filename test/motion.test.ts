/** Whether the shipped video network tells how a camera moves, as often as its training says: of clips that are made here. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { film, motions } from '../lib/cli/motion.js';
import { classify, loadModel, type Model, type Picture } from '../lib/index.js';
import { skip } from './skip.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const name = 'camera-motion-oct-i3d-26-a50';

async function* framesOf(frames: readonly Picture[]): AsyncGenerator<Picture> {
  yield* frames;
}

describe('camera motion of clips', function () {
  this.timeout(120_000);
  let model: Model;
  before(async () => {
    model = await loadModel(name);
  });
  after(() => model.dispose());

  /** Clips of each motion, and those that are called otherwise. */
  async function watch(photographs: readonly string[], steps: readonly number[]): Promise<string[]> {
    const wrong: string[] = [];
    for (const [i, photograph] of photographs.entries()) {
      const step = steps[i % steps.length] as number;
      const clips = await Promise.all(
        motions.map(async (motion) => framesOf(await film(photograph, motion, { frames: 15, step, size: 64 }))),
      );
      for await (const { index, top } of classify(model, clips)) {
        const truth = motions[index] as string;
        if (top[0]?.label !== truth) wrong.push(`${photograph} ${truth} ${step}: ${top[0]?.label}`);
      }
    }
    return wrong;
  }

  it('is told of photographs', async () => {
    const photographs = ['coffee', 'astronaut', 'cat'].map((file) => join(root, `test/images/${file}.jpg`));
    for (const step of [0.01, 0.015, 0.02]) expect(await watch(photographs, [step])).to.deep.equal([]);
  });

  it("is told of 99 % of clips of CIFAR-10's test pictures @slow", async function () {
    const archive = join(root, '../shared/cifar10/test.tar.xz');
    if (!existsSync(archive)) skip(this, 'shared');
    const folder = mkdtempSync(join(tmpdir(), 'octconv-motion-'));
    try {
      spawnSync('tar', ['-xJf', archive, '-C', folder, '--wildcards', 'test/*/*00.jpg']);
      const files = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.jpg'));
      const some = files.sort().filter((_, i) => i % 6 === 0);
      expect(some).to.have.length(17);
      // 1.2 to 6 % of a frame from one frame that the network sees to the next, as it was trained on.
      const wrong = await watch(
        some.map((file) => join(folder, file)),
        [0.006, 0.01, 0.015, 0.02, 0.025, 0.03],
      );
      expect(wrong.length, wrong.join('\n')).to.be.at.most(0.01 * some.length * motions.length);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
});
