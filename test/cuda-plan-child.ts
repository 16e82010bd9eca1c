// What test/cuda-plan.test.ts looks at on the stand-in driver: `cuda-plan-child.ts TASK JSON` prints one JSON object.
import { type BenchCudaOptions, benchCuda, cudaTable } from '../lib/bench/cuda.js';
import { createModel, Tensor } from '../lib/index.js';
import { native } from '../lib/native.js';

const tasks = {
  async bench(options: BenchCudaOptions) {
    const result = await benchCuda(options);
    return { result, table: cudaTable(result) };
  },
  async sensors(names: string[]) {
    return names.map((name) => native.sensors(name));
  },
  /** What each step launches on both, and a run of each. */
  async both({ network, options, dtypes }: { network: string; options: object; dtypes: ('f32' | 'bf16')[] }) {
    const shape = [2, 61, 45, 3];
    const launches = [];
    for (const dtype of dtypes) {
      using real = createModel(network, options, { device: 'cuda', dtype });
      using planned = createModel(network, options, { device: 'cuda:sm_90', dtype });
      launches.push([(await real.plan(shape)).infos, (await planned.plan(shape)).infos]);
    }
    return launches;
  },
  /** Of each device, one after the other. */
  async times(devices: string[]) {
    const times = [];
    for (const device of devices) times.push(await timesOf(device));
    return times;
  },
};

/** The time of all steps together, and of each. */
async function timesOf(device: string) {
  using model = createModel('oct-resnet-26', { alpha: 0.5, width: 8 }, { device });
  const x = Tensor.zeros('f32', [1, 33, 33, 3]);
  const plan = await model.plan(x.shape);
  const [whole, each] = [new Float32Array(1), new Float32Array(plan.steps.length)];
  for (const stepMilliseconds of [whole, each]) await plan.run([x], { stepMilliseconds });
  return { whole: [...whole], each: [...each] };
}

const [task = '', argument = 'null'] = process.argv.slice(2);
console.log(JSON.stringify(await tasks[task as keyof typeof tasks](JSON.parse(argument) as never)));
