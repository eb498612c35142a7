// The list of images, the details of one, and what can be done with them.

import { $, badge, button, el, mono, muted, onSubmit, reconcile, row, setText, terms } from './document.js';
import { fetching } from './downloads.js';
import { count, many, moment, shortDigest, size, time } from './format.js';
import { Refused, act, call, confirmed, copy, modal, read } from './server.js';
import { hostsToml, pullCommand } from './setup.js';
import { isDown } from './upstreams.js';

// Searches are sent after a pause in typing.
const TYPING_PAUSE = 300;
const PAGE_IMAGES = 50;
const PLATFORMS_IN_ROW = 3;
const PRUNE_NAMES = 200;
const ADDED_SHOWN = 5;

let offset = 0;
let asked = 0;
let pins = [];
let isOffline = false;

export function setOffline(offline) {
  isOffline = offline;
}

// ---- The list --------------------------------------------------------------------------------------------------------

// A plain word matches anywhere in the name; globs and regular expressions are used as they are.
function patternOf(text) {
  return /[*?]/.test(text) || /^\/.+\/$/.test(text) ? text : `*${text}*`;
}

function imageParameters() {
  const parameters = { limit: PAGE_IMAGES, offset };
  for (const [name, value] of new FormData($('filter'))) if (value.trim()) parameters[name] = value.trim();
  if (parameters.pattern) parameters.pattern = patternOf(parameters.pattern);
  return parameters;
}

export function readImages() {
  asked += 1;
  const own = asked;
  return read('/api/v1/images', imageParameters(), $('images-note'), (page) => {
    // Ignores answers to earlier queries.
    if (own === asked) showImages(page);
  });
}

function showImages({ asOf, total, next, images }) {
  if (images.length === 0 && total > 0 && offset > 0) {
    toPage(0);
    return;
  }
  const range = total > images.length ? `${count(offset + 1)} to ${count(offset + images.length)} of ` : '';
  const none = new FormData($('filter')).get('pattern') ? 'No matching images.' : 'No images.';
  setText($('images-note'), total === 0 ? none : `${range}${many(total, 'image')}`);
  $('images-age').replaceChildren(...(asOf ? ['as of ', time(asOf)] : []));
  $('previous').disabled = offset === 0;
  $('next').disabled = next === null;
  $('next').value = next ?? '';
  $('previous').parentNode.hidden = offset === 0 && next === null;
  // The row also depends on whether the pin can be removed, and whether the registry can be asked.
  const rows = images.map((image) => ({ ...image, isRemovablePin: isRemovablePin(image.image), isStale: isStale(image) }));
  reconcile($('image-rows'), rows, ({ image }) => image, imageRow);
}

// A tag that is due for a check is checked by the next pull. That matters only while the registry cannot be asked.
const isStale = ({ image, stale }) => stale && (isOffline || isDown(image.split('/')[0]));
const isRemovablePin = (image) => pins.some(({ pattern, source }) => source === 'cache' && pattern === image);

function imageRow(image) {
  const open = el('button', { type: 'button', class: 'link', 'data-focus': `image ${image.image}` }, image.image);
  open.addEventListener('click', () => openDetail(image.image));
  const { sinceStart, lastClient, lastAgent } = image.pulls;
  const client = lastClient === null ? null : el('span', { class: 'muted small-text', title: lastAgent ?? '' }, ` by ${lastClient}`);
  return row(['', open, 'name'], ['Size', size(image.sizeBytes), 'number'], ['State', stateBadges(image), 'words'],
    ['Platforms', platforms(image), 'words'], ['Pulls', count(sinceStart), 'number'],
    ['Last pulled', el('span', {}, time(image.pulled), ...(client === null ? [] : [client])), 'words'],
    ['', el('span', { class: 'do' }, ...imageButtons(image))]);
}

function stateBadges({ complete, missingBytes, pinned, isStale: cannotBeChecked, checked, goneUpstream, held }) {
  const node = el('span', { class: 'state' }, complete ? badge('good', 'complete') : badge('warn', 'partial'));
  if (pinned) node.append(badge('', 'pinned'));
  if (cannotBeChecked) node.append(badge('warn', 'not checked'), checked === null ? '' : muted('since ', moment(checked)));
  if (held) node.append(badge('warn', 'moved upstream, held'));
  if (goneUpstream) node.append(badge('warn', 'gone upstream'));
  if (missingBytes > 0) node.append(muted(`${size(missingBytes)} ${complete ? 'of other platforms ' : ''}missing`));
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

const prefetch = (image) => act(async () => `${(await call('POST', '/api/v1/prefetch', { image })).image} is queued.`);

let pause = 0;
function toPage(first) {
  // What was typed is used now.
  clearTimeout(pause);
  offset = first;
  return readImages();
}

export function showRegistryChoice(names) {
  const select = $('filter').elements.registry, chosen = select.value;
  if (select.dataset.names === names.join()) return;
  select.dataset.names = names.join();
  select.replaceChildren(el('option', { value: '' }, 'all'), ...names.map((name) => el('option', { value: name }, name)));
  select.value = names.includes(chosen) ? chosen : '';
}

// ---- Sorting ---------------------------------------------------------------------------------------------------------

const firstOrder = (sort) => (sort === 'name' ? 'ascending' : 'descending');

function showOrder() {
  const { sort, order } = $('filter').elements;
  for (const button of document.querySelectorAll('[data-sort]')) {
    const head = button.closest('th');
    if (button.dataset.sort === sort.value) head.setAttribute('aria-sort', order.value || firstOrder(sort.value));
    else head.removeAttribute('aria-sort');
  }
}

// The second click on a column reverses its order.
function sortBy(column) {
  const { sort, order } = $('filter').elements;
  const before = sort.value === column ? order.value || firstOrder(column) : null;
  sort.value = column;
  order.value = before === null ? firstOrder(column) : before === 'ascending' ? 'descending' : 'ascending';
  showOrder();
  toPage(0);
}

// ---- Adding ----------------------------------------------------------------------------------------------------------

// What became of the images that were found: whether they are complete.
const added = new Map();

export const readPrefetches = () => read('/api/v1/prefetches', {}, $('add-note'), async ({ prefetches }) => {
  const shown = prefetches.slice(0, ADDED_SHOWN);
  for (const { image, state, since } of shown) {
    if (state === 'found' && added.get(image)?.since !== since) await checkAdded(image, since);
  }
  $('add-note').hidden = true;
  $('added').hidden = shown.length === 0;
  reconcile($('added'), shown.map((pull) => ({ ...pull, done: added.get(pull.image)?.done ?? null })), ({ image }) => image, addedItem);
});

async function checkAdded(image, since) {
  try {
    const { complete, sizeBytes } = await call('GET', '/api/v1/image', { image });
    const isFetching = [...fetching].some((repository) => image.startsWith(repository));
    if (complete || !isFetching) added.set(image, { since, done: complete ? size(sizeBytes) : 'partial' });
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
  }
}

function addedItem({ image, state, since, reason, done }) {
  const [kind, text] = state === 'failed' ? ['bad', 'failed'] : state !== 'found' ? ['', state]
    : done === null ? ['', 'downloading'] : done === 'partial' ? ['warn', 'partial'] : ['good', 'complete'];
  const detail = state === 'failed' ? reason : done !== null && done !== 'partial' ? done : '';
  return el('li', { class: 'line' }, el('span', {}, mono(image), ' ', badge(kind, text), ' ', muted(detail ?? '')), muted(time(since)));
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
    const all = { ...found, isRemovablePin: isRemovablePin(image), isStale: isStale(found) };
    $('detail-body').replaceChildren(copies(found), facts(all), ...found.tree.map(manifest));
    $('detail-buttons').replaceChildren(...detailButtons(all));
  } catch (error) {
    $('detail-body').replaceChildren(el('p', { class: 'error' }, error.message));
  }
}

function copies({ image, digest }) {
  const command = pullCommand(image), toml = hostsToml(image);
  return el('p', { class: 'do' },
    button('Copy digest', 'of the image', '', () => copy(digest, 'the digest')),
    command === null ? null : button('Copy pull command', 'for Docker', '', () => copy(command, command)),
    toml === null ? null : button('Copy hosts.toml', 'for containerd', '', () => copy(toml, 'hosts.toml')));
}

function facts(image) {
  const { sinceStart, lastClient, lastAgent } = image.pulls;
  return terms(['State', stateBadges(image)],
    ['Size', `${size(image.sizeBytes)} in ${many(image.manifests, 'manifest')} and ${many(image.blobs, 'blob')}`],
    ['Platforms', image.platforms.join(', ') || '–'],
    ['Digest', mono(image.digest)],
    ['Type', mono(image.mediaType)],
    ['Created', time(image.created, 'unknown')],
    ['Fetched', time(image.fetched, 'unknown')],
    ['Checked', time(image.checked)],
    ['Last pulled', time(image.pulled), ...(lastClient === null ? [] : [` by ${lastClient}`, ...(lastAgent === null ? [] : [` (${lastAgent})`])])],
    ['Pulls', `${count(sinceStart)} since the start`],
    image.goneUpstream ? ['Gone upstream', time(image.goneUpstream)] : null,
    image.held ? ['Moved upstream', mono(image.held), ' ', time(image.heldSince), ', and not accepted yet'] : null,
    ...(image.previous ?? []).map(({ digest, fetched }, index) => [index === 0 ? 'Before' : '', mono(digest), ' fetched ', time(fetched)]));
}

// A manifest with its config and its layers. An index has neither.
function manifest({ digest, sizeBytes, platform, present, details, blobs }) {
  const name = platform ?? (blobs.length > 0 ? 'manifest' : 'index');
  const total = blobs.reduce((sum, blob) => sum + blob.sizeBytes, sizeBytes);
  const head = el('h3', { class: 'line' }, el('span', {}, `${name} `, el('span', { class: 'mono muted', title: digest }, shortDigest(digest))),
    el('span', {}, `${size(total)} `, presence(present)));
  const part = (role) => blobs.filter((blob) => blob.role === role);
  return el('section', { class: 'manifest tree' }, head, ...part('config').map((config) => configNode(config, details)),
    part('layer').length === 0 ? null : el('details', part('layer').length <= 12 ? { open: '' } : {},
      el('summary', {}, `${many(part('layer').length, 'layer')}, ${size(part('layer').reduce((sum, blob) => sum + blob.sizeBytes, 0))}`),
      el('ol', {}, ...part('layer').map((layer) => el('li', {}, ...blobNodes(layer))))));
}

const presence = (present) => (present ? badge('good', 'cached') : badge('warn', 'missing'));
const blobNodes = ({ digest, sizeBytes, present }) => [el('span', { class: 'mono', title: digest }, shortDigest(digest)), ` ${size(sizeBytes)} `, presence(present)];

function configNode(config, details) {
  const head = el('p', {}, 'Config ', ...blobNodes(config));
  if (details === null) return head;
  const words = (list) => mono(list.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : JSON.stringify(word))).join(' '));
  const { created, entrypoint, command, user, workingDirectory, ports, labels } = details;
  return el('div', {}, head, terms(['Created', time(created, 'unknown')],
    entrypoint.length > 0 ? ['Entrypoint', words(entrypoint)] : null,
    command.length > 0 ? ['Command', words(command)] : null,
    user === null ? null : ['User', mono(user)],
    workingDirectory === null ? null : ['Directory', mono(workingDirectory)],
    ports.length > 0 ? ['Ports', mono(ports.join(', '))] : null),
  labels.length === 0 ? null : el('details', {}, el('summary', {}, many(labels.length, 'label')),
    terms(...labels.map(({ name, value }) => [mono(name), value]))));
}

function detailButtons(image) {
  const buttons = [...heldButtons(image), ...imageButtons(image)];
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

// What is decided is what is shown: the tag may move again meanwhile.
function heldButtons({ image, held: digest }) {
  if (!digest) return [];
  const decide = (what, text) => act(async () => {
    await call('POST', `/api/v1/tags/${what}`, { image, digest });
    return text;
  });
  const accept = async () => {
    const text = `The next pull of ${image} gets ${digest}, if the registry still has it.`;
    if (await confirmed(`Accept the move of ${image}?`, text, 'Accept')) await decide('accept', `The move of ${image} is accepted.`);
  };
  return [button('Accept move…', image, '', accept), button('Reject move', image, '', () => decide('reject', `The move of ${image} is rejected.`))];
}

// ---- Prune -----------------------------------------------------------------------------------------------------------

function openPrune(pattern) {
  const form = $('prune').querySelector('form');
  form.reset();
  form.elements.pattern.value = pattern;
  forgetReport();
  return modal($('prune'));
}

function forgetReport() {
  $('prune-error').textContent = '';
  $('prune-report').replaceChildren();
  $('prune-go').hidden = true;
}

function pruneParameters(isDryRun) {
  const { pattern, unusedFor, createdBefore, count: most, includePinned } = $('prune').querySelector('form').elements;
  const parameters = { dryRun: isDryRun };
  for (const field of [pattern, unusedFor, createdBefore, most]) if (field.value.trim()) parameters[field.name] = field.value.trim();
  if (parameters.pattern) parameters.pattern = patternOf(parameters.pattern);
  if (includePinned.checked) parameters.includePinned = true;
  return parameters;
}

let previewed = null;
async function dryRun() {
  forgetReport();
  $('prune-report').replaceChildren('…');
  const parameters = pruneParameters(true), text = JSON.stringify(parameters);
  try {
    const report = await call('POST', '/api/v1/prune', parameters);
    // The conditions were changed in the meantime.
    if (text !== JSON.stringify(pruneParameters(true))) return;
    previewed = report;
    $('prune-report').replaceChildren(...reportNodes(report));
    $('prune-go').textContent = `Remove ${many(report.removed, 'image')}…`;
    $('prune-go').hidden = report.removed === 0;
  } catch (error) {
    $('prune-report').replaceChildren();
    $('prune-error').textContent = error.message;
  }
}

function reportNodes({ images, removed, freedBytes, keptPinned, keptInUse, blobsShared, blobsYoung }) {
  const parts = [`${many(removed, 'image')} would be removed, ${size(freedBytes)} freed.`];
  if (keptPinned > 0) parts.push(`${many(keptPinned, 'pinned image')} would be kept.`);
  if (keptInUse > 0) parts.push(`${many(keptInUse, 'image')} in use would be kept.`);
  if (blobsShared > 0) parts.push(`${many(blobsShared, 'blob')} would be kept for other images.`);
  if (blobsYoung > 0) parts.push(`${many(blobsYoung, 'blob')} younger than ten minutes would be removed by the next prune.`);
  const names = images.slice(0, PRUNE_NAMES).map((image) => el('li', {}, image));
  if (removed > names.length) names.push(el('li', { class: 'muted' }, `and ${count(removed - names.length)} more`));
  const list = names.length === 0 ? null : el('ul', { tabindex: '0', 'aria-label': 'Images that would be removed' }, ...names);
  return [el('p', {}, parts.join(' ')), ...(list === null ? [] : [list])];
}

// What is removed has to be fetched again, so this asks once more.
async function pruneNow() {
  const parameters = pruneParameters(false), what = many(previewed.removed, 'image');
  const text = `${size(previewed.freedBytes)} are freed. Whoever pulls these images again downloads them again.`;
  if (!(await confirmed(`Remove ${what}?`, text, `Remove ${what}`))) return;
  $('prune').close();
  await act(async () => {
    const { removed, freedBytes } = await call('POST', '/api/v1/prune', parameters);
    return `${many(removed, 'image')} removed, ${size(freedBytes)} freed.`;
  });
}

// ---- Pins ------------------------------------------------------------------------------------------------------------

const SOURCES = { configuration: 'in the configuration', list: 'in a pin list', cache: 'in the cache directory', sync: 'kept present by sync' };

export const readPins = () => read('/api/v1/pins', {}, $('pins-note'), ({ pins: all, problem }) => {
  pins = all;
  const none = pins.length > 0 ? 'Never evicted:' : 'Nothing is pinned.';
  setText($('pins-note'), problem === null ? none : `Pins cannot be read, so nothing is evicted: ${problem}`);
  $('pins-note').classList.toggle('error', problem !== null);
  reconcile($('pin-list'), pins, ({ pattern, source }) => `${source} ${pattern}`, pinItem);
});

function pinItem({ pattern, source }) {
  const what = el('span', {}, mono(pattern), ' ', muted(SOURCES[source] ?? source));
  return el('li', { class: 'line' }, what, source === 'cache' ? button('Remove', pattern, `unpin ${pattern}`, () => unpin(pattern)) : null);
}

const pin = (pattern) => act(async () => {
  const kept = await call('POST', '/api/v1/pins', { pattern });
  return kept.changed ? `${kept.pattern} is pinned.` : `${kept.pattern} was already pinned.`;
});

const unpin = (pattern) => act(async () => `${(await call('DELETE', '/api/v1/pins', { pattern })).pattern} is no longer pinned.`);

export function listenToImages() {
  onSubmit($('filter'), () => toPage(0));
  $('filter').addEventListener('input', (event) => {
    if (event.target.name === 'sort') $('filter').elements.order.value = '';
    showOrder();
    clearTimeout(pause);
    pause = setTimeout(() => toPage(0), TYPING_PAUSE);
  });
  for (const button of document.querySelectorAll('[data-sort]')) button.addEventListener('click', () => sortBy(button.dataset.sort));
  showOrder();
  $('previous').addEventListener('click', () => toPage(Math.max(0, offset - PAGE_IMAGES)));
  $('next').addEventListener('click', () => toPage(Number($('next').value)));
  onSubmit($('add-form'), async (form) => {
    const { image } = form.elements;
    if (await prefetch(image.value.trim())) image.value = '';
  });
  onSubmit($('pin-form'), async (form) => {
    const { pattern } = form.elements;
    if (await pin(pattern.value.trim())) pattern.value = '';
  });
  onSubmit($('prune').querySelector('form'), dryRun);
  $('prune').addEventListener('input', forgetReport);
  $('prune-open').addEventListener('click', () => openPrune(''));
  $('prune-go').addEventListener('click', pruneNow);
}
