/** Every error that a user can cause: `prefix: what was found, what was wanted`; the prefix is an op or a file. */
export class OctconvError extends Error {
  override readonly name = 'OctconvError';
}
