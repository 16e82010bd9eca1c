/** examples/kubernetes and examples/docker: what they say of commands, ports, paths, metrics and names is so. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { jetstreamManager } from '@nats-io/jetstream';
import { expect } from 'chai';
import { parseAllDocuments } from 'yaml';
import { NatsQueue } from '../lib/queue/index.js';
import { readMetrics } from './metrics.js';
import { hasNats, NatsServers } from './nats.js';
import { skip } from './skip.js';

const pathOf = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const cli = ['--import=tsx', pathOf('../lib/cli.ts')];
const name = 'cifar10-oct-resnet-26-a50';
const model = pathOf(`../models/${name}`);

// biome-ignore lint/suspicious/noExplicitAny: of many kinds
type Any = any;
const read = (file: string): Any[] =>
  parseAllDocuments(readFileSync(pathOf(`../examples/kubernetes/${file}`), 'utf8')).map((one) => one.toJS());
const ofKind = (all: Any[], kind: string): Any => all.find((one) => one.kind === kind);

const [serving, working, kserve, keda] = ['deployment.yaml', 'worker.yaml', 'kserve.yaml', 'keda.yaml'].map(read) as [
  ...[Any[], Any[], Any[], Any[]],
];
const podOf = (all: Any[]): Any => ofKind(all, 'Deployment').spec.template.spec;
const probesOf = (container: Any): Any[] =>
  ['startupProbe', 'readinessProbe', 'livenessProbe'].map((probe) => container[probe].httpGet);
const portOf = ({ ports }: Any, port: string | number) =>
  typeof port === 'number' ? port : ports.find((one: Any) => one.name === port)?.containerPort;

describe('examples: manifests', function () {
  this.timeout(60_000);
  let folder: string;
  const children: ChildProcess[] = [];

  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'octconv-'));
    const text = ofKind(serving, 'ConfigMap').data['serve.json'];
    writeFileSync(join(folder, 'serve.json'), text.replace('"/models"', JSON.stringify(model)));
  });
  after(() => {
    for (const child of children) child.kill('SIGKILL');
    rmSync(folder, { recursive: true });
  });

  /** Arguments in a container, with what is mounted there. */
  const here = (args: string[]) => args.map((arg) => mounted[arg] ?? arg);
  const mounted: Record<string, string> = {
    ...{ '/models': model, '/mnt/models': model },
    get '/etc/octconv/serve.json'() {
      return join(folder, 'serve.json');
    },
  };
  const configOf = (args: string[]) => {
    const all = [...cli, ...here(args), '--print-config'];
    const { stdout, stderr } = spawnSync(process.execPath, all, { encoding: 'utf8' });
    expect(stderr).to.equal('');
    return JSON.parse(stdout);
  };
  /** The first line that a command prints. */
  async function run(args: string[]): Promise<string> {
    const child = spawn(process.execPath, [...cli, ...here(args)], { stdio: ['ignore', 'pipe', 'ignore'] });
    children.push(child);
    return (await once(createInterface(child.stdout), 'line'))[0];
  }
  async function expectProbes(container: Any, url: string): Promise<void> {
    for (const { path } of probesOf(container)) {
      for (let tries = 0; tries < 100 && !(await fetch(`${url}${path}`)).ok; tries++) await sleep(100);
      expect((await fetch(`${url}${path}`)).status, path).to.equal(200);
    }
  }

  it('names that refer to others are there', () => {
    for (const all of [serving, working]) {
      const { spec } = ofKind(all, 'Deployment');
      expect(spec.template.metadata.labels).to.deep.equal(spec.selector.matchLabels);
      const [container] = spec.template.spec.containers;
      for (const { port } of probesOf(container)) expect(portOf(container, port), port).to.be.a('number');
      const { annotations } = spec.template.metadata;
      expect(Number(annotations['prometheus.io/port'])).to.equal(portOf(container, 'metrics'));
    }
    const [container] = podOf(serving).containers;
    const { spec } = ofKind(serving, 'Service');
    expect(spec.selector).to.deep.equal(ofKind(serving, 'Deployment').spec.selector.matchLabels);
    for (const { port, targetPort } of spec.ports) expect(portOf(container, targetPort)).to.equal(port);
    const { metadata } = ofKind(working, 'Deployment');
    for (const { spec } of [ofKind(working, 'HorizontalPodAutoscaler'), ...keda])
      expect(spec.scaleTargetRef.name).to.equal(metadata.name);
    const runtime = ofKind(kserve, 'ServingRuntime');
    const { model } = ofKind(kserve, 'InferenceService').spec.predictor;
    expect(model.runtime).to.equal(runtime.metadata.name);
    expect(runtime.spec.supportedModelFormats[0].name).to.equal(model.modelFormat.name);
    expect(runtime.spec.protocolVersions).to.include(model.protocolVersion);
  });

  it('servers listen where they are asked, and have the time to end', () => {
    const pod = podOf(serving);
    const [container] = pod.containers;
    const config = configOf(container.args);
    for (const door of ['http', 'grpc', 'metrics']) expect(config[door].port).to.equal(portOf(container, door));
    expect(config.host).to.equal('0.0.0.0');
    expect(config.service.threads).to.be.at.most(Number(container.resources.requests.cpu));
    expect(pod.terminationGracePeriodSeconds).to.be.above(config.grace + config.drain + 2);

    const [runtime] = ofKind(kserve, 'ServingRuntime').spec.containers;
    const { http, grpc, metrics, host, drain } = configOf(runtime.args);
    expect([http.port, grpc.port, host]).to.deep.equal([runtime.ports[0].containerPort, 9000, '0.0.0.0']);
    for (const { port } of probesOf(runtime)) expect(port).to.equal(http.port);
    const { annotations } = ofKind(kserve, 'ServingRuntime').spec;
    expect(annotations['prometheus.kserve.io/port']).to.equal(`${metrics.port}`);
    const { terminationGracePeriodSeconds } = ofKind(kserve, 'InferenceService').spec.predictor;
    expect(terminationGracePeriodSeconds).to.be.above(runtime.lifecycle.preStop.sleep.seconds + drain + 2);

    const dockerfile = readFileSync(pathOf('../examples/docker/Dockerfile'), 'utf8');
    const image = configOf(JSON.parse(/^CMD (.*)$/m.exec(dockerfile)?.[1] as string));
    expect(/^EXPOSE (.*)$/m.exec(dockerfile)?.[1]).to.equal(
      `${image.http.port} ${image.grpc.port} ${image.metrics.port}`,
    );
    expect(dockerfile).to.contain(`http://127.0.0.1:${image.http.port}${probesOf(container)[1].path}`);
  });

  it('servers answer probes', async () => {
    const free = ['--http-port', '0', '--grpc-port', '0', '--metrics-port', '0', '--json'];
    for (const container of [podOf(serving).containers[0], ofKind(kserve, 'ServingRuntime').spec.containers[0]]) {
      const { http } = JSON.parse(await run([...container.args, ...free]));
      await expectProbes(container, http.replace('0.0.0.0', '127.0.0.1'));
    }
  });

  it('workers answer probes and tell of the queue', async function () {
    if (!hasNats) skip(this, 'nats');
    const servers = await NatsServers.start();
    const queue = await NatsQueue.open({ servers: servers.urls });
    try {
      await queue.source('other');
      for (const id of ['first', 'second']) await queue.submit(id, 'other', Buffer.from('nobody takes it'));
      const pod = podOf(working);
      const [container] = pod.containers;
      expect(container.args[container.args.indexOf('--metrics-port') + 1]).to.equal(`${portOf(container, 'metrics')}`);
      const drain = Number(container.args[container.args.indexOf('--drain') + 1]);
      expect(pod.terminationGracePeriodSeconds).to.be.above(drain + 2);
      const told = await run([...container.args, '--nats', servers.urls.join(), '--metrics-port', '0']);
      const url = `http://127.0.0.1:${/:(\d+)\/metrics$/.exec(told)?.[1]}`;
      await expectProbes(container, url);
      const { metric } = ofKind(working, 'HorizontalPodAutoscaler').spec.metrics[0].external;
      const metrics = readMetrics(await (await fetch(`${url}/metrics`)).text());
      expect([name, 'other'].map((model) => metrics.of(metric.name, { model }))).to.deep.equal([0, 2]);
      expect(readFileSync(pathOf('../examples/kubernetes/worker.yaml'), 'utf8')).to.contain(
        `seriesQuery: ${metric.name}`,
      );
      const { stream, consumer } = keda[0].spec.triggers[0].metadata;
      expect((await (await jetstreamManager(queue.connection)).consumers.info(stream, consumer)).num_pending).to.equal(
        0,
      );
    } finally {
      await queue.close();
      await servers.stop();
    }
  });
});
