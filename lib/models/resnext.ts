/** Post-activation ResNeXts (arXiv 1611.05431), with torchvision's parameter names; octave ones with d-li14's. */
import { defaultInput, inputOf } from '../input/preprocess.js';
import { splitChannels } from '../octave.js';
import { type Family, splitName, withOctave } from './family.js';
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
import { inferAlpha, inferStages, nameOf, notHere } from './shapes.js';

const blocks = { 'resnext-50': bottleneck['resnet-50'], 'resnext-101': bottleneck['resnet-101'] } as const;
/** Channels of the 3x3 by those of a ResNet: 32x4d and 32x8d. */
const factors = { 'resnext-50': 2, 'resnext-101': 4 } as const;
const names = withOctave(Object.keys(blocks) as (keyof typeof blocks)[]);

export const resNeXts: Family<(typeof names)[number]> = {
  names,

  options: (name) => ({ ...commonOptions(splitName(name).octave), groups: groupsOption }),

  build(name, options) {
    const { plain, octave } = splitName(name);
    const { groups = 1 } = options;
    const layout = { ...usualStem(options), blocks: blocks[plain], expansion: 4 };
    const grouped = (place: Place, layer: number): Place => {
      const width = factors[plain] * place.width;
      checkGroups(`layer${layer}.0.conv2`, splitChannels(width, place.alphaOut), groups);
      return { ...place, width, groups };
    };
    return octave
      ? new ResNet(options, octaveForm, { ...layout, block: (place, i) => new OctBottleneck(grouped(place, i)) })
      : new ResNet(options, plainForm, { ...layout, block: (place, i) => new Bottleneck(grouped(place, i)) });
  },

  defaultInput: (_, { stem, channels }) => inputOf(defaultInput(stem), channels),

  infer(parameters) {
    const found = inferStages(parameters);
    if (!found || found.inner.groups === 1) return undefined;
    const { octave, ends, inner, depth } = found;
    const name = nameOf<keyof typeof blocks>(blocks, found.blocks);
    if (!name || inner.width !== factors[name] * ends.width) throw notHere(inner, ends.width, depth);
    const options = { alpha: octave ? inferAlpha(parameters) : 0, ...ends, groups: inner.groups };
    return { network: octave ? `oct-${name}` : name, options };
  },
};
