// The emulator on which CUDA kernels are tested: a program that is built beside the addon, with the same sanitizers.
import { expect } from 'chai';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { nativeFile } from '../lib/native.js';

const program = join(nativeFile, '../../cuda-emulator-test');
// Reports of sanitizers are a part of what is tested.
const env = { ...process.env, ASAN_OPTIONS: '', LSAN_OPTIONS: '', TSAN_OPTIONS: 'halt_on_error=1' };

describe('CUDA emulator', () => {
  const lines = existsSync(program) ? execFileSync(program, { env, encoding: 'utf8' }).trim().split('\n') : [];
  for (const [name, report] of lines.map((line) => line.split('\t'))) {
    it(name!, function () {
      this.timeout(60_000);
      const { status, stdout, stderr } = spawnSync(program, [name!], { env, encoding: 'utf8', timeout: 50_000 });
      if (report) {
        expect(stderr).to.include(report);
        expect(status).to.not.equal(0);
      } else {
        expect({ status, output: stdout + stderr }).to.deep.equal({ status: 0, output: '' });
      }
    });
  }
});
