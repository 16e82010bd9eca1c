/** What the gRPC door answers: requests of schemas/grpc.proto, and the objects of protocol.ts as their answers. */
import { BinaryReader } from '@bufbuild/protobuf/wire';
import { OctconvError, show } from '../error.js';
import { parse } from '../files/schema.js';
import { checkMayChange } from './door.js';
import { codeOf, ServiceError } from './errors.js';
import { request as inferRequest } from './http-infer.js';
import {
  askedOf,
  classification,
  type Described,
  type Input,
  inputOfBytes,
  inputOfValues,
  modelConfig,
  modelMetadata,
  outputName,
  packed,
  repositoryIndex,
  serverMetadata,
  statistics,
} from './protocol.js';
import type { Ready } from './models.js';
import type { Service } from './service.js';
import type { TraceFile } from './trace-file.js';

/**
 * Bytes of a message beside raw tensors, and its fields. A byte of them may become an object of 100 bytes: a MiB takes up
 * to 0.3 s of the event loop.
 */
export const maxRest = 2 ** 20;
const maxFields = 256;

// --- Messages ---------------------------------------------------------------------------------------------------

/** The field that is set is named by `parameter_choice`. */
interface Parameter {
  readonly parameter_choice?: string;
  readonly [choice: string]: unknown;
}
type Parameters = Readonly<Record<string, Parameter>>;

/** Fields of requests; which of them a request has its method says. */
export interface Message {
  readonly name: string;
  readonly version: string;
  readonly ready: boolean;
  readonly id: string;
  readonly model_name: string;
  readonly model_version: string;
  readonly parameters: Parameters;
  readonly inputs: readonly {
    readonly name: string;
    readonly datatype: string;
    readonly shape: readonly number[];
    readonly parameters: Parameters;
    readonly contents: Readonly<Record<string, readonly unknown[]>> | null;
  }[];
  readonly outputs: readonly { readonly name: string; readonly parameters: Parameters }[];
  readonly raw_input_contents: readonly Buffer[];
  readonly settings: Readonly<Record<string, { readonly value: readonly string[] } | null>>;
}

/** Number of `raw_input_contents`, of methods that infer. */
const rawField = 7;
/** Bytes of a name whose health is asked for. */
const maxHealth = 1024;

/**
 * A message of a method.
 * @throws OctconvError for bytes that are none; ServiceError for too many.
 */
export function read(method: string, decode: (bytes: Buffer) => object, bytes: Buffer): Message {
  try {
    checkSize(method, bytes);
    return decode(bytes) as Message;
  } catch (error) {
    if (error instanceof OctconvError) throw error;
    throw new OctconvError(`${method}: a message that cannot be read: ${(error as Error).message}`, { cause: error });
  }
}

function checkSize(method: string, bytes: Buffer): void {
  const isHealth = method === 'Check' || method === 'Watch';
  if (isHealth && bytes.length > maxHealth)
    throw new ServiceError('tooLarge', `${method}: a message of ${bytes.length} bytes, wanted at most ${maxHealth}`);
  const infers = method === 'ModelInfer' || method === 'ModelStreamInfer';
  const reader = new BinaryReader(bytes);
  let rest = 0;
  for (let fields = 1; reader.pos < reader.len; fields++) {
    const start = reader.pos;
    const [field, type] = reader.tag();
    reader.skip(type, field);
    if (!infers || field !== rawField) rest += reader.pos - start;
    if (fields > maxFields || rest > maxRest)
      throw new ServiceError(
        'tooLarge',
        `${method}: a message of more than ${maxFields} fields or ${maxRest} bytes beside raw_input_contents`,
      );
  }
}

/** Parameters as JSON has them. */
const plain = (parameters: Parameters): Record<string, unknown> =>
  Object.fromEntries(Object.entries(parameters).map(([name, one]) => [name, one?.[one.parameter_choice ?? '']]));

// --- Methods ----------------------------------------------------------------------------------------------------

export type Methods = ReturnType<typeof methodsOf>;

export interface MethodOptions {
  /** Whether callers may load and unload models, and change settings of traces. */
  readonly repository: boolean;
  readonly trace: TraceFile;
}

/** The methods of one request and one answer. */
export function methodsOf(service: Service, { repository, trace }: MethodOptions) {
  const find = ({ name, version }: Message) => service.readyVersion(name, version || undefined);
  const change = async (what: 'load' | 'unload', { model_name, parameters }: Message) => {
    checkMayChange(repository, what);
    const unknown = Object.keys(parameters).find((name) => name !== 'unload_dependents');
    if (unknown !== undefined)
      throw new OctconvError(`${what}: unknown parameter ${show(unknown)}, wanted unload_dependents`);
    await service[what](model_name);
    return {};
  };
  const traceSetting = ({ settings, model_name }: Message) => {
    const model = model_name || undefined;
    const given = Object.entries(settings).map(([name, one]) => [name, one?.value ?? []]); // an entry may have none
    if (given.length > 0) checkMayChange(repository, 'trace');
    const told = given.length > 0 ? trace.update(Object.fromEntries(given), model) : trace.settings(model);
    return {
      settings: Object.fromEntries(Object.entries(told).map(([name, value]) => [name, { value: [value].flat() }])),
    };
  };
  return {
    ServerLive: () => ({ live: true }),
    ServerReady: () => ({ ready: service.ready }),
    ServerMetadata: () => serverMetadata,
    ModelReady: (message: Message) => ({ ready: isReady(() => find(message)) }),
    ModelMetadata: (message: Message) => modelMetadata(service, find(message)),
    ModelConfig: (message: Message) => ({ config: modelConfig(service, find(message)) }),
    ModelStatistics: ({ name, version }: Message) => statistics(service, name || undefined, version || undefined),
    ModelInfer: (message: Message, signal: AbortSignal) => infer(service, message, signal),
    RepositoryIndex: ({ ready }: Message) => ({ models: repositoryIndex(service, ready) }),
    RepositoryModelLoad: (message: Message) => change('load', message),
    RepositoryModelUnload: (message: Message) => change('unload', message),
    TraceSetting: traceSetting,
  } satisfies Record<string, (message: Message, signal: AbortSignal) => object>;
}

/** As with Triton, a model that there is not is one that is not ready. */
function isReady(find: () => Ready): boolean {
  try {
    return !!find();
  } catch (error) {
    if (['notFound', 'unavailable'].includes(codeOf(error))) return false;
    throw error;
  }
}

async function infer(service: Service, message: Message, signal: AbortSignal) {
  const { id, model_name, model_version } = message;
  const ready = service.readyVersion(model_name, model_version || undefined);
  const named = <T extends { readonly parameters: Parameters }>(tensors: readonly T[]) =>
    tensors.map((tensor) => ({ ...tensor, parameters: plain(tensor.parameters) }));
  const { inputs, outputs, parameters } = parse(
    inferRequest,
    { parameters: plain(message.parameters), inputs: named(message.inputs), outputs: named(message.outputs) },
    'infer',
    'request',
    { abortEarly: true },
  );
  const input = inputOf(inputs[0], message, ready);
  const asked = { ...askedOf(parameters), signal, version: ready.version };
  const { logits, model, version } = await service.infer(model_name, input, asked);
  const classes = outputs[0]?.parameters.classification ?? 0;
  const [rows] = logits.shape;
  const best = classes > 0 ? classification(logits, classes, ready) : undefined;
  const [datatype, shape] = best ? ['BYTES', [rows, best.length / rows]] : ['FP32', logits.shape];
  const { buffer, byteOffset, byteLength } = logits.data;
  return {
    model_name: model,
    model_version: version,
    id,
    outputs: [{ name: outputName, datatype, shape }],
    raw_output_contents: [best ? packed(best) : Buffer.from(buffer, byteOffset, byteLength)],
  };
}

const fieldOf = { FP32: 'fp32_contents', UINT8: 'uint_contents', BYTES: 'bytes_contents' };

/** Raw elements, or those of a list. */
function inputOf(described: Described, { inputs, raw_input_contents: raw }: Message, ready: Ready): Input {
  const contents = inputs[0]?.contents;
  const [bytes, ...others] = raw;
  if (!bytes) return inputOfValues(described, contents?.[fieldOf[described.datatype as 'FP32']] ?? [], ready);
  if (others.length) throw new OctconvError(`infer: ${raw.length} raw_input_contents, wanted one for one input`);
  if (Object.values(contents ?? {}).some(({ length }) => length > 0))
    throw new OctconvError('infer: the input has contents and raw_input_contents, wanted one of them');
  return inputOfBytes(described, bytes, ready);
}
