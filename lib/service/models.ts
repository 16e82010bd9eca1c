/**
 * The models of a service: loaded from a repository (repository.ts), reloaded where their folders have changed, unloaded.
 * A new version serves when it is loaded and warm; the old one serves until then, and ends when its requests have.
 */
import { EventEmitter } from 'node:events';
import { OctconvError, show } from '../error.js';
import type { DecodeOptions } from '../input/image.js';
import type { Device } from '../native.js';
import { checkOptions, type Known } from '../options.js';
import { type BatchPolicy, resolvePolicy } from './batcher.js';
import { type About, type Engine, type EngineOptions, openEngine } from './engine.js';
import { ServiceError } from './errors.js';
import { isolate } from './isolated.js';
import { checkNames, chosen, type Folders, foldersOf, type Models, stampOf, type Versions } from './repository.js';
import { type BatchEnded, type Counts, type RequestEnded, Served } from './served.js';

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
  /**
   * Whether it runs in a process of its own, so that a crash of native code costs the batches in flight alone; so does
   * one that hangs (isolated.ts says when).
   */
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
  /** Whether the service is ready, or one of its models, may be another now. */
  health: [];
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

/** The models of a service, and which of their versions answer. */
export abstract class ServiceModels extends EventEmitter<ServiceEvents> implements AsyncDisposable {
  readonly #models: Models;
  readonly #options: ServiceOptions;
  /** By name, then by version, the newest last. */
  readonly #entries = new Map<string, Map<string, Entry>>();
  /** Models that were unloaded by `unload`. */
  readonly #unloaded = new Set<string>();
  readonly #draining = new Set<Served>();
  #syncing: Promise<void> = Promise.resolve();
  #timer: NodeJS.Timeout | undefined;
  #loaded = false;
  #looking = false;
  /** Aborts when it closes. */
  readonly #stop = new AbortController();
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
    for (const { batching = {} } of [options, ...Object.values(options.models ?? {})])
      resolvePolicy({ ...batching, sizes: batching.sizes ?? [1], ...(!batching.sizes && { preferred: [] }) });
    const { watch } = options;
    if (watch !== undefined && !(watch > 0 && watch <= 86_400))
      throw new OctconvError(`service: watch: ${show(watch)}, wanted seconds, at most 86400`);
    this.#models = models;
    this.#options = options;
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
   * When all models have been loaded.
   * @throws OctconvError if there is none, that names one that cannot be loaded, and for settings of one that is not there.
   */
  async allReady(): Promise<void> {
    await this.loaded;
    const all = this.versions();
    const broken = all.find(({ state }) => state === 'unavailable');
    if (broken) throw new OctconvError(`service: ${broken.name}, version ${broken.version}: ${broken.reason}`);
    checkNames(this.#options.models, new Set(all.map(({ name }) => name)));
    const models = this.#models;
    if (all.length === 0)
      throw new OctconvError(`service: ${show(models instanceof URL ? models.href : models)} holds no model folders`);
  }

  /** The version that answers a request. @throws ServiceError if none does. */
  protected find(name: string, version: string | undefined): { version: string; served: Served } {
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
    return this.version(name, this.find(name, version).version) as Ready;
  }

  #leaving = false;
  /** Set before it closes: it answers still, but is not ready, so that others are asked from now on. */
  get leaving(): boolean {
    return this.#leaving;
  }
  set leaving(leaving: boolean) {
    this.#leaving = leaving;
    this.#tell('health');
  }

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
      this.#tell('health');
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
    const old = entry.served;
    if (!old) this.#change(entry, 'loading');
    try {
      const served = await this.#open(entry.name, entry.version, folder);
      if (this.#isClosing) return void (await served.close(0));
      entry.served = served;
    } catch (error) {
      if (this.#isClosing) return;
      this.#change(entry, old ? entry.state : 'unavailable', (error as Error).message);
      return;
    }
    this.#change(entry, 'ready');
    if (old) void this.#drain(old);
  }

  async #open(name: string, version: string, folder: string): Promise<Served> {
    const { device, batching = {}, isolated, dtype, threads, maxBatch } = this.settingsOf(name);
    let served: Served | undefined;
    const told = {
      signal: this.#stop.signal,
      ended: (why: string) => this.#tell('ended', name, version, why),
      lost: (why: string | undefined) => {
        const entry = this.#entries.get(name)?.get(version);
        if (served && entry?.served === served) this.#change(entry, why === undefined ? 'ready' : 'unavailable', why);
      },
    };
    const open = (options: EngineOptions) => (isolated ? isolate(folder, options, told) : openEngine(folder, options));
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
      served = new Served(name, [first, ...others], batching, {
        request: (event) => this.#tell('request', name, version, event),
        batch: (event) => this.#tell('batch', name, version, event),
      });
      return served;
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
    const own = Object.hasOwn(models, name) ? models[name] : {};
    return { ...all, ...own, batching: { ...all.batching, ...own?.batching } };
  }

  #change(entry: Entry, state: State, reason?: string): void {
    entry.state = state;
    entry.reason = reason;
    this.#tell('state', versionOf(entry));
    this.#tell('health');
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
   * can only shorten that time. A model that is being loaded is awaited, unless it is isolated.
   */
  close(milliseconds = drain): Promise<void> {
    const first = this.#closed === undefined;
    this.#stop.abort();
    const all = [...this.#entries.values()].flatMap((versions) => [...versions.values()]);
    const draining = [...this.#draining, ...(first ? all.flatMap(({ served }) => served ?? []) : [])];
    const drained = draining.map((served) => this.#drain(served, milliseconds));
    this.#closed ??= Promise.all([...drained, this.#syncing]).then(() => this.#entries.clear());
    clearInterval(this.#timer);
    if (first) this.#tell('health');
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
