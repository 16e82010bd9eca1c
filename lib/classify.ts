/** From pictures to labels. */
import { OctconvError, show } from './error.js';
import { kindOf } from './graph/graph.js';
import { type BatchOptions, batchOptions, loadBatches } from './input/batches.js';
import { discardAll, type PictureSource } from './input/source.js';
import type { Model } from './model.js';
import { checkOptions, type Known } from './options.js';
import { softmax } from './ops.js';
import { type Matrix, Tensor } from './tensor.js';

export interface Guess {
  readonly label: string;
  /** Index of the class. */
  readonly index: number;
  readonly probability: number;
}

export interface Classified {
  /** The picture's path; `picture 3` for the fourth source where it has none. */
  readonly file: string;
  /** Its place among the sources. */
  readonly index: number;
  /** The likeliest first. */
  readonly top: readonly Guess[];
  /** What the network took for this picture, its share of the batch. */
  readonly milliseconds: number;
}

/** How many pictures make a batch, what is left out, and what a picture may cost. */
export interface ClassifyOptions extends Omit<BatchOptions, 'device'> {
  /** Guesses per picture; default 5. */
  readonly top?: number | undefined;
}

const { device: _device, ...others } = batchOptions;
const classifyOptions = { top: true, ...others } satisfies Known<ClassifyOptions>;

/**
 * Classifies pictures with a model; the next batch is decoded while one runs.
 *
 *     for await (const { file, top } of classify(model, ['cat.jpg'])) console.log(file, top[0]?.label);
 *
 * @throws OctconvError that names the picture, if it cannot be read and `failed` is not given, or if the network gives
 * infinities or NaN for it; the signal's reason if it is aborted.
 */
export async function* classify(
  model: Model,
  sources: PictureSource | readonly PictureSource[],
  options: ClassifyOptions = {},
): AsyncGenerator<Classified, void, void> {
  try {
    checkOptions('classify', options, classifyOptions);
    const { top = 5, ...batches } = options;
    const { signal } = batches;
    if (!Number.isInteger(top) || top < 1) throw new OctconvError(`top: ${show(top)}, wanted a positive integer`);
    if (!model.input) throw new OctconvError('classify: the model does not say how a picture becomes its input');
    for await (const { x, files, indices } of loadBatches(sources, model.input, batches)) {
      await model.plan(x.shape); // compiled outside of what is timed
      const start = performance.now();
      const logits = await model.run(x, { signal });
      const milliseconds = (performance.now() - start) / files.length;
      checkLogits(logits, files, model.labels);
      const { data, shape } = await softmax(logits as Tensor<'f32', Matrix>);
      for (const [i, file] of files.entries()) {
        const row = data.subarray(i * shape[1], (i + 1) * shape[1]);
        yield { file, index: indices[i] as number, top: likeliest(row, top, model.labels), milliseconds };
      }
    }
  } finally {
    discardAll(sources);
  }
}

/** One answer for one picture, many for many; one picture that cannot be read has no answer, `failed` or not. */
export async function classifyAll(
  model: Model,
  sources: PictureSource | readonly PictureSource[],
  options: ClassifyOptions = {},
): Promise<Classified | Classified[]> {
  const many = Array.isArray(sources);
  const all: Classified[] = [];
  for await (const one of classify(model, sources, many ? options : { ...options, failed: undefined })) all.push(one);
  return many ? all : (all[0] as Classified);
}

/** @throws OctconvError that names the first picture and class whose logit is not finite: such logits have no order. */
export function checkLogits(logits: Tensor<'f32'>, files: readonly string[], labels?: readonly string[]): void {
  if (!(logits instanceof Tensor))
    throw new OctconvError(`classify: the network gives ${kindOf(logits)}, wanted logits`);
  const { data, shape } = logits;
  const [n, classes = 0] = shape;
  if (shape.length !== 2 || n !== files.length) {
    throw new OctconvError(`classify: the network gives [${shape}], wanted [${files.length},classes]`);
  }
  const bad = data.findIndex((logit) => !Number.isFinite(logit));
  if (bad < 0) return;
  const index = bad % classes;
  const label = labels?.[index] === undefined ? '' : ` (${labels[index]})`;
  throw new OctconvError(
    `${files[Math.floor(bad / classes)]}: the network gives ${data[bad]} for class ${index}${label}, wanted a number`,
  );
}

function likeliest(row: Float32Array, top: number, labels: readonly string[] | undefined): Guess[] {
  const order = [...row.keys()].sort((a, b) => (row[b] as number) - (row[a] as number) || a - b).slice(0, top);
  return order.map((index) => ({
    label: labels?.[index] ?? `class ${index}`,
    index,
    probability: row[index] as number,
  }));
}
