/** `bench serve` measures what it says; how fast anything is, is not tested. */
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { offer, type Percentiles, percentiles, type Stage, saturate, Target } from '../lib/bench/load.js';
import { findMlServer, MlServer, mlServerRequest } from '../lib/bench/mlserver.js';
import { benchServe, serveTable } from '../lib/bench/serve.js';
import { failure } from './expect.js';
import { childrenThat } from './processes.js';

const pathOf = (name: string) => fileURLToPath(new URL(name, import.meta.url));

function expectAscending(some: Percentiles | undefined, count: number): void {
  if (count === 0) return void expect(some).to.equal(undefined);
  const { p50, p99, p999, max } = some as Percentiles;
  for (const [less, more] of [
    [0, p50],
    [p50, p99],
    [p99, p999],
    [p999, max],
  ] as const)
    expect(less).to.be.at.most(more);
}

function expectSound(stage: Stage, seconds: number): void {
  const { rate, sent, answered, refused, failed, goodput, latency, refusal, lag, cores } = stage;
  expect(sent).to.equal(Math.max(1, Math.round(rate * seconds)));
  expect(answered + refused + failed).to.equal(sent);
  expect(goodput * 0.8 * seconds).to.be.at.most(answered + 1e-9);
  expectAscending(latency, answered);
  expectAscending(refusal, refused);
  expectAscending(lag, sent);
  expect(cores).to.be.within(0, 1024);
}

describe('bench serve', () => {
  describe('load', () => {
    let server: Server;
    let url = '';
    let bodies: string[] = [];
    let reply: (response: ServerResponse, nth: number) => unknown;
    before(async () => {
      server = createServer(async (request, response) => {
        const nth = bodies.push(Buffer.concat(await request.toArray()).toString());
        reply(response, nth);
      });
      await once(server.listen(0, '127.0.0.1'), 'listening');
      url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    });
    beforeEach(() => {
      bodies = [];
    });
    after(() => {
      server.close();
      server.closeAllConnections();
    });
    const target = () => new Target(url, { 'x-test': '1' }, Buffer.from('picture'));

    it('percentiles are nearest ranks', () => {
      const values = Array.from({ length: 2000 }, (_, i) => 2000 - i);
      expect(percentiles(values)).to.deep.equal({ p50: 1000, p99: 1980, p999: 1998, max: 2000 });
      expect(percentiles([7])).to.deep.equal({ p50: 7, p99: 7, p999: 7, max: 7 });
      expect(percentiles([])).to.equal(undefined);
    });

    it('counts what is answered, refused and failed', async () => {
      reply = (response, nth) => response.writeHead(nth % 4 === 0 ? 429 : nth % 10 === 1 ? 500 : 200).end('{}');
      const stage = await offer(target(), 200, 0.5);
      expectSound(stage, 0.5);
      expect([stage.sent, stage.refused, stage.failed, stage.answered]).to.deep.equal([100, 25, 10, 65]);
      expect(new Set(bodies)).to.deep.equal(new Set(['picture']));
      expect(stage.goodput).to.be.within(0.2 * 130, 1.5 * 130);
    });

    it('goes on while the server stands still, and counts the waiting', async () => {
      // As many requests are sent as ever, and those that were due in the pause have waited for its end.
      const start = performance.now();
      const opens = sleep(400);
      reply = async (response) => {
        await opens;
        response.end('{}');
      };
      const stage = await offer(target(), 100, 0.8);
      expectSound(stage, 0.8);
      expect([stage.sent, stage.answered]).to.deep.equal([80, 80]);
      expect(performance.now() - start).to.be.above(780);
      expect(stage.latency?.max).to.be.above(350);
      expect(stage.latency?.p50).to.be.below(stage.latency?.max as number);
    });

    it('what breaks has failed', async () => {
      reply = (response, nth) => (nth === 1 ? response.destroy() : response.end('{}'));
      const stage = await offer(target(), 50, 0.2);
      expectSound(stage, 0.2);
      expect(stage.failed).to.equal(1);
      reply = () => undefined;
      const never = target();
      const lost = offer(never, 50, 0.2);
      setTimeout(() => never.close(), 400);
      expect(await lost).to.include({ sent: 10, answered: 0, failed: 10, goodput: 0 });
    });

    it('a closed loop has so many in flight', async () => {
      let [now, most] = [0, 0];
      reply = async (response) => {
        most = Math.max(most, ++now);
        await sleep(20);
        now--;
        response.end('{}');
      };
      const rate = await saturate(target(), 5, 0.3);
      expect(most).to.equal(5);
      expect(rate).to.be.within(10, 250);
      reply = (response) => response.writeHead(400).end();
      const error = await saturate(target(), 2, 0.1).catch(String);
      expect(error).to.equal(`OctconvError: bench: ${url}: status 400`);
    });
  });

  const octconv = (...flags: readonly string[]) =>
    spawnSync(process.execPath, ['--import=tsx', pathOf('../lib/cli.ts'), 'bench', 'serve', ...flags], {
      encoding: 'utf8',
    });
  const base = { network: '', size: 32, seconds: 0.4, queue: 8 } as const;
  const model = pathOf('../models/cifar10-oct-resnet-26-a50');

  it('tensors: the service, Express with the octave and the plain network, half and twice', async function () {
    this.timeout(120_000);
    const seconds = 0.1; // Express keeps all 200 of a stage, and answers within 10 s on a slow machine too
    const result = await benchServe({ ...base, seconds, model, rates: [50, 2000], peers: true });
    const hasMlServer = result.mlserver?.startsWith('MLServer');
    expect(result.servers.map(({ by, network, alpha }) => [by, network, alpha])).to.deep.equal([
      ['octconv', 'oct-resnet-26', 0.5],
      ['express', 'oct-resnet-26', 0.5],
      ['express', 'resnet-26', undefined],
      // It is part of no CI, but of a machine where somebody has installed it.
      ...(hasMlServer
        ? [
            ['mlserver', 'oct-resnet-26', 0.5],
            ['mlserver', 'resnet-26', undefined],
          ]
        : []),
    ]);
    for (const { stages, saturation, half, beyond } of result.servers) {
      expect(stages.map(({ rate }) => rate)).to.deep.equal([50, 2000].slice(0, stages.length));
      expect(saturation).to.equal(Math.max(...stages.map(({ goodput }) => goodput)));
      expect([half.rate, beyond.rate]).to.deep.equal([saturation / 2, 2 * saturation]);
      for (const stage of [...stages, half, beyond]) {
        expectSound(stage, seconds);
        expect(stage.failed).to.equal(0);
        const { p50, p99, max } = stage.loop ?? { p50: 0, p99: 0, max: 0 };
        expect(p50).to.be.within(0, p99);
        expect(p99).to.be.at.most(max);
      }
    }
    expect(result).to.include({ network: 'oct-resnet-26', input: 'u8', bytes: 32 * 32 * 3, queue: 8 });
    expect(result.batching.sizes?.[0]).to.equal(1);
    expect(result.raw.rate).to.be.above(0);
    expect(result.raw.single).to.be.above(0);
    expect(result.servers[0]?.saturated).to.equal(true);
    const goals = result.servers[0]?.beyond.refused ? 6 : 5;
    expect(result.goals).to.have.length(goals);
    const stages = result.servers.reduce((sum, { stages }) => sum + stages.length + 2, 0);
    const table = serveTable(JSON.parse(JSON.stringify(result)));
    expect(table.split('\n')).to.have.length(8 + (1 + stages) + 1 + (1 + result.servers.length) + 1 + (1 + goals));
    expect(table)
      .to.contain('of 3072 bytes, one per request')
      .and.match(/express +resnet-26 +plain +twice/);
  });

  it('MLServer: as it is, one that does not serve, and none', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'octconv-mlserver-'));
    // In place of Python: it tells a version, and serves as its settings say.
    const standIn = (start: string) => {
      const file = join(folder, 'python');
      const code = `#!${process.execPath}
        if (!process.argv.includes('start')) console.log('1 with onnxruntime 2');
        else { ${start} }`;
      writeFileSync(file, code, { mode: 0o755 });
      return file;
    };
    const python = standIn(`
      const [{ http_port, host }, model] = ['settings', 'model-settings'].map((name) =>
        require(process.cwd() + '/' + name + '.json'));
      require('http').createServer(async (request, response) => {
        const body = Buffer.concat(await request.toArray());
        response.end(request.url.endsWith('/ready') ? '' : JSON.stringify({ model, asked: JSON.parse(body) }));
      }).listen(http_port, host);`);
    const input = { height: 32, width: 32, scale: 1, mean: [0, 0, 0], std: [1, 1, 1] } as never;
    const start = () => MlServer.start({ python, onnx: 'x.onnx', threads: 1, input, folder: join(folder, 'model') });
    try {
      expect(await findMlServer(false, python)).to.deep.equal({ python, about: 'MLServer 1 with onnxruntime 2' });
      const server = await start();
      const answer = await fetch(server.url, { method: 'POST', ...mlServerRequest(Uint8Array.of(1, 2, 3)) });
      const { asked, model } = (await answer.json()) as { asked: object; model: object };
      expect(asked).to.deep.equal({
        inputs: [
          { name: 'input', datatype: 'BYTES', shape: [1], parameters: { content_type: 'base64' }, data: ['AQID'] },
        ],
      });
      expect(model).to.deep.include({ implementation: 'runtime.Runtime', max_batch_size: 8 });
      expect(statSync(join(folder, 'model', 'runtime.py')).size).to.be.above(500);
      await server.stop();
      await server.stop();
      expect(await fetch(server.url).catch(String)).to.equal('TypeError: fetch failed');
      standIn(`console.log('started'); console.error('SomeError: broken'); console.log('ends');`);
      expect(await failure(start())).to.equal('it does not serve: it ended: SomeError: broken');
    } finally {
      rmSync(folder, { recursive: true });
    }
    expect((await findMlServer(false, join(folder, 'python'))).about).to.match(/^without MLServer: .*ENOENT/);
    expect((await findMlServer(false, '')).about).to.equal(
      'without MLServer: OCTCONV_PYTHON names no Python with mlserver and onnxruntime',
    );
    expect(await findMlServer(true, 'python')).to.deep.equal({
      about: 'without MLServer: it is loaded with tensors alone',
    });
  });

  it('JPEGs: a file, the service alone', async function () {
    this.timeout(120_000);
    const jpeg = pathOf('images/cat.jpg');
    const seconds = 3; // in 1 s a slow machine with two other files of tests has no answer
    const result = await benchServe({ ...base, seconds, model, jpeg, rates: [30], peers: false });
    const { servers, input, bytes, peer } = result;
    expect([servers.length, input, bytes, peer]).to.deep.equal([1, 'jpeg', statSync(jpeg).size, undefined]);
    expect(serveTable({ ...result, goals: [] })).to.match(/\nnot saturated: no goal is judged$/);
    for (const { stages, half, beyond } of servers)
      for (const stage of [...stages, half, beyond]) {
        expectSound(stage, seconds);
        expect(stage.failed).to.equal(0);
      }
  });

  it('as a command: a made JPEG', function () {
    this.timeout(120_000);
    const flags = ['--model', model, '--seconds', '2', '--rates', '20,30', '--queue', '4', '--jpeg', '--no-peers'];
    const { stdout, stderr } = octconv(...flags, '--json');
    expect(stderr).to.equal('');
    const { servers, input, bytes, queue } = JSON.parse(stdout);
    expect([servers.length, servers[0].stages[0].rate, input, queue]).to.deep.equal([1, 20, 'jpeg', 4]);
    expect(bytes).to.be.within(20_000, 200_000);
    for (const [flag, value] of [
      ['--rates', '5,0'],
      ['--size', '32'],
    ] as const) {
      const { status, stderr } = octconv('--model', model, flag, value);
      expect([status, stderr.includes(flag)], stderr).to.deep.equal([2, true]);
    }
  });

  it('what cannot be served is an error, and no process is left', async () => {
    const wrong = (options: object) => benchServe({ ...base, peers: false, ...options }).catch(String);
    expect(await wrong({ network: 'oct-i3d-26' })).to.match(/bench: serve: "oct-i3d-26", wanted a network of RGB/);
    expect(await wrong({ model, jpeg: pathOf('bench-serve.test.ts') })).to.match(/is not a picture/);
    expect(await wrong({ model: pathOf('nowhere') })).to.match(/nowhere/);
    expect(await wrong({ model, seconds: 0.1, rates: [1] })).to.match(/octconv: no answer in stages of 0.1 s/);
    expect(childrenThat((_, commandLine) => commandLine.includes('serve-child'))).to.deep.equal([]);
  });
});
