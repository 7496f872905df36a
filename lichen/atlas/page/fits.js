// What fits on a machine: for each storage of the weights and each context, how many sequences at once.

function fits() {
  const models = data.models.filter(({ memory }) => memory);
  const columns = [8192, 32768, 131072, 262144, 1048576].map((context) => data.contexts.indexOf(context));
  const figure = h('div', { 'aria-live': 'polite' }),
    facts = h('p', { class: 'note' });
  const counts = [1, 2, 4, 8, 16].map((count) => [count, count]);
  const root = h(
    'div',
    {},
    controls(
      dropdown(
        'Device',
        'device',
        'h200',
        data.devices.map(({ name, title }) => [name, title]),
        draw,
      ),
      dropdown('How many', 'devices', 8, counts, draw),
      dropdown(
        'Model',
        'fit',
        'all',
        [['all', 'all, weights as released'], ...models.map(({ name, title }) => [name, title])],
        draw,
      ),
      dropdown(
        'Sequences at once',
        'sequences',
        1,
        [1, 2, 4, 8, 16, 32, 64, 128].map((n) => [n, n]),
        draw,
      ),
    ),
    figure,
    facts,
  );

  // The most sequences of the context data.contexts[at]; null where the model's own context is shorter.
  function most(memory, weights, at, machine) {
    if (at >= memory.reserved.length) return null;
    return Math.max(0, Math.floor((machine - weights.bytes) / memory.reserved[at]));
  }

  function row(title, memory, weights, machine, wanted) {
    if (!weights)
      return h(
        'tr',
        {},
        h('th', { scope: 'row' }, title),
        h('td', { colspan: columns.length + 1 }, unknown()),
      );
    return h(
      'tr',
      {},
      h('th', { scope: 'row' }, title),
      h('td', {}, `${digits(weights.bytes / 1e9)} GB`),
      columns.map((at) => {
        const found = most(memory, weights, at, machine);
        if (found === null) return h('td', { class: 'unknown' }, 'beyond its context');
        return h(
          'td',
          { class: found >= wanted ? 'yes' : 'no' },
          weights.bytes > machine
            ? 'weights too big'
            : found === 0
              ? 'no room'
              : `${found >= wanted ? '✓' : '✗'} up to ${found.toLocaleString('en')}`,
        );
      }),
    );
  }

  function draw() {
    const device = data.devices.find(({ name }) => name === value(root, 'device'));
    const machine = device.memory * Number(value(root, 'devices')),
      wanted = Number(value(root, 'sequences'));
    const model = models.find(({ name }) => name === value(root, 'fit'));
    const rows = model
      ? model.memory.weights.map((weights, i) =>
          row(
            i ? weights?.quant : `as released${weights ? ` (${weights.quant})` : ''}`,
            model.memory,
            weights,
            machine,
            wanted,
          ),
        )
      : models.map((each) => row(each.title, each.memory, each.memory.weights[0], machine, wanted));
    const contexts = columns.map((at) => `${tokens(data.contexts[at])} tokens`);
    fill(figure, grid('What fits', 'matrix', [model ? model.title : 'Model', 'weights', ...contexts], rows));
    fill(
      facts,
      `${digits(machine / 1e9, 4)} GB of ${value(root, 'devices')} × ${device.title} are there for weights and cache: ${Math.round(device.share * 100)} % of the memory. A cell says how many sequences of that length fit beside the weights, with the cache as an engine reserves it; ✓ where that is at least ${wanted}. Device: `,
      source(device.source),
    );
  }
  return { root, draw };
}
