// What test/device.test.ts looks at, with the addon that has the device `recorder`: prints one JSON object.
import { devices, type Feature, initialize, layers, Model, Module, OctconvError, ops, tensor } from '../lib/index.js';

class Net extends Module<Feature, Feature> {
  readonly conv = new layers.Conv(2, 4, { kernel: 3 });
  readonly last: (x: Feature) => Feature;
  constructor(last: (x: Feature) => Feature) {
    super();
    this.last = last;
  }
  forward(x: Feature): Feature {
    return this.last(this.conv.forward(x));
  }
}

const x = tensor('f32', [1, 16, 16, 2], new Float32Array(512));

async function run(last: (x: Feature) => Feature, device: string) {
  const network = new Net(last);
  using model = new Model(network, initialize(network), { device });
  const { data } = await model.run(x);
  const { algorithms } = await model.plan([1, 16, 16, 2]);
  return {
    calls: String.fromCharCode(...data).replace(/\0.*/s, ''),
    algorithms,
    device: model.device,
    threads: model.threads,
  };
}

const refusal = (promise: Promise<unknown>) =>
  promise.then(
    () => 'nothing was refused',
    (error: unknown) => (error instanceof OctconvError ? error.message : `not ours: ${error}`),
  );

console.log(
  JSON.stringify({
    recorded: await run(ops.relu, 'recorder'),
    softmax: await refusal(run(ops.softmax, 'recorder')),
    unknown: await refusal(run(ops.relu, 'camera')),
    devices: devices().devices,
  }),
);
