// Weight files come from anywhere: whatever is in one, the answer is an OctconvError, soon and in little memory.
import { expect } from 'chai';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { deflateRawSync } from 'node:zlib';
import { bytesPerElement } from '../lib/dtype.js';
import { OctconvError } from '../lib/error.js';
import { checkWeights } from '../lib/weights/check.js';
import { readPickle } from '../lib/weights/pickle.js';
import { openWeights } from '../lib/weights/source.js';
import {
  call,
  counted,
  dict,
  FALSE,
  floats,
  global,
  int,
  legacyPth,
  NONE,
  object,
  params,
  pickle,
  pth,
  record,
  safetensors,
  storage,
  str,
  TRUE,
  tar,
  type TensorSpec,
  tensor,
  tuple,
  zip,
} from './weights-files.js';

const golden = fileURLToPath(new URL('golden/', import.meta.url));

describe('hostile weight files', () => {
  let path: string;
  before(async () => {
    path = join(await mkdtemp(join(tmpdir(), 'octconv-hostile-')), 'file');
  });
  after(() => rm(join(path, '..'), { recursive: true }));

  /** Opens a file of these bytes and reads all of it; gives the error. */
  async function attempt(bytes: Buffer): Promise<Error | undefined> {
    await writeFile(path, bytes);
    try {
      const source = await openWeights(path);
      try {
        // As for a network that wants everything that the file names.
        const { name, unreadable = new Map() } = source;
        checkWeights(new Map([...unreadable].map(([key]) => [key, []])), {
          ...(name && { name }),
          tensors: new Map(),
          unreadable,
        });
        for (const [name, { dtype, shape }] of source.tensors) {
          const size = shape.reduce((a, b) => a * b, 1) * bytesPerElement[dtype];
          expect(size).to.be.at.most(100 * bytes.length + 65536);
          expect((await source.read(name)).byteLength).to.equal(size);
        }
      } finally {
        await source.close();
      }
      return undefined;
    } catch (error) {
      if (!(error instanceof OctconvError)) throw error;
      expect(error.message).to.not.match(/[\n\r]/);
      expect(error.message.length).to.be.below(2000);
      return error;
    }
  }

  async function refuses(bytes: Buffer, message: RegExp): Promise<void> {
    const error = await attempt(bytes);
    expect(error?.message).to.match(message);
  }

  describe('.safetensors', () => {
    const f32 = (shape: unknown, ...data_offsets: unknown[]) => ({ dtype: 'F32', shape, data_offsets });
    const cases: [string, Buffer, RegExp][] = [
      ['a header longer than the file', Buffer.from('\x20\0\0\0\0\0\0\0{}', 'latin1'), /truncated/],
      [
        'a header of exabytes',
        Buffer.from('\xff\xff\xff\xff\xff\xff\xff\xff{}', 'latin1'),
        /a header of \d+ bytes, wanted at most/,
      ],
      ['no JSON', safetensors('{nonsense'), /header is not JSON$/],
      ['a header that ends early', safetensors('{"a":{"dtype":"F32"'), /header is not JSON$/],
      ['bytes that are not UTF-8', Buffer.from('\x07\0\0\0\0\0\0\0{"\xff":1}', 'latin1'), /header is not JSON$/],
      ['a tensor that is null', safetensors({ a: null }), /"a" has dtype nothing/],
      [
        'an unknown dtype',
        safetensors({ a: { dtype: 'F8_E4M3', shape: [1], data_offsets: [0, 1] } }, 1),
        /dtype "F8_E4M3", wanted F32, F16/,
      ],
      [
        'a dtype out of the prototype',
        safetensors({ a: { dtype: 'constructor', shape: [], data_offsets: [0, 0] } }),
        /dtype "constructor"/,
      ],
      [
        'i64 that is no counter',
        safetensors({ a: { dtype: 'I64', shape: [1], data_offsets: [0, 8] } }, 8),
        /dtype "I64"/,
      ],
      ['a negative size', safetensors({ a: f32([-1], 0, 4) }, 4), /"a" has shape \[-1\]/],
      ['half an element', safetensors({ a: f32([0.5], 0, 2) }, 2), /"a" has shape \[0.5\]/],
      ['a size that is text', safetensors({ a: f32(['4'], 0, 16) }, 16), /"a" has shape \["4"\]/],
      ['no shape', safetensors({ a: { dtype: 'F32', data_offsets: [0, 4] } }, 4), /"a" has shape nothing/],
      ['a product beyond 2^53', safetensors({ a: f32([2 ** 40, 2 ** 40], 0, 4) }, 4), /impossible shape/],
      ['a product that wraps to 4 bytes', safetensors({ a: f32([2 ** 32, 2 ** 32, 1], 0, 4) }, 4), /impossible shape/],
      ['a huge size beside a 0', safetensors({ a: f32([0, 1e300], 0, 0) }), /"a" has shape/],
      ['more elements than bytes', safetensors({ a: f32([2], 0, 4) }, 4), /data_offsets \[0,4\], wanted 8 bytes/],
      [
        'offsets beyond the file',
        safetensors({ a: f32([1000], 0, 4000) }, 4),
        /4 bytes of data, the header tells of 4000/,
      ],
      ['offsets backwards', safetensors({ a: f32([1], 4, 0) }, 4), /data_offsets \[4,0\]/],
      ['three offsets', safetensors({ a: f32([1], 0, 4, 8) }, 4), /data_offsets \[0,4,8\]/],
      ['overlapping tensors', safetensors({ a: f32([2], 0, 8), b: f32([2], 4, 12) }, 12), /"b" begins at 4, wanted 8/],
      ['the same bytes twice', safetensors({ a: f32([2], 0, 8), b: f32([2], 0, 8) }, 8), /"b" begins at 0, wanted 8/],
      ['a hole', safetensors({ a: f32([1], 0, 4), b: f32([1], 8, 12) }, 12), /"b" begins at 8, wanted 4/],
      ['a hole at the start', safetensors({ a: f32([1], 4, 8) }, 8), /"a" begins at 4, wanted 0/],
      ['bytes behind the last tensor', safetensors({ a: f32([1], 0, 4) }, 5), /5 bytes of data, the header tells of 4/],
      [
        'a name twice',
        safetensors(`{"a":${JSON.stringify(f32([0], 0, 0))},"\\u0061" :${JSON.stringify(f32([0], 0, 0))}}`),
        /names "a" twice/,
      ],
      [
        'a field twice',
        safetensors('{"a":{"dtype":"F32","dtype":"I8","shape":[0],"data_offsets":[0,0]}}'),
        /names "dtype" twice/,
      ],
      ['metadata that is no text', safetensors({ __metadata__: { a: 1 } }), /__metadata__/],
      ['a list', safetensors('{}'.padEnd(9)).fill('[', 8, 9).fill(']', 9, 10), /not a weight file/],
      ['a name over several lines', safetensors({ 'a\nb\u001b[31m': f32([2], 0, 4) }, 4), /"a\\nb\\u001b\[31m"/],
      [
        'a deep nest',
        safetensors(`{"a":${'['.repeat(100_000)}${']'.repeat(100_000)}}`),
        /the header nests deeper than 3/,
      ],
      ['the deepest nest', safetensors('{"a":'.repeat((8 * 2 ** 20) / 5)), /the header nests deeper than 3/],
      ['a shape of lists', safetensors({ a: f32([[1]], 0, 4) }, 4), /the header nests deeper than 3/],
      ['a name that never ends', safetensors(`{"${'a'.repeat(100_000)}`), /the header is not JSON/],
      ['a key that is none', safetensors('{"\\x":1}'), /the header is not JSON/],
      ['spaces', safetensors(`{"a"${' '.repeat(1_000_000)}}`), /the header is not JSON/],
      [
        'offsets backwards of an unknown dtype',
        safetensors({ a: { ...f32([1], 0, 8), dtype: 'F8' }, b: { ...f32([1], 8, 4), dtype: 'F8' } }, 4),
        /"b" F8 \[1\] has data_offsets \[8,4\], wanted a begin and an end/,
      ],
      [
        'a long name',
        safetensors({ ['n'.repeat(100_000)]: f32([2], 0, 4) }, 4),
        /tensor "nnn.*\.\.\. F32 \[2\] has data_offsets/,
      ],
      [
        'a long dtype',
        safetensors({ a: { ...f32([1], 0, 0), dtype: 'D'.repeat(100_000) } }),
        /"a" has dtype "DDD.*\.\.\., wanted F32/,
      ],
      ['a very long shape', safetensors({ a: f32(Array(100_000).fill(2), 0, 4) }, 4), /impossible shape/],
    ];
    for (const [what, bytes, message] of cases) it(`refuses ${what}`, () => refuses(bytes, message));

    it('takes padding, tensors in any order, empty ones, and brackets and quotes in names', async () => {
      const header = {
        b: f32([1], 4, 8),
        '{"a":}\\': f32([1], 0, 4),
        empty: f32([0], 4, 4),
        __metadata__: { b: '{"b":' },
      };
      expect(await attempt(safetensors(`${JSON.stringify(header)}   `, 8))).to.equal(undefined);
    });

    it('refuses it cut off anywhere', async () => {
      const whole = safetensors({ a: f32([2], 0, 8), b: f32([1], 8, 12) }, 12);
      for (let length = 0; length < whole.length; length++) {
        expect(await attempt(whole.subarray(0, length)), `${length} bytes`).to.be.instanceOf(OctconvError);
      }
    });
  });

  describe('pickles', () => {
    const of = (value: string, data = floats(1, 2, 3, 4)) => pth(value, { 0: data });
    const w = (spec: Partial<TensorSpec>) => of(dict({ w: tensor({ elements: 4, size: [4], stride: [1], ...spec }) }));
    const reduce = (args: string) => of(dict({ w: `${global('torch._utils', '_rebuild_tensor_v2')}${args}R` }));
    const weight = tensor({ elements: 4, size: [4], stride: [1] });
    const nested = (depth: number) => `${'('.repeat(depth)}${'t'.repeat(depth)}`;

    const cases: [string, Buffer, RegExp][] = [
      [
        'os.system',
        of(call('os', 'system', str('echo hacked'))),
        /no state dict, but an object of "os\.system"; wanted names with tensors/,
      ],
      [
        'posix.system by STACK_GLOBAL',
        of(`${str('posix')}${str('system')}\x93${tuple(str('id'))}R`),
        /"posix\.system"/,
      ],
      [
        'builtins.eval',
        of(dict({ w: call('builtins', 'eval', str('1')), v: weight })),
        /"w" is an object of "builtins\.eval"/,
      ],
      ['a function of torch', of(call('torch', 'load', str('x'))), /"torch\.load"/],
      ['a name out of the prototype', of(call('__proto__', 'constructor')), /"__proto__\.constructor"/],
      ['a global whose name hides a line', of(call('os', 'system\u001b[2J')), /"os\.system\\u001b\[2J"/],
      ['INST', of('(ios\nsystem\n'), /opcode 0x69 at byte 3/],
      ['OBJ', of(`(${global('collections', 'OrderedDict')}o`), /opcode 0x6f/],
      ['NEWOBJ', of(`${global('collections', 'OrderedDict')})\x81`), /an object of "collections\.OrderedDict"/],
      ['an extension', of('\x82\x01'), /opcode 0x82/],
      ['an unknown opcode', of('\xff'), /opcode 0xff at byte 2/],
      ['a protocol of the future', of('\x80\x09N'), /protocol 9/],
      ['REDUCE of a storage type', of(`${global('torch', 'FloatStorage')})R`), /an object of "torch\.FloatStorage"/],
      ['REDUCE of a text', of(`${str('os.system')})R`), /an object of "no name"/],
      [
        'REDUCE without arguments',
        of(`${global('collections', 'OrderedDict')}NR`),
        /an object of "collections\.OrderedDict"/,
      ],
      [
        'an OrderedDict of numbers',
        of(call('collections', 'OrderedDict', `]${int(1)}a`)),
        /an object of "collections\.OrderedDict"/,
      ],
      ['BUILD of a tensor', of(`${tensor({ elements: 4, size: [4], stride: [1] })}}b`), /BUILD/],
      ['POP of nothing', of('00'), /no mark|nothing on its stack/],
      ['STOP with nothing', of(''), /nothing on its stack/],
      ['TUPLE without a mark', of('t'), /no mark/],
      ['taking from beyond a mark', of('N(\x85'), /nothing on its stack/],
      ['APPEND to a dict', of('}Na'), /APPEND on a dict of 0/],
      ['SETITEM of a list', of(']NNs'), /SETITEM on a list of 0/],
      ['SETITEMS without a value', of('}(NNNu'), /SETITEM without a value/],
      ['a memo that is not there', of('h\x05'), /no memo 5/],
      ['text that is not UTF-8', of('X\x01\x00\x00\x00\xff'), /not UTF-8/],
      ['text of 4 GiB', of('X\xff\xff\xff\xffabc'), /the pickle is truncated/],
      ['text of 2^64 bytes', of('\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc'), /the pickle is truncated/],
      ['an integer of 4 GiB', of('\x8b\xff\xff\xff\xff'), /the pickle is truncated/],
      ['a global without an end', of('cos'), /the pickle is truncated/],
      ['a list that contains itself', of(']q\x00h\x00a'), /no state dict, but a list of 1/],
      [
        'a dict that contains itself through others',
        of(`}q\x00(${str('a')}](h\x00\x85eu`),
        /a dict of 1 without tensors/,
      ],
      ['a deep nest', of(nested(100_000)), /no state dict, but a tuple of 1/],
      ['a very deep nest', of(nested(500_000)), /more than 524288 objects/],
      ['a million dicts', of('}'.repeat(1_000_000)), /more than 524288 objects/],
      ['a million memos', of(`N${'\x94'.repeat(1_000_000)}`), /more than 524288 objects/],

      ['no dict', of(int(5)), /no state dict/],
      ['an entry that is no tensor', of(dict({ w: int(1) })), /a dict of 1 without tensors/],
      [
        'a name that is a number',
        of(`}${int(1)}${tensor({ elements: 4, size: [4], stride: [1] })}s`),
        /a dict of 1 without tensors/,
      ],
      [
        'too few arguments',
        reduce(tuple(storage({ elements: 4 }), int(0))),
        /"w" is a call of torch\._utils\._rebuild_tensor_v2 with other arguments/,
      ],
      ['no storage', reduce(tuple(NONE, int(0), tuple(), tuple(), FALSE, NONE)), /"w" has no storage/],
      [
        'a size that is text',
        reduce(tuple(storage({ elements: 4 }), int(0), tuple(str('4')), tuple(int(1)), FALSE, NONE)),
        /no number of elements/,
      ],
      [
        'a persistent id of another kind',
        of(dict({ w: tensor({ elements: 4, size: [4], stride: [1] }).replace('storage', 'sturage') })),
        /no storage/,
      ],
      [
        'a function as storage type',
        of(
          dict({ w: tensor({ elements: 4, size: [4], stride: [1] }).replace('ctorch\nFloatStorage', 'ctorch\nSize') }),
        ),
        /"w" refers to something that is no storage/,
      ],
      ['a storage that is not in the zip', w({ key: '1' }), /storage "1", which is not in the file/],
      ['a storage out of its folder', w({ key: '../data.pkl' }), /which is not in the file/],
      ['more elements than the storage has', w({ elements: 5 }), /has 5 elements, it has 16 bytes/],
      ['a storage of exabytes', w({ elements: 2 ** 52, size: [2 ** 52] }), /it has 16 bytes/],
      ['a tensor beyond its storage', w({ size: [5] }), /\[5\] with strides \[1\] at 0 lies outside/],
      ['an offset beyond the storage', w({ offset: 1 }), /\[4\] with strides \[1\] at 1 lies outside/],
      ['an offset at 2^53', w({ offset: 2 ** 53 }), /no number of elements/],
      ['a negative offset', w({ offset: -1 }), /no number of elements/],
      ['a negative stride', w({ stride: [-1] }), /no number of elements/],
      ['a stride beyond the storage', w({ size: [2, 2], stride: [3, 1] }), /lies outside/],
      ['a huge stride', w({ size: [2, 2], stride: [2 ** 52, 2 ** 52] }), /lies outside/],
      [
        'a stride of 0',
        w({ size: [1_000_000_000], stride: [0] }),
        /tensors of 4000000000 bytes in a file of \d+, which is not believable/,
      ],
      ['a huge shape of zeros', w({ size: [2 ** 30, 2 ** 30, 2 ** 30], stride: [0, 0, 0] }), /lies outside/],
      [
        'more strides than sizes',
        w({ stride: [1, 1] }),
        /has a tuple of 1 and a tuple of 2, wanted sizes and as many strides/,
      ],
      [
        'a type that has no place here',
        w({ type: 'LongStorage', elements: 2, size: [2] }),
        /torch\.LongStorage, wanted/,
      ],
    ];
    for (const [what, bytes, message] of cases) it(`refuses ${what}`, () => refuses(bytes, message));

    describe('of little size that ask for much work', () => {
      /** Thirty lists of ten times the list before: 10^30 leaves if they were walked as a tree. */
      const laughs = (leaf: string) => {
        const put = (i: number) => `q${String.fromCharCode(i)}`;
        const ten = (i: number) => `](${`h${String.fromCharCode(i)}`.repeat(10)}e${put(i + 1)}0`;
        return `${leaf}${put(0)}0${Array.from({ length: 30 }, (_, i) => ten(i)).join('')}h\x1e`;
      };
      const lol = laughs(str('lol'));
      const magic = pickle('\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19');
      const system = pickle(dict({ little_endian: TRUE }));
      const w1 = tensor({ elements: 4, size: [4], stride: [1] });
      const latin1 = (text: string) => Buffer.from(text, 'latin1');
      /** Keeps what is on top of the stack, away from it; `again` puts it back. */
      const [keep, again] = ['r\x00\x01\x00\x000', 'j\x00\x01\x00\x00'];
      const big = `X\x00\x00\x10\x00${'k'.repeat(2 ** 20)}${keep}`;
      const many = (count: number, one: string) =>
        `}(${Array.from({ length: count }, (_, i) => str(`w${i}`) + one).join('')}u`;
      const v2 = global('torch._utils', '_rebuild_tensor_v2');
      const built = (from: string, size: string, stride: string) =>
        `${v2}${tuple(from, int(0), size, stride, FALSE, NONE)}R`;
      const unknown = `${tuple(str('storage'), global('torch', 'FloatStorage'), again, str('cpu'), int(4))}Q`;
      const ones = `(${'K\x01'.repeat(100_000)}t${keep}`;
      const orderedDict = global('collections', 'OrderedDict');
      const pairs = `](${`${tuple(str('a'), int(1))}`.repeat(50_000)}eq\x000`;
      const strided = tensor({ elements: 2 ** 20, size: [2], stride: [2 ** 20 - 1] });

      const cases: [string, () => Buffer, RegExp][] = [
        ['as version', () => latin1(magic + pickle(lol)), /version a list of 10, wanted 1001/],
        ['as state dict', () => of(lol), /no state dict, but a list of 10/],
        ['as name', () => of(`${dict({ w: w1 })}(${lol}${int(1)}u`), /^$/],
        [
          'as keys of storages',
          () => latin1(magic + pickle('M\xe9\x03') + system + pickle(dict({ w: w1 })) + pickle(`](${lol}e`)),
          /storage a list of 10 is unknown or twice/,
        ],
        ['as a key', () => of(dict({ w: w1.replace(str('0'), lol) })), /refers to something that is no storage/],
        [
          'as sizes',
          () => of(dict({ w: built(storage({ elements: 4 }), `${lol}\x85`, tuple(int(1))) })),
          /no number of elements/,
        ],
        [
          'as metadata',
          () => of(dict({ w: tensor({ elements: 4, size: [4], stride: [1], metadata: `}${lol}${TRUE}s` }) })),
          /has metadata a list of 10 = true/,
        ],
        [
          'pairs again and again',
          () => of(`${pairs}${orderedDict}q\x010h\x00\x85q\x020${'h\x01h\x02R0'.repeat(50_000)}N`),
          /more than 524288 objects/,
        ],
        [
          'long names of classes',
          () => of(`${big}${`${again}${again}\x930`.repeat(100_000)}N`),
          /a global of more than 1000 characters/,
        ],
        ['a long name of a class', () => of(global('a'.repeat(100_000), 'b')), /a global of more than 1000 characters/],
        [
          'long keys of storages',
          () => of(big + many(10_000, built(unknown, tuple(int(4)), tuple(int(1))))),
          /refers to storage "kkk.*k\.\.\., which is not in the file/,
        ],
        [
          'many sizes',
          () => of(ones + many(10_000, built(storage({ elements: 4 }), again, again))),
          /has a tuple of 100000 and a tuple of 100000, wanted/,
        ],
        [
          'a dict in many places',
          () => of(`${many(50_000, int(1))}${str('w')}${w1}s${keep}${many(50_000, again)}`),
          /^$/,
        ],
        ['one long name', () => of(`}${big}${again}${global('x', 'y')})Rs`), /a dict of 1 without tensors/],
        ['one long name of a tensor', () => of(`}${big}${again}${v2})Rs`), /: "kkk.*k\.\.\. is a call of torch/],
        [
          'a view of all for each',
          () => of(many(10_000, strided), Buffer.alloc(2 ** 22)),
          /tensors of \d+ bytes in a file of \d+, which is not believable/,
        ],
      ];
      for (const [what, bytes, message] of cases) {
        it(what, async () => {
          const error = await attempt(bytes());
          expect(error?.message ?? '').to.match(message);
        });
      }
    });

    it('shares, nests and repeats without growing', async () => {
      // Ten lists of ten times the list before: 10^30 leaves if it were walked as a tree.
      const laughs = Array.from(
        { length: 30 },
        (_, i) => `](${`h${String.fromCharCode(i)}`.repeat(10)}eq${String.fromCharCode(i + 1)}0`,
      );
      const value = `]q\x000${laughs.join('')}${dict({ state_dict: dict({ w: weight }), epoch: 'h\x1e' })}`;
      expect(await attempt(of(value))).to.equal(undefined);
      const tuples = `${'\x85'.repeat(50)}`;
      expect(await attempt(of(dict({ model: dict({ w: weight }), other: `N${tuples}` })))).to.equal(undefined);
    });

    it('refuses it cut off anywhere', () => {
      const whole = Buffer.from(pickle(dict({ w: tensor({ elements: 4, size: [4], stride: [1] }) })), 'latin1');
      for (let length = 0; length < whole.length; length++) {
        expect(() => readPickle(whole.subarray(0, length), 0, 'x'), `${length} bytes`).to.throw(OctconvError);
      }
    });
  });

  describe('zips', () => {
    const data = floats(1, 2, 3, 4);
    const stateDict = pickle(dict({ w: tensor({ elements: 4, size: [4], stride: [1] }) }));
    const pkl = { name: 'x/data.pkl', data: stateDict };
    const zeros = deflateRawSync(Buffer.alloc(2 ** 24));

    const cases: [string, Buffer, RegExp][] = [
      ['one without a pickle', zip([{ name: 'x/readme.txt', data: 'hello' }]), /0 entries NAME\/data\.pkl/],
      ['two networks', zip([pkl, { name: 'y/data.pkl', data: stateDict }]), /2 entries NAME\/data\.pkl/],
      [
        'an entry twice',
        zip([pkl, { name: 'x/data/0', data }, { name: 'x/data/0', data }]),
        /"x\/data\/0" is twice in the zip/,
      ],
      [
        'a big-endian file',
        zip([pkl, { name: 'x/data/0', data }, { name: 'x/byteorder', data: 'big' }]),
        /byte order "big", wanted "little"/,
      ],
      [
        'a storage that says it is larger than the file',
        zip([pkl, { name: 'x/data/0', data, says: { compressed: 2 ** 31, uncompressed: 2 ** 31 } }]),
        /not believable/,
      ],
      [
        'a stored size that differs from the size',
        zip([pkl, { name: 'x/data/0', data, says: { uncompressed: 4096 } }]),
        /damaged zip/,
      ],
      [
        'a storage that runs over the end',
        zip([pkl, { name: 'x/data/0', data, says: { compressed: 250, uncompressed: 250 } }]),
        /not believable|is not where it should be/,
      ],
      [
        'a storage that lies behind the end',
        zip([pkl, { name: 'x/data/0', data, says: { offset: 2 ** 30 } }]),
        /truncated at \d+ bytes, wanted 30 bytes at 1073741824/,
      ],
      [
        'an unknown compression',
        zip([pkl, { name: 'x/data/0', data, says: { method: 12 } }]),
        /damaged zip: "x\/data\/0" has compression method 12, wanted 0 or 8/,
      ],
      [
        'a bomb',
        zip([pkl, { name: 'x/data/0', data: zeros, says: { method: 8, uncompressed: 2 ** 24 } }]),
        /not believable/,
      ],
      [
        'a bomb that says it is small',
        zip([pkl, { name: 'x/data/0', data: zeros, says: { method: 8, uncompressed: 16 } }]),
        /damaged zip: "x\/data\/0" has more than 16 bytes/,
      ],
      [
        'deflated data that ends early',
        zip([pkl, { name: 'x/data/0', data: deflateRawSync(data), says: { method: 8, uncompressed: 17 } }]),
        /damaged zip: "x\/data\/0" has 16 bytes, wanted 17/,
      ],
      [
        'deflated data that is none',
        zip([pkl, { name: 'x/data/0', data: Buffer.alloc(16, 0xff), says: { method: 8 } }]),
        /damaged zip/,
      ],
      [
        'a pickle of 9 MB',
        zip([{ name: 'x/data.pkl', data: Buffer.alloc(9_000_000, 'N') }]),
        /a pickle of more than 8388608 bytes/,
      ],
      ['a path out of the archive', zip([pkl, { name: '../x/data/0', data }]), /damaged zip: invalid relative path/],
    ];
    for (const [what, bytes, message] of cases) it(`refuses ${what}`, () => refuses(bytes, message));

    it('inflates once what many tensors share', async () => {
      const count = 2000;
      const elements = 2 ** 21;
      const shared = new Float32Array(elements).map((_, i) => (i % 40 === 0 ? Math.sin(i) : 0));
      const views = Array.from({ length: count }, (_, i) => [
        `w${i}`,
        tensor({ elements, offset: i, size: [2], stride: [1] }),
      ]);
      const deflated = deflateRawSync(Buffer.from(shared.buffer), { level: 1 });
      const bytes = zip([
        { name: 'x/data.pkl', data: pickle(dict(Object.fromEntries(views))) },
        { name: 'x/data/0', data: deflated, says: { method: 8, uncompressed: 4 * elements } },
      ]);
      await writeFile(path, bytes);
      const source = await openWeights(path);
      for (let i = 0; i < count; i++)
        expect([...(await source.read(`w${i}`))]).to.deep.equal([shared[i], shared[i + 1]]);
      expect(await Promise.all([source.read('w0'), source.read('w1')])).to.deep.equal([
        shared.slice(0, 2),
        shared.slice(1, 3),
      ]);
      await source.close();
    });

    it('does not keep an error of a storage that many tensors share', async () => {
      const wrong = Buffer.from(deflateRawSync(data));
      const views = {
        a: tensor({ elements: 4, size: [4], stride: [1] }),
        b: tensor({ elements: 4, size: [2], stride: [1] }),
      };
      const entry = { name: 'x/data/0', data: wrong, says: { method: 8, uncompressed: 17 } };
      await writeFile(path, zip([{ name: 'x/data.pkl', data: pickle(dict(views)) }, entry]));
      const source = await openWeights(path);
      for (const name of ['a', 'b', 'a']) {
        const error = await source.read(name).then(
          () => undefined,
          (e: unknown) => e,
        );
        expect(error).to.be.instanceOf(OctconvError);
      }
      await source.close();
    });

    it('refuses many entries that are the same bytes', async () => {
      const says = { compressed: 1000, uncompressed: 1000, offset: 0 };
      const entries = Array.from({ length: 20 }, (_, i) => ({
        name: `x/data/${i}`,
        data: i ? '' : Buffer.alloc(1000),
        says,
      }));
      await refuses(zip([pkl, ...entries]), /which is not believable/);
    });

    it('refuses it cut off anywhere', async () => {
      const whole = zip([pkl, { name: 'x/data/0', data }]);
      for (let length = 0; length < whole.length; length++) {
        expect(await attempt(whole.subarray(0, length)), `${length} bytes`).to.be.instanceOf(OctconvError);
      }
    });
  });

  describe('files before PyTorch 1.6', () => {
    const w = dict({ w: tensor({ elements: 4, size: [4], stride: [1] }) });
    const data = floats(1, 2, 3, 4);
    const cases: [string, Buffer, RegExp][] = [
      [
        'a pickle of something else',
        Buffer.from(pickle(dict({})), 'latin1'),
        /a pickle, but none that torch\.save wrote/,
      ],
      ['a big-endian file', legacyPth(w, ['0'], counted(4, data), dict({ little_endian: FALSE })), /big-endian/],
      [
        'a storage that nothing refers to',
        legacyPth(w, ['0', '7'], counted(4, data)),
        /storage "7" is unknown or twice/,
      ],
      ['a storage twice', legacyPth(w, ['0', '0'], counted(4, data)), /storage "0" is unknown or twice/],
      ['a storage left out', legacyPth(w, [], counted(4, data)), /storage "0", which is not in the file/],
      [
        'a storage of exabytes',
        legacyPth(w, ['0'], counted(2 ** 60, data)),
        /truncated, storage "0" has 1152921504606847000 elements/,
      ],
      ['a storage of negative size', legacyPth(w, ['0'], counted(-4, data)), /truncated, storage "0" has -4 elements/],
      [
        'a storage shorter than it was said to be',
        legacyPth(w, ['0'], counted(3, data)),
        /has 4 elements, it has 12 bytes/,
      ],
      [
        'a part beyond its storage',
        legacyPth(w.replace('tQ', `${tuple(str('v'), int(2), int(3))}tQ`), ['0'], counted(4, data)),
        /storage "0" is unknown or twice/,
      ],
    ];
    for (const [what, bytes, message] of cases) it(`refuses ${what}`, () => refuses(bytes, message));

    it('refuses it cut off anywhere', async () => {
      const whole = legacyPth(w, ['0'], counted(4, data));
      for (let length = 0; length < whole.length; length++) {
        expect(await attempt(whole.subarray(0, length)), `${length} bytes`).to.be.instanceOf(OctconvError);
      }
    });
  });

  describe('.params of MXNet', () => {
    const a = record({ shape: [2], data: floats(1, 2) });
    const whole = params({ 'arg:a': a, 'aux:b': record({ version: 1, shape: [1, 1], data: floats(3) }) });
    const one = (spec: Partial<Parameters<typeof record>[0]>) =>
      params({ a: record({ shape: [2], data: floats(1, 2), ...spec }) });
    const entry = { name: 'checkpoint-0-0000.params', data: whole };
    const cases: [string, Buffer, RegExp][] = [
      ['nothing behind the magic', whole.subarray(0, 16), /truncated/],
      ['2^64 records', Buffer.from(whole).fill(255, 16, 24), /18446744073709552000 records, wanted at most 100000/],
      [
        'more records than there are',
        Buffer.concat([whole.subarray(0, 16), Buffer.from([9]), whole.subarray(17)]),
        /record \d|truncated/,
      ],
      [
        'more than 100000 records',
        params(Object.fromEntries(Array.from({ length: 100_001 }, (_, i) => [i, a.subarray(0, 0)]))),
        /100001 records/,
      ],
      ['fewer names', params({ a, b: a }, ['a']), /1 names for 2 records/],
      ['more names than there are', params({ a }, ['a'], 2), /2 names for 1 records/],
      ['no names', params({ a }, []), /0 names for 1 records/],
      ['a name twice', params({ a, b: a }, ['arg:a', 'aux:a']), /two records are called "a"/],
      [
        'a name that ends behind the end',
        Buffer.concat([params({ a }).subarray(0, -9), Buffer.alloc(8, 255), Buffer.from('a')]),
        /truncated/,
      ],
      [
        'a name that is not UTF-8',
        Buffer.concat([params({ a }).subarray(0, -1), Buffer.from([0xff])]),
        /a name is not UTF-8/,
      ],
      ['bytes behind the last name', Buffer.concat([whole, Buffer.from('x')]), /1 bytes behind the last name/],
      ['9 MB of names', Buffer.concat([whole, Buffer.alloc(9_000_000)]), /bytes of names, wanted at most 8388608/],
      ['a sparse record', one({ storage: 1 }), /record 0 is of storage type 1, wanted 0/],
      ['an undefined storage type', one({ storage: -1 }), /record 0 is of storage type -1/],
      ['i64', one({ type: 6, data: Buffer.alloc(16) }), /record 0 is of type 6, wanted one of 0, 1, 2/],
      ['an unknown type', one({ type: -5 }), /record 0 is of type -5/],
      ['a rank of 33', one({ shape: Array(33).fill(1) }), /record 0 has 33 sizes, wanted at most 32/],
      ['a rank of 4 billion', one({ rank: 2 ** 32 - 1 }), /record 0 has 4294967295 sizes/],
      ['a product beyond 2^53', one({ shape: [2 ** 40, 2 ** 40] }), /record 0 has the impossible shape/],
      ['a product that wraps to 4 bytes', one({ shape: [2 ** 32, 2 ** 32, 1] }), /impossible shape/],
      ['a size of -1', one({ shape: [-1] }), /impossible shape \[18446744073709552000\]/],
      ['a huge size beside a 0', one({ shape: [0, -1] }), /impossible shape/],
      ['more elements than bytes', one({ shape: [1000] }), /truncated at \d+ bytes, wanted \d+ for record 0 of 1/],
      ['a tar without one', tar([{ name: 'x.json', data: Buffer.from('{}') }]), /0 MXNet \.params among 1 entries/],
      ['a tar of two', tar([entry, { ...entry, name: 'y.params' }]), /2 MXNet \.params among 2 entries/],
      ['one behind a link only', tar([{ ...entry, type: '2' }]), /0 MXNet \.params/],
      [
        'an entry that runs over the end',
        tar([{ ...entry, says: { size: '77777777777\0' } }]),
        /truncated at \d+ bytes, wanted 8589934591/,
      ],
      [
        'a size in base 256',
        tar([{ ...entry, says: { size: `\x80${'\0'.repeat(10)}\x01` } }]),
        /damaged tar: no header at byte 0/,
      ],
      ['a size that is text', tar([{ ...entry, says: { size: '12x\0' } }]), /damaged tar: no header at byte 0/],
      [
        'a second header with a wrong sum',
        tar([
          { name: 'x', data: Buffer.from('y') },
          { ...entry, says: { sum: 1 } },
        ]),
        /damaged tar: no header at byte 1024/,
      ],
      ['a first header with a wrong sum', tar([{ ...entry, says: { sum: 1 } }]), /not a weight file/],
      ['.params cut in a tar', tar([{ ...entry, data: whole.subarray(0, -1) }]), /truncated at \d+ bytes of \.params/],
      [
        '.params longer than its entry',
        tar([{ ...entry, says: { size: '00000000100\0' } }]),
        /truncated at 64 bytes of \.params/,
      ],
    ];
    for (const [what, bytes, message] of cases) it(`refuses ${what}`, () => refuses(bytes, message));

    it('takes what is right, alone and in a tar', async () => {
      expect(await attempt(whole)).to.equal(undefined);
      expect(await attempt(tar([{ name: 'x-symbol.json', data: Buffer.from('{}') }, entry]))).to.equal(undefined);
    });

    it('refuses it cut off anywhere', async () => {
      for (let length = 0; length < whole.length; length++) {
        expect(await attempt(whole.subarray(0, length)), `${length} bytes`).to.be.instanceOf(OctconvError);
      }
      const packed = tar([entry]);
      for (let length = 0; length < 512 + whole.length; length += 7) {
        expect(await attempt(packed.subarray(0, length)), `${length} bytes in a tar`).to.be.instanceOf(OctconvError);
      }
    });
  });

  it('closes what it refuses', async () => {
    const open = async () => (await readdir('/proc/self/fd')).length;
    const deflated = await readFile(join(golden, 'pth/module-deflated.pth'));
    deflated.fill(0xff, 450, 700); // in data/0 or the pickle
    const before = await open();
    for (let i = 0; i < 50; i++) {
      await attempt(safetensors('{nonsense'));
      await attempt(pth(call('os', 'system'), {}));
      await attempt(Buffer.from('PK and no zip'));
      await attempt(params({ a: record({ shape: [9], data: floats(1) }) }));
      await attempt(tar([{ name: 'x', data: Buffer.from('y') }]));
      expect(await attempt(deflated)).to.be.instanceOf(OctconvError);
      await attempt(Buffer.from('\x80\x02N.', 'latin1'));
    }
    await new Promise(setImmediate);
    expect(await open()).to.be.below(before + 10);
  });

  describe('fuzz', function () {
    this.timeout(60_000);
    const mutations: [string, number][] = [
      ['octconv.safetensors', 1000],
      ['pth/module.pth', 400],
      ['pth/module-deflated.pth', 200],
      ['pth/views.pth', 200],
      ['pth/checkpoint.pth', 200],
      ['pth/module-legacy.pth', 700],
      ['pth/views-legacy.pth', 700],
    ];
    for (const [file, count] of mutations) {
      it(`${count} mutations of ${file}`, async () => {
        const random = generator(count);
        const seed = shorten(await readFile(join(golden, file)));
        const errors = new Set<string>();
        const before = process.memoryUsage().rss;
        let refused = 0;
        for (let i = 0; i < count; i++) {
          const error = await attempt(mutate(seed, random));
          if (error) refused++;
          if (error) errors.add(error.message.replace(/"[^"]*"|\d+/g, ''));
        }
        // Both happen, and for many reasons: otherwise the mutations are too tame or too wild to test anything.
        expect(refused).to.be.within(count * 0.1, count - 1);
        expect(errors.size).to.be.above(5);
        expect(process.memoryUsage().rss - before).to.be.below(300 * 2 ** 20);
      });
    }

    const records = Object.fromEntries(
      Array.from({ length: 8 }, (_, i) => {
        const spec = { version: i % 4, shape: [i + 1, 2], type: [0, 2, 4, 1][i % 4] ?? 0 };
        return [
          `arg:layer${i}_weight`,
          record({ ...spec, data: Buffer.alloc((i + 1) * 2 * ([4, 2, 4, 8][i % 4] ?? 4), i) }),
        ];
      }),
    );
    for (const [what, seed] of [
      ['.params', params(records)],
      [
        'a tar with .params',
        tar([
          { name: 'x-symbol.json', data: Buffer.from('{}') },
          { name: 'x.params', data: params(records) },
        ]),
      ],
    ] as const) {
      it(`600 mutations of ${what}`, async () => {
        const random = generator(what.length);
        const errors = new Map<string, number>();
        expect(await attempt(seed)).to.equal(undefined);
        for (let i = 0; i < 600; i++) {
          const reason = (await attempt(mutate(seed, random)))?.message.replace(/"[^"]*"|\d+/g, '') ?? '';
          errors.set(reason, (errors.get(reason) ?? 0) + 1);
        }
        expect(errors.get('') ?? 0).to.be.within(1, 540);
        expect(errors.size).to.be.above(what === '.params' ? 8 : 5);
      });
    }

    it('20000 mutations of a pickle', async () => {
      const random = generator(7);
      const seeds = [
        pickle(dict({ a: tensor({ elements: 4, size: [2, 2], stride: [2, 1] }), b: `]q\x00(${int(1)}h\x00\x85e` })),
        pickle(call('collections', 'OrderedDict', `](${tuple(str('a'), int(1))}e`)),
        pickle(
          dict({
            a: object('x', 'Y', { b: int(1) }),
            c: `\x8f(${int(1)}\x90`,
            d: `${object('x', 'Z')}(${int(1)}${NONE}u`,
            e: 'C\x02ab',
          }),
        ),
      ].map((text) => Buffer.from(text, 'latin1'));
      for (let i = 0; i < 20_000; i++) {
        const bytes = mutate(seeds[i % seeds.length]!, random);
        try {
          readPickle(bytes, 0, 'x');
        } catch (error) {
          if (!(error instanceof OctconvError)) throw error;
        }
      }
    });
  });
});

/** A safetensors file of the first tensors only: quicker, and a mutation meets the header more often. */
function shorten(bytes: Buffer): Buffer {
  if (bytes[8] !== 0x7b) return bytes;
  const length = Number(bytes.readBigUInt64LE());
  const header = JSON.parse(bytes.toString('utf8', 8, 8 + length)) as Record<
    string,
    { data_offsets: [number, number] }
  >;
  const first = Object.entries(header)
    .filter(([name]) => name !== '__metadata__')
    .sort(([, a], [, b]) => a.data_offsets[0] - b.data_offsets[0])
    .slice(0, 8);
  const end = first.at(-1)![1].data_offsets[1];
  return safetensors(Object.fromEntries(first), bytes.subarray(8 + length, 8 + length + end));
}

/** mulberry32: integers below `n`. */
function generator(seed: number): (n: number) => number {
  let state = seed;
  return (n) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % n;
  };
}

function mutate(bytes: Buffer, random: (n: number) => number): Buffer {
  let result = Buffer.from(bytes);
  for (let times = 1 + random(3); times > 0; times--) {
    // The structure lies at either end; what is between are mostly elements, where nothing can go wrong.
    const window = Math.min(result.length, 1500);
    const at = random(2) ? random(window) : result.length - 1 - random(window);
    const length = Math.min(1 + random(16), result.length - at);
    switch (random(7)) {
      case 0:
        result[at]! ^= 1 << random(8);
        break;
      case 1:
        result[at] = random(256);
        break;
      case 2:
        result.fill([0, 255, 127, 128][random(4)]!, at, at + length);
        break;
      case 3:
        result = Buffer.concat([result.subarray(0, at), result.subarray(at + length)]);
        break;
      case 4:
        result = Buffer.concat([
          result.subarray(0, at),
          result.subarray(random(result.length)).subarray(0, length),
          result.subarray(at),
        ]);
        break;
      case 5:
        result = Buffer.from(result.subarray(0, random(8) ? result.length - random(40) : at));
        break;
      case 6:
        result.copyWithin(at, random(result.length), result.length - random(20));
        break;
    }
    if (result.length < 32) return result;
  }
  return result;
}
