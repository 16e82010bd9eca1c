// What the tools ask of the machine: programs on the PATH, Debian packages, child processes.
import { spawnSync } from 'node:child_process';
import { accessSync, constants, mkdirSync, rmSync } from 'node:fs';
import { delimiter, dirname, isAbsolute, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** An error whose message is all that the user needs to see. */
export class ToolError extends Error {}

/** Runs the body of a tool; a ToolError ends it with one line and exit code 1. */
export async function main(body) {
  try {
    await body();
  } catch (error) {
    if (!(error instanceof ToolError)) throw error;
    console.error(error.message);
    process.exitCode = 1;
  }
}

/** The full path of a program, or undefined. */
export function which(program) {
  const folders = isAbsolute(program) ? [''] : (process.env.PATH ?? '').split(delimiter);
  for (const folder of folders) {
    const path = join(folder, program);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {}
  }
  return undefined;
}

/** Runs a program in the repository with our terminal, and throws a ToolError if it fails. */
export function run(program, args, { env = process.env, what = program } = {}) {
  const { status, signal, error } = spawnSync(program, args, { cwd: root, env, stdio: 'inherit' });
  if (error) throw new ToolError(`${what}: ${error.message}`);
  if (status !== 0) throw new ToolError(`${what}: ended with ${signal ?? `exit code ${status}`}`);
}

/** What a program printed, without the last newline, or undefined if it failed. */
export function outputOf(program, args) {
  const { status, stdout } = spawnSync(program, args, { cwd: root, encoding: 'utf8' });
  return status === 0 ? stdout.trimEnd() : undefined;
}

/** Unpacks a package of npm into a folder, without what it depends on. */
export function fetchPackage(name, folder) {
  mkdirSync(folder, { recursive: true });
  const file = outputOf('npm', ['pack', '--silent', '--pack-destination', folder, name]);
  if (!file) throw new ToolError(`npm pack ${name}: failed`);
  const unpack = ['--strip-components=1', '--no-same-owner', '-C', folder];
  run('tar', ['-xzf', join(folder, file), ...unpack], { what: `tar of ${name}` });
  rmSync(join(folder, file));
}

/** Installs Debian packages as root or with sudo; where that is not possible, says in one line what to do. */
export function installPackages(packages, why) {
  const install = `apt-get install -y --no-install-recommends ${packages.join(' ')}`;
  if (!which('apt-get')) {
    throw new ToolError(`setup: ${why}: install what your system calls ${packages.join(', ')} and run this again`);
  }
  const isRoot = process.getuid() === 0;
  if (!isRoot && outputOf('sudo', ['-n', 'true']) === undefined) {
    throw new ToolError(`setup: ${why}; run:  sudo apt-get update && sudo ${install}`);
  }
  console.log(`setup: ${why}; installing ${packages.join(', ')}`);
  const apt = (...args) => {
    const command = [
      'env',
      'DEBIAN_FRONTEND=noninteractive',
      'apt-get',
      '-q',
      '-o',
      'DPkg::Lock::Timeout=300',
      ...args,
    ];
    if (!isRoot) command.unshift('sudo', '-n');
    run(command[0], command.slice(1), { what: `setup: apt-get ${args[0]}` });
  };
  apt('update');
  apt('install', '-y', '--no-install-recommends', ...packages);
}
