// A model's price over time, and over the hours of a day where a provider has peak hours.

function prices() {
  const models = data.models.filter(({ offers }) => offers.length);
  if (!models.length) return { root: h('p', {}, `No price is known on ${data.as_of}.`), draw() {} };
  const kinds = [
    ['input', 'input'],
    ['output', 'output'],
    ['cache_read', 'cached input'],
  ];
  const usual = models.find(({ offers }) => offers.some(({ hourly }) => hourly)) ?? models[0];
  const figure = h('div'),
    seller = h('div'),
    listed = h('div');
  const root = h(
    'div',
    {},
    controls(
      dropdown(
        'Model',
        'price',
        usual.name,
        models.map(({ name, title }) => [name, title]),
        () => {
          sell();
          draw();
        },
      ),
      seller,
    ),
    h(
      'ul',
      { class: 'key' },
      kinds.map(([, words], i) => h('li', {}, h('span', { class: `dot c${i}` }), words)),
    ),
    figure,
    listed,
  );
  const model = () => models.find(({ name }) => name === value(root, 'price'));
  const sell = () =>
    fill(
      seller,
      dropdown(
        'Provider',
        'provider',
        model().provider ?? model().offers[0].provider,
        model().offers.map(({ provider }) => [provider, provider]),
        draw,
      ),
    );
  sell();

  function draw() {
    const provider = value(root, 'provider');
    const { rows, tiers, hourly, bands } = model().offers.find((each) => each.provider === provider);
    const days = (day) => Date.parse(`${day}T00:00Z`) / 864e5;
    const width = Math.max(320, figure.clientWidth || 900),
      height = 300;
    const box = { left: 46, right: width - 14, top: 30, bottom: height - 46 };
    const first = Math.min(...bands.map(({ since }) => days(since)), days(data.as_of) - 30);
    const x = linear([first, days(data.as_of)], [box.left, box.right]);
    const rates = rows.flatMap((price) => kinds.map(([kind]) => price[kind])).filter((rate) => rate > 0);
    const span = [Math.min(...rates) / 1.4, Math.max(...rates) * 1.4];
    const y = logarithmic(span, [box.bottom, box.top]);
    // The range of a day's hours is a band; a price that holds all day is a band without height.
    const drawn = bands.map(({ since, until, ...found }) =>
      kinds.map(([kind], k) => {
        if (!found[kind]) return null;
        const [low, high] = found[kind];
        return svg(
          'g',
          { class: `c${k}` },
          svg(
            'title',
            {},
            `${kind.replace('_', ' ')}, ${since} to ${until}: ${low === high ? usd(low) : `${usd(low)} to ${usd(high)}`}`,
          ),
          svg('rect', {
            class: 'fill',
            'fill-opacity': 0.25,
            'stroke-width': 2,
            x: x(days(since)),
            width: x(days(until)) - x(days(since)),
            y: y(high),
            height: Math.max(2, y(low) - y(high)),
          }),
        );
      }),
    );
    const months = [];
    for (
      let day = new Date(`${data.as_of.slice(0, 7)}-01T00:00Z`);
      day / 864e5 > first;
      day.setUTCMonth(day.getUTCMonth() - 1)
    )
      months.push(day / 864e5);
    const every = Math.ceil(months.length / (width / 90));
    fill(
      figure,
      chart(
        width,
        height,
        `Prices of ${model().title} at ${provider}`,
        frame(
          box,
          {
            ticks: months.filter((_, i) => i % every === 0),
            scale: x,
            words: (day) => new Date(day * 864e5).toISOString().slice(0, 7),
            title: '',
          },
          { ticks: decades(...span, 9), scale: y, words: dollars, title: 'USD per million tokens (log)' },
        ),
        drawn,
      ),
      hourly ? clock(tiers[0].hours.map((row) => rows[row])) : '',
    );
    fill(
      listed,
      h(
        'details',
        {},
        h('summary', {}, 'As a table, with sources'),
        grid(
          'Prices',
          'dated',
          ['since', 'until', 'input', 'output', 'cached', 'holds', 'source'],
          rows.map((price) =>
            h(
              'tr',
              {},
              [
                price.since,
                price.until ?? '',
                usd(price.input),
                usd(price.output),
                usd(price.cache_read),
                price.holds,
                source(price.source),
              ].map((cell) => h('td', {}, cell)),
            ),
          ),
        ),
      ),
    );
  }

  // The day as a strip of 24 hours, dear ones marked.
  function clock(hours) {
    const step = Math.max(320, figure.clientWidth || 900) / 24;
    const low = Math.min(...hours.filter(Boolean).map(({ output }) => output));
    return h(
      'div',
      {},
      h('h3', {}, `Hours of the day, UTC, ${data.as_of}`),
      svg(
        'svg',
        {
          viewBox: `0 0 ${24 * step} 50`,
          role: 'img',
          'aria-label': hours.map((price, hour) => `${hour} h ${usd(price?.output ?? null)}`).join(', '),
        },
        hours.map((price, hour) =>
          svg(
            'g',
            { class: price && price.output > low ? 'c1' : 'c3' },
            svg(
              'title',
              {},
              `${hour}:00 to ${hour + 1}:00: in ${usd(price?.input ?? null)}, out ${usd(price?.output ?? null)}`,
            ),
            svg('rect', {
              class: 'fill',
              'fill-opacity': price && price.output > low ? 0.75 : 0.3,
              stroke: 'none',
              x: hour * step + 1,
              y: 2,
              width: step - 2,
              height: 26,
              rx: 2,
            }),
            hour % 3 === 0 && svg('text', { x: hour * step + 1, y: 46 }, hour),
          ),
        ),
      ),
      h(
        'p',
        { class: 'note' },
        `Output costs ${[...new Set(hours.filter(Boolean).map(({ output }) => output))]
          .sort((a, b) => a - b)
          .map(usd)
          .join(' or ')} per million tokens, by the hour.`,
      ),
    );
  }
  return { root, draw };
}
