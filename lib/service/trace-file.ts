/**
 * Traces of requests in files, as Triton writes them (its trace extension): when each step of a request began and ended.
 * Of the requests that end 1 of `rate` is traced. Where traces lie is decided by the one who starts the server; callers
 * of the doors may change the other settings, of all models or of one.
 *
 *     [{"id":1,"model_name":"cifar","model_version":1},
 *     {"id":1,"timestamps":[{"name":"REQUEST_START","ns":81},{"name":"QUEUE_START","ns":90}, ...]}]
 *
 * With `logFrequency` n each n traces are a file of their own, FILE.0, FILE.1, ...; with 0 all are in FILE. The last ones
 * of a `count` are always a file of their own, as Triton has it.
 */
import { open } from 'node:fs/promises';
import { basename } from 'node:path';
import * as v from 'valibot';
import { OctconvError, show } from '../error.js';
import { integerIn, object, oneOf, parse } from '../files/schema.js';
import { checkOutput, writeWhole } from '../files/write.js';
import { fileError } from '../weights/file.js';
import { ServiceError } from './errors.js';
import type { RequestEnded } from './served.js';
import type { Service } from './service.js';

export interface TraceOptions {
  /** What is there is overwritten. */
  readonly file: string;
  /** Default `OFF`: until a caller turns it on. */
  readonly level?: 'OFF' | 'TIMESTAMPS' | undefined;
  /** Of so many requests one is traced; default 1000. */
  readonly rate?: number | undefined;
  /** Traces until no more are made; default -1, without end. */
  readonly count?: number | undefined;
  /** Traces of a file; default 0, all are in one. */
  readonly logFrequency?: number | undefined;
}

/** Settings as Triton tells them. `trace_file` is without its folder: the paths of a server are not for callers. */
export interface TraceSettings {
  readonly trace_file: string;
  readonly trace_level: readonly string[];
  readonly trace_rate: string;
  /** Traces that are still to be made. */
  readonly trace_count: string;
  readonly log_frequency: string;
  readonly trace_mode: string;
}

interface Settings {
  readonly level: 'OFF' | 'TIMESTAMPS';
  readonly rate: number;
  readonly count: number;
  readonly logFrequency: number;
}

const largest = 2 ** 31 - 1;
/** Traces of a file are in memory until it is written, 4 MiB for each model that has settings of its own. */
const mostOfFile = 10_000;
/** Traces that may wait for a slow disk; others are not made meanwhile. */
const mostUnwritten = 20_000;
/** Where all are in one file: traces that are in memory before they are appended, and milliseconds, at most. */
const [appended, latest] = [100, 1000];

const usual: Settings = { level: 'OFF', rate: 1000, count: -1, logFrequency: 0 };

/** The field of serve.json. */
export const traceOptions = object({
  file: v.pipe(v.string('the path of a file'), v.minLength(1, 'the path of a file')),
  level: v.optional(oneOf('OFF', 'TIMESTAMPS'), usual.level),
  rate: v.optional(integerIn(1, largest), usual.rate),
  count: v.optional(integerIn(-1, largest), usual.count),
  logFrequency: v.optional(integerIn(0, mostOfFile), usual.logFrequency),
});

/** A setting that callers may change: what it is called here, and what is wanted of it. */
interface Setting {
  readonly key?: keyof Settings;
  readonly wanted: string;
  /** Nothing, if it does not fit. */
  read(given: string | number): string | number | undefined;
}

/** A number, or its digits. */
const integer = (key: keyof Settings, least: number, most: number, wanted: string): Setting => ({
  key,
  wanted,
  read(given) {
    const number = /^-?\d{1,10}$/.test(`${given}`) ? Number(given) : Number.NaN;
    return number >= least && number <= most ? number : undefined;
  },
});
const nameOf = (names: readonly string[], key?: keyof Settings): Setting => ({
  ...(key && { key }),
  wanted: names.map((name) => JSON.stringify(name)).join(' or '),
  read: (given) => names.find((name) => name === given),
});

const ofCallers: ReadonlyMap<string, Setting> = new Map([
  ['trace_level', nameOf(['OFF', 'TIMESTAMPS'], 'level')],
  ['trace_rate', integer('rate', 1, largest, 'an integer of at least 1')],
  ['trace_count', integer('count', -1, largest, 'an integer of at least -1')],
  ['log_frequency', integer('logFrequency', 0, mostOfFile, `an integer from 0 to ${mostOfFile}`)],
  ['trace_mode', nameOf(['triton'])],
]);
const names = [...ofCallers.keys()].join(', ');

/** What requests are traced together: those of all models, or of one that has settings of its own. */
interface Scope {
  /** What callers have set. */
  readonly own: Partial<Settings>;
  readonly settings: Settings;
  /** Requests that have ended. */
  seen: number;
  /** Traces that are still to be made; -1: without end. */
  left: number;
  /** As JSON, not yet written. */
  traces: string[];
}

const warn = (error: Error): void => process.emitWarning(error.message);

/** What closes the list of a file that may get longer. */
const tail = '\n]\n';

/** Traces of a service; off, and without cost, until its level says otherwise. */
export class TraceFile implements AsyncDisposable {
  readonly #service: Service;
  readonly #file: string | undefined;
  readonly #defaults: Settings;
  readonly #failed: (error: Error) => void;
  #all: Scope;
  /** By the names of models. */
  readonly #models = new Map<string, Scope>();
  #listens = false;
  #soon: NodeJS.Timeout | undefined;
  /** The latest trace, and the next file. */
  #id = 0;
  #index = 0;
  /** Bytes of the file that all are in. */
  #size = 0;
  #unwritten = 0;
  /** Ends when all is written. */
  #writing: Promise<void> = Promise.resolve();
  /** Whether the last one could not be written. */
  #broken = false;
  #closed = false;

  /** Without options there is no file: it is off, and stays so. `failed` is as for `open`. */
  constructor(service: Service, options?: TraceOptions, failed: (error: Error) => void = warn) {
    const { file, ...defaults } = options ? parse(traceOptions, options, 'trace') : { file: undefined, ...usual };
    this.#service = service;
    this.#file = file;
    this.#defaults = defaults;
    this.#failed = failed;
    this.#all = { own: {}, settings: defaults, seen: 0, left: defaults.count, traces: [] };
    this.#listen();
  }

  /**
   * Traces of what the service does from now on.
   * @throws OctconvError for options that make no sense, and if the file's folder is missing.
   */
  static async open(
    service: Service,
    options: TraceOptions,
    /** Is told when a file cannot be written, once until another one can. */
    failed: (error: Error) => void = warn,
  ): Promise<TraceFile> {
    const { file } = parse(traceOptions, options, 'trace');
    await checkOutput(file);
    return new TraceFile(service, options, failed);
  }

  /** Of all models, or of one. @throws ServiceError if there is no such model. */
  settings(model?: string): TraceSettings {
    if (model !== undefined) this.#service.version(model);
    const { settings, left } = this.#scopeOf(model);
    return {
      trace_file: this.#file === undefined ? '' : basename(this.#file),
      trace_level: [settings.level],
      trace_rate: `${settings.rate}`,
      trace_count: `${left}`,
      log_frequency: `${settings.logFrequency}`,
      trace_mode: 'triton',
    };
  }

  /**
   * Changes settings, of all models or of one, as a caller asks: numbers or texts by their names, or lists of one. What
   * is null or empty is as before any change; of a model it is as for all.
   * @throws ServiceError if there is no such model, and for `trace_file`; OctconvError for a setting that makes no sense.
   */
  update(given: unknown, model?: string): TraceSettings {
    if (typeof given !== 'object' || given === null || Array.isArray(given))
      throw new OctconvError(`trace: the request is ${show(given)}, wanted an object of ${names}`);
    if (model !== undefined) this.#service.version(model);
    const own: Partial<Record<keyof Settings, unknown>> = { ...this.#own(model) };
    for (const [name, value] of Object.entries(given)) {
      const setting = ofCallers.get(name);
      if (name === 'trace_file')
        throw new ServiceError(
          'forbidden',
          `trace: trace_file is set, wanted ${names}: the server decides where it is`,
        );
      if (!setting) throw new OctconvError(`trace: unknown setting ${show(name)}, wanted ${names}`);
      const { key, wanted, read } = setting;
      const one = Array.isArray(value) && value.length < 2 ? value[0] : value;
      const isEmpty = one === undefined || one === null || one === '';
      const found = typeof one === 'string' || typeof one === 'number' ? read(one) : undefined;
      if (!isEmpty && found === undefined) throw new OctconvError(`trace: ${name} is ${show(value)}, wanted ${wanted}`);
      if (key && isEmpty) delete own[key];
      else if (key) own[key] = found;
    }
    if (own.level === 'TIMESTAMPS' && this.#file === undefined)
      throw new OctconvError('trace: trace_level is "TIMESTAMPS", wanted "OFF": this server has no trace file');
    this.#set(own as Partial<Settings>, 'trace_count' in given, model);
    return this.settings(model);
  }

  #scopeOf(model?: string): Scope {
    return (model === undefined ? undefined : this.#models.get(model)) ?? this.#all;
  }

  #own(model?: string): Partial<Settings> {
    return (model === undefined ? this.#all : this.#models.get(model))?.own ?? {};
  }

  #set(own: Partial<Settings>, recount: boolean, model?: string): void {
    if (model === undefined) {
      this.#all = this.#changed(this.#all, own, this.#defaults, recount);
      for (const [name, scope] of this.#models)
        this.#models.set(name, this.#changed(scope, scope.own, this.#all.settings, false));
    } else {
      const scope = this.#models.get(model);
      if (Object.keys(own).length > 0) this.#models.set(model, this.#changed(scope, own, this.#all.settings, recount));
      else if (scope) {
        this.#models.delete(model);
        this.#flush(scope);
      }
    }
    this.#listen();
  }

  /** With other settings; what it has is written. It counts from the beginning where it has another count. */
  #changed(scope: Scope | undefined, own: Partial<Settings>, below: Settings, recount: boolean): Scope {
    const settings = { ...below, ...own };
    if (scope) this.#flush(scope);
    const again = recount || settings.count !== scope?.settings.count;
    return { own, settings, seen: scope?.seen ?? 0, left: scope && !again ? scope.left : settings.count, traces: [] };
  }

  /** What is off hears nothing. */
  #listen(): void {
    const wanted =
      !this.#closed && [this.#all, ...this.#models.values()].some(({ settings }) => settings.level !== 'OFF');
    if (wanted === this.#listens) return;
    this.#listens = wanted;
    this.#service[wanted ? 'on' : 'off']('request', this.#ended);
  }

  readonly #ended = (model: string, version: string, event: RequestEnded): void => {
    const scope = this.#scopeOf(model);
    const { level, rate, logFrequency } = scope.settings;
    if (level === 'OFF' || scope.left === 0 || ++scope.seen % rate !== 0) return;
    if (this.#unwritten >= mostUnwritten) return;
    if (scope.left > 0) scope.left--;
    scope.traces.push(traceOf(++this.#id, model, version, event));
    if (scope.traces.length >= (logFrequency || appended) || scope.left === 0) this.#flush(scope);
    else if (logFrequency === 0) this.#soon ??= setTimeout(() => this.#appendAll(), latest).unref();
  };

  #appendAll(): void {
    this.#soon = undefined;
    for (const scope of [this.#all, ...this.#models.values()])
      if (scope.settings.logFrequency === 0) this.#flush(scope);
  }

  /** Writes what a scope has, after what is being written. The last traces of a count are a file of their own. */
  #flush(scope: Scope): void {
    const traces = scope.traces.splice(0);
    if (traces.length === 0) return;
    const text = traces.join(',\n');
    const indexed = scope.settings.logFrequency > 0 || scope.left === 0;
    const path = indexed ? `${this.#file}.${this.#index++}` : `${this.#file}`;
    this.#unwritten += traces.length;
    this.#writing = this.#writing
      .then(() => (indexed ? writeWhole(path, [`[${text}]\n`]) : this.#append(path, text)))
      .then(
        () => {
          this.#broken = false;
        },
        (error: Error) => {
          if (!this.#broken) this.#failed(new OctconvError(`trace: ${error.message}`, { cause: error }));
          this.#broken = true;
        },
      )
      .finally(() => {
        this.#unwritten -= traces.length;
      });
  }

  /** The end of the list is written over. */
  async #append(path: string, text: string): Promise<void> {
    if (this.#size === 0) {
      const whole = Buffer.from(`[${text}${tail}`);
      await writeWhole(path, [whole]);
      this.#size = whole.length;
      return;
    }
    try {
      const file = await open(path, 'r+');
      const at = this.#size - tail.length;
      const end = async (text: string) => {
        const bytes = Buffer.from(text);
        for (let done = 0; done < bytes.length; )
          done += (await file.write(bytes, done, bytes.length - done, at + done)).bytesWritten;
        await file.truncate(at + bytes.length);
        this.#size = at + bytes.length;
      };
      try {
        await end(`,\n${text}${tail}`).catch(async (error) => {
          await end(tail); // as it was: there is room for that
          throw error;
        });
      } finally {
        await file.close();
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') this.#size = 0; // moved away: the next one is new
      throw fileError(path, error);
    }
  }

  /** Traces no more, and writes what there is. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#soon);
    this.#listen();
    for (const scope of [this.#all, ...this.#models.values()]) this.#flush(scope);
    await this.#writing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/**
 * A request that ends now, in nanoseconds of a clock that nobody sets. Steps that a failed one did not come to are left
 * out. What Triton calls input and output of a computation are parts of it here: they take no time of their own.
 */
function traceOf(id: number, model: string, version: string, { code, milliseconds }: RequestEnded): string {
  const { prepare, queue, compute } = milliseconds;
  const end = Number(process.hrtime.bigint());
  const before = (all: number) => end - Math.round(1e6 * all);
  const [start, queued, computed] = [before(prepare + queue + compute), before(queue + compute), before(compute)];
  const [isQueued, isComputed] = [queue, compute].map((time) => time > 0 || code === 'success');
  const timestamps = [
    ['REQUEST_START', start],
    ...(isQueued || isComputed ? [['QUEUE_START', queued]] : []),
    ...(isComputed
      ? [
          ['COMPUTE_START', computed],
          ['COMPUTE_INPUT_END', computed],
          ['COMPUTE_OUTPUT_START', end],
          ['COMPUTE_END', end],
        ]
      : []),
    ['REQUEST_END', end],
  ].map(([name, ns]) => ({ name, ns }));
  const what = { id, model_name: model, model_version: Number(version) };
  return `${JSON.stringify(what)},\n${JSON.stringify({ id, timestamps })}`;
}
