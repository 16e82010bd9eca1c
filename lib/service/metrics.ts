/**
 * What Prometheus reads: the names of Triton (`nv_inference_*`, in microseconds), which dashboards know, and our own
 * (`octconv_*`, in seconds).
 */
import type { FastifyInstance } from 'fastify';
import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { Code } from './errors.js';
import type { BatchEnded, RequestEnded } from './served.js';
import type { State, Version } from './models.js';
import type { Service } from './service.js';

const ofModel = ['model', 'version'] as const;

/** Triton's reasons of failures. */
const reasons: { readonly [C in Code]: 'REJECTED' | 'CANCELED' | 'BACKEND' | 'OTHER' } = {
  invalid: 'OTHER',
  unauthorized: 'OTHER',
  forbidden: 'OTHER',
  notFound: 'OTHER',
  tooLarge: 'OTHER',
  overloaded: 'REJECTED',
  cancelled: 'CANCELED',
  internal: 'BACKEND',
  unavailable: 'OTHER',
  late: 'REJECTED',
};

const everyReason = [...new Set(Object.values(reasons))];

const states = ['loading', 'ready', 'unloading', 'unavailable'] satisfies State[];

/** Half a millisecond to half a minute. */
const seconds = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30];
const rows = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/** Metrics of a service, from now on, in a registry that may have others too. */
export class Metrics implements Disposable {
  readonly #service: Service;
  readonly #success;
  readonly #failure;
  readonly #count;
  readonly #executions;
  readonly #microseconds;
  readonly #seconds;
  readonly #batchRows;
  readonly #counters;
  readonly #histograms;

  constructor(
    service: Service,
    readonly registry = new Registry(),
  ) {
    this.#service = service;
    const registers = [registry];
    const counter = (name: string, help: string) => new Counter({ name, help, labelNames: ofModel, registers });
    const histogram = (name: string, help: string, buckets: number[]) =>
      new Histogram({ name, help, labelNames: ofModel, buckets, registers });
    this.#success = counter('nv_inference_request_success', 'Requests that were answered');
    this.#failure = new Counter({
      name: 'nv_inference_request_failure',
      help: 'Requests that failed',
      labelNames: [...ofModel, 'reason'],
      registers,
    });
    this.#count = counter('nv_inference_count', 'Rows of requests that were answered');
    this.#executions = counter('nv_inference_exec_count', 'Batches');
    const sum = (what: string, help: string) =>
      counter(`nv_inference_${what}_duration_us`, `Sum over requests that were answered: microseconds ${help}`);
    this.#microseconds = {
      request: sum('request', 'from arrival to answer'),
      prepare: sum('compute_input', 'in which pictures were decoded and resized'),
      queue: sum('queue', 'in the queue'),
      compute: sum('compute_infer', 'in the network'),
    };
    this.#seconds = {
      request: histogram('octconv_request_duration_seconds', 'From arrival to answer', seconds),
      prepare: histogram('octconv_prepare_duration_seconds', 'In which pictures were decoded and resized', seconds),
      queue: histogram('octconv_queue_duration_seconds', 'In the queue', seconds),
      compute: histogram('octconv_compute_duration_seconds', 'In the network', seconds),
    };
    this.#batchRows = histogram('octconv_batch_rows', 'Rows of batches, without padding', rows);
    this.#counters = [this.#success, this.#count, this.#executions, ...Object.values(this.#microseconds)];
    this.#histograms = [this.#batchRows, ...Object.values(this.#seconds)];
    addGauges(service, registry);
    service.on('request', this.#request).on('batch', this.#batch).on('state', this.#state);
  }

  readonly #request = (model: string, version: string, { code, rows, milliseconds }: RequestEnded) => {
    const labels = { model, version };
    if (code !== 'success') {
      this.#failure.inc({ ...labels, reason: reasons[code] });
      return;
    }
    this.#success.inc(labels);
    this.#count.inc(labels, rows);
    const { prepare, queue, compute } = milliseconds;
    const times = { request: prepare + queue + compute, prepare, queue, compute };
    for (const [part, time] of Object.entries(times)) {
      this.#microseconds[part as keyof typeof times].inc(labels, Math.round(1000 * time));
      this.#seconds[part as keyof typeof times].observe(labels, time / 1000);
    }
  };

  readonly #batch = (model: string, version: string, { rows }: BatchEnded) => {
    this.#executions.inc({ model, version });
    this.#batchRows.observe({ model, version }, rows);
  };

  /** What is loaded counts from 0, not from its first request; what is no longer loaded has no metrics. */
  readonly #state = ({ name: model, version, state }: Version) => {
    const labels = { model, version };
    if (state === 'ready') {
      for (const counter of this.#counters) counter.inc(labels, 0);
      for (const reason of everyReason) this.#failure.inc({ ...labels, reason }, 0);
    } else if (state === 'unavailable') {
      for (const metric of [...this.#counters, ...this.#histograms]) metric.remove(labels);
      for (const reason of everyReason) this.#failure.remove({ ...labels, reason });
    }
  };

  /** Adds `GET /metrics`. */
  addRoute(app: FastifyInstance): void {
    app.get('/metrics', async (_, reply) => reply.type(this.registry.contentType).send(await this.registry.metrics()));
  }

  [Symbol.dispose](): void {
    this.#service.off('request', this.#request).off('batch', this.#batch).off('state', this.#state);
  }
}

/** What is read when Prometheus asks: versions that are not there any more have none. */
function addGauges(service: Service, registry: Registry): void {
  const gauge = <Label extends string>(
    name: string,
    help: string,
    labelNames: readonly Label[],
    set: (gauge: Gauge<Label>, version: Version) => void,
  ) =>
    new Gauge<Label>({
      name,
      help,
      labelNames,
      registers: [registry],
      collect() {
        this.reset();
        for (const version of service.versions()) set(this, version);
      },
    });
  const of = ({ name: model, version }: Version) => ({ model, version });
  gauge(
    'nv_inference_pending_request_count',
    'Rows that wait, those whose picture is decoded included',
    ofModel,
    (all, one) => all.set(of(one), one.waiting),
  );
  gauge('octconv_batches_in_flight', 'Batches in the network', ofModel, (all, one) => all.set(of(one), one.inFlight));
  gauge('octconv_model_state', '1 for the state that a version is in', [...ofModel, 'state'], (all, one) => {
    for (const state of states) all.set({ ...of(one), state }, Number(state === one.state));
  });
}
