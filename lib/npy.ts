import { writeFile } from 'node:fs/promises';
import { OctconvError, show } from './error.js';
import { fileError, RandomFile } from './weights/file.js';
import { elementCount } from './weights/source.js';

// NumPy's array file: magic, version, header length, a Python dict as text, the elements. npyjs reads the format too,
// but takes what is truncated, big-endian or in Fortran order for an array all the same.

const magic = '\x93NUMPY';
const headerLimit = 65536;

export interface NpyArray {
  readonly shape: readonly number[];
  readonly data: Float32Array<ArrayBuffer>;
}

/** Reads a file of little-endian float32 in C order. */
export async function readNpy(path: string): Promise<NpyArray> {
  const file = await RandomFile.open(path);
  try {
    const head = Buffer.from(await file.read(0, Math.min(file.size, 12)));
    if (head.length < 12 || head.toString('latin1', 0, 6) !== magic) throw new OctconvError(`${path}: not a .npy file`);
    const version = head[6]!;
    if (version < 1 || version > 3) throw new OctconvError(`${path}: .npy version ${version}, wanted 1 to 3`);
    const start = version === 1 ? 10 : 12;
    const length = version === 1 ? head.readUInt16LE(8) : head.readUInt32LE(8);
    if (length > headerLimit) {
      throw new OctconvError(`${path}: a header of ${length} bytes, wanted at most ${headerLimit}`);
    }
    const header = Buffer.from(await file.read(start, length)).toString('latin1');

    const descr = /['"]descr['"]\s*:\s*(?:['"]([^'"]*)['"]|\[)/.exec(header);
    const order = /['"]fortran_order['"]\s*:\s*(True|False)\b/.exec(header)?.[1];
    const sizes = /['"]shape['"]\s*:\s*\(((?:\s*\d+\s*,)*\s*\d*\s*)\)/.exec(header)?.[1];
    if (!descr || order === undefined || sizes === undefined) throw new OctconvError(`${path}: damaged .npy header`);
    const dtype = descr[1] ?? 'a record';
    if (dtype !== '<f4') throw new OctconvError(`${path}: elements are ${show(dtype)}, wanted "<f4" (float32)`);
    if (order === 'True') throw new OctconvError(`${path}: Fortran order, wanted C order (numpy.ascontiguousarray)`);
    const shape = sizes.split(',').filter((size) => size.trim() !== '').map(Number);

    const bytes = elementCount(shape) * 4;
    if (!Number.isSafeInteger(bytes)) throw new OctconvError(`${path}: shape ${show(shape)} is impossible`);
    const got = file.size - start - length;
    if (got !== bytes) throw new OctconvError(`${path}: ${got} bytes of data, wanted ${bytes} for ${show(shape)}`);
    return { shape, data: new Float32Array((await file.read(start + length, bytes)).buffer) };
  } finally {
    await file.close();
  }
}

export async function writeNpy(path: string, shape: readonly number[], data: Float32Array): Promise<void> {
  if (data.length !== elementCount(shape)) {
    throw new OctconvError(`${path}: ${data.length} elements, wanted shape ${show(shape)}`);
  }
  const tuple = shape.length === 1 ? `${shape[0]},` : shape.join(', ');
  const dict = `{'descr': '<f4', 'fortran_order': False, 'shape': (${tuple}), }`;
  // The data begins at a multiple of 64, and the header ends with a line break.
  const length = Math.ceil((10 + dict.length + 1) / 64) * 64 - 10;
  const head = Buffer.from(`${magic}\x01\x00??${dict.padEnd(length - 1)}\n`, 'latin1');
  head.writeUInt16LE(length, 8);
  try {
    await writeFile(path, [head, Buffer.from(data.buffer, data.byteOffset, data.byteLength)]);
  } catch (error) {
    throw fileError(path, error);
  }
}
