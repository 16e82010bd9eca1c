// Runs the tests: `node tools/test.mjs [mocha's own arguments]`. Two files at a time, then those that want the machine
// or the checkout for themselves. With arguments mocha gets these alone.
import { readdirSync } from 'node:fs';
import { main, root, run, ToolError } from './system.mjs';

// These files take longest and begin first, in this order: at the end of the run both processors have work.
const long = `cli accuracy cuda onnx ops-types ops types bench ops-fused cuda-ops files cudnn cuda-plan quantize
  weights-hostile bench-serve page ops-slices channels readme ops-winograd haproxy service-http manifests workers
  cli-video`.split(/\s+/);

// What a file measures or writes that another file would disturb.
const alone = {
  lifecycle: 'turns of the event loop, processor time, memory',
  measure: 'whether this process is still busy',
  memory: 'what a process keeps',
  package: 'npm pack writes dist/, which the tests of the CLI run',
  threads: 'threads that race',
};

main(() => {
  const { OCTCONV_REPORT: report, ...env } = process.env;
  const given = process.argv.slice(2);
  const failed = [];
  const mocha = (part, args) => {
    // A report for each part, which .ci/summary.mjs adds up: reports/test.json and reports/test.alone.json.
    if (report) env.OCTCONV_REPORT = report.replace(/(\.json)$/, part ? `.${part}$1` : '$1');
    try {
      run(process.execPath, ['node_modules/mocha/bin/mocha.js', ...args], { env, what: 'test' });
    } catch (error) {
      if (!(error instanceof ToolError)) throw error;
      failed.push(error.message);
    }
  };
  if (given.length) mocha('', given);
  else {
    const others = readdirSync(`${root}/test`)
      .flatMap((file) => /^(.*)\.test\.ts$/.exec(file)?.[1] ?? [])
      .filter((name) => !(name in alone) && !long.includes(name));
    const fileOf = (name) => `test/${name}.test.ts`;
    mocha('', ['--parallel', '--jobs', '2', ...[...long, ...others].map(fileOf)]);
    mocha('alone', Object.keys(alone).map(fileOf));
  }
  if (failed.length) throw new ToolError(failed.join('\n'));
});
