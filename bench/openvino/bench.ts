/**
 * A network, plain and octave, by OpenVINO and by us, in turn, in f32 and at batch 1. OpenVINO runs in a Python process,
 * which has to have it (bench/README.md). Its threads do not spin after a run, so `interleave` need not wait for them.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { interleave, machine, pairedRatio, relativeError } from '../../lib/bench/measure.js';
import { Net } from '../../lib/bench/models.js';
import { kindOf, sizeOf, table } from '../../lib/bench/table.js';
import { toNCHW } from '../../lib/layout.js';
import { Model } from '../../lib/model.js';
import { octaveForm } from '../../lib/models/index.js';

const { values: given } = parseArgs({
  options: {
    python: { type: 'string', default: 'python3' },
    network: { type: 'string', default: 'i3d-50' },
    alphas: { type: 'string', default: '.125,.25,.5' },
    threads: { type: 'string', default: '1,2' },
    size: { type: 'string', default: '224' },
    frames: { type: 'string' },
    rounds: { type: 'string', default: '10' },
  },
});
const listOf = (text: string) => text.split(',').map(Number);
const { python, network } = given;
const [size, rounds, frames] = [Number(given.size), Number(given.rounds), given.frames && Number(given.frames)];
const octave = octaveForm(network);
if (octave === undefined) throw new Error(`network '${network}', wanted a plain one, as i3d-50`);
const open = (name: string, alpha?: number) => new Net(name, { alpha }, size, frames || undefined);
const nets = [open(network), ...listOf(given.alphas).map((alpha) => open(octave, alpha))];
const x = nets[0]!.input(1);

interface OpenVino {
  readonly version: string;
  readonly outputs: readonly number[][];
  run(net: number): Promise<unknown>;
  close(): void;
}

async function openVino(threads: number, input: string, files: readonly string[]): Promise<OpenVino> {
  const script = fileURLToPath(new URL('infer.py', import.meta.url));
  const child = spawn(python, [script, String(threads), input, ...files], { stdio: ['pipe', 'pipe', 'inherit'] });
  await once(child, 'spawn');
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => {
    const { done, value } = await lines.next();
    if (done) throw new Error(`${python} ended, wanted one with OpenVINO (pip install 'openvino==2026.4.*')`);
    return value;
  };
  return {
    ...JSON.parse(await next()),
    run: (net) => {
      child.stdin.write(`${net}\n`);
      return next();
    },
    close: () => child.stdin.end(),
  };
}

const folder = await mkdtemp(join(tmpdir(), 'octconv-'));
try {
  const input = join(folder, 'input');
  await writeFile(input, toNCHW(x).data);
  const files: string[] = [];
  for (const [i, net] of nets.entries()) {
    const file = join(folder, `${i}.onnx`);
    using model = new Model(net.network, net.weights);
    await writeFile(file, await model.toOnnx(net.shape));
    files.push(file);
  }
  const rows: string[][] = [];
  let version = '';
  for (const threads of listOf(given.threads)) {
    const peer = await openVino(threads, input, files);
    const models = nets.map((net) => new Model(net.network, net.weights, { threads }));
    try {
      [version = ''] = peer.version.split('-');
      for (const [i, net] of nets.entries()) {
        const error = relativeError((await models[i]!.run(x)).data, Float32Array.from(peer.outputs[i]!));
        if (!(error < 1e-4)) throw new Error(`${net.title} and OpenVINO differ by ${error}, wanted less than 1e-4`);
      }
      const subjects = models.flatMap((model, i) => [() => model.run(x), () => peer.run(i)]);
      const times = await interleave(subjects, rounds);
      const theirPlain = times[1]!;
      for (const [i, net] of nets.entries()) {
        const [ours, theirs] = times.slice(2 * i) as [typeof theirPlain, typeof theirPlain];
        const ms = [ours.min, ours.median, theirs.min, theirs.median].map((value) => value.toFixed(1));
        const ratios = [pairedRatio(ours, theirs), pairedRatio(ours, theirPlain)].map((ratio) => ratio.toFixed(2));
        rows.push([net.title, String(threads), ...ms, ...ratios]);
      }
    } finally {
      for (const model of models) model.dispose();
      peer.close();
    }
  }
  const { cpu, isa } = machine();
  const [head, extent] = [['network', 'threads', 'ours min', 'median', 'OpenVINO min', 'median'], nets[0]!.frames];
  console.log(`${cpu}, ${isa}; OpenVINO ${version}, f32, latency`);
  console.log(
    `${sizeOf({ size, frames: extent })}, ${rounds} interleaved rounds, random weights, ms per ${kindOf(extent)}, ratios (ours to it) are paired medians\n`,
  );
  console.log(table([...head, '/OpenVINO', '/OpenVINO plain'], rows));
} finally {
  await rm(folder, { recursive: true, force: true });
}
