/** Environments that end while the library works in them. Apart from test/lifecycle.test.ts: this one may have company. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { expect } from 'chai';

const dist = new URL('../dist/index.js', import.meta.url).href;
const small = { alpha: 0.5, width: 8, classes: 10, stem: 'cifar' } as const;

describe('workers', () => {
  it('56 worker threads, 8 at a time, are terminated in mid run @slow', async function () {
    this.timeout(240_000);
    const code = `
      import { parentPort } from 'node:worker_threads';
      const { createModel, Tensor } = await import(${JSON.stringify(dist)});
      const model = createModel('oct-resnet-26', ${JSON.stringify(small)}, { threads: 2 });
      const x = Tensor.zeros('f32', [4, 32, 32, 3]);
      await model.run(x);
      parentPort.postMessage('running');
      while (true) await Promise.all([model.run(x), model.run(x)]);`;
    const url = new URL(`data:text/javascript,${encodeURIComponent(code)}`);
    let started = 0;
    const lane = async () => {
      // Eight after each wait.
      while (started < 56) {
        const wait = started++ % 7;
        const worker = new Worker(url, { execArgv: [] });
        await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
        await sleep(wait);
        await worker.terminate();
      }
    };
    await Promise.all(Array.from({ length: 8 }, lane));
    expect(started).to.equal(56);
  });
});
