/** `octconv serve` as a user meets it: what it prints and logs, how it begins and ends, and its configuration. */
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Client, credentials } from '@grpc/grpc-js';
import { toJsonSchema } from '@valibot/to-json-schema';
import { expect } from 'chai';
import { freePort } from '../lib/bench/port.js';
import type { Snapshot } from '../lib/service/live.js';
import { start } from '../lib/service/start.js';
import { failure } from './expect.js';
import { readServeConfig, serveSchema } from '../lib/service/config.js';
import { readMetrics } from './metrics.js';
import { skip } from './skip.js';

const pathOf = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const cli = pathOf('../lib/cli.ts');
const [octave, plain] = ['50', '0'].map((alpha) => pathOf(`../models/cifar10-oct-resnet-26-a${alpha}`)) as [
  string,
  string,
];
const cat = readFileSync(pathOf('images/cat.jpg'));
const anyPorts = ['--http-port', '0', '--grpc-port', '0', '--metrics-port', '0'];

let folder: string;
const inFolder = (...names: string[]) => join(folder, ...names);
const write = (name: string, value: unknown) => {
  writeFileSync(inFolder(name), typeof value === 'string' ? value : JSON.stringify(value));
  return inFolder(name);
};

interface Line {
  readonly msg: string;
  readonly [field: string]: unknown;
}

const running = new Set<ChildProcess>();

/** A server in a process of its own, when it has told its addresses. */
async function serve(args: readonly string[], { node = [], env = {} }: { node?: string[]; env?: object } = {}) {
  const all = ['--import=tsx', ...node, cli, 'serve', ...args];
  const child = spawn(process.execPath, all, { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...env } });
  running.add(child);
  const ended = once(child, 'close').finally(() => running.delete(child));
  const log: string[] = [];
  const logged = createInterface(child.stderr).on('line', (line) => log.push(line));
  const printed: string[] = [];
  const output = createInterface(child.stdout).on('line', (line) => printed.push(line));
  if ((await Promise.race([once(output, 'line'), ended])).length > 1) throw new Error(log.join('\n'));
  const lines = (): Line[] => log.map((line) => JSON.parse(line));
  return {
    ended,
    log,
    printed,
    lines,
    kill: (signal: NodeJS.Signals) => child.kill(signal),
    /** The first line of the log, of those from `from` on, that is so. */
    async logs(wanted: (line: Line) => boolean, from = 0): Promise<Line> {
      for (;;) {
        const found = lines().slice(from).find(wanted);
        if (found) return found;
        const more = await Promise.race([once(logged, 'line'), ended]);
        if (more.length > 1) throw new Error(`it has ended: ${log.join('\n')}`);
      }
    },
  };
}

/** The same with --json, and its addresses. */
async function serveJson(...[args, options]: Parameters<typeof serve>) {
  const server = await serve([...args, '--json'], options);
  const { http, grpc, metrics } = JSON.parse(server.printed[0] as string);
  const get = async (path: string) => (await fetch(`${http}${path}`)).json() as Promise<Record<string, unknown>>;
  return { ...server, http, grpc, metrics, get, live: () => get('/live') as unknown as Promise<Snapshot> };
}

const isReady = ({ state }: Line) => state === 'ready';

/** Without starting a server: its output and code. */
function octconv(args: readonly string[], env: object = {}, node: readonly string[] = []) {
  const options = { encoding: 'utf8', timeout: 30_000, env: { ...process.env, ...env } } as const;
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ['--import=tsx', ...node, cli, 'serve', ...args],
    options,
  );
  return { status, stdout, stderr };
}

/** A request with bytes of pictures, answered in binary. */
function inferRequest(rows: number): RequestInit {
  const bytes = Buffer.alloc(rows * 32 * 32 * 3);
  const input = { name: 'input', datatype: 'UINT8', shape: [rows, 32, 32, 3] };
  const inputs = [{ ...input, parameters: { binary_data_size: bytes.length } }];
  const json = Buffer.from(JSON.stringify({ inputs, parameters: { binary_data_output: true } }));
  const headers = { 'inference-header-content-length': String(json.length) };
  return { method: 'POST', headers, body: new Uint8Array(Buffer.concat([json, bytes])) };
}

async function classify(http: string, headers: Record<string, string> = {}): Promise<string> {
  const options = { method: 'POST', body: new Uint8Array(cat), headers: { 'content-type': 'image/jpeg', ...headers } };
  const answer = await fetch(`${http}/v2/models/octave/classify?top=1`, options);
  const { results, error } = (await answer.json()) as { results: { top: { label: string }[] }[]; error: string };
  return results?.[0]?.top[0]?.label ?? error;
}

describe('octconv serve', function () {
  this.timeout(30_000);
  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'octconv-serve-'));
    cpSync(octave, inFolder('models', 'octave'), { recursive: true });
    cpSync(octave, inFolder('changing', 'octave'), { recursive: true });
    mkdirSync(inFolder('changing', 'broken'));
    mkdirSync(inFolder('empty'));
  });
  afterEach(() => {
    for (const child of running) child.kill('SIGKILL');
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  it('answers over HTTP and gRPC, and tells metrics, figures and a log; SIGHUP changes models', async () => {
    write('changing/broken/config.json', 'no JSON');
    const server = await serveJson([inFolder('changing'), ...anyPorts]);
    expect(server.grpc).to.match(/^127\.0\.0\.1:\d+$/);
    // It listens while models are loaded.
    expect((await server.get('/v2/health/live')).live).to.equal(true);
    const broken = await server.logs(({ state }) => state === 'unavailable');
    expect(broken).to.include({ level: 'warn', model: 'broken', version: '1' });
    expect(broken.reason).to.match(/broken.config\.json: the file is not JSON$/);
    expect((await server.logs(isReady)).msg).to.match(/^octave, version 1: ready, cpu \w+, f32, batches of 1/);
    const { ready, unavailable } = await server.get('/v2/health/ready');
    expect([ready, unavailable]).to.deep.equal([false, 1]);

    expect(await classify(server.http)).to.equal('cat');
    const unknown = await fetch(`${server.http}/v2/models/nobody`);
    const line = await server.logs(({ status }) => status === 404);
    expect(line).to.deep.include({
      ...{ level: 'warn', method: 'GET', url: '/v2/models/nobody', ip: '127.0.0.1' },
      reqId: unknown.headers.get('x-request-id'),
    });
    const text = await (await fetch(server.metrics)).text();
    const { of } = readMetrics(text);
    expect(of('nv_inference_request_success', { model: 'octave', version: '1' })).to.equal(1);
    expect(of('octconv_model_state', { model: 'broken', version: '1', state: 'unavailable' })).to.equal(1);
    expect(of('process_resident_memory_bytes')).to.be.greaterThan(1e7);
    expect(of('nodejs_eventloop_lag_p99_seconds')).to.be.within(1e-4, 1);
    const { models } = await server.live();
    expect(models.map(({ name, state, alpha }) => [name, state, alpha])).to.deep.equal([
      ['broken', 'unavailable', undefined],
      ['octave', 'ready', 0.5],
    ]);
    expect((await fetch(`${server.http}/`)).headers.get('content-type')).to.match(/^text\/html/);
    const client = new Client(server.grpc, credentials.createInsecure());
    const bytes = (value: Buffer) => value;
    const live = await new Promise<Buffer | undefined>((resolve, reject) => {
      const call = '/inference.GRPCInferenceService/ServerLive';
      client.makeUnaryRequest(call, bytes, bytes, Buffer.alloc(0), (error, answer) =>
        error ? reject(error) : resolve(answer),
      );
    });
    client.close();
    expect([...(live ?? [])]).to.deep.equal([8, 1]); // true
    const called = await server.logs(({ method }) => method === 'inference.GRPCInferenceService/ServerLive');
    expect(called).to.include({ level: 'info', status: 'OK' });

    const from = server.log.length;
    cpSync(plain, inFolder('changing', 'octave'), { recursive: true });
    cpSync(octave, inFolder('changing', 'broken'), { recursive: true });
    server.kill('SIGHUP');
    await server.logs((line) => isReady(line) && line.model === 'octave', from);
    const now = (await server.live()).models.map(({ name, state, alpha }) => [name, state, alpha]);
    expect(now).to.deep.equal([
      ['broken', 'ready', 0.5],
      ['octave', 'ready', 0],
    ]);
    expect((await server.get('/v2/health/ready')).ready).to.equal(true);
    write('changing/octave/config.json', '{}');
    server.kill('SIGHUP');
    const kept = await server.logs(({ reason }) => /octave.config\.json: /.test(String(reason)));
    expect(kept.state).to.equal('ready');
    expect(await classify(server.http)).to.equal('cat');

    server.kill('SIGINT');
    expect(await server.ended).to.deep.equal([0, null]);
    expect(server.printed).to.have.length(1);
    expect(server.lines().at(-1)?.msg).to.equal('ends: answers what has come');
  });

  it('told to end it answers what has come, and says before that it is not ready', async () => {
    const service = { maxBatch: 1, batching: { queue: 4096, instances: 1 } };
    const config = write('drain.json', { models: 'models', service, grace: 2, log: { every: 1 } });
    const server = await serveJson(['--config', config, ...anyPorts]);
    await server.logs(isReady);
    const [requests, rows] = [24, 32];
    const answers = Array.from({ length: requests }, () =>
      fetch(`${server.http}/v2/models/octave/infer`, inferRequest(rows)).then(({ status }) => status),
    );
    const of = { model: 'octave', version: '1' };
    for (let come = 0; come <= (requests - 1) * rows; await sleep(5)) {
      const all = readMetrics(await (await fetch(server.metrics)).text());
      come = (all.of('nv_inference_pending_request_count', of) ?? 0) + (all.of('nv_inference_exec_count', of) ?? 0);
    }
    server.kill('SIGTERM');
    await server.logs(({ msg }) => msg.startsWith('ends: '));
    const { status, headers } = await fetch(`${server.http}/v2/health/ready`);
    expect([status, headers.get('connection')]).to.deep.equal([503, 'close']);
    answers.push(fetch(`${server.http}/v2/models/octave/infer`, inferRequest(1)).then(({ status }) => status));
    expect(await Promise.all(answers)).to.deep.equal(Array(requests + 1).fill(200));
    expect(await server.ended).to.deep.equal([0, null]);
    expect(await fetch(server.http).catch(({ cause }) => cause.code)).to.equal('ECONNREFUSED');
    expect(server.lines().filter(({ url, status }) => /infer$/.test(String(url)) && status === 200)).to.have.length(25);
  });

  it('waits no longer than it was told, and a second signal ends it at once', async () => {
    for (const [drain, least, end] of [
      [0.3, 0.3, [0, null]],
      [60, 0, [null, 'SIGTERM']],
    ] as const) {
      const config = write('ends.json', { models: inFolder('models'), drain });
      const server = await serveJson(['--config', config, ...anyPorts]);
      await server.logs(isReady);
      const socket = connect(Number(new URL(server.http).port), '127.0.0.1').on('error', () => undefined);
      socket.write('POST /v2/models/octave/classify HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\n');
      socket.write('content-length: 9\r\n\r\nhalf'); // the rest does not come
      await once(socket, 'connect');
      await server.get('/v2/health/live');
      const start = performance.now();
      server.kill('SIGTERM');
      await server.logs(({ msg }) => msg.startsWith('ends: '));
      if (end[1]) server.kill('SIGTERM');
      expect(await server.ended).to.deep.equal(end);
      expect((performance.now() - start) / 1000).to.be.within(least, 5);
      socket.destroy();
    }
  });

  it('ends also where a gRPC client does not close its side', async () => {
    const config = write('half-open.json', { models: inFolder('models'), drain: 0.3 });
    const server = await serveJson(['--config', config, ...anyPorts]);
    await server.logs(isReady);
    const port = Number(server.grpc.split(':')[1]);
    const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true }).on('error', () => undefined);
    socket.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
    socket.write(Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0])); // settings, none
    await once(socket, 'data');
    server.kill('SIGTERM');
    expect(await server.ended).to.deep.equal([0, null]);
    socket.destroy();
  });

  it('wants a token, and shows lines for people, metrics at the port of HTTP, and gRPC only where it is installed', async () => {
    const none = write(
      'none.mjs',
      `import { register } from 'node:module';
       register('data:text/javascript,' + encodeURIComponent(\`export async function resolve(name, context, next) {
         if (name.startsWith('@grpc/')) throw Object.assign(new Error(name), { code: 'ERR_MODULE_NOT_FOUND' });
         return next(name, context);
       }\`));`,
    );
    const port = await freePort();
    const config = { http: { port }, metrics: { port }, tokenFile: 'token.txt', log: { format: 'text', every: 1 } };
    write('token.txt', 'secret\n');
    const node = [`--import=${none}`];
    const server = await serve([inFolder('models'), '--config', write('text.json', config)], { node });
    expect(server.printed[0]).to.equal(`http     http://127.0.0.1:${port}`);
    while (!server.log.some((line) => / octave, version 1: ready, /.test(line))) await sleep(10);
    expect(server.printed).to.deep.equal([
      `http     http://127.0.0.1:${port}`,
      `metrics  http://127.0.0.1:${port}/metrics`,
    ]);
    expect(server.log[0]).to.match(/^\d\d:\d\d:\d\d (warn grpc: its packages are not installed: npm |octave, )/);
    expect(server.log.filter((line) => / warn grpc: /.test(line))).to.have.length(1);
    const http = `http://127.0.0.1:${port}`;
    expect(await classify(http)).to.match(/^wanted the token/);
    expect(await classify(http, { authorization: 'Bearer secret' })).to.equal('cat');
    expect((await fetch(`${http}/metrics`)).status).to.equal(401);
    const metrics = await fetch(`${http}/metrics`, { headers: { 'x-api-key': 'secret' } });
    expect(readMetrics(await metrics.text()).of('nv_inference_count', { model: 'octave', version: '1' })).to.equal(1);
    await fetch(`${http}/%1b[31m`);
    server.kill('SIGTERM');
    expect(await server.ended).to.deep.equal([0, null]);
    expect(server.log.join('\n')).to.match(/:\d\d POST \/v2\/models\/octave\/classify\?top=1 200 [\d.]+ ms\n/);
    expect(server.log.join('\n')).to.match(/:\d\d warn POST \/v2\/models\/octave\/classify\?top=1 401 [\d.]+ ms\n/);

    const asked = octconv([inFolder('models'), ...anyPorts], {}, node);
    expect([asked.status, asked.stdout]).to.deep.equal([1, '']);
    expect(asked.stderr).to.match(/octconv: grpc: its packages are not installed: npm install [^\n]+\n$/);
  });

  it('serves with TLS by files', async function () {
    try {
      const request =
        '-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout tls.key -out tls.pem -days 2 -subj /CN=localhost';
      execFileSync('openssl', ['req', ...request.split(' '), '-addext', 'subjectAltName=IP:127.0.0.1'], {
        cwd: folder,
        stdio: 'pipe',
      });
    } catch {
      skip(this, 'openssl');
    }
    const config = write('tls.json', { models: 'models', metrics: false, tls: { key: 'tls.key', cert: 'tls.pem' } });
    const server = await serve(['--config', config, '--http-port', '0', '--grpc-port', '0', '--json']);
    const { http, metrics } = JSON.parse(server.printed[0] as string);
    expect(http).to.match(/^https:/);
    expect(metrics).to.equal(undefined);
    const env = { ...process.env, NODE_EXTRA_CA_CERTS: inFolder('tls.pem') };
    const script = `console.log((await fetch('${http}/v2/health/live')).status)`;
    expect(execFileSync(process.execPath, ['--input-type=module', '-e', script], { env, encoding: 'utf8' })).to.equal(
      '200\n',
    );
    server.kill('SIGTERM');
    expect(await server.ended).to.deep.equal([0, null]);
  });

  it('what cannot begin is an error in a line', async () => {
    const taken = createServer().listen(0, '127.0.0.1');
    await once(taken, 'listening');
    const { port } = taken.address() as AddressInfo;
    const models = inFolder('models');
    const any = {
      models,
      http: { port: 0 },
      grpc: { port: 0 },
      metrics: { port: 0 },
      log: { level: 'silent' },
    } as const;
    try {
      for (const [config, message] of [
        [{ ...any, models: inFolder('empty') }, /^serve: ".*empty" holds no model folders$/],
        [{ ...any, models: '/nowhere' }, /^\/nowhere: no such file/],
        [{ ...any, http: { port } }, /^http: listen EADDRINUSE: address already in use 127\.0\.0\.1:\d+$/],
        [{ ...any, metrics: { port } }, /^metrics: listen EADDRINUSE/],
        [{ ...any, tokenFile: write('empty.txt', '\n') }, /empty\.txt: wanted a token, without spaces, on one line$/],
        [{ ...any, tls: { key: '/nowhere', cert: '/nowhere' } }, /^\/nowhere: no such file/],
      ] as const)
        expect(await failure(readServeConfig(undefined, config).then((all) => start(all, process.stderr)))).to.match(
          message,
        );
      for (const [args, status, message] of [
        [[], 2, /^octconv: serve: no models, wanted a folder\n$/],
        [[models, ...anyPorts, '--grpc-port', `${port}`], 1, /^({.*}\n)*octconv: grpc: .*EADDRINUSE.*\n$/],
      ] as const) {
        const { stdout, stderr, status: code } = octconv(args);
        expect(stderr).to.match(message);
        expect([stdout, code]).to.deep.equal(['', status]);
      }
    } finally {
      taken.close();
    }
  });
});

describe('serve.json', () => {
  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'octconv-serve-'));
  });
  after(() => rmSync(folder, { recursive: true, force: true }));
  const read = (value: unknown, given?: Parameters<typeof readServeConfig>[1]) =>
    readServeConfig(write('serve.json', value), given);

  it('lies below the environment, which lies below flags', () => {
    const service = { threads: 1, dtype: 'f32', models: { a: { batching: { queue: 7 } } } };
    const config = { models: 'models', http: { port: 1, cors: ['*'] }, grpc: false, service, host: '::1' };
    const file = write('serve.json', config);
    const env = { OCTCONV_SERVE_CONFIG: file, OCTCONV_SERVE_HTTP_PORT: '2', OCTCONV_SERVE_THREADS: '2' };
    const { stdout, stderr } = octconv(['--print-config', '--http-port', '3'], env);
    expect(stderr).to.equal('');
    expect(JSON.parse(stdout)).to.deep.equal({
      models: inFolder('models'),
      host: '::1',
      http: {
        ...{ port: 3, cors: ['*'], maxBytes: 2 ** 26, maxConnections: 1024 },
        ...{ headersTimeout: 10, requestTimeout: 60, keepAliveTimeout: 5 },
      },
      grpc: false,
      metrics: { port: 8002 },
      service: { ...service, threads: 2 },
      grace: 0,
      drain: 30,
      log: { level: 'info', every: 100 },
    });
    const wrong = octconv(['--print-config'], { OCTCONV_SERVE_THREADS: 'many' });
    expect([wrong.status, wrong.stdout]).to.deep.equal([2, '']);
    expect(wrong.stderr).to.match(/^octconv: .*OCTCONV_SERVE_THREADS.*wanted an integer/);
  });

  it('has paths that are relative to it, those of flags are not', async () => {
    const tls = { key: 'a/key', cert: '/cert' };
    const config = await read({ models: { a: 'a', b: '../b' }, tokenFile: 'token', tls }, { tokenFile: 'other' });
    expect(config.models).to.deep.equal({ a: inFolder('a'), b: join(folder, '../b') });
    expect([config.tls, config.tokenFile]).to.deep.equal([{ key: inFolder('a', 'key'), cert: '/cert' }, 'other']);
    expect((await read({ grpc: false }, { grpc: { port: 5 } })).grpc).to.deep.include({ port: 5 });
  });

  it('that does not fit is an error, which names the field', async () => {
    for (const [value, message] of [
      ['{', /serve\.json: the file is not JSON$/],
      [[1], /serve\.json: the file is \[1\], wanted an object$/],
      [{ htp: {} }, /unknown field "htp" \(did you mean "http"\?\), wanted \$schema, models, host, /],
      [{ http: { ports: 1 } }, /unknown field "http\.ports" \(did you mean "port"\?\), wanted port, /],
      [{ http: { port: 70_000 } }, /http\.port is 70000, wanted an integer from 0 to 65535$/],
      [{ grpc: true }, /grpc is true, wanted false or an object of port, maxBytes, maxBytesInFlight, requestTimeout$/],
      [{ models: 3 }, /models is 3, wanted a folder, or folders by name$/],
      [{ service: { device: 'gpu' } }, /service\.device is "gpu", wanted one of auto, /],
      [{ service: { device: ['cpu', 'gpu'] } }, /service\.device.* wanted one of auto, /],
      [{ service: { models: { a: { queue: 1 } } } }, /unknown field "service\.models\.a\.queue", wanted device, /],
      [{ service: { batching: { queue: 0 } } }, /service\.batching\.queue is 0, wanted an integer from 1/],
      [{ service: { versions: 'newest' } }, /versions is "newest", wanted "latest", "all" or a list of integers$/],
      [{ service: { watch: 0 } }, /service\.watch is 0, wanted seconds, from 0\.1 to 86400$/],
      [{ log: { level: 'loud' } }, /log\.level is "loud", wanted "debug" or "info" /],
      [{ drain: -1 }, /drain is -1, wanted seconds, at most 3600$/],
      ['{"host":"a","host":"b"}', /serve\.json: the file .*"host" twice/],
    ] as const)
      expect(await failure(read(value))).to.match(message);
    expect(await failure(readServeConfig(undefined, { http: { port: -1 } }))).to.match(/^serve: http\.port is -1/);
    expect(await failure(readServeConfig('/nowhere.json'))).to.match(/^\/nowhere\.json: no such file/);
  });

  it('has a JSON schema, which ships', () => {
    const file = pathOf('../schemas/serve.schema.json');
    const schema = toJsonSchema(serveSchema, { typeMode: 'input', ignoreActions: ['check'] });
    if (process.env.OCTCONV_UPDATE) writeFileSync(file, `${JSON.stringify(schema, null, 2)}\n`);
    expect(JSON.parse(readFileSync(file, 'utf8'))).to.deep.equal(schema);
  });
});
