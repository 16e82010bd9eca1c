import { promisify } from 'node:util';
import { inflateRaw } from 'node:zlib';
import type yauzl from 'yauzl';
import type { TypedArray } from '../dtype.js';
import { OctconvError, show } from '../error.js';
import { bytesPerStored, checkValues, type Layout, negate, readAs, readElements, type StoredType } from './elements.js';
import { didYouMean } from '../options.js';
import { type Memory, ownMemory, type RandomFile } from './file.js';
import { isIgnored, readingNotes, someOf } from './names.js';
import {
  describe,
  Global,
  Opaque,
  Persistent,
  PickleTruncated,
  type PickleValue,
  readPickle,
  storageTypes,
  TensorCall,
  tensorCalls,
  Tuple,
} from './pickle.js';
import { elementCount, missingTensor, type TensorInfo, type WeightSource } from './source.js';

// torch.save writes a pickle of the state dict: a tensor is `_rebuild_tensor_v2(storage, offset, size, stride)`, a
// storage is a persistent id ('storage', torch.FloatStorage, key, device, elements). Since PyTorch 1.6 the file is a
// zip of NAME/data.pkl and NAME/data/KEY; before, it is five pickles in a row, then the storages.

/** A state dict has some 100 bytes of pickle per tensor. */
const pickleLimit = 8 * 2 ** 20;
const entryLimit = 100_000;

/**
 * The most bytes that a byte of a file may stand for, deflated or in tensors that share numbers: beyond it a small file
 * could ask for any amount of memory.
 */
const growth = 100;
const alwaysFine = 2 ** 16;

/** Where the storages' bytes are. Implementations check what they read against the file. */
interface Storages {
  /** The size of a storage in bytes; undefined if there is none. */
  size(key: string): number | undefined;
  read(key: string, begin: number, length: number, memory: Memory): Promise<Uint8Array<ArrayBuffer>>;
  /** What more than one tensor lies in is worth keeping. */
  share?(keys: ReadonlySet<string>): void;
}

const storedTypes = new Map<string, StoredType>([
  ['torch.FloatStorage', 'f32'],
  ['torch.DoubleStorage', 'f64'],
  ['torch.HalfStorage', 'f16'],
  ['torch.BFloat16Storage', 'bf16'],
  ['torch.CharStorage', 'i8'],
  ['torch.ByteStorage', 'u8'],
  ['torch.IntStorage', 'i32'],
]);

/** A tensor as a checked view of its storage; strides, offset and extent count elements. */
interface View extends TensorInfo, Layout {
  readonly storage: string;
  readonly stored: StoredType;
  readonly offset: number;
  /** From the view's first element to behind its last one. */
  readonly extent: number;
  /** Its numbers are those of the storage with the other sign. */
  readonly negative: boolean;
}

export async function readZipPth(file: RandomFile, key?: string): Promise<WeightSource> {
  const entries = await listEntries(file);
  const pickles = [...entries.keys()].filter((name) => /^[^/]+\/data\.pkl$/.test(name));
  if (pickles.length !== 1) {
    throw new OctconvError(`${file.path}: ${pickles.length} entries NAME/data.pkl in the zip, wanted one`);
  }
  const pickle = pickles[0] as string;
  const root = pickle.slice(0, -'data.pkl'.length);

  const order = entries.get(`${root}byteorder`);
  if (order && order.uncompressedSize < 16) {
    const text = Buffer.from(await readEntry(file, order))
      .toString('latin1')
      .trim();
    if (text !== 'little') throw new OctconvError(`${file.path}: byte order ${show(text)}, wanted "little"`);
  }
  if (entries.get(pickle)!.uncompressedSize > pickleLimit) {
    throw new OctconvError(`${file.path}: a pickle of more than ${pickleLimit} bytes`);
  }
  const { value } = readPickle(await readEntry(file, entries.get(pickle)!), 0, file.path);
  const folder = `${root}data/`;
  const all = [...entries].filter(([name]) => name.startsWith(folder));
  const byKey = new Map(all.map(([name, entry]) => [name.slice(folder.length), entry]));
  let shared: ReadonlySet<string> = new Set();
  const inflated = new Map<string, Promise<Uint8Array<ArrayBuffer>>>();
  const storages: Storages = {
    size: (key) => byKey.get(key)?.uncompressedSize,
    share(keys) {
      shared = keys;
    },
    async read(key, begin, length, memory) {
      const entry = byKey.get(key)!;
      if (isStored(entry)) return file.read((await dataStart(file, entry)) + begin, length, memory);
      const reading = inflated.get(key) ?? readEntry(file, entry);
      if (shared.has(key)) inflated.set(key, reading);
      try {
        const bytes = memory(length);
        bytes.set((await reading).subarray(begin, begin + length));
        return bytes;
      } catch (error) {
        inflated.delete(key); // the next one tries again
        throw error;
      }
    },
  };
  return stateDict(file, value, storages, key);
}

function damaged(file: RandomFile, error: Error): Error {
  return error instanceof OctconvError ? error : new OctconvError(`${file.path}: damaged zip: ${error.message}`);
}

async function listEntries(file: RandomFile): Promise<Map<string, yauzl.Entry>> {
  const { fromFdPromise } = await import('yauzl'); // some MiB that other files do not need
  try {
    const zip = await fromFdPromise(file.handle.fd, { autoClose: false });
    // Without a listener an error event would end the process; what a call has to report, it reports itself.
    zip.on('error', () => {});
    if (zip.entryCount > entryLimit) throw new OctconvError(`${file.path}: more than ${entryLimit} entries in the zip`);
    const entries = new Map<string, yauzl.Entry>();
    const most = Math.max(alwaysFine, growth * file.size);
    let [packed, unpacked] = [0, 0];
    for await (const entry of zip.eachEntry()) {
      const { fileName, compressedSize, uncompressedSize } = entry;
      if (entries.has(fileName)) throw new OctconvError(`${file.path}: ${show(fileName)} is twice in the zip`);
      // 1032 is the most that deflate can reach; weights, unless they are all zero, hardly shrink at all.
      packed += compressedSize;
      unpacked += uncompressedSize;
      if (packed > file.size || unpacked > most) {
        const sizes = `${compressedSize} bytes for ${uncompressedSize}`;
        throw new OctconvError(`${file.path}: ${show(fileName)} in the zip says ${sizes}, which is not believable`);
      }
      entries.set(fileName, entry);
    }
    return entries;
  } catch (error) {
    throw damaged(file, error as Error);
  }
}

const isStored = (entry: yauzl.Entry): boolean => entry.compressionMethod === 0 && !entry.isEncrypted();

/** Where an entry's bytes begin: behind a header that repeats its name. */
async function dataStart(
  file: RandomFile,
  { fileName, relativeOffsetOfLocalHeader: at, compressedSize }: yauzl.Entry,
): Promise<number> {
  const header = new DataView((await file.read(at, 30)).buffer);
  const start = at + 30 + header.getUint16(26, true) + header.getUint16(28, true);
  if (header.getUint32(0, true) === 0x04034b50 && start + compressedSize <= file.size) return start;
  throw new OctconvError(`${file.path}: damaged zip: ${show(fileName)} is not where it should be`);
}

/** All of an entry. The checksum is not looked at: neither does torch.load, and torch.save may leave it out. */
async function readEntry(file: RandomFile, entry: yauzl.Entry): Promise<Uint8Array<ArrayBuffer>> {
  const { fileName, compressionMethod, compressedSize, uncompressedSize } = entry;
  const wrong = (what: string) => new OctconvError(`${file.path}: damaged zip: ${show(fileName)} ${what}`);
  if (entry.isEncrypted() || (compressionMethod !== 0 && compressionMethod !== 8)) {
    throw wrong(
      entry.isEncrypted() ? 'is encrypted' : `has compression method ${compressionMethod}, wanted 0 or 8 (deflate)`,
    );
  }
  const bytes = await file.read(await dataStart(file, entry), compressedSize);
  if (compressionMethod === 0) return bytes;
  const inflated = await inflate(bytes, { maxOutputLength: Math.max(1, uncompressedSize) }).catch(
    (error: NodeJS.ErrnoException) => {
      throw wrong(
        error.code === 'ERR_BUFFER_TOO_LARGE'
          ? `has more than ${uncompressedSize} bytes`
          : `cannot be inflated: ${error.message}`,
      );
    },
  );
  if (inflated.length !== uncompressedSize) throw wrong(`has ${inflated.length} bytes, wanted ${uncompressedSize}`);
  // The elements of a storage are aligned for any type.
  return inflated.byteOffset % 8 === 0 ? inflated : new Uint8Array(inflated);
}

const inflate = promisify<Uint8Array, { maxOutputLength: number }, Buffer<ArrayBuffer>>(inflateRaw);

/** The first pickle of a legacy file. */
const legacyMagic = 0x1950a86a20f9469cfc6cn;
const legacyVersion = 1001;

export async function readLegacyPth(file: RandomFile, key?: string): Promise<WeightSource> {
  const { value, persistents, keys, end } = await readLegacyPickles(file);
  const known = new Map<string, Storage>();
  for (const persistent of persistents) {
    const storage = parseStorage(persistent);
    if (storage) known.set(storage.key, storage);
  }

  // The storages in the order of `keys`, each an i64 count and its elements.
  const places = new Map<string, { start: number; bytes: number }>();
  let at = end;
  for (const key of keys) {
    const storage = typeof key === 'string' ? known.get(key) : undefined;
    if (!storage || places.has(storage.key)) {
      throw new OctconvError(`${file.path}: storage ${describe(key)} is unknown or twice`);
    }
    const count = Number(new DataView((await file.read(at, 8)).buffer).getBigInt64(0, true));
    const bytes = count * storage.elementBytes;
    if (count < 0 || at + 8 + bytes > file.size) {
      throw new OctconvError(`${file.path}: truncated, storage ${describe(key)} has ${count} elements`);
    }
    places.set(storage.key, { start: at + 8, bytes });
    at += 8 + bytes;
  }
  const storages: Storages = {
    size: (key) => places.get(key)?.bytes,
    read: (key, begin, length, memory) => file.read(places.get(key)!.start + begin, length, memory),
  };
  return stateDict(file, value, storages, key);
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
        throw new OctconvError(`${file.path}: version ${describe(version.value)}, wanted ${legacyVersion}`);
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
function parseStorage({ id }: Persistent): Storage | undefined {
  const [kind, type, key, device, count, part = null, more] = id instanceof Tuple ? id.items : [];
  const [view, offset, elements] = part instanceof Tuple && part.items.length === 3 ? part.items : ['', 0, count];
  const elementBytes = type instanceof Global ? storageTypes.get(type.path) : undefined;
  if (
    kind !== 'storage' ||
    !(type instanceof Global) ||
    elementBytes === undefined ||
    typeof key !== 'string' ||
    typeof device !== 'string' ||
    typeof view !== 'string' ||
    more !== undefined ||
    (part !== null && !(part instanceof Tuple)) ||
    !isSize(count) ||
    !isSize(offset) ||
    !isSize(elements) ||
    offset + elements > count
  ) {
    return undefined;
  }
  return { key, type: type.path, elementBytes, offset, elements };
}

function isSize(value: PickleValue | undefined): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}

// --- The state dict ---------------------------------------------------------------------------------------------

type Dict = Map<PickleValue, PickleValue>;

/** A dictionary that has tensors, and the names that lead to it. */
interface Candidate {
  readonly key: string;
  readonly depth: number;
  readonly dict: Dict;
  readonly tensors: number;
  /**
   * Whether one of them has two sizes or more, as the weights of a layer: a best accuracy, or the state of a generator,
   * has none.
   */
  readonly layers: boolean;
}

const depthLimit = 3;

/**
 * The dictionaries that have tensors, those that are least deep first. A name that is no text leads into an optimizer.
 */
function candidates(root: PickleValue): Candidate[] {
  if (!(root instanceof Map)) return [];
  const found: Candidate[] = [];
  const seen = new Set<Dict>([root]);
  const queue: { key: string; depth: number; dict: Dict }[] = [{ key: '', depth: 0, dict: root }];
  for (const { key, depth, dict } of queue) {
    let tensors = 0;
    let layers = false;
    for (const [name, value] of dict) {
      if (typeof name !== 'string') continue;
      if (value instanceof TensorCall) {
        tensors++;
        layers ||= rankOf(value) >= 2;
      } else if (value instanceof Map && depth < depthLimit && !seen.has(value)) {
        seen.add(value);
        queue.push({ key: key === '' ? name : `${key}.${name}`, depth: depth + 1, dict: value });
      }
    }
    if (tensors > 0) found.push({ key, depth, dict, tensors, layers });
  }
  return found;
}

function rankOf(call: TensorCall): number {
  const size = tensorArgs(call)?.[2];
  return size instanceof Tuple ? size.items.length : 0;
}

/** The state dict, and what is to be said of the choice. */
function choose(path: string, root: PickleValue, key: string | undefined): { dict: Dict; notes: string[] } {
  const all = candidates(root);
  const list = (some: readonly Candidate[]) => someOf(some.map((one) => one.key));
  if (key !== undefined) {
    const dict = all.find((one) => one.key === key)?.dict;
    if (dict) return { dict, notes: [] };
    const named = all.filter((one) => one.key !== '');
    const near = didYouMean(
      key,
      named.map((one) => one.key),
    );
    throw new OctconvError(`${path}: no dictionary ${show(key)} with tensors${near}, ${list(named)}`);
  }
  const serious = all.some(({ layers }) => layers) ? all.filter(({ layers }) => layers) : all;
  const most = serious.reduce((largest, { tensors }) => Math.max(largest, tensors), 0);
  const networks = serious.filter(({ tensors }) => tensors >= most / 10);
  const least = networks.filter(({ depth }) => depth === networks[0]?.depth);
  const [first, second] = least;
  if (!first) {
    const got = root instanceof Map ? `${describe(root)} without tensors` : describe(root);
    throw new OctconvError(
      `${path}: no state dict, but ${got}; wanted names with tensors, as torch.save(model.state_dict(), ...) writes`,
    );
  }
  if (second)
    throw new OctconvError(
      `${path}: several dictionaries with tensors, ${list(least)}; a key (--key) says which is meant`,
    );
  const others = serious.filter((one) => one !== first && one.key !== '');
  const also = others.length > 0 ? `; also with tensors: ${list(others)}` : '';
  return { dict: first.dict, notes: first.key === '' ? [] : [`parameters of ${show(first.key)}${also}`] };
}

function stateDict(file: RandomFile, root: PickleValue, storages: Storages, key: string | undefined): WeightSource {
  const { path } = file;
  const { dict, notes } = choose(path, root, key);
  const views = new Map<string, View>();
  const unreadable = new Map<string, string>();
  const seen = new Set<string>();
  const shared = new Set<string>();
  let doubles = 0;
  let bytes = 0;
  for (const [name, value] of dict) {
    if (typeof name !== 'string' || isIgnored(name)) continue;
    const view = value instanceof TensorCall ? parseTensor(value, storages) : `is ${describe(value)}`;
    if (typeof view === 'string') {
      if (value instanceof TensorCall || value instanceof Opaque) unreadable.set(name, view);
      continue;
    }
    views.set(name, view);
    if (view.stored === 'f64') doubles++;
    bytes += Math.max(elementCount(view.shape), view.extent) * bytesPerStored[view.stored];
    if (seen.has(view.storage)) shared.add(view.storage);
    seen.add(view.storage);
  }
  if (bytes > Math.max(alwaysFine, growth * file.size)) {
    throw new OctconvError(`${path}: tensors of ${bytes} bytes in a file of ${file.size}, which is not believable`);
  }
  storages.share?.(shared);
  return {
    name: path,
    tensors: views,
    unreadable,
    notes: [...notes, ...readingNotes(doubles, unreadable.keys())],
    async read(name, memory = ownMemory): Promise<TypedArray> {
      const view = views.get(name);
      if (!view) throw missingTensor({ name: path, tensors: views, unreadable }, name);
      const { dtype, stored, storage, offset, extent } = view;
      const size = bytesPerStored[stored];
      const read = (memory: Memory) => storages.read(storage, offset * size, extent * size, memory);
      const data = await readElements(stored, read, memory, view);
      return await checkValues(path, name, dtype, view.negative ? await negate(dtype, data) : data);
    },
    close: () => file.close(),
  };
}

/**
 * storage, offset, size, stride[, requires_grad, backward_hooks[, metadata]] of a tensor that may be wrapped as a
 * parameter: (tensor, requires_grad, backward_hooks[, state]), or with attributes: (function, type, arguments, state).
 */
function tensorArgs({ path, args }: TensorCall): readonly PickleValue[] | undefined {
  if (path === 'torch._utils._rebuild_tensor') return args.length === 4 ? args : undefined;
  if (path === 'torch._utils._rebuild_tensor_v2') return args.length === 6 || args.length === 7 ? args : undefined;
  const [first, second, third] = args;
  if (path === 'torch._tensor._rebuild_from_type_v2') {
    const plain =
      second instanceof Global &&
      ['torch.Tensor', 'torch._tensor.Tensor', 'torch.nn.parameter.Parameter'].includes(second.path);
    const known = first instanceof Global && tensorCalls.has(first.path) && first.path !== path;
    return known && plain && third instanceof Tuple && args.length === 4
      ? tensorArgs(new TensorCall(first.path, third.items))
      : undefined;
  }
  const parameter =
    args.length === (path === 'torch._utils._rebuild_parameter' ? 3 : 4) &&
    typeof second === 'boolean' &&
    isEmpty(third);
  return parameter && first instanceof TensorCall && first.path.includes('._rebuild_tensor')
    ? tensorArgs(first)
    : undefined;
}

/** No hooks. */
function isEmpty(value: PickleValue | undefined): boolean {
  return value === null || (value instanceof Map && value.size === 0);
}

/** The most sizes that PyTorch allows; one list of sizes may be shared by many tensors. */
const rankLimit = 64;

/** A tensor, or why it cannot be read. */
function parseTensor(call: TensorCall, storages: Storages): View | string {
  const args = tensorArgs(call);
  if (!args) return `is a call of ${call.path} with other arguments than a tensor's`;
  const [reference, start, size, stride, requiresGrad = false, hooks = null, metadata = null] = args;
  if (typeof requiresGrad !== 'boolean') return `has requires_grad ${describe(requiresGrad)}, wanted a boolean`;
  if (!isEmpty(hooks)) return `has backward_hooks ${describe(hooks)}, wanted none`;
  const negative = metadata instanceof Map && metadata.get('neg') === true;
  for (const [name, value] of metadata instanceof Map ? metadata : []) {
    if (typeof value !== 'boolean' || (name !== 'neg' && value))
      return `has metadata ${describe(name)} = ${describe(value)}, which is unknown`;
  }
  if (metadata !== null && !(metadata instanceof Map)) return `has metadata ${describe(metadata)}, wanted a dict`;
  if (!(reference instanceof Persistent)) return 'has no storage';
  const storage = parseStorage(reference);
  if (!storage) return 'refers to something that is no storage';
  const stored = storedTypes.get(storage.type);
  if (!stored) return `is a ${storage.type}, wanted ${[...storedTypes.keys()].join(', ')}`;
  const sizes = size instanceof Tuple ? size.items : [];
  const strides = stride instanceof Tuple ? stride.items : [];
  if (
    !(size instanceof Tuple && stride instanceof Tuple) ||
    sizes.length > rankLimit ||
    sizes.length !== strides.length
  ) {
    return `has ${describe(size)} and ${describe(stride)}, wanted sizes and as many strides, at most ${rankLimit}`;
  }
  if (!isSize(start) || !sizes.every(isSize) || !strides.every(isSize))
    return 'has a size, stride or offset that is no number of elements';
  const bytes = storages.size(storage.key);
  if (bytes === undefined) return `refers to storage ${show(storage.key)}, which is not in the file`;
  const root = storage.offset + storage.elements;
  if (root * storage.elementBytes > bytes)
    return `says that storage ${show(storage.key)} has ${root} elements, it has ${bytes} bytes`;
  const count = elementCount(sizes);
  const extent = count === 0 ? 0 : sizes.reduce((sum, n, i) => sum + (n - 1) * strides[i]!, 1);
  if (!Number.isSafeInteger(count) || !(start + extent <= storage.elements)) {
    return `${show(sizes)} with strides ${show(strides)} at ${start} lies outside its storage of ${storage.elements}`;
  }
  const place = { storage: storage.key, offset: storage.offset + start, extent, negative };
  return { dtype: readAs(stored), stored, shape: sizes, strides, ...place };
}
