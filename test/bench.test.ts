/** The benches do what they say; how fast anything is, is not tested. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import sharp from 'sharp';
import { chart } from '../lib/bench/chart.js';
import { goalOf, memoryGoalOf } from '../lib/bench/goals.js';
import {
  angularError,
  measureBandwidth,
  measurePeak,
  median,
  pairedRatio,
  peaksOf,
  relativeError,
  timesOf,
} from '../lib/bench/measure.js';
import { benchLoop, loopTable } from '../lib/bench/loop.js';
import { benchMemory, memoryTable } from '../lib/bench/memory.js';
import { benchModels, type ModelRow, modelsTable } from '../lib/bench/models.js';
import { benchOps, opsTable } from '../lib/bench/ops.js';
import { alphasOf } from '../lib/bench/paper.js';
import { costsOf } from '../lib/costs.js';
import { countFlops } from '../lib/flops.js';
import { Graph } from '../lib/graph/graph.js';
import { record } from '../lib/model.js';
import { buildNetwork, networkNames, octaveForm } from '../lib/models/index.js';
import { targetOf } from '../lib/devices.js';
import * as ops from '../lib/ops.js';
import { stepsFor } from '../lib/targets.js';
import type { Video } from '../lib/tensor.js';

const lines = (text: string) => text.split('\n');

const small = {
  networks: ['resnet-26'],
  alphas: [0.5],
  size: 32,
  dtypes: ['f32'],
  batches: [1],
  threads: [1],
  rounds: 1,
} as const;

describe('bench', () => {
  it('models: every network, alpha and thread count; a table and a chart', async function () {
    this.timeout(60_000);
    const result = await benchModels({ ...small, batches: [1, 2], threads: [1, 2], rounds: 2 });
    expect(result.rows.map((row) => [row.network, row.alpha, row.batch, row.threads])).to.deep.equal(
      [
        [1, 1],
        [1, 2],
        [2, 1],
        [2, 2],
      ].flatMap((at) => [
        ['resnet-26', undefined, ...at],
        ['oct-resnet-26', 0.5, ...at],
      ]),
    );
    for (const { ours, theirs, ofPeak, ratio, ratioToPlain, ratioToOurPlain } of result.rows) {
      expect([ours.rounds.length, theirs.rounds.length]).to.deep.equal([2, 2]);
      const all = [ours.min, theirs.min, ofPeak, ratio, ratioToPlain, ratioToOurPlain];
      for (const value of all) expect(value).to.be.within(1e-6, 1e6);
    }
    expect(result.rows[0]?.gmadds).to.be.closeTo((2.342 * 32 ** 2) / 224 ** 2, 0.01);
    expect(result.rows[0]).to.include({ dtype: 'f32', peerDType: 'f32', flopRatio: 1, ratioToOurPlain: 1 });
    expect(result.rows[1]?.flopRatio).to.be.within(0.5, 0.7);
    expect(JSON.parse(JSON.stringify(result)).rows).to.have.length(8);
    expect(lines(modelsTable(result))).to.have.length(4 + 8);
    const { width, height } = await sharp(Buffer.from(chart(result))).metadata();
    expect([width, height]).to.deep.equal([800, 460]);
    const more = (['bf16', 'i8'] as const).flatMap((dtype) =>
      result.rows.map((row): ModelRow => ({ ...row, dtype, peerDType: dtype === 'i8' ? 'i8' : 'f32' })),
    );
    const names = chart({ ...result, rows: [...result.rows, ...more] }).match(/(onnxruntime|octconv) \w+/g);
    expect(names?.join()).to.equal('onnxruntime f32,octconv f32,octconv bf16,onnxruntime i8,octconv i8');
  });

  it('models in bf16 and i8, beside the best that onnxruntime has', async function () {
    this.timeout(60_000);
    const { rows } = await benchModels({ ...small, dtypes: ['bf16', 'i8'] });
    expect(rows.map(({ dtype, peerDType, alpha }) => [dtype, peerDType, alpha])).to.deep.equal([
      ['bf16', 'f32', undefined],
      ['bf16', 'f32', 0.5],
      ['i8', 'i8', undefined],
      ['i8', 'i8', 0.5],
    ]);
  });

  it('models of clips with non-local blocks, plain and octave', async function () {
    this.timeout(120_000);
    const options = { nonLocal: true };
    const result = await benchModels({ ...small, networks: ['i3d-26'], options, frames: 3, dtypes: ['f32'] });
    expect(result).to.deep.include({ size: 32, frames: 3, options });
    expect(result.rows.map(({ network, alpha, dtype, peerDType }) => [network, alpha, dtype, peerDType])).to.deep.equal(
      [
        ['i3d-26', undefined, 'f32', 'f32'],
        ['oct-i3d-26', 0.5, 'f32', 'f32'],
      ],
    );
    const multiplyAdds = countFlops(record(buildNetwork('i3d-26', options), [1, 3, 32, 32, 3])).multiplyAdds;
    expect(result.rows[0]?.gmadds).to.equal(multiplyAdds / 1e9);
    expect(lines(modelsTable(result))[1])
      .to.contain('3 x 32 x 32, non-local blocks, ')
      .and.contain('ms per clip');
    expect(chart(result))
      .to.contain('>I3D-26 and octave I3D-26, non-local blocks, 3 x 32 x 32, batch 1, 1 thread<')
      .and.contain('>ms per clip, median<')
      .and.contain('>G multiply-adds per clip<');
    const near = result.rows.map((row) => (row.alpha ? row : { ...row, alpha: 0.125, gmadds: 0.99 * row.gmadds }));
    const heights = [
      ...chart({ ...result, rows: [...result.rows, ...near] }).matchAll(/ y="([\d.]+)"[^>]*>(α [\d.]+|plain)</g),
    ];
    expect(heights.slice(0, 3).map(([, y, label]) => `${label} ${y}`)).to.deep.equal([
      'α 0.5 394',
      'α 0.125 394',
      'plain 376',
    ]);
    const frames = await benchModels({ ...small, frames: 3 }).catch(String);
    expect(frames).to.contain('resnet-26: 3 frames, wanted none: its input is an image');
  });

  const tiny = {
    network: 'oct-resnet-26',
    options: { alpha: 0.5, width: 8, classes: 5 },
    size: 32,
    threads: 1,
    rounds: 1,
  };

  it('models: the alphas that are taken unless others are given are possible ones', () => {
    for (const name of networkNames) {
      const octave = octaveForm(name);
      for (const alpha of octave === undefined ? [] : alphasOf(name)) buildNetwork(octave as string, { alpha });
    }
  });

  it('models: several networks in one table and one chart, at the alphas of the paper', async function () {
    this.timeout(60_000);
    const { alphas: _, ...rest } = small;
    const result = await benchModels({ ...rest, networks: ['mobilenet-v1', 'densenet-121'] });
    expect(result.rows.map(({ network, alpha }) => [network, alpha])).to.deep.equal([
      ['mobilenet-v1', undefined],
      ['oct-mobilenet-v1', 0.375],
      ['oct-mobilenet-v1', 0.5],
      ['densenet-121', undefined],
      ['oct-densenet-121', 0.125],
      ['oct-densenet-121', 0.25],
    ]);
    for (const { network, alpha, flopRatio } of result.rows)
      if (alpha === undefined) expect(flopRatio, network).to.equal(1);
      else expect(flopRatio, network).to.be.within(0.5, 0.95);
    const drawn = chart(result);
    expect(drawn).to.contain('<title>Plain networks and their octave forms in f32, 32 px, batch 1, 1 thread</title>');
    const curves = [...drawn.matchAll(/<polyline points="([^"]*)"/g)].map(([, points]) => points?.split(' ').length);
    expect(curves).to.deep.equal([3, 3, 3, 3, 2, 2, 2, 2]); // of networks, then of the legend
    for (const text of ['mobilenet-v1', 'densenet-121', 'octconv', 'onnxruntime', 'octave', 'plain'])
      expect(drawn).to.contain(`>${text}</text>`);
    expect(await benchModels({ ...rest, networks: ['mobilenet-v1', 'i3d-26'] }).catch(String)).to.match(
      /inputs of \[1,32,32,3\] and \[1,\d+,32,32,3\], wanted one shape/,
    );
  });

  it('ops: every step, every different op', async function () {
    this.timeout(60_000);
    const result = await benchOps({ ...tiny, batch: 1 });
    const sum = (numbers: number[]) => numbers.reduce((a, b) => a + b, 0);
    // Stem, max-pool, three convolutions in each of eight blocks, four shortcuts.
    expect(sum(result.ops.map(({ count }) => count))).to.equal(1 + 1 + 3 * 8 + 4);
    const classifier = (2 * 256 * tiny.options.classes) / 1e9;
    const convolutions = sum(result.ops.map(({ count, gflop }) => count * gflop));
    expect(sum(result.steps.map(({ gflop }) => gflop))).to.be.closeTo(convolutions + classifier, 1e-9);
    const { peaks, bandwidth } = result;
    for (const { gflop, bytes, bound, boundBy } of result.steps) {
      const [products, memory] = [(1e3 * gflop) / peaks.f32, bytes / 1e6 / bandwidth];
      expect([bound, boundBy]).to.deep.equal(products >= memory ? [products, 'products'] : [memory, 'memory']);
    }
    expect(lines(opsTable(result))).to.have.length(7 + result.steps.length + 1 + result.ops.length + 1);
  });

  it('ops of clips: kernels and strides with time', async function () {
    this.timeout(60_000);
    const result = await benchOps({ ...tiny, network: 'oct-i3d-26', frames: 3, batch: 1 });
    const titles = result.ops.map(({ op, title }) => `${op} ${title}`);
    expect(titles).to.include.members([
      'conv 3x32x32x3 -> 3x16x16x8, 5x7x7 s2',
      'maxPool 3x16x16x8 -> 3x8x8x8, 3x3 s2',
      'octConv 3x8x8x8 -> 3x8x8x4 + 3x4x4x4, 3x1x1 s1',
      'maxPool 3x8x8x16 -> 2x8x8x16, 2x1x1 s2x1',
    ]);
    expect(lines(opsTable(result))[1]).to.equal(
      'oct-i3d-26 alpha 0.5, width 8, classes 5, f32, 3 x 32 x 32, batch 1, random weights, 1 round, ms',
    );
  });

  it('ops in groups say so', async function () {
    this.timeout(60_000);
    const result = await benchOps({
      ...tiny,
      network: 'mobilenet-v1',
      options: { multiplier: 0.25, classes: 5 },
      batch: 1,
    });
    const titles = result.ops.map(({ op, title }) => `${op} ${title}`);
    expect(titles).to.include.members([
      'conv 16x16x8 -> 16x16x8, 3x3 s1, 8 groups',
      'conv 16x16x8 -> 16x16x16, 1x1 s1',
    ]);
  });

  it('ops in bf16, and the steps in i8', async function () {
    this.timeout(60_000);
    const [bf16, i8] = [
      await benchOps({ ...tiny, batch: 1, dtype: 'bf16' }),
      await benchOps({ ...tiny, batch: 1, dtype: 'i8' }),
    ];
    expect([bf16.dtype, i8.dtype, bf16.ops.length > 0, i8.ops.length]).to.deep.equal(['bf16', 'i8', true, 0]);
    const bytes = [bf16, i8].map(({ steps }) => steps[0]?.bytes ?? 0) as [number, number];
    expect(bytes[0]).to.be.above(bytes[1]);
    expect(opsTable(i8))
      .to.match(/; i8 is taken for \d x f32, /)
      .and.contain('\n\nNo ops alone in i8: an op by itself has no scales')
      .and.not.contain('onnxruntime');
  });

  it('memory: peaks and milliseconds of fresh processes, and nothing left behind', async function () {
    this.timeout(60_000);
    const usual = process.env.TMPDIR;
    const own = mkdtempSync(join(tmpdir(), 'octconv-bench-'));
    process.env.TMPDIR = own;
    after(() => {
      if (usual === undefined) delete process.env.TMPDIR;
      else process.env.TMPDIR = usual;
      rmSync(own, { recursive: true, force: true });
    });
    const result = await benchMemory({ ...tiny, dtypes: ['bf16', 'i8'], rounds: 2 });
    expect(result.rows.map(({ dtype, peerDType, goal }) => [dtype, peerDType, goal])).to.deep.equal([
      ['bf16', 'f32', undefined],
      ['i8', 'i8', undefined],
    ]);
    for (const { peak, before, milliseconds } of result.rows.flatMap(({ ours, theirs }) => [ours, theirs])) {
      expect([peak, before, milliseconds].map(({ rounds }) => rounds.length)).to.deep.equal([2, 2, 2]);
      expect(before.min).to.be.within(20, peak.min);
      expect(milliseconds.min).to.be.above(0);
    }
    expect(lines(memoryTable(result))).to.have.length(4 + 1 + 4);
    expect(readdirSync(own).filter((name) => name.includes('octconv'))).to.deep.equal([]);
  });

  it('memory of a clip', async function () {
    this.timeout(60_000);
    const result = await benchMemory({ ...tiny, network: 'oct-i3d-26', frames: 3, dtypes: ['f32'] });
    expect(lines(memoryTable(result))[1]).to.contain(
      'oct-i3d-26, alpha 0.5, width 8, classes 5, 3 x 32 x 32, 1 round, ',
    );
    for (const { peak, before } of result.rows.flatMap(({ ours, theirs }) => [ours, theirs]))
      expect(before.min).to.be.within(20, peak.min);
    const of = { network: 'oct-i3d-50', dtype: 'f32', alpha: 0.25 } as const;
    expect(memoryGoalOf([1, 8, 224, 224, 3], of)).to.deep.equal({ peak: 350 });
    expect(memoryGoalOf([1, 64, 224, 224, 3], of)).to.equal(undefined);
  });

  it('loop: each phase and all of them, within 80 columns', async function () {
    this.timeout(60_000);
    const options = { alpha: 0.5, width: 8, classes: 10, stem: 'cifar' } as const;
    const result = await benchLoop({ network: 'oct-resnet-26', options, size: 32, threads: 1, rounds: 1 });
    const phases = ['load', 'warm up batch 1, 2, 4', 'run', 'dispose', 'all'];
    expect(result.rows.map(({ phase }) => phase)).to.deep.equal(phases);
    const [all] = result.rows.slice(-1);
    for (const { max, cpu } of result.rows) {
      expect(max).to.be.at.least(0);
      expect(cpu).to.be.within(0, all?.cpu ?? 0);
    }
    expect(all?.cpu).to.be.above(0);
    const text = lines(loopTable(result));
    expect(text.filter((line) => line.length > 80)).to.deep.equal([]);
    expect(text.slice(-phases.length).map((line) => line.split(/ {2,}/)[0])).to.deep.equal(phases);
  });

  it('the multiply-adds of the steps are those of the network, fused or not', () => {
    for (const [name, options] of [
      ['resnet-26', {}],
      ['oct-resnet-26', { alpha: 0.25 }],
      ['oct-resnet-50', { alpha: 0.5 }],
      ['oct-i3d-26', { alpha: 0.25 }],
    ] as const) {
      const frames = name.includes('i3d') ? [3] : [];
      const graph = record(buildNetwork(name, options), [2, ...frames, 45, 61, 3]);
      for (const device of ['cpu', 'reference'] as const) {
        const costs = costsOf({ ...stepsFor(graph, targetOf(device)), graph, target: targetOf(device) });
        expect(costs.reduce((sum, { multiplyAdds }) => sum + multiplyAdds, 0)).to.equal(countFlops(graph).multiplyAdds);
        expect(costs[0]?.bytes.inputs).to.equal(4 * 2 * (frames[0] ?? 1) * 45 * 61 * 3);
      }
    }
  });

  it('matmul and attention have multiply-adds too', () => {
    const graph = new Graph();
    const input = <const S extends Video>(shape: S) => graph.input('f32', shape);
    const x = input([2, 3, 4, 5, 8]);
    const y = ops.attention(x, input([2, 3, 2, 3, 8]), input([2, 3, 2, 3, 7]));
    const product = ops.matmul(x, input([1, 3, 4, 8, 9]));
    graph.outputs.push(y.id, product.id);
    const expected = 2 * 60 * 18 * (8 + 7) + 2 * 60 * 8 * 9;
    expect(countFlops(graph).multiplyAdds).to.equal(expected);
    const costs = costsOf({ ...stepsFor(graph, targetOf('cpu')), graph, target: targetOf('cpu') });
    expect(costs.reduce((sum, { multiplyAdds }) => sum + multiplyAdds, 0)).to.equal(expected);
    expect(costs.map(({ computes }) => computes)).to.deep.equal([['f32'], ['f32']]);
  });

  it('goals are of some networks at 224 px, for some settings', () => {
    const [usual, goalIsa] = [[1, 224, 224, 3], 'avx512bf16'];
    const row = { network: 'oct-resnet-50', alpha: 0.5, dtype: 'f32', batch: 8, threads: 2, flopRatio: 0.5 } as const;
    const none = { floor: undefined, ofOurPlain: undefined };
    expect(goalOf(usual, row)).to.deep.equal({ ...none, floor: 0.5, goal: 0.43, goalIsa });
    const plain = { ...row, network: 'resnet-50', alpha: undefined };
    expect(goalOf(usual, plain)).to.deep.equal({ ...none, goal: 0.82, goalIsa });
    for (const other of [{ threads: 3 }, { alpha: 0.75 }, { network: 'oct-resnet-101' }]) {
      expect(goalOf(usual, { ...row, ...other }).goal).to.equal(undefined);
    }
    expect(goalOf([1, 225, 225, 3], row).goal).to.equal(undefined);
    expect(goalOf(usual, { ...row, network: 'oct-densenet-121', alpha: 0.25 }).goal).to.equal(0.65);
    const grouped = { ...row, network: 'oct-resnext-v2-50', flopRatio: 0.56 };
    expect(goalOf(usual, grouped)).to.deep.equal({ ...none, floor: 0.5, goal: 0.45, goalIsa: undefined });
    expect(goalOf(usual, { ...grouped, dtype: 'i8' }).goal).to.be.closeTo(0.62, 1e-9);
  });

  it('goals of clips are for a batch of one on any machine, and for our own plain network', () => {
    const clip = [1, 8, 224, 224, 3];
    const row = { network: 'oct-i3d-50', alpha: 0.5, dtype: 'f32', batch: 1, threads: 2, flopRatio: 0.614 } as const;
    const goalIsa = undefined;
    const goals = goalOf(clip, row);
    expect(goals).to.deep.include({ floor: 0.42, goal: 0.35, goalIsa });
    expect(goals.ofOurPlain).to.be.closeTo(0.674, 1e-9);
    const plain = { ...row, network: 'i3d-50', alpha: undefined, flopRatio: 1 };
    expect(goalOf(clip, plain)).to.deep.equal({ floor: 0.66, goal: 0.58, ofOurPlain: undefined, goalIsa });
    const i8 = goalOf(clip, { ...row, dtype: 'i8' });
    expect(i8).to.deep.equal({ floor: undefined, goal: undefined, ofOurPlain: 0.52, goalIsa });
    expect(goalOf(clip, { ...row, dtype: 'bf16' })).to.deep.include({ goal: 0.26, goalIsa: 'avx512bf16' });
    expect(goalOf(clip, { ...row, batch: 8 }).goal).to.equal(undefined);
    expect(goalOf([1, 16, 224, 224, 3], row)).to.deep.equal({});
    const table = (machine: string) =>
      modelsTable({
        ...{ bench: 'models', peer: '1.0', size: 224, frames: 8, rounds: 1, peak: { 1: 50 } },
        machine: { cpu: 'a CPU', cores: 2, isa: machine, node: '22' },
        rows: [
          {
            ...{ ...row, ...goals, peerDType: 'f32', gmadds: 17.4, gflops: 100, ofPeak: 0.9 },
            ...{ ours: timesOf([1]), theirs: timesOf([2]), ratio: 0.5, ratioToPlain: 0.34, ratioToOurPlain: 0.66 },
          },
        ],
      });
    expect(lines(table('avx2')).slice(0, 4)).to.deep.equal([
      'a CPU, avx2; measured peak of f32, GFLOP/s: 1 thread 50; ort: onnxruntime-node 1.0',
      '8 x 224 x 224, 1 interleaved round, random weights, ms per clip, ratios (/ort: ours to it) are paired medians',
      'floor, goal: what this project wants of /ort plain',
      '',
    ]);
    expect(table('avx2')).to.match(
      /\/ort plain {2}floor {2}goal {2}\/our plain {2}at most {2}FLOP ratio\n.* 0\.34 {3}0\.42 {2}0\.35 {8}0\.66 {5}0\.67 {8}0\.61$/,
    );
  });

  it('medians, paired ratios, errors', () => {
    expect([median([3, 1, 2]), median([4, 1, 2, 3])]).to.deep.equal([2, 2.5]);
    expect(pairedRatio(timesOf([1, 20, 3]), timesOf([2, 10, 4]))).to.equal(0.75);
    expect(relativeError(Float32Array.of(1, 2, 4), Float32Array.of(1, 3, -5))).to.be.closeTo(9 / 5, 1e-6);
    expect(relativeError(Float32Array.of(NaN, 1), Float32Array.of(1, 1))).to.equal(Infinity);
    expect(angularError(Float32Array.of(2, 0), Float32Array.of(1, 1))).to.be.closeTo(1 - Math.SQRT1_2, 1e-9);
    expect(angularError(Float32Array.of(NaN, 1), Float32Array.of(1, 1))).to.be.NaN;
  });

  it('a peak and a bandwidth are measured', async () => {
    expect(await measurePeak(1)).to.be.within(1, 1000);
    expect(await measureBandwidth(2)).to.be.within(0.1, 1000);
  });

  it('the peaks of bf16 and i8 follow from that of f32', () => {
    const { f32, bf16, i8 } = peaksOf(10);
    expect([f32, [10, 20].includes(bf16), [10, 20, 40].includes(i8)]).to.deep.equal([10, true, true]);
  });

  it('what makes no sense is an error', async () => {
    const wrong = (network: string) => benchModels({ ...small, networks: [network] }).catch(String);
    expect(await wrong('oct-resnet-50')).to.match(/bench: network 'oct-resnet-50', wanted the plain one/);
    expect(
      await benchModels({ ...small, networks: ['resnext-50'], alphas: [0.25], options: { groups: 64 } }).catch(String),
    ).to.match(/bench: oct-resnext-50 alpha 0.25: layer1.0.conv2: 96 high and 32 low channels, wanted multiples of 64/);
    expect(await wrong('resnet-51')).to.match(/network 'resnet-51' \(did you mean "resnet-50"\?\), wanted one of/);
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
