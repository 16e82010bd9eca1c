/** Weights in half of the bytes. */
import { OctconvError, show } from '../error.js';
import { roundValues } from './elements.js';
import { toFloats } from './floats.js';
import type { TensorInfo, WeightSource } from './source.js';

export const halfTypes = ['f16', 'bf16'] as const;
export type HalfType = (typeof halfTypes)[number];

/**
 * The same tensors with those that have two sizes or more, which are the kernels of convolutions and linear layers,
 * rounded to `dtype`. Biases and batch normalisation stay as they are: they are few, and variances may be small.
 * @throws OctconvError if kernels are not f32: rounded twice they are worse, and i8 has scales.
 */
export function inHalf(source: WeightSource, dtype: HalfType): WeightSource {
  const isKernel = ({ shape }: TensorInfo) => shape.length >= 2;
  const entries = [...source.tensors].map(([name, info]) => {
    if (!isKernel(info)) return [name, info] as const;
    if (info.dtype === 'f32') return [name, { ...info, dtype }] as const;
    throw new OctconvError(`${source.name ?? 'weights'}: tensor ${show(name)} is ${info.dtype}, wanted f32 to round`);
  });
  return {
    ...source,
    tensors: new Map(entries),
    async read(name, memory) {
      const info = source.tensors.get(name);
      if (!info || !isKernel(info)) return source.read(name, memory);
      const values = toFloats('f32', await source.read(name));
      return await roundValues(`${source.name ?? 'weights'}: tensor ${show(name)}`, dtype, values);
    },
    close: () => source.close(),
  };
}
