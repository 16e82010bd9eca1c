// Fails if a kernel became about twice as slow: node --import=tsx bench/gate.ts [--keep]. What is compared is a
// kernel's time in units of a fixed loop of multiply-adds that runs in the same rounds. The ratios kept in gate.json
// hold on the CPU that is named there; another one has other caches and dividers, so there the limit is 3.5 times.
// Minima of rounds of less than a millisecond are reached on a busy machine too; as long as a kernel is over the limit
// more rounds follow, for 40 seconds.
import { readFileSync, writeFileSync } from 'node:fs';
import { fill, measurePeak, quantizeOnNoise } from '../lib/bench/measure.js';
import { devices, targetOf } from '../lib/devices.js';
import { Model } from '../lib/model.js';
import { buildNetwork } from '../lib/models/index.js';
import { PackedWeights, Plan } from '../lib/plan.js';
import { Tensor } from '../lib/tensor.js';
import { initialize } from '../lib/weights/random.js';
import { cases, graphOf } from '../test/cases.js';

const seconds = 40;
const file = new URL('gate.json', import.meta.url);
const kept: Record<string, { cpu: string; ratios: Record<string, number> }> = JSON.parse(readFileSync(file, 'utf8'));
// A virtual machine often hides the name of its CPU, so family and model are told too.
const info = readFileSync('/proc/cpuinfo', 'utf8');
const cpu = ['vendor_id', 'cpu family', 'model']
  .map((key) => new RegExp(`^${key}\\s*: (.*)`, 'm').exec(info)?.[1])
  .join(' ');
const { isa } = devices();
const keep = process.argv.includes('--keep');
const rounds = keep ? 100 : 30;
const wanted = kept[isa]?.ratios;
const limit = kept[isa]?.cpu === cpu ? 1.75 : 3.5;
if (!wanted && !keep)
  throw new Error(`gate: ${isa} found, wanted one of ${Object.keys(kept)} (OCTCONV_ISA), or --keep`);

/** A plan, what its inputs are, and to which kernel each of its steps counts. */
interface Subject {
  readonly plan: Plan;
  readonly inputs: readonly Tensor[];
  readonly keys: readonly string[];
}

/** Of each op the largest row of the table. */
async function opSubjects(): Promise<Subject[]> {
  const size = (shapes: readonly (readonly number[])[]) =>
    shapes.reduce((sum, shape) => sum + shape.reduce((a, b) => a * b, 1), 0);
  const largest = new Map<string, (typeof cases)[number]>();
  for (const row of cases) if (size(row.inputs) > size(largest.get(row.op)?.inputs ?? [])) largest.set(row.op, row);
  return Promise.all(
    [...largest.values()].map(async (row) => {
      const graph = graphOf(row);
      const source = {
        tensors: graph.constants,
        read: async (name: string) => (graph.constants.get(name) as Tensor).data,
      };
      const plan = await Plan.compile(graph, new PackedWeights(source, targetOf('cpu')), { threads: 1 });
      const inputs = row.inputs.map((shape) =>
        row.dtype === 'u8' ? Tensor.zeros('u8', shape) : fill(Tensor.zeros('f32', shape)),
      );
      return { plan, inputs, keys: plan.steps.map(() => row.op) };
    }),
  );
}

/** The convolutions of an octave network by their algorithm. */
async function networkSubjects(): Promise<Subject[]> {
  const network = buildNetwork('oct-resnet-26', { alpha: 0.5, width: 32, classes: 100 });
  const weights = initialize(network);
  const input = fill(Tensor.zeros('f32', [1, 96, 96, 3]));
  return Promise.all(
    (['f32', 'bf16', 'i8'] as const).map(async (dtype) => {
      const own = dtype === 'i8' ? await quantizeOnNoise(network, weights, input.shape) : weights;
      const plan = await new Model(network, own, { dtype, threads: 1 }).plan(input.shape);
      const keys = plan.steps.map(({ op, name }, i) => {
        const [by = 'tiles'] = /winograd \dx\d/.exec(plan.algorithms[i] ?? '') ?? [];
        return `network in ${dtype}: ${op === 'octConv' ? (name === 'conv1' ? 'stem' : by) : op}`;
      });
      return { plan, inputs: [input], keys };
    }),
  );
}

const subjects = [...(await opSubjects()), ...(await networkSubjects())];
const least = subjects.map(({ plan }) => plan.steps.map(() => Infinity));
let peak = 0; // GFLOP/s of the fixed loop
const started = performance.now();

async function round(): Promise<void> {
  peak = Math.max(peak, await measurePeak(1));
  for (const [i, { plan, inputs }] of subjects.entries()) {
    for (let run = 0; run < 3; run++) {
      const stepMilliseconds = new Float32Array(plan.steps.length);
      await plan.run(inputs as never, { stepMilliseconds });
      const steps = least[i] as number[];
      for (const [j, ms] of stepMilliseconds.entries()) steps[j] = Math.min(ms, steps[j] as number);
    }
  }
}

/** Millions of the loop's FLOPs that fit into a kernel's time. */
function ratios(): Record<string, number> {
  const found: Record<string, number> = {};
  for (const [i, { keys }] of subjects.entries())
    for (const [j, key] of keys.entries()) found[key] = (found[key] ?? 0) + (least[i]?.[j] as number) * peak;
  return found;
}

const [have, want] = [Object.keys(ratios()), Object.keys(wanted ?? {})];
const unknown = keep
  ? []
  : [...have.filter((key) => !want.includes(key)), ...want.filter((key) => !have.includes(key))];
if (unknown.length) throw new Error(`gate: only here or only in gate.json: ${unknown.join(', ')} (--keep)`);

const slower = () => Object.entries(ratios()).filter(([key, ratio]) => !(ratio <= limit * (wanted?.[key] ?? 0)));
for (let i = 0; i < rounds; i++) await round();
if (keep) {
  const all = Object.entries(ratios()).map(([key, ratio]) => [key, Number(ratio.toPrecision(4))]);
  kept[isa] = { cpu, ratios: Object.fromEntries(all) };
  writeFileSync(file, `${JSON.stringify(kept, undefined, 2)}\n`);
} else {
  while (slower().length && performance.now() - started < 1000 * seconds) await round();
  for (const [key, ratio] of slower())
    console.log(
      `gate: ${key}: ${ratio.toPrecision(4)} million FLOPs of the fixed loop, wanted ${wanted?.[key]} (at most x ${limit})`,
    );
  if (slower().length) process.exitCode = 1;
  else
    console.log(
      `gate: ${Object.keys(ratios()).length} kernels on ${isa} are as fast as they were, ${peak.toFixed(0)} GFLOP/s`,
    );
}
console.log(`gate: ${((performance.now() - started) / 1000).toFixed(0)} s`);
