/** What waits for each signal. One listener per signal serves them all: Node warns of the eleventh. */
const waiting = new WeakMap<AbortSignal, Set<() => void>>();

/** Calls `callback` once when the signal is aborted, unless what is returned was called before. */
export function onAbort(signal: AbortSignal, callback: () => void): () => void {
  let callbacks = waiting.get(signal);
  if (!callbacks) {
    const all = new Set<() => void>();
    signal.addEventListener('abort', () => all.forEach((call) => void call()), { once: true });
    waiting.set(signal, all);
    callbacks = all;
  }
  const own = () => callback(); // the same function may wait twice
  callbacks.add(own);
  return () => void callbacks.delete(own);
}
