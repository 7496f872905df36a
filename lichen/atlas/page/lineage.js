// Where things come from: models and techniques in time, a band per lab, an edge for each thing taken up.

const VERBS = { uses: 'uses', develops: 'develops', from: 'comes from' };

function lineage() {
  const { nodes, edges } = data.lineage;
  const techniques = nodes.filter(({ kind }) => kind === 'technique').map(({ name, title }) => [name, title]);
  const grades = ['config', 'code', 'report', 'claim'].map((grade) => [grade, grade]);
  const byName = new Map(nodes.map((node) => [node.name, node]));
  const figure = scrolling('The lineage graph');
  const readout = h('div', { class: 'readout', 'aria-live': 'polite' });
  const root = h(
    'div',
    {},
    controls(
      dropdown('Technique', 'technique', 'all', [['all', 'all'], ...techniques], draw),
      dropdown('Evidence', 'grade', 'all', [['all', 'any grade'], ...grades], draw),
    ),
    figure,
    readout,
    h(
      'p',
      { class: 'note' },
      'Circle: model. Square: technique, at the lab that published it first. Solid: a config or code shows it, and a program can check that. Dashed: a report or a claim says it. Code follows the order in which a library got it and is no proof that an idea was taken.',
    ),
  );

  // What is shown: the edges that the controls let through, and their ends.
  function visible() {
    const technique = value(root, 'technique'),
      grade = value(root, 'grade');
    const kept = edges.filter(
      (edge) =>
        (technique === 'all' || [edge.ancestor, edge.descendant].includes(technique)) &&
        (grade === 'all' || edge.evidence === grade),
    );
    const ends = new Set(kept.flatMap(({ ancestor, descendant }) => [ancestor, descendant]));
    return { kept, shown: nodes.filter(({ name }) => ends.has(name)) };
  }

  function draw() {
    const { kept, shown } = visible();
    fill(
      readout,
      h('p', {}, 'Point at a node, or reach it with the Tab key, for its edges and their sources.'),
    );
    if (!shown.length) return fill(figure, h('p', {}, 'No edge is like that.'));
    const width = Math.max(760, figure.clientWidth || 900);
    const day = ({ date }) => Date.parse(`${date}T00:00Z`) / 864e5;
    const span = [Math.min(...shown.map(day)) - 30, Math.max(...shown.map(day))];
    const left = 155,
      right = width - 130;
    // Most of it is recent, so the years widen towards the present.
    const age = linear(span, [1, 0]);
    const x = (at) => right - Math.max(0, age(at)) ** 0.6 * (right - left);
    const { spots, bands, bottom } = lanes(shown, (node) => x(day(node)));
    const height = bottom + 40;
    const years = [];
    for (
      let year = new Date(span[0] * 864e5).getUTCFullYear() + 1;
      Date.UTC(year, 0) / 864e5 < span[1];
      year++
    )
      years.push(year);
    const tell = (node) => () => {
      const row = (edge) =>
        h(
          'p',
          {},
          `${byName.get(edge.descendant).title} ${VERBS[edge.kind]} ${byName.get(edge.ancestor).title}`,
          ` (${edge.evidence}, ${edge.date}, license then: ${edge.license ?? UNKNOWN}) `,
          source(edge.source),
        );
      fill(
        readout,
        h('p', {}, h('strong', {}, node.title), `, ${node.lab}, ${node.date}, `, source(node.source)),
        kept.filter((edge) => [edge.ancestor, edge.descendant].includes(node.name)).map(row),
      );
      for (const path of figure.querySelectorAll('.edge')) {
        path.classList.toggle('lit', [path.dataset.ancestor, path.dataset.descendant].includes(node.name));
      }
    };
    fill(
      figure,
      svg(
        'svg',
        {
          viewBox: `0 0 ${width} ${height}`,
          width,
          height,
          class: 'fixed',
          role: 'group',
          'aria-label': 'Lineage',
        },
        bands.map(({ lab, top, size }, i) => [
          i % 2 === 0 && svg('rect', { class: 'band', x: 0, y: top, width, height: size }),
          svg('text', { x: 10, y: top + 18 }, lab),
        ]),
        years.map((year) => {
          const at = x(Date.UTC(year, 0) / 864e5);
          return [
            svg('line', { class: 'grid', x1: at, x2: at, y1: 0, y2: bottom }),
            svg('text', { x: at, y: bottom + 20, 'text-anchor': 'middle' }, year),
          ];
        }),
        kept.map((edge) => {
          const [a, b] = [spots.get(edge.ancestor), spots.get(edge.descendant)];
          const middle = (a.x + b.x) / 2;
          return svg('path', {
            class: `edge ${['config', 'code'].includes(edge.evidence) ? 'sure' : 'told'}`,
            'data-ancestor': edge.ancestor,
            'data-descendant': edge.descendant,
            d: `M${a.x} ${a.y}C${middle} ${a.y} ${middle} ${b.y} ${b.x} ${b.y}`,
          });
        }),
        shown.map((node) => {
          const { x: cx, y: cy } = spots.get(node.name);
          return svg(
            'g',
            {
              class: `point ${hue(node)}`,
              tabindex: 0,
              role: 'img',
              'data-node': node.name,
              'aria-label': `${node.title}, ${node.lab}, ${node.date}`,
              mouseenter: tell(node),
              focus: tell(node),
              click: tell(node),
            },
            node.kind === 'technique'
              ? svg('rect', { class: 'hollow', x: cx - 4.5, y: cy - 4.5, width: 9, height: 9 })
              : svg('circle', { class: 'fill', cx, cy, r: 5 }),
            svg('text', { class: 'label', x: cx + 9, y: cy + 4 }, short(node)),
          );
        }),
      ),
    );
  }

  const short = ({ title }) => (title.length > 30 ? `${title.slice(0, 28).trimEnd()}…` : title);

  // A band per lab, and within it as many rows as its names need to keep apart.
  function lanes(shown, at) {
    const spots = new Map(),
      bands = [];
    let top = 0;
    for (const lab of [...new Set(shown.map((node) => node.lab))].sort()) {
      const rows = [];
      for (const node of shown
        .filter((each) => each.lab === lab)
        .sort((a, b) => (a.date < b.date ? -1 : 1))) {
        const x = at(node);
        let row = rows.findIndex((end) => end < x - 8);
        if (row < 0) row = rows.push(0) - 1;
        rows[row] = x + 14 + short(node).length * 6.6;
        spots.set(node.name, { x, y: top + 16 + row * 20 });
      }
      bands.push({ lab, top, size: rows.length * 20 + 10 });
      top += rows.length * 20 + 10;
    }
    return { spots, bands, bottom: top };
  }
  return { root, draw };
}
