import { basename, dirname, join } from 'node:path';
import type { TypedArray } from '../dtype.js';
import { OctconvError, show } from '../error.js';
import { RandomFile, readWhole } from './file.js';
import { isObject, parseJson } from './json.js';
import { isIgnored } from './names.js';
import { headerLimit, readSafetensors } from './safetensors.js';
import { missingTensor, type TensorInfo, type WeightSource } from './source.js';

/** Each is an open file. */
const shardLimit = 256;

/** Parameters in several safetensors files: `{ weight_map: { name: file } }`, the files beside the index. */
export async function readShards(path: string): Promise<WeightSource> {
  const places = parseIndex(path, await readWhole(path, headerLimit));
  const shards = new Map<string, WeightSource>();
  const close = async () => {
    for (const shard of shards.values()) await shard.close();
  };
  try {
    for (const name of new Set(places.values())) {
      const file = await RandomFile.open(join(dirname(path), name));
      shards.set(
        name,
        await readSafetensors(file).catch(async (error) => {
          await file.close();
          throw error;
        }),
      );
    }
    const tensors = new Map<string, TensorInfo>();
    const unreadable = new Map<string, string>();
    for (const [name, file] of places) {
      const shard = shards.get(file)!;
      const [info, why] = [shard.tensors.get(name), shard.unreadable?.get(name)];
      if (info) tensors.set(name, info);
      else if (why !== undefined) unreadable.set(name, why);
      else if (!isIgnored(name)) throw missingTensor(shard, name);
    }
    for (const [file, shard] of shards) {
      const other = [...shard.tensors.keys()].find((name) => places.get(name) !== file);
      if (other !== undefined)
        throw new OctconvError(`${path}: tensor ${show(other)} of ${show(file)} is not in the index, or elsewhere`);
    }
    const notes = [...new Set([...shards.values()].flatMap(({ notes = [] }) => notes))];
    return {
      name: path,
      tensors,
      unreadable,
      notes,
      async read(name, memory): Promise<TypedArray> {
        const shard = shards.get(places.get(name) ?? '');
        if (!shard) throw missingTensor({ name: path, tensors, unreadable }, name);
        return shard.read(name, memory);
      },
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

function parseIndex(path: string, bytes: Uint8Array): Map<string, string> {
  const index = parseJson(bytes, 8, path);
  const map = isObject(index) ? index.weight_map : undefined;
  if (!isObject(map)) throw new OctconvError(`${path}: no weight_map, wanted an object of names and files`);
  const places = new Map<string, string>();
  for (const [name, file] of Object.entries(map)) {
    if (typeof file !== 'string' || file !== basename(file) || !file.endsWith('.safetensors')) {
      throw new OctconvError(
        `${path}: tensor ${show(name)} is in ${show(file)}, wanted a .safetensors file beside the index`,
      );
    }
    places.set(name, file);
  }
  const files = new Set(places.values()).size;
  if (files > shardLimit) throw new OctconvError(`${path}: ${files} files, wanted at most ${shardLimit}`);
  return places;
}
