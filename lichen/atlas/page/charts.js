// The frame of a chart: scales, grid, axes; labels that keep out of each other's way.

const logarithmic =
  ([low, high], [start, end]) =>
  (value) =>
    start + (Math.log(value / low) / Math.log(high / low)) * (end - start);
const linear =
  ([low, high], [start, end]) =>
  (value) =>
    start + ((value - low) / (high - low)) * (end - start);

// 1, 2, 5, 10, ... between two values; only powers of ten where that would be too many.
function decades(low, high, most) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const step of [1, 2, 5]) ticks.push(Number((step * 10 ** power).toPrecision(3)));
  }
  const inside = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  return inside.length <= most
    ? inside
    : inside.filter((tick) => Number.isInteger(Math.round(Math.log10(tick) * 1e6) / 1e6));
}

function steps(low, high) {
  const rough = (high - low) / 5,
    unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * unit).find((each) => each >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step / 1e6; tick += step)
    ticks.push(Number(tick.toPrecision(6)));
  return ticks;
}

const dollars = (tick) => `$${digits(tick)}`;

// Days since 1970 of a date, and the month of such a day.
const days = (date) => Date.parse(`${date}T00:00Z`) / 864e5;
const month = (day) => new Date(day * 864e5).toISOString().slice(0, 7);

const widthOf = (figure, least = 320) => Math.max(least, figure.clientWidth || 900);
const line = (kind, x1, y1, x2, y2) => svg('line', { class: kind, x1, x2, y1, y2 });
const path = (points) => points.map(([x, y], i) => `${i ? 'L' : 'M'}${x} ${y}`).join('');

// `x`, `y`: {scale, span, ticks, words, title}; a title, if any, stands at its axis' end. `marks(x, y, box)`: what is
// drawn in the frame.
function chart(title, width, height, x, y, marks, { top = 30, right = 14, bottom = 46 } = {}) {
  const box = { left: 46, right: width - right, top, bottom: height - bottom };
  const across = x.scale(x.span, [box.left, box.right]);
  const up = y.scale(y.span, [box.bottom, box.top]);
  return svg(
    'svg',
    { viewBox: `0 0 ${width} ${height}`, role: 'group', 'aria-label': title },
    svg(
      'g',
      y.ticks.map((tick) => [
        line('grid', box.left, up(tick), box.right, up(tick)),
        svg('text', { x: box.left - 8, y: up(tick) + 4, 'text-anchor': 'end' }, y.words(tick)),
      ]),
      x.ticks.map((tick) => [
        line('grid', across(tick), box.top, across(tick), box.bottom),
        svg('text', { x: across(tick), y: box.bottom + 18, 'text-anchor': 'middle' }, x.words(tick)),
      ]),
      line('axis', box.left, box.bottom, box.right, box.bottom),
      svg('text', { x: box.right, y: box.bottom + 36, 'text-anchor': 'end' }, x.title ?? ''),
      svg('text', { x: box.left - 40, y: box.top - 14 }, y.title ?? ''),
    ),
    marks(across, up, box),
  );
}

// What can be pointed at, or reached with the Tab key: `tell` is called then.
const point = (about, label, tell, ...children) =>
  svg(
    'g',
    { ...about, tabindex: 0, role: 'img', 'aria-label': label, mouseenter: tell, focus: tell, click: tell },
    children,
  );

// Where names can stand beside their points (`above` them by preference) without covering points or other
// names; null where nowhere.
function places(points, box) {
  const taken = points.map(({ x, y }) => ({ x: x - 7, y: y - 7, w: 14, h: 14 }));
  return points.map(({ x, y, text, above }) => {
    const w = text.length * 6.6,
      h = 14;
    const tries = [
      ...(above ? [[x - w / 2, y - 24]] : []),
      [x + 10, y - 7],
      [x - 10 - w, y - 7],
      [x - w / 2, y - 24],
      [x - w / 2, y + 10],
      [x + 8, y - 20],
      [x + 8, y + 6],
      [x - 8 - w, y - 20],
      [x - 8 - w, y + 6],
    ];
    for (const [tx, ty] of tries) {
      const free =
        tx >= box.left &&
        tx + w <= box.right + 12 &&
        ty >= box.top - 8 &&
        ty + h <= box.bottom + 4 &&
        taken.every((o) => tx + w < o.x || o.x + o.w < tx || ty + h < o.y || o.y + o.h < ty);
      if (free) {
        taken.push({ x: tx, y: ty, w, h });
        return { x: tx, y: ty + 11 };
      }
    }
    return null;
  });
}

// Heights for labels at the right `ends` of lines: near their lines, and `gap` apart.
function spread(ends, gap, bottom) {
  const order = ends.map(([, y], index) => ({ y, index })).sort((a, b) => a.y - b.y);
  order.forEach((each, i) => {
    if (i) each.y = Math.max(each.y, order[i - 1].y + gap);
  });
  order.toReversed().forEach((each, i, all) => {
    each.y = Math.min(each.y, i ? all[i - 1].y - gap : bottom);
  });
  return order.sort((a, b) => a.index - b.index).map(({ y }) => y);
}

// One colour per lab, in the order in which the labs appear; all others share the last.
const labs = [...new Set(data.models.map(({ lab }) => lab))];
const colour = (index) => `c${index < 0 || index > 6 ? 6 : index}`;
const hue = ({ lab }) => colour(labs.indexOf(lab));
const key = (words) =>
  h(
    'ul',
    { class: 'key' },
    ...words.map((each, i) => h('li', h('span', { class: `dot ${colour(i)}` }), each)),
  );
const legend = () => key(labs);
