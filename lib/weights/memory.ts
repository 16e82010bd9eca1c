import { arrayFor, type TypedArray } from '../dtype.js';
import { OctconvError, show } from '../error.js';
import { checkValues } from './elements.js';
import { elementCount, missingTensor, type TensorInfo, type WeightSource } from './source.js';

export interface MemoryTensor extends TensorInfo {
  readonly data: TypedArray;
}

/** Parameters that are in memory already. `read` gives the very arrays, not copies. */
export function memoryWeights(tensors: ReadonlyMap<string, MemoryTensor>, name = 'weights'): WeightSource {
  for (const [key, { dtype, shape, data }] of tensors) {
    if (data.length === elementCount(shape) && data instanceof arrayFor(dtype)) continue;
    const got = `a ${data.constructor.name} of ${data.length}`;
    throw new OctconvError(`${name}: tensor ${show(key)} is ${got}, wanted ${dtype} ${show(shape)}`);
  }
  return {
    name,
    tensors,
    async read(key: string): Promise<TypedArray> {
      const tensor = tensors.get(key);
      if (!tensor) throw missingTensor({ name, tensors }, key);
      return await checkValues(name, key, tensor.dtype, tensor.data);
    },
    async close() {},
  };
}
