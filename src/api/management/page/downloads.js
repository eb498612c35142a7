// Running and interrupted downloads.

import { $, button, el, muted, reconcile, setText } from './document.js';
import { many, shortDigest, size, time } from './format.js';
import { act, call, confirmed, read } from './server.js';

const rates = new Map();
const flightKey = ({ upstream, digest }) => `${upstream} ${digest}`;

// The repositories with running downloads.
export const fetching = new Set();

export const readFlights = () => read('/api/v1/flights', {}, $('downloads-note'), ({ flights, partials }) => {
  const flying = new Set(flights.map(flightKey));
  const broken = partials.filter((partial) => !flying.has(flightKey(partial)));
  const rated = flights.map((flight) => ({ ...flight, rate: noteRate(flight) }));
  for (const key of rates.keys()) if (!flying.has(key)) rates.delete(key);
  fetching.clear();
  for (const { repository } of flights) fetching.add(repository);
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
  const parts = { progress: el('progress', { 'aria-label': about }), text: muted() };
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
  return el('li', { class: 'line' }, title, muted(`${size(bytes)} from ${upstream}, `, time(written, 'some time ago')));
}

async function cancelFlight({ upstream, digest }, about) {
  const text = `The connections of its clients are closed. The downloaded part of ${about} is kept, and the next request resumes it.`;
  if (!(await confirmed('Cancel this download?', text, 'Cancel download'))) return;
  await act(async () => {
    await call('DELETE', '/api/v1/flights', { upstream, digest });
    return 'The download is being cancelled.';
  });
}

export function listenToDownloads() {
  $('resume').addEventListener('click', () => act(async () =>
    `${many((await call('POST', '/api/v1/flights/resume')).resumed, 'download')} queued.`));
}
