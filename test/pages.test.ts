import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { nativeFile } from '../lib/native.js';

// Built beside the addon, with the same sanitizers.
const program = join(nativeFile, '../../pages-test');

describe('pages', () => {
  const names = existsSync(program) ? execFileSync(program, { encoding: 'utf8' }).trim().split('\n') : [];
  for (const name of names)
    it(name, function () {
      this.timeout(60_000);
      execFileSync(program, [name]);
    });
});
