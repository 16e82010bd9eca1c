import { dirname } from 'node:path';
import type { Command } from 'commander';
import { checkLogits } from '../classify.js';
import { bytesPerElement } from '../dtype.js';
import { OctconvError } from '../error.js';
import { type Batch, loadBatches } from '../input/batches.js';
import { pictureInput } from '../input/preprocess.js';
import { Model, openNetwork } from '../model.js';
import { quantize } from '../quantize.js';
import type { Tensor } from '../tensor.js';
import { checkModelOutput, writeModelFolder } from '../weights/folder.js';
import { elementCount, type WeightSource } from '../weights/source.js';
import { type DeviceOptions, integer } from './common.js';
import { count, percent, printable, printJson, say } from './output.js';
import { Progress } from './progress.js';
import { kindOf, sourcesBelow } from './sources.js';

export function quantizeCommand(program: Command): void {
  program
    .command('quantize <dir>')
    .description('makes a model folder in int8 of one in f32')
    .requiredOption('--data <folder>', 'typical pictures (of a video network: videos), in folders or not')
    .requiredOption('--out <dir>', 'the new model folder')
    .option('--images <n>', 'pictures or videos to measure activations on, as many of each folder', integer(1), 512)
    .option('--threads <n>', 'threads of a run (default: all cores)', integer(1))
    .option('--force', 'replace a model that is there')
    .option('--json', 'print one JSON object')
    .action(run);
}

interface QuantizeFlags extends Pick<DeviceOptions, 'threads' | 'json'> {
  data: string;
  out: string;
  images: number;
  force?: boolean;
}

async function run(folder: string, { data, out, images, threads, force, json }: QuantizeFlags): Promise<void> {
  await checkModelOutput(out, { force, inputs: [folder, data] });
  const opened = await openNetwork(folder);
  const { name, network, options, source, labels } = opened;
  const progress = new Progress();
  try {
    if (!labels) throw new OctconvError(`${folder}: no labels, wanted a model folder`);
    const input = pictureInput(folder, opened);
    const kind = kindOf(input);
    const files = byTurns(await sourcesBelow(data, kind)).slice(0, images);
    const bad = new Set<string>();
    const failed = (error: Error, file: string) => {
      bad.add(file);
      progress.error(error.message);
      process.exitCode = 1;
    };
    // 64 small pictures at once, or one of 224 pixels. Of few a tenth: the bar moves.
    const most = Math.max(1, Math.floor(2 ** 16 / (input.height * input.width * (input.frames ?? 1))));
    const batch = Math.min(most, Math.ceil(files.length / 10));
    async function* batches(sources: readonly string[], what: string) {
      let read = 0;
      if (!json) await progress.start(sources.length, what);
      for await (const part of loadBatches(sources, input, { batch, failed })) {
        yield part;
        read += part.files.length;
        progress.update(read, what);
      }
      progress.stop();
      if (read === 0) throw new OctconvError(`${data}: none of ${count(sources.length)} ${kind.many} could be read`);
    }
    async function* measured() {
      for await (const { x } of batches(files, `${kind.many} measured`)) yield x;
    }
    const quantized = await quantize(network, source, measured(), { threads });
    await writeModelFolder(out, { network: name, options, input }, labels, quantized, { force });

    const good = files.filter((file) => !bad.has(file));
    using f32 = new Model(network, source, { threads });
    using i8 = new Model(network, quantized, { threads });
    const { same, cosine } = await compare(f32, i8, batches(good, `${kind.many} compared`), labels);
    const weights = [...quantized.tensors.values()].filter(({ dtype }) => dtype === 'i8').length;
    const bytes = { before: bytesOf(source), after: bytesOf(quantized) };
    if (json) {
      printJson({ network: name, options, weights, bytes, [kind.many]: good.length, failed: bad.size, same, cosine });
    } else {
      const left = bad.size ? `; ${count(bad.size)} ${bad.size === 1 ? kind.one : kind.many} left out` : '';
      say(
        `${printable(out)}: written: ${name}, ${weights} weights in int8, ${count(bytes.before)} bytes are ${count(bytes.after)}${left}`,
      );
      const share = `${count(same)} of ${count(good.length)} ${kind.many}, ${percent(same / good.length)}`;
      say(`the same first guess as in f32 on ${share} (measured on these); cosine of the logits ${cosine.toFixed(5)}`);
    }
  } finally {
    progress.stop();
    await source.close();
  }
}

/** The first of each folder, the second of each, ... */
function byTurns(files: readonly string[]): string[] {
  const taken = new Map<string, number>();
  const turns = files.map((file) => {
    const turn = taken.get(dirname(file)) ?? 0;
    taken.set(dirname(file), turn + 1);
    return { file, turn };
  });
  return turns.sort((a, b) => a.turn - b.turn).map(({ file }) => file);
}

async function compare(f32: Model, i8: Model, batches: AsyncIterable<Batch<Tensor<'f32'>>>, labels: readonly string[]) {
  let [same, ab, aa, bb] = [0, 0, 0, 0];
  for await (const { x, files } of batches) {
    const a = await f32.run(x);
    const b = await i8.run(x);
    for (const logits of [a, b]) checkLogits(logits, files, labels);
    a.data.forEach((wanted, i) => {
      const got = b.data[i] as number;
      ab += wanted * got;
      aa += wanted * wanted;
      bb += got * got;
    });
    const guesses = firstGuesses(b);
    same += firstGuesses(a).filter((guess, i) => guess === guesses[i]).length;
  }
  return { same, cosine: ab / Math.sqrt(aa * bb) };
}

function firstGuesses({ data, shape: [n = 0, classes = 0] }: Tensor<'f32'>): number[] {
  return Array.from({ length: n }, (_, i) => {
    const row = data.subarray(i * classes, (i + 1) * classes);
    return row.indexOf(Math.max(...row));
  });
}

function bytesOf({ tensors }: WeightSource): number {
  return [...tensors.values()].reduce((sum, { dtype, shape }) => sum + elementCount(shape) * bytesPerElement[dtype], 0);
}
