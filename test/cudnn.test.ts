/**
 * The device `cudnn` on the stand-ins for the CUDA driver and for cuDNN (native/test/cuda): convolutions by cuDNN, all
 * else by our kernels. The tasks are those of test/cuda-child.ts.
 */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect } from 'chai';
import { nativeFile } from '../lib/native.js';
import { skip } from './skip.js';

const built = join(nativeFile, '../../test');
const cudnn = join(built, 'libcudnn.so.9');
const path = (file: string) => fileURLToPath(new URL(file, import.meta.url));
const nothing = { contexts: 0, modules: 0, streams: 0, events: 0, allocations: 0, pinned: 0, cudnn: 0 };
/** cuDNN has a convolution with bias, residual and ReLU, or convolutions alone. */
const engines = [{}, { OCTCONV_STAND_IN_CUDNN_ENGINES: 'alone' }];

/** After these nothing is missing: what is given back is gone, and cuDNN has other plans than one that fails. */
const silent =
  /^(cu\w*(Free|FreeHost|Destroy|Unload|Release|PopCurrent|PushCurrent)(_v2)?|cudnn\w*Destroy\w*|cudnnBackendFinalize|)$/;
const told =
  /^(device 'cudnn': |\w+ '\w+': )?(cuda|cudnn|\w+ '\w+'): .*: (CUDA_ERROR_UNKNOWN, unknown error|CUDNN_STATUS_INTERNAL_ERROR, made to fail: error 999)$/;

let folder: string;
let reports = 0;

/** Runs node with both stand-ins; what it printed, and that nothing was left and no call refused. */
async function node(args: string[], settings: Record<string, string> = {}): Promise<string> {
  const report = join(folder, `${reports++}.json`);
  const env = {
    ...process.env,
    OCTCONV_NATIVE: join(built, 'octconv.node'),
    OCTCONV_CUDA_DRIVER: join(built, 'libcuda.so.1'),
    OCTCONV_CUDNN: cudnn,
    OCTCONV_STAND_IN_REPORT: report,
    OCTCONV_STAND_IN_FAIL: '0:0', // to change a variable is safe while the driver reads it, to add one is not
    OCTCONV_TEST_DEVICE: 'cudnn',
    ...settings,
  };
  const { stdout } = await promisify(execFile)(process.execPath, args, { env, timeout: 600_000, maxBuffer: 2 ** 26 });
  if (existsSync(report)) {
    const { calls: _, launches: __, failed: ___, errors, ...live } = JSON.parse(await readFile(report, 'utf8'));
    expect(errors).to.equal('');
    expect(live).to.deep.equal(nothing);
  }
  return stdout;
}
const child = async <T>(task: string, argument: unknown = null, settings = {}): Promise<T> =>
  JSON.parse(await node(['--import=tsx', path('cuda-child.ts'), task, JSON.stringify(argument)], settings));

describe('cudnn on the stand-ins', function () {
  this.timeout(600_000);
  before(async function () {
    if (!existsSync(cudnn)) skip(this, 'build');
    folder = await mkdtemp(join(tmpdir(), 'octconv-cudnn-'));
  });
  after(() => rm(folder, { recursive: true, force: true }));

  describe('computes', () => {
    const options = { width: 16, classes: 10 };
    const networks = [
      { name: 'resnet-26', shape: [1, 64, 64, 3], options },
      { name: 'oct-resnet-26', shape: [1, 64, 64, 3], options: { ...options, alpha: 0.5 } },
      { name: 'oct-resnet-26', shape: [2, 33, 37, 3], options: { ...options, alpha: 0.3 } },
      { name: 'oct-resnet-v2-26', shape: [1, 33, 32, 3], options: { ...options, alpha: 0.125 } },
    ];
    interface Compared {
      error: number;
      bits: string[];
    }
    // The stand-in does not round f32 to tf32. bf16 rounds what is multiplied and what is kept by 2^-8, in 26 layers.
    const bounds = { f32: 1e-5, bf16: 2 ** -8 * Math.sqrt(26) };
    for (const dtype of ['f32', 'bf16'] as const) {
      for (const settings of engines) {
        const how = 'OCTCONV_STAND_IN_CUDNN_ENGINES' in settings ? 'convolutions alone' : 'whole convolutions';
        it(`${networks.length} networks in ${dtype} as reference does, the same bits in each run, by ${how}`, async () => {
          const results = await child<Compared[]>('compared', { networks, dtype }, settings);
          expect(results).to.have.length(networks.length);
          for (const [i, { error, bits }] of results.entries()) {
            const what = JSON.stringify(networks[i]);
            expect(error, what).to.be.below(bounds[dtype]);
            expect(bits, what).to.have.length(1);
          }
        });
      }
    }

    it('the golden networks', async () => {
      const networks = await child<{ file: string; same: boolean; error: number }[]>('networks');
      expect(networks).to.not.be.empty;
      for (const { file, same, error } of networks) {
        expect(error, file).to.be.below(1e-4);
        expect(same, file).to.equal(true);
      }
    });

    it('products of all kinds as reference does: strides, dilation, groups, video, odd sizes', async () => {
      for (const settings of engines) {
        const args = ['--import=tsx', path('cuda-ops-child.ts'), 'cudnn', 'table', 'conv', 'linear', 'octConv'];
        expect(await node(args, settings)).to.equal('');
      }
    });
  });

  it('says which layer cuDNN has no engine for', async () => {
    const settings = { OCTCONV_STAND_IN_CUDNN_ENGINES: 'none' };
    const network = { name: 'resnet-26', shape: [1, 32, 32, 3], options: { width: 16, classes: 10 } };
    const argument = { networks: [network], dtype: 'bf16' };
    const error = await child('compared', argument, settings).catch(({ stderr }) => String(stderr));
    expect(error).to.include(
      "octConv 'conv1', a convolution of [1,1,32,32,3] to [1,1,16,16,16] in bf16: cudnn: it has no engine for this",
    );
  });

  describe('is listed', () => {
    interface Told {
      devices: { name: string; about: string; why: string }[];
      said: Record<string, string[]>;
    }
    const ask = async (settings: Record<string, string>) => {
      const { devices, said } = await child<Told>('devices', ['cudnn'], settings);
      return { listed: devices.filter(({ name }) => name.startsWith('cudnn')), said: said.cudnn };
    };

    it('with each GPU and the version of cuDNN', async () => {
      const { listed } = await ask({ OCTCONV_STAND_IN_DEVICES: '2', OCTCONV_STAND_IN_CUDNN_VERSION: '91203' });
      expect(listed.map(({ name, about }) => [name, about])).to.deep.equal([
        ['cudnn', 'sm_90, stand-in 0, 1.0 GiB, cuDNN 9.12.3'],
        ['cudnn:1', 'sm_90, stand-in 1, 1.0 GiB, cuDNN 9.12.3'],
      ]);
    });

    const reasons: [title: string, settings: Record<string, string>, why: RegExp][] = [
      [
        'there is no cuDNN',
        { OCTCONV_CUDNN: '/nowhere/libcudnn.so.9' },
        /^cudnn: no cuDNN: \/nowhere\/libcudnn\.so\.9: cannot open shared object file/,
      ],
      [
        'cuDNN is too old',
        { OCTCONV_STAND_IN_CUDNN_VERSION: '8907' },
        /^cudnn: \/.*\/libcudnn\.so\.9 is cuDNN 8\.9\.7, wanted 9\.0 or newer, below 10$/,
      ],
      [
        'cuDNN is too new',
        { OCTCONV_STAND_IN_CUDNN_VERSION: '100200' },
        /^cudnn: \/.*\/libcudnn\.so\.9 is cuDNN 10\.2\.0, wanted 9\.0 or newer, below 10$/,
      ],
      ['it is no cuDNN', { OCTCONV_CUDNN: join(built, 'libcuda.so.1') }, /^cudnn: \/.* has no cudnnGetVersion$/],
      ['there is no driver', { OCTCONV_CUDA_DRIVER: '/nowhere/libcuda.so.1' }, /^cuda: no NVIDIA driver: /],
      ['there is no GPU', { OCTCONV_STAND_IN_DEVICES: '0' }, /^cuda: start of the driver: CUDA_ERROR_NO_DEVICE/],
    ];
    for (const [title, settings, why] of reasons) {
      it(`as not there where ${title}`, async () => {
        const { listed, said } = await ask(settings);
        expect(listed.map(({ name, about }) => [name, about])).to.deep.equal([['cudnn', 'not there']]);
        expect(listed[0]?.why).to.match(why);
        for (const text of said ?? []) expect(text).to.equal(`device 'cudnn': ${listed[0]?.why}`);
      });
    }
  });

  it('where calls of the driver or of cuDNN fail, each in turn: an error, nothing is left, others run', async () => {
    interface Lives {
      live: object;
      lives: { n: number; failed: string; said: string[]; errors: string; live: object; later: unknown }[];
    }
    const { live, lives } = await child<Lives>('failures', 999);
    const failed = new Set<string>();
    for (const { n, failed: name, said, errors, live: left, later } of lives) {
      failed.add(name);
      const what = `call ${n}, ${name}: ${said}`;
      if (!silent.test(name)) expect(said, what).to.have.length(1);
      for (const text of said) expect(text, what).to.match(told);
      expect(errors, what).to.equal('');
      expect(left, what).to.deep.equal(live);
      expect(later, what).to.equal(true);
    }
    for (const name of ['cudnnSetStream', 'cudnnBackendCreateDescriptor', 'cudnnBackendExecute', 'cuLaunchKernel'])
      expect(failed, name).to.include(name);
  });

  it('each in turn from the first to the last one of a process @slow', async () => {
    const work = `
      import { parentPort } from 'node:worker_threads';
      const { ops, Tensor } = await import(${JSON.stringify(new URL('../dist/index.js', import.meta.url).href)});
      const one = (...shape) => new Tensor('f32', shape, Float32Array.of(1));
      const y = await ops
        .conv(one(1, 1, 1, 1), { weight: one(1, 1, 1, 1), bias: one(1) }, { device: 'cudnn' })
        .then(({ data }) => String(data), (error) => error.message);
      parentPort.postMessage(y);`;
    const code = `
      import { readFileSync } from 'node:fs';
      import { Worker } from 'node:worker_threads';
      const url = new URL('data:text/javascript,' + encodeURIComponent(${JSON.stringify(work)}));
      const life = () => new Promise((resolve, reject) => {
        let said;
        new Worker(url, { execArgv: [] }).on('message', (text) => { said = text; }).on('error', reject)
          .on('exit', (code) => resolve({ code, said }));
      });
      const lives = [];
      for (let n = 1; n < 1000; n++) {
        process.env.OCTCONV_STAND_IN_FAIL = n + ':999';
        lives.push(await life());
        if (n === 1) continue;
        // The first call of this life has written what the one before left.
        const report = JSON.parse(readFileSync(process.env.OCTCONV_STAND_IN_REPORT, 'utf8'));
        Object.assign(lives.at(-2), report);
        if (!report.failed) break;
      }
      console.log(JSON.stringify(lives.slice(0, -1)));`;
    const lives = JSON.parse(await node(['--input-type=module', '-e', code]));
    const failed = new Map<string, number>();
    for (const { code, said, failed: name, errors, calls: _, launches: __, ...live } of lives) {
      failed.set(name, (failed.get(name) ?? 0) + 1);
      const what = `${name}: ${said}`;
      expect(code, what).to.equal(0);
      expect(said, what).to.match(silent.test(name) ? new RegExp(`^2$|${told.source}`) : told);
      expect(errors, what).to.equal('');
      expect(live, what).to.deep.equal(nothing);
    }
    for (const name of ['cudnnCreate', 'cudnnDestroy', 'cudnnBackendSetAttribute', 'cudnnBackendGetAttribute'])
      expect(failed.get(name) ?? 0, name).to.be.above(0);
    expect(lives).to.have.length.above(200);
  });

  it('with 64 runs in flight on one model and on two, some aborted, and disposal meanwhile', async () => {
    const { well } = await child<{ well: boolean[] }>('flights');
    expect(well).to.have.length(138);
    expect(well).to.not.include(false);
  });

  it('until the process ends, with runs in flight too', async () => {
    expect(JSON.parse(await node(['--import=tsx', path('cuda-child.ts'), 'ends', '{"exits":false}']))).to.equal(
      'in flight',
    );
  });
});
