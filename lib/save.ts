import { OctconvError } from './error.js';
import { kindOf } from './graph/graph.js';
import { Model } from './model.js';
import { buildNetwork, resolveNetworkOptions } from './models/index.js';
import { checkOptions, type Known } from './options.js';
import { parameterShapes } from './layers/module.js';
import { checkWeights } from './weights/check.js';
import { type WriteOptions, writeModelFolder } from './weights/folder.js';

/**
 * Writes a model folder that `loadModel` reads: config.json, labels (`class 0`, `class 1`, ... where the model has
 * none) and weights, of the types that they have. It appears as a whole.
 * @throws OctconvError that names the folder; if the network is not registered under the model's name, or a model is there
 * already and `force` is not given.
 */
export async function saveModel(folder: string, model: Model, options: WriteOptions = {}): Promise<void> {
  checkOptions('saveModel', options, { force: true } satisfies Known<WriteOptions>);
  if (!(model instanceof Model)) throw new OctconvError(`saveModel: got ${kindOf(model)}, wanted a Model`);
  const { name, input } = model;
  if (name === undefined || !input) {
    const missing = name === undefined ? 'name' : 'input';
    throw new OctconvError(
      `${folder}: the model has no ${missing}, wanted a registered network with its name, options and input`,
    );
  }
  const { weights } = model;
  const networkOptions = resolveNetworkOptions(name, model.options ?? {});
  checkWeights(parameterShapes(buildNetwork(name, networkOptions)), weights);
  const labels = model.labels ?? Array.from({ length: networkOptions.classes }, (_, i) => `class ${i}`);
  await writeModelFolder(folder, { network: name, options: networkOptions, input }, labels, weights, options);
}
