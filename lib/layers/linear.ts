import { Parameter, type Value } from '../graph/graph.js';
import { linear } from '../ops.js';
import { checkOptions } from '../options.js';
import type { Matrix, Vector } from '../tensor.js';
import { checkCounts, Module } from './module.js';

/** [N, from] -> [N, to] */
export class Linear extends Module {
  readonly weight: Parameter<Matrix>;
  readonly bias: Parameter<Vector> | undefined;

  constructor(from: number, to: number, options: { readonly bias?: boolean | undefined } = {}) {
    super();
    checkOptions('layers: Linear', options, { bias: true });
    checkCounts('layers: Linear', { from, to });
    const { bias = true } = options;
    this.weight = new Parameter([to, from]);
    this.bias = bias ? new Parameter([to]) : undefined;
  }

  forward(x: Value<'f32', Matrix>): Value<'f32', Matrix> {
    return linear(x, this);
  }
}
