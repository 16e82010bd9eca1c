// What cuDNN plans on GPUs that are not there: `node tools/cudnn.mjs [BATCH...]` (1 and 32 unless given). Every
// convolution of ResNet-50 and I3D-50 and of the parts of their octave forms, in bf16, f16 and f32, goes through
// native/cuda/cudnn.cc and the real cuDNN, which takes the properties of a GPU as JSON. Prints one table; a plan that is
// refused is an error, but for bf16 on the T4, which has none. Needs no GPU and no driver: cuDNN comes from PyPI, 1 GB,
// into build/cudnn-toolkit; `node tools/cudnn.mjs fetch` does that alone.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { buildNetwork } from '../dist/models/index.js';
import { record } from '../dist/model.js';
import { stepsFor } from '../dist/targets.js';
import { installPackages, main, root, run, ToolError, which } from './system.mjs';

const toolkit = join(root, 'build', 'cudnn-toolkit');
const libraries = join(toolkit, 'nvidia', 'cudnn', 'lib');
const packages = ['nvidia-cudnn-cu13==9.28.*', 'nvidia-cublas==13.*', 'nvidia-cuda-nvrtc==13.*'];

function fetchCudnn() {
  if (existsSync(join(libraries, 'libcudnn.so.9')) && existsSync(join(toolkit, 'nvidia', 'cu13'))) return;
  if (!which('pip3')) installPackages(['python3-pip'], 'pip is needed to fetch cuDNN from PyPI');
  console.log('cudnn: fetching cuDNN 9.28 from PyPI into build/cudnn-toolkit');
  const install = ['install', '--quiet', '--no-deps', '--root-user-action', 'ignore', '--upgrade'];
  run('pip3', [...install, '--target', toolkit, ...packages], { what: 'cudnn: pip3' });
}

// --- GPUs ------------------------------------------------------------------------------------------------------------

// What NVIDIA documents of them; cuDNN wants all of it. MHz become kHz.
const gpuOf = (deviceName, deviceVer, sms, { memory, shared, blocks, threads, clock, memoryClock, bus, l2 }) => ({
  ...{ deviceName, deviceVer, multiProcessorCount: sms, driverVer: 13000, cudaDeviceId: 0 },
  ...{ pciDeviceId: 0, isTccDriver: 0, totalGlobalMem: memory * 2 ** 30 },
  ...{ maxGridSize: [2147483647, 65535, 65535], maxBlockSize: [1024, 1024, 64], warpSize: 32 },
  ...{ maxThreadsPerBlock: 1024, maxThreadsPerSM: threads, maxCtasPerSM: blocks, supportCoopLaunch: 1 },
  ...{ regsPerBlock: 65536, maxRegistersPerSM: 65536, maxSharedMemoryPerBlock: 48 << 10 },
  ...{ maxSharedMemoryPerBlockOptin: shared << 10 },
  ...{ reservedSharedMemoryPerBlock: deviceVer < 800 ? 0 : 1024, l2CacheSize: l2 * 2 ** 20 },
  ...{ smClockRateKHz: clock * 1000, memClockRateKHz: memoryClock * 1000, memoryBusWidth: bus },
});
const gpus = {
  T4: gpuOf('Tesla T4', 750, 40, {
    ...{ memory: 16, shared: 64, blocks: 16, threads: 1024, clock: 1590, memoryClock: 5001, bus: 256, l2: 4 },
  }),
  A100: gpuOf('NVIDIA A100-SXM4-40GB', 800, 108, {
    ...{ memory: 40, shared: 163, blocks: 32, threads: 2048, clock: 1410, memoryClock: 1215, bus: 5120, l2: 40 },
  }),
  'RTX 4090': gpuOf('NVIDIA GeForce RTX 4090', 890, 128, {
    ...{ memory: 24, shared: 99, blocks: 24, threads: 1536, clock: 2520, memoryClock: 10501, bus: 384, l2: 72 },
  }),
  H100: gpuOf('NVIDIA H100 80GB HBM3', 900, 132, {
    ...{ memory: 80, shared: 227, blocks: 32, threads: 2048, clock: 1980, memoryClock: 2619, bus: 5120, l2: 50 },
  }),
  B200: gpuOf('NVIDIA B200', 1000, 148, {
    ...{ memory: 180, shared: 227, blocks: 32, threads: 2048, clock: 1965, memoryClock: 3996, bus: 8192, l2: 126 },
  }),
  'RTX 5090': gpuOf('NVIDIA GeForce RTX 5090', 1200, 170, {
    ...{ memory: 32, shared: 99, blocks: 24, threads: 1536, clock: 2407, memoryClock: 14001, bus: 512, l2: 96 },
  }),
};
const isRefused = (gpu, dtype) => gpu === 'T4' && dtype === 'bf16';

// --- Convolutions ----------------------------------------------------------------------------------------------------

const networks = [
  ['ResNet-50', buildNetwork('resnet-50'), [224, 224, 3]],
  ['Oct-ResNet-50', buildNetwork('oct-resnet-50', { alpha: 0.5 }), [224, 224, 3]],
  ['I3D-50', buildNetwork('i3d-50'), [8, 224, 224, 3]],
  ['Oct-I3D-50', buildNetwork('oct-i3d-50', { alpha: 0.5 }), [8, 224, 224, 3]],
];

/** The passes of the device `cudnn`. */
const traits = { fuses: 'epilogues', ops: {}, dotProducts: [], winograd: {}, channelAlign: 1, subBatches: false };

/** All different convolutions of a network, as lines of native/test/cuda/plans.cc without the type. */
function convolutionsOf(network, shape) {
  const graph = record(network, shape);
  const { steps, values } = stepsFor(graph, { traits });
  const lines = steps.flatMap(({ branches = [] }) =>
    branches.map(({ terms: [term], residual, y, stores: [store] }) => {
      const [{ input, weight, kernel, stride = [1, 1, 1], padding = [0, 0, 0], dilation = [1, 1, 1] }] = term.sources;
      const [out, channels] = graph.params.get(weight);
      // As convolutionOf in native/ops/octconv/cudnn.cc: where nothing happens along time, frames are images.
      const flat = kernel[0] === 1 && stride[0] === 1 && padding[0] === 0;
      const space = (size) => (flat ? size.slice(-2) : size);
      const sizesOf = ([n, ...rest]) => {
        const c = rest.pop();
        const [t, h, w] = rest.length === 3 ? rest : [1, ...(rest.length ? rest : [1, 1])];
        return flat ? [n * t, c, h, w] : [n, c, t, h, w];
      };
      const sizes = [sizesOf(values[input].shape), [out, channels, ...space(kernel)], sizesOf(values[y].shape)];
      const [adds, relu] = [residual !== undefined, store.activation !== undefined];
      const bias = Boolean(term.bias || (term.batchNorm && !term.scaleOnly) || adds || relu);
      return [...sizes, ...[stride, padding, dilation].map(space), ...[adds, bias, relu].map(Number)].join(' ');
    }),
  );
  return [...new Set(lines)];
}

// --- Plans -----------------------------------------------------------------------------------------------------------

/** What comes of each line for a GPU, and the version of cuDNN. */
function plansFor(gpu, lines) {
  const { status, stdout, stderr, error } = spawnSync(join(root, 'build', 'cudnn-plans'), {
    input: `gpu ${JSON.stringify(gpu)}\n${lines.join('\n')}\n`,
    env: {
      OCTCONV_CUDNN: join(libraries, 'libcudnn.so.9'),
      LD_LIBRARY_PATH: [join(root, 'build', 'no-driver'), join(toolkit, 'nvidia', 'cu13', 'lib')].join(':'),
    },
    encoding: 'utf8',
  });
  if (error) throw new ToolError(`cudnn: build/cudnn-plans: ${error.message}`);
  const [version, ...plans] = stdout.trimEnd().split('\n');
  if (status !== 0 || plans.length !== lines.length)
    throw new ToolError(`cudnn: build/cudnn-plans ended with ${status}: ${stderr.trimEnd().split('\n').at(-1)}`);
  return { version, plans };
}

main(() => {
  fetchCudnn();
  if (process.argv[2] === 'fetch') return;
  const batches = process.argv.length > 2 ? process.argv.slice(2).map(Number) : [1, 32];
  const wrong = [];
  console.log('GPU       network        batch  type  convolutions  refused  product alone  workspace, MiB  cuDNN');
  for (const [gpu, properties] of Object.entries(gpus)) {
    for (const [name, network, shape] of networks) {
      for (const batch of batches) {
        const convolutions = convolutionsOf(network, [batch, ...shape]);
        for (const dtype of ['bf16', 'f16', 'f32']) {
          const { version, plans } = plansFor(
            properties,
            convolutions.map((line) => `${dtype} ${line}`),
          );
          const found = plans.filter((plan) => !plan.startsWith('-')).map((plan) => plan.split(' ').map(Number));
          const refused = plans.length - found.length;
          const alone = found.filter(([whole]) => !whole).length;
          const workspace = Math.max(0, ...found.map(([, bytes]) => bytes)) / 2 ** 20;
          const columns = [batch, dtype, plans.length, refused, alone, workspace.toFixed(1), version];
          const widths = [5, 4, 12, 7, 13, 14, 6];
          const row = columns.map((column, i) => String(column).padStart(widths[i]));
          console.log(gpu.padEnd(8), name.padEnd(13), row.join('  '));
          plans.forEach((plan, i) => {
            const bad = plan.startsWith('-') !== isRefused(gpu, dtype);
            if (bad) wrong.push(`${gpu}, ${dtype} ${convolutions[i]}: ${plan}`);
          });
        }
      }
    }
  }
  for (const text of wrong) console.error(text);
  if (wrong.length) throw new ToolError(`cudnn: ${wrong.length} plans are not as expected`);
  console.log('every convolution has a plan, and bf16 is refused on the T4 alone');
});
