// Making elements, and writing numbers. All text goes in as text, so nothing in the data can become markup.

const data = JSON.parse(document.getElementById('data').textContent);

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(name, value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? '' : value);
  }
  return fill(element, ...children);
}

// Put `children` in place of what is in `element`: lists of them are taken apart, null and false are nothing.
function fill(element, ...children) {
  element.replaceChildren(...children.flat(9).filter((child) => child !== null && child !== false));
  return element;
}

const h = (name, attributes = {}, ...children) => build(document.createElement(name), attributes, children);
const svg = (name, attributes = {}, ...children) =>
  build(document.createElementNS('http://www.w3.org/2000/svg', name), attributes, children);

// What is wider than the page scrolls in itself, by keyboard too.
const scrolling = (label, ...children) =>
  h('div', { class: 'scroll', tabindex: 0, role: 'group', 'aria-label': label }, children);

// `headings`: texts, or cells. `kind`: a class of the style sheet.
function grid(label, kind, headings, rows) {
  const cells = headings.map((each) => (each instanceof Node ? each : h('th', { scope: 'col' }, each)));
  return scrolling(
    label,
    h('table', { class: kind }, h('thead', {}, h('tr', {}, cells)), h('tbody', {}, rows)),
  );
}

const UNKNOWN = 'unknown';
const unknown = () => h('span', { class: 'unknown' }, UNKNOWN);
const digits = (value, count = 3) =>
  Number(value.toPrecision(count)).toLocaleString('en', { maximumSignificantDigits: count });
// Cents, and for less than a dollar three digits where they say more.
function usd(value) {
  if (value === null) return UNKNOWN;
  const cents = value.toFixed(2);
  return `$${value >= 1 || Number(cents) === Number(value.toPrecision(3)) ? cents : digits(value)}`;
}
const gib = (bytes) => `${digits(bytes / 2 ** 30)} GiB`;
const tokens = (count) =>
  count >= 2 ** 20 ? `${digits(count / 2 ** 20)}M` : count >= 1024 ? `${digits(count / 1024)}K` : `${count}`;
// A price as a share of another: 1/6.6 when it is less.
const share = (ratio) => (ratio < 1 ? `1/${digits(1 / ratio)}` : `${digits(ratio)}x`);

// A source as it stands in the data, in parts: addresses become links, the rest stays words.
function source(text) {
  return text
    .split(/(https?:\/\/[^\s,;)]+)/)
    .map((part) =>
      part.startsWith('http')
        ? h('a', { href: part, rel: 'noreferrer' }, part.replace(/^https?:\/\/(www\.)?/, ''))
        : part,
    );
}
