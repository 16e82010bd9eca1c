/** MLServer around onnxruntime, which `bench serve` loads where OCTCONV_PYTHON names a Python that has both. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { onExit } from 'signal-exit';
import { OctconvError } from '../error.js';
import { makeFolder } from '../files/write.js';
import type { InputConfig } from '../input/preprocess.js';
import { freePort } from './port.js';

export interface Found {
  /** Absent where it is left out. */
  readonly python?: string;
  /** Versions, or why it is left out. */
  readonly about: string;
}

export const without = (why: string): string => `without MLServer: ${why}`;

export async function findMlServer(jpeg: boolean, python = process.env.OCTCONV_PYTHON): Promise<Found> {
  if (jpeg) return { about: without('it is loaded with tensors alone') };
  if (!python) return { about: without('OCTCONV_PYTHON names no Python with mlserver and onnxruntime') };
  const code = 'import mlserver, onnxruntime; print(mlserver.__version__, "with onnxruntime", onnxruntime.__version__)';
  try {
    const { stdout } = await promisify(execFile)(python, ['-c', code]);
    return { python, about: `MLServer ${stdout.trim()}` };
  } catch (error) {
    const { stderr, message } = error as Error & { stderr?: string };
    const why = (stderr?.trim() || message).split('\n').at(-1);
    return { about: without(`OCTCONV_PYTHON, wanted a Python with mlserver and onnxruntime: ${why}`) };
  }
}

export interface MlServerJob {
  readonly python: string;
  readonly onnx: string;
  readonly threads: number;
  readonly input: InputConfig;
  /** An empty one, or none yet. */
  readonly folder: string;
}

/** Its documentation gives none, they are to be tried: the most rows of a batch, and seconds until one that is not full. */
const batching = { max_batch_size: 8, max_batch_time: 0.005 };
/** Milliseconds until it serves. */
const patience = 120_000;
const runtime = new URL('../../lib/bench/mlserver.py', import.meta.url);

/** One server with one model; its processes are a group. */
export class MlServer {
  private constructor(
    readonly child: ChildProcess,
    /** Where pictures are sent. */
    readonly url: string,
  ) {}

  /** @throws OctconvError, with the last it said, if it does not serve. */
  static async start({ python, onnx, threads, input, folder }: MlServerJob): Promise<MlServer> {
    const { height, width, scale, mean, std } = input;
    const [http_port, grpc_port] = [await freePort(), await freePort()];
    await makeFolder(folder);
    await copyFile(runtime, join(folder, 'runtime.py'));
    const write = (name: string, value: object) => writeFile(join(folder, name), JSON.stringify(value));
    // With one worker, a process, as it has by default: with none the network keeps its event loop.
    await write('settings.json', { host: '127.0.0.1', http_port, grpc_port, metrics_endpoint: null, debug: false });
    await write('model-settings.json', {
      name: 'model',
      implementation: 'runtime.Runtime',
      ...batching,
      parameters: { uri: onnx, extra: { threads, height, width, scale, mean, std } },
    });
    const child = spawn(python, ['-c', 'from mlserver.cli import main; main()', 'start', '.'], {
      cwd: folder,
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const model = `http://127.0.0.1:${http_port}/v2/models/model`;
    const server = new MlServer(child, `${model}/infer`);
    const forget = onExit(() => server.#kill());
    const ended = once(child, 'close').then(
      () => 'it ended',
      (error: Error) => error.message,
    );
    void ended.then(forget);
    let said = '';
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (text: string) => {
        said = (said + text).slice(-2000);
      });
    const isReady = () =>
      fetch(`${model}/ready`, { signal: AbortSignal.timeout(1000) }).then(
        ({ ok }) => ok,
        () => false,
      );
    const start = performance.now();
    while (!(await isReady())) {
      const why = await Promise.race([ended, sleep(100)]);
      if (why === undefined && performance.now() - start < patience) continue;
      await server.stop();
      const lines = said.trim().split('\n');
      const last = lines.findLast((line) => /error/i.test(line)) ?? lines.at(-1);
      throw new OctconvError(`it does not serve: ${why ?? `not in ${patience} ms`}: ${last}`);
    }
    return server;
  }

  /** Kills its processes: nobody waits for its answers any more. */
  async stop(): Promise<void> {
    const { child } = this;
    const isThere = child.pid !== undefined && child.exitCode === null && child.signalCode === null;
    const ended = isThere ? once(child, 'exit') : undefined;
    this.#kill(); // its workers too
    await ended;
  }

  #kill(): void {
    try {
      if (this.child.pid !== undefined) process.kill(-this.child.pid, 'SIGKILL');
    } catch {
      // they have ended
    }
  }
}

/** One picture of bytes: its REST takes no binary tensors, base64 is the shortest that it takes. */
export function mlServerRequest(picture: Uint8Array) {
  const data = [Buffer.from(picture).toString('base64')];
  const input = { name: 'input', datatype: 'BYTES', shape: [1], parameters: { content_type: 'base64' }, data };
  return { headers: { 'content-type': 'application/json' }, body: Buffer.from(JSON.stringify({ inputs: [input] })) };
}
