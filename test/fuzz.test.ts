/** Whatever is given to the addon, the process lives, and an error is one line. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';

// OCTCONV_FUZZ: how many calls, OCTCONV_FUZZ_SEED: other ones.
const count = Number(process.env.OCTCONV_FUZZ || 10_000);
const seed = Number(process.env.OCTCONV_FUZZ_SEED || 1);

describe('fuzz: calls of the addon', function () {
  this.timeout(Math.max(120_000, count * 20));

  it(`${count} of them, mutated`, () => {
    const folder = mkdtempSync(join(tmpdir(), 'octconv-'));
    const at = join(folder, 'at');
    const child = fileURLToPath(new URL('fuzz-child.ts', import.meta.url));
    try {
      const { status, signal, stdout, stderr } = spawnSync(
        process.execPath,
        ['--import=tsx', child, String(count), String(seed)],
        {
          env: { ...process.env, OCTCONV_FUZZ_AT: at },
          encoding: 'utf8',
        },
      );
      expect(
        [status, signal],
        `call ${readFileSync(at, 'utf8').trim()} of seed ${seed}\n${stderr.slice(-4000)}`,
      ).to.deep.equal([0, null]);
      const { valid, passed, refused, wrong } = JSON.parse(stdout);
      expect(wrong).to.deep.equal([]);
      expect(valid, 'calls that are right').to.be.above(count / 10);
      expect(passed, 'mutated calls that are right too').to.be.above(count / 50);
      expect(refused, 'errors').to.be.above(count / 5);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});
