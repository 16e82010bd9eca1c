import { OctconvError, show } from '../error.js';

// A virtual machine for Python's pickle language. Nothing in a pickle is ever called: a name is a name, and a call of
// one out of the short list below gives what it would have built. Every other object is opaque: it has a class, and
// that is all. Work and memory are linear in the pickle's size: a byte of it takes some 300 bytes at most.

export class PickleError extends OctconvError {}

/** The pickle goes on behind the bytes that were given. */
export class PickleTruncated extends PickleError {}

export class Tuple {
  constructor(readonly items: readonly PickleValue[]) {}
}

export class Global {
  constructor(readonly path: string) {}
}

/** What BINPERSID refers to: for torch a storage, as a tuple that the container's reader understands. */
export class Persistent {
  constructor(readonly id: PickleValue) {}
}

/** A call of a function that builds a tensor, not checked yet. */
export class TensorCall {
  constructor(
    readonly path: string,
    readonly args: readonly PickleValue[],
  ) {}
}

/** What something else would have built: an object of this class, or the result of this function. */
export class Opaque {
  constructor(readonly path: string) {}
}

export type PickleValue =
  | null
  | boolean
  | number
  | bigint
  | string
  | Tuple
  | PickleValue[]
  | Map<PickleValue, PickleValue>
  | Global
  | Persistent
  | TensorCall
  | Opaque;

/** A value in a few words: it may be large, shared, or contain itself. */
export function describe(value: PickleValue | undefined): string {
  if (value instanceof Map) return `a dict of ${value.size}`;
  if (Array.isArray(value)) return `a list of ${value.length}`;
  if (value instanceof Tuple) return `a tuple of ${value.items.length}`;
  if (value instanceof Global) return `the name ${show(value.path)}`;
  if (value instanceof Opaque) return `an object of ${show(value.path)}`;
  if (value instanceof Persistent) return 'a storage';
  return value instanceof TensorCall ? 'a tensor' : show(value);
}

/** The arguments of the call, and a counter of objects. */
type Reduce = (args: readonly PickleValue[], count: (objects: number) => void) => PickleValue | undefined;

/** What the callables of a state dict give; `undefined` leaves the call opaque. */
const reductions = new Map<string, Reduce>(
  Object.entries<Reduce>({
    'collections.OrderedDict': ([pairs = [], more], count) => {
      if (!Array.isArray(pairs) || more !== undefined) return undefined;
      count(pairs.length);
      const dict = new Map<PickleValue, PickleValue>();
      for (const pair of pairs) {
        const [key, value, more] = Array.isArray(pair) ? pair : pair instanceof Tuple ? pair.items : [];
        if (key === undefined || value === undefined || more !== undefined) return undefined;
        dict.set(key, value);
      }
      return dict;
    },
    'torch.Size': ([sizes, more]) => (sizes instanceof Tuple && more === undefined ? sizes : undefined),
  }),
);

export const tensorCalls: ReadonlySet<string> = new Set([
  'torch._utils._rebuild_tensor',
  'torch._utils._rebuild_tensor_v2',
  'torch._utils._rebuild_parameter',
  'torch._utils._rebuild_parameter_with_state',
  'torch._tensor._rebuild_from_type_v2',
]);

/** Names that only stand for something, the second item of a storage's persistent id, and their bytes per element. */
export const storageTypes: ReadonlyMap<string, number> = new Map([
  ['torch.FloatStorage', 4],
  ['torch.HalfStorage', 2],
  ['torch.BFloat16Storage', 2],
  ['torch.DoubleStorage', 8],
  ['torch.CharStorage', 1],
  ['torch.ByteStorage', 1],
  ['torch.ShortStorage', 2],
  ['torch.IntStorage', 4],
  ['torch.LongStorage', 8],
  ['torch.BoolStorage', 1],
  ['torch.QInt8Storage', 1],
  ['torch.QUInt8Storage', 1],
  ['torch.QInt32Storage', 4],
  ['torch.ComplexFloatStorage', 8],
  ['torch.ComplexDoubleStorage', 16],
]);

/** Bounds what a small file can make us allocate: an empty dict is one byte of pickle and some 300 of ours. */
const objectLimit = 2 ** 19;
/** A name may be joined to another one as often as it is used. */
const nameLimit = 1000;

const STOP = 0x2e;
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** Reads the pickle at `start`: its value, all that it refers to outside of itself, and the place behind it. */
export function readPickle(
  bytes: Uint8Array,
  start: number,
  where: string,
): { value: PickleValue; persistents: readonly Persistent[]; end: number } {
  const machine = new Machine(bytes, start, where);
  return { value: machine.run(), persistents: machine.persistents, end: machine.at };
}

class Machine {
  readonly #view: DataView;
  readonly #stack: PickleValue[] = [];
  /** Heights of the stack at each open MARK. */
  readonly #marks: number[] = [];
  readonly #memo = new Map<number, PickleValue>();
  readonly persistents: Persistent[] = [];
  #objects = 0;

  constructor(
    readonly bytes: Uint8Array,
    public at: number,
    readonly where: string,
  ) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  run(): PickleValue {
    for (;;) {
      const opcode = this.#unsigned(1);
      if (opcode === STOP) return this.#pop();
      this.#step(opcode);
    }
  }

  #step(opcode: number): void {
    switch (opcode) {
      case 0x80: {
        // PROTO
        const version = this.#unsigned(1);
        if (version > 5) throw this.#error(`says protocol ${version}, wanted at most 5`);
        break;
      }
      case 0x95: // FRAME
        this.#take(8);
        break;

      case 0x28: // MARK
        this.#count();
        this.#marks.push(this.#stack.length);
        break;
      case 0x30: // POP
        if (this.#stack.length > (this.#marks.at(-1) ?? 0)) this.#pop();
        else this.#popMark();
        break;
      case 0x31: // POP_MARK
        this.#popMark();
        break;
      case 0x32: // DUP
        this.#push(this.#top());
        break;

      case 0x4e: // NONE
        this.#push(null);
        break;
      case 0x88: // NEWTRUE
        this.#push(true);
        break;
      case 0x89: // NEWFALSE
        this.#push(false);
        break;
      case 0x4a: // BININT
        this.#push(this.#view.getInt32(this.#take(4), true));
        break;
      case 0x4b: // BININT1
        this.#push(this.#unsigned(1));
        break;
      case 0x4d: // BININT2
        this.#push(this.#unsigned(2));
        break;
      case 0x8a: // LONG1
        this.#push(this.#long(this.#unsigned(1)));
        break;
      case 0x8b: // LONG4
        this.#push(this.#long(this.#unsigned(4)));
        break;
      case 0x47: // BINFLOAT
        this.#push(this.#view.getFloat64(this.#take(8)));
        break;

      case 0x55: // SHORT_BINSTRING, Python 2's str: text or bytes
        this.#push(this.#textOrBytes(this.#unsigned(1)));
        break;
      case 0x54: // BINSTRING
        this.#push(this.#textOrBytes(this.#unsigned(4)));
        break;
      case 0x43: // SHORT_BINBYTES
        this.#push(this.#bytes(this.#unsigned(1)));
        break;
      case 0x42: // BINBYTES
        this.#push(this.#bytes(this.#unsigned(4)));
        break;
      case 0x8e: // BINBYTES8
      case 0x96: // BYTEARRAY8
        this.#push(this.#bytes(this.#unsigned(8)));
        break;
      case 0x8c: // SHORT_BINUNICODE
        this.#push(this.#string(this.#unsigned(1)));
        break;
      case 0x58: // BINUNICODE
        this.#push(this.#string(this.#unsigned(4)));
        break;
      case 0x8d: // BINUNICODE8
        this.#push(this.#string(this.#unsigned(8)));
        break;

      case 0x29: // EMPTY_TUPLE
        this.#push(new Tuple([]));
        break;
      case 0x85: // TUPLE1
      case 0x86: // TUPLE2
      case 0x87: // TUPLE3
        this.#push(new Tuple(this.#popMany(opcode - 0x84)));
        break;
      case 0x74: // TUPLE
        this.#push(new Tuple(this.#popMark()));
        break;

      case 0x5d: // EMPTY_LIST
        this.#push([]);
        break;
      case 0x6c: // LIST
        this.#push(this.#popMark());
        break;
      case 0x61: // APPEND
        this.#append([this.#pop()]);
        break;
      case 0x65: // APPENDS
        this.#append(this.#popMark());
        break;

      case 0x7d: // EMPTY_DICT
        this.#push(new Map());
        break;
      case 0x64: {
        // DICT
        const items = this.#popMark();
        this.#push(new Map());
        this.#setItems(items);
        break;
      }
      case 0x73: // SETITEM
        this.#setItems(this.#popMany(2));
        break;
      case 0x75: // SETITEMS
        this.#setItems(this.#popMark());
        break;

      case 0x8f: // EMPTY_SET
        this.#push(new Opaque('set'));
        break;
      case 0x90: // ADDITEMS
        this.#popMark();
        if (!(this.#top() instanceof Opaque)) throw this.#error('ADDITEMS on no set');
        break;
      case 0x91: // FROZENSET
        this.#popMark();
        this.#push(new Opaque('frozenset'));
        break;

      case 0x63: {
        // GLOBAL
        const module = this.#line();
        this.#push(this.#global(module, this.#line()));
        break;
      }
      case 0x93: {
        // STACK_GLOBAL
        const [module, name] = this.#popMany(2);
        if (typeof module !== 'string' || typeof name !== 'string') throw this.#error('a global without a name');
        this.#push(this.#global(module, name));
        break;
      }
      case 0x52: {
        // REDUCE
        const [callable, args] = this.#popMany(2);
        this.#push(this.#reduce(callable, args));
        break;
      }
      case 0x81: // NEWOBJ: a class and its arguments
      case 0x92: // NEWOBJ_EX: named ones too
        this.#push(new Opaque(pathOf(this.#popMany(opcode === 0x81 ? 2 : 3)[0])));
        break;
      case 0x62: {
        // BUILD
        // Sets attributes: an OrderedDict that is a state dict has `_metadata`, the versions of its layers.
        this.#pop();
        const object = this.#top();
        if (!(object instanceof Map || object instanceof Opaque)) throw this.#error(`BUILD on ${describe(object)}`);
        break;
      }
      case 0x51: {
        // BINPERSID
        const persistent = new Persistent(this.#pop());
        this.persistents.push(persistent);
        this.#push(persistent);
        break;
      }

      case 0x71: // BINPUT
        this.#put(this.#unsigned(1));
        break;
      case 0x72: // LONG_BINPUT
        this.#put(this.#unsigned(4));
        break;
      case 0x94: // MEMOIZE
        this.#put(this.#memo.size);
        break;
      case 0x68: // BINGET
        this.#push(this.#get(this.#unsigned(1)));
        break;
      case 0x6a: // LONG_BINGET
        this.#push(this.#get(this.#unsigned(4)));
        break;

      default: {
        const code = `0x${opcode.toString(16).padStart(2, '0')}`;
        throw this.#error(`opcode ${code} at byte ${this.at - 1}, which no state dict needs`);
      }
    }
  }

  #error(what: string): PickleError {
    return new PickleError(`${this.where}: the pickle has ${what}`);
  }

  /** Moves over `length` bytes and gives the place of the first. */
  #take(length: number): number {
    const start = this.at;
    if (length > this.bytes.length - start) throw new PickleTruncated(`${this.where}: the pickle is truncated`);
    this.at += length;
    return start;
  }

  #unsigned(width: 1 | 2 | 4 | 8): number {
    const start = this.#take(width);
    if (width === 1) return this.#view.getUint8(start);
    if (width === 2) return this.#view.getUint16(start, true);
    if (width === 4) return this.#view.getUint32(start, true);
    return Number(this.#view.getBigUint64(start, true));
  }

  #long(length: number): number | bigint | Opaque {
    const start = this.#take(length);
    if (length > 16) return new Opaque('int');
    let value = 0n;
    for (let i = length - 1; i >= 0; i--) value = (value << 8n) | BigInt(this.#view.getUint8(start + i));
    value = BigInt.asIntN(length * 8, value);
    return Number.isSafeInteger(Number(value)) ? Number(value) : value;
  }

  #string(length: number): string {
    const start = this.#take(length);
    try {
      return utf8.decode(this.bytes.subarray(start, start + length));
    } catch {
      throw this.#error(`a string at byte ${start} that is not UTF-8`);
    }
  }

  #bytes(length: number): Opaque {
    this.#take(length);
    return new Opaque('bytes');
  }

  #textOrBytes(length: number): string | Opaque {
    const start = this.#take(length);
    try {
      return utf8.decode(this.bytes.subarray(start, start + length));
    } catch {
      return new Opaque('bytes');
    }
  }

  #line(): string {
    const end = this.bytes.indexOf(0x0a, this.at);
    const text = this.#string(end === -1 ? Number.POSITIVE_INFINITY : end - this.at);
    this.at++;
    return text;
  }

  #count(objects = 1): void {
    this.#objects += objects;
    if (this.#objects > objectLimit) throw this.#error(`more than ${objectLimit} objects`);
  }

  #push(value: PickleValue): void {
    if (typeof value === 'object' && value !== null) this.#count();
    this.#stack.push(value);
  }

  #top(): PickleValue {
    const value = this.#pop();
    this.#stack.push(value);
    return value;
  }

  #pop(): PickleValue {
    return this.#popMany(1)[0] as PickleValue;
  }

  #popMany(count: number): PickleValue[] {
    const floor = this.#marks.at(-1) ?? 0;
    if (this.#stack.length - count < floor) throw this.#error(`nothing on its stack at byte ${this.at - 1}`);
    return this.#stack.splice(this.#stack.length - count);
  }

  #popMark(): PickleValue[] {
    const mark = this.#marks.pop();
    if (mark === undefined) throw this.#error(`no mark at byte ${this.at - 1}`);
    return this.#stack.splice(mark);
  }

  #append(items: PickleValue[]): void {
    const list = this.#top();
    if (list instanceof Opaque) return;
    if (!Array.isArray(list)) throw this.#error(`APPEND on ${describe(list)}`);
    for (const item of items) list.push(item);
  }

  #setItems(items: PickleValue[]): void {
    const dict = this.#top();
    if (items.length % 2 !== 0) throw this.#error('SETITEM without a value');
    if (dict instanceof Opaque) return;
    if (!(dict instanceof Map)) throw this.#error(`SETITEM on ${describe(dict)}`);
    for (let i = 0; i < items.length; i += 2) dict.set(items[i] as PickleValue, items[i + 1] as PickleValue);
  }

  #global(module: string, name: string): Global {
    if (module.length + name.length > nameLimit) throw this.#error(`a global of more than ${nameLimit} characters`);
    return new Global(`${module}.${name}`);
  }

  #reduce(callable: PickleValue | undefined, args: PickleValue | undefined): PickleValue {
    const path = pathOf(callable);
    if (!(args instanceof Tuple)) return new Opaque(path);
    if (tensorCalls.has(path)) return new TensorCall(path, args.items);
    return reductions.get(path)?.(args.items, (objects) => this.#count(objects)) ?? new Opaque(path);
  }

  #put(index: number): void {
    this.#count();
    this.#memo.set(index, this.#top());
  }

  #get(index: number): PickleValue {
    const value = this.#memo.get(index);
    if (value === undefined) throw this.#error(`no memo ${index}`);
    return value;
  }
}

const pathOf = (callable: PickleValue | undefined): string => (callable instanceof Global ? callable.path : 'no name');
