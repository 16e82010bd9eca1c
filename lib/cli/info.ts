import { stat } from 'node:fs/promises';
import type { Command } from 'commander';
import { OctconvError } from '../error.js';
import { countFlops } from '../flops.js';
import type { TensorType } from '../graph/graph.js';
import type { Model } from '../model.js';
import { networkNames } from '../models/index.js';
import { count, integer, modelFrom, type NetworkFlags, print, printJson, style, withShape } from './common.js';

export function infoCommand(program: Command): void {
  withShape(program.command('info <network>'))
    .description('layers, parameters, FLOPs, fused steps and memory of a network name, model folder or weight file')
    .option('--size <pixels>', 'height and width of the input (default: what the network was made for)', integer(1))
    .option('--batch <n>', 'images per run', integer(1), 1)
    .option('--threads <n>', 'threads of a run (default: all cores)', integer(1))
    .option('--graph', 'every step, before and after fusion')
    .option('--json', 'print one JSON object')
    .action(run);
}

type Options = NetworkFlags & { size?: number; batch: number; threads?: number; graph?: boolean; json?: boolean };

async function run(target: string, options: Options): Promise<void> {
  const { size, batch, threads, graph: details, json } = options;
  using model = await open(target, options, threads);
  const { height = 224, width = 224 } = size ? { height: size, width: size } : (model.input ?? {});
  const plan = await model.plan([batch, height, width, 3]);
  const { graph } = plan;
  const flops = countFlops(graph);
  const layers: Record<string, number> = {};
  for (const { op } of graph.nodes) layers[op] = (layers[op] ?? 0) + 1;
  const before = graph.nodes.map(({ op, name, inputs, outputs }) => ({ name, op, shapes: shapes(graph.values, inputs, outputs) }));
  const after = plan.steps.map(({ op, name, inputs, outputs }, i) => ({ name, op, shapes: shapes(plan.values, inputs, outputs), algorithm: plan.algorithms[i] }));
  const { name: network, options: networkOptions } = model;
  if (json) {
    const steps = details ? { graph: before, plan: after } : {};
    printJson({ network, options: networkOptions, input: [batch, height, width, 3], layers, ...flops, steps: plan.steps.length, memory: plan.memory, ...steps });
    return;
  }
  const mega = (bytes: number) => `${(bytes / 1048576).toFixed(1)} MiB`;
  print(style('bold', `${network} ${Object.entries(networkOptions ?? {}).map(([key, value]) => `${key} ${value}`).join(', ')}`.trim()));
  const facts = {
    input: `[${batch}, ${height}, ${width}, 3]`,
    layers: Object.entries(layers).map(([op, n]) => `${n} ${op}`).join(', '),
    parameters: count(flops.parameters),
    'multiply-adds': `${(flops.multiplyAdds / 1e9).toFixed(3)} G`,
    "the authors' count": `${(flops.authors / 1e9).toFixed(3)} G, with pooling and ReLU`,
    steps: `${graph.nodes.length} recorded, ${plan.steps.length} after fusion`,
    'memory of a run': `${mega(plan.memory.activations)} of activations, ${mega(plan.memory.run)} with scratch`,
  };
  for (const [key, value] of Object.entries(facts)) print(`  ${key.padEnd(20)}${value}`);
  if (!details) return;
  for (const [title, steps] of [['recorded', before], ['after fusion', after]] as const) {
    print(style('bold', `\n${title}`));
    const names = Math.max(...steps.map((step) => step.name.length));
    const ops = Math.max(...steps.map((step) => step.op.length));
    for (const step of steps) {
      const algorithm = 'algorithm' in step && step.algorithm ? style('dim', `  ${step.algorithm}`) : '';
      print(`  ${step.name.padEnd(names)}  ${step.op.padEnd(ops)}  ${step.shapes}${algorithm}`);
    }
  }
}

const shapes = (values: readonly TensorType[], inputs: readonly number[], outputs: readonly number[]) => {
  const list = (ids: readonly number[]) => ids.map((id) => values[id]?.shape.join('x')).join(' + ');
  return `${list(inputs)} -> ${list(outputs)}`;
};

async function open(target: string, flags: NetworkFlags, threads: number | undefined): Promise<Model> {
  if (networkNames.includes(target)) return modelFrom({ ...flags, network: target }, { threads });
  const found = await stat(target).catch(() => undefined);
  if (!found) throw new OctconvError(`${target}: no such file, and no network: those are ${networkNames.join(', ')}`);
  return found.isDirectory() ? modelFrom({ ...flags, model: target }, { threads }) : modelFrom({ ...flags, weights: target }, { threads });
}
