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

// `x`, `y`: {ticks, scale, words}. Returns the grid with its numbers; `title`s stand at the axes' ends.
function frame(box, x, y) {
  const { left, right, top, bottom } = box;
  return svg(
    'g',
    {},
    y.ticks.map((tick) => [
      svg('line', { class: 'grid', x1: left, x2: right, y1: y.scale(tick), y2: y.scale(tick) }),
      svg('text', { x: left - 8, y: y.scale(tick) + 4, 'text-anchor': 'end' }, y.words(tick)),
    ]),
    x.ticks.map((tick) => [
      svg('line', { class: 'grid', x1: x.scale(tick), x2: x.scale(tick), y1: top, y2: bottom }),
      svg('text', { x: x.scale(tick), y: bottom + 18, 'text-anchor': 'middle' }, x.words(tick)),
    ]),
    svg('line', { class: 'axis', x1: left, x2: right, y1: bottom, y2: bottom }),
    svg('text', { x: right, y: bottom + 36, 'text-anchor': 'end' }, x.title),
    svg('text', { x: left - 40, y: top - 14 }, y.title),
  );
}

function chart(width, height, title, ...children) {
  return svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'group', 'aria-label': title }, ...children);
}

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

// Heights for labels at the right end of lines: near their lines, and `gap` apart.
function spread(heights, gap, bottom) {
  const order = heights.map((y, index) => ({ y, index })).sort((a, b) => a.y - b.y);
  order.forEach((each, i) => {
    if (i) each.y = Math.max(each.y, order[i - 1].y + gap);
  });
  for (let i = order.length - 1; i >= 0; i--) {
    order[i].y = Math.min(order[i].y, i === order.length - 1 ? bottom : order[i + 1].y - gap);
  }
  return order.reduce((all, { y, index }) => {
    all[index] = y;
    return all;
  }, []);
}

// One colour per lab, in the order in which the labs appear; all others share the last.
const labs = [...new Set(data.models.map(({ lab }) => lab))];
const colour = (index) => `c${index < 0 || index > 6 ? 6 : index}`;
const hue = ({ lab }) => colour(labs.indexOf(lab));
const legend = () =>
  h(
    'ul',
    { class: 'key' },
    labs.map((lab, i) => h('li', {}, h('span', { class: `dot ${colour(i)}` }), lab)),
  );
