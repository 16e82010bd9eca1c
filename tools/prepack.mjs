// Fills dist/ and prebuilds/ for npm pack. The prebuild is the addon that was just built, copied and stripped under
// node-gyp-build's name: prebuildify knows only node-gyp, and would build the same file once more through a shim. Those of
// other systems are packed as tools/prebuilds.mjs left them.
import { copyFileSync, existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { buildNative } from './native.mjs';
import { main, root, run } from './system.mjs';

main(() => {
  const addon = buildNative();
  const folder = join(root, 'prebuilds', `${process.platform}-${process.arch}`);
  mkdirSync(folder, { recursive: true });
  for (const file of ['octconv.fatbin', 'octconv.kernels.json']) {
    const built = join(root, 'build', 'Release', file);
    if (existsSync(built)) copyFileSync(built, join(folder, file));
    else rmSync(join(folder, file), { force: true });
  }
  const libc = process.report.getReport().header.glibcVersionRuntime ? 'glibc' : 'musl';
  run('strip', ['--strip-unneeded', '-o', join(folder, `node.napi.${libc}.node`), addon], { what: 'prepack: strip' });

  run(process.execPath, ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.build.json'], { what: 'prepack: tsc' });
  for (const file of readdirSync(join(root, 'dist'), { recursive: true })) {
    const source = join(root, 'lib', file.replace(/\.(d\.ts|js)$/, '.ts'));
    if (/\.(ts|js)$/.test(file) && !existsSync(source)) rmSync(join(root, 'dist', file));
  }
});
