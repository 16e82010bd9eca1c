/** What several tests expect in the same words. */
import { setTimeout as sleep } from 'node:timers/promises';
import { expect } from 'chai';
import { relativeError } from '../lib/bench/measure.js';
import { OctconvError } from '../lib/error.js';

/** The message of the OctconvError that a promise rejects with. */
export async function failure(promise: Promise<unknown>): Promise<string> {
  const error = await promise.then(
    () => undefined,
    (e: unknown) => e,
  );
  expect(error).to.be.instanceOf(OctconvError);
  return (error as Error).message;
}

export async function rejects(promise: Promise<unknown>, message: RegExp): Promise<void> {
  expect(await failure(promise)).to.match(message);
}

/** Largest difference as a share of the largest expected value. */
export function error(got: ArrayLike<number>, wanted: ArrayLike<number>): number {
  expect(got.length).to.equal(wanted.length);
  return relativeError(Float32Array.from(got), Float32Array.from(wanted));
}

/** Waits for what another process or another turn of the event loop brings about. */
export async function until(fine: () => boolean | Promise<boolean>, milliseconds = 5000): Promise<void> {
  for (const start = performance.now(); !(await fine()); await sleep(10))
    if (performance.now() - start > milliseconds) expect.fail(`after ${milliseconds} ms: not ${fine}`);
}
