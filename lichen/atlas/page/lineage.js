// Where things come from: models and techniques in time, a band per lab, an edge for each thing taken up.

const VERBS = { uses: 'uses', develops: 'develops', from: 'comes from' };

function lineage() {
  const { nodes, edges } = data.lineage;
  const techniques = titled(nodes.filter(({ kind }) => kind === 'technique'));
  const byName = new Map(nodes.map((node) => [node.name, node]));
  const figure = scrolling('The lineage graph');
  const told = readout();
  const parts = [
    controls(
      dropdown('Technique', 'technique', ['all', ...techniques], draw),
      dropdown('Evidence', 'grade', [['all', 'any grade'], 'config', 'code', 'report', 'claim'], draw),
    ),
    figure,
    told,
    note(
      'Circle: model. Square: technique, at the lab that published it first. Solid: a config or code shows it, and a program can check that. Dashed: a report or a claim says it. Code follows the order in which a library got it and is no proof that an idea was taken.',
    ),
  ];

  // What is shown: the edges that the controls let through, and their ends.
  function visible() {
    const technique = value('technique'),
      grade = value('grade');
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
    fill(told, h('p', 'Point at a node, or reach it with the Tab key, for its edges and their sources.'));
    if (!shown.length) return fill(figure, h('p', 'No edge is like that.'));
    const width = widthOf(figure, 760);
    const dates = shown.map(({ date }) => days(date));
    const span = [Math.min(...dates) - 30, Math.max(...dates)];
    const left = 155,
      right = width - 130;
    // Most of it is recent, so the years widen towards the present.
    const age = linear(span, [1, 0]);
    const x = (day) => right - Math.max(0, age(day)) ** 0.6 * (right - left);
    const { spots, bands, bottom } = lanes(shown, ({ date }) => x(days(date)));
    const height = bottom + 40;
    const [first, last] = span.map((day) => Number(month(day).slice(0, 4)));
    const years = [];
    for (let year = first + 1; year <= last; year++) years.push(year);
    const tell = (node) => () => {
      const isEnd = ({ ancestor, descendant }) => [ancestor, descendant].includes(node.name);
      const sentence = (edge) =>
        h(
          'p',
          `${byName.get(edge.descendant).title} ${VERBS[edge.kind]} ${byName.get(edge.ancestor).title}`,
          ` (${edge.evidence}, ${edge.date}, license then: ${edge.license ?? UNKNOWN}) `,
          source(edge.source),
        );
      fill(
        told,
        h('p', h('strong', node.title), `, ${node.lab}, ${node.date}, `, source(node.source)),
        kept.filter(isEnd).map(sentence),
      );
      for (const path of figure.querySelectorAll('.edge')) path.classList.toggle('lit', isEnd(path.dataset));
    };
    const curve = ({ ancestor, descendant, evidence }) => {
      const [a, b] = [spots.get(ancestor), spots.get(descendant)];
      const middle = (a.x + b.x) / 2;
      return svg('path', {
        class: `edge ${['config', 'code'].includes(evidence) ? 'sure' : 'told'}`,
        'data-ancestor': ancestor,
        'data-descendant': descendant,
        d: `M${a.x} ${a.y}C${middle} ${a.y} ${middle} ${b.y} ${b.x} ${b.y}`,
      });
    };
    const mark = (node) => {
      const { x: cx, y: cy } = spots.get(node.name);
      return point(
        { class: `point ${hue(node)}`, 'data-node': node.name },
        `${node.title}, ${node.lab}, ${node.date}`,
        tell(node),
        node.kind === 'technique'
          ? svg('rect', { class: 'hollow', x: cx - 4.5, y: cy - 4.5, width: 9, height: 9 })
          : svg('circle', { class: 'fill', cx, cy, r: 5 }),
        svg('text', { class: 'label', x: cx + 9, y: cy + 4 }, short(node)),
      );
    };
    const frame = {
      viewBox: `0 0 ${width} ${height}`,
      width,
      height,
      role: 'group',
      'aria-label': 'Lineage',
    };
    fill(
      figure,
      svg(
        'svg',
        { ...frame, class: 'fixed' },
        bands.map(({ lab, top, size }, i) => [
          i % 2 === 0 && svg('rect', { class: 'band', x: 0, y: top, width, height: size }),
          svg('text', { x: 10, y: top + 18 }, lab),
        ]),
        years.map((year) => {
          const at = x(days(`${year}-01-01`));
          return [
            line('grid', at, 0, at, bottom),
            svg('text', { x: at, y: bottom + 20, 'text-anchor': 'middle' }, year),
          ];
        }),
        kept.map(curve),
        shown.map(mark),
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
      const ends = []; // of the rows
      const own = shown.filter((each) => each.lab === lab).sort((a, b) => (a.date < b.date ? -1 : 1));
      for (const node of own) {
        const x = at(node);
        let row = ends.findIndex((end) => end < x - 8);
        if (row < 0) row = ends.length;
        ends[row] = x + 14 + short(node).length * 6.6;
        spots.set(node.name, { x, y: top + 16 + row * 20 });
      }
      const size = ends.length * 20 + 10;
      bands.push({ lab, top, size });
      top += size;
    }
    return { spots, bands, bottom: top };
  }
  return { parts, draw };
}
