/** A worker: takes jobs of a queue, lets a service do them, and gives each its result. */
import { EventEmitter, setMaxListeners } from 'node:events';
import { realpath, stat } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath, pathToFileURL } from 'node:url';
import pLimit from 'p-limit';
import { OctconvError, show } from '../error.js';
import type { VideoSource } from '../input/video.js';
import { checkOptions, type Known } from '../options.js';
import { type Code, codeOf, isTold, ServiceError } from '../service/errors.js';
import type { Service } from '../service/service.js';
import { type Job, QueueGone, type Result, type WorkSource, within } from './jobs.js';

export interface WorkerOptions {
  /** Jobs of a model that are worked on at a time; default 16. */
  readonly concurrency?: number | undefined;
  /** After so many deliveries a job that has no result is dead; default 5. */
  readonly tries?: number | undefined;
  /** Seconds that a job may take, then it is tried again; default 600. */
  readonly timeout?: number | undefined;
  /** Bytes of a job's input that a message or the object store holds; default 256 MiB. */
  readonly maxBytes?: number | undefined;
  /**
   * What URLs of jobs may begin with, such as `https://pictures.example/` or `file:///data/`, up to the end of a folder;
   * default none.
   */
  readonly allow?: readonly string[] | undefined;
}

const workerOptions = {
  concurrency: true,
  tries: true,
  timeout: true,
  maxBytes: true,
  allow: true,
} satisfies Known<WorkerOptions>;

export interface WorkerEvents {
  /** A job has its result, that of another worker if that was faster. */
  done: [job: Job, result: Result];
  /** A job comes again: it is given back, or the queue did not take what it was told. */
  retried: [job: Job, error: Error];
  /** A job has an error for its result, and is in the dead letters. */
  dead: [job: Job, error: Error];
}

/** Faults of a job itself: it would fail again. */
const hopeless: ReadonlySet<Code> = new Set(['invalid', 'forbidden', 'tooLarge', 'notFound']);

/** What is no fault of a job: the service has no room, or the model is away. */
const waits: ReadonlySet<Code> = new Set(['overloaded', 'unavailable']);

/** Milliseconds until a failed job is tried again: the first time, and at most, doubled each time. */
const [firstPause, longestPause] = [500, 60_000];

/** Milliseconds in which a worker that closes gives its jobs back. */
const parting = 2000;

/** Large jobs at a time: one is fetched while another one is computed. */
const largeAtOnce = 2;

export class Worker extends EventEmitter<WorkerEvents> {
  readonly #options: Required<{ [K in keyof WorkerOptions]: NonNullable<WorkerOptions[K]> }>;
  readonly #stop = new AbortController();
  /** Aborts jobs that take longer than there is time for when it closes. */
  readonly #end = new AbortController();
  /** When it has ended. Rejects, after the jobs that it had, if it can take no more: a model or the queue is gone. */
  readonly ended: Promise<void>;
  readonly #large = pLimit(largeAtOnce);
  readonly #works: readonly Promise<void>[];
  /** Why no job can be ended any more. */
  #gone: QueueGone | undefined;
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
    const { concurrency = 16, tries = 5, timeout = 600, maxBytes = 2 ** 28, allow = [] } = options;
    for (const [name, value] of Object.entries({ concurrency, tries, maxBytes }))
      if (!Number.isInteger(value) || value < 1)
        throw new OctconvError(`worker: ${name}: ${show(value)}, wanted a positive integer`);
    if (!(typeof timeout === 'number' && timeout > 0 && timeout < 2 ** 20))
      throw new OctconvError(`worker: timeout: ${show(timeout)}, wanted seconds`);
    this.#options = { concurrency, tries, timeout, maxBytes, allow: allow.map(prefixOf) };
    setMaxListeners(0, this.#end.signal); // one for each job
    this.#works = sources.map((source) => this.#work(source));
    this.ended = Promise.allSettled(this.#works).then((all) => {
      for (const one of all) if (one.status === 'rejected') throw one.reason;
    });
    this.ended.catch(() => undefined); // whoever wants to know asks
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  /** Takes jobs as long as there is room. */
  async #work(source: WorkSource): Promise<void> {
    const { signal } = this.#stop;
    const open = new Set<Promise<void>>();
    try {
      while (!signal.aborted) {
        // Jobs that others could do are not taken meanwhile.
        await this.#admitted(source.model, signal);
        for await (const job of source.take(this.#options.concurrency - open.size, signal)) {
          this.#inFlight++;
          const one = this.#do(job, 1000 * source.ackWait).finally(() => {
            this.#inFlight--;
            open.delete(one);
          });
          open.add(one);
        }
        while (open.size >= this.#options.concurrency) await Promise.race(open);
      }
    } catch (error) {
      if (!signal.aborted) throw error;
    } finally {
      this.#stop.abort(); // without one of its models it does not go on
      await Promise.all(open);
      await source.close();
    }
    if (this.#gone) throw this.#gone;
  }

  /** Waits while the service has no room for a request of a model, or the model is away. */
  async #admitted(model: string, signal: AbortSignal): Promise<void> {
    for (;;) {
      try {
        this.service.checkRoom(model);
        return;
      } catch (error) {
        if (!waits.has(codeOf(error))) throw error;
        await sleep(1000, undefined, { signal });
      }
    }
  }

  /** Does not reject: a job that nothing can be said of comes again. */
  async #do(job: Job, ackWait: number): Promise<void> {
    const alive = setInterval(() => job.working(), ackWait / 3);
    try {
      // Another worker may have done it, and have been too slow to say so.
      if (job.delivery > 1 && (await job.isDone())) await job.drop();
      else await this.#answer(job);
    } catch (error) {
      this.#tell('retried', job, error as Error); // the queue did not take what it was told
      if (!(error instanceof QueueGone)) return;
      this.#gone = error;
      this.#stop.abort();
    } finally {
      clearInterval(alive);
    }
  }

  async #answer(job: Job): Promise<void> {
    let result: Result;
    try {
      if (job.delivery > this.#options.tries)
        throw new ServiceError('internal', `was given to workers ${job.delivery - 1} times, and none had a result`);
      result = await (job.isLarge ? this.#large(() => this.#resultOf(job)) : this.#resultOf(job));
    } catch (error) {
      return this.#failed(job, error as Error);
    }
    await this.#finish(job, result);
  }

  /** Tells what the id has come to, by this worker or by one that was faster. */
  async #finish(job: Job, result: Result, error?: Error): Promise<void> {
    const kept = await job.done(result);
    if (kept.error === undefined) this.#tell('done', job, kept);
    else this.#tell('dead', job, error ?? new ServiceError(kept.code, kept.error));
  }

  /** In time, unless this worker ends before. */
  async #resultOf(job: Job): Promise<Result> {
    const { timeout } = this.#options;
    const { signal: end } = this.#end;
    const stop = new AbortController();
    const abort = () => stop.abort(end.reason);
    const late = setTimeout(
      () => stop.abort(new ServiceError('unavailable', `has no result after ${timeout} s`)),
      1000 * timeout,
    );
    end.addEventListener('abort', abort);
    if (end.aborted) abort();
    try {
      return await this.#classified(job, stop.signal);
    } catch (error) {
      throw stop.signal.aborted ? stop.signal.reason : error;
    } finally {
      clearTimeout(late);
      end.removeEventListener('abort', abort);
      stop.abort(); // what has not been read is not read any more
    }
  }

  /** A full queue of the service, or a model that is away, is no fault of a job: it waits here. */
  async #classified(job: Job, signal: AbortSignal): Promise<Result> {
    const { id, model, options } = job;
    for (;;) {
      try {
        await this.#admitted(model, signal);
        const source = await this.#allowed(await job.input(this.#options.maxBytes, signal), signal);
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
      this.#tell('retried', job, error);
      return;
    }
    const message = isTold(error) ? error.message : 'internal error';
    await this.#finish(job, { id, model, code, error: message }, error);
  }

  /** What a listener throws is not the job's. */
  #tell<E extends keyof WorkerEvents>(event: E, ...args: WorkerEvents[E]): void {
    process.nextTick(() => (this as EventEmitter).emit(event, ...args));
  }

  /** What may be read. */
  async #allowed(source: VideoSource, signal: AbortSignal): Promise<VideoSource> {
    if (!(source instanceof URL)) return source;
    const { allow } = this.#options;
    const refused = () => {
      const wanted = allow.length ? `one that begins with ${allow.join(' or ')}` : 'bytes: no URL is allowed';
      return new ServiceError('forbidden', `URL ${show(source.href)}, wanted ${wanted}`);
    };
    // Some servers take these for a / and a \.
    if (/%2f|%5c/i.test(source.pathname) || source.username || source.password) throw refused();
    if (source.protocol !== 'file:') {
      if (!allow.some((prefix) => source.href.startsWith(prefix))) throw refused();
      return bytesAt(source, signal);
    }
    if (source.host) throw refused();
    const file = await fileIn(
      allow.filter((prefix) => prefix.startsWith('file:')),
      source,
    );
    if (file) return file;
    throw refused();
  }

  /**
   * Takes no more jobs, and ends those that it has; after so many milliseconds it gives them back. Resolves when the
   * queue knows, or does not answer: then others get the jobs when their time is over.
   */
  async close(milliseconds = 30_000): Promise<void> {
    this.#stop.abort();
    const late = setTimeout(() => this.#end.abort(), milliseconds);
    const ended = Promise.allSettled(this.#works);
    await within(milliseconds + parting, ended).finally(() => clearTimeout(late));
  }
}

/** What the file system says of a path that is none, or that is not ours. */
const refusing = new Set(['ENOENT', 'ENOTDIR', 'ELOOP', 'EACCES', 'ENAMETOOLONG', 'ERR_INVALID_ARG_VALUE']);

/** Where a file really is, if that is inside of one of the folders. */
async function fileIn(folders: readonly string[], url: URL): Promise<URL | undefined> {
  const real = await Promise.all(folders.map((folder) => realpath(fileURLToPath(folder)).catch(() => undefined)));
  const away = folders.find((folder, i) => real[i] === undefined && url.href.startsWith(folder));
  if (away !== undefined) throw new ServiceError('unavailable', `${url.href}: ${away} is not there`); // not mounted yet
  try {
    const path = await realpath(fileURLToPath(url));
    const isIn = real.some((folder) => folder !== undefined && path.startsWith(folder === '/' ? folder : `${folder}/`));
    // A video may be a folder of frames, but these may be links.
    return isIn && !(await stat(path)).isDirectory() ? pathToFileURL(path) : undefined;
  } catch (error) {
    const { code = '', message } = error as NodeJS.ErrnoException;
    if (refusing.has(code)) return undefined;
    throw new ServiceError('unavailable', `${url.href}: ${message}`);
  }
}

/** A prefix as URLs begin: hosts in lower case, no usual ports. */
function prefixOf(given: string): string {
  const url = URL.canParse(given) ? new URL(given) : undefined;
  const isFolder =
    url &&
    /^(https?|file):$/.test(url.protocol) &&
    url.href === `${url.origin === 'null' ? 'file://' : url.origin}${url.pathname}`;
  if (isFolder && url.pathname.endsWith('/') && !(url.protocol === 'file:' && url.host)) return url.href;
  throw new OctconvError(
    `worker: allow: ${show(given)}, wanted https://HOST/, https://HOST/FOLDER/ (also of http) or file:///FOLDER/`,
  );
}

/** Statuses that another try may not have: a timeout, too early, too many requests. */
const passing = new Set([408, 425, 429]);

/** The bytes that a URL has. What the server says of them is not followed to others. */
async function bytesAt(url: URL, signal: AbortSignal): Promise<VideoSource> {
  const broken = (error: unknown) => {
    signal.throwIfAborted();
    const { cause, message } = error as Error;
    return new ServiceError('unavailable', `${url.href}: ${(cause as Error | undefined)?.message ?? message}`);
  };
  const answer = await fetch(url, { redirect: 'manual', signal }).catch((error) => {
    throw broken(error);
  });
  const { ok, status } = answer;
  if (ok && answer.body) {
    return (async function* () {
      try {
        // Not the body alone: where nobody has the answer any more, fetch ends the body as if that were all.
        yield* answer.body as AsyncIterable<Uint8Array>;
      } catch (error) {
        throw broken(error);
      }
    })();
  }
  await answer.body?.cancel();
  if (status >= 300 && status < 400) throw new ServiceError('forbidden', `${url.href}: leads to another URL`);
  throw new ServiceError(
    status >= 500 || passing.has(status) ? 'unavailable' : 'invalid',
    `${url.href}: status ${status}`,
  );
}
