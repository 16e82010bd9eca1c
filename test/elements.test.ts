/** Elements as they are read: large tensors leave the event loop to others. */
import { expect } from 'chai';
import { checkValues, negate, readElements, roundValues } from '../lib/weights/elements.js';
import { toFloats } from '../lib/weights/floats.js';
import { failure } from './expect.js';

describe('elements', () => {
  const count = 2 ** 21;

  /** What a promise gives, and how many turns of the event loop others had meanwhile. */
  async function counting<T>(start: () => Promise<T>): Promise<{ value: T; turns: number }> {
    let turns = 0;
    const next = () => {
      turns++;
      waiting = setImmediate(next);
    };
    let waiting = setImmediate(next);
    try {
      return { value: await start(), turns };
    } finally {
      clearImmediate(waiting);
    }
  }

  it('float64 is rounded in turns', async () => {
    const stored = Float64Array.from({ length: count }, (_, i) => i + 1e-12);
    const { value, turns } = await counting(() => readElements('f64', async () => new Uint8Array(stored.buffer)));
    expect(turns).to.be.at.least(2);
    expect(value).to.deep.equal(Float32Array.from(stored));
  });

  it('strided elements are put in order in turns', async () => {
    const stored = Float32Array.from({ length: count }, (_, i) => i);
    const [rows, columns] = [2 ** 10, count / 2 ** 10];
    const layout = { shape: [columns, 1, rows], strides: [1, 7, columns] };
    const { value, turns } = await counting(() =>
      readElements('f32', async () => new Uint8Array(stored.buffer), undefined, layout),
    );
    expect(turns).to.be.at.least(4); // it takes some ten times as long as a turn
    const wanted = stored.map((_, i) => (i % rows) * columns + Math.floor(i / rows));
    expect(value).to.deep.equal(wanted);
  });

  it('signs are changed in turns', async () => {
    const [floats, raw] = [new Float32Array(count).fill(3), new Uint16Array(count).fill(0x3c00)];
    const { turns } = await counting(() => negate('f32', floats));
    expect(turns).to.be.at.least(2);
    expect(floats.every((x) => x === -3)).to.equal(true);
    expect((await negate('bf16', raw)).every((x) => x === 0xbc00)).to.equal(true);
  });

  it('values are checked in turns, and a bad one is found wherever it is', async () => {
    for (const [name, bad, wanted] of [
      ['weight', Number.NaN, 'has NaN as element 2097150, wanted finite numbers'],
      ['bn.running_var', -1, 'has -1 as element 2097150, wanted variances of at least 0'],
    ] as const) {
      const data = new Float32Array(count).fill(1);
      const { value, turns } = await counting(() => checkValues('x', name, 'f32', data));
      expect(value).to.equal(data);
      expect(turns).to.be.at.least(2);
      data[count - 2] = bad;
      expect(await failure(checkValues('x', name, 'f32', data))).to.equal(`x: tensor "${name}" ${wanted}`);
    }
  });

  for (const [dtype, infinity] of [
    ['f16', 0x7c00],
    ['bf16', 0x7f80],
  ] as const) {
    it(`${dtype} is the nearest one, of two the even one`, async () => {
      const bits = Uint16Array.from({ length: infinity }, (_, i) => i);
      const exact = toFloats(dtype, bits);
      const round = (values: Float32Array) => roundValues('here', dtype, values);
      expect(await round(exact)).to.deep.equal(bits);
      expect(await round(exact.map((x) => -x))).to.deep.equal(bits.map((x) => x | 0x8000));
      // Between each two neighbours: the middle, and the f32 on either side of it.
      const middles = exact.subarray(1).map((x, i) => (x + exact[i]!) / 2);
      const beside = (step: number) => new Float32Array(new Int32Array(middles.buffer).map((x) => x + step).buffer);
      const lower = bits.subarray(0, -1);
      expect(await round(middles)).to.deep.equal(lower.map((x) => x + (x % 2)));
      expect(await round(beside(-1))).to.deep.equal(lower);
      expect(await round(beside(1))).to.deep.equal(lower.map((x) => x + 1));
      const largest = exact[infinity - 1]! * (1 + (dtype === 'f16' ? 2 ** -11 : 2 ** -8));
      const error = await failure(round(new Float32Array([1, largest])));
      expect(error).to.match(new RegExp(`^here has \\d.* as element 1, too large for ${dtype}$`));
    });
  }
});
