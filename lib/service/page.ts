/** The page at `/`: models, what they do now, and a field to drop a picture on. Its files are served as they are. */
import { readFileSync } from 'node:fs';
import type { FastifyInstance } from 'fastify';

const files = {
  '/': { file: 'index.html', type: 'text/html' },
  '/page.css': { file: 'page.css', type: 'text/css' },
  '/page.js': { file: 'page.js', type: 'text/javascript' },
};

/** No script or style but the page's own files, no markup out of strings, no other site in it or around it. */
const policy = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "connect-src 'self'",
  'img-src blob: data:',
  'media-src blob:',
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
].join('; ');

const headers = {
  'content-security-policy': policy,
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  // A page and a script of different releases do not fit.
  'cache-control': 'no-store',
};

/** Adds the page. It is answered without the token: it asks for the token, and sends it with what it asks. */
export function addPage(app: FastifyInstance): void {
  for (const [url, { file, type }] of Object.entries(files)) {
    // The same path from lib/ and from dist/: these files are shipped uncompiled.
    const content = readFileSync(new URL(`../../lib/service/page/${file}`, import.meta.url));
    app.get(url, { config: { open: true } }, (_, reply) =>
      reply.headers(headers).type(`${type}; charset=utf-8`).send(content),
    );
  }
}
