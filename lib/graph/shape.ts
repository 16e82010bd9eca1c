/** What the ops' shape rules share. Errors start with the op's name and print shapes as [N,H,W,C]. */
import { OctconvError, show } from '../error.js';
import type { Shape } from '../tensor.js';

type Shaped = { readonly shape: Shape };

/** A number for every axis that x has, as in PyTorch, or a list: [h, w] of images, [t, h, w] of video. */
export type Size = number | readonly [h: number, w: number] | readonly [t: number, h: number, w: number];

export function wrong(op: string, what: string): never {
  throw new OctconvError(`${op}: ${what}`);
}

export function check(op: string, fine: boolean, what: string): asserts fine {
  if (!fine) wrong(op, what);
}

export const of = ({ shape }: Shaped): string => list(shape);

export const list = (sizes: readonly unknown[]): string => `[${sizes.join(',')}]`;

export function same(a: Shape, b: Shape): boolean {
  let i = 0;
  while (i < a.length && a[i] === b[i]) i++;
  return i === a.length && i === b.length;
}

export const channels = ({ shape }: Shaped): number => shape.at(-1) ?? 0;

export function checkRank(op: string, x: Shaped, ...ranks: readonly (2 | 4 | 5)[]): void {
  if (ranks.includes(x.shape.length as 2)) return;
  const forms = { 2: '[N,C]', 4: '[N,H,W,C]', 5: '[N,T,H,W,C]' };
  wrong(op, `got ${of(x)}, wanted ${ranks.map((rank) => forms[rank]).join(' or ')}`);
}

/** A size as the graph holds it, [t, h, w]: images have T = 1, and nothing (`least`) happens along it. */
export function sizes(op: string, name: string, x: Shaped, value: Size, least: 0 | 1): readonly number[] {
  checkRank(op, x, 4, 5);
  const all = perAxis(op, name, value, x.shape.length - 2, least, ` for x ${of(x)}`);
  return all.length === 2 ? [least, ...all] : all;
}

/** A size as a number for each of some axes. */
export function perAxis(op: string, name: string, value: Size, axes: number, least: 0 | 1, of = ''): readonly number[] {
  const all = typeof value === 'number' ? Array<number>(axes).fill(value) : value;
  const fine =
    Array.isArray(all) &&
    all.length === axes &&
    all.every((size) => Number.isInteger(size) && size >= least && size < 2 ** 31);
  const wanted = `wanted a number or ${axes} numbers, integers of at least ${least}`;
  if (!fine) wrong(op, `${name} ${show(value)}${of}, ${wanted}`);
  return all;
}

/** @throws OctconvError unless it is a list of numbers. */
export function checkNumbers(op: string, name: string, value: readonly number[]): void {
  const fine = Array.isArray(value) && value.every((x) => typeof x === 'number');
  check(op, fine, `${name} ${show(value)}, wanted a list of numbers`);
}

/** Sizes that are equal or 1 become the larger ones; undefined if they do not fit. */
export function broadcast(a: Shape, b: Shape): Shape | undefined {
  const fine = a.length === b.length && a.every((size, i) => size === b[i] || size === 1 || b[i] === 1);
  return fine ? a.map((size, i) => (size === 1 ? (b[i] ?? 1) : size)) : undefined;
}

/** Axes of x without signs. @throws OctconvError unless they are different axes of x. */
export function axesOf(op: string, x: Shaped, axes: readonly number[]): readonly number[] {
  checkNumbers(op, 'axes', axes);
  const rank = x.shape.length;
  const all = axes.map((axis) => (axis < 0 ? axis + rank : axis));
  const fine = all.every((axis, i) => Number.isInteger(axis) && axis >= 0 && axis < rank && all.indexOf(axis) === i);
  check(op, fine, `axes ${list(axes)}, wanted different ones of the ${rank} of x ${of(x)}`);
  return all;
}

/** Which of N T H W C each axis of x is. */
export const nativeAxes = ({ shape }: Shaped): readonly number[] =>
  ({ 2: [0, 4], 4: [0, 2, 3, 4] })[shape.length] ?? [0, 1, 2, 3, 4];

/** A number for each axis of x as numbers for N T H W C; `others` are those of the axes that x has not. */
export function inNative(x: Shaped, numbers: readonly number[], others: readonly number[]): readonly number[] {
  const axes = nativeAxes(x);
  return others.map((other, axis) => numbers[axes.indexOf(axis)] ?? other);
}

/** The extent of x along [t, h, w]. */
export function extentOf({ shape }: Shaped): readonly number[] {
  return shape.length === 4 ? [1, ...shape.slice(1, 3)] : shape.slice(1, 4);
}

/** The shape of x with another extent and another number of channels. */
export function withExtent({ shape }: Shaped, extent: readonly number[], c: number): Shape {
  return [shape[0] ?? 1, ...extent.slice(shape.length === 4 ? 1 : 0), c];
}

export interface Window {
  readonly kernel: readonly number[];
  readonly stride: readonly number[];
  readonly padding: readonly number[];
  readonly dilation?: readonly number[];
}

/** The shape that windows sliding over x give, rounded down, or up as PyTorch's ceil_mode does. */
export function windowed(op: string, x: Shaped, window: Window, c: number, ceilMode = false): Shape {
  const extent = extentOf(x).map((size, i) => {
    const kernel = window.kernel[i] ?? 1;
    const stride = window.stride[i] ?? 1;
    const padding = window.padding[i] ?? 0;
    const beyond = ceilMode ? stride - 1 : 0; // how far a window may stick out
    const room = size + 2 * padding - (window.dilation?.[i] ?? 1) * (kernel - 1) - 1 + beyond;
    if (room < 0)
      wrong(
        op,
        `the kernel ${list(window.kernel.slice(5 - x.shape.length))} does not fit into x ${of(x)} with its padding`,
      );
    const count = Math.floor(room / stride) + 1;
    return ceilMode && (count - 1) * stride >= size + padding ? count - 1 : count;
  });
  return withExtent(x, extent, c);
}

/** The shape of P(x). */
export function halved(shape: Shape): Shape {
  return shape.map((size, i) => (i === shape.length - 3 || i === shape.length - 2 ? Math.ceil(size / 2) : size));
}

/** @throws OctconvError unless a convolution's weight [O, I / groups, ...] fits its input, which errors call `name`. */
export function checkWeight(op: string, role: string, weight: Shaped, name: string, x: Shaped, groups: number): void {
  const { shape } = weight;
  const [o = 0, i = 0] = shape;
  if (!(Number.isInteger(groups) && groups >= 1)) wrong(op, `groups ${show(groups)}, wanted a positive integer`);
  if (shape.length !== x.shape.length) {
    const form = x.shape.length === 5 ? '[O,I,kt,kh,kw]' : '[O,I,kh,kw]';
    wrong(op, `${role} ${of(weight)}, wanted ${form} for ${name} ${of(x)}`);
  }
  if (i * groups !== channels(x)) {
    const inputs = `${i * groups} input channels${groups === 1 ? '' : ` in ${groups} groups`}`;
    wrong(op, `${role} ${of(weight)} needs ${inputs}, got ${name} ${of(x)}`);
  }
  if (o % groups !== 0)
    wrong(op, `${role} ${of(weight)} has ${o} output channels, wanted a multiple of ${groups} groups`);
}

export function checkVector(op: string, role: string, vector: Shaped | undefined, length: number): void {
  if (vector && !same(vector.shape, [length])) wrong(op, `${role} ${of(vector)}, wanted [${length}]`);
}

/** [kh, kw] or [kt, kh, kw] of a weight. */
export const kernelOf = ({ shape }: Shaped): Size => shape.slice(2) as unknown as Size;
