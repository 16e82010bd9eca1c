/**
 * Leaves a test, or the tests of a hook's suite, out, and says why in the report: `.ci/summary.mjs` refuses reasons
 * that it does not know.
 */
export function skip(context: Mocha.Context, why: keyof typeof reasons): never {
  const test = context.test as (Mocha.Runnable & { readonly type?: string }) | undefined;
  const reason = ` (skipped: ${reasons[why]})`;
  const left: Mocha.Runnable[] = [];
  if (test?.type === 'hook') test.parent?.eachTest((each) => left.push(each));
  else if (test) left.push(test);
  for (const each of left) each.title += reason;
  return context.skip();
}

const reasons = {
  cpu: 'this CPU lacks it, npm run test:avx512 emulates it',
  python: 'no Python with numpy, pillow and torch, OCTCONV_PYTHON may name one',
  triton: 'no Python with tritonclient, OCTCONV_PYTHON may name one',
  nats: 'there is no nats-server, tools/clients.mjs installs it',
  haproxy: 'there is no haproxy, tools/clients.mjs installs it',
  openssl: 'there is no openssl(1) to make certificates',
  shared: '../shared is not here',
  terminal: 'there is no script(1) for a terminal',
  ffmpeg: 'no ffmpeg, npm run setup fetches one',
  chromium: 'no Chromium on the PATH',
  build: 'the addon was not built here',
} as const;
