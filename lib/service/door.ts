/** What the doors of the service, HTTP and gRPC, have in common: their settings, and who may come in. */
import { createHash, timingSafeEqual } from 'node:crypto';
import * as v from 'valibot';
import { integerIn, numberIn, object } from '../files/schema.js';

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
  requestTimeout: v.optional(seconds, 60),
  token: v.optional(text),
  tls: v.optional(object({ key: pem, cert: pem, ca: v.optional(pem) })),
  repository: v.optional(v.boolean('true or false')),
};

/** Whether only this machine reaches a door. */
export const isLocal = (host: string): boolean => ['127.0.0.1', '::1', 'localhost'].includes(host);

/** Tells the token from others, in a time that does not depend on it. */
export function tokenCheck(token: string): (given: string) => boolean {
  const digest = (text: string) => createHash('sha256').update(text).digest();
  const wanted = digest(token);
  return (given) => timingSafeEqual(digest(given), wanted);
}

/** The token of `Authorization: Bearer TOKEN`. */
export const bearerOf = (header = ''): string | undefined => /^Bearer +(.*)$/i.exec(header)?.[1];
