/**
 * Fusion: small passes from steps to steps, each of which takes a memory pass out of the network. After them an octave
 * convolution with its pooling, upsampling, adds, batch normalisation, residual and activation is one step.
 */
import type { TensorType } from './graph.js';
import { type Branch, convStep, type Source, type Step, type Steps } from './lower.js';
import { halved } from './shape.js';

/** The steps while a pass rewrites them: which one makes a value, and which ones read it. */
class Uses {
  /** By place: a step that replaces another one stands where that one stood. */
  readonly steps = new Map<number, Step>();
  readonly #makers = new Map<number, number>();
  readonly #readers = new Map<number, readonly number[]>();
  readonly #outputs: ReadonlySet<number>;
  constructor({ steps, outputs }: Steps) {
    this.#outputs = new Set(outputs);
    for (const [place, step] of steps.entries()) this.put(place, step);
  }
  /** Puts a step, or none, in the place of another one. */
  put(place: number, step?: Step): void {
    const old = this.steps.get(place);
    for (const id of old?.outputs ?? []) this.#makers.delete(id);
    for (const id of old?.inputs ?? []) this.#readers.set(id, this.#readersOf(id).filter((reader) => reader !== place));
    for (const id of step?.outputs ?? []) this.#makers.set(id, place);
    for (const id of step?.inputs ?? []) this.#readers.set(id, [...this.#readersOf(id), place]);
    if (step) this.steps.set(place, step);
    else this.steps.delete(place);
  }
  #readersOf(id: number): readonly number[] {
    return this.#readers.get(id) ?? [];
  }
  /** Place of the step that makes a value; -1 for the network's inputs. */
  place(id: number): number {
    return this.#makers.get(id) ?? -1;
  }
  maker(id: number): Step | undefined {
    return this.steps.get(this.place(id));
  }
  /** The one step that reads the value, if there is just one reader and the caller does not see the value. */
  onlyReader(id: number): Step | undefined {
    const [reader = -1, ...others] = this.#readersOf(id);
    return others.length || this.#outputs.has(id) ? undefined : this.steps.get(reader);
  }
  /** The convolution branch whose output the value is, if `reader` alone reads it. */
  branchOf(id: number | undefined, reader: Step): Branch | undefined {
    if (id === undefined || this.onlyReader(id) !== reader) return undefined;
    return this.maker(id)?.branches?.find((branch) => branch.outputs[0] === id);
  }
}

const isOpen = (branch: Branch) => branch.low === undefined && branch.high === undefined && branch.outputs.length === 1;

/**
 * Runs a rewrite over the steps in order. `rewrite` looks at one step and says which branch takes over its work, as a
 * new branch whose output is the step's; the step itself goes.
 */
function absorb(given: Steps, rewrite: (step: Step, uses: Uses) => { from: number; branch: Branch } | undefined): Steps {
  const uses = new Uses(given);
  for (const [place, step] of uses.steps) {
    const { from = -1, branch } = rewrite(step, uses) ?? {};
    const maker = uses.maker(from);
    if (!maker?.branches || !branch) continue;
    const to = uses.place(from);
    uses.put(place);
    uses.put(to, convStep(maker.name, maker.branches.map((b) => (b.outputs[0] === from ? branch : b))));
  }
  return { ...given, steps: [...uses.steps.values()] };
}

/** Batch normalisation right behind a convolution: native code folds it into the weights while it packs them. */
export function foldBatchNorm(given: Steps): Steps {
  return absorb(given, (step, uses) => {
    const [from = -1] = step.inputs;
    const branch = step.op === 'batchNorm' ? uses.branchOf(from, step) : undefined;
    const [term, ...others] = branch?.terms ?? [];
    if (!branch || !isOpen(branch) || !term || others.length || term.batchNorm || branch.residual !== undefined) return;
    const { weight = '', bias = '', running_mean = '', running_var = '' } = step.params;
    const batchNorm = { weight, bias, running_mean, running_var };
    return { from, branch: { ...branch, terms: [{ ...term, batchNorm, eps: step.attrs.eps as number }], outputs: step.outputs } };
  });
}

/**
 * A sum of two convolutions (a block's last one and its projection shortcut) becomes one that accumulates over both,
 * if all branches of the earlier one go into sums with the later one.
 */
export function joinShortcut(given: Steps): Steps {
  const uses = new Uses(given);
  for (const [place, later] of uses.steps) {
    if (!later.branches) continue;
    const sums = later.branches.flatMap((branch) => {
      const sum = uses.onlyReader(branch.outputs[0] ?? -1);
      const other = sum?.op === 'add' ? sum.inputs.find((id) => id !== branch.outputs[0]) : undefined;
      const earlier = sum && uses.branchOf(other, sum);
      return sum && earlier && isOpen(branch) && isOpen(earlier) ? { branch, sum, earlier } : [];
    });
    const [from = -1, ...others] = new Set(sums.map((s) => uses.place(s.earlier.outputs[0] ?? -1)));
    const earlier = uses.steps.get(from);
    const count = later.branches.length;
    if (!earlier || others.length || from >= place || sums.length !== count || earlier.branches?.length !== count) continue;
    const groups = new Set(sums.flatMap((s) => [...s.branch.terms, ...s.earlier.terms]).flatMap((t) => t.sources.map((x) => x.groups)));
    if (groups.size !== 1 || sums.some((s) => s.branch.residual !== undefined || s.earlier.residual !== undefined)) continue;
    const joined = convStep(
      earlier.name,
      sums.map((s) => ({ terms: [...s.earlier.terms, ...s.branch.terms], outputs: s.sum.outputs })),
    );
    for (const gone of [from, ...sums.map((s) => uses.place(s.sum.outputs[0] ?? -1))]) uses.put(gone);
    uses.put(place, joined);
  }
  return { ...given, steps: [...uses.steps.values()] };
}

/** A residual sum behind a convolution: the epilogue adds what was computed before. */
export function joinResidual(given: Steps): Steps {
  return absorb(given, (step, uses) => {
    if (step.op !== 'add') return;
    const [residual = -1, from = -1] = [...step.inputs].sort((a, b) => uses.place(a) - uses.place(b));
    const branch = uses.branchOf(from, step);
    if (!branch || !isOpen(branch) || branch.residual !== undefined || uses.place(residual) === uses.place(from)) return;
    return { from, branch: { ...branch, residual, outputs: step.outputs } };
  });
}

/** ReLU or ReLU6 behind a convolution: the epilogue clamps. */
export function joinActivation(given: Steps): Steps {
  return absorb(given, (step, uses) => {
    const [from = -1] = step.inputs;
    const branch = step.op === 'relu' || step.op === 'relu6' ? uses.branchOf(from, step) : undefined;
    if (!branch || !isOpen(branch)) return;
    return { from, branch: { ...branch, low: 0, ...(step.op === 'relu6' && { high: 6 }), outputs: step.outputs } };
  });
}

/** P(x) for a later layer is written by the step that makes x, while x is in the cache. */
export function sinkPooling(given: Steps): Steps {
  const values: TensorType[] = [...given.values];
  const pooled = new Map<number, number>();
  const uses = new Uses(given);
  const pool = (id: number): number => {
    const known = pooled.get(id);
    if (known !== undefined) return known;
    const { shape, ...type } = values[id] as TensorType;
    pooled.set(id, values.push({ ...type, shape: halved(shape) }) - 1);
    return values.length - 1;
  };
  const sink = (source: Source): Source => {
    const maker = uses.maker(source.input);
    const most = maker?.branches ? 2 : maker?.op === 'maxPool' ? 1 : 0;
    let { input } = source;
    const times = Math.min(most, source.pool);
    for (let i = 0; i < times; i++) input = pool(input);
    return { ...source, input, pool: source.pool - times };
  };
  const sunk = given.steps.map((step) =>
    step.branches
      ? convStep(step.name, step.branches.map((b) => ({ ...b, terms: b.terms.map((t) => ({ ...t, sources: t.sources.map(sink) })) })))
      : step,
  );
  const copies = (id: number): number[] => {
    const next = pooled.get(id);
    return next === undefined ? [id] : [id, ...copies(next)];
  };
  const steps = sunk.map((step) => {
    if (step.branches) return convStep(step.name, step.branches.map((b) => ({ ...b, outputs: copies(b.outputs[0] ?? -1) })));
    return step.op === 'maxPool' ? { ...step, outputs: copies(step.outputs[0] ?? -1) } : step;
  });
  return { ...given, values, steps };
}

/** All passes, in order; `types` are given to what is left of the values, before pooled copies are added. */
export function fuse(steps: Steps, types: (steps: Steps) => Steps = (same) => same): Steps {
  return [foldBatchNorm, joinShortcut, joinResidual, joinActivation, types, sinkPooling].reduce((s, pass) => pass(s), steps);
}
