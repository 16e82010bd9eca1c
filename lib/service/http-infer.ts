/**
 * Requests and answers of `infer` over HTTP: JSON, or with `Inference-Header-Content-Length` so many bytes of JSON and
 * then binary tensors in order. A length of 0 means that the body is the input itself, in its datatype of the metadata.
 */
import * as v from 'valibot';
import { OctconvError, show } from '../error.js';
import { integerIn, parse } from '../files/schema.js';
import { ServiceError } from './errors.js';
import {
  askedOf,
  classification,
  fileCount,
  type Input,
  inputName,
  inputOfBytes,
  inputOfValues,
  outputName,
  packed,
} from './protocol.js';
import type { Asked } from './served.js';
import type { Ready } from './models.js';
import type { Inferred } from './service.js';

/** Bytes of JSON: it is parsed on the event loop, 8 MiB of numbers in some 100 ms. Binary tensors are not parsed. */
export const maxJson = 8 * 2 ** 20;

const count = integerIn(0, Number.MAX_SAFE_INTEGER);
const shared = v.optional(v.undefined_('binary data or JSON: shared memory is not taken'));

const inputs = v.strictTuple(
  [
    v.object(
      {
        name: v.literal(inputName, `"${inputName}"`),
        datatype: v.string('FP32, UINT8 or BYTES'),
        shape: v.array(count, 'a list of sizes'),
        parameters: v.optional(
          v.object({
            binary_data_size: v.optional(count),
            content_type: v.optional(v.literal('base64', '"base64"')),
            shared_memory_region: shared,
          }),
          {},
        ),
        data: v.optional(v.array(v.unknown(), 'a list')),
      },
      'an object with name, datatype and shape',
    ),
  ],
  `one input, "${inputName}"`,
);

const outputs = v.strictTuple(
  [
    v.object(
      {
        name: v.literal(outputName, `"${outputName}"`),
        parameters: v.optional(
          v.object({
            binary_data: v.optional(v.boolean('true or false')),
            classification: v.optional(count),
            shared_memory_region: shared,
          }),
          {},
        ),
      },
      'an object with a name',
    ),
  ],
  `one output, "${outputName}"`,
);

/** Other fields and parameters are the caller's own. */
export const request = v.object(
  {
    id: v.optional(v.string('a text')),
    parameters: v.optional(
      v.object({
        priority: v.optional(count),
        timeout: v.optional(count),
        binary_data_output: v.optional(v.boolean('true or false'), false),
      }),
      {},
    ),
    inputs,
    outputs: v.optional(v.union([outputs, v.strictTuple([])], `one output, "${outputName}"`), []),
  },
  'an object with inputs',
);

/** What is asked: the input, how it is scheduled, and the form of the answer. */
export interface Question {
  readonly id: string | undefined;
  readonly input: Input;
  readonly asked: Omit<Asked, 'signal'>;
  readonly binary: boolean;
  /** Classes to name, 0: the logits themselves. */
  readonly classes: number;
}

/**
 * Fields are then picked by their names (valibot), so that `__proto__` is a field like others that nobody reads.
 * @throws OctconvError for what is no JSON; ServiceError for too much of it.
 */
export function parseBody(bytes: Buffer): unknown {
  if (bytes.length > maxJson)
    throw new ServiceError('tooLarge', `${bytes.length} bytes of JSON, wanted at most ${maxJson}: send binary tensors`);
  try {
    return JSON.parse(bytes.toString());
  } catch (error) {
    throw new OctconvError(`the body is no JSON: ${(error as Error).message}`);
  }
}

/** @throws OctconvError that says what of the request is wrong. */
export function readQuestion(body: Buffer, header: string | undefined, version: Ready): Question {
  if (header === '0') return { id: undefined, input: rawInput(body, version), asked: {}, binary: true, classes: 0 };
  const length = header === undefined ? body.length : lengthOf(header, body);
  const read = parse(request, parseBody(body.subarray(0, length)), 'infer', 'request', { abortEarly: true });
  const [input] = read.inputs;
  const [output] = read.outputs;
  const { binary_data_output, priority, timeout } = read.parameters;
  return {
    id: read.id,
    input: inputOf(input, body.subarray(length), version),
    asked: askedOf({ priority, timeout }),
    binary: output?.parameters.binary_data ?? binary_data_output,
    classes: output?.parameters.classification ?? 0,
  };
}

function lengthOf(header: string, body: Buffer): number {
  const length = /^\d{1,15}$/.test(header) ? Number(header) : Number.NaN;
  if (length <= body.length) return length;
  throw new OctconvError(
    `Inference-Header-Content-Length: ${show(header)}, wanted a number of bytes, at most ${body.length} of this body`,
  );
}

function inputOf(input: v.InferOutput<typeof inputs>[0], binary: Buffer, version: Ready): Input {
  const { data, parameters } = input;
  const { binary_data_size = data ? 0 : undefined, content_type } = parameters;
  if (binary_data_size === undefined)
    throw new OctconvError('infer: the input has no data, wanted data or binary_data_size');
  if (data && parameters.binary_data_size !== undefined)
    throw new OctconvError('infer: the input has data and binary_data_size, wanted one of them');
  if (binary_data_size !== binary.length)
    throw new OctconvError(`infer: ${binary.length} bytes behind the JSON, wanted ${binary_data_size}`);
  if (!data) return inputOfBytes(input, binary, version);
  if (input.datatype !== 'BYTES') return inputOfValues(input, data, version);
  const texts = data.flat();
  fileCount(input, texts.length, version); // before they are decoded
  const decoded = texts.map((text) => (typeof text === 'string' ? decode(text, content_type) : text));
  return inputOfValues(input, decoded, version);
}

/** A text stands for its UTF-8 bytes, as with Triton, or with `content_type: base64` for what it encodes. */
function decode(text: string, encoding: 'base64' | undefined): Buffer {
  const bytes = Buffer.from(text, encoding ?? 'utf8');
  // Node's decoder leaves out what it does not know.
  const padding = text.endsWith('==') ? 2 : text.endsWith('=') ? 1 : 0;
  if (encoding && bytes.length !== Math.floor(((text.length - padding) * 3) / 4))
    throw new OctconvError(`infer: ${show(text)}, wanted base64`);
  return bytes;
}

/** As many rows as there are bytes for. */
function rawInput(body: Buffer, version: Ready): Input {
  const { row, input } = version.about;
  const each = row.reduce((a, b) => a * b, input ? 1 : 4);
  const datatype = input ? 'UINT8' : 'FP32';
  if (body.length === 0 || body.length % each !== 0)
    throw new OctconvError(`infer: ${body.length} bytes, wanted rows of ${each}, ${datatype} [${row}]`);
  return inputOfBytes({ datatype, shape: [body.length / each, ...row] }, body, version);
}

/** The body of an answer; with binary tensors the JSON before them is `header` bytes. */
export interface Answer {
  readonly body: Buffer | string;
  readonly header?: number;
}

/** @throws OctconvError for logits that are not finite, unless they are asked for in binary. */
export function writeAnswer(
  { id, binary, classes }: Question,
  { logits, model, version }: Inferred,
  of: Ready,
): Answer {
  const write = (output: object): string =>
    JSON.stringify({ model_name: model, model_version: version, id, outputs: [{ name: outputName, ...output }] });
  const [rows] = logits.shape;
  const named = classes > 0 ? classification(logits, classes, of) : undefined;
  const described = named
    ? { datatype: 'BYTES', shape: [rows, named.length / rows] }
    : { datatype: 'FP32', shape: logits.shape };
  if (!binary) return { body: write({ ...described, data: named ?? finite(logits.data, of) }) };
  const { buffer, byteOffset, byteLength } = logits.data;
  const tensor = named ? packed(named) : Buffer.from(buffer, byteOffset, byteLength);
  const json = Buffer.from(write({ ...described, parameters: { binary_data_size: tensor.length } }));
  return { body: Buffer.concat([json, tensor]), header: json.length };
}

function finite(logits: Float32Array, { name }: Ready): number[] {
  const bad = logits.find((logit) => !Number.isFinite(logit));
  if (bad === undefined) return [...logits];
  throw new OctconvError(`${name}: the network gives ${bad}, which JSON has no form for: ask for binary data`);
}
