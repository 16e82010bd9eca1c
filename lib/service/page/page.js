/**
 * The page of the server: asks `live` each second and draws it; sends a picture or clip to models and shows their
 * answers. Text of the server becomes text nodes, never markup (the page's policy forbids `innerHTML`).
 *
 * @import { LiveModel as Model, Second, Snapshot } from '../live.js'
 * @typedef {{ label: string, index: number, probability: number }} Guess
 * @typedef {{ results: { top: Guess[] }[], milliseconds: { prepare: number, queue: number, compute: number } }} Answer
 */

/** @template {Element} T @param {string} selector @param {new () => T} type @param {ParentNode} [within] */
function find(selector, type, within = document) {
  const found = within.querySelector(selector);
  if (found instanceof type) return found;
  throw new Error(`no ${selector}`);
}

/** A copy of what a template holds. @param {string} id */
function copyOf(id) {
  const copy = find(`template#${id}`, HTMLTemplateElement).content.firstElementChild?.cloneNode(true);
  return /** @type {HTMLElement} */ (copy);
}

/** Text that has not changed is left alone: screen readers would say it again. @param {Element} element @param {string} text */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Fills in what is marked by `data-field`. @param {Element} element @param {Record<string, string | undefined>} texts */
function fill(element, texts) {
  for (const [name, text = ''] of Object.entries(texts)) say(find(`[data-field=${name}]`, HTMLElement, element), text);
}

const three = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });
const compact = new Intl.NumberFormat('en', { maximumSignificantDigits: 3, notation: 'compact' });
const percent = new Intl.NumberFormat('en', { style: 'percent', minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** @param {unknown} error */
const messageOf = (error) => (error instanceof Error ? error.message : String(error));

// --- Server -----------------------------------------------------------------------------------------------------

/** Lives as long as the page. @type {string | undefined} */
let token;
/** Whoever waits for a token waits for the same one. @type {Promise<string> | undefined} */
let asked;

/** @param {string} why */
function askToken(why) {
  const form = find('#access', HTMLFormElement);
  const input = find('input', HTMLInputElement, form);
  asked ??= new Promise((resolve) => {
    form.hidden = false;
    say(find('p', HTMLElement, form), why);
    input.focus();
    form.addEventListener(
      'submit',
      (event) => {
        event.preventDefault();
        resolve(input.value);
        asked = undefined;
        form.hidden = true;
        input.value = '';
      },
      { once: true },
    );
  });
  return asked;
}

/**
 * What the server answers, as JSON.
 * @param {string} path
 * @param {RequestInit & { seconds?: number }} [request] `seconds` that the answer may take
 * @returns {Promise<any>}
 */
async function call(path, request = {}) {
  const { seconds, ...init } = request;
  const used = token;
  const headers = { ...init.headers, ...(used !== undefined && { authorization: `Bearer ${used}` }) };
  const signal = seconds === undefined ? (init.signal ?? null) : AbortSignal.timeout(seconds * 1000);
  const response = await fetch(path, { ...init, headers, signal, cache: 'no-store' });
  if (response.ok) return response.json();
  const { error = `${response.status} ${response.statusText}` } = await response.json().catch(() => ({}));
  if (response.status !== 401) throw new Error(error);
  if (used === token) token = await askToken(error);
  return call(path, request);
}

// --- Models -----------------------------------------------------------------------------------------------------

/** @param {Model} model */
const keyOf = ({ name, version }) => `${name}/${version}`;
/** @param {Model} model */
const kindOf = ({ alpha }) => (alpha ? `octave, alpha ${alpha}` : 'plain');

/**
 * One element for each model, in their order. Elements stay while their models do, and with them focus and selection.
 * @param {Element} parent
 * @param {string} template
 * @param {Model[]} models
 * @param {(element: HTMLElement, model: Model) => void} update
 */
function keep(parent, template, models, update) {
  const old = new Map([...parent.querySelectorAll('[data-key]')].map((one) => [one.getAttribute('data-key'), one]));
  /** @type {Element | null} */
  let last = parent.querySelector('legend');
  for (const model of models) {
    const key = keyOf(model);
    const element = /** @type {HTMLElement} */ (old.get(key) ?? copyOf(template));
    old.delete(key);
    element.dataset.key = key;
    update(element, model);
    const place = last ? last.nextElementSibling : parent.firstElementChild;
    if (place !== element) parent.insertBefore(element, place);
    last = element;
  }
  for (const one of old.values()) one.remove();
}

/** @param {HTMLElement} article @param {Model} model */
function showModel(article, model) {
  const { name, version, state, reason } = model;
  fill(article, { name, version: `version ${version}`, state, reason });
  find('[data-field=state]', HTMLElement, article).dataset.state = state;
  const ready = find('.ready', HTMLElement, article);
  ready.hidden = model.device === undefined;
  if (ready.hidden) return;
  const { network, device, dtype, threads, sizes = [], inFlight } = model;
  fill(ready, {
    network: `${network ?? 'of its own'}, ${kindOf(model)}`,
    device: `${device}, ${dtype}, ${threads} ${threads === 1 ? 'thread' : 'threads'}`,
    multiplyAdds: `${compact.format(model.multiplyAdds ?? 0)} a row`,
    parameters: compact.format(model.parameters ?? 0),
    input: `${model.takes}, ${[model.frames, model.height, model.width].filter(Boolean).join(' × ')}`,
    classes: String(model.classes),
    sizes: sizes.join(', '),
    inFlight: String(inFlight),
  });
  for (const figure of article.querySelectorAll('figure')) draw(figure, model.seconds);
}

/**
 * Draws the paths of a chart, whose classes name what they show of each second, and writes the latest figures beside it.
 * @param {HTMLElement} figure
 * @param {readonly Second[]} seconds
 */
function draw(figure, seconds) {
  const paths = [...figure.querySelectorAll('path')];
  const stacked = 'bars' in figure.dataset;
  const series = paths.map((path) => seconds.map((second) => of(second, path.getAttribute('class'))));
  // A bar lies in front of those before it: each ends where its own and the later ones add up to.
  if (stacked) for (let i = series.length - 2; i >= 0; i--) series[i] = plus(series[i] ?? [], series[i + 1] ?? []);
  const scale = ceiling(Math.max(0, ...series.flat().map(Number)));
  for (const [i, path] of paths.entries()) {
    const heights = (series[i] ?? []).map((value) => value && (value / scale) * height);
    path.setAttribute('d', (stacked ? bars : line)(heights, width - heights.length));
  }
  say(find('.scale', HTMLElement, figure), `0–${three.format(scale)}`);
  for (const element of figure.querySelectorAll('[data-latest]')) {
    const values = seconds.map((second) => of(second, element.getAttribute('data-latest')));
    const latest = values.findLast((value) => value !== null);
    say(element, latest === undefined ? '–' : three.format(Number(latest)));
  }
}

/** The `viewBox` of a chart: a second is 1 wide. */
const [width, height] = [60, 40];

/** @param {Second} second @param {string | null} name */
const of = (second, name) => second[/** @type {keyof Second} */ (name)];

/** @param {(number | null)[]} a @param {(number | null)[]} b */
const plus = (a, b) => a.map((value, i) => Number(value) + Number(b[i]));

/** The next of 1, 2, 3, 4, 5, 6, 8, 10, 20, ... @param {number} most */
function ceiling(most) {
  const power = 10 ** Math.floor(Math.log10(most || 1));
  return ([1, 2, 3, 4, 5, 6, 8].find((step) => step * power >= most) ?? 10) * power;
}

/** @param {(number | null)[]} heights @param {number} left */
const bars = (heights, left) =>
  heights.map((up, i) => (up ? `M${left + i} ${height}v${-up}h.8V${height}z` : '')).join('');

/** Seconds without a value are gaps; one between two gaps is a dot. @param {(number | null)[]} heights @param {number} left */
const line = (heights, left) =>
  heights
    .map((up, i) => {
      if (up === null) return '';
      const [x, y] = [left + i + 0.5, height - up];
      return (heights[i - 1] ?? null) === null ? `M${x} ${y}h0` : `L${x} ${y}`;
    })
    .join('');

/** @type {Model[]} */
let models = [];

/** Asks the server each second for as long as the page is seen. */
async function follow() {
  const server = find('#server', HTMLElement);
  const clock = find('#now', HTMLTimeElement);
  for (;;) {
    if (document.hidden)
      await new Promise((seen) => document.addEventListener('visibilitychange', seen, { once: true }));
    try {
      /** @type {Snapshot} */
      const live = await call('live', { seconds: 5 });
      models = [...live.models];
      keep(find('#models', HTMLElement), 'model', models, showModel);
      keep(find('#models-asked', HTMLElement), 'choice', models.filter(canClassify), (label, model) =>
        fill(label, { title: titleOf(model), kind: `${model.takes}, ${kindOf(model)}` }),
      );
      const ready = models.filter(({ state }) => state === 'ready').length;
      say(server, models.length === 0 ? 'No models' : `${ready} of ${models.length} models ready`);
      server.classList.remove('error');
      say(clock, new Date(live.now).toLocaleTimeString());
    } catch (error) {
      say(
        server,
        `No figures from the server${clock.textContent && ` since ${clock.textContent}`}: ${messageOf(error)}`,
      );
      server.classList.add('error');
    }
    await new Promise((later) => setTimeout(later, 1000));
  }
}

// --- Classify ---------------------------------------------------------------------------------------------------

/** @param {Model} model */
const canClassify = ({ state, takes }) => state === 'ready' && takes !== 'tensors';

/** With its version where others of its name are ready. @param {Model} model */
const titleOf = (model) =>
  models.filter((one) => one.name === model.name && canClassify(one)).length > 1
    ? `${model.name}, version ${model.version}`
    : model.name;

/** The models that are asked about a file. A clip may be a picture of a moving kind (WebP). @param {File} file */
function modelsFor({ type }) {
  const wanted = new Set(
    [...document.querySelectorAll('#models-asked label:has(:checked)')].map((label) => label.getAttribute('data-key')),
  );
  const all = models.filter((model) => canClassify(model) && wanted.has(keyOf(model)));
  const pictures = type.startsWith('video/') ? [] : all.filter(({ takes }) => takes === 'pictures');
  return pictures.length ? pictures : all.filter(({ takes }) => takes === 'video');
}

/** What is being classified; another file stops it. */
let running = new AbortController();

/** @param {File} file */
async function classify(file) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const said = find('#said', HTMLElement);
  const results = find('#results', HTMLElement);
  results.replaceChildren();
  const chosen = modelsFor(file);
  if (chosen.length === 0)
    return say(said, `No model is chosen that takes ${file.name} (${file.type || 'unknown type'}).`);
  // One after the other: side by side they would slow each other down.
  for (const model of chosen) {
    say(said, `${file.name}: ${model.name} computes`);
    const article = copyOf('result');
    fill(article, {
      title: titleOf(model),
      about: `${kindOf(model)}, ${compact.format(model.multiplyAdds ?? 0)} multiply-adds`,
    });
    try {
      const [name, version] = [model.name, model.version].map(encodeURIComponent);
      const headers = { 'content-type': file.type || 'application/octet-stream' };
      showAnswer(
        article,
        await call(`v2/models/${name}/versions/${version}/classify?top=5`, {
          method: 'POST',
          body: file,
          headers,
          signal,
        }),
      );
    } catch (error) {
      if (signal.aborted) return;
      fill(article, { error: messageOf(error) });
    }
    results.append(article);
  }
  say(said, file.name);
}

/** @param {HTMLElement} article @param {Answer} answer */
function showAnswer(article, { results, milliseconds }) {
  const guesses = (results[0]?.top ?? []).map(({ label, probability }) => {
    const item = copyOf('guess');
    fill(item, { label, share: percent.format(probability) });
    item.style.setProperty('--share', `${probability * 100}%`);
    return item;
  });
  find('ol', HTMLOListElement, article).append(...guesses);
  const { prepare, queue, compute } = milliseconds;
  const [network, decode, wait, all] = [compute, prepare, queue, prepare + queue + compute].map((time) =>
    three.format(time),
  );
  fill(article, { time: `${network} ms`, times: `decode ${decode}, queue ${wait}, in all ${all} ms` });
}

/** @type {File | undefined} */
let file;
let preview = '';

/** @param {File | undefined} given */
function choose(given) {
  if (!given) return;
  file = given;
  URL.revokeObjectURL(preview);
  preview = URL.createObjectURL(file);
  const [image, video] = [find('#drop img', HTMLImageElement), find('#drop video', HTMLVideoElement)];
  const moving = file.type.startsWith('video/');
  image.hidden = moving;
  video.hidden = !moving;
  image.alt = file.name;
  image.src = moving ? '' : preview;
  video.src = moving ? preview : '';
  find('#again', HTMLButtonElement).disabled = false;
  void classify(file);
}

const input = find('#drop input', HTMLInputElement);
input.addEventListener('change', () => choose(input.files?.[0]));
find('#again', HTMLButtonElement).addEventListener('click', () => file && classify(file));

// A file may be dropped anywhere: beside a smaller field the browser would leave the page for it.
/** @param {DragEvent} event @param {boolean} over */
const drag = (event, over) => {
  event.preventDefault();
  find('#drop', HTMLElement).classList.toggle('over', over);
};
document.addEventListener('dragover', (event) => drag(event, true));
document.addEventListener('dragleave', (event) => drag(event, false));
document.addEventListener('drop', (event) => {
  drag(event, false);
  choose(event.dataTransfer?.files[0]);
});

void follow();
