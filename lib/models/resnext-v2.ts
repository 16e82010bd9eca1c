/** Pre-activation ResNeXts (arXiv 1611.05431): the 3x3 twice as wide and in groups, 32x4d where the width is 64. */
import { checkGroups, groupsOption } from './options.js';
import { preActivationFamily } from './preactivation.js';
import { Block, hasGates, inferBottlenecks, network } from './resnet-v2.js';
import { notHere } from './shapes.js';

const factor = 2;

export const resNeXtsV2 = preActivationFamily({
  blocks: { 'resnext-v2': [3, 4, 6, 3], 'resnext-v2-50': [3, 4, 6, 3], 'resnext-v2-101': [3, 4, 23, 3] },
  options: { groups: groupsOption },

  build(unit, blocks, options) {
    const { groups = 1 } = options;
    const block = (place: ConstructorParameters<typeof Block>[1], layer: number) => {
      checkGroups(`layer${layer}.0.conv2`, place.inner, groups);
      return new Block(unit, { ...place, groups });
    };
    return network(blocks, options, block, factor);
  },

  infer(parameters, weightOf) {
    const found = inferBottlenecks(parameters, weightOf);
    if (!found || found.inner.groups === 1 || hasGates(parameters)) return undefined;
    const { inner, width, depth } = found;
    if (inner.width !== factor * width) throw notHere(inner, width, depth);
    return { groups: inner.groups };
  },
});
