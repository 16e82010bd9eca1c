import { bytesPerElement, dtypes, type TypedArray } from '../dtype.js';
import { OctconvError, show } from '../error.js';
import { writeWhole } from '../files/write.js';
import { inTurns, type Work } from '../turns.js';
import { bytesPerStored, checkValues, readAs, readElements, type StoredType } from './elements.js';
import type { RandomFile } from './file.js';
import { isObject, parsing } from './json.js';
import { isIgnored, readingNotes } from './names.js';
import { elementCount, missingTensor, type TensorInfo, type WeightSource } from './source.js';

// The format: u64 header length, a JSON header { name: { dtype, shape, data_offsets: [begin, end] }, ... } that may be
// padded with spaces, then the tensors without holes, little-endian, row-major. Offsets count from the header's end.

/**
 * 70,000 tensors' worth; the official reader's 100 MB would let a hostile header parse to gigabytes of objects. A byte
 * of it takes some 20 bytes of memory at most.
 */
export const headerLimit = 8 * 2 ** 20;

/** A data type is called the same in the file, in capitals: F32, BF16, I8. */
const byFileName = new Map<unknown, StoredType>(
  [...dtypes, 'f64' as const].map((dtype) => [dtype.toUpperCase(), dtype]),
);

interface Place extends TensorInfo {
  readonly stored: StoredType;
  readonly begin: number;
  readonly end: number;
}

export async function readSafetensors(file: RandomFile): Promise<WeightSource> {
  const prefix = await file.read(0, 8);
  const length = Number(new DataView(prefix.buffer).getBigUint64(0, true));
  if (length > headerLimit) {
    throw new OctconvError(`${file.path}: a header of ${length} bytes, wanted at most ${headerLimit}`);
  }
  const start = 8 + length;
  const header = await file.read(8, length);
  const { tensors, ...others } = await inTurns(parseHeader(file.path, header, file.size - start));
  return {
    name: file.path,
    tensors,
    ...others,
    async read(name, memory): Promise<TypedArray> {
      const place = tensors.get(name);
      if (!place) throw missingTensor({ name: file.path, tensors, ...others }, name);
      const { dtype, stored, begin, end } = place;
      const data = await readElements(stored, (memory) => file.read(start + begin, end - begin, memory), memory);
      return await checkValues(file.path, name, dtype, data);
    },
    close: () => file.close(),
  };
}

interface Header {
  readonly tensors: ReadonlyMap<string, Place>;
  readonly unreadable: ReadonlyMap<string, string>;
  readonly notes: readonly string[];
}

function* parseHeader(path: string, bytes: Uint8Array, dataSize: number): Work<Header> {
  const wrong = (what: string): OctconvError => new OctconvError(`${path}: ${what}`);
  // The names, what is told of each, and its lists of numbers.
  const header = yield* parsing(bytes, 3, `${path}: the header`);
  if (!isObject(header)) throw wrong('the header is not a JSON object');

  const places: {
    name: string;
    fileName: unknown;
    stored: StoredType | undefined;
    shape: number[];
    begin: number;
    end: number;
  }[] = [];
  for (const [name, value] of Object.entries(header)) {
    yield;
    if (name === '__metadata__') {
      if (isObject(value) && Object.values(value).every((item) => typeof item === 'string')) continue;
      throw wrong('__metadata__ is not an object of strings');
    }
    const { dtype: fileName, shape, data_offsets: offsets } = isObject(value) ? value : {};
    if (typeof fileName !== 'string') throw wrong(`tensor ${show(name)} has dtype ${show(fileName)}, wanted a name`);
    if (!isNumbers(shape)) throw wrong(`tensor ${show(name)} has shape ${show(shape)}, wanted a list of sizes`);
    const [begin, end, more] = isNumbers(offsets) ? offsets : [];
    const stored = byFileName.get(fileName);
    const size = stored && elementCount(shape) * bytesPerStored[stored];
    if (stored && !Number.isSafeInteger(size))
      throw wrong(`tensor ${show(name)} has the impossible shape ${show(shape)}`);
    if (
      begin === undefined ||
      end === undefined ||
      more !== undefined ||
      end < begin ||
      end - begin !== (size ?? end - begin)
    ) {
      const wanted = size === undefined ? 'a begin and an end' : `${size} bytes`;
      throw wrong(
        `tensor ${show(name)} ${fileName} ${show(shape)} has data_offsets ${show(offsets)}, wanted ${wanted}`,
      );
    }
    places.push({ name, fileName, stored, shape, begin, end });
  }

  places.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let at = 0;
  for (const { name, begin, end } of places) {
    if (begin !== at) throw wrong(`tensor ${show(name)} begins at ${begin}, wanted ${at}: no holes and no overlaps`);
    at = end;
  }
  if (at !== dataSize) throw wrong(`${dataSize} bytes of data, the header tells of ${at}`);

  const tensors = new Map<string, Place>();
  const unreadable = new Map<string, string>();
  let doubles = 0;
  for (const { name, fileName, stored, shape, begin, end } of places) {
    yield;
    if (isIgnored(name)) continue;
    if (stored === 'f64') doubles++;
    if (stored) tensors.set(name, { dtype: readAs(stored), stored, shape, begin, end });
    else unreadable.set(name, `has dtype ${show(fileName)}, wanted ${[...byFileName.keys()].join(', ')}`);
  }
  return { tensors, unreadable, notes: readingNotes(doubles, unreadable.keys()) };
}

function isNumbers(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((x) => Number.isSafeInteger(x) && x >= 0);
}

/** Writes every tensor of a source. */
export async function writeSafetensors(
  path: string,
  source: Pick<WeightSource, 'tensors' | 'read'>,
  metadata?: Readonly<Record<string, string>>,
): Promise<void> {
  await writeWhole(path, encodeSafetensors(path, source, metadata));
}

/**
 * The content of a file, which errors call `path`: every tensor of a source, one at a time. Wide data types come first,
 * so that every tensor is aligned in the file.
 */
export async function* encodeSafetensors(
  path: string,
  source: Pick<WeightSource, 'tensors' | 'read'>,
  metadata?: Readonly<Record<string, string>>,
): AsyncGenerator<Uint8Array, void, void> {
  const order = [...source.tensors].sort(([, a], [, b]) => bytesPerElement[b.dtype] - bytesPerElement[a.dtype]);
  const header: Record<string, unknown> = Object.create(null);
  if (metadata) header.__metadata__ = metadata;
  let at = 0;
  for (const [name, { dtype, shape }] of order) {
    if (name === '__metadata__') throw new OctconvError(`${path}: a tensor cannot be called '__metadata__'`);
    const end = at + elementCount(shape) * bytesPerElement[dtype];
    header[name] = { dtype: dtype.toUpperCase(), shape, data_offsets: [at, end] };
    at = end;
  }
  const json = Buffer.from(JSON.stringify(header));
  const padded = Buffer.alloc(8 + Math.ceil(json.length / 8) * 8, ' ');
  padded.writeBigUInt64LE(BigInt(padded.length - 8));
  json.copy(padded, 8);

  yield padded;
  for (const [name, info] of order) {
    const data = await source.read(name);
    const wanted = elementCount(info.shape);
    if (data.length !== wanted) {
      throw new OctconvError(`${path}: tensor ${show(name)} has ${data.length} elements, wanted ${wanted}`);
    }
    yield new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  }
}
