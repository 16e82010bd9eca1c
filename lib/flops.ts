import { checkGraph, type Graph, type GraphNode } from './graph/graph.js';
import { halved } from './graph/shape.js';
import { elementCount, type Shape } from './tensor.js';

export interface Flops {
  /** Of convolutions, linear layers, matmul and attention; padding counts as if it were there. */
  readonly multiplyAdds: number;
  /** As the authors count: multiply-adds, each element that pooling reads, and one per element of a ReLU. */
  readonly authors: number;
  /** Learned numbers: all parameters but the statistics of batch normalisation. */
  readonly parameters: number;
}

/** What a recorded network costs for the shape that it was recorded with. */
export function countFlops(graph: Graph): Flops {
  checkGraph('countFlops', graph);
  const shapes = (ids: readonly number[]) => ids.map((id) => graph.values[id]?.shape ?? []);
  const learned = new Set(graph.bound.values());
  let multiplyAdds = 0;
  let others = 0;
  for (const node of graph.nodes) {
    const [inputs, outputs] = [shapes(node.inputs), shapes(node.outputs)];
    for (const [role, name] of Object.entries(node.params)) {
      if (!role.startsWith('running_')) learned.add(name);
      const positions = convolved(node.op, role, inputs, outputs);
      if (positions) multiplyAdds += elementCount(graph.params.get(name) ?? []) * elementCount(positions.slice(0, -1));
    }
    multiplyAdds += betweenValues(node.op, inputs, outputs);
    others += pooledOrClamped(node, inputs, outputs);
  }
  const parameters = [...learned].reduce((sum, name) => sum + elementCount(graph.params.get(name) ?? []), 0);
  return { multiplyAdds, authors: multiplyAdds + others, parameters };
}

type Shapes = readonly Shape[];

/** Multiply-adds of an op whose operands are all values. */
export function betweenValues(op: string, [x = [], y = []]: Shapes, [z = []]: Shapes): number {
  if (op === 'matmul') return elementCount(z) * (x.at(-1) ?? 0);
  if (op !== 'attention') return 0;
  const [queries, keys] = [z, y].map((shape) => elementCount(shape.slice(1, -1))) as [number, number];
  return (z[0] ?? 0) * queries * keys * ((x.at(-1) ?? 0) + (z.at(-1) ?? 0));
}

/** The shape at whose positions a weight is applied. */
function convolved(op: string, role: string, [, xL]: Shapes, [yH, yL]: Shapes): Shape | undefined {
  if (op === 'conv' || op === 'linear') return role === 'weight' ? yH : undefined;
  if (op !== 'octConv') return undefined;
  // Low to high is convolved at the size of xL: at stride 1 before U, at stride 2 that is the size of yH.
  return { h2h: yH, l2h: xL, h2l: yL, l2l: yL }[role];
}

function pooledOrClamped({ op, params, attrs }: GraphNode, [x = [], xL = []]: Shapes, [y = []]: Shapes): number {
  switch (op) {
    case 'octConv': {
      const { h2l, l2l } = params;
      if (attrs.stride === 1) return h2l ? elementCount(x) : 0;
      return elementCount(x) + (l2l ? elementCount(xL) : 0) + (h2l ? elementCount(halved(x)) : 0);
    }
    case 'maxPool':
    case 'avgPool':
      return elementCount(y) * elementCount(attrs.kernel as Shape);
    case 'globalAvgPool':
    case 'relu':
    case 'relu6':
      return elementCount(x);
    default:
      return 0;
  }
}
