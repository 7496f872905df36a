// The cache of one sequence against its length.

function cache() {
  // Models with the same curve are one line with several names.
  const lines = [];
  for (const model of data.models.filter(({ memory }) => memory)) {
    const key = JSON.stringify([model.memory.layout, model.memory.ideal, model.memory.reserved]);
    const same = lines.find((line) => line.key === key);
    if (same) same.names.push(model.title);
    else lines.push({ key, model, names: [model.title] });
  }
  const figure = h('div'),
    ranking = h('div', { 'aria-live': 'polite' });
  const root = h(
    'div',
    {},
    controls(
      buttons(
        'Bytes',
        'bytes',
        'ideal',
        [
          ['ideal', 'ideal'],
          ['reserved', 'reserved by an engine'],
        ],
        draw,
      ),
      slider(
        'At a context of',
        'at',
        7,
        { min: 0, max: data.contexts.length - 1, step: 1 },
        (i) => `${data.contexts[i].toLocaleString('en')} tokens`,
        draw,
      ),
    ),
    legend(),
    figure,
    ranking,
    h(
      'p',
      { class: 'note' },
      "Ideal: the numbers themselves. Reserved: with the scales of blocks and whole pages, as an engine sets them aside. Storage is what the family's engines use: bf16, fp8, or the mix that DeepSeek-V4 describes. Computed from each model's config; models without a public config are not drawn.",
    ),
  );

  function draw() {
    const kind = value(root, 'bytes'),
      at = Number(value(root, 'at'));
    const width = Math.max(320, figure.clientWidth || 900),
      narrow = width < 600,
      height = narrow ? 400 : 480;
    const box = { left: 46, right: width - (narrow ? 12 : 190), top: 30, bottom: height - 46 };
    const last = (line) => line.model.memory[kind].length - 1;
    const all = lines.flatMap((line) => line.model.memory[kind]);
    const span = [Math.min(...all) / 2 ** 30 / 1.3, (Math.max(...all) / 2 ** 30) * 1.3];
    const x = logarithmic([data.contexts[0], data.contexts.at(-1)], [box.left, box.right]);
    const y = logarithmic(span, [box.bottom, box.top]);
    const ends = spread(
      lines.map((line) => y(line.model.memory[kind][last(line)] / 2 ** 30)),
      15,
      box.bottom,
    );
    fill(
      figure,
      chart(
        width,
        height,
        'Cache against context',
        frame(
          box,
          {
            ticks: data.contexts.filter((_, i) => !narrow || i % 2 === 0),
            scale: x,
            words: tokens,
            title: 'tokens of context (log)',
          },
          {
            ticks: decades(...span, 12).filter((tick) =>
              Number.isInteger(Math.round(Math.log10(tick) * 1e6) / 1e6),
            ),
            scale: y,
            words: (tick) => `${tick}`,
            title: `GiB per sequence, ${kind} (log)`,
          },
        ),
        svg('line', {
          class: 'guide',
          x1: x(data.contexts[at]),
          x2: x(data.contexts[at]),
          y1: box.top,
          y2: box.bottom,
        }),
        lines.map((line, i) => {
          const bytes = line.model.memory[kind];
          const path = bytes
            .map((each, j) => `${j ? 'L' : 'M'}${x(data.contexts[j])} ${y(each / 2 ** 30)}`)
            .join('');
          const end = { x: x(data.contexts[last(line)]), y: y(bytes[last(line)] / 2 ** 30) };
          return svg(
            'g',
            { class: hue(line.model) },
            svg('title', {}, `${line.names.join(', ')} (${line.model.memory.layout})`),
            svg('path', { class: 'curve stroke', d: path }),
            svg('circle', { class: 'fill', cx: end.x, cy: end.y, r: 3 }),
            !narrow &&
              svg('path', {
                class: 'guide',
                fill: 'none',
                d: `M${end.x + 5} ${end.y}L${box.right + 12} ${ends[i]}`,
              }),
            !narrow && svg('text', { class: 'label', x: box.right + 16, y: ends[i] + 4 }, short(line.names)),
          );
        }),
      ),
    );
    const there = lines
      .filter((line) => at <= last(line))
      .sort((a, b) => a.model.memory[kind][at] - b.model.memory[kind][at]);
    const most = Math.max(...there.map((line) => line.model.memory[kind][at]));
    const beyond = lines.filter((line) => at > last(line)).flatMap(({ names }) => names);
    fill(
      ranking,
      h(
        'table',
        { class: 'bars' },
        h(
          'tbody',
          {},
          there.map((line) =>
            h(
              'tr',
              {},
              h('td', {}, line.names.join(', ')),
              h(
                'td',
                {},
                svg(
                  'svg',
                  {
                    viewBox: '0 0 100 6',
                    preserveAspectRatio: 'none',
                    'aria-hidden': 'true',
                    class: `bar ${hue(line.model)}`,
                  },
                  svg('rect', {
                    class: 'fill',
                    stroke: 'none',
                    width: Math.max(0.5, (line.model.memory[kind][at] / most) * 100),
                    height: 6,
                  }),
                ),
              ),
              h('td', {}, gib(line.model.memory[kind][at])),
            ),
          ),
        ),
      ),
      beyond.length ? h('p', { class: 'note' }, `Beyond their context: ${beyond.join(', ')}.`) : '',
    );
  }
  const short = (names) => (names.length > 2 ? `${names[0]} and ${names.length - 1} more` : names.join(', '));
  return { root, draw };
}
