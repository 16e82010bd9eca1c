/** What happens now: the figures of the last minute, second by second, as the page at / draws them. */
import { createHistogram, type RecordableHistogram } from 'node:perf_hooks';
import type { FastifyInstance } from 'fastify';
import { isClip } from '../input/clips.js';
import type { About } from './engine.js';
import type { BatchEnded, RequestEnded } from './served.js';
import type { State, Version } from './models.js';
import type { Service } from './service.js';

/** A second of a version. */
export interface Second {
  /** Requests that were answered, those that failed, and rows of those that were answered. */
  readonly requests: number;
  readonly failures: number;
  readonly rows: number;
  /** Milliseconds from arrival to answer, of those that were answered; null if there were none. */
  readonly p50: number | null;
  readonly p95: number | null;
  readonly p99: number | null;
  /** Rows of a batch, the mean; null if there was none. */
  readonly batch: number | null;
  /** Rows that waited at its end. */
  readonly waiting: number;
}

/** Of one that is not loaded only what is known without its files. */
export interface LiveModel extends Partial<Pick<About, 'network' | 'alpha' | 'device' | 'dtype' | 'threads'>> {
  readonly name: string;
  readonly version: string;
  readonly state: State;
  readonly reason?: string | undefined;
  /** Of one row. */
  readonly multiplyAdds?: number;
  readonly parameters?: number;
  readonly takes?: 'pictures' | 'video' | 'tensors';
  readonly classes?: number;
  /** Pixels of the network's input, and the frames of a video network's. */
  readonly height?: number | undefined;
  readonly width?: number | undefined;
  readonly frames?: number | undefined;
  /** Rows of the batches that are compiled. */
  readonly sizes?: readonly number[];
  /** Rows that wait, and batches in flight. */
  readonly waiting: number;
  readonly inFlight: number;
  /** The last 60 whole seconds at most, the oldest first. */
  readonly seconds: readonly Second[];
}

export interface Snapshot {
  /** Milliseconds since 1970. */
  readonly now: number;
  readonly models: readonly LiveModel[];
}

const kept = 60;
/** A percentile is right to 1 %; a longer request, in microseconds, counts as so long. */
const ofLatency = { lowest: 1, highest: 3_600_000_000, figures: 2 } as const;

/** The last seconds of one version. Its size does not grow with the load. */
class History {
  readonly seconds: Second[] = [];
  readonly #latency: RecordableHistogram = createHistogram(ofLatency);
  #now = { requests: 0, failures: 0, rows: 0 };
  #batches = { count: 0, rows: 0 };

  ended({ code, rows, milliseconds }: RequestEnded): void {
    if (code !== 'success') {
      this.#now.failures++;
      return;
    }
    this.#now.requests++;
    this.#now.rows += rows;
    const { prepare, queue, compute } = milliseconds;
    const microseconds = Math.round(1000 * (prepare + queue + compute));
    this.#latency.record(Math.min(Math.max(microseconds, ofLatency.lowest), ofLatency.highest));
  }

  ran({ rows }: BatchEnded): void {
    this.#batches.count++;
    this.#batches.rows += rows;
  }

  /** Ends a second. */
  push(waiting: number): void {
    const { count, rows } = this.#batches;
    const milliseconds = (share: number) => (this.#now.requests ? this.#latency.percentile(share) / 1000 : null);
    const [p50, p95, p99] = [milliseconds(50), milliseconds(95), milliseconds(99)];
    this.seconds.push({ ...this.#now, p50, p95, p99, batch: count ? rows / count : null, waiting });
    if (this.seconds.length > kept) this.seconds.shift();
    this.#latency.reset();
    this.#now = { requests: 0, failures: 0, rows: 0 };
    this.#batches = { count: 0, rows: 0 };
  }
}

/** Counts what a service does, from now on. */
export class Live implements Disposable {
  readonly #service: Service;
  readonly #histories = new Map<string, History>();
  readonly #timer: NodeJS.Timeout;

  constructor(service: Service) {
    this.#service = service;
    service.on('request', this.#request).on('batch', this.#batch);
    this.#timer = setInterval(() => this.tick(), 1000).unref();
  }

  readonly #request = (name: string, version: string, event: RequestEnded) => this.#of({ name, version }).ended(event);
  readonly #batch = (name: string, version: string, event: BatchEnded) => this.#of({ name, version }).ran(event);

  #of({ name, version }: Pick<Version, 'name' | 'version'>): History {
    const key = `${name}/${version}`;
    const history = this.#histories.get(key) ?? new History();
    this.#histories.set(key, history);
    return history;
  }

  /** Ends a second: the timer's, and tests'. Versions that the service has no more are forgotten. */
  tick(): void {
    const versions = this.#service.versions();
    for (const version of versions) this.#of(version).push(version.waiting);
    const there = new Set(versions.map(({ name, version }) => `${name}/${version}`));
    for (const key of this.#histories.keys()) if (!there.has(key)) this.#histories.delete(key);
  }

  snapshot(): Snapshot {
    const models = this.#service.versions().map((version): LiveModel => {
      const { name, version: number, state, reason, about, batching, waiting, inFlight } = version;
      const { seconds } = this.#of(version);
      const facts = about && { ...factsOf(about), sizes: batching?.sizes ?? [] };
      return { name, version: number, state, reason, ...facts, waiting, inFlight, seconds };
    });
    return { now: Date.now(), models };
  }

  /** Adds `GET /live`, the snapshot as JSON. */
  addRoute(app: FastifyInstance): void {
    app.get('/live', (_, reply) => reply.header('cache-control', 'no-store').send(this.snapshot()));
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    this.#service.off('request', this.#request).off('batch', this.#batch);
  }
}

function factsOf({ network, alpha, device, dtype, threads, multiplyAdds, parameters, classes, input }: About) {
  const takes = !input ? 'tensors' : isClip(input) ? 'video' : 'pictures';
  const { height, width, frames } = input ?? {};
  const place = { network, alpha, device, dtype, threads };
  return { ...place, multiplyAdds, parameters, takes, classes, height, width, frames } as const;
}
