/** Native code trusts no plan. */
import { expect } from 'chai';
import { type Device, native, type NativeParam, type NativePlanSpec } from '../lib/native.js';

describe('ops: native code trusts no plan', () => {
  type Sizes = readonly number[];
  const x = [1, 1, 5, 6, 4];
  const window = { kernel: [1, 3, 3], stride: [1, 1, 1], padding: [0, 0, 0], ceilMode: false };
  const source = { input: 0, weight: 'w', kernel: [1, 3, 3], padding: [0, 1, 1], groups: 1, pool: 0, upsample: false };
  const branches = (more: object, branch: object = {}) => ({
    branches: [{ terms: [{ sources: [{ ...source, ...more }] }], stores: [{ output: 0 }], ...branch }],
  });
  const weight = { w: { dtype: 'f32', shape: [4, 4, 3, 3], data: new Float32Array(144) } } as const;

  /** Why a plan of this one step is refused. */
  const refusal = (
    op: string,
    inputs: Sizes[],
    outputs: Sizes[],
    attrs: object = {},
    {
      packed = false,
      dtype = 'f32',
      devices = ['reference', 'cpu'],
    }: { packed?: boolean; dtype?: 'f32' | 'i8'; devices?: Device[] } = {},
  ): Promise<string[]> => {
    const values = [...inputs, ...outputs].map(
      (shape, at) => ({ dtype, shape, place: 'arena', at: at * 4096 }) as const,
    );
    const ids = values.map((_, id) => id);
    const step = {
      op,
      name: 'a.b',
      attrs: attrs as never,
      inputs: ids.slice(0, inputs.length),
      outputs: ids.slice(inputs.length),
    };
    const refused = async (device: Device) => {
      const list = packed ? [await native.pack(device, 'octConv', branches({}), weight)] : [];
      await native.compile(device, {
        threads: 1,
        arenaBytes: 4096 * values.length,
        values,
        steps: [{ ...step, packed: list }],
      });
    };
    return Promise.all(
      devices.map((device) =>
        refused(device).then(
          () => 'nothing was refused',
          (error: Error) => error.message,
        ),
      ),
    );
  };
  const packed = { packed: true };

  it('refuses what does not fit, by the name of the op', async () => {
    const table: [wanted: string, refused: Promise<string[]>][] = [
      ['jump: there is no such op', refusal('jump', [x], [x])],
      ["relu: 'a.b' has 2 inputs and 1 outputs, wanted 1 and 1", refusal('relu', [x, x], [x])],
      ['relu: no kernel for i8 on', refusal('relu', [x], [x], {}, { dtype: 'i8' })],
      ['relu6: input [1,1,5,6,4] and output [1,1,5,6,3]', refusal('relu6', [x], [[1, 1, 5, 6, 3]])],
      ['softmax: output [1,1,5,6,3] of input [1,1,5,6,4]', refusal('softmax', [x], [[1, 1, 5, 6, 3]])],
      ['softmax: axis 0, wanted 1 to 4', refusal('softmax', [x], [x], { axis: 0 })],
      [
        'attention: q [1,1,5,6,4], k [1,1,5,6,3] and v [1,1,5,6,4], output [1,1,5,6,4], wanted',
        refusal('attention', [x, [1, 1, 5, 6, 3], x], [x], { scale: 1 }),
      ],
      [
        'attention: q [1,1,5,6,4], k [1,1,5,6,4] and v [1,1,6,5,4], output [1,1,5,6,4], wanted',
        refusal('attention', [x, x, [1, 1, 6, 5, 4]], [x], { scale: 1 }),
      ],
      ["attribute 'scale' is missing", refusal('attention', [x, x, x], [x])],
      ['attention: scale inf, wanted a finite number', refusal('attention', [x, x, x], [x], { scale: Infinity })],
      ['add: inputs [1,1,5,6,4] and [1,1,1,1,3]', refusal('add', [x, [1, 1, 1, 1, 3]], [x])],
      [
        'div: inputs [1,1,5,6,4] and [1,1,1,1,4], output [1,1,5,6,1]',
        refusal('div', [x, [1, 1, 1, 1, 4]], [[1, 1, 5, 6, 1]]),
      ],
      [
        'slice: output [1,1,5,6,3] from 2 along axis 4',
        refusal('slice', [x], [[1, 1, 5, 6, 3]], { starts: [0, 0, 0, 0, 2] }),
      ],
      [
        'slice: output [1,1,5,6,3] from -1 along axis 4',
        refusal('slice', [x], [[1, 1, 5, 6, 3]], { starts: [0, 0, 0, 0, -1] }),
      ],
      ['slice: starts has 2 numbers, wanted 5', refusal('slice', [x], [x], { starts: [0, 0] })],
      ['transpose: axis 1, wanted each of 0 to 4 once', refusal('transpose', [x], [x], { axes: [0, 1, 1, 3, 4] })],
      ['transpose: axis 5, wanted each of 0 to 4 once', refusal('transpose', [x], [x], { axes: [0, 1, 2, 3, 5] })],
      [
        'transpose: output [1,1,5,6,4] of input [1,1,5,6,4] does not fit',
        refusal('transpose', [x], [x], { axes: [0, 1, 3, 2, 4] }),
      ],
      ['reshape: output [1,1,5,6,3] of input [1,1,5,6,4]', refusal('reshape', [x], [[1, 1, 5, 6, 3]])],
      ['mean: output [1,1,5,6,4] of input [1,1,5,6,4]', refusal('mean', [x], [x], { axes: [4] })],
      ['mean: axis 0, wanted 1 to 4', refusal('mean', [x], [x], { axes: [0] })],
      ['interpolate: [1,1,5,6,4] to [1,1,5,6,3]', refusal('interpolate', [x], [[1, 1, 5, 6, 3]])],
      ['matmul: inputs [1,1,5,6,4] and [1,1,5,6,4]', refusal('matmul', [x, x], [x])],
      ['mul: inputs [1,1,5,6,4] and [2,1,1,1,4]', refusal('mul', [x, [2, 1, 1, 1, 4]], [x])],
      ['concat: output [1,1,5,6,9] of inputs with 8 channels', refusal('concat', [x, x], [[1, 1, 5, 6, 9]])],
      [
        'concat: input 1 is [1,1,5,5,4], wanted [1,1,5,6,4]',
        refusal('concat', [x, [1, 1, 5, 5, 4]], [[1, 1, 5, 6, 8]]),
      ],
      ['maxPool: output [1,1,5,6,4] of input [1,1,5,6,4], wanted [1,1,3,4,4]', refusal('maxPool', [x], [x], window)],
      ['avgPool: kernel 3, stride 1, padding 2', refusal('avgPool', [x], [x], { ...window, padding: [0, 2, 2] })],
      [
        'maxPool: pooled output [1,1,2,2,3]',
        refusal(
          'maxPool',
          [x],
          [
            [1, 1, 3, 4, 4],
            [1, 1, 2, 2, 3],
          ],
          window,
        ),
      ],
      ['globalAvgPool: output [1,1,1,1,5]', refusal('globalAvgPool', [x], [[1, 1, 1, 1, 5]])],
      [
        'upsampleNearest: output [1,1,8,12,4]',
        refusal('upsampleNearest', [x], [[1, 1, 8, 12, 4]], { scale: [1, 2, 2] }),
      ],
      ['pad: output [1,1,5,6,4] of', refusal('pad', [x], [x], { before: [0, 1, 0], after: [0, 0, 0] })],
      ['pad: sizes must not be negative', refusal('pad', [x], [x], { before: [0, -1, 0], after: [0, 1, 0] })],
      ["batchNorm: the weights of 'a.b' were not packed for this op", refusal('batchNorm', [x], [x], {}, packed)],
      ["octConv: the weights of 'a.b' were not packed for this op", refusal('octConv', [x], [x], branches({}))],
      ["octConv: 'a.b' makes [1,1,5,6,4]", refusal('octConv', [x], [[1, 1, 5, 5, 4]], branches({}), packed)],
      ['octConv: 3 groups do not divide 4', refusal('octConv', [x], [x], branches({ groups: 3 }), packed)],
      ['octConv: padding or pool out of range', refusal('octConv', [x], [x], branches({ pool: 9 }), packed)],
      ['octConv: compute', refusal('octConv', [x], [x], branches({}, { compute: 'f64' }), packed)],
      ['octConv: scale 0 or zero 0 out of range', refusal('octConv', [x], [x], branches({ scale: 0 }), packed)],
      ['octConv: scale 1 or zero 256 out of range', refusal('octConv', [x], [x], branches({ zero: 256 }), packed)],
      [
        'octConv: residual [1,1,1,1,4] must be',
        refusal('octConv', [x, [1, 1, 1, 1, 4]], [x], branches({}, { residual: 1 }), packed),
      ],
      [
        "octConv: the weights given to 'a.b' were packed for another layer",
        refusal('octConv', [x], [[1, 1, 5, 6, 5]], branches({}), packed),
      ],
    ];
    const huge = [2 ** 31, 2 ** 9, 2 ** 24, 1, 1]; // 2^64 elements
    table.push(
      ['sizes: 2147483648 x 512 x 16777216 x 1 x 1 is too large', refusal('relu', [huge], [huge])],
      ["octConv: 'a.b' has no input 7, only 1", refusal('octConv', [x], [x], branches({ input: 7 }), packed)],
      [
        "octConv: 'a.b' has no output 3, only 1",
        refusal('octConv', [x], [x], branches({}, { stores: [{ output: 3 }] }), packed),
      ],
      ['attribute nan must be an integer', refusal('octConv', [x], [x], branches({ groups: Number.NaN }), packed)],
      ['attribute 1e+300 must be an integer', refusal('octConv', [x], [x], branches({ pool: 1e300 }), packed)],
    );
    for (const [wanted, refused] of table) for (const message of await refused) expect(message).to.include(wanted);
  });

  it('refuses stores that do not fit', async () => {
    const stores = (...list: object[]) => branches({}, { stores: list });
    const half = [1, 1, 3, 3, 4];
    const gated = { terms: [], gated: { input: 0, gate: 0 }, stores: [{ output: 0 }] };
    const table: [wanted: string, refused: Promise<string[]>][] = [
      ["octConv: 'a.b' has a branch without stores", refusal('octConv', [x], [x], stores(), packed)],
      [
        "octConv: output 0 of 'a.b' is stored twice",
        refusal('octConv', [x], [x], stores({ output: 0 }, { output: 0 }), packed),
      ],
      [
        "octConv: the gate of 'a.b' is [1,1,5,6,4], wanted [1,1,1,1,4]",
        refusal('octConv', [x], [x], { branches: [gated] }, packed),
      ],
      [
        'octConv: a branch with a gate has no terms and computes in f32',
        refusal('octConv', [x], [x], branches({}, { gated: gated.gated }), packed),
      ],
      [
        'octConv: a branch with a gate has no terms and computes in f32',
        refusal('octConv', [x], [x], { branches: [{ ...gated, compute: 'bf16' }] }, packed),
      ],
      [
        "octConv: 'a.b' makes [1,1,5,6,3] of a gate and input [1,1,5,6,4]",
        refusal('octConv', [x], [[1, 1, 5, 6, 3]], { branches: [gated] }, packed),
      ],
      [
        "octConv: a store of 'a.b' is [1,1,5,6,4], wanted [1,1,1,1,4]",
        refusal('octConv', [x], [x], stores({ output: 0, mean: true }), packed),
      ],
      [
        'octConv: a store has the mean of a pooled value',
        refusal('octConv', [x], [x], stores({ output: 0, mean: true, pool: 1 }), packed),
      ],
      [
        "octConv: 'sign' is no function of one value",
        refusal('octConv', [x], [x], stores({ output: 0, activation: { function: 'sign' } }), packed),
      ],
      [
        'octConv: a prologue with silu, wanted a clamp',
        refusal('octConv', [x], [x], branches({ prologue: { function: 'silu' } }), packed),
      ],
      ["octConv: 'a.b' leaves an output unwritten", refusal('octConv', [x], [x, x], stores({ output: 0 }), packed)],
      [
        "octConv: a store of 'a.b' is [1,1,5,6,4], wanted [1,1,3,3,4]",
        refusal('octConv', [x], [x], stores({ output: 0, pool: 1 }), packed),
      ],
      ['octConv: a store has pool 3', refusal('octConv', [x], [half], stores({ output: 0, pool: 3 }), packed)],
      [
        'octConv: a clamp from 2 to 1',
        refusal('octConv', [x], [x], stores({ output: 0, activation: { least: 2, most: 1 } }), packed),
      ],
      [
        'were packed for another layer',
        refusal('octConv', [x], [x], stores({ output: 0, activation: { batchNorm: 'n' } }), packed),
      ],
    ];
    for (const [wanted, refused] of table) for (const message of await refused) expect(message).to.include(wanted);
  });

  it('refuses to pack what does not fit', async () => {
    const pack = (attrs: object, w = weight.w as NativeParam, more = {}) =>
      native.pack('cpu', 'octConv', attrs as never, { w, ...more }).then(() => 'nothing was refused', String);
    const i8 = { dtype: 'i8', shape: [4, 4, 3, 3], data: new Int8Array(144).fill(100) } as const;
    const scale = (data: Float32Array) => ({ 'w.scale': { dtype: 'f32', shape: [data.length], data } as const });
    const hints = (winograd: number) => ({ hints: { winograd } });
    expect(await pack(branches({}, hints(3)))).to.include('octConv: winograd 3, wanted 2 or 4');
    expect(await pack(branches({ stride: [1, 2, 2] }, hints(4)))).to.include('octConv: winograd wants 3x3');
    expect(await pack(branches({ kernel: [1, 1, 1] }, hints(4)))).to.include(
      'octConv: w does not have 4 output channels and 1 taps',
    );
    expect(await pack(branches({ kernel: [1, 1, 1] }))).to.include(
      'octConv: w does not have 4 output channels and 1 taps',
    );
    const overTime = (winograd: number) => ({ hints: { winograd, overTime: true } });
    const w = { dtype: 'f32', shape: [4, 4, 3, 3, 1], data: new Float32Array(144) } as const;
    const time = { kernel: [3, 3, 1], padding: [1, 1, 0] };
    expect(await pack(branches(time, overTime(4)), w)).to.equal('nothing was refused');
    expect(await pack(branches(time, { hints: { overTime: true } }), w)).to.include('hint overTime without winograd');
    expect(await pack(branches({}, overTime(4)))).to.include(
      'octConv: winograd 4 over 1 taps of time, wanted 4 over 3',
    );
    expect(await pack(branches(time, overTime(2)), w)).to.include('octConv: winograd 2 over 3 taps of time, wanted 4');
    for (const wrong of [{ stride: [2, 1, 1] }, { dilation: [2, 1, 1] }, { padding: [0, 1, 0] }, { groups: 2 }])
      expect(await pack(branches({ ...time, ...wrong }, overTime(4)), w)).to.match(
        /winograd over time wants sources of as many taps|input channels/,
      );
    expect(await pack(branches({ groups: 3 }))).to.include('octConv: 3 groups do not divide 4');
    expect(await pack(branches({}, { compute: 'i8' }), i8)).to.include("octConv: parameter 'w.scale' is missing");
    expect(await pack(branches({}, { compute: 'i8' }), i8, scale(new Float32Array(3)))).to.include(
      'octConv: w.scale has 3 elements, wanted 4',
    );
    const both = {
      branches: [{ terms: [{ sources: [source], bias: 'b', scaleOnly: true }], stores: [{ output: 0 }] }],
    };
    expect(await pack(both)).to.include('octConv: a term with a bias and a scale alone');
    const twice = {
      branches: [{ terms: [{ sources: [source, { ...source, scale: 2 }] }], stores: [{ output: 0 }], compute: 'i8' }],
    };
    expect(await pack(twice, i8, scale(new Float32Array(4).fill(1)))).to.include('octConv: w has i8 of another scale');
  });

  it('refuses segments and places that do not fit their steps or values', async () => {
    const type = { dtype: 'f32', shape: x, place: 'arena' } as const;
    const steps = [{ op: 'relu', name: 'a', attrs: {}, inputs: [0], outputs: [1], packed: [] }];
    const refused = (spec: Partial<NativePlanSpec>) =>
      native
        .compile('cpu', { threads: 1, arenaBytes: 4096, values: [], steps, ...spec })
        .then(() => 'nothing was refused', String);
    const compile = (rounds: number, segments: { steps: number; rounds: number }[]) =>
      refused({
        values: [
          { ...type, at: 0, rounds },
          { ...type, at: 2048 },
        ],
        segments,
      });
    expect(await compile(2, [{ steps: 1, rounds: 2 }])).to.equal('nothing was refused');
    expect(await compile(2, [{ steps: 1, rounds: 3 }])).to.include('plan: a value of 2 rounds in a segment of 3');
    expect(await compile(1, [{ steps: 2, rounds: 1 }])).to.include('plan: segments must cover all steps');
    expect(await compile(1, [{ steps: 0, rounds: 1 }])).to.include('plan: segments must cover all steps');
    expect(await compile(9, [{ steps: 1, rounds: 9 }])).to.include(
      'plan: a value [1,1,5,6,4] at 0 does not fit into 4096',
    );
    const thrown = (f: () => unknown, text: string) => expect(f).to.throw(text);
    thrown(() => compile(1, [{ steps: 1, rounds: 0 }]), 'plan: rounds of a segment must be an integer from 1');
    thrown(() => compile(0, [{ steps: 1, rounds: 1 }]), 'plan: rounds of a value must be an integer from 1');
    for (const arenaBytes of [-64, -1, 2 ** 61, 1.5, Number.NaN])
      thrown(() => refused({ arenaBytes }), 'plan: arenaBytes must be an integer from 0');
    for (const threads of [0, native.mostThreads + 1, 1.5])
      thrown(() => refused({ threads }), 'plan: threads must be an integer from 1 to 1024');
    const [small, large] = [[1, 1, 1, 1, 4], x].map((shape) => ({ ...type, shape, place: 'input', at: 0 }) as const);
    expect(await refused({ values: [small as never, large as never] })).to.include(
      'plan: input 0 is of 16 and of 480 bytes',
    );
    expect(
      await refused({
        values: [
          { ...type, place: 'input', at: 2 ** 39 },
          { ...type, at: 0 },
        ],
      }),
    ).to.include('plan: input 549755813888 of 2 values');
    expect(
      await refused({
        values: [
          { ...type, place: 'output', at: 1 },
          { ...type, at: 0 },
        ],
      }),
    ).to.include('plan: no value is output 0');
  });

  it('refuses to observe what is no f32 that a run has whole, and on devices of their own memory', async () => {
    const type = { dtype: 'f32', shape: x, at: 0 } as const;
    const values = [
      { ...type, place: 'input' },
      { ...type, place: 'arena' },
      { ...type, place: 'output', pitch: undefined },
      { ...type, place: 'arena', at: 1024, pitch: 5 },
      { ...type, place: 'arena', dtype: 'bf16', at: 2048 },
    ] as const;
    const step = (op: string, from: number, to: number) => ({
      ...{ op, name: 'a', attrs: {}, inputs: [from], outputs: [to], packed: [] },
    });
    const steps = [step('relu', 0, 2), step('concat', 0, 3), step('concat', 4, 4)];
    const observing = (observed: readonly number[], device: Device = 'cpu') =>
      native.compile(device, { threads: 1, arenaBytes: 4096, values, steps: steps.slice(0, 2), observed }).then(
        ({ plan }) => native.release(plan),
        (error: Error) => error.message,
      );
    for (const device of ['cpu', 'reference'] as const) expect(await observing([2, 0], device)).to.equal(undefined);
    expect(await observing([5])).to.equal('plan: observed value 5 of 5');
    expect(await observing([1])).to.equal('plan: observed value 1 is no whole input, and no step writes it');
    expect(await observing([0, 2, 0])).to.equal('plan: value 0 is observed twice');
    expect(await observing([3])).to.equal(
      'plan: observed value 3 is f32 [1,1,5,6,4] of pitch 5, wanted f32 without gaps',
    );
    expect(await observing([2], 'cuda:sm_90')).to.equal(
      'plan: values are observed in host memory, on cpu and reference only',
    );
    expect(() => observing([-1])).to.throw('plan: observed values must be an integer from 0');
  });

  it('refuses sizes that overflow or that no machine has, before anything is allocated', async () => {
    const side = 2 ** 22;
    const wide = { kernel: [side, side, side], stride: [1, 1, 1], padding: [0, 0, 0], ceilMode: false };
    const table: [wanted: string, refused: Promise<string[]>][] = [
      [
        'plan: a value [1,1,1048576,1048576,1] of 1 rounds takes more than 1099511627776 bytes',
        refusal('relu', [[1, 1, 2 ** 20, 2 ** 20, 1]], [x]),
      ],
      ['sizes: 4194304 x 4194304 x 4194304 is too large', refusal('avgPool', [x], [x], wide)],
      [
        'octConv: w has 4611686018427387904 taps, wanted at most 1048576',
        refusal('octConv', [x], [x], branches({ kernel: [1, 2 ** 31, 2 ** 31] }), packed),
      ],
      [
        'sizes: 2147483648 x 2147483648 x 2147483648 is too large',
        refusal('octConv', [x], [x], branches({ kernel: [2 ** 31, 2 ** 31, 2 ** 31] }), packed),
      ],
      ['octConv: padding or pool out of range', refusal('octConv', [x], [x], branches({ pool: 2 ** 53 }), packed)],
      [
        'octConv: kernel, stride and dilation must be from 1 to',
        refusal(
          'octConv',
          [x],
          [[1, 1, 3, 3, 4]],
          branches({ stride: [1, 0, 1] }, { stores: [{ output: 0, pool: 1 }] }),
          packed,
        ),
      ],
    ];
    for (const [wanted, refused] of table) for (const message of await refused) expect(message).to.include(wanted);
    const picture = (height: number, place: 'input' | 'output') =>
      ({ dtype: 'u8', shape: [1, 1, height, 8, 3], place, at: 0 }) as const;
    const attrs = { height: 2 ** 25, width: 8, interpolation: 'bilinear' };
    const resize = { op: 'resize', name: 'a', attrs, inputs: [0], outputs: [1], packed: [] };
    const resized = native.compile('cpu', {
      threads: 1,
      arenaBytes: 0,
      values: [picture(9, 'input'), picture(2 ** 25, 'output')],
      steps: [resize],
    });
    expect(await resized.then(() => '', String)).to.include('resize: [1,1,9,8,3] to [1,1,33554432,8,3]');
    const type = { dtype: 'f32', shape: x, place: 'arena' } as const;
    const steps = [{ op: 'relu', name: 'a', attrs: {}, inputs: [0], outputs: [1], packed: [] }];
    const plan = (arenaBytes: number) =>
      native.compile('cpu', {
        threads: 1,
        arenaBytes,
        values: [
          { ...type, at: 0 },
          { ...type, at: 2048 },
        ],
        steps,
      });
    expect(await plan(2 ** 40).then(() => '', String)).to.match(
      /plan: a run takes \d+ bytes, wanted at most 1099511627776/,
    );
    // V8 ends the process if it is told of 2^60 bytes at once.
    const { plan: large, runBytes } = await plan(2 ** 39);
    expect(runBytes).to.be.within(2 ** 39, 2 ** 40);
    native.release(large);
  });

  it('refuses weights of another layer with as many numbers', async () => {
    const values = (channels: number) =>
      (['input', 'output'] as const).map(
        (place) => ({ dtype: 'f32', shape: [1, 1, 5, 6, channels], place, at: 0 }) as const,
      );
    const one = { kernel: [1, 1, 1], padding: [0, 0, 0] };
    const step = (attrs: object, list: unknown[]) =>
      ({ op: 'octConv', name: 'a', attrs, inputs: [0], outputs: [1], packed: list }) as never;
    for (const device of ['cpu', 'reference', 'cuda:sm_90']) {
      const pack = (attrs: object, ...shape: number[]) =>
        native.pack(device, 'octConv', attrs as never, {
          w: { dtype: 'f32', shape, data: new Float32Array(shape.reduce((a, b) => a * b, 1)) },
        });
      const compile = async (attrs: object, [from, to]: number[], held: Promise<unknown>) => {
        const [input, output] = [values(from as number)[0], values(to as number)[1]] as never[];
        const spec = {
          threads: 1,
          arenaBytes: 0,
          values: [input, output] as never,
          steps: [step(attrs, [await held])],
        };
        return native.compile(device, spec).then(() => 'nothing was refused', String);
      };
      const grouped = { ...branches({ ...one, groups: 2 }) };
      expect(await compile(grouped, [4, 4], pack(grouped, 4, 2, 1, 1)), device).to.equal('nothing was refused');
      // Which taps of few channels lie together on a GPU depends on the kernel, the dilation and the padding.
      const row = (dilation: number, padding = dilation) =>
        branches({ kernel: [1, 1, 3], padding: [0, 0, padding], dilation: [1, 1, dilation] });
      const wide = branches({ kernel: [1, 1, 3], padding: [0, 0, 4], stride: [1, 1, 2] });
      for (const used of [row(2), wide]) {
        const other = await compile(used, [3, 4], pack(row(1), 4, 3, 1, 3));
        expect(other, device).to.include(
          device === 'cuda:sm_90' ? 'were packed for another layer' : 'nothing was refused',
        );
      }
      if (device === 'cuda:sm_90') {
        const high = { kernel: [1, 3, 1], padding: [0, 1, 0] };
        expect(await compile(branches(high), [3, 4], pack(row(1), 4, 3, 1, 3))).to.include(
          'were packed for another layer',
        );
        const low = { ...one, upsample: true };
        expect(await compile(branches(one), [4, 4], pack(branches(low), 4, 4, 1, 1))).to.include(
          'were packed for another layer',
        );
      }
      if (device !== 'reference')
        expect(await compile(branches(one), [2, 4], pack(grouped, 4, 2, 1, 1)), device).to.include(
          'were packed for another layer',
        );
      expect(await compile(branches(one), [4, 9], pack(branches(one), 4, 9, 1, 1)), device).to.include(
        'were packed for another layer',
      );
      const none = pack(branches({ ...one }, { compute: 'bf16' }), 0, 4, 1, 1);
      expect(await none.then(() => '', String), device).to.include('octConv: 1 groups do not divide 0 output channels');
    }
    // By a plan that asks for what a device does not multiply.
    const refused = (device: string, compute: string) =>
      native.pack(device, 'octConv', branches({}, { compute }) as never, weight).then(() => '', String);
    expect(await refused('cpu', 'f16')).to.include('octConv: no kernel for f16 on cpu');
    expect(await refused('cuda:sm_90', 'i8')).to.include('octConv: no kernel for i8 on cuda');
    for (const compute of ['f32', 'bf16'])
      expect(await refused('cuda:sm_75', compute)).to.include(`octConv: no kernel for ${compute} on sm_75, wanted f16`);
    const large = native.pack.bind(null, 'cpu', 'octConv', branches({}) as never);
    expect(() => large({ w: { dtype: 'f32', shape: [4, 2 ** 62, 1, 1], data: new Float32Array(4) } })).to.throw(
      'size of a parameter must be an integer',
    );
    expect(() => large({ w: { dtype: 'f32', shape: [2 ** 40, 2 ** 40, 1, 1], data: new Float32Array(4) } })).to.throw(
      'is too large',
    );
  });

  it('refuses two values in one place; errors are one line of bounded length', async () => {
    const value = (place: string, shape = x) => ({ dtype: 'f32', shape, place, at: 0 });
    const steps = [{ op: 'relu', name: 'a', attrs: {}, inputs: [0], outputs: [2], packed: [] }];
    const compile = (values: object[], op = 'relu') =>
      native
        .compile('cpu', {
          threads: 1,
          arenaBytes: 4096,
          values: values as never,
          steps: steps.map((step) => ({ ...step, op })),
        })
        .then(
          () => '',
          (error: Error) => error.message,
        );
    expect(await compile([value('input'), value('input', [1, 1, 6, 5, 4]), value('output')])).to.equal(
      'plan: two values are input 0',
    );
    expect(await compile([value('arena'), value('output'), value('output')])).to.equal('plan: two values are output 0');
    const arena = [value('arena'), value('arena'), value('arena')];
    expect(await compile(arena, 'a\nb\u001b')).to.equal('a b : there is no such op');
    expect((await compile(arena, 'é'.repeat(10_000))).length).to.equal(503);
  });

  it('refuses pitches that no kernel takes, or that leave the arena', async () => {
    const type = { dtype: 'f32', shape: x, place: 'arena', at: 0 } as const;
    const compile = async (op: string, value: object, arenaBytes = 4096, rounds = 1) => {
      const values = [
        { ...type, ...value, rounds },
        { ...type, at: 4096 - 480, ...(op === 'concat' && { at: 0 }) },
      ];
      const steps = [{ op, name: 'a', attrs: {}, inputs: [0], outputs: [1], packed: [] }];
      return native
        .compile('cpu', { threads: 1, arenaBytes, values, steps, segments: [{ steps: 1, rounds }] })
        .then(() => 'nothing was refused', String);
    };
    expect(await compile('relu', { pitch: 4 })).to.equal('nothing was refused');
    expect(await compile('relu', { pitch: 5 })).to.include(
      "relu: no kernel for pixels 5 elements apart on cpu, as in 'a', wanted 4",
    );
    expect(await compile('concat', { pitch: 5, place: 'input' })).to.include(
      'plan: a value [1,1,5,6,4] of pitch 5 outside of the arena',
    );
    // 30 pixels of 8 elements, the last of them without the 4 that are not its own; twice.
    expect(await compile('concat', { pitch: 8 }, 944)).to.equal('nothing was refused');
    expect(await compile('concat', { pitch: 8 }, 943)).to.include(
      'plan: a value [1,1,5,6,4] at 0 does not fit into 943 bytes',
    );
    expect(await compile('concat', { pitch: 8 }, 1904, 2)).to.equal('nothing was refused');
    expect(await compile('concat', { pitch: 8 }, 1903, 2)).to.include(
      'plan: a value [1,1,5,6,4] at 0 does not fit into 1903 bytes',
    );
    // With two elements more, which go with the value.
    expect(await compile('concat', { pitch: 8, pad: 2 }, 952)).to.equal('nothing was refused');
    expect(await compile('concat', { pitch: 8, pad: 2 }, 951)).to.include(
      'plan: a value [1,1,5,6,4] at 0 does not fit into 951 bytes',
    );
    expect(await compile('concat', { pitch: 5, pad: 1, place: 'input' })).to.include(
      'plan: a value [1,1,5,6,4] of pitch 5 outside of the arena',
    );
    for (const [pitch, pad] of [
      [8, 5],
      [8, -1],
      [8, 0.5],
      [undefined, 1],
    ]) {
      expect(await compile('concat', { pitch, pad }).catch(String)).to.include(
        `plan: pad of a value must be an integer from 0 to ${pitch ? 4 : 0}`,
      );
    }
    for (const pitch of [3, 0, -1, 4.5, 2 ** 53]) {
      expect(await compile('concat', { pitch }).catch(String)).to.include(
        'plan: pitch of a value must be an integer from 4',
      );
    }
  });

  it('writes zeros behind the channels of a padded value, and nothing behind these', async () => {
    const attrs = { kernel: [1, 1, 1], stride: [1, 1, 1], padding: [0, 0, 0] };
    const value = (place: 'arena' | 'input' | 'output', channels: number, more = {}) =>
      ({ dtype: 'f32', shape: [2, 1, 33, 71, channels], place, at: 0, ...more }) as const;
    for (const device of ['cpu', 'reference'] as const)
      for (const op of ['concat', 'maxPool'])
        for (const threads of [1, 3]) {
          const step = (op: string, from: number, to: number) => ({
            ...{ op, name: '', attrs, inputs: [from], outputs: [to], packed: [] },
          });
          const { plan } = await native.compile(device, {
            threads,
            arenaBytes: 2 * 33 * 71 * 6 * 4,
            values: [
              value('input', 6),
              value('input', 2, { at: 1 }),
              value('arena', 6),
              value('arena', 2, { pitch: 6, pad: 3 }),
              value('output', 6),
            ],
            steps: [step('concat', 0, 2), step(op, 1, 3), step('concat', 2, 4)],
          });
          const pixels = 2 * 33 * 71;
          const before = new Float32Array(pixels * 6).fill(Number.NaN);
          const x = Float32Array.from({ length: pixels * 2 }, (_, i) => i + 1);
          const { outputs } = await native.run(plan, [before, x], 0).done;
          const wanted = before.map(
            (_, i) => [x[Math.floor(i / 6) * 2 + (i % 6)] ?? 0, 0, Number.NaN][[0, 0, 1, 1, 1, 2][i % 6] ?? 0] ?? 0,
          );
          expect(new Float32Array(outputs[0] as ArrayBuffer), `${op} on ${device}, ${threads} threads`).to.deep.equal(
            wanted,
          );
          native.release(plan);
        }
  });

  it('stops a run that is cancelled', async () => {
    const shape = [1, 1, 512, 512, 4];
    const values = (['input', 'output'] as const).map((place) => ({ dtype: 'f32', shape, place, at: 0 }) as const);
    const relu = (from: number, to: number) => ({
      op: 'relu',
      name: 'a',
      attrs: {},
      inputs: [from],
      outputs: [to],
      packed: [],
    });
    const steps = [relu(0, 1), ...Array.from({ length: 2000 }, () => relu(1, 1))];
    const { plan } = await native.compile('cpu', { threads: 2, arenaBytes: 0, values, steps });
    const run = native.run(plan, [new Float32Array(2 ** 20)], steps.length);
    run.cancel();
    const { completed, outputs, stepMilliseconds } = await run.done;
    expect([completed, outputs.length, stepMilliseconds.length, stepMilliseconds.at(-1)]).to.deep.equal([
      false,
      0,
      2001,
      0,
    ]);
  });

  it('packs what lies in a block without a copy, also if it is released meanwhile', async () => {
    const numbers = Float32Array.from({ length: 144 }, (_, i) => (i % 7) - 3);
    const run = async (data: Float32Array<ArrayBuffer>, early: () => void): Promise<number[]> => {
      const packing = native.pack('cpu', 'octConv', branches({}), { w: { dtype: 'f32', shape: [4, 4, 3, 3], data } });
      early();
      const held = await packing;
      native.tell([held]);
      const values = (['input', 'output'] as const).map((place) => ({ dtype: 'f32', shape: x, place, at: 0 }) as const);
      const step = { op: 'octConv', name: 'a', attrs: branches({}), inputs: [0], outputs: [1], packed: [held] };
      const { plan } = await native.compile('cpu', { threads: 1, arenaBytes: 0, values, steps: [step] });
      const input = Float32Array.from({ length: 120 }, (_, i) => i);
      const { outputs } = await native.run(plan, [input], 0).done;
      return [...new Float32Array(outputs[0] ?? new ArrayBuffer(0))];
    };
    const block = native.block(640);
    const inside = new Float32Array(block, 64, 144);
    inside.set(numbers);
    const found = await run(inside, () => native.release(block));
    expect([block.byteLength, found.length]).to.deep.equal([0, 120]);
    expect(found).to.deep.equal(await run(numbers, () => undefined));
    const other = new ArrayBuffer(8);
    native.release(other); // none of ours: left as it is
    expect(other.byteLength).to.equal(8);
    expect(() => native.block(-1)).to.throw('bytes must be an integer from 0');
    expect(() => native.tell([other as never])).to.throw('wanted packed parameters');
  });

  it('takes a plan in parts: a later one goes on with values and steps', async () => {
    const place = (place: 'input' | 'output' | 'arena') => ({ dtype: 'f32', shape: x, place, at: 0 }) as const;
    const step = (op: string, from: number, to: number) => {
      return { op, name: 'a', attrs: {}, inputs: [from], outputs: [to], packed: [] };
    };
    const whole = { threads: 1, arenaBytes: 480 };
    const first = { values: [place('input'), place('arena')], steps: [step('relu', 0, 1)] };
    const part = native.part({ ...whole, ...first, segments: [{ steps: 1, rounds: 1 }] });
    const second = { values: [place('output')], steps: [step('relu6', 1, 2)] };
    native.part({ ...whole, ...second, segments: [{ steps: 2, rounds: 1 }] }, part);
    const { plan, steps } = await native.compile('cpu', part);
    expect(steps.map(({ launches }) => launches.length)).to.deep.equal([0, 0]);
    const { outputs } = await native.run(plan, [Float32Array.from({ length: 120 }, (_, i) => i - 60)], 0).done;
    expect(
      [...new Float32Array(outputs[0] ?? new ArrayBuffer(0))].filter((y, i) => y !== Math.min(Math.max(i - 60, 0), 6)),
    ).to.deep.equal([]);
    expect(() => native.compile('cpu', part)).to.throw('a part of a plan was disposed of');
    expect(() => native.part({ ...whole, ...second }, part)).to.throw('a part of a plan was disposed of');
    expect(() => native.part({ ...whole, ...second }, plan as never)).to.throw('wanted a part of a plan');
  });

  it('refuses arrays of the wrong length', async () => {
    const values = ['input', 'output'].map((place) => ({ dtype: 'f32', shape: x, place, at: 0 }) as const);
    const steps = [{ op: 'relu', name: 'a', attrs: {}, inputs: [0], outputs: [1], packed: [] }];
    const { plan } = await native.compile('cpu', { threads: 1, arenaBytes: 0, values: values as never, steps });
    expect(() => native.run(plan, [new Float32Array(119)], 0)).to.throw('plan: input 0 has 476 bytes, wanted 480');
    expect(() => native.run(plan, [], 0)).to.throw('wanted a typed array');
    const timed = (times: number) => native.run(plan, [new Float32Array(120)], times);
    expect(() => timed(2)).to.throw('times must be an integer from 0 to 1');
    const { stepMilliseconds } = await timed(1).done;
    expect(stepMilliseconds).to.have.length(1);
    const { outputs, completed } = await native.run(plan, [new Float32Array(120).fill(-1)], 0).done;
    expect([completed, outputs[0]?.byteLength]).to.deep.equal([true, 480]);
    native.release(plan);
    expect(() => native.run(plan, [new Float32Array(120)], 0)).to.throw('a plan was disposed of');
  });
});
