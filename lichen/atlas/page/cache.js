// The cache of one sequence against its length.

function cache() {
  // Models with the same curve are one line with several names.
  const lines = [];
  for (const model of data.models.filter(({ memory }) => memory)) {
    const key = JSON.stringify([model.memory.layout, model.memory.ideal, model.memory.reserved]);
    const same = lines.find((line) => line.key === key);
    if (same) same.names.push(model.title);
    else lines.push({ key, model, memory: model.memory, names: [model.title] });
  }
  const figure = h('div'),
    ranking = h('div', { 'aria-live': 'polite' });
  const parts = [
    controls(
      buttons('Bytes', 'bytes', ['ideal', ['reserved', 'reserved by an engine']], draw),
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
    note(
      "Ideal: the numbers themselves. Reserved: with the scales of blocks and whole pages, as an engine sets them aside. Storage is what the family's engines use: bf16, fp8, or the mix that DeepSeek-V4 describes. Computed from each model's config; models without a public config are not drawn.",
    ),
  ];

  function draw() {
    const kind = value('bytes'),
      at = Number(value('at'));
    const width = widthOf(figure),
      narrow = width < 600;
    const all = lines.flatMap(({ memory }) => memory[kind]);
    const span = [Math.min(...all) / 2 ** 30 / 1.3, (Math.max(...all) / 2 ** 30) * 1.3];
    const contexts = {
      scale: logarithmic,
      span: [data.contexts[0], data.contexts.at(-1)],
      ticks: data.contexts.filter((_, i) => !narrow || i % 2 === 0),
      words: tokens,
      title: 'tokens of context (log)',
    };
    const sizes = {
      scale: logarithmic,
      span,
      ticks: decades(...span, 0),
      words: (tick) => `${tick}`,
      title: `GiB per sequence, ${kind} (log)`,
    };
    const marks = (x, y, box) => {
      const curves = lines.map(({ memory }) =>
        memory[kind].map((bytes, i) => [x(data.contexts[i]), y(bytes / 2 ** 30)]),
      );
      const ends = curves.map((curve) => curve.at(-1));
      const heights = spread(ends, 15, box.bottom);
      return [
        line('guide', x(data.contexts[at]), box.top, x(data.contexts[at]), box.bottom),
        lines.map(({ model, memory, names }, i) => {
          const [cx, cy] = ends[i];
          const lead = `M${cx + 5} ${cy}L${box.right + 12} ${heights[i]}`;
          return svg(
            'g',
            { class: hue(model) },
            svg('title', `${names.join(', ')} (${memory.layout})`),
            svg('path', { class: 'curve stroke', d: path(curves[i]) }),
            svg('circle', { class: 'fill', cx, cy, r: 3 }),
            !narrow && svg('path', { class: 'guide', fill: 'none', d: lead }),
            !narrow && svg('text', { class: 'label', x: box.right + 16, y: heights[i] + 4 }, short(names)),
          );
        }),
      ];
    };
    const right = narrow ? 12 : 190;
    fill(
      figure,
      chart('Cache against context', width, narrow ? 400 : 480, contexts, sizes, marks, { right }),
    );

    const [there, beyond] = [true, false].map((has) =>
      lines.filter(({ memory }) => at < memory[kind].length === has),
    );
    there.sort((a, b) => a.memory[kind][at] - b.memory[kind][at]);
    const most = there.at(-1)?.memory[kind][at];
    const bars = there.map(({ model, memory, names }) => [
      names.join(', '),
      bar(hue(model), Math.max(0.5, (memory[kind][at] / most) * 100)),
      gib(memory[kind][at]),
    ]);
    fill(
      ranking,
      h('table', { class: 'bars' }, h('tbody', bars.map(row))),
      beyond.length > 0 && note(`Beyond their context: ${beyond.flatMap(({ names }) => names).join(', ')}.`),
    );
  }
  const short = (names) => (names.length > 2 ? `${names[0]} and ${names.length - 1} more` : names.join(', '));
  return { parts, draw };
}
