/** A U-Net (arXiv 1505.04597) of octave convolutions: an image of any size, also an odd one, to a class for each pixel. */
import { type Feature, layers, Module, Octave, ops } from '../../lib/index.js';

/** Two 3 x 3 convolutions; half of the channels between them are at half the resolution. */
class ConvPair extends Module {
  readonly first: layers.OctConvNorm;
  readonly second: layers.OctConvNorm;

  constructor(from: number, to: number) {
    super();
    this.first = new layers.OctConvNorm(from, to, { kernel: 3, alphaOut: 0.5 });
    this.second = new layers.OctConvNorm(to, to, { kernel: 3, alphaIn: 0.5 });
  }

  forward(x: Feature): Feature {
    const y = this.first.forward(new Octave(x)).map((branch) => ops.relu(branch));
    return ops.relu(this.second.forward(y).high);
  }
}

/** One resolution; what lies below it is the next one, at half of it. */
class Level extends Module {
  readonly enter: ConvPair;
  readonly below: Level | undefined;
  readonly leave: ConvPair | undefined;

  constructor(from: number, [width = from, ...deeper]: readonly number[]) {
    super();
    this.enter = new ConvPair(from, width);
    const [next] = deeper;
    this.below = next === undefined ? undefined : new Level(width, deeper);
    this.leave = next === undefined ? undefined : new ConvPair(width + next, width);
  }

  forward(x: Feature): Feature {
    const skip = this.enter.forward(x);
    if (!this.below || !this.leave) return skip;
    const deep = this.below.forward(ops.maxPool(skip, { kernel: 2, ceilMode: true }));
    // Pooling rounds an odd size up, so upsampling is cropped.
    const { height, width } = new Octave(skip);
    return this.leave.forward(ops.concat([skip, ops.upsampleNearest(deep, { scale: 2, size: [height, width] })]));
  }
}

/** [N, H, W, 3] -> [N, H, W, classes] */
export class UNet extends Module {
  readonly levels: Level;
  readonly head: layers.Conv;

  /** `widths` are the channels at each resolution, from the full one down. */
  constructor(classes: number, widths: readonly number[] = [16, 32, 64, 128]) {
    super();
    this.levels = new Level(3, widths);
    this.head = new layers.Conv(widths[0] ?? 3, classes, { kernel: 1, bias: true });
  }

  forward(x: Feature): Feature {
    return this.head.forward(this.levels.forward(x));
  }
}
