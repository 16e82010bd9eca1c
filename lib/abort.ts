import { OctconvError } from './error.js';
import { kindOf } from './graph/graph.js';

/** @throws OctconvError unless it is a signal; its reason if it is aborted. */
export function checkSignal(signal: AbortSignal | undefined): void {
  if (signal !== undefined && typeof signal?.throwIfAborted !== 'function')
    throw new OctconvError(`signal: got ${kindOf(signal)}, wanted an AbortSignal`);
  signal?.throwIfAborted();
}

/** One listener per signal, however many runs it aborts: Node warns of more than ten. */
const listeners = new WeakMap<AbortSignal, Set<() => void>>();

/** Calls `f` when the signal aborts; gives a function that takes it back. */
export function onAbort(signal: AbortSignal | undefined, f: () => void): () => void {
  if (!signal) return () => undefined;
  const known = listeners.get(signal);
  const all = known ?? new Set<() => void>();
  if (!known) {
    listeners.set(signal, all);
    signal.addEventListener('abort', () => {
      for (const each of all) each();
    });
  }
  all.add(f);
  return () => void all.delete(f);
}
