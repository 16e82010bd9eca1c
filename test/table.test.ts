import { expect } from 'chai';
import { hanging, table } from '../lib/bench/table.js';

describe('tables', () => {
  const head = ['step', 'op', 'MiB', 'ms'];
  const lines = [
    ['first', 'conv', '1.5', '10'],
    ['second', 'relu', '12.5', '2'],
  ];
  it('a column that could go and is not there takes no room', () => {
    const all = { left: ['op'], drop: ['MiB', 'op'] };
    for (let width = 10; width < 60; width++)
      expect(table(head, lines, { ...all, drop: [...all.drop, 'goal'], width })).to.equal(
        table(head, lines, { ...all, width }),
      );
  });

  const at = (width: number) => table(head, lines, { left: ['op'], drop: ['MiB', 'op'], width }).split('\n');

  it('are as wide as their content where that fits', () => {
    expect(at(22)).to.deep.equal(['step    op     MiB  ms', 'first   conv   1.5  10', 'second  relu  12.5   2']);
  });

  it('lose columns where it does not, in the order given', () => {
    expect(at(21)).to.deep.equal(['step    op    ms', 'first   conv  10', 'second  relu   2', 'no room for MiB']);
    expect(at(15)).to.deep.equal(['step    ms', 'first   10', 'second   2', 'no room for op', 'MiB']);
  });

  it('keep the columns that fit behind a wide one that went', () => {
    const wide = lines.map((line) => [...line, 'x'.repeat(20)]);
    const at = (width: number) =>
      table([...head, 'why'], wide, { left: ['op'], drop: ['ms', 'MiB', 'why'], width }).split('\n');
    expect(at(22)[1]).to.equal('first   conv   1.5  10');
    expect(at(20).slice(1)).to.deep.equal(['first   conv   1.5', 'second  relu  12.5', 'no room for ms, why']);
  });

  it('have no names where those are not wanted; long cells go on in further lines', () => {
    const shapes = [
      ['first', 'conv', '1x8 -> 1x4'],
      ['second', 'relu', '1x4 + 1x2 -> 1x4'],
    ];
    const at = (width: number) =>
      table(['step', 'op', 'shapes'], shapes, { left: ['op', 'shapes'], named: false, width }).split('\n');
    expect(at(40)).to.deep.equal(['first   conv  1x8 -> 1x4', 'second  relu  1x4 + 1x2 -> 1x4']);
    expect(at(24)).to.deep.equal(['first', '  conv, 1x8 -> 1x4', 'second', '  relu, 1x4 + 1x2 -> 1x4']);
    expect(at(23).slice(2)).to.deep.equal(['second', '  relu', '  1x4 + 1x2 -> 1x4']);
  });

  it('beside them: a text hangs from a head, whose colours take no room', () => {
    const bold = '\x1b[1mab\x1b[22m ';
    expect(hanging(bold, 'as many letters as fit', 5, 25)).to.equal(`${bold}as many letters as fit`);
    expect(hanging(bold, 'sixteen letters, and more', 3, 19)).to.equal(`${bold}sixteen letters,\n   and more`);
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
