import { setTimeout as sleep } from 'node:timers/promises';
import multipart from '@fastify/multipart';
import Fastify, { type FastifyRequest } from 'fastify';
import { loadModel, OctconvError } from 'octconv';

const model = await loadModel('cifar10-oct-resnet-26-a50');
await model.warmUp([1, 2, 3, 4].map((pictures) => [pictures, 32, 32, 3]));
const limits = { maxPixels: 25_000_000, formats: ['jpeg', 'png'] } as const;
const milliseconds = 10_000; // for all pictures of a request, once they are here
const uploadMilliseconds = Number(process.env.UPLOAD_MILLISECONDS ?? 30_000);
const bytes = 8 * 2 ** 20;
const badForm = /^Multipart: |of multipart data$|^The needle /; // words of @fastify/busboy, which gives no status

export const app = Fastify({ bodyLimit: bytes, requestTimeout: uploadMilliseconds, keepAliveTimeout: 5_000 });
app.removeAllContentTypeParsers(); // a text would be taken for the path of a picture on this machine
app.addContentTypeParser(/^image\//, { parseAs: 'buffer' }, (_, body, done) => done(null, body));
await app.register(multipart, { limits: { fileSize: bytes, parts: 4 } });
app.setErrorHandler((error: Error, _, reply) => {
  const badPicture = error instanceof OctconvError && /^picture \d+: /.test(error.message);
  if (badPicture || badForm.test(error.message)) reply.code(400);
  if (error.name === 'TimeoutError') reply.code(503);
  return reply.send(error);
});
app.addHook('onClose', () => model.dispose());

/** The pictures of a form. The parser never ends some that are broken. */
async function* uploads(request: FastifyRequest) {
  const files = request.files();
  const late = sleep(uploadMilliseconds, undefined, { ref: false });
  const endless = late.then(() => Promise.reject(new Error('Multipart: the form does not end')));
  for (;;) {
    const next = files.next().then(({ done, value }) => (done ? undefined : value.toBuffer()));
    const picture = await Promise.race([next, endless]);
    if (!picture) return;
    yield picture;
  }
}

app.post('/classify', async (request, reply) => {
  const gone = new AbortController(); // request.signal aborts as soon as the body is read
  reply.raw.once('close', () => gone.abort());
  const pictures = request.body instanceof Buffer ? [request.body] : [];
  if (request.isMultipart()) for await (const picture of uploads(request)) pictures.push(picture);
  if (pictures.length === 0) return reply.code(400).send({ message: 'no picture, as a body or in a form' });
  const signal = AbortSignal.any([gone.signal, AbortSignal.timeout(milliseconds)]);
  return model.classify(pictures, { top: 3, signal, ...limits });
});

for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => app.close());
console.log(await app.listen({ port: Number(process.env.PORT ?? 8080) }));
