/** Queues pictures for workers, and prints what they are: `npx tsx examples/jetstream/submit.ts a.jpg b.jpg`. */
import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { NatsQueue } from 'octconv/queue';

const files = process.argv.slice(2);
if (files.length === 0) throw new Error('no pictures');
const run = randomUUID();
await using queue = await NatsQueue.open({ servers: process.env.NATS_URL ?? 'nats://localhost:4222' });
const left = new Map<string, string>();
for (const [i, file] of files.entries()) {
  await queue.submit(`${run}.${i}`, 'cifar10-oct-resnet-26-a50', await readFile(file), { top: 1 });
  left.set(`${run}.${i}`, file);
}

const end = new AbortController();
for await (const result of queue.results(run, end.signal)) {
  console.log(`${left.get(result.id)}: ${result.error ?? result.top[0]?.label}`);
  left.delete(result.id);
  if (left.size === 0) end.abort();
}
