// The kernels for NVIDIA GPUs; needs no GPU.
//   node tools/cuda.mjs          build/Release/octconv.fatbin, which lies beside the addon, and octconv.kernels.json,
//                                the registers of each kernel
//   node tools/cuda.mjs gates [80,90]
//                                the same, then what nvcc made of each kernel, against tools/cuda-gates.json; of these
//                                architectures alone, which takes less time
//   node tools/cuda.mjs fetch    nothing but nvcc
// nvcc is the system's if it is 12.8 or newer and nvdisasm is there too, otherwise 13.0 from PyPI, in build/cuda-toolkit.
//
// The gates, for each kernel and architecture:
// - it is there, unless its row says that it begins with a later architecture; registers at most; nothing on the stack,
//   no spills, no access to local memory
// - where a row has tiles, all tensor instructions are in the main loops, which are the innermost loops that have some:
//   of each tile that is declared two, for pixels in order and in phases, and one for low products, which has a quarter
//   of the rows. Each has as many tensor instructions and copies as the tile needs, one barrier, and copies in their
//   fastest form.
// - issue slots of a main loop per product of 16 rows, 32 bytes deep, with 8 columns, at most. That is one tensor
//   instruction, or two before sm_80.
// A row and a tile may have other limits for an architecture, as `"sm_75": { "registers": 200 }`; the table shows those
// of the others.
// That results are not stored in less than 32 bits cannot be seen here: tiles that end within a word have such stores.
import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { kernelsOf, loopsWith } from './sass.mjs';
import { installPackages, main, outputOf, root, run, ToolError, which } from './system.mjs';

const source = 'native/cuda/kernels.cu';
const [, , command = 'build', only] = process.argv;
const known = architecturesOf(readFileSync(join(root, 'native', 'cuda', 'gpu.cc'), 'utf8'));
/** Machine code for these. */
const architectures = only?.split(',').map(Number) ?? known;
/** PTX of this one, which the driver compiles for all others from there on. */
const portable = 80;
const options = ['-std=c++20', '-O3'];
const intermediate = join(root, 'build', 'cuda');
const step = 64; // bytes of input channels, chunkBytes in native/ops/octconv/cuda.h
const warps = 8; // of a block
const tensor = /^HMMA/;
/** Of 16 bytes into shared memory; before sm_80 they are loads, whose results are stored there. */
const copy = (sm) => (sm < 80 ? /^LDG.*\b128\b/ : /^LDGSTS/);
/** Instructions of a product. */
const instructionsOf = (sm) => (sm < 80 ? 2 : 1);
const mostRegisters = 230; // more of them is a cliff that moves between architectures
const toolkit = join(root, 'build', 'cuda-toolkit');
const packages = [
  'nvidia-cuda-nvcc==13.0.*',
  'nvidia-cuda-crt==13.0.*',
  'nvidia-nvvm==13.0.*',
  'nvidia-cuda-runtime==13.0.*',
  'nvidia-cuda-cccl==13.0.*',
  'nvidia-cuda-nvdisasm>=13.2',
];

function architecturesOf(code) {
  const [, list = ''] = /Architecture architectures\[\] = \{(.*?)\};/s.exec(code) ?? [];
  return [...list.matchAll(/\{(\d+)(?:, \d+)+\}/g)].map(([, capability]) => Number(capability));
}

/** The folder of nvcc and nvdisasm. */
function programs() {
  const system = which('nvcc');
  const [, major, minor] = /release (\d+)\.(\d+)/.exec((system && outputOf(system, ['--version'])) ?? '') ?? [];
  if (Number(major) * 100 + Number(minor) >= 1208 && which('nvdisasm')) return '';
  const folder = join(toolkit, 'nvidia', 'cu13', 'bin');
  if (!existsSync(join(folder, 'nvdisasm'))) {
    if (!which('pip3')) installPackages(['python3-pip'], 'pip is needed to fetch nvcc from PyPI');
    console.log('cuda: fetching nvcc 13.0 from PyPI into build/cuda-toolkit, some 100 MB');
    const install = ['install', '--quiet', '--no-deps', '--root-user-action', 'ignore', '--upgrade'];
    run('pip3', [...install, '--target', toolkit, ...packages], { what: 'cuda: pip3' });
    for (const file of readdirSync(folder)) if (file !== 'crt') chmodSync(join(folder, file), 0o755);
  }
  return `${folder}/`;
}

/** Compiles all architectures, two at a time: what ptxas says and the machine code lie in build/cuda. */
function build() {
  if (!architectures.every((sm) => known.includes(sm))) throw new ToolError(`cuda: '${only}', wanted some of ${known}`);
  const folder = programs();
  rmSync(intermediate, { recursive: true, force: true });
  mkdirSync(intermediate, { recursive: true });
  mkdirSync(join(root, 'build', 'Release'), { recursive: true });
  const code = architectures.flatMap((sm) => ['-gencode', `arch=compute_${sm},code=sm_${sm}`]);
  code.push('-gencode', `arch=compute_${portable},code=compute_${portable}`);
  const keep = ['--keep', '--keep-dir', intermediate, '-Xptxas', '-v'];
  const fatbin = join(root, 'build', 'Release', 'octconv.fatbin');
  const packed = ['-Xfatbin', '-compress-all']; // a tenth of the size
  const nvcc = [...options, ...keep, ...packed, '--threads', '2', '--fatbin', ...code, source, '-o', fatbin];
  console.log(
    `cuda: nvcc compiles for ${architectures.map((sm) => `sm_${sm}`).join(', ')}: two cores take some 45 s for each`,
  );
  const { status, stderr, error } = spawnSync(`${folder}nvcc`, nvcc, { cwd: root, encoding: 'utf8' });
  if (status !== 0) throw new ToolError(`cuda: nvcc: ${error?.message ?? stderr}`);
  for (const line of stderr.split('\n')) if (/warning/i.test(line)) console.error(line);
  const resources = resourcesOf(stderr);
  const registers = {};
  for (const [sm, kernels] of resources)
    registers[`sm_${sm}`] = Object.fromEntries([...kernels].map(([name, { registers: count }]) => [name, count]));
  writeFileSync(fatbin.replace('.fatbin', '.kernels.json'), `${JSON.stringify(registers, null, 1)}\n`);
  return { folder, resources };
}

/** What ptxas says of each kernel on each architecture: resources.get(sm).get(kernel). */
function resourcesOf(said) {
  const resources = new Map(architectures.map((sm) => [sm, new Map()]));
  for (const text of said.split('Compiling entry function').slice(1)) {
    const [, name, sm] = /^ '(\w+)' for 'sm_(\d+)'/.exec(text);
    const [, stack, stores, loads] = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/
      .exec(text)
      .map(Number);
    const registers = Number(/Used (\d+) registers/.exec(text)[1]);
    resources.get(Number(sm)).set(name, { registers, stack, spills: stores + loads });
  }
  return resources;
}

/** The machine code of each kernel on an architecture. */
function codeOf(folder, sm) {
  const cubin = readdirSync(intermediate).find((file) => file.endsWith('.cubin') && file.includes(`compute_${sm}.`));
  const nvdisasm = ['-c', join(intermediate, cubin)];
  const { status, stdout, stderr } = spawnSync(`${folder}nvdisasm`, nvdisasm, { encoding: 'utf8', maxBuffer: 2 ** 30 });
  if (status !== 0) throw new ToolError(`cuda: nvdisasm for sm_${sm}: ${stderr}`);
  return kernelsOf(stdout);
}

/**
 * The main loops of a tile: what each needs in a step of 64 bytes of input channels. A product is of 16 rows, 32 bytes
 * deep, with 8 columns. Copies are of a thread.
 */
function loopsOf({ rows, columns, slots, low }) {
  const products = (((rows / 16) * (columns / 8)) / warps) * (step / 32);
  const copies = Math.ceil(((rows + columns) * step) / 16 / (warps * 32));
  const name = `${rows} x ${columns}`;
  return [
    { name, products, copies, slots },
    { name, products, copies, slots },
    { name: `${name}, low products`, products: products / 4, copies, slots: low },
  ];
}

/** Issue slots per product of each main loop, in the order of `wanted`; calls `fail` for what is wrong. */
function slotsOf(sm, code, wanted, fail) {
  const count = (pattern, indices = code.keys()) => [...indices].filter((i) => pattern.test(code[i].op)).length;
  const loops = loopsWith(code, tensor).map(({ inside }) => ({
    inside,
    instructions: count(tensor, inside),
    copies: count(copy(sm), inside),
  }));
  const outside = count(tensor) - loops.reduce((sum, { instructions }) => sum + instructions, 0);
  if (outside) fail(`${outside} tensor instructions outside the main loops, wanted none`);
  const found = wanted.map(({ name, products, copies, slots }) => {
    const instructions = products * instructionsOf(sm);
    const at = loops.findIndex((loop) => loop.instructions === instructions && loop.copies === copies);
    if (at < 0) {
      const others = loops.map((loop) => `${loop.instructions} and ${loop.copies}`).join(', ') || 'none';
      fail(`no main loop of ${name} with ${instructions} tensor instructions and ${copies} copies; left are ${others}`);
      return undefined;
    }
    const [{ inside }] = loops.splice(at, 1);
    const barriers = count(/^BAR/, inside);
    if (barriers !== 1) fail(`${barriers} barriers in the main loop of ${name}, wanted 1`);
    const each = inside.size / products;
    if (each > slots) {
      const mix = mixOf([...inside].map((i) => code[i].op));
      fail(`${each.toFixed(2)} issue slots per product of ${name}, wanted ${slots}: ${mix}`);
    }
    return each;
  });
  if (loops.length) fail(`${loops.length} main loops more than its tiles need`);
  return found;
}

/** How often which instruction, most first. */
function mixOf(ops) {
  const counts = new Map();
  for (const op of ops.map((name) => name.split('.')[0])) counts.set(op, (counts.get(op) ?? 0) + 1);
  return [...counts]
    .sort((a, b) => b[1] - a[1])
    .map(([op, n]) => `${n} ${op}`)
    .join(', ');
}

/** Prints the table; a kernel that is worse than its row, or has none, is an error. */
function gates() {
  const { folder, resources } = build();
  const rows = JSON.parse(readFileSync(join(root, 'tools', 'cuda-gates.json'), 'utf8'));
  const wrong = [];
  const registers = new Map(Object.keys(rows).map((name) => [name, []]));
  const loops = new Map(Object.entries(rows).map(([name, { tiles = [] }]) => [name, tiles.flatMap(loopsOf)]));
  const limitsOn = (sm, limits) => ({ ...limits, ...limits[`sm_${sm}`] });
  const slots = new Map([...loops].map(([name, list]) => [name, list.map(() => [])]));
  for (const sm of architectures) {
    const codes = codeOf(folder, sm);
    for (const [name, { from = 0 }] of Object.entries(rows)) {
      const [found, due] = [resources.get(sm).has(name), sm >= from];
      if (found !== due)
        wrong.push(`${name} on sm_${sm}: ${found ? 'is' : 'is not'} there, but its row says from sm_${from} on`);
      if (found) continue;
      registers.get(name).push(undefined);
      for (const list of slots.get(name)) list.push(undefined);
    }
    for (const [name, { registers: used, stack, spills }] of resources.get(sm)) {
      const fail = (what) => wrong.push(`${name} on sm_${sm}: ${what}`);
      const row = rows[name] && limitsOn(sm, rows[name]);
      if (!row) {
        fail(`no row in tools/cuda-gates.json; it has ${used} registers`);
        continue;
      }
      const code = codes.get(name);
      const count = (pattern) => code.filter(({ op }) => pattern.test(op)).length;
      registers.get(name).push(used);
      if (used > row.registers) fail(`${used} registers, wanted at most ${row.registers}`);
      if (row.registers > mostRegisters)
        fail(`a budget of ${row.registers} registers, wanted at most ${mostRegisters}`);
      const local = count(/^(LDL|STL)/);
      if (stack || spills || local)
        fail(`${stack} bytes of stack, ${spills} of spills, ${local} accesses to local memory, wanted none`);
      const slow = count(/^LDGSTS(?!.*BYPASS.*\b128\b)/);
      if (slow) fail(`${slow} asynchronous copies that are not of 16 bytes past the L1 cache`);
      if (!row.tiles) continue;
      const wanted = row.tiles.flatMap((tile) => loopsOf(limitsOn(sm, tile)));
      for (const [i, n] of slotsOf(sm, code, wanted, fail).entries()) slots.get(name)[i].push(n);
    }
  }
  const line = (name, most, values) =>
    console.log(name.padEnd(42), ...[most, ...values].map((n) => String(n ?? '-').padStart(5)));
  line('registers', 'most', architectures);
  for (const [name, values] of registers) line(name, rows[name].registers, values);
  line('\nissue slots per product', 'most', architectures);
  for (const [name, list] of slots)
    for (const [i, values] of list.entries()) {
      const loop = loops.get(name)[i];
      line(
        `${name}, ${loop.name}`,
        loop.slots,
        values.map((n) => n?.toFixed(2)),
      );
    }
  for (const text of wrong) console.error(text);
  if (wrong.length) throw new ToolError(`cuda: ${wrong.length} gates failed`);
  console.log(`\nall kernels pass: ${architectures.map((sm) => `sm_${sm}`).join(', ')}`);
}

main(
  { build, gates, fetch: programs }[command] ??
    (() => {
      throw new ToolError(`cuda: '${command}', wanted build, gates or fetch`);
    }),
);
