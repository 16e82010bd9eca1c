/**
 * Where the channels are: ours are last, [N, H, W, C] and [N, T, H, W, C]; PyTorch's and ONNX's come second,
 * [N, C, H, W] and [N, C, T, H, W].
 */
import { kindOf } from './graph/graph.js';
import { check, of } from './graph/shape.js';
import { elementCount, type Image, type Shape, type Spatial, Tensor, type Video } from './tensor.js';

/** [N, H, W, C] -> [N, C, H, W], or [N, T, H, W, C] -> [N, C, T, H, W], a copy. @throws OctconvError for another rank. */
export function toNCHW<S extends Shape>(
  x: Tensor<'f32', S>,
): Tensor<'f32', S extends Image ? Image : S extends Video ? Video : Spatial> {
  checkSpatial('toNCHW', x, 'wanted [N,H,W,C] or [N,T,H,W,C]');
  const [n = 1, ...extent] = x.shape;
  const c = extent.pop() ?? 1;
  return new Tensor('f32', [n, c, ...extent] as never, transposed(x.data, n, elementCount(extent), c));
}

/** [N, C, H, W] -> [N, H, W, C], or [N, C, T, H, W] -> [N, T, H, W, C], a copy. @throws OctconvError for another rank. */
export function toNHWC<S extends Shape>(
  x: Tensor<'f32', S>,
): Tensor<'f32', S extends Image ? Image : S extends Video ? Video : Spatial> {
  checkSpatial('toNHWC', x, 'wanted [N,C,H,W] or [N,C,T,H,W]');
  const [n = 1, c = 1, ...extent] = x.shape;
  return new Tensor('f32', [n, ...extent, c] as never, transposed(x.data, n, c, elementCount(extent)));
}

function checkSpatial(name: string, x: Tensor, wanted: string): void {
  const rank = x?.shape?.length;
  check(name, rank === 4 || rank === 5, `got ${x?.shape ? of(x) : kindOf(x)}, ${wanted}`);
}

/** Each of `count` matrices [rows, columns] as [columns, rows]. */
function transposed(data: Float32Array, count: number, rows: number, columns: number): Float32Array<ArrayBuffer> {
  const moved = new Float32Array(data.length);
  for (let from = 0, i = 0; i < count; i++) {
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++) moved[(i * columns + c) * rows + r] = data[from++] as number;
    }
  }
  return moved;
}
