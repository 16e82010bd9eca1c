import type { AddressInfo } from 'node:net';
import express, { type NextFunction, type Request, type Response } from 'express';
import { codeOf, codes, Service, ServiceError } from 'octconv/service';

const service = await Service.open('models', {
  limits: { maxPixels: 25_000_000, formats: ['jpeg', 'png'] },
  batching: { queue: 64, timeout: 10_000 },
});
const app = express();

function answer(response: Response, status: number, body: unknown) {
  if (service.leaving) response.set('connection', 'close');
  response.status(status).json(body);
}

// A body is bytes, whatever its type: a text would be taken for the path of a file on this machine.
const bytes = express.raw({ type: () => true, limit: 8 * 2 ** 20 });

app.post('/classify/:model', bytes, async ({ params, body = Buffer.alloc(0) }, response) => {
  const gone = new AbortController();
  response.once('close', () => gone.abort());
  const { top } = await service.classify(params.model, body, { top: 3, signal: gone.signal });
  answer(response, 200, top[0]);
});

app.use(({ path }) => Promise.reject(new ServiceError('notFound', `no path ${path}`)));

app.use((error: Error & { status?: number }, _: Request, response: Response, _next: NextFunction) => {
  const status = error.status ?? codes[codeOf(error)].http;
  if (status === 500) console.error(error);
  if (error instanceof ServiceError && error.retryAfter) response.set('retry-after', `${error.retryAfter}`);
  answer(response, status, { error: status === 500 ? 'internal error' : error.message });
});

const server = app.listen(Number(process.env.PORT ?? 8080), '127.0.0.1');
server.requestTimeout = 30_000;

/** Answers what has come, for 10 seconds at most. */
function end() {
  service.leaving = true;
  setTimeout(() => server.closeAllConnections(), 10_000).unref();
  server.close(() => service.close());
}
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, end);
server.once('listening', () => console.log(`http://127.0.0.1:${(server.address() as AddressInfo).port}`));
