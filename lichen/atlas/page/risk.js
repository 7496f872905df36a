// What rests on whom, how alike models are becoming, and where what they share came from.

function risk() {
  const { roots, similarity, exchange, obligations, models } = data.risk;
  const title = (name) => data.lineage.nodes.find((node) => node.name === name)?.title ?? name;
  const percent = (part) => (part === null ? unknown() : `${Math.round(part * 100)} %`);
  const bar = (part) =>
    svg(
      'svg',
      { viewBox: '0 0 100 6', preserveAspectRatio: 'none', 'aria-hidden': 'true', class: 'bar c0' },
      svg('rect', { class: 'fill', 'fill-opacity': 0.3, stroke: 'none', width: part.share * 100, height: 6 }),
      svg('rect', { class: 'fill', stroke: 'none', width: part.stated * 100, height: 6 }),
    );
  const curve = h('div');
  const measures = [
    ['overall', 'all pairs'],
    ['within_labs', 'of one lab'],
    ['across_labs', 'of two labs'],
    ['within_countries', 'of one country'],
    ['across_countries', 'of two countries'],
  ];
  const number = (value) => (value === null ? unknown() : value.toFixed(2));
  const most = (origins) =>
    Object.entries(origins)
      .map(([lab, count]) => `${lab} ${count}`)
      .join(', ');

  const root = h(
    'div',
    {},
    h('h3', {}, `Dependency: which of ${models} open models rest on one root`),
    grid(
      'Roots',
      'wide',
      ['Root', 'Lab', 'Rest on it', '', 'Would be without it, should its next release be closed'],
      roots.map((each) =>
        h(
          'tr',
          {},
          h('th', { scope: 'row' }, title(each.name)),
          h('td', {}, each.lab),
          h('td', {}, percent(each.share)),
          h('td', { class: 'barred' }, bar(each)),
          h('td', {}, each.dependents.map(title).join(', ') || 'no other lab'),
        ),
      ),
    ),
    h(
      'p',
      { class: 'note' },
      'Full colour: by what the makers say of their own models. Pale: with evidence in code.',
    ),
    h('h3', {}, "Homogenisation: how alike the techniques of a year's models are"),
    h(
      'ul',
      { class: 'key' },
      measures.map(([, words], i) => h('li', {}, h('span', { class: `dot c${i}` }), words)),
    ),
    curve,
    h(
      'p',
      { class: 'note' },
      'Mean Jaccard similarity of the technique sets of two models, over the pairs of models of the twelve months before: 0 is nothing in common, 1 the same set.',
    ),
    h('h3', {}, 'Concentration: where techniques come from'),
    grid(
      'Where techniques come from',
      'wide',
      ['', ...exchange.map((each) => each.title)],
      [
        ['models, labs', (each) => `${each.models}, ${each.labs}`],
        ['first published by (uses)', (each) => most(each.origins)],
        ['concentration by lab (Herfindahl)', (each) => number(each.herfindahl)],
        ['concentration by country', (each) => number(each.herfindahl_countries)],
        ['taken from outside the lab', (each) => percent(each.outside)],
        ['its own, used by other labs', (each) => each.given],
        [
          'labs that took from each other',
          (each) => each.mutual.map((pair) => pair.join(' and ')).join('; ') || 'none',
        ],
      ].map(([label, cell]) =>
        h(
          'tr',
          {},
          h('th', { scope: 'row' }, label),
          exchange.map((each) => h('td', {}, cell(each))),
        ),
      ),
    ),
    h(
      'details',
      {},
      h('summary', {}, 'What the licenses ask of you'),
      h(
        'dl',
        {},
        Object.entries(obligations).map(([name, asked]) => [
          h('dt', {}, title(name)),
          h('dd', {}, asked.join('; ')),
        ]),
      ),
    ),
  );

  function draw() {
    const known = similarity.filter((each) => each.overall !== null);
    if (known.length < 2) return fill(curve, h('p', {}, `Too few models on ${data.as_of}.`));
    const day = (text) => Date.parse(`${text}T00:00Z`);
    const width = Math.max(320, curve.clientWidth || 900),
      height = 260;
    const box = { left: 46, right: width - 14, top: 20, bottom: height - 40 };
    const x = linear([day(known[0].day), day(known.at(-1).day)], [box.left + 10, box.right - 20]);
    const highest = Math.max(...known.flatMap((each) => measures.map(([name]) => each[name] ?? 0)));
    const y = linear([0, highest], [box.bottom, box.top]);
    fill(
      curve,
      chart(
        width,
        height,
        'Similarity over time',
        frame(
          box,
          {
            ticks: known.map((each) => each.day),
            scale: (text) => x(day(text)),
            words: (text) => text.slice(0, 7),
            title: '',
          },
          { ticks: steps(0, highest), scale: y, words: (tick) => digits(tick), title: '' },
        ),
        measures.map(([name, words], i) => {
          const points = known.filter((each) => each[name] !== null);
          return svg(
            'g',
            { class: `c${i}` },
            svg('title', {}, words),
            svg('path', {
              class: 'curve stroke',
              d: points.map((each, j) => `${j ? 'L' : 'M'}${x(day(each.day))} ${y(each[name])}`).join(''),
            }),
            points.map((each) =>
              svg(
                'circle',
                { class: 'fill', cx: x(day(each.day)), cy: y(each[name]), r: 3 },
                svg('title', {}, `${words}, year to ${each.day}: ${each[name].toFixed(2)}`),
              ),
            ),
          );
        }),
      ),
    );
  }
  return { root, draw };
}
