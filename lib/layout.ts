/**
 * Where the channels of images and video are: ours are last, [N, H, W, C]; PyTorch's and ONNX's come second,
 * [N, C, H, W].
 */
import { kindOf } from './graph/graph.js';
import { check, of } from './graph/shape.js';
import { elementCount, type Image, type Shape, type Spatial, Tensor, type Video } from './tensor.js';

/** [N, H, W, C] -> [N, C, H, W], video [N, T, H, W, C] -> [N, C, T, H, W], a copy. @throws OctconvError for another rank. */
export function toNCHW<S extends Shape>(x: Tensor<'f32', S>): Tensor<'f32', Moved<S>> {
  checkMoved('toNCHW', x, '[N,H,W,C] or [N,T,H,W,C]');
  const [n = 1, ...extent] = x.shape;
  const c = extent.pop() ?? 1;
  return new Tensor('f32', [n, c, ...extent], transposed(x.data, n, elementCount(extent), c)) as never;
}

/** [N, C, H, W] -> [N, H, W, C], video [N, C, T, H, W] -> [N, T, H, W, C], a copy. @throws OctconvError for another rank. */
export function toNHWC<S extends Shape>(x: Tensor<'f32', S>): Tensor<'f32', Moved<S>> {
  checkMoved('toNHWC', x, '[N,C,H,W] or [N,C,T,H,W]');
  const [n = 1, c = 1, ...extent] = x.shape;
  return new Tensor('f32', [n, ...extent, c], transposed(x.data, n, c, elementCount(extent))) as never;
}

/** The type of the shape: an image or a video as it was, any rank that is not known an image or a video. */
type Moved<S extends Shape> = S extends Image ? Image : S extends Video ? Video : Spatial;

function checkMoved(name: string, x: Tensor<'f32'>, wanted: string): void {
  const fine = x?.shape?.length === 4 || x?.shape?.length === 5;
  check(name, fine, `got ${x?.shape ? of(x) : kindOf(x)}, wanted ${wanted}`);
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
