/** `info --table`: the networks of the paper, as they are counted here and as they were published. */
import { published } from '../bench/paper.js';
import { table } from '../bench/table.js';
import { countFlops } from '../flops.js';
import { record } from '../model.js';
import { buildNetwork, inputShape } from '../models/index.js';
import { print, printJson } from './output.js';

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
