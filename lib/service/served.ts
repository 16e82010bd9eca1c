/** One version of a model that serves: its queue, its batches, its engines. */
import { onAbort } from '../abort.js';
import { bytesOf, type Matrix, type Shape, Tensor } from '../tensor.js';
import { type Batch, Batcher, type BatchPolicy, type Part, type ResolvedPolicy, resolvePolicy } from './batcher.js';
import type { About, Engine } from './engine.js';
import { type Code, codeOf, ServiceError } from './errors.js';

/** What a request may say beside its input. */
export interface Asked {
  readonly signal?: AbortSignal | undefined;
  /** 1 is answered first; how many there are the model's batching says. */
  readonly priority?: number | undefined;
  /** Milliseconds that it may wait until it is started; 0: as long as it takes. */
  readonly timeout?: number | undefined;
}

export interface Answered {
  readonly logits: Tensor<'f32', Matrix>;
  /** From its arrival until its input was there, until its first batch began, until its last one had ended. */
  readonly milliseconds: { readonly prepare: number; readonly queue: number; readonly compute: number };
}

/** What has happened since a version began to serve. */
export interface Counts {
  /** Requests that were answered, and others by their code. */
  success: number;
  readonly failures: Map<Code, number>;
  /** Rows, and batches of them. */
  inferences: number;
  executions: number;
  /** Sums over answered requests; `failed` over the others, until they failed. */
  readonly milliseconds: { prepare: number; queue: number; compute: number; failed: number };
  /** Batches by their size, padding included. */
  readonly batches: Map<number, { count: number; milliseconds: number }>;
  /** Milliseconds since 1970. */
  lastInference: number;
}

/** What listeners are told of. */
export interface RequestEnded {
  readonly rows: number;
  readonly code: Code | 'success';
  readonly milliseconds: { readonly prepare: number; readonly queue: number; readonly compute: number };
}
export interface BatchEnded {
  readonly rows: number;
  readonly size: number;
  readonly milliseconds: number;
}

export interface ServedEvents {
  request(event: RequestEnded): void;
  batch(event: BatchEnded): void;
}

type Input = Tensor<'f32' | 'u8'>;

interface Queued {
  readonly key: string;
  readonly rows: number;
  readonly priority?: number;
  readonly timeout?: number;
  readonly x: Input;
  /** Logits of all rows, when the first of them are there. */
  logits: Float32Array | undefined;
  /** Rows without logits. */
  left: number;
  /** When its first batch began. */
  started: number | undefined;
  settled: boolean;
  resolve(): void;
  reject(error: unknown): void;
}

/** The longest time that a timer takes, in milliseconds. */
const longest = 2 ** 31 - 1;

/** Rows that may wait unless told otherwise, and how many bytes they may be: clips are large. */
const [usualQueue, queueBytes] = [256, 2 ** 30];

/** An engine and how many more batches it may run now; one that overlaps makes it -1. */
interface Slot {
  readonly engine: Engine;
  free: number;
}

export class Served {
  readonly counts: Counts = {
    success: 0,
    failures: new Map(),
    inferences: 0,
    executions: 0,
    milliseconds: { prepare: 0, queue: 0, compute: 0, failed: 0 },
    batches: new Map(),
    lastInference: 0,
  };
  readonly policy: ResolvedPolicy;
  readonly #slots: readonly Slot[];
  readonly #batcher: Batcher<Queued>;
  readonly #events: ServedEvents;
  /** Rows of requests whose input is still being made. */
  #preparing = 0;
  /** Requests that are not answered. */
  #open = new Set<(error: Error) => void>();
  /** Batches of keys and sizes, the latest last, filled again and again: `run` of engines copies them. */
  readonly #batches = new Map<string, Input>();
  /** Batches in flight, and what stops them. */
  readonly #running = new Map<Batch<Queued>, AbortController>();
  #timer: NodeJS.Timeout | undefined;
  #idle: (() => void) | undefined;
  /** When all is given back, if it is closing. */
  #closed: Promise<void> | undefined;

  /** The engines compute the same. `policy` overrides what was measured. */
  constructor(
    readonly name: string,
    readonly engines: readonly [Engine, ...Engine[]],
    policy: Partial<BatchPolicy>,
    events: ServedEvents,
  ) {
    const { sizes, milliseconds } = engines[0].about.batching;
    const perEngine = engines.map(({ about }) => policy.instances ?? about.batching.instances);
    this.#slots = engines.map((engine, i) => ({ engine, free: perEngine[i] as number }));
    const instances = perEngine.reduce((sum, one) => sum + one, 0);
    const rowBytes = bytesOf({ dtype: 'f32', shape: engines[0].about.row });
    const queue = Math.min(usualQueue, Math.max(sizes.at(-1) as number, Math.floor(queueBytes / rowBytes)));
    const isMeasured = policy.instances === undefined && policy.preferred === undefined;
    const overlap = isMeasured && engines.every(({ about }) => about.batching.overlap);
    const given = Object.fromEntries(Object.entries(policy).filter(([, value]) => value !== undefined));
    this.policy = resolvePolicy({ milliseconds, queue, overlap, ...given, sizes, instances });
    // `#checkRoom` has said what comes in, and `#queue` which timeout it has.
    this.#batcher = new Batcher({ ...this.policy, queue: Number.MAX_SAFE_INTEGER, allowTimeoutOverride: true });
    this.#events = events;
  }

  get about(): About {
    return this.engines[0].about;
  }

  /** Rows that wait, those whose input is being made included. */
  get waiting(): number {
    return this.#preparing + this.#batcher.waiting;
  }

  get inFlight(): number {
    return this.#batcher.inFlight;
  }

  /**
   * The logits of `rows` rows. What makes the input is only called if the queue has room for them.
   * @throws ServiceError if it has none, the request is too late or its version is closed; what `input` throws.
   */
  async infer(rows: number, input: (signal: AbortSignal) => Input | Promise<Input>, asked: Asked): Promise<Answered> {
    const arrived = performance.now();
    const stop = new AbortController();
    const forget = onAbort(asked.signal, () => stop.abort(asked.signal?.reason));
    const end = (error: Error) => stop.abort(error);
    this.#open.add(end);
    let prepared = arrived;
    let queued: Queued | undefined;
    try {
      asked.signal?.throwIfAborted();
      if (this.#closed) throw new ServiceError('unavailable', `${this.name}: is no longer served`);
      this.checkRoom(rows);
      this.#preparing += rows;
      let x: Input;
      try {
        const made = input(stop.signal);
        x = made instanceof Tensor ? made : await made; // what is there is queued in this turn, in the order of calls
      } finally {
        this.#preparing -= rows;
        prepared = performance.now();
      }
      stop.signal.throwIfAborted();
      await new Promise<void>((resolve, reject) => {
        queued = this.#queue(x, rows, asked, prepared - arrived, resolve, reject);
        stop.signal.addEventListener('abort', () => this.#leave(queued as Queued, stop.signal.reason), { once: true });
        this.#pump();
      });
      const { logits, started = prepared } = queued as unknown as Queued;
      const now = performance.now();
      const milliseconds = { prepare: prepared - arrived, queue: started - prepared, compute: now - started };
      this.#count('success', rows, milliseconds);
      const classes = (logits as Float32Array).length / rows;
      return { logits: new Tensor('f32', [rows, classes], logits as Float32Array), milliseconds };
    } catch (error) {
      const now = performance.now();
      const failed = asked.signal?.aborted ? 'cancelled' : codeOf(error);
      const started = (queued as Queued | undefined)?.started ?? now;
      this.#count(failed, rows, { prepare: prepared - arrived, queue: started - prepared, compute: now - started });
      throw error;
    } finally {
      forget();
      this.#open.delete(end);
      if (this.#open.size === 0) this.#idle?.();
    }
  }

  /** @throws ServiceError, which counts, where there is no room for a row. */
  admit(): void {
    try {
      this.checkRoom(1);
    } catch (error) {
      this.#count(codeOf(error), 1, { prepare: 0, queue: 0, compute: 0 });
      throw error;
    }
  }

  /** @throws ServiceError where there is no room for so many rows. */
  checkRoom(rows: number): void {
    const { queue, milliseconds, sizes, instances } = this.policy;
    if (rows > queue) throw new ServiceError('invalid', `${this.name}: ${rows} rows, wanted at most ${queue}`);
    if (this.waiting + rows <= queue) return;
    const perRow = (milliseconds.at(-1) ?? 0) / (sizes.at(-1) ?? 1) / instances;
    const retryAfter = Math.max(1, Math.ceil((this.waiting * perRow) / 1000));
    const what = `${rows} more row${rows === 1 ? '' : 's'} than the ${this.waiting} that wait`;
    throw new ServiceError('overloaded', `${this.name}: ${what}, wanted at most ${queue}`, { retryAfter });
  }

  #queue(
    x: Input,
    rows: number,
    { priority, timeout }: Asked,
    late: number,
    resolve: () => void,
    reject: (error: unknown) => void,
  ): Queued {
    // The time that its input took counts.
    const { allowTimeoutOverride, timeout: usual, onTimeout } = this.policy;
    const given = (allowTimeoutOverride ? timeout : undefined) ?? usual;
    const left = given - late;
    if (given > 0 && left <= 0 && onTimeout !== 'delay') throw this.#late();
    const queued: Queued = {
      key: `${x.dtype}[${x.shape.slice(1)}]`,
      rows,
      ...(priority !== undefined && { priority }),
      timeout: given > 0 ? Math.max(left, Number.MIN_VALUE) : 0,
      x,
      logits: undefined,
      left: rows,
      started: undefined,
      settled: false,
      resolve,
      reject,
    };
    this.#batcher.add(queued, performance.now());
    return queued;
  }

  #late(): ServiceError {
    return new ServiceError('late', `${this.name}: the request waited for longer than its timeout`);
  }

  #leave(queued: Queued, reason: unknown): void {
    if (queued.settled) return;
    queued.settled = true;
    this.#batcher.remove(queued);
    queued.reject(reason);
    for (const [{ parts }, stop] of this.#running) if (parts.every(({ request }) => request.settled)) stop.abort();
    this.#pump();
  }

  /** Starts what can be started. */
  #pump(): void {
    clearTimeout(this.#timer);
    for (;;) {
      const now = performance.now();
      const { batch, late, at } = this.#batcher.next(now);
      for (const queued of late) {
        queued.settled = true;
        queued.reject(this.#late());
      }
      if (!batch) {
        if (at !== undefined) this.#timer = setTimeout(() => this.#pump(), Math.min(longest, Math.max(0, at - now)));
        return;
      }
      void this.#run(batch);
    }
  }

  async #run(batch: Batch<Queued>): Promise<void> {
    const slot = this.#slots.reduce((best, one) => (one.free > best.free ? one : best));
    slot.free--;
    const started = performance.now();
    for (const { request } of batch.parts) request.started ??= started;
    const stop = new AbortController();
    this.#running.set(batch, stop);
    try {
      const y = await slot.engine.run(this.#stack(batch), { signal: stop.signal });
      this.#tell(batch, performance.now() - started);
      let at = 0;
      for (const part of batch.parts) {
        give(part, y, at);
        at += part.rows;
      }
    } catch (error) {
      // Inputs were checked: what fails now is no request's fault.
      const known = error instanceof ServiceError;
      const failed = known
        ? error
        : new ServiceError('internal', `${this.name}: ${(error as Error).message}`, { cause: error });
      for (const { request } of batch.parts) this.#leave(request, failed);
    } finally {
      this.#running.delete(batch);
      slot.free++;
      this.#batcher.ended(batch);
      this.#pump();
    }
  }

  /** The rows of a batch, one behind the other; what is behind them is padding. */
  #stack({ key, size, parts }: Batch<Queued>): Input {
    const { request, rows } = parts[0] as Part<Queued>;
    const { x } = request;
    // The whole of a request, and no padding: what is left of a split one may be padded to as many rows.
    if (rows === size && rows === request.rows) return x;
    const name = `${size} ${key}`;
    const batch = this.#batches.get(name) ?? Tensor.zeros(x.dtype, [size, ...x.shape.slice(1)] as Shape);
    this.#batches.delete(name);
    this.#batches.set(name, batch);
    if (this.#batches.size > 2 * this.policy.sizes.length)
      this.#batches.delete(this.#batches.keys().next().value as string);
    const each = batch.length / size;
    let at = 0;
    for (const { request, from, rows } of parts) {
      batch.data.set(request.x.data.subarray(from * each, (from + rows) * each) as never, at);
      at += rows * each;
    }
    return batch;
  }

  #tell({ rows, size }: Batch<Queued>, milliseconds: number): void {
    const { counts } = this;
    counts.executions++;
    counts.lastInference = Date.now();
    const same = counts.batches.get(size) ?? { count: 0, milliseconds: 0 };
    counts.batches.set(size, { count: same.count + 1, milliseconds: same.milliseconds + milliseconds });
    this.#events.batch({ rows, size, milliseconds });
  }

  #count(code: Code | 'success', rows: number, milliseconds: RequestEnded['milliseconds']): void {
    const { counts } = this;
    if (code === 'success') {
      counts.success++;
      counts.inferences += rows;
      for (const key of ['prepare', 'queue', 'compute'] as const) counts.milliseconds[key] += milliseconds[key];
    } else {
      counts.failures.set(code, (counts.failures.get(code) ?? 0) + 1);
      counts.milliseconds.failed += milliseconds.prepare + milliseconds.queue + milliseconds.compute;
    }
    this.#events.request({ rows, code, milliseconds });
  }

  /** Answers what has come, for so long; what is left then fails. Called again it can only shorten that time. */
  close(milliseconds: number): Promise<void> {
    const late = setTimeout(() => {
      for (const end of [...this.#open]) end(new ServiceError('unavailable', `${this.name}: is no longer served`));
    }, milliseconds);
    this.#closed ??= this.#close();
    return this.#closed.finally(() => clearTimeout(late));
  }

  async #close(): Promise<void> {
    if (this.#open.size > 0) await new Promise<void>((resolve) => (this.#idle = resolve));
    clearTimeout(this.#timer);
    await Promise.all(this.engines.map((engine) => engine.close()));
  }
}

function give({ request, from, rows }: Part<Queued>, y: Tensor<'f32', Matrix>, at: number): void {
  if (request.settled) return;
  const classes = y.shape[1];
  request.logits ??= new Float32Array(request.rows * classes);
  request.logits.set(y.data.subarray(at * classes, (at + rows) * classes), from * classes);
  request.left -= rows;
  if (request.left > 0) return;
  request.settled = true;
  request.resolve();
}
