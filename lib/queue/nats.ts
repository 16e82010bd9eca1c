/**
 * A work queue on NATS JetStream (server 2.9 and later). Three streams, for a queue of the name `octconv`:
 *
 *   octconv_jobs     octconv.jobs.MODEL   a work queue: a job is there until it is acknowledged, whoever dies meanwhile
 *   octconv_results  octconv.results.ID   holds one message of each subject and refuses others, so that a job that two
 *                                         workers do has one result
 *   octconv_dead     octconv.dead.ID      jobs that cannot be done, as they came, with the reason in a header
 *
 * Bytes that no message holds lie in the object store `octconv_files`. Streams that are there already are left as they
 * are, so that whoever runs the servers may have made them otherwise.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type * as JetStream from '@nats-io/jetstream';
import type * as Objects from '@nats-io/obj';
import type * as Nats from '@nats-io/transport-node';
import { OctconvError, show } from '../error.js';
import { readText } from '../files/read.js';
import { checkOptions, type Known } from '../options.js';
import type { VideoSource } from '../input/video.js';
import {
  checkId,
  checkModel,
  checkQueueName,
  isId,
  type Job,
  type JobOptions,
  type Result,
  type WorkSource,
} from './jobs.js';

export interface NatsOptions {
  /** Such as `nats://localhost:4222`; default: that. */
  readonly servers?: string | readonly string[] | undefined;
  /** Of the queue; default `octconv`. */
  readonly name?: string | undefined;
  /** Copies of each stream that is made, on as many servers; default 1. */
  readonly replicas?: number | undefined;
  /** Days for which results, dead letters and files are kept; default 7. */
  readonly days?: number | undefined;
  /** Seconds in which a worker must say that it still works on a job, or another one gets it; default 30. */
  readonly ackWait?: number | undefined;
  /** File of NATS credentials. */
  readonly credentials?: string | undefined;
}

const natsOptions = {
  ...{ servers: true, name: true, replicas: true, days: true, ackWait: true, credentials: true },
} satisfies Known<NatsOptions>;

interface Settings {
  readonly servers: readonly string[];
  readonly name: string;
  readonly replicas: number;
  readonly days: number;
  readonly ackWait: number;
  readonly credentials: string | undefined;
}

function resolve(options: NatsOptions): Settings {
  checkOptions('queue', options, natsOptions);
  const { servers = 'nats://localhost:4222', name = 'octconv', replicas = 1, days = 7, ackWait = 30 } = options;
  checkQueueName(name);
  for (const [name, value] of Object.entries({ replicas, days, ackWait }))
    if (!(typeof value === 'number' && value >= 1 && value < 10_000))
      throw new OctconvError(`queue: ${name}: ${show(value)}, wanted a number of at least 1`);
  return { servers: [servers].flat(), name, replicas, days, ackWait, credentials: options.credentials };
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
} as const;
const idField = 'Nats-Msg-Id';

/** Milliseconds that a worker waits for jobs before it asks again. */
const patience = 5000;
/** Milliseconds between tries where no server answers: a leader is elected within seconds. */
const pause = 250;
/** Milliseconds for that when a queue is opened: servers that begin have no leader either. */
const election = 15_000;
/** JetStream's code of a message that its stream refuses, whatever there is too much of. */
const isRefused = 10077;
const streamIsMissing = 10059;
const day = 86_400e9; // nanoseconds

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
  readonly #ackWait: number;
  readonly #loaded: Packages;
  readonly #client: JetStream.JetStreamClient;
  readonly #manager: JetStream.JetStreamManager;
  #files!: Objects.ObjectStore;

  private constructor(
    loaded: Packages,
    readonly connection: Nats.NatsConnection,
    manager: JetStream.JetStreamManager,
    { name, ackWait }: Settings,
  ) {
    this.name = name;
    this.#ackWait = ackWait * 1000;
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
      connection = await nats.connect({
        ...connectionOf(servers),
        ...(login && { authenticator: nats.credsAuthenticator(login) }),
        name: 'octconv',
        maxReconnectAttempts: -1,
        reconnectTimeWait: pause,
      });
      const manager = await jetstream.jetstreamManager(connection, { checkAPI: false });
      const queue = new NatsQueue(loaded, connection, manager, settings);
      await queue.#prepare(settings);
      return queue;
    } catch (error) {
      await connection?.close();
      if (error instanceof OctconvError) throw error;
      const { message, cause } = error as Error;
      const why = (cause as Error | undefined)?.message || message;
      throw new OctconvError(`queue: ${show(servers.join(','))}: ${why}`, { cause: error });
    }
  }

  async #prepare({ name, replicas, days }: Settings): Promise<void> {
    const { jetstream, obj } = this.#loaded;
    const file = { num_replicas: replicas, storage: jetstream.StorageType.File };
    const kept = { ...file, max_age: days * day };
    const once = { max_msgs_per_subject: 1, discard: jetstream.DiscardPolicy.New, discard_new_per_subject: true };
    const streams = [
      { name: `${name}_jobs`, subjects: [`${name}.jobs.>`], ...file, retention: jetstream.RetentionPolicy.Workqueue },
      { name: `${name}_results`, subjects: [`${name}.results.>`], ...kept, ...once, allow_direct: true },
      { name: `${name}_dead`, subjects: [`${name}.dead.>`], ...kept, ...once },
    ];
    const late = performance.now() + election;
    for (const stream of streams) await this.#insisting(() => addMissing(this.#manager, stream), late);
    const store = { ttl: days * day, replicas, storage: jetstream.StorageType.File };
    const files = new obj.Objm(this.#client);
    this.#files = await this.#insisting(() => files.create(`${name}_files`, store), late);
  }

  /** Jobs of a model. Workers of it, on any machine, share them. */
  async source(model: string): Promise<WorkSource> {
    checkModel(model);
    const { AckPolicy } = this.#loaded.jetstream;
    const [stream, durable] = [`${this.name}_jobs`, `worker_${model.replaceAll('.', '~')}`]; // no name has a dot
    await this.#insisting(() =>
      this.#manager.consumers.add(stream, {
        durable_name: durable,
        filter_subject: `${this.name}.jobs.${model}`,
        ack_policy: AckPolicy.Explicit,
        ack_wait: this.#ackWait * 1e6,
        max_ack_pending: -1,
      }),
    );
    const consumer = await this.#insisting(() => this.#client.consumers.get(stream, durable));
    const jobOf = (message: JetStream.JsMsg) => new NatsJob(this, model, message);
    return {
      ackWait: this.#ackWait,
      take: (count, signal) => take(consumer, count, signal, jobOf),
      close: () => this.connection.flush(),
    };
  }

  /**
   * Queues a job: bytes, or a URL that workers allow. Gives whether it is new: in two minutes an id is taken once, and
   * later it has still one result. `reply` is a subject to which that is sent too.
   * @throws OctconvError for an id, or the name of a model, that no subject can have.
   */
  async submit(
    id: string,
    model: string,
    input: Uint8Array | URL,
    options: JobOptions = {},
    reply?: string,
  ): Promise<boolean> {
    checkId(id);
    checkModel(model);
    const headers = this.#loaded.nats.headers();
    for (const [name, value] of Object.entries({ ...options, reply }))
      if (value !== undefined) headers.set(fields[name as keyof typeof fields], String(value));
    let bytes = new Uint8Array();
    if (input instanceof URL) headers.set(fields.url, input.href);
    else if (input.length <= this.#largest) bytes = new Uint8Array(input);
    else {
      headers.set(fields.file, id);
      await this.#insisting(() => this.#files.putBlob({ name: id }, input));
    }
    const ack = await this.publish(`${this.name}.jobs.${model}`, bytes, { msgID: id, headers });
    return ack === 'new';
  }

  /** Bytes of a message, of which headers need some. */
  get #largest(): number {
    return (this.connection.info?.max_payload ?? 2 ** 20) - 2 ** 14;
  }

  /** The result of an id, if there is one. */
  async result(id: string): Promise<Result | undefined> {
    const query = { last_by_subj: `${this.name}.results.${checkId(id)}` };
    const found = await this.#insisting(() => this.#manager.direct.getMessage(`${this.name}_results`, query));
    return found?.json<Result>();
  }

  /** Results of ids that begin with `run`, those that are there first, until the signal aborts. */
  async *results(run: string, signal: AbortSignal): AsyncGenerator<Result> {
    const filter_subjects = `${this.name}.results.${checkId(run)}.>`; // a list wants server 2.10
    const consumer = await this.#insisting(() =>
      this.#client.consumers.get(`${this.name}_results`, { filter_subjects }),
    );
    const messages = await consumer.consume();
    const stop = () => messages.stop();
    signal.addEventListener('abort', stop, { once: true });
    try {
      if (!signal.aborted) for await (const message of messages) yield message.json<Result>();
    } finally {
      signal.removeEventListener('abort', stop);
      messages.stop();
    }
  }

  /** Publishes until a server has it; `taken`: the stream has a message of this id or subject already. */
  async publish(
    subject: string,
    bytes: Uint8Array,
    options: Partial<JetStream.JetStreamPublishOptions>,
  ): Promise<'new' | 'taken'> {
    return this.#insisting(async () => {
      try {
        const { duplicate } = await this.#client.publish(subject, bytes, { retries: 0, ...options });
        return duplicate ? 'taken' : 'new';
      } catch (error) {
        if (isTaken(error)) return 'taken';
        throw error;
      }
    });
  }

  /** Where no server answers: until one does, or it is late. */
  async #insisting<T>(work: () => Promise<T>, late = Number.POSITIVE_INFINITY): Promise<T> {
    for (;;) {
      try {
        return await work();
      } catch (error) {
        if (this.connection.isClosed() || !this.#isPassing(error) || performance.now() > late) throw error;
        await sleep(pause);
      }
    }
  }

  /** Whether it may be otherwise in a moment: a server is gone, a leader is elected. */
  #isPassing(error: unknown): boolean {
    const { NoRespondersError, RequestError, TimeoutError, ConnectionError } = this.#loaded.nats.errors;
    const { JetStreamApiError, JetStreamError } = this.#loaded.jetstream;
    if (error instanceof JetStreamApiError) return error.status >= 500;
    const passing = [NoRespondersError, RequestError, TimeoutError, ConnectionError];
    return passing.some((kind) => error instanceof kind) || error instanceof JetStreamError || isNotEnabled(error);
  }

  /** The bytes of a file of the queue. */
  async file(name: string): Promise<Uint8Array> {
    const bytes = await this.#insisting(() => this.#files.getBlob(name));
    if (bytes) return bytes;
    throw new OctconvError(`queue: ${this.name}_files has no ${show(name)}`);
  }

  async removeFile(name: string): Promise<void> {
    await this.#insisting(() => this.#files.delete(name));
  }

  /** When all that was said has reached a server. */
  async close(): Promise<void> {
    if (!this.connection.isClosed()) await this.connection.drain();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** What is told where no leader answers. */
const isNotEnabled = (error: unknown): boolean => (error as Error)?.name === 'JetStreamNotEnabled';

/** Whether there is a message of its subject already; a stream that is full has room again some time. */
const isTaken = (error: unknown): boolean =>
  codeOfApi(error) === isRefused && /per subject/.test((error as Error).message);

const codeOfApi = (error: unknown): number | undefined =>
  (error as Partial<JetStream.JetStreamApiError> | undefined)?.code;

/** NATS takes user and password apart from the server. */
function connectionOf(servers: readonly string[]): { servers: string[]; user?: string; pass?: string; token?: string } {
  let login = {};
  const hosts = servers.map((server) => {
    const url = URL.canParse(server) ? new URL(server) : undefined;
    if (!url?.username) return server;
    const [user, pass] = [url.username, url.password].map(decodeURIComponent) as [string, string];
    login = pass ? { user, pass } : { token: user };
    return server.replace(/\/\/[^@/]*@/, '//');
  });
  return { servers: hosts, ...login };
}

async function addMissing(
  manager: JetStream.JetStreamManager,
  stream: Partial<JetStream.StreamConfig> & { name: string },
): Promise<void> {
  try {
    await manager.streams.info(stream.name);
  } catch (error) {
    if (codeOfApi(error) !== streamIsMissing) throw error;
    await manager.streams.add(stream);
  }
}

/** Jobs that come in a while. Those that have come when it is stopped are given back. */
async function* take(
  consumer: JetStream.Consumer,
  count: number,
  signal: AbortSignal,
  jobOf: (message: JetStream.JsMsg) => Job,
): AsyncGenerator<Job> {
  if (signal.aborted) return;
  let messages: JetStream.ConsumerMessages | undefined;
  const stop = () => messages?.stop();
  signal.addEventListener('abort', stop, { once: true });
  try {
    messages = await consumer.fetch({ max_messages: count, expires: patience });
    if (signal.aborted) messages.stop();
    for await (const message of messages)
      if (signal.aborted) message.nak();
      else yield jobOf(message);
  } catch {
    await sleep(pause); // no server answers: the next call asks again
  } finally {
    signal.removeEventListener('abort', stop);
  }
}

class NatsJob implements Job {
  readonly id: string;
  readonly options: JobOptions;

  constructor(
    readonly queue: NatsQueue,
    readonly model: string,
    readonly message: JetStream.JsMsg,
  ) {
    const id = this.#field(idField);
    this.id = id !== undefined && isId(id) ? id : `seq.${message.seq}`;
    const [top, clips, crops] = (['top', 'clips', 'crops'] as const).map((name) => this.#number(name));
    this.options = { top, clips, crops: crops as JobOptions['crops'] }; // the service looks at it
  }

  get delivery(): number {
    return this.message.info.deliveryCount;
  }

  #field(name: string): string | undefined {
    return this.message.headers?.get(name) || undefined;
  }

  #number(name: 'top' | 'clips' | 'crops'): number | undefined {
    const text = this.#field(fields[name]);
    return text === undefined ? undefined : Number(text);
  }

  async input(): Promise<VideoSource> {
    const [url, file] = [this.#field(fields.url), this.#field(fields.file)];
    if (url !== undefined) return new URL(url);
    return file === undefined ? this.message.data : this.queue.file(file);
  }

  working(): void {
    this.message.working();
  }

  async isDone(): Promise<boolean> {
    return (await this.queue.result(this.id)) !== undefined;
  }

  async done(result: Result): Promise<void> {
    await this.#give(result);
    await this.drop();
  }

  async drop(): Promise<void> {
    await this.#acknowledge();
    const file = this.#field(fields.file);
    if (file !== undefined) await this.queue.removeFile(file);
  }

  /** Where it is lost, the job comes again and finds its result. */
  async #acknowledge(): Promise<void> {
    await this.message.ackAck().catch(() => false);
  }

  async #give(result: Result): Promise<void> {
    const bytes = Buffer.from(JSON.stringify(result));
    const said = await this.queue.publish(`${this.queue.name}.results.${this.id}`, bytes, { msgID: this.id });
    const reply = this.#field(fields.reply);
    if (said === 'new' && reply !== undefined) this.queue.connection.publish(reply, bytes);
  }

  async dead(result: Result & { readonly error: string }): Promise<void> {
    const headers = this.message.headers ?? undefined;
    headers?.set('Octconv-Error', result.error.replace(/[\r\n]+/g, ' '));
    await this.queue.publish(`${this.queue.name}.dead.${this.id}`, this.message.data, {
      msgID: this.id,
      ...(headers && { headers }),
    });
    await this.#give(result);
    await this.#acknowledge(); // its file stays, as long as the letter does
  }

  retry(milliseconds: number): void {
    this.message.nak(milliseconds);
  }
}
