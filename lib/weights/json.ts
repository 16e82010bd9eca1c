import { OctconvError, show } from '../error.js';
import { atOnce, type Work } from '../turns.js';

/**
 * JSON in UTF-8 that comes from anywhere. What JSON.parse lets pass is an error too: a key twice, and depth without
 * end.
 */
export const parseJson = (bytes: Uint8Array, depth: number, what: string): unknown =>
  atOnce(parsing(bytes, depth, what));

/** The same as work that rests. */
export function* parsing(bytes: Uint8Array, depth: number, what: string): Work<unknown> {
  const notJson = () => new OctconvError(`${what} is not JSON`);
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw notJson();
  }
  yield* checkKeys(text, depth, what, notJson);
  try {
    return JSON.parse(text);
  } catch {
    throw notJson();
  }
}

const [quote, backslash, colon, open, close] = [...'"\\:{}'].map((char) => char.charCodeAt(0));
const [openList, closeList] = [...'[]'].map((char) => char.charCodeAt(0));

/** One pass over the text, which need not be JSON yet. */
function* checkKeys(json: string, depth: number, what: string, notJson: () => Error): Work<void> {
  const levels: Set<string>[] = [];
  for (let i = 0; i < json.length; i++) {
    const char = json.charCodeAt(i);
    if (char === open || char === openList) {
      levels.push(noKeys);
      if (levels.length > depth) throw new OctconvError(`${what} nests deeper than ${depth}`);
    } else if (char === close || char === closeList) levels.pop();
    else if (char === quote) {
      yield;
      const start = i++;
      let escaped = false;
      for (; i < json.length && json.charCodeAt(i) !== quote; i++) {
        if (json.charCodeAt(i) !== backslash) continue;
        escaped = true;
        i++;
      }
      let next = i + 1;
      while (next < json.length && ' \t\n\r'.includes(json.charAt(next))) next++;
      const keys = levels.at(-1);
      if (json.charCodeAt(next) !== colon || !keys) continue;
      const key = escaped ? keyOf(json.slice(start, i + 1), notJson) : json.slice(start + 1, i);
      if (keys.has(key)) throw new OctconvError(`${what} names ${show(key)} twice`);
      if (keys === noKeys) levels[levels.length - 1] = new Set([key]);
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
