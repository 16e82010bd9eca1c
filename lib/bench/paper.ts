/** The networks of the paper and their published counts. */
import type { NetworkOptions } from '../models/options.js';

export interface Published {
  readonly network: string;
  readonly options?: NetworkOptions;
  /** G of the authors' count, and parameters in M. */
  readonly flops: number;
  readonly parameters: number;
}

/** A plain network, and its octave form at some alphas. */
const family = (plain: string, parameters: number, flops: number, octave: Readonly<Record<string, number>>) => [
  { network: plain, flops, parameters },
  ...Object.entries(octave).map(([alpha, flops]) => ({
    network: `oct-${plain}`,
    options: { alpha: Number(alpha) },
    flops,
    parameters,
  })),
];

/** arXiv 1904.05049, tables 2 to 7 and figure 4, and the authors' own lists beside their code, which have more digits. */
export const published: readonly Published[] = [
  ...family('resnet-v2-26', 15.99, 2.352, { '0.125': 2.102, '0.25': 1.872, '0.5': 1.491, '0.75': 1.216 }),
  ...family('resnet-v2-50', 25.55, 4.103, { '0.125': 3.587, '0.25': 3.123, '0.5': 2.383, '0.75': 1.891 }),
  ...family('resnet-v2-101', 44.55, 7.82, { '0.125': 6.656, '0.25': 5.625, '0.5': 4.012 }),
  ...family('resnext-v2-50', 25.03, 4.247, { '0.25': 3.196, '0.5': 2.406, '0.75': 1.891 }),
  ...family('densenet-121', 7.98, 2.852, { '0.125': 2.428, '0.25': 2.044 }),
  { network: 'oct-mobilenet-v1', options: { multiplier: 0.75, alpha: 0.375 }, flops: 0.213, parameters: 2.6 },
  { network: 'oct-mobilenet-v1', options: { alpha: 0.5 }, flops: 0.3203, parameters: 4.23 },
  { network: 'oct-mobilenet-v2', options: { alpha: 0.375 }, flops: 0.256, parameters: 3.5 },
  { network: 'oct-mobilenet-v2', options: { multiplier: 1.125, alpha: 0.5 }, flops: 0.295, parameters: 4.2 },
  { network: 'oct-resnet-152-v1f', options: { alpha: 0.125 }, flops: 10.9, parameters: 60.2 },
  { network: 'oct-se-resnet-152-v1e', options: { alpha: 0.125 }, flops: 10.9, parameters: 66.8 },
];

/**
 * Shares of the low branch at which the paper has a plain network's octave form; of others those of its ResNets or, as
 * groups must divide both branches, of its ResNeXts.
 */
export function alphasOf(plain: string): readonly number[] {
  const alphas = published.flatMap(({ network, options }) =>
    network === `oct-${plain}` ? (options?.alpha ?? []) : [],
  );
  if (alphas.length > 0) return alphas;
  return plain.startsWith('resnext') ? [0.25, 0.5, 0.75] : [0.125, 0.25, 0.5, 0.75];
}
