// What fits on a machine: for each storage of the weights and each context, how many sequences at once.

function fits() {
  const models = data.models.filter(({ memory }) => memory);
  const columns = [8192, 32768, 131072, 262144, 1048576].map((context) => data.contexts.indexOf(context));
  const figure = h('div', { 'aria-live': 'polite' }),
    facts = note();
  const parts = [
    controls(
      dropdown('Device', 'device', titled(data.devices), draw, 'h200'),
      dropdown('How many', 'devices', [1, 2, 4, 8, 16], draw, 8),
      dropdown('Model', 'fit', [['all', 'all, weights as released'], ...titled(models)], draw),
      dropdown('Sequences at once', 'sequences', [1, 2, 4, 8, 16, 32, 64, 128], draw),
    ),
    figure,
    facts,
  ];

  function draw() {
    const device = data.devices.find(({ name }) => name === value('device'));
    const machine = device.memory * Number(value('devices')),
      wanted = Number(value('sequences'));

    // How many sequences of the context data.contexts[at] there is room for.
    function cell({ reserved }, weights, at) {
      if (at >= reserved.length) return h('td', { class: 'unknown' }, 'beyond its context');
      const most = Math.max(0, Math.floor((machine - weights.bytes) / reserved[at]));
      const room = most ? `${most >= wanted ? '✓' : '✗'} up to ${most.toLocaleString('en')}` : 'no room';
      const text = weights.bytes > machine ? 'weights too big' : room;
      return h('td', { class: most >= wanted ? 'yes' : 'no' }, text);
    }
    const line = (title, memory, weights) => [
      heading('row', title),
      ...(weights
        ? [`${digits(weights.bytes / 1e9)} GB`, ...columns.map((at) => cell(memory, weights, at))]
        : [h('td', { colspan: columns.length + 1 }, unknown())]),
    ];
    const model = models.find(({ name }) => name === value('fit'));
    const rows = model
      ? model.memory.weights.map((weights, i) => {
          const stored = i ? weights?.quant : `as released${weights ? ` (${weights.quant})` : ''}`;
          return line(stored, model.memory, weights);
        })
      : models.map(({ title, memory }) => line(title, memory, memory.weights[0]));
    const contexts = columns.map((at) => `${tokens(data.contexts[at])} tokens`);
    fill(figure, grid('What fits', 'matrix', [model ? model.title : 'Model', 'weights', ...contexts], rows));
    fill(
      facts,
      `${digits(machine / 1e9, 4)} GB of ${value('devices')} × ${device.title} are there for weights and cache: ${Math.round(device.share * 100)} % of the memory. A cell says how many sequences of that length fit beside the weights, with the cache as an engine reserves it; ✓ where that is at least ${wanted}. Device: `,
      source(device.source),
    );
  }
  return { parts, draw };
}
