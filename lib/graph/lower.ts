/**
 * Lowering: convolutions and linear layers become the one form that native code runs, an output branch as a sum over
 * sources (native/ops/octconv/contract.cc). All other ops stay as they were recorded.
 */
import type { Attrs, ComputeType, Graph, GraphNode, TensorType } from './graph.js';
import type { Slice } from './slices.js';

export type Size3 = readonly number[];

export interface BatchNormParams {
  readonly weight: string;
  readonly bias: string;
  readonly running_mean: string;
  readonly running_var: string;
}

/** Batch normalisation, a function of one value, then a clamp to [least, most]; each may be absent. */
export interface Activation {
  readonly batchNorm?: BatchNormParams;
  readonly eps?: number;
  /** An op of one value; in stores only. */
  readonly function?: string;
  readonly slope?: number;
  readonly least?: number;
  readonly most?: number;
}

/** One convolution of one input within a branch. */
export interface Source {
  /** Value that it reads. */
  readonly input: number;
  /** Name of its weight. */
  readonly weight: string;
  readonly kernel: Size3;
  readonly stride?: Size3;
  readonly padding?: Size3;
  readonly dilation?: Size3;
  readonly groups: number;
  /** Of the input, before it is pooled. */
  readonly prologue?: Activation;
  /** How often P (2x2 average pooling) is applied to the input. */
  readonly pool: number;
  /** Whether U (2x nearest upsampling) is applied to the product. */
  readonly upsample: boolean;
  /** Name of the scales of a weight of i8. */
  readonly weightScale?: string;
  /** Where i8 is multiplied: the input as u8. */
  readonly scale?: number;
  readonly zero?: number;
}

/** batchNorm(bias + sum of sources) */
export interface Term {
  readonly sources: readonly Source[];
  readonly bias?: string | undefined;
  readonly batchNorm?: BatchNormParams;
  readonly eps?: number;
  /** Of batchNorm the factor without its shift: another step has the other part of what is normalized. */
  readonly scaleOnly?: boolean;
}

/** P^pool(activation(y)), or its mean over T, H and W, as a value. */
export interface Store {
  readonly value: number;
  readonly pool: number;
  readonly mean?: true;
  readonly activation?: Activation;
}

/** Values: x, and a number per image and channel that it is multiplied by. */
export interface Gated {
  readonly input: number;
  readonly gate: number;
}

/** y = residual + sum of terms, and what of it is stored. The contract stands in native/ops/octconv/contract.cc. */
export interface Branch {
  readonly terms: readonly Term[];
  /** In place of terms. */
  readonly gated?: Gated;
  readonly residual?: number;
  /** A value of the shape of y: the first one that was stored, whether it still is or not. */
  readonly y: number;
  readonly stores: readonly Store[];
  /** What its products are of; default f32. */
  readonly compute?: ComputeType;
  /**
   * What a target's own pass chose. `winograd`: 3x3 convolutions by F(2x2, 3x3) or F(4x4, 3x3); with `overTime` those of
   * 3 or 5 taps over time by F(4, 3), F(4, 5) or F(2, 5).
   */
  readonly hints?: { readonly winograd?: 2 | 4; readonly overTime?: true };
}

/** How many times as many weights as it is given Winograd's algorithm has: one for each position of a tile. */
export function winogradGrowth({ hints, terms }: Pick<Branch, 'hints' | 'terms'>): number {
  const { winograd, overTime } = hints ?? {};
  const [taps = 3] = (overTime && sourcesOf({ terms })[0]?.kernel) || [];
  if (winograd === undefined) return 1;
  return overTime ? (winograd + taps - 1) / taps : (winograd + 2) ** 2 / 9;
}

export const sourcesOf = ({ terms }: Pick<Branch, 'terms'>): Source[] => terms.flatMap(({ sources }) => sources);

/** A step: a recorded node, or a convolution in branch form, which knows what is packed for each branch. */
export type Step = GraphNode & { readonly branches?: readonly Branch[]; readonly packings?: readonly Packing[] };

/** What is packed at once: the parameters of a branch, or of a step without branches. */
export interface Packing {
  readonly attrs: Attrs;
  /** Role to name. */
  readonly params: { readonly [role: string]: string };
}

/** Steps that go over a batch together, some images at a time. */
export interface Segment {
  readonly steps: number;
  readonly images: number;
}

/** A network as steps. Passes take one and give another. */
export interface Steps {
  /** Absent: all images go through all steps at once. */
  readonly segments?: readonly Segment[];
  /** Values that lie in wider ones (slices.ts); absent: each lies in its own memory. */
  readonly slices?: ReadonlyMap<number, Slice>;
  /** Zeros behind the channels of values that lie in their own memory (pads.ts); absent: none. */
  readonly pads?: ReadonlyMap<number, number>;
  readonly values: readonly TensorType[];
  readonly steps: readonly Step[];
  readonly inputs: readonly number[];
  readonly outputs: readonly number[];
  /** Values that are there as the graph has them, f32 and dense; absent: none but inputs and outputs. */
  readonly observed?: readonly number[];
}

/** Inputs, outputs and observed values: no pass removes them or gives them another type. */
export const seenValues = ({ inputs, outputs, observed = [] }: Steps): number[] => [...inputs, ...outputs, ...observed];

/**
 * A convolution step; inputs, outputs and parameters are those of its branches, their order gives the positions. Passes
 * make a step many times before native code sees it, so `attrs` and `params` are worked out when they are asked for.
 */
export function convStep(name: string, branches: readonly Branch[]): Step {
  const read = new Set<number>();
  for (const { terms, gated, residual } of branches) {
    for (const { sources } of terms) for (const { input } of sources) read.add(input);
    if (gated) read.add(gated.input).add(gated.gate);
    if (residual !== undefined) read.add(residual);
  }
  const inputs = [...read];
  const outputs = branches.flatMap(({ stores }) => stores.map(({ value }) => value));
  let known: readonly Packing[] | undefined;
  const forms = () => {
    known ??= branches.map((branch) => nativeForm(branch, inputs, outputs));
    return known;
  };
  return {
    op: 'octConv',
    name,
    inputs,
    outputs,
    branches,
    get attrs() {
      return { branches: forms().map(({ attrs }) => attrs) };
    },
    get params() {
      return Object.fromEntries(
        forms().flatMap(({ params }, i) => Object.entries(params).map(([role, of]) => [`${i}.${role}`, of])),
      );
    },
    get packings() {
      return forms().map(({ attrs, params }) => ({ attrs: { branches: [attrs] }, params }));
    },
  };
}

/** One for each branch of a convolution, one for any other step with parameters. */
export function packingsOf(step: Step): readonly Packing[] {
  if (step.packings) return step.packings;
  return Object.keys(step.params).length ? [step] : [];
}

/** A branch as native code takes it: positions for values, roles for parameters. */
function nativeForm(branch: Branch, inputs: readonly number[], outputs: readonly number[]): Packing {
  const params: Record<string, string> = {};
  let count = 0;
  const role = (kind: string, name: string) => {
    const key = `${kind}${count++}`;
    params[key] = name;
    return key;
  };
  const norms = new Map<string, string>();
  const norm = (names: BatchNormParams) => {
    const known = norms.get(JSON.stringify(names));
    if (known) return known; // of one store and its pooled copies
    const key = `bn${count++}`;
    norms.set(JSON.stringify(names), key);
    for (const [part, name] of Object.entries(names)) params[`${key}.${part}`] = name;
    return key;
  };
  const activation = (given: Activation) => ({ ...given, batchNorm: given.batchNorm && norm(given.batchNorm) });
  const { residual, gated, compute, hints } = branch;
  const attrs = {
    compute,
    hints,
    residual: residual === undefined ? undefined : inputs.indexOf(residual),
    ...(gated && { gated: { input: inputs.indexOf(gated.input), gate: inputs.indexOf(gated.gate) } }),
    terms: branch.terms.map((term) => ({
      eps: term.eps,
      scaleOnly: term.scaleOnly,
      bias: term.bias === undefined ? undefined : role('b', term.bias),
      batchNorm: term.batchNorm && norm(term.batchNorm),
      sources: term.sources.map(({ weightScale, prologue, ...source }) => {
        const weight = role('w', source.weight);
        if (weightScale !== undefined) params[`${weight}.scale`] = weightScale;
        return { ...source, prologue: prologue && activation(prologue), input: inputs.indexOf(source.input), weight };
      }),
    })),
    stores: branch.stores.map(({ value, pool, mean, activation: given }) => ({
      output: outputs.indexOf(value),
      pool,
      mean,
      activation: given && activation(given),
    })),
  } satisfies Attrs;
  return { attrs, params };
}

/**
 * The two formulas of the operator (paper, section 3.2; the authors' code for stride 2). P is `pool`, U is `upsample`;
 * a path is there if its weight is.
 */
function octConvBranches(node: GraphNode, values: readonly TensorType[]): Branch[] {
  const { kernel, stride, groups } = node.attrs as { kernel: Size3; stride: number; groups: number };
  const [xH, xL] = node.inputs;
  const padding = kernel.map((size) => (size - 1) / 2);
  const channels = (id: number) => values[id]?.shape.at(-1) ?? 0;
  const depthwise = groups > 1 && groups === node.inputs.reduce((sum, id) => sum + channels(id), 0);
  const path = (role: string, input: number | undefined, pool: number, upsample = false): Source[] => {
    const weight = node.params[role];
    if (weight === undefined || input === undefined) return [];
    return [{ input, weight, kernel, padding, groups: depthwise ? channels(input) : groups, pool, upsample }];
  };
  const down = stride === 2 ? 1 : 0;
  const sources = [
    [...path('h2h', xH, down), ...path('l2h', xL, 0, stride === 1)],
    [...path('l2l', xL, down), ...path('h2l', xH, down + 1)],
  ];
  const bias = [node.params.biasH, node.params.biasL];
  return node.outputs.map((y, i) => ({
    terms: [{ sources: sources[i] ?? [], bias: bias[i] }],
    y,
    stores: [{ value: y, pool: 0 }],
  }));
}

function convBranch(node: GraphNode): Branch {
  const { kernel = [1, 1, 1], stride, padding, dilation, groups = 1 } = node.attrs as Partial<Omit<Source, 'input'>>;
  const [input = -1] = node.inputs;
  const [y = -1] = node.outputs;
  const { weight = '', bias } = node.params;
  const sizes = { kernel, ...(stride && { stride }), ...(padding && { padding }), ...(dilation && { dilation }) };
  const source = { input, weight, ...sizes, groups, pool: 0, upsample: false };
  return { terms: [{ sources: [source], bias }], y, stores: [{ value: y, pool: 0 }] };
}

export function lower(graph: Graph): Steps {
  const steps = graph.nodes.map((node): Step => {
    if (node.op === 'octConv') return convStep(node.name, octConvBranches(node, graph.values));
    if (node.op === 'conv' || node.op === 'linear') return convStep(node.name, [convBranch(node)]);
    return node;
  });
  const { values, inputs, bound, outputs, observed } = graph;
  return { values, steps, inputs: [...inputs, ...bound.keys()], outputs, observed };
}
