/**
 * MXNet's .params, bare or in a tar beside its symbol: u64 0x112, u64 0, u64 n, n records, u64 n, n names of u64 length
 * and bytes. A record is, little-endian: magic, [storage type], rank, sizes, device type and id, element type,
 * elements.
 */
import type { DType, TypedArray } from '../dtype.js';
import { OctconvError, show } from '../error.js';
import type { Memory, RandomFile } from './file.js';
import { checkValues, readElements } from './elements.js';
import { elementCount, missingTensor, type TensorInfo, type WeightSource } from './source.js';

const fileMagic = 0x112n;
/** Of the versions of a record; in version 0 the rank stands in its place. */
const magics = { v1: 0xf993fac8, v2: 0xf993fac9, v3: 0xf993faca };
const recordLimit = 100_000;
const nameLimit = 8 * 2 ** 20;
const rankLimit = 32;
/** The longest record up to its elements. */
const recordHead = 4 + 4 + 4 + 8 * rankLimit + 12;

interface ElementType {
  readonly dtype: DType;
  readonly bytes: number;
}
/** By MXNet's number; f64 is read as f32. Absent: i64 (6) and bool (7), which no network here has. */
const elementTypes = new Map<number, ElementType>([
  [0, { dtype: 'f32', bytes: 4 }],
  [1, { dtype: 'f32', bytes: 8 }],
  [2, { dtype: 'f16', bytes: 2 }],
  [3, { dtype: 'u8', bytes: 1 }],
  [4, { dtype: 'i32', bytes: 4 }],
  [5, { dtype: 'i8', bytes: 1 }],
  [12, { dtype: 'bf16', bytes: 2 }],
]);

interface Place extends TensorInfo {
  readonly begin: number;
  readonly bytes: number;
  /** As f64 in the file. */
  readonly double: boolean;
}

/** Whether a file that begins so is a .params. */
export function isParams(head: Uint8Array<ArrayBuffer>): boolean {
  return (
    head.length >= 9 && new DataView(head.buffer, head.byteOffset).getBigUint64(0, true) === fileMagic && head[8] === 0
  );
}

/** Reads what is at [begin, end) of a file; its names are without the `arg:` and `aux:` of a symbol's checkpoint. */
export async function readParams(file: RandomFile, begin = 0, end = file.size): Promise<WeightSource> {
  const wrong = (what: string): OctconvError => new OctconvError(`${file.path}: ${what}`);
  const cut = () => wrong(`truncated at ${end - begin} bytes of .params`);
  const view = async (at: number, length: number) => {
    if (at + length > end) throw cut();
    return new Fields(await file.read(at, length), cut);
  };
  const count = (await view(begin + 16, 8)).u64();
  if (count > recordLimit) throw wrong(`${count} records, wanted at most ${recordLimit}`);
  const places: (Place | undefined)[] = [];
  let at = begin + 24;
  for (let i = 0; i < count; i++) {
    const fields = await view(at, Math.min(recordHead, end - at));
    const { place, length } = parseRecord(fields, at, (what) => wrong(`record ${i} ${what}`));
    at += length;
    if (at > end) throw wrong(`truncated at ${end - begin} bytes, wanted ${at - begin} for record ${i} of ${count}`);
    places.push(place);
  }

  if (end - at > nameLimit) throw wrong(`${end - at} bytes of names, wanted at most ${nameLimit}`);
  const names = await view(at, end - at);
  const named = names.u64();
  if (named !== count) throw wrong(`${named} names for ${count} records`);
  const tensors = new Map<string, Place>();
  for (const place of places) {
    const full = names.text(names.u64());
    if (full === undefined) throw wrong('a name is not UTF-8');
    const name = full.replace(/^(arg|aux):/, '');
    if (tensors.has(name)) throw wrong(`two records are called ${show(name)}`);
    if (place) tensors.set(name, place);
  }
  if (names.left > 0) throw wrong(`${names.left} bytes behind the last name`);
  return {
    name: file.path,
    tensors,
    async read(name, memory?: Memory): Promise<TypedArray> {
      const place = tensors.get(name);
      if (!place) throw missingTensor({ name: file.path, tensors }, name);
      const read = (to: Memory) => file.read(place.begin, place.bytes, to);
      const data = await readElements(place.double ? 'f64' : place.dtype, read, memory);
      return await checkValues(file.path, name, place.dtype, data);
    },
    close: () => file.close(),
  };
}

/** The record at a position of the file, and its length; there is no place for one without a shape. */
function parseRecord(
  fields: Fields,
  position: number,
  wrong: (what: string) => OctconvError,
): { place?: Place; length: number } {
  const first = fields.u32();
  const version = first === magics.v3 ? 3 : first === magics.v2 ? 2 : first === magics.v1 ? 1 : 0;
  const storage = version >= 2 ? fields.u32() : 0;
  if (storage !== 0) throw wrong(`is of storage type ${storage | 0}, wanted 0, dense`);
  const rank = version === 0 ? first : fields.u32();
  // No shape: a rank of 0, and in version 3, where that is a scalar, one of -1.
  if (version === 3 ? rank === 0xffffffff : rank === 0) return { length: fields.at };
  if (rank > rankLimit) throw wrong(`has ${rank} sizes, wanted at most ${rankLimit}`);
  const shape = Array.from({ length: rank }, () => (version === 0 ? fields.u32() : fields.u64()));
  fields.u64(); // the device
  const type = fields.u32();
  const element = elementTypes.get(type);
  if (!element) throw wrong(`is of type ${type | 0}, wanted one of ${[...elementTypes.keys()].join(', ')}`);
  const { dtype } = element;
  const bytes = elementCount(shape) * element.bytes;
  if (!Number.isSafeInteger(bytes)) throw wrong(`has the impossible shape ${show(shape)}`);
  const place = { dtype, shape, begin: position + fields.at, bytes, double: type === 1 };
  return { place, length: fields.at + bytes };
}

/** Numbers and text one after the other; `cut` is the error of those that are not there. */
class Fields {
  at = 0;
  readonly #view: DataView;
  constructor(
    readonly bytes: Uint8Array<ArrayBuffer>,
    readonly cut: () => OctconvError,
  ) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }
  get left(): number {
    return this.bytes.length - this.at;
  }
  #skip(length: number): number {
    if (!(length <= this.left)) throw this.cut();
    this.at += length;
    return this.at - length;
  }
  u32(): number {
    return this.#view.getUint32(this.#skip(4), true);
  }
  /** Beyond 2^53 it is no longer exact: whoever counts by it finds out. */
  u64(): number {
    return Number(this.#view.getBigUint64(this.#skip(8), true));
  }
  text(length: number): string | undefined {
    const begin = this.#skip(length);
    try {
      return new TextDecoder('utf-8', { fatal: true }).decode(this.bytes.subarray(begin, begin + length));
    } catch {
      return undefined;
    }
  }
}

// --- Tar --------------------------------------------------------------------------------------------------------

const block = 512;
const latin1 = (bytes: Uint8Array) => Buffer.from(bytes).toString('latin1');
const octal = (field: Uint8Array): number => {
  const digits = latin1(field).replaceAll('\0', ' ').trim();
  return /^[0-7]{1,12}$/.test(digits) ? Number.parseInt(digits, 8) : Number.NaN;
};

/** Whether a block is the header of an entry in a tar: its magic, and the sum of its bytes. */
export function isTar(header: Uint8Array): boolean {
  if (header.length < block || latin1(header.subarray(257, 262)) !== 'ustar') return false;
  // The sum is of the header with spaces where it will stand.
  const sum = header.subarray(0, block).reduce((total, byte, i) => total + (i >= 148 && i < 156 ? 32 : byte), 0);
  return octal(header.subarray(148, 156)) === sum;
}

/** Reads the one .params in a tar, whatever it is called. */
export async function readTar(file: RandomFile): Promise<WeightSource> {
  const wrong = (what: string): OctconvError => new OctconvError(`${file.path}: ${what}`);
  const found: { begin: number; end: number }[] = [];
  let entries = 0;
  for (let at = 0; at + block <= file.size; ) {
    const header = await file.read(at, block);
    if (header.every((byte) => byte === 0)) break;
    const size = octal(header.subarray(124, 136));
    const begin = at + block;
    if (!isTar(header) || Number.isNaN(size)) throw wrong(`damaged tar: no header at byte ${at}`);
    if (begin + size > file.size) throw wrong(`truncated at ${file.size} bytes, wanted ${size} bytes at ${begin}`);
    if (++entries > recordLimit) throw wrong(`more than ${recordLimit} entries in the tar`);
    const isFile = header[156] === 0 || header[156] === 0x30;
    if (isFile && size >= 24 && isParams(await file.read(begin, 24))) found.push({ begin, end: begin + size });
    at = begin + Math.ceil(size / block) * block;
  }
  const [only, ...others] = found;
  if (!only || others.length)
    throw wrong(`${found.length} MXNet .params among ${entries} entries of the tar, wanted one`);
  return readParams(file, only.begin, only.end);
}
