/**
 * Plans for GPUs that are not there, what they say of each launch, the estimate made of them, and the bench, on the
 * stand-in driver.
 */
import { execFile } from 'node:child_process';
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect } from 'chai';
import type { CudaResult } from '../lib/bench/cuda.js';
import {
  assumptions,
  blocksAtATime,
  blocksOfBusiest,
  boundsOf,
  cudnnTimeOf,
  estimate,
  timeOf,
  unevenness,
} from '../lib/bench/estimate.js';
import { gpuCalled, gpus } from '../lib/bench/gpus.js';
import { compile, createModel, devices, ops, Tensor } from '../lib/index.js';
import { type Launch, nativeFile } from '../lib/native.js';
import { path, standIns, taskOf, useStandIns } from './stand-in.js';

const cli = path('../dist/cli.js');

interface Said {
  stdout: string;
  stderr: string;
  code: number;
}

/** Without a driver unless `settings` name one. */
async function said(args: string[], settings: Record<string, string> = {}): Promise<Said> {
  const env = { ...process.env, OCTCONV_CUDA_DRIVER: '/nowhere/libcuda.so.1', ...settings };
  const options = { env, timeout: 240_000, maxBuffer: 2 ** 26 };
  return promisify(execFile)(process.execPath, args, options).then(
    ({ stdout, stderr }) => ({ stdout, stderr, code: 0 }),
    ({ stdout, stderr, code }) => ({ stdout, stderr, code }),
  );
}

/** A convolution of one tap, 64 to 64 channels of 16 x 16 pixels: two tiles of 128 pixels x 64 channels. */
const pointwise = (device: string, dtype: 'f32' | 'bf16' | 'f16') =>
  compile((x) => ops.conv(x, { weight: Tensor.zeros('f32', [64, 64, 1, 1]) }), [[1, 16, 16, 64]], { device, dtype });

describe('plans without a GPU', function () {
  this.timeout(240_000);

  it('are compiled, with what each step launches', async () => {
    for (const [dtype, kernel, chunk] of [
      ['f32', 'octConvTf32', 16],
      ['bf16', 'octConvBf16', 32],
      ['f16', 'octConvF16', 32],
    ] as const) {
      using op = await pointwise('cuda:sm_90', dtype);
      const launches = op.plan.infos.flatMap((info) => info.launches).filter(({ tile }) => tile);
      const [rows, columns, bytes] = [128, 64, 64];
      expect(launches).to.deep.equal([
        {
          kernel,
          tile: '128x64',
          blocks: 2,
          threads: 256,
          sharedBytes: 3 * (rows + columns) * bytes + rows * 8, // and where its pixels lie
          multiplyAdds: 256 * 64 * 64,
          operandBytes: 2 * (64 / chunk) * (rows + columns) * bytes,
        },
      ]);
    }
  });

  it('of clips and images of few channels have the taps of a row, and those over time, in one', async () => {
    /** Steps of a tile, and elements that are prepared for them. */
    const stem = async (shape: readonly number[], kernel: readonly number[], dtype: 'f32' | 'bf16') => {
      const weight = Tensor.zeros('f32', [64, shape.at(-1) ?? 0, ...kernel]);
      const conv = (x: unknown) => ops.conv(x as never, { weight } as never);
      using op = await compile(conv, [shape], { device: 'cuda:sm_90', dtype });
      const [prepare, product] = op.plan.infos.flatMap(({ launches }) => launches) as [Launch, Launch];
      const [rows = 0, columns = 0, splits = 1] = product.tile?.split(/[x/]/).map(Number) ?? [];
      const each = rows * columns * (dtype === 'f32' ? 16 : 32);
      const elements = prepare.blocks * prepare.threads * (dtype === 'f32' ? 4 : 8);
      return [(product.multiplyAdds * splits) / product.blocks / each, elements];
    };
    // 7 rows of 7 pixels, 3 channels of each, filled up to 8, which take two steps.
    expect(await stem([1, 64, 32, 3], [7, 7], 'bf16')).to.deep.equal([7 * 2, 64 * 32 * 8]);
    // 15 channels of 5 frames, filled up to 16, for each of 5 frames of the result.
    expect(await stem([1, 9, 64, 32, 3], [5, 7, 7], 'bf16')).to.deep.equal([7 * 4, 5 * 64 * 32 * 16]);
    expect(await stem([1, 9, 64, 32, 3], [5, 7, 7], 'f32')).to.deep.equal([7 * 7, 5 * 64 * 32 * 16]);
    // Frames apart take no more steps.
    expect(await stem([1, 5, 64, 32, 8], [3, 3, 3], 'bf16')).to.deep.equal([9, 5 * 64 * 32 * 8]);
  });

  it('are compiled for all architectures that have kernels, and no others', async () => {
    for (const sm of [75, 80, 86, 89, 90, 100, 120]) {
      using op = await pointwise(`cuda:sm_${sm}`, 'f16');
      expect(op.plan.target.traits.isa).to.equal(`sm_${sm}, compiles plans and runs none`);
    }
    const known = 'sm_75, sm_80, sm_86, sm_89, sm_90, sm_100, sm_120';
    for (const name of ['cuda:sm_70', 'cuda:sm_90x', 'cuda:sm_', 'cuda:x'])
      expect(await pointwise(name, 'f32').catch(({ message }) => message)).to.equal(
        `device '${name}': wanted an architecture that has kernels: ${known}`,
      );
    expect(await pointwise('cpu:sm_90', 'f32').catch(({ message }) => message)).to.match(
      /^device 'cpu:sm_90': wanted one/,
    );
    expect(devices().devices.filter(({ name }) => name.includes('sm_'))).to.deep.equal([]);
  });

  it('of sm_75 are of f16 alone, with tiles that fit into its shared memory', async () => {
    for (const dtype of ['f32', 'bf16'] as const)
      expect(await pointwise('cuda:sm_75', dtype).catch(({ message }) => message)).to.equal(
        `dtype '${dtype}': device 'cuda:sm_75' (sm_75, compiles plans and runs none) multiplies f16`,
      );
    const kernelsOf = async (device: string) => {
      using model = createModel('oct-resnet-26', { alpha: 0.5 }, { device, dtype: 'f16' });
      const { infos } = await model.plan([32, 224, 224, 3]);
      const tiled = infos.flatMap(({ launches }) => launches).filter(({ tile }) => tile);
      if (device === 'cuda:sm_75')
        expect(Math.max(...tiled.map(({ sharedBytes }) => sharedBytes))).to.be.at.most(65536);
      return [...new Set(tiled.map(({ kernel }) => kernel))].sort();
    };
    expect(await kernelsOf('cuda:sm_75')).to.deep.equal(['octConvF16']);
    expect(await kernelsOf('cuda:sm_80')).to.deep.equal(['octConvF16', 'octConvF16Large']);
  });

  it('do not run', async () => {
    using model = createModel('oct-resnet-26', { alpha: 0.5, width: 8 }, { device: 'cuda:sm_90' });
    const why = await model.run(Tensor.zeros('f32', [1, 33, 33, 3])).catch(({ message }) => message);
    const refused = 'cuda:sm_90 compiles plans and runs none: wanted a GPU, as in cuda';
    expect(why).to.equal(refused);
    const x = Tensor.zeros('f32', [4]);
    expect(await x.to('cuda:sm_90').catch(({ message }) => message)).to.equal(refused);
  });

  it('are shown by info, with registers where the kernels were built', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'octconv-plan-'));
    after(() => rmSync(folder, { recursive: true, force: true }));
    copyFileSync(nativeFile, join(folder, 'octconv.node'));
    const settings = { OCTCONV_NATIVE: join(folder, 'octconv.node') };
    const args = [cli, 'info', 'oct-resnet-26', '--alpha', '.5', '--plan', '--device', 'cuda:sm_90', '--dtype', 'bf16'];
    const bare = await said(args, settings);
    expect(bare.stdout).to.match(/^ {2}step +kernel +tile +blocks +threads +KiB shared +MFLOP +KiB in +KiB out$/m);
    expect(bare.stdout).to.match(
      /^ {2}layer1\.0\.conv2\.conv +octConvBf16 +128x64\/3 +96 +256 +37 +101 +3,438 +3,366$/m,
    );
    const registers = { sm_90: { octConvBf16: 123 }, sm_80: { octConvBf16: 45 } };
    writeFileSync(join(folder, 'octconv.kernels.json'), JSON.stringify(registers));
    const known = await said(args, settings);
    expect(known.stdout).to.match(/^ {2}step +kernel +tile +blocks +threads +regs +KiB shared/m);
    expect(known.stdout).to.match(/^ {2}layer1\.0\.conv2\.conv +octConvBf16 +128x64\/3 +96 +256 +123 +37 /m);
    const { plan } = JSON.parse((await said([...args, '--json'], settings)).stdout);
    expect(plan[0].launches[1]).to.include({ kernel: 'octConvBf16', registers: 123, tile: '128x64' });
    expect(plan[1].launches[0]).to.not.have.property('registers'); // of pool
  });
});

describe('the estimate', () => {
  const launch = { kernel: 'k', tile: '128x64', threads: 128, multiplyAdds: 0, operandBytes: 0 };
  const of = (blocks: number, sharedBytes = 36 * 1024): Launch => ({ ...launch, blocks, sharedBytes });

  it('counts blocks by registers, shared memory and threads', () => {
    expect(blocksAtATime(gpus.h100, of(1), 197)).to.equal(2); // 65536 / (200 x 128)
    expect(blocksAtATime(gpus.h100, of(1), 128)).to.equal(4);
    expect(blocksAtATime(gpus.h100, of(1), 32)).to.equal(6); // 228 / 37
    expect(blocksAtATime(gpus.l4, of(1), 32)).to.equal(2); // 100 / 37
    expect(blocksAtATime(gpus.l4, of(1, 0), 24)).to.equal(12); // 1536 threads
  });

  it('counts waves', () => {
    const busiest = (blocks: number) => blocksOfBusiest(gpus.h100, blocks, 2);
    expect([1, 132, 133, 264, 265, 396, 397].map(busiest)).to.deep.equal([1, 1, 2, 2, 3, 3, 4]);
    expect(unevenness(gpus.h100, of(132), 197)).to.equal(1);
    expect(unevenness(gpus.h100, of(2), 197)).to.equal(66);
    expect(unevenness(gpus.h100, of(133), 197)).to.be.closeTo((2 * 132) / 133, 1e-12);
  });

  it('of a launch: products at the share of mma.sync, operands from L2', () => {
    const some = { ...of(132), multiplyAdds: 1e9, operandBytes: 1e6 };
    const { products, l2 } = boundsOf(gpus.h100, some, 'bf16');
    expect(products).to.be.closeTo(2e9 / (989e12 * 0.62 * 0.72) / 1e-3, 1e-9);
    expect(l2).to.be.closeTo(1e6 / (32 * 1.83e9 * 132) / 1e-3, 1e-9);
    expect(boundsOf(gpus.a100, some, 'f32').products).to.be.closeTo(2e9 / (156e12 * 0.72) / 1e-3, 1e-9);
  });

  it('of a plan is the sum of its parts', async () => {
    using op = await pointwise('cuda:sm_90', 'f32');
    const { plan } = op;
    expect(plan.steps.map((step) => step.op)).to.deep.equal(['octConv']);
    const time = timeOf(gpus.h100, plan, 'f32', { octConvTf32: 197 });
    const { efficiency, launchMicroseconds } = assumptions;
    const memory = (1e3 * 4 * (2 * 256 * 64 + 64 * 64)) / (3.35e12 * efficiency);
    const l2 = (1e3 * 4 * 2 * 192 * 64) / (32 * 1.83e9 * 132);
    const products = (1e3 * 2 * 256 * 64 * 64) / (494e12 * 0.62 * efficiency);
    expect(memory).to.be.above(Math.max(l2, products));
    expect(time.memory).to.be.closeTo(memory, 1e-12);
    expect([time.l2, time.products]).to.deep.equal([0, 0]);
    expect(time.waves).to.be.closeTo((132 / 2) * Math.max(l2, products) - memory, 1e-12);
    expect(time.gaps).to.be.closeTo(launchMicroseconds / 1e3, 1e-12);
    expect(time.total).to.be.closeTo(time.memory + time.waves + time.gaps, 1e-12);
    expect(time.lossless).to.be.closeTo(memory + time.gaps, 1e-12);
    expect(() => timeOf(gpus.h100, plan, 'f32', {})).to.throw('an estimate needs to know the registers of octConvTf32');
    expect(cudnnTimeOf(gpus.h100, plan, 'f32')).to.be.closeTo(memory + time.gaps, 1e-12);
  });

  it('reads what launches leave for each other from L2 while that is twice as large', async () => {
    const image = (size: number) =>
      compile((x) => ops.conv(x, { weight: Tensor.zeros('f32', [8, 3, 3, 3]) }, { padding: 1 }), [[1, size, size, 3]], {
        device: 'cuda:sm_90',
      });
    for (const [size, inL2] of [
      [1024, true],
      [1400, false],
    ] as const) {
      using op = await image(size);
      const scratch = op.plan.infos.reduce((bytes, info) => bytes + (info.scratchBytes ?? 0), 0);
      expect(scratch).to.be.within(16 * size ** 2, 16.2 * size ** 2); // 4 channels of f32
      const values = (1e3 * 4 * (size ** 2 * (3 + 8) + 9 * 3 * 8)) / (3.35e12 * assumptions.efficiency);
      const both = (1e3 * 2 * scratch) / (3.35e12 * assumptions.efficiency);
      const registers = { octConvTf32: 128 };
      const { lossless, gaps } = timeOf(gpus.h100, op.plan, 'f32', registers);
      expect(lossless - gaps).to.be.closeTo(values + (inL2 ? 0 : both), 1e-6);
    }
  });

  it('is refused where there is nothing to estimate', async function () {
    this.timeout(60_000);
    const some = { network: 'resnet-26', alphas: [0.5], size: 32, dtypes: ['bf16'], batches: [1] } as const;
    const why = (options: object) => estimate({ ...some, gpu: 'h100', ...options }).then(() => '', String);
    expect(await why({ network: 'oct-resnet-26' })).to.include('wanted the plain one');
    const beside = await said([cli, 'bench', 'cuda', '--estimate', 'h100', '--device', 'cuda:1']);
    expect(beside).to.include({ code: 2, stdout: '' });
    expect(beside.stderr).to.match(/--estimate <gpu>.* cannot be used with option .*--device <name>/);
    expect(await said([cli, 'bench', 'ops', '--gpu', 'h100'])).to.include({
      ...{ code: 1, stdout: '', stderr: 'octconv: bench: --gpu h100 wants a GPU as --device, as cuda\n' },
    });
    expect(await why({ gpu: 't4' })).to.include("dtype 'bf16': device 'cuda:sm_75'");
  });

  it('is headed as one, lists what it assumes, and fits 120 columns', async function () {
    this.timeout(60_000);
    const folder = mkdtempSync(join(tmpdir(), 'octconv-estimate-'));
    after(() => rmSync(folder, { recursive: true, force: true }));
    copyFileSync(nativeFile, join(folder, 'octconv.node'));
    const out = join(folder, 'out.json');
    const args = [cli, 'bench', 'cuda', '--estimate', 'a100', '--network', 'resnet-26', '--alphas', '.5'];
    args.push('--size', '32', '--batch', '1,8', '--dtypes', 'bf16', '--out', out);
    const settings = { OCTCONV_NATIVE: join(folder, 'octconv.node') };
    const bare = await said(args, settings);
    expect([bare.code, bare.stderr]).to.deep.equal([
      1,
      'octconv: bench: an estimate needs to know the registers of octConvBf16: npm run build:cuda tells them, without a GPU\n',
    ]);
    writeFileSync(join(folder, 'octconv.kernels.json'), JSON.stringify({ sm_80: { octConvBf16: 128 } }));
    const { stdout, code } = await said(args, settings);
    expect(code).to.equal(0);
    const lines = stdout.trimEnd().split('\n');
    expect(lines[0]).to.match(/^ESTIMATE, nothing here was measured/);
    expect(stdout).to.include('\nassumed:\n- 72 % of ');
    expect(Math.max(...lines.map(({ length }) => length))).to.be.at.most(120);
    const { rows } = JSON.parse(readFileSync(out, 'utf8'));
    expect(rows.map((row: { network: string; batch: number }) => [row.network, row.batch])).to.deep.equal([
      ['resnet-26', 1],
      ['resnet-26', 8],
      ['oct-resnet-26', 1],
      ['oct-resnet-26', 8],
    ]);
    for (const { total, memory, l2, products, waves, gaps, cudnn, speedup } of rows) {
      expect(memory + l2 + products + waves + gaps).to.be.closeTo(total, 1e-9);
      expect(speedup).to.be.closeTo(cudnn / total, 1e-9);
    }
    const clips = await said([...args, '--network', 'c2d-26', '--frames', '4', '--batch', '1'], settings);
    expect(clips.stdout).to.match(/^A100 SXM 80 GB, 4 x 32 x 32; data sheet: /m);
    expect(clips.stdout).to.match(/^oct-c2d-26 +0\.5 +bf16 +1 /m);
  });

  it('knows GPUs by their names', () => {
    const names = {
      'sm_90, NVIDIA H100 80GB HBM3, 79.6 GiB': 'h100',
      'sm_80, NVIDIA A100-SXM4-80GB, 79.1 GiB': 'a100',
      'sm_89, NVIDIA GeForce RTX 4090, 23.6 GiB': 'rtx4090',
      'sm_75, Tesla T4, 14.6 GiB': 't4',
      'sm_89, NVIDIA L4, 22.5 GiB': 'l4',
      'sm_100, NVIDIA B200, 178.4 GiB': 'b200',
    };
    for (const [text, name] of Object.entries(names)) expect(gpuCalled(text)).to.equal(name);
    expect(() => gpuCalled('sm_90, NVIDIA H100 PCIe, 79.6 GiB')).to.throw('no figures of sm_90, NVIDIA H100 PCIe');
    expect(() => gpuCalled('sm_89, NVIDIA L40S, 44.5 GiB')).to.throw(
      'bench: no figures of sm_89, NVIDIA L40S, 44.5 GiB',
    );
  });
});

describe('on the stand-in driver', function () {
  this.timeout(240_000);
  useStandIns();
  const child = <T>(task: string, argument: unknown, settings: Record<string, string> = {}): Promise<T> =>
    taskOf('cuda-plan-child.ts', task, argument, settings);

  it('a plan launches what one without a GPU says', async () => {
    const options = { alpha: 0.25, width: 16 };
    const given = { network: 'oct-resnet-v2-26', options, dtypes: ['f32', 'bf16'] };
    const settings = { OCTCONV_STAND_IN_MULTIPROCESSORS: '132' }; // as many as `cuda:sm_90` has
    for (const [real, planned] of await child<unknown[][][]>('both', given, settings)) {
      expect(real).to.have.length.above(26);
      expect(planned).to.deep.equal(real);
    }
  });

  it('all steps are timed together, or each', async () => {
    const devices = ['cpu', 'cuda'];
    const times = await child<{ whole: number[]; each: number[] }[]>('times', devices);
    for (const [i, { whole, each }] of times.entries()) {
      const device = devices[i];
      expect(each).to.have.length.above(26);
      for (const ms of [...whole, ...each]) expect(ms, device).to.be.above(0);
      const sum = each.reduce((a, b) => a + b, 0);
      expect(whole[0], device).to.be.within(sum / 20, sum * 20);
    }
  });

  it('NVML tells clocks and what else it can, of this GPU', async () => {
    const two = { OCTCONV_STAND_IN_DEVICES: '2' };
    const wanted = { smMHz: 1410, memoryMHz: 1215, watts: 70.5 };
    expect(await child('sensors', ['cuda', 'cuda:1', 'cuda:sm_90', 'cpu'], two)).to.deep.equal([wanted, {}, {}, {}]);
    expect(await child('sensors', ['cuda'], { OCTCONV_NVML: '/nowhere' })).to.deep.equal([{}]);
  });

  const tiny = { device: 'cuda', network: 'resnet-26', alphas: [0.5], size: 17, dtypes: ['bf16'], batches: [2] };

  it('the bench times cuDNN and our kernels, after a check of each', async () => {
    const options = { ...tiny, options: { width: 8 }, rounds: 1 };
    const { result, table } = await child<{ result: CudaResult; table: string }>('bench', options);
    expect(result.before).to.deep.equal({ smMHz: 1410, memoryMHz: 1215, watts: 70.5 });
    expect(
      result.rows.map(({ alpha, by, cudaGraphs, dtype, batch }) => [alpha, cudaGraphs, by, dtype, batch]),
    ).to.deep.equal(
      [undefined, 0.5].flatMap((alpha) =>
        [true, false].flatMap((graphs) => ['cuDNN', 'octconv'].map((by) => [alpha, graphs, by, 'bf16', 2])),
      ),
    );
    for (const { kernels, whole, toCudnn, toOurPlain, why } of result.rows) {
      expect([why, kernels?.rounds.length, whole?.rounds.length]).to.deep.equal([undefined, 1, 1]);
      expect(kernels?.min).to.be.within(1e-3, whole?.min ?? 0);
      for (const ratio of [toCudnn, toOurPlain]) expect(ratio).to.be.above(0);
    }
    expect(table).to.match(/^before: memoryMHz 1215, smMHz 1410, watts 71; after: memoryMHz /m);
    expect(table.split('\n').filter((line) => line.length > 120)).to.deep.equal([]);
  });

  it('the bench times clips', async () => {
    const options = {
      ...tiny,
      network: 'i3d-26',
      options: { width: 8, nonLocal: true },
      alphas: [],
      batches: [1],
      rounds: 1,
    };
    const { result, table } = await child<{ result: CudaResult; table: string }>('bench', { ...options, frames: 3 });
    expect(result).to.include({ size: 17, frames: 3 });
    expect(result.rows).to.have.length(4);
    for (const { kernels, why } of result.rows) expect([why, kernels?.rounds.length]).to.deep.equal([undefined, 1]);
    expect(table).to.match(/^3 x 17 x 17, width 8, non-local blocks, random weights/m);
    const images = child('bench', { ...tiny, frames: 3, rounds: 1 });
    expect(await images.catch(String)).to.include('resnet-26: 3 frames, wanted none: its input is an image');
  });

  it('the bench times networks that have a multiplier in place of a width', async () => {
    const options = { ...tiny, network: 'mobilenet-v1', options: { multiplier: 0.25 }, alphas: [], rounds: 1 };
    const { result, table } = await child<{ result: CudaResult; table: string }>('bench', options);
    for (const { kernels, why } of result.rows) expect([why, kernels?.rounds.length]).to.deep.equal([undefined, 1]);
    expect(table).to.match(/^17 x 17, multiplier 0.25, random weights/m);
  });

  it('the bench times what is there, and says of the rest why not', async () => {
    const options = { ...tiny, options: { width: 8 }, dtypes: ['f32'], batches: [1], rounds: 1, alphas: [] };
    const { result, table } = await child<{ result: CudaResult; table: string }>('bench', options, {
      OCTCONV_CUDNN: '/nowhere/libcudnn.so.9',
    });
    for (const { by, kernels, toCudnn, toOurPlain, why = '' } of result.rows) {
      const isOurs = by === 'octconv';
      expect(why).to.match(isOurs ? /^$/ : /^device 'cudnn': cudnn: no cuDNN: \/nowhere\/libcudnn\.so\.9: /);
      expect([kernels?.rounds.length, toCudnn]).to.deep.equal([isOurs ? 1 : undefined, undefined]);
      expect((toOurPlain ?? 0) > 0).to.equal(isOurs);
    }
    expect(table).to.match(/^resnet-26 by cuDNN: device 'cudnn': cudnn: no cuDNN: /m);
  });

  it('the bench goes on after an error, and ends with exit code 1', async () => {
    const args = ['bench', 'cuda', '--network', 'resnet-26', '--size', '33', '--alphas', '.5', '--batch', '1'];
    args.push('--dtypes', 'f32', '--rounds', '1', '--json');
    const small = { ...standIns, OCTCONV_STAND_IN_MEMORY: '100000' };
    const { stdout, stderr, code } = await said([cli, ...args], small);
    expect(code).to.equal(1);
    expect(stderr).to.equal('octconv: bench: 4 of 4 rows of octconv were not measured\n');
    const ours = (JSON.parse(stdout) as CudaResult).rows.filter(({ by }) => by === 'octconv');
    for (const { why, kernels } of ours) {
      expect(why).to.match(/CUDA_ERROR_OUT_OF_MEMORY/);
      expect(kernels).to.equal(undefined);
    }
  });

  it('the bench of steps has bounds from a data sheet', async () => {
    const args = [cli, 'bench', 'ops', '--device', 'cuda', '--network', 'resnet-26', '--size', '9', '--rounds', '1'];
    const { stdout, code } = await said([...args, '--gpu', 'h100', '--dtype', 'bf16'], standIns);
    expect(code).to.equal(0);
    expect(stdout).to.match(
      /^sm_90, stand-in 0, 1\.0 GiB; data sheet of H100 SXM: 989 TFLOP\/s of bf16 and 3350 GB\/s\n/,
    );
    expect(stdout).to.match(/^layer1\.0\.conv2 +octConv .* memory /m);
    const unknown = await said(args, standIns);
    expect([unknown.code, unknown.stderr]).to.deep.equal([
      1,
      'octconv: bench: no figures of sm_90, stand-in 0, 1.0 GiB; wanted --gpu with one of h100, a100, t4, l4, rtx4090, b200\n',
    ]);
  });

  it('without a GPU there is a reason, and exit code 1', async () => {
    const { stderr, code } = await said([cli, 'bench', 'cuda']);
    expect(code).to.equal(1);
    expect(stderr).to.match(/^octconv: device 'cuda': cuda: no NVIDIA driver: [^\n]+\n$/);
  });
});
