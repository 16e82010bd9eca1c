import Fastify, { type FastifyError } from 'fastify';
import { codeOf, codes, Service, ServiceError } from 'octconv/service';

const service = await Service.open('models', {
  limits: { maxPixels: 25_000_000, formats: ['jpeg', 'png'] },
  batching: { queue: 64, timeout: 10_000 },
});
const timeouts = { requestTimeout: 30_000, keepAliveTimeout: 5_000 };
const app = Fastify({ bodyLimit: 8 * 2 ** 20, ...timeouts, return503OnClosing: false });

// A body is bytes, whatever its type: a text would be taken for the path of a file on this machine.
app.removeAllContentTypeParsers();
app.addContentTypeParser('*', { parseAs: 'buffer' }, (_, body, done) => done(null, body));

app.post<{ Params: { model: string }; Body?: Buffer }>('/classify/:model', async ({ params, body }, reply) => {
  const gone = new AbortController();
  reply.raw.once('close', () => gone.abort());
  const { top } = await service.classify(params.model, body ?? Buffer.alloc(0), { top: 3, signal: gone.signal });
  return top[0];
});

app.setErrorHandler((error: FastifyError, _, reply) => {
  const status = error.statusCode ?? codes[codeOf(error)].http;
  if (status === 500) console.error(error);
  if (error instanceof ServiceError && error.retryAfter) reply.header('retry-after', error.retryAfter);
  return reply.code(status).send({ error: status === 500 ? 'internal error' : error.message });
});

app.addHook('onSend', async (_, reply) => {
  if (service.leaving) reply.header('connection', 'close');
});

/** Answers what has come, for 10 seconds at most. */
async function end() {
  service.leaving = true;
  setTimeout(() => app.server.closeAllConnections(), 10_000).unref();
  await app.close();
  await service.close();
}
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, end);
console.log(await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT ?? 8080) }));
