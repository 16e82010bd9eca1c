/** Where the channels of images are: ours are last, [N, H, W, C]; PyTorch's and ONNX's come second, [N, C, H, W]. */
import { kindOf } from './graph/graph.js';
import { check, of } from './graph/shape.js';
import { type Image, Tensor } from './tensor.js';

/** [N, H, W, C] -> [N, C, H, W], a copy. @throws OctconvError for another rank. */
export function toNCHW(x: Tensor<'f32'>): Tensor<'f32', Image> {
  check('toNCHW', x?.shape?.length === 4, `got ${x?.shape ? of(x) : kindOf(x)}, wanted [N,H,W,C]`);
  const [n, h, w, c] = x.shape as Image;
  return new Tensor('f32', [n, c, h, w], transposed(x.data, n, h * w, c));
}

/** [N, C, H, W] -> [N, H, W, C], a copy. @throws OctconvError for another rank. */
export function toNHWC(x: Tensor<'f32'>): Tensor<'f32', Image> {
  check('toNHWC', x?.shape?.length === 4, `got ${x?.shape ? of(x) : kindOf(x)}, wanted [N,C,H,W]`);
  const [n, c, h, w] = x.shape as Image;
  return new Tensor('f32', [n, h, w, c], transposed(x.data, n, c, h * w));
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
