/** From picture files to labels. */
import { OctconvError } from './error.js';
import { loadBatches } from './input/batches.js';
import type { Model } from './model.js';
import { softmax } from './ops.js';
import type { RunOptions } from './plan.js';
import type { Tensor } from './tensor.js';

export interface Guess {
  readonly label: string;
  /** Index of the class. */
  readonly index: number;
  readonly probability: number;
}

export interface Classified {
  readonly file: string;
  /** The likeliest first. */
  readonly top: readonly Guess[];
  /** What the network took for this picture, its share of the batch. */
  readonly milliseconds: number;
}

export interface ClassifyOptions extends RunOptions {
  /** Guesses per picture; default 5. */
  readonly top?: number | undefined;
  /** Pictures per run; default 32. */
  readonly batch?: number | undefined;
  /** Told of each file that is no picture; the others go on. Without it such a file ends the loop with an error. */
  readonly failed?: ((error: OctconvError, file: string) => void) | undefined;
}

/**
 * Classifies picture files (JPEG, PNG, WebP) with a model; the next batch is decoded while one runs.
 *
 *     for await (const { file, top } of classify(model, ['cat.jpg'])) console.log(file, top[0]?.label);
 */
export async function* classify(
  model: Model,
  files: readonly string[],
  options: ClassifyOptions = {},
): AsyncGenerator<Classified, void, void> {
  const { top = 5, signal } = options;
  if (!Number.isInteger(top) || top < 1) throw new OctconvError(`top: ${top}, wanted a positive integer`);
  if (!model.input) throw new OctconvError('classify: the model does not say how a picture becomes its input');
  for await (const { x, files: read } of loadBatches(files, model.input, options)) {
    await model.plan(x.shape); // compiled outside of what is timed
    const start = performance.now();
    const logits = await model.run(x, { signal });
    const milliseconds = (performance.now() - start) / read.length;
    const probabilities = await softmax(logits as Tensor<'f32', readonly [number, number]>);
    const classes = probabilities.length / read.length;
    for (const [i, file] of read.entries()) {
      const row = probabilities.data.subarray(i * classes, (i + 1) * classes);
      yield { file, top: likeliest(row, top, model.labels), milliseconds };
    }
  }
}

function likeliest(row: Float32Array, top: number, labels: readonly string[] | undefined): Guess[] {
  const order = [...row.keys()].sort((a, b) => (row[b] as number) - (row[a] as number) || a - b).slice(0, top);
  return order.map((index) => ({ label: labels?.[index] ?? `class ${index}`, index, probability: row[index] as number }));
}
