/** Long work in turns of the event loop: a large network takes tens of milliseconds, in which others use it too. */
import { setImmediate } from 'node:timers/promises';

/** Work that may rest at each `yield`. */
export type Work<T> = Generator<undefined, T, undefined>;

/** Milliseconds of a turn. */
const most = 2;

/** Does all of it in this turn. */
export function atOnce<T>(work: Work<T>): T {
  for (;;) {
    const { done, value } = work.next();
    if (done) return value;
  }
}

/** Rests where it has worked for a while. */
export async function inTurns<T>(work: Work<T>): Promise<T> {
  for (;;) {
    await turn();
    const end = performance.now() + most;
    do {
      const { done, value } = work.next();
      if (done) return value;
    } while (performance.now() < end);
  }
}

/** The next turn. Twice, since the first one may come before what waits: timers, and what the system has to say. */
export async function turn(): Promise<void> {
  await setImmediate();
  await setImmediate();
}
