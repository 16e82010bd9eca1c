import { type Command, Option } from 'commander';
import type { ComputeType } from '../graph/graph.js';
import type { Device } from '../native.js';
import type { Started } from '../service/start.js';
import { deviceOption, dtypeOption, integer, number } from './common.js';
import { print, printJson, UsageError } from './output.js';

interface Flags {
  config?: string;
  host?: string;
  httpPort?: number;
  grpcPort?: number;
  metricsPort?: number;
  device?: Device | 'auto';
  dtype?: ComputeType;
  threads?: number;
  watch?: number;
  tokenFile?: string;
  printConfig?: boolean;
  json?: boolean;
}

export function serveCommand(program: Command): void {
  const port = (name: string, what: string) =>
    new Option(`--${name}-port <n>`, `of ${what}; 0: the system chooses`).argParser(integer(0, 65_535));
  const options = [
    new Option('--config <file>', 'a serve.json, see schemas/serve.schema.json; flags go before it'),
    new Option('--host <address>', 'where it listens (default: 127.0.0.1, which is this machine alone)'),
    port('http', 'HTTP and the page (default: 8000)'),
    port('grpc', 'gRPC (default: 8001, if its packages are installed)'),
    port('metrics', 'Prometheus metrics (default: 8002)'),
    deviceOption().default(undefined),
    dtypeOption(),
    new Option('--threads <n>', 'threads of a run (default: all cores)').argParser(integer(1)),
    new Option('--watch <seconds>', 'how often changed models are looked for (default: at SIGHUP)').argParser(number),
    new Option('--token-file <file>', 'holds what callers must send, as Authorization: Bearer TOKEN'),
  ];
  const command = program
    .command('serve')
    .description('serves models: Open Inference Protocol v2 over HTTP and gRPC, classify, metrics, a page')
    .argument('[models]', 'a folder of model folders NAME or NAME/VERSION, or one model folder');
  for (const option of options)
    command.addOption(option.env(`OCTCONV_SERVE_${option.name().toUpperCase().replaceAll('-', '_')}`));
  command
    .option('--print-config', 'print the configuration as JSON, and serve nothing')
    .option('--json', 'print the addresses as one JSON object')
    .action(run);
}

async function run(models: string | undefined, flags: Flags): Promise<void> {
  // Other commands need none of it.
  const { readServeConfig, usualGrpc } = await import('../service/config.js');
  const { host, tokenFile, device, dtype, threads, watch, httpPort, grpcPort, metricsPort } = flags;
  const portOf = (port: number | undefined) => (port === undefined ? undefined : { port });
  const config = await readServeConfig(flags.config, {
    ...{ models, host, tokenFile, service: { device, dtype, threads, watch } },
    ...{ http: portOf(httpPort), grpc: portOf(grpcPort), metrics: portOf(metricsPort) },
  });
  if (flags.printConfig) {
    print(JSON.stringify({ ...config, grpc: config.grpc ?? usualGrpc }, undefined, 2));
    return;
  }
  if (config.models === undefined) throw new UsageError('serve: no models, wanted a folder');
  const { start } = await import('../service/start.js');
  const { format = process.stderr.isTTY ? 'text' : 'json' } = config.log;
  const server = await start({ ...config, log: { ...config.log, format } }, process.stderr);
  if (flags.json) printJson(server.addresses);
  else for (const [door, address] of Object.entries(server.addresses)) print(`${door.padEnd(8)} ${address}`);
  await untilTold(server);
  server.log.info('ends: answers what has come');
  await server.close();
  // The connection of a gRPC client that does not close its own side would keep the process for good.
  setTimeout(() => process.exit(), 1000).unref();
}

/** Until SIGINT or SIGTERM, of which a second one ends the process at once. SIGHUP looks for changed models. */
function untilTold({ service, log }: Started): Promise<void> {
  const failed = (error: Error) => log.error(error.message);
  service.loaded.catch(failed);
  process.on('SIGHUP', () => {
    log.info('SIGHUP: looks for changed models');
    service.refresh().catch(failed);
  });
  return new Promise((resolve) => {
    const signals = ['SIGINT', 'SIGTERM'] as const;
    const end = () => {
      for (const signal of signals) process.off(signal, end);
      resolve();
    };
    for (const signal of signals) process.on(signal, end);
  });
}
