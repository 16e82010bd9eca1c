/**
 * What goes through a work queue: jobs (an encoded picture or video, and what is asked of it) and results. A queue is a
 * `WorkSource`, which `nats.ts` makes, and `worker.ts` does its jobs.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Guess } from '../classify.js';
import { OctconvError, show } from '../error.js';
import type { Views } from '../input/clips.js';
import type { VideoSource } from '../input/video.js';
import type { Known } from '../options.js';
import type { Code } from '../service/errors.js';

/** What is asked of a picture or video. */
export interface JobOptions extends Views {
  /** Guesses; default 5. */
  readonly top?: number | undefined;
}

/** How a job is queued. */
export interface SubmitOptions extends JobOptions {
  /** A subject of an inbox, or of `NAME.replies`, to which the result is sent too, once or more often. */
  readonly reply?: string | undefined;
  /** Ends it with the signal's reason; the job may be queued already. */
  readonly signal?: AbortSignal | undefined;
}

export const submitOptions = {
  top: true,
  clips: true,
  crops: true,
  reply: true,
  signal: true,
} satisfies Known<SubmitOptions>;

/** What a job came to: there is exactly one result of each id. */
export type Result = {
  readonly id: string;
  readonly model: string;
} & (
  | {
      readonly version: string;
      /** The likeliest first. */
      readonly top: readonly Guess[];
      /** `queue`: the service's own; how long a job waited for a worker is not in it. */
      readonly milliseconds: { readonly prepare: number; readonly queue: number; readonly compute: number };
      readonly error?: never;
    }
  /** The job is in the dead letters, with the same words. */
  | { readonly code: Code; readonly error: string }
);

/** A job that this worker has taken. It is given to another one unless it ends, or `working` is called, in time. */
export interface Job {
  readonly id: string;
  readonly model: string;
  readonly options: JobOptions;
  /** Which time it is given to a worker, from 1. */
  readonly delivery: number;
  /** Its bytes do not come with it, and may be many: few such jobs are worked on at a time. */
  readonly isLarge: boolean;
  /**
   * Its bytes, at most so many, or where they are.
   * @throws OctconvError if what was asked makes no sense.
   */
  input(maxBytes: number, signal: AbortSignal): Promise<VideoSource>;
  /** Says that it is still worked on. */
  working(): void;
  /** Whether there is a result of this id already: another worker was as fast. */
  isDone(): Promise<boolean>;
  /**
   * Ends the job: gives the result, unless there is one already, and keeps the job in the dead letters if that is an
   * error. Resolves to the result that the id has.
   */
  done(result: Result): Promise<Result>;
  /** Ends the job, which has a result. */
  drop(): Promise<void>;
  /** Gives the job back; another worker gets it after so many milliseconds. */
  retry(milliseconds: number): void;
}

/** A queue is no more: no try and no other worker helps. */
export class QueueGone extends OctconvError {}

export interface WorkSource {
  readonly model: string;
  /** Seconds in which a job must end or be worked on. */
  readonly ackWait: number;
  /**
   * At most so many jobs, as soon as there are some; none if there are none for a while, or it is stopped. Rejects if
   * there will never be any.
   */
  take(count: number, signal: AbortSignal): AsyncIterable<Job>;
  /** When all that was said has reached the queue. */
  close(): Promise<void>;
}

/** What some work gives; nothing if it takes longer than so many milliseconds. */
export async function within<T>(milliseconds: number, work: Promise<T>): Promise<T | undefined> {
  const stop = new AbortController();
  try {
    return await Promise.race([work, sleep(milliseconds, undefined, { signal: stop.signal })]);
  } finally {
    stop.abort();
  }
}

/** Ids, models and queue names are parts of subjects. */
const token = /^[\w-]{1,64}$/;
const tokens = /^(?=.{1,128}$)[\w-]+(\.[\w-]+){0,7}$/;
/** Ids of jobs that came without one begin so: a number and the time, since streams that are made again count anew. */
export const numbered = 'seq.';

export const isSubject = (given: unknown): given is string => typeof given === 'string' && tokens.test(given);

export const isId = (given: unknown): given is string => isSubject(given) && !given.startsWith(numbered);

const parts = 'letters, digits, _ and -, in up to 8 parts joined by dots, 128 characters at most';

export function checkId(given: string): string {
  if (isId(given)) return given;
  throw new OctconvError(`queue: id ${show(given)}, wanted ${parts}, not beginning with ${numbered}`);
}

export function checkModel(given: string): string {
  if (isSubject(given)) return given;
  throw new OctconvError(`queue: model ${show(given)}, wanted ${parts}`);
}

export function checkQueueName(given: string): string {
  if (typeof given === 'string' && token.test(given)) return given;
  throw new OctconvError(`queue: name ${show(given)}, wanted letters, digits, _ and -, 64 at most`);
}
