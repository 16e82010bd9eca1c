// Prebuilds of the addon for other systems than this one, by zig, which brings clang, libc++, musl and glibc's symbols
// along: `node tools/prebuilds.mjs [fetch | TARGET ...]`. It comes from PyPI.
import { chmodSync, copyFileSync, existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { installPackages, main, root, run, ToolError, which } from './system.mjs';

/** By zig's names: folder and libc of node-gyp-build, and what CMake calls the processor. */
const targets = {
  'x86_64-linux-musl': { folder: 'linux-x64', libc: 'musl', processor: 'x86_64' },
  'aarch64-linux-gnu.2.34': { folder: 'linux-arm64', libc: 'glibc', processor: 'aarch64' },
  'aarch64-linux-musl': { folder: 'linux-arm64', libc: 'musl', processor: 'aarch64' },
};

/** The zig of this version, fetched where it is not there. */
function fetchZig(version = '0.13.0') {
  const folder = join(root, 'build', `zig-${version}`);
  const zig = join(folder, 'ziglang', 'zig');
  if (existsSync(zig)) return zig;
  if (!which('pip3')) installPackages(['python3-pip'], 'pip is needed to fetch zig from PyPI');
  console.log('prebuilds: fetching zig from PyPI, some 80 MB');
  const install = ['install', '--quiet', '--root-user-action', 'ignore', '--upgrade', '--target', folder];
  run('pip3', [...install, `ziglang==${version}.*`], { what: 'prebuilds: pip3' });
  return zig;
}

function build(zig, target) {
  const { folder, libc, processor } = targets[target];
  const out = join(root, 'build', `prebuild-${target}`);
  mkdirSync(out, { recursive: true });
  // CMake wants one word for each tool.
  const tool = (name, ...args) => {
    const file = join(out, name);
    writeFileSync(file, `#!/bin/sh\nexec '${zig}' ${args.join(' ')} "$@"\n`);
    chmodSync(file, 0o755);
    return file;
  };
  const modules = join(root, 'node_modules');
  const settings = {
    CMAKE_BUILD_TYPE: 'Release',
    CMAKE_SYSTEM_NAME: 'Linux',
    CMAKE_SYSTEM_PROCESSOR: processor,
    CMAKE_CXX_COMPILER: tool('c++', 'c++', '-target', target),
    CMAKE_AR: tool('ar', 'ar'),
    CMAKE_RANLIB: tool('ranlib', 'ranlib'),
    CMAKE_MODULE_LINKER_FLAGS: '-s',
    CMAKE_JS_INC: [join(modules, 'node-api-headers', 'include'), join(modules, 'node-addon-api')].join(';'),
  };
  const define = Object.entries(settings).map(([name, value]) => `-D${name}=${value}`);
  run('cmake', ['-S', root, '-B', out, ...define], { what: `prebuilds: cmake of ${target}` });
  const threads = String(availableParallelism());
  run('cmake', ['--build', out, '--target', 'octconv', '--parallel', threads], { what: `prebuilds: ${target}` });
  const to = join(root, 'prebuilds', folder);
  mkdirSync(to, { recursive: true });
  const file = join(to, `node.napi.${libc}.node`);
  rmSync(file, { force: true }); // a process may run the old one
  copyFileSync(join(out, 'Release', 'octconv.node'), file);
  console.log(`prebuilds: ${file.slice(root.length + 1)}`);
}

main(() => {
  const zig = fetchZig();
  if (process.argv[2] === 'fetch') return;
  const wanted = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(targets);
  const unknown = wanted.find((target) => !Object.hasOwn(targets, target));
  if (unknown) throw new ToolError(`prebuilds: ${unknown}, wanted some of ${Object.keys(targets).join(', ')}`);
  for (const target of wanted) build(zig, target);
});
