import { expect } from 'chai';
import { table } from '../lib/bench/table.js';

describe('tables', () => {
  const head = ['step', 'op', 'MiB', 'ms'];
  const lines = [
    ['first', 'conv', '1.5', '10'],
    ['second', 'relu', '12.5', '2'],
  ];
  const at = (width: number) => table(head, lines, { left: ['op'], drop: ['MiB', 'op'], width }).split('\n');

  it('are as wide as their content where that fits', () => {
    expect(at(22)).to.deep.equal(['step    op     MiB  ms', 'first   conv   1.5  10', 'second  relu  12.5   2']);
  });

  it('lose columns where it does not, in the order given', () => {
    expect(at(21)).to.deep.equal(['step    op    ms', 'first   conv  10', 'second  relu   2']);
    expect(at(15)).to.deep.equal(['step    ms', 'first   10', 'second   2']);
  });

  it('become rows of several lines where no column may go', () => {
    expect(table(head, lines, { width: 16 }).split('\n')).to.deep.equal([
      'first',
      '  op conv',
      '  MiB 1.5, ms 10',
      'second',
      '  op relu',
      '  MiB 12.5, ms 2',
    ]);
  });
});
