/** One model on several devices. */
import { devicesOf } from './devices.js';
import { OctconvError } from './error.js';
import { kindOf, type Value } from './graph/graph.js';
import { type Inputs, Model } from './model.js';
import type { Device } from './native.js';
import type { RunOptions } from './plan.js';
import type { InputSpec, Tensors } from './structure.js';
import { type Shape, Tensor } from './tensor.js';

/** Models that give the same, each on a device: a run goes to the one that has the fewest runs in flight. */
export class Replicas<Y = Value<'f32', Shape>, X extends readonly Value[] = [x: Value<'f32', Shape>]>
  implements Disposable
{
  readonly #inFlight: Map<Model<Y, X>, number>;

  /** @internal */
  constructor(readonly models: readonly Model<Y, X>[]) {
    this.#inFlight = new Map(models.map((model) => [model, 0]));
  }

  /**
   * `Model.run` of one of them: of those on the same device as an input that is on one, otherwise of any.
   * @throws OctconvError if a shape does not fit; the signal's reason if it is aborted.
   */
  async run(...args: [...inputs: Inputs<X>, options?: RunOptions]): Promise<Tensors<Y>> {
    const model = this.#leastBusy(args);
    this.#count(model, 1);
    try {
      return await model.run(...(args as never));
    } finally {
      this.#count(model, -1);
    }
  }

  #leastBusy(args: readonly unknown[]): Model<Y, X> {
    const resident = args.find((x) => x instanceof Tensor && x.device !== 'cpu') as Tensor | undefined;
    const near = this.models.filter(({ device }) => device === resident?.device);
    const runsOf = (model: Model<Y, X>) => this.#inFlight.get(model) ?? 0;
    return (near.length ? near : this.models).reduce((best, model) => (runsOf(model) < runsOf(best) ? model : best));
  }

  #count(model: Model<Y, X>, more: number): void {
    this.#inFlight.set(model, (this.#inFlight.get(model) ?? 0) + more);
  }

  /** `Model.warmUp` of all of them. */
  async warmUp(all: readonly (InputSpec | readonly InputSpec[])[]): Promise<void> {
    await Promise.all(this.models.map((model) => model.warmUp(all)));
  }

  /** Gives the memory back as soon as runs in flight are complete. */
  dispose(): void {
    for (const model of this.models) model.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Makes a model for each of some devices, or for all of a kind:
 *
 *     using replicas = await replicate('cuda:*', (device) => loadModel('model', { device }));
 *     const logits = await Promise.all(batches.map((x) => replicas.run(x)));
 *
 * @throws OctconvError that says why there is no such device; what `make` throws, after the other models are disposed of.
 */
export async function replicate<Y, X extends readonly Value[]>(
  devices: Device | readonly Device[],
  make: (device: Device) => Model<Y, X> | Promise<Model<Y, X>>,
): Promise<Replicas<Y, X>> {
  const made = await Promise.allSettled(devicesOf(devices).map((device) => makeOn(device, make)));
  const models = made.flatMap((one) => (one.status === 'fulfilled' ? one.value : []));
  const failed = made.find((one) => one.status === 'rejected');
  if (!failed) return new Replicas(models);
  for (const model of models) model.dispose();
  throw failed.reason;
}

async function makeOn<Y, X extends readonly Value[]>(
  device: Device,
  make: (device: Device) => Model<Y, X> | Promise<Model<Y, X>>,
): Promise<Model<Y, X>> {
  const model = await make(device);
  if (!(model instanceof Model)) throw new OctconvError(`replicate: got ${kindOf(model)}, wanted a Model`);
  if (model.device === device) return model;
  model.dispose();
  throw new OctconvError(`replicate: the model is on ${model.device}, wanted ${device}`);
}
