// Makes a checkout ready to use: compiler and cmake, node_modules, the native addon, dist/, ffmpeg. What is up to date is
// left alone.
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fetchFfmpeg } from './ffmpeg.mjs';
import { buildNative } from './native.mjs';
import { main, root, run, ToolError } from './system.mjs';

const readJson = (path) => JSON.parse(readFileSync(join(root, path), 'utf8'));

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  const recent = major === 20 ? minor >= 19 : major === 22 ? minor >= 12 : major > 22;
  if (!recent)
    throw new ToolError(`setup: Node ${process.versions.node} found, ${readJson('package.json').engines.node} wanted`);
}

/** Compares what npm says it installed with the lock file. */
function dependenciesAreInstalled() {
  const installedList = 'node_modules/.package-lock.json';
  if (!existsSync(join(root, installedList))) return false;
  const installed = readJson(installedList).packages;
  const wanted = Object.entries(readJson('package-lock.json').packages).filter(([path]) => path !== '');
  return wanted.every(([path, { version, optional }]) => optional || installed[path]?.version === version);
}

function installDependencies() {
  if (dependenciesAreInstalled()) return;
  console.log('setup: installing the npm packages');
  // .npmrc forbids install scripts; the variable is for an npm that is told otherwise.
  const env = { ...process.env, ONNXRUNTIME_NODE_INSTALL: 'skip' };
  run('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund'], { env, what: 'setup: npm ci' });
}

main(() => {
  checkNode();
  installDependencies();
  buildNative();
  fetchFfmpeg();
  run(process.execPath, ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.build.json'], { what: 'setup: tsc' });
});
