import { expect } from 'chai';
import { atOnce, inTurns, type Work } from '../lib/turns.js';

describe('turns', () => {
  const busy = (milliseconds: number) => {
    for (const end = performance.now() + milliseconds; performance.now() < end; );
  };
  function* work(count: number): Work<number> {
    for (let i = 0; i < count; i++) {
      busy(3);
      yield;
    }
    return count;
  }

  it('work that rests lets others go on; at once it does not', async () => {
    let turns = 0;
    const count = () => {
      turns++;
      waiting = setImmediate(count);
    };
    let waiting = setImmediate(count);
    expect(atOnce(work(4))).to.equal(4);
    expect(turns).to.equal(0);
    expect(await inTurns(work(4))).to.equal(4);
    clearImmediate(waiting);
    expect(turns).to.be.at.least(4);
  });

  it('what work throws is thrown, or rejects', async () => {
    const failing = function* (): Work<void> {
      yield;
      throw new Error('no more');
    };
    expect(() => atOnce(failing())).to.throw('no more');
    expect(await inTurns(failing()).catch((error: Error) => error.message)).to.equal('no more');
  });
});
