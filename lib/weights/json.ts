import { OctconvError, show } from '../error.js';

/**
 * JSON in UTF-8 that comes from anywhere. What JSON.parse lets pass is an error too: a key twice, and depth without
 * end.
 */
export function parseJson(bytes: Uint8Array, depth: number, what: string): unknown {
  const notJson = () => new OctconvError(`${what} is not JSON`);
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw notJson();
  }
  checkKeys(text, depth, what, notJson);
  try {
    return JSON.parse(text);
  } catch {
    throw notJson();
  }
}

/** One pass over the text, which need not be JSON yet. */
function checkKeys(json: string, depth: number, what: string, notJson: () => Error): void {
  const open: Set<string>[] = [];
  for (let i = 0; i < json.length; i++) {
    const char = json[i];
    if (char === '{' || char === '[') {
      open.push(noKeys);
      if (open.length > depth) throw new OctconvError(`${what} nests deeper than ${depth}`);
    } else if (char === '}' || char === ']') open.pop();
    else if (char === '"') {
      const start = i++;
      while (i < json.length && json[i] !== '"') i += json[i] === '\\' ? 2 : 1;
      let next = i + 1;
      while (next < json.length && ' \t\n\r'.includes(json[next]!)) next++;
      if (json[next] !== ':' || open.length === 0) continue;
      const key = keyOf(json.slice(start, i + 1), notJson);
      const keys = open.at(-1)!;
      if (keys.has(key)) throw new OctconvError(`${what} names ${show(key)} twice`);
      if (keys === noKeys) open[open.length - 1] = new Set([key]);
      else keys.add(key);
    }
  }
}

const noKeys = new Set<string>();

function keyOf(json: string, notJson: () => Error): string {
  try {
    return JSON.parse(json);
  } catch {
    throw notJson();
  }
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
