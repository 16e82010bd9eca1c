// The kernels for NVIDIA GPUs; needs no GPU.
//   node tools/cuda.mjs          build/Release/octconv.fatbin, which lies beside the addon, and octconv.kernels.json,
//                                the registers of each kernel
//   node tools/cuda.mjs gates    what nvcc made of each kernel, against tools/cuda-gates.json: registers at most, tensor
//                                instructions exactly (of each variant of a tile: 8 rows of columns per warp x groups of
//                                rows x 2), nothing on the stack, no spills, copies in their fastest form
//   node tools/cuda.mjs fetch    nothing but nvcc
// nvcc is the system's if it is 12.8 or newer, otherwise 13.0 from PyPI, in build/cuda-toolkit.
import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { installPackages, main, outputOf, root, run, ToolError, which } from './system.mjs';

const source = 'native/cuda/kernels.cu';
const architectures = [80, 86, 89, 90, 100, 120]; // SASS for these, PTX of the last for what comes later
const options = ['-std=c++20', '-O3'];
const toolkit = join(root, 'build', 'cuda-toolkit');
const packages = [
  'nvidia-cuda-nvcc==13.0.*',
  'nvidia-cuda-crt==13.0.*',
  'nvidia-nvvm==13.0.*',
  'nvidia-cuda-runtime==13.0.*',
  'nvidia-cuda-cccl==13.0.*',
  'nvidia-cuda-nvdisasm>=13.2',
];

/** The folder of nvcc and nvdisasm. */
function programs() {
  const system = which('nvcc');
  const [, major, minor] = /release (\d+)\.(\d+)/.exec((system && outputOf(system, ['--version'])) ?? '') ?? [];
  if (Number(major) * 100 + Number(minor) >= 1208 && which('nvdisasm')) return '';
  const folder = join(toolkit, 'nvidia', 'cu13', 'bin');
  if (!existsSync(join(folder, 'nvdisasm'))) {
    if (!which('pip3')) installPackages(['python3-pip'], 'pip is needed to fetch nvcc from PyPI');
    console.log('cuda: fetching nvcc 13.0 from PyPI into build/cuda-toolkit');
    const install = ['install', '--quiet', '--no-deps', '--root-user-action', 'ignore', '--upgrade'];
    run('pip3', [...install, '--target', toolkit, ...packages], { what: 'cuda: pip3' });
    for (const file of readdirSync(folder)) if (file !== 'crt') chmodSync(join(folder, file), 0o755);
  }
  return `${folder}/`;
}

function build() {
  const folder = programs();
  const fatbin = join(root, 'build', 'Release', 'octconv.fatbin');
  mkdirSync(join(root, 'build', 'Release'), { recursive: true });
  const code = architectures.flatMap((sm) => ['-gencode', `arch=compute_${sm},code=sm_${sm}`]);
  const last = architectures.at(-1);
  code.push('-gencode', `arch=compute_${last},code=compute_${last}`);
  const nvcc = [...options, '--threads', '2', '-Xptxas', '-v', '--fatbin', ...code, source, '-o', fatbin];
  const { status, stderr } = spawnSync(`${folder}nvcc`, nvcc, { cwd: root, encoding: 'utf8', maxBuffer: 2 ** 26 });
  if (status !== 0) throw new ToolError(`cuda: nvcc: ${stderr}`);
  const registers = {};
  for (const { name, architecture, registers: count } of assembled(stderr))
    registers[architecture] = { ...registers[architecture], [name]: count };
  writeFileSync(fatbin.replace('.fatbin', '.kernels.json'), `${JSON.stringify(registers, null, 1)}\n`);
}

/** What `ptxas -v` says of each kernel. */
function assembled(text) {
  return text
    .split('Compiling entry function')
    .slice(1)
    .map((each) => {
      const [, name, architecture] = /'(\w+)' for '(\w+)'/.exec(each);
      const [, ...bytes] = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(each);
      const [stack, stores, loads] = bytes.map(Number);
      const registers = Number(/Used (\d+) registers/.exec(each)[1]);
      return { name, architecture, registers, stack, spills: stores + loads };
    });
}

/** What ptxas says, and what stands in the machine code, of each kernel. */
function kernelsOf(folder, sm) {
  const cubin = join(root, 'build', `kernels-${sm}.cubin`);
  const nvcc = [...options, '--cubin', `-arch=sm_${sm}`, '-Xptxas', '-v', source, '-o', cubin];
  const { status, stderr } = spawnSync(`${folder}nvcc`, nvcc, { cwd: root, encoding: 'utf8' });
  if (status !== 0) throw new ToolError(`cuda: nvcc for sm_${sm}: ${stderr}`);
  const found = new Map(assembled(stderr).map((kernel) => [kernel.name, { ...kernel }]));
  const disassembly = spawnSync(`${folder}nvdisasm`, ['-c', cubin], { encoding: 'utf8', maxBuffer: 2 ** 30 });
  if (disassembly.status !== 0) throw new ToolError(`cuda: nvdisasm for sm_${sm}: ${disassembly.stderr}`);
  for (const text of disassembly.stdout.split(/^\s*\.section\s+\.text\./m).slice(1)) {
    const name = /^\w+/.exec(text)[0];
    const instructions = [...text.matchAll(/^\s+\/\*[0-9a-f]+\*\/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)/gm)].map(
      ([, op]) => op,
    );
    const count = (pattern) => instructions.filter((op) => pattern.test(op)).length;
    Object.assign(found.get(name), {
      tensor: count(/^HMMA/),
      local: count(/^(LDL|STL)/),
      copies: count(/^LDGSTS/),
      slowCopies: count(/^LDGSTS(?!.*BYPASS.*128)/),
    });
  }
  return found;
}

/** Prints the table; a kernel that is worse than its row, or has none, is an error. */
function gates() {
  const folder = programs();
  const rows = JSON.parse(readFileSync(join(root, 'tools', 'cuda-gates.json'), 'utf8'));
  const wrong = [];
  console.log('kernel            sm  registers  stack  spills  local  tensor  copies');
  for (const sm of architectures) {
    for (const [name, kernel] of kernelsOf(folder, sm)) {
      const { registers, stack, spills, local, tensor, copies, slowCopies } = kernel;
      const columns = [
        String(sm).padStart(3),
        ...[registers, stack, spills, local, tensor, copies].map((n, i) => String(n).padStart([9, 5, 6, 5, 6, 6][i])),
      ];
      console.log(name.padEnd(16), columns.join('  '));
      const fail = (what) => wrong.push(`${name} on sm_${sm}: ${what}`);
      const row = rows[name];
      if (!row) {
        fail('no row in tools/cuda-gates.json');
        continue;
      }
      if (registers > row.registers) fail(`${registers} registers, wanted at most ${row.registers}`);
      if (stack || spills || local)
        fail(`${stack} bytes of stack, ${spills} of spills, ${local} accesses to local memory, wanted none`);
      if (tensor !== row.tensor) fail(`${tensor} tensor instructions, wanted ${row.tensor}`);
      if (slowCopies) fail(`${slowCopies} asynchronous copies that are not of 16 bytes past the L1 cache`);
    }
  }
  for (const text of wrong) console.error(text);
  console.log(
    `${wrong.length === 0 ? 'all kernels pass' : `${wrong.length} failed`}: ${architectures.map((sm) => `sm_${sm}`).join(', ')}`,
  );
  if (wrong.length) throw new ToolError('cuda: a kernel is not what it should be');
}

const [, , command = 'build'] = process.argv;
main(
  { build, gates, fetch: programs }[command] ??
    (() => {
      throw new ToolError(`cuda: '${command}', wanted build, gates or fetch`);
    }),
);
