/** What the tests of both doors of the service share: certificates, and Triton's clients. */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { skip } from './skip.js';

/**
 * Reads `ca.pem`, `server.pem`, `server.key`, `client.pem` and `client.key`, which hooks of the suite make for a name
 * and remove.
 */
export function certificatesFor(subjectAltName: string): (name: string) => Buffer {
  const folder = mkdtempSync(join(tmpdir(), 'octconv-'));
  const openssl = (...args: string[]) => execFileSync('openssl', args, { cwd: folder, stdio: 'pipe' });
  before(function () {
    try {
      openssl('version');
    } catch {
      skip(this, 'openssl');
    }
    const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'];
    openssl('req', '-x509', ...key, '-keyout', 'ca.key', '-out', 'ca.pem', '-subj', '/CN=test');
    for (const name of ['server', 'client']) {
      const of = ['-addext', `subjectAltName=${subjectAltName}`, '-CA', 'ca.pem', '-CAkey', 'ca.key'];
      openssl('req', '-x509', ...key, ...of, '-keyout', `${name}.key`, '-out', `${name}.pem`, '-subj', `/CN=${name}`);
    }
  });
  after(() => rmSync(folder, { recursive: true, force: true }));
  return (name) => readFileSync(join(folder, name));
}

const interpreter = process.env.OCTCONV_PYTHON ?? 'python3';
const pathOf = (name: string) => fileURLToPath(new URL(name, import.meta.url));

async function python(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const child = spawn(interpreter, args, { stdio: 'pipe' });
  const [out, err, [code]] = await Promise.all([
    child.stdout.toArray(),
    child.stderr.toArray(),
    once(child, 'close').catch(() => [127]),
  ]);
  return { code, out: Buffer.concat(out).toString(), err: Buffer.concat(err).toString() };
}

/** A script that goes through what Triton's Python client can do, against a server with the model `cifar`. */
export async function expectFine(
  context: Mocha.Context,
  script: string,
  needs: string,
  address: string,
): Promise<void> {
  if ((await python('-c', `import ${needs}`)).code !== 0) skip(context, 'triton');
  const { code, out, err } = await python(pathOf(script), address, pathOf('images/cat.jpg'));
  expect([code, out], err).to.deep.equal([0, 'fine\n']);
}
