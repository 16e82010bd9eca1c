/**
 * The compiler's verdict: test/types/*.ts say by @ts-expect-error what must not compile; here is what it says, and the
 * .d.ts files.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';

const root = fileURLToPath(new URL('..', import.meta.url));

function compile(...options: string[]): { status: number | null; output: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, ['node_modules/typescript/bin/tsc', ...options], {
    cwd: root,
    encoding: 'utf8',
  });
  return { status, output: stdout + stderr };
}

describe('types', function () {
  this.timeout(60_000);
  let folder = '';
  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'octconv-'));
  });
  after(() => rmSync(folder, { recursive: true }));

  it('lib, test and bench compile in strict mode, and what must not compile does not', () => {
    expect(compile()).to.deep.equal({ status: 0, output: '' });
  });

  it('errors say what was wanted, and each type once', () => {
    const calls = [
      ["ops.add(v, graph.input('f32', [1, 8, 6, 4]))", 'sizes that are equal or 1'],
      ["ops.mul(v, graph.input('f32', [1, 4]))", 'sizes that are equal or 1'],
      ["ops.matmul(v, graph.input('f32', [1, 8, 4, 5]))", 'as many rows as x has columns'],
      ['ops.conv(v, { weight: new Parameter([16, 4, 3, 3]) })', 'as many input channels as x has'],
      [
        'ops.conv(v, { weight: new Parameter([16, 3, 1, 3, 3]) })',
        '[O, I, kh, kw] for images, [O, I, kt, kh, kw] for video',
      ],
      ["ops.linear(graph.input('f32', [2, 64]), { weight: new Parameter([10, 32]) })", 'as many columns as x has'],
    ] as const;
    const lib = JSON.stringify(join(root, 'lib/index.js'));
    writeFileSync(join(folder, 'package.json'), '{"type":"module"}');
    const head = `import { Graph, ops, Parameter } from ${lib}; const graph = new Graph(); const v = graph.input('f32', [1, 8, 6, 3]);`;
    writeFileSync(join(folder, 'calls.ts'), [head, ...calls.map(([call]) => call)].join('\n'));
    writeFileSync(
      join(folder, 'tsconfig.json'),
      JSON.stringify({
        extends: join(root, 'tsconfig.json'),
        compilerOptions: { types: [] },
        include: [],
        files: ['calls.ts'],
      }),
    );
    const { output } = compile('-p', folder, '--typeRoots', join(root, 'node_modules/@types'), '--types', 'node');
    const errors = output.trim().split('\n');
    expect(errors, output).to.have.length(calls.length);
    for (const [i, [, wanted]] of calls.entries()) {
      const [, what] =
        /error TS\d+: (?:Argument of type|Type) '(?:Value|Parameter)<[^']*>' is not assignable to (?:parameter of )?type (.*)$/.exec(
          errors[i] ?? '',
        ) ?? [];
      expect(what, errors[i]).to.equal(`'"wanted: ${wanted}"'.`);
    }
  });

  it('whatever stands in a public signature can be imported from the package', () => {
    const { status, output } = compile(
      '-p',
      'tsconfig.build.json',
      '--outDir',
      folder,
      '--emitDeclarationOnly',
      '--incremental',
      'false',
      '--tsBuildInfoFile',
      'null',
    );
    expect([status, output]).to.deep.equal([0, '']);
    expect(forgotten(join(folder, 'index.d.ts'))).to.deep.equal([]);
  });
});

/** A .d.ts file: its declarations by name, and what it imports and gives on. */
interface Declarations {
  readonly own: ReadonlyMap<string, { readonly text: string; readonly exported: boolean }>;
  readonly imports: ReadonlyMap<string, readonly [file: string, name: string]>;
  readonly exports: ReadonlyMap<string, readonly [file: string, name: string]>;
  /** `export * as name from` */
  readonly spaces: readonly string[];
}

function parse(file: string): Declarations {
  const text = readFileSync(file, 'utf8').replace(/\/\*.*?\*\//gs, '');
  const own = new Map<string, { text: string; exported: boolean }>();
  const [imports, exports] = [new Map<string, [string, string]>(), new Map<string, [string, string]>()];
  const spaces: string[] = [];
  const target = (from: string) => resolve(dirname(file), from.replace(/\.js$/, '.d.ts'));
  for (const part of text.split(/^(?=\S)(?![})\]])/m)) {
    const [, exported, name] =
      /^(export )?(?:declare )?(?:abstract )?(?:class|function|const|type|interface) (\w+)/.exec(part) ?? [];
    const [, kind, list, from] = /^(import|export)(?: type)? \{([^}]*)\} from '(\.[^']*)'/.exec(part) ?? [];
    const [, space] = /^export \* as \w+ from '(\.[^']*)'/.exec(part) ?? [];
    if (space) spaces.push(target(space));
    else if (from) {
      for (const entry of (list ?? '').split(',').filter((one) => one.trim())) {
        const [original = '', alias = original] = entry
          .trim()
          .replace(/^type /, '')
          .split(' as ');
        (kind === 'import' ? imports : exports).set(alias, [target(from), original]);
      }
    } else if (name) own.set(name, { text: (own.get(name)?.text ?? '') + part, exported: Boolean(exported) });
    else {
      for (const [, local = ''] of /^export (?:type )?\{([^}]*)\};/.exec(part)?.[1]?.matchAll(/(?:type )?(\w+)/g) ??
        []) {
        exports.set(local, imports.get(local) ?? [file, local]);
      }
    }
  }
  return { own, imports, exports, spaces };
}

/** Types that declarations of the package name, and that nobody can import: `type (file, used by)`. */
function forgotten(index: string): string[] {
  const files = new Map<string, Declarations>();
  const of = (file: string) => files.get(file) ?? files.set(file, parse(file)).get(file)!;
  const find = (file: string, name: string): string | undefined => {
    const { own, imports, exports } = of(file);
    if (own.has(name)) return `${file}#${name}`;
    const [from, original] = exports.get(name) ?? imports.get(name) ?? [];
    return from && original ? find(from, original) : undefined;
  };
  const exported = (file: string): string[] => {
    const { own, exports, spaces } = of(file);
    const names = [...[...own].filter(([, one]) => one.exported).map(([name]) => name), ...exports.keys()];
    const elsewhere = [...own].flatMap(([, { text }]) => [.../import\('([^']*)\.js'\)\.(\w+)/g[Symbol.matchAll](text)]);
    const given = elsewhere.flatMap(([, from, name]) => find(resolve(dirname(file), `${from}.d.ts`), name ?? '') ?? []);
    return [...names.flatMap((name) => find(file, name) ?? []), ...given, ...spaces.flatMap(exported)];
  };
  const known = new Set(exported(index));
  const missing = new Set<string>();
  for (const one of known) {
    const [file = '', name = ''] = one.split('#');
    // Names of types begin with a capital; those in texts are none.
    const text = (of(file).own.get(name)?.text ?? '').replace(/'[^'\n]*'|"[^"\n]*"/g, '');
    for (const [used] of text.matchAll(/\b[A-Z]\w*/g)) {
      const found = find(file, used);
      if (found && !known.has(found)) missing.add(`${found.split('/').at(-1)} used by ${name}`);
    }
  }
  return [...missing];
}
