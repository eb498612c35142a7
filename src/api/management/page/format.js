// Formats sizes, numbers and times for people.

import { el, setText } from './document.js';

// A no-break space between a number and its unit.
const GAP = '\u00a0';
const DAY = 86_400_000;

// Decimal units, as in the output of the commands.
export function size(bytes) {
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

export const count = (number) => number.toLocaleString('en');
export const many = (number, one, more = `${one}s`) => `${count(number)}${GAP}${number === 1 ? one : more}`;
export const percent = (part, whole) => (whole > 0 ? `${((100 * part) / whole).toFixed(1)}${GAP}%` : '–');
export const shortDigest = (digest) => digest.replace(/^([a-z0-9]+:.{12}).*$/, '$1…');

export function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)}${GAP}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}${GAP}min`;
  return seconds < 86_400 ? `${Math.floor(seconds / 3600)}${GAP}h` : `${Math.floor(seconds / 86_400)}${GAP}d`;
}

export function milliseconds(time) {
  return time < 1000 ? `${time < 10 ? time.toFixed(1) : Math.round(time)}${GAP}ms` : `${(time / 1000).toFixed(1)}${GAP}s`;
}

// The time of the server's clock, since the browser's may be wrong.
let clockSkew = 0;
export const now = () => Date.now() + clockSkew;
export function setServerTime(text) {
  clockSkew = Date.parse(text) - Date.now();
}

export const clock = (moment, seconds = false) => new Date(moment).toLocaleTimeString([],
  { hour: '2-digit', minute: '2-digit', ...(seconds ? { second: '2-digit' } : {}), hourCycle: 'h23' });
const date = (moment) => new Date(moment).toLocaleDateString('en', { month: 'short', day: 'numeric' });

// The time of day, with the date if it was not within the last day.
export const when = (moment) => (now() - moment < DAY ? clock(moment) : `${date(moment)} ${clock(moment)}`);

function ageText(moment) {
  const seconds = Math.floor((now() - moment) / 1000);
  return seconds < 10 ? 'just now' : `${duration(seconds)} ago`;
}

// `text` is a time, null, or any text (the creation time comes from the image's config).
export function time(text, none = 'never') {
  if (text === null) return none;
  const moment = Date.parse(text);
  if (Number.isNaN(moment)) return text;
  const full = new Date(moment).toISOString();
  return el('time', { datetime: full, title: full }, ageText(moment));
}

// A point in time, as `when`.
export function moment(text) {
  const full = new Date(Date.parse(text)).toISOString();
  return el('time', { datetime: full, title: full, 'data-fixed': '' }, when(Date.parse(text)));
}

export function refreshTimes() {
  for (const node of document.querySelectorAll('time:not([data-fixed])')) setText(node, ageText(Date.parse(node.dateTime)));
}
