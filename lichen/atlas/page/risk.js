// What rests on whom, how alike models are becoming, and where what they share came from.

function risk() {
  const { roots, similarity, exchange, obligations, models } = data.risk;
  const title = (name) => data.lineage.nodes.find((node) => node.name === name)?.title ?? name;
  const percent = (part) => (part === null ? unknown() : `${Math.round(part * 100)} %`);
  const number = (value) => (value === null ? unknown() : value.toFixed(2));
  const counts = (origins) =>
    Object.entries(origins)
      .map(([lab, count]) => `${lab} ${count}`)
      .join(', ');
  const curve = h('div');
  const measures = {
    overall: 'all pairs',
    within_labs: 'of one lab',
    across_labs: 'of two labs',
    within_countries: 'of one country',
    across_countries: 'of two countries',
  };
  const exchanged = [
    ['models, labs', (each) => `${each.models}, ${each.labs}`],
    ['first published by (uses)', (each) => counts(each.origins)],
    ['concentration by lab (Herfindahl)', (each) => number(each.herfindahl)],
    ['concentration by country', (each) => number(each.herfindahl_countries)],
    ['taken from outside the lab', (each) => percent(each.outside)],
    ['its own, used by other labs', (each) => each.given],
    [
      'labs that took from each other',
      (each) => each.mutual.map((pair) => pair.join(' and ')).join('; ') || 'none',
    ],
  ];
  const parts = [
    h('h3', `Dependency: which of ${models} open models rest on one root`),
    grid(
      'Roots',
      'wide',
      ['Root', 'Lab', 'Rest on it', '', 'Would be without it, should its next release be closed'],
      roots.map(({ name, lab, share, stated, dependents }) => [
        heading('row', title(name)),
        lab,
        percent(share),
        h('td', { class: 'barred' }, bar('c0', share * 100, stated * 100)),
        dependents.map(title).join(', ') || 'no other lab',
      ]),
    ),
    note('Full colour: by what the makers say of their own models. Pale: with evidence in code.'),
    h('h3', "Homogenisation: how alike the techniques of a year's models are"),
    key(Object.values(measures)),
    curve,
    note(
      'Mean Jaccard similarity of the technique sets of two models, over the pairs of models of the twelve months before: 0 is nothing in common, 1 the same set.',
    ),
    h('h3', 'Concentration: where techniques come from'),
    grid(
      'Where techniques come from',
      'wide',
      ['', ...exchange.map((each) => each.title)],
      exchanged.map(([label, cell]) => [heading('row', label), ...exchange.map(cell)]),
    ),
    disclosure(
      'What the licenses ask of you',
      h(
        'dl',
        Object.entries(obligations).map(([name, asked]) => [h('dt', title(name)), h('dd', asked.join('; '))]),
      ),
    ),
  ];

  function draw() {
    const known = similarity.filter((each) => each.overall !== null);
    if (known.length < 2) return fill(curve, h('p', `Too few models on ${data.as_of}.`));
    const names = Object.keys(measures);
    const dates = known.map(({ day }) => days(day));
    const highest = Math.max(...known.flatMap((each) => names.map((name) => each[name] ?? 0)));
    const time = {
      scale: (span, [left, right]) => linear(span, [left + 10, right - 20]),
      span: [dates[0], dates.at(-1)],
      ticks: dates,
      words: month,
    };
    const alike = { scale: linear, span: [0, highest], ticks: steps(0, highest), words: digits };
    const marks = (x, y) =>
      names.map((name, i) => {
        const points = known.filter((each) => each[name] !== null);
        const spots = points.map((each) => [x(days(each.day)), y(each[name])]);
        const dot = ({ day, [name]: found }, j) =>
          svg(
            'circle',
            { class: 'fill', cx: spots[j][0], cy: spots[j][1], r: 3 },
            svg('title', `${measures[name]}, year to ${day}: ${found.toFixed(2)}`),
          );
        return svg(
          'g',
          { class: `c${i}` },
          svg('title', measures[name]),
          svg('path', { class: 'curve stroke', d: path(spots) }),
          points.map(dot),
        );
      });
    const margins = { top: 20, bottom: 40 };
    fill(curve, chart('Similarity over time', widthOf(curve), 260, time, alike, marks, margins));
  }
  return { parts, draw };
}
