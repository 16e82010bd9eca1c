/** Every row of the op table: the fast kernels against the slow reference, at every instruction set. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { targetOf } from '../lib/devices.js';
import * as ops from '../lib/ops.js';
import { type Case, cases, graphOf } from './cases.js';
import { levels } from './levels.js';
import { checkGraph, inputsOf, naming, noParams } from './running.js';
import { skip } from './skip.js';

describe('ops: the table', () => {
  it('has a row for every op', () => {
    const rows = new Set(cases.map(({ op }) => op));
    expect(Object.keys(ops).filter((op) => !rows.has(op as Case['op']))).to.deep.equal([]);
  });

  for (const op of new Set(cases.map((c) => c.op))) {
    const rows = cases.filter((c) => c.op === op);
    it(`${op}: ${rows.length} rows, cpu as the reference, any thread count to the bit`, async () => {
      for (const row of rows) {
        const inputs = inputsOf(row, /relu6|hard/.test(op) ? 9 : 2);
        await naming(`${op} ${row.title}`, checkGraph(graphOf(row), inputs, row.terms, noParams));
      }
    });
  }
});

describe('ops: every other instruction set', function () {
  this.timeout(600_000);
  if (process.env.OCTCONV_ISA) return; // this is such a run
  for (const isa of levels.filter((isa) => isa !== targetOf('cpu').traits.isa)) {
    it(`the whole table on ${isa} @slow`, function () {
      const env = { ...process.env, OCTCONV_ISA: isa };
      const probe = `import('${new URL('../lib/devices.ts', import.meta.url)}').then(({ devices }) => devices())`;
      const can = spawnSync(process.execPath, ['--import=tsx', '-e', probe], { env, encoding: 'utf8' });
      if (/not supported by this CPU/.test(can.stderr)) skip(this, 'cpu');
      const mocha = fileURLToPath(new URL('../node_modules/mocha/bin/mocha.js', import.meta.url));
      const args = [
        '--import=tsx',
        mocha,
        '--no-config',
        '--reporter',
        'dot',
        '--timeout',
        '120000',
        fileURLToPath(import.meta.url),
      ];
      const { status, stdout, stderr } = spawnSync(process.execPath, args, { env, encoding: 'utf8' });
      expect(status, stdout + stderr).to.equal(0);
    });
  }
});
