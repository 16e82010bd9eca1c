// Proves the tests of the CUDA kernels: `node tools/mutants.mjs [--one-in 4]`. Each mutant below is a fault of one
// line. The kernels with that fault are compiled into a stand-in driver of their own, with which the op tests run. A
// mutant that passes them is an error: then the tests lack a case. Needs a build (npm run build), no nvcc and no GPU.
import { execFile } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { main, root, ToolError } from './system.mjs';

const octConv = 'native/ops/octconv/cuda.cu';
const attention = 'native/ops/attention.cu';
const products = 'native/cuda/products.h';
const tensor = 'native/cuda/tensor.h';
/** A file, what it says exactly once, and what the mutant says instead. */
const mutants = {
  // Copies and barriers
  'the main loop waits for one group of copies less': [octConv, 'waitForCopies<slots - 2>', 'waitForCopies<slots - 1>'],
  'no barrier in the main loop': [octConv, '();\n      synchronize();\n      loader', '();\n      loader'],
  'copies do not end': [octConv, 'for (Copy16& copy : rowCopies) copy.end();', ''],
  'copies go into the slot in use': [
    octConv,
    'loader.copy(sharedMemory() + ring.fill)',
    'loader.copy(sharedMemory() + ring.read)',
  ],
  'no barrier before sums are written': [octConv, 'synchronize();\n    if (warpColumn', 'if (warpColumn'],
  'no barrier before sums are read': [octConv, ', pitch);\n    synchronize();\n', ', pitch);\n'],
  'weights are copied one piece short': [
    octConv,
    'if (weightPieces % blockThreads == 0 || at < weightPieces)',
    'if (at < weightPieces - 1)',
  ],
  'inputs are swizzled in the store only': [
    octConv,
    'slot + swizzled(row, half * 2 + lane / 16)',
    'slot + row * chunkBytes + (half * 2 + lane / 16) * 16',
  ],
  'zeros are not filled in': [octConv, '(valid >> i & 1) && bytes > 0', 'bytes > 0'],
  'chunks are half as far apart': [octConv, 'rows[i] += chunkBytes / 16;', 'rows[i] += chunkBytes / 32;'],

  // Where things lie
  'a row below the image': [octConv, 'p.y < branch.size.h && p.x', 'p.x'],
  'a column beside the image': [octConv, ' && p.x < branch.size.w ? p.frame', ' ? p.frame'],
  'a tap below the image': [octConv, ' && tap.y < s.x.size.h', ''],
  'a tap left of the image': [octConv, ' && tap.x >= 0', ''],
  'a time tap off by one': [octConv, '+ kt * s.dilation.t;', '+ (kt + 1) * s.dilation.t;'],
  'a time tap beyond the end': [octConv, 't >= 0 && t < s.x.size.t ?', 't >= 0 ?'],
  'channels beyond those of the input': [octConv, '(valid >> i & 1) && bytes > 0', '(valid >> i & 1)'],
  'channels beyond those of the output': [octConv, 'if (i < count) setElement', 'setElement'],
  'rows of taps begin with the second one': [octConv, 'kx = 0, ky++;', 'kx = 1 < s.kernel.w, ky++;'],
  'phases in another order in the store': [
    octConv,
    'pixelOf(i);\n      if (p.frame',
    'pixelOf(i / 2 + i % 2 * 2);\n      if (p.frame',
  ],
  'weights of the first tile': [octConv, '(columnTile * tileUnits + threadIndex()', '(threadIndex()'],
  'a split begins with the first chunk of its tap': [octConv, 'findTap(first - tap * s.chunks);', 'findTap(0);'],
  'frames before the first are those of the clip before': [
    octConv,
    'if (t < 0 || t >= size.t ||',
    'if (t >= size.t ||',
  ],
  'frames in a pixel lie next to each other': [octConv, 'tap * a.dilation;', 'tap;'],
  'columns of zeros hold the row before': [octConv, '|| p.x < 0 || p.x >= a.columns', '|| p.x >= a.columns'],
  'no zeros behind the channels': [octConv, 'y.channels + y.pad - channel', 'y.channels - channel'],

  // What is computed
  'low products are the start of three phases': [octConv, 'for (int i = 1; i < 4; i++)', 'for (int i = 1; i < 3; i++)'],
  'the first high product has the rows of a low one': [
    octConv,
    'lowSteps < last ? lowSteps : last)',
    'lowSteps < last ? lowSteps + 1 : last)',
  ],
  'a split is left out': [octConv, 'k < branch.splits; k++', 'k < branch.splits - 1; k++'],
  'the largest tile is not added up': [
    octConv,
    '    case largestTile:\n      return add',
    '    case -1:\n      return add',
  ],
  'the bias of another channel': [octConv, 'branch.bias[channel + c] : 0', 'branch.bias[channel] : 0'],
  'the residual of another pixel': [octConv, 'branch.residual, p, channel);', 'branch.residual, pixelOf(0), channel);'],
  'the residual of another channel in bf16 and f16': [
    octConv,
    'unpacked(x.dtype, words->word[i / 2]',
    'unpacked(x.dtype, words->word[0]',
  ],
  'the activation of another channel': [
    octConv,
    'floatOfBits(y.word[c]), channel + c)',
    'floatOfBits(y.word[c]), channel)',
  ],
  'no P of four whole pixels': [
    octConv,
    'store.pool == 0 || count == 0) continue;',
    'store.pool == 0 || count == 4) continue;',
  ],
  'P before ReLU': [octConv, 'roundedTo(store.y.dtype, v[c]);', 'roundedTo(store.y.dtype, floatOfBits(y.word[c]));'],
  'P at an odd edge is a sum divided by 4': [octConv, 'mean[c] /= count;', 'mean[c] /= 4;'],
  'P of an input at an odd edge is a sum divided by 4': [
    octConv,
    'innerSum / innerCount',
    'innerSum / (inner * inner)',
  ],
  'the prologue of another channel': [
    octConv,
    'activated(a.prologue, element, channel)',
    'activated(a.prologue, element, 0)',
  ],
  'bf16 and f16 stores of two channels twice': [
    octConv,
    'packed(y.dtype, v[2], v[3])}',
    'packed(y.dtype, v[0], v[1])}',
  ],
  'f16 is multiplied as bf16': [products, 'multiplyF16(d, a, b);', 'multiplyBf16(d, a, b);'],
  'f16 is stored as bf16': [tensor, 'dtype == DType::f16 ? packF16(low, high) :', ''],
  'f16 is read as bf16': [tensor, 'dtype == DType::f16 ? floatOfF16(static_cast<uint16_t>(word)) :', ''],

  // Groups
  'groups read the first inputs': [octConv, 'grouped ? firstPiece<int>(group, s.inputs, Type::bytes) : 0', '0'],
  'groups read a piece less': [octConv, 'bytes = s.window;', 'bytes = s.window - 16;'],
  'the second unit of columns reads as the first': [
    octConv,
    'firstGroupOf(branch, columnTile * Of::columns)',
    'firstGroupOf(branch, 0)',
  ],
  'sums of groups stay NaN': [octConv, 'if (grouped && branch.groups > 1) mend', 'if (false) mend'],
  'sums of splits of groups stay NaN': [octConv, 'if (tile == groupedTile && branch.groups > 1)', 'if (false)'],
  'sums that are mended have the weights of the first chunk': [
    octConv,
    'weights + byte / chunkBytes * unitBytes',
    'weights',
  ],
  'sums that are mended have inputs of the first group': [octConv, 'int i = group * s.inputs; i <', 'int i = 0; i <'],
  'sums that are mended are not upsampled': [
    octConv,
    's.upsample ? Pixel{p.frame, p.y / 2, p.x / 2} : p;\n    const int bytes',
    'p;\n    const int bytes',
  ],

  // Depthwise
  'no barrier before depthwise sums are read': [octConv, '  synchronize();\n  // Neighbouring', '  // Neighbouring'],
  'depthwise: a column left of the image': [
    octConv,
    'static_cast<unsigned>(at) < static_cast<unsigned>(s.x.size.w)',
    'at < s.x.size.w',
  ],
  'depthwise: a row above the image': [octConv, 'frame < 0 || y < 0 ||', 'frame < 0 ||'],
  'depthwise: a frame that is not there': [octConv, 'frame < 0 || y < 0', 'y < 0'],
  'depthwise: both rows have the inputs of the first': [
    octConv,
    '(low.y * 2 + i) * s.stride.h',
    'low.y * 2 * s.stride.h',
  ],
  'depthwise: three taps of stride 2 as of stride 1': [octConv, 'j - column * stride', 'j - column'],
  'depthwise: three taps of stride 3 as of stride 2': [octConv, ' && s.stride.w <= 2 ? 3 : 1', ' ? 3 : 1'],
  'depthwise: dilated taps lie next to each other': [octConv, '>= 3 && s.dilation.w == 1', '>= 3'],
  'depthwise: all taps of a row have the first weights': [octConv, 'weights + kx * tapPieces', 'weights'],
  'depthwise: channels behind the first four': [octConv, 'item.channel + four * 4', 'item.channel'],
  'a gate of the first image': [octConv, '{low.frame / branch.size.t, 0, 0}', '{0, 0, 0}'],

  // Attention
  'attention waits for one group of copies less': [
    attention,
    'waitForCopies<attentionSlots - 2>',
    'waitForCopies<attentionSlots - 1>',
  ],
  'no barrier in attention': [attention, '    synchronize();\n    loader.copy', '    loader.copy'],
  'attention copies into the slot in use': [
    attention,
    'synchronize();\n    loader.copy(sharedMemory() + fill);',
    'synchronize();\n    loader.copy(sharedMemory() + read);',
  ],
  'keys that are not there have weights': [attention, 'j * 8 + first + i % 2 < keys ?', 'true ?'],
  'the largest score of one lane': [attention, 'most = other > most ? other : most;', ''],
  'sums are not scaled where the largest score grows': [attention, 'sums[j][i] *= factors[i / 2]', 'sums[j][i] *= 1'],
  'totals are not scaled where the largest score grows': [attention, 'totals[r] *= factors[r]', 'totals[r] *= 1'],
  'the total of one lane': [attention, 'total += shuffleXor(total, mask)', 'shuffleXor(total, mask)'],
  'keys of tf32 in order': [attention, 'lane - lane % 8 + lane % 4 * 2 + lane / 4 % 2 : lane', 'lane : lane'],
  'the first slice of v': [attention, 'n * channels + firstColumn + column + row', 'n * channels + column + row'],
  'v ends with the first n': [
    attention,
    'firstKey < a.keys ? (n + 1) * channels : 0',
    'firstKey < a.keys ? channels : 0',
  ],
  'scores of -inf alone are NaN before others come': [attention, 'most == minusInfinity ? 0 : most', 'most'],

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
    'largest = most[first + i] > largest',
    'largest = most[first + i] < largest',
  ],
  'interpolate takes the pixel before': ['native/ops/interpolate.cu', 'first + 1 < from ? first + 1 : first', 'first'],
  'pad shifts by a row': ['native/ops/pad.cu', 'to.y - a.before.h', 'to.y - a.before.h + 1'],
};

const tests = 'test/cuda-ops.test.ts';

const built = join(root, 'build', 'test');
const folder = join(root, 'build', 'mutants');
const compiler = process.env.CXX ?? 'g++';
// -O2 takes half as long again to compile, and the tests take as long.
const compile = ['-std=c++20', '-O1', '-fPIC', '-ffp-contract=fast', '-fno-math-errno', '-Wno-unknown-pragmas'];
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
  const [option, count] = process.argv.slice(2);
  if (option && !(option === '--one-in' && Number(count) >= 1))
    throw new ToolError(`mutants: '${process.argv.slice(2).join(' ')}', wanted nothing or --one-in and a number`);
  const names = Object.keys(mutants).filter((_, i) => !option || i % Number(count) === 0);
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
