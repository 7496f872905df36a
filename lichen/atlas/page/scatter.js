// Score against price: which models are worth their money on one test, for one mix of tokens.

function scatter() {
  const tests = new Map();
  for (const model of data.models) {
    for (const score of model.scores) {
      const key = `${score.test} [${score.unit}]`;
      if (!tests.has(key)) tests.set(key, new Set());
      tests.get(key).add(model.name);
    }
  }
  const index = [...tests]
    .filter(([, models]) => models.size > 1)
    .sort((a, b) => b[1].size - a[1].size || (a[0] < b[0] ? -1 : 1));
  if (!index.length) return { root: h('p', {}, `No test has two scores on ${data.as_of}.`), draw() {} };

  const ratio = (position) => 2 ** position; // tokens in for each one out
  const ratioWords = (position) =>
    position >= 0 ? `${digits(ratio(position), 2)} : 1` : `1 : ${digits(1 / ratio(position), 2)}`;
  const figure = h('div'),
    readout = h('div', { class: 'readout', 'aria-live': 'polite' });
  const front = h('p', { class: 'note' }),
    missing = h('p', { class: 'note' });

  const standard = h(
    'div',
    { class: 'buttons' },
    Object.entries(data.workloads).map(([name, work]) =>
      h(
        'button',
        {
          type: 'button',
          'data-workload': name,
          'aria-pressed': 'false',
          click: () => {
            set('ratio', Math.log2(work.input_tokens / work.output_tokens));
            set('cached', work.cached_share * 100);
          },
        },
        name,
      ),
    ),
  );
  const set = (name, position) => {
    const input = root.querySelector(`input[name="${name}"]`);
    input.value = position;
    input.dispatchEvent(new Event('input'));
  };
  const hours = [
    ['day', 'average of the day'],
    ...[...Array(24).keys()].map((hour) => [hour, `${String(hour).padStart(2, '0')}:00 UTC`]),
  ];
  const root = h(
    'div',
    {},
    controls(
      dropdown(
        'Test, with its version',
        'index',
        index[0][0],
        index.map(([key, models]) => [key, `${key.replace(/ \[(.*)\]$/, ', $1')} (${models.size} models)`]),
        draw,
      ),
      dropdown(
        'Sold by',
        'seller',
        'first',
        [
          ['first', "the catalogue's first provider"],
          ['cheapest', 'the cheapest provider'],
        ],
        draw,
      ),
      dropdown('Hour', 'hour', 'day', hours, draw),
    ),
    controls(
      h('fieldset', { class: 'control' }, h('legend', {}, 'Workload'), standard),
      slider('Tokens in : out', 'ratio', '1.58', { min: -4, max: 6, step: 0.01 }, ratioWords, draw),
      slider(
        'Prompt read from the cache',
        'cached',
        '0',
        { min: 0, max: 95, step: 1 },
        (share) => `${share} %`,
        draw,
      ),
    ),
    legend(),
    figure,
    h('p', { class: 'note' }, 'Filled: the weights can be downloaded. Ring: they cannot.'),
    readout,
    front,
    missing,
  );

  function draw() {
    const test = value(root, 'index'),
      hour = value(root, 'hour') === 'day' ? null : Number(value(root, 'hour'));
    const cheapest = value(root, 'seller') === 'cheapest';
    const workload = {
      input_tokens: 1000 * ratio(Number(value(root, 'ratio'))),
      output_tokens: 1000,
      cached_share: Number(value(root, 'cached')) / 100,
    };
    for (const button of standard.children) {
      const work = data.workloads[button.dataset.workload];
      const same =
        Math.abs(Math.log2(work.input_tokens / work.output_tokens) - Number(value(root, 'ratio'))) < 0.02 &&
        work.cached_share === workload.cached_share;
      button.setAttribute('aria-pressed', String(same));
    }
    const reference = data.models.find(({ name }) => name === data.reference);
    const measure = reference && offer(reference, workload, hour, false);
    const points = [],
      unpriced = [],
      unscored = [];
    for (const model of data.models) {
      const scores = model.scores.filter((score) => `${score.test} [${score.unit}]` === test);
      const found = offer(model, workload, hour, cheapest);
      if (!scores.length) unscored.push(model.title);
      else if (!found) unpriced.push(model.title);
      else
        points.push({ model, scores, best: scores.reduce((a, b) => (b.value > a.value ? b : a)), ...found });
    }
    const best = points
      .filter(
        (p) =>
          !points.some(
            (o) =>
              o !== p &&
              o.cost <= p.cost &&
              o.best.value >= p.best.value &&
              (o.cost < p.cost || o.best.value > p.best.value),
          ),
      )
      .sort((a, b) => a.cost - b.cost);
    fill(
      readout,
      h('p', {}, 'Point at a model, or reach it with the Tab key, for its score, price and sources.'),
    );
    front.textContent = best.length
      ? `On the front, from the cheapest to the best: ${best.map(({ model }) => model.title).join(', ')}.`
      : '';
    missing.textContent = [
      unpriced.length && `Price unknown, so not drawn: ${unpriced.join(', ')}.`,
      unscored.length && `No score in this test: ${unscored.join(', ')}.`,
    ]
      .filter(Boolean)
      .join(' ');
    if (!points.length) return fill(figure, h('p', {}, 'No model has both a score and a price here.'));

    const width = Math.max(320, figure.clientWidth || 900),
      height = width < 600 ? 420 : 500;
    const box = { left: 46, right: width - 14, top: 30, bottom: height - 46 };
    const costs = points.map(({ cost }) => cost),
      values = points.map((p) => p.best.value);
    const span = [Math.min(...costs) / 1.5, Math.max(...costs) * 1.6];
    const x = logarithmic(span, [box.left, box.right]);
    const pad = Math.max((Math.max(...values) - Math.min(...values)) * 0.12, 1);
    const range = [Math.min(...values) - pad, Math.max(...values) + pad];
    const y = linear(range, [box.bottom, box.top]);
    const spots = points.map((p) => ({
      x: x(p.cost),
      y: y(p.best.value),
      text: p.model.title,
      above: best.includes(p),
    }));
    const labels = places(spots, box);
    const path = best.map((p, i) => `${i ? `H${x(p.cost)}V` : `M${x(p.cost)} `}${y(p.best.value)}`).join('');
    const tell = (p) => () =>
      fill(
        readout,
        h(
          'p',
          {},
          h('strong', {}, p.model.title),
          `: ${usd(p.cost)} per million tokens at ${p.provider}`,
          measure && p.model !== reference ? `, ${share(p.cost / measure.cost)} of ${reference.title}` : '',
        ),
        p.scores.map((score) =>
          h(
            'p',
            {},
            `${score.value} ${score.unit}`,
            ` (${[score.build && `build ${score.build}`, score.effort, score.harness, `reported by ${score.reported_by}`, score.date].filter(Boolean).join(', ')}) `,
            source(score.source),
          ),
        ),
        h('p', { class: 'note' }, p.sources),
      );
    fill(
      figure,
      chart(
        width,
        height,
        'Score against price',
        frame(
          box,
          {
            ticks: decades(...span, width / 80),
            scale: x,
            words: dollars,
            title: 'USD per million tokens of the workload (log)',
          },
          {
            ticks: steps(...range),
            scale: y,
            words: (tick) => digits(tick, 4),
            title: test.replace(/ \[(.*)\]$/, ', $1'),
          },
        ),
        svg('path', { class: 'front', d: path }),
        points.map((p, i) =>
          svg(
            'g',
            {
              class: `point ${hue(p.model)}`,
              tabindex: 0,
              role: 'img',
              'data-model': p.model.name,
              'aria-label': `${p.model.title}: ${p.best.value} ${p.best.unit}, ${usd(p.cost)} per million tokens`,
              mouseenter: tell(p),
              focus: tell(p),
              click: tell(p),
            },
            svg('circle', {
              cx: spots[i].x,
              cy: spots[i].y,
              r: 6.5,
              class: p.model.open ? 'fill' : 'hollow',
            }),
            labels[i] && svg('text', { ...labels[i], class: 'label' }, p.model.title),
          ),
        ),
      ),
    );
  }
  return { root, draw };
}
