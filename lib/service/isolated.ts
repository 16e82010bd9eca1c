/**
 * The engine in a process of its own: a crash of native code costs the batches in flight, which fail with an error of
 * their own; the process is started again, later each time until it has run for a while.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { extname } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { arrayFor, type DType, type TypedArrayOf } from '../dtype.js';
import { OctconvError } from '../error.js';
import { orAborted, type RunOptions } from '../plan.js';
import { type Matrix, type Shape, Tensor } from '../tensor.js';
import type { About, Engine, EngineOptions } from './engine.js';
import { type Code, ServiceError } from './errors.js';

/** A tensor as it goes from process to process. */
export interface Sent {
  readonly dtype: DType;
  readonly shape: Shape;
  readonly data: Uint8Array;
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
  return { dtype, shape, data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength) };
}

export function received<D extends DType>({ dtype, shape, data }: Sent): Tensor<D> {
  const ArrayType = arrayFor(dtype);
  const whole = data.byteOffset % ArrayType.BYTES_PER_ELEMENT === 0 ? data : data.slice();
  const elements = new ArrayType(
    whole.buffer as ArrayBuffer,
    whole.byteOffset,
    whole.byteLength / ArrayType.BYTES_PER_ELEMENT,
  );
  return new Tensor(dtype as D, shape, elements as TypedArrayOf<D>);
}

/** Milliseconds until a process that ended is started again, doubled each time; after so long it has run well. */
const [soonest, latest, well] = [100, 10_000, 60_000];

/** @throws OctconvError as `openEngine` does, and if the process ends meanwhile. */
export async function isolate(folder: string, options: EngineOptions): Promise<Engine> {
  const supervisor = new Supervisor(folder, options);
  const about = await supervisor.start();
  return {
    about,
    run: (x, options) => supervisor.run(x, options),
    close: () => supervisor.close(),
  };
}

interface Waiting {
  resolve(answer: Answer): void;
  reject(error: Error): void;
}

/** A process, and what waits for its answers. */
class Supervisor {
  readonly #folder: string;
  readonly #options: EngineOptions;
  #child: ChildProcess | undefined;
  readonly #waiting = new Map<number, Waiting>();
  #next = 0;
  /** When the process can take batches. */
  #ready: Promise<unknown> = Promise.resolve();
  /** Starts since it last ran well. */
  #starts = 0;
  #started = 0;
  /** Whether the model is loaded. */
  #running = false;
  #closed = false;

  constructor(folder: string, options: EngineOptions) {
    this.#folder = folder;
    this.#options = options;
  }

  async start(): Promise<About> {
    const child = fork(fileURLToPath(new URL(`./engine-child${extname(import.meta.url)}`, import.meta.url)), [], {
      serialization: 'advanced',
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    this.#child = child;
    this.#started = performance.now();
    child.on('message', (answer: Answer) => this.#answered(answer));
    child.on('error', (error) => this.#ended(child, error.message)); // it could not be started
    child.once('exit', (code, signal) => this.#ended(child, signal ?? `exit code ${code}`));
    try {
      const answer = await this.#ask({ open: this.#folder, options: this.#options });
      this.#running = true;
      return (answer as Extract<Answer, { about: About }>).about;
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
  }

  /** `x` may be changed as soon as this returns. */
  async run(x: Tensor<'f32' | 'u8'>, { signal }: RunOptions = {}): Promise<Tensor<'f32', Matrix>> {
    const later = async () => {
      const kept = x.keep();
      await this.#ready;
      return this.#ask({ x: send(kept) });
    };
    const answer = await orAborted(this.#running ? this.#ask({ x: send(x) }) : later(), () => undefined, signal);
    return received((answer as Extract<Answer, { y: Sent }>).y) as Tensor<'f32', Matrix>;
  }

  #ask(what: { open: string; options: EngineOptions } | { x: Sent }): Promise<Answer> {
    const id = this.#next++;
    return new Promise<Answer>((resolve, reject) => {
      const child = this.#child;
      if (!child?.connected) return reject(new ServiceError('unavailable', 'the process of the model has ended'));
      this.#waiting.set(id, { resolve, reject });
      child.send({ ...what, id } satisfies Ask, (error) => {
        if (error)
          this.#waiting.get(id)?.reject(new ServiceError('unavailable', `the process of the model: ${error.message}`));
      });
    });
  }

  #answered(answer: Answer): void {
    const waiting = this.#waiting.get(answer.id);
    this.#waiting.delete(answer.id);
    if (!('code' in answer)) waiting?.resolve(answer);
    else
      waiting?.reject(
        answer.code === 'invalid' ? new OctconvError(answer.message) : new ServiceError(answer.code, answer.message),
      );
  }

  #ended(child: ChildProcess, how: string): void {
    if (child !== this.#child) return;
    this.#child = undefined;
    const lost = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const { reject } of lost) reject(new ServiceError('unavailable', `the process of the model ended: ${how}`));
    if (!this.#running) return; // it could not be started: whoever starts it is told
    this.#running = false;
    if (performance.now() - this.#started > well) this.#starts = 0;
    this.#ready = this.#restart();
  }

  /** Goes on until it runs, or nobody wants it any more. */
  async #restart(): Promise<void> {
    while (!this.#closed && !this.#running) {
      await setTimeout(Math.min(latest, soonest * 2 ** this.#starts++));
      if (!this.#closed) await this.start().catch(() => undefined);
    }
  }

  async close(): Promise<void> {
    this.#closed = true;
    const child = this.#child;
    if (!child) return;
    const ended = new Promise((resolve) => child.once('exit', resolve));
    child.disconnect(); // then it ends by itself
    const given = new AbortController();
    const late = setTimeout(5000, undefined, { signal: given.signal }).then(() => child.kill('SIGKILL'));
    late.catch(() => undefined);
    await ended;
    given.abort();
  }
}
