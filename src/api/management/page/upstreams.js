// Registries, the bucket and the peers: whether they respond.

import { $, badge, button, el, mono, muted, reconcile, setText, terms } from './document.js';
import { count, duration, many, moment, size, time } from './format.js';
import { call, modal, read } from './server.js';

// The registries of which no endpoint can be used.
const down = new Set();
export const isDown = (name) => down.has(name);

const isUnreachable = ({ breaker }) => breaker !== 'closed';

export const readUpstreams = () => read('/api/v1/upstreams', {}, $('upstreams-note'), ({ upstreams }) => {
  setText($('upstreams-note'), upstreams.length > 0 ? '' : 'No registry is configured, and none has been contacted since the start.');
  down.clear();
  for (const { name, endpoints } of upstreams) if (endpoints.length > 0 && endpoints.every(isUnreachable)) down.add(name);
  reconcile($('upstream-list'), upstreams, ({ name }) => name, ({ name, endpoints }) =>
    el('li', {}, el('h3', { class: 'line' }, name, button('Test', name, `test ${name}`, () => openTest(name))), ...endpoints.map(endpointNode)));
});

function endpointNode({ url, breaker, askedAgainInSeconds, failuresInARow, lastSuccess, lastFailure, lastFailureTime, unreachableSince, rateLimit }) {
  const lines = [];
  const retry = askedAgainInSeconds === null ? 'retry with the next request' : `retry in ${duration(Math.ceil(askedAgainInSeconds))}`;
  if (breaker !== 'closed') lines.push(el('p', {}, ...(unreachableSince === null ? [] : ['since ', moment(unreachableSince), ', ']), retry));
  if (lastSuccess !== null) lines.push(el('p', { class: 'muted' }, 'last answered ', time(lastSuccess)));
  if (rateLimit) lines.push(el('p', { class: rateLimit.remaining === 0 ? 'error' : 'muted' }, rateLimitText(rateLimit)));
  if (lastFailure !== null) lines.push(failureNode(lastFailure, lastFailureTime, failuresInARow));
  return el('div', { class: 'endpoint' }, el('div', { class: 'line' }, mono(url), health(breaker, failuresInARow, lastSuccess)), ...lines);
}

function failureNode(text, at, failuresInARow) {
  const row = failuresInARow > 1 ? `, ${many(failuresInARow, 'failure')} in a row` : '';
  return el('p', { class: 'muted' }, 'last failure ', ...(at === null ? [] : [moment(at)]), `${row}: ${text}`);
}

function health(breaker, failuresInARow, lastSuccess) {
  switch (breaker) {
    case 'closed':
      if (failuresInARow > 0) return badge('warn', 'failing');
      return lastSuccess === null ? badge('', 'not used yet') : badge('good', 'healthy');
    case 'open': return badge('bad', 'unreachable');
    case 'half-open': return badge('bad', 'unreachable, retrying');
    default: return badge('', breaker);
  }
}

function rateLimitText({ limit, remaining, windowSeconds }) {
  const of = limit === null ? '' : ` of ${count(limit)}`;
  const left = remaining === null ? `rate limit${of}` : `${count(remaining)}${of} pulls left`;
  return windowSeconds === null ? left : `${left} in ${duration(windowSeconds)}`;
}

// ---- The test of a registry ------------------------------------------------------------------------------------------

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

const testNodes = ({ url, steps }) => [el('h3', {}, url), terms(...steps.map(({ name, state: outcome, text, remedy }) =>
  [name, badge(STEP_BADGES[outcome], outcome), ` ${text}`, ...(remedy ? [el('p', {}, el('strong', {}, remedy))] : [])]))];

// ---- The bucket and the peers ----------------------------------------------------------------------------------------

export const readBucket = () => read('/api/v1/bucket', {}, $('upstreams-note'), ({ bucket }) => {
  $('bucket-box').hidden = bucket === null;
  reconcile($('bucket-state'), bucket === null ? [] : [bucket], ({ url }) => url, bucketNode);
});

function bucketNode({ url, reads, readOnly, probe, queued, running, done, bytesSent, failure }) {
  const lines = [
    readOnly ? 'read-only' : `${many(queued, 'file')} to upload, ${count(running)} under way`,
    readOnly ? null : `${many(done, 'file')} and ${size(bytesSent)} sent since the start`,
    probe === null || probe.error !== null ? null : capabilities(probe),
  ];
  return el('div', {}, el('div', { class: 'line' }, mono(url), bucketHealth(reads, failure, probe)),
    el('p', { class: 'muted' }, lines.filter((line) => line !== null).join(' · ')),
    failure === null ? null : el('p', { class: 'muted' }, 'uploads fail since ', moment(failure.since), `: ${failure.text}`),
    reads === null || reads.lastFailure === null ? null : failureNode(reads.lastFailure, reads.lastFailureTime, reads.failuresInARow));
}

function bucketHealth(reads, failure, probe) {
  if (reads !== null && reads.breaker !== 'closed') return health(reads.breaker, 1, null);
  if (probe !== null && probe.error === null && !probe.readable) return badge('bad', 'not readable');
  if (failure !== null || (probe !== null && probe.error !== null)) return badge('bad', 'uploads fail');
  return badge('good', 'healthy');
}

function capabilities({ readable, writable, createsIfAbsent, verifiesChecksums }) {
  const lacks = [readable ? null : 'is not readable', writable ? null : 'is not writable', createsIfAbsent ? null : 'does not support If-None-Match',
    verifiesChecksums ? null : 'does not verify checksums'].filter((text) => text !== null);
  return lacks.length === 0 ? null : lacks.join(', ');
}

export const readPeers = () => read('/api/v1/peers', {}, $('upstreams-note'), ({ peers }) => {
  $('peers-box').hidden = peers.length === 0;
  reconcile($('peer-list'), peers, ({ url }) => url, peerNode);
});

function peerNode({ url, isThisProcess, version, failing, failingSince, differences, lastFailure, lastFailureTime }) {
  const lines = [version === null ? null : `version ${version}`, differences.length > 0 ? `differs in ${differences.join(', ')}` : null];
  const text = lines.filter((line) => line !== null).join(' · ');
  return el('li', {}, el('div', { class: 'line' }, mono(url), peerHealth(isThisProcess, version, failing)),
    failingSince === null ? null : el('p', {}, 'since ', moment(failingSince)),
    text === '' ? null : el('p', { class: 'muted' }, text),
    lastFailure === null ? null : failureNode(lastFailure, lastFailureTime, 1));
}

function peerHealth(isThisProcess, version, failing) {
  if (isThisProcess) return badge('', 'this server');
  if (failing > 0) return badge('bad', `not asked for ${many(failing, 'registry', 'registries')}`);
  return version === null ? badge('', 'not used yet') : badge('good', 'healthy');
}
