/**
 * The queue of the service: cases as Triton's qa/L0_batcher has them, with a clock that is set by hand and batches that
 * end when a test says so; then random ones, in which the same rules over one sorted list give the same.
 */
import { expect } from 'chai';
import { OctconvError } from '../lib/error.js';
import { type Batch, Batcher, type BatchPolicy, type Request, type ResolvedPolicy } from '../lib/service/batcher.js';

interface Named extends Request {
  readonly name: string;
}

/** A batcher and the batches that it has in flight. */
class Held {
  readonly batcher: Batcher<Named>;
  readonly running: Batch<Named>[] = [];
  /** What the last call said. */
  at: number | undefined;
  now = 0;

  constructor(policy: Partial<BatchPolicy> = {}) {
    this.batcher = new Batcher({ sizes: [1, 2, 4], ...policy });
  }

  /** Queues a request of this name, and gives it. */
  add(name: string, rows = 1, more: Partial<Request> = {}): Named {
    const request = { name, key: 'image', rows, ...more };
    expect(this.batcher.add(request, this.now), name).to.equal(true);
    return request;
  }

  addAll(names: string, more: Partial<Request> = {}): Named[] {
    return names.split(' ').map((name) => this.add(name, 1, more));
  }

  /** What starts and what is late, until there is no more: `a0 a1 b _` is a batch of 4 with 1 row of padding. */
  asks(now = this.now): string[] {
    this.now = now;
    const all: string[] = [];
    for (;;) {
      const { batch, late, at } = this.batcher.next(now);
      this.at = at;
      all.push(...late.map(({ name }) => `${name} is late`));
      if (!batch) return all;
      this.running.push(batch);
      all.push(wordsOf(batch));
    }
  }

  /** Ends a batch, by default the oldest. */
  ends(index = 0): void {
    this.batcher.ended(this.running.splice(index, 1)[0] as Batch<Named>);
  }

  /** One that is in the way while others are queued. */
  busy(): this {
    this.add('first');
    expect(this.asks()).to.deep.equal(['first']);
    return this;
  }

  /** Ends batches until nothing is in flight; gives what started. */
  drains(): string[] {
    const all = this.asks();
    while (this.running.length) {
      this.ends();
      all.push(...this.asks());
    }
    return all;
  }
}

function wordsOf({ key, size, rows, parts }: Batch<Named>): string {
  const words = parts.flatMap(({ request, from, rows }) => {
    expect(request.key).to.equal(key);
    return Array.from({ length: rows }, (_, i) => (request.rows === 1 ? request.name : `${request.name}${from + i}`));
  });
  expect(words).to.have.length(rows);
  return [...words, ...Array(size - rows).fill('_')].join(' ');
}

describe('batcher', () => {
  describe('sizes', () => {
    it('one request goes alone at once', () => {
      const held = new Held();
      held.add('a');
      expect(held.asks()).to.deep.equal(['a']);
      expect(held.batcher.inFlight).to.equal(1);
      held.ends();
      expect(held.batcher.inFlight).to.equal(0);
      expect(held.asks()).to.deep.equal([]);
      expect(held.at).to.equal(undefined);
    });

    it('those that come while it runs are together: the largest size that is full', () => {
      const held = new Held().busy();
      held.addAll('a b c d e f g');
      expect(held.asks()).to.deep.equal([]);
      expect([held.batcher.waiting, held.batcher.waitingRequests]).to.deep.equal([7, 7]);
      held.ends();
      expect(held.asks()).to.deep.equal(['a b c d']);
      expect([held.batcher.waiting, held.batcher.waitingRequests]).to.deep.equal([3, 3]);
      held.ends();
      expect(held.asks()).to.deep.equal(['e f']);
      held.ends();
      expect(held.asks()).to.deep.equal(['g']);
    });

    it('a request of more rows than fit is split, and its rest goes with others', () => {
      const held = new Held({ instances: 2 });
      held.add('a', 6);
      held.add('b', 2);
      expect(held.asks()).to.deep.equal(['a0 a1 a2 a3', 'a4 a5 b0 b1']);
      expect(held.batcher.waiting).to.equal(0);
      expect(held.running.map(({ parts }) => parts.map(({ from, rows }) => [from, rows]))).to.deep.equal([
        [[0, 4]],
        [
          [4, 2],
          [0, 2],
        ],
      ]);
    });

    it('the rest is the first of its priority, not of those before', () => {
      const held = new Held({ priorities: 2, defaultPriority: 2 });
      held.add('a', 9);
      held.add('b');
      expect(held.asks()).to.deep.equal(['a0 a1 a2 a3']);
      held.add('c', 3, { priority: 1 });
      expect([held.batcher.waiting, held.batcher.waitingRequests]).to.deep.equal([9, 3]);
      expect(held.drains()).to.deep.equal(['c0 c1 c2 a4', 'a5 a6 a7 a8', 'b']);
    });

    it('by measured times: the most rows a millisecond, padded or not', () => {
      const sizeOf = (milliseconds: number[], rows: number, preferred?: number[]) => {
        const held = new Held({ sizes: [1, 2, 4, 8], milliseconds, preferred });
        held.add('a', rows);
        held.asks();
        return held.running[0]?.size;
      };
      const sizes = (milliseconds: number[]) => [1, 2, 3, 4, 5, 6, 7, 8, 30].map((rows) => sizeOf(milliseconds, rows));
      expect(sizes([10, 20, 40, 80]), 'linear').to.deep.equal([1, 2, 2, 4, 4, 4, 4, 8, 8]);
      expect(sizes([10, 11, 12, 30]), 'slow at 8').to.deep.equal([1, 2, 4, 4, 4, 4, 4, 4, 4]);
      expect(sizes([10, 10, 10, 10]), 'any the same').to.deep.equal([1, 2, 4, 4, 8, 8, 8, 8, 8]);
      expect(sizeOf([10, 10, 14.2, 99], 3), 'within 5 % unpadded').to.equal(4);
      expect(sizeOf([10, 10, 14.3, 99], 3), 'within 5 % unpadded').to.equal(2);
      expect(sizeOf([99, 99, 10, 9.6], 3), 'within 5 % smallest').to.equal(4);
      expect(sizeOf([99, 99, 10, 9.4], 3), 'within 5 % smallest').to.equal(8);
      expect(sizeOf([10, 11, 12, 30], 8, [8]), 'preferred').to.equal(8);
      expect(sizeOf([10, 11, 12, 30], 3, [8]), 'preferred, not reached').to.equal(4);
    });

    it('padding is behind the rows', () => {
      const held = new Held({ milliseconds: [10, 11, 12] }).busy();
      held.add('a', 2);
      held.add('b');
      expect(held.drains()).to.deep.equal(['a0 a1 b _']);
    });
  });

  describe('delay', () => {
    it('the oldest waits so many microseconds for others', () => {
      const held = new Held({ maxDelay: 2500 });
      held.now = 10;
      held.add('a');
      expect(held.asks(10)).to.deep.equal([]);
      expect(held.at).to.equal(12.5);
      held.now = 12;
      held.add('b');
      expect(held.asks(12.4)).to.deep.equal([]);
      expect(held.at).to.equal(12.5);
      expect(held.asks(12.5)).to.deep.equal(['a b']);
      expect(held.at).to.equal(undefined);
    });

    it('nothing waits where the largest size is full', () => {
      const held = new Held({ maxDelay: 2000 });
      held.addAll('a b c');
      expect(held.asks()).to.deep.equal([]);
      held.addAll('d e');
      expect(held.asks(1)).to.deep.equal(['a b c d']);
      expect(held.at, 'no instance is free').to.equal(undefined);
      held.ends();
      expect(held.asks(1)).to.deep.equal([]);
      expect(held.at, 'e came at 0').to.equal(2);
      expect(held.asks(2)).to.deep.equal(['e']);
    });

    it('what has waited long enough while instances were busy goes at once', () => {
      const held = new Held({ maxDelay: 2000 });
      held.add('a');
      expect(held.asks(2)).to.deep.equal(['a']);
      held.add('b');
      expect(held.asks(5)).to.deep.equal([]);
      held.ends();
      expect(held.asks(5)).to.deep.equal(['b']);
    });

    it('it is that of the oldest that still waits, whatever its priority', () => {
      const held = new Held({ maxDelay: 2000, priorities: 2 });
      const oldest = held.add('a', 1, { priority: 2 });
      held.now = 1;
      held.add('b', 1, { priority: 1 });
      held.asks();
      expect(held.at).to.equal(2);
      held.batcher.remove(oldest);
      expect(held.asks(2)).to.deep.equal([]);
      expect(held.at).to.equal(3);
      expect(held.asks(3)).to.deep.equal(['b']);
    });

    it('a removed request no longer fills a batch', () => {
      const held = new Held({ maxDelay: 2000 });
      const [a] = held.addAll('a b c d');
      held.batcher.remove(a as Named);
      expect(held.asks()).to.deep.equal([]);
      expect(held.at).to.equal(2);
    });

    it('a preferred size does not wait, and more is cut to it', () => {
      const held = new Held({ sizes: [1, 2, 4, 8], preferred: [2, 4], maxDelay: 2000, instances: 3 });
      held.add('a');
      expect(held.asks()).to.deep.equal([]);
      held.add('b');
      expect(held.asks()).to.deep.equal(['a b']);
      held.ends();
      held.addAll('c d e f g h i');
      expect(held.asks(1)).to.deep.equal(['c d e f', 'g h']);
      expect(held.at).to.equal(2);
      expect(held.asks(2)).to.deep.equal(['i']);
    });

    it('a preferred size is taken also where the largest is full', () => {
      const held = new Held({ sizes: [1, 2, 4, 8], preferred: [4], instances: 3 });
      held.add('a', 9);
      expect(held.asks()).to.deep.equal(['a0 a1 a2 a3', 'a4 a5 a6 a7', 'a8']);
    });
  });

  describe('keys', () => {
    it('are never in one batch; the first request decides which goes', () => {
      const held = new Held().busy();
      held.add('a', 1, { key: 'small' });
      held.add('b', 1, { key: 'large' });
      held.add('c', 1, { key: 'small' });
      held.add('d', 1, { key: 'large' });
      held.add('e', 1, { key: 'small' });
      expect(held.drains()).to.deep.equal(['a c', 'b d', 'e']);
    });

    it('one that need not wait goes before one that must', () => {
      const held = new Held({ maxDelay: 5000 });
      held.add('a', 1, { key: 'small' });
      held.now = 1;
      held.add('b', 5, { key: 'large' });
      expect(held.asks()).to.deep.equal(['b0 b1 b2 b3']);
      held.ends();
      expect(held.asks()).to.deep.equal([]);
      expect(held.at).to.equal(5);
      held.now = 6; // where both may go, and b has started
      expect(held.drains()).to.deep.equal(['b4', 'a']);
    });
  });

  describe('instances', () => {
    it('so many batches are in flight, and end in any order', () => {
      const held = new Held({ instances: 2 });
      held.add('a', 4);
      held.add('b', 4);
      held.add('c', 3);
      expect(held.asks()).to.deep.equal(['a0 a1 a2 a3', 'b0 b1 b2 b3']);
      expect(held.batcher.inFlight).to.equal(2);
      held.ends(1);
      expect(held.asks()).to.deep.equal(['c0 c1']);
      held.ends(0);
      expect(held.asks()).to.deep.equal(['c2']);
      expect(held.batcher.inFlight).to.equal(2);
    });

    it('what follows at once is said, before it is asked for', () => {
      const { batcher } = new Held({ instances: 2 });
      batcher.add({ name: 'a', key: 'image', rows: 9 }, 5);
      expect(batcher.next(7).at).to.equal(7);
      expect(batcher.next(7).at, 'none is free').to.equal(undefined);
    });

    it('one more may be, of requests that are enough; at light load a request waits', () => {
      const held = new Held({ overlap: true, maxDelay: 1000 });
      held.add('first');
      expect(held.asks(1)).to.deep.equal(['first']);
      held.addAll('a b c');
      expect([held.asks(5), held.at]).to.deep.equal([[], undefined]);
      held.addAll('d e');
      expect(held.asks(), 'full').to.deep.equal(['a b c d']);
      held.addAll('f g h i');
      expect(held.asks(), 'a third one').to.deep.equal([]);
      held.ends();
      expect(held.asks(), 'one has ended').to.deep.equal(['e f g h']);
      held.ends();
      expect([held.asks(), held.at], 'not enough').to.deep.equal([[], undefined]);
      held.ends();
      expect(held.asks(6), 'none is in flight').to.deep.equal(['i']);
    });

    it('a batch ends once', () => {
      const held = new Held().busy();
      const [batch] = held.running as [Batch<Named>];
      held.ends();
      const wanted = 'batching: a batch ended, wanted one that is in flight';
      expect(() => held.batcher.ended(batch)).to.throw(OctconvError, wanted);
      expect(() => held.batcher.ended({ ...batch })).to.throw(OctconvError, wanted);
      expect(held.batcher.inFlight).to.equal(0);
    });
  });

  describe('priorities', () => {
    it('go before arrival, also in one batch', () => {
      const held = new Held({ priorities: 3 }).busy();
      held.add('a', 1, { priority: 3 });
      held.add('b');
      held.add('c', 1, { priority: 1 });
      held.add('d', 1, { priority: 3 });
      held.add('e', 1, { priority: 2 });
      held.add('f', 1, { priority: 1 });
      expect(held.drains()).to.deep.equal(['c f b e', 'a d']);
    });

    it('decide between keys', () => {
      const held = new Held({ priorities: 2 }).busy();
      held.add('a', 1, { key: 'small', priority: 2 });
      held.add('b', 1, { key: 'large', priority: 2 });
      held.add('c', 1, { key: 'large', priority: 1 });
      expect(held.drains()).to.deep.equal(['c b', 'a']);
    });

    it('of requests without one are the middle, or what the policy says', () => {
      const defaults = [1, 2, 3, 4, 5].map((priorities) => new Held({ priorities }).batcher.policy.defaultPriority);
      expect(defaults).to.deep.equal([1, 1, 2, 2, 3]);
      const held = new Held({ priorities: 3, defaultPriority: 3 }).busy();
      held.add('a');
      held.add('b', 1, { priority: 2 });
      expect(held.drains()).to.deep.equal(['b a']);
    });
  });

  describe('timeout', () => {
    it('a request that has waited as long is late, once', () => {
      const held = new Held({ timeout: 10, queue: 3 }).busy();
      held.add('a', 2);
      held.now = 1;
      held.add('b');
      expect(held.asks(9)).to.deep.equal([]);
      expect(held.at).to.equal(10);
      expect(held.asks(10)).to.deep.equal(['a is late']);
      expect(held.batcher.waiting).to.equal(1);
      expect(held.at).to.equal(11);
      held.add('c', 2); // there is room
      expect(held.asks(10.5)).to.deep.equal([]);
      held.ends();
      expect(held.asks(11), 'one is free, but it is too late').to.deep.equal(['b is late', 'c0 c1']);
      expect(held.at).to.equal(undefined);
    });

    it('one that has started is never late, nor is its rest', () => {
      const held = new Held({ timeout: 10 });
      held.add('a', 5);
      expect(held.asks()).to.deep.equal(['a0 a1 a2 a3']);
      expect(held.at).to.equal(undefined);
      expect(held.asks(20)).to.deep.equal([]);
      held.ends();
      expect(held.asks(20)).to.deep.equal(['a4']);
    });

    it('a request may have its own, or none', () => {
      const held = new Held({ timeout: 10, sizes: [1, 2, 4, 8] }).busy();
      held.add('long', 1, { timeout: 20 });
      held.add('policy');
      held.add('short', 1, { timeout: 5 });
      held.add('none', 1, { timeout: 0 });
      expect(held.asks(9)).to.deep.equal(['short is late']);
      expect(held.asks(30)).to.deep.equal(['policy is late', 'long is late']);
      expect(held.drains()).to.deep.equal(['none']);
      const without = new Held().busy();
      without.add('a');
      without.add('b', 1, { timeout: 3 });
      expect(without.asks(1e6)).to.deep.equal(['b is late']);
    });

    it('its own is ignored where the policy says so', () => {
      const held = new Held({ timeout: 10, allowTimeoutOverride: false }).busy();
      held.add('a', 1, { timeout: 20 });
      held.add('b', 1, { timeout: 5 });
      held.add('c', 1, { timeout: 0 });
      expect(held.asks(9)).to.deep.equal([]);
      expect(held.asks(10)).to.deep.equal(['a is late', 'b is late', 'c is late']);
      const without = new Held({ allowTimeoutOverride: false }).busy();
      without.add('a', 1, { timeout: 3 });
      expect(without.asks(1e6)).to.deep.equal([]);
    });

    it('comes before a delay that is longer', () => {
      const held = new Held({ timeout: 2, maxDelay: 5000 });
      held.add('a');
      expect(held.asks()).to.deep.equal([]);
      expect(held.at).to.equal(2);
      expect(held.asks(2)).to.deep.equal(['a is late']);
      const early = new Held({ timeout: 2, maxDelay: 5000 });
      early.now = -2;
      early.add('a');
      expect(early.asks()).to.deep.equal([]);
      expect(early.at, 'a time like others').to.equal(0);
    });

    it('may only delay: behind all others, in order of arrival', () => {
      const held = new Held({ timeout: 10, onTimeout: 'delay', priorities: 2, defaultPriority: 1 }).busy();
      held.add('a');
      held.add('b', 1, { timeout: 5 });
      held.add('c', 1, { key: 'large', timeout: 6, priority: 2 });
      expect(held.asks()).to.deep.equal([]);
      expect(held.at, 'nobody need ask').to.equal(undefined);
      held.now = 12;
      held.add('d', 1, { priority: 2 });
      held.add('e', 1, { key: 'large' });
      held.add('f', 1, { key: 'other', priority: 2 });
      expect(held.batcher.waitingRequests).to.equal(6);
      expect(held.drains()).to.deep.equal(['e c', 'd a', 'f', 'b']);
    });

    it('the rest of one that was delayed goes before those that are delayed later', () => {
      const held = new Held({ timeout: 20, onTimeout: 'delay', maxDelay: 50_000 });
      held.add('a', 1, { key: 'large' });
      held.add('b', 5, { timeout: 5 });
      expect(held.asks(6)).to.deep.equal(['b0 b1 b2 b3']);
      held.now = 50;
      expect(held.drains()).to.deep.equal(['b4', 'a']);
    });
  });

  describe('remove', () => {
    it('forgets what waits, from anywhere in the queue', () => {
      const held = new Held().busy();
      const [a, , c, , e] = held.addAll('a b c d e') as [Named, Named, Named, Named, Named];
      expect([c, a, e].map((request) => held.batcher.remove(request))).to.deep.equal([true, true, true]);
      expect([held.batcher.waiting, held.batcher.waitingRequests]).to.deep.equal([2, 2]);
      expect(held.batcher.remove(a), 'again').to.equal(false);
      expect(held.drains()).to.deep.equal(['b d']);
    });

    it('leaves what is in flight', () => {
      const held = new Held();
      const a = held.add('a');
      held.asks();
      expect(held.batcher.remove(a)).to.equal(false);
      expect(held.batcher.inFlight).to.equal(1);
      held.ends();
      expect(held.batcher.inFlight).to.equal(0);
    });

    it('forgets the rest of one that was split', () => {
      const held = new Held();
      const a = held.add('a', 7);
      held.add('b');
      expect(held.asks()).to.deep.equal(['a0 a1 a2 a3']);
      expect(held.batcher.remove(a)).to.equal(true);
      expect(held.batcher.waiting).to.equal(1);
      expect(held.drains()).to.deep.equal(['b']);
    });

    it('takes back the timeout, and the last of a key', () => {
      const held = new Held({ timeout: 10, maxDelay: 5000 });
      held.batcher.remove(held.add('a'));
      expect(held.asks(0)).to.deep.equal([]);
      expect(held.at).to.equal(undefined);
      expect(held.asks(99)).to.deep.equal([]);
      held.add('a'); // of the same key
      expect(held.asks(104)).to.deep.equal(['a']);
    });
  });

  describe('queue', () => {
    it('that is full refuses, and takes others when there is room', () => {
      const held = new Held({ queue: 4 }).busy();
      const request = (rows: number) => ({ name: 'x', key: 'other', rows });
      held.add('a', 3);
      expect(held.batcher.add(request(2), 0)).to.equal(false);
      const b = held.add('b');
      expect(held.batcher.add(request(1), 0)).to.equal(false);
      expect([held.batcher.waiting, held.batcher.waitingRequests]).to.deep.equal([4, 2]);
      held.batcher.remove(b);
      held.add('c');
      held.ends();
      expect(held.asks()).to.deep.equal(['a0 a1 a2 c']);
      held.add('d', 4); // rows in flight do not wait
      expect(held.batcher.add(request(1), 0)).to.equal(false);
    });

    it('refuses a request that is larger than itself, also where nothing waits', () => {
      const { batcher } = new Held({ queue: 4 });
      expect(batcher.add({ name: 'a', key: 'image', rows: 5 }, 0)).to.equal(false);
      expect(batcher.next(0)).to.deep.include({ batch: undefined, at: undefined });
      expect(new Held().batcher.add({ name: 'a', key: 'image', rows: 257 }, 0)).to.equal(false);
      expect(new Held().batcher.add({ name: 'a', key: 'image', rows: 256 }, 0)).to.equal(true);
    });

    it('of many thousands takes no time that grows with its square', () => {
      const milliseconds = (count: number) => {
        const start = process.cpuUsage();
        const batcher = new Batcher<Named>({ sizes: [1, 8], queue: 2 * count, timeout: 1e6, priorities: 3 });
        const all = Array.from({ length: count }, (_, i) => ({
          name: `${i}`,
          key: 'a',
          rows: 2,
          priority: 1 + (i % 3),
        }));
        for (const request of all) batcher.add(request, 0);
        for (const request of all) if (request.name.endsWith('7')) batcher.remove(request);
        expect(batcher.waitingRequests).to.equal(0.9 * count);
        let batches = 0;
        for (let batch = batcher.next(0).batch; batch; batch = batcher.next(0).batch) {
          batches++;
          batcher.ended(batch);
        }
        expect(batches).to.equal((2 * 0.9 * count) / 8);
        for (const request of all) batcher.add(request, 1);
        expect(batcher.next(1e7).late).to.have.length(count);
        const { user, system } = process.cpuUsage(start);
        return (user + system) / 1000;
      };
      const fastest = (count: number) => Math.min(...Array.from({ length: 3 }, () => milliseconds(count)));
      expect(fastest(50_000) / fastest(5_000)).to.be.below(40); // quadratic time would give 100
    });
  });

  describe('what is not possible', () => {
    const failing = (policy: unknown) => () => new Batcher(policy as BatchPolicy);

    it('is an error that says which policy was found and wanted', () => {
      const sizes = [1, 2, 4];
      const cases: [policy: object, message: string][] = [
        [{ sizes: [2, 4] }, 'sizes [2,4], wanted ascending integers, the first of them 1'],
        [{ sizes: [] }, 'sizes [], wanted ascending'],
        [{ sizes: [1, 4, 4] }, 'sizes [1,4,4], wanted ascending'],
        [{ sizes: [1, 2.5] }, 'sizes [1,2.5], wanted ascending'],
        [{ sizes: 1 }, 'sizes 1, wanted ascending'],
        [{}, 'sizes nothing, wanted ascending'],
        [{ sizes, milliseconds: [1, 2] }, 'milliseconds [1,2], wanted a positive number for each of sizes [1,2,4]'],
        [{ sizes, milliseconds: [1, 0, 2] }, 'milliseconds [1,0,2], wanted a positive'],
        [{ sizes, milliseconds: [1, Number.NaN, 2] }, 'milliseconds [1,NaN,2], wanted a positive'],
        [{ sizes, milliseconds: 3 }, 'milliseconds 3, wanted a positive'],
        [{ sizes, preferred: [3] }, 'preferred [3], wanted some of sizes [1,2,4], ascending'],
        [{ sizes, preferred: [4, 2] }, 'preferred [4,2], wanted some'],
        [{ sizes, preferred: 2 }, 'preferred 2, wanted some'],
        [{ sizes, maxDelay: -1 }, 'maxDelay -1, wanted microseconds, at least 0'],
        [{ sizes, maxDelay: '5' }, 'maxDelay "5", wanted microseconds'],
        [{ sizes, instances: 0 }, 'instances 0, wanted a positive integer'],
        [{ sizes, overlap: 1 as never }, 'overlap 1, wanted true or false'],
        [{ sizes, queue: 1.5 }, 'queue 1.5, wanted a positive integer'],
        [{ sizes, priorities: -2 }, 'priorities -2, wanted a positive integer'],
        [{ sizes, priorities: 2, defaultPriority: 3 }, 'defaultPriority 3, wanted an integer from 1 to 2'],
        [{ sizes, timeout: Number.POSITIVE_INFINITY }, 'timeout Infinity, wanted milliseconds, at least 0'],
        [{ sizes, allowTimeoutOverride: 1 }, 'allowTimeoutOverride 1, wanted true or false'],
        [{ sizes, onTimeout: 'drop' }, 'onTimeout "drop", wanted "reject" or "delay"'],
      ];
      for (const [policy, message] of cases) expect(failing(policy)).to.throw(OctconvError, `batching: ${message}`);
      expect(failing({ sizes, maxDelays: 3 })).to.throw(
        OctconvError,
        'batching: unknown option "maxDelays" (did you mean "maxDelay"?), wanted sizes, ',
      );
    });

    it('is an error that says which request was found and wanted, and changes nothing', () => {
      const { batcher } = new Held({ priorities: 2 });
      const queued = { name: 'a', key: 'image', rows: 1 };
      expect(batcher.add(queued, 0)).to.equal(true);
      const cases: [request: object, message: string][] = [
        [{ rows: 0 }, 'rows 0, wanted a positive integer'],
        [{ rows: 1.5 }, 'rows 1.5, wanted a positive integer'],
        [{ rows: '1' }, 'rows "1", wanted a positive integer'],
        [{ priority: 0 }, 'priority 0, wanted an integer from 1 to 2'],
        [{ priority: 3 }, 'priority 3, wanted an integer from 1 to 2'],
        [{ priority: 1.5 }, 'priority 1.5, wanted an integer from 1 to 2'],
        [{ timeout: -1 }, 'timeout -1, wanted milliseconds, at least 0'],
        [{ timeout: Number.NaN }, 'timeout NaN, wanted milliseconds, at least 0'],
      ];
      for (const [wrong, message] of cases)
        expect(() => batcher.add({ ...queued, ...wrong }, 0)).to.throw(OctconvError, `batching: ${message}`);
      expect(() => batcher.add(queued, 0)).to.throw(OctconvError, 'batching: the request waits already');
      expect([batcher.waiting, batcher.waitingRequests]).to.deep.equal([1, 1]);
    });
  });

  describe('at random', () => {
    const some: BatchPolicy = { sizes: [1, 2, 4, 8], priorities: 3, queue: 60 };
    const policies: Record<string, BatchPolicy> = {
      'of one size': { sizes: [1] },
      'of measured times': { ...some, milliseconds: [10, 20, 22, 22.5], instances: 2 },
      'with one more of those that are enough': { ...some, preferred: [2, 4], maxDelay: 3000, overlap: true },
      'with a delay': { ...some, maxDelay: 3000, instances: 3 },
      'with preferred sizes': { ...some, preferred: [2, 4], maxDelay: 4000, instances: 2 },
      'with timeouts': { ...some, timeout: 8, maxDelay: 1500 },
      'with timeouts of the policy alone': { ...some, timeout: 8, allowTimeoutOverride: false, instances: 2 },
      'delayed by timeouts': { ...some, timeout: 8, onTimeout: 'delay', maxDelay: 1500, instances: 2 },
      'with all of it': { ...some, milliseconds: [10, 11, 12, 13], preferred: [4], timeout: 20, maxDelay: 9000 },
    };
    for (const [name, policy] of Object.entries(policies))
      it(`${name}, all rows are in one batch and in order`, () => {
        for (let seed = 1; seed <= 5; seed++) new Play(policy, seed).run(1500);
      });
  });
});

/** A request, and what is known of it outside of the batcher. */
interface Entry extends Named {
  readonly id: number;
  readonly came: number;
  readonly deadline: number;
  /** Rows that have started. */
  started: number;
  delayed: boolean;
  gone: 'no' | 'removed' | 'late';
}

/** Random calls, whose answers are compared with those of `expected`, and then with what must always be so. */
class Play {
  readonly batcher: Batcher<Entry>;
  readonly policy: ResolvedPolicy;
  readonly all: Entry[] = [];
  readonly running: Batch<Entry>[] = [];
  waiting: Entry[] = [];
  now = 100;

  constructor(
    policy: BatchPolicy,
    readonly seed: number,
  ) {
    this.batcher = new Batcher(policy);
    this.policy = this.batcher.policy;
    this.#state = seed;
  }

  #state: number;

  /** An integer below `count` (mulberry32). */
  below(count: number): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * count);
  }

  /** Load changes: at times there is little, at times the queue is full. */
  run(steps: number): void {
    for (let step = 0; step < steps; step++) {
      const busy = step % 300 < 200;
      const dice = this.below(10);
      if (dice < (busy ? 5 : 2)) this.add();
      else if (dice < 6) this.end();
      else if (dice < 7) this.remove();
      else this.now += this.below(12) / 4;
      if (this.below(4)) this.ask();
    }
    this.now += 1000;
    for (this.ask(); this.running.length; this.ask()) this.end();
    expect([this.batcher.waiting, this.batcher.waitingRequests, this.batcher.inFlight]).to.deep.equal([0, 0, 0]);
    expect(this.all.filter((entry) => entry.gone === 'no' && restOf(entry))).to.deep.equal([]);
    const count = (gone: string) => this.all.filter((entry) => entry.gone === gone).length;
    expect(count('no')).to.be.above(steps / 20);
    expect(count('removed')).to.be.above(0);
    if (this.policy.timeout && this.policy.onTimeout === 'reject') expect(count('late')).to.be.above(0);
    expect(this.all.some(({ delayed }) => delayed)).to.equal(this.policy.onTimeout === 'delay');
  }

  add(): void {
    const { priorities, queue, allowTimeoutOverride, onTimeout } = this.policy;
    const timed = onTimeout === 'delay' || this.policy.timeout > 0;
    const own = timed && this.below(3) === 0 ? this.below(30) / 2 : undefined;
    const timeout = (allowTimeoutOverride ? own : undefined) ?? this.policy.timeout;
    const deadline = timeout ? this.now + timeout : Number.POSITIVE_INFINITY;
    const priority = this.below(2) ? 1 + this.below(priorities) : undefined;
    const entry: Entry = {
      ...{ id: this.all.length, name: `${this.all.length}.`, key: 'abc'.charAt(this.below(3)), priority, timeout: own },
      ...{ rows: 1 + (this.below(4) ? this.below(3) : this.below(20)), came: this.now, deadline },
      ...{ started: 0, delayed: false, gone: 'no' },
    };
    const fits = sum(this.waiting.map(restOf)) + entry.rows <= queue;
    expect(this.batcher.add(entry, this.now)).to.equal(fits);
    if (!fits) return;
    this.all.push(entry);
    this.waiting.push(entry);
  }

  remove(): void {
    const entry = this.all.at(-1 - this.below(20));
    if (!entry) return;
    expect(this.batcher.remove(entry)).to.equal(this.waiting.includes(entry));
    if (this.waiting.includes(entry)) entry.gone = 'removed';
    this.forget();
  }

  end(): void {
    const [batch] = this.running.splice(this.below(this.running.length), 1);
    if (batch) this.batcher.ended(batch);
  }

  forget(): void {
    this.waiting = this.waiting.filter((entry) => entry.gone === 'no' && restOf(entry) > 0);
  }

  ask(): void {
    for (let more = true; more; ) {
      const wanted = expected(this.waiting, this.running.length, this.now, this.policy);
      const { batch, late, at } = this.batcher.next(this.now);
      expect({ batch: batch && wordsOf(batch), late: late.map(({ id }) => id), at }).to.deep.equal(wanted);
      for (const entry of late) this.checkLate(entry);
      if (batch) this.checkBatch(batch);
      more = batch !== undefined;
    }
    const { waitingRequests, waiting, inFlight } = this.batcher;
    expect(waitingRequests).to.equal(this.waiting.length);
    expect(waiting).to.equal(sum(this.waiting.map(restOf)));
    expect(inFlight).to.equal(this.running.length);
    const over = this.waiting.filter(({ came }) => came + this.policy.maxDelay / 1000 <= this.now);
    if (this.running.length < this.policy.instances) expect(over, 'waits for nothing').to.deep.equal([]);
  }

  checkLate(entry: Entry): void {
    expect([entry.gone, entry.started, entry.deadline <= this.now]).to.deep.equal(['no', 0, true]);
    entry.gone = 'late';
    this.forget();
  }

  checkBatch(batch: Batch<Entry>): void {
    const { sizes, instances, overlap, onTimeout, defaultPriority } = this.policy;
    this.running.push(batch);
    expect(this.running.length).to.be.at.most(instances + Number(overlap));
    expect(sizes).to.include(batch.size);
    expect(batch.rows).to.be.at.most(batch.size);
    expect(batch.rows).to.equal(sum(batch.parts.map(({ rows }) => rows)));
    for (const { request, from, rows } of batch.parts) {
      expect([request.gone, request.key, from]).to.deep.equal(['no', batch.key, request.started]);
      expect(rows).to.be.within(1, restOf(request));
      if (request.started === 0 && request.deadline <= this.now) expect(onTimeout).to.equal('delay');
      const levelOf = ({ priority = defaultPriority, delayed }: Entry) => (delayed ? 0 : priority);
      const same = this.waiting.filter((other) => other.key === batch.key && levelOf(other) === levelOf(request));
      if (!request.delayed) expect(same[0], 'first in, first out').to.equal(request);
      request.started += rows;
      this.forget();
    }
  }
}

const restOf = ({ rows, started }: Entry): number => rows - started;
const sum = (all: readonly number[]): number => all.reduce((a, b) => a + b, 0);
const least = (all: readonly number[]): number => Math.min(Number.POSITIVE_INFINITY, ...all);

/** The rules once more, over the list of what waits in order of arrival. Marks those that are delayed. */
function expected(waiting: readonly Entry[], inFlight: number, now: number, policy: ResolvedPolicy) {
  const { sizes, preferred, maxDelay, instances, overlap, priorities, defaultPriority, onTimeout } = policy;
  const isLate = (entry: Entry) => entry.started === 0 && entry.deadline <= now;
  if (onTimeout === 'delay') for (const entry of waiting) entry.delayed ||= isLate(entry);
  const late = onTimeout === 'delay' ? [] : waiting.filter(isLate);
  const levelOf = ({ delayed, priority = defaultPriority }: Entry) => (delayed ? priorities + 1 : priority);
  const hasStarted = ({ started }: Entry) => (started > 0 ? 0 : 1);
  let line = waiting
    .filter((entry) => !late.includes(entry))
    .sort((a, b) => levelOf(a) - levelOf(b) || hasStarted(a) - hasStarted(b) || a.id - b.id);
  const readyAt = ({ key }: Entry, running: number) => {
    const same = line.filter((entry) => entry.key === key);
    const isFull = [...sizes.slice(-1), ...preferred].some((size) => size <= sum(same.map(restOf)));
    if (running >= instances && !(overlap && isFull && running === instances)) return Number.POSITIVE_INFINITY;
    return isFull ? now : Math.max(now, least(same.map(({ came }) => came)) + maxDelay / 1000);
  };
  const first = line.find((entry) => readyAt(entry, inFlight) === now);
  const same = line.filter((entry) => entry.key === first?.key);
  const wordOf = ({ name, rows }: Entry, row: number) => (rows === 1 ? name : `${name}${row}`);
  const rows = same.flatMap((entry) =>
    Array.from({ length: restOf(entry) }, (_, i) => wordOf(entry, entry.started + i)),
  );
  const size = expectedSize(rows.length, policy);
  const batch = first && Array.from({ length: size }, (_, i) => rows[i] ?? '_').join(' ');
  // What is left, for the time to ask again.
  const left = new Map(same.map((entry) => [entry, restOf(entry)]));
  let room = first ? size : 0;
  line = line.flatMap((entry) => {
    const taken = Math.min(room, left.get(entry) ?? 0);
    room -= taken;
    return restOf(entry) > taken ? { ...entry, started: entry.started + taken } : [];
  });
  const running = inFlight + (first ? 1 : 0);
  const unstarted = line.filter(({ started }) => onTimeout === 'reject' && started === 0);
  const deadlines = unstarted.map(({ deadline }) => deadline);
  const at = least([...deadlines, ...line.map((entry) => readyAt(entry, running))]);
  late.sort((a, b) => a.deadline - b.deadline || a.id - b.id);
  return { batch, late: late.map(({ id }) => id), at: Number.isFinite(at) ? at : undefined };
}

function expectedSize(rows: number, { sizes, milliseconds, preferred }: ResolvedPolicy): number {
  const filled = sizes.filter((size) => size <= rows);
  const reached = filled.filter((size) => preferred.includes(size));
  if (reached.length) return Math.max(...reached);
  if (!milliseconds.length) return Math.max(...filled);
  const speedOf = (size: number) => Math.min(rows, size) / (milliseconds[sizes.indexOf(size)] as number);
  const best = Math.max(...sizes.map(speedOf));
  const fast = sizes.filter((size) => speedOf(size) >= 0.95 * best);
  const [unpadded, padded] = [fast.filter((size) => size <= rows), fast.filter((size) => size > rows)];
  return unpadded.length ? Math.max(...unpadded) : Math.min(...padded);
}
