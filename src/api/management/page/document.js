// Builds the document. Strings become text nodes: no innerHTML, and no links or markup from data.

export const $ = (id) => document.getElementById(id);

// Strings among the children become text nodes.
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

export function svg(tag, attributes, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Unchanged text is not set again: screen readers would repeat live regions.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export const badge = (kind, text) => el('span', { class: `badge ${kind}` }, text);
export const muted = (...children) => el('span', { class: 'muted' }, ...children);
export const mono = (text) => el('span', { class: 'mono' }, text);

// `focusKey` identifies the button when its parent is rebuilt.
export function button(label, about, focusKey, action, kind = 'small') {
  const node = el('button', { type: 'button', class: kind, 'data-focus': focusKey, 'aria-label': `${label} ${about}` }, label);
  node.addEventListener('click', action);
  return node;
}

// `display: block` on phones removes the semantics of table cells; the roles restore them.
export function row(...cells) {
  return el('tr', { role: 'row' }, ...cells.map(([label, content, kind]) =>
    el('td', { role: 'cell', 'data-label': label, class: kind ?? '' }, ...[content].flat())));
}

// Terms with values; pairs without a value are left out.
export function terms(...pairs) {
  const list = el('dl');
  for (const [name, ...value] of pairs.filter((pair) => pair !== null)) list.append(el('dt', {}, name), el('dd', {}, ...value));
  return list;
}

// Sets the children of `parent` from `items`. Keeps the nodes of unchanged items, so that neither the focus nor a click
// in progress is lost; with `update`, nodes of changed items are kept too.
export function reconcile(parent, items, keyOf, build, update = null) {
  const old = new Map([...parent.children].map((node) => [node.itemKey, node]));
  const focused = parent.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
  const nodes = items.map((item) => {
    const itemKey = keyOf(item), memo = JSON.stringify(item);
    let node = old.get(itemKey);
    if (node?.memo === memo) return node;
    if (node && update) update(node, item);
    else node = build(item);
    return Object.assign(node, { itemKey, memo });
  });
  if (nodes.length === parent.children.length && nodes.every((node, index) => node === parent.children[index])) return;
  parent.replaceChildren(...nodes);
  if (focused) focusOn(focused, parent);
}

// Keys contain data, which would have to be escaped in a selector.
export function focusOn(key, parent) {
  const found = [...document.querySelectorAll('[data-focus]')].find((node) => node.dataset.focus === key);
  const next = found ?? parent?.closest('section')?.querySelector('h2');
  if (next && !found) next.tabIndex = -1;
  next?.focus({ preventScroll: true });
}

// The browser must not submit forms, because it would put their content into the address.
export function onSubmit(form, action) {
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    action(form);
  });
}
