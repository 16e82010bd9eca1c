/**
 * A work queue on NATS JetStream (server 2.9 and later). Three streams, for a queue of the name `octconv`:
 *
 *   octconv_jobs     octconv.jobs.MODEL   a work queue: a job is there until it is acknowledged, whoever dies meanwhile
 *   octconv_results  octconv.results.ID   holds one message of each subject and refuses others, so that a job that two
 *                                         workers do has one result
 *   octconv_dead     octconv.dead.ID      jobs that cannot be done, as they came, with the reason in a header
 *
 * Bytes that no message holds lie in the object store `octconv_files`; servers before 2.9.18 that are started again may
 * forget all of them (issue 4196 of nats-server). Streams that are there already are left as they are, so that whoever
 * runs the servers may have made them otherwise.
 *
 * Before server 2.10.15 a job that is given back while no worker waits counts as new: one that fails again and again is
 * never dead there.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type * as JetStream from '@nats-io/jetstream';
import type * as Objects from '@nats-io/obj';
import type * as Nats from '@nats-io/transport-node';
import { types } from 'node:util';
import { OctconvError, show } from '../error.js';
import { kindOf } from '../graph/graph.js';
import { readText } from '../files/read.js';
import { checkOptions, type Known } from '../options.js';
import type { VideoSource } from '../input/video.js';
import { ServiceError } from '../service/errors.js';
import {
  checkId,
  checkModel,
  checkQueueName,
  isId,
  isSubject,
  type Job,
  type JobOptions,
  numbered,
  QueueGone,
  type Result,
  type SubmitOptions,
  submitOptions,
  type WorkSource,
  within,
} from './jobs.js';
import { endingSockets, endStale, transportOf } from './sockets.js';

export interface NatsOptions {
  /** Such as `nats://localhost:4222`; default: that. */
  readonly servers?: string | readonly string[] | undefined;
  /** Of the queue; default `octconv`. */
  readonly name?: string | undefined;
  /** Copies of each stream, on as many servers; default: as it is, or 1 where it is made. */
  readonly replicas?: number | undefined;
  /** Days for which results, dead letters and files are kept, where their streams are made; default 7. */
  readonly days?: number | undefined;
  /**
   * Seconds in which a worker must say that it still works on a job, or another one gets it, the same for all workers
   * of a model; default: as it is, or 30 where the first worker comes.
   */
  readonly ackWait?: number | undefined;
  /** File of NATS credentials. */
  readonly credentials?: string | undefined;
}

const natsOptions = {
  servers: true,
  name: true,
  replicas: true,
  days: true,
  ackWait: true,
  credentials: true,
} satisfies Known<NatsOptions>;

interface Settings {
  readonly servers: readonly string[];
  readonly name: string;
  readonly replicas: number | undefined;
  readonly days: number;
  readonly ackWait: number | undefined;
  readonly credentials: string | undefined;
}

function resolve(options: NatsOptions): Settings {
  checkOptions('queue', options, natsOptions);
  const { servers = 'nats://localhost:4222', name = 'octconv', replicas, days = 7, ackWait, credentials } = options;
  checkQueueName(name);
  if (replicas !== undefined && !(Number.isInteger(replicas) && replicas >= 1 && replicas <= 5))
    throw new OctconvError(`queue: replicas: ${show(replicas)}, wanted an integer from 1 to 5`);
  for (const [name, value] of Object.entries({ days, ackWait }))
    if (value !== undefined && !(typeof value === 'number' && value >= 1 && value < 10_000))
      throw new OctconvError(`queue: ${name}: ${show(value)}, wanted a number from 1 to 9999`);
  return { servers: [servers].flat(), name, replicas, days, ackWait, credentials };
}

/** Header fields of jobs, beside `Nats-Msg-Id`, which is the id. */
const fields = {
  top: 'Octconv-Top',
  clips: 'Octconv-Clips',
  crops: 'Octconv-Crops',
  /** Where its bytes are, if they are not the message. */
  url: 'Octconv-Url',
  file: 'Octconv-File',
  /** A subject to which the result is sent too. */
  reply: 'Octconv-Reply',
  /** Of the call that queued it: another one of the same id has another. */
  submit: 'Octconv-Submit',
  /** Of dead letters. */
  model: 'Octconv-Model',
  error: 'Octconv-Error',
} as const;
const idField = 'Nats-Msg-Id';

/** Milliseconds that a worker waits for jobs before it asks again. */
const patience = 5000;
/** Milliseconds between tries where no server answers: a leader is elected within seconds. */
const pause = 250;
/** Milliseconds for that when a queue is opened: servers that begin have no leader either. */
const election = 15_000;
/** Milliseconds in which a server must answer a connection that is made. */
const dial = 5000;
/** Milliseconds between pings; after two without an answer the connection is made again: a cut network says nothing. */
const pingInterval = 5000;
/** Milliseconds without an answer of JetStream after which another server is asked: this one may not reach the others. */
const alone = 15_000;
/** Milliseconds of a try, of one that puts a file one more for each kilobyte. */
const attempt = 30_000;
/** Milliseconds in which the next part of a file must come, one that is not whole may become so, and one that is not
 * there may come. */
const [silence, filePatience, missingPatience] = [10_000, 60_000, 5000];
/** Milliseconds in which there must be room for a dead letter. */
const letterPatience = 10_000;
/** Milliseconds in which a queue that is closed waits for what was said to reach a server. */
const farewell = 2000;
/** JetStream's code of a message that its stream refuses, whatever there is too much of. */
const isRefused = 10077;
/** That, or there is no room on the servers. */
const full = new Set([isRefused, 10023, 10047]);
/** Characters of a URL, and of header fields in a dead letter: servers take 64 KiB of all. */
const [longestUrl, longestHeaders] = [8192, 32_768];
const [streamIsMissing, streamIsThere, consumerIsMissing] = [10059, 10058, 10014];
/** Of a message of an id that the stream is about to take, or to lose: it is not stored yet. */
const isInProcess = 10158;
const day = 86_400e9; // nanoseconds

/** A stream, by what it holds. */
type Kind = 'jobs' | 'results' | 'dead';

interface Insisting {
  /** When it gives up. */
  readonly late?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds of a try. */
  readonly most?: number;
}

interface Packages {
  readonly nats: typeof Nats;
  readonly jetstream: typeof JetStream;
  readonly obj: typeof Objects;
}

/** They are loaded where a queue is opened, so that others need not install them. */
async function packages(): Promise<Packages> {
  try {
    const [nats, jetstream, obj] = await Promise.all([
      import('@nats-io/transport-node'),
      import('@nats-io/jetstream'),
      import('@nats-io/obj'),
    ]);
    return { nats, jetstream, obj };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') throw error;
    const wanted = 'npm install @nats-io/transport-node @nats-io/jetstream @nats-io/obj';
    throw new OctconvError(`queue: the packages of NATS are not installed: ${wanted}`, { cause: error });
  }
}

/** A connection to a queue; it connects again by itself. */
export class NatsQueue implements AsyncDisposable {
  readonly name: string;
  readonly #ackWait: number | undefined;
  readonly #loaded: Packages;
  readonly #client: JetStream.JetStreamClient;
  readonly #manager: JetStream.JetStreamManager;
  #files!: Objects.ObjectStore;
  /** When another server was asked last. */
  #moved = 0;

  private constructor(
    loaded: Packages,
    readonly connection: Nats.NatsConnection,
    manager: JetStream.JetStreamManager,
    { name, ackWait }: Settings,
  ) {
    this.name = name;
    this.#ackWait = ackWait;
    this.#loaded = loaded;
    this.#client = loaded.jetstream.jetstream(connection);
    this.#manager = manager;
  }

  /**
   * Connects, and makes the streams that are not there.
   * @throws OctconvError if no server answers, it has no JetStream, or the packages of NATS are not installed.
   */
  static async open(options: NatsOptions = {}): Promise<NatsQueue> {
    const settings = resolve(options);
    const { servers, credentials } = settings;
    const loaded = await packages();
    const { nats, jetstream } = loaded;
    let connection: Nats.NatsConnection | undefined;
    try {
      const login = credentials === undefined ? undefined : Buffer.from(await readText(credentials));
      connection = await endingSockets(() =>
        nats.connect({
          ...connectionOf(servers),
          ...(login && { authenticator: nats.credsAuthenticator(login) }),
          name: 'octconv',
          maxReconnectAttempts: -1,
          reconnectTimeWait: pause,
          timeout: dial,
          pingInterval,
          maxPingOut: 2,
        }),
      );
      void endStale(connection);
      const manager = await jetstream.jetstreamManager(connection, { checkAPI: false });
      const queue = new NatsQueue(loaded, connection, manager, settings);
      await queue.#prepare(settings);
      return queue;
    } catch (error) {
      await connection?.close();
      if (error instanceof OctconvError) throw error;
      const { message, cause } = error as Error;
      const isOff = isNotEnabled(error) || /no responders/.test(message);
      const why = isOff
        ? 'JetStream is off there, wanted nats-server -js'
        : (cause as Error | undefined)?.message || message;
      throw new OctconvError(`queue: ${connectionOf(servers).servers.join(',')}: ${why}`, { cause: error });
    }
  }

  async #prepare({ name, replicas, days }: Settings): Promise<void> {
    const { jetstream, obj } = this.#loaded;
    const { New } = jetstream.DiscardPolicy; // where there is a limit, who submits is told, and no job is lost
    const file = { num_replicas: replicas ?? 1, storage: jetstream.StorageType.File, discard: New };
    const once = { ...file, max_age: days * day, max_msgs_per_subject: 1, discard_new_per_subject: true };
    const streams = [
      { name: `${name}_jobs`, subjects: [`${name}.jobs.>`], ...file, retention: jetstream.RetentionPolicy.Workqueue },
      { name: `${name}_results`, subjects: [`${name}.results.>`], ...once },
      { name: `${name}_dead`, subjects: [`${name}.dead.>`], ...once },
    ];
    const late = performance.now() + election;
    for (const stream of streams) {
      const { config } = await this.#insisting(() => addMissing(this.#manager, stream), { late });
      // What makes a job come until it has a result, and an id have one.
      for (const key of ['retention', 'discard', 'max_msgs_per_subject', 'discard_new_per_subject'] as const) {
        const wanted = (stream as Partial<JetStream.StreamConfig>)[key];
        if (wanted !== undefined && config[key] !== wanted)
          throw new OctconvError(`queue: ${stream.name} has ${key} ${show(config[key])}, wanted ${show(wanted)}`);
      }
      if (replicas !== undefined && config.num_replicas !== replicas)
        throw new OctconvError(`queue: replicas: ${replicas}, but ${stream.name} has ${config.num_replicas}`);
    }
    const store = { ttl: days * day, replicas: replicas ?? 1, storage: jetstream.StorageType.File };
    const files = new obj.Objm(this.#client);
    this.#files = await this.#insisting(() => files.create(`${name}_files`, store), { late });
  }

  /**
   * Jobs of a model. Workers of it, on any machine, share them.
   * @throws OctconvError for another `ackWait` than its workers have.
   */
  async source(model: string): Promise<WorkSource> {
    checkModel(model);
    let { consumer, ackWait } = await this.#consumerOf(model);
    if (this.#ackWait !== undefined && this.#ackWait !== ackWait)
      throw new OctconvError(`queue: ackWait: ${this.#ackWait}, but the workers of ${show(model)} have ${ackWait}`);
    let answered = performance.now();
    const goOn = async (signal: AbortSignal) => {
      await this.#moveOn(answered);
      ({ consumer } = await this.#consumerOf(model, signal));
      await sleep(pause, undefined, { signal });
    };
    const jobOf = (message: JetStream.JsMsg) => new NatsJob(this, model, message);
    async function* take(count: number, signal: AbortSignal): AsyncGenerator<Job> {
      if (signal.aborted) return;
      let left = count;
      try {
        // A client that connects again asks for as many once more. Given back at once they would come again to that.
        for await (const message of messagesOf(consumer, count, signal))
          if (signal.aborted) message.nak();
          else if (left-- <= 0) message.nak(patience);
          else yield jobOf(message);
        answered = performance.now();
      } catch {
        // No server answers, or the consumer is gone.
        await goOn(signal).catch((error) => {
          if (!signal.aborted) throw error;
        });
      }
    }
    return { model, ackWait, take, close: () => within(farewell, this.connection.flush()).catch(() => undefined) };
  }

  /** What hands out the jobs of a model; it is made where it is not there. */
  async #consumerOf(model: string, signal?: AbortSignal): Promise<{ consumer: JetStream.Consumer; ackWait: number }> {
    const { consumers } = this.#manager;
    const [stream, durable] = [`${this.name}_jobs`, `worker_${model.replaceAll('.', '~')}`]; // no name has a dot
    const wanted = {
      durable_name: durable,
      filter_subject: `${this.name}.jobs.${model}`,
      ack_policy: this.#loaded.jetstream.AckPolicy.Explicit,
      ack_wait: (this.#ackWait ?? 30) * 1e9,
      max_ack_pending: -1,
    };
    return this.#insisting(
      async () => {
        const { config } = await consumers.info(stream, durable).catch((error) => {
          if (codeOfApi(error) === consumerIsMissing) return consumers.add(stream, wanted);
          throw error;
        });
        const consumer = await this.#client.consumers.get(stream, durable);
        return { consumer, ackWait: (config.ack_wait ?? wanted.ack_wait) / 1e9 };
      },
      { signal },
    );
  }

  /**
   * Queues a job: bytes, or a URL that workers allow. Gives whether it is new: an id is one job, whatever its model and
   * its bytes are. In two minutes it is queued once, and later it comes to the result that it has. Where no server
   * answers it waits for one.
   * @throws OctconvError for what makes no sense, and if the streams are full or gone.
   */
  async submit(id: string, model: string, input: Uint8Array | URL, options: SubmitOptions = {}): Promise<boolean> {
    checkId(id);
    checkModel(model);
    checkOptions('submit', options, submitOptions);
    const { top, clips, crops, reply, signal } = options;
    const isUrl = input instanceof URL;
    if (!isUrl && !(types.isUint8Array(input) && input.length > 0))
      throw new OctconvError(`submit: got ${kindOf(input)}, wanted a Uint8Array that is not empty, or a URL`);
    if (isUrl && input.href.length > longestUrl)
      throw new OctconvError(`submit: a URL of ${input.href.length} characters, wanted at most ${longestUrl}`);
    if (reply !== undefined) this.checkReply(reply);
    const headers = this.headers();
    for (const [name, value] of Object.entries({ top, clips, crops, reply }))
      if (value !== undefined) headers.set(fields[name as keyof typeof fields], String(value));
    headers.set(idField, id);
    if (isUrl) headers.set(fields.url, input.href);
    const own = this.#loaded.nats.nuid.next();
    headers.set(fields.submit, own);
    const file = !isUrl && input.length > this.largest ? await this.putFile(id, input, { signal }) : undefined;
    if (file !== undefined) headers.set(fields.file, file);
    const bytes = isUrl || file !== undefined ? new Uint8Array() : input;
    const remove = async () => {
      if (file !== undefined) await this.removeFile(file, { signal });
    };
    try {
      const { isNew, seq } = await this.publish('jobs', model, bytes, headers, { signal });
      // It may be this one, whose first answer was lost.
      if (isNew || (await this.message('jobs', { seq }, signal))?.header.get(fields.submit) === own) return true;
    } catch (error) {
      if (error instanceof OctconvError) await remove(); // after other errors it may be queued
      throw error;
    }
    await remove();
    return false;
  }

  /** A message of a stream, as its leader knows it. @internal */
  async message(kind: Kind, query: JetStream.MsgRequest, signal?: AbortSignal): Promise<JetStream.StoredMsg | null> {
    return this.#insisting(() => this.#manager.streams.getMessage(`${this.name}_${kind}`, query), { signal });
  }

  /** Whether a subject is for replies: workers may write to others too. @internal */
  isReply(subject: string): boolean {
    const isOurs = subject.startsWith(`${this.name}.replies.`);
    return (isOurs || subject.startsWith('_INBOX.')) && /^[^\s.*>]+(\.[^\s.*>]+)*$/.test(subject);
  }

  /** @throws OctconvError unless it is. @internal */
  checkReply(subject: string): void {
    if (!this.isReply(subject))
      throw new OctconvError(`queue: reply ${show(subject)}, wanted _INBOX.ANY or ${this.name}.replies.ANY`);
  }

  /** @internal */
  headers(): Nats.MsgHdrs {
    return this.#loaded.nats.headers();
  }

  /** Bytes of a message, of which headers need some. @internal */
  get largest(): number {
    return (this.connection.info?.max_payload ?? 2 ** 20) - 2 ** 14;
  }

  /** The result of an id, if there is one, as the leader of the results knows it. */
  async result(id: string): Promise<Result | undefined> {
    if (!isSubject(id)) checkId(id);
    const found = await this.message('results', { last_by_subj: `${this.name}.results.${id}` });
    return found?.json<Result>();
  }

  /** Results of the ids `run`.*, those that are there first, until the signal aborts. */
  async *results(run: string, signal: AbortSignal): AsyncGenerator<Result> {
    const subject = `${this.name}.results.${checkId(run)}.>`;
    for (let next = 1; !signal.aborted; ) {
      try {
        // One that has nothing, though there is something, is gone with its server, which nobody says.
        const consumer = await this.#insisting(() => this.#reader(subject, next), { signal });
        for (let [sent, last] = [0, 0]; last < next && !signal.aborted; ) {
          const begun = next;
          for await (const message of messagesOf(consumer, 100, signal)) {
            // What it sent to a connection that has ended does not come again.
            if (message.info.deliverySequence !== ++sent) throw new this.#loaded.nats.errors.TimeoutError();
            next = message.seq + 1;
            yield message.json<Result>();
          }
          if (begun === next) last = (await this.message('results', { last_by_subj: subject }, signal))?.seq ?? 0;
        }
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof OctconvError) throw error;
        if (this.connection.isClosed()) {
          const reason = await this.connection.closed();
          if (reason) throw reason;
          return;
        }
        await sleep(pause); // no server answers
      }
    }
  }

  /** Reads results from a number on. The servers forget it when nobody asks. */
  async #reader(filter_subject: string, opt_start_seq: number): Promise<JetStream.Consumer> {
    const { AckPolicy, DeliverPolicy } = this.#loaded.jetstream;
    const info = await this.#manager.consumers.add(`${this.name}_results`, {
      ...{ filter_subject, opt_start_seq, deliver_policy: DeliverPolicy.StartSequence },
      ...{ ack_policy: AckPolicy.None, inactive_threshold: 60e9, num_replicas: 1, mem_storage: true },
    });
    return this.#client.consumers.getConsumerFromInfo(info);
  }

  /**
   * Publishes until a server has it, or has a message of this id or subject already. A full stream has room again some
   * time, but who submits a job is told, and a dead letter waits a while: other jobs are not held up.
   * @throws OctconvError if a job is not queued, since there is no room.
   * @internal
   */
  async publish(
    kind: Kind,
    name: string,
    bytes: Uint8Array,
    headers?: Nats.MsgHdrs,
    insisting: Insisting = {},
  ): Promise<{ isNew: boolean; seq: number }> {
    const subject = `${this.name}.${kind}.${name}`;
    const publish = async () => {
      try {
        const options = { retries: 0, ...(headers && { headers }) };
        const { duplicate, seq } = await this.#client.publish(subject, bytes, options);
        // Older servers say so what newer ones call isInProcess.
        if (duplicate && seq === 0) throw new this.#loaded.nats.errors.TimeoutError();
        return { isNew: !duplicate, seq };
      } catch (error) {
        if (isTaken(error)) return { isNew: false, seq: 0 };
        throw kind === 'jobs' ? noRoom(subject, error) : error;
      }
    };
    return this.#insisting(publish, insisting);
  }

  /** Where no server answers: until one does, or it is late. */
  async #insisting<T>(
    work: () => Promise<T>,
    { late = Number.POSITIVE_INFINITY, signal, most = attempt }: Insisting = {},
  ): Promise<T> {
    const begun = performance.now();
    for (;;) {
      try {
        const named = work().then((value) => ({ value }));
        const done = await unlessAborted(signal, within(most, named));
        if (done) return done.value;
        throw new this.#loaded.nats.errors.TimeoutError();
      } catch (error) {
        signal?.throwIfAborted();
        if (codeOfApi(error) === streamIsMissing) await this.#checkStreams();
        if (this.connection.isClosed() || !this.#isPassing(error) || performance.now() > late) throw error;
        await this.#moveOn(begun);
        if (performance.now() - begun > election) await this.#checkStreams();
        await sleep(pause);
      }
    }
  }

  /** @throws OctconvError if a server says that one is not there: nobody else answers for it. */
  async #checkStreams(): Promise<void> {
    const kinds = ['jobs', 'results', 'dead'].map((kind) => `${this.name}_${kind}`);
    for (const stream of [...kinds, `OBJ_${this.name}_files`]) {
      const error = await this.#manager.streams.info(stream).then(
        () => undefined,
        (error: unknown) => error,
      );
      if (codeOfApi(error) === streamIsMissing) throw new QueueGone(`queue: there is no stream ${stream}`);
    }
  }

  /** Connects to another server where JetStream has not answered for long. */
  async #moveOn(answered: number): Promise<void> {
    const now = performance.now();
    if (now - Math.max(answered, this.#moved) < alone) return;
    this.#moved = now;
    await this.connection.reconnect().catch(() => undefined); // it is closed
  }

  /** Whether it may be otherwise in a moment: a server is gone, a leader is elected. */
  #isPassing(error: unknown): boolean {
    const { NoRespondersError, RequestError, TimeoutError, ConnectionError, PermissionViolationError } =
      this.#loaded.nats.errors;
    if ((error as Error).cause instanceof PermissionViolationError) return false;
    const { JetStreamApiError, JetStreamError } = this.#loaded.jetstream;
    if (error instanceof JetStreamApiError) return error.status >= 500 || error.code === isInProcess;
    const passing = [NoRespondersError, RequestError, TimeoutError, ConnectionError];
    return passing.some((kind) => error instanceof kind) || error instanceof JetStreamError || isNotEnabled(error);
  }

  /** Keeps bytes that no message holds; gives their name. @throws OctconvError if there is no room. @internal */
  async putFile(id: string, bytes: Uint8Array, insisting: Insisting = {}): Promise<string> {
    const name = `${id}~${this.#loaded.nats.nuid.next()}`;
    const put = async () => {
      await this.#files.putBlob({ name }, bytes).catch((error) => {
        throw noRoom(`${this.name}_files`, error);
      });
    };
    // Its parts are acknowledged one by one; where one is lost it waits for ever.
    await this.#insisting(put, { most: attempt + bytes.length / 1000, ...insisting });
    return name;
  }

  /** The bytes of a file of the queue. @internal */
  async file(name: string, maxBytes: number, signal: AbortSignal): Promise<Uint8Array> {
    const begun = performance.now();
    for (;;) {
      const bytes = await this.#insisting(() => this.#read(name, maxBytes), { late: begun + filePatience, signal });
      if (bytes) return bytes;
      // It may come: a new leader does not know all at once.
      if (performance.now() - begun > missingPatience)
        throw new ServiceError('unavailable', `queue: ${this.name}_files has no ${show(name)}`);
      await sleep(pause, undefined, { signal });
    }
  }

  /** As `getBlob`, which waits a minute where a part is lost, and for ever where the connection is. */
  async #read(name: string, maxBytes: number): Promise<Uint8Array | undefined> {
    const info = await this.#files.info(name);
    if (info?.options?.link) throw new OctconvError(`queue: file ${show(name)} is a link, wanted a file`);
    const found = info && (await this.#files.get(name));
    if (!found) return undefined;
    found.error.catch(() => undefined); // the reader tells it too
    const reader = found.data.getReader();
    try {
      const parts: Uint8Array[] = [];
      for (let bytes = 0; ; ) {
        const part = await within(silence, reader.read());
        if (!part) throw new this.#loaded.nats.errors.TimeoutError();
        if (part.done) return Buffer.concat(parts);
        bytes += part.value.length;
        if (bytes > maxBytes) throw new ServiceError('tooLarge', `a file of more than ${maxBytes} bytes`);
        parts.push(part.value);
      }
    } finally {
      void reader.cancel().catch(() => undefined);
    }
  }

  /** @internal */
  async removeFile(name: string, insisting: Insisting = {}): Promise<void> {
    await this.#insisting(() => this.#files.delete(name), insisting);
  }

  /**
   * Jobs that workers have, or that wait for them, by model; of models that had a worker.
   * @throws if no server answers at once.
   */
  async queued(): Promise<ReadonlyMap<string, number>> {
    const prefix = `${this.name}.jobs.`;
    const counts = new Map<string, number>();
    for await (const { config, num_pending, num_ack_pending } of this.#manager.consumers.list(`${this.name}_jobs`))
      if (config.filter_subject?.startsWith(prefix))
        counts.set(config.filter_subject.slice(prefix.length), num_pending + num_ack_pending);
    return counts;
  }

  /** When all that was said has reached a server; if none answers, a little later. */
  async close(): Promise<void> {
    await within(farewell, this.connection.drain()).catch(() => undefined); // it is closed, or was lost meanwhile
    await this.connection.close();
    transportOf(this.connection)?.discard?.(); // where it was just being made again
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** What some work gives, or the reason of the signal. */
async function unlessAborted<T>(signal: AbortSignal | undefined, work: Promise<T>): Promise<T> {
  if (!signal) return work;
  work.catch(() => undefined); // when nobody waits any more
  let abort = () => {};
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    if (signal.aborted) abort();
  });
  return Promise.race([work, aborted]).finally(() => signal.removeEventListener('abort', abort));
}

/** What is told where no leader answers. */
const isNotEnabled = (error: unknown): boolean => (error as Error)?.name === 'JetStreamNotEnabled';

/** Whether there is a message of its subject already; a stream that is full has room again some time. */
const isTaken = (error: unknown): boolean =>
  codeOfApi(error) === isRefused && /per subject/.test((error as Error).message);

/** What is told of an error, whatever server is asked, where there is no room for something. */
const noRoom = (what: string, error: unknown): unknown =>
  isFull(error) ? new OctconvError(`queue: ${what}: ${(error as Error).message}`, { cause: error }) : error;

const isFull = (error: unknown): boolean => full.has(codeOfApi(error) ?? 0);

const codeOfApi = (error: unknown): number | undefined =>
  (error as Partial<JetStream.JetStreamApiError> | undefined)?.code;

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new OctconvError('queue: servers: a user or password with a % that encodes nothing, wanted %25');
  }
}

/** nats.js takes one user and password, apart from the servers. */
function connectionOf(servers: readonly string[]): { servers: string[]; user?: string; pass?: string; token?: string } {
  let login = {};
  const hosts = servers.map((server) => {
    const url = URL.canParse(server) ? new URL(server) : undefined;
    if (!url?.username) return server;
    const [user, pass] = [url.username, url.password].map(decoded) as [string, string];
    login = pass ? { user, pass } : { token: user };
    [url.username, url.password] = ['', ''];
    return url.href;
  });
  return { servers: hosts, ...login };
}

async function addMissing(
  manager: JetStream.JetStreamManager,
  stream: Partial<JetStream.StreamConfig> & { name: string },
): Promise<JetStream.StreamInfo> {
  try {
    return await manager.streams.info(stream.name);
  } catch (error) {
    if (codeOfApi(error) !== streamIsMissing) throw error;
  }
  try {
    return await manager.streams.add(stream);
  } catch (error) {
    if (codeOfApi(error) !== streamIsThere) throw error;
    return await manager.streams.info(stream.name); // somebody was as fast
  }
}

/**
 * At most so many messages, those that come in a while, or until it is stopped; more where the connection is made again
 * meanwhile. Throws where no server answers.
 */
async function* messagesOf(
  consumer: JetStream.Consumer,
  count: number,
  signal: AbortSignal,
): AsyncGenerator<JetStream.JsMsg> {
  const messages = await consumer.fetch({ max_messages: count, expires: patience });
  const stop = () => messages.stop();
  signal.addEventListener('abort', stop, { once: true });
  try {
    if (signal.aborted) stop();
    const iterator = messages[Symbol.asyncIterator]();
    for (;;) {
      // nats.js does not look at the time while there is no connection.
      const next = await within(patience + alone, iterator.next());
      if (!next) throw new Error('no server answers');
      if (next.done) return;
      yield next.value;
    }
  } finally {
    signal.removeEventListener('abort', stop);
    stop();
  }
}

class NatsJob implements Job {
  readonly id: string;
  readonly options: JobOptions;
  readonly #headers: Nats.MsgHdrs | undefined;
  /** Why there are none: nats.js decodes them when they are asked for. */
  readonly #unreadable: string | undefined;

  constructor(
    readonly queue: NatsQueue,
    readonly model: string,
    readonly message: JetStream.JsMsg,
  ) {
    try {
      this.#headers = message.headers;
    } catch (error) {
      this.#unreadable = (error as Error).message;
    }
    const id = this.#field(idField);
    const { seq, time } = message;
    this.id = isId(id) ? id : `${numbered}${seq}.${time.getTime()}`; // `input` refuses an id that is none
    const [top, clips, crops] = (['top', 'clips', 'crops'] as const).map((name) => this.#number(name));
    this.options = { top, clips, crops: crops as JobOptions['crops'] }; // the service looks at it
  }

  get delivery(): number {
    return this.message.info.deliveryCount;
  }

  get isLarge(): boolean {
    return this.#field(fields.file) !== undefined;
  }

  #field(name: string): string | undefined {
    return this.#headers?.get(name) || undefined;
  }

  #number(name: 'top' | 'clips' | 'crops'): number | undefined {
    const text = this.#field(fields[name]);
    return text === undefined ? undefined : Number(text);
  }

  async input(maxBytes: number, signal: AbortSignal): Promise<VideoSource> {
    const [id, url, file, reply] = [idField, fields.url, fields.file, fields.reply].map((name) => this.#field(name));
    if (this.#unreadable !== undefined) throw new OctconvError(`queue: headers: ${this.#unreadable}`);
    if (id !== undefined) checkId(id);
    if (reply !== undefined) this.queue.checkReply(reply);
    if (url !== undefined) {
      if (URL.canParse(url)) return new URL(url);
      throw new OctconvError(`queue: ${show(url)} is no URL`);
    }
    if (file !== undefined) {
      if (this.#owns(file)) return this.queue.file(file, maxBytes, signal);
      throw new OctconvError(`queue: file ${show(file)}, wanted one of job ${this.id}`);
    }
    const { data } = this.message;
    if (data.length <= maxBytes) return data;
    throw new ServiceError('tooLarge', `a message of ${data.length} bytes, wanted at most ${maxBytes}`);
  }

  /** Not every file: a job would read, and in the end remove, that of another. */
  #owns(file: string): boolean {
    return file.startsWith(`${this.id}~`);
  }

  working(): void {
    this.message.working();
  }

  async isDone(): Promise<boolean> {
    return (await this.queue.result(this.id)) !== undefined;
  }

  async done(result: Result): Promise<Result> {
    const bytes = Buffer.from(JSON.stringify(result));
    const { isNew } = await this.queue.publish('results', this.id, bytes);
    const kept = (isNew ? undefined : await this.queue.result(this.id)) ?? result;
    await this.#end(kept);
    return kept;
  }

  async drop(): Promise<void> {
    const result = await this.queue.result(this.id);
    if (result) await this.#end(result);
  }

  /** Where it is broken off, the job comes again, finds its result and ends so once more. */
  async #end(result: Result): Promise<void> {
    const { queue, message } = this;
    const [file, reply] = [fields.file, fields.reply].map((name) => this.#field(name));
    const keeps = result.error !== undefined && (await this.#keep(result.error));
    if (reply !== undefined && queue.isReply(reply)) queue.connection.publish(reply, JSON.stringify(result));
    await message.ackAck().catch(() => false);
    if (!keeps && file !== undefined && this.#owns(file)) await queue.removeFile(file);
  }

  /**
   * As a dead letter: what was in it, its model and the reason. Bytes that leave no room for headers become a file. Gives
   * whether the letter of this id is that of this job: an id that was queued again has one already.
   */
  async #keep(error: string): Promise<boolean> {
    const { queue, message, id, model } = this;
    const headers = queue.headers();
    const reason = error.replace(/[\r\n]+/g, ' ').slice(0, 1000);
    const own = { [fields.model]: model, [fields.error]: reason };
    let size = 0;
    for (const [name, value] of [...Object.entries(own), ...this.#given()]) {
      if (size + name.length + value.length > longestHeaders) continue;
      headers.append(name, value);
      size += name.length + value.length + 4;
    }
    const insisting = { late: performance.now() + letterPatience };
    const isTooLarge = size + message.data.length > queue.largest;
    const made = isTooLarge ? await queue.putFile(id, message.data, insisting) : undefined;
    if (made !== undefined) headers.set(fields.file, made);
    const bytes = made === undefined ? message.data : new Uint8Array();
    const { isNew } = await queue.publish('dead', id, bytes, headers, insisting).catch(async (error) => {
      if (made !== undefined && isFull(error)) await queue.removeFile(made); // after other errors it may be there
      throw error;
    });
    if (isNew) return true;
    const letter = await queue.message('dead', { last_by_subj: `${queue.name}.dead.${id}` });
    const file = letter?.header.get(fields.file) || undefined;
    if (made !== undefined && made !== file) await queue.removeFile(made);
    return file === this.#field(fields.file);
  }

  /** Header fields that it came with, but those that are said to a server (`Nats-Rollup`), and a letter's own. */
  #given(): (readonly [name: string, value: string])[] {
    const all = [...(this.#headers ?? [])].flatMap(([name, values]) => values.map((value) => [name, value] as const));
    return all.filter(([name]) => !/^nats-/i.test(name) && name !== fields.model && name !== fields.error);
  }

  retry(milliseconds: number): void {
    this.message.nak(milliseconds);
  }
}
