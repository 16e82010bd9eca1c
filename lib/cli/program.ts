/** All commands. */
import { readFileSync } from 'node:fs';
import { Command } from 'commander';
import { benchCommand } from './bench.js';
import { classifyCommand } from './classify.js';
import { demoCommand } from './demo.js';
import { devicesCommand } from './devices.js';
import { evalCommand } from './eval.js';
import { convertCommand, exportCommand } from './files.js';
import { infoCommand } from './info.js';
import { printError } from './output.js';
import { submitCommand, workerCommand } from './queue.js';
import { quantizeCommand } from './quantize.js';
import { runCommand } from './run.js';
import { serveCommand } from './serve.js';

const { version, description } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));

/** Throws a CommanderError where commander would end the process. */
export const program = new Command('octconv')
  .description(description)
  .version(version)
  .configureOutput({
    outputError: (text) =>
      printError(
        text
          .replace(/^error: /, '')
          .trim()
          .replaceAll('\n', ' '),
      ),
  })
  .configureHelp({ minWidthToWrap: 20 })
  .exitOverride();

classifyCommand(program);
runCommand(program);
evalCommand(program);
infoCommand(program);
convertCommand(program);
exportCommand(program);
quantizeCommand(program);
devicesCommand(program);
benchCommand(program);
serveCommand(program);
workerCommand(program);
submitCommand(program);
demoCommand(program);
