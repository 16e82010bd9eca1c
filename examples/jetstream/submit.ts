/** Queues pictures for workers, and prints what they are: `npx tsx examples/jetstream/submit.ts a.jpg b.jpg`. */
import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { NatsQueue } from 'octconv/queue';

const files = process.argv.slice(2);
const run = randomUUID();
const queue = await NatsQueue.open({ servers: process.env.NATS_URL ?? 'nats://localhost:4222' });
for (const [i, file] of files.entries())
  await queue.submit(`${run}.${i}`, 'cifar10-oct-resnet-26-a50', await readFile(file), { top: 1 });

const end = new AbortController();
let left = files.length;
for await (const result of queue.results(run, end.signal)) {
  const file = files[Number(result.id.split('.')[1])];
  console.log(`${file}: ${result.error ?? result.top[0]?.label}`);
  if (--left === 0) end.abort();
}
await queue.close();
