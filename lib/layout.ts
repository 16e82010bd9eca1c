/** Where the channels of images are: ours are last, [N, H, W, C]; PyTorch's and ONNX's come second, [N, C, H, W]. */
import { OctconvError } from './error.js';
import { Tensor } from './tensor.js';

type Rank4 = readonly [number, number, number, number];

/** [N, H, W, C] -> [N, C, H, W], a copy. @throws OctconvError for another rank. */
export function toNCHW({ shape, data }: Tensor<'f32'>): Tensor<'f32', Rank4> {
  const [n, h, w, c] = rank4(shape, 'toNCHW', '[N,H,W,C]');
  return new Tensor('f32', [n, c, h, w], transposed(data, n, h * w, c));
}

/** [N, C, H, W] -> [N, H, W, C], a copy. @throws OctconvError for another rank. */
export function toNHWC({ shape, data }: Tensor<'f32'>): Tensor<'f32', Rank4> {
  const [n, c, h, w] = rank4(shape, 'toNHWC', '[N,C,H,W]');
  return new Tensor('f32', [n, h, w, c], transposed(data, n, c, h * w));
}

function rank4(shape: readonly number[], name: string, wanted: string): Rank4 {
  if (shape.length === 4) return shape as readonly number[] as Rank4;
  throw new OctconvError(`${name}: shape [${shape}], wanted ${wanted}`);
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
