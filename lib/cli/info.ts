import { stat } from 'node:fs/promises';
import type { Command } from 'commander';
import { OctconvError } from '../error.js';
import { countFlops } from '../flops.js';
import type { GraphNode, TensorType } from '../graph/graph.js';
import type { Model } from '../model.js';
import { networkNames } from '../models/index.js';
import { integer, modelFrom, type NetworkFlags, withShape } from './common.js';
import { count, print, printJson, style } from './output.js';

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
  const before = graph.nodes.map((node) => describe(node, graph.values));
  const after = plan.steps.map((step, i) => describe(step, plan.values, plan.algorithms[i]));
  const { name: network, options: networkOptions } = model;
  if (json) {
    const steps = details ? { graph: before, plan: after } : {};
    const input = [batch, height, width, 3];
    const fused = { steps: plan.steps.length, memory: plan.memory };
    printJson({ network, options: networkOptions, input, layers, ...flops, ...fused, ...steps });
    return;
  }
  const mega = (bytes: number) => `${(bytes / 1048576).toFixed(1)} MiB`;
  const given = Object.entries(networkOptions ?? {}).map(([key, value]) => `${key} ${value}`);
  print(style('bold', `${network} ${given.join(', ')}`.trim()));
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
      const algorithm = step.algorithm ? style('dim', `  ${step.algorithm}`) : '';
      print(`  ${step.name.padEnd(names)}  ${step.op.padEnd(ops)}  ${step.shapes}${algorithm}`);
    }
  }
}

type Step = Pick<GraphNode, 'name' | 'op' | 'inputs' | 'outputs'>;

function describe({ name, op, inputs, outputs }: Step, values: readonly TensorType[], algorithm?: string) {
  const list = (ids: readonly number[]) => ids.map((id) => values[id]?.shape.join('x')).join(' + ');
  return { name, op, shapes: `${list(inputs)} -> ${list(outputs)}`, algorithm };
}

async function open(target: string, flags: NetworkFlags, threads: number | undefined): Promise<Model> {
  if (networkNames.includes(target)) return modelFrom({ ...flags, network: target }, { threads });
  const found = await stat(target).catch(() => undefined);
  if (!found) throw new OctconvError(`${target}: no such file, and no network: those are ${networkNames.join(', ')}`);
  const source = found.isDirectory() ? { model: target } : { weights: target };
  return modelFrom({ ...flags, ...source }, { threads });
}
