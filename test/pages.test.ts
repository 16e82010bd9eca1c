import { execFile, execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { nativeFile } from '../lib/native.js';

// Built beside the addon, with the same sanitizers.
const program = join(nativeFile, '../../pages-test');
const env = { ...process.env, TSAN_OPTIONS: 'halt_on_error=1' };

describe('pages', () => {
  const names = existsSync(program) ? execFileSync(program, { env, encoding: 'utf8' }).trim().split('\n') : [];
  for (const name of names) {
    it(name, async function () {
      this.timeout(70_000);
      await promisify(execFile)(program, [name], { env, timeout: 60_000 });
    });
  }
});
