// The management page: shows the data of the management API and calls it for changes.
//
// Names, platforms, dates and errors come from upstreams and clients, which may be hostile. They only become text nodes
// (document.js). The Content-Security-Policy is the second line of defence.
// The page is an ordinary client of docs/openapi.yaml and must not know how anything is stored.

import { listenToActivity, readLog, readRequests } from './activity.js';
import { $, onSubmit } from './document.js';
import { listenToDownloads, readFlights } from './downloads.js';
import { listenToImages, readImages, readPins, readPrefetches, setOffline } from './images.js';
import { readEvents, readSync } from './news.js';
import { listenToHistory, readHistory, readStatus, showSilence } from './overview.js';
import { lock, onChange, onSilence } from './server.js';
import { listenToSetup, readClient, readConfiguration } from './setup.js';
import { readBucket, readPeers, readUpstreams } from './upstreams.js';

// In milliseconds. Progress bars should move; a list of images need not be refreshed that often.
const FAST_POLL = 2_000;
const SLOW_POLL = 15_000;

const refreshFast = () => Promise.all([readStatus(({ offline }) => setOffline(offline)), readFlights().then(readPrefetches)]);
// Pins and upstreams first: images depend on them.
const refreshSlow = () => Promise.all([readBucket(), readPeers(), readHistory(), readRequests(), readLog(), readEvents(), readSync(), readConfiguration(),
  Promise.all([readPins(), readUpstreams()]).then(readImages)]);
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

function listenToDialogs() {
  for (const close of document.querySelectorAll('[data-close]')) {
    close.addEventListener('click', () => close.closest('dialog').close(''));
  }
  for (const id of ['token', 'confirm']) onSubmit($(id).querySelector('form'), () => $(id).close('yes'));
  $('unlock').addEventListener('click', () => {
    lock(false);
    refreshAll();
    readClient();
  });
}

// `display: block` on phones removes the semantics of tables; the roles restore them.
function addRoles() {
  const roles = { table: 'table', 'thead, tbody': 'rowgroup', 'thead tr': 'row', th: 'columnheader' };
  for (const [selector, role] of Object.entries(roles)) {
    for (const node of document.querySelectorAll(selector)) node.setAttribute('role', role);
  }
}

for (const node of [$('main'), document.querySelector('nav')]) node.hidden = false;
addRoles();
for (const listen of [listenToHistory, listenToDownloads, listenToImages, listenToActivity, listenToSetup, listenToDialogs]) listen();
onChange(refreshAll);
onSilence(showSilence);
readClient();
repeat(FAST_POLL, refreshFast);
repeat(SLOW_POLL, refreshSlow);
