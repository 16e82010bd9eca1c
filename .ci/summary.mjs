// Adds up the reports of the stages, prints what failed and, last, the line `N passed, N failed`.
import { existsSync, readdirSync, readFileSync } from 'node:fs';

const stagesIn = (file) => new Set(readFileSync(file, 'utf8').split('\n').filter(Boolean));
const failedStages = stagesIn('reports/failed-stages');
const leftOut = stagesIn('reports/left-out-stages');
// The reasons of test/skip.ts that are no fault of CI's machine.
const excused = /\(skipped: (this CPU lacks it|no Python with|no Chromium|there is no (nats-server|haproxy))/;
let passed = 0;
let failed = 0;
for (const file of readdirSync('reports').filter((name) => name.endsWith('.json'))) {
  const [stage] = file.split('.'); // test.alone.json is a part of test
  const { stats, failures, pending } = JSON.parse(readFileSync(`reports/${file}`, 'utf8'));
  passed += stats.passes;
  failed += stats.failures;
  for (const { fullTitle, err } of failures) console.log(`${stage}: ${fullTitle}: ${err.message}`);
  for (const { fullTitle } of pending) {
    if (excused.test(fullTitle)) continue;
    console.log(`${stage}: ${fullTitle}: was skipped`);
    failed++;
  }
  if (stats.failures > 0) failedStages.delete(stage);
  if (stats.passes === 0) failedStages.add(stage);
}
for (const report of ['test', 'test.alone', 'asan', 'tsan', 'baseline', 'avx512', 'avx512bf16', 'node20', 'node26']) {
  if (!existsSync(`reports/${report}.json`) && !leftOut.has(report)) failedStages.add(report);
}
for (const stage of failedStages) console.log(`${stage}: ended badly, see above`);
failed += failedStages.size;
for (const stage of ['lint', 'speed', 'mutants']) if (!failedStages.has(stage) && !leftOut.has(stage)) passed++;
if (leftOut.size) console.log(`left out for want of time: ${[...leftOut].join(', ')}`);
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed > 0 ? 1 : 0;
