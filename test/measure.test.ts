/** How the benches take turns: apart from test/bench.test.ts, since this looks at what the process is busy with. */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { expect } from 'chai';
import { interleave } from '../lib/bench/measure.js';

describe('measuring', () => {
  it('subjects take turns, after a round that does not count', async () => {
    const order: string[] = [];
    const subject = (name: string) => async () => void order.push(name);
    const times = await interleave([subject('a'), subject('b')], 2);
    expect(order.join('')).to.equal('ababab');
    expect(times.map(({ rounds }) => rounds.length)).to.deep.equal([2, 2]);
  });

  it('a run waits for threads that are still busy after the last one', async () => {
    const workers = 4; // one alone may get no core for a while on a machine that others use
    const ended = new Int32Array(new SharedArrayBuffer(4));
    const spin = `
      const { workerData } = require('node:worker_threads');
      for (const end = performance.now() + 300; performance.now() < end; );
      Atomics.add(workerData, 0, 1);`;
    const spinning = async () => {
      ended[0] = 0;
      const started = Array.from({ length: workers }, () =>
        once(new Worker(spin, { eval: true, workerData: ended }), 'online'),
      );
      await Promise.all(started);
    };
    const found: unknown[] = [];
    await interleave([spinning, async () => void found.push(ended[0])], 1);
    expect(found).to.deep.equal([workers, workers]);
  });

  it('short ones are repeated', async () => {
    let runs = 0;
    const [times] = await interleave([async () => void runs++], 1, undefined, 2);
    expect(runs).to.be.above(10);
    expect(times?.min).to.be.below(1);
  });
});
