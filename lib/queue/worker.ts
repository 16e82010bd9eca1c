/** A worker: takes jobs of a queue, lets a service do them, and gives each its result. */
import { EventEmitter } from 'node:events';
import { realpath } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { OctconvError, show } from '../error.js';
import type { VideoSource } from '../input/video.js';
import { checkOptions, type Known } from '../options.js';
import { type Code, codeOf, ServiceError } from '../service/errors.js';
import type { Service } from '../service/service.js';
import type { Job, Result, WorkSource } from './jobs.js';

export interface WorkerOptions {
  /** Jobs of a model that are worked on at a time; default 16. */
  readonly concurrency?: number | undefined;
  /** After so many deliveries a job that has no result is dead; default 5. */
  readonly tries?: number | undefined;
  /** What URLs of jobs may begin with, such as `https://pictures.example/` or `file:///data/`; default none. */
  readonly allow?: readonly string[] | undefined;
}

const workerOptions = { concurrency: true, tries: true, allow: true } satisfies Known<WorkerOptions>;

export interface WorkerEvents {
  /** A job has its result. */
  done: [job: Job, result: Result];
  /** A job is given back, to be tried again. */
  retried: [job: Job, error: Error];
  dead: [job: Job, error: Error];
}

/** Faults of a job itself: it would fail again. */
const hopeless: ReadonlySet<Code> = new Set(['invalid', 'forbidden', 'tooLarge', 'notFound']);

/** Milliseconds until a failed job is tried again: the first time, and at most, doubled each time. */
const [firstPause, longestPause] = [500, 60_000];

export class Worker extends EventEmitter<WorkerEvents> {
  readonly #options: Required<{ [K in keyof WorkerOptions]: NonNullable<WorkerOptions[K]> }>;
  readonly #stop = new AbortController();
  /** Aborts jobs that take longer than there is time for when it closes. */
  readonly #end = new AbortController();
  readonly #running: Promise<void>;
  #inFlight = 0;

  /**
   * Begins to work.
   * @throws OctconvError for options that make no sense.
   */
  constructor(
    readonly service: Service,
    readonly sources: readonly WorkSource[],
    options: WorkerOptions = {},
  ) {
    super();
    checkOptions('worker', options, workerOptions);
    const { concurrency = 16, tries = 5, allow = [] } = options;
    for (const [name, value] of Object.entries({ concurrency, tries }))
      if (!Number.isInteger(value) || value < 1)
        throw new OctconvError(`worker: ${name}: ${show(value)}, wanted a positive integer`);
    for (const prefix of allow)
      if (!/^(https?:\/\/[^/]+\/|file:\/\/\/)/.test(prefix))
        throw new OctconvError(`worker: allow: ${show(prefix)}, wanted https://HOST/, http://HOST/ or file:///`);
    this.#options = { concurrency, tries, allow };
    this.#running = Promise.all(sources.map((source) => this.#work(source))).then(() => undefined);
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  /** Takes jobs as long as there is room. */
  async #work(source: WorkSource): Promise<void> {
    const { signal } = this.#stop;
    const open = new Set<Promise<void>>();
    while (!signal.aborted) {
      const room = this.#options.concurrency - open.size;
      for await (const job of source.take(room, signal)) {
        this.#inFlight++;
        const one = this.#do(job, source.ackWait).finally(() => {
          this.#inFlight--;
          open.delete(one);
        });
        open.add(one);
      }
      if (open.size >= this.#options.concurrency) await Promise.race(open);
    }
    await Promise.all(open);
    await source.close();
  }

  /** Does not reject: a job that nothing can be said of comes again. */
  async #do(job: Job, ackWait: number): Promise<void> {
    const alive = setInterval(() => job.working(), ackWait / 3);
    try {
      // Another worker may have done it, and have been too slow to say so.
      if (job.delivery > 1 && (await job.isDone())) await job.drop();
      else await this.#answer(job);
    } catch (error) {
      this.emit('retried', job, error as Error); // the queue did not take what it was told
    } finally {
      clearInterval(alive);
    }
  }

  async #answer(job: Job): Promise<void> {
    let result: Result;
    try {
      if (job.delivery > this.#options.tries)
        throw new ServiceError('internal', `was given to workers ${job.delivery - 1} times, and none had a result`);
      result = await this.#resultOf(job);
    } catch (error) {
      return this.#failed(job, error as Error);
    }
    await job.done(result);
    this.emit('done', job, result);
  }

  /** A full queue of the service is no fault of a job: it waits here. */
  async #resultOf(job: Job): Promise<Result> {
    const { id, model, options } = job;
    const { signal } = this.#end;
    for (;;) {
      try {
        const source = await this.#allowed(await job.input(signal), signal);
        const { version, top, milliseconds } = await this.service.classify(model, source, { ...options, signal });
        return { id, model, version, top: top[0] ?? [], milliseconds };
      } catch (error) {
        if (codeOf(error) !== 'overloaded') throw error;
        await sleep(1000 * ((error as ServiceError).retryAfter ?? 1), undefined, { signal });
      }
    }
  }

  async #failed(job: Job, error: Error): Promise<void> {
    const { id, model, delivery } = job;
    const code = this.#end.signal.aborted ? 'cancelled' : codeOf(error);
    const left = this.#options.tries - delivery;
    if (code === 'cancelled' || (!hopeless.has(code) && left > 0)) {
      const { retryAfter } = error as Partial<ServiceError>;
      const pause = Math.min(longestPause, firstPause * 2 ** (delivery - 1));
      job.retry(code === 'cancelled' ? 0 : retryAfter === undefined ? pause : 1000 * retryAfter);
      this.emit('retried', job, error);
      return;
    }
    if (await job.isDone()) return job.drop(); // by another worker, which has removed its file
    await job.dead({ id, model, code, error: error.message });
    this.emit('dead', job, error);
  }

  /** What may be read. */
  async #allowed(source: VideoSource, signal: AbortSignal): Promise<VideoSource> {
    if (!(source instanceof URL)) return source;
    const { allow } = this.#options;
    const refused = () => {
      const wanted = allow.length ? `one that begins with ${allow.join(' or ')}` : 'bytes: no URL is allowed';
      return new ServiceError('forbidden', `URL ${show(source.href)}, wanted ${wanted}`);
    };
    if (source.protocol === 'file:') {
      const path = await realpath(fileURLToPath(source)).catch(() => {
        throw refused();
      });
      for (const prefix of allow.filter((prefix) => prefix.startsWith('file:'))) {
        const folder = await realpath(fileURLToPath(prefix)).catch(() => undefined);
        if (folder !== undefined && path.startsWith(`${folder}/`)) return pathToFileURL(path);
      }
      throw refused();
    }
    if (source.username || !allow.some((prefix) => source.href.startsWith(prefix))) throw refused();
    return fetched(source, signal);
  }

  /**
   * Takes no more jobs, and ends those that it has; after so many milliseconds it gives them back. Resolves when the
   * queue knows.
   */
  async close(milliseconds = 30_000): Promise<void> {
    this.#stop.abort();
    const late = setTimeout(() => this.#end.abort(), milliseconds);
    await this.#running.finally(() => clearTimeout(late));
  }
}

/** The bytes that a URL has. What the server says of them is not followed to others. */
async function fetched(url: URL, signal: AbortSignal): Promise<VideoSource> {
  const answer = await fetch(url, { redirect: 'error', signal }).catch((error: Error) => {
    signal.throwIfAborted();
    throw new ServiceError(
      'unavailable',
      `${url.href}: ${(error.cause as Error | undefined)?.message ?? error.message}`,
    );
  });
  if (answer.ok && answer.body) return answer.body as unknown as AsyncIterable<Uint8Array>;
  await answer.body?.cancel();
  const code = answer.status >= 500 || answer.status === 429 ? 'unavailable' : 'invalid';
  throw new ServiceError(code, `${url.href}: status ${answer.status}`);
}
