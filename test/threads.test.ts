import { execFile, execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { nativeFile } from '../lib/native.js';

// Built beside the addon, with the same sanitizers.
const program = join(nativeFile, '../../threads-test');
const env = { ...process.env, TSAN_OPTIONS: 'halt_on_error=1' };

describe('threads', () => {
  const names = existsSync(program) ? execFileSync(program, { env, encoding: 'utf8' }).trim().split('\n') : [];
  for (const name of names) {
    it(name, async function () {
      this.timeout(130_000); // longer than the alarm of the program
      await promisify(execFile)(program, [name], { env });
    });
  }
});
