/** From the weights of an image network to those of the video network with the same blocks. */
import { OctconvError } from '../error.js';
import { parameterShapes } from '../layers/module.js';
import { toFloats } from '../weights/floats.js';
import { ownMemory } from '../weights/file.js';
import type { TensorInfo, WeightSource } from '../weights/source.js';
import { buildNetwork, networkNames, resolveNetworkOptions } from './index.js';
import type { ResolvedNetworkOptions } from './options.js';

/** The video networks that share their blocks with the ResNets. */
export const videoKinds = ['c2d', 'i3d'] as const;
export type VideoKind = (typeof videoKinds)[number];

interface NetworkWeights {
  readonly name: string;
  readonly options: ResolvedNetworkOptions;
  readonly source: WeightSource;
}

const videoOf = (name: string, kind: VideoKind) => name.replace('resnet-', `${kind}-`);
const inflatable = networkNames.filter((name) =>
  networkNames.some((other) => other !== name && other === videoOf(name, 'i3d')),
);

/**
 * The video network of a kind, without non-local blocks, with the weights of an image network. Each tap over time is
 * the image's kernel divided by the number of taps, so equal frames give what one image gives, except near the first
 * and last frame, where taps over time meet zeros (arXiv 1705.07750, section 2.4). All else is copied. Closing the
 * source closes that of the image network.
 * @throws OctconvError for a network that has no such video network, and for quantized weights.
 */
export function inflate({ name, options, source }: NetworkWeights, kind: VideoKind): NetworkWeights {
  const refuse = (found: string, wanted: string): never => {
    throw new OctconvError(`${source.name ?? 'weights'}: cannot be inflated to ${kind}: ${found}, wanted ${wanted}`);
  };
  if (!inflatable.includes(name)) refuse(name, `one of ${inflatable.join(', ')}`);
  if (options.stem !== 'imagenet') refuse(`stem ${options.stem}`, 'imagenet (7x7), as video networks have it');
  const quantized = [...source.tensors.values()].some(({ dtype }) => dtype === 'i8');
  if (quantized) refuse('quantized weights', 'floats; quantize the video network');
  const { alpha, width, classes, channels } = options;
  const video = videoOf(name, kind);
  const resolved = resolveNetworkOptions(video, { alpha, width, classes, channels });
  const shapes = parameterShapes(buildNetwork(video, resolved));
  const tensors = new Map<string, TensorInfo>();
  for (const [key, { dtype, shape: image }] of source.tensors) {
    const shape = shapes.get(key) ?? image;
    tensors.set(key, { dtype: tapsOf(shape) > 1 ? 'f32' : dtype, shape });
  }
  return {
    name: video,
    options: resolved,
    source: {
      ...source,
      tensors,
      async read(key, memory = ownMemory) {
        const taps = tapsOf(tensors.get(key)?.shape ?? []);
        if (taps === 1) return source.read(key, memory);
        const { dtype = 'f32', shape = [] } = source.tensors.get(key) ?? {};
        const image = toFloats(dtype, await source.read(key));
        const [rows = 1, columns = 1] = shape.slice(2);
        const { buffer, byteOffset } = memory(4 * taps * image.length);
        return repeat(image, rows * columns, taps, new Float32Array(buffer, byteOffset, taps * image.length));
      },
      close: () => source.close(),
    },
  };
}

/** Over time, of a weight [O, I, T, H, W]. */
const tapsOf = (shape: readonly number[]): number => (shape.length === 5 ? (shape[2] ?? 1) : 1);

/** Each kernel `taps` times, divided by their number. */
function repeat(image: Float32Array, kernel: number, taps: number, video: Float32Array): Float32Array {
  const share = image.map((x) => x / taps);
  for (let from = 0; from < share.length; from += kernel) {
    const one = share.subarray(from, from + kernel);
    for (let t = 0; t < taps; t++) video.set(one, from * taps + t * kernel);
  }
  return video;
}
