// Preloaded: kills the process before its n-th change of the file system, n of KILL_AT; says at the end how many there
// were.
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';

const at = Number(process.env.KILL_AT);
let steps = 0;
function counted(object, names) {
  for (const name of names) {
    const real = object[name];
    object[name] = function (...args) {
      if (++steps === at) process.kill(process.pid, 'SIGKILL');
      return real.apply(this, args);
    };
  }
}
const handle = await fs.promises.open('/dev/null');
counted(Object.getPrototypeOf(handle), ['writeFile', 'close']);
await handle.close();
steps = 0;
counted(fs.promises, ['mkdir', 'open', 'rename', 'rm', 'link']);
counted(fs, ['rmSync', 'fsync']);
syncBuiltinESMExports();
process.on('exit', () => process.stdout.write(String(steps)));
