// Score against price: which models are worth their money on one test, for one mix of tokens.

function scatter() {
  const named = ({ test, unit }) => `${test} [${unit}]`;
  const titleOf = (test) => test.replace(/ \[(.*)\]$/, ', $1');
  const sizes = {}; // how many models have a score, by test
  for (const { scores } of data.models) {
    for (const test of new Set(scores.map(named))) sizes[test] = (sizes[test] ?? 0) + 1;
  }
  const tests = Object.entries(sizes)
    .filter(([, size]) => size > 1)
    .sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))
    .map(([test, size]) => [test, `${titleOf(test)} (${size} models)`]);
  if (!tests.length) return { parts: h('p', `No test has two scores on ${data.as_of}.`), draw() {} };

  const ratio = (position) => 2 ** position; // tokens in for each one out
  const ratioWords = (position) =>
    position >= 0 ? `${digits(ratio(position), 2)} : 1` : `1 : ${digits(1 / ratio(position), 2)}`;
  const positions = (work) => ({
    ratio: Math.log2(work.input_tokens / work.output_tokens),
    cached: Math.round(work.cached_share * 100),
  });
  const standard = Object.entries(data.workloads).map(([name, work]) => {
    const click = () => {
      for (const [slider, position] of Object.entries(positions(work))) {
        const input = document.querySelector(`input[name="${slider}"]`);
        input.value = position;
        input.dispatchEvent(new Event('input'));
      }
    };
    return h('button', { type: 'button', 'data-workload': name, click }, name);
  });
  const hours = [...Array(24).keys()].map((hour) => [hour, `${String(hour).padStart(2, '0')}:00 UTC`]);
  const sellers = [
    ['first', "the catalogue's first provider"],
    ['cheapest', 'the cheapest provider'],
  ];
  const percents = { min: 0, max: 95, step: 1 };
  const figure = h('div'),
    told = readout(),
    front = note(),
    missing = note();
  const parts = [
    controls(
      dropdown('Test, with its version', 'index', tests, draw),
      dropdown('Sold by', 'seller', sellers, draw),
      dropdown('Hour', 'hour', [['day', 'average of the day'], ...hours], draw),
    ),
    controls(
      group('Workload', standard),
      slider('Tokens in : out', 'ratio', '1.58', { min: -4, max: 6, step: 0.01 }, ratioWords, draw),
      slider('Prompt read from the cache', 'cached', '0', percents, (percent) => `${percent} %`, draw),
    ),
    legend(),
    figure,
    note('Filled: the weights can be downloaded. Ring: they cannot.'),
    told,
    front,
    missing,
  ];

  function draw() {
    const test = value('index'),
      hour = value('hour') === 'day' ? null : Number(value('hour'));
    const mix = { ratio: Number(value('ratio')), cached: Number(value('cached')) };
    const workload = {
      input_tokens: 1000 * ratio(mix.ratio),
      output_tokens: 1000,
      cached_share: mix.cached / 100,
    };
    for (const button of standard) {
      const own = positions(data.workloads[button.dataset.workload]);
      press(button, Math.abs(own.ratio - mix.ratio) < 0.02 && own.cached === mix.cached);
    }
    const points = [],
      unpriced = [],
      unscored = [];
    for (const model of data.models) {
      const scores = model.scores.filter((score) => named(score) === test);
      const found = offer(model, workload, hour, value('seller') === 'cheapest');
      if (!scores.length) unscored.push(model.title);
      else if (!found) unpriced.push(model.title);
      else
        points.push({ model, scores, best: scores.reduce((a, b) => (b.value > a.value ? b : a)), ...found });
    }
    const beats = (one, other) =>
      one.cost <= other.cost &&
      one.best.value >= other.best.value &&
      (one.cost < other.cost || one.best.value > other.best.value);
    const unbeaten = points
      .filter((each) => !points.some((other) => beats(other, each)))
      .sort((a, b) => a.cost - b.cost);
    fill(told, h('p', 'Point at a model, or reach it with the Tab key, for its score, price and sources.'));
    front.textContent = unbeaten.length
      ? `On the front, from the cheapest to the best: ${unbeaten.map(({ model }) => model.title).join(', ')}.`
      : '';
    missing.textContent = [
      unpriced.length && `Price unknown, so not drawn: ${unpriced.join(', ')}.`,
      unscored.length && `No score in this test: ${unscored.join(', ')}.`,
    ]
      .filter(Boolean)
      .join(' ');
    if (!points.length) return fill(figure, h('p', 'No model has both a score and a price here.'));

    const reference = data.models.find(({ name }) => name === data.reference);
    const measure = reference && offer(reference, workload, hour, false);
    const tell = (each) => () => fill(told, details(each, reference, measure));
    const width = widthOf(figure);
    const costs = points.map(({ cost }) => cost),
      values = points.map(({ best }) => best.value);
    const span = [Math.min(...costs) / 1.5, Math.max(...costs) * 1.6];
    const pad = Math.max((Math.max(...values) - Math.min(...values)) * 0.12, 1);
    const range = [Math.min(...values) - pad, Math.max(...values) + pad];
    const price = {
      scale: logarithmic,
      span,
      ticks: decades(...span, width / 80),
      words: dollars,
      title: 'USD per million tokens of the workload (log)',
    };
    const score = {
      scale: linear,
      span: range,
      ticks: steps(...range),
      words: (tick) => digits(tick, 4),
      title: titleOf(test),
    };
    const marks = (x, y, box) => {
      const spots = points.map((each) => ({
        x: x(each.cost),
        y: y(each.best.value),
        text: each.model.title,
        above: unbeaten.includes(each),
      }));
      const labels = places(spots, box);
      const stairs = unbeaten.map(
        ({ cost, best }, i) => `${i ? `H${x(cost)}V` : `M${x(cost)} `}${y(best.value)}`,
      );
      return [
        svg('path', { class: 'front', d: stairs.join('') }),
        points.map((each, i) => {
          const { model, best, cost } = each;
          const kind = model.open ? 'fill' : 'hollow';
          return point(
            { class: `point ${hue(model)}`, 'data-model': model.name },
            `${model.title}: ${best.value} ${best.unit}, ${usd(cost)} per million tokens`,
            tell(each),
            svg('circle', { cx: spots[i].x, cy: spots[i].y, r: 6.5, class: kind }),
            labels[i] && svg('text', { ...labels[i], class: 'label' }, model.title),
          );
        }),
      ];
    };
    fill(figure, chart('Score against price', width, width < 600 ? 420 : 500, price, score, marks));
  }

  // What a point says: its price, its scores, their sources.
  function details({ model, cost, provider, scores, sources }, reference, measure) {
    const beside =
      measure && model !== reference ? `, ${share(cost / measure.cost)} of ${reference.title}` : '';
    const scored = ({ value, unit, build, effort, harness, reported_by, date, source: from }) => {
      const how = [build && `build ${build}`, effort, harness, `reported by ${reported_by}`, date];
      return h('p', `${value} ${unit} (${how.filter(Boolean).join(', ')}) `, source(from));
    };
    return [
      h('p', h('strong', model.title), `: ${usd(cost)} per million tokens at ${provider}`, beside),
      scores.map(scored),
      note(sources),
    ];
  }
  return { parts, draw };
}
