/** Post-activation ResNeXts (arXiv 1611.05431), with torchvision's parameter names; octave ones with d-li14's. */
import { splitChannels } from '../octave.js';
import { type Family, splitName, withOctave } from './family.js';
import { gluonResNetParameter, resNetInput } from './gluon.js';
import { checkGroups, commonOptions, groupsOption } from './options.js';
import {
  Bottleneck,
  bottleneck,
  OctBottleneck,
  octaveForm,
  type Place,
  plainForm,
  ResNet,
  usualStem,
} from './resnet.js';
import { inferAlpha, inferStages, notHere } from './shapes.js';

/** By name the blocks, and the channels of the 3x3 by those of a ResNet: 32x4d, 32x8d (torchvision's) and 32x4d. */
const kinds = {
  'resnext-50': { blocks: bottleneck['resnet-50'], factor: 2 },
  'resnext-101': { blocks: bottleneck['resnet-101'], factor: 4 },
  'resnext-101-32x4d': { blocks: bottleneck['resnet-101'], factor: 2 },
} as const;
const plainNames = Object.keys(kinds) as (keyof typeof kinds)[];
const names = withOctave(plainNames);

export const resNeXts: Family<(typeof names)[number]> = {
  names,

  options: (name) => ({ ...commonOptions(splitName(name).octave), groups: groupsOption }),

  build(name, options) {
    const { plain, octave } = splitName(name);
    const { groups = 1 } = options;
    const { blocks, factor } = kinds[plain];
    const layout = { ...usualStem(options), blocks, expansion: 4 };
    const grouped = (place: Place, layer: number): Place => {
      const width = factor * place.width;
      checkGroups(`layer${layer}.0.conv2`, splitChannels(width, place.alphaOut), groups);
      return { ...place, width, groups };
    };
    return octave
      ? new ResNet(options, octaveForm, { ...layout, block: (place, i) => new OctBottleneck(grouped(place, i)) })
      : new ResNet(options, plainForm, { ...layout, block: (place, i) => new Bottleneck(grouped(place, i)) });
  },

  defaultInput: resNetInput,

  parameterOf: gluonResNetParameter,

  infer(parameters) {
    const found = inferStages(parameters);
    if (!found || found.inner.groups === 1) return undefined;
    const { octave, ends, inner, depth } = found;
    const name = plainNames.find((plain) => {
      const { blocks, factor } = kinds[plain];
      return blocks.join() === found.blocks.join() && inner.width === factor * ends.width;
    });
    if (!name) throw notHere(inner, ends.width, depth);
    const options = { alpha: octave ? inferAlpha(parameters) : 0, ...ends, groups: inner.groups };
    return { network: octave ? `oct-${name}` : name, options };
  },
};
