// Assembles PyTorch files byte by byte, so that the tests can make them lie.
import { crc32 } from 'node:zlib';

/** Pickles are strings of bytes (latin1). */
const le = (value: number, bytes: number): string => {
  const buffer = Buffer.alloc(8);
  buffer.writeBigInt64LE(BigInt(value));
  return buffer.toString('latin1', 0, bytes);
};

export const NONE = 'N';
export const TRUE = '\x88';
export const FALSE = '\x89';
export const str = (text: string): string => {
  const bytes = Buffer.from(text).toString('latin1');
  return `X${le(bytes.length, 4)}${bytes}`;
};
export const int = (value: number): string => `\x8a\x08${le(value, 8)}`;
export const tuple = (...items: string[]): string => `(${items.join('')}t`;
export const global = (module: string, name: string): string => `c${module}\n${name}\n`;
export const call = (module: string, name: string, ...args: string[]): string =>
  `${global(module, name)}${tuple(...args)}R`;
/** An object of a class, with these attributes. */
export const object = (module: string, name: string, state: Record<string, string> = {}): string =>
  `${global(module, name)})\x81${dict(state)}b`;
export const dict = (entries: Record<string, string>): string =>
  `}(${Object.entries(entries)
    .map(([key, value]) => str(key) + value)
    .join('')}u`;
export const pickle = (value: string): string => `\x80\x02${value}.`;

export interface TensorSpec {
  type?: string;
  key?: string;
  elements: number;
  offset?: number;
  size: number[];
  stride: number[];
  /** Only in files of the legacy form. */
  part?: string;
  requiresGrad?: string;
  hooks?: string;
  metadata?: string;
}

export function storage({
  type = 'FloatStorage',
  key = '0',
  elements,
  part = '',
}: Pick<TensorSpec, 'type' | 'key' | 'elements' | 'part'>): string {
  return `${tuple(str('storage'), global('torch', type), str(key), str('cpu'), int(elements), part)}Q`;
}

export function tensor(spec: TensorSpec): string {
  return call('torch._utils', '_rebuild_tensor_v2', ...tensorArgs(spec));
}

export function tensorArgs(spec: TensorSpec): string[] {
  const { offset = 0, size, stride, requiresGrad = FALSE, hooks = NONE, metadata = '' } = spec;
  const [sizes, strides] = [size, stride].map((numbers) => tuple(...numbers.map(int)));
  return [storage(spec), int(offset), sizes!, strides!, requiresGrad, hooks, metadata];
}

export interface ZipEntry {
  name: string;
  data: string | Buffer;
  /** What the headers say instead of the truth. */
  says?: { compressed?: number; uncompressed?: number; method?: number; offset?: number };
}

export function zip(entries: ZipEntry[]): Buffer {
  const files: Buffer[] = [];
  const directory: Buffer[] = [];
  let offset = 0;
  for (const { name, data, says = {} } of entries) {
    const bytes = typeof data === 'string' ? Buffer.from(data, 'latin1') : data;
    const common = Buffer.alloc(26);
    common.writeUInt16LE(20, 0);
    common.writeUInt16LE(says.method ?? 0, 4);
    common.writeUInt32LE(crc32(bytes), 10);
    common.writeUInt32LE(says.compressed ?? bytes.length, 14);
    common.writeUInt32LE(says.uncompressed ?? bytes.length, 18);
    common.writeUInt16LE(name.length, 22);
    files.push(Buffer.from('PK\x03\x04'), common, Buffer.from(name), bytes);
    const more = Buffer.alloc(14);
    more.writeUInt32LE(says.offset ?? offset, 10);
    directory.push(Buffer.from('PK\x01\x02\x14\x00'), common, more, Buffer.from(name));
    offset += 30 + name.length + bytes.length;
  }
  const middle = Buffer.concat(directory);
  const end = Buffer.alloc(22);
  end.write('PK\x05\x06', 'latin1');
  end.writeUInt16LE(entries.length, 8);
  end.writeUInt16LE(entries.length, 10);
  end.writeUInt32LE(middle.length, 12);
  end.writeUInt32LE(offset, 16);
  return Buffer.concat([...files, middle, end]);
}

/** A zip as torch.save writes it: a state dict, and storages of these bytes. */
export function pth(stateDict: string, storages: Record<string, Buffer>): Buffer {
  return zip([
    { name: 'x/data.pkl', data: pickle(stateDict) },
    ...Object.entries(storages).map(([key, data]) => ({ name: `x/data/${key}`, data })),
  ]);
}

/** The form before PyTorch 1.6. */
export function legacyPth(
  stateDict: string,
  keys: string[],
  tail: Buffer,
  system = dict({ little_endian: '\x88' }),
): Buffer {
  const head = pickle('\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19') + pickle('M\xe9\x03') + pickle(system);
  const list = `](${keys.map(str).join('')}e`;
  return Buffer.concat([Buffer.from(head + pickle(stateDict) + pickle(list), 'latin1'), tail]);
}

export function floats(...values: number[]): Buffer {
  return Buffer.from(new Float32Array(values).buffer);
}

/** A storage in the legacy form: its count of elements, then their bytes. */
export function counted(count: number, data: Buffer): Buffer {
  return Buffer.concat([Buffer.from(le(count, 8), 'latin1'), data]);
}

export function safetensors(header: string | object, data: Buffer | number = 0): Buffer {
  const json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([length, json, typeof data === 'number' ? Buffer.alloc(data) : data]);
}

// --- MXNet --------------------------------------------------------------------------------------------------------

export interface RecordSpec {
  /** Of the record's form: 0 to 3; default 2. */
  version?: number;
  storage?: number;
  shape: readonly number[];
  /** The rank that it says it has. */
  rank?: number;
  /** MXNet's number of the element type; default 0, f32. */
  type?: number;
  data: Buffer;
}

/** One record of a .params. */
export function record({ version = 2, storage = 0, shape, rank = shape.length, type = 0, data }: RecordSpec): Buffer {
  const magic = ['', le(0xf993fac8, 4), le(0xf993fac9, 4), le(0xf993faca, 4)][version] ?? '';
  const sizes = shape.map((size) => le(size, version === 0 ? 4 : 8)).join('');
  const place = rank === 0 && version < 3 ? '' : `${le(1, 4)}${le(0, 4)}${le(type, 4)}`; // the device 'cpu(0)'
  const head = `${magic}${version >= 2 ? le(storage, 4) : ''}${le(rank, 4)}${sizes}${place}`;
  return Buffer.concat([Buffer.from(head, 'latin1'), data]);
}

/** A .params of these records, and of names that may be others. */
export function params(
  records: { readonly [name: string]: Buffer },
  names = Object.keys(records),
  says = names.length,
): Buffer {
  const list = Object.values(records);
  const tail = names.map((name) =>
    Buffer.concat([Buffer.from(le(Buffer.byteLength(name), 8), 'latin1'), Buffer.from(name)]),
  );
  const [head, middle] = [`${le(0x112, 8)}${le(0, 8)}${le(list.length, 8)}`, le(says, 8)];
  return Buffer.concat([Buffer.from(head, 'latin1'), ...list, Buffer.from(middle, 'latin1'), ...tail]);
}

/** A tar as GNU tar and Python's tarfile write it; `says` changes an entry's header. */
export function tar(
  entries: { name: string; data: Buffer; type?: string; says?: { size?: string; sum?: number } }[],
): Buffer {
  const blocks = entries.flatMap(({ name, data, type = '0', says = {} }) => {
    const header = Buffer.alloc(512);
    header.write(name, 0, 'latin1');
    header.write(`0000644\0${'0001750\0'.repeat(2)}`, 100, 'latin1');
    header.write(says.size ?? `${data.length.toString(8).padStart(11, '0')}\0`, 124, 'latin1');
    header.write(`14700000000\0${' '.repeat(8)}${type}`, 136, 'latin1');
    header.write('ustar\x0000', 257, 'latin1');
    const sum = header.reduce((a, b) => a + b, 0) + (says.sum ?? 0);
    header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
    return [header, data, Buffer.alloc((512 - (data.length % 512)) % 512)];
  });
  return Buffer.concat([...blocks, Buffer.alloc(1024)]);
}
