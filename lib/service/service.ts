/**
 * The service: models that answer requests of many callers.
 *
 * The way of a request: a door (a function call, HTTP, gRPC) calls `infer` or `classify`. The version is chosen
 * (`#find`); the request is refused at once if the queue is full. Pictures are decoded by sharp and resized natively,
 * off the event loop, to rows of bytes; tensors are checked. The rows go into the batcher (batcher.ts), which says as
 * soon as an instance is free which rows are a batch. `Served` copies them into one tensor, runs it on the engine
 * (engine.ts, or isolated.ts in a process of its own), and gives each request its logits. Whoever leaves is taken out of
 * the queue. Models are read from a repository (repository.ts): a new version serves when it is loaded and warm, and the
 * old one ends when its requests have. Errors have codes of one table (errors.ts).
 */
import { EventEmitter } from 'node:events';
import pLimit from 'p-limit';
import { checkSignal } from '../abort.js';
import { type Guess, likeliest, meanOf, softmaxRows } from '../classify.js';
import { OctconvError, show } from '../error.js';
import { videoLoader } from '../input/batches.js';
import { checkViews, isClip, type Views } from '../input/clips.js';
import { checkLimits, type DecodeOptions, decodeImage, decoderThreads } from '../input/image.js';
import { preprocessBytes, stack } from '../input/preprocess.js';
import { discardAll, hold, isList, nameOf, type PictureSource } from '../input/source.js';
import type { VideoSource } from '../input/video.js';
import type { Device } from '../native.js';
import { checkOptions, type Known } from '../options.js';
import { Tensor } from '../tensor.js';
import { allFinite } from '../weights/elements.js';
import type { BatchPolicy } from './batcher.js';
import { type About, type Engine, type EngineOptions, openEngine } from './engine.js';
import { ServiceError } from './errors.js';
import { isolate } from './isolated.js';
import { checkNames, chosen, type Folders, foldersOf, type Models, stampOf, type Versions } from './repository.js';
import { type Answered, type Asked, type BatchEnded, type Counts, type RequestEnded, Served } from './served.js';

/** How a model is served. */
export interface ModelSettings extends Omit<EngineOptions, 'device' | 'sizes'> {
  /** What computes; of several each computes batches of its own. */
  readonly device?: Device | 'auto' | readonly Device[] | undefined;
  /** Default `latest`. */
  readonly versions?: Versions | undefined;
  /** What is not given is measured when the model is loaded. */
  readonly batching?: Partial<BatchPolicy> | undefined;
  /**
   * Whether tensors may have another height, width or number of frames than the model's. A plan is compiled for each
   * size, so callers decide what that costs. Default false.
   */
  readonly anySize?: boolean | undefined;
  /** Whether it runs in a process of its own, so that a crash of native code costs the batches in flight alone. */
  readonly isolated?: boolean | undefined;
}

const modelSettings = {
  device: true,
  dtype: true,
  threads: true,
  maxBatch: true,
  versions: true,
  batching: true,
  anySize: true,
  isolated: true,
} satisfies Known<ModelSettings>;

export interface ServiceOptions extends ModelSettings {
  /** Settings of some models, by name; what they leave out is as for all. */
  readonly models?: { readonly [name: string]: ModelSettings } | undefined;
  /** What a picture or video may cost. */
  readonly limits?: Omit<DecodeOptions, 'signal'> | undefined;
  /** Seconds between looks for changed model folders; default: only `refresh` looks. */
  readonly watch?: number | undefined;
}

const serviceOptions = { ...modelSettings, models: true, limits: true, watch: true } satisfies Known<ServiceOptions>;

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

/** `loading`: not yet ready. `unloading`: answers what has come. `unavailable`: `reason` says why. */
export type State = 'loading' | 'ready' | 'unloading' | 'unavailable';

/** A version of a model. */
export interface Version {
  readonly name: string;
  readonly version: string;
  readonly state: State;
  /** Why it is unavailable; of one that is ready, why its changed files do not serve. */
  readonly reason?: string | undefined;
  /** Of one that is ready. */
  readonly about?: About | undefined;
  readonly batching?: Served['policy'] | undefined;
  readonly counts?: Counts | undefined;
  /** Rows that wait, and batches in flight. */
  readonly waiting: number;
  readonly inFlight: number;
}

/** A version that is ready. */
export interface Ready extends Version {
  readonly about: About;
  readonly batching: Served['policy'];
  readonly counts: Counts;
}

export interface ServiceEvents {
  request: [name: string, version: string, event: RequestEnded];
  batch: [name: string, version: string, event: BatchEnded];
  /** A version has another state, or another reason for it. */
  state: [version: Version];
  /** The process of an isolated version has ended, or could not be started again. */
  ended: [name: string, version: string, why: string];
  /** `watch` cannot read the repository. */
  unreadable: [error: Error];
}

interface Entry {
  readonly name: string;
  readonly version: string;
  folder: string;
  /** Of the files that were loaded last, well or not. */
  stamp?: string | undefined;
  state: State;
  reason?: string | undefined;
  served?: Served | undefined;
}

/** Milliseconds that requests of an old version have to end. */
const drain = 30_000;

export class Service extends EventEmitter<ServiceEvents> implements AsyncDisposable {
  readonly #models: Models;
  readonly #options: ServiceOptions;
  readonly #limits: ReturnType<typeof checkLimits>;
  /** Pictures that are decoded and resized at a time: decoded ones are large. */
  readonly #decoders = pLimit(decoderThreads);
  /** By name, then by version, the newest last. */
  readonly #entries = new Map<string, Map<string, Entry>>();
  /** Models that were unloaded by `unload`. */
  readonly #unloaded = new Set<string>();
  readonly #draining = new Set<Served>();
  #syncing: Promise<void> = Promise.resolve();
  #timer: NodeJS.Timeout | undefined;
  #loaded = false;
  #looking = false;
  /** When all is given back, if it is closing. */
  #closed: Promise<void> | undefined;

  /**
   * Begins to load models; `loaded` tells when all have been.
   * @throws OctconvError for options that make no sense.
   */
  constructor(models: Models, options: ServiceOptions = {}) {
    super();
    checkOptions('service', options, serviceOptions);
    for (const [name, settings] of Object.entries(options.models ?? {}))
      checkOptions(`service: models.${name}`, settings, modelSettings);
    const { watch, limits = {} } = options;
    if (watch !== undefined && !(watch > 0 && watch <= 86_400))
      throw new OctconvError(`service: watch: ${show(watch)}, wanted seconds, at most 86400`);
    this.#models = models;
    this.#options = options;
    this.#limits = checkLimits(limits);
    this.loaded = this.refresh();
    this.loaded.catch(() => undefined); // whoever waits for it is told
    if (watch) {
      this.#timer = setInterval(() => void this.#look(), watch * 1000);
      this.#timer.unref();
    }
  }

  /** When all models have been loaded, well or not. Rejects if the repository cannot be read. */
  readonly loaded: Promise<void>;

  /**
   * A service whose models are all ready.
   * @throws OctconvError that names the model that cannot be loaded, and why.
   */
  static async open(models: Models, options: ServiceOptions = {}): Promise<Service> {
    const service = new Service(models, options);
    try {
      await service.loaded;
      const broken = service.versions().find(({ state }) => state === 'unavailable');
      if (broken) throw new OctconvError(`service: ${broken.name}, version ${broken.version}: ${broken.reason}`);
      checkNames(options.models, service.#entries);
      if (service.versions().length === 0)
        throw new OctconvError(`service: ${show(models instanceof URL ? models.href : models)} holds no model folders`);
      return service;
    } catch (error) {
      await service.close();
      throw error;
    }
  }

  // --- Requests -------------------------------------------------------------------------------------------------

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
      const { version, served } = this.#find(name, options.version);
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
      const { version, served } = this.#find(name, wanted);
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
    this.#find(name, version).served.admit();
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

  /** The version that answers a request. */
  #find(name: string, version: string | undefined): { version: string; served: Served } {
    if (this.#isClosing) throw new ServiceError('unavailable', 'the service is closing');
    const entry = this.#entryOf(name, version);
    const { served, state, reason } = entry;
    if (served && state === 'ready') return { version: entry.version, served };
    const why = reason ? `: ${reason}` : '';
    throw new ServiceError('unavailable', `${name}, version ${entry.version}: is ${state}${why}`);
  }

  /** By default the newest that is ready, or if none is, the newest. */
  #entryOf(name: string, version: string | undefined): Entry {
    const versions = this.#versionsOf(name);
    const entry = version === undefined ? newest(versions) : versions.get(version);
    if (entry) return entry;
    throw new ServiceError('notFound', `${name}: no version ${show(version)}`);
  }

  #versionsOf(name: string): ReadonlyMap<string, Entry> {
    const versions = this.#entries.get(name);
    if (versions) return versions;
    throw new ServiceError('notFound', `no model ${show(name)}`);
  }

  // --- Models ---------------------------------------------------------------------------------------------------

  get #isClosing(): boolean {
    return this.#closed !== undefined;
  }

  /** All versions of all models, or of one. @throws ServiceError if there is no such model. */
  versions(name?: string): Version[] {
    const all = name === undefined ? [...this.#entries.values()] : [this.#versionsOf(name)];
    return all.flatMap((versions) => [...versions.values()].map(versionOf));
  }

  /** One version, by default the newest that is ready. @throws ServiceError if there is none. */
  version(name: string, version?: string): Version {
    return versionOf(this.#entryOf(name, version));
  }

  /** The same. @throws ServiceError if it is not ready, too. */
  readyVersion(name: string, version?: string): Ready {
    return this.version(name, this.#find(name, version).version) as Ready;
  }

  /** Set before it closes: it answers still, but is not ready, so that others are asked from now on. */
  leaving = false;

  /** Whether all models have been loaded, and each has a version that is ready. */
  get ready(): boolean {
    const wanted = [...this.#entries].filter(([name]) => !this.#unloaded.has(name));
    const serves = this.#loaded && !this.leaving && !this.#isClosing;
    return serves && wanted.length > 0 && wanted.every(([, versions]) => newest(versions)?.state === 'ready');
  }

  /**
   * Looks for model folders that are new, changed or gone. A changed version is loaded beside the old one, which serves
   * until then; if it cannot be loaded, the old one goes on, and `reason` says why.
   * @throws OctconvError if the repository cannot be read.
   */
  refresh(): Promise<void> {
    return this.#inTurn(async () => {
      const folders = await foldersOf(this.#models);
      for (const name of new Set([...folders.keys(), ...this.#entries.keys()]))
        if (!this.#unloaded.has(name) || !folders.has(name)) await this.#sync(name, folders);
      this.#loaded = true;
    });
  }

  /** What `watch` does, unless the last look still loads. */
  async #look(): Promise<void> {
    if (this.#looking) return;
    this.#looking = true;
    try {
      await this.refresh();
    } catch (error) {
      if (!this.#isClosing) this.#tell('unreadable', error as Error);
    } finally {
      this.#looking = false;
    }
  }

  /**
   * Loads a model that was unloaded, is new or has changed.
   * @throws ServiceError if there is no such model, or one of its versions cannot be loaded.
   */
  load(name: string): Promise<void> {
    return this.#inTurn(async () => {
      const folders = await foldersOf(this.#models);
      if (!folders.has(name)) throw new ServiceError('notFound', `no model ${show(name)}`);
      this.#unloaded.delete(name);
      for (const entry of this.#entries.get(name)?.values() ?? [])
        if (entry.reason !== undefined) entry.stamp = undefined;
      await this.#sync(name, folders);
      const failed = this.versions(name).find(({ reason }) => reason !== undefined);
      if (failed) throw new ServiceError('invalid', `${name}, version ${failed.version}: ${failed.reason}`);
    });
  }

  /** Answers what has come, and lets go of the model. @throws ServiceError if there is no such model. */
  unload(name: string): Promise<void> {
    return this.#inTurn(async () => {
      const versions = this.#versionsOf(name);
      this.#unloaded.add(name);
      for (const entry of versions.values()) this.#retire(entry, 'unloaded');
    });
  }

  #inTurn(work: () => Promise<void>): Promise<void> {
    const done = this.#syncing.then(() => {
      if (this.#isClosing) throw new ServiceError('unavailable', 'the service is closing');
      return work();
    });
    this.#syncing = done.catch(() => undefined);
    return done;
  }

  async #sync(name: string, folders: Folders): Promise<void> {
    const { versions: wanted = 'latest' } = this.settingsOf(name);
    const found = chosen(folders.get(name) ?? new Map(), wanted);
    const known = this.#entries.get(name) ?? new Map<string, Entry>();
    const made = [...found].map(([version, folder]): [string, Entry] => [
      version,
      known.get(version) ?? { name, version, folder, state: 'loading' },
    ]);
    const entries = new Map([...known, ...made].sort(([a], [b]) => Number(a) - Number(b)));
    this.#entries.set(name, entries);
    for (const [version, folder] of found) {
      if (this.#isClosing) return;
      await this.#loadChanged(entries.get(version) as Entry, folder);
    }
    // An old version serves until a new one does.
    const newer = [...found.keys()].at(-1);
    if (newer !== undefined && entries.get(newer)?.state !== 'ready') return;
    for (const [version, entry] of entries) {
      if (found.has(version)) continue;
      this.#retire(entry, undefined);
      entries.delete(version);
    }
    if (entries.size === 0) {
      this.#entries.delete(name);
      this.#unloaded.delete(name);
    }
  }

  async #loadChanged(entry: Entry, folder: string): Promise<void> {
    const stamp = await stampOf(folder);
    if (entry.stamp === stamp && entry.state !== 'unloading') return;
    entry.folder = folder;
    entry.stamp = stamp;
    const old = entry.state === 'ready' ? entry.served : undefined;
    if (!old) this.#change(entry, 'loading');
    try {
      const served = await this.#open(entry.name, entry.version, folder);
      if (this.#isClosing) return void (await served.close(0));
      entry.served = served;
    } catch (error) {
      this.#change(entry, old ? 'ready' : 'unavailable', (error as Error).message);
      return;
    }
    this.#change(entry, 'ready');
    if (old) void this.#drain(old);
  }

  async #open(name: string, version: string, folder: string): Promise<Served> {
    const { device, batching = {}, isolated, dtype, threads, maxBatch } = this.settingsOf(name);
    const ended = (why: string) => this.#tell('ended', name, version, why);
    const open = (options: EngineOptions) => (isolated ? isolate(folder, options, ended) : openEngine(folder, options));
    const devices: readonly (Device | 'auto' | undefined)[] = Array.isArray(device) ? device : [device as Device];
    const engines: Engine[] = [];
    try {
      // One after the other, since each is measured; batches are as the first one wants them.
      for (const device of devices) {
        const sizes = batching.sizes ?? engines[0]?.about.batching.sizes;
        engines.push(await open({ device, dtype, threads, maxBatch, sizes }));
      }
      const [first, ...others] = engines;
      if (!first) throw new OctconvError('device: [], wanted one or more');
      return new Served(name, [first, ...others], batching, {
        request: (event) => this.#tell('request', name, version, event),
        batch: (event) => this.#tell('batch', name, version, event),
      });
    } catch (error) {
      await Promise.all(engines.map((engine) => engine.close()));
      throw error;
    }
  }

  /** A listener that throws is a fault of its own, not of a request. */
  #tell<Name extends keyof ServiceEvents>(name: Name, ...event: ServiceEvents[Name]): void {
    try {
      this.emit(name, ...(event as never));
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }

  /** How a model is served: its own settings over those of all. */
  settingsOf(name: string): ModelSettings {
    const { models = {}, limits: _, watch: __, ...all } = this.#options;
    return { ...all, ...(Object.hasOwn(models, name) ? models[name] : {}) };
  }

  #change(entry: Entry, state: State, reason?: string): void {
    entry.state = state;
    entry.reason = reason;
    this.#tell('state', versionOf(entry));
  }

  /** Takes no more requests for it. */
  #retire(entry: Entry, reason: string | undefined): void {
    const { served } = entry;
    if (entry.state === 'unloading') return;
    if (!served) {
      this.#change(entry, 'unavailable', reason);
      return;
    }
    entry.served = undefined;
    entry.stamp = undefined;
    this.#change(entry, 'unloading');
    void this.#drain(served).then(() => {
      const known = this.#entries.get(entry.name)?.get(entry.version) ?? entry; // there may be another one by now
      if (entry.state === 'unloading' && known === entry) this.#change(entry, 'unavailable', reason);
    });
  }

  #drain(served: Served, milliseconds = drain): Promise<void> {
    this.#draining.add(served);
    return served
      .close(milliseconds)
      .catch(() => undefined)
      .finally(() => this.#draining.delete(served));
  }

  /**
   * Takes no more requests, answers what has come for so many milliseconds, and gives everything back. Called again it
   * can only shorten that time.
   */
  close(milliseconds = drain): Promise<void> {
    const first = this.#closed === undefined;
    const all = [...this.#entries.values()].flatMap((versions) => [...versions.values()]);
    const draining = [...this.#draining, ...(first ? all.flatMap(({ served }) => served ?? []) : [])];
    const drained = draining.map((served) => this.#drain(served, milliseconds));
    this.#closed ??= Promise.all([...drained, this.#syncing]).then(() => this.#entries.clear());
    clearInterval(this.#timer);
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

const versionOf = ({ name, version, state, reason, served }: Entry): Version => ({
  name,
  version,
  state,
  reason,
  about: served?.about,
  batching: served?.policy,
  counts: served?.counts,
  waiting: served?.waiting ?? 0,
  inFlight: served?.inFlight ?? 0,
});

const newest = (versions: ReadonlyMap<string, Entry>): Entry | undefined => {
  const all = [...versions.values()];
  return all.findLast(({ state }) => state === 'ready') ?? all.at(-1);
};

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
