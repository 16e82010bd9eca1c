// The rows of the op table (test/cases.ts) beside onnxruntime: node --import=tsx bench/cases.ts [OP] [THREADS] [ROUNDS]
import { measurePeak } from '../lib/bench/measure.js';
import { opLines, timeOps } from '../lib/bench/ops.js';
import { cases, graphOf } from '../test/cases.js';

const [only, threads = 1, rounds = 5] = process.argv.slice(2).map((given, i) => (i ? Number(given) : given));
// Pictures of bytes are not exported.
const rows = cases
  .filter(({ op, dtype }) => dtype !== 'u8' && (only === undefined || op === only))
  .map((row) => ({ op: row.op, title: row.title, graph: graphOf(row), count: 1 }));
console.log(opLines(await timeOps(rows, Number(threads), Number(rounds), 'cpu'), await measurePeak(Number(threads))));
