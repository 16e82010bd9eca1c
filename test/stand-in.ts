/**
 * Node processes on the stand-ins for the CUDA driver, cuDNN and NVML (native/test/cuda): the addon and the libraries
 * are chosen when a process starts.
 */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect } from 'chai';
import { nativeFile } from '../lib/native.js';
import { skip } from './skip.js';

export type Env = Record<string, string>;

const built = join(nativeFile, '../../test');
export const standIns = {
  OCTCONV_NATIVE: join(built, 'octconv.node'),
  OCTCONV_CUDA_DRIVER: join(built, 'libcuda.so.1'),
  OCTCONV_CUDNN: join(built, 'libcudnn.so.9'),
  OCTCONV_NVML: join(built, 'libnvidia-ml.so.1'),
};
export const path = (file: string) => fileURLToPath(new URL(file, import.meta.url));

/** What the driver holds at the end of a process. */
export const nothing = {
  contexts: 0,
  modules: 0,
  streams: 0,
  events: 0,
  graphs: 0,
  executables: 0,
  allocations: 0,
  pinned: 0,
  cudnn: 0,
};

/** A folder for the tests of a suite. */
export let folder: string;
let reports = 0;

/** For a suite: without a build its tests are skipped. */
export function useStandIns(): void {
  before(async function () {
    if (!Object.values(standIns).every(existsSync)) skip(this, 'build');
    folder = await mkdtemp(join(tmpdir(), 'octconv-stand-in-'));
  });
  after(async () => {
    if (folder) await rm(folder, { recursive: true, force: true });
  });
}

/** Runs node with the stand-ins; what it printed, and that nothing was left and no call refused. */
export async function node(args: string[], settings: Env = {}): Promise<string> {
  const report = join(folder, `${reports++}.json`);
  const env = {
    ...process.env,
    ...standIns,
    OCTCONV_STAND_IN_REPORT: report,
    OCTCONV_STAND_IN_FAIL: '0:0', // to change a variable is safe while the driver reads it, to add one is not
    ...settings,
  };
  const { stdout } = await promisify(execFile)(process.execPath, args, { env, timeout: 240_000, maxBuffer: 2 ** 26 });
  if (existsSync(report)) {
    const { errors, live, spins } = JSON.parse(await readFile(report, 'utf8'));
    expect(errors).to.equal('');
    expect(live).to.deep.equal(nothing);
    expect(spins).to.equal(0);
  }
  return stdout;
}

/** What a task of a file prints as JSON. */
export const taskOf = async <T>(file: string, task: string, argument: unknown, settings: Env = {}): Promise<T> =>
  JSON.parse(await node(['--import=tsx', path(file), task, JSON.stringify(argument)], settings));

export interface WorkerLife {
  readonly code: number;
  readonly said: string;
  /** The call that failed. */
  readonly failed: string;
  readonly errors: string;
  readonly live: object;
}

/**
 * Workers with this code, one after the other in one process: the n-th call that the n-th of them makes fails. What each
 * said, and left. As the only user of the driver it makes all calls, from the first to the last.
 */
export async function workerLives(work: string, settings: Env = {}): Promise<WorkerLife[]> {
  const code = `
    import { readFileSync } from 'node:fs';
    import { Worker } from 'node:worker_threads';
    const url = new URL('data:text/javascript,' + encodeURIComponent(${JSON.stringify(work)}));
    const run = () => new Promise((resolve, reject) => {
      let said;
      new Worker(url, { execArgv: [] }).on('message', (text) => { said = text; }).on('error', reject)
        .on('exit', (code) => resolve({ code, said }));
    });
    const lives = [];
    for (let n = 1; n < 1000; n++) {
      process.env.OCTCONV_STAND_IN_FAIL = n + ':999';
      lives.push(await run());
      if (n === 1) continue;
      // The first call of this life has written what the one before left.
      const report = JSON.parse(readFileSync(process.env.OCTCONV_STAND_IN_REPORT, 'utf8'));
      Object.assign(lives.at(-2), report);
      if (!report.failed) break;
    }
    console.log(JSON.stringify(lives.slice(0, -1)));`;
  return JSON.parse(await node(['--input-type=module', '-e', code], settings));
}

/** The built package, for code that is not compiled. */
export const dist = JSON.stringify(new URL('../dist/index.js', import.meta.url).href);
