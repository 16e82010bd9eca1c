/** Models on several devices; test/cuda.test.ts has them on GPUs. */
import { expect } from 'chai';
import { createModel, type Model, replicate, Tensor } from '../lib/index.js';
import { failure } from './expect.js';

const options = { alpha: 0.5, width: 8, classes: 10, stem: 'cifar' } as const;
const make = (device: string) => createModel('oct-resnet-26', options, { device });
const x = Tensor.zeros('f32', [1, 8, 8, 3]);

describe('replicas', () => {
  it('give each run to the model with the fewest in flight', async () => {
    const ran: string[] = [];
    const ends: (() => void)[] = [];
    using replicas = await replicate(['cpu', 'reference', 'cpu:0'], (device) => {
      const run = async () => {
        ran.push(device);
        await new Promise<void>((resolve) => ends.push(resolve));
        return x as never;
      };
      return Object.assign(make(device), { run }) as Model;
    });
    expect(replicas.models.map(({ device }) => device)).to.deep.equal(['cpu', 'reference', 'cpu']);
    const runs = Array.from({ length: 4 }, () => replicas.run(x));
    ends[1]?.(); // of `reference`, which has no other
    await runs[1];
    runs.push(replicas.run(x));
    expect(ran).to.deep.equal(['cpu', 'reference', 'cpu', 'cpu', 'reference']);
    for (const end of ends) end();
    await Promise.all(runs);
  });

  it('compute, and are disposed of together', async () => {
    const replicas = await replicate('cpu:*', make);
    await replicas.warmUp([x.shape]);
    expect((await replicas.run(x)).shape).to.deep.equal([1, 10]);
    replicas.dispose();
    expect(await failure(replicas.run(x))).to.equal('model: it was disposed');
  });

  it('are not made where one cannot be: the others are disposed of', async () => {
    const models: Model[] = [];
    const failing = (device: string) => {
      if (device === 'reference') throw new Error('no room');
      models.push(make(device) as Model);
      return models[0] as Model;
    };
    const error = await replicate(['cpu', 'reference'], failing).catch((e: Error) => e);
    expect(error).to.have.property('message', 'no room');
    expect(await failure(models[0]?.run(x) as Promise<unknown>)).to.equal('model: it was disposed');
    const elsewhere = replicate(['reference'], () => make('cpu'));
    expect(await failure(elsewhere)).to.equal('replicate: the model is on cpu, wanted reference');
    expect(await failure(replicate('cpu', () => 3 as never))).to.equal('replicate: got a number, wanted a Model');
    expect(await failure(replicate([], make))).to.match(/^devices: \[\], wanted a name or a list of names$/);
    expect(await failure(replicate('cud:*', make))).to.match(/^device 'cud' \(did you mean "cuda"\?\): wanted auto, /);
  });
});
