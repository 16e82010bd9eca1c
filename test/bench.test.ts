/** The benches do what they say; how fast anything is, is not tested. */
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { expect } from 'chai';
import sharp from 'sharp';
import { chart } from '../lib/bench/chart.js';
import { interleave, measurePeak, median, pairedRatio, relativeError, timesOf } from '../lib/bench/measure.js';
import { benchModels, modelsTable } from '../lib/bench/models.js';
import { benchOps, opsTable } from '../lib/bench/ops.js';

const lines = (text: string) => text.split('\n');

describe('bench', () => {
  it('models: every network, alpha and thread count; a table and a chart', async function () {
    this.timeout(60_000);
    const [rounds, threads] = [2, [1, 2]];
    const result = await benchModels({ network: 'resnet-26', alphas: [0.5], size: 32, batch: 2, threads, rounds });
    expect(result.rows.map((row) => [row.network, row.alpha, row.threads])).to.deep.equal(
      threads.flatMap((n) => [['resnet-26', undefined, n], ['oct-resnet-26', 0.5, n]]),
    );
    for (const { ours, theirs, ofPeak, ratio, ratioToPlain } of result.rows) {
      expect([ours.rounds.length, theirs.rounds.length]).to.deep.equal([rounds, rounds]);
      for (const value of [ours.min, theirs.min, ofPeak, ratio, ratioToPlain]) expect(value).to.be.within(1e-6, 1e6);
    }
    expect(result.rows[0]?.gmadds).to.be.closeTo((2.342 * 32 ** 2) / 224 ** 2, 0.01);
    expect(JSON.parse(JSON.stringify(result)).rows).to.have.length(4);
    expect(lines(modelsTable(result))).to.have.length(4 + 4);
    const { width, height } = await sharp(Buffer.from(chart(result, 2))).metadata();
    expect([width, height]).to.deep.equal([800, 460]);
  });

  it('ops: every step, every different op', async function () {
    this.timeout(60_000);
    const setting = { size: 32, batch: 1, threads: 1, rounds: 1 };
    const options = { alpha: 0.5, width: 8, classes: 5 };
    const result = await benchOps({ network: 'oct-resnet-26', options, ...setting });
    const sum = (numbers: number[]) => numbers.reduce((a, b) => a + b, 0);
    // Stem, max-pool, three convolutions in each of eight blocks, four shortcuts.
    expect(sum(result.ops.map(({ count }) => count))).to.equal(1 + 1 + 3 * 8 + 4);
    const classifier = (2 * 256 * options.classes) / 1e9;
    const convolutions = sum(result.ops.map(({ count, gflop }) => count * gflop));
    expect(sum(result.steps.map(({ gflop }) => gflop))).to.be.closeTo(convolutions + classifier, 1e-9);
    expect(lines(opsTable(result))).to.have.length(7 + result.steps.length + 1 + result.ops.length + 1);
  });

  it('subjects take turns, after a round that does not count', async () => {
    const order: string[] = [];
    const subject = (name: string) => async () => void order.push(name);
    const times = await interleave([subject('a'), subject('b')], 2);
    expect(order.join('')).to.equal('ababab');
    expect(times.map(({ rounds }) => rounds.length)).to.deep.equal([2, 2]);
  });

  it('a run waits for threads that are still busy after the last one', async () => {
    const busy = 150;
    const spin = `const end = performance.now() + ${busy}; while (performance.now() < end);`;
    let [started, waited] = [0, 0];
    const spinning = async () => {
      const worker = new Worker(spin, { eval: true });
      await once(worker, 'online');
      started = performance.now();
    };
    const next = async () => {
      waited = performance.now() - started;
    };
    await interleave([spinning, next], 1);
    expect(waited).to.be.above(busy);
  });

  it('short ones are repeated', async () => {
    let runs = 0;
    const [times] = await interleave([async () => void runs++], 1, undefined, 2);
    expect(runs).to.be.above(10);
    expect(times?.min).to.be.below(1);
  });

  it('medians, paired ratios, errors', () => {
    expect([median([3, 1, 2]), median([4, 1, 2, 3])]).to.deep.equal([2, 2.5]);
    expect(pairedRatio(timesOf([1, 20, 3]), timesOf([2, 10, 4]))).to.equal(0.75);
    expect(relativeError(Float32Array.of(1, 2, 4), Float32Array.of(1, 3, -5))).to.be.closeTo(9 / 5, 1e-6);
    expect(relativeError(Float32Array.of(NaN, 1), Float32Array.of(1, 1))).to.equal(Infinity);
  });

  it('a peak is measured', () => expect(measurePeak(1)).to.be.within(1, 1000));

  it('what makes no sense is an error', async () => {
    const options = { alphas: [0.5], size: 32, batch: 1, threads: [1], rounds: 1 };
    const wrong = (network: string) => benchModels({ ...options, network }).catch(String);
    expect(await wrong('oct-resnet-50')).to.match(/bench: network 'oct-resnet-50', wanted the plain one/);
    expect(await wrong('resnet-51')).to.match(/network 'resnet-51', wanted one of/);
  });

  it('without onnxruntime-node it says what to install', function () {
    this.timeout(20_000);
    const hook = `export const resolve = (name, context, next) => {
      if (name === 'onnxruntime-node') throw new Error('Cannot find it');
      return next(name, context);
    };`;
    const script = `
      import { register } from 'node:module';
      register('data:text/javascript,' + encodeURIComponent(${JSON.stringify(hook)}));
      const { peerVersion } = await import('./lib/bench/peer.ts');
      await peerVersion().catch((error) => console.log(error.message));`;
    const cwd = fileURLToPath(new URL('..', import.meta.url));
    const { stdout } = spawnSync(process.execPath, ['--import=tsx', '--input-type=module', '-e', script], { cwd });
    expect(String(stdout)).to.equal(
      'bench: it compares with onnxruntime-node (npm install onnxruntime-node): Cannot find it\n',
    );
  });
});
