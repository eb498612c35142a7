// What has happened, and the images that are kept present.

import { $, badge, button, el, mono, muted, reconcile, setText } from './document.js';
import { count, many, moment, shortDigest, time } from './format.js';
import { act, call, read } from './server.js';

const SHORT = 12;
const MISSING_SHOWN = 5;
let isLong = false, events = [];

// ---- Events ----------------------------------------------------------------------------------------------------------

const TYPES = {
  'tag-moved': ['', 'tag moved'], 'tag-held': ['warn', 'move held'], 'image-complete': ['good', 'complete'],
  'image-evicted': ['', 'evicted'], damaged: ['bad', 'damaged'], 'registry-down': ['bad', 'registry down'],
  'registry-up': ['good', 'registry up'], 'sync-failed': ['warn', 'sync failed'],
};

export const readEvents = () => read('/api/v1/events', {}, $('events-note'), (answer) => {
  events = answer.events;
  showEvents();
});

function showEvents() {
  setText($('events-note'), events.length === 0 ? 'Nothing since the start.' : `${many(events.length, 'event')}, newest first.`);
  reconcile($('event-list'), isLong ? events : events.slice(0, SHORT), ({ number }) => number, eventItem);
  const more = $('events-more'), label = isLong ? 'Show fewer' : `Show all ${count(events.length)}`;
  more.hidden = events.length <= SHORT;
  if (more.dataset.label === label) return;
  more.dataset.label = label;
  more.replaceChildren(button(label, 'events', 'more events', () => {
    isLong = !isLong;
    showEvents();
    more.querySelector('button').focus();
  }));
}

function eventItem({ time: at, type, subject, details }) {
  const [kind, label] = TYPES[type] ?? ['', 'event'];
  const { from, to, ...others } = details;
  const move = from && to ? [' ', el('span', { class: 'mono muted', title: `${from} → ${to}` }, `${shortDigest(from)} → ${shortDigest(to)}`)] : [];
  const rest = Object.entries(others).map(([name, value]) => `${name}: ${name === 'digest' ? shortDigest(value) : value}`).join(', ');
  return el('li', {}, moment(at), ' ', badge(kind, label), ' ', mono(subject), ...move, rest === '' ? null : muted(` ${rest}`));
}

// ---- Images that are kept present ------------------------------------------------------------------------------------

const STATES = { idle: ['', 'idle'], queued: ['', 'queued'], running: ['', 'running'], retrying: ['warn', 'retrying'] };

export const readSync = () => read('/api/v1/sync', {}, $('sync-note'), ({ suspended, entries }) => {
  $('sync').hidden = entries.length === 0;
  document.querySelector('nav a[href="#sync"]').hidden = entries.length === 0;
  setText($('sync-note'), suspended === null ? '' : `Nothing is loaded: ${suspended}.`);
  reconcile($('sync-list'), entries, ({ name }) => name, syncItem);
});

function syncItem({ name, state, done, total, images, missingImages, missing, unconfirmedImages, next, succeeded }) {
  const isRunning = state === 'running';
  const [kind, label] = STATES[state] ?? ['', 'unknown'];
  const result = missingImages > 0 ? badge('bad', `${count(missingImages)} missing`) : images > 0 ? badge('good', 'present') : null;
  const head = el('p', { class: 'line' }, el('span', {}, el('strong', {}, name), ' ', ...(result === null ? [] : [result, ' ']), badge(kind, label)),
    isRunning ? null : button('Sync now', name, `sync ${name}`, () => syncNow(name)));
  const parts = [`${many(images, 'image')} present`];
  if (isRunning && total > 0) parts.push(`${count(done)} of ${count(total)} loaded in this run`);
  if (unconfirmedImages > 0) parts.push(`${count(unconfirmedImages)} not confirmed by the registry`);
  const when = el('p', { class: 'muted' }, `${parts.join(', ')}. Last complete `, time(succeeded), next === null ? '.' : ', next run ', ...(next === null ? [] : [moment(next), '.']));
  const failures = missing.slice(0, MISSING_SHOWN).map(({ image, reason }) => el('li', {}, mono(image), muted(` ${reason}`)));
  if (missingImages > failures.length) failures.push(el('li', { class: 'muted' }, `and ${count(missingImages - failures.length)} more`));
  return el('li', {}, head, when, failures.length === 0 ? null : el('ul', {}, ...failures));
}

const syncNow = (name) => act(async () => {
  await call('POST', '/api/v1/sync', { name });
  return `${name} is loaded as soon as possible.`;
});
