import { OctconvError, show } from './error.js';
import { kindOf, Value } from './graph/graph.js';
import type { Shape } from './tensor.js';

/** A pair, or the promise of one. */
export type Settled<R> = R extends Promise<infer T> ? Promise<Octave<T>> : Octave<R>;

/**
 * A pair of high and low frequency, of whatever it may be: tensors, channel numbers, layers. Of tensors, high is
 * [N, H, W, Ch] (or [N, T, H, W, Ch]) and low [N, ceil(H/2), ceil(W/2), Cl]. Low is absent where Cl = 0; nobody asks,
 * `map` and `zip` do what is right. (Drop an Octave, arXiv 1904.05049, section 3.1.)
 */
export class Octave<H, L = H> {
  constructor(
    readonly high: H,
    readonly low?: L | undefined,
  ) {}

  /** The full height, H. */
  get height(): H extends { readonly shape: Shape } ? number : never {
    return this.#axis(-3);
  }

  /** The full width, W. */
  get width(): H extends { readonly shape: Shape } ? number : never {
    return this.#axis(-2);
  }

  #axis(at: number): never {
    return (this.high as { readonly shape: Shape }).shape.at(at) as never;
  }

  /** `f` of each branch that is there; if `f` is asynchronous, a promise of the pair. */
  map<R>(f: (x: H | L) => R): Settled<R> {
    return pair(f(this.high), this.low === undefined ? undefined : f(this.low));
  }

  /** `f` of both highs and of both lows. @throws OctconvError if one has a low branch and the other has none. */
  zip<H2, L2, R>(other: Octave<H2, L2>, f: (x: H | L, y: H2 | L2) => R): Settled<R> {
    if (!(other instanceof Octave)) throw new OctconvError(`octave: zip: got ${kindOf(other)}, wanted an Octave`);
    if ((this.low === undefined) !== (other.low === undefined)) {
      const highs = [this.high, other.high];
      const place = highs.find((x) => x instanceof Value)?.graph.where(highs, {}) ?? '';
      throw new OctconvError(`octave: one operand has a low branch, the other has none${place}`);
    }
    const high = f(this.high, other.high);
    return pair(high, this.low === undefined || other.low === undefined ? undefined : f(this.low, other.low));
  }

  /** `f` of both where both have a branch, otherwise the one that is there. */
  join(other: Octave<H, L>, f: (x: H | L, y: H | L) => H & L): Octave<H, L> {
    const { low = other.low } = this;
    const both = this.low !== undefined && other.low !== undefined;
    return new Octave<H, L>(f(this.high, other.high), both ? f(this.low as L, other.low as L) : low);
  }

  /** `f` of high and low, or high alone. */
  merge(f: (high: H, low: L) => H): H {
    return this.low === undefined ? this.high : f(this.high, this.low);
  }
}

function pair<R>(high: R, low: R | undefined): Settled<R> {
  const settled =
    high instanceof Promise ? Promise.all([high, low]).then(([h, l]) => new Octave(h, l)) : new Octave(high, low);
  return settled as Settled<R>;
}

/** What there is for each path of an octave convolution: high to high, low to high, high to low, low to low. */
export interface Paths<T> {
  readonly h2h: T;
  readonly l2h?: T | undefined;
  readonly h2l?: T | undefined;
  readonly l2l?: T | undefined;
}

/** A path exists if and only if both of its ends do. */
export function paths<A, B, R>(
  from: Octave<A>,
  to: Octave<B>,
  f: (from: A, to: B, path: keyof Paths<R>) => R,
): Paths<R> {
  const path = (a: A | undefined, b: B | undefined, name: keyof Paths<R>) =>
    a === undefined || b === undefined ? undefined : f(a, b, name);
  return {
    h2h: f(from.high, to.high, 'h2h'),
    l2h: path(from.low, to.high, 'l2h'),
    h2l: path(from.high, to.low, 'h2l'),
    l2l: path(from.low, to.low, 'l2l'),
  };
}

/**
 * The widths Ch and Cl of C channels: Cl = trunc(alpha C), in double precision, so that .9 of 20 is 18.
 * @throws OctconvError unless alpha is in [0, 1).
 */
export function splitChannels(channels: number, alpha: number): Octave<number> {
  if (!(typeof alpha === 'number' && alpha >= 0 && alpha < 1))
    throw new OctconvError(`octave: alpha ${show(alpha)}, wanted at least 0 and less than 1`);
  const low = Math.trunc(alpha * channels);
  return new Octave(channels - low, low > 0 ? low : undefined);
}

/** The widths of C channels at alpha, or those that are given. */
export function widthsOf(channels: number | Octave<number>, alpha = 0): Octave<number> {
  if (channels instanceof Octave) return channels;
  if (Number.isInteger(channels) && channels > 0) return splitChannels(channels, alpha);
  throw new OctconvError(`octave: ${show(channels)} channels, wanted a positive integer or an Octave of them`);
}
