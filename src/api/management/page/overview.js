// The state in the header, the tiles, and the history.

import { $, badge, el, row, setText, svg } from './document.js';
import { clock, count, duration, many, moment, percent, refreshTimes, setServerTime, size, time, when } from './format.js';
import { read } from './server.js';
import { showRegistries } from './setup.js';

const MINUTE = 60_000;
const SPANS = {
  hour: { name: 'hour', begin: '1 h ago', length: 60 * MINUTE, step: MINUTE },
  day: { name: 'day', begin: '1 d ago', length: 1440 * MINUTE, step: 15 * MINUTE },
  week: { name: 'week', begin: '7 d ago', length: 7 * 1440 * MINUTE, step: 60 * MINUTE },
};
// The sections that problems link to.
const SECTIONS = { upstreams: 'upstreams', bucket: 'upstreams', peers: 'upstreams', images: 'images', disk: 'overview', pins: 'pins',
  configuration: 'configuration', server: 'log' };

let span = SPANS.day;
let lastState = null;

// ---- The state -------------------------------------------------------------------------------------------------------

export const readStatus = (show) => read('/api/v1/status', {}, $('refused'), (status) => {
  $('refused').hidden = true;
  setServerTime(status.now);
  setText($('version'), `version ${status.version}`);
  lastState = status;
  showState(status);
  showBadges(status);
  showTiles(status);
  showCounts(status);
  showRegistries(status.usage);
  refreshTimes();
  show(status);
});

// Built again only if it changes, because it is a live region.
function showStateLine(level, texts, parts) {
  const text = texts.join(' · '), node = $('state');
  if (node.dataset.text === text) return;
  Object.assign(node.dataset, { text, level });
  node.replaceChildren(...parts);
  document.title = level === 'ok' ? 'Larder' : `${text} – Larder`;
}

function showState({ state: { level, problems }, usage, disk }) {
  // Not in the live region, because these numbers change.
  setText($('state-note'), [usage ? many(usage.images, 'image') : null,
    problems.some(({ kind }) => kind === 'disk') ? null : diskText(disk)].filter((part) => part !== null).join(' · '));
  if (problems.length === 0) {
    showStateLine(level, ['No problems'], ['No problems']);
    return;
  }
  const texts = problems.map(({ text, since }) => (since === null ? text : `${text} since ${when(Date.parse(since))}`));
  showStateLine(level, texts, problems.map(({ kind, text, since }, index) => el('span', {}, index > 0 ? ' · ' : '',
    el('a', { href: `#${SECTIONS[kind] ?? 'overview'}` }, text), ...(since === null ? [] : [' since ', moment(since)]))));
}

function diskText({ sizeBytes, freeBytes }) {
  return sizeBytes ? `disk ${Math.ceil((100 * (sizeBytes - freeBytes)) / sizeBytes)}\u00a0%` : null;
}

// `text` says since when the server has not responded; null when it responds again.
export function showSilence(text) {
  if (text !== null) showStateLine('silent', [text], [text]);
  else if (lastState) showState(lastState);
}

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

// ---- Tiles -----------------------------------------------------------------------------------------------------------

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

const SOURCES = { disk: 'disk', peer: 'peers', parent: 'parents', bucket: 'bucket', registry: 'registries' };

// What was served and not received came from the disk.
function showSources({ bytesServed, bytesReceived }) {
  const received = Object.values(bytesReceived).reduce((sum, bytes) => sum + bytes, 0);
  const from = { disk: Math.max(0, bytesServed - received), ...bytesReceived };
  const total = Object.values(from).reduce((sum, bytes) => sum + bytes, 0);
  $('sources').hidden = total === 0;
  const parts = Object.keys(SOURCES).filter((source) => from[source] > 0);
  const texts = parts.map((source) => `${SOURCES[source]} ${size(from[source])}`);
  if (total === 0 || $('sources-bar').dataset.texts === texts.join()) return;
  $('sources-bar').dataset.texts = texts.join();
  let x = 0;
  const bars = parts.map((source) => {
    const width = (1000 * from[source]) / total, bar = svg('rect', { class: `source-${source}`, x, y: 0, width, height: 10 });
    x += width;
    return bar;
  });
  const label = `Bytes by source: ${texts.join(', ')}`;
  $('sources-bar').replaceChildren(svg('svg', { viewBox: '0 0 1000 10', preserveAspectRatio: 'none', role: 'img', 'aria-label': label }, ...bars));
  $('sources-keys').replaceChildren(...parts.map((source, index) =>
    el('li', {}, el('span', { class: `key key-${source}` }, texts[index]), ` (${percent(from[source], total)})`)));
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

export function listenToHistory() {
  for (const input of document.querySelectorAll('#span input')) {
    input.checked = input.value === span.name;
    input.addEventListener('change', () => {
      span = SPANS[input.value];
      readHistory();
    });
  }
}

export function readHistory() {
  const asked = span;
  return read('/api/v1/history', { span: asked.name }, $('refused'), ({ history }) => {
    // Ignores answers for a span that was selected before.
    if (asked === span) showHistory(history);
  });
}

let drawn = null;
function showHistory(history) {
  const end = Math.ceil(Date.now() / span.step) * span.step, begin = end - span.length;
  const memo = `${span.name} ${end} ${JSON.stringify(history.at(-1))}`;
  if (memo === drawn) return;
  drawn = memo;
  const steps = Array.from({ length: span.length / span.step }, (_, index) => ({ end: begin + (index + 1) * span.step, ...noTraffic() }));
  for (const step of history) {
    // The time of a step is its end.
    const index = Math.ceil((Date.parse(step.time) - begin) / span.step) - 1;
    if (steps[index]) add(steps[index], step);
  }
  const summary = historySummary(steps.reduce(add, noTraffic()));
  setText($('history-summary'), summary);
  drawBytes(steps, summary);
  drawHits(steps, summary);
  showRows(steps);
}

const noTraffic = () => ({ hits: 0, misses: 0, bytesServed: 0, bytesFetched: 0 });
function add(sum, step) {
  for (const key of ['hits', 'misses', 'bytesServed', 'bytesFetched']) sum[key] += step[key];
  return sum;
}

function historySummary({ hits, misses, bytesServed, bytesFetched }) {
  const answers = hits + misses;
  if (answers + bytesServed + bytesFetched === 0) return `In the last ${span.name}: no traffic.`;
  return `In the last ${span.name}: ${many(answers, 'answer')}, ${percent(hits, answers)} without a download; ` +
    `${size(bytesServed)} served, ${size(bytesFetched)} fetched.`;
}

// Labels are outside of the picture, because it is stretched to the width.
function draw(id, steps, summary, top, shapes) {
  const picture = svg('svg', { viewBox: `0 0 ${steps.length} 100`, preserveAspectRatio: 'none', role: 'img', 'aria-label': summary });
  for (const y of [0.5, 50]) picture.append(svg('line', { class: 'grid', x1: 0, x2: steps.length, y1: y, y2: y }));
  picture.append(...shapes);
  const axis = el('p', { class: 'axis', 'aria-hidden': 'true' }, el('span', {}, span.begin), el('span', {}, 'now'));
  $(id).replaceChildren(el('p', { class: 'axis' }, top), picture, axis);
}

const stepTitle = ({ end }) => `${when(end - span.step)} to ${clock(end)}`;

function drawBytes(steps, summary) {
  const most = Math.max(...steps.map((step) => Math.max(step.bytesServed, step.bytesFetched)), 1);
  const bar = (kind, bytes, index) => {
    // A small value next to a large one stays visible.
    const height = bytes === 0 ? 0 : Math.max(1.5, (97 * bytes) / most);
    const title = `${stepTitle(steps[index])}: ${size(steps[index].bytesServed)} served, ${size(steps[index].bytesFetched)} fetched`;
    return svg('rect', { class: kind, x: index + 0.1, width: 0.8, y: 100 - height, height }, svg('title', {}, title));
  };
  // The lower bar is drawn in front.
  const shapes = steps.flatMap(({ bytesServed, bytesFetched }, index) => {
    const bars = [bar('served', bytesServed, index), bar('fetched', bytesFetched, index)];
    return bytesServed > bytesFetched ? bars : bars.reverse();
  });
  draw('chart-bytes', steps, summary, most > 1 ? `${size(most)} in ${duration(span.step / 1000)}` : 'none', shapes);
}

function drawHits(steps, summary) {
  let line = '', dots = '', isDown = false;
  const isKnown = (step) => step !== undefined && step.hits + step.misses > 0;
  steps.forEach((step, index) => {
    const { hits, misses } = step;
    const point = `${index + 0.5} ${(98 - (96 * hits) / (hits + misses)).toFixed(2)}`;
    if (isKnown(step)) line += isDown ? `L${point}` : `M${point}h.01`;
    // A step without neighbours has no line, so it gets a dot.
    if (isKnown(step) && !isKnown(steps[index - 1]) && !isKnown(steps[index + 1])) dots += `M${point}h.01`;
    isDown = isKnown(step);
  });
  const paths = [svg('path', { class: 'rate', d: line || 'M0 0' }), svg('path', { class: 'rate dot', d: dots || 'M0 0' })];
  draw('chart-hits', steps, summary, '100\u00a0%', isKnown({ ...noTraffic(), ...steps.reduce(add, noTraffic()) }) ? paths : []);
}

function showRows(steps) {
  const busy = steps.filter(({ hits, misses, bytesServed, bytesFetched }) => hits + misses + bytesServed + bytesFetched > 0);
  $('history-rows').replaceChildren(...busy.reverse().map((step) => row(['', stepTitle(step)], ['Answers', count(step.hits + step.misses)],
    ['Hit rate', percent(step.hits, step.hits + step.misses)], ['Served', size(step.bytesServed)], ['Fetched', size(step.bytesFetched)])));
}
