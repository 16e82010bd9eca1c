/** Servers of NATS for tests: processes of their own, on ports that are free, in a folder that is removed. */
import { type ChildProcess, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { freePort } from '../lib/bench/port.js';
import { type Host, loopback, spawnOn } from './networks.js';

/** As tools/clients.mjs fetches it, or the system's. */
const fetched = fileURLToPath(new URL('../build/clients/bin/nats-server', import.meta.url));
const program = existsSync(fetched) ? fetched : 'nats-server';
export const hasNats = spawnSync(program, ['--version']).status === 0;

/** Servers that are a cluster, or one alone. They keep port and files where one is killed and started again. */
export class NatsServers {
  readonly folder = mkdtempSync(join(tmpdir(), 'octconv-nats-'));
  readonly #children: (ChildProcess | undefined)[] = [];

  private constructor(
    readonly hosts: readonly Host[],
    readonly ports: readonly number[],
    readonly routes: readonly number[],
  ) {}

  static async start(count = 1, hosts: readonly Host[] = Array(count).fill(loopback)): Promise<NatsServers> {
    const ports = await Promise.all(Array.from({ length: 2 * count }, freePort));
    const servers = new NatsServers(hosts.slice(0, count), ports.slice(0, count), ports.slice(count));
    await Promise.all(servers.ports.map((_, i) => servers.run(i)));
    return servers;
  }

  get urls(): string[] {
    return this.#urlsOf(this.ports);
  }

  #urlsOf(ports: readonly number[]): string[] {
    return ports.map((port, i) => `nats://${this.hosts[i]?.address}:${port}`);
  }

  /** When it listens. */
  async run(i: number): Promise<void> {
    const host = this.hosts[i] as Host;
    const args = ['-js', '-a', host.address, '-p', `${this.ports[i]}`, '-n', `n${i}`, '-sd', join(this.folder, `${i}`)];
    if (this.ports.length > 1) {
      const routes = this.#urlsOf(this.routes);
      args.push('--cluster_name', 'c', '--cluster', `${routes[i]}`, '--routes', routes.join(','));
    }
    const child = spawnOn(host, [program, ...args], ['ignore', 'ignore', 'pipe']);
    this.#children[i] = child;
    const log: string[] = [];
    const stderr = child.stderr as Readable;
    for await (const line of createInterface(stderr)) {
      log.push(line);
      if (/Server is ready/.test(line)) break;
    }
    if (child.exitCode !== null) throw new Error(`nats-server has ended: ${log.join('\n')}`);
    stderr.resume();
  }

  /** It is there and does nothing, like one behind a cut network, until it goes on. */
  pause(i: number): void {
    this.#children[i]?.kill('SIGSTOP');
  }

  goOn(i: number): void {
    this.#children[i]?.kill('SIGCONT');
  }

  async kill(i: number): Promise<void> {
    const child = this.#children[i];
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  }

  async stop(): Promise<void> {
    await Promise.all(this.ports.map((_, i) => this.kill(i)));
    this.stopNow();
  }

  /** The same where there is no time to wait. */
  stopNow(): void {
    for (const child of this.#children) child?.kill('SIGKILL');
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 5 });
  }
}
