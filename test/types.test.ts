/**
 * The compiler's verdict: test/types/*.ts say by @ts-expect-error what must not compile; here is what it says, and the
 * .d.ts files.
 */
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';

const root = fileURLToPath(new URL('..', import.meta.url));

interface Verdict {
  readonly status: number | null;
  readonly output: string;
}

/** `by` is the folder of a compiler. */
function compileBy(by: string, ...options: string[]): Verdict {
  const tsc = `node_modules/${by}/bin/tsc`;
  const { status, stdout, stderr } = spawnSync(process.execPath, [tsc, ...options], { cwd: root, encoding: 'utf8' });
  return { status, output: stdout + stderr };
}
const compile = (...options: string[]) => compileBy('typescript', ...options);

/** What a user writes. */
const consumer = `
import { createModel, loadModel, ops, Tensor, tensor, toNCHW, toNHWC } from 'octconv';

export async function main(signal: AbortSignal): Promise<string[]> {
  const model = createModel('oct-resnet-26', { alpha: 0.5, stem: 'cifar', seed: 1 }, { threads: 1 });
  const logits: Tensor<'f32', readonly [number, number]> = await model.run(Tensor.zeros('f32', [1, 32, 32, 3]));
  const shares: Float32Array = (await ops.softmax(logits)).data;
  const file: Uint8Array = await model.toOnnx([1, 32, 32, 3]);
  const turned: readonly number[] = toNHWC(toNCHW(tensor('f32', [1, 2, 2, 1], new Float32Array(4)))).shape;
  const { top } = await (await loadModel('cifar10-oct-resnet-26-a50')).classify(file, { top: 1, signal });
  model.dispose();
  // @ts-expect-error a network is called by its name
  createModel(26);
  return [shares.length, turned.length, top[0]?.label].map(String);
}
`;

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

  describe('of the package', () => {
    const installed = () => join(folder, 'node_modules/octconv');
    before(() => {
      const declarations = ['--outDir', join(installed(), 'dist'), '--emitDeclarationOnly'];
      const fresh = ['--incremental', 'false', '--tsBuildInfoFile', 'null'];
      expect(compile('-p', 'tsconfig.build.json', ...declarations, ...fresh)).to.deep.equal({ status: 0, output: '' });
      copyFileSync(join(root, 'package.json'), join(installed(), 'package.json'));
      symlinkSync(join(root, 'node_modules/valibot'), join(folder, 'node_modules/valibot'));
    });

    it('whatever stands in a public signature can be imported', () => {
      expect(forgotten(join(installed(), 'dist/index.d.ts'))).to.deep.equal([]);
    });

    // Each compiler in both ways of resolving a package, and in both worlds: how a package is found does not depend on
    // what else is declared.
    const inNode = { types: ['node'], lib: ['es2022'], skipLibCheck: false };
    const inBrowsers = { types: [], lib: ['es2022', 'dom'], skipLibCheck: true };
    const asNode = { moduleResolution: 'node16', module: 'node16' };
    const asBundler = { moduleResolution: 'bundler', module: 'esnext' };
    for (const [by, resolution, world] of [
      ['typescript-5.7', asNode, inNode],
      ['typescript-5.7', asBundler, inBrowsers],
      ['typescript', asNode, inBrowsers],
      ['typescript', asBundler, inNode],
    ] as const) {
      const { moduleResolution } = resolution;
      it(`compile in strict mode by ${by}, resolved as ${moduleResolution}, with ${world.lib.at(-1)}`, function () {
        this.timeout(200_000);
        const typeRoots = [join(root, 'node_modules/@types')];
        const common = { target: 'es2022', strict: true, noEmit: true, typeRoots };
        const compilerOptions = { ...common, ...resolution, ...world };
        writeFileSync(join(folder, 'package.json'), '{"type":"module"}');
        writeFileSync(join(folder, 'consumer.ts'), consumer);
        writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: ['consumer.ts'] }));
        expect(compileBy(by, '-p', folder)).to.deep.equal({ status: 0, output: '' });
      });
    }
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
