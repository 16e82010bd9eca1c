/**
 * Hostile requests (hostile.ts) to `octconv serve`, every second one over gRPC. `npm run test:hostile -- --count 20000
 * --seed 1` runs it with the addon that AddressSanitizer watches. Each request must have a status, 200 or 4xx or what
 * these are in gRPC, and the server must be ready at the end. `--from I --count 1` sends request I of a seed again.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { Agent } from 'node:http';
import { type ClientHttp2Session, connect } from 'node:http2';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { call, faultOfPost, harmless, hostileCalls, hostilePosts, post } from './hostile.js';
import { serving } from './serving.js';

const text = (value: string) => ({ type: 'string', default: value }) as const;
const { values } = parseArgs({ options: { count: text('1000000'), seed: text('1'), from: text('0') } });
const [count, seed, from] = [values.count, values.seed, values.from].map((given) => {
  if (!/^\d{1,9}$/.test(given)) throw new Error(`hostile: ${given}, wanted an integer`);
  return Number(given);
}) as [number, number, number];

const folder = mkdtempSync(join(tmpdir(), 'octconv-hostile-'));
process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
const models = { cifar: fileURLToPath(new URL('../models/cifar10-oct-resnet-26-a50', import.meta.url)) };
const config = join(folder, 'serve.json');
writeFileSync(config, JSON.stringify({ models, service: { maxBatch: 1 }, log: { level: 'error' } }));
const server = await serving(config);
let how: string | undefined;
void server.ended.then((ended) => {
  how = ended;
});

/** Requests at a time; where the server ends, one of the last of them was it. */
const together = 20;
/** Faults that are shown. */
const most = 20;

let [done, faults] = [0, 0];
const statuses = new Map<string, number>();
function judge(door: string, i: number, status: number, fault: string | undefined): void {
  const key = `${door} ${status}`;
  statuses.set(key, (statuses.get(key) ?? 0) + 1);
  if (fault !== undefined && faults++ < most) console.log(`request ${i} of seed ${seed}, ${door}: ${fault}`);
  if (++done % 20_000 === 0) console.log(`${done} requests, ${faults} faults`);
}

const agent = new Agent({ keepAlive: true });
const posts = hostilePosts('cifar');
async function overHttp(i: number): Promise<void> {
  const answer = await post(server.http, posts(seed, i), agent);
  judge('HTTP', i, answer.status, faultOfPost(answer));
}

if (!server.grpc) throw new Error('hostile: the packages of gRPC are not installed');
const calls = hostileCalls('cifar');
let session: ClientHttp2Session | undefined;
async function overGrpc(i: number): Promise<void> {
  if (!session || session.closed || session.destroyed)
    session = connect(`http://${server.grpc}`).on('error', () => undefined);
  const [code] = await call(session, calls(seed, i));
  judge('gRPC', i, code, harmless.includes(code) ? undefined : `status ${code}`);
}

let next = from;
async function some(): Promise<void> {
  while (next < from + count && how === undefined) {
    const i = next++;
    await (i % 2 ? overGrpc(i) : overHttp(i));
  }
}
await Promise.all(Array.from({ length: together }, some));
agent.destroy();
session?.destroy();

const isReady = await server.ready();
const ended = how ?? (await server.end());
for (const [key, n] of [...statuses].sort()) console.log(`${key.padEnd(9)}${String(n).padStart(9)}`);
console.log(`${done} requests, ${faults} faults; the server ${isReady ? 'was ready' : 'was not ready'}, then ${ended}`);
if (ended !== 'exit code 0') console.log(server.log.join('\n'));
process.exit(faults || !isReady || ended !== 'exit code 0' ? 1 : 0);
