import { readFileSync } from 'node:fs';

/** Every instruction set that the addon knows, the narrowest first, as native code lists them. */
export const levels: readonly string[] = (() => {
  const header = readFileSync(new URL('../native/cpu/levels.h', import.meta.url), 'utf8');
  const [, list = ''] = /levelNames\[\] = \{(.*?)\}/.exec(header) ?? [];
  return [...list.matchAll(/"(\w+)"/g)].map(([, name = '']) => name);
})();
