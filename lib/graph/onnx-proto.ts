/** The messages of onnx.proto3 that a file consists of, and how they are written. */
import { BinaryWriter, WireType } from '@bufbuild/protobuf/wire';

/** Fields as onnx.proto3 of ONNX 1.12 has them: number and type; a type in brackets is repeated. */
export const messages = {
  ModelProto: {
    ir_version: [1, 'int64'],
    producer_name: [2, 'string'],
    graph: [7, 'GraphProto'],
    opset_import: [8, ['OperatorSetIdProto']],
  },
  OperatorSetIdProto: { version: [2, 'int64'] },
  GraphProto: {
    node: [1, ['NodeProto']],
    name: [2, 'string'],
    initializer: [5, ['TensorProto']],
    input: [11, ['ValueInfoProto']],
    output: [12, ['ValueInfoProto']],
  },
  NodeProto: {
    input: [1, ['string']],
    output: [2, ['string']],
    op_type: [4, 'string'],
    attribute: [5, ['AttributeProto']],
  },
  AttributeProto: {
    name: [1, 'string'],
    f: [2, 'float'],
    i: [3, 'int64'],
    s: [4, 'string'],
    ints: [8, ['int64']],
    type: [20, 'int64'],
  },
  TensorProto: { dims: [1, ['int64']], data_type: [2, 'int64'], name: [8, 'string'], raw_data: [9, 'bytes'] },
  ValueInfoProto: { name: [1, 'string'], type: [2, 'TypeProto'] },
  TypeProto: { tensor_type: [1, 'TypeProto.Tensor'] },
  'TypeProto.Tensor': { elem_type: [1, 'int64'], shape: [2, 'TensorShapeProto'] },
  TensorShapeProto: { dim: [1, ['TensorShapeProto.Dimension']] },
  'TensorShapeProto.Dimension': { dim_value: [1, 'int64'], dim_param: [2, 'string'] },
} as const;

export type MessageName = keyof typeof messages;
type Scalars = { readonly int64: number; readonly float: number; readonly string: string; readonly bytes: Uint8Array };
type FieldOf<Type> = Type extends readonly [infer One]
  ? readonly FieldOf<One>[]
  : Type extends keyof Scalars
    ? Scalars[Type]
    : Type extends MessageName
      ? Message<Type>
      : never;
type Spec = readonly [number: number, type: string | readonly [string]];
export type Message<M extends MessageName> = {
  readonly [Field in keyof (typeof messages)[M]]?: (typeof messages)[M][Field] extends readonly [number, infer Type]
    ? FieldOf<Type>
    : never;
};

/** A message in pieces, which have to be concatenated: large `bytes` are pieces of their own, not copies. */
export function encode<M extends MessageName>(name: M, message: Message<M>): Uint8Array[] {
  const pieces: Uint8Array[] = [];
  const writer = new BinaryWriter();
  for (const [field, values] of Object.entries<unknown>(message)) {
    const [number, kind] = (messages[name] as { readonly [field: string]: Spec })[field] as Spec;
    const [type] = [kind].flat();
    for (const value of [values].flat()) {
      if (type === 'int64') writer.tag(number, WireType.Varint).int64(value as number);
      else if (type === 'float') writer.tag(number, WireType.Bit32).float(value as number);
      else if (type === 'string') writer.tag(number, WireType.LengthDelimited).string(value as string);
      else {
        const inner =
          type === 'bytes' ? [value as Uint8Array] : encode(type as MessageName, value as Message<MessageName>);
        writer.tag(number, WireType.LengthDelimited).uint32(inner.reduce((sum, { length }) => sum + length, 0));
        pieces.push(writer.finish(), ...inner);
      }
    }
  }
  return [...pieces, writer.finish()];
}
