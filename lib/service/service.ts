/**
 * The service: models that answer requests of many callers.
 *
 * The way of a request: a door (a function call, HTTP, gRPC) calls `infer` or `classify`. The version is chosen
 * (`find`); the request is refused at once if the queue is full. Pictures are decoded by sharp and resized natively,
 * off the event loop, to rows of bytes; tensors are checked. The rows go into the batcher (batcher.ts), which says as
 * soon as an instance is free which rows are a batch. `Served` copies them into one tensor, runs it on the engine
 * (engine.ts, or isolated.ts in a process of its own), and gives each request its logits. Whoever leaves is taken out of
 * the queue. models.ts loads models, from folders that repository.ts finds. Errors have codes of one table (errors.ts).
 */
import pLimit from 'p-limit';
import { checkSignal } from '../abort.js';
import { type Guess, likeliest, meanOf, softmaxRows } from '../classify.js';
import { OctconvError, show } from '../error.js';
import { videoLoader } from '../input/batches.js';
import { checkViews, isClip, type Views } from '../input/clips.js';
import { checkLimits, decodeImage, decoderThreads } from '../input/image.js';
import { preprocessBytes, stack } from '../input/preprocess.js';
import { discardAll, hold, isList, nameOf, type PictureSource } from '../input/source.js';
import type { VideoSource } from '../input/video.js';
import { checkOptions, type Known } from '../options.js';
import { Tensor } from '../tensor.js';
import { allFinite } from '../weights/elements.js';
import { ServiceError } from './errors.js';
import { type ServiceOptions, ServiceModels } from './models.js';
import type { Models } from './repository.js';
import type { Answered, Asked, Served } from './served.js';

export interface InferOptions extends Asked {
  /** Default: the newest that is ready. */
  readonly version?: string | undefined;
}
const inferOptions = { signal: true, priority: true, timeout: true, version: true } satisfies Known<InferOptions>;

export interface ServiceClassifyOptions extends InferOptions, Views {
  /** Guesses per picture or video; default 5. */
  readonly top?: number | undefined;
}
const classifyOptions = {
  ...inferOptions,
  top: true,
  clips: true,
  crops: true,
} satisfies Known<ServiceClassifyOptions>;

export interface Inferred extends Answered {
  readonly model: string;
  readonly version: string;
}

export interface ServiceClassified extends Omit<Inferred, 'logits'> {
  /** The likeliest first, for each source. */
  readonly top: readonly (readonly Guess[])[];
}

export class Service extends ServiceModels {
  readonly #limits: ReturnType<typeof checkLimits>;
  /** Pictures that are decoded and resized at a time: decoded ones are large. */
  readonly #decoders = pLimit(decoderThreads);

  /**
   * Begins to load models; `loaded` tells when all have been.
   * @throws OctconvError for options that make no sense.
   */
  constructor(models: Models, options: ServiceOptions = {}) {
    const limits = checkLimits(options?.limits ?? {});
    super(models, options);
    this.#limits = limits;
  }

  /**
   * A service whose models are all ready.
   * @throws OctconvError that names the model that cannot be loaded, and why.
   */
  static async open(models: Models, options: ServiceOptions = {}): Promise<Service> {
    const service = new Service(models, options);
    try {
      await service.allReady();
      return service;
    } catch (error) {
      await service.close();
      throw error;
    }
  }

  /**
   * Logits of rows: f32 [N,H,W,C] as the network sees them, u8 [N,H,W,3] of pictures at its size; [N,T,H,W,C] of video.
   * Or pictures and videos in files, their bytes or streams, a row each. A tensor must not change until it is answered.
   * @throws ServiceError with a code; OctconvError for an input that does not fit; the signal's reason.
   */
  async infer(
    name: string,
    input: Tensor<'f32' | 'u8'> | VideoSource | readonly VideoSource[],
    options: InferOptions = {},
  ): Promise<Inferred> {
    const sources = input instanceof Tensor ? [] : taken(input);
    try {
      checkOptions('service: infer', options, inferOptions);
      checkAsked(options);
      const { version, served } = this.find(name, options.version);
      if (input instanceof Tensor) checkShape(served, input, this.settingsOf(name).anySize);
      const answered = await (input instanceof Tensor
        ? served.infer(input.shape[0] as number, () => finite(served, input), options)
        : this.#inferSources(served, sources, {}, options));
      return { ...answered, model: name, version };
    } finally {
      discardAll(sources);
    }
  }

  /**
   * What pictures show, or videos to a video network, of which `clips` x `crops` views are averaged.
   * @throws as `infer` does.
   */
  async classify(
    name: string,
    sources: VideoSource | readonly VideoSource[],
    options: ServiceClassifyOptions = {},
  ): Promise<ServiceClassified> {
    const list = taken(sources);
    try {
      checkOptions('service: classify', options, classifyOptions);
      const { top = 5, clips, crops, version: wanted, ...asked } = options;
      checkAsked(asked);
      if (!Number.isInteger(top) || top < 1) throw new OctconvError(`top: ${show(top)}, wanted a positive integer`);
      const { version, served } = this.find(name, wanted);
      const { logits, milliseconds } = await this.#inferSources(served, list, { clips, crops }, asked);
      const bad = logits.data.findIndex((logit) => !Number.isFinite(logit));
      if (bad >= 0)
        throw new ServiceError('internal', `${name}: the network gives ${logits.data[bad]}, wanted numbers`);
      const rows = await softmaxRows(logits);
      const views = rows.length / list.length;
      const guesses = list.map((_, i) =>
        likeliest(meanOf(rows.slice(i * views, (i + 1) * views)), top, served.about.labels),
      );
      return { top: guesses, milliseconds, model: name, version };
    } finally {
      discardAll(list);
    }
  }

  /**
   * Refuses what `infer` would refuse now whatever its input is, for a caller that has not read the input yet.
   * @throws ServiceError if there is no such model, it is not ready or its queue is full.
   */
  admit(name: string, version?: string): void {
    this.find(name, version).served.admit();
  }

  /** As `admit`, but it counts nothing: for who asks before there is a request. @internal */
  checkRoom(name: string, version?: string): void {
    this.find(name, version).served.checkRoom(1);
  }

  /** A row of each picture, `clips` x `crops` of each video. */
  async #inferSources(served: Served, sources: readonly VideoSource[], views: Views, asked: Asked): Promise<Answered> {
    const { input } = served.about;
    if (!input)
      throw new OctconvError(`${served.name}: the network takes no pictures, wanted f32 [N,${served.about.row}]`);
    if (sources.length === 0) throw new OctconvError(`${served.name}: no picture, wanted one or more`);
    const many = sources.length > 1;
    const names = sources.map((source, i) => nameOf(source, many ? i : undefined, isClip(input) ? 'video' : 'picture'));
    if (!isClip(input)) {
      if (views.clips !== undefined || views.crops !== undefined)
        throw new OctconvError(`${served.name}: clips and crops are for video networks`);
      const load = async (signal: AbortSignal) => {
        const rows = sources.map((source, i) =>
          this.#decoders(async () => {
            signal.throwIfAborted();
            const picture = await decodeImage(source as PictureSource, { ...this.#limits, signal }, names[i]);
            return preprocessBytes(picture, input, { threads: 1, signal }); // they are side by side already
          }),
        );
        return stack(await allOf(rows), input);
      };
      return served.infer(sources.length, load, asked);
    }
    const { formats: _, ...limits } = this.#limits;
    const some = checkViews(views);
    const each = some.clips * some.crops;
    const load = async (signal: AbortSignal) => {
      const read = videoLoader(input, limits, some);
      const rows = sources.map(async (source, i) => {
        using video = await read(source, names[i] as string, signal);
        return Promise.all(Array.from({ length: each }, (_, view) => video.view(view)));
      });
      return stack((await allOf(rows)).flat(), input);
    };
    return served.infer(sources.length * each, load, asked);
  }
}

/** @throws OctconvError unless it is rows of the network's input. */
function checkShape({ name, about }: Served, { dtype, shape }: Tensor, anySize = false): void {
  const { row, input } = about;
  const typed = dtype === 'f32' || (dtype === 'u8' && input);
  const sized = shape.slice(1).every((size, i) => size === row[i] || (anySize && i < row.length - 1));
  if (typed && shape.length === row.length + 1 && sized) return;
  const sizes = `[N,${anySize ? [...row.slice(0, -1).map(() => '*'), row.at(-1)] : row}]`;
  throw new OctconvError(`${name}: input is ${dtype} [${shape}], wanted ${input ? 'f32 or u8' : 'f32'} ${sizes}`);
}

/** @throws OctconvError for NaN and infinities, which a byte cannot say: in a batch they would be an error of others too. */
function finite({ name, about }: Served, x: Tensor<'f32' | 'u8'>): Tensor<'f32' | 'u8'> {
  if (about.dtype !== 'i8' || allFinite(x.dtype, x.data)) return x;
  throw new OctconvError(`${name}: input is not finite, wanted finite numbers in i8`);
}

/** Sources, each of which is read or discarded. */
function taken(sources: VideoSource | readonly VideoSource[]): readonly VideoSource[] {
  const list = isList(sources) ? sources : [sources];
  list.forEach(hold);
  return list;
}

function checkAsked({ signal, timeout }: Asked): void {
  checkSignal(signal);
  if (timeout !== undefined && !(timeout >= 0))
    throw new OctconvError(`timeout: ${show(timeout)}, wanted milliseconds, 0 for none`);
}

/** All of them, when none is still being made, or the first error. */
async function allOf<T>(promises: readonly Promise<T>[]): Promise<T[]> {
  await Promise.allSettled(promises);
  return Promise.all(promises);
}
