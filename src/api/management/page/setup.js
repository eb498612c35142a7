// The configuration of the server, the configuration of clients, and the registries in the cache.

import { $, badge, button, el, muted, reconcile, row, terms } from './document.js';
import { count, many, moment, size, time } from './format.js';
import { showRegistryChoice } from './images.js';
import { copy, read } from './server.js';

// ---- The server ------------------------------------------------------------------------------------------------------

export const readConfiguration = () => read('/api/v1/configuration', {}, $('configuration-note'), (answer) => {
  $('configuration-note').textContent = '';
  reconcile($('configuration-state'), [answer], () => 'configuration', configurationNode);
});

function configurationNode({ file, loaded, afterRestart, refused, effective }) {
  const state = refused === null ? badge('good', 'in effect') : badge('bad', 'the current file is not in effect');
  const text = el('pre', { tabindex: '0', 'aria-label': 'Settings in effect' }, effective || 'Nothing is set.');
  return el('div', {}, terms(['File', file === null ? 'none: flags and environment only' : el('span', { class: 'mono' }, file)],
    ['State', state, ' ', muted('loaded ', time(loaded))],
    refused === null ? null : ['Refused', moment(refused.since), `: ${refused.text}. The previous configuration stays in effect.`],
    afterRestart.length === 0 ? null : ['After a restart', afterRestart.join(', ')]),
  el('details', {}, el('summary', {}, 'Settings in effect'), text, el('p', { class: 'do' },
    button('Copy', 'settings', 'copy settings', () => copy(effective, 'the settings')))));
}

// ---- Clients ---------------------------------------------------------------------------------------------------------

// The configuration of containerd, for the buttons of images.
let containerd = null;

export function readClient() {
  const { client, server } = $('client-form').elements;
  const parameters = { client: client.value };
  // The field is changed by people only; otherwise the server chooses.
  if (server.dataset.typed && server.value.trim()) parameters.server = server.value.trim();
  return read('/api/v1/client-configuration', parameters, $('client-error'), (answer) => {
    $('client-error').hidden = true;
    if (answer.client === 'containerd') containerd = answer;
    if (!server.dataset.typed) server.value = answer.server;
    showClient(answer);
  });
}

function showClient({ assumptions, files, effect }) {
  $('client-assumptions').replaceChildren(...assumptions.map((text) => el('li', {}, `Assumes that ${text}.`)));
  $('client-effect').textContent = `${effect}.`;
  reconcile($('client-files'), files, ({ path }) => path, ({ path, text }) =>
    el('details', files[0].path === path ? { open: '' } : {}, el('summary', {}, el('span', { class: 'mono' }, path)),
      el('pre', { tabindex: '0', 'aria-label': path }, text),
      el('p', { class: 'do' }, button('Copy', path, `copy ${path}`, () => copy(text, path)))));
}

// Pulls from this server without a configuration of the client. A path cannot contain the port of a registry.
export function pullCommand(image) {
  if (containerd === null || image.split('/')[0].includes(':')) return null;
  return `docker pull ${containerd.server.replace(/^https?:\/\//, '')}/${image}`;
}

// The file for the registry of an image.
export function hostsToml(image) {
  const file = (name) => containerd?.files.find(({ path }) => path.endsWith(`/${name}/hosts.toml`));
  return (file(image.split('/')[0]) ?? file('_default'))?.text ?? null;
}

export function listenToSetup() {
  const form = $('client-form');
  let pause = 0;
  form.addEventListener('submit', (event) => event.preventDefault());
  form.addEventListener('input', (event) => {
    if (event.target.name === 'server') event.target.dataset.typed = event.target.value.trim() ? 'yes' : '';
    clearTimeout(pause);
    pause = setTimeout(readClient, 300);
  });
}

// ---- Registries ------------------------------------------------------------------------------------------------------

export function showRegistries(usage) {
  if (!usage) return;
  $('registries-note').replaceChildren('As of ', time(usage.asOf), `: ${many(usage.repositories, 'repository', 'repositories')}, ` +
    `${many(usage.blobs, 'blob')} (${size(usage.blobBytes)}), ${many(usage.manifests, 'manifest')} (${size(usage.manifestBytes)})`);
  reconcile($('registry-rows'), usage.registries, ({ name }) => name, (registry) => row(['', registry.name, 'name'],
    ['Images', count(registry.images), 'number'], ['Repositories', count(registry.repositories), 'number'],
    ['Bytes', size(registry.bytes), 'number'], ['Last pulled', time(registry.pulled)]));
  showRegistryChoice(usage.registries.map(({ name }) => name));
}
