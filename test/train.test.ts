/** examples/train against the product: what PyTorch trains, convert and the networks compute alike. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { decodeImage } from '../lib/input/image.js';
import { preprocess } from '../lib/input/preprocess.js';
import { parameterShapes } from '../lib/layers/index.js';
import { loadModel } from '../lib/model.js';
import { buildNetwork, networkNames } from '../lib/models/index.js';
import { readNpy } from '../lib/npy.js';
import { skip } from './skip.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const examples = join(root, 'examples/train');
const interpreter = process.env.OCTCONV_PYTHON ?? 'python3';

let folder: string;
const inFolder = (name: string) => join(folder, name);

/** Runs Python in the test's folder, one thread, with the modules of examples/train. */
function python(code: string): string {
  const env = { ...process.env, PYTHONPATH: examples, OMP_NUM_THREADS: '1', PYTHONDONTWRITEBYTECODE: '1' };
  const { status, stdout, stderr } = spawnSync(interpreter, ['-c', code], { cwd: folder, env, encoding: 'utf8' });
  expect(status, stderr).to.equal(0);
  return stdout;
}

function octconv(...args: string[]): string {
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(root, 'dist/cli.js'), ...args], {
    cwd: folder,
    encoding: 'utf8',
  });
  expect(status, stderr).to.equal(0);
  return stdout;
}

/** Largest difference as a share of the largest expected value. */
function error(got: ArrayLike<number>, wanted: ArrayLike<number>): number {
  expect(got.length).to.equal(wanted.length);
  const differences = Array.from(wanted, (value, i) => Math.abs(value - (got[i] as number)));
  expect(differences.every(Number.isFinite)).to.equal(true);
  return Math.max(...differences) / Math.max(...Array.from(wanted, Math.abs));
}

/** Parts of the four photographs, of many sizes: a class each; 64 to train on, 24 to test with. */
const makePictures = `
import random
from pathlib import Path
from PIL import Image
rng = random.Random(1)
for name in ('astronaut', 'cat', 'coffee', 'rocket'):
    whole = Image.open(next(Path(${JSON.stringify(join(root, 'test/images'))}).glob(f'{name}.*'))).convert('RGB')
    for split, count in (('train', 64), ('test', 24)):
        folder = Path('data', split, name)
        folder.mkdir(parents=True)
        for i in range(count):
            height = rng.randrange(60, 90)
            width = height + rng.randrange(30)
            left, top = rng.randrange(whole.width - width), rng.randrange(whole.height - height)
            part = whole.crop((left, top, left + width, top + height)).resize((width // 2, height // 2))
            part.save(folder / (f'{i:02}.png' if i % 2 else f'{i:02}.jpg'))
`;

const small = '--width 8 --stem cifar --batch 32 --workers 0 --threads 1';
const flags = `data ${small} --network oct-resnet-26 --alpha 0.3 --size 24 --resize 28 --epochs 2 --rate 0.05 --least-area 0.5`;

describe('examples/train', function () {
  this.timeout(300_000);

  before(function () {
    const find = 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ["numpy", "PIL", "torch"])))';
    const { status } = spawnSync(interpreter, ['-c', find]);
    if (status !== 0) skip(this, 'python');
    folder = mkdtempSync(join(tmpdir(), 'octconv-train-'));
  });
  after(() => folder && rmSync(folder, { recursive: true }));

  it('has every ResNet, with the same parameters', () => {
    const names = networkNames.filter((name) => /^(oct-)?resnet-\d+$/.test(name));
    const alphas = (name: string) =>
      !name.startsWith('oct-') ? [0] : /-(18|26)$/.test(name) ? [0, 0.1, 0.25, 0.5, 0.75, 0.9] : [0.125];
    const wanted = names.flatMap((name) => alphas(name).map((alpha) => ({ name, alpha })));
    writeFileSync(inFolder('wanted.json'), JSON.stringify(wanted));
    const found = python(`
import json, octave
for want in json.load(open('wanted.json')):
    state = octave.ResNet(want['name'], want['alpha'], width=12, classes=7).state_dict()
    print(json.dumps({k: list(v.shape) for k, v in state.items() if not k.endswith('num_batches_tracked')}))
`);
    const lines = found.trim().split('\n');
    expect(lines).to.have.length(wanted.length);
    for (const [i, { name, alpha }] of wanted.entries()) {
      const network = buildNetwork(name, { alpha, width: 12, classes: 7 });
      expect(JSON.parse(lines[i] as string), `${name} ${alpha}`).to.deep.equal(
        Object.fromEntries(parameterShapes(network)),
      );
    }
  });

  it('computes the same, at any alpha and at odd sizes', async () => {
    const cases = [
      ['resnet-26', 0, 'imagenet', 64, 47],
      ['oct-resnet-26', 0, 'cifar', 21, 32],
      ['oct-resnet-26', 0.125, 'cifar', 17, 30],
      ['oct-resnet-50', 0.25, 'imagenet', 75, 61],
      ['oct-resnet-26', 0.6, 'imagenet', 97, 64],
      ['oct-resnet-26', 0.75, 'cifar', 33, 19],
      ['resnet-18', 0, 'cifar', 21, 17],
      ['oct-resnet-18', 0.5, 'imagenet', 75, 61],
      ['oct-resnet-34', 0.25, 'cifar', 13, 15],
    ].filter(([name]) => networkNames.some((known) => known === name));
    writeFileSync(inFolder('cases.json'), JSON.stringify(cases));
    python(`
import json, numpy, octave, torch
torch.manual_seed(0)
for i, (name, alpha, stem, height, width) in enumerate(json.load(open('cases.json'))):
    network = octave.ResNet(name, alpha, 8, 5, stem)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for x in (module.weight, module.running_var): x.uniform_(0.5, 1.5)
                for x in (module.bias, module.running_mean): x.normal_(0, 0.2)
        torch.save(network.state_dict(), f'{i}.pth')
        again = octave.network_of(octave.read_state(f'{i}.pth')).double().eval()
        x = torch.randn(2, 3, height, width)
        numpy.save(f'{i}.x.npy', x.permute(0, 2, 3, 1).contiguous().numpy())
        numpy.save(f'{i}.y.npy', again(x.double()).float().numpy())
`);
    for (const [i, [name]] of cases.entries()) {
      using model = await loadModel(inFolder(`${i}.pth`));
      expect(model.name).to.equal(name);
      const y = await model.run(await readNpy(inFolder(`${i}.x.npy`)));
      expect(error(y.data, (await readNpy(inFolder(`${i}.y.npy`))).data), cases[i]?.join(' ')).to.be.below(1e-5);
    }
  });

  it('splits plain weights by channels: exact where the low part has low frequency only', () => {
    // A 1x1 convolution of a feature whose last channels are upsampled: high as the plain one, low as the plain one
    // pooled.
    const text = python(`
import octave, torch
torch.manual_seed(0)
plain = octave.ResNet('resnet-26', 0, 8, 5)
torch.save(plain.state_dict(), 'plain.pth')
octave.main('--from plain.pth --alpha 0.25 --out split.pth'.split())
split = octave.network_of(octave.read_state('split.pth')).double().eval()
plain.eval()
assert torch.equal(split.fc.weight, plain.double().fc.weight)
a, b = plain.layer2[1], split.layer2[1]
with torch.no_grad():
    high, low = torch.randn(1, 48, 8, 6).double(), torch.randn(1, 16, 4, 3).double()
    y = a.bn1(a.conv1(torch.cat([high, octave.upsample(low, high)], 1)))
    y_high, y_low = b.conv1((high, low))
    print(float((y[:, :12] - y_high).abs().max()), float((octave.pool(y[:, 12:]) - y_low).abs().max()))
    # The first block has a shortcut of its own in the basic form: it is the identity.
    basic = octave.ResNet('oct-resnet-18', 0.5, 8, 5)
    basic.load_state_dict(octave.transfer(octave.ResNet('resnet-18', 0, 8, 5).state_dict(), basic))
    x = torch.randn(1, 8, 6, 4)
    y_high, y_low = basic.eval().layer1[0].downsample((x, None))
    print(float((x[:, :4] - y_high).abs().max()), float((octave.pool(x[:, 4:]) - y_low).abs().max()))
`);
    const [said, exact, identity] = text.trim().split('\n');
    expect(said).to.equal('split.pth: oct-resnet-26, alpha 0.25, from plain.pth');
    for (const difference of exact!.split(' ')) expect(Number(difference)).to.be.below(1e-12);
    for (const difference of identity!.split(' ')) expect(Number(difference)).to.be.below(1e-4);
  });

  describe('on some hundred pictures', () => {
    let right: number;
    let files: string[];

    before(() => {
      python(makePictures);
      const printed = python(`
import json, numpy, octave, torch, train
from pathlib import Path
train.train(train.parse('${flags} whole'.split()))
network = octave.network_of(octave.read_state('whole/checkpoint.pth'))
config = json.load(open('whole/config.json'))['input']
labels = open('whole/labels.txt').read().split()
found = train.find_pictures(Path('data'), 'test')
loader = torch.utils.data.DataLoader(train.Pictures(found, labels, config), 32)
numpy.save('logits.npy', train.logits_of(network, loader, torch.device('cpu'))[0].numpy())
print(json.dumps([str(picture.path) for picture in found]))
`);
      const lines = printed.trim().split('\n');
      expect(lines[0]).to.equal('256 pictures of 4 classes, 96 more to test with, on cpu');
      expect(lines[2]).to.match(/^epoch 2 of 2: loss [\d.]+, top-1 \d+ of 96, [\d.]+ %, \d+ s$/);
      right = Number(/top-1 (\d+)/.exec(lines[2]!)?.[1]);
      files = JSON.parse(lines[3]!);
      expect(octconv('convert', 'whole/checkpoint.pth', 'model')).to.match(
        /oct-resnet-26, alpha 0\.3, width 8, 4 classes/,
      );
    });

    it('learns', () => expect(right).to.be.above(40)); // 24 of 96 are right by chance

    it('gives the same logits when it is converted', async () => {
      using model = await loadModel(inFolder('model'));
      const pictures = await Promise.all(files.map((file) => decodeImage(inFolder(file))));
      const y = await model.run(await preprocess(pictures, model.input!));
      expect(error(y.data, (await readNpy(inFolder('logits.npy'))).data)).to.be.below(1e-5);
    });

    it('is as accurate when it is converted', () => {
      const { top1, pictures } = JSON.parse(octconv('eval', '--model', 'model', '--data', 'data/test', '--json'));
      expect([top1, pictures]).to.deep.equal([right, 96]);
    });

    it('goes on after an interruption as if there had been none', () => {
      const printed = python(`
import octave, torch, train
save = train.save
def interrupted(*of):
    save(*of)
    raise KeyboardInterrupt
train.save = interrupted
try: train.train(train.parse('${flags} cut'.split()))
except KeyboardInterrupt: print('interrupted')
train.save = save
train.train(train.parse('${flags} cut --resume'.split()))
a, b = (octave.read_state(f'{name}/checkpoint.pth') for name in ('whole', 'cut'))
assert all(torch.equal(a[name], b[name]) for name in a)
`);
      expect(printed).to.match(/\ninterrupted\n.*\nepoch 2 of 2: .*\n$/);
    });

    it('starts from plain weights, learns from a teacher, reads archives, and has another classifier', () => {
      const printed = python(`
import tarfile, train
from pathlib import Path
Path('few').mkdir()
for split in ('train', 'test'):
    with tarfile.open(f'few/{split}.tar.xz', 'w:xz') as tar:
        for name in ('cat', 'coffee'): tar.add(f'data/{split}/{name}', f'{split}/{name}')
def run(arguments): train.train(train.parse(f'${small} --epochs 1 --pictures 64 {arguments}'.split()))
run('few plain --network resnet-26')
run('few taught --network oct-resnet-26 --from plain/checkpoint.pth --teacher plain/checkpoint.pth')
Path('few/test.tar.xz').unlink()
Path('few/test/cat').mkdir(parents=True)
Path('few/test/cat/cut.jpg').write_bytes(next(Path('data/test/cat').glob('*.jpg')).read_bytes()[:700])
try: run('few plain --network resnet-26')
except SystemExit as error: print(error)
run('data other --network oct-resnet-26 --from taught/checkpoint.pth')
`);
      expect(printed.match(/^epoch 1 of 1: .* of (48|96),/gm)).to.have.length(3);
      expect(printed).to.match(/^few\/test\/cat\/cut\.jpg: .*truncated/m);
      expect(printed).to.contain('taught/checkpoint.pth: other classes, the classifier starts anew');
    });

    it('whose config.json beside the checkpoint is obeyed only where it is octconv’s, and must agree with the weights', () => {
      const text = readFileSync(inFolder('whole/config.json'), 'utf8');
      const convert = (config: string, name: string) => {
        mkdirSync(inFolder(name));
        writeFileSync(inFolder(`${name}/config.json`), config);
        writeFileSync(inFolder(`${name}/labels.txt`), 'a\nb\nc\nd\n');
        writeFileSync(inFolder(`${name}/checkpoint.pth`), readFileSync(inFolder('whole/checkpoint.pth')));
        const args = [join(root, 'dist/cli.js'), 'convert', `${name}/checkpoint.pth`, `${name}-model`];
        return spawnSync(process.execPath, args, { cwd: folder, encoding: 'utf8' });
      };
      expect(convert('{"architectures": ["x"]}', 'foreign').status).to.equal(0);
      expect(readFileSync(inFolder('foreign-model/labels.txt'), 'utf8')).to.contain('class 3');
      expect(convert(text, 'own').status).to.equal(0);
      expect(readFileSync(inFolder('own-model/labels.txt'), 'utf8')).to.equal('a\nb\nc\nd\n');
      const { status, stderr } = convert(text.replace('0.3', '0.5'), 'wrong');
      expect(status).to.equal(1);
      expect(stderr).to.match(/alpha 0\.5 was asked for, the weights have 0\.3 \(the network is that of config\.json/);
    });
  });
});
