// Builds the native addon with cmake-js: `node tools/native.mjs [FOLDER]`, FOLDER is build unless given. The compiler
// is CXX, else the one of the last build, else the system's c++. OCTCONV_NATIVE=FOLDER/Release/octconv.node makes the
// library load it.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, realpathSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { installPackages, main, root, run, ToolError, which } from './system.mjs';

const probe = `
#include <atomic>
#include <bit>
#include <concepts>
#include <span>
template <std::integral T> T ceilPowerOfTwo(T x) { return std::bit_ceil(x); }
int main() { std::atomic<unsigned> a{ceilPowerOfTwo(3u)}; a.notify_all(); return std::span<unsigned>().size() == a; }
`;

/** Makes sure that there is a C++20 compiler, cmake and make (or ninja); returns the compiler's path. */
function toolchain(wanted) {
  const compiler = () => (wanted ? [wanted] : ['c++', 'g++', 'clang++']).map(which).find(Boolean);
  const missing = [];
  if (!compiler()) missing.push(wanted ?? 'g++');
  if (!which('cmake')) missing.push('cmake');
  if (!which('ninja') && !which('make')) missing.push('make');
  if (missing.length) installPackages(missing, 'a C++20 compiler, cmake and make are needed');
  return compiler();
}

function checkCxx20(compiler) {
  const { status } = spawnSync(compiler, ['-std=c++20', '-fsyntax-only', '-x', 'c++', '-'], { input: probe });
  if (status !== 0) {
    throw new ToolError(
      `setup: ${compiler} does not compile C++20, wanted g++ 11 or clang 14 or newer (choose by CXX=)`,
    );
  }
}

/** The variables of a build folder, or undefined if it was never configured to the end. */
function cmakeCache(out) {
  const file = join(root, out, 'CMakeCache.txt');
  if (!existsSync(file) || !['build.ninja', 'Makefile'].some((name) => existsSync(join(root, out, name))))
    return undefined;
  const entries = readFileSync(file, 'utf8').matchAll(/^(\w+):\w+=(.*)$/gm);
  return Object.fromEntries([...entries].map(([, name, value]) => [name, value]));
}

/** A build folder is started anew if the checkout was moved or other tools or options are asked for. */
function isStale(cache, wanted, defines) {
  if (!existsSync(cache.CMAKE_CXX_COMPILER) || !existsSync(cache.CMAKE_MAKE_PROGRAM)) return true;
  const otherCompiler = wanted && realpathSync(cache.CMAKE_CXX_COMPILER) !== realpathSync(which(wanted));
  const otherOptions = Object.entries(defines).some(([name, value]) => cache[name] !== value);
  return Boolean(otherCompiler) || cache.CMAKE_HOME_DIRECTORY !== root || otherOptions;
}

/**
 * Builds `out`/Release/octconv.node, or octconv.node in another `folder`, by the `target` that makes it there, and
 * returns its path. Only what changed is compiled. `options` are those of CMakeLists.txt.
 */
export function buildNative({
  out = 'build',
  folder = 'Release',
  target,
  options = {},
  wanted = process.env.CXX,
} = {}) {
  const defines = { OCTCONV_SANITIZE: '', OCTCONV_UP_TO_AVX2: 'OFF', ...options };
  const compiler = toolchain(wanted);
  const cache = cmakeCache(out);
  const fresh = cache === undefined || isStale(cache, wanted, defines);
  if (fresh) {
    checkCxx20(compiler);
    console.log(`setup: compiling the native addon with ${compiler} into ${out}/`);
  }
  const args = [
    'node_modules/cmake-js/bin/cmake-js',
    fresh ? 'rebuild' : 'build',
    '--log-level',
    'error',
    '--out',
    out,
  ];
  args.push('--parallel', String(availableParallelism()));
  if (target) args.push('--target', target);
  if (fresh) args.push('--cc', compiler, '--cxx', compiler); // cmake-js insists on both, we compile no C
  if (fresh) args.push(...Object.entries(options).map(([name, value]) => `--CD${name}=${value}`));
  run(process.execPath, args, { what: 'native build' });
  return join(root, out, folder, 'octconv.node');
}

if (process.argv[1] === fileURLToPath(import.meta.url)) main(() => buildNative({ out: process.argv[2] }));
