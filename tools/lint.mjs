// Lint and formatting: Biome for TypeScript and JavaScript, Debian's clang-format 14 for C++. `--fix` writes what it
// can.
import { installPackages, main, outputOf, run, which } from './system.mjs';

main(() => {
  const fix = process.argv.includes('--fix');
  run('node_modules/.bin/biome', ['check', '--error-on-warnings', ...(fix ? ['--write'] : [])], {
    what: 'lint: biome',
  });
  if (!which('clang-format')) installPackages(['clang-format'], 'clang-format is needed');
  const files = outputOf('git', ['ls-files', 'native', 'test/*.cc'])
    .split('\n')
    .filter((name) => /\.(cc|h|cu)$/.test(name));
  run('clang-format', [...(fix ? ['-i'] : ['--dry-run', '-Werror']), ...files], { what: 'lint: clang-format' });
});
