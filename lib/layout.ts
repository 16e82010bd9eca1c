/** Where the channels of images are: ours are last, [N, H, W, C]; PyTorch's and ONNX's come second, [N, C, H, W]. */
import { Tensor } from './tensor.js';

/** [N, H, W, C] -> [N, C, H, W] */
export function toNCHW({ shape, data }: Tensor<'f32'>): Tensor<'f32'> {
  const [n = 1, h = 1, w = 1, c = 1] = shape;
  return new Tensor('f32', [n, c, h, w], transposed(data, n, h * w, c));
}

/** [N, C, H, W] -> [N, H, W, C] */
export function toNHWC({ shape, data }: Tensor<'f32'>): Tensor<'f32'> {
  const [n = 1, c = 1, h = 1, w = 1] = shape;
  return new Tensor('f32', [n, h, w, c], transposed(data, n, c, h * w));
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
