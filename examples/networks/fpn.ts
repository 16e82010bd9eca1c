/** A feature pyramid network (arXiv 1612.03144), as detectors have: an image to features at 1/4, 1/8 and 1/16 of its size. */
import { type Feature, layers, Module, Octave, ops } from '../../lib/index.js';

/** Three stages of convolutions, and from the last one back the sum of each with what is above it. */
export class FeaturePyramid extends Module {
  readonly stem: layers.ConvNorm;
  readonly stages: readonly layers.ConvNorm[];
  readonly lateral: readonly layers.Conv[];
  readonly output: readonly layers.Conv[];

  /** `widths` are the channels of the three stages, `channels` those of what it gives. */
  constructor(widths: readonly [number, number, number] = [32, 64, 128], channels = 32) {
    super();
    this.stem = new layers.ConvNorm(3, 16, { kernel: 3, stride: 2 });
    this.stages = widths.map((width, i) => new layers.ConvNorm(widths[i - 1] ?? 16, width, { kernel: 3, stride: 2 }));
    this.lateral = widths.map((width) => new layers.Conv(width, channels, { kernel: 1, bias: true }));
    this.output = widths.map(() => new layers.Conv(channels, channels, { kernel: 3, bias: true }));
  }

  forward(x: Feature) {
    let y = ops.relu(this.stem.forward(x));
    const [c4, c8, c16] = this.stages.map((stage, i) => {
      y = ops.relu(stage.forward(y));
      return this.lateral[i]?.forward(y);
    }) as [Feature, Feature, Feature];
    const m8 = ops.add(c8, enlarge(c16, c8));
    const m4 = ops.add(c4, enlarge(m8, c4));
    const [p4, p8, p16] = [m4, m8, c16].map((sum, i) => this.output[i]?.forward(sum)) as [Feature, Feature, Feature];
    return { p4, p8, p16 };
  }
}

/** Twice as large, cropped to the size of another. */
function enlarge(x: Feature, like: Feature): Feature {
  const { height, width } = new Octave(like);
  return ops.upsampleNearest(x, { scale: 2, size: [height, width] });
}
