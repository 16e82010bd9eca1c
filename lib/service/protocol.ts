/**
 * The Open Inference Protocol v2 (KServe, Triton) as objects, which the doors write as JSON or protobuf. A model has one
 * input, `input`, and one output, `logits`, FP32 [N, classes]. The input is one of
 *
 *     FP32 [N,H,W,C], [N,T,H,W,C] of video    as the network sees it
 *     UINT8 of the same shape                  pixels at the network's size, where the model has preprocessing
 *     BYTES [N] or [N,1]                       N pictures or videos, as files
 */
import { readFileSync } from 'node:fs';
import { likeliest } from '../classify.js';
import { OctconvError, show } from '../error.js';
import { elementCount, type Matrix, type Shape, type Tensor, tensor, tensorOfBytes } from '../tensor.js';
import type { About } from './engine.js';
import type { Asked } from './served.js';
import type { Ready } from './models.js';
import type { Service } from './service.js';

export const inputName = 'input';
export const outputName = 'logits';
const platform = 'octconv';

const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
const ofTensors = ['binary_tensor_data', 'classification', 'schedule_policy'];
const ofModels = ['model_repository', 'model_configuration', 'statistics', 'trace'];
export const serverMetadata = { name: platform, version: version as string, extensions: [...ofTensors, ...ofModels] };

// --- What a model is and does -----------------------------------------------------------------------------------

/** The sizes of a row that callers may send; -1 is any. */
const rowOf = ({ row }: About, anySize = false): number[] =>
  row.map((size, axis) => (anySize && axis < row.length - 1 ? -1 : size));

/** Pictures come as pixels; BYTES and FP32 are taken too. */
const datatypeOf = ({ input }: About): 'UINT8' | 'FP32' => (input ? 'UINT8' : 'FP32');

export interface TensorMetadata {
  readonly name: string;
  readonly datatype: string;
  /** -1 is any size. */
  readonly shape: readonly number[];
}

export interface ModelMetadata {
  readonly name: string;
  readonly versions: readonly string[];
  readonly platform: string;
  readonly inputs: readonly TensorMetadata[];
  readonly outputs: readonly TensorMetadata[];
}

export function modelMetadata(service: Service, { name, about }: Ready): ModelMetadata {
  const ready = service.versions(name).filter(({ state }) => state === 'ready');
  const shape = [-1, ...rowOf(about, service.settingsOf(name).anySize)];
  return {
    name,
    versions: ready.map(({ version }) => version),
    platform,
    inputs: [{ name: inputName, datatype: datatypeOf(about), shape }],
    outputs: [{ name: outputName, datatype: 'FP32', shape: [-1, about.classes] }],
  };
}

/** Triton's model configuration. `max_batch_size` is the largest batch that is run: larger requests are split. */
export function modelConfig(service: Service, { name, about, batching: policy }: Ready) {
  const dims = rowOf(about, service.settingsOf(name).anySize);
  const [, gpu] = /^cuda:(\d+)$/.exec(about.device) ?? [];
  const facts = { network: about.network, alpha: about.alpha, dtype: about.dtype, isa: about.isa };
  const known = Object.entries(facts).filter(([, value]) => value !== undefined);
  return {
    name,
    platform,
    backend: platform,
    max_batch_size: policy.sizes.at(-1) as number,
    input: [
      {
        name: inputName,
        data_type: `TYPE_${datatypeOf(about)}`,
        format: dims.length === 3 ? 'FORMAT_NHWC' : 'FORMAT_NONE',
        dims,
      },
    ],
    output: [{ name: outputName, data_type: 'TYPE_FP32', dims: [about.classes] }],
    instance_group: [
      {
        name: about.device,
        kind: gpu ? 'KIND_GPU' : 'KIND_CPU',
        count: policy.instances,
        gpus: gpu ? [Number(gpu)] : [],
      },
    ],
    dynamic_batching: {
      preferred_batch_size: policy.preferred,
      max_queue_delay_microseconds: policy.maxDelay,
      priority_levels: policy.priorities,
      default_priority_level: policy.defaultPriority,
      default_queue_policy: {
        timeout_action: policy.onTimeout === 'reject' ? 'REJECT' : 'DELAY',
        default_timeout_microseconds: Math.round(policy.timeout * 1000),
        allow_timeout_override: policy.allowTimeoutOverride,
        max_queue_size: policy.queue,
      },
    },
    parameters: Object.fromEntries(known.map(([key, value]) => [key, { string_value: String(value) }])),
  };
}

/** A number of times and the nanoseconds of all of them. */
const times = (count: number, milliseconds: number) => ({ count, ns: Math.round(milliseconds * 1e6) });
const none = times(0, 0);

/** Triton's statistics. `compute_input` is decoding and resizing; a batch counts with its padding. */
export function modelStatistics({ name, version, counts }: Ready) {
  const { success, milliseconds, batches } = counts;
  const failures = [...counts.failures.values()].reduce((sum, one) => sum + one, 0);
  const { prepare, queue, compute, failed } = milliseconds;
  const sizes = [...batches].sort(([a], [b]) => a - b);
  return {
    name,
    version,
    last_inference: counts.lastInference,
    inference_count: counts.inferences,
    execution_count: counts.executions,
    inference_stats: {
      success: times(success, prepare + queue + compute),
      fail: times(failures, failed),
      queue: times(success, queue),
      compute_input: times(success, prepare),
      compute_infer: times(success, compute),
      compute_output: none,
      cache_hit: none,
      cache_miss: none,
    },
    batch_stats: sizes.map(([batch_size, { count, milliseconds }]) => ({
      batch_size,
      compute_input: none,
      compute_infer: times(count, milliseconds),
      compute_output: none,
    })),
  };
}

/** Statistics of all versions that are ready, of one model or of all. @throws ServiceError if there is none such. */
export function statistics(service: Service, name?: string, version?: string) {
  if (name !== undefined && version !== undefined)
    return { model_stats: [modelStatistics(service.readyVersion(name, version))] };
  const ready = service.versions(name).filter(({ state, about }) => state === 'ready' && about);
  return { model_stats: (ready as Ready[]).map(modelStatistics) };
}

export const repositoryIndex = (service: Service, onlyReady = false) =>
  service
    .versions()
    .filter(({ state }) => !onlyReady || state === 'ready')
    .map(({ name, version, state, reason = '' }) => ({ name, version, state: state.toUpperCase(), reason }));

// --- Requests ---------------------------------------------------------------------------------------------------

/** What `Service.infer` takes. */
export type Input = Tensor<'f32' | 'u8'> | readonly Uint8Array[];

const dtypes = { FP32: 'f32', UINT8: 'u8' } as const;

/** Of what a request says of its input. */
export interface Described {
  readonly datatype: string;
  readonly shape: readonly number[];
}

/** Axes of a shape: [N,T,H,W,C] has 5. */
const mostAxes = 8;

/** @throws OctconvError unless it is a type that is taken, of a shape that can be. */
function check({ datatype, shape }: Described): number {
  if (datatype !== 'BYTES' && !Object.hasOwn(dtypes, datatype))
    throw new OctconvError(`input: datatype ${show(datatype)}, wanted FP32, UINT8 or BYTES`);
  if (shape.length > mostAxes)
    throw new OctconvError(`input: a shape of ${shape.length} axes, wanted at most ${mostAxes}`);
  return elementCount(shape);
}

/** How many files; they are counted before there is an object for each. */
export function fileCount({ shape }: Pick<Described, 'shape'>, count: number, { name, batching }: Ready): number {
  if (shape.length === 0 || count !== shape[0])
    throw new OctconvError(`input: BYTES [${shape}], wanted [N] or [N,1], a picture or video each`);
  if (count > batching.queue) throw new OctconvError(`${name}: ${count} rows, wanted at most ${batching.queue}`);
  return count;
}

/**
 * The input of raw little-endian elements, of which it is a view where they are aligned. Elements of BYTES have their
 * length, 4 bytes, before them.
 * @throws OctconvError if they do not fit the shape.
 */
export function inputOfBytes(described: Described, bytes: Uint8Array, version: Ready): Input {
  const { datatype, shape } = described;
  const count = check(described);
  if (datatype === 'BYTES') return filesIn(bytes, fileCount(described, count, version));
  const dtype = dtypes[datatype as keyof typeof dtypes];
  const wanted = count * (dtype === 'f32' ? 4 : 1);
  if (bytes.length !== wanted)
    throw new OctconvError(`input: ${datatype} [${shape}] is ${bytes.length} bytes, wanted ${wanted}`);
  // No Buffer: its slices are no copies.
  return tensorOfBytes(dtype, shape, new Uint8Array(bytes.buffer as ArrayBuffer, bytes.byteOffset, bytes.length));
}

function filesIn(bytes: Uint8Array, count: number): Uint8Array[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const files: Uint8Array[] = [];
  let at = 0;
  while (files.length < count) {
    const end = at + 4 <= bytes.length ? at + 4 + view.getUint32(at, true) : Number.POSITIVE_INFINITY;
    if (end > bytes.length)
      throw new OctconvError(`input: element ${files.length} of ${count} ends behind the ${bytes.length} bytes`);
    files.push(bytes.subarray(at + 4, end));
    at = end;
  }
  if (at === bytes.length) return files;
  throw new OctconvError(`input: ${bytes.length} bytes, of which ${count} elements are ${at}`);
}

const largest = 3.4028234663852886e38; // of FP32

/**
 * The input of numbers, nested as the shape says or one behind the other; of BYTES the files.
 * @throws OctconvError if they do not fit the shape or the type.
 */
export function inputOfValues(described: Described, data: readonly unknown[], version: Ready): Input {
  const { datatype, shape } = described;
  const count = check(described);
  const values = Array.isArray(data[0]) ? data.flat(shape.length - 1) : data;
  if (values.length !== count)
    throw new OctconvError(`input: ${datatype} [${shape}] has ${values.length} elements, wanted ${count}`);
  const all = (fine: (value: unknown) => boolean, wanted: string) => {
    const bad = values.findIndex((value) => !fine(value));
    if (bad >= 0) throw new OctconvError(`input: element ${bad} is ${show(values[bad])}, wanted ${wanted}`);
  };
  if (datatype === 'BYTES') {
    fileCount(described, count, version);
    all((value) => value instanceof Uint8Array, 'a text');
    return values as Uint8Array[];
  }
  if (datatype === 'UINT8') {
    all(
      (value) => Number.isInteger(value) && (value as number) >= 0 && (value as number) <= 255,
      'an integer from 0 to 255',
    );
    return tensor('u8', shape as Shape, Uint8Array.from(values as number[]));
  }
  all((value) => typeof value === 'number' && Math.abs(value) <= largest, 'a number that FP32 holds');
  return tensor('f32', shape as Shape, Float32Array.from(values as number[]));
}

/** Triton's schedule policy: 0 stands for the model's own, `timeout` is in microseconds. */
export const askedOf = ({ priority, timeout }: Omit<Asked, 'signal'>): Omit<Asked, 'signal'> => ({
  priority: priority || undefined,
  timeout: timeout ? timeout / 1000 : undefined,
});

/**
 * Triton's classification: `value:index:label` of the largest `count` logits of each row, the largest first.
 * @throws OctconvError if a logit is not finite: such logits have no order.
 */
export function classification(
  { data, shape }: Tensor<'f32', Matrix>,
  count: number,
  { name, about }: Ready,
): string[] {
  const bad = data.findIndex((logit) => !Number.isFinite(logit));
  if (bad >= 0) throw new OctconvError(`${name}: the network gives ${data[bad]}, wanted numbers`);
  const [rows, classes] = shape;
  return Array.from({ length: rows }, (_, i) => {
    const top = likeliest(data.subarray(i * classes, (i + 1) * classes), count, about.labels);
    return top.map(({ probability: logit, index, label }) => `${logit.toFixed(6)}:${index}:${label}`);
  }).flat();
}

/** Elements of BYTES, each behind its length. */
export function packed(texts: readonly string[]): Buffer {
  const parts = texts.map((text) => Buffer.from(text));
  return Buffer.concat(
    parts.flatMap((part) => {
      const length = Buffer.alloc(4);
      length.writeUInt32LE(part.length);
      return [length, part];
    }),
  );
}
