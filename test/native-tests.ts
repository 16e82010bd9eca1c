import { execFile, execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { nativeFile } from '../lib/native.js';
import { skip } from './skip.js';

/** The tests of `NAME-test`, built beside the addon with the same sanitizers. Without arguments it lists them. */
export function nativeTests(name: string): void {
  const program = join(nativeFile, `../../${name}-test`);
  const env = { ...process.env, TSAN_OPTIONS: 'halt_on_error=1' };
  describe(name, () => {
    if (!existsSync(program)) {
      it('its program is built', function () {
        skip(this, 'build');
      });
      return;
    }
    for (const test of execFileSync(program, { env, encoding: 'utf8' }).trim().split('\n')) {
      it(test, async function () {
        this.timeout(130_000); // longer than the alarm of threads-test
        await promisify(execFile)(program, [test], { env, timeout: 125_000 });
      });
    }
  });
}
