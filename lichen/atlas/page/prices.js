// A model's price over time, and over the hours of a day where a provider has peak hours.

function prices() {
  const models = data.models.filter(({ offers }) => offers.length);
  if (!models.length) return { parts: h('p', `No price is known on ${data.as_of}.`), draw() {} };
  const kinds = { input: 'input', output: 'output', cache_read: 'cached input' };
  const usual = models.find(({ offers }) => offers.some(({ hourly }) => hourly)) ?? models[0];
  const figure = h('div'),
    seller = h('div'),
    listed = h('div');
  const parts = [
    controls(dropdown('Model', 'price', titled(models), draw, usual.name), seller),
    key(Object.values(kinds)),
    figure,
    listed,
  ];

  let sold; // the model whose providers can be chosen
  function draw() {
    const model = models.find(({ name }) => name === value('price'));
    if (sold !== model) {
      const names = model.offers.map(({ provider }) => provider);
      fill(seller, dropdown('Provider', 'provider', names, draw, model.provider));
      sold = model;
    }
    const offer = model.offers.find(({ provider }) => provider === value('provider'));
    fill(figure, overTime(model, offer), offer.hourly && clock(offer));
    const cells = offer.rows.map((row) => [
      row.since,
      row.until ?? '',
      usd(row.input),
      usd(row.output),
      usd(row.cache_read),
      row.holds,
      source(row.source),
    ]);
    const headings = ['since', 'until', 'input', 'output', 'cached', 'holds', 'source'];
    fill(listed, disclosure('As a table, with sources', grid('Prices', 'dated', headings, cells)));
  }

  function overTime({ title }, { provider, rows, bands }) {
    const width = widthOf(figure);
    const today = days(data.as_of);
    const first = Math.min(...bands.map(({ since }) => days(since)), today - 30);
    const [year, now] = data.as_of.split('-').map(Number);
    const firstOf = (back) => Date.UTC(year, now - 1 - back) / 864e5; // so many months ago
    const months = [];
    for (let back = 0; firstOf(back) > first; back++) months.push(firstOf(back));
    const every = Math.ceil(months.length / (width / 90));
    const names = Object.keys(kinds);
    const rates = rows.flatMap((row) => names.map((kind) => row[kind])).filter((rate) => rate > 0);
    const span = [Math.min(...rates) / 1.4, Math.max(...rates) * 1.4];
    const ticks = months.filter((_, i) => i % every === 0);
    const time = { scale: linear, span: [first, today], ticks, words: month };
    const price = {
      scale: logarithmic,
      span,
      ticks: decades(...span, 9),
      words: dollars,
      title: 'USD per million tokens (log)',
    };
    // The range of a day's hours is a band; a price that holds all day is a band without height.
    const band = (x, y, { since, until }, [low, high], kind) => {
      const range = low === high ? usd(low) : `${usd(low)} to ${usd(high)}`;
      return [
        svg('title', `${kind.replace('_', ' ')}, ${since} to ${until}: ${range}`),
        svg('rect', {
          class: 'fill',
          'fill-opacity': 0.25,
          'stroke-width': 2,
          x: x(days(since)),
          width: x(days(until)) - x(days(since)),
          y: y(high),
          height: Math.max(2, y(low) - y(high)),
        }),
      ];
    };
    const marks = (x, y) =>
      bands.map((each) =>
        Object.keys(kinds).map(
          (kind, i) => each[kind] && svg('g', { class: `c${i}` }, band(x, y, each, each[kind], kind)),
        ),
      );
    return chart(`Prices of ${title} at ${provider}`, width, 300, time, price, marks);
  }

  // The day as a strip of 24 hours, dear ones marked.
  function clock({ rows, tiers }) {
    const step = widthOf(figure) / 24;
    const hours = tiers[0].hours.map((row) => rows[row] ?? { input: null, output: null });
    const costs = [...new Set(hours.map(({ output }) => output))].filter((cost) => cost !== null);
    costs.sort((a, b) => a - b);
    const label = hours.map(({ output }, hour) => `${hour} h ${usd(output)}`).join(', ');
    const strip = hours.map(({ input, output }, hour) => {
      const dear = output > costs[0];
      return svg(
        'g',
        { class: dear ? 'c1' : 'c3' },
        svg('title', `${hour}:00 to ${hour + 1}:00: in ${usd(input)}, out ${usd(output)}`),
        svg('rect', {
          class: 'fill',
          'fill-opacity': dear ? 0.75 : 0.3,
          stroke: 'none',
          x: hour * step + 1,
          y: 2,
          width: step - 2,
          height: 26,
          rx: 2,
        }),
        hour % 3 === 0 && svg('text', { x: hour * step + 1, y: 46 }, hour),
      );
    });
    return h(
      'div',
      h('h3', `Hours of the day, UTC, ${data.as_of}`),
      svg('svg', { viewBox: `0 0 ${24 * step} 50`, role: 'img', 'aria-label': label }, strip),
      note(`Output costs ${costs.map(usd).join(' or ')} per million tokens, by the hour.`),
    );
  }
  return { parts, draw };
}
