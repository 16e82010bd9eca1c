/**
 * The engine in a process of its own: a crash of native code costs the batches in flight, which fail with an error of
 * their own; the process is started again, later each time until it has run for a while. One that hangs is killed, and
 * then it is one that has ended.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { extname } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { onAbort } from '../abort.js';
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

/** What is asked of the process; answers have its `id`, a ping has a pong at once. */
export type Ask =
  | 'ping'
  | { readonly id: number; readonly open: string; readonly options: EngineOptions }
  | { readonly id: number; readonly x: Sent };

export type Answer =
  | 'pong'
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

/** When a process hangs, in seconds. Seconds in which this process stands still itself do not count. */
export interface Patience {
  /** Between two looks at it. */
  readonly look: number;
  /** Without a sign of its event loop, on which nothing computes: some 0.1 s are usual, seconds on a busy machine. */
  readonly silent: number;
  /** The same until the model is loaded: it reads files, and drivers of GPUs start on its event loop. */
  readonly loading: number;
  /** In which the model is loaded, however many signs there are. */
  readonly starting: number;
  /**
   * In which none of the runs in flight ends, at least: it is 100 times as long as the largest batch took at warm-up, if
   * that is longer. A run whose input has another size than the model's own may take as long as it does.
   */
  readonly running: number;
  /** Until one that is told to end is killed, and until one that was killed is no longer waited for. */
  readonly closing: number;
}

const usualPatience: Patience = { look: 1, silent: 30, loading: 120, starting: 900, running: 60, closing: 5 };
const timesWarmUp = 100;

export interface IsolateOptions {
  /** Aborts loading. */
  readonly signal?: AbortSignal | undefined;
  /** Is told why the process has ended, and why it could not be started again, each reason once. */
  readonly ended?: ((why: string) => void) | undefined;
  /** Is told whether it runs again: not, for this reason. */
  readonly lost?: ((why: string | undefined) => void) | undefined;
  /** Of tests. */
  readonly patience?: Partial<Patience> | undefined;
}

/** @throws OctconvError as `openEngine` does, and if the process ends or hangs meanwhile. */
export async function isolate(
  folder: string,
  options: EngineOptions,
  { signal, patience, ended = () => undefined, lost = () => undefined }: IsolateOptions = {},
): Promise<Engine> {
  const stamp = await stampOf(folder);
  signal?.throwIfAborted();
  const supervisor = new Supervisor(folder, options, stamp, { ended, lost }, { ...usualPatience, ...patience });
  const forget = onAbort(signal, () => void supervisor.close());
  const about = await supervisor.start().finally(forget);
  return {
    about,
    run: (x) => supervisor.run(x),
    close: () => supervisor.close(),
  };
}

interface Waiting {
  /** Whether it should take as long as at warm-up. */
  readonly usual: boolean;
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
  /** Why it could not be started again. */
  #why: string | undefined;
  /** What is loaded, if it is. */
  #about: About | undefined;
  /** Looks at it. */
  #timer: NodeJS.Timeout | undefined;
  /** Seconds since it has said anything, and in which none of its runs has ended. */
  #silent = 0;
  #stuck = 0;
  /** Whether a ping is not answered. */
  #pinged = false;
  readonly #stop = new AbortController();
  #closed: Promise<void> | undefined;

  constructor(
    readonly folder: string,
    readonly options: EngineOptions,
    /** Of the files that it was made of: another start must not make another model of it. */
    readonly stamp: string,
    readonly told: Required<{ [K in 'ended' | 'lost']: NonNullable<IsolateOptions[K]> }>,
    readonly patience: Patience,
  ) {}

  async start(): Promise<About> {
    const child = fork(fileURLToPath(new URL(`./engine-child${extname(import.meta.url)}`, import.meta.url)), [], {
      serialization: 'advanced',
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    this.#child = child;
    this.#heard();
    this.#stuck = 0;
    this.#timer = setInterval(() => this.#look(child), 1000 * this.patience.look).unref();
    child.on('message', (answer: Answer) => this.#answered(answer));
    child.on('error', (error) => this.#ended(child, error.message)); // it could not be started, or be told
    child.once('disconnect', () => this.#ended(child, 'its connection has ended'));
    child.once('exit', (code, signal) => this.#ended(child, signal ?? `exit code ${code}`));
    try {
      const answer = await this.#ask({ open: this.folder, options: this.options });
      this.#about = (answer as Extract<Answer, { about: About }>).about;
      this.#started = performance.now();
      return this.#about;
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
  }

  /** `x` may be changed as soon as this returns. A batch that was begun is awaited: the process does not stop it. */
  async run(x: Tensor<'f32' | 'u8'>): Promise<Tensor<'f32', Matrix>> {
    const answer = await (this.#about ? this.#ask({ x: send(x) }) : this.#later(x.keep()));
    return received((answer as Extract<Answer, { y: Sent }>).y) as Tensor<'f32', Matrix>;
  }

  async #later(x: Tensor<'f32' | 'u8'>): Promise<Answer> {
    await this.#ready;
    return this.#ask({ x: send(x) });
  }

  #ask(what: { open: string; options: EngineOptions } | { x: Sent }): Promise<Answer> {
    const id = this.#next++;
    const usual = 'x' in what && what.x.shape.slice(1).join() === this.#about?.row.join();
    return new Promise<Answer>((resolve, reject) => {
      const child = this.#child;
      if (!child?.connected) return reject(new ServiceError('unavailable', 'the process of the model has ended'));
      this.#waiting.set(id, { usual, resolve, reject });
      this.#tell(child, { ...what, id });
    });
  }

  #tell(child: ChildProcess, ask: Ask): void {
    child.send(ask, (error) => {
      if (error) this.#ended(child, error.message);
    });
  }

  #heard(): void {
    this.#silent = 0;
    this.#pinged = false;
  }

  /** Kills it if it hangs. */
  #look(child: ChildProcess): void {
    const { look, silent, loading, starting, running } = this.patience;
    const about = this.#about;
    this.#silent += look;
    const mostSilent = about ? silent : loading;
    const all = [...this.#waiting.values()];
    const isBounded = !about || (all.length > 0 && all.every(({ usual }) => usual));
    this.#stuck = isBounded ? this.#stuck + look : 0;
    const warmUp = (about?.batching.milliseconds.at(-1) ?? 0) / 1000;
    const mostStuck = about ? Math.max(running, timesWarmUp * warmUp) : starting;
    const stuck = about ? 'no run has ended' : 'the model has not been loaded';
    if (this.#silent > mostSilent) this.#ended(child, `it has not answered for ${mostSilent} s`, true);
    else if (this.#stuck > mostStuck) this.#ended(child, `${stuck} for ${Math.round(mostStuck)} s`, true);
    else if (!this.#pinged) {
      this.#pinged = true;
      this.#tell(child, 'ping');
    }
  }

  #answered(answer: Answer): void {
    this.#heard();
    if (answer === 'pong') return;
    this.#stuck = 0;
    const waiting = this.#waiting.get(answer.id);
    this.#waiting.delete(answer.id);
    if (!('code' in answer)) waiting?.resolve(answer);
    else if (answer.code === 'invalid') waiting?.reject(new OctconvError(answer.message));
    else waiting?.reject(new ServiceError(answer.code, answer.message));
  }

  #ended(child: ChildProcess, how: string, hangs = false): void {
    if (child !== this.#child) return;
    this.#child = undefined;
    clearInterval(this.#timer);
    if (!this.#closed) child.kill('SIGKILL');
    const wasRunning = this.#about !== undefined;
    this.#about = undefined;
    // Whoever starts it is told; one that ran is started again before anybody asks it.
    if (wasRunning && !this.#closed) {
      const tell = (code: number | null, signal: string | null) =>
        this.told.ended(`ended: ${signal ?? `exit code ${code}`}`);
      const { exitCode, signalCode } = child;
      if (hangs) this.told.ended(`ended: ${how}`);
      else if (exitCode === null && signalCode === null) child.once('exit', tell);
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
    this.#ready.then(
      () => {
        if (this.#why !== undefined) this.told.lost(undefined);
        this.#why = undefined;
      },
      ({ message }: Error) => {
        if (this.#closed) return;
        if (message !== this.#why) {
          this.#why = message;
          this.told.ended(message);
          this.told.lost(message);
        }
        this.#restart();
      },
    );
  }

  async #startAgain(): Promise<void> {
    const pause = Math.min(longestPause, firstPause * 2 ** this.#starts++);
    await setTimeout(pause, undefined, { signal: this.#stop.signal });
    const unavailable = (why: string) => new ServiceError('unavailable', `the process of the model: ${why}`);
    if ((await stampOf(this.folder)) !== this.stamp)
      throw unavailable('its files have changed, it must be loaded again');
    this.#stop.signal.throwIfAborted();
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
    const ended = once(child, 'exit').then(
      () => true,
      () => true, // it was never there
    );
    const given = new AbortController();
    const endsInTime = () =>
      Promise.race([ended, setTimeout(1000 * this.patience.closing, false, { signal: given.signal })]);
    child.disconnect(); // then it ends by itself
    if (!(await endsInTime())) {
      child.kill('SIGKILL');
      await endsInTime();
    }
    given.abort();
  }
}
