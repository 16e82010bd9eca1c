/** Against the outputs of an independent PyTorch implementation, computed in float64. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { loadModel, Octave, ops, Tensor } from '../lib/index.js';
import { readNpy } from '../lib/npy.js';
import { openWeights, type WeightSource } from '../lib/weights/source.js';
import { error } from './expect.js';

const path = (relative: string) => fileURLToPath(new URL(relative, import.meta.url));
const all = path('../../shared/golden'); // test/golden has copies of the smaller cases
const golden = existsSync(all) ? all : path('golden');
const folder = process.env.OCTCONV_GOLDEN ?? golden;
const devices = ['reference', 'cpu'] as const;

interface Case {
  case: string;
  in: number;
  out: number;
  kernel: number;
  alphaIn: number;
  alphaOut: number;
  stride: number;
  groups: number;
}

describe('golden: operators', () => {
  let source: WeightSource;
  before(async () => {
    source = await openWeights(join(folder, 'octconv.safetensors'));
  });
  after(() => source.close());

  const read = async (name: string): Promise<Tensor<'f32'> | undefined> => {
    const info = source.tensors.get(name);
    return info && new Tensor('f32', info.shape, (await source.read(name)) as Float32Array);
  };

  for (const c of JSON.parse(readFileSync(join(folder, 'octconv.json'), 'utf8')) as Case[]) {
    for (const device of devices) {
      it(`case ${c.case} on ${device}: ${c.in} -> ${c.out}, ${c.kernel}x${c.kernel}, alpha ${c.alphaIn} -> ${c.alphaOut}, stride ${c.stride}`, async () => {
        const get = (name: string) => read(`${c.case}.${name}`);
        const params: Record<string, Tensor<'f32'> | undefined> = {};
        for (const path of ['h2h', 'l2h', 'h2l', 'l2l']) params[path] = await get(`conv_${path}.weight`);
        params.biasH = await get('conv_h2h.bias');
        params.biasL = await get('conv_l2l.bias');
        const x = new Octave(
          (await get('xH')) as Tensor<'f32', [number, number, number, number]>,
          (await get('xL')) as never,
        );
        const y = await ops.octConv(x, params as never, { stride: c.stride, groups: c.groups, device });
        const wanted = new Octave(await get('yH'), await get('yL'));
        expect(y.low === undefined).to.equal(wanted.low === undefined);
        expect(y.high.shape).to.deep.equal(wanted.high?.shape);
        expect(error(y.high.data, wanted.high?.data ?? [])).to.be.below(1e-5);
        if (y.low) expect(error(y.low.data, wanted.low?.data ?? [])).to.be.below(1e-5);
      });
    }
  }
});

describe('golden: networks', () => {
  const networks = readdirSync(golden).filter(
    (file) => file.endsWith('.pth') && existsSync(join(golden, file.replace('.pth', '.y.npy'))),
  );
  it('are there', () => expect(networks).to.not.be.empty);
  for (const file of networks) {
    for (const device of devices) {
      it(`${file} on ${device}`, async function () {
        this.timeout(60_000);
        const x = await readNpy(join(golden, file.replace('.pth', '.x.npy')));
        const y = await readNpy(join(golden, file.replace('.pth', '.y.npy')));
        using model = await loadModel(join(golden, file), { device });
        const logits = await model.run(x);
        expect(logits.shape).to.deep.equal(y.shape);
        expect(error(logits.data, y.data)).to.be.below(1e-4);
      });
    }
  }
});
