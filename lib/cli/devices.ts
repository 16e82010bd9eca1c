import type { Command } from 'commander';
import { hanging, threadsOf } from '../bench/table.js';
import { devices } from '../devices.js';
import { print, printJson, style } from './output.js';

export function devicesCommand(program: Command): void {
  program
    .command('devices')
    .description('what this machine can compute on, what is chosen and why, and which native file was loaded')
    .option('--json', 'print one JSON object')
    .action(run);
}

function run({ json }: { json?: boolean }): void {
  const found = devices();
  if (json) {
    printJson(found);
    return;
  }
  for (const { name, about, chosen, why } of found.devices) {
    const mark = chosen ? style('green', '*') : ' ';
    print(hanging(`${mark} ${style('bold', name.padEnd(10))} `, `${about}; ${chosen ? 'chosen: ' : ''}${why}`, 13));
  }
  const forced = process.env.OCTCONV_ISA ? 'forced by OCTCONV_ISA' : 'the widest that this CPU has';
  const { isa, threads, nativeFile } = found;
  print(hanging('  ', `instruction set ${isa} (${forced}), ${threadsOf(threads)}, native file ${nativeFile}`, 4));
}
