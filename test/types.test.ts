// The compiler's verdict on lib, test and bench; test/types/*.ts say by @ts-expect-error what must not compile.
import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

it('lib, test and bench compile in strict mode, and what must not compile does not', function () {
  this.timeout(60_000);
  const root = fileURLToPath(new URL('..', import.meta.url));
  const { stdout } = spawnSync(process.execPath, ['node_modules/typescript/bin/tsc'], { cwd: root, encoding: 'utf8' });
  expect(stdout).to.equal('');
});
