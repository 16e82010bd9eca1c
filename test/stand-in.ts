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
 * Workers with this code, one after the other in one process, which has no other user of the driver. A call of each
 * fails: of the calls that such a worker makes one of the first or of the last `ends`. What each said, and left.
 */
export async function workerLives(work: string, ends: number, settings: Env = {}): Promise<WorkerLife[]> {
  const code = `
    import { readFileSync } from 'node:fs';
    import { Worker } from 'node:worker_threads';
    const url = new URL('data:text/javascript,' + encodeURIComponent(${JSON.stringify(work)}));
    let changes = 0;
    const life = (n) => new Promise((resolve, reject) => {
      process.env.OCTCONV_STAND_IN_FAIL = n + ':999:' + changes++;
      let said;
      new Worker(url, { execArgv: [] }).on('message', (text) => { said = text; }).on('error', reject)
        .on('exit', (code) => resolve({ code, said }));
    });
    // The first call of the next life writes it.
    const reported = () => JSON.parse(readFileSync(process.env.OCTCONV_STAND_IN_REPORT, 'utf8'));
    const lives = [await life(0)];
    let calls = Infinity;
    for (let n = 1; n <= calls; n++) {
      if (n > ${ends} && n <= calls - ${ends}) continue;
      lives.push(await life(n));
      Object.assign(lives.at(-2), reported());
      ({ calls } = lives[0]);
    }
    await life(0);
    Object.assign(lives.at(-1), reported());
    console.log(JSON.stringify(lives.slice(1)));`;
  return JSON.parse(await node(['--input-type=module', '-e', code], settings));
}

export interface Listed {
  readonly devices: { name: string; about: string; chosen: boolean; why: string }[];
  /** Of each device that was asked for: what is said to an op, and to a model. */
  readonly said: Readonly<Record<string, string[]>>;
}

/** What is listed, and what is said when these devices are asked for. */
export async function listed(names: string[], settings: Env): Promise<Listed> {
  const code = `
    const { createModel, devices, ops, Tensor } = await import(${dist()});
    const refusal = async (f) => {
      try {
        await f();
        return 'nothing was refused';
      } catch (error) {
        return error.message;
      }
    };
    const x = Tensor.zeros('f32', [1, 1, 1, 1]);
    const said = {};
    for (const device of ${JSON.stringify(names)})
      said[device] = [
        await refusal(() => ops.relu(x, { device })),
        await refusal(() => createModel('resnet-26', { width: 8 }, { device })),
      ];
    console.log(JSON.stringify({ devices: devices().devices, said }));`;
  return JSON.parse(await node(['--input-type=module', '-e', code], settings));
}

/** A module of the built package, for code that is not compiled. */
export const dist = (file = 'index.js') => JSON.stringify(new URL(`../dist/${file}`, import.meta.url).href);
