/** The authors' own networks in MXNet's files, and the logits that their code gives in MXNet 1.9.1. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import {
  buildNetwork,
  createModel,
  type Graph,
  initialize,
  loadModel,
  namedParameters,
  type NetworkOptions,
  OctconvError,
  openWeights,
  Tensor,
} from '../lib/index.js';
import { defaultInput } from '../lib/input/preprocess.js';
import { toNHWC } from '../lib/layout.js';
import { countFlops } from '../lib/flops.js';
import { inferOptions, withParameterNames } from '../lib/models/infer.js';
import { openNetwork, record as recordNetwork } from '../lib/model.js';
import { targetOf } from '../lib/devices.js';
import { readNpy } from '../lib/npy.js';
import { elementCount } from '../lib/tensor.js';
import { roundValues } from '../lib/weights/elements.js';
import { toFloats } from '../lib/weights/floats.js';
import { writeModelFolder } from '../lib/weights/folder.js';
import { numbers } from './cases.js';
import { floats, params, record, tar } from './weights-files.js';
import { skip } from './skip.js';
import { error } from './expect.js';

const path = (relative: string) => fileURLToPath(new URL(relative, import.meta.url));
const shared = path('../../shared/golden/mxnet'); // test/golden has copies of some cases
const golden = existsSync(shared) ? shared : path('golden/mxnet');

interface Case {
  readonly case: string;
  /** S: their symbols; G: their Gluon code. */
  readonly api: 'S' | 'G';
  readonly alpha: number | null;
  readonly files: readonly [string];
  /** Multiply-adds, and what the authors count, in M at 224 px. */
  readonly macs_m_224: number;
  readonly tool_mflops_224: number;
  readonly params_learnable: number;
  readonly ops?: { readonly [op: string]: number };
  readonly inputs: readonly [
    {
      readonly x: string;
      readonly logits: string;
      /** How far MXNet is from it with kernels in f16, by the largest logit. */
      readonly fp16file_vs_fp32file?: number;
    },
  ];
}

const all = JSON.parse(readFileSync(join(golden, 'index.json'), 'utf8')) as Case[];
const gluon = all.filter(({ api }) => api === 'G');
const fileOf = ({ case: name, files }: Case) => join(golden, name, files[0]);

describe('mxnet: golden networks', () => {
  for (const one of all) {
    const { case: name, inputs } = one;
    for (const device of ['reference', 'cpu'] as const) {
      it(`${name} on ${device}`, async function () {
        this.timeout(60_000);
        const x = toNHWC((await readNpy(join(golden, name, inputs[0].x))) as never);
        const wanted = await readNpy(join(golden, name, inputs[0].logits));
        using model = await loadModel(fileOf(one), { device });
        expect(error((await model.run(x)).data, wanted.data)).to.be.below(1e-4);
      });
    }
  }
});

describe('mxnet: golden networks on every other instruction set', function () {
  this.timeout(120_000);
  if (process.env.OCTCONV_ISA) return; // this is such a run
  for (const isa of ['baseline', 'avx2', 'avx512', 'avx512vnni', 'avx512bf16'].filter(
    (isa) => isa !== targetOf('cpu').traits.isa,
  )) {
    it(isa, function () {
      const mocha = fileURLToPath(new URL('../node_modules/mocha/bin/mocha.js', import.meta.url));
      const args = ['--import=tsx', mocha, '--no-config', '-g', 'on cpu', fileURLToPath(import.meta.url)];
      const { status, stdout, stderr } = spawnSync(process.execPath, args, {
        env: { ...process.env, OCTCONV_ISA: isa },
        encoding: 'utf8',
      });
      if (/not supported by this CPU/.test(stdout + stderr)) skip(this, 'cpu');
      expect(status, stdout + stderr).to.equal(0);
      expect(stdout).to.contain(`${all.length} passing`);
    });
  }
});

/**
 * What the authors' tool does not count in their Gluon networks: adaptive pooling, and ReLUs of branches. Where the low
 * branch is made at stride 2 it counts more: what the 4x4 pooling reads.
 */
function ofGluonUncounted({ nodes, values }: Graph, { ops }: Case): number {
  let adaptive = ops?._contrib_AdaptiveAvgPooling2D ?? 0; // the first ones
  const elements = (id = -1) => elementCount(values[id]?.shape ?? []);
  const branching = nodes.findIndex(({ op }) => op === 'octConv');
  return nodes.reduce((sum, { op, inputs: [x], attrs, params }, i) => {
    const rank = values[x ?? -1]?.shape.length;
    if (op === 'relu6' || (op === 'relu' && rank === 4 && i > branching)) return sum + elements(x);
    if (op === 'globalAvgPool' && adaptive-- > 0) return sum + elements(x);
    if (op === 'octConv' && attrs.stride === 2 && params.h2l) return sum - (3 / 4) * elements(x);
    return sum;
  }, 0);
}

describe('mxnet: what is read off a file', () => {
  const wanted: { readonly [name: string]: readonly [network: string, options: NetworkOptions] } = {
    't-resnet-20-base': ['resnet-v2', { alpha: 0, width: 4, blocks: [1, 2, 1, 2] }],
    't-resnet-20-a0.25': ['oct-resnet-v2', { alpha: 0.25, width: 4, blocks: [1, 2, 1, 2] }],
    't-resnet-20-a0.375': ['oct-resnet-v2', { alpha: 0.375, width: 4, blocks: [1, 2, 1, 2] }],
    't-se-resnet-20-base': ['se-resnet-v2', { alpha: 0, width: 4, blocks: [1, 2, 1, 2] }],
    't-se-resnet-20-a0.375': ['oct-se-resnet-v2', { alpha: 0.375, width: 4, blocks: [1, 2, 1, 2] }],
    't-densenet-base': ['densenet', { alpha: 0, width: 16, blocks: [2, 3, 2, 2] }],
    't-resnext-20-base': ['resnext-v2', { alpha: 0, width: 4, blocks: [1, 2, 1, 2], groups: 2 }],
    't-resnext-20-a0.25': ['oct-resnext-v2', { alpha: 0.25, width: 4, blocks: [1, 2, 1, 2], groups: 2 }],
    't-densenet-a0.25': ['oct-densenet', { alpha: 0.25, width: 16, blocks: [2, 3, 2, 2] }],
    't-mobilenet-v1-a0.375': ['oct-mobilenet-v1', { alpha: 0.375, multiplier: 0.15 }],
    't-mobilenet-v2-a0.375': ['oct-mobilenet-v2', { alpha: 0.375, multiplier: 0.2 }],
    't-resnet-v1f-a0.25': ['oct-resnet-v1f', { alpha: 0.25, width: 4, blocks: [1, 2, 1, 2], stemWidths: [1, 4, 8] }],
    't-se-resnet-v1e-a0.25': [
      'oct-se-resnet-v1e',
      { alpha: 0.25, width: 4, blocks: [1, 2, 1, 2], stemWidths: [4, 4, 8] },
    ],
  };
  for (const one of all) {
    it(one.case, async () => {
      const { source, name, options, input, network: built } = await openNetwork(fileOf(one));
      const graph = recordNetwork(built, [1, 224, 224, 3]);
      const flops = countFlops(graph);
      expect(flops.multiplyAdds / 1e6).to.be.closeTo(one.macs_m_224, 6e-4);
      const uncounted = one.api === 'G' ? ofGluonUncounted(graph, one) : 0;
      expect((flops.authors - uncounted) / 1e6).to.be.closeTo(one.tool_mflops_224, 8e-4);
      expect(flops.parameters).to.equal(one.params_learnable);
      const [network, some] = wanted[one.case] ?? [];
      const stem = one.api === 'S' && { stem: 'imagenet' };
      expect([name, options]).to.deep.equal([network, { classes: 10, channels: 3, ...stem, ...some }]);
      expect([...source.tensors.keys()]).to.have.members([...namedParameters(buildNetwork(name, options)).keys()]);
      // (v - mean) * .0167, or (v - mean) / std
      const [interpolation, scale, std, means] =
        one.api === 'S'
          ? (['bicubic', 0.0167, [1, 1, 1], [124, 117, 104]] as const)
          : (['bilinear', 1, [58.393, 57.12, 57.375], [123.68, 116.779, 103.939]] as const);
      if (!input) throw new Error('no input');
      expect(input).to.deep.include({ resize: 256, antialias: false, interpolation, scale, std });
      for (const [i, mean] of means.entries()) expect((input.mean[i] ?? 0) / input.scale).to.be.closeTo(mean, 1e-9);
      await source.close();
    });
  }

  // The records of a whole network: parameter names turned into the authors'.
  const recordOf = (parameter: string) =>
    parameter
      .replace(/^layer(\d)\.(\d+)\./, (_, s, b) => `L${Number(s) + 1}_B${`${Number(b) + 1}`.padStart(2, '0')}_`)
      .replace(/^transition(\d)\.conv1/, (_, s) => `L${Number(s) + 2}_Trans_conv`)
      .replace(/^conv1\.weight/, 'conv1_conv_weight')
      .replace(/^(bn1|tail)\./, (_, end) => `${end === 'bn1' ? 'conv1' : end}_bn.`)
      .replace(/^fc\./, 'classifier_')
      .replace('downsample', 'conv4')
      .replace(/\.conv\.conv_/, '_conv-')
      .replace(/\.bn_([hl])\.?/, '_bn-$1.')
      .replace(/\.(fc\d)_/, '_$1-')
      .replaceAll('.', '_')
      .replace('se__', 'se_')
      .replace(/running_/, 'moving_')
      .replace(/(bn(?:-[hl])?)_weight$/, '$1_gamma')
      .replace(/(bn(?:-[hl])?)_bias$/, '$1_beta');
  for (const [name, alpha] of [
    ['resnet-v2-26'],
    ['resnet-v2-200'],
    ['oct-resnet-v2-101', 0.125],
    ['oct-resnet-v2-50', 0],
    ['se-resnet-v2-50'],
    ['oct-se-resnet-v2-50', 0.75],
    ['densenet-121'],
    ['oct-densenet-121', 0.125],
    ['oct-densenet-121', 0.01],
    ['resnext-v2-50'],
    ['oct-resnext-v2-101', 0.5],
  ] as const) {
    it(`${name}${alpha === undefined ? '' : ` at alpha ${alpha}`}: every record, every option`, () => {
      const groups = name.includes('resnext') && { groups: 4 };
      const options = { alpha: alpha ?? 0, width: 16, classes: 3, stem: 'imagenet' as const, channels: 3, ...groups };
      const { tensors } = initialize(buildNetwork(name, options));
      const records = new Map([...tensors].map(([key, info]) => [recordOf(key), info]));
      expect([...records.keys()].filter((key) => /\./.test(key))).to.deep.equal([]);
      const source = { tensors: records, read: () => Promise.reject(new Error('not read')), close: async () => {} };
      const found = inferOptions(source);
      expect(found.network).to.equal(name);
      if (alpha !== 0.01) expect(found.options).to.deep.equal(options);
      const named = withParameterNames(source, name);
      expect([...named.tensors]).to.deep.equal([...tensors]);
    });
  }
});

describe('mxnet: Gluon files', () => {
  const folder = mkdtempSync(join(tmpdir(), 'octconv-gluon-'));
  after(() => rmSync(folder, { recursive: true }));

  /** The name that `export` gives a record of `save_parameters`. */
  function exported(saved: string, prefix: string): string {
    const [, place = '', leaf = ''] = /^(.*)\.(\w+)$/.exec(saved) ?? [];
    const stem = prefix === 'R152_' ? 'stem_' : '';
    const name = place
      .replace(/^(L\d_B\d+)\.(conv\d|bn\da?)\.(?:conv|bn)_/, '$1_$2-')
      .replace(/^(L\d_B\d+)\.se_block\.(conv\d)_?/, '$1_se-$2-')
      .replace(/-$/, '')
      .replace(/^conv1\.(\d)$/, (_, i) => `${stem}${i % 3 ? 'bn' : 'conv'}${Math.floor(i / 3) + 1}`)
      .replace(/^conv2\./, 'stem2_')
      .replace(/^tail\.(\d)$/, (_, i) => `tail-${['conv', 'bn'][i]}`)
      .replace('classifer', 'classifier');
    return `${leaf.startsWith('running') ? 'aux' : 'arg'}:${prefix}${name}_${leaf}`;
  }

  /** The golden file with other names, and with what has several axes in f16. */
  async function rewritten(one: Case, rename: (record: string) => string, half: boolean): Promise<string> {
    const source = await openWeights(fileOf(one));
    const records: Record<string, Buffer> = {};
    for (const [name, { shape }] of source.tensors) {
      const values = Float32Array.from(await source.read(name));
      const isHalf = half && !/gamma|beta|running/.test(name);
      const [type, data] = isHalf ? [2, await roundValues(name, 'f16', values)] : [0, values];
      records[rename(name)] = record({ shape, type, data: Buffer.from(data.buffer, data.byteOffset, data.byteLength) });
    }
    await source.close();
    const file = join(folder, `${one.case}.params`);
    await writeFile(file, params(records));
    return file;
  }

  for (const one of gluon) {
    const prefix = one.case.includes('resnet') ? 'R152_' : one.case.includes('v1') ? 'M075_' : 'M1125_';
    const logitsOf = async (file: string, device: 'cpu' | 'reference') => {
      const x = toNHWC((await readNpy(join(golden, one.case, one.inputs[0].x))) as never);
      using model = await loadModel(file, { device });
      return (await model.run(x)).data;
    };

    it(`${one.case} as export names it`, async () => {
      const file = await rewritten(one, (name) => exported(name, prefix), false);
      expect(await logitsOf(file, 'cpu')).to.deep.equal(await logitsOf(fileOf(one), 'cpu'));
    });

    it(`${one.case} with convolutions in f16 beside normalisations in f32`, async () => {
      const file = await rewritten(one, (name) => exported(name, prefix), true);
      const { data: wanted } = await readNpy(join(golden, one.case, one.inputs[0].logits));
      const [{ fp16file_vs_fp32file: apart = 0 }] = one.inputs;
      for (const device of ['cpu', 'reference'] as const)
        expect(error(await logitsOf(file, device), wanted), device).to.be.closeTo(apart, 1e-4);
    });
  }
});

describe('mxnet: Gluon files of v1b', () => {
  const folder = mkdtempSync(join(tmpdir(), 'octconv-v1b-'));
  after(() => rmSync(folder, { recursive: true }));

  /** The record of `save_parameters`, or of `export` with a prefix, that holds a parameter. */
  function recordOf(parameter: string, prefix?: string): string {
    const saved = parameter
      .replace(/^layer(\d)/, 'L$1')
      .replace(/^(L\d)\.(\d+)\./, '$1_B$2.')
      .replace('downsample.0', 'conv4')
      .replace(/\.conv(\d)\.bn_/, '.bn$1.bn_')
      .replace('.conv.conv_', '.conv_')
      .replace(/^conv1\./, 'conv1.0.')
      .replace(/^bn1\./, 'conv1.1.')
      .replace(/^fc\./, 'classifer.')
      .replace(/^(.*(?:bn_[hl]|^conv1\.1))\.weight$/, '$1.gamma')
      .replace(/^(.*(?:bn_[hl]|^conv1\.1))\.bias$/, '$1.beta');
    if (prefix === undefined) return saved;
    const exported = saved
      .replace(/^(L\d_B\d+)\.(conv\d|bn\d)\.(?:conv|bn)_(\w+)\./, '$1_$2-$3_')
      .replace('conv1.0.', 'conv1_')
      .replace('conv1.1.', 'bn1_')
      .replace('classifer.', 'classifier_');
    return `${exported.includes('running') ? 'aux' : 'arg'}:${prefix}${exported}`;
  }

  for (const [name, prefix, options] of [
    ['oct-resnet-50', 'R50_', { alpha: 0.25 }],
    ['oct-resnet-50', 'R50_', { alpha: 0 }],
    ['oct-resnext-50', 'RX50_', { alpha: 0.5, groups: 4 }],
  ] as const) {
    it(`${name} at alpha ${options.alpha}, saved and exported`, async () => {
      const given = { width: 8, classes: 7, ...options };
      const weights = initialize(buildNetwork(name, given));
      using wanted = createModel(name, given);
      const x = new Tensor('f32', [1, 65, 64, 3], numbers(65 * 64 * 3, 1));
      for (const as of [undefined, prefix]) {
        const records: Record<string, Buffer> = {};
        for (const [parameter, { shape }] of weights.tensors) {
          const { buffer } = Float32Array.from(await weights.read(parameter));
          const convolved = parameter === 'fc.weight' ? [...shape, 1, 1] : shape;
          records[recordOf(parameter, as)] = record({ shape: convolved, data: Buffer.from(buffer) });
        }
        expect(Object.keys(records)).to.include(as ? `arg:${as}conv1_weight` : 'L4_B2.bn3.bn_h.gamma');
        const file = join(folder, `${as ?? 'saved'}.params`);
        await writeFile(file, params(records));
        using model = await loadModel(file);
        expect([model.name, model.options]).to.deep.equal([name, wanted.options]);
        expect(model.input).to.include({ antialias: false, interpolation: 'bilinear', resize: 256 });
        expect((await model.run(x)).data).to.deep.equal((await wanted.run(x)).data);
      }
    });
  }

  it('are no files of v2b and of DenseNets, which have a tail and no network here', () => {
    for (const third of [true, false]) {
      const { tensors } = initialize(buildNetwork('oct-resnet-50', { width: 8 }));
      const kept = [...tensors].filter(([key]) => third || !/\.conv3\.|downsample/.test(key));
      const records = new Map(kept.map(([key, info]) => [recordOf(key), info]));
      records.set('tail.0.gamma', { dtype: 'f32', shape: [256] });
      expect(() => inferOptions({ name: 'x.params', tensors: records })).to.throw(
        OctconvError,
        'x.params: no known network has these parameters',
      );
    }
  });
});

describe('mxnet: records', () => {
  it('two of one parameter are an error', () => {
    const { tensors } = initialize(buildNetwork('resnet-v2', { width: 4, blocks: [1, 1, 1, 1] }));
    const twice = new Map([...tensors, ['L2_B01_conv1_bn_gamma', { dtype: 'f32' as const, shape: [4] }]]);
    const message = `x.params: "layer1.0.conv1.bn.weight" and "L2_B01_conv1_bn_gamma" are both "layer1.0.conv1.bn.weight"`;
    expect(() => inferOptions({ name: 'x.params', tensors: twice })).to.throw(OctconvError, message);
  });

  const folder = mkdtempSync(join(tmpdir(), 'octconv-mxnet-'));
  after(() => rmSync(folder, { recursive: true }));
  const open = async (bytes: Buffer) => {
    const file = join(folder, 'x.params');
    await writeFile(file, bytes);
    return openWeights(file);
  };
  const doubles = (...values: number[]) => Buffer.from(Float64Array.from(values).buffer);

  it('of every version and type, with their names, in a tar or bare', async () => {
    const bytes = params({
      'arg:v0': record({ version: 0, shape: [2, 1], data: floats(1, -2) }),
      'arg:v1': record({ version: 1, shape: [3], data: floats(3, 4, 5) }),
      'aux:v2': record({ version: 2, shape: [1, 1, 1, 1], data: floats(6) }),
      'v3.weight': record({ version: 3, shape: [], data: floats(7) }),
      none: record({ version: 2, shape: [], data: Buffer.alloc(0) }),
      'arg:empty': record({ version: 2, shape: [0], data: Buffer.alloc(0) }),
      f8: record({ shape: [2], type: 1, data: doubles(1 / 3, 1e30) }),
      f2: record({ shape: [2], type: 2, data: Buffer.from(Uint16Array.of(0x3c00, 0xc000).buffer) }),
      bf16: record({ shape: [1], type: 12, data: Buffer.from(Uint16Array.of(0x4040).buffer) }),
      i4: record({ shape: [1], type: 4, data: Buffer.from(Int32Array.of(-5).buffer) }),
    });
    const symbol = { name: 'x-symbol.json', data: Buffer.from('{"nodes":[]}') };
    const pax = { name: 'pax', type: 'x', data: Buffer.from('19 mtime=1.5\n') };
    for (const file of [bytes, tar([pax, symbol, { name: 'x/checkpoint-0-0000.params', data: bytes }])]) {
      const source = await open(file);
      const read = async (name: string) => {
        const { dtype = 'f32', shape } = source.tensors.get(name) ?? {};
        return [shape, ...toFloats(dtype, await source.read(name))];
      };
      expect([...source.tensors.keys()]).to.deep.equal([
        'v0',
        'v1',
        'v2',
        'v3.weight',
        'empty',
        'f8',
        'f2',
        'bf16',
        'i4',
      ]);
      expect(await read('v0')).to.deep.equal([[2, 1], 1, -2]);
      expect(await read('v1')).to.deep.equal([[3], 3, 4, 5]);
      expect(await read('v2')).to.deep.equal([[1, 1, 1, 1], 6]);
      expect(await read('v3.weight')).to.deep.equal([[], 7]);
      expect(await read('empty')).to.deep.equal([[0]]);
      expect(await read('f8')).to.deep.equal([[2], Math.fround(1 / 3), Math.fround(1e30)]);
      expect(await read('f2')).to.deep.equal([[2], 1, -2]);
      expect(await read('bf16')).to.deep.equal([[1], 3]);
      expect(await read('i4')).to.deep.equal([[1], -5]);
      expect(await source.read('none').catch(String)).to.match(/no tensor "none"/);
      await source.close();
    }
  });

  it('become a model folder', async () => {
    const one = all.find(({ case: name }) => name === 't-densenet-a0.25');
    if (!one) throw new Error('no such case');
    const { source, name, options, input } = await openNetwork(fileOf(one));
    const labels = Array.from({ length: 10 }, (_, i) => `class ${i}`);
    await writeModelFolder(
      join(folder, 'model'),
      { network: name, options, input: input ?? defaultInput() },
      labels,
      source,
    );
    await source.close();
    const x = toNHWC((await readNpy(join(golden, one.case, one.inputs[0].x))) as never);
    using model = await loadModel(join(folder, 'model'));
    expect(
      error((await model.run(x)).data, (await readNpy(join(golden, one.case, one.inputs[0].logits))).data),
    ).to.be.below(1e-4);
    expect([model.name, model.options, model.input]).to.deep.equal(['oct-densenet', options, input]);
  });

  it('in a tar with its symbol, of the authors', async () => {
    const [one] = all;
    if (!one) throw new Error('no cases');
    const data = readFileSync(fileOf(one));
    const file = join(folder, 'release.tar');
    await writeFile(
      file,
      tar([
        { name: 'a-symbol.json', data: Buffer.from('{}') },
        { name: 'a-0000.params', data },
      ]),
    );
    using model = await loadModel(file);
    expect(model.name).to.equal('resnet-v2');
  });
});
