// What npm packs works for somebody else: installed into an empty folder with no install script, from its prebuild.
import { expect } from 'chai';
import { execFileSync, spawnSync } from 'node:child_process';
import {
  copyFileSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));

// npm tells its children about the package that it runs for, and they would install into that one.
const env = Object.fromEntries(
  Object.entries(process.env).filter(([name]) => !/^(npm_|OCTCONV_|NODE_OPTIONS$)/.test(name)),
);

describe('package @slow', function () {
  this.timeout(600_000);
  let folder: string;
  let tarball: string;
  const inFolder = (program: string, ...args: string[]) =>
    execFileSync(program, args, { cwd: folder, env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
  const installed = (...path: string[]) => join(folder, 'node_modules/octconv', ...path);

  before(() => {
    folder = realpathSync(mkdtempSync(join(tmpdir(), 'octconv-package-')));
    execFileSync('npm', ['pack', '--ignore-scripts=false', '--pack-destination', folder], {
      cwd: root,
      env,
      stdio: 'pipe',
    });
    writeFileSync(join(folder, 'package.json'), JSON.stringify({ name: 'consumer', private: true, type: 'module' }));
    tarball = join(folder, readdirSync(folder).find((name) => name.endsWith('.tgz'))!);
    inFolder('npm', 'install', tarball, '--ignore-scripts', '--prefer-offline', '--no-audit', '--no-fund');
    copyFileSync(join(root, 'test/images/cat.jpg'), join(folder, 'cat.jpg'));
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  it('holds the compiled library, the prebuild and the models, and of the sources what is not compiled', () => {
    expect(readdirSync(installed())).to.have.members([
      'LICENSE',
      'README.md',
      'dist',
      'lib',
      'models',
      'package.json',
      'prebuilds',
      'schemas',
    ]);
    // The other ones are there where tools/prebuilds.mjs has made them.
    expect(readdirSync(installed('prebuilds', `linux-${process.arch}`))).to.include('node.napi.glibc.node');
    expect(readdirSync(installed('models'))).to.have.members([
      'camera-motion-oct-i3d-26-a50',
      'cifar10-oct-resnet-26-a50',
    ]);
    expect(readdirSync(installed('lib'), { recursive: true })).to.have.members([
      'bench',
      'bench/mlserver.py',
      'service',
      'service/page',
      'service/page/index.html',
      'service/page/page.css',
      'service/page/page.js',
    ]);
    const dist = readdirSync(installed('dist'), { recursive: true, encoding: 'utf8' });
    expect(dist.filter((file) => file.includes('.') && !/\.(js|d\.ts)$/.test(file))).to.be.empty;
  });

  it('is below 12 MB, and found right by publint and attw', () => {
    expect(statSync(tarball).size).to.be.below(12e6);
    const checked = (name: string, ...args: string[]) =>
      inFolder(process.execPath, join(root, 'node_modules', name), ...args, tarball);
    expect(checked('publint/src/cli.js', '--strict')).to.include('All good!');
    // There is no CommonJS: `require` loads the modules, since Node 20.19. The exit code tells of problems.
    checked('@arethetypeswrong/cli/dist/index.js', '--profile', 'esm-only');
  });

  it('installs only what it needs to run', () => {
    const { devDependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
    const present = Object.keys(
      JSON.parse(readFileSync(join(folder, 'node_modules/.package-lock.json'), 'utf8')).packages,
    );
    const needed = ['@opentelemetry/api']; // by prom-client
    const others = Object.keys(devDependencies).filter((name) => !needed.includes(name));
    for (const name of others) expect(present).to.not.include(`node_modules/${name}`);
  });

  it('classifies a photograph from the command line', () => {
    expect(inFolder('npx', '--no-install', 'octconv', 'classify', 'cat.jpg')).to.match(/cat/);
    const answer = JSON.parse(inFolder('npx', '--no-install', 'octconv', 'classify', 'cat.jpg', '--json'));
    expect(JSON.stringify(answer)).to.include('"cat"');
  });

  it('loads the prebuild', () => {
    expect(inFolder('npx', '--no-install', 'octconv', 'devices')).to.include(installed('prebuilds'));
  });

  it('type-checks and runs a small strict consumer', () => {
    writeFileSync(
      join(folder, 'consumer.ts'),
      `import { createModel, ops, Tensor, tensor } from 'octconv';

       using model = createModel('oct-resnet-26', { alpha: 0.5, width: 8, classes: 10, stem: 'cifar', seed: 1 }, { threads: 1 });
       const y = await model.run(Tensor.zeros('f32', [1, 32, 32, 3]));
       const shape: readonly number[] = y.shape;
       console.log(shape.join('x'));
       const z: Tensor<'f32', readonly [2, 3]> = await ops.relu(tensor('f32', [2, 3], new Float32Array([-1, 0, 1, -2, 0, 2])));
       console.log(z.data.join());
       // @ts-expect-error a network is called by its name
       export const wrong = () => createModel(26);
      `.replace(/^ {7}/gm, ''),
    );
    writeFileSync(
      join(folder, 'tsconfig.json'),
      JSON.stringify({
        compilerOptions: {
          target: 'es2023',
          lib: ['es2023', 'esnext.disposable'],
          module: 'nodenext',
          types: ['node'],
          strict: true,
          exactOptionalPropertyTypes: true,
          noUncheckedIndexedAccess: true,
          skipLibCheck: false,
        },
        files: ['consumer.ts'],
      }),
    );
    symlinkSync(join(root, 'node_modules/@types'), join(folder, 'node_modules/@types'));
    for (const typescript of ['typescript-5.7', 'typescript']) {
      rmSync(join(folder, 'consumer.js'), { force: true });
      inFolder(process.execPath, join(root, 'node_modules', typescript, 'bin/tsc'));
      expect(inFolder(process.execPath, 'consumer.js'), typescript).to.equal('1x10\n0,0,1,0,0,2\n');
    }
  });

  it('is what `require` gives, and works in a thread', () => {
    writeFileSync(
      join(folder, 'thread.cjs'),
      `const { isMainThread, parentPort, Worker } = require('node:worker_threads');
       const { classify, loadModel } = require('octconv');
       async function main() {
         const model = await loadModel('node_modules/octconv/models/cifar10-oct-resnet-26-a50');
         const labels = [];
         for await (const { top } of classify(model, 'cat.jpg')) labels.push(top[0].label);
         model.dispose();
         return labels.join();
       }
       if (isMainThread) {
         new Worker(__filename).on('message', async (label) => console.log(label, await main()));
       } else main().then((label) => parentPort.postMessage(label));
      `.replace(/^ {7}/gm, ''),
    );
    expect(inFolder(process.execPath, 'thread.cjs')).to.equal('cat cat\n');
  });

  it('says which packages a part wants that is not installed', () => {
    writeFileSync(join(folder, 'parts.js'), `for (const part of process.argv.slice(2)) await import(part);`);
    expect(
      inFolder(process.execPath, 'parts.js', 'octconv', 'octconv/client', 'octconv/server', 'octconv/service'),
    ).to.equal('');
    const { status, stderr } = spawnSync('npx', ['--no-install', 'octconv', 'worker', 'x'], {
      cwd: folder,
      env,
      encoding: 'utf8',
    });
    expect([status, stderr]).to.deep.equal([
      1,
      'octconv: queue: the packages of NATS are not installed: npm install @nats-io/transport-node @nats-io/jetstream @nats-io/obj\n',
    ]);
  });
});
