import type { Parameter } from '../graph/graph.js';
import { type Module, namedParameters } from '../layers/module.js';
import { elementCount } from '../tensor.js';
import { turn } from '../turns.js';
import { ownMemory } from './file.js';
import { missingTensor, type WeightSource } from './source.js';

/**
 * Random parameters for a network, the same for the same seed and names. They are made when they are read, so a network
 * is never twice in memory. Weights are uniform with He's variance, 2 / (inputs of an output). Nothing is trivial, so
 * that a test notices what is left out: means and biases are within .1 of 0, variances within .25 of 1, and the scales
 * of batch normalisation from .5 to 1, which keeps the activations of 152 layers within reach of 16-bit floats.
 */
export function initialize(network: Module, seed = 0): WeightSource {
  const parameters = namedParameters(network);
  const name = `seed ${seed}`;
  return {
    name,
    tensors: new Map([...parameters].map(([key, { shape }]) => [key, { dtype: 'f32', shape }])),
    async read(key, memory = ownMemory) {
      const parameter = parameters.get(key);
      if (!parameter) throw missingTensor({ name, tensors: parameters }, key);
      const count = elementCount(parameter.shape);
      const { buffer, byteOffset } = memory(4 * count);
      const data = new Float32Array(buffer, byteOffset, count);
      const range = rangeOf(key, parameter, parameters);
      let state = hash(`${seed}/${key}`);
      for (let at = 0; at < count; at += slice) {
        if (count >= few) await turn();
        state = fill(data.subarray(at, at + slice), ...range, state);
      }
      return data;
    },
    async close() {},
  };
}

/** Centre of a uniform distribution, and how far it reaches to both sides; its variance is reach^2 / 3. */
function rangeOf(
  name: string,
  { shape }: Parameter,
  all: ReadonlyMap<string, Parameter>,
): [center: number, reach: number] {
  if (shape.length > 1) {
    // The two paths into a branch are added, so they share the variance.
    const paths = new Set(['h', 'l'].map((from) => name.replace(/conv_[hl](2[hl]\.weight)$/, `conv_${from}$1`)));
    const shapes = [...paths].map((path) => all.get(path)?.shape ?? []);
    const inputs = shapes.reduce((sum, [o, ...rest]) => sum + (o ? elementCount(rest) : 0), 0);
    return [0, Math.sqrt(6 / inputs)];
  }
  if (name.endsWith('running_var')) return [1, 0.25];
  return name.endsWith('weight') ? [0.75, 0.25] : [0, 0.1];
}

/** So many numbers are made in a turn of the event loop: half a millisecond. */
const slice = 2 ** 17;
/** So few take less than a turn. */
const few = 2 ** 12;

/** Uniform numbers by mulberry32; gives its state. */
function fill(data: Float32Array, center: number, reach: number, seed: number): number {
  let state = seed;
  for (let i = 0; i < data.length; i++) {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    data[i] = center + reach * (((x ^ (x >>> 14)) >>> 0) / 2 ** 31 - 1);
  }
  return state;
}

/** FNV-1a */
function hash(text: string): number {
  let value = 0x811c9dc5;
  for (const char of text) value = Math.imul(value ^ (char.codePointAt(0) ?? 0), 0x01000193);
  return value;
}
