/** Which algorithm computes a branch on the CPU: a function of shape and data type. */
import { type DType, isFloat } from '../dtype.js';
import type { Traits } from '../targets.js';
import type { Work } from '../turns.js';
import { toNTHWC } from './graph.js';
import { type Branch, convStep, type Source, type Store, sourcesOf, type Step, type Steps } from './lower.js';

/** What tiles write: the elements of the only store, or y as f32 (`groupStores` in native/ops/octconv/cpu.cc). */
function writtenType(stores: readonly Store[], values: Steps['values']): DType {
  const typeOf = ({ value, mean }: Store) => {
    const { dtype, scale, zero } = (!mean && values[value]) || { dtype: 'f32' as const };
    return { dtype, scale, zero };
  };
  const groups = new Set(stores.map((store) => JSON.stringify([store.activation, typeOf(store)])));
  const slots = new Set(stores.map((s) => JSON.stringify([s.activation, typeOf(s), s.pool, s.mean])));
  const [store] = stores;
  const { batchNorm, function: applied } = store?.activation ?? {};
  const one = groups.size === 1 && slots.size === stores.length && !batchNorm && !applied;
  return one && store ? typeOf(store).dtype : 'f32';
}

/** A form of Winograd's algorithm: F(2x2, 3x3), F(4x4, 3x3), or F(4, 3) and F(4, 5) (of i8 F(2, 5)) along T. */
export type Winograd = 2 | 4 | 'overTime';

/** How native code is told of it. */
export function hintsOf(
  form: Winograd,
  { compute, terms }: Pick<Branch, 'compute' | 'terms'>,
): NonNullable<Branch['hints']> {
  if (form !== 'overTime') return { winograd: form };
  const [taps] = sourcesOf({ terms })[0]?.kernel ?? [];
  return { winograd: compute === 'i8' && taps === 5 ? 2 : 4, overTime: true };
}

/**
 * Whether a form of Winograd's algorithm can do it: products are of f32, activations may be narrower; or all is
 * integers, exactly.
 */
export function fitsWinograd(
  { terms, residual, stores, compute = 'f32' }: Branch,
  { values }: Steps,
  form: Winograd,
  { winograd }: Pick<Traits, 'winograd'>,
): boolean {
  const y = writtenType(stores, values);
  const types = [y, residual === undefined ? y : values[residual]?.dtype];
  const sources = sourcesOf({ terms });
  const plain =
    sources.length > 0 && sources.every((source) => (form === 'overTime' ? isOverTime(source) : is3x3(source)));
  const most = winograd[form];
  if (!plain || most === undefined || types[0] !== types[1]) return false;
  if (new Set(sources.map(({ kernel }) => kernel[0])).size > 1) return false;
  if (compute !== 'i8') return isFloat(y);
  const sum = (some: readonly Source[], of: (source: Source) => number) =>
    some.reduce((all, source) => all + of(source) * (values[source.input]?.shape.at(-1) ?? 0), 0);
  const high = sources.filter(({ upsample }) => !upsample);
  const low = sources.filter(({ upsample }) => upsample);
  // Over time all products are one sum before it is divided.
  const sums =
    form === 'overTime'
      ? sum(sources, ({ kernel }) => kernel.reduce((a, b) => a * b, 1))
      : Math.max(
          sum(high, () => 1),
          sum(low, () => 1),
        );
  return types[0] === 'u8' && sums <= most;
}

function is3x3({ kernel, stride = [1], padding, dilation = [1], groups }: Source): boolean {
  const fine = String(kernel) === '1,3,3' && String(padding) === '0,1,1' && groups === 1;
  return fine && [...stride, ...dilation].every((n) => n === 1);
}

/** 3 or 5 taps over time, of stride 1 and as many frames out as in; height and width are free. */
function isOverTime({ kernel: [t = 1], stride = [1], padding = [0], dilation = [1], groups }: Source): boolean {
  const fits = t === 3 || t === 5;
  return fits && stride[0] === 1 && dilation[0] === 1 && padding[0] === (t - 1) / 2 && groups === 1;
}

const largeWeights = 32 * 2 ** 20;

/**
 * F(4x4) takes 36 products for 16 outputs instead of 144, F(2x2) 16 for 4 instead of 36, but both have weights of their
 * own for each position, 4 and 1.8 times as many, which are read for one output per tile. So the coarsest grid of a
 * branch must have some tiles. Milliseconds of Oct-ResNet-50's 3x3 layers at alpha .5, one AVX2 thread, direct / F(2x2)
 * / F(4x4): 56 px 1.18 / .84 / .60, 28 px 1.12 / .71 / .59, 14 px 1.17 / .91 / 1.00, 7 px 2.72 / 2.2 / 3.0. With 8
 * channels the transforms take longer than what they save, with 16 they pay. Of i8: 56 px .57 / .56 / .38 (plain, 64
 * channels: 1.24 / .98 / .63), 28 px .55 / .43 / .34, 14 px .53 / .44, 7 px 1.2 / 1.0; the whole alpha .5 27.5 / 26.5 /
 * 25.7.
 */
function winogradOf(
  branch: Branch,
  steps: Steps,
  traits: Pick<Traits, 'dotProducts' | 'winograd'>,
): Winograd | undefined {
  const shape = (id: number | undefined) => toNTHWC(steps.values[id ?? -1]?.shape ?? []);
  const sources = sourcesOf(branch);
  const [n, t, h, w, c] = shape(branch.y);
  const { compute = 'f32' } = branch;
  const taps = sources[0]?.kernel[0] ?? 1;
  // Two products of bf16 at once are as good as Winograd's, which are of f32; four of bytes as its, which are of i16. But
  // F(4, 5) takes 8 products for 4 outputs instead of 20: the stem of I3D-50 29.4 -> 17.5 ms with bf16 on Zen 5.
  if (traits.dotProducts.includes(compute) && !(compute === 'bf16' && taps === 5)) return undefined;
  const fits = (form: Winograd) => fitsWinograd(branch, steps, form, traits);
  const inputs = sources.map(({ input, kernel: [, kh = 1, kw = 1] }) => ({ c: shape(input)[4], taps: kh * kw }));
  // A tile along T has 4 frames (of i8 with 5 taps 2): fewer than 3 are no faster.
  if (Math.min(c, Math.max(...inputs.map(({ c, taps }) => c * taps))) >= 16 && t >= 3 && fits('overTime'))
    return 'overTime';
  if (Math.min(c, Math.max(...inputs.map(({ c }) => c))) < 16) return undefined;
  const coarse = sources.some(({ upsample }) => upsample) ? 2 : 1;
  // Sub-batches (subbatch.ts) depend on the threads, what is computed must not: only small maps count all images.
  const images = h * w <= 64 ? n : 1;
  const tiles = (size: number) => images * t * Math.ceil(h / coarse / size) * Math.ceil(w / coarse / size);
  // Large weights want more than 16 tiles: those of 512 to 512 channels are 36 MiB, or 16. On 4 frames of 7 px F(4x4)
  // takes 3.8 ms and F(2x2) 6.2, but so a clip of Oct-I3D-50 takes 311 MiB instead of 373.
  const products = c * inputs.reduce((sum, { c }) => sum + c, 0);
  if (tiles(4) >= (products * 36 * 4 > largeWeights ? 17 : 8) && fits(4)) return 4;
  return tiles(2) >= 4 && fits(2) ? 2 : undefined;
}

export function* chooseAlgorithms(given: Steps, traits: Pick<Traits, 'dotProducts' | 'winograd'>): Work<Steps> {
  const steps: Step[] = [];
  for (const step of given.steps) {
    yield;
    const branches = step.branches?.map((branch) => {
      const form = winogradOf(branch, given, traits);
      return form ? { ...branch, hints: hintsOf(form, branch) } : branch;
    });
    steps.push(branches?.some(({ hints }) => hints) ? convStep(step.name, branches) : step);
  }
  return { ...given, steps };
}
