/**
 * Networks that can be cut: hosts with a network namespace of their own each, and the process that made them, also in one
 * of its own, as the router between them. Only processes hold the namespaces, so that they are gone with these. Wants
 * unshare(1), nsenter(1), ip(8), and root or the right to make user namespaces.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readlinkSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

/** Where a server or a client runs. */
export interface Host {
  readonly address: string;
  /** What runs a command there. */
  readonly prefix: readonly string[];
}

export const loopback: Host = { address: '127.0.0.1', prefix: [] };

/** Runs a command on a host. */
export function spawnOn(
  host: Host,
  command: readonly string[],
  stdio: ('ignore' | 'inherit' | 'pipe')[],
): ChildProcess {
  const [program = '', ...args] = [...host.prefix, ...command];
  return spawn(program, args, { stdio });
}

const inside = 'OCTCONV_TEST_NETWORKS';
const forwarding = '/proc/sys/net/ipv4/ip_forward';

/** Whether hosts can be had in this process. */
export const hasNetworks = process.env[inside] !== undefined;

/**
 * Runs the script once more where hosts can be had, and gives its exit code; nothing where this machine has no such
 * place.
 */
export async function runWithNetworks(): Promise<number | undefined> {
  const probe = `ip link add name r0 type veth peer name eth && ip rule add iif r0 blackhole && echo 1 > ${forwarding} &&
    nsenter --net=/proc/$$/ns/net true`;
  const ways = [['--net'], ['--map-root-user', '--net']];
  const way = ways.find((args) => spawnSync('unshare', [...args, 'sh', '-ec', probe]).status === 0);
  if (!way) return undefined;
  const child = spawn('unshare', [...way, process.execPath, ...process.execArgv, ...process.argv.slice(1)], {
    stdio: 'inherit',
    env: { ...process.env, [inside]: '1' },
  });
  // The child ends what it has started; the terminal tells it too.
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => child.kill(signal));
  const [code] = await once(child, 'exit');
  return code ?? 1;
}

export class Networks {
  private constructor(readonly hosts: readonly Host[]) {}

  static async start(count: number): Promise<Networks> {
    ip(['link set lo up']);
    writeFileSync(forwarding, '1');
    return new Networks(await Promise.all(Array.from({ length: count }, (_, i) => startHost(i))));
  }

  /** What one host sends another does not arrive any more; gives what mends it. */
  cut(...ways: (readonly [from: Host, to: Host])[]): () => void {
    const rules = (verb: string) =>
      ways.map(([from, to]) => `rule ${verb} iif r${this.hosts.indexOf(from)} to ${to.address} blackhole`);
    ip(rules('add'));
    return () => ip(rules('del'));
  }
}

/** The ends of its cable: `r0` here and `eth` there for the first. */
async function startHost(i: number): Promise<Host> {
  const [router, address] = [`10.77.${i}.1`, `10.77.${i}.2`];
  // It ends with this process, which has the other end of its pipe.
  const { pid } = spawn('unshare', ['--net', 'cat'], { stdio: ['pipe', 'ignore', 'inherit'] });
  const own = readlinkSync('/proc/self/ns/net');
  while (readlinkSync(`/proc/${pid}/ns/net`) === own) await sleep(10);
  const prefix = ['nsenter', `--net=/proc/${pid}/ns/net`];
  ip([`link add r${i} type veth peer name eth netns ${pid}`, `addr add ${router}/24 dev r${i}`, `link set r${i} up`]);
  const there = ['link set lo up', `addr add ${address}/24 dev eth`, 'link set eth up'];
  ip([...there, `route add default via ${router}`], prefix);
  return { address, prefix };
}

function ip(lines: string[], prefix: string[] = []): void {
  const [program = '', ...args] = [...prefix, 'ip', '-batch', '-'];
  const { status, stderr } = spawnSync(program, args, { input: `${lines.join('\n')}\n`, encoding: 'utf8' });
  if (status !== 0) throw new Error(`ip: ${lines.join('; ')}: ${stderr}`);
}
