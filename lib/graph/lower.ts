/**
 * Lowering: convolutions and linear layers become the one form that native code runs, an output branch as a sum over
 * sources (native/ops/octconv.cc). All other ops stay as they were recorded.
 */
import type { Attrs, ComputeType, Graph, GraphNode, TensorType } from './graph.js';

export type Size3 = readonly number[];

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
  /** How often P (2x2 average pooling) is applied to the input first. */
  readonly pool: number;
  /** Whether U (2x nearest upsampling) is applied to the product. */
  readonly upsample: boolean;
  /** Name of the scales of a weight of i8. */
  readonly weightScale?: string;
  /** Where i8 is multiplied: the input as u8. */
  readonly scale?: number;
  readonly zero?: number;
}

export interface BatchNormParams {
  readonly weight: string;
  readonly bias: string;
  readonly running_mean: string;
  readonly running_var: string;
}

/** batchNorm(bias + sum of sources) */
export interface Term {
  readonly sources: readonly Source[];
  readonly bias?: string | undefined;
  readonly batchNorm?: BatchNormParams;
  readonly eps?: number;
}

/** clamp(residual + sum of terms), and its pooled copies. */
export interface Branch {
  readonly terms: readonly Term[];
  readonly residual?: number;
  readonly low?: number;
  readonly high?: number;
  /** y, and where a later layer reads them P(y) and P(P(y)). */
  readonly outputs: readonly number[];
  /** What its products are of; default f32. */
  readonly compute?: ComputeType;
  /** 3x3 convolutions by Winograd's F(2x2, 3x3) or F(4x4, 3x3) on the CPU. */
  readonly winograd?: 2 | 4;
}

export const sourcesOf = ({ terms }: Pick<Branch, 'terms'>): Source[] => terms.flatMap(({ sources }) => sources);

/** A step: a recorded node, or a convolution in branch form. */
export type Step = GraphNode & { readonly branches?: readonly Branch[] };

/** Steps that go over a batch together, some images at a time. */
export interface Segment {
  readonly steps: number;
  readonly images: number;
}

/** A network as steps. Passes take one and give another. */
export interface Steps {
  /** Absent: all images go through all steps at once. */
  readonly segments?: readonly Segment[];
  readonly values: readonly TensorType[];
  readonly steps: readonly Step[];
  readonly inputs: readonly number[];
  readonly outputs: readonly number[];
}

/** A convolution step; inputs, outputs and parameters are those of its branches, their order gives the positions. */
export function convStep(name: string, branches: readonly Branch[]): Step {
  const inputs = new Set<number>();
  for (const branch of branches) {
    for (const { sources } of branch.terms) for (const source of sources) inputs.add(source.input);
    if (branch.residual !== undefined) inputs.add(branch.residual);
  }
  const outputs = branches.flatMap((branch) => branch.outputs);
  const step = { op: 'octConv', name, inputs: [...inputs], outputs, branches };
  return { ...step, ...nativeForm(step) };
}

/** Attributes and parameters as native code takes them: positions for values, roles for parameters. */
function nativeForm(step: { inputs: number[]; outputs: number[]; branches: readonly Branch[] }) {
  const params: Record<string, string> = {};
  let count = 0;
  const role = (kind: string, name: string) => {
    const key = `${kind}${count++}`;
    params[key] = name;
    return key;
  };
  const norm = (names: BatchNormParams) => {
    const key = `bn${count++}`;
    for (const [part, name] of Object.entries(names)) params[`${key}.${part}`] = name;
    return key;
  };
  const branches = step.branches.map((branch) => ({
    ...branch,
    residual: branch.residual === undefined ? undefined : step.inputs.indexOf(branch.residual),
    outputs: branch.outputs.map((id) => step.outputs.indexOf(id)),
    terms: branch.terms.map((term) => ({
      eps: term.eps,
      bias: term.bias === undefined ? undefined : role('b', term.bias),
      batchNorm: term.batchNorm && norm(term.batchNorm),
      sources: term.sources.map(({ weightScale, ...source }) => {
        const weight = role('w', source.weight);
        if (weightScale !== undefined) params[`${weight}.scale`] = weightScale;
        return { ...source, input: step.inputs.indexOf(source.input), weight };
      }),
    })),
  }));
  return { attrs: { branches } satisfies Attrs, params };
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
  return node.outputs.map((output, i) => ({ terms: [{ sources: sources[i] ?? [], bias: bias[i] }], outputs: [output] }));
}

function convBranch(node: GraphNode): Branch {
  const { kernel = [1, 1, 1], stride, padding, dilation, groups = 1 } = node.attrs as Partial<Omit<Source, 'input'>>;
  const [input = -1] = node.inputs;
  const { weight = '', bias } = node.params;
  const sizes = { kernel, ...(stride && { stride }), ...(padding && { padding }), ...(dilation && { dilation }) };
  return { terms: [{ sources: [{ input, weight, ...sizes, groups, pool: 0, upsample: false }], bias }], outputs: node.outputs };
}

export function lower(graph: Graph): Steps {
  const steps = graph.nodes.map((node): Step => {
    if (node.op === 'octConv') return convStep(node.name, octConvBranches(node, graph.values));
    if (node.op === 'conv' || node.op === 'linear') return convStep(node.name, [convBranch(node)]);
    return node;
  });
  return { values: graph.values, steps, inputs: [...graph.inputs, ...graph.bound.keys()], outputs: graph.outputs };
}
