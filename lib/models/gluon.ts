/** What the authors' Gluon networks share: how pictures become their input, and the records of their files. */
import { defaultInput, type InputConfig, inputOf } from '../input/preprocess.js';
import type { Family } from './family.js';

/** (v - mean) / std of a picture that OpenCV has resized, by bilinear interpolation without antialiasing. */
export const gluonInput: InputConfig = {
  height: 224,
  width: 224,
  resize: 256, // 224 / .875
  interpolation: 'bilinear',
  antialias: false,
  scale: 1,
  mean: [123.68, 116.779, 103.939],
  std: [58.393, 57.12, 57.375],
};

const leaves = 'weight|bias|gamma|beta|running_mean|running_var';
const inBlock = new RegExp(
  `^L(\\d)_B(\\d+)[._](conv|bn|se_block\\.conv|se-conv)(\\da?)(?:(?:\\.conv|\\.bn)?[-_](h2h|h2l|l2h|l2l|h|l))?[._](${leaves})$`,
);
/** In front of every name, in the files of `export`. */
const prefix = /^(?:M|RX?|D)\d+_/;

/** How a picture becomes the input of a ResNet of d-li14's or torchvision's files, or of the authors' Gluon files. */
export const resNetInput: Family['defaultInput'] = (_, { stem, channels }, ofRecords) =>
  inputOf(ofRecords ? gluonInput : defaultInput(stem), channels);

/**
 * The parameter of a record, of `save_parameters` (`L1_B0.conv1.conv_h2h.weight`) or `export`
 * (`R152_L1_B0_conv1-h2h_weight`). Blocks are `layer1.0`, with the names of the octave ResNets; of the rest the convolutions
 * and normalisations are `stem.0`, `stem.1`, `stem.3`, ..., `conv2.conv1` and `conv2.bn1` of a second stem, and `tail.0`.
 */
export function gluonParameter(record: string): string | undefined {
  const exported = prefix.test(record);
  const name = record.replace(prefix, '');
  const [, stage, block, kind, index, path = '', leaf = ''] = inBlock.exec(name) ?? [];
  if (kind) return `layer${stage}.${block}.${layerOf(kind, index as string, path)}.${partOf(leaf)}`;
  const [, place = '', last = ''] = new RegExp(`^(.*)[._](${leaves})$`).exec(name) ?? [];
  const end = exported ? exportedEnd(place) : savedEnd(place);
  return end && `${end}.${partOf(last)}`;
}

/** The same of a ResNet whose stem is one convolution (v1b). Its `conv1.0` alone could be a name of a deep stem. */
export function gluonResNetParameter(record: string, records: ReadonlyMap<string, unknown>): string | undefined {
  if (!prefix.test(record) && !records.has('L1_B0.conv1.conv_h2h.weight')) return undefined;
  return gluonParameter(record)
    ?.replace(/^stem\.0\./, 'conv1.')
    .replace(/^stem\.1\./, 'bn1.');
}

const partOf = (leaf: string) => ({ gamma: 'weight', beta: 'bias' })[leaf] ?? leaf;

function layerOf(kind: string, index: string, path: string): string {
  const branch = path && `_${path}`;
  if (kind.startsWith('se')) return `se.fc${index}${branch}`;
  const layer = index === '4' ? 'downsample.0' : `conv${index}`;
  if (kind === 'conv') return `${layer}.conv.conv${branch}`;
  return index.endsWith('a') ? `bn${index}.bn${branch}` : `${layer}.bn${branch}`;
}

function savedEnd(place: string): string | undefined {
  if (place === 'classifer') return 'fc'; // sic
  return /^(conv2\.(conv|bn)\d|tail\.\d)$/.test(place)
    ? place
    : /^conv1\.\d$/.exec(place)?.[0].replace('conv1', 'stem');
}

function exportedEnd(place: string): string | undefined {
  const ends: Readonly<Record<string, string>> = { classifier: 'fc', 'tail-conv': 'tail.0', 'tail-bn': 'tail.1' };
  const [, second, kind, index] = /^(stem2_|stem_)?(conv|bn)(\d)$/.exec(place) ?? [];
  if (second === 'stem2_') return `conv2.${kind}${index}`;
  return kind ? `stem.${3 * (Number(index) - 1) + (kind === 'bn' ? 1 : 0)}` : ends[place];
}
