/** examples/haproxy: servers in processes of their own behind haproxy, that are killed and told to end under load. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import * as grpc from '@grpc/grpc-js';
import { expect } from 'chai';
import sharp from 'sharp';
import { freePort } from '../lib/bench/port.js';
import { Client } from '../lib/client.js';
import { methods } from './hostile.js';
import { readMetrics } from './metrics.js';
import { until } from './expect.js';
import { skip } from './skip.js';

const pathOf = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const model = 'cifar10-oct-resnet-26-a50';
const pictures = ['cat.jpg', 'coffee.jpg', 'rocket.jpg'].map((name) => readFileSync(pathOf(`images/${name}`)));
/** Seconds, longer than two checks that are answered late. The first server has it, others end at once. */
const grace = 12;
/** Each machine is an address of this one. */
const hosts = ['127.0.0.2', '127.0.0.3', '127.0.0.4'];
const all = hosts.map((_, i) => i);

/** As a slow client sends it. */
const inParts = (bytes: Uint8Array) =>
  new ReadableStream<Uint8Array>({
    async start(stream) {
      stream.enqueue(bytes.subarray(0, 1000));
      await sleep(20);
      stream.enqueue(bytes.subarray(1000));
      stream.close();
    },
  });

describe('examples: haproxy', function () {
  this.timeout(240_000);
  let folder: string;
  let ports: number[];
  let haproxy: ChildProcess;
  const servers: ChildProcess[] = [];
  const ended: Promise<unknown[]>[] = [];
  const url = (port: number | undefined, host = '127.0.0.1') => `http://${host}:${port}`;

  /** `octconv serve`, when it has said its addresses. */
  async function start(i: number): Promise<void> {
    const [, , , http, rpc] = ports;
    const models = i === 0 ? ['--config', join(folder, 'serve.json')] : [pathOf(`../models/${model}`)];
    const args = [...models, '--host', `${hosts[i]}`, '--threads', '1'];
    const doors = ['--http-port', `${http}`, '--grpc-port', `${rpc}`, '--metrics-port', '0'];
    const child = spawn(process.execPath, ['--import=tsx', pathOf('../lib/cli.ts'), 'serve', ...args, ...doors], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    servers[i] = child;
    ended[i] = once(child, 'exit');
    await Promise.race([once(child.stdout as NonNullable<typeof child.stdout>, 'data'), ended[i]]);
    expect(child.exitCode, `server ${i}`).to.equal(null);
  }

  function end(i: number, signal: NodeJS.Signals): Promise<unknown[]> {
    servers[i]?.kill(signal);
    return ended[i] as Promise<unknown[]>;
  }

  /** What haproxy tells of a server. */
  async function told(i: number, proxy = 'servers') {
    const metrics = readMetrics(await (await fetch(`${url(ports[2])}/metrics`)).text());
    const of = (name: string, labels = {}) =>
      metrics.of(`haproxy_server_${name}`, { proxy, server: `s${i + 1}`, ...labels }) ?? Number.NaN;
    return {
      is: (state: 'UP' | 'DOWN') => of('status', { state }) === 1,
      answers: of('http_responses_total', { code: '2xx' }),
      redispatched: of('redispatch_warnings_total'),
    };
  }
  const answers = () => Promise.all(all.map(async (i) => (await told(i)).answers));
  const redispatched = async (proxy?: string) =>
    (await Promise.all(all.map(async (i) => (await told(i, proxy)).redispatched))).reduce((sum, n) => sum + n);

  const untilUp = (i: number, up = true) => until(async () => (await told(i)).is(up ? 'UP' : 'DOWN'), 60_000);

  before(async function () {
    if (spawnSync('haproxy', ['-v']).status !== 0) skip(this, 'haproxy');
    folder = mkdtempSync(join(tmpdir(), 'octconv-'));
    writeFileSync(join(folder, 'serve.json'), JSON.stringify({ models: pathOf(`../models/${model}`), grace }));
    ports = await Promise.all(Array.from({ length: 5 }, freePort));
    const [http, rpc, stats, ...of] = ports;
    const env = {
      ...Object.fromEntries(hosts.map((host, i) => [`OCTCONV_${i + 1}`, host])),
      ...{ OCTCONV_HTTP: `${of[0]}`, OCTCONV_GRPC: `${of[1]}`, OCTCONV_BIND: `127.0.0.1:${http}` },
      ...{ OCTCONV_GRPC_BIND: `127.0.0.1:${rpc}`, OCTCONV_STATS_BIND: `127.0.0.1:${stats}` },
    };
    haproxy = spawn('haproxy', ['-db', '-f', pathOf('../examples/haproxy/haproxy.cfg')], {
      env: { ...process.env, ...env },
      stdio: 'ignore',
    });
    const listens = () =>
      told(0).then(
        () => true,
        () => false,
      );
    await until(listens, 60_000);
    // Until its first check haproxy takes a server for one that is ready.
    for (const i of all) await untilUp(i, false);
    await Promise.all(all.map(start));
    for (const i of all) await untilUp(i);
  });
  after(async () => {
    haproxy?.kill('SIGKILL');
    for (const server of servers) server.kill('SIGKILL');
    if (folder) rmSync(folder, { recursive: true });
  });

  /**
   * Asks all the time while `work` goes on, and gives how many answers have come: each was right. An answer of a server
   * that was killed may be `cut`: once its headers have come, haproxy cannot ask another one.
   */
  async function underLoad(
    asks: readonly (() => Promise<unknown>)[],
    work: () => Promise<void>,
    cut?: string,
  ): Promise<number> {
    const wanted = await Promise.all(asks.map((ask) => ask()));
    const failed: string[] = [];
    let [count, ends] = [0, false];
    const loops = asks.map(async (ask, i) => {
      for (; !ends; count++)
        await ask()
          .then((answer) => expect(answer).to.equal(wanted[i]))
          .catch(({ message }) => failed.push(message));
    });
    await work().finally(() => (ends = true));
    await Promise.all(loops);
    const cuts = cut === undefined ? [] : failed.filter((message) => message.includes(cut));
    expect(failed).to.deep.equal(cuts);
    expect(cuts.length).to.be.at.most(asks.length);
    return count;
  }

  async function asks(client: Client): Promise<(() => Promise<unknown>)[]> {
    const ofPictures = pictures.map((picture) => async () => (await client.classify(model, picture)).top[0]?.label);
    const ofTensors = await Promise.all(
      pictures.map(async (picture) => {
        const data = new Uint8Array(await sharp(picture).resize(32, 32, { fit: 'cover' }).raw().toBuffer());
        const outputs = [{ name: 'logits', classification: 1 }];
        return async () => {
          const input = { datatype: 'UINT8', shape: [1, 32, 32, 3], data } as const;
          const { logits } = (await client.infer(model, input, { outputs })).outputs;
          return `${logits?.data[0]}`.split(':').at(-1);
        };
      }),
    );
    const slow = async () => (await client.classify(model, inParts(pictures[0] as Buffer))).top[0]?.label;
    return [...ofPictures, ...ofTensors, slow];
  }

  it('no request fails where servers are killed, and all have a share, also those that come again', async () => {
    const client = new Client(url(ports[0]), { retries: 0 });
    const load = await asks(client);
    expect(await load[0]?.()).to.equal('cat');
    const before = await answers();
    const since = async () => (await answers()).map((all, i) => all - (before[i] as number));
    const count = await underLoad([...load, ...load], async () => {
      await sleep(1000);
      await end(0, 'SIGKILL');
      await untilUp(0, false);
      await start(0);
      await untilUp(0);
      const [then = 0] = await since();
      // On a slow machine it was away for long: it goes on until it has its share again.
      await until(async () => {
        const [own = 0, ...others] = await since();
        return own > then + 20 && own > 0.12 * others.reduce((sum, n) => sum + n, own);
      }, 60_000);
      await end(1, 'SIGKILL');
      await sleep(1000);
    });
    for (const own of await since()) expect(own / count).to.be.above(0.1);
    expect(await redispatched()).to.be.at.least(2);
    await start(1);
    await untilUp(1);
  });

  it('nor over gRPC', async () => {
    const Client = grpc.makeClientConstructor(methods, 'GRPCInferenceService');
    const client = new Client(`127.0.0.1:${ports[1]}`, grpc.credentials.createInsecure());
    const message = {
      model_name: model,
      inputs: [{ name: 'input', datatype: 'UINT8', shape: [1, 32, 32, 3] }],
      outputs: [{ name: 'logits', parameters: { classification: { int64_param: 1 } } }],
      raw_input_contents: [Buffer.alloc(3072)],
    };
    const ask = () =>
      new Promise((resolve, reject) =>
        client.ModelInfer?.(message, (error: Error | null, answer: { raw_output_contents: Buffer[] }) =>
          error ? reject(error) : resolve(answer.raw_output_contents[0]?.toString().split(':').at(-1)),
        ),
      );
    try {
      // An answer of a stream does not wait for its end.
      const stream = client.ModelStreamInfer?.() as grpc.ClientDuplexStream<unknown, { infer_response: unknown }>;
      stream.write(message);
      const [first] = await once(stream, 'data');
      expect(first.infer_response.model_name).to.equal(model);
      stream.end();
      await once(stream.resume(), 'end');
      for (const call of ['RepositoryModelLoad', 'RepositoryModelUnload', 'TraceSetting']) {
        const refused = await new Promise<grpc.ServiceError>((resolve) =>
          client[call]?.({ model_name: model }, resolve),
        );
        expect(refused?.code, call).to.equal(grpc.status.PERMISSION_DENIED);
      }
      const before = await redispatched('grpc_servers');
      const kill = async () => {
        await sleep(500);
        await end(2, 'SIGKILL');
        await untilUp(2, false);
        await sleep(500);
      };
      await underLoad(Array(6).fill(ask), kill, 'Call ended without gRPC status');
      expect(await redispatched('grpc_servers')).to.be.above(before);
      await start(2);
      await untilUp(2);
    } finally {
      client.close();
    }
  });

  it('nor where one is told to end; where it says so first, none is sent twice', async () => {
    const load = await asks(new Client(url(ports[0]), { retries: 0 }));
    const before = await redispatched();
    await underLoad([...load, ...load], async () => {
      await sleep(500);
      expect(await end(0, 'SIGTERM')).to.deep.equal([0, null]);
    });
    expect(await redispatched()).to.equal(before);
    await underLoad([...load, ...load], async () => {
      await sleep(500);
      expect(await end(1, 'SIGTERM')).to.deep.equal([0, null]);
      await sleep(500);
    });
  });

  it('a body that no buffer holds goes through', async () => {
    const large = Buffer.concat([pictures[0] as Buffer, Buffer.alloc(3 * 2 ** 20)]); // zeros behind a JPEG are no fault
    expect((await new Client(url(ports[0])).classify(model, large)).top[0]?.label).to.equal('cat');
  });

  it('models are loaded and unloaded at a server itself', async () => {
    for (const path of ['repository/models/x/unload', 're%70ository/models/x/load', 'trace/setting'])
      expect((await fetch(`${url(ports[0])}/v2/${path}`, { method: 'POST' })).status, path).to.equal(403);
    expect((await fetch(`${url(ports[0])}/v2/models/${model}`)).status).to.equal(200);
  });
});
