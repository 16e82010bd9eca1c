/** The block of EfficientNet (arXiv 1905.11946): expand, convolve each channel, weigh the channels, project. */
import { type Feature, layers, Module, ops } from '../../lib/index.js';

const silu = (x: Feature): Feature => ops.mul(x, ops.sigmoid(x));

/** Squeeze and excitation: a gate in (0, 1) for each image and channel, [N, C], from the means of all channels. */
class SqueezeExcitation extends Module {
  readonly reduce: layers.Linear;
  readonly expand: layers.Linear;

  constructor(channels: number, squeezed: number) {
    super();
    this.reduce = new layers.Linear(channels, squeezed);
    this.expand = new layers.Linear(squeezed, channels);
  }

  forward(x: Feature): Feature {
    const y = this.reduce.forward(ops.globalAvgPool(x));
    return ops.mul(x, ops.sigmoid(this.expand.forward(ops.mul(y, ops.sigmoid(y)))));
  }
}

/** [N, H, W, from] -> [N, H / stride, W / stride, to]; with its input added where that has the same shape. */
export class MBConv extends Module {
  readonly expand: layers.ConvNorm;
  readonly depthwise: layers.ConvNorm;
  readonly gate: SqueezeExcitation;
  readonly project: layers.ConvNorm;

  constructor(from: number, to: number, { kernel = 3, stride = 1, expansion = 6 } = {}) {
    super();
    const width = from * expansion;
    this.expand = new layers.ConvNorm(from, width, { kernel: 1 });
    this.depthwise = new layers.ConvNorm(width, width, { kernel, stride, groups: width });
    this.gate = new SqueezeExcitation(width, Math.max(1, Math.floor(from / 4)));
    this.project = new layers.ConvNorm(width, to, { kernel: 1 });
  }

  forward(x: Feature): Feature {
    const wide = silu(this.depthwise.forward(silu(this.expand.forward(x))));
    const y = this.project.forward(this.gate.forward(wide));
    return `${y.shape}` === `${x.shape}` ? ops.add(x, y) : y;
  }
}

/** A small network of such blocks: [N, H, W, 3] -> logits [N, classes] */
export class TinyEfficientNet extends Module {
  readonly stem = new layers.ConvNorm(3, 16, { kernel: 3, stride: 2 });
  readonly blocks = [
    new MBConv(16, 16, { expansion: 1 }),
    new MBConv(16, 24, { stride: 2 }),
    new MBConv(24, 24),
    new MBConv(24, 40, { kernel: 5, stride: 2 }),
  ];
  readonly fc: layers.Linear;

  constructor(classes: number) {
    super();
    this.fc = new layers.Linear(40, classes);
  }

  forward(x: Feature) {
    const y = this.blocks.reduce((y, block) => block.forward(y), silu(this.stem.forward(x)));
    return this.fc.forward(ops.globalAvgPool(y));
  }
}
