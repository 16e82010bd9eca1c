import { expect } from 'chai';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { OctconvError } from '../lib/error.js';
import { namedParameters } from '../lib/layers/index.js';
import { buildNetwork, narrowed, networkNames, resolveNetworkOptions } from '../lib/models/index.js';
import { inferOptions, resolveOptions } from '../lib/models/infer.js';
import { openWeights, type TensorInfo } from '../lib/weights/source.js';
import { skip } from './skip.js';

type Options = Parameters<typeof buildNetwork>[1];

/** The tensors that a network's weights would have. */
function weights(network: string, options: Options): { tensors: Map<string, TensorInfo> } {
  const tensors = new Map<string, TensorInfo>();
  for (const [name, { shape }] of namedParameters(buildNetwork(network, options)))
    tensors.set(name, { dtype: 'f32', shape });
  return { tensors };
}

describe('options read off the weights', () => {
  for (const network of networkNames) {
    it(`finds ${network} again`, () => {
      const alpha = network.startsWith('oct-') ? 0.25 : 0;
      const known = resolveNetworkOptions(network, {});
      const blocks = known.blocks && { blocks: [1, 2, 1, 3] }; // a name without a depth
      const nonLocal = known.nonLocal !== undefined;
      const narrow = narrowed(network, 8);
      const usual = 'width' in narrow ? { width: 64 } : { multiplier: 1 };
      const odd = known.temporalKernels?.map((layer) => layer.map((_, i) => 1 + 2 * (i % 3)));
      for (const given of [
        { alpha, ...usual, classes: 1000, channels: 3, ...blocks },
        { alpha, ...narrow, classes: 1, channels: 1, ...blocks, ...(known.stem && { stem: 'cifar' as const }) },
        ...(known.stemWidths ? [{ alpha, width: 16, stemWidths: [5, 6, 7], ...blocks }] : []),
        ...(nonLocal ? [{ alpha, width: 16, nonLocal }] : []),
        ...(odd ? [{ alpha, width: 16, temporalKernels: odd }] : []),
      ]) {
        const options = resolveNetworkOptions(network, given);
        expect(inferOptions(weights(network, given))).to.deep.equal({ network, options });
      }
    });
  }

  it('finds the alpha that a person would have written', () => {
    for (const alpha of [0, 0.125, 0.25, 0.375, 0.5, 0.75, 0.875, 0.1, 0.2, 0.3, 0.6, 0.7, 0.9, 0.05, 0.95, 0.99]) {
      expect(inferOptions(weights('oct-resnet-26', { alpha, width: 16 })).options.alpha, `${alpha}`).to.equal(alpha);
    }
  });

  it('finds an alpha that gives the same network where there is no simple one', () => {
    for (const [alpha, width] of [
      [1 / 3, 64],
      [2 / 3, 48],
      [Math.SQRT1_2, 20],
      [0.9, 5],
      [0.03, 1],
      [0.999, 64],
      [1 / 49, 49],
    ] as const) {
      const made = weights('oct-resnet-26', { alpha, width });
      const { options } = inferOptions(made);
      expect(weights('oct-resnet-26', options).tensors).to.deep.equal(made.tensors);
    }
  });

  it('finds the alpha of pre-activation networks too', () => {
    for (const network of ['oct-resnet-v2-26', 'oct-se-resnet-v2', 'oct-densenet'] as const) {
      for (const alpha of [0, 0.125, 0.25, 0.5, 0.75, 0.9, 0.05]) {
        const options = {
          alpha,
          width: 64,
          classes: 9,
          ...(network !== 'oct-resnet-v2-26' && { blocks: [1, 1, 2, 1] }),
        };
        expect(inferOptions(weights(network, options))).to.deep.equal({
          network,
          options: { ...options, stem: 'imagenet', channels: 3 },
        });
      }
    }
  });

  it('finds the multiplier that a person would have written, and the alpha', () => {
    for (const multiplier of [1, 0.25, 0.5, 0.75, 1.125, 1.4, 0.15, 2, 0.35]) {
      for (const network of ['oct-mobilenet-v1', 'oct-mobilenet-v2', 'mobilenet-v1', 'mobilenet-v2']) {
        for (const alpha of network.startsWith('oct-') ? [0, 0.125, 0.375, 0.5, 0.9] : [0]) {
          const options = { alpha, multiplier, classes: 9, channels: 3 };
          const found = inferOptions(weights(network, options));
          const again = weights(network, found.options);
          expect(again.tensors).to.deep.equal(weights(network, options).tensors);
          // Rounding to multiples of 8 leaves several.
          if (network !== 'mobilenet-v2' || multiplier === 1) expect(found).to.deep.equal({ network, options });
        }
      }
    }
    const { tensors } = weights('mobilenet-v1', {});
    tensors.set('features.3.1.0.weight', { dtype: 'f32', shape: [96, 128, 1, 1] });
    expect(() => inferOptions({ tensors })).to.throw(
      OctconvError,
      'weights: no multiplier gives every layer its channels (32 for 32, 64 for 64, 128 for 128, 96 for 128, ...)',
    );
  });

  it('reads the golden and trained networks', async function () {
    const files: [string, string, number, number, string][] = [
      ['golden/oct-resnet-26-w16-a50', 'oct-resnet-26', 0.5, 16, 'imagenet'],
      ['golden/oct-resnet-26-w8-a25-cifar', 'oct-resnet-26', 0.25, 8, 'cifar'],
      ['golden/oct-resnet-50-w8-a12-odd', 'oct-resnet-50', 0.125, 8, 'imagenet'],
      ['golden/resnet-26-w16', 'resnet-26', 0, 16, 'imagenet'],
      ['weights/cifar10-oct-resnet-26-a50', 'oct-resnet-26', 0.5, 16, 'cifar'],
      ['weights/cifar10-oct-resnet-26-a0', 'oct-resnet-26', 0, 16, 'cifar'],
    ];
    for (const [file, network, alpha, width, stem] of files) {
      const path = fileURLToPath(new URL(`../../shared/${file}.pth`, import.meta.url));
      if (!existsSync(path)) skip(this, 'shared');
      const source = await openWeights(path);
      const found = inferOptions(source);
      expect(found).to.deep.include({ network });
      expect(found.options).to.include({ alpha, width, stem, classes: file.includes('odd') ? 7 : 10 });
      const names = [...namedParameters(buildNetwork(found.network, found.options))].map(([name]) => name);
      expect(names).to.have.members([...source.tensors.keys()]);
      await source.close();
    }
  });

  it('takes what a user says where it fits, and names the contradiction where not', () => {
    const source = { name: 'x.pth', ...weights('oct-resnet-50', { alpha: 0.5, width: 8, classes: 7, stem: 'cifar' }) };
    const { options } = inferOptions(source);
    expect(resolveOptions(source, {})).to.deep.equal({ network: 'oct-resnet-50', options });
    const all = { network: 'oct-resnet-50', alpha: 0.5, width: 8, classes: 7, stem: 'cifar' as const };
    expect(resolveOptions(source, all)).to.deep.equal({ network: 'oct-resnet-50', options });
    expect(resolveOptions(source, { alpha: 0.501 }).options.alpha).to.equal(0.501); // the same widths
    const wrong: [Parameters<typeof resolveOptions>[1], string][] = [
      [{ network: 'oct-resnet-26' }, 'network "oct-resnet-26" was asked for, the weights have "oct-resnet-50"'],
      [{ network: 'resnet-50' }, 'network "resnet-50" was asked for, the weights have "oct-resnet-50"'],
      [{ width: 64 }, 'width 64 was asked for, the weights have 8'],
      [{ classes: 10 }, 'classes 10 was asked for, the weights have 7'],
      [{ channels: 1 }, 'channels 1 was asked for, the weights have 3'],
      [{ stem: 'imagenet' }, 'stem "imagenet" was asked for, the weights have "cifar"'],
      [{ alpha: 0.25 }, 'alpha 0.25 was asked for, the weights have 0.5'],
      [{ alpha: 0 }, 'alpha 0 was asked for, the weights have 0.5'],
      [{ alpha: Number.NaN }, 'alpha NaN was asked for'],
    ];
    for (const [given, message] of wrong)
      expect(() => resolveOptions(source, given)).to.throw(OctconvError, `x.pth: ${message}`);
    const plain = weights('resnet-26', { width: 8 });
    expect(() => resolveOptions(plain, { alpha: 0.5 })).to.throw(
      OctconvError,
      'alpha 0.5 was asked for, the weights have 0',
    );
    const merged = weights('oct-resnet-26', { width: 8, alpha: 0 });
    expect(() => resolveOptions(merged, { alpha: 0.5 })).to.throw(
      OctconvError,
      'alpha 0.5 was asked for, the weights have 0',
    );
  });

  it('names what it cannot read', () => {
    const change = (edit: (tensors: Map<string, TensorInfo>) => void) => {
      const source = weights('oct-resnet-26', { alpha: 0.5, width: 8 });
      edit(source.tensors);
      return source;
    };
    const info = (...shape: number[]): TensorInfo => ({ dtype: 'f32', shape });
    const cases: [(tensors: Map<string, TensorInfo>) => void, RegExp][] = [
      [(t) => t.clear(), /^weights: no known network has these parameters \(nothing\), wanted one of resnet-18, /],
      [(t) => t.delete('conv1.weight'), /^weights: no 'conv1\.weight', which the names beside it call for/],
      [(t) => t.delete('fc.weight'), /no 'fc\.weight'/],
      [(t) => t.set('conv1.weight', info(8, 3, 5, 5)), /'conv1\.weight' is 5x5, wanted 7x7/],
      [
        (t) => t.set('conv1.weight', info(8, 3, 5, 7, 7)),
        /: 'layer4\.0\.conv1\.conv\.conv_h2h\.weight' has shape \[\d+,\d+,1,1\], wanted 5 sizes/,
      ],
      [
        (t) => t.set('layer2.2.conv1.conv.conv_h2h.weight', info(1, 1, 1, 1)),
        /layer1 to layer4 have \[2,3,2,2\] bottlenecks, wanted \[2,2,2,2\] or/,
      ],
      [
        (t) => t.delete('layer1.0.conv1.conv.conv_h2h.weight'),
        /no known network has these parameters \("conv1\.weight", "bn1\.weight", "bn1\.bias"\), wanted/,
      ],
      [
        (t) => t.set('layer2.0.conv1.conv.conv_h2l.weight', info(2, 16, 1, 1)),
        /no alpha gives every layer its low channels/,
      ],
    ];
    for (const [edit, message] of cases) expect(() => inferOptions(change(edit))).to.throw(OctconvError, message);
  });

  it('names ResNeXt and wide networks, plain and octave, as what they are', () => {
    const changed = (network: string, change: (name: string, shape: readonly number[]) => readonly number[]) => {
      const { tensors } = weights(network, {});
      for (const [name, info] of tensors) tensors.set(name, { ...info, shape: change(name, info.shape) });
      return () => inferOptions({ name: 'x.pth', tensors });
    };
    /** Inner convolutions of a bottleneck `factor` times as wide, in groups. */
    const wider =
      (factor: number, groups: number) =>
      (name: string, [o = 1, i = 1, ...window]: readonly number[]) => {
        const at = Number(/^layer\d.*conv([123])\..*weight/.exec(name)?.[1] ?? 0);
        if (at === 0) return [o, i, ...window].slice(0, window.length ? 4 : i > 1 ? 2 : 1);
        return [at < 3 ? o * factor : o, at === 2 ? (i * factor) / groups : at === 3 ? i * factor : i, ...window];
      };
    for (const [network, change, name, groups] of [
      ['resnet-50', wider(2, 32), 'resnext-50', 32],
      ['resnet-101', wider(4, 32), 'resnext-101', 32],
      ['resnet-101', wider(4, 64), 'resnext-101', 64],
      ['resnet-101', wider(2, 32), 'resnext-101-32x4d', 32],
      ['oct-resnet-101', wider(2, 32), 'oct-resnext-101-32x4d', 32],
      ['oct-resnet-50', wider(2, 32), 'oct-resnext-50', 32],
    ] as const) {
      expect(changed(network, change)())
        .to.deep.include({ network: name })
        .and.to.have.nested.property('options.groups', groups);
    }
    for (const [network, change, name] of [
      ['resnet-101', wider(8, 32), 'ResNeXt-101 32x16d'],
      ['resnet-26', wider(2, 32), 'ResNeXt-26 32x4d'],
      ['se-resnet-v2-50', wider(2, 32), 'ResNeXt-50 32x4d'],
      ['resnet-v2-50', wider(4, 32), 'ResNeXt-50 32x8d'],
      ['resnet-50', wider(2, 1), 'Wide ResNet-50-2'],
      ['resnet-101', wider(2, 1), 'Wide ResNet-101-2'],
    ] as const) {
      expect(changed(network, change)).to.throw(OctconvError, `x.pth: ${name}: this network does not exist here yet`);
    }
  });
});

describe('options of video networks read off the weights', () => {
  const changed = (change: (tensors: Map<string, TensorInfo>) => void) => () => {
    const { tensors } = weights('oct-i3d-26', { alpha: 0.5, width: 16, nonLocal: true });
    change(tensors);
    return inferOptions({ name: 'x.pth', tensors });
  };
  const shape = (name: string, sizes: readonly number[]) => (tensors: Map<string, TensorInfo>) =>
    void tensors.set(name, { dtype: 'f32', shape: sizes });

  it('names what contradicts itself', () => {
    const stem = changed(shape('conv1.weight', [16, 3, 3, 7, 7]));
    expect(stem).to.throw(OctconvError, "x.pth: 'conv1.weight' is 3x7x7, wanted 5x7x7 (i3d) or 1x7x7 (c2d)");
    const flat = changed(shape('layer2.0.conv1.conv.conv_h2h.weight', [16, 32, 1, 1]));
    expect(flat).to.throw("'layer2.0.conv1.conv.conv_h2h.weight' has shape [16,32,1,1], wanted 5 sizes");
    const even = changed(shape('layer2.0.conv1.conv.conv_h2h.weight', [16, 32, 2, 1, 1]));
    expect(even).to.throw(
      'x.pth: oct-i3d-26: temporalKernels [[3,3],[2,1],[3,1],[1,3]], wanted lists of 2, 2, 2, 2 odd',
    );
    const blocks = changed(shape('layer1.2.conv1.conv.conv_h2h.weight', [16, 32, 1, 1, 1]));
    expect(blocks).to.throw('layer1 to layer4 have [3,2,2,2] bottlenecks, wanted [2,2,2,2] or [3,4,6,3] or [3,4,23,3]');
    const lacking = changed((tensors) => tensors.delete('layer2.1.nonlocal.conv_theta.weight'));
    expect(lacking).to.throw('non-local blocks in ["layer3.1"], wanted them in ["layer2.1","layer3.1"], or in none');
    const wide = changed(shape('layer4.0.conv2.conv.conv_h2h.weight', [128, 64, 1, 3, 3]));
    expect(wide).to.throw('x.pth: ResNeXt-26 2x');
  });
});
