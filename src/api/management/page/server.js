// Requests to the server, the token, and whether it responds. Shows dialogs and notices.

import { $, focusOn, setText } from './document.js';
import { clock } from './format.js';

// In milliseconds. Reading is quick even on a busy server; a prune of a large cache takes as long as its disk needs.
const READ_LIMIT = 10_000;
const CHANGE_LIMIT = 600_000;
const NOTICE_TIME = 8_000;
const TOKEN_KEY = 'larder-token';

export class Refused extends Error {}
class Silent extends Error {}
class Dismissed extends Error {}

let isLocked = false;
// When the server responded last.
let lastResponse = null;
// Called after changes, and when the server stops or starts to respond.
const listeners = { change: async () => {}, silence: () => {} };
export const onChange = (listener) => { listeners.change = listener; };
export const onSilence = (listener) => { listeners.silence = listener; };

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
export async function call(method, path, parameters = {}) {
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
export async function read(path, parameters, note, show) {
  if (isLocked) return;
  try {
    const answer = await call('GET', path, parameters);
    heard();
    await show(answer);
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
  lastResponse = Date.now();
  if ($('silence').hidden) return;
  $('silence').hidden = true;
  say('The server responds again.');
  listeners.silence(null);
}

function silent() {
  const since = lastResponse === null ? 'No response yet.' : `No response since ${clock(lastResponse, true)}, showing the state of then.`;
  setText($('silence'), `${since} Retrying…`);
  $('silence').hidden = false;
  listeners.silence(since);
}

export function lock(locked) {
  isLocked = locked;
  $('locked').hidden = !locked;
}

// Resolves with 'yes' if the form was submitted. Restores the focus, even if the focused element was rebuilt.
export function modal(dialog) {
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

export async function confirmed(title, text, yes) {
  $('confirm-title').textContent = title;
  $('confirm-text').textContent = text;
  $('confirm-yes').textContent = yes;
  return (await modal($('confirm'))) === 'yes';
}

// Shown in the open dialog, since everything else is inert and not read by screen readers.
let noticeTimer = 0;
export function say(text) {
  const notice = $('notice');
  topmost().append(notice);
  notice.textContent = text;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => { notice.textContent = ''; }, NOTICE_TIME);
}

const topmost = () => [...document.querySelectorAll('dialog[open]')].pop() ?? document.body;

// Runs `task`, shows its result, and refreshes the page. Resolves to whether it succeeded.
export async function act(task) {
  try {
    say(await task());
    return true;
  } catch (error) {
    say(error.message);
    if (!(error instanceof Refused || error instanceof Silent || error instanceof Dismissed)) throw error;
    return false;
  } finally {
    await listeners.change();
  }
}

// The clipboard is available to pages from loopback addresses and with TLS only; otherwise a selection is copied.
export async function copy(text, what) {
  const from = document.activeElement;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = Object.assign(document.createElement('textarea'), { value: text, className: 'copied' });
    topmost().append(field);
    field.select();
    document.execCommand('copy');
    field.remove();
    from?.focus();
  }
  say(`Copied ${what}.`);
}
