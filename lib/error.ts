/** Every error that a user can cause: `prefix: what was found, what was wanted`; the prefix is an op or a file. */
export class OctconvError extends Error {
  override readonly name = 'OctconvError';
}

/** A value from a file as one short line of an error: control characters escaped, long ones cut. */
export function show(value: unknown): string {
  const plain = typeof value === 'number' || typeof value === 'bigint';
  const text = plain ? String(value) : (JSON.stringify(value) ?? 'nothing');
  return text.length > 120 ? `${text.slice(0, 117)}...` : text;
}
