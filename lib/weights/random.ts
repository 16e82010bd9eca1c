import type { Parameter } from '../graph/graph.js';
import { type Module, namedParameters } from '../layers/module.js';
import { elementCount } from '../tensor.js';
import { missingTensor, type WeightSource } from './source.js';

/**
 * Random parameters for a network, the same for the same seed and names. They are made when they are read, so a network
 * is never twice in memory. Weights are uniform with He's variance, 2 / (inputs of an output). Statistics and scales are
 * near what training gives, but none is trivial, so that a test notices when one is left out: means and biases within
 * .1 of 0, variances and scales within .25 of 1. The last scale of a residual branch is as the others: activations
 * grow from block to block, and stay far from the limits of f32.
 */
export function initialize(network: Module, seed = 0): WeightSource {
  const parameters = namedParameters(network);
  return {
    name: `seed ${seed}`,
    tensors: new Map([...parameters].map(([name, { shape }]) => [name, { dtype: 'f32', shape }])),
    async read(name) {
      const parameter = parameters.get(name);
      if (!parameter) throw missingTensor(this.name ?? 'weights', name);
      return draw(parameter, seed);
    },
    async close() {},
  };
}

function draw({ name, shape }: Parameter, seed: number): Float32Array {
  const [center, reach] = rangeOf(name, shape);
  const data = new Float32Array(elementCount(shape));
  let state = hash(`${seed}/${name}`);
  for (let i = 0; i < data.length; i++) {
    // mulberry32
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    data[i] = center + reach * (((x ^ (x >>> 14)) >>> 0) / 2 ** 31 - 1);
  }
  return data;
}

/** Centre of a uniform distribution, and how far it reaches to both sides. */
function rangeOf(name: string, shape: readonly number[]): readonly [center: number, reach: number] {
  const [, ...inputs] = shape;
  if (inputs.length > 0) return [0, Math.sqrt(6 / elementCount(inputs))]; // a variance of reach^2 / 3
  return name.endsWith('weight') || name.endsWith('running_var') ? [1, 0.25] : [0, 0.1];
}

/** FNV-1a */
function hash(text: string): number {
  let value = 0x811c9dc5;
  for (const char of text) value = Math.imul(value ^ (char.codePointAt(0) ?? 0), 0x01000193);
  return value;
}
