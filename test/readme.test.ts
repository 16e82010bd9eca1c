/** What the README shows must run as it stands. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { standIns } from './stand-in.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const readme = readFileSync(join(root, 'README.md'), 'utf8');
const snippets = [...readme.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code = '']) => code);

describe('README', function () {
  this.timeout(60_000);
  const expected = [
    /cat\.jpg cat 0\.90/,
    /\[ 1, 10 \]/,
    /\[ 8, 1000 \]/,
    /\[ 1, 1000 \]/,
    /\[ 4, 10 \] 3/,
    /\[ 1, 56, 56, 32 \] \[ 1, 28, 28, 32 \] 1/,
    /^test\/clips\/pan-left\.webp pan left\n0 to 0\.5 s pan left\n/,
    'examples/fastify/server.ts', // test/examples-service.test.ts runs it
    /^cpu cuda \[ 2, 10 \]$/m,
  ];

  it('has these snippets', () => expect(snippets).to.have.length(expected.length));

  for (const [i, pattern] of expected.entries()) {
    if (typeof pattern === 'string') {
      it(`snippet ${i + 1} is ${pattern}`, () =>
        expect(snippets[i]).to.equal(readFileSync(join(root, pattern), 'utf8')));
      continue;
    }
    it(`snippet ${i + 1} runs, and is typed`, () => {
      const folder = mkdtempSync(join(root, 'build/readme-'));
      try {
        const file = join(folder, 'snippet.ts');
        writeFileSync(file, (snippets[i] as string).replace("'octconv'", `'${join(root, 'lib/index.js')}'`));
        const { stdout, stderr } = spawnSync(process.execPath, ['--import=tsx', file], {
          ...{
            cwd: root,
            encoding: 'utf8',
            env: { ...process.env, ...(snippets[i]?.includes('cuda') ? standIns : {}) },
          },
        });
        expect(stdout, stderr).to.match(pattern);
        const options = { extends: join(root, 'tsconfig.json'), files: [file], include: [] };
        writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(options));
        const tsc = join(root, 'node_modules/typescript/bin/tsc');
        const types = spawnSync(process.execPath, [tsc, '--noEmit', '-p', folder], { encoding: 'utf8' });
        expect(types.status, types.stdout).to.equal(0);
      } finally {
        rmSync(folder, { recursive: true, force: true });
      }
    });
  }

  it('names every network and every script that it should', () => {
    const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
    for (const script of ['test:asan', 'test:ubsan', 'test:tsan', 'test:baseline', 'lint']) {
      expect(scripts).to.have.property(script);
      expect(readme).to.contain(script.replace('test:', ''));
    }
  });
});
