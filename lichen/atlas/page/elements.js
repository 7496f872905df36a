// Making elements, and writing numbers. All text goes in as text, so nothing in the data can become markup.

const data = JSON.parse(document.getElementById('data').textContent);

// The first of `children` may be attributes; a function among them listens to the event of its name.
function build(element, children) {
  const attributes = children[0]?.constructor === Object ? children.shift() : {};
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(name, value);
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  return fill(element, ...children);
}

// Put `children` in place of what is in `element`: lists of them are taken apart, null and false are nothing.
function fill(element, ...children) {
  element.replaceChildren(...children.flat(9).filter((child) => child !== null && child !== false));
  return element;
}

const h = (name, ...children) => build(document.createElement(name), children);
const svg = (name, ...children) =>
  build(document.createElementNS('http://www.w3.org/2000/svg', name), children);

const note = (...children) => h('p', { class: 'note' }, children);
const list = (kind, items) => h('ul', { class: kind }, ...items.map((each) => h('li', each)));
const disclosure = (summary, ...children) => h('details', h('summary', summary), children);
// Where a section tells what was pointed at.
const readout = () => h('div', { class: 'readout', 'aria-live': 'polite' });

// What is wider than the page scrolls in itself, by keyboard too.
const scrolling = (label, ...children) =>
  h('div', { class: 'scroll', tabindex: 0, role: 'group', 'aria-label': label }, children);

const heading = (scope, words) => h('th', { scope }, words);
// Cells, or what is to stand in them.
const row = (cells) =>
  h('tr', ...cells.map((each) => (each instanceof HTMLTableCellElement ? each : h('td', each))));

// `headings`: texts, or cells. `kind`: a class of the style sheet.
function grid(label, kind, headings, rows) {
  const cells = headings.map((each) => (each instanceof Node ? each : heading('col', each)));
  return scrolling(label, h('table', { class: kind }, h('thead', row(cells)), h('tbody', rows.map(row))));
}

// A bar in a cell; `shares` are percent of its width, and of two the first, longer one is pale.
const bar = (colour, ...shares) =>
  svg(
    'svg',
    { viewBox: '0 0 100 6', preserveAspectRatio: 'none', 'aria-hidden': 'true', class: `bar ${colour}` },
    shares.map((width, i) => {
      const pale = i < shares.length - 1 && 0.3;
      return svg('rect', { class: 'fill', 'fill-opacity': pale, stroke: 'none', width, height: 6 });
    }),
  );

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
