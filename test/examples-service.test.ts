/** The service in somebody's own app, examples/fastify and examples/express: as processes, over connections. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { type IncomingMessage, request } from 'node:http';
import { createInterface } from 'node:readline';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import sharp from 'sharp';

const root = fileURLToPath(new URL('..', import.meta.url));
const catPath = fileURLToPath(new URL('images/cat.jpg', import.meta.url));
const cat = readFileSync(catPath);
const model = 'cifar10-oct-resnet-26-a50';
const limit = 8 * 2 ** 20;
const queue = 64;

/** Takes long to decode. */
const square = (side: number) =>
  sharp({ create: { width: side, height: side, channels: 3, background: 'red' } })
    .png()
    .toBuffer();

for (const name of ['fastify', 'express']) {
  describe(`examples: ${name}`, function () {
    this.timeout(30_000);
    let server: ChildProcess;
    let ended: Promise<unknown[]>;
    let url: string;
    let errors: Promise<string>;
    /** Of requests that have ended. */
    const codes: string[] = [];

    before(async () => {
      const args = ['--import=tsx', '--import=./test/print-codes.ts', `examples/${name}/server.ts`];
      server = spawn(process.execPath, args, {
        ...{ cwd: root, env: { ...process.env, PORT: '0' }, stdio: ['ignore', 'pipe', 'pipe'] },
      });
      ended = once(server, 'close');
      errors = text(server.stderr as NonNullable<typeof server.stderr>);
      const lines = createInterface(server.stdout as NonNullable<typeof server.stdout>);
      const first = await Promise.race([once(lines, 'line'), ended]);
      if (first.length > 1) throw new Error(await errors);
      url = first[0] as string;
      lines.on('line', (line) => codes.push(line));
    });
    beforeEach(() => {
      codes.length = 0;
    });
    after(() => server?.kill('SIGKILL'));

    /** A request on a connection of its own, which the server has taken: of its body nothing is sent yet. */
    async function taken(length: number, type?: string, path = model) {
      const headers = { expect: '100-continue', 'content-length': length, connection: 'keep-alive' };
      const sent = request(`${url}/classify/${path}`, {
        ...{ method: 'POST', headers: { ...headers, ...(type && { 'content-type': type }) }, agent: false },
      });
      sent.on('error', () => undefined);
      // It may come with the `continue`.
      const answer = once(sent, 'response').then(async ([response]: IncomingMessage[]) => {
        const { statusCode: status, headers } = response as IncomingMessage;
        return { status, headers, json: JSON.parse(await text(response as IncomingMessage)) };
      });
      answer.catch(() => undefined); // of a client that leaves
      await once(sent, 'continue');
      const send = (body: Uint8Array) => {
        sent.end(body);
        return answer;
      };
      return { answer, send, leave: () => sent.destroy() };
    }

    const classify = async (body: Uint8Array, type?: string, path?: string) =>
      (await taken(body.length, type, path)).send(body);

    const expectCat = async () => {
      const { status, json } = await classify(cat, 'image/jpeg');
      expect([status, json.length, json[0]?.label]).to.deep.equal([200, 3, 'cat']);
    };

    it('answers a picture, whatever its type is called', async () => {
      expect(url).to.match(/^http:\/\/127\.0\.0\.1:\d+$/);
      await expectCat();
      for (const type of [undefined, 'text/plain', 'application/json'])
        expect((await classify(cat, type)).json[0]?.label).to.equal('cat');
    });

    it('refuses what is no picture that it takes, and reads no file of its own machine', async () => {
      const path = Buffer.from(catPath);
      const gif = await sharp(cat).resize(8).gif().toBuffer();
      for (const [body, type, wanted] of [
        [path, 'text/plain', /^picture: is not a picture, wanted JPEG or PNG$/],
        [Buffer.from(JSON.stringify(catPath)), 'application/json', /^picture: is not a picture/],
        [cat.subarray(0, cat.length / 2), 'image/jpeg', /^picture: .*(premature|truncated)/i],
        [gif, 'image/gif', /^picture: is GIF, wanted JPEG or PNG/],
        [await square(5001), 'image/png', /^picture: is too large, 5001 x 5001, wanted at most 25000000 pixels/],
        [Buffer.alloc(0), undefined, /^picture: is empty/],
      ] as const) {
        const { status, json } = await classify(body, type);
        expect(status).to.equal(400);
        expect(json.error).to.match(wanted);
      }
      const large = await taken(limit + 1, 'image/jpeg');
      await Promise.race([large.answer, sleep(500)]); // Fastify does not wait for the body
      expect((await large.send(Buffer.alloc(limit + 1))).status).to.equal(413);
      const unknown = await classify(cat, 'image/jpeg', 'nobody');
      expect([unknown.status, unknown.json.error]).to.deep.equal([404, 'no model "nobody"']);
      expect((await classify(cat, 'image/jpeg', '..%2f..%2fetc')).status).to.equal(404);
      expect((await fetch(url)).status).to.equal(404);
      await expectCat();
    });

    it('refuses what is more than it can queue, and loses nothing', async () => {
      const slow = await square(2000);
      const all = await Promise.all(Array.from({ length: 3 * queue }, () => taken(slow.length)));
      const answers = await Promise.all(all.map((one) => one.send(slow)));
      const refused = answers.filter(({ status }) => status === 429);
      expect(refused).to.not.be.empty;
      for (const { headers } of refused) expect(headers['retry-after']).to.match(/^[1-9]\d*$/);
      const answered = answers.filter(({ status }) => status === 200);
      expect(answered).to.have.length.of.at.least(queue);
      expect(answered.length + refused.length).to.equal(answers.length);
      await expectCat();
    });

    it('stops when the client leaves', async () => {
      const slow = await square(5000);
      const all = await Promise.all(Array.from({ length: 16 }, () => taken(slow.length)));
      await Promise.any(all.map((one) => one.send(slow))); // four are decoded at a time
      for (const one of all) one.leave();
      while (!codes.includes('cancelled') && codes.length < 2 * all.length) await expectCat();
      expect(codes).to.include('cancelled').and.not.include('internal');
      await expectCat();
    });

    it('told to end it answers what it has taken, and ends', async () => {
      const all = await Promise.all(Array.from({ length: queue }, () => taken(cat.length)));
      const answers = all.slice(0, queue / 2).map((one) => one.send(cat));
      await answers[0];
      server.kill('SIGTERM');
      const listens = () =>
        fetch(url).then(
          () => true,
          () => false,
        );
      while (await listens());
      const later = await Promise.all(all.slice(queue / 2).map((one) => one.send(cat)));
      for (const { headers } of later) expect(headers.connection).to.equal('close');
      for (const { status, json } of [...(await Promise.all(answers)), ...later])
        expect([status, json[0]?.label]).to.deep.equal([200, 'cat']);
      expect(await ended).to.deep.equal([0, null]);
      expect(await errors).to.equal('');
    });
  });
}
