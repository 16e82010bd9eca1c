// The stand-in for the CUDA driver: a program that is built beside the addon opens it.
import { expect } from 'chai';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { nativeFile } from '../lib/native.js';

const program = join(nativeFile, '../../cuda-driver-test');
const library = join(nativeFile, '../../test/libcuda.so.1');
const env = { ...process.env, ASAN_OPTIONS: '', LSAN_OPTIONS: '', TSAN_OPTIONS: 'halt_on_error=1' };

describe('stand-in CUDA driver', () => {
  const names = existsSync(program) ? execFileSync(program, [library], { env, encoding: 'utf8' }).trim() : '';
  for (const name of names ? names.split('\n') : []) {
    it(name, function () {
      this.timeout(60_000);
      const { status, stdout, stderr } = spawnSync(program, [library, name], {
        env,
        encoding: 'utf8',
        timeout: 50_000,
      });
      expect(status, stdout + stderr).to.equal(0);
    });
  }
});
