/** `octconv serve` in a process of its own, for what is too long for the suite. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const cli = fileURLToPath(new URL('../lib/cli.ts', import.meta.url));

/** Milliseconds in which it ends: by default it answers what has come for half of them. */
const longest = 60_000;

export interface Serving {
  readonly pid: number;
  /** As `http://127.0.0.1:8000`, and `127.0.0.1:8001` if the packages of gRPC are there. */
  readonly http: string;
  readonly grpc: string | undefined;
  /** The last lines of its log. */
  readonly log: readonly string[];
  /** How it has ended, when it has. */
  readonly ended: Promise<string>;
  /** Whether it says that it is ready. */
  ready(): Promise<boolean>;
  /** Tells it to end, and kills it if it does not; how it has ended. */
  end(): Promise<string>;
}

/**
 * Starts a server of a serve.json on ports that the system chooses, and waits until it is ready. It ends with this
 * process. `node` are arguments of node.
 */
export async function serving(config: string, node: readonly string[] = []): Promise<Serving> {
  const ports = ['--http-port', '0', '--grpc-port', '0', '--metrics-port', '0'];
  const args = ['--import=tsx', ...node, cli, 'serve', '--config', config, ...ports, '--json'];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  const kill = () => child.kill('SIGKILL');
  process.once('exit', kill);
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));
  const log: string[] = [];
  createInterface(child.stderr).on('line', (line) => {
    log.push(line);
    if (log.length > 40) log.shift();
  });
  const ended = once(child, 'exit').then(([code, signal]) => `${signal ?? `exit code ${code}`}`);
  void ended.then(() => process.off('exit', kill));
  const first = await Promise.race([once(createInterface(child.stdout), 'line'), ended]);
  if (typeof first === 'string') throw new Error(`the server ended: ${first}\n${log.join('\n')}`);
  const { http, grpc } = JSON.parse(first[0]);
  const isReady = () =>
    fetch(`${http}/v2/health/ready`).then(
      ({ ok }) => ok,
      () => false,
    );
  while (!(await isReady())) {
    const how = await Promise.race([ended, sleep(100)]);
    if (how !== undefined) throw new Error(`the server ended: ${how}\n${log.join('\n')}`);
  }
  return {
    pid: child.pid as number,
    http,
    grpc,
    log,
    ended,
    ready: isReady,
    end() {
      child.kill('SIGTERM');
      const late = setTimeout(kill, longest);
      return ended.finally(() => clearTimeout(late));
    },
  };
}
