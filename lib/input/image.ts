import { readFile } from 'node:fs/promises';
import { OctconvError } from '../error.js';
import { fileError } from '../weights/file.js';

/** A decoded picture: 8-bit sRGB, [height, width, 3]. */
export interface Picture {
  readonly data: Uint8Array;
  readonly height: number;
  readonly width: number;
}

/** Pillow's limit; a picture that claims to be larger is an error before its pixels are decoded. */
export const maxPixels = 178_956_970;

/**
 * Decodes JPEG, PNG, WebP and whatever else sharp reads (GIF, AVIF, TIFF, SVG). The network gets the picture as a
 * viewer shows it: EXIF orientation and an embedded colour profile are obeyed; grey, CMYK and 16-bit pictures become
 * 8-bit sRGB; transparent parts lie over white (torchvision drops the alpha channel, which shows whatever colours are
 * hidden there); of an animation the first frame. A truncated file is an error: half a picture would get a label, too.
 */
export async function decodeImage(file: string | Uint8Array): Promise<Picture> {
  const name = typeof file === 'string' ? file : 'picture';
  // Always from memory: libvips caches what it opened by path, and would not see that a file has changed.
  const bytes = typeof file === 'string' ? await readBytes(file) : file;
  if (bytes.length === 0) throw new OctconvError(`${name}: is empty, wanted a picture`);
  try {
    const { default: sharp } = await import('sharp'); // 17 MiB that only pictures need
    const { data, info } = await sharp(bytes, { failOn: 'error', limitInputPixels: maxPixels })
      .autoOrient()
      .flatten({ background: 'white' })
      .toColourspace('srgb')
      .raw({ depth: 'uchar' })
      .toBuffer({ resolveWithObject: true });
    if (info.channels !== 3) throw new Error(`${info.channels} channels, wanted grey, RGB or CMYK`);
    return { data, height: info.height, width: info.width };
  } catch (error) {
    throw new OctconvError(`${name}: ${describe(error as Error)}`);
  }
}

async function readBytes(file: string): Promise<Uint8Array> {
  try {
    return await readFile(file);
  } catch (error) {
    throw fileError(file, error);
  }
}

/** sharp's message in our words; libvips repeats itself on further lines. */
function describe(error: Error): string {
  const [line = ''] = error.message.split('\n');
  if (/unsupported image format/.test(line))
    return 'is not a picture, wanted JPEG, PNG or WebP';
  if (/exceeds pixel limit/.test(line)) return `is too large, wanted at most ${maxPixels} pixels`;
  return `cannot be decoded: ${line}`;
}
