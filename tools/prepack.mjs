// Fills dist/ and prebuilds/ for npm pack. The prebuild is the addon that was just built, copied and stripped under node-gyp-build's
// name: prebuildify knows only node-gyp, and would build the same file once more through a shim.
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { buildNative } from './native.mjs';
import { main, root, run } from './system.mjs';

main(() => {
  const addon = buildNative();
  const folder = join(root, 'prebuilds', `${process.platform}-${process.arch}`);
  rmSync(join(root, 'prebuilds'), { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  run('strip', ['--strip-unneeded', '-o', join(folder, 'node.napi.glibc.node'), addon], { what: 'prepack: strip' });

  rmSync(join(root, 'dist'), { recursive: true, force: true });
  run(process.execPath, ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.build.json'], { what: 'prepack: tsc' });
});
