/**
 * The engine in a process of its own: a crash of native code costs the batches in flight, which fail with an error of
 * their own; the process is started again, later each time until it has run for a while.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { extname } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { DType } from '../dtype.js';
import { OctconvError } from '../error.js';
import { type Matrix, type Shape, type Tensor, tensorOfBytes } from '../tensor.js';
import type { About, Engine, EngineOptions } from './engine.js';
import { type Code, ServiceError } from './errors.js';
import { stampOf } from './repository.js';

/** A tensor as it goes from process to process. */
export interface Sent {
  readonly dtype: DType;
  readonly shape: Shape;
  readonly data: Uint8Array<ArrayBuffer>;
}

/** What is asked of the process, in the order of `id`. */
export type Ask =
  | { readonly id: number; readonly open: string; readonly options: EngineOptions }
  | { readonly id: number; readonly x: Sent };

export type Answer =
  | { readonly id: number; readonly about: About }
  | { readonly id: number; readonly y: Sent }
  | { readonly id: number; readonly code: Code; readonly message: string };

export function send({ dtype, shape, data }: Tensor): Sent {
  return { dtype, shape, data: new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength) };
}

export const received = ({ dtype, shape, data }: Sent): Tensor => tensorOfBytes(dtype, shape, data);

/** Milliseconds until a process that ended is started again: the first time, and at most, doubled each time. */
const [firstPause, longestPause] = [100, 10_000];
/** A process that was there for so many milliseconds ran well. */
const wellAfter = 60_000;

/** @throws OctconvError as `openEngine` does, and if the process ends meanwhile. */
export async function isolate(
  folder: string,
  options: EngineOptions,
  /** Is told why the process has ended, and why it could not be started again. */
  ended: (why: string) => void,
): Promise<Engine> {
  const supervisor = new Supervisor(folder, options, await stampOf(folder), ended);
  const about = await supervisor.start();
  return {
    about,
    run: (x) => supervisor.run(x),
    close: () => supervisor.close(),
  };
}

interface Waiting {
  resolve(answer: Answer): void;
  reject(error: Error): void;
}

/** A process, and what waits for its answers. */
class Supervisor {
  #child: ChildProcess | undefined;
  readonly #waiting = new Map<number, Waiting>();
  #next = 0;
  /** When the next start has ended, well or not. */
  #ready: Promise<void> = Promise.resolve();
  /** Starts since it last ran well. */
  #starts = 0;
  #started = 0;
  /** Whether the model is loaded. */
  #running = false;
  readonly #stop = new AbortController();
  #closed: Promise<void> | undefined;

  constructor(
    readonly folder: string,
    readonly options: EngineOptions,
    /** Of the files that it was made of: another start must not make another model of it. */
    readonly stamp: string,
    readonly ended: (why: string) => void,
  ) {}

  async start(): Promise<About> {
    const child = fork(fileURLToPath(new URL(`./engine-child${extname(import.meta.url)}`, import.meta.url)), [], {
      serialization: 'advanced',
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    this.#child = child;
    this.#started = performance.now();
    child.on('message', (answer: Answer) => this.#answered(answer));
    child.on('error', (error) => this.#ended(child, error.message)); // it could not be started, or be told
    child.once('disconnect', () => this.#ended(child, 'its connection has ended'));
    child.once('exit', (code, signal) => this.#ended(child, signal ?? `exit code ${code}`));
    try {
      const answer = await this.#ask({ open: this.folder, options: this.options });
      this.#running = true;
      return (answer as Extract<Answer, { about: About }>).about;
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
  }

  /** `x` may be changed as soon as this returns. A batch that was begun is awaited: the process does not stop it. */
  async run(x: Tensor<'f32' | 'u8'>): Promise<Tensor<'f32', Matrix>> {
    const answer = await (this.#running ? this.#ask({ x: send(x) }) : this.#later(x.keep()));
    return received((answer as Extract<Answer, { y: Sent }>).y) as Tensor<'f32', Matrix>;
  }

  async #later(x: Tensor<'f32' | 'u8'>): Promise<Answer> {
    await this.#ready;
    return this.#ask({ x: send(x) });
  }

  #ask(what: { open: string; options: EngineOptions } | { x: Sent }): Promise<Answer> {
    const id = this.#next++;
    return new Promise<Answer>((resolve, reject) => {
      const child = this.#child;
      if (!child?.connected) return reject(new ServiceError('unavailable', 'the process of the model has ended'));
      this.#waiting.set(id, { resolve, reject });
      child.send({ ...what, id } satisfies Ask, (error) => {
        if (error) this.#ended(child, error.message);
      });
    });
  }

  #answered(answer: Answer): void {
    const waiting = this.#waiting.get(answer.id);
    this.#waiting.delete(answer.id);
    if (!('code' in answer)) waiting?.resolve(answer);
    else if (answer.code === 'invalid') waiting?.reject(new OctconvError(answer.message));
    else waiting?.reject(new ServiceError(answer.code, answer.message));
  }

  #ended(child: ChildProcess, how: string): void {
    if (child !== this.#child) return;
    this.#child = undefined;
    if (!this.#closed) child.kill('SIGKILL');
    const wasRunning = this.#running;
    this.#running = false;
    // Whoever starts it is told; one that ran is started again before anybody asks it.
    if (wasRunning && !this.#closed) {
      const tell = (code: number | null, signal: string | null) =>
        this.ended(`ended: ${signal ?? `exit code ${code}`}`);
      const { exitCode, signalCode } = child;
      if (exitCode === null && signalCode === null) child.once('exit', tell);
      else tell(exitCode, signalCode);
      if (performance.now() - this.#started > wellAfter) this.#starts = 0;
      this.#restart();
    }
    const lost = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const { reject } of lost) reject(new ServiceError('unavailable', `the process of the model ended: ${how}`));
  }

  /** Goes on until it runs, or nobody wants it any more. Batches wait for the next start, and fail if it does. */
  #restart(): void {
    this.#ready = this.#startAgain();
    this.#ready.catch((error: Error) => {
      if (this.#closed) return;
      this.ended(error.message);
      this.#restart();
    });
  }

  async #startAgain(): Promise<void> {
    const pause = Math.min(longestPause, firstPause * 2 ** this.#starts++);
    await setTimeout(pause, undefined, { signal: this.#stop.signal });
    const unavailable = (why: string) => new ServiceError('unavailable', `the process of the model: ${why}`);
    if ((await stampOf(this.folder)) !== this.stamp)
      throw unavailable('its files have changed, it must be loaded again');
    await this.start().catch((error: Error) => {
      throw unavailable(error.message);
    });
  }

  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    this.#stop.abort();
    const child = this.#child;
    if (!child) return;
    const ended = once(child, 'exit');
    child.disconnect(); // then it ends by itself
    const given = new AbortController();
    setTimeout(5000, undefined, { signal: given.signal }).then(
      () => child.kill('SIGKILL'),
      () => undefined,
    );
    await ended;
    given.abort();
  }
}
