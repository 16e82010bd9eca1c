/** The op table on the CUDA device, whose kernels run in an emulator: test/cuda-ops-child.ts. */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { expect } from 'chai';
import { cases } from './cases.js';
import { skip } from './skip.js';
import { path, standIns } from './stand-in.js';

// So many that tiles of each size are shared by blocks, and are not.
const env = { ...process.env, ...standIns, OCTCONV_STAND_IN_MULTIPROCESSORS: '3' };
const child = path('cuda-ops-child.ts');

describe('CUDA ops, emulated', function () {
  this.timeout(300_000);
  before(function () {
    if (!existsSync(standIns.OCTCONV_CUDA_DRIVER)) skip(this, 'build');
  });
  const check = (what: string, ops: readonly string[]) => {
    const started = ['--import=tsx', child, 'cuda', what, ...ops];
    const { status, signal, stdout, stderr } = spawnSync(process.execPath, started, { env, encoding: 'utf8' });
    expect({ status, signal, output: stdout + stderr }).to.deep.equal({ status: 0, signal: null, output: '' });
  };
  const products = ['conv', 'octConv', 'linear'];
  const all = [...new Set(cases.map(({ op }) => op))];

  it('products as the reference, within what tf32 rounds', () => check('table', products));
  for (const compute of ['f32', 'bf16', 'f16'])
    it(`the steps of random blocks in ${compute} as the reference`, () => check(compute, []));
  it('all other ops as the reference, moves to the bit', () =>
    check(
      'table',
      all.filter((op) => !products.includes(op)),
    ));
  it('slices of wider values: neighbours stay and are not read', () =>
    check('slices', [...products, 'attention', 'batchNorm', 'concat', 'maxPool', 'avgPool', 'globalAvgPool', 'mean']));
});
