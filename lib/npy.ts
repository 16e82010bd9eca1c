import { show, SourceError } from './error.js';
import { writeWhole } from './files/write.js';
import { RandomFile } from './weights/file.js';
import { toFloats } from './weights/floats.js';
import { elementCount } from './weights/source.js';

// NumPy's array file: magic, version, header length, a Python dict as text, the elements. npyjs reads the format too,
// but takes what is truncated for an array all the same.

const magic = '\x93NUMPY';
const headerLimit = 65536;

/** NumPy's kinds of elements that are numbers, each with its size in bytes. f2 is kept as raw bits. */
const kinds = {
  ...{ f2: Uint16Array, f4: Float32Array, f8: Float64Array, b1: Uint8Array },
  ...{ u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, u8: BigUint64Array },
  ...{ i1: Int8Array, i2: Int16Array, i4: Int32Array, i8: BigInt64Array },
};
type Kind = keyof typeof kinds;

export interface NpyArray {
  readonly shape: readonly number[];
  readonly data: Float32Array<ArrayBuffer>;
}

/**
 * Reads a file of numbers of any type, byte order and axis order, as f32 in C order. Only float32, little-endian and
 * in C order, is read without a copy.
 * @throws OctconvError that names the file, if it is damaged or holds no numbers.
 */
export async function readNpy(path: string): Promise<NpyArray> {
  const file = await RandomFile.open(path);
  try {
    return await read(file);
  } finally {
    await file.close();
  }
}

/** The same of a file's content; errors call it `name`. */
export function decodeNpy(bytes: Uint8Array, name = '.npy'): Promise<NpyArray> {
  return read({
    path: name,
    size: bytes.length,
    async read(position, length) {
      if (position + length <= bytes.length) return new Uint8Array(bytes.subarray(position, position + length));
      throw new SourceError(`${name}: truncated at ${bytes.length} bytes, wanted ${length} bytes at ${position}`);
    },
  });
}

type Source = Pick<RandomFile, 'path' | 'size' | 'read'>;

/** What a file says of its elements, and where they begin. @throws OctconvError if they are not there, or no numbers. */
export async function readNpyHeader(file: Source) {
  const { path } = file;
  const head = Buffer.from(await file.read(0, Math.min(file.size, 12)));
  if (head.length < 12 || head.toString('latin1', 0, 6) !== magic) throw new SourceError(`${path}: not a .npy file`);
  const version = head[6]!;
  if (version < 1 || version > 3) throw new SourceError(`${path}: .npy version ${version}, wanted 1 to 3`);
  const start = version === 1 ? 10 : 12;
  const length = version === 1 ? head.readUInt16LE(8) : head.readUInt32LE(8);
  if (length > headerLimit) {
    throw new SourceError(`${path}: a header of ${length} bytes, wanted at most ${headerLimit}`);
  }
  const header = parseHeader(Buffer.from(await file.read(start, length)).toString('latin1'));
  if (!header) throw new SourceError(`${path}: damaged .npy header`);
  const { descr, fortran, shape } = header;

  const name = descr.slice(1);
  const kind = /^[<>|=]/.test(descr) && Object.hasOwn(kinds, name) ? kinds[name as Kind] : undefined;
  if (!kind) throw new SourceError(`${path}: elements are ${show(descr)}, wanted numbers`);
  const bytes = shape.reduce((a, b) => a * b, kind.BYTES_PER_ELEMENT);
  if (!shape.every(Number.isSafeInteger) || !Number.isSafeInteger(bytes)) {
    throw new SourceError(`${path}: shape ${show(shape)} is impossible`);
  }
  const got = file.size - start - length;
  if (got !== bytes) throw new SourceError(`${path}: ${got} bytes of data, wanted ${bytes} for ${show(shape)}`);
  return { descr, name, kind, shape, fortran, bytes, start: start + length };
}

async function read(file: Source): Promise<NpyArray> {
  const { descr, name, kind, shape, fortran, bytes, start } = await readNpyHeader(file);
  const raw = await file.read(start, bytes);
  if (descr[0] === '>') swapBytes(raw, kind.BYTES_PER_ELEMENT);
  const elements = new kind(raw.buffer);
  const data = name === 'f2' ? toFloats('f16', elements as Uint16Array) : toF32(elements);
  return { shape, data: (fortran ? inCOrder(data, shape) : data) as Float32Array<ArrayBuffer> };
}

/** One token of Python: a string, an integer (3L in Python 2), a constant, punctuation. */
const token = /\s*(?:'([^'\\]*)'|"([^"\\]*)"|(\d+)L?|(True|False)|([{}()[\],:]))/y;
const brackets = new Map([
  ['(', '['],
  [')', ']'],
]);

/** Makes JSON of the header's dict, token by token: in linear time. */
function parseHeader(text: string): { descr: string; fortran: boolean; shape: readonly number[] } | undefined {
  const json: string[] = [];
  token.lastIndex = 0;
  for (let found = token.exec(text); found; found = token.exec(text)) {
    const [, single, double, integer, constant, mark = ''] = found;
    const string = single ?? double;
    if (/[)}\]]/.test(mark) && json.at(-1) === ',') json.pop(); // Python allows a comma after the last item
    if (string !== undefined) json.push(JSON.stringify(string));
    else if (integer !== undefined) json.push(String(Number(integer)));
    else json.push(constant?.toLowerCase() ?? brackets.get(mark) ?? mark);
  }
  try {
    const { descr, fortran_order: fortran, shape } = JSON.parse(json.join(''));
    const sizes = Array.isArray(shape) && shape.every((size) => typeof size === 'number');
    if (typeof fortran !== 'boolean' || !sizes || descr === undefined) return undefined;
    return { descr: typeof descr === 'string' ? descr : 'records', fortran, shape };
  } catch {
    return undefined;
  }
}

function swapBytes(raw: Uint8Array, size: number): void {
  const bytes = Buffer.from(raw.buffer, raw.byteOffset, raw.length);
  if (size === 2) bytes.swap16();
  if (size === 4) bytes.swap32();
  if (size === 8) bytes.swap64();
}

function toF32(elements: InstanceType<(typeof kinds)[Kind]>): Float32Array {
  if (elements instanceof Float32Array) return elements;
  return elements instanceof BigInt64Array || elements instanceof BigUint64Array
    ? Float32Array.from(elements as Iterable<bigint | number>, Number)
    : new Float32Array(elements);
}

/** From Fortran order, whose first axis is the contiguous one. */
function inCOrder(data: Float32Array, shape: readonly number[]): Float32Array {
  const moved = new Float32Array(data.length);
  const strides = shape.map((_, axis) => shape.slice(axis + 1).reduce((a, b) => a * b, 1));
  const place = shape.map(() => 0);
  let to = 0;
  for (const element of data) {
    moved[to] = element;
    for (const [axis, size] of shape.entries()) {
      const stride = strides[axis] as number;
      to += stride;
      place[axis] = (place[axis] as number) + 1;
      if ((place[axis] as number) < size) break;
      place[axis] = 0;
      to -= stride * size;
    }
  }
  return moved;
}

export async function writeNpy(path: string, shape: readonly number[], data: Float32Array): Promise<void> {
  await writeWhole(path, encodeNpy(path, shape, data));
}

/** The content of a .npy file of float32, which errors call `name`: its header and a view of `data`. */
export function encodeNpy(name: string, shape: readonly number[], data: Float32Array): Buffer[] {
  if (data.length !== elementCount(shape)) {
    throw new SourceError(`${name}: ${data.length} elements, wanted shape ${show(shape)}`);
  }
  const tuple = shape.length === 1 ? `${shape[0]},` : shape.join(', ');
  const dict = `{'descr': '<f4', 'fortran_order': False, 'shape': (${tuple}), }`;
  // The data begins at a multiple of 64, and the header ends with a line break.
  const length = Math.ceil((10 + dict.length + 1) / 64) * 64 - 10;
  const head = Buffer.from(`${magic}\x01\x00??${dict.padEnd(length - 1)}\n`, 'latin1');
  head.writeUInt16LE(length, 8);
  return [head, Buffer.from(data.buffer, data.byteOffset, data.byteLength)];
}
