/** `info --networks` and `info --table`: every network that comes with the package, its options, and what it costs. */
import { published } from '../bench/paper.js';
import { table } from '../bench/table.js';
import { countFlops } from '../flops.js';
import { record } from '../model.js';
import {
  buildNetwork,
  inputShape,
  networkNames,
  type NetworkOptions,
  octaveForm,
  resolveNetworkOptions,
} from '../models/index.js';
import { paragraph, print, printJson } from './output.js';

const plainNames = networkNames.filter((name) => octaveForm(name) !== undefined);

/** Names, and the options of each; in JSON also what these are when they are left out. */
export function printNetworks(json: boolean | undefined): void {
  if (json) {
    printJson(networkNames.map((network) => ({ network, options: resolveNetworkOptions(network, {}) })));
    return;
  }
  const byOptions = new Map<string, string[]>();
  for (const name of plainNames) {
    const options = Object.keys(resolveNetworkOptions(name, {})).filter((option) => option !== 'alpha');
    const key = options.join(', ');
    byOptions.set(key, [...(byOptions.get(key) ?? []), name]);
  }
  for (const [options, names] of byOptions) {
    print(paragraph('', names.join(', '), 2));
    print(paragraph('  ', `options ${options}`, 4));
  }
  print(paragraph('', 'oct- in front of a name is its octave form, which has alpha too.', 2));
}

interface Row {
  readonly network: string;
  readonly options?: NetworkOptions;
  readonly flops?: number;
  readonly parameters?: number;
}

/** The rows of the paper, and one of each form that it does not have; names that take any `blocks` have no own one. */
function rowsOf(plain: string): readonly Row[] {
  if (resolveNetworkOptions(plain, {}).blocks) return [];
  return [plain, `oct-${plain}`].flatMap((network): readonly Row[] => {
    const known = published.filter((row) => row.network === network);
    return known.length > 0 ? known : [{ network }];
  });
}

/** Every network as it is counted here, those of the paper as they were published too. */
export function printCosts(json: boolean | undefined): void {
  const rows = plainNames.flatMap(rowsOf).map(({ network, options = {}, flops, parameters }) => {
    const ours = countFlops(record(buildNetwork(network, options), inputShape({ name: network, options })));
    const { alpha } = resolveNetworkOptions(network, options);
    return {
      network,
      ...options,
      alpha,
      flops: ours,
      ...(flops !== undefined && { published: { flops, parameters } }),
    };
  });
  if (json) {
    printJson(rows);
    return;
  }
  const lines = rows.map(({ network, alpha, multiplier, flops, published }) => {
    const billions = flops.authors / 1e9;
    const off = published && Math.round(1000 * (billions / published.flops - 1)) / 10;
    return [
      multiplier === undefined ? network : `${network} ${multiplier}x`,
      String(alpha),
      (flops.multiplyAdds / 1e9).toFixed(3),
      billions.toFixed(3),
      String(published?.flops ?? ''),
      off === undefined ? '' : `${off > 0 ? '+' : ''}${(off || 0).toFixed(1)} %`, // no -0.0
      (flops.parameters / 1e6).toFixed(2),
      String(published?.parameters ?? ''),
    ];
  });
  const head = ['network', 'alpha', 'G MAdd', "authors' G", 'published', 'off', 'M params', 'published M'];
  print(table(head, lines, { drop: ['published M', 'off', 'G MAdd'], elsewhere: '--json, or | cat, shows all' }));
  const legend =
    "Of an image of 224 x 224 pixels, or 8 frames. authors' G: as the authors count, with pooling and ReLU; " +
    'published: the same in the paper, of MobileNets and 152 without ReLU; off: how far the counts are apart.';
  print(paragraph('', legend, 2));
}
