/** `info --table`: the networks of the paper, as they are counted here and as they were published. */
import { table } from '../bench/table.js';
import { countFlops } from '../flops.js';
import { record } from '../model.js';
import { buildNetwork, inputShape } from '../models/index.js';
import type { NetworkOptions } from '../models/options.js';
import { print, printJson } from './output.js';

interface Published {
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
const published: readonly Published[] = [
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

export function printPaper(json: boolean | undefined): void {
  const rows = published.map(({ network, options = {}, flops, parameters }) => {
    const ours = countFlops(record(buildNetwork(network, options), inputShape({ name: network, options })));
    return { network, ...options, flops: ours, published: { flops, parameters } };
  });
  if (json) {
    printJson(rows);
    return;
  }
  const lines = rows.map(({ network, alpha = 0, multiplier, flops, published }) => {
    const billions = flops.authors / 1e9;
    const difference = Math.round(1000 * (billions / published.flops - 1)) / 10;
    return [
      multiplier === undefined ? network : `${network} ${multiplier}x`,
      String(alpha),
      (flops.multiplyAdds / 1e9).toFixed(3),
      billions.toFixed(3),
      String(published.flops),
      `${difference > 0 ? '+' : ''}${(difference || 0).toFixed(1)} %`, // no -0.0
      (flops.parameters / 1e6).toFixed(2),
      String(published.parameters),
    ];
  });
  const head = ['network', 'alpha', 'G MAdd', "authors' G", 'published', 'difference', 'M params'];
  print(table([...head, 'published M'], lines, { drop: ['published M', 'G MAdd'], elsewhere: '--json' }));
  print("MobileNets and 152 are published without the ReLUs that the authors' count has.");
}
