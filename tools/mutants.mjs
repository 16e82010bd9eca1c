// Proves the tests of the CUDA kernels: `node tools/mutants.mjs [part of a name]`. Each mutant below is a fault of one
// line. The kernels with that fault are compiled into a stand-in driver of their own, with which the op tests run. A
// mutant that passes them is an error: then the tests lack a case. Needs a build (npm run build), no nvcc and no GPU.
import { execFile } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { main, root, ToolError } from './system.mjs';

const octConv = 'native/ops/octconv/cuda.cu';
/** A file, what it says exactly once, and what the mutant says instead. */
const mutants = {
  // Copies and barriers
  'the main loop waits for one group of copies less': [octConv, 'waitForCopies<slots - 2>', 'waitForCopies<slots - 1>'],
  'no barrier in the main loop': [octConv, 'synchronize();\n    load(', 'load('],
  'copies go into the slot in use': [
    octConv,
    'synchronize();\n    load(step + slots - 1);',
    'load(step + slots - 1);\n    synchronize();',
  ],
  'no barrier before sums are written': [octConv, 'synchronize();\n    if (warpColumn', 'if (warpColumn'],
  'no barrier before sums are read': [octConv, '}\n    synchronize();\n#pragma', '}\n#pragma'],
  'weights are copied one piece short': [octConv, 'at < columns * chunkBytes;', 'at < columns * chunkBytes - 16;'],
  'inputs are swizzled in the store only': [
    octConv,
    'rows + swizzled(i * 32 + warpRow * 16 + lane % 16, half * 2 + lane / 16)',
    'rows + (i * 32 + warpRow * 16 + lane % 16) * chunkBytes + (half * 2 + lane / 16) * 16',
  ],
  'zeros are not filled in': [octConv, ': arena, valid);', ': arena, true);'],
  'chunks are half as far apart': [octConv, 'from[i] + at.chunk * chunkBytes', 'from[i] + at.chunk * chunkBytes / 2'],

  // Where things lie
  'a row below the image': [octConv, 'p.y >= branch.size.h || p.x', 'p.x'],
  'a column beside the image': [octConv, ' || p.x >= branch.size.w) p.frame', ') p.frame'],
  'a tap below the image': [octConv, 'p.y >= size.h || p.x < 0', 'p.x < 0'],
  'a tap left of the image': [octConv, 'p.x < 0 || p.x >= size.w', 'p.x >= size.w'],
  'a time tap off by one': [octConv, '+ kt * s.dilation.t;', '+ (kt + 1) * s.dilation.t;'],
  'a time tap beyond the end': [octConv, 't >= 0 && t < size.t ?', 't >= 0 ?'],
  'channels beyond those of the input': [octConv, 'from[i] && channel < s.x.channels;', 'from[i] != nullptr;'],
  'channels beyond those of the output': [octConv, 'if (i < count) to[i] = v[i];', 'to[i] = v[i];'],
  'the address of the tap before': [
    octConv,
    'if (at.chunk == 0) findTaps',
    'if (at.chunk == 0 && at.kx == 0) findTaps',
  ],
  'phases in another order in the store': [
    octConv,
    'pixels[i] = outputPixel<phased>(branch, rowTile, i, low)',
    'pixels[i] = outputPixel<phased>(branch, rowTile, i / 2 + i % 2 * 2, low)',
  ],
  'weights of the next tile': [
    octConv,
    'static_cast<int64_t>(columnTile) * steps',
    'static_cast<int64_t>(tile) * steps',
  ],

  // What is computed
  'low products are the start of three phases': [octConv, 'for (int i = 1; i < 4; i++)', 'for (int i = 1; i < 3; i++)'],
  'the first high product has the rows of a low one': [octConv, 'step < lowSteps) {', 'step <= lowSteps) {'],
  'the bias of another channel': [octConv, '+= branch.bias[channel + c]', '+= branch.bias[channel]'],
  'the residual of another pixel': [
    octConv,
    'branch.residual, pixels[i], channel + c',
    'branch.residual, pixels[0], channel + c',
  ],
  'the activation of another channel': [
    octConv,
    'stored(store.activation, y[i][c], channel + c)',
    'stored(store.activation, y[i][c], channel)',
  ],
  'P of three phases': [
    octConv,
    'if (store.pool == 0 || count == 0) continue;',
    'if (store.pool == 0 || count == 4) continue;',
  ],
  'P before ReLU': [octConv, 'roundedTo(store.y.narrow, v[c]);', 'roundedTo(store.y.narrow, y[i][c]);'],
  'P at an odd edge is a sum divided by 4': [octConv, 'mean[c] /= count;', 'mean[c] /= 4;'],
  'P of an input at an odd edge is a sum divided by 4': [
    octConv,
    'innerSum / innerCount',
    'innerSum / (inner * inner)',
  ],
  'the prologue of another channel': [
    octConv,
    'activated(s.prologue, element, channel)',
    'activated(s.prologue, element, 0)',
  ],
  'bf16 stores of the low half only': [octConv, 'words[i / 2] >> i % 2 * 16', 'words[i / 2]'],
  'groups read the first inputs': [octConv, 'channel / (branch.channels / a.groups) * inputs;', '0;'],
  'a gate of the first image': [
    octConv,
    'static_cast<int64_t>(p.frame / a.branch.size.t) * a.gate.pitch',
    'static_cast<int64_t>(0)',
  ],

  // Other ops
  'a mean leaves a part out': ['native/ops/mean.cu', 'int i = 1; i < together', 'int i = 2; i < together'],
  'no barrier in means': ['native/ops/mean.cu', '  synchronize();\n', ''],
  'no barrier after the products of matmul': [
    'native/ops/matmul.cu',
    '* ys[j * pitch + column];\n    synchronize();',
    '* ys[j * pitch + column];',
  ],
  'matmul reads below y': ['native/ops/matmul.cu', 'k + r < a.inner && ', ''],
  'maxPool loses a NaN': ['native/ops/pool.cu', 'value > largest || value != value', 'value > largest'],
  'P of maxPool counts pixels below the image': [
    'native/ops/pool.cu',
    'y < atMost(low.y * 2 + 2, a.y.size.h)',
    'y < low.y * 2 + 2',
  ],
  'softmax overflows': [
    'native/ops/softmax.cu',
    'largest = most[row + i] > largest',
    'largest = most[row + i] < largest',
  ],
  'interpolate takes the pixel before': ['native/ops/interpolate.cu', 'first + 1 < from ? first + 1 : first', 'first'],
  'pad shifts by a row': ['native/ops/pad.cu', 'to.y - a.before.h', 'to.y - a.before.h + 1'],
};

const tests = 'test/cuda-ops.test.ts';

const built = join(root, 'build', 'test');
const folder = join(root, 'build', 'mutants');
const compiler = process.env.CXX ?? 'g++';
const compile = ['-std=c++20', '-O2', '-fPIC', '-ffp-contract=fast', '-fno-math-errno', '-Wno-unknown-pragmas'];
const exec = promisify(execFile);

async function compiled(source, native, object) {
  const include = ['-I', native, '-I', join(native, 'test/cuda')];
  await exec(compiler, [...compile, ...include, '-c', join(native, 'test/cuda', source), '-o', object]);
}

/** Names, each with `f` of it; two at a time. */
async function inPairs(names, f) {
  const left = [...names];
  const lane = async () => {
    for (let name = left.shift(); name !== undefined; name = left.shift()) await f(name);
  };
  await Promise.all(Array.from({ length: Math.min(2, availableParallelism()) }, lane));
}

/** The first test that fails with these kernels, with its error; undefined if none does. */
async function caughtBy(name, index) {
  const here = join(folder, String(index));
  const native = join(here, 'native');
  cpSync(join(root, 'native'), native, { recursive: true });
  if (mutants[name]) {
    const [file, find, replace] = mutants[name];
    const parts = readFileSync(join(root, file), 'utf8').split(find);
    if (parts.length !== 2) throw new ToolError(`mutant '${name}': ${file} has ${parts.length - 1} times ${find}`);
    writeFileSync(join(here, file), parts.join(replace));
  }
  // As in a build folder, where the tests look for the driver.
  mkdirSync(join(here, 'test'));
  for (const file of ['octconv.node', 'octconv.fatbin']) symlinkSync(join(built, file), join(here, 'test', file));
  await compiled('kernels.cc', native, join(here, 'kernels.o'));
  const objects = [join(here, 'kernels.o'), join(folder, 'emulator.o'), join(folder, 'driver.o')];
  const exports = `-Wl,--version-script=${join(native, 'test/cuda/exports.map')}`;
  await exec(compiler, ['-shared', ...objects, exports, '-pthread', '-o', join(here, 'test/libcuda.so.1')]);

  const mocha = ['--import=tsx', 'node_modules/mocha/bin/mocha.js', '--no-config', '--reporter', 'json', '--bail'];
  const env = { ...process.env, OCTCONV_NATIVE: join(here, 'test/octconv.node') };
  const { stdout } = await exec(process.execPath, [...mocha, tests], {
    cwd: root,
    env,
    maxBuffer: 2 ** 28,
  }).catch((error) => error);
  rmSync(here, { recursive: true });
  if (!stdout.includes('{')) throw new ToolError(`mutants: mocha printed no report: ${stdout}`);
  const { stats, failures } = JSON.parse(stdout.slice(stdout.indexOf('{')));
  if (failures.length === 0 && (stats.passes === 0 || stats.pending > 0))
    throw new ToolError('mutants: tests were skipped: npm run build');
  const [failure] = failures;
  return failure && `${failure.fullTitle}: ${failure.err.actual || failure.err.message}`.replace(/\s+/g, ' ');
}

async function run() {
  const [wanted = ''] = process.argv.slice(2);
  const names = Object.keys(mutants).filter((name) => name.includes(wanted));
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  await Promise.all(
    ['emulator', 'driver'].map((name) => compiled(`${name}.cc`, join(root, 'native'), join(folder, `${name}.o`))),
  );
  let survived = 0;
  await inPairs(['none', ...names], async (name) => {
    const by = await caughtBy(name, names.indexOf(name));
    if (name === 'none') {
      if (by) throw new ToolError(`mutants: the kernels as they are fail: ${by}`);
      return;
    }
    if (!by) survived++;
    console.log(`${by ? 'caught  ' : 'SURVIVED'}  ${name}${by ? `: ${by.slice(0, 200)}` : ''}`);
  });
  if (survived) throw new ToolError(`mutants: ${survived} of ${names.length} passed all tests: a case is missing`);
  console.log(`${names.length} mutants, all caught`);
}
main(run);
