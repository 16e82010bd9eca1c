/** What the doors of the service, HTTP and gRPC, have in common: their settings, and who may come in. */
import { createHash, timingSafeEqual } from 'node:crypto';
import { totalmem } from 'node:os';
import * as v from 'valibot';
import { OctconvError } from '../error.js';
import { integerIn, numberIn, object } from '../files/schema.js';
import { ServiceError } from './errors.js';

export interface Tls {
  readonly key: string | Uint8Array;
  readonly cert: string | Uint8Array;
  readonly ca?: string | Uint8Array | undefined;
}

export const text = v.pipe(v.string('a text'), v.minLength(1, 'a text'));
export const seconds = numberIn(0.001, 86_400, 'seconds, at most 86400');
const pem = v.union([text, v.instance(Uint8Array)], 'PEM');

export const doorOptions = {
  host: v.optional(text, '127.0.0.1'),
  port: v.optional(integerIn(0, 65_535), 0),
  maxBytes: v.optional(integerIn(1, 2 ** 31), 2 ** 26),
  maxBytesInFlight: v.optional(integerIn(1, 2 ** 40)),
  requestTimeout: v.optional(seconds, 60),
  token: v.optional(text),
  tls: v.optional(object({ key: pem, cert: pem, ca: v.optional(pem) })),
  repository: v.optional(v.boolean('true or false')),
};

/** Whether only this machine reaches a door. */
export const isLocal = (host: string): boolean => ['127.0.0.1', '::1', 'localhost'].includes(host);

/** @throws ServiceError where callers may not change the server. */
export function checkMayChange(mayChange: boolean | 'local', what: 'load' | 'unload' | 'trace'): void {
  const does = what === 'trace' ? 'change settings' : 'load or unload models';
  if (!mayChange) throw new ServiceError('forbidden', `${what}: this server lets no caller ${does}`);
}

/** Bytes of requests that a door has taken, until they are answered. */
export class BytesInFlight {
  readonly #most: number;
  #now = 0;

  /**
   * `most` is by default a quarter of the memory that this process may have, 1 GiB at most, `maxBytes` at least.
   * @throws OctconvError for less than `maxBytes`, which one request may have.
   */
  constructor(door: string, maxBytes: number, most?: number) {
    if (most !== undefined && most < maxBytes)
      throw new OctconvError(`${door}: maxBytesInFlight is ${most}, wanted at least ${maxBytes}, of one request`);
    const memory = Math.min(totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY);
    this.#most = most ?? Math.max(maxBytes, Math.min(2 ** 30, Math.floor(memory / 4)));
  }

  /** @throws ServiceError if they are too many with those that are there. */
  take(bytes: number): void {
    if (this.#now + bytes > this.#most) {
      const what = `${bytes} more bytes of requests than the ${this.#now} that are not answered`;
      throw new ServiceError('overloaded', `${what}, wanted at most ${this.#most}`, { retryAfter: 1 });
    }
    this.#now += bytes;
  }

  give(bytes: number): void {
    this.#now -= bytes;
  }
}

/** Tells the token from others, in a time that does not depend on it. */
export function tokenCheck(token: string): (given: string) => boolean {
  const digest = (text: string) => createHash('sha256').update(text).digest();
  const wanted = digest(token);
  return (given) => timingSafeEqual(digest(given), wanted);
}

/** The token of `Authorization: Bearer TOKEN`. */
export const bearerOf = (header = ''): string | undefined => /^Bearer +(.*)$/i.exec(header)?.[1];
