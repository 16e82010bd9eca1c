import { OctconvError, show } from '../error.js';
import { Graph } from '../graph/graph.js';
import { normalize, resize } from '../ops.js';
import { type PlanOptions, type RunOptions, runGraph } from '../plan.js';
import { type Tensor, tensor } from '../tensor.js';
import type { Picture } from './image.js';

/** `input` of a model folder's config.json: what becomes of a picture before the network sees it. */
export interface InputConfig {
  /** Size that the network sees: a crop from the middle. */
  readonly height: number;
  readonly width: number;
  /** The short side is resized to this before the crop. */
  readonly resize: number;
  readonly interpolation: 'bilinear' | 'bicubic';
  /** (x * scale - mean) / std for each of red, green and blue, x in 0 .. 255. */
  readonly scale: number;
  readonly mean: readonly [number, number, number];
  readonly std: readonly [number, number, number];
}

/** What torchvision's ImageNet networks, and networks for 32 x 32 pictures (`cifar` stem), are trained on. */
export function defaultInput(stem: 'imagenet' | 'cifar' = 'imagenet'): InputConfig {
  const common = { interpolation: 'bilinear', scale: 1 / 255 } as const;
  return stem === 'cifar'
    ? { height: 32, width: 32, resize: 32, ...common, mean: [0.4914, 0.4822, 0.4465], std: [0.247, 0.2435, 0.2616] }
    : { height: 224, width: 224, resize: 256, ...common, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
}

/** Checks `input` of a config.json, which `file` names in errors, and fills in what was left out. */
export function parseInput(value: unknown, file: string): InputConfig {
  const wrong = (what: string): never => {
    throw new OctconvError(`${file}: input${what}`);
  };
  if (typeof value !== 'object' || value === null) return wrong(` is ${show(value)}, wanted an object`);
  const given = value as Record<string, unknown>;
  const size = (key: string, least: number, otherwise?: number): number => {
    const x = given[key] ?? otherwise;
    if (typeof x === 'number' && Number.isInteger(x) && x >= least && x <= 65536) return x;
    return wrong(`.${key} is ${show(x)}, wanted an integer from ${least} to 65536`);
  };
  const positive = (x: unknown): boolean => typeof x === 'number' && Number.isFinite(x) && x > 0;
  const colour = (key: string, fits: (x: unknown) => boolean, otherwise: number): [number, number, number] => {
    const x = given[key] ?? [otherwise, otherwise, otherwise];
    if (Array.isArray(x) && x.length === 3 && x.every(fits)) return x as [number, number, number];
    return wrong(`.${key} is ${show(x)}, wanted three numbers for red, green and blue`);
  };

  const height = size('height', 1);
  const width = size('width', 1);
  const { interpolation = 'bilinear', scale = 1 / 255 } = given;
  if (interpolation !== 'bilinear' && interpolation !== 'bicubic') {
    return wrong(`.interpolation is ${show(interpolation)}, wanted "bilinear" or "bicubic"`);
  }
  if (!positive(scale)) return wrong(`.scale is ${show(scale)}, wanted a positive number`);
  return {
    height,
    width,
    resize: size('resize', Math.max(height, width), Math.max(height, width)),
    interpolation,
    scale: scale as number,
    mean: colour('mean', Number.isFinite, 0),
    std: colour('std', positive, 1),
  };
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
  const scaled = (side: number): number => Math.trunc((input.resize * side) / Math.min(height, width));
  const whole = { height: scaled(height), width: scaled(width) };
  const top = middle(whole.height - input.height);
  const left = middle(whole.width - input.width);
  return { ...whole, crop: { top, left, height: input.height, width: input.width } };
}

/** Half of an integer; as in Python, a tie goes to the even neighbour. */
function middle(spare: number): number {
  const low = Math.floor(spare / 2);
  return spare % 2 === 1 && low % 2 === 1 ? low + 1 : low;
}

/** Input of a network, [N, height, width, 3]. */
export type InputTensor = Tensor<'f32', readonly [number, number, number, 3]>;

/** Resizes, crops and normalises pictures of any size, and stacks them to one batch. */
export async function preprocess(
  pictures: readonly Picture[],
  input: InputConfig,
  options: PlanOptions & RunOptions = {},
): Promise<InputTensor> {
  return stack(await Promise.all(pictures.map((picture) => preprocessOne(picture, input, options))), input);
}

/** One picture as [height, width, 3]. */
export async function preprocessOne(
  { data, height, width }: Picture,
  input: InputConfig,
  options: PlanOptions & RunOptions = {},
): Promise<Float32Array> {
  const graph = new Graph();
  const picture = graph.input('u8', [1, height, width, 3]);
  const { interpolation, scale, mean, std } = input;
  const resized = resize(picture, { ...resizeGeometry(height, width, input), interpolation });
  graph.outputs.push(normalize(resized, { scale, mean, std }).id);
  const [y] = await runGraph(graph, [tensor('u8', [1, height, width, 3], data)], options);
  return y?.data as Float32Array;
}

/** Pictures [height, width, 3] to one batch. */
export function stack(pictures: readonly Float32Array[], { height, width }: InputConfig): InputTensor {
  const size = height * width * 3;
  const batch = new Float32Array(pictures.length * size);
  for (const [i, picture] of pictures.entries()) batch.set(picture, i * size);
  return tensor('f32', [pictures.length, height, width, 3], batch);
}
