/**
 * The device `cudnn` on the stand-ins for the CUDA driver and for cuDNN (native/test/cuda): convolutions by cuDNN, all
 * else by our kernels. The tasks are those of test/cuda-child.ts.
 */
import { expect } from 'chai';
import { dist, type Env, listed, node, nothing, path, standIns, taskOf, useStandIns, workerLives } from './stand-in.js';

/** cuDNN has a convolution with bias, residual and ReLU, or convolutions alone. */
const engines = { 'whole convolutions': {}, 'convolutions alone': { OCTCONV_STAND_IN_CUDNN_ENGINES: 'alone' } };

/** After these nothing is missing: what is given back is gone, and cuDNN has other plans than one that fails. */
const silent =
  /^(cu\w*(Free|FreeHost|Destroy|Unload|Release|PopCurrent|PushCurrent)(_v2)?|cudnn\w*Destroy\w*|cudnnBackendFinalize|)$/;
const told =
  /^(device 'cudnn': |\w+ '\w+': )?(cuda|cudnn|\w+ '\w+'): .*: (CUDA_ERROR_UNKNOWN, unknown error|CUDNN_STATUS_INTERNAL_ERROR, made to fail: error 999)$/;

const onCudnn = { OCTCONV_TEST_DEVICE: 'cudnn' };
const child = <T>(task: string, argument: unknown = null, settings: Env = {}): Promise<T> =>
  taskOf('cuda-child.ts', task, argument, { ...onCudnn, ...settings });

describe('cudnn on the stand-ins', function () {
  this.timeout(240_000);
  useStandIns();

  describe('computes', () => {
    const options = { width: 16, classes: 10 };
    const networks = [
      { name: 'resnet-26', shape: [1, 33, 33, 3], options },
      { name: 'oct-resnet-26', shape: [2, 21, 25, 3], options: { ...options, alpha: 0.3 } },
      { name: 'oct-resnet-v2-26', shape: [1, 33, 32, 3], options: { ...options, alpha: 0.125 } },
      { name: 'oct-i3d-26', shape: [1, 3, 19, 21, 3], options: { ...options, width: 8, alpha: 0.5 } },
    ];
    interface Compared {
      error: number;
      bits: string[];
    }
    // The stand-in does not round f32 to tf32. bf16 rounds what is multiplied and what is kept by 2^-8, in 26 layers.
    const bounds = { f32: 1e-5, bf16: 2 ** -8 * Math.sqrt(26), f16: 2 ** -11 * Math.sqrt(26) };
    for (const [dtype, how] of [
      ['f32', 'convolutions alone'],
      ['bf16', 'whole convolutions'],
      ['f16', 'whole convolutions'],
    ] as const) {
      const given = dtype === 'f16' ? networks.filter((_, i) => i % 2) : networks;
      it(`${given.length} networks in ${dtype} as reference does, the same bits in each run, by ${how}`, async () => {
        const results = await child<Compared[]>('compared', { networks: given, dtype }, engines[how]);
        expect(results).to.have.length(given.length);
        for (const [i, { error, bits }] of results.entries()) {
          const what = JSON.stringify(given[i]);
          expect(error, what).to.be.below(bounds[dtype]);
          expect(bits, what).to.have.length(1);
        }
      });
    }

    it('on a GPU of sm_75 f32 and f16, which refuses bf16', async () => {
      const sm75 = { OCTCONV_STAND_IN_CAPABILITY: '7.5' };
      const said = await child<string[]>('sm75', null, sm75);
      const about = 'sm_75, stand-in 0, 1.0 GiB, cuDNN 9.1.0';
      const refused = (dtype: string) => `dtype '${dtype}': device 'cudnn' (${about}) multiplies f16 or f32`;
      const none = 'nothing was refused';
      expect(said).to.deep.equal([none, refused('bf16'), none, none, refused('i8')]);
    });

    it('no source that is changed before it is read', async () => {
      const changes = [{}, { pool: 1 }, { upsample: true }, { prologue: { least: 0 } }];
      const refused = 'octConv: no kernel for a source with pooling or a prologue on cudnn';
      const none = 'nothing was refused';
      expect(await child('packing', changes)).to.deep.equal([none, refused, refused, refused]);
    });

    it('from the second run on with a graph, which has the work of cuDNN, the same bits', async () => {
      interface Graphs {
        bits: string[];
        launched: { launches: number; graphLaunches: number }[];
        steps: number;
      }
      const [on, off] = [await child<Graphs>('graphs', {}), await child<Graphs>('graphs', { cudaGraphs: false })];
      const launches = off.launched[0]?.launches ?? 0;
      expect(launches).to.be.above(on.steps - 1);
      const one = { launches, graphLaunches: 0 };
      const graph = { launches, graphLaunches: 1 };
      expect(on.launched).to.deep.equal([one, graph, graph, graph, one]);
      expect(off.launched).to.deep.equal([one, one, one, one, one]);
      const [x, , other] = on.bits;
      expect(other).to.not.equal(x);
      for (const { bits } of [on, off]) expect(bits).to.deep.equal([x, x, other, x, x]);
    });

    it('launch by launch where cuDNN cannot be captured, the same bits', async () => {
      interface Graphs {
        bits: string[];
        launched: { launches: number; graphLaunches: number }[];
      }
      const { bits, launched } = await child<Graphs>('graphs', {}, { OCTCONV_STAND_IN_CUDNN_UNCAPTURED: '1' });
      const [x, , other] = bits;
      expect(bits).to.deep.equal([x, x, other, x, x]);
      const { launches } = launched[0] ?? {};
      expect(launches).to.be.above(1);
      expect(launched).to.deep.equal(launched.map(() => ({ launches, graphLaunches: 0 })));
    });

    it('products of all kinds as reference does: strides, dilation, groups, video, odd sizes', async () => {
      for (const settings of Object.values(engines)) {
        const args = ['--import=tsx', path('cuda-ops-child.ts'), 'cudnn', 'table', 'conv', 'linear', 'octConv'];
        expect(await node(args, { ...settings, OCTCONV_TEST_ONE_IN: '2' })).to.equal('');
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
    const ask = async (settings: Env) => {
      const { devices, said } = await listed(['cudnn'], settings);
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
      ['it is no cuDNN', { OCTCONV_CUDNN: standIns.OCTCONV_CUDA_DRIVER }, /^cudnn: \/.* has no cudnnGetVersion$/],
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
    const { live, lives } = await child<Lives>('failures', { error: 999 });
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

  // Those of the driver are the ones that the device `cuda` makes too.
  it('of the first and the last ones of a process each in turn', async () => {
    const work = `
      import { parentPort } from 'node:worker_threads';
      const [{ conv }, { Tensor }] = await Promise.all([import(${dist('ops.js')}), import(${dist('tensor.js')})]);
      const one = (...shape) => new Tensor('f32', shape, Float32Array.of(1));
      const y = await conv(one(1, 1, 1, 1), { weight: one(1, 1, 1, 1), bias: one(1) }, { device: 'cudnn' })
        .then(({ data }) => String(data), (error) => error.message);
      parentPort.postMessage(y);`;
    const lives = await workerLives(work, 32);
    const failed = new Map<string, number>();
    for (const { code, said, failed: name, errors, live } of lives) {
      failed.set(name, (failed.get(name) ?? 0) + 1);
      const what = `${name}: ${said}`;
      expect(code, what).to.equal(0);
      expect(said, what).to.match(silent.test(name) ? new RegExp(`^2$|${told.source}`) : told);
      expect(errors, what).to.equal('');
      expect(live, what).to.deep.equal(nothing);
    }
    const driver = ['cuInit', 'cuModuleLoadData', 'cuModuleUnload', 'cuDevicePrimaryCtxRelease_v2'];
    for (const name of [...driver, 'cudnnCreate', 'cudnnDestroy']) expect(failed.get(name) ?? 0, name).to.be.above(0);
    expect(lives).to.have.length.above(30);
  });

  it('with 64 runs in flight on one model and on two, some aborted, and disposal meanwhile', async () => {
    const { well } = await child<{ well: boolean[] }>('flights');
    expect(well).to.have.length(138);
    expect(well).to.not.include(false);
  });

  it('until the process ends, with runs in flight too', async () => {
    expect(await child('ends', { exits: false })).to.equal('in flight');
  });
});
