// What the compiler and the linker made of native/: wide code that the linker could choose for everybody, and what the
// addon needs from the machine that it is installed on.
import { expect } from 'chai';
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { levels } from './levels.js';
import { skip } from './skip.js';

const build = fileURLToPath(new URL('../build/', import.meta.url));
const output = (program: string, args: string[]) => execFileSync(program, args, { encoding: 'utf8' });

interface NativeSymbol {
  readonly name: string;
  readonly type: string;
}

function definedSymbols(args: string[]): NativeSymbol[] {
  const rows = output('nm', ['--defined-only', '--no-demangle', ...args]).matchAll(/^[\da-f]+ (\S) (\S+)$/gm);
  return [...rows].map(([, type, name]) => ({ type: type!, name: name! }));
}

// Functions and variables of one namespace, their guards, tables and type names (the Itanium C++ ABI's mangling).
const belongsTo = (level: string) => new RegExp(`^_Z(GV|GR|T[VTIS])?N[VK]*7octconv${level.length}${level}`);
const leaks = (symbols: NativeSymbol[], level: string) =>
  symbols.filter(({ type, name }) =>
    type !== type.toLowerCase() || 'wvu'.includes(type) ? !belongsTo(level).test(name) : false,
  );

describe('native symbols', () => {
  before(function () {
    if (!existsSync(join(build, 'Release/octconv.node'))) skip(this, 'build');
  });

  for (const level of levels.filter((name) => name !== 'baseline')) {
    it(`objects compiled for ${level} define nothing outside octconv::${level}`, function () {
      if (process.arch !== 'x64') skip(this, 'cpu');
      const folder = join(build, `CMakeFiles/octconv_${level}.dir`);
      const objects = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.o'));
      expect(objects).to.not.be.empty;
      for (const object of objects) expect(leaks(definedSymbols([join(folder, object)]), level), object).to.be.empty;
    });
  }

  it('the levels of AVX-512 define the tiles that differ from those of the level below', function () {
    if (process.arch !== 'x64' || !levels.includes('avx512')) skip(this, 'cpu');
    const tilesOf = (level: string) =>
      definedSymbols([join(build, `CMakeFiles/octconv_${level}.dir/native/cpu/tile.cc.o`)])
        .flatMap(({ name }) => /octconv\d+avx512\w*?\d+(\w+)Tiles(L|E)/.exec(name)?.[1] ?? [])
        .toSorted();
    expect(tilesOf('avx512')).to.deep.equal(['bf16', 'f32', 'i16', 'i8', 'i8Wide']);
    expect(tilesOf('avx512vnni')).to.deep.equal(['i16', 'i8']);
    expect(tilesOf('avx512bf16')).to.deep.equal(['bf16']);
  });

  it('a leak is recognised', () => {
    const names = [
      '_ZN7octconv4avx23sumEPKfl',
      '_ZGVN7octconv4avx25tableE',
      '_ZN7octconv8ceilDivEll',
      '_ZNSt6vectorIfSaIfEED1Ev',
    ];
    const found = leaks(
      names.map((name) => ({ name, type: 'W' })),
      'avx2',
    ).map(({ name }) => name);
    expect(found).to.deep.equal(names.slice(2));
    expect(leaks([{ name: 'local', type: 't' }], 'avx2')).to.be.empty;
  });

  it('the addon exports nothing but the entry points of Node-API', () => {
    const names = definedSymbols(['--dynamic', join(build, 'Release/octconv.node')]).map(({ name }) => name);
    expect(names).to.have.members(['napi_register_module_v1', 'node_api_module_get_api_version_v1']);
  });

  it('the addon needs no C++ library and no glibc newer than 2.34', () => {
    const addon = join(build, 'Release/octconv.node');
    const libraries = [...output('readelf', ['--dynamic', '--wide', addon]).matchAll(/\(NEEDED\).*\[(.*)\]/g)].map(
      ([, name]) => name,
    );
    expect(['libgcc_s.so.1', 'libm.so.6', 'libc.so.6', 'ld-linux-x86-64.so.2']).to.include.members(libraries);
    const minors = [...output('objdump', ['-T', addon]).matchAll(/GLIBC_2\.(\d+)/g)].map(([, minor]) => Number(minor));
    expect(Math.max(...minors)).to.be.at.most(34);
  });
});
