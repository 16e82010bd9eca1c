import type yauzl from 'yauzl';
import { bytesPerElement, type DType, type TypedArray } from '../dtype.js';
import { OctconvError, show } from '../error.js';
import type { Memory, RandomFile } from './file.js';
import {
  Global, Persistent, PickleTruncated, type PickleValue, readPickle, storageTypes, TensorCall, Tuple,
} from './pickle.js';
import { asElements, elementCount, isCounter, missingTensor, type TensorInfo, type WeightSource } from './source.js';

// torch.save writes a pickle of the state dict: a tensor is `_rebuild_tensor_v2(storage, offset, size, stride)`, a
// storage is a persistent id ('storage', torch.FloatStorage, key, device, elements). Since PyTorch 1.6 the file is a
// zip of NAME/data.pkl and NAME/data/KEY; before, it is five pickles in a row, then the storages.

/** A state dict has some 100 bytes of pickle per tensor. */
const pickleLimit = 8 * 2 ** 20;
const entryLimit = 100_000;

/** Where the storages' bytes are. Implementations check what they read against the file. */
interface Storages {
  /** The size of a storage in bytes; undefined if there is none. */
  size(key: string): number | undefined;
  read(key: string, begin: number, length: number, memory?: Memory): Promise<Uint8Array<ArrayBuffer>>;
}

const storageDTypes = new Map<string, DType>([
  ['torch.FloatStorage', 'f32'],
  ['torch.HalfStorage', 'f16'],
  ['torch.BFloat16Storage', 'bf16'],
  ['torch.CharStorage', 'i8'],
  ['torch.ByteStorage', 'u8'],
  ['torch.IntStorage', 'i32'],
]);

/** A tensor as a checked view of its storage; strides, offset and extent count elements. */
interface View extends TensorInfo {
  readonly storage: string;
  readonly strides: readonly number[];
  readonly offset: number;
  /** From the view's first element to behind its last one. */
  readonly extent: number;
}

export async function readZipPth(file: RandomFile): Promise<WeightSource> {
  const { openPromise } = await import('yauzl'); // some MiB that other files do not need
  const zip = await openPromise(file.path, { autoClose: false }).catch((error: Error) => {
    throw zipError(file, error);
  });
  // Without a listener an error event would end the process; what a call has to report, it reports itself.
  zip.on('error', () => {});
  try {
    const entries = await listEntries(file, zip);
    const pickles = [...entries.keys()].filter((name) => /^[^/]+\/data\.pkl$/.test(name));
    if (pickles.length !== 1) {
      throw new OctconvError(`${file.path}: ${pickles.length} entries NAME/data.pkl in the zip, wanted one`);
    }
    const pickle = pickles[0] as string;
    const root = pickle.slice(0, -'data.pkl'.length);
    const read = (name: string) => readEntry(file, zip, entries.get(name) as yauzl.Entry);

    const order = entries.get(`${root}byteorder`);
    if (order && order.uncompressedSize < 16) {
      const text = Buffer.from(await read(order.fileName)).toString('latin1').trim();
      if (text !== 'little') throw new OctconvError(`${file.path}: byte order ${show(text)}, wanted "little"`);
    }
    if (entries.get(pickle)!.uncompressedSize > pickleLimit) {
      throw new OctconvError(`${file.path}: a pickle of more than ${pickleLimit} bytes`);
    }
    const { value } = readPickle(await read(pickle), 0, file.path);
    const storages: Storages = {
      size: (key) => entries.get(`${root}data/${key}`)?.uncompressedSize,
      async read(key, begin, length, memory) {
        const entry = entries.get(`${root}data/${key}`) as yauzl.Entry;
        return readEntry(file, zip, entry, begin, length, memory);
      },
    };
    return stateDict(file.path, value, storages, async () => {
      zip.close();
      await file.close();
    });
  } catch (error) {
    zip.close();
    throw error;
  }
}

function zipError(file: RandomFile, error: Error): Error {
  return error instanceof OctconvError ? error : new OctconvError(`${file.path}: damaged zip: ${error.message}`);
}

async function listEntries(file: RandomFile, zip: yauzl.ZipFile): Promise<Map<string, yauzl.Entry>> {
  if (zip.entryCount > entryLimit) throw new OctconvError(`${file.path}: more than ${entryLimit} entries in the zip`);
  const entries = new Map<string, yauzl.Entry>();
  try {
    for await (const entry of zip.eachEntry()) {
      const { fileName, compressedSize, uncompressedSize } = entry;
      if (entries.has(fileName)) throw new OctconvError(`${file.path}: ${show(fileName)} is twice in the zip`);
      // 1032 is the most that deflate can reach; weights, unless they are all zero, hardly shrink at all.
      if (compressedSize > file.size || uncompressedSize > Math.max(2 ** 16, 100 * compressedSize)) {
        const sizes = `${compressedSize} bytes for ${uncompressedSize}`;
        throw new OctconvError(`${file.path}: ${show(fileName)} in the zip says ${sizes}, which is not believable`);
      }
      entries.set(fileName, entry);
    }
  } catch (error) {
    throw zipError(file, error as Error);
  }
  return entries;
}

/** A part of an entry. The checksum is not looked at: neither does torch.load, and torch.save may leave it out. */
async function readEntry(
  file: RandomFile,
  zip: yauzl.ZipFile,
  entry: yauzl.Entry,
  begin = 0,
  length = entry.uncompressedSize,
  memory?: Memory,
): Promise<Uint8Array<ArrayBuffer>> {
  try {
    if (entry.compressionMethod === 0 && !entry.isEncrypted()) {
      const { fileDataStart } = await zip.readLocalFileHeaderPromise(entry, { minimal: true });
      return await file.read(fileDataStart + begin, length, memory);
    }
    const inflated = new Uint8Array(entry.uncompressedSize);
    let at = 0;
    // yauzl ends the stream with an error as soon as there are more or fewer bytes than the entry says.
    for await (const chunk of await zip.openReadStreamPromise(entry)) {
      inflated.set(chunk as Buffer, at);
      at += (chunk as Buffer).length;
    }
    return inflated.slice(begin, begin + length);
  } catch (error) {
    throw zipError(file, error as Error);
  }
}

/** The first pickle of a legacy file. */
const legacyMagic = 0x1950a86a20f9469cfc6cn;
const legacyVersion = 1001;

export async function readLegacyPth(file: RandomFile): Promise<WeightSource> {
  const { value, persistents, keys, end } = await readLegacyPickles(file);
  const known = new Map<string, Storage>();
  for (const persistent of persistents) {
    const storage = parseStorage(file.path, persistent);
    known.set(storage.key, storage);
  }

  // The storages in the order of `keys`, each an i64 count and its elements.
  const places = new Map<string, { start: number; bytes: number }>();
  let at = end;
  for (const key of keys) {
    const storage = typeof key === 'string' ? known.get(key) : undefined;
    if (!storage || places.has(storage.key)) {
      throw new OctconvError(`${file.path}: storage ${show(key)} is unknown or twice`);
    }
    const count = Number(new DataView((await file.read(at, 8)).buffer).getBigInt64(0, true));
    const bytes = count * storage.elementBytes;
    if (count < 0 || at + 8 + bytes > file.size) {
      throw new OctconvError(`${file.path}: truncated, storage ${show(key)} has ${count} elements`);
    }
    places.set(storage.key, { start: at + 8, bytes });
    at += 8 + bytes;
  }
  const storages: Storages = {
    size: (key) => places.get(key)?.bytes,
    read: (key, begin, length, memory) => file.read(places.get(key)!.start + begin, length, memory),
  };
  return stateDict(file.path, value, storages, () => file.close());
}

/** Magic number, version, system, state dict, keys of the storages. Their length is not known before they are read. */
async function readLegacyPickles(file: RandomFile) {
  for (let size = 2 ** 16; ; size *= 2) {
    const bytes = await file.read(0, Math.min(size, file.size, pickleLimit));
    try {
      const magic = readPickle(bytes, 0, file.path);
      if (magic.value !== legacyMagic) throw new OctconvError(`${file.path}: a pickle, but none that torch.save wrote`);
      const version = readPickle(bytes, magic.end, file.path);
      if (version.value !== legacyVersion) {
        throw new OctconvError(`${file.path}: version ${show(version.value)}, wanted ${legacyVersion}`);
      }
      const system = readPickle(bytes, version.end, file.path);
      if (!(system.value instanceof Map) || system.value.get('little_endian') !== true) {
        throw new OctconvError(`${file.path}: written on a big-endian machine, wanted little-endian`);
      }
      const { value, persistents, end } = readPickle(bytes, system.end, file.path);
      const keys = readPickle(bytes, end, file.path);
      if (!Array.isArray(keys.value)) throw new OctconvError(`${file.path}: no list of storages behind the state dict`);
      return { value, persistents, keys: keys.value, end: keys.end };
    } catch (error) {
      if (!(error instanceof PickleTruncated) || bytes.length < size) throw error;
    }
  }
}

interface Storage {
  readonly key: string;
  readonly type: string;
  readonly elementBytes: number;
  /** The part of it that is meant. */
  readonly offset: number;
  readonly elements: number;
}

/** ('storage', type, key, device, elements[, (view key, offset, elements) or None]) */
function parseStorage(path: string, { id }: Persistent): Storage {
  const [kind, type, key, , count, part = null, more] = id instanceof Tuple ? id.items : [];
  const [, offset, elements] = part instanceof Tuple && part.items.length === 3 ? part.items : [null, 0, count];
  if (
    kind !== 'storage' || !(type instanceof Global) || typeof key !== 'string' || more !== undefined ||
    (part !== null && !(part instanceof Tuple)) || !isSize(count) || !isSize(offset) || !isSize(elements) ||
    offset + elements > count
  ) {
    throw new OctconvError(`${path}: the pickle refers to something that is no storage`);
  }
  const elementBytes = storageTypes.get(type.path);
  if (elementBytes === undefined) throw new OctconvError(`${path}: ${type.path} is no type of storage`);
  return { key, type: type.path, elementBytes, offset, elements };
}

function isSize(value: PickleValue | undefined): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}

/** The tensors of a state dict, which may sit in a dict of its own beside an epoch and an optimizer. */
function stateDict(path: string, root: PickleValue, storages: Storages, close: () => Promise<void>): WeightSource {
  let dict = root;
  for (const key of ['state_dict', 'model_state_dict', 'model']) {
    const inner: PickleValue | undefined = root instanceof Map ? root.get(key) : undefined;
    if (inner instanceof Map) {
      dict = inner;
      break;
    }
  }
  if (!(dict instanceof Map)) throw new OctconvError(`${path}: no state dict, wanted names with tensors`);
  const names = [...dict.keys()];
  // What torch.nn.DataParallel puts in front of every name.
  const wrapped = names.length > 0 && names.every((name) => typeof name === 'string' && name.startsWith('module.'));

  const views = new Map<string, View>();
  for (const [key, value] of dict) {
    if (typeof key !== 'string' || !(value instanceof TensorCall)) {
      throw new OctconvError(`${path}: entry ${show(key)} of the state dict is no tensor`);
    }
    const name = wrapped ? key.slice('module.'.length) : key;
    if (!isCounter(name)) views.set(name, parseTensor(path, name, value, storages));
  }
  return {
    name: path,
    tensors: views,
    async read(name, memory): Promise<TypedArray> {
      const view = views.get(name);
      if (!view) throw missingTensor(path, name);
      const size = bytesPerElement[view.dtype];
      const bytes = await storages.read(view.storage, view.offset * size, view.extent * size, memory);
      return asElements(view.dtype, isContiguous(view) ? bytes : gather(view, bytes));
    },
    close,
  };
}

function parseTensor(path: string, name: string, { args }: TensorCall, storages: Storages): View {
  const wrong = (what: string): OctconvError => new OctconvError(`${path}: tensor ${show(name)} ${what}`);
  const [reference, start, size, stride] = args;
  if (!(reference instanceof Persistent)) throw wrong('has no storage');
  const storage = parseStorage(path, reference);
  const dtype = storageDTypes.get(storage.type);
  if (!dtype) throw wrong(`is a ${storage.type}, wanted ${[...storageDTypes.keys()].join(', ')}`);
  const sizes = size instanceof Tuple ? size.items : [];
  const strides = stride instanceof Tuple ? stride.items : [];
  if (!isSize(start) || !sizes.every(isSize) || !strides.every(isSize) || sizes.length !== strides.length) {
    throw wrong('has a size, stride or offset that is no list of numbers');
  }
  const bytes = storages.size(storage.key);
  if (bytes === undefined) throw wrong(`refers to storage ${show(storage.key)}, which is not in the file`);
  const root = storage.offset + storage.elements;
  if (root * storage.elementBytes > bytes) {
    throw wrong(`says that storage ${show(storage.key)} has ${root} elements, it has ${bytes} bytes`);
  }
  const count = elementCount(sizes);
  const extent = count === 0 ? 0 : sizes.reduce((sum, n, i) => sum + (n - 1) * strides[i]!, 1);
  // More elements than the storage has (strides of 0) would let a small file ask for any amount of memory.
  if (!(count <= storage.elements) || !(start + extent <= storage.elements)) {
    const view = `${show(sizes)} with strides ${show(strides)} at ${start}`;
    throw wrong(`${view} lies outside its storage of ${storage.elements}`);
  }
  return { dtype, shape: sizes, strides, storage: storage.key, offset: storage.offset + start, extent };
}

function isContiguous({ shape, strides, extent }: View): boolean {
  let wanted = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    if (shape[i] !== 1 && strides[i] !== wanted) return extent === 0;
    wanted *= shape[i]!;
  }
  return true;
}

/** The elements of a transposed or otherwise strided tensor in row-major order. */
function gather({ dtype, shape, strides }: View, bytes: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  // As integers, so that no bit of a NaN is lost.
  const Bits = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array }[bytesPerElement[dtype] as 1 | 2 | 4];
  const from = new Bits(bytes.buffer, bytes.byteOffset, bytes.length / Bits.BYTES_PER_ELEMENT);
  const to = new Bits(elementCount(shape));
  const index = shape.map(() => 0);
  let at = 0;
  for (let i = 0; i < to.length; i++) {
    to[i] = from[at]!;
    for (let d = shape.length - 1; d >= 0; d--) {
      at += strides[d]!;
      if (++index[d]! < shape[d]!) break;
      at -= strides[d]! * shape[d]!;
      index[d] = 0;
    }
  }
  return new Uint8Array(to.buffer);
}
