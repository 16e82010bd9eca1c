/** Clips whose camera motion is known: a photograph, and a camera in front of it that pans, tilts, zooms or rolls. */
import sharp from 'sharp';
import type { Picture } from '../input/image.js';

export const motions = [
  'static',
  'pan left',
  'pan right',
  'tilt up',
  'tilt down',
  'zoom in',
  'zoom out',
  'roll left',
  'roll right',
] as const;
export type Motion = (typeof motions)[number];

/**
 * What a camera does from frame to frame, in units of `step`: to the right, down, closer, and clockwise. The network
 * that these clips are for calls it a roll to the left when the picture turns counterclockwise.
 */
const moves: { readonly [M in Motion]: readonly [right: number, down: number, closer: number, clockwise: number] } = {
  static: [0, 0, 0, 0],
  'pan left': [-1, 0, 0, 0],
  'pan right': [1, 0, 0, 0],
  'tilt up': [0, -1, 0, 0],
  'tilt down': [0, 1, 0, 0],
  'zoom in': [0, 0, 1, 0],
  'zoom out': [0, 0, -1, 0],
  'roll left': [0, 0, 0, 2],
  'roll right': [0, 0, 0, -2],
};

/**
 * Frames of `size` x `size`, which show half of the photograph's width; between two of them the camera moves by the
 * share `step` of a frame, zooms by the factor 1 + `step` or rolls by twice as many radians.
 */
export async function film(
  photograph: string,
  motion: Motion,
  { frames, step, size }: { readonly frames: number; readonly step: number; readonly size: number },
): Promise<Picture[]> {
  const side = 2 * size;
  const photo = await sharp(photograph).resize(side, side, { fit: 'cover' }).removeAlpha().raw().toBuffer();
  const [right, down, closer, clockwise] = moves[motion];
  const shoot = async (i: number): Promise<Picture> => {
    const at = (i - (frames - 1) / 2) * step;
    const scale = (1 + step) ** ((closer * at) / step);
    const [cos, sin] = [scale * Math.cos(clockwise * at), scale * Math.sin(clockwise * at)];
    const turned = await sharp(photo, { raw: { width: side, height: side, channels: 3 } })
      .affine([cos, sin, -sin, cos], { interpolator: sharp.interpolators.bilinear })
      .raw()
      .toBuffer({ resolveWithObject: true });
    const { width, height } = turned.info;
    const [left, top] = [width / 2 + (right * at - 0.5) * size, height / 2 + (down * at - 0.5) * size];
    const data = await sharp(turned.data, { raw: { width, height, channels: 3 } })
      .extract({ left: Math.round(left), top: Math.round(top), width: size, height: size })
      .raw()
      .toBuffer();
    return { data, height: size, width: size };
  };
  return Promise.all(Array.from({ length: frames }, (_, i) => shoot(i)));
}
