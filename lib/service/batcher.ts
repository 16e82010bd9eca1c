/**
 * Dynamic batching: requests of one model become batches. Nothing in here waits or reads a clock. A shell says what
 * time it is, starts the batch that it is given, and asks again when it is told to.
 */
import { OctconvError, show } from '../error.js';
import { checkOptions, type Known } from '../options.js';

/** How requests of one model are put together. */
export interface BatchPolicy {
  /** Rows of the batches that are compiled, ascending, the first is 1. */
  readonly sizes: readonly number[];
  /** Milliseconds that a batch of each size takes, if it was measured: then a batch is padded where that is faster. */
  readonly milliseconds?: readonly number[] | undefined;
  /**
   * Those of the sizes at which a batch goes without waiting for more. It is cut to the largest of them that is
   * reached, whatever was measured. Default: a batch goes at the largest size, and nothing is cut.
   */
  readonly preferred?: readonly number[] | undefined;
  /** Microseconds that the oldest request waits for others when an instance is free; default 0. */
  readonly maxDelay?: number | undefined;
  /** Batches in flight at a time; default 1. */
  readonly instances?: number | undefined;
  /**
   * Whether one more may be, if it has as many rows as need not wait for others: the device is then busy while results
   * are handed out, and at light load no batch makes another one later. Default false; in a service as it was measured,
   * unless `instances` or `preferred` are given.
   */
  readonly overlap?: boolean | undefined;
  /**
   * Rows that may wait; a request that would be more is refused, also where nothing waits. Default 256; in a service as
   * many as are 1 GiB, if those are fewer.
   */
  readonly queue?: number | undefined;
  /** Priorities are 1 (first) .. n; default 1. */
  readonly priorities?: number | undefined;
  /** Of requests that have none; default: the middle one, where there are two the first of them. */
  readonly defaultPriority?: number | undefined;
  /** Milliseconds in the queue after which a request is too late; default 0, which is none. */
  readonly timeout?: number | undefined;
  /** Whether a request may set another timeout, otherwise its own is ignored; default true. */
  readonly allowTimeoutOverride?: boolean | undefined;
  /** What becomes of a late request: an error, or it goes behind all others. Default reject. */
  readonly onTimeout?: 'reject' | 'delay' | undefined;
}

const policyOptions = {
  ...{ sizes: true, milliseconds: true, preferred: true, maxDelay: true, instances: true, overlap: true },
  queue: true,
  ...{ priorities: true, defaultPriority: true, timeout: true, allowTimeoutOverride: true, onTimeout: true },
} satisfies Known<BatchPolicy>;

/** A policy with its defaults; no `milliseconds` or `preferred` are empty lists. */
export type ResolvedPolicy = { readonly [K in keyof BatchPolicy]-?: NonNullable<BatchPolicy[K]> };

/** @throws OctconvError for an option that is not known, and for a value that is not possible. */
export function resolvePolicy(policy: BatchPolicy): ResolvedPolicy {
  checkOptions('batching', policy, policyOptions);
  const { sizes, milliseconds = [], preferred = [], priorities = 1, onTimeout = 'reject' } = policy;
  const {
    maxDelay = 0,
    instances = 1,
    overlap = false,
    queue = 256,
    timeout = 0,
    allowTimeoutOverride = true,
  } = policy;
  const { defaultPriority = Math.ceil(priorities / 2) } = policy;
  check('sizes', sizes, isAscending(sizes) && sizes[0] === 1, 'ascending integers, the first of them 1');
  const measured = Array.isArray(milliseconds) && [0, sizes.length].includes(milliseconds.length);
  const positive = measured && milliseconds.every((time) => isTime(time) && time > 0);
  check('milliseconds', milliseconds, positive, `a positive number for each of sizes ${show(sizes)}`);
  const compiled = isAscending(preferred) && preferred.every((size) => sizes.includes(size));
  check('preferred', preferred, compiled, `some of sizes ${show(sizes)}, ascending`);
  check('maxDelay', maxDelay, isTime(maxDelay), 'microseconds, at least 0');
  for (const [name, count] of Object.entries({ instances, queue, priorities }))
    check(name, count, isCount(count), 'a positive integer');
  checkPriority('defaultPriority', defaultPriority, priorities);
  check('timeout', timeout, isTime(timeout), 'milliseconds, at least 0');
  check('overlap', overlap, typeof overlap === 'boolean', 'true or false');
  check('allowTimeoutOverride', allowTimeoutOverride, typeof allowTimeoutOverride === 'boolean', 'true or false');
  check('onTimeout', onTimeout, ['reject', 'delay'].includes(onTimeout), '"reject" or "delay"');
  return {
    ...{ sizes: [...sizes], milliseconds: [...milliseconds], preferred: [...preferred] },
    ...{ maxDelay, instances, overlap, queue, priorities, defaultPriority, timeout, allowTimeoutOverride, onTimeout },
  };
}

function check(name: string, found: unknown, fine: boolean, wanted: string): void {
  if (!fine) throw new OctconvError(`batching: ${name} ${show(found)}, wanted ${wanted}`);
}

const isCount = (x: unknown): boolean => Number.isInteger(x) && (x as number) >= 1;
const isTime = (x: unknown): boolean => Number.isFinite(x) && (x as number) >= 0;
const isAscending = (all: readonly number[]): boolean =>
  Array.isArray(all) && all.every((x, i) => isCount(x) && x > (all[i - 1] ?? 0));

function checkPriority(name: string, priority: number, priorities: number): void {
  check(name, priority, isCount(priority) && priority <= priorities, `an integer from 1 to ${priorities}`);
}

/** What waits. It is known by its identity; whatever else a caller needs may be in it too. */
export interface Request {
  /** Requests of different keys are never in one batch: type and shape of the inputs, without the batch. */
  readonly key: string;
  readonly rows: number;
  /** Default: the one of the policy. */
  readonly priority?: number | undefined;
  /** Milliseconds; default: the one of the policy; 0 is none, whatever the policy has. */
  readonly timeout?: number | undefined;
}

/** Rows of a request that are in one batch; the other parts of the request are in others. */
export interface Part<R> {
  readonly request: R;
  /** First row of the request in this batch. */
  readonly from: number;
  readonly rows: number;
}

export interface Batch<R> {
  readonly key: string;
  /** Rows that run, of which those behind the parts are padding. */
  readonly size: number;
  /** Rows of the parts together. */
  readonly rows: number;
  readonly parts: readonly Part<R>[];
}

/** What to do now. */
export interface Next<R> {
  /** To be started; it is in flight until `ended`. There may be another one: ask until there is none. */
  readonly batch?: Batch<R> | undefined;
  /** Requests that are too late; they are removed. */
  readonly late: readonly R[];
  /** When to ask again, unless something is added or ends before; none: nothing changes by itself. */
  readonly at?: number | undefined;
}

/** A request of which rows wait. */
interface Waiting<R> {
  readonly request: R;
  readonly group: Group<R>;
  /** Arrivals are counted: several requests may come at one time. */
  readonly arrival: number;
  readonly came: number;
  readonly deadline: number;
  /** The priority, or for a delayed request one more than there are. */
  level: number;
  /** Rows that have started. */
  started: number;
}

/** A request of which rows have started stays the first of its level, also where older ones are delayed after it. */
const goesBefore = <R>(a: Waiting<R>, b: Waiting<R>): boolean =>
  (a.level - b.level || Number(b.started > 0) - Number(a.started > 0) || a.arrival - b.arrival) < 0;

const isOlder = <R>(a: Waiting<R>, b: Waiting<R>): boolean => a.arrival < b.arrival;

const isLateBefore = <R>(a: Waiting<R>, b: Waiting<R>): boolean =>
  (a.deadline - b.deadline || a.arrival - b.arrival) < 0;

/** What waits of one key, at least one request. */
class Group<R> {
  readonly line = new Heap<Waiting<R>>(goesBefore);
  readonly byAge = new Heap<Waiting<R>>(isOlder);
  rows = 0;

  get first(): Waiting<R> {
    return this.line.first as Waiting<R>;
  }

  get oldest(): Waiting<R> {
    return this.byAge.first as Waiting<R>;
  }
}

const never = Number.POSITIVE_INFINITY;

/**
 * Makes batches of requests. Times are milliseconds of any clock that does not go back. The work of a call grows with
 * the keys that wait, and with the logarithm of the requests.
 */
export class Batcher<R extends Request> {
  readonly policy: ResolvedPolicy;
  /** Rows of a key that go without waiting for more. */
  readonly #enough: number;
  readonly #waiting = new Map<R, Waiting<R>>();
  readonly #groups = new Map<string, Group<R>>();
  /** Requests that have a timeout and of which no row has started. */
  readonly #deadlines = new Heap<Waiting<R>>(isLateBefore);
  readonly #inFlight = new Set<Batch<R>>();
  #rows = 0;
  #arrivals = 0;

  /** @throws OctconvError for a policy that is not possible. */
  constructor(policy: BatchPolicy) {
    this.policy = resolvePolicy(policy);
    this.#enough = this.policy.preferred[0] ?? (this.policy.sizes.at(-1) as number);
  }

  /** Rows that wait; those of a late request do until `next` gives it. */
  get waiting(): number {
    return this.#rows;
  }

  /** Requests of which rows wait. */
  get waitingRequests(): number {
    return this.#waiting.size;
  }

  /** Batches that have not ended. */
  get inFlight(): number {
    return this.#inFlight.size;
  }

  /**
   * Whether it is queued; false: the queue is full.
   * @throws OctconvError for a request that is not possible, or that waits already.
   */
  add(request: R, now: number): boolean {
    const { priorities, defaultPriority, queue } = this.policy;
    const { key, rows, priority: level = defaultPriority, timeout } = request;
    check('rows', rows, isCount(rows), 'a positive integer');
    checkPriority('priority', level, priorities);
    check('timeout', timeout, timeout === undefined || isTime(timeout), 'milliseconds, at least 0');
    if (this.#waiting.has(request)) throw new OctconvError('batching: the request waits already, wanted another one');
    if (this.#rows + rows > queue) return false;
    const group = this.#groups.get(key) ?? new Group<R>();
    const deadline = now + this.#timeoutOf(request);
    const waiting = { request, group, arrival: this.#arrivals++, came: now, deadline, level, started: 0 };
    this.#groups.set(key, group);
    this.#waiting.set(request, waiting);
    group.line.add(waiting);
    group.byAge.add(waiting);
    if (deadline !== never) this.#deadlines.add(waiting);
    this.#count(group, rows);
    return true;
  }

  /**
   * Forgets what still waits of a request: its caller left, or a part of it failed. Gives whether rows of it were
   * waiting. Rows in flight are not stopped.
   */
  remove(request: R): boolean {
    const waiting = this.#waiting.get(request);
    if (waiting) this.#drop(waiting);
    return waiting !== undefined;
  }

  next(now: number): Next<R> {
    const late = this.#expire(now);
    const first = this.#firstReady(now);
    return { batch: first && this.#start(first), late, at: this.#changesAt(now) };
  }

  /** @throws OctconvError if the batch is not in flight: one that ends twice would let too many run. */
  ended(batch: Batch<R>): void {
    if (!this.#inFlight.delete(batch)) throw new OctconvError('batching: a batch ended, wanted one that is in flight');
  }

  #timeoutOf({ timeout }: R): number {
    const own = this.policy.allowTimeoutOverride ? timeout : undefined;
    return (own ?? this.policy.timeout) || never;
  }

  /** Takes out those that are late, or puts them behind all others. */
  #expire(now: number): R[] {
    const late: R[] = [];
    for (;;) {
      const waiting = this.#deadlines.first;
      if (!waiting || waiting.deadline > now) return late;
      if (this.policy.onTimeout === 'delay') {
        this.#delay(waiting);
      } else {
        this.#drop(waiting);
        late.push(waiting.request);
      }
    }
  }

  #delay(waiting: Waiting<R>): void {
    this.#deadlines.delete(waiting);
    waiting.group.line.delete(waiting);
    waiting.level = this.policy.priorities + 1;
    waiting.group.line.add(waiting);
  }

  /** Whether there is room for a batch of this key. */
  #isFree({ rows }: Group<R>): boolean {
    const { instances, overlap } = this.policy;
    const beside = overlap && rows >= this.#enough ? 1 : 0;
    return this.#inFlight.size < instances + beside;
  }

  /** Of the keys that may go now the one whose first request is before those of the others. */
  #firstReady(now: number): Group<R> | undefined {
    let first: Group<R> | undefined;
    for (const group of this.#groups.values())
      if (this.#isFree(group) && this.#readyAt(group) <= now && (!first || goesBefore(group.first, first.first)))
        first = group;
    return first;
  }

  #readyAt({ rows, oldest }: Group<R>): number {
    return rows >= this.#enough ? oldest.came : oldest.came + this.policy.maxDelay / 1000;
  }

  #start(group: Group<R>): Batch<R> {
    const { key } = group.first.request;
    const size = sizeFor(group.rows, this.policy);
    const rows = Math.min(size, group.rows);
    const parts: Part<R>[] = [];
    for (let room = rows; room > 0; ) {
      const part = this.#take(group.first, room);
      parts.push(part);
      room -= part.rows;
    }
    const batch = { key, size, rows, parts };
    this.#inFlight.add(batch);
    return batch;
  }

  /** Starts as many rows of the first request of a key as there is room for; it stays the first while it has others. */
  #take(waiting: Waiting<R>, room: number): Part<R> {
    const { request, group, started } = waiting;
    const rows = Math.min(room, request.rows - started);
    waiting.started += rows;
    this.#count(group, -rows);
    this.#deadlines.delete(waiting);
    if (waiting.started === request.rows) this.#drop(waiting);
    return { request, from: started, rows };
  }

  #drop(waiting: Waiting<R>): void {
    const { request, group, started } = waiting;
    group.line.delete(waiting);
    group.byAge.delete(waiting);
    this.#deadlines.delete(waiting);
    this.#waiting.delete(request);
    this.#count(group, started - request.rows);
    if (group.rows === 0) this.#groups.delete(request.key);
  }

  #count(group: Group<R>, more: number): void {
    group.rows += more;
    this.#rows += more;
  }

  /** A delayed request changes its place only, which the next call sees soon enough: nobody asks at its deadline. */
  #changesAt(now: number): number | undefined {
    const deadline = this.policy.onTimeout === 'reject' ? this.#deadlines.first?.deadline : undefined;
    let at = deadline ?? never;
    for (const group of this.#groups.values()) if (this.#isFree(group)) at = Math.min(at, this.#readyAt(group));
    return at === never ? undefined : Math.max(at, now);
  }
}

/** A size that needs no padding is taken where it is so near to the fastest: padding is work for nothing. */
const nearlyBest = 0.95;

/** The size of the batch for so many rows. */
function sizeFor(rows: number, { sizes, milliseconds, preferred }: ResolvedPolicy): number {
  const largestFilled = (all: readonly number[]) => all.findLast((size) => size <= rows);
  const reached = largestFilled(preferred);
  if (reached || milliseconds.length === 0) return reached ?? (largestFilled(sizes) as number);
  const speeds = sizes.map((size, i) => Math.min(rows, size) / (milliseconds[i] as number));
  const enough = Math.max(...speeds) * nearlyBest;
  const fast = sizes.filter((_, i) => (speeds[i] as number) >= enough);
  return largestFilled(fast) ?? (fast[0] as number);
}

/**
 * Items of which the first is known, and of which any may leave; the work grows with the logarithm of their number.
 * Items that leave are not skipped later: their inputs are large, and would be held until they are the first.
 */
class Heap<T> {
  readonly #items: T[] = [];
  readonly #places = new Map<T, number>();

  /** The order of two items does not change while both are in. */
  constructor(readonly isBefore: (a: T, b: T) => boolean) {}

  get first(): T | undefined {
    return this.#items[0];
  }

  add(item: T): void {
    this.#settle(item, this.#items.length);
  }

  delete(item: T): void {
    const gap = this.#places.get(item);
    if (gap === undefined) return;
    this.#places.delete(item);
    const last = this.#items.pop() as T;
    if (last !== item) this.#settle(last, gap);
  }

  /** Puts it where the gap is, or above or below it. */
  #settle(item: T, gap: number): void {
    let place = gap;
    while (place > 0 && this.isBefore(item, this.#at(above(place)))) {
      this.#put(this.#at(above(place)), place);
      place = above(place);
    }
    for (let next = this.#below(place); next && this.isBefore(this.#at(next), item); next = this.#below(place)) {
      this.#put(this.#at(next), place);
      place = next;
    }
    this.#put(item, place);
  }

  /** The place of the first of the two below, if there are any. */
  #below(place: number): number | undefined {
    const [left, right] = [2 * place + 1, 2 * place + 2];
    if (left >= this.#items.length) return undefined;
    return right < this.#items.length && this.isBefore(this.#at(right), this.#at(left)) ? right : left;
  }

  #at(place: number): T {
    return this.#items[place] as T;
  }

  #put(item: T, place: number): void {
    this.#items[place] = item;
    this.#places.set(item, place);
  }
}

const above = (place: number): number => (place - 1) >> 1;
