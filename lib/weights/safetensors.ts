import { bytesPerElement, type DType, dtypes, type TypedArray } from '../dtype.js';
import { OctconvError, show } from '../error.js';
import { writeWhole } from '../files/write.js';
import type { RandomFile } from './file.js';
import { asElements, elementCount, isCounter, missingTensor, type TensorInfo, type WeightSource } from './source.js';

// The format: u64 header length, a JSON header { name: { dtype, shape, data_offsets: [begin, end] }, ... } that may be
// padded with spaces, then the tensors without holes, little-endian, row-major. Offsets count from the header's end.

/** 70,000 tensors' worth; the official reader's 100 MB would let a hostile header parse to gigabytes of objects. */
const headerLimit = 8 * 2 ** 20;

/** A data type is called the same in the file, in capitals: F32, BF16, I8. */
const byFileName = new Map<unknown, DType>(dtypes.map((dtype) => [dtype.toUpperCase(), dtype]));

interface Place extends TensorInfo {
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
  const places = parseHeader(file.path, await file.read(8, length), file.size - start);
  return {
    name: file.path,
    tensors: places,
    async read(name, memory): Promise<TypedArray> {
      const place = places.get(name);
      if (!place) throw missingTensor(file.path, name);
      return asElements(place.dtype, await file.read(start + place.begin, place.end - place.begin, memory));
    },
    close: () => file.close(),
  };
}

function parseHeader(path: string, bytes: Uint8Array, dataSize: number): Map<string, Place> {
  const wrong = (what: string): OctconvError => new OctconvError(`${path}: ${what}`);
  let header: unknown;
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    header = JSON.parse(text);
  } catch {
    throw wrong('the header is not JSON');
  }
  if (!isObject(header)) throw wrong('the header is not a JSON object');
  // What is written as it would be again, by us or the official writer, repeats none.
  const repeated = JSON.stringify(header) === text.trimEnd() ? undefined : repeatedKey(text);
  if (repeated !== undefined) throw wrong(`the header names ${show(repeated)} twice`);

  const places: { name: string; dtype: DType | undefined; shape: number[]; begin: number; end: number }[] = [];
  for (const [name, value] of Object.entries(header)) {
    if (name === '__metadata__') {
      if (isObject(value) && Object.values(value).every((item) => typeof item === 'string')) continue;
      throw wrong('__metadata__ is not an object of strings');
    }
    const { dtype: fileName, shape, data_offsets: offsets } = isObject(value) ? value : {};
    const dtype = byFileName.get(fileName);
    // Counters are left out later; their place is part of the layout all the same.
    const elementBytes = dtype ? bytesPerElement[dtype] : fileName === 'I64' && isCounter(name) ? 8 : undefined;
    if (elementBytes === undefined) {
      throw wrong(`tensor ${show(name)} has dtype ${show(fileName)}, wanted ${[...byFileName.keys()].join(', ')}`);
    }
    if (!isNumbers(shape)) throw wrong(`tensor ${show(name)} has shape ${show(shape)}, wanted a list of sizes`);
    const size = elementCount(shape) * elementBytes;
    if (!Number.isSafeInteger(size)) throw wrong(`tensor ${show(name)} has the impossible shape ${show(shape)}`);
    const [begin, end, more] = isNumbers(offsets) ? offsets : [];
    if (begin === undefined || end === undefined || more !== undefined || end - begin !== size) {
      const got = `data_offsets ${show(offsets)}`;
      throw wrong(`tensor ${show(name)} ${fileName} ${show(shape)} has ${got}, wanted ${size} bytes`);
    }
    places.push({ name, dtype, shape, begin, end });
  }

  places.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let at = 0;
  for (const { name, begin, end } of places) {
    if (begin !== at) throw wrong(`tensor ${show(name)} begins at ${begin}, wanted ${at}: no holes and no overlaps`);
    at = end;
  }
  if (at !== dataSize) throw wrong(`${dataSize} bytes of data, the header tells of ${at}`);

  const tensors = new Map<string, Place>();
  for (const { name, dtype, shape, begin, end } of places) {
    if (dtype && !isCounter(name)) tensors.set(name, { dtype, shape, begin, end });
  }
  return tensors;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isNumbers(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((x) => Number.isSafeInteger(x) && x >= 0);
}

/** The first key that an object of valid JSON repeats: JSON.parse would silently keep the last. */
function repeatedKey(json: string): string | undefined {
  const open: Set<string>[] = [];
  for (let i = 0; i < json.length; i++) {
    if (json[i] === '{') open.push(new Set());
    else if (json[i] === '}') open.pop();
    else if (json[i] === '"') {
      const start = i++;
      while (json[i] !== '"') i += json[i] === '\\' ? 2 : 1;
      let next = i + 1;
      while (/\s/.test(json[next] ?? '')) next++;
      if (json[next] !== ':') continue;
      const key = JSON.parse(json.slice(start, i + 1)) as string;
      const keys = open.at(-1)!;
      if (keys.has(key)) return key;
      keys.add(key);
    }
  }
  return undefined;
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
 * The content of a file, which errors call `path`: every tensor of a source, one at a time. Wide data types come first, so
 * that every tensor is aligned in the file.
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
