// The rows of the op table (test/cases.ts) beside onnxruntime: node --import=tsx bench/cases.ts [OP] [THREADS] [ROUNDS]
import { measurePeak } from '../lib/bench/measure.js';
import { opLines, timeOps } from '../lib/bench/ops.js';
import { cases, graphOf } from '../test/cases.js';

const [only, threads = 1, rounds = 5] = process.argv.slice(2).map((given, i) => (i ? Number(given) : given));
// Pictures of bytes and video are not exported.
const exported = ({ dtype, inputs }: (typeof cases)[number]) => dtype !== 'u8' && inputs.every((x) => x.length < 5);
const rows = cases
  .filter((row) => exported(row) && (only === undefined || row.op === only))
  .map((row) => ({ op: row.op, title: row.title, graph: graphOf(row), count: 1 }));
console.log(opLines(await timeOps(rows, Number(threads), Number(rounds), 'cpu'), await measurePeak(Number(threads))));
