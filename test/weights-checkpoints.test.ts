// Checkpoints as people have them: what lies around the parameters, what was put in front of their names, and which
// arguments of a tensor change its numbers.
import { expect } from 'chai';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { OctconvError } from '../lib/error.js';
import { loadModel, Model, openNetwork } from '../lib/model.js';
import { buildNetwork } from '../lib/models/index.js';
import { inferOptions } from '../lib/models/infer.js';
import { quantize } from '../lib/quantize.js';
import { tensor as tensorOf } from '../lib/tensor.js';
import { checkWeights } from '../lib/weights/check.js';
import { type MemoryTensor, memoryWeights } from '../lib/weights/memory.js';
import { withUsualNames } from '../lib/weights/names.js';
import { initialize } from '../lib/weights/random.js';
import { writeSafetensors } from '../lib/weights/safetensors.js';
import { type OpenOptions, openWeights, type WeightSource } from '../lib/weights/source.js';
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
  pth,
  safetensors,
  str,
  tensor,
  tensorArgs,
  TRUE,
  type TensorSpec,
  tuple,
} from './weights-files.js';
import { skip } from './skip.js';
import { failure } from './expect.js';

const golden = fileURLToPath(new URL('golden/pth/', import.meta.url));
const reports = fileURLToPath(new URL('../../shared/reports/checkpoints/', import.meta.url));

describe('checkpoints', () => {
  let folder: string;
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'octconv-checkpoints-'));
  });
  after(() => rm(folder, { recursive: true }));

  async function save(name: string, bytes: Buffer | string): Promise<string> {
    const path = join(folder, name);
    await writeFile(path, bytes);
    return path;
  }

  const numbers = floats(1, 2, 3, 4);
  const zipped = (value: string) => pth(value, { 0: numbers });

  /** Opens a .pth of this pickle, and closes it after `use`. */
  async function opened<T>(
    value: string,
    use: (source: WeightSource) => T | Promise<T>,
    options: OpenOptions = {},
  ): Promise<T> {
    const source = await openWeights(await save('x.pth', zipped(value)), options);
    try {
      return await use(source);
    } finally {
      await source.close();
    }
  }

  /** The message of the error of wanting a tensor w. */
  const wanting = (value: string) =>
    failure(
      opened(value, async (source) => {
        checkWeights(new Map([['w', [2, 2]]]), source);
        return source.read('w');
      }),
    );

  const weight = (spec: Partial<TensorSpec> = {}) => tensor({ elements: 4, size: [2, 2], stride: [2, 1], ...spec });
  const vector = tensor({ elements: 4, size: [4], stride: [1] });
  const scalar = tensor({ elements: 4, size: [], stride: [] });

  describe('arguments of a tensor', () => {
    it('gives the numbers of a negative view the other sign', async () => {
      const metadata = dict({ neg: TRUE });
      const types: [string, Buffer, number[]][] = [
        ['FloatStorage', floats(1, -2, 0.5, 0), [-1, 2, -0.5, -0]],
        ['DoubleStorage', Buffer.from(new Float64Array([1, -2, 0.5, 3]).buffer), [-1, 2, -0.5, -3]],
        ['HalfStorage', Buffer.from(new Uint16Array([0x3c00, 0xbc00, 0, 1]).buffer), [0xbc00, 0x3c00, 0x8000, 0x8001]],
        [
          'BFloat16Storage',
          Buffer.from(new Uint16Array([0x3f80, 0xbf80, 0, 1]).buffer),
          [0xbf80, 0x3f80, 0x8000, 0x8001],
        ],
        ['IntStorage', Buffer.from(new Int32Array([1, -2, 3, 0]).buffer), [-1, 2, -3, 0]],
        ['CharStorage', Buffer.from(new Int8Array([1, -2, 3, 0]).buffer), [-1, 2, -3, 0]],
      ];
      for (const [type, data, wanted] of types) {
        const w = weight({ type, metadata });
        for (const bytes of [pth(dict({ w }), { 0: data }), legacyPth(dict({ w }), ['0'], counted(4, data))]) {
          const source = await openWeights(await save('neg.pth', bytes));
          expect([...(await source.read('w'))], type).to.deep.equal(wanted);
          await source.close();
        }
      }
    });

    it('takes the usual ones, a parameter, and a tensor with attributes', async () => {
      const empty = call('collections', 'OrderedDict');
      const v2 = global('torch._utils', '_rebuild_tensor_v2');
      const args = tuple(...tensorArgs({ elements: 4, size: [2, 2], stride: [2, 1] }));
      const all = {
        grad: weight({ requiresGrad: TRUE, hooks: empty, metadata: NONE }),
        plain: weight({ metadata: dict({ neg: FALSE, conj: FALSE }) }),
        oldest: call(
          'torch._utils',
          '_rebuild_tensor',
          ...tensorArgs({ elements: 4, size: [2, 2], stride: [2, 1] }).slice(0, 4),
        ),
        parameter: call('torch._utils', '_rebuild_parameter', weight(), TRUE, empty),
        state: call('torch._utils', '_rebuild_parameter_with_state', weight(), TRUE, empty, dict({ decay: FALSE })),
        typed: call(
          'torch._tensor',
          '_rebuild_from_type_v2',
          v2,
          global('torch.nn.parameter', 'Parameter'),
          args,
          dict({ tag: str('x') }),
        ),
      };
      await opened(dict(all), async (source) => {
        expect(source.notes).to.deep.equal([]);
        for (const name of Object.keys(all)) expect([...(await source.read(name))], name).to.deep.equal([1, 2, 3, 4]);
      });
    });

    const empty = call('collections', 'OrderedDict');
    const parameter = (...args: string[]) => call('torch._utils', '_rebuild_parameter', ...args);
    const cases: [string, string, RegExp][] = [
      [
        'the conjugate of a view',
        weight({ metadata: dict({ conj: TRUE }) }),
        /"w" has metadata "conj" = true, which is unknown/,
      ],
      ['a bit of the future', weight({ metadata: dict({ new: TRUE }) }), /"w" has metadata "new" = true/],
      ['a negative bit that is no boolean', weight({ metadata: dict({ neg: int(1) }) }), /"w" has metadata "neg" = 1/],
      ['metadata that is no dict', weight({ metadata: int(1) }), /"w" has metadata 1, wanted a dict/],
      ['hooks', weight({ hooks: dict({ a: int(1) }) }), /"w" has backward_hooks a dict of 1, wanted none/],
      ['a gradient that is no boolean', weight({ requiresGrad: str('x') }), /"w" has requires_grad "x"/],
      [
        'a parameter of something else',
        parameter(int(1), TRUE, empty),
        /is a call of torch\._utils\._rebuild_parameter with other arguments/,
      ],
      [
        'a parameter with hooks',
        parameter(weight(), TRUE, dict({ a: int(1) })),
        /_rebuild_parameter with other arguments/,
      ],
      ['a parameter with more', parameter(weight(), TRUE, empty, int(1)), /_rebuild_parameter with other arguments/],
      [
        'a subclass of tensors',
        call(
          'torch._tensor',
          '_rebuild_from_type_v2',
          global('torch._utils', '_rebuild_tensor_v2'),
          global('mine', 'Sub'),
          tuple(),
          dict({}),
        ),
        /_rebuild_from_type_v2 with other arguments/,
      ],
      ['a device that is no text', weight().replace(str('cpu'), int(1)), /"w" refers to something that is no storage/],
      [
        'a quantized tensor',
        call('torch._utils', '_rebuild_qtensor', int(1)),
        /"w" is an object of "torch\._utils\._rebuild_qtensor"/,
      ],
      [
        'an integer',
        weight({ type: 'ShortStorage', elements: 4 }),
        /"w" is a torch\.ShortStorage, wanted torch\.Float/,
      ],
      [
        'sizes without number',
        tensor({ elements: 4, size: Array(65).fill(1), stride: Array(65).fill(1) }),
        /has a tuple of 65 and a tuple of 65/,
      ],
    ];
    for (const [what, w, message] of cases) {
      it(`refuses ${what}, where it is wanted`, async () => {
        expect(await wanting(dict({ w, ok: weight() }))).to.match(message);
        await opened(dict({ w, ok: weight() }), async (source) => {
          expect([...source.tensors.keys()]).to.deep.equal(['ok']);
          expect(source.notes).to.deep.equal(['left out, cannot be read: "w"']);
          checkWeights(new Map([['ok', [2, 2]]]), source);
          expect(await failure(source.read('w'))).to.match(message);
        });
      });
    }
  });

  describe('data types and strides', () => {
    it('reads float64 as f32, and says so', async () => {
      const data = Buffer.from(new Float64Array([1.1, -2, 1e-300, 16_777_217]).buffer);
      const double = weight({ type: 'DoubleStorage' });
      const across = weight({ type: 'DoubleStorage', stride: [1, 2] });
      const whole = { dtype: 'F64', shape: [2, 2], data_offsets: [1, 33] };
      const files = {
        'a.pth': pth(dict({ double, across }), { 0: data }),
        'b.pth': legacyPth(dict({ double, across }), ['0'], counted(4, data)),
        'c.safetensors': safetensors(
          { i: { dtype: 'I8', shape: [1], data_offsets: [0, 1] }, double: whole },
          Buffer.concat([Buffer.alloc(1), data]),
        ),
      };
      for (const [name, bytes] of Object.entries(files)) {
        const source = await openWeights(await save(name, bytes));
        expect(source.tensors.get('double')).to.include({ dtype: 'f32' });
        const room = new ArrayBuffer(64);
        const read = await source.read('double', (size) => new Uint8Array(room, 16, size));
        expect(read).to.deep.equal(new Float32Array([1.1, -2, 0, 16_777_216]));
        expect(read.buffer).to.equal(room);
        if (source.tensors.has('across'))
          expect([...(await source.read('across'))]).to.deep.equal([Math.fround(1.1), 0, -2, 16_777_216]);
        expect(source.notes).to.deep.equal([
          `float64 read as f32: ${name === 'c.safetensors' ? '1 tensor' : '2 tensors'}`,
        ]);
        await source.close();
      }
    });

    it('reads a tensor of one number many times', async () => {
      const source = await openWeights(join(golden, 'expanded.pth'));
      expect(await source.read('expanded')).to.deep.equal(new Float32Array([1, 1, 1, 1, 1]));
      await source.close();
      await opened(dict({ w: weight({ size: [3, 2], stride: [0, 1], offset: 1 }) }), async (source) => {
        expect([...(await source.read('w'))]).to.deep.equal([2, 3, 2, 3, 2, 3]);
      });
    });

    it('leaves counters alone, whatever they are', async () => {
      const counter = tensor({ type: 'LongStorage', elements: 2, size: [], stride: [] });
      const names = [
        'bn.num_batches_tracked',
        'conv.total_ops',
        'total_params',
        '_extra_state',
        'fc._extra_state',
        'n_averaged',
      ];
      const counters = Object.fromEntries(names.map((name) => [name, counter]));
      await opened(dict({ w: weight(), ...counters, 'a._extra_state': object('io', 'BytesIO') }), (source) => {
        expect([...source.tensors.keys()]).to.deep.equal(['w']);
        expect(source.notes).to.deep.equal([]);
        checkWeights(new Map([['w', [2, 2]]]), source);
      });
      const header = Object.fromEntries(
        names.map((name, i) => [name, { dtype: 'I64', shape: [], data_offsets: [8 * i, 8 * i + 8] }]),
      );
      const source = await openWeights(await save('counters.safetensors', safetensors(header, 8 * names.length)));
      expect([source.tensors.size, source.notes]).to.deep.equal([0, []]);
      await source.close();
    });
  });

  describe('numbers', () => {
    const half = Uint16Array;
    const cases: [string, string, ArrayLike<number> & { buffer: ArrayBuffer }, string][] = [
      ['FloatStorage', 'w', new Float32Array([1, 2, Number.NaN, 4]), 'has NaN as element 2, wanted finite numbers'],
      ['FloatStorage', 'w', new Float32Array([1, -Infinity, 3, 4]), 'has -Infinity as element 1'],
      ['HalfStorage', 'w', new half([0, 0, 0, 0xfc00]), 'has -Infinity as element 3'],
      ['HalfStorage', 'w', new half([0x7e01, 0, 0, 0]), 'has NaN as element 0'],
      ['BFloat16Storage', 'w', new half([0, 0x7f80, 0, 0]), 'has Infinity as element 1'],
      ['DoubleStorage', 'w', new Float64Array([1, 1e39, 3, 4]), 'has Infinity as element 1'],
      [
        'FloatStorage',
        'running_var',
        new Float32Array([0, 1, -0.001953125, 4]),
        'has -0.001953125 as element 2, wanted variances of at least 0',
      ],
      [
        'FloatStorage',
        'bn.running_var',
        new Float32Array([0, 1, -3, 4]),
        'has -3 as element 2, wanted variances of at least 0',
      ],
      ['HalfStorage', 'bn.running_var', new half([0, 0, 0, 0xbc00]), 'has -1 as element 3, wanted variances'],
    ];
    for (const [type, name, data, message] of cases) {
      it(`${name} of ${type} ${message.replace(/,.*/, '')}`, async () => {
        const bytes = pth(dict({ [name]: weight({ type }) }), { 0: Buffer.from(data.buffer) });
        const source = await openWeights(await save('bad.pth', bytes));
        expect(await failure(source.read(name))).to.include(`bad.pth: tensor "${name}" ${message}`);
        await source.close();
      });
    }

    it('takes the largest and the smallest that are finite, and -0 as a variance', async () => {
      const all: [string, ArrayLike<number> & { buffer: ArrayBuffer }][] = [
        ['FloatStorage', new Float32Array([3.4028234663852886e38, 1e-45, -0, -3.4028234663852886e38])],
        ['HalfStorage', new half([0x7bff, 0xfbff, 0x8000, 1])],
        ['BFloat16Storage', new half([0x7f7f, 0xff7f, 0x8000, 1])],
      ];
      for (const [type, data] of all) {
        const source = await openWeights(
          await save('fine.pth', pth(dict({ w: weight({ type }) }), { 0: Buffer.from(data.buffer) })),
        );
        expect([...(await source.read('w'))]).to.deep.equal([...Array.from(data)]);
        await source.close();
      }
      const variance = tensor({ elements: 4, size: [1], stride: [1], offset: 3 });
      const source = await openWeights(
        await save('zero.pth', pth(dict({ running_var: variance }), { 0: floats(0, 0, 0, -0) })),
      );
      expect([...(await source.read('running_var'))]).to.deep.equal([-0]);
      await source.close();
    });

    it('is asked of every format, and of memory', async () => {
      const nan = floats(1, Number.NaN);
      const source = await openWeights(
        await save('nan.safetensors', safetensors({ w: { dtype: 'F32', shape: [2], data_offsets: [0, 8] } }, nan)),
      );
      expect(await failure(source.read('w'))).to.match(/nan\.safetensors: tensor "w" has NaN as element 1/);
      await source.close();
      const memory = memoryWeights(
        new Map([['w', { dtype: 'f32', shape: [1], data: Float32Array.of(Infinity) }]]),
        'mine',
      );
      expect(await failure(memory.read('w'))).to.match(/^mine: tensor "w" has Infinity/);
    });

    it('quantize refuses them by name', async () => {
      const network = buildNetwork('resnet-26', { width: 4, classes: 3, stem: 'cifar' });
      const random = initialize(network);
      const tensors = new Map<string, MemoryTensor>();
      for (const [name, info] of random.tensors) tensors.set(name, { ...info, data: await random.read(name) });
      tensors.get('layer2.0.conv2.weight')!.data[5] = Number.NaN;
      const x = tensorOf('f32', [1, 16, 16, 3], new Float32Array(768));
      const message = await failure(quantize(network, memoryWeights(tensors), [x]));
      expect(message).to.match(/"layer2\.0\.conv2\.weight" has NaN as element 5/);
    });
  });

  describe('where the parameters are', () => {
    const network = dict({ w: weight(), b: vector });
    const names = (value: string, options?: OpenOptions) =>
      opened(value, ({ tensors, notes = [] }) => [[...tensors.keys()], notes], options);

    for (const key of [
      'state_dict',
      'model',
      'model_state_dict',
      'net',
      'model_ema',
      'state_dict_ema',
      'ema',
      'anything',
    ]) {
      it(`finds "${key}"`, async () => {
        expect(await names(dict({ epoch: int(3), [key]: network }))).to.deep.equal([
          ['w', 'b'],
          [`parameters of "${key}"`],
        ]);
      });
    }

    it('finds what lies deeper', async () => {
      const value = dict({ state: dict({ net: dict({ weights: network }) }) });
      expect(await names(value)).to.deep.equal([['w', 'b'], ['parameters of "state.net.weights"']]);
    });

    it('takes objects of unknown classes beside it for what they are: not for parameters', async () => {
      const beside = {
        args: object('argparse', 'Namespace', { lr: 'G\x3f\xb9\x99\x99\x99\x99\x99\x9a', parent: `]${NONE}a` }),
        best: `${global('numpy.core.multiarray', 'scalar')}${tuple(call('numpy', 'dtype', str('f8'), FALSE, TRUE), 'C\x08abcdefgh')}R`,
        rng: `B\x04\x00\x00\x00\xff\xff\xff\xff`,
        python2: 'U\x02\xff\xfe',
        huge: `\x8a\x14${'\x7f'.repeat(20)}`,
        set: `\x8f(${int(1)}${int(2)}\x90`,
        frozen: `(${int(1)}\x91`,
        keyed: `}${tuple(int(1), int(2))}${int(3)}s`,
        named: `${global('a', 'B')})${dict({ x: int(1) })}\x92`,
        list: `${object('mmcv', 'List')}(${int(1)}${int(2)}e`,
        factory: `${call('collections', 'defaultdict', global('builtins', 'dict'))}(${int(1)}${dict({})}u`,
        wild: call('os', 'system', str('echo hacked')),
        itself: '}q\x07(X\x01\x00\x00\x00xh\x07u',
      };
      expect(await names(dict({ ...beside, model: network }))).to.deep.equal([['w', 'b'], ['parameters of "model"']]);
      // In the very dictionary they are left out.
      const [found, notes] = await names(dict({ ...beside, w: weight() }));
      expect(found).to.deep.equal(['w']);
      expect(notes).to.deep.equal(['left out, cannot be read: "args", "best", "rng" and 8 more']);
    });

    it('does not take an optimizer, a best accuracy or the state of a generator for a network', async () => {
      const moments = `}${int(0)}${dict({ exp_avg: weight(), step: scalar })}s`;
      const beside = { optimizer: dict({ state: moments, param_groups: ']' }), best_acc1: scalar, rng_state: vector };
      expect(await names(dict({ ...beside, state_dict: network }))).to.deep.equal([
        ['w', 'b'],
        ['parameters of "state_dict"'],
      ]);
    });

    it('prefers what has by far the most tensors', async () => {
      const large = dict(Object.fromEntries(Array.from({ length: 21 }, (_, i) => [`w${i}`, weight()])));
      expect((await names(dict({ prototypes: weight(), b: vector, net: large })))[1]).to.deep.equal([
        'parameters of "net"',
      ]);
    });

    it('prefers the network that lies least deep, and tells of the others', async () => {
      const value = dict({ state_dict: network, callbacks: dict({ ema: dict({ weights: network }) }) });
      expect(await names(value)).to.deep.equal([
        ['w', 'b'],
        ['parameters of "state_dict"; also with tensors: there is "callbacks.ema.weights"'],
      ]);
    });

    it('lists what it could mean, and takes what it is told', async () => {
      const value = dict({ model: network, model_ema: dict({ w: weight({ offset: 0 }) }), epoch: int(1) });
      expect(await failure(names(value))).to.match(
        /x\.pth: several dictionaries with tensors, there are "model", "model_ema"; a key \(--key\) says which is meant$/,
      );
      expect(await names(value, { key: 'model_ema' })).to.deep.equal([['w'], []]);
      expect(await names(dict({ a: dict({ b: network }), c: network }), { key: 'a.b' })).to.deep.equal([
        ['w', 'b'],
        [],
      ]);
      expect(await failure(names(value, { key: 'ema' }))).to.match(
        /no dictionary "ema" with tensors, there are "model", "model_ema"$/,
      );
      expect(await failure(names(value, { key: 'model-ema' }))).to.match(
        /no dictionary "model-ema" with tensors \(did you mean "model_ema"\?\), there are "model", "model_ema"$/,
      );
      const file = await save('x.safetensors', safetensors({}));
      expect(await failure(openWeights(file, { key: 'ema' }))).to.match(
        /no \.pth file, only those have dictionaries as "ema"/,
      );
    });

    it('says what a file without parameters holds', async () => {
      const hint = /wanted names with tensors, as torch\.save\(model\.state_dict\(\), \.\.\.\) writes$/;
      expect(await failure(names(object('torchvision.models.resnet', 'ResNet', { w: weight() }))))
        .to.match(/no state dict, but an object of "torchvision\.models\.resnet\.ResNet";/)
        .and.match(hint);
      expect(await failure(names(dict({ model: object('__main__', 'Net') }))))
        .to.match(/no state dict, but a dict of 1 without tensors;/)
        .and.match(hint);
    });
  });

  describe('names', () => {
    const info = (...shape: number[]) => ({ dtype: 'f32' as const, shape });
    const source = (names: Record<string, number[]>): WeightSource =>
      memoryWeights(
        new Map(
          Object.entries(names).map(([name, shape]) => {
            const size = shape.reduce((a, b) => a * b, 1);
            return [name, { ...info(...shape), data: new Float32Array(size).fill(size) }] as const;
          }),
        ),
      );
    const plain = { 'conv1.weight': [2, 3, 1, 1], 'bn1.weight': [2], 'fc.weight': [5, 2], 'fc.bias': [5] };
    const prefixed = (prefix: string) =>
      Object.fromEntries(Object.entries(plain).map(([name, shape]) => [prefix + name, shape]));

    const prefixes = ['module.', '_orig_mod.', 'model.', 'backbone.'];
    for (const prefix of [
      ...prefixes,
      'module._orig_mod.',
      '_orig_mod.module.',
      'model.module.',
      'model.backbone._orig_mod.',
    ]) {
      it(`have no '${prefix}'`, async () => {
        const found = withUsualNames(source(prefixed(prefix)));
        expect([...found.tensors.keys()]).to.deep.equal(Object.keys(plain));
        expect(found.notes).to.deep.equal([`every name without its "${prefix}"`]);
        expect([...(await found.read('bn1.weight'))]).to.deep.equal([2, 2]);
      });
    }

    it('of a file lose what a wrapper put in front of them, and nothing else', async () => {
      const files = async (prefix: string) => {
        const path = join(folder, 'names.safetensors');
        await writeSafetensors(path, source(prefixed(prefix)));
        const found = await openWeights(path);
        const all = [[...found.tensors.keys()].sort(), found.notes];
        expect((await found.read([...found.tensors.keys()][0]!)).length).to.be.above(0);
        await found.close();
        return all;
      };
      const sorted = (prefix: string) => Object.keys(prefixed(prefix)).sort();
      expect(await files('module._orig_mod.')).to.deep.equal([
        sorted(''),
        ['every name without its "module._orig_mod."'],
      ]);
      expect(await files('backbone.')).to.deep.equal([sorted('backbone.'), []]);
    });

    it('of which only some have a prefix stay as they are', () => {
      const some = { 'backbone.conv1.weight': [1], head: [1] };
      expect(withUsualNames(source(some)).tensors).to.have.all.keys(Object.keys(some));
      expect(withUsualNames(source({})).tensors.size).to.equal(0);
    });

    it('of which the prefix never ends are stripped all the same, in a note of bounded length', () => {
      const prefix = 'module.'.repeat(100_000);
      const found = withUsualNames(source(prefixed(prefix)));
      expect([...found.tensors.keys()]).to.deep.equal(Object.keys(plain));
      expect(found.notes?.join()).to.have.lengthOf.below(200);
    });

    it('of a classifier behind a dropout are those of the classifier', async () => {
      const found = withUsualNames(source({ 'conv1.weight': [1], 'fc.1.weight': [5, 2], 'fc.1.bias': [5] }));
      expect([...found.tensors.keys()]).to.deep.equal(['conv1.weight', 'fc.weight', 'fc.bias']);
      expect(found.notes).to.deep.equal(['"fc.1" is the classifier "fc"']);
      expect((await found.read('fc.weight')).length).to.equal(10);
      for (const other of [
        { 'fc.0.weight': [4, 2], 'fc.3.weight': [5, 4] },
        { 'fc.0.weight': [2], 'fc.1.weight': [5, 2] },
        { 'fc.1.weight': [5, 2], 'fc.weight': [5, 2] },
        { 'fc.1.weight': [5, 2, 1] },
      ]) {
        expect([...withUsualNames(source(other)).tensors.keys()]).to.deep.equal(Object.keys(other));
      }
    });

    it('that are there are shown where one is missing', async () => {
      const there = source({ a: [1], b: [1], c: [1], d: [1], e: [1] });
      expect(await failure(there.read('x'))).to.equal('weights: no tensor "x", there are "a", "b", "c" and 2 more');
      expect(await failure(source({}).read('x'))).to.equal('weights: no tensor "x", there is none');
      expect(() => inferOptions(there)).to.throw(
        OctconvError,
        /no known network has these parameters \("a", "b", "c"\), wanted one of /,
      );
    });
  });

  it('of all these kinds at once give a model that computes the same', async () => {
    const options = { width: 4, classes: 3, stem: 'cifar' as const };
    const network = buildNetwork('oct-resnet-26', options);
    const random = initialize(network);
    const model = new Model(network, random);
    const x = tensorOf(
      'f32',
      [1, 16, 16, 3],
      Float32Array.from({ length: 768 }, (_, i) => Math.sin(i)),
    );
    const wanted = [...(await model.run(x)).data];
    model.dispose();

    const storages: Record<string, Buffer> = {};
    const parameters: Record<string, string> = {};
    for (const [name, { shape }] of random.tensors) {
      const data = await random.read(name);
      const key = String(Object.keys(storages).length);
      const [type, bytes] = name.endsWith('bias') ? ['DoubleStorage', Float64Array.from(data)] : ['FloatStorage', data];
      const stride = shape.map((_, i) => shape.slice(i + 1).reduce((a, b) => a * b, 1));
      storages[key] = Buffer.from(bytes.buffer);
      const saved = tensor({ type: type as string, key, elements: data.length, size: [...shape], stride });
      parameters[`module._orig_mod.model.${name.replace(/^fc\./, 'fc.1.')}`] = saved;
    }
    const zeros = weight({ key: '0', elements: 4 });
    const checkpoint = dict({
      args: object('argparse', 'Namespace'),
      model: dict(parameters),
      model_ema: dict({ ...parameters, zeros }),
    });
    const path = await save('all.pth', pth(checkpoint, storages));
    expect(await failure(loadModel(path))).to.match(
      /several dictionaries with tensors, there are "model", "model_ema"/,
    );
    using loaded = await loadModel(path, { key: 'model' });
    expect([...(await loaded.run(x)).data]).to.deep.equal(wanted);
    expect(loaded.name).to.equal('oct-resnet-26');
    expect(loaded.notes?.slice(1)).to.deep.equal([
      'every name without its "module._orig_mod."',
      'every name without its "model."',
      '"fc.1" is the classifier "fc"',
    ]);
    expect(loaded.notes?.[0]).to.match(/^float64 read as f32: \d+ tensors$/);
  });

  describe('shards', () => {
    const part = (...entries: [string, number][]) =>
      memoryWeights(
        new Map(entries.map(([name, value]) => [name, { dtype: 'f32', shape: [1], data: Float32Array.of(value) }])),
      );
    let path: string;
    const index = (map: unknown) => {
      const json = typeof map === 'string' ? map : JSON.stringify({ metadata: {}, weight_map: map });
      return writeFile(join(path, 'model.safetensors.index.json'), json);
    };
    const [one, two] = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'];
    before(async () => {
      path = join(folder, 'sharded');
      await mkdir(path);
      await writeSafetensors(join(path, one), part(['module.b', 2], ['module.a', 1]));
      await writeSafetensors(join(path, two), part(['module.c', 3]));
    });

    it('are read by their index, or by its folder', async () => {
      await index({ 'module.a': one, 'module.b': one, 'module.c': two });
      for (const given of [path, join(path, 'model.safetensors.index.json')]) {
        const source = await openWeights(given);
        expect([...source.tensors.keys()]).to.deep.equal(['a', 'b', 'c']);
        for (const [name, value] of [
          ['a', 1],
          ['b', 2],
          ['c', 3],
        ] as const)
          expect([...(await source.read(name))]).to.deep.equal([value]);
        expect(await failure(source.read('d'))).to.match(
          /index\.json: no tensor "d", there are "module\.a", "module\.b", "module\.c"$/,
        );
        await source.close();
      }
    });

    const cases: [string, unknown, RegExp][] = [
      ['no JSON', '{', /index\.json is not JSON/],
      ['no map', '{}', /no weight_map/],
      ['a list', '[]', /no weight_map/],
      ['a name twice', '{"weight_map":{"a":"x","a":"x"}}', /names "a" twice/],
      ['a deep nest', '['.repeat(100_000), /nests deeper than 8/],
      [
        'a file elsewhere',
        { a: '../x.safetensors' },
        /"a" is in "\.\.\/x\.safetensors", wanted a \.safetensors file beside the index/,
      ],
      ['an absolute path', { a: '/etc/x.safetensors' }, /wanted a \.safetensors file beside/],
      ['another file', { a: 'x.bin' }, /wanted a \.safetensors file beside/],
      ['a number', { a: 1 }, /"a" is in 1, wanted/],
      ['a file that is not there', { a: 'none.safetensors' }, /none\.safetensors: no such file/],
      ['a tensor that is not there', { x: one }, /00001-of-00002\.safetensors: no tensor "x"/],
      ['a tensor that is elsewhere', { 'module.a': one, 'module.b': two, 'module.c': two }, /no tensor "module\.b"/],
      [
        'a tensor left out',
        { 'module.a': one },
        /tensor "module\.b" of "model-00001-of-00002\.safetensors" is not in the index/,
      ],
      [
        'too many files',
        Object.fromEntries(Array.from({ length: 300 }, (_, i) => [`w${i}`, `${i}.safetensors`])),
        /300 files, wanted at most 256/,
      ],
    ];
    for (const [what, map, message] of cases) {
      it(`refuses ${what}`, async () => {
        await index(map);
        expect(await failure(openWeights(path))).to.match(message);
      });
    }
  });

  describe('of the reports', () => {
    before(function () {
      if (!existsSync(reports)) skip(this, 'shared');
    });
    const x = tensorOf(
      'f32',
      [1, 32, 32, 3],
      Float32Array.from({ length: 3072 }, (_, i) => Math.sin(i)),
    );
    const logits = async (file: string) => {
      using model = await loadModel(join(reports, file));
      return [...(await model.run(x)).data];
    };
    for (const file of [
      'neg_bit',
      'ckpt_argparse',
      'ckpt_double',
      'ckpt_lightning',
      'ckpt_net_key',
      'ckpt_numpy_scalar',
      'ckpt_orig_mod',
    ]) {
      it(`${file}.pth gives the logits of small.safetensors`, async () => {
        const [got, wanted] = [await logits(`${file}.pth`), await logits('small.safetensors')];
        for (const [i, value] of wanted.entries()) expect(got[i]).to.be.closeTo(value, 1e-5 * (1 + Math.abs(value)));
      });
    }

    it('ckpt_expanded.pth has one number for all channels', async () => {
      const { source } = await openNetwork(join(reports, 'ckpt_expanded.pth'));
      const variance = await source.read('bn1.running_var');
      expect([variance.length, new Set(variance).size]).to.deep.equal([4, 1]);
      await source.close();
      expect((await logits('ckpt_expanded.pth')).every(Number.isFinite)).to.equal(true);
    });

    it('nan_weights.pth is an error that names the parameter', async () => {
      expect(await failure(logits('nan_weights.pth'))).to.match(
        /nan_weights\.pth: tensor "bn1\.weight" has NaN as element 0/,
      );
    });
  });
});
