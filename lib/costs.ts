/** What the steps of a plan cost: multiply-adds, and bytes that are read and written. */
import { bytesPerElement, type DType, isFloat } from './dtype.js';
import { betweenValues } from './flops.js';
import type { ComputeType } from './graph/graph.js';
import { type Branch, type Source, sourcesOf, type Step, winogradGrowth } from './graph/lower.js';
import type { Plan } from './plan.js';
import { bytesOf, elementCount, type Shape } from './tensor.js';

export interface StepCost {
  readonly multiplyAdds: number;
  /** What is multiplied; more than one if a branch stays in f32. None where nothing is. */
  readonly computes: readonly ComputeType[];
  readonly inputs: readonly DType[];
  readonly outputs: readonly DType[];
  readonly bytes: {
    readonly inputs: number;
    readonly outputs: number;
    /** As packed, but for the padding. */
    readonly weights: number;
  };
}

/** One for each step. */
export function costsOf({
  steps,
  values,
  graph,
  target,
}: Pick<Plan, 'steps' | 'values' | 'graph' | 'target'>): StepCost[] {
  const typesOf = (ids: readonly number[]) => ids.flatMap((id) => values[id] ?? []);
  const sizeOf = (ids: readonly number[]) => typesOf(ids).reduce((sum, type) => sum + bytesOf(type), 0);
  const parameters = (name: string) => elementCount(graph.params.get(name) ?? []);
  const shapeOf = (id = -1): Shape => values[id]?.shape ?? [];

  const products = (branch: Branch, { input, weight, upsample }: Source) =>
    // What is upsampled is multiplied at the low resolution.
    parameters(weight) * elementCount(shapeOf(upsample ? input : branch.y).slice(0, -1));
  // Where a device has no products of a narrow float, weights are kept wider (`Words` in native/cpu/tile.h); i8 is as
  // the quantizer makes it.
  const bytesPerWeight = (compute: ComputeType) =>
    isFloat(compute) && !target.traits.dotProducts.includes(compute) ? 4 : bytesPerElement[compute];
  const weightsOf = ({ branches, params }: Step) => {
    if (!branches) return 4 * Object.values(params).reduce((sum, name) => sum + parameters(name), 0);
    return branches
      .flatMap((branch) => {
        const { compute = 'f32', hints } = branch;
        const each = hints ? (compute === 'i8' ? 2 : 4) * winogradGrowth(branch) : bytesPerWeight(compute);
        return sourcesOf(branch).map(({ weight }) => each * parameters(weight));
      })
      .reduce((sum, bytes) => sum + bytes, 0);
  };
  return steps.map((step) => {
    const { op, branches = [], inputs, outputs } = step;
    const beside = betweenValues(op, inputs.map(shapeOf), outputs.map(shapeOf));
    return {
      multiplyAdds: branches
        .flatMap((branch) => sourcesOf(branch).map((source) => products(branch, source)))
        .reduce((sum, count) => sum + count, beside),
      computes: [
        ...new Set([
          ...branches.flatMap(({ gated, compute = 'f32' }) => (gated ? [] : compute)),
          ...(beside > 0 ? (['f32'] as const) : []),
        ]),
      ],
      inputs: [...new Set(typesOf(inputs).map(({ dtype }) => dtype))],
      outputs: [...new Set(typesOf(outputs).map(({ dtype }) => dtype))],
      bytes: { inputs: sizeOf(inputs), outputs: sizeOf(outputs), weights: weightsOf(step) },
    };
  });
}
