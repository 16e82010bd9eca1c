/**
 * What goes through a work queue: jobs (an encoded picture or video, and what is asked of it) and results. A queue is a
 * `WorkSource`: `worker.ts` does its jobs, and `nats.ts` is one, which queues them too.
 */
import type { Guess } from '../classify.js';
import { OctconvError, show } from '../error.js';
import type { Views } from '../input/clips.js';
import type { VideoSource } from '../input/video.js';
import type { Code } from '../service/errors.js';

/** What is asked of a picture or video. */
export interface JobOptions extends Views {
  /** Guesses; default 5. */
  readonly top?: number | undefined;
}

/** What a job came to: there is exactly one result of each id. */
export type Result = {
  readonly id: string;
  readonly model: string;
} & (
  | {
      readonly version: string;
      /** The likeliest first. */
      readonly top: readonly Guess[];
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
  /** Its bytes, or where they are. */
  input(signal: AbortSignal): Promise<VideoSource>;
  /** Says that it is still worked on. */
  working(): void;
  /** Whether there is a result of this id already: another worker was as fast. */
  isDone(): Promise<boolean>;
  /** Gives the result, unless there is one already, and ends the job. */
  done(result: Result): Promise<void>;
  /** Ends the job, which has a result. */
  drop(): Promise<void>;
  /** Gives the result, and keeps the job in the dead letters. */
  dead(result: Result & { readonly error: string }): Promise<void>;
  /** Gives the job back; another worker gets it after so many milliseconds. */
  retry(milliseconds: number): void;
}

export interface WorkSource {
  /** Milliseconds in which a job must end or be worked on. */
  readonly ackWait: number;
  /** At most so many jobs, as soon as there are some; none if there are none for a while, or it is stopped. */
  take(count: number, signal: AbortSignal): AsyncIterable<Job>;
  /** When all that was said has reached the queue. */
  close(): Promise<void>;
}

/** Ids and queue names are parts of subjects: letters, digits, `_` and `-`; those of ids may be joined by dots. */
const token = /^[\w-]{1,64}$/;
const id = /^[\w-]+(\.[\w-]+){0,7}$/;

export const isId = (given: string): boolean => given.length <= 128 && id.test(given);

export function checkId(given: string): string {
  if (typeof given === 'string' && isId(given)) return given;
  throw new OctconvError(`queue: id ${show(given)}, wanted letters, digits, _ and -, joined by dots`);
}

export function checkModel(given: string): string {
  if (typeof given === 'string' && isId(given)) return given;
  throw new OctconvError(`queue: model ${show(given)}, wanted letters, digits, _ and -, joined by dots`);
}

export function checkQueueName(given: string): string {
  if (typeof given === 'string' && token.test(given)) return given;
  throw new OctconvError(`queue: name ${show(given)}, wanted letters, digits, _ and -`);
}
