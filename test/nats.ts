/** Servers of NATS for tests: processes of their own, on ports that are free, in a folder that is removed. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { freePort } from '../lib/bench/port.js';

export const hasNats = spawnSync('nats-server', ['--version']).status === 0;

/** Servers that are a cluster, or one alone. They keep port and files where one is killed and started again. */
export class NatsServers {
  readonly #folder = mkdtempSync(join(tmpdir(), 'octconv-nats-'));
  readonly #children: (ChildProcess | undefined)[] = [];

  private constructor(
    readonly ports: readonly number[],
    readonly routes: readonly number[],
  ) {}

  static async start(count = 1): Promise<NatsServers> {
    const ports = await Promise.all(Array.from({ length: 2 * count }, freePort));
    const servers = new NatsServers(ports.slice(0, count), ports.slice(count));
    await Promise.all(servers.ports.map((_, i) => servers.run(i)));
    return servers;
  }

  get urls(): string[] {
    return this.ports.map((port) => `nats://127.0.0.1:${port}`);
  }

  /** When it listens. */
  async run(i: number): Promise<void> {
    const args = ['-js', '-a', '127.0.0.1', '-p', `${this.ports[i]}`, '-n', `n${i}`, '-sd', join(this.#folder, `${i}`)];
    if (this.ports.length > 1) {
      const routes = this.routes.map((port) => `nats://127.0.0.1:${port}`).join(',');
      args.push('--cluster_name', 'c', '--cluster', `nats://127.0.0.1:${this.routes[i]}`, '--routes', routes);
    }
    const child = spawn('nats-server', args, { stdio: ['ignore', 'ignore', 'pipe'] });
    this.#children[i] = child;
    const log: string[] = [];
    for await (const line of createInterface(child.stderr)) {
      log.push(line);
      if (/Server is ready/.test(line)) break;
    }
    if (child.exitCode !== null) throw new Error(`nats-server has ended: ${log.join('\n')}`);
    child.stderr.resume();
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
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
