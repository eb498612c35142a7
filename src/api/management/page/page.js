// The management page: shows the data of the management API and calls it for changes.
//
// Names, platforms, dates and errors come from upstreams and clients, which may be hostile. They only become text nodes:
// no innerHTML, and no links or markup from data. The Content-Security-Policy is the second line of defence.
// The page is an ordinary client of docs/openapi.yaml and must not know how anything is stored.
'use strict';

// ---- Limits, in milliseconds unless the name says otherwise ----------------------------------------------------------

// Progress bars should move; a list of images need not be refreshed that often.
const FAST_POLL = 2_000;
const SLOW_POLL = 15_000;
// Reading is quick even on a busy server; a prune of a large cache takes as long as its disk needs.
const READ_LIMIT = 10_000;
const CHANGE_LIMIT = 600_000;
// Searches are sent after a pause in typing.
const TYPING_PAUSE = 300;
const NOTICE_TIME = 8_000;
const PAGE_IMAGES = 50;
const PLATFORMS_IN_ROW = 3;
const PRUNE_NAMES = 200;
const MINUTE = 60_000;
// The charts use the first span that covers the history, since minutes would be invisible in a chart of a day.
const SPANS = [{ hours: 1, step: MINUTE }, { hours: 6, step: 5 * MINUTE }, { hours: 24, step: 15 * MINUTE }];

const TOKEN_KEY = 'larder-token';
const state = { status: null, pins: [], offset: 0, imagesAsked: 0, isLocked: false, heard: null, clockSkew: 0, drawn: null };
const rates = new Map();

// ---- Building the document -------------------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);

// Strings among the children become text nodes.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Unchanged text is not set again: screen readers would repeat live regions.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const badge = (kind, text) => el('span', { class: `badge ${kind}` }, text);

// `focusKey` identifies the button when its parent is rebuilt.
function button(label, about, focusKey, action, kind = 'small') {
  const node = el('button', { type: 'button', class: kind, 'data-focus': focusKey, 'aria-label': `${label} ${about}` }, label);
  node.addEventListener('click', action);
  return node;
}

// `display: block` on phones removes the semantics of table cells; the roles restore them.
function row(...cells) {
  return el('tr', { role: 'row' }, ...cells.map(([label, content, kind]) =>
    el('td', { role: 'cell', 'data-label': label, class: kind ?? '' }, content)));
}

// Sets the children of `parent` from `items`. Keeps the nodes of unchanged items, so that neither the focus nor a click
// in progress is lost; with `update`, nodes of changed items are kept too.
function reconcile(parent, items, keyOf, build, update = null) {
  const old = new Map([...parent.children].map((node) => [node.itemKey, node]));
  const focused = parent.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
  const nodes = items.map((item) => {
    const itemKey = keyOf(item), memo = JSON.stringify(item);
    let node = old.get(itemKey);
    if (node?.memo === memo) return node;
    if (node && update) update(node, item);
    else node = build(item);
    return Object.assign(node, { itemKey, memo });
  });
  if (nodes.length === parent.children.length && nodes.every((node, index) => node === parent.children[index])) return;
  parent.replaceChildren(...nodes);
  if (focused) focusOn(focused, parent);
}

// Keys contain data, which would have to be escaped in a selector.
function focusOn(key, parent) {
  const found = [...document.querySelectorAll('[data-focus]')].find((node) => node.dataset.focus === key);
  const next = found ?? parent?.closest('section')?.querySelector('h2');
  if (next && !found) next.tabIndex = -1;
  next?.focus({ preventScroll: true });
}

// ---- Formatting of sizes and times -----------------------------------------------------------------------------------

// A no-break space between a number and its unit.
const GAP = '\u00a0';

// Decimal units, as in the output of the commands.
function size(bytes) {
  if (bytes < 0) return `−${size(-bytes)}`;
  if (bytes < 1000) return `${bytes}${GAP}bytes`;
  const units = ['kB', 'MB', 'GB', 'TB', 'PB'];
  let value = bytes / 1000, unit = 0;
  while (value >= 999.95 && unit + 1 < units.length) {
    value /= 1000;
    unit += 1;
  }
  return `${value.toFixed(1)}${GAP}${units[unit]}`;
}

const count = (number) => number.toLocaleString('en');
const many = (number, one, more = `${one}s`) => `${count(number)} ${number === 1 ? one : more}`;
const percent = (part, whole) => (whole > 0 ? `${((100 * part) / whole).toFixed(1)}${GAP}%` : '–');
const shortDigest = (digest) => digest.replace(/^([a-z0-9]+:.{12}).*$/, '$1…');

function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)}${GAP}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}${GAP}min`;
  return seconds < 86_400 ? `${Math.floor(seconds / 3600)}${GAP}h` : `${Math.floor(seconds / 86_400)}${GAP}d`;
}

// The time of the server's clock, since the browser's may be wrong.
const now = () => Date.now() + state.clockSkew;

function ageText(moment) {
  const seconds = Math.floor((now() - moment) / 1000);
  return seconds < 10 ? 'just now' : `${duration(seconds)} ago`;
}

// `text` is a time, null, or any text (the creation time comes from the image's config).
function time(text, none = 'never') {
  if (text === null) return none;
  const moment = Date.parse(text);
  if (Number.isNaN(moment)) return text;
  const full = new Date(moment).toISOString();
  return el('time', { datetime: full, title: full }, ageText(moment));
}

function refreshTimes() {
  for (const node of document.querySelectorAll('time')) setText(node, ageText(Date.parse(node.dateTime)));
}

// ---- The server ------------------------------------------------------------------------------------------------------

class Refused extends Error {}
class Silent extends Error {}
class Dismissed extends Error {}

async function send(method, path, parameters, token) {
  const limit = method === 'GET' ? READ_LIMIT : CHANGE_LIMIT;
  // A plus sign means a space in forms only.
  const query = new URLSearchParams(parameters).toString().replaceAll('+', '%20');
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    const options = { method, headers, cache: 'no-store', signal: AbortSignal.timeout(limit) };
    answer = await fetch(query ? `${path}?${query}` : path, options);
  } catch {
    throw new Silent('The server does not respond.');
  }
  const body = await answer.json().catch(() => ({}));
  return { status: answer.status, ok: answer.ok, body, error: body.error ?? `The server answered ${answer.status}.` };
}

// Asks for the token before changes and whenever the server requires it. An accepted token is kept.
async function call(method, path, parameters = {}) {
  let token = sessionStorage.getItem(TOKEN_KEY);
  if (!token && method !== 'GET') token = await askToken('');
  for (;;) {
    const { status, ok, body, error } = await send(method, path, parameters, token);
    if (ok && token) keep(token);
    if (ok) return body;
    if (status !== 401) throw new Refused(error);
    token = await tokenInsteadOf(token, error);
  }
}

function keep(token) {
  sessionStorage.setItem(TOKEN_KEY, token);
  lock(false);
}

function tokenInsteadOf(refused, error) {
  const stored = sessionStorage.getItem(TOKEN_KEY);
  // Another request has stored a valid token in the meantime.
  if (stored && stored !== refused) return stored;
  sessionStorage.removeItem(TOKEN_KEY);
  return askToken(error);
}

// A single dialog for all requests that need the token.
let asking = null;
function askToken(error) {
  asking ??= showTokenDialog(error).finally(() => { asking = null; });
  return asking;
}

async function showTokenDialog(error) {
  const input = $('token').querySelector('input');
  input.value = '';
  $('token-error').textContent = error;
  const isGiven = (await modal($('token'))) === 'yes';
  const token = input.value.trim();
  input.value = '';
  if (!isGiven) throw new Dismissed('Cancelled: this requires the token.');
  return token;
}

// Reads and shows a document; errors are shown in `note`.
async function read(path, parameters, note, show) {
  if (state.isLocked) return;
  try {
    const answer = await call('GET', path, parameters);
    heard();
    show(answer);
  } catch (error) {
    if (error instanceof Silent) silent();
    else if (error instanceof Dismissed) lock(true);
    else if (error instanceof Refused) refused(note, error.message);
    else throw error;
  }
}

function refused(note, text) {
  heard();
  setText(note, text);
  note.hidden = false;
}

function heard() {
  if (!$('silence').hidden) say('The server responds again.');
  $('silence').hidden = true;
  state.heard = new Date();
}

function silent() {
  const since = state.heard ? `No response since ${state.heard.toLocaleTimeString([], { hourCycle: 'h23' })}.` : 'No response yet.';
  setText($('silence'), `${since} This page may be outdated. Retrying…`);
  $('silence').hidden = false;
}

function lock(isLocked) {
  state.isLocked = isLocked;
  $('locked').hidden = !isLocked;
}

// ---- Dialogs and notices ---------------------------------------------------------------------------------------------

// Resolves with 'yes' if the form was submitted. Restores the focus, even if the focused element was rebuilt.
function modal(dialog) {
  const from = document.activeElement?.dataset.focus;
  dialog.returnValue = '';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => {
      if (from && (document.activeElement ?? document.body) === document.body) focusOn(from, null);
      resolve(dialog.returnValue);
    }, { once: true });
  });
}

async function confirmed(title, text, yes) {
  $('confirm-title').textContent = title;
  $('confirm-text').textContent = text;
  $('confirm-yes').textContent = yes;
  return (await modal($('confirm'))) === 'yes';
}

// Shown in the open dialog, since everything else is inert and not read by screen readers.
let noticeTimer = 0;
function say(text) {
  const notice = $('notice');
  ([...document.querySelectorAll('dialog[open]')].pop() ?? document.body).append(notice);
  notice.textContent = text;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => { notice.textContent = ''; }, NOTICE_TIME);
}

// Runs `task`, shows its result, and refreshes the page. Resolves to whether it succeeded.
async function act(task) {
  try {
    say(await task());
    return true;
  } catch (error) {
    say(error.message);
    if (!(error instanceof Refused || error instanceof Silent || error instanceof Dismissed)) throw error;
    return false;
  } finally {
    await refreshAll();
  }
}

// ---- Overview --------------------------------------------------------------------------------------------------------

const readStatus = () => read('/api/v1/status', {}, $('refused'), (status) => {
  $('refused').hidden = true;
  state.status = status;
  state.clockSkew = Date.parse(status.now) - Date.now();
  setText($('version'), `version ${status.version}`);
  showBadges(status);
  showTiles(status);
  showCounts(status);
  showRegistries(status.usage);
  refreshTimes();
});

function showBadges({ ready, airGapped, offline, readOnly }) {
  const badges = [ready ? badge('good', 'ready') : badge('bad', 'not ready')];
  if (airGapped) badges.push(badge('', 'air-gapped'));
  else if (offline) badges.push(badge('warn', 'offline'));
  if (readOnly) badges.push(badge('warn', 'read-only'));
  const texts = badges.map((each) => each.textContent).join();
  if ($('badges').dataset.texts === texts) return;
  $('badges').dataset.texts = texts;
  $('badges').replaceChildren(...badges);
}

function showTiles({ usage, traffic, disk, started }) {
  if (usage) {
    setText($('tile-images'), count(usage.images));
    $('tile-images-note').replaceChildren(`${count(usage.completeImages)} complete, as of `, time(usage.asOf));
  } else {
    setText($('tile-images-note'), 'The images are being counted for the first time.');
  }
  const { hit, stale, join, miss, bypass, bytesServed, bytesFetched } = traffic;
  const hits = hit + stale, answers = hits + join + miss + bypass;
  setText($('tile-hits'), percent(hits, answers));
  $('tile-hits-note').replaceChildren(`of ${many(answers, 'answer')} since the start `, time(started));
  setText($('tile-saved'), size(bytesServed - bytesFetched));
  setText($('tile-saved-note'), `${size(bytesServed)} served, ${size(bytesFetched)} fetched`);
  showSources(traffic);
  showDisk(disk);
}

// What was served and not received came from the disk.
function showSources({ bytesServed, bytesReceived }) {
  const from = Object.entries({ 'registries': bytesReceived.registry, 'parents': bytesReceived.parent, 'peers': bytesReceived.peer,
    'the bucket': bytesReceived.bucket });
  const received = from.reduce((sum, [, bytes]) => sum + bytes, 0);
  const parts = [['the disk', Math.max(0, bytesServed - received)], ...from].filter(([, bytes]) => bytes > 0);
  setText($('sources'), parts.length === 0 ? '' : `Served from ${parts.map(([source, bytes]) => `${source}: ${size(bytes)}`).join(' · ')}`);
}

function showDisk({ usedBytes, freeBytes, cacheSizeBytes, freeSpaceBytes }) {
  const meter = $('disk-meter');
  const total = cacheSizeBytes ?? (freeBytes === null ? null : (usedBytes ?? 0) + freeBytes);
  setText($('tile-disk'), usedBytes === null ? '–' : size(usedBytes));
  meter.hidden = usedBytes === null || !total;
  if (!meter.hidden) {
    meter.max = total;
    meter.value = usedBytes;
    meter.setAttribute('aria-valuetext', `${size(usedBytes)} of ${size(total)}`);
  }
  const parts = [
    cacheSizeBytes === null ? 'no limit' : `limit ${size(cacheSizeBytes)}`,
    freeBytes === null ? null : `${size(freeBytes)} free`,
    freeSpaceBytes === null ? null : `${size(freeSpaceBytes)} to keep free`,
    freeBytes !== null && freeBytes < freeSpaceBytes ? 'too little free space' : null,
  ];
  setText($('tile-disk-note'), parts.filter((part) => part !== null).join(', '));
}

function showCounts({ counts, connections, busyWorkers }) {
  const parts = [many(connections, 'connection'), many(busyWorkers, 'busy worker')];
  const add = (number, text) => { if (number > 0) parts.push(text); };
  add(counts.imagesEvicted, `${many(counts.imagesEvicted, 'image')} (${size(counts.bytesEvicted)}) evicted`);
  add(counts.damagedFiles, `${many(counts.damagedFiles, 'damaged file')} found`);
  add(counts.blobsNotCached, `${many(counts.blobsNotCached, 'blob')} served without caching`);
  add(counts.manifestsNotCached, `${many(counts.manifestsNotCached, 'manifest')} served without caching`);
  setText($('counts'), parts.join(' · '));
}

// ---- History ---------------------------------------------------------------------------------------------------------

const readHistory = () => read('/api/v1/history', {}, $('refused'), showHistory);

function showHistory({ history }) {
  const last = history.at(-1);
  if (last?.time === state.drawn) return;
  state.drawn = last?.time;
  const end = last ? Date.parse(last.time) : now();
  const first = history.length > 0 ? Date.parse(history[0].time) : end;
  const span = SPANS.find(({ hours }) => end - first < hours * 60 * MINUTE) ?? SPANS.at(-1);
  const begin = end - span.hours * 60 * MINUTE;
  const steps = Array.from({ length: (end - begin) / span.step }, noTraffic);
  for (const step of history) {
    // The time of a step is its end.
    const index = Math.ceil((Date.parse(step.time) - begin) / span.step) - 1;
    if (steps[index]) add(steps[index], step);
  }
  const total = steps.reduce(add, noTraffic());
  const summary = historySummary(total, span);
  setText($('history-summary'), summary);
  drawBytes(steps, span, summary);
  drawHits(steps, span, summary);
  showHours(history);
}

const noTraffic = () => ({ hits: 0, misses: 0, bytesServed: 0, bytesFetched: 0 });
function add(sum, step) {
  for (const key of ['hits', 'misses', 'bytesServed', 'bytesFetched']) sum[key] += step[key];
  return sum;
}

function historySummary({ hits, misses, bytesServed, bytesFetched }, { hours }) {
  const answers = hits + misses, when = hours === 1 ? 'In the last hour' : `In the last ${hours} h`;
  if (answers + bytesServed + bytesFetched === 0) return `${when}: no traffic.`;
  return `${when}: ${many(answers, 'answer')}, ${percent(hits, answers)} without a download; ` +
    `${size(bytesServed)} served, ${size(bytesFetched)} fetched.`;
}

// Labels are outside of the picture, because it is stretched to the width.
function draw(id, steps, { hours }, summary, top, shapes) {
  const picture = svg('svg', { viewBox: `0 0 ${steps.length} 100`, preserveAspectRatio: 'none', role: 'img', 'aria-label': summary });
  for (const y of [0.5, 50]) picture.append(svg('line', { class: 'grid', x1: 0, x2: steps.length, y1: y, y2: y }));
  picture.append(...shapes);
  const axis = el('p', { class: 'axis', 'aria-hidden': 'true' }, el('span', {}, `${hours} h ago`), el('span', {}, 'now'));
  $(id).replaceChildren(el('p', { class: 'axis' }, top), picture, axis);
}

function drawBytes(steps, span, summary) {
  const most = Math.max(...steps.map((step) => Math.max(step.bytesServed, step.bytesFetched)), 1);
  const bar = (kind, bytes, index) => {
    const height = (97 * bytes) / most;
    return svg('rect', { class: kind, x: index + 0.1, width: 0.8, y: 100 - height, height });
  };
  // The lower bar is drawn in front.
  const shapes = steps.flatMap(({ bytesServed, bytesFetched }, index) => {
    const bars = [bar('served', bytesServed, index), bar('fetched', bytesFetched, index)];
    return bytesServed > bytesFetched ? bars : bars.reverse();
  });
  draw('chart-bytes', steps, span, summary, most > 1 ? `${size(most)} in ${duration(span.step / 1000)}` : 'none', shapes);
}

function drawHits(steps, span, summary) {
  let path = '', isDown = false;
  steps.forEach(({ hits, misses }, index) => {
    const isKnown = hits + misses > 0;
    const point = `${index + 0.5} ${(98 - (96 * hits) / (hits + misses)).toFixed(2)}`;
    // The short stroke draws an isolated step as a dot.
    if (isKnown) path += isDown ? `L${point}` : `M${point}h.01`;
    isDown = isKnown;
  });
  draw('chart-hits', steps, span, summary, '100 %', [svg('path', { class: 'rate', d: path || 'M0 0' })]);
}

function showHours(history) {
  const hours = new Map();
  for (const step of history) {
    const hour = new Date(Date.parse(step.time) - 1);
    hour.setMinutes(0, 0, 0);
    hours.set(hour.getTime(), add(hours.get(hour.getTime()) ?? noTraffic(), step));
  }
  const rows = [...hours].reverse().filter(([, sum]) => sum.hits + sum.misses + sum.bytesFetched > 0);
  const clock = (moment) => new Date(moment).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
  $('history-rows').replaceChildren(...rows.map(([hour, { hits, misses, bytesServed, bytesFetched }]) =>
    row(['', clock(hour)], ['Answers', count(hits + misses)], ['Hit rate', percent(hits, hits + misses)],
      ['Served', size(bytesServed)], ['Fetched', size(bytesFetched)])));
}

// ---- Downloads -------------------------------------------------------------------------------------------------------

const flightKey = ({ upstream, digest }) => `${upstream} ${digest}`;

const readFlights = () => read('/api/v1/flights', {}, $('downloads-note'), ({ flights, partials }) => {
  const flying = new Set(flights.map(flightKey));
  const broken = partials.filter((partial) => !flying.has(flightKey(partial)));
  const rated = flights.map((flight) => ({ ...flight, rate: noteRate(flight) }));
  for (const key of rates.keys()) if (!flying.has(key)) rates.delete(key);
  setText($('downloads-note'), flights.length > 0 ? `${many(flights.length, 'download')} in progress.` : 'No downloads in progress.');
  reconcile($('flights'), rated, flightKey, flightItem, updateFlight);
  reconcile($('partials'), broken, flightKey, partialItem);
  $('partials-box').hidden = broken.length === 0;
});

// The average of the old and the new rate, so that the number is readable.
function noteRate(flight) {
  const before = rates.get(flightKey(flight)), at = performance.now();
  const fresh = before && at > before.at ? ((flight.bytes - before.bytes) * 1000) / (at - before.at) : null;
  const rate = fresh === null ? null : Math.max(0, before.rate === null ? fresh : (fresh + before.rate) / 2);
  rates.set(flightKey(flight), { bytes: flight.bytes, at, rate });
  return rate;
}

function flightItem(flight) {
  const name = flight.repository || 'queued', about = `${name} ${shortDigest(flight.digest)}`;
  const cancel = button('Cancel', about, `flight ${flightKey(flight)}`, () => cancelFlight(flight, about));
  const parts = { progress: el('progress', { 'aria-label': about }), text: el('span', { class: 'muted' }) };
  const title = el('span', {}, el('strong', {}, name), ' ', el('span', { class: 'mono muted', title: flight.digest }, shortDigest(flight.digest)));
  const node = Object.assign(el('li', {}, el('div', { class: 'line' }, title, cancel), parts.progress, parts.text), { parts });
  updateFlight(node, flight);
  return node;
}

function updateFlight({ parts }, { bytes, sizeBytes, connections, upstream, rate }) {
  // Without a value, the bar shows an unknown size.
  if (sizeBytes) Object.assign(parts.progress, { max: sizeBytes, value: bytes });
  else parts.progress.removeAttribute('value');
  const done = sizeBytes ? `${Math.floor((100 * bytes) / sizeBytes)} %, ${size(bytes)} of ${size(sizeBytes)}` : `${size(bytes)} so far`;
  const over = connections > 1 ? ` over ${connections} connections` : '';
  setText(parts.text, `${done}${rate === null ? '' : `, ${size(Math.round(rate))}/s`}, from ${upstream}${over}`);
}

function partialItem({ upstream, digest, bytes, written }) {
  const title = el('span', { class: 'mono', title: digest }, shortDigest(digest));
  return el('li', { class: 'line' }, title, el('span', { class: 'muted' }, `${size(bytes)} from ${upstream}, `, time(written, 'some time ago')));
}

async function cancelFlight({ upstream, digest }, about) {
  const text = `The connections of its clients are closed. The downloaded part of ${about} is kept, and the next request resumes it.`;
  if (!(await confirmed('Cancel this download?', text, 'Cancel download'))) return;
  await act(async () => {
    await call('DELETE', '/api/v1/flights', { upstream, digest });
    return 'The download is being cancelled.';
  });
}

const resumeAll = () => act(async () =>
  `${many((await call('POST', '/api/v1/flights/resume')).resumed, 'download')} queued.`);

// ---- Images ----------------------------------------------------------------------------------------------------------

// A plain word matches anywhere in the name; globs and regular expressions are used as they are.
function patternOf(text) {
  return /[*?]/.test(text) || /^\/.+\/$/.test(text) ? text : `*${text}*`;
}

function imageParameters() {
  const parameters = { limit: PAGE_IMAGES, offset: state.offset };
  for (const [name, value] of new FormData($('filter'))) if (value.trim()) parameters[name] = value.trim();
  if (parameters.pattern) parameters.pattern = patternOf(parameters.pattern);
  return parameters;
}

function readImages() {
  const asked = ++state.imagesAsked;
  return read('/api/v1/images', imageParameters(), $('images-note'), (page) => {
    // Ignores answers to earlier queries.
    if (asked === state.imagesAsked) showImages(page);
  });
}

function showImages({ asOf, total, next, images }) {
  if (images.length === 0 && total > 0 && state.offset > 0) {
    toPage(0);
    return;
  }
  const range = total > images.length ? `${count(state.offset + 1)} to ${count(state.offset + images.length)} of ` : '';
  const none = new FormData($('filter')).get('pattern') ? 'No matching images.' : 'No images.';
  setText($('images-note'), total === 0 ? none : `${range}${many(total, 'image')}`);
  $('images-age').replaceChildren(...(asOf ? ['as of ', time(asOf)] : []));
  $('previous').disabled = state.offset === 0;
  $('next').disabled = next === null;
  $('next').value = next ?? '';
  $('previous').parentNode.hidden = state.offset === 0 && next === null;
  // The row also depends on whether the pin can be removed.
  reconcile($('image-rows'), images.map((image) => ({ ...image, isRemovablePin: isRemovablePin(image.image) })), ({ image }) => image, imageRow);
}

const isRemovablePin = (image) => state.pins.some(({ pattern, source }) => source === 'cache' && pattern === image);

function imageRow(image) {
  const open = el('button', { type: 'button', class: 'link', 'data-focus': `image ${image.image}` }, image.image);
  open.addEventListener('click', () => openDetail(image.image));
  return row(['', open], ['Size', size(image.sizeBytes), 'number'], ['State', stateBadges(image)], ['Platforms', platforms(image)],
    ['Last pulled', time(image.pulled)], ['', el('span', { class: 'do' }, ...imageButtons(image))]);
}

function stateBadges({ complete, missingBytes, pinned, stale, goneUpstream }) {
  const node = el('span', { class: 'state' }, complete ? badge('good', 'complete') : badge('warn', 'partial'));
  if (pinned) node.append(badge('', 'pinned'));
  if (stale) node.append(badge('', 'stale'));
  if (goneUpstream) node.append(badge('warn', 'gone upstream'));
  if (missingBytes > 0) node.append(el('span', { class: 'muted' }, `${size(missingBytes)} ${complete ? 'of other platforms ' : ''}missing`));
  return node;
}

function platforms({ platforms: all }) {
  const rest = all.length - PLATFORMS_IN_ROW;
  return all.length === 0 ? '–' : all.slice(0, PLATFORMS_IN_ROW).join(', ') + (rest > 0 ? ` and ${rest} more` : '');
}

// Pins from the configuration, and patterns, cannot be removed for a single image.
function imageButtons({ image, pinned, complete, isRemovablePin: canUnpin }) {
  const buttons = [];
  if (canUnpin) buttons.push(button('Unpin', image, `pin ${image}`, () => unpin(image)));
  else if (!pinned) buttons.push(button('Pin', image, `pin ${image}`, () => pin(image)));
  if (!complete) buttons.push(button('Prefetch', image, `prefetch ${image}`, () => prefetch(image)));
  return buttons;
}

const prefetch = (image) => act(async () => {
  await call('POST', '/api/v1/prefetch', { image });
  return `${image} is queued; see Current downloads.`;
});

function toPage(offset) {
  state.offset = offset;
  return readImages();
}

// ---- One image -------------------------------------------------------------------------------------------------------

async function openDetail(image) {
  $('detail-title').textContent = image;
  $('detail-body').replaceChildren('…');
  $('detail-buttons').replaceChildren();
  const closed = modal($('detail'));
  await showDetail(image);
  await closed;
}

async function showDetail(image) {
  try {
    const found = await call('GET', '/api/v1/image', { image });
    // The dialog was opened for another image in the meantime.
    if ($('detail-title').textContent !== image) return;
    $('detail-body').replaceChildren(facts(found), el('h3', {}, 'Content'), tree(found.tree));
    $('detail-buttons').replaceChildren(...detailButtons({ ...found, isRemovablePin: isRemovablePin(image) }));
  } catch (error) {
    $('detail-body').replaceChildren(el('p', { class: 'error' }, error.message));
  }
}

function facts(image) {
  const list = el('dl');
  const fact = (name, ...value) => list.append(el('dt', {}, name), el('dd', {}, ...value));
  fact('State', stateBadges(image));
  fact('Size', `${size(image.sizeBytes)} in ${many(image.manifests, 'manifest')} and ${many(image.blobs, 'blob')}`);
  fact('Platforms', image.platforms.join(', ') || '–');
  fact('Digest', el('span', { class: 'mono' }, image.digest));
  fact('Type', el('span', { class: 'mono' }, image.mediaType));
  fact('Created', time(image.created, 'unknown'));
  fact('Fetched', time(image.fetched, 'unknown'));
  fact('Checked', time(image.checked));
  fact('Last pulled', time(image.pulled));
  if (image.goneUpstream) fact('Gone upstream', time(image.goneUpstream));
  return list;
}

function tree(manifests) {
  const part = (what, { digest, sizeBytes, present }) => [el('span', { class: 'mono', title: digest }, shortDigest(digest)),
    ` ${what}${size(sizeBytes)} `, present ? badge('good', 'cached') : badge('warn', 'missing')];
  return el('ul', { class: 'plain tree' }, ...manifests.map((manifest) =>
    el('li', {}, ...part(manifest.platform ? `${manifest.platform}, ` : 'manifest, ', manifest),
      el('ul', {}, ...manifest.blobs.map((blob) => el('li', {}, ...part('', blob)))))));
}

function detailButtons(image) {
  const buttons = imageButtons(image);
  for (const each of buttons) {
    // The button in the table has the same key.
    each.removeAttribute('data-focus');
    // Runs before the button's action, which may open another dialog.
    each.addEventListener('click', () => { $('detail').close(); }, { capture: true });
  }
  buttons.push(button('Prune…', image.image, '', () => {
    $('detail').close();
    openPrune(image.image);
  }));
  return buttons;
}

// ---- Prune -----------------------------------------------------------------------------------------------------------

function openPrune(pattern) {
  $('prune').querySelector('form').reset();
  $('prune').querySelector('[name=pattern]').value = pattern;
  forgetReport();
  return modal($('prune'));
}

// A report is valid only for the conditions it was made for.
function forgetReport() {
  $('prune-error').textContent = '';
  $('prune-report').replaceChildren();
  $('prune-go').hidden = true;
}

function pruneParameters(dryRun) {
  const parameters = { dryRun };
  for (const [name, value] of new FormData($('prune').querySelector('form'))) {
    if (value.trim()) parameters[name] = name === 'includePinned' ? true : value.trim();
  }
  return parameters;
}

async function dryRun() {
  forgetReport();
  const parameters = JSON.stringify(pruneParameters(true));
  try {
    const report = await call('POST', '/api/v1/prune', JSON.parse(parameters));
    if (parameters !== JSON.stringify(pruneParameters(true))) return;
    $('prune-report').replaceChildren(...reportNodes(report));
    $('prune-go').textContent = `Remove ${many(report.removed, 'image')}`;
    $('prune-go').hidden = report.removed === 0;
  } catch (error) {
    $('prune-error').textContent = error.message;
  }
}

function reportNodes(report) {
  const { images, removed, freedBytes, keptPinned, keptInUse, blobsShared, blobsYoung } = report;
  const parts = [`${many(removed, 'image')} would be removed, ${size(freedBytes)} freed.`];
  if (keptPinned > 0) parts.push(`${many(keptPinned, 'pinned image')} would be kept.`);
  if (keptInUse > 0) parts.push(`${many(keptInUse, 'image')} in use would be kept.`);
  if (blobsShared > 0) parts.push(`${many(blobsShared, 'blob')} would be kept for other images.`);
  if (blobsYoung > 0) parts.push(`${many(blobsYoung, 'blob')} younger than ten minutes would be removed by the next prune.`);
  const names = images.slice(0, PRUNE_NAMES).map((image) => el('li', {}, image));
  if (removed > names.length) names.push(el('li', { class: 'muted' }, `and ${count(removed - names.length)} more`));
  return [el('p', {}, parts.join(' ')), el('ul', { tabindex: '0', 'aria-label': 'Images that would be removed' }, ...names)];
}

async function pruneNow() {
  const parameters = pruneParameters(false);
  $('prune').close();
  await act(async () => {
    const { removed, freedBytes } = await call('POST', '/api/v1/prune', parameters);
    return `${many(removed, 'image')} removed, ${size(freedBytes)} freed.`;
  });
}

// ---- Upstreams, pins, registries -------------------------------------------------------------------------------------

const readUpstreams = () => read('/api/v1/upstreams', {}, $('upstreams-note'), ({ upstreams }) => {
  setText($('upstreams-note'), upstreams.length > 0 ? '' : 'No registry has been contacted since the start.');
  reconcile($('upstream-list'), upstreams, ({ name }) => name, ({ name, endpoints }) =>
    el('li', {}, el('h3', { class: 'line' }, name, button('Test', name, `test ${name}`, () => openTest(name))), ...endpoints.map(endpointNode)));
});

// The outcome of a step, and the badge for it.
const STEP_BADGES = { ok: 'good', warning: 'warn', failed: 'bad', skipped: '' };

async function openTest(name) {
  const title = `Test of ${name}`;
  $('detail-title').textContent = title;
  $('detail-body').replaceChildren('This takes up to a minute…');
  $('detail-buttons').replaceChildren();
  const closed = modal($('detail'));
  let nodes;
  try {
    const { endpoints } = await call('POST', '/api/v1/check', { target: name });
    nodes = endpoints.flatMap(testNodes);
  } catch (error) {
    nodes = [el('p', { class: 'error' }, error.message)];
  }
  // The dialog was opened for something else in the meantime.
  if ($('detail-title').textContent === title) $('detail-body').replaceChildren(...nodes);
  await closed;
}

function testNodes({ url, steps }) {
  const list = el('dl');
  for (const { name, state: outcome, text, remedy } of steps) {
    const value = el('dd', {}, badge(STEP_BADGES[outcome], outcome), ` ${text}`);
    if (remedy) value.append(el('p', {}, el('strong', {}, remedy)));
    list.append(el('dt', {}, name), value);
  }
  return [el('h3', {}, url), list];
}

const readBucket = () => read('/api/v1/bucket', {}, $('upstreams-note'), ({ bucket }) => {
  $('bucket-box').hidden = bucket === null;
  reconcile($('bucket-state'), bucket === null ? [] : [bucket], ({ url }) => url, bucketNode);
});

function bucketNode({ url, reads, readOnly, probe, queued, running, done, bytesSent, failure }) {
  const lines = [
    readOnly ? 'read-only' : `${many(queued, 'file')} to upload, ${count(running)} under way`,
    readOnly ? null : `${many(done, 'file')} and ${size(bytesSent)} sent since the start`,
    probe === null || probe.error !== null ? null : capabilities(probe),
  ];
  return el('div', {}, el('div', { class: 'line' }, el('span', { class: 'mono' }, url), bucketHealth(reads, failure, probe)),
    el('p', { class: 'muted' }, lines.filter((line) => line !== null).join(' · ')),
    failure === null ? null : el('p', { class: 'muted' }, 'Uploads fail since ', time(failure.since), `: ${failure.text}`),
    reads === null || reads.lastFailure === null ? null : el('p', { class: 'muted' }, `Last failure for a client: ${reads.lastFailure}`));
}

function bucketHealth(reads, failure, probe) {
  if (reads !== null && reads.breaker !== 'closed') return health(reads.breaker, 1);
  if (failure !== null || (probe !== null && probe.error !== null)) return badge('bad', 'uploads fail');
  return badge('good', 'healthy');
}

function capabilities({ writable, createsIfAbsent, verifiesChecksums }) {
  const lacks = [writable ? null : 'is not writable', createsIfAbsent ? null : 'does not support If-None-Match',
    verifiesChecksums ? null : 'does not verify checksums'].filter((text) => text !== null);
  return lacks.length === 0 ? null : lacks.join(', ');
}

const readPeers = () => read('/api/v1/peers', {}, $('upstreams-note'), ({ peers }) => {
  $('peers-box').hidden = peers.length === 0;
  reconcile($('peer-list'), peers, ({ url }) => url, peerNode);
});

function peerNode({ url, isThisProcess, version, failing, differences, lastFailure }) {
  const lines = [version === null ? null : `version ${version}`, differences.length > 0 ? `differs in ${differences.join(', ')}` : null];
  const text = lines.filter((line) => line !== null).join(' · ');
  return el('li', {}, el('div', { class: 'line' }, el('span', { class: 'mono' }, url), peerHealth(isThisProcess, version, failing)),
    text === '' ? null : el('p', { class: 'muted' }, text),
    lastFailure === null ? null : el('p', { class: 'muted' }, `Last failure: ${lastFailure}`));
}

function peerHealth(isThisProcess, version, failing) {
  if (isThisProcess) return badge('', 'this server');
  if (failing > 0) return badge('bad', `not asked for ${many(failing, 'registry', 'registries')}`);
  return version === null ? badge('', 'not asked yet') : badge('good', 'healthy');
}

function endpointNode({ url, breaker, askedAgainInSeconds, failuresInARow, lastFailure, rateLimit }) {
  const lines = [];
  if (askedAgainInSeconds !== null) lines.push(`next attempt in ${duration(askedAgainInSeconds)}`);
  if (failuresInARow > 0) lines.push(`${many(failuresInARow, 'consecutive failure')}`);
  if (rateLimit) lines.push(rateLimitText(rateLimit));
  return el('div', { class: 'endpoint' }, el('div', { class: 'line' }, el('span', { class: 'mono' }, url), health(breaker, failuresInARow)),
    lines.length > 0 ? el('p', { class: 'muted' }, lines.join(' · ')) : null,
    lastFailure === null ? null : el('p', { class: 'muted' }, `Last failure: ${lastFailure}`));
}

function health(breaker, failuresInARow) {
  switch (breaker) {
    case 'closed': return failuresInARow > 0 ? badge('warn', 'failing') : badge('good', 'healthy');
    case 'open': return badge('bad', 'paused: breaker open');
    case 'half-open': return badge('warn', 'retrying: breaker half-open');
    default: return badge('', breaker);
  }
}

function rateLimitText({ limit, remaining, windowSeconds }) {
  const of = limit === null ? '' : ` of ${count(limit)}`;
  const left = remaining === null ? `rate limit${of}` : `${count(remaining)}${of} pulls left`;
  return windowSeconds === null ? left : `${left} in ${duration(windowSeconds)}`;
}

const SOURCES = { configuration: 'in the configuration', list: 'in a pin list', cache: 'in the cache directory' };

const readPins = () => read('/api/v1/pins', {}, $('pins-note'), ({ pins, problem }) => {
  state.pins = pins;
  const none = pins.length > 0 ? 'Never evicted:' : 'Nothing is pinned.';
  setText($('pins-note'), problem === null ? none : `Pins cannot be read, so nothing is evicted: ${problem}`);
  $('pins-note').classList.toggle('error', problem !== null);
  reconcile($('pin-list'), pins, ({ pattern, source }) => `${source} ${pattern}`, pinItem);
});

function pinItem({ pattern, source }) {
  const what = el('span', {}, el('span', { class: 'mono' }, pattern), ' ', el('span', { class: 'muted' }, SOURCES[source] ?? source));
  return el('li', { class: 'line' }, what, source === 'cache' ? button('Remove', pattern, `unpin ${pattern}`, () => unpin(pattern)) : null);
}

const pin = (pattern) => act(async () => {
  const kept = await call('POST', '/api/v1/pins', { pattern });
  return kept.changed ? `${kept.pattern} is pinned.` : `${kept.pattern} was already pinned.`;
});

const unpin = (pattern) => act(async () => `${(await call('DELETE', '/api/v1/pins', { pattern })).pattern} is no longer pinned.`);

function showRegistries(usage) {
  if (!usage) return;
  $('registries-note').replaceChildren('As of ', time(usage.asOf), `: ${many(usage.repositories, 'repository', 'repositories')}, ` +
    `${many(usage.blobs, 'blob')} (${size(usage.blobBytes)}), ${many(usage.manifests, 'manifest')} (${size(usage.manifestBytes)})`);
  reconcile($('registry-rows'), usage.registries, ({ name }) => name, (registry) => row(['', registry.name],
    ['Images', count(registry.images), 'number'], ['Repositories', count(registry.repositories), 'number'],
    ['Bytes', size(registry.bytes), 'number'], ['Last pulled', time(registry.pulled)]));
  showRegistryChoice(usage.registries.map(({ name }) => name));
}

function showRegistryChoice(names) {
  const select = $('filter').elements.registry, chosen = select.value;
  if (select.dataset.names === names.join()) return;
  select.dataset.names = names.join();
  select.replaceChildren(el('option', { value: '' }, 'all'), ...names.map((name) => el('option', { value: name }, name)));
  select.value = names.includes(chosen) ? chosen : '';
}

// ---- Polling ---------------------------------------------------------------------------------------------------------

const refreshFast = () => Promise.all([readStatus(), readFlights()]);
// Pins first: they determine which images have a removable pin.
const refreshSlow = () => Promise.all([readUpstreams(), readBucket(), readPeers(), readHistory(), readPins().then(readImages)]);
const refreshAll = () => Promise.all([refreshFast(), refreshSlow()]);

// Runs one task at a time, only while the page is visible, and at once when it becomes visible again.
function repeat(period, task) {
  let timer = 0, isRunning = false;
  const run = async () => {
    clearTimeout(timer);
    if (document.hidden || isRunning) return;
    isRunning = true;
    try {
      await task();
    } finally {
      isRunning = false;
      timer = setTimeout(run, period);
    }
  };
  document.addEventListener('visibilitychange', run);
  run();
}

// ---- User actions ----------------------------------------------------------------------------------------------------

// The browser must not submit forms, because it would put their content into the address.
function onSubmit(form, action) {
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    action(form);
  });
}

function listenToImages() {
  let pause = 0;
  onSubmit($('filter'), () => toPage(0));
  $('filter').addEventListener('input', () => {
    clearTimeout(pause);
    pause = setTimeout(() => toPage(0), TYPING_PAUSE);
  });
  $('previous').addEventListener('click', () => toPage(Math.max(0, state.offset - PAGE_IMAGES)));
  $('next').addEventListener('click', () => toPage(Number($('next').value)));
}

function listenToDialogs() {
  for (const close of document.querySelectorAll('[data-close]')) {
    close.addEventListener('click', () => close.closest('dialog').close(''));
  }
  for (const id of ['token', 'confirm']) onSubmit($(id).querySelector('form'), () => $(id).close('yes'));
  onSubmit($('prune').querySelector('form'), dryRun);
  $('prune').addEventListener('input', forgetReport);
  $('prune-open').addEventListener('click', () => openPrune(''));
  $('prune-go').addEventListener('click', pruneNow);
}

function listenToTheRest() {
  $('resume').addEventListener('click', resumeAll);
  onSubmit($('pin-form'), async (form) => {
    const { pattern } = form.elements;
    if (await pin(pattern.value.trim())) pattern.value = '';
  });
  $('unlock').addEventListener('click', () => {
    lock(false);
    refreshAll();
  });
}

function start() {
  for (const node of [$('main'), document.querySelector('nav')]) node.hidden = false;
  for (const table of document.querySelectorAll('table')) table.setAttribute('role', 'table');
  for (const group of document.querySelectorAll('thead, tbody')) group.setAttribute('role', 'rowgroup');
  for (const head of document.querySelectorAll('thead tr')) head.setAttribute('role', 'row');
  for (const head of document.querySelectorAll('th')) head.setAttribute('role', 'columnheader');
  listenToImages();
  listenToDialogs();
  listenToTheRest();
  repeat(FAST_POLL, refreshFast);
  repeat(SLOW_POLL, refreshSlow);
}

start();
