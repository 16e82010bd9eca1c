import * as v from 'valibot';
import type { TypedArrayOf } from '../dtype.js';
import { OctconvError, show } from '../error.js';
import { integerIn, numberIn, object, oneOf, parse } from '../files/schema.js';
import { Graph, type Value } from '../graph/graph.js';
import { concat, normalize, resize, slice } from '../ops.js';
import { checkOptions } from '../options.js';
import { type PlanOptions, planOptions, type RunOptions, runGraph, runOptions } from '../plan.js';
import { type Image, type Spatial, Tensor, tensor } from '../tensor.js';
import type { Picture } from './image.js';

/** What becomes of a picture, or of each frame of a clip, before the network sees it. */
export interface InputConfig {
  /** Of video: frames of a clip. Absent: the network takes pictures. */
  readonly frames?: number | undefined;
  /** Of video: source frames from one frame of a clip to the next; default 1. */
  readonly frameStride?: number | undefined;
  /** Size that the network sees: a crop from the middle. */
  readonly height: number;
  readonly width: number;
  /**
   * Before the crop the short side is resized to this; or the picture to [height, width], whatever its aspect ratio. As
   * torchvision's `Resize`.
   */
  readonly resize: number | readonly [number, number];
  readonly interpolation: 'bilinear' | 'bicubic';
  /** `false`: as OpenCV resizes, which the authors' MXNet networks are trained on. Default true: as Pillow does. */
  readonly antialias?: boolean | undefined;
  /** Order of the channels that the network sees; `gray` is one, Pillow's luma. Default `rgb`. */
  readonly channels?: ChannelOrder | undefined;
  /** (x * scale - mean) / std for each channel in that order, x in 0 .. 255. */
  readonly scale: number;
  readonly mean: PerChannel;
  readonly std: PerChannel;
}

export type ChannelOrder = 'rgb' | 'bgr' | 'gray';
export type PerChannel = readonly [number, number, number] | readonly [number];

/** What torchvision's ImageNet networks, and networks for 32 x 32 pictures (`cifar` stem), are trained on. */
export function defaultInput(stem: 'imagenet' | 'cifar' = 'imagenet'): InputConfig {
  const common = { interpolation: 'bilinear', scale: 1 / 255 } as const;
  return stem === 'cifar'
    ? { height: 32, width: 32, resize: 32, ...common, mean: [0.4914, 0.4822, 0.4465], std: [0.247, 0.2435, 0.2616] }
    : { height: 224, width: 224, resize: 256, ...common, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
}

/** The default input for 3 channels; for 1, grey, with the luma of mean and std; otherwise none. */
export function inputOf(colour: InputConfig, channels: number): InputConfig | undefined {
  if (channels === 3) return colour;
  if (channels !== 1) return undefined;
  const luma = ([r, g = r, b = r]: PerChannel): [number] => [
    Number((0.299 * r + 0.587 * g + 0.114 * b).toPrecision(4)),
  ];
  return { ...colour, channels: 'gray', mean: luma(colour.mean), std: luma(colour.std) };
}

/** How a picture becomes the input of a network. @throws OctconvError if none can. */
export function pictureInput(
  where: string,
  { input, options }: { readonly input: InputConfig | undefined; readonly options: { readonly channels: number } },
): InputConfig {
  if (input) return input;
  throw new OctconvError(
    `${where}: the network takes ${options.channels} channels, wanted 3 or 1, which pictures have`,
  );
}

const size = integerIn(1, 65536);
const perChannel = <Number extends v.GenericSchema<number>>(number: Number) => {
  const wanted = 'three numbers for the channels, or one of "gray"';
  return v.union(
    [v.strictTuple([number, number, number]), v.strictTuple([number])],
    ({ issues }) => issues?.find(({ type }) => type !== 'strict_tuple' && type !== 'number')?.message ?? wanted,
  );
};

/** `input` of a config.json. */
export const inputSchema = object({
  height: size,
  width: size,
  resize: v.optional(v.union([size, v.strictTuple([size, size])], `${size.pipe[0].message}, or [height, width]`)),
  cropPct: v.optional(numberIn(0.01, 1, 'a number from 0.01 to 1')),
  interpolation: v.optional(oneOf('bilinear', 'bicubic'), 'bilinear'),
  antialias: v.optional(v.boolean('true or false'), true),
  channels: v.optional(oneOf('rgb', 'bgr', 'gray')),
  scale: v.optional(numberIn(1e-6, 1000, 'a positive number, from 1e-6 to 1000'), 1 / 255),
  mean: v.optional(perChannel(numberIn(-1e6, 1e6, 'a number'))),
  std: v.optional(perChannel(numberIn(1e-6, 1e6, 'a positive number'))),
  frames: v.optional(size),
  frameStride: v.optional(size),
});

/** Checks `input` of a config.json, which `file` names in errors, and fills in what was left out. */
export function parseInput(value: unknown, file: string): InputConfig {
  return resolveInput(parse(inputSchema, value, file, 'input'), `${file}: input`);
}

/** What config.json or the command line say of an input. */
export type GivenInput = { readonly [Key in keyof InputConfig]?: InputConfig[Key] | undefined } & Pick<
  InputConfig,
  'height' | 'width'
> & { readonly cropPct?: number | undefined };

/**
 * Derives what was left out: `resize` of the crop percentage (timm's, for square sizes), else no more than the crop
 * needs.
 * @throws OctconvError if fields contradict one another.
 */
export function resolveInput(given: GivenInput, where: string): InputConfig {
  const {
    height,
    width,
    cropPct,
    interpolation = 'bilinear',
    antialias = true,
    channels = 'rgb',
    scale = 1 / 255,
  } = given;
  const wrong = (what: string): never => {
    throw new OctconvError(`${where}${what}`);
  };
  const { frames, frameStride = 1 } = given;
  if (frames === undefined && given.frameStride !== undefined) wrong(': frameStride without frames, wanted both');
  const clip = frames === undefined ? {} : { frames, frameStride };
  const side = Math.max(height, width);
  if (cropPct !== undefined && given.resize !== undefined)
    wrong(`: cropPct and resize say the same, wanted one of them`);
  if (cropPct !== undefined && height !== width)
    wrong(`: cropPct beside ${height} x ${width}, wanted resize unless the size is square`);
  const { resize = cropPct === undefined ? side : Math.floor(side / cropPct) } = given;
  const covers = typeof resize === 'number' ? resize >= side : resize[0] >= height && resize[1] >= width;
  if (!covers) wrong(`.resize is ${show(resize)}, wanted at least the size, ${height} x ${width}`);
  const count = channels === 'gray' ? 1 : 3;
  const each = (key: 'mean' | 'std', otherwise: number): PerChannel => {
    const { [key]: values = Array.from({ length: count }, () => otherwise) as unknown as PerChannel } = given;
    if (values.length !== count)
      wrong(`.${key} is ${show(values)}, wanted ${count === 1 ? 'one number' : 'three numbers'} for "${channels}"`);
    return values;
  };
  const mean = each('mean', 0);
  const white = Number((255 * scale).toPrecision(6));
  if (mean.some((x) => x > white)) {
    const scaled = white === 1 ? '1/255' : show(scale);
    wrong(
      `.mean is ${show(mean)}, but the scale ${scaled} makes pictures 0 .. ${white}: wanted a mean within, or another scale`,
    );
  }
  const unusual = { ...(!antialias && { antialias }), ...(channels !== 'rgb' && { channels }) };
  return { ...clip, height, width, resize, interpolation, ...unusual, scale, mean, std: each('std', 1) };
}

/** The same in words. */
export function describeInput({
  frames,
  frameStride = 1,
  height,
  width,
  resize,
  interpolation,
  antialias = true,
  channels = 'rgb',
  scale,
  mean,
  std,
}: InputConfig): string {
  const resized = typeof resize === 'number' ? `the short side to ${resize}` : `to ${resize.join(' x ')}`;
  const bytes = scale === 1 / 255 ? '0 .. 1' : `0 .. 255 times ${scale}`;
  const apart = frameStride === 1 ? '' : `, ${frameStride} apart`;
  const clip = frames === undefined ? '' : `${frames} frames${apart}, each `;
  return `${clip}${resized} (${interpolation}${antialias ? '' : ' without antialiasing'}), a crop of ${height} x ${width}, ${channels}, ${bytes}, mean ${mean.join(' ')}, std ${std.join(' ')}`;
}

/** Size of the whole resized picture, and the part of it that the network sees. */
export interface Geometry {
  readonly height: number;
  readonly width: number;
  readonly crop: { readonly top: number; readonly left: number; readonly height: number; readonly width: number };
}

/** Sizes and crop of a picture as torchvision's Resize and CenterCrop round them. */
export function resizeGeometry(
  height: number,
  width: number,
  input: Pick<InputConfig, 'height' | 'width' | 'resize'>,
): Geometry {
  const { resize } = input;
  const scaled = (side: number, i: 0 | 1): number =>
    typeof resize === 'number' ? Math.trunc((resize * side) / Math.min(height, width)) : resize[i];
  const whole = { height: scaled(height, 0), width: scaled(width, 1) };
  const top = roundToEven((whole.height - input.height) / 2);
  const left = roundToEven((whole.width - input.width) / 2);
  return { ...whole, crop: { top, left, height: input.height, width: input.width } };
}

/** As Python's `round`: a half goes to the even neighbour. */
export function roundToEven(x: number): number {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + (low % 2) : Math.round(x);
}

/** How many channels the network sees. */
export const channelCount = ({ channels }: Pick<InputConfig, 'channels'>): 1 | 3 => (channels === 'gray' ? 1 : 3);

/** Input of a network, [N, height, width, 3]; the last is 1 for `gray`. */
export type InputTensor = Tensor<'f32', readonly [number, number, number, 1 | 3]>;

/** Input of a video network, [N, frames, height, width, channels]. */
export type ClipTensor = Tensor<'f32', readonly [number, number, number, number, 1 | 3]>;

/** Resizes, crops and normalises pictures of any size, and stacks them to one batch. */
export async function preprocess(
  pictures: readonly Picture[],
  input: InputConfig,
  options: PlanOptions & RunOptions = {},
): Promise<InputTensor> {
  checkOptions('preprocess', options, { ...planOptions, ...runOptions });
  if (!Array.isArray(pictures)) throw new OctconvError(`preprocess: got ${show(pictures)}, wanted a list of pictures`);
  const { frames: _, frameStride: __, ...given } = parseInput(input, 'preprocess');
  return stack(await Promise.all(pictures.map((picture) => preprocessOne(picture, given, options))), given);
}

/** One picture as [height, width, channels]. */
export async function preprocessOne(
  picture: Picture,
  input: InputConfig,
  options: PlanOptions & RunOptions = {},
): Promise<Float32Array> {
  return reorder(await resizedTo((x) => normalized(x, input), picture, input, options), input);
}

/** One picture as the bytes that `seen` takes, [height, width, channels]. */
export async function preprocessBytes(
  picture: Picture,
  input: InputConfig,
  options: PlanOptions & RunOptions = {},
): Promise<Uint8Array> {
  const bytes = await resizedTo((x) => x, picture, input, options);
  return input.channels === 'gray' ? lumaOf(bytes) : bytes;
}

/** What `f` makes of the resized picture, which has red, green and blue, or the luma in all three. */
async function resizedTo<D extends 'f32' | 'u8'>(
  f: (x: Value<'u8', Spatial>) => Value<D, Spatial>,
  picture: Picture,
  input: InputConfig,
  options: PlanOptions & RunOptions,
): Promise<TypedArrayOf<D>> {
  const { height, width } = picture;
  const graph = new Graph();
  const bytes = graph.input('u8', [1, height, width, 3]);
  graph.outputs.push(f(resized(bytes, resizeGeometry(height, width, input), input)).id);
  const [y] = await runGraph(graph, [bytesOf(picture, input)], options);
  return y?.data as TypedArrayOf<D>;
}

/** One of three equal channels. */
const lumaOf = <A extends Uint8Array | Float32Array>(data: A): A => data.filter((_, i) => i % 3 === 0) as A;

/** The bytes of a picture, [1, height, width, 3], as they are resized. */
export function bytesOf({ data, height, width }: Picture, { channels }: InputConfig): Tensor<'u8', Image> {
  return tensor('u8', [1, height, width, 3], channels === 'gray' ? toGray(data) : data);
}

/** The resize that every picture and frame goes through: Pillow's. */
export function resized<X extends Value<'u8', Spatial>>(
  x: X,
  { height, width, crop }: Omit<Geometry, 'crop'> & Partial<Geometry>,
  { interpolation, antialias }: InputConfig,
) {
  return resize(x, { height, width, ...(crop && { crop }), interpolation, antialias });
}

/** Bytes to what the network sees, but for the order of the channels. */
export function normalized<X extends Value<'u8', Spatial>>(x: X, { channels = 'rgb', scale, mean, std }: InputConfig) {
  // Which of the network's channels red, green and blue are.
  const places = { rgb: [0, 1, 2], bgr: [2, 1, 0], gray: [0, 0, 0] }[channels];
  const each = (values: PerChannel) => places.map((place) => values[place] as number);
  return normalize(x, { scale, mean: each(mean), std: each(std) });
}

/** Bytes at the size that the network sees (red, green and blue; of `gray` the luma alone) to what it sees. */
export function seen<X extends Value<'u8', Spatial>>(x: X, input: InputConfig): Value<'f32', Spatial> {
  const { channels, scale, mean, std } = input;
  if (channels === 'gray') return normalize(x, { scale, mean, std });
  const y: Value<'f32', Spatial> = normalized(x, input);
  if (channels !== 'bgr') return y;
  const [r, g, b] = [0, 1, 2].map((c) => slice(y, { axes: [-1], starts: [c], ends: [c + 1] })) as [
    typeof y,
    typeof y,
    typeof y,
  ];
  return concat([b, g, r]);
}

/** Pillow's `convert('L')`, in all three channels. */
function toGray(rgb: Uint8Array): Uint8Array {
  const gray = new Uint8Array(rgb.length);
  for (let i = 0; i < rgb.length; i += 3) {
    gray.fill((rgb[i]! * 19595 + rgb[i + 1]! * 38470 + rgb[i + 2]! * 7471 + 0x8000) >> 16, i, i + 3);
  }
  return gray;
}

/** Red, green and blue in the order of the network's channels. */
export function reorder(data: Float32Array, { channels }: InputConfig): Float32Array {
  if (channels === 'gray') return lumaOf(data);
  if (channels === 'bgr') for (let i = 0; i < data.length; i += 3) data.subarray(i, i + 3).reverse();
  return data;
}

/** Pictures [height, width, channels], or clips of them, to one batch; bytes to one of bytes. */
export function stack(all: readonly Uint8Array[], input: InputConfig): Tensor<'u8'>;
export function stack(all: readonly Float32Array[], input: InputConfig & { readonly frames?: undefined }): InputTensor;
export function stack(all: readonly Float32Array[], input: InputConfig): InputTensor | ClipTensor;
export function stack(all: readonly (Float32Array | Uint8Array)[], input: InputConfig): Tensor<'f32' | 'u8'> {
  const { height, width, frames } = input;
  const clip = frames === undefined ? [] : [frames];
  const dtype = all[0] instanceof Uint8Array ? 'u8' : 'f32';
  const batch = Tensor.zeros(dtype, [all.length, ...clip, height, width, channelCount(input)]);
  for (const [i, one] of all.entries()) batch.data.set(one, i * one.length);
  return batch;
}
