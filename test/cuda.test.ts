/**
 * The device `cuda` on the stand-in for the CUDA driver (native/test/cuda/driver.cc), which runs the kernels in an
 * emulator: what it computes, what it refuses, what it leaves behind. The addon and the driver are chosen when a
 * process starts, so that test/cuda-child.ts runs apart.
 */
import { copyFile, mkdir, rm, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect } from 'chai';
import { dist, type Env, folder, listed, node, path, standIns, taskOf, useStandIns } from './stand-in.js';

const child = <T>(task: string, argument: unknown = null, settings: Env = {}): Promise<T> =>
  taskOf('cuda-child.ts', task, argument, settings);

/** Two at a time. */
async function inPairs<T, R>(list: readonly T[], f: (each: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  let next = 0;
  const lane = async () => {
    for (let i = next++; i < list.length; i = next++) results[i] = await f(list[i] as T);
  };
  await Promise.all([lane(), lane()]);
  return results;
}

/**
 * What is multiplied is rounded to so many bits: by 2^-11 (tf32, f16) or 2^-8 (bf16) of itself at most. In a sum of many
 * products of random signs the error stays below that share of the sum, and the errors of layers one after the other
 * add up as steps of a random walk do.
 */
const bound = (dtype: 'f32' | 'bf16' | 'f16', depth: number) =>
  (dtype === 'bf16' ? 2 ** -8 : 2 ** -11) * Math.sqrt(depth);

describe('cuda on the stand-in driver', function () {
  this.timeout(240_000);
  useStandIns();

  describe('computes', () => {
    interface Case {
      name: string;
      refused?: string;
      shapes: boolean;
      errors: number[];
      bits: string;
    }
    it('the golden cases of octConv, the same bits whenever copies are made', async () => {
      const all = await inPairs(['0', '1'], (seed) =>
        child<Case[]>('operators', null, { OCTCONV_STAND_IN_SEED: seed }),
      );
      expect(all[0]).to.have.length.above(9);
      for (const { name, refused, shapes, errors } of all[0] as Case[]) {
        expect(refused, name).to.equal(undefined);
        expect(shapes, name).to.equal(true);
        for (const error of errors) expect(error, name).to.be.below(2e-3);
      }
      for (const each of all) expect(each).to.deep.equal(all[0]);
    });

    it('the golden networks', async () => {
      const networks = await child<{ file: string; depth: number; error: number }[]>('networks', 'f32');
      expect(networks).to.not.be.empty;
      for (const { file, depth, error } of networks) {
        expect(error, file).to.be.below(bound('f32', depth));
      }
    });

    const options = { width: 16, classes: 10 };
    const alphas = [0.1, 0.3, 0.375, 0.75].map((alpha, i) => ({
      name: i % 2 ? 'oct-resnet-26' : 'oct-resnet-v2-26',
      shape: [i % 3 === 0 ? 2 : 1, 19 - i, 13 + 2 * i, 3],
      options: { ...options, alpha },
    }));
    const networks = {
      f32: [
        { name: 'oct-resnet-26', shape: [1, 64, 64, 3], options: { ...options, width: 8, alpha: 0.5 } },
        ...alphas.filter((_, i) => i % 2 === 0),
      ],
      bf16: [
        { name: 'resnet-26', shape: [1, 25, 33, 3], options },
        { name: 'oct-resnet-v2-26', shape: [1, 33, 21, 3], options: { ...options, alpha: 0.5 } },
        ...alphas.filter((_, i) => i % 2 === 1),
      ],
      f16: [{ name: 'oct-resnet-v2-26', shape: [1, 21, 18, 3], options: { ...options, alpha: 0.3 } }],
    };
    const narrow = { ...options, width: 8 };
    const clips = {
      f32: [
        { name: 'oct-i3d-26', shape: [1, 4, 19, 23, 3], options: { ...narrow, alpha: 0.5 } },
        { name: 'i3d-26', shape: [1, 3, 21, 18, 3], options: { ...narrow, nonLocal: true } },
      ],
      bf16: [
        { name: 'i3d-26', shape: [2, 3, 17, 13, 3], options: narrow },
        { name: 'oct-i3d-26', shape: [1, 4, 33, 25, 3], options: { ...narrow, alpha: 0.25, nonLocal: true } },
        { name: 'oct-c2d-26', shape: [1, 5, 21, 18, 3], options: { ...options, alpha: 0.3 } },
      ],
      f16: [{ name: 'oct-i3d-26', shape: [2, 5, 18, 19, 3], options: { ...narrow, alpha: 0.5, nonLocal: true } }],
    };
    /** A non-local block has three steps of convolutions, and layer2 and layer3 have one each. */
    const depthOf = ({ options }: { options: object }) => ('nonLocal' in options ? 32 : 26);
    interface Compared {
      depth: number;
      error: number;
      bits: string[];
    }
    for (const dtype of ['f32', 'bf16', 'f16'] as const) {
      const given = [...networks[dtype], ...clips[dtype]];
      it(`${given.length} networks in ${dtype} as reference does, the same bits in each run`, async () => {
        const results = await child<Compared[]>('compared', { networks: given, dtype });
        expect(results).to.have.length(given.length);
        for (const [i, { depth, error, bits }] of results.entries()) {
          const what = JSON.stringify(given[i]);
          expect(depth, what).to.equal(depthOf(given[i] as (typeof given)[number]));
          expect(error, what).to.be.below(bound(dtype, depth));
          expect(bits, what).to.have.length(1);
        }
      });
    }

    it('a trained network of clips', async () => {
      const file = 'camera-motion-oct-i3d-26-a50';
      const networks = [{ name: file, file, shape: [1, 4, 33, 30, 3] }];
      const [only] = await child<Compared[]>('compared', { networks, dtype: 'bf16' });
      expect(only?.error).to.be.below(bound('bf16', 26));
    });

    it('f16 on a GPU of sm_75, which refuses f32 and bf16', async () => {
      const sm75 = { OCTCONV_STAND_IN_CAPABILITY: '7.5' };
      const said = await child<string[]>('sm75', null, sm75);
      const gpu = 'sm_75, stand-in 0, 1.0 GiB';
      expect(said).to.deep.equal([
        `dtype 'f32': device 'cuda' (${gpu}) multiplies f16`,
        `dtype 'bf16': device 'cuda' (${gpu}) multiplies f16`,
        'octConv: no kernel for f32 on sm_75, stand-in 0, wanted f16',
        'nothing was refused',
        `dtype 'i8': device 'cuda' (${gpu}) multiplies f16`,
      ]);
      const [network] = await child<{ file: string; depth: number; error: number }[]>('networks', 'f16', sm75);
      expect(network?.error, network?.file).to.be.below(bound('f16', network?.depth ?? 0));
    });

    it('rounds f16 of 65520 and more to infinity', async () => {
      expect(await child('overflow')).to.deep.equal({
        reference: ['65504', 'Infinity'],
        cuda: ['65504', 'Infinity'],
      });
    });

    it('from the second run on with a graph, which an option turns off, the same bits', async () => {
      interface Graphs {
        bits: string[];
        launched: { launches: number; graphLaunches: number }[];
        steps: number;
        wrong: string;
      }
      const one = { launches: 4, graphLaunches: 0 }; // of each step one that prepares what is multiplied
      const [on, off] = [await child<Graphs>('graphs', {}), await child<Graphs>('graphs', { cudaGraphs: false })];
      expect(on.steps).to.equal(2);
      const graph = { ...one, graphLaunches: 1 };
      expect(on.launched).to.deep.equal([one, graph, graph, graph, one]);
      expect(off.launched).to.deep.equal([one, one, one, one, one]);
      const [x, , other] = on.bits;
      expect(other).to.not.equal(x);
      for (const { bits } of [on, off]) expect(bits).to.deep.equal([x, x, other, x, x]);
      expect(on.wrong).to.equal('plan: cudaGraphs must be a boolean');
    });

    it('on tensors that stay on the GPU, and copies nothing', async () => {
      interface Tensors {
        moves: { same: boolean; stays: boolean; devices: string[] }[];
        same: boolean[];
        copied: number[];
        computed: string;
        chain: boolean;
        said: string[];
      }
      const two = { OCTCONV_STAND_IN_DEVICES: '2' };
      const { moves, same, copied, computed, chain, said } = await child<Tensors>('tensors', null, two);
      expect(moves).to.have.length(6);
      for (const move of moves)
        expect(move).to.deep.equal({ same: true, stays: true, devices: ['cpu', 'cuda', 'cuda:1', 'cpu'] });
      expect(same).to.deep.equal([true, true, true, true]);
      expect(copied).to.deep.equal([4, 0]); // the number that is added
      expect(computed).to.equal('cuda');
      expect(chain).to.equal(true);
      expect(said).to.deep.equal([
        'tensor: [1,6,6,3] is on cuda: await toHost() to see its elements',
        'tensor: [1,6,6,3] was disposed of',
        'tensor: [1,6,6,3] was disposed of',
        "plan: input 0 is on cuda:1, wanted cuda: await to('cuda')",
        'add: input 0 is on cuda, input 1 on cuda:1: move one by to() or toHost()',
        'add: input 1 is on cuda, input 0 on cpu: move one by to() or toHost()',
        "relu: input 0 is on cuda, wanted cpu: await to('cpu')",
        "plan: input 0 is on cuda, wanted cpu: await to('cpu')",
        "linear: 'weight' is on cuda, wanted on the host, where it is packed: await toHost()",
        "device 'cuda:2': wanted cuda to cuda:1",
        'enough',
      ]);
      const buffers = await child<{ y: number[]; said: string[] }>('buffers', null, two);
      expect(buffers.y).to.deep.equal([0, 2, 0, 4]);
      expect(buffers.said).to.deep.equal([
        'plan: input 0 has 4 bytes, wanted 16',
        'plan: input 0 is on another device',
        'plan: this device has no memory of its own',
        'plan: 2 inputs, wanted 1',
        'wanted a tensor',
        'this device has no memory of its own',
        'a tensor was disposed of',
      ]);
    });

    it('pictures, whose bytes it is sent, and normalises them', async () => {
      const { error, sent, bits } = await child<{ error: number; sent: number[]; bits: string[] }>('pictures');
      expect(error).to.be.below(bound('f32', 2));
      expect(sent).to.deep.equal([2 * 9 * 11 * 3, 2 * 9 * 11 * 3 * 4]);
      expect(new Set(bits).size).to.equal(1);
    });

    it('pools images of more than 65535 rows or columns; convolutions on tensor cores refuse them by name', async () => {
      const refused = (what: string) => `octConv 'conv0': 65537 ${what} are too many for cuda, wanted at most 65535`;
      expect(await child('large')).to.deep.equal([
        { same: true, refused: refused('columns') },
        { same: true, refused: refused('rows') },
      ]);
    });

    it('a network with the same bits whenever copies are made', async () => {
      const network = { name: 'oct-resnet-26', shape: [1, 13, 11, 3], options: { ...options, alpha: 0.25 } };
      const given = { networks: [network], dtype: 'f32' };
      const all = await inPairs(['0', '1'], (seed) =>
        child<Compared[]>('compared', given, { OCTCONV_STAND_IN_SEED: seed }),
      );
      expect(new Set(all.flat().flatMap(({ bits }) => bits)).size).to.equal(1);
    });
  });

  describe('is listed', () => {
    const ask = async (names: string[], settings: Env) => {
      const { devices, said } = await listed(names, settings);
      return { listed: devices.filter(({ name }) => name.startsWith('cuda')), said };
    };
    const byName = { chosen: false, why: 'by its name alone' };

    it('with each GPU, which has its own name', async () => {
      const about = (i: number) => `fused kernels, sm_90, stand-in ${i}, 1.0 GiB`;
      expect((await ask([], { OCTCONV_STAND_IN_DEVICES: '3' })).listed).to.deep.equal([
        { name: 'cuda', about: about(0), ...byName },
        { name: 'cuda:1', about: about(1), ...byName },
        { name: 'cuda:2', about: about(2), ...byName },
      ]);
      const text = await node([path('../dist/cli.js'), 'devices']);
      expect(text).to.match(/^ {2}cuda +fused kernels, sm_90, stand-in 0, 1\.0 GiB; by its name alone$/m);
      expect(text).to.match(/^\* cpu /m);
    });

    const reasons: [title: string, settings: Env, why: string | RegExp][] = [
      [
        'there is no driver',
        { OCTCONV_CUDA_DRIVER: '/nowhere/libcuda.so.1' },
        /^cuda: no NVIDIA driver: \/nowhere\/libcuda\.so\.1: cannot open shared object file/,
      ],
      [
        'the driver is too old',
        { OCTCONV_STAND_IN_VERSION: '12040' },
        'cuda: the driver is for CUDA 12.4, wanted 13.0 or newer',
      ],
      [
        'there is no GPU',
        { OCTCONV_STAND_IN_DEVICES: '0' },
        'cuda: start of the driver: CUDA_ERROR_NO_DEVICE, no CUDA-capable device is detected',
      ],
      [
        'the architecture is too old',
        { OCTCONV_STAND_IN_CAPABILITY: '7.2' },
        'cuda: stand-in 0 is of architecture sm_72, wanted sm_75 or newer',
      ],
      [
        'the driver tells nonsense',
        { OCTCONV_STAND_IN_MULTIPROCESSORS: '0' },
        'cuda: stand-in 0 has 0 multiprocessors',
      ],
    ];
    const check = async (settings: Env, why: string | RegExp) => {
      const { listed, said } = await ask(['cuda', 'auto'], settings);
      const [only, ...others] = listed;
      expect(others).to.be.empty;
      expect({ ...only, why: '' }).to.deep.equal({ name: 'cuda', about: 'not there', chosen: false, why: '' });
      if (typeof why === 'string') expect(only?.why).to.equal(why);
      else expect(only?.why).to.match(why);
      for (const text of said.cuda ?? []) expect(text).to.equal(`device 'cuda': ${only?.why}`);
      expect(said.auto?.[0]).to.equal('nothing was refused'); // it is the CPU
    };
    for (const [title, settings, why] of reasons) it(`as not there where ${title}`, () => check(settings, why));

    it('as not there where octconv.fatbin is missing', async () => {
      const addon = join(folder, 'octconv.node');
      await copyFile(standIns.OCTCONV_NATIVE, addon);
      const why = 'cuda: octconv.fatbin is missing: npm run build:cuda';
      await check({ OCTCONV_NATIVE: addon }, why);
      await mkdir(join(folder, 'octconv.fatbin')); // a folder is none either
      await check({ OCTCONV_NATIVE: addon }, why);
      await rmdir(join(folder, 'octconv.fatbin'));
      const text = await node([path('../dist/cli.js'), 'devices'], { OCTCONV_NATIVE: addon });
      expect(text).to.include(`  cuda       not there; ${why}\n`);
    });

    it('and computes where octconv.fatbin has machine code or PTX for its architecture', async () => {
      const addon = join(folder, 'octconv.node');
      await copyFile(standIns.OCTCONV_NATIVE, addon);
      const said = async (fatbin: string, capability: string) => {
        await writeFile(join(folder, 'octconv.fatbin'), fatbin, 'latin1');
        const settings = { OCTCONV_NATIVE: addon, OCTCONV_STAND_IN_CAPABILITY: capability };
        return (await ask(['cuda'], settings)).said.cuda?.[0];
      };
      for (const [fatbin, capability] of [
        ['stand-in sm_100', '10.3'],
        ['stand-in sm_90 compute_80', '8.7'],
        ['stand-in sm_100 compute_80', '11.0'],
      ] as const)
        expect(await said(fatbin, capability), capability).to.equal('nothing was refused');
      expect(await said('stand-in sm_90 sm_100 compute_120', '11.0')).to.equal(
        'cuda: kernels of octconv.fatbin for stand-in 0, sm_110: CUDA_ERROR_NO_BINARY_FOR_GPU, ' +
          'no kernel image is available for execution on the device',
      );
      const header = [0xed50, 0xba55, 1, 16, 9, 0, 0, 0]; // of a fatbin of 16 and 9 bytes
      const short = await said(Buffer.from(Uint16Array.from(header).buffer).toString('latin1'), '9.0');
      expect(short).to.equal('cuda: octconv.fatbin is cut short, at 16 bytes: npm run build:cuda');
      await rm(join(folder, 'octconv.fatbin'));
    });

    it('and asked for by number, or refused', async () => {
      const names = ['cuda:0', 'cuda:1', 'cuda:7', 'cuda:', 'cuda:-1', 'cuda:1x', 'cuda:99999', 'cpu:1', 'cud', ''];
      const known = 'wanted auto, cpu, cuda, cudnn, recorder, reference';
      const number =
        'wanted one of cpu, cuda, cudnn, recorder, reference, or one of several by its number, as in cuda:1';
      const { said } = await ask(names, { OCTCONV_STAND_IN_DEVICES: '2' });
      const wanted = {
        'cuda:7': 'wanted cuda to cuda:1',
        'cuda:': number,
        'cuda:-1': number,
        'cuda:1x': number,
        'cuda:99999': number,
        'cpu:1': 'wanted cpu, the only one',
      };
      for (const [name, why] of Object.entries(wanted)) {
        const text = `device '${name}': ${why}`;
        expect(said[name]).to.deep.equal([text, text]);
      }
      expect(said.cud?.[0]).to.equal(`device 'cud' (did you mean "cuda"?): ${known}`);
      expect(said['']?.[0]).to.equal(`device '': ${known}`);
      for (const name of ['cuda:0', 'cuda:1'])
        expect(said[name]).to.deep.equal(['nothing was refused', 'nothing was refused']);
    });

    it('as two GPUs that give the same', async () => {
      const { bits, devices } = await child<{ bits: string[]; devices: string[] }>('twoGpus', null, {
        OCTCONV_STAND_IN_DEVICES: '2',
      });
      expect(bits).to.have.length(1);
      expect(devices).to.deep.equal(['cuda', 'cuda:1']);
    });
  });

  it('spreads the runs of replicas over GPUs', async () => {
    const two = { OCTCONV_STAND_IN_DEVICES: '2' };
    const { ran, kept, bits } = await child<Record<'ran' | 'kept' | 'bits', string[]>>('replicas', null, two);
    const each = ['cuda', 'cuda:1'];
    expect(ran).to.deep.equal([...each, ...each, ...each, 'cuda:1', 'cuda:1']);
    expect(kept).to.deep.equal(['cuda:1', 'cuda:1']);
    expect(bits).to.have.length(1);
  });

  describe('where calls of the driver fail', () => {
    interface Lives {
      live: object;
      lives: { n: number; failed: string; said: string[]; errors: string; live: object; later: unknown }[];
    }
    // After these nothing is missing: what is given back is gone. A context is pushed again before something is.
    const silent = /^(cu\w*(Free|FreeHost|Destroy|Unload|Release|PopCurrent|PushCurrent)(_v2)?|)$/;
    const names = { 2: 'CUDA_ERROR_OUT_OF_MEMORY', 999: 'CUDA_ERROR_UNKNOWN' } as const;
    const checkLives = ({ live, lives }: Lives, error: 2 | 999) => {
      expect(lives.filter(({ failed }) => failed)).to.have.length.above(lives.length * 0.9);
      for (const { n, failed, said, errors, live: left, later } of lives) {
        const what = `call ${n}, ${failed}: ${said}`;
        // These are called again when idle memory was given back.
        const again = error === 2 && /^cu(MemAlloc|MemHostAlloc|StreamCreate|GraphInstantiate)/.test(failed);
        if (again) expect(said, what).to.be.empty;
        else if (!silent.test(failed)) expect(said, what).to.have.length(1);
        for (const text of said) {
          expect(text, what).to.match(
            /^(device 'cuda': cuda|cuda|octConv '(first|last)'): .*: CUDA_ERROR_\w+, [\w ]+$/,
          );
          expect(text, what).to.include(names[error]);
          if (failed === 'cuLaunchKernel') expect(text).to.match(/^octConv '\w+': launch of octConv\w+: /);
        }
        expect(errors, what).to.equal('');
        expect(left, what).to.deep.equal(live);
        expect(later, what).to.equal(true);
      }
      return new Set(lives.map((life) => life.failed));
    };

    it('each in turn in the life of a network: an error, nothing is left, others run', async () => {
      const failed = checkLives(await child<Lives>('failures', { error: 999 }), 999);
      for (const name of [
        'cuMemAlloc_v2',
        'cuLaunchKernel',
        'cuGraphInstantiateWithFlags',
        'cuGraphLaunch',
        'cuMemcpyDtoDAsync_v2',
        'cuStreamSynchronize',
        'cuMemFree_v2',
        'cuEventDestroy_v2',
      ])
        expect(failed, name).to.include(name);
    });
    it('each third in turn for want of memory @slow', async () => {
      const failed = checkLives(await child<Lives>('failures', { error: 2, every: 3 }), 2);
      for (const name of ['cuMemAlloc_v2', 'cuLaunchKernel']) expect(failed, name).to.include(name);
    });

    it('and the context is lost: each run says so, the process lives', async () => {
      const lost = await inPairs([2, 5], (n) =>
        child<{ runs: string[]; later: string; cpu: string }>('lost', { n, error: 719 }),
      );
      const told = /CUDA_ERROR_LAUNCH_FAILED, unspecified launch failure$|^nothing was refused$/;
      for (const { runs, later, cpu } of lost) {
        for (const text of [...runs, later]) expect(text).to.match(told);
        expect(cpu).to.equal('nothing was refused');
      }
      expect(lost.filter(({ later }) => later.startsWith('cuda: '))).to.have.length.above(0);
    });
  });

  describe('lives', () => {
    it('with 64 runs in flight on one model and on two, some aborted, and disposal meanwhile', async () => {
      const { well, turns, refused } = await child<{ well: boolean[]; turns: number; refused: string }>('flights');
      expect(well).to.have.length(138);
      expect(well).to.not.include(false);
      expect(turns).to.be.above(1000); // tens of thousands
      expect(refused).to.equal('model: it was disposed');
    });

    it('with memory of the GPU that runs share', async () => {
      const told = await child<{
        run: number;
        idle: number[];
        allocations: number;
        limited: string;
      }>('memory');
      const [idle = 0, trimmed] = told.idle;
      expect(told.run).to.be.above(64 * 64 * 8 * 4);
      expect(idle).to.be.above(2 * told.run);
      expect(idle).to.be.below(9 * told.run);
      expect(trimmed).to.equal(0);
      expect(told.allocations).to.equal(4); // three weights, and values of the plan that was used last
      expect(told.limited).to.match(/^plan: weights of .* and a run of .* are more than maxBytes, 0\.0 MiB$/);
    });

    it('with a sixteenth of the memory of the GPU for plans between runs', async () => {
      const kept = (megabytes: number) => child('idle', null, { OCTCONV_STAND_IN_MEMORY: `${megabytes * 2 ** 20}` });
      expect(await kept(64)).to.deep.equal([true, true]);
      expect(await kept(4)).to.deep.equal([false, true]);
    });

    it('with tensors on the GPU of which no copy stays on the host', async () => {
      expect(await child<number>('external')).to.be.below(2 ** 20);
    });

    it('with tensors on the GPU that nobody disposes of, of which V8 is told', async () => {
      // If V8 did not know of their memory it would see no reason to collect them.
      const code = ['--import=tsx', '--expose-gc', path('cuda-child.ts'), 'garbage', '400'];
      const { before, after } = JSON.parse(await node(code, { OCTCONV_STAND_IN_MEMORY: `${2 ** 27}` }));
      expect(after).to.deep.equal(before);
    });

    it('where the GPU has little memory: an error of that run, runs that wait for each other, and no idle memory', async () => {
      const { refused, same, others } = await child<Record<'refused', string[]> & Record<'same' | 'others', boolean>>(
        'outOfMemory',
        null,
        {
          OCTCONV_STAND_IN_MEMORY: '600000',
        },
      );
      for (const text of refused)
        expect(text).to.match(/^cuda: \d{7} bytes on stand-in 0: CUDA_ERROR_OUT_OF_MEMORY, out of memory$/);
      expect(same).to.equal(true);
      expect(others).to.equal(true);
    });

    it('until the process ends, with runs in flight too', async () => {
      expect(await child('ends', { exits: false })).to.equal('in flight');
      // process.exit() runs no cleanup: what there is is the driver's to give back.
      const settings = { OCTCONV_STAND_IN_REPORT: '' };
      expect(await child('ends', { exits: true }, settings)).to.equal('in flight');
    });

    it('in workers that end with tensors and plans that nobody disposed of, on one GPU at the same time', async () => {
      const work = `
        import { parentPort } from 'node:worker_threads';
        const { createModel, Tensor } = await import(${dist()});
        const options = { alpha: 0.5, width: 8, classes: 10, stem: 'cifar', seed: 1 };
        const model = createModel('oct-resnet-26', options, { device: 'cuda' });
        const x = Tensor.zeros('f32', [1, 16, 16, 3]);
        x.data.fill(0.5);
        const d = await x.to('cuda');
        const all = [];
        for (let i = 0; i < 3; i++) all.push(...(await Promise.all([model.run(x), model.run(d)])));
        const values = await Promise.all(all.map(async (y) => String((await y.toHost()).data)));
        const said = JSON.stringify([...new Set(values)]);
        if (parentPort) parentPort.postMessage(said);
        else console.log(said);`;
      const code = `
        import { Worker } from 'node:worker_threads';
        const url = new URL('data:text/javascript,' + encodeURIComponent(${JSON.stringify(work)}));
        const run = () => new Promise((resolve, reject) => {
          let said;
          new Worker(url, { execArgv: [] }).on('message', (text) => { said = text; }).on('error', reject)
            .on('exit', () => resolve(said));
        });
        const workers = [run(), run(), run()];
        await import(url);
        for (const worker of workers) console.log(await worker);`;
      const lines = (await node(['--input-type=module', '-e', code])).trim().split('\n');
      expect(lines).to.have.length(4);
      expect(new Set(lines).size).to.equal(1);
      expect(JSON.parse(lines[0] ?? '')).to.have.length(1);
    });

    it('in workers that are terminated in mid run, on one GPU with the main thread', async () => {
      const net = `createModel('oct-resnet-26', { alpha: 0.5, width: 8, classes: 10, stem: 'cifar' }, { device: 'cuda' })`;
      const work = `
        import { parentPort } from 'node:worker_threads';
        const { createModel, Tensor } = await import(${dist()});
        const model = ${net};
        const x = Tensor.zeros('f32', [1, 16, 16, 3]);
        const d = await x.to('cuda');
        await model.run(d);
        parentPort.postMessage('running');
        while (true) await Promise.all([model.run(x), model.run(d), ...Array.from({ length: 8 }, () => x.to('cuda'))]);`;
      const code = `
        import { Worker } from 'node:worker_threads';
        import { setTimeout as sleep } from 'node:timers/promises';
        const { createModel, Tensor } = await import(${dist()});
        const url = new URL('data:text/javascript,' + encodeURIComponent(${JSON.stringify(work)}));
        const model = ${net};
        const x = Tensor.zeros('f32', [1, 16, 16, 3]);
        const wanted = String((await model.run(x)).data);
        let same = true;
        const lane = async (first) => {
          for (let i = first; i < 4; i += 2) {
            const worker = new Worker(url, { execArgv: [] });
            await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
            await sleep(i * 7);
            const run = model.run(x);
            await worker.terminate();
            same &&= String((await run).data) === wanted;
          }
        };
        await Promise.all([lane(0), lane(1)]);
        console.log(same);`;
      expect(await node(['--input-type=module', '-e', code])).to.equal('true\n');
    });
  });
});
