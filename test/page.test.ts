/** The page at `/` in a headless Chromium: with figures that are made up, and with a server of the shipped models. */
import { spawnSync } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { accessSync, constants, readFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import Fastify, { type FastifyInstance } from 'fastify';
import { type Browser, chromium, type Page } from 'playwright-core';
import { Live, type LiveModel, type Second } from '../lib/service/live.js';
import { addPage } from '../lib/service/page.js';
import { serveHttp } from '../lib/service/server.js';
import { Service } from '../lib/service/service.js';
import { skip } from './skip.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const cat = join(root, 'test/images/cat.jpg');

/** Where a browser is that playwright drives. */
function findChromium(): string | undefined {
  const folders = (process.env.PATH ?? '').split(delimiter);
  const paths = ['chromium', 'chromium-browser', 'google-chrome'].flatMap((name) =>
    folders.map((at) => join(at, name)),
  );
  return paths.find((path) => {
    try {
      accessSync(path, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

const idle: Second = { requests: 0, failures: 0, rows: 0, p50: null, p95: null, p99: null, batch: null, waiting: 0 };
const busy: Second = { requests: 30, failures: 10, rows: 60, p50: 4, p95: 6, p99: 10, batch: 2.5, waiting: 5 };

const octave: LiveModel = {
  name: 'octave',
  version: '2',
  state: 'ready',
  network: 'oct-resnet-26',
  alpha: 0.5,
  device: 'cpu',
  dtype: 'f32',
  threads: 2,
  multiplyAdds: 41_234_567,
  parameters: 1_100_000,
  takes: 'pictures',
  classes: 10,
  height: 32,
  width: 32,
  sizes: [1, 2, 4],
  waiting: 5,
  inFlight: 1,
  seconds: [...Array<Second>(57).fill(idle), busy, busy, idle],
};
const plain: LiveModel = { ...octave, name: 'plain', version: '1', alpha: 0, multiplyAdds: 83e6, seconds: [busy] };
const markup = '<img src="x" onerror="document.title = 1"> & "more"';
const broken: LiveModel = {
  name: 'broken',
  version: '1',
  state: 'unavailable',
  reason: markup,
  waiting: 0,
  inFlight: 0,
  seconds: [],
};

describe('service: page', () => {
  describe('files', () => {
    it('are answered with a policy that forbids what they do not need', async () => {
      const app = Fastify();
      addPage(app);
      for (const [url, type] of [
        ['/', 'text/html'],
        ['/page.css', 'text/css'],
        ['/page.js', 'text/javascript'],
      ] as const) {
        const { statusCode, headers, body } = await app.inject(url);
        expect([statusCode, headers['content-type']]).to.deep.equal([200, `${type}; charset=utf-8`]);
        expect(headers['content-security-policy']).to.match(
          /^default-src 'none'; script-src 'self'; style-src 'self';/,
        );
        expect(headers['content-security-policy']).to.not.match(/unsafe|\*|https?:/);
        expect(headers['x-content-type-options']).to.equal('nosniff');
        expect(headers['cache-control']).to.equal('no-store');
        expect(body).to.not.match(/https?:|<style|\sstyle=|\son\w+=|[^/]innerHTML =/);
      }
      await app.close();
    });

    it('agree with the types of the server', () => {
      const tsc = ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.page.json'];
      expect(spawnSync(process.execPath, tsc, { cwd: root, encoding: 'utf8' }).stdout).to.equal('');
    });
  });

  describe('in a browser', function () {
    this.timeout(30_000);
    let browser: Browser;
    let page: Page;
    let app: FastifyInstance;
    /** What the browser complained of. */
    let complaints: string[] = [];
    let models: readonly LiveModel[] = [];
    /** What each model answers to a picture, and what it was sent. */
    let answer: (model: string) => object | Promise<object> = () => ({});
    let sent: { readonly url: string; readonly type: string | undefined; readonly body: Buffer }[] = [];
    let token: string | undefined;

    before(async function () {
      const executablePath = findChromium();
      if (!executablePath) return skip(this, 'chromium');
      browser = await chromium.launch({ executablePath });
    });
    after(() => browser?.close());

    beforeEach(async () => {
      [complaints, models, sent, token] = [[], [octave, plain, broken], [], undefined];
      app = Fastify();
      addPage(app);
      app.addHook('onRequest', async ({ headers, routeOptions }, reply) => {
        if (token === undefined || (routeOptions.config as { open?: boolean }).open) return;
        if (headers.authorization !== `Bearer ${token}`) reply.code(401).send({ error: `wanted ${markup}` });
      });
      app.get('/live', () => ({ now: Date.now(), models }));
      app.addContentTypeParser(/^\w+\//, { parseAs: 'buffer' }, async (_: unknown, body: Buffer) => body);
      app.post<{ Params: { model: string } }>(
        '/v2/models/:model/versions/:version/classify',
        async (request, reply) => {
          sent.push({ url: request.url, type: request.headers['content-type'], body: request.body as Buffer });
          const answered = await answer(request.params.model);
          return reply.code('error' in answered ? 429 : 200).send(answered);
        },
      );
      page = await browser.newPage();
      page.setDefaultTimeout(10_000);
      page.on('console', (message) => complaints.push(message.text()));
      page.on('pageerror', (error) => complaints.push(error.message));
    });
    afterEach(async () => {
      await page?.close();
      await app?.close();
    });

    const open = async () => page.goto(await app.listen({ port: 0, host: '127.0.0.1' }));
    /** What is seen, of each element. */
    const texts = async (selector: string) =>
      (await page.locator(selector).allInnerTexts()).map((text) => text.replace(/\s+/g, ' ').trim());
    const pathsOf = (model: string, path: string) =>
      page.locator(`[data-key="${model}"] path.${path}`).getAttribute('d') as Promise<string>;

    it('shows the models, and text of the server as text', async () => {
      await open();
      await page.waitForSelector('#models article');
      expect(await texts('#server')).to.deep.equal(['2 of 3 models ready']);
      expect(await texts('#models h3')).to.deep.equal([
        'octave version 2 ready',
        'plain version 1 ready',
        'broken version 1 unavailable',
      ]);
      expect(await texts('[data-key="octave/2"] dd')).to.deep.equal([
        'oct-resnet-26, octave, alpha 0.5',
        'cpu, f32, 2 threads',
        '41.2M a row',
        '1.1M',
        'pictures, 32 × 32',
        '10',
        '1, 2, 4',
      ]);
      expect((await texts('[data-key="plain/1"] dd'))[0]).to.equal('oct-resnet-26, plain');
      expect(await texts('[data-key="broken/1"] .error')).to.deep.equal([markup]);
      expect(await page.locator('[data-key="broken/1"] .charts').isVisible()).to.equal(false);
      expect([await page.title(), ...complaints]).to.deep.equal(['octconv']);
      const refused = await page.evaluate(() => {
        try {
          document.body.innerHTML = 'text';
        } catch (error) {
          return (error as Error).name;
        }
        return 'it is markup now';
      });
      expect([refused, ...complaints].join()).to.match(/^TypeError,.*'TrustedHTML'/);
    });

    it('draws the last minute, the newest at the right, and follows it', async () => {
      await open();
      await page.waitForSelector('#models article');
      // 40 high; a second is 1 wide; the scale ends at 40 requests, 10 ms, 3 rows, 5 rows.
      expect(await pathsOf('octave/2', 'requests')).to.equal('M57 40v-30h.8V40zM58 40v-30h.8V40z');
      expect(await pathsOf('octave/2', 'failures')).to.equal('M57 40v-40h.8V40zM58 40v-40h.8V40z');
      expect(await pathsOf('octave/2', 'p50')).to.equal('M57.5 24h0L58.5 24');
      expect(await pathsOf('octave/2', 'p99')).to.equal('M57.5 0h0L58.5 0');
      expect(await pathsOf('octave/2', 'waiting')).to.equal('M57 40v-40h.8V40zM58 40v-40h.8V40z');
      expect(await pathsOf('plain/1', 'p95')).to.equal('M59.5 16h0');
      expect(await texts('[data-key="octave/2"] .scale')).to.deep.equal(['0–40', '0–10', '0–3', '0–5']);
      expect(await texts('[data-key="octave/2"] figcaption')).to.deep.equal([
        'Requests/s 0 failed 0',
        'Latency, ms p50 4 p95 6 p99 10',
        'Rows per batch 2.5 in flight 1',
        'Queue, rows 0',
      ]);
      const element = await page.locator('article[data-key="octave/2"]').elementHandle();
      models = [plain, { ...octave, inFlight: 7, seconds: [idle] }];
      await page.waitForFunction(() => document.querySelectorAll('#models article').length === 2);
      expect(await texts('#models h3')).to.deep.equal(['plain version 1 ready', 'octave version 2 ready']);
      expect(await element?.evaluate((article) => article.isConnected)).to.equal(true);
      expect((await texts('[data-key="octave/2"] figcaption')).slice(1, 3)).to.deep.equal([
        'Latency, ms p50 – p95 – p99 –',
        'Rows per batch – in flight 7',
      ]);
      expect(await pathsOf('octave/2', 'p50')).to.equal('');
      expect(complaints).to.be.empty;
    });

    const guesses = (probability: number) => ({
      results: [
        { top: [markup, 'dog'].map((label, index) => ({ label, index, probability: probability / (index + 1) })) },
      ],
      milliseconds: { prepare: 5, queue: 0.25, compute: 2 },
    });

    it('shows what each model says of a picture, the octave network beside the plain one', async () => {
      answer = (model) => guesses(model === 'octave' ? 0.5 : 0.25);
      await open();
      await page.waitForSelector('#models-asked label');
      await page.setInputFiles('#drop input', cat);
      await page.waitForSelector('#results article:nth-child(2)');
      expect(sent.map(({ url, type }) => [url, type])).to.deep.equal([
        ['/v2/models/octave/versions/2/classify?top=5', 'image/jpeg'],
        ['/v2/models/plain/versions/1/classify?top=5', 'image/jpeg'],
      ]);
      for (const { body } of sent) expect(body.equals(readFileSync(cat))).to.equal(true);
      expect(await texts('#results h3')).to.deep.equal(['octave network 2 ms', 'plain network 2 ms']);
      expect(await texts('#results .note')).to.deep.equal([
        'octave, alpha 0.5, 41.2M multiply-adds',
        'decode 5, queue 0.25, in all 7.25 ms',
        'plain, 83M multiply-adds',
        'decode 5, queue 0.25, in all 7.25 ms',
      ]);
      expect(await texts('#results article:first-child li span')).to.deep.equal([markup, 'dog']);
      expect(await texts('#results li b')).to.deep.equal(['50.0%', '25.0%', '25.0%', '12.5%']);
      const shares = await page
        .locator('#results li i')
        .evaluateAll((all) =>
          all.map((bar) => Number.parseFloat(getComputedStyle(bar, '::before').width) / bar.clientWidth),
        );
      for (const [i, share] of [0.5, 0.25, 0.25, 0.125].entries()) expect(shares[i]).to.be.closeTo(share, 0.01);
      const [a, b] = await page
        .locator('#results article')
        .evaluateAll((all) => all.map((one) => one.getBoundingClientRect()));
      expect([a?.y, (a?.x ?? 0) < (b?.x ?? 0)]).to.deep.equal([b?.y, true]);
      expect(await page.locator('#drop img').evaluate((image: HTMLImageElement) => image.decode())).to.equal(undefined);
      expect(complaints).to.be.empty;
    });

    it('asks the models that are chosen, again when it is told to', async () => {
      answer = () => guesses(1);
      await open();
      await page.getByLabel('plain').first().waitFor();
      await page.locator('[data-key="octave/2"] input').uncheck();
      await page.setInputFiles('#drop input', cat);
      await page.waitForSelector('#results article');
      await page.getByRole('button', { name: 'Classify again' }).click();
      await page.waitForFunction(() => document.querySelector('#said')?.textContent === 'cat.jpg');
      expect(sent.map(({ url }) => url)).to.deep.equal(Array(2).fill('/v2/models/plain/versions/1/classify?top=5'));
      await page.setInputFiles('#drop input', { name: 'a.mp4', mimeType: 'video/mp4', buffer: Buffer.from('clip') });
      expect(await texts('#said')).to.deep.equal(['No model is chosen that takes a.mp4 (video/mp4).']);
      models = [{ ...octave, name: 'clips', takes: 'video', frames: 8 }, octave];
      await page.waitForSelector('#models-asked [data-key="clips/2"]');
      await page.setInputFiles('#drop input', { name: 'a.mp4', mimeType: 'video/mp4', buffer: Buffer.from('clip') });
      await page.waitForSelector('#results article');
      expect(sent.slice(2)).to.deep.equal([
        { url: '/v2/models/clips/versions/2/classify?top=5', type: 'video/mp4', body: Buffer.from('clip') },
      ]);
    });

    it('takes a picture that is dropped beside the field', async () => {
      answer = () => guesses(1);
      await open();
      await page.waitForSelector('#models-asked label');
      const transfer = await page.evaluateHandle(() => {
        const transfer = new DataTransfer();
        transfer.items.add(new File(['bytes'], 'a.png', { type: 'image/png' }));
        return transfer;
      });
      await page.dispatchEvent('#models', 'dragover', { dataTransfer: transfer });
      expect(await page.locator('#drop.over').count()).to.equal(1);
      await page.dispatchEvent('#models', 'drop', { dataTransfer: transfer });
      await page.waitForSelector('#results article:nth-child(2)');
      expect(sent.map(({ type, body }) => [type, body.toString()])).to.deep.equal(
        Array(2).fill(['image/png', 'bytes']),
      );
      expect(await page.locator('#drop.over').count()).to.equal(0);
    });

    it('lets go of a picture when another is chosen', async () => {
      const release = new EventEmitter();
      answer = (): object | Promise<object> => (sent.length === 1 ? once(release, 'now') : guesses(1));
      await open();
      await page.waitForSelector('#models-asked label');
      const [request] = await Promise.all([page.waitForRequest(/classify/), page.setInputFiles('#drop input', cat)]);
      const left = page.waitForEvent('requestfailed');
      await page.setInputFiles('#drop input', { name: 'b.png', mimeType: 'image/png', buffer: Buffer.from('b') });
      expect(await left).to.equal(request);
      await page.waitForSelector('#results article:nth-child(2)');
      release.emit('now');
      expect([...(await texts('#said')), ...(await texts('#results .error'))]).to.deep.equal(['b.png', '', '']);
      expect(sent.map(({ type }) => type)).to.deep.equal(['image/jpeg', 'image/png', 'image/png']);
    });

    it('shows errors of the server as text', async () => {
      answer = (model) => (model === 'octave' ? { error: markup } : guesses(1));
      await open();
      await page.waitForSelector('#models-asked label');
      await page.setInputFiles('#drop input', cat);
      await page.waitForSelector('#results article:nth-child(2)');
      expect(await texts('#results article:first-child .error')).to.deep.equal([markup]);
      expect(await texts('#results article:last-child .error')).to.deep.equal(['']);
      await app.close();
      await page.waitForSelector('#server.error');
      expect((await texts('#server'))[0]).to.match(/^No figures from the server since \d+:\d\d.*: Failed to fetch$/);
    });

    it('asks for the token once, and keeps it in memory alone', async () => {
      token = 'open sesame';
      answer = () => guesses(1);
      await open();
      const field = page.getByLabel('Token');
      await field.waitFor();
      expect(await texts('#access p')).to.deep.equal([`wanted ${markup}`]);
      expect(await field.evaluate((input) => input === document.activeElement)).to.equal(true);
      await page.keyboard.type('no header may say ☃');
      await page.keyboard.press('Enter');
      expect(await field.evaluate((input: HTMLInputElement) => input.validity.patternMismatch)).to.equal(true);
      await field.fill('wrong');
      await page.keyboard.press('Enter');
      await field.waitFor();
      await page.keyboard.type(token);
      await page.keyboard.press('Enter');
      await page.waitForSelector('#models article');
      expect(await field.isVisible()).to.equal(false);
      await page.setInputFiles('#drop input', cat);
      await page.waitForSelector('#results article:nth-child(2)');
      expect(await page.evaluate(() => [{ ...localStorage }, { ...sessionStorage }, document.cookie])).to.deep.equal([
        {},
        {},
        '',
      ]);
      await page.reload();
      await field.waitFor();
    });

    it('is used by keyboard, in the order of the page', async () => {
      answer = () => guesses(1);
      await open();
      await page.waitForSelector('#models-asked label');
      const chooser = page.waitForEvent('filechooser');
      await page.keyboard.press('Tab');
      expect(await page.locator('#drop').evaluate((drop) => getComputedStyle(drop).outlineStyle)).to.equal('solid');
      await page.keyboard.press('Enter');
      await (await chooser).setFiles(cat);
      await page.waitForSelector('#results article:nth-child(2)');
      const names: string[] = [];
      for (let i = 0; i < 3; i++) {
        await page.keyboard.press('Tab');
        names.push(
          await page.evaluate(() => {
            const { activeElement: at } = document;
            return (at?.closest('label') ?? at)?.textContent?.trim().replace(/\s+/g, ' ') ?? '';
          }),
        );
      }
      expect(names).to.deep.equal(['octave pictures, octave, alpha 0.5', 'plain pictures, plain', 'Classify again']);
      await Promise.all([page.waitForResponse(/plain.*classify/), page.keyboard.press('Enter')]);
      expect(sent.length).to.equal(4);
    });

    it('says to screen readers what is what', async () => {
      answer = () => guesses(1);
      await open();
      await page.waitForSelector('#models-asked label');
      await page.getByLabel('Drop a picture or clip, or choose one').setInputFiles(cat);
      await page.waitForSelector('#results article:nth-child(2)');
      const count = (role: 'region' | 'group' | 'status' | 'img' | 'listitem', name?: string) =>
        page.getByRole(role, name === undefined ? {} : { name }).count();
      expect([await count('region', 'Classify'), await count('region', 'Models')]).to.deep.equal([1, 1]);
      expect([await count('group', 'Models asked'), await count('status')]).to.deep.equal([1, 2]);
      expect([await count('img', 'Latency, last minute'), await count('img', 'cat.jpg')]).to.deep.equal([2, 1]);
      expect(await count('listitem')).to.equal(4);
    });

    it('fits a phone, and is dark where the system is', async () => {
      models = [{ ...octave, name: 'a-model-with-a-long-name-that-does-not-fit-one-line-of-a-phone' }, plain, broken];
      answer = () => guesses(1);
      await page.setViewportSize({ width: 390, height: 844 });
      await open();
      await page.waitForSelector('#models-asked label');
      await page.setInputFiles('#drop input', cat);
      await page.waitForSelector('#results article:nth-child(2)');
      expect(await page.evaluate(() => document.documentElement.scrollWidth)).to.equal(390);
      const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
      const light = await ground();
      await page.emulateMedia({ colorScheme: 'dark' });
      expect([light, await ground()]).to.deep.equal(['rgb(255, 255, 255)', 'rgb(20, 23, 26)']);
    });

    it('shows a server at work', async () => {
      const folder = (name: string) => join(root, 'models', name);
      await using service = await Service.open(
        { octave: folder('cifar10-oct-resnet-26-a50'), plain: folder('cifar10-oct-resnet-26-a0') },
        { maxBatch: 1 },
      );
      using live = new Live(service);
      const extend = (app: FastifyInstance) => {
        addPage(app);
        live.addRoute(app);
      };
      const server = await serveHttp(service, { token: 'secret', extend });
      try {
        await page.goto(server.url);
        await page.getByLabel('Token').fill('secret');
        await page.keyboard.press('Enter');
        await page.waitForSelector('#models-asked label:nth-of-type(2)');
        complaints = []; // of the answer 401
        await page.setInputFiles('#drop input', cat);
        await page.waitForSelector('#results article:nth-child(2)');
        expect(await texts('#results .error')).to.deep.equal(['', '']);
        for (const result of await page.locator('#results article').all()) {
          expect(await result.locator('li').count()).to.equal(5);
          expect(await result.locator('li span').first().textContent()).to.equal('cat');
        }
        await page.waitForFunction(() => document.querySelector('path.p50')?.getAttribute('d'));
        await page.setInputFiles('#drop input', { name: 'a.png', mimeType: 'image/png', buffer: Buffer.from('no') });
        await page.waitForFunction(() => document.querySelector('#said')?.textContent === 'a.png');
        for (const error of await texts('#results .error')) expect(error).to.match(/^picture: /);
        expect(complaints.filter((text) => !/status of 400/.test(text))).to.be.empty;
      } finally {
        await server.close(1000);
      }
    });
  });
});
