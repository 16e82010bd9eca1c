/** Open-loop load: requests go out at a constant rate, whatever comes back. */
import { Agent, type ClientRequest, request } from 'node:http';
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises';
import { OctconvError } from '../error.js';

/** Milliseconds; p999 of fewer than a thousand is the largest. */
export interface Percentiles {
  readonly p50: number;
  readonly p99: number;
  readonly p999: number;
  readonly max: number;
}

export interface Stage {
  /** Requests per second. */
  readonly rate: number;
  readonly sent: number;
  readonly answered: number;
  /** With 429. */
  readonly refused: number;
  /** With another status, a broken connection, or no answer in time. */
  readonly failed: number;
  /** Answers per second; the first fifth of the stage does not count. */
  readonly goodput: number;
  /** From when a request was due: what waits behind a slow one counts as slow. Absent if there were none. */
  readonly latency?: Percentiles | undefined;
  /** Of those that were refused. */
  readonly refusal?: Percentiles | undefined;
  /** From when a request was due until it was sent: how late the load itself is, which is in the others. */
  readonly lag: Percentiles;
  /** Cores that the load itself took, on average. */
  readonly cores: number;
}

/** The value that so many of them are not above, by the nearest rank. */
export function percentiles(values: readonly number[]): Percentiles | undefined {
  const sorted = Float64Array.from(values).sort();
  const at = (share: number): number => sorted[Math.ceil(share * sorted.length) - 1] as number;
  return sorted.length ? { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: at(1) } : undefined;
}

/** Connections at a time; requests beyond wait for one, which counts. */
const connections = 512;

/** One request, sent again and again. By node:http: fetch takes several times as long, on the same cores. */
export class Target {
  readonly #agent = new Agent({ keepAlive: true, maxSockets: connections });
  readonly #open = new Set<ClientRequest>();

  constructor(
    readonly url: string,
    readonly headers: { readonly [name: string]: string },
    readonly body: Uint8Array,
  ) {}

  /** The status, when all of the answer is there. */
  send(): Promise<number> {
    return new Promise((resolve, reject) => {
      const headers = { ...this.headers, 'content-length': this.body.length };
      const sent = request(this.url, { method: 'POST', agent: this.#agent, headers }, (answer) => {
        answer.resume();
        answer.once('error', reject);
        answer.once('end', () => resolve(answer.statusCode ?? 0));
      });
      this.#open.add(sent);
      sent.once('error', reject);
      sent.once('close', () => this.#open.delete(sent));
      sent.end(this.body);
    });
  }

  /** What has no answer yet fails. */
  close(): void {
    for (const sent of this.#open) sent.destroy(new Error('no answer in time'));
    this.#agent.destroy();
  }
}

/** Share of a stage until answers count: queues and batches are then as they stay. */
const settling = 0.2;
const [ok, overloaded] = [200, 429];

/**
 * So many requests per second for so many seconds. Requests that have no answer after as long again, ten seconds at
 * least, fail.
 */
export async function offer(target: Target, rate: number, seconds: number): Promise<Stage> {
  const [answered, refused, lag]: [number[], number[], number[]] = [[], [], []];
  let [failed, counted] = [0, 0];
  const cpu = process.cpuUsage();
  const start = performance.now();
  const [from, to] = [start + 1000 * settling * seconds, start + 1000 * seconds];
  const one = async (due: number): Promise<void> => {
    const status = await target.send().catch(() => 0);
    const now = performance.now();
    if (status === ok) answered.push(now - due);
    else if (status === overloaded) refused.push(now - due);
    else failed++;
    if (status === ok && now >= from && now < to) counted++;
  };
  const all: Promise<void>[] = [];
  const count = Math.max(1, Math.round(rate * seconds));
  for (let i = 0; i < count; i++) {
    const due = start + (1000 * i) / rate;
    await turn(); // where the load is late, answers are still read
    // A timer may be sooner than it is told.
    while (performance.now() < due) await sleep(Math.ceil(due - performance.now()));
    lag.push(performance.now() - due);
    all.push(one(due));
  }
  const late = setTimeout(() => target.close(), 1000 * Math.max(10, seconds));
  await Promise.all(all);
  clearTimeout(late);
  target.close();
  const { user, system } = process.cpuUsage(cpu);
  return {
    rate,
    sent: count,
    answered: answered.length,
    refused: refused.length,
    failed,
    goodput: counted / (seconds * (1 - settling)),
    latency: percentiles(answered),
    refusal: percentiles(refused),
    lag: percentiles(lag) as Percentiles,
    cores: (user + system) / (1000 * (performance.now() - start)),
  };
}

/**
 * Answers per second with so many requests in flight, each sent when another is answered: closed loop.
 * @throws OctconvError if one is neither answered nor refused.
 */
export async function saturate(target: Target, inFlight: number, seconds: number): Promise<number> {
  const start = performance.now();
  let answered = 0;
  const one = async (): Promise<void> => {
    while (performance.now() - start < 1000 * seconds) {
      const status = await target.send();
      if (status !== ok && status !== overloaded) throw new OctconvError(`bench: ${target.url}: status ${status}`);
      if (status === ok) answered++;
    }
  };
  await Promise.all(Array.from({ length: inFlight }, one)).finally(() => target.close());
  return (1000 * answered) / (performance.now() - start);
}
