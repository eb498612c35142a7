// The latest requests, and the latest warnings and errors of the log.

import { $, badge, button, el, muted, reconcile, row, setText } from './document.js';
import { clock, many, milliseconds, size, when } from './format.js';
import { read } from './server.js';

const SHORT = 12;
const isLong = { requests: false, log: false };
let requests = [], lines = [];

export const readRequests = () => read('/api/v1/requests', {}, $('requests-note'), (answer) => {
  requests = answer.requests;
  showRequests();
});

const isFailure = ({ status, ended }) => status >= 400 || ended !== null;

function showRequests() {
  const isOnlyFailures = $('failures').checked;
  const wanted = isOnlyFailures ? requests.filter(isFailure) : requests;
  const shown = wanted.slice(0, isLong.requests ? wanted.length : SHORT);
  const failures = requests.filter(isFailure).length;
  setText($('requests-note'), requests.length === 0 ? 'No requests since the start.'
    : `${many(requests.length, 'request')}, ${failures === 0 ? 'none' : failures} failed.`);
  $('requests-table').hidden = shown.length === 0;
  numbered(shown);
  reconcile($('request-rows'), shown, ({ key }) => key, requestRow);
  showMore('requests', wanted.length, showRequests);
}

// Requests have no identity of their own, and equal ones may end at the same time.
function numbered(entries) {
  const seen = new Map();
  for (const entry of entries) {
    const text = JSON.stringify({ ...entry, key: null }), number = (seen.get(text) ?? 0) + 1;
    seen.set(text, number);
    entry.key = `${text} ${number}`;
  }
}

function requestRow(request) {
  const { time, method, path, status, bytes, milliseconds: took, client, agent, user, cache, reason, upstream, ended, error } = request;
  const why = [ended, error].filter((text) => text !== null).join(': ');
  const how = [cache === null ? null : cache, reason].filter((text) => text !== null && text !== 'none').join(', ');
  const kind = status >= 500 ? 'bad' : status >= 400 ? 'warn' : 'plain-badge';
  const who = el('span', {}, client, ...(user === null ? [] : [` as ${user}`]), ...(agent === null ? [] : [muted(` ${agent}`)]));
  const what = el('span', {}, el('span', { class: 'mono', title: path }, `${method} ${path.replace(/(sha[0-9]+:.{12})[0-9a-f]+/, '$1…')}`), ...(upstream === null ? [] : [muted(` ${upstream}`)]),
    ...(why === '' ? [] : [el('span', { class: 'error' }, ` ${why}`)]));
  return row(['Time', el('time', { datetime: time, 'data-fixed': '' }, clock(Date.parse(time), true))], ['Status', badge(kind, String(status))],
    ['Request', what, 'name'], ['Cache', how || '–', 'words'], ['Client', who, 'words'], ['Bytes', size(bytes), 'number'],
    ['Duration', milliseconds(took), 'number']);
}

export const readLog = () => read('/api/v1/log', {}, $('log-note'), (answer) => {
  lines = answer.lines;
  showLog();
});

function showLog() {
  const errors = lines.filter(({ level }) => level === 'error').length;
  setText($('log-note'), lines.length === 0 ? 'No warnings or errors since the start.'
    : `${many(errors, 'error')} and ${many(lines.length - errors, 'warning')}, newest first.`);
  const shown = lines.slice(0, isLong.log ? lines.length : SHORT);
  numbered(shown);
  reconcile($('log-lines'), shown, ({ key }) => key, ({ time, level, text }) =>
    el('li', {}, el('time', { datetime: time, title: time, 'data-fixed': '' }, when(Date.parse(time))), ' ',
      badge(level === 'error' ? 'bad' : 'warn', level), ' ', text));
  showMore('log', lines.length, showLog);
}

function showMore(what, total, show) {
  const place = $(`${what}-more`);
  place.hidden = total <= SHORT;
  const label = isLong[what] ? 'Show fewer' : `Show all ${total}`;
  if (place.dataset.label === label) return;
  place.dataset.label = label;
  place.replaceChildren(button(label, what === 'log' ? 'lines' : 'requests', `more ${what}`, () => {
    isLong[what] = !isLong[what];
    show();
    place.querySelector('button').focus();
  }));
}

export function listenToActivity() {
  $('failures').addEventListener('change', showRequests);
}
