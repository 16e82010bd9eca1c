/**
 * Fusion: small passes from steps to steps, each of which takes a memory pass out of the network. After them an octave
 * convolution with its pooling, upsampling, adds, batch normalisation, residual and activation is one step.
 */
import { atOnce, type Work } from '../turns.js';
import { type Attrs, type TensorType, toNTHWC } from './graph.js';
import {
  type Activation,
  type BatchNormParams,
  type Branch,
  convStep,
  seenValues,
  type Source,
  type Store,
  sourcesOf,
  type Step,
  type Steps,
} from './lower.js';
import { halved, same } from './shape.js';

/** The steps while a pass rewrites them: which one makes a value, and which ones read it. */
class Uses {
  /** By place: a step that replaces another one stands where that one stood. */
  readonly steps = new Map<number, Step>();
  readonly #makers = new Map<number, number>();
  readonly #readers = new Map<number, Set<number>>();
  readonly #seen: ReadonlySet<number>;
  constructor(given: Steps) {
    this.#seen = new Set(seenValues(given));
    for (const [place, step] of given.steps.entries()) this.put(place, step);
  }
  /** Puts a step, or none, in the place of another one. */
  put(place: number, step?: Step): void {
    const old = this.steps.get(place);
    for (const id of old?.outputs ?? []) this.#makers.delete(id);
    for (const id of old?.inputs ?? []) this.#readers.get(id)?.delete(place);
    for (const id of step?.outputs ?? []) this.#makers.set(id, place);
    for (const id of step?.inputs ?? []) {
      const readers = this.#readers.get(id);
      if (readers) readers.add(place);
      else this.#readers.set(id, new Set([place]));
    }
    if (step) this.steps.set(place, step);
    else this.steps.delete(place);
  }
  /** Place of the step that makes a value; -1 for the network's inputs. */
  place(id: number): number {
    return this.#makers.get(id) ?? -1;
  }
  maker(id: number): Step | undefined {
    return this.steps.get(this.place(id));
  }
  /** The one step that reads the value, if there is just one reader and nobody else sees the value. */
  onlyReader(id: number): Step | undefined {
    const readers = this.#readers.get(id);
    if (readers?.size !== 1 || this.#seen.has(id)) return undefined;
    const [reader = -1] = readers;
    return this.steps.get(reader);
  }
  /** The convolution branch that stores the value. */
  branchOf(id: number): Branch | undefined {
    return this.maker(id)?.branches?.find((branch) => branch.stores.some(({ value }) => value === id));
  }
  /** The same, if `reader` alone reads it and nothing has been joined to it. */
  openBranchOf(id: number | undefined, reader: Step): Branch | undefined {
    if (id === undefined || this.onlyReader(id) !== reader) return undefined;
    const branch = this.branchOf(id);
    return branch && isOpen(branch) ? branch : undefined;
  }
  /** Whether the caller or an observer sees the value. */
  isSeen(id: number): boolean {
    return this.#seen.has(id);
  }
  readersOf(id: number): readonly Step[] {
    return [...(this.#readers.get(id) ?? [])].flatMap((place) => this.steps.get(place) ?? []);
  }
}

/** Whether a step adds values of one shape. */
const isSum = ({ op, inputs: [x = -1, y = -1] }: Step, { values }: Steps) =>
  op === 'add' && same(values[x]?.shape ?? [], values[y]?.shape ?? []);

/** Whether a store is y as it is. */
const isRaw = (store: Store | undefined) => store?.pool === 0 && !store.mean && store.activation === undefined;

/** Whether y alone is stored, as it is. */
const isOpen = ({ stores: [store, ...others] }: Branch) => others.length === 0 && isRaw(store);

const stored = (branch: Branch, value: number): Branch => ({ ...branch, y: value, stores: [{ value, pool: 0 }] });

/**
 * Runs a rewrite over the steps in order. `rewrite` looks at one step and says which branch takes over its work, as a
 * new branch that stores the step's output; the step itself goes.
 */
function* absorb(
  given: Steps,
  rewrite: (step: Step, uses: Uses) => { from: Branch; branch: Branch } | undefined,
): Work<Steps> {
  const uses = new Uses(given);
  for (const [place, step] of uses.steps) {
    yield;
    const { from, branch } = rewrite(step, uses) ?? {};
    if (!from || !branch) continue;
    const to = uses.place(from.stores[0]?.value ?? -1);
    const maker = uses.steps.get(to);
    uses.put(place);
    uses.put(to, convStep(maker?.name ?? '', maker?.branches?.map((b) => (b === from ? branch : b)) ?? []));
  }
  return { ...given, steps: [...uses.steps.values()] };
}

const normOf = ({
  params: { weight = '', bias = '', running_mean = '', running_var = '' },
}: Step): BatchNormParams => ({
  weight,
  bias,
  running_mean,
  running_var,
});

/** A product with a number per image and channel, a branch of its own: sums, activations and P behind it join it. */
export function openGates(given: Steps): Steps {
  const shape = (id: number) => toNTHWC(given.values[id]?.shape ?? []);
  const isGate = (gate: number, x: number) => {
    const [n, t, h, w, c] = shape(x);
    return t * h * w > 1 && same(shape(gate), [n, 1, 1, 1, c]);
  };
  const steps = given.steps.map((step) => {
    const [a = -1, b = -1] = step.inputs;
    const [y = -1] = step.outputs;
    const gated =
      step.op !== 'mul' ? undefined : isGate(b, a) ? { input: a, gate: b } : isGate(a, b) && { input: b, gate: a };
    return gated ? convStep(step.name, [{ terms: [], gated, y, stores: [{ value: y, pool: 0 }] }]) : step;
  });
  return { ...given, steps };
}

/**
 * Convolutions of one input each: P, U and the sum over sources are steps of their own. What is upsampled comes first,
 * so that the sum can become the residual of the convolution that is not. A batch normalisation that was folded scales
 * all of them, and the last one has its shift.
 */
export function* splitSources(given: Steps): Work<Steps> {
  const values: TensorType[] = [...given.values];
  const steps: Step[] = [];
  const shapeOf = (id: number) => values[id]?.shape ?? [];
  const value = (shape: readonly number[]) => values.push({ dtype: 'f32', shape }) - 1;
  const put = (op: string, name: string, inputs: number[], attrs: Attrs, y: number) => {
    steps.push({ op, name, inputs, outputs: [y], attrs, params: {} });
    return y;
  };
  const pooled = new Map<number, number>();
  const pool = (name: string, x: number): number => {
    const known = pooled.get(x) ?? put('avgPool', name, [x], halving, value(halved(shapeOf(x))));
    pooled.set(x, known);
    return known;
  };
  for (const step of given.steps) {
    yield;
    if (!step.branches) steps.push(step);
    for (const branch of step.branches ?? []) {
      const { y, terms } = branch;
      const [term] = terms;
      const sources = [...(term?.sources ?? [])].sort((a, b) => Number(b.upsample) - Number(a.upsample));
      let sum: number | undefined;
      for (const [i, source] of sources.entries()) {
        const { name } = step;
        const last = i === sources.length - 1;
        const own = last && sum === undefined ? y : value(shapeOf(y)); // of this source alone
        const product = source.upsample ? value(halved(shapeOf(y))) : own;
        let { input } = source;
        for (let times = 0; times < source.pool; times++) input = pool(name, input);
        const one = { ...term, sources: [{ ...source, input, pool: 0, upsample: false }] };
        const part = last ? one : { ...one, bias: undefined, ...(term?.batchNorm && { scaleOnly: true }) };
        steps.push(convStep(name, [stored({ ...branch, terms: [part] }, product)]));
        if (source.upsample) put('upsampleNearest', name, [product], { scale: [1, 2, 2] }, own);
        sum = sum === undefined ? own : put('add', name, [sum, own], {}, last ? y : value(shapeOf(y)));
      }
    }
  }
  return { ...given, values, steps };
}

/** P as an average pooling. */
const halving = {
  kernel: [1, 2, 2],
  stride: [1, 2, 2],
  padding: [0, 0, 0],
  ceilMode: true,
  countIncludePad: false,
};

/** Batch normalisation right behind a convolution: native code folds it into the weights while it packs them. */
export function foldBatchNorm(given: Steps): Work<Steps> {
  return absorb(given, (step, uses) => {
    const from = step.op === 'batchNorm' ? uses.openBranchOf(step.inputs[0], step) : undefined;
    const [term, ...others] = from?.terms ?? [];
    if (!from || !term || others.length || term.batchNorm || from.residual !== undefined) return;
    const folded = { ...term, batchNorm: normOf(step), eps: step.attrs.eps as number };
    return { from, branch: { ...stored(from, step.outputs[0] ?? -1), terms: [folded] } };
  });
}

/**
 * A sum of two convolutions (a block's last one and its projection shortcut) becomes one that accumulates over both,
 * if all branches of the earlier one go into sums with the later one.
 */
export function* joinShortcut(given: Steps): Work<Steps> {
  const uses = new Uses(given);
  for (const [place, later] of uses.steps) {
    yield;
    if (!later.branches) continue;
    const sums = later.branches.flatMap((branch) => {
      const sum = uses.onlyReader(branch.y);
      const other = sum && isSum(sum, given) ? sum.inputs.find((id) => id !== branch.y) : undefined;
      const earlier = sum && uses.openBranchOf(other, sum);
      return sum && earlier && isOpen(branch) && !branch.gated && !earlier.gated ? { branch, sum, earlier } : [];
    });
    const [from = -1, ...others] = new Set(sums.map((s) => uses.place(s.earlier.y)));
    const earlier = uses.steps.get(from);
    const count = later.branches.length;
    if (!earlier || others.length || from >= place || sums.length !== count || earlier.branches?.length !== count)
      continue;
    const groups = new Set(
      sums.flatMap((s) => [...s.branch.terms, ...s.earlier.terms]).flatMap((t) => t.sources.map((x) => x.groups)),
    );
    if (groups.size !== 1 || sums.some((s) => s.branch.residual !== undefined || s.earlier.residual !== undefined))
      continue;
    const joined = convStep(
      earlier.name,
      sums.map((s) => stored({ ...s.branch, terms: [...s.earlier.terms, ...s.branch.terms] }, s.sum.outputs[0] ?? -1)),
    );
    for (const gone of [from, ...sums.map((s) => uses.place(s.sum.outputs[0] ?? -1))]) uses.put(gone);
    uses.put(place, joined);
  }
  return { ...given, steps: [...uses.steps.values()] };
}

/** A residual sum behind a convolution: the epilogue adds what was computed before. */
export function joinResidual(given: Steps): Work<Steps> {
  return absorb(given, (step, uses) => {
    if (!isSum(step, given)) return;
    const [residual = -1, from = -1] = [...step.inputs].sort((a, b) => uses.place(a) - uses.place(b));
    const branch = uses.openBranchOf(from, step);
    if (!branch || branch.residual !== undefined || uses.place(residual) === uses.place(from)) return;
    return { from: branch, branch: { ...stored(branch, step.outputs[0] ?? -1), residual } };
  });
}

const clampOf = ({ op }: Step): Activation | undefined =>
  op === 'relu' ? { least: 0 } : op === 'relu6' ? { least: 0, most: 6 } : undefined;

const functions = ['leakyRelu', 'sigmoid', 'silu', 'hardSigmoid', 'hardSwish', 'gelu'];

const functionOf = ({ op, attrs }: Step): Activation | undefined =>
  functions.includes(op)
    ? { function: op, ...(attrs.slope !== undefined && { slope: attrs.slope as number }) }
    : undefined;

/**
 * The batch normalisation, the clamp or other function, or both, that begin with a step: what they compute, and the
 * steps that they are.
 */
function activationFrom(
  step: Step,
  uses: Uses,
  among: (step: Step) => Activation | undefined,
): { activation: Activation; steps: readonly Step[] } | undefined {
  const alone = among(step);
  if (alone) return { activation: alone, steps: [step] };
  if (step.op !== 'batchNorm') return undefined;
  const next = uses.onlyReader(step.outputs[0] ?? -1);
  const after = next && among(next);
  return {
    activation: { batchNorm: normOf(step), eps: step.attrs.eps as number, ...after },
    steps: after ? [step, next] : [step],
  };
}

/**
 * Steps behind what a convolution stores become one more store of its epilogue, in which the value that they read is a
 * store only if somebody else reads it.
 */
function* addStores(
  given: Steps,
  storeFor: (step: Step, read: Store, uses: Uses) => { store: Store; steps: readonly Step[] } | undefined,
): Work<Steps> {
  const uses = new Uses(given);
  for (const step of uses.steps.values()) {
    yield;
    const [input = -1] = step.inputs;
    const branch = uses.branchOf(input);
    const read = branch?.stores.find(({ value }) => value === input);
    const found = read && storeFor(step, read, uses);
    const place = uses.place(input);
    const maker = uses.steps.get(place);
    if (!branch || !found || !maker?.branches) continue;
    for (const gone of found.steps) uses.put(uses.place(gone.outputs[0] ?? -1));
    const unread = uses.readersOf(input).length === 0 && !uses.isSeen(input);
    const stores = [...branch.stores.filter((store) => store !== read || !unread), found.store];
    const y = unread && branch.y === input && !found.store.mean ? found.store.value : branch.y;
    const branches = maker.branches.map((b) => (b === branch ? { ...b, y, stores } : b));
    uses.put(place, convStep(maker.name, branches));
  }
  return { ...given, steps: [...uses.steps.values()] };
}

/** Batch normalisation and a function, a clamp for example, of what a convolution computes. */
export function joinActivations(given: Steps): Work<Steps> {
  return addStores(given, (step, read, uses) => {
    const found = isRaw(read) ? activationFrom(step, uses, (s) => clampOf(s) ?? functionOf(s)) : undefined;
    const value = found?.steps.at(-1)?.outputs[0] ?? -1;
    return found && { store: { value, pool: 0, activation: found.activation }, steps: found.steps };
  });
}

/** ReLU right behind a convolution, in the same store. */
export function joinRelu(given: Steps): Work<Steps> {
  return absorb(given, (step, uses) => {
    const from = step.op === 'relu' ? uses.openBranchOf(step.inputs[0], step) : undefined;
    if (!from) return undefined;
    const value = step.outputs[0] ?? -1;
    return { from, branch: { ...from, y: value, stores: [{ value, pool: 0, activation: { least: 0 } }] } };
  });
}

/** The mean over T, H and W of what a convolution stores. */
export function joinMeans(given: Steps): Work<Steps> {
  return addStores(given, (step, { pool, mean, activation }) => {
    if (step.op !== 'globalAvgPool' || pool > 0 || mean) return undefined;
    return {
      store: { value: step.outputs[0] ?? -1, pool, mean: true, ...(activation && { activation }) },
      steps: [step],
    };
  });
}

/**
 * Two branches that read what one step makes are one step, if the later one reads nothing that is made between them:
 * the high and the low branch of what has no path from one to the other.
 */
export function* joinBranches(given: Steps): Work<Steps> {
  const uses = new Uses(given);
  const madeFor = ({ terms, gated }: Branch) => uses.place(gated?.input ?? sourcesOf({ terms })[0]?.input ?? -1);
  const open = new Map<number, number>(); // by the place of what a step of one branch reads
  for (const [place, step] of uses.steps) {
    yield;
    const [branch, ...others] = step.branches ?? [];
    const from = branch ? madeFor(branch) : -1;
    if (!branch || others.length || from < 0) continue;
    const to = open.get(from) ?? -1;
    const earlier = uses.steps.get(to);
    if (earlier?.branches && step.inputs.every((id) => uses.place(id) < to)) {
      open.delete(from);
      uses.put(place);
      uses.put(to, convStep(earlier.name, [...earlier.branches, branch]));
    } else open.set(from, place);
  }
  return { ...given, steps: [...uses.steps.values()] };
}

/**
 * Batch normalisation and clamp of a value that no convolution makes: if only convolutions read the result, each of
 * them applies both to its input.
 * Not as part of the weight of a 1x1, where there is no clamp: with means of 8 deviations the error of bf16 was 1.7e-2
 * in place of 2.2e-3, and the CPU gained no time.
 */
export function* joinPrologues(given: Steps): Work<Steps> {
  const uses = new Uses(given);
  for (const step of [...uses.steps.values()]) {
    yield;
    const found = activationFrom(step, uses, clampOf);
    const [input = -1] = step.inputs;
    const value = found?.steps.at(-1)?.outputs[0] ?? -1;
    const readers = uses.readersOf(value);
    const reads = (branch: Branch) => sourcesOf(branch).some((source) => source.input === value);
    const onlySources = ({ residual, gated }: Branch) =>
      residual !== value && gated?.input !== value && gated?.gate !== value;
    const fine = readers.every(({ branches = [] }) => branches.length > 0 && branches.every(onlySources));
    if (!found || !fine || readers.length === 0 || uses.isSeen(value)) continue;
    const prologue = found.activation;
    const behind = (source: Source): Source => (source.input === value ? { ...source, input, prologue } : source);
    for (const reader of readers) {
      const branches = (reader.branches ?? []).map((b) => (reads(b) ? eachSource(b, behind) : b));
      uses.put(uses.place(reader.outputs[0] ?? -1), convStep(reader.name, branches));
    }
    for (const gone of found.steps) uses.put(uses.place(gone.outputs[0] ?? -1));
  }
  return { ...given, steps: [...uses.steps.values()] };
}

const eachSource = (branch: Branch, f: (source: Source) => Source): Branch => ({
  ...branch,
  terms: branch.terms.map((term) => ({ ...term, sources: term.sources.map(f) })),
});

/** Pooling that is P, behind a convolution that nobody else reads: the convolution stores P(y). */
export function joinPooling(given: Steps): Work<Steps> {
  return absorb(given, (step, uses) => {
    const [input = -1] = step.inputs;
    const [output = -1] = step.outputs;
    const from = step.op === 'avgPool' && uses.onlyReader(input) === step ? uses.branchOf(input) : undefined;
    const [store, ...others] = from?.stores ?? [];
    if (
      !from ||
      !store ||
      others.length ||
      store.mean ||
      store.pool > 1 ||
      !isHalving(step, given.values[input]?.shape ?? [])
    )
      return;
    return { from, branch: { ...from, stores: [{ ...store, value: output, pool: store.pool + 1 }] } };
  });
}

/** Whether an average pooling is P: 2x2, over what exists where a size is odd. */
function isHalving({ attrs }: Step, shape: readonly number[]): boolean {
  const { kernel, stride, padding, ceilMode, countIncludePad } = attrs as { [key: string]: unknown };
  const [h = 0, w = 0] = shape.slice(-3);
  const even = h % 2 === 0 && w % 2 === 0;
  return (
    String([kernel, stride, padding]) === '1,2,2,1,2,2,0,0,0' &&
    (even || (ceilMode === true && countIncludePad === false))
  );
}

/**
 * P(x) for a later layer is written by the step that makes x, while x is in the cache. Values of convolutions that
 * nobody reads are not stored. A store is pooled `most` times, at most.
 */
export function* sinkPooling(given: Steps, most = 2): Work<Steps> {
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
    const before = uses.branchOf(source.input)?.stores.find(({ value }) => value === source.input)?.pool ?? 0;
    // With a prologue, P comes after it.
    const free = source.prologue ? 0 : maker?.branches ? most - before : maker?.op === 'maxPool' ? 1 : 0;
    let { input } = source;
    const times = Math.min(free, source.pool);
    for (let i = 0; i < times; i++) input = pool(input);
    return { ...source, input, pool: source.pool - times };
  };
  const sunk: Step[] = [];
  for (const step of given.steps) {
    yield;
    const branches = step.branches?.map((b) => eachSource(b, sink));
    sunk.push(branches ? convStep(step.name, branches) : step);
  }
  const copies = (id: number): number[] => {
    const next = pooled.get(id);
    return next === undefined ? [id] : [id, ...copies(next)];
  };
  const read = new Set([...sunk.flatMap((step) => step.inputs), ...seenValues(given)]);
  const all = ({ stores }: Branch) =>
    stores.flatMap((store) => copies(store.value).map((value, i) => ({ ...store, value, pool: store.pool + i })));
  const wanted = (branch: Branch) => {
    const stores = all(branch).filter(({ value }) => read.has(value));
    return stores.length ? stores : branch.stores;
  };
  const steps: Step[] = [];
  for (const step of sunk) {
    yield;
    const branches = step.branches?.map((b) => ({ ...b, stores: wanted(b) }));
    if (branches) steps.push(convStep(step.name, branches));
    else steps.push(step.op === 'maxPool' ? { ...step, outputs: copies(step.outputs[0] ?? -1) } : step);
  }
  return { ...given, values, steps };
}

/** Work that rests now and then: a network of hundreds of steps takes milliseconds. */
export type Pass = (steps: Steps) => Work<Steps>;

/** A pass that does not rest. */
export const short = (pass: (steps: Steps) => Steps): Pass =>
  function* (steps) {
    yield;
    return pass(steps);
  };

/** All passes that fuse, in order; `types` are given to what is left of the values, before pooled copies are added. */
export const fusing = (types: Pass, mostPooled = 2): Pass[] => [
  short(openGates),
  foldBatchNorm,
  joinShortcut,
  joinResidual,
  joinActivations,
  joinPrologues,
  joinPooling,
  joinMeans,
  joinBranches,
  types,
  (steps) => sinkPooling(steps, mostPooled),
];

/** The passes for devices that compute convolutions of one input, with what comes right behind them. */
export const joiningEpilogues = (types: Pass): Pass[] => [foldBatchNorm, splitSources, joinResidual, joinRelu, types];

/** One pass after the other. */
export function* passThrough(passes: readonly Pass[], given: Steps): Work<Steps> {
  let steps = given;
  for (const pass of passes) steps = yield* pass(steps);
  return steps;
}

/** All passes in one turn. */
export const fuse = (steps: Steps, types: (steps: Steps) => Steps = (same) => same): Steps =>
  atOnce(passThrough(fusing(short(types)), steps));
