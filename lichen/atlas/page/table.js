// The comparison: a row per model, a column per question, every cell with its sources.

function table() {
  const parts = [...new Set(data.table.map(({ section }) => section))];
  const figure = h('div'),
    readout = h('div', { class: 'readout', 'aria-live': 'polite' });
  const root = h(
    'div',
    {},
    controls(
      buttons(
        'Columns',
        'columns',
        parts[0],
        parts.map((part) => [part, part]),
        draw,
      ),
    ),
    figure,
    readout,
    h(
      'p',
      { class: 'note' },
      'The whole table, all columns, with its sources: ',
      save('as CSV', 'csv', 'text/csv', asCsv),
      ' ',
      save('as JSON', 'json', 'application/json', asJson),
    ),
  );

  // As `lichen compare --csv --sources` and `--json` print it.
  function asCsv() {
    const head = data.models.flatMap(({ name }) => [name, `${name} sources`]);
    const lines = data.table.map(({ section, label, cells }) => [
      section,
      label,
      ...data.models.flatMap(({ name }) => [cells[name].text, cells[name].sources.join(' | ')]),
    ]);
    const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    return [['section', 'row', ...head], ...lines].map((line) => `${line.map(quoted).join(',')}\n`).join('');
  }

  function asJson() {
    const { name, newest } = data.price_table;
    const content = {
      prices: { at: data.at, table: name, newest_entry: newest },
      models: Object.fromEntries(data.models.map(({ name, title }) => [name, title])),
      rows: data.table,
    };
    return `${JSON.stringify(content, null, 2)}\n`;
  }

  // A button that gives the reader a file, made here: the page has no server to ask.
  function save(text, ending, type, make) {
    const click = () => {
      const address = URL.createObjectURL(new Blob([make()], { type }));
      h('a', { href: address, download: `lichen-atlas-${data.as_of}.${ending}` }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60_000);
    };
    return h('button', { type: 'button', 'data-save': ending, click }, text);
  }

  // A number to sort by where there is one, else the text; null for what is unknown.
  function rank(cell) {
    let found = Array.isArray(cell.value) ? cell.value[0] : cell.value;
    if (found && typeof found === 'object')
      found = found.bytes ?? found.ideal ?? found.input ?? found.value ?? cell.text;
    return found ?? null;
  }

  function draw() {
    const columns = data.table.filter(({ section }) => section === value(root, 'columns'));
    const sorted = columns.find(({ label }) => label === chosen.get('sort'));
    const down = chosen.get('order') === 'down';
    const models = [...data.models];
    if (sorted) {
      models.sort((a, b) => {
        const [left, right] = [a, b].map(({ name }) => rank(sorted.cells[name]));
        if (left === null || right === null) return (left === null) - (right === null);
        const order =
          typeof left === 'number' && typeof right === 'number'
            ? left - right
            : String(left).localeCompare(String(right), 'en', { numeric: true });
        return down ? -order : order;
      });
    }
    const sort = (label) => () => {
      choose('order', sorted?.label === label && !down ? 'down' : 'up', 'up');
      choose('sort', label, '');
      draw();
      root.querySelector(`[data-sort="${CSS.escape(label)}"]`).focus();
    };
    const tell = (model, row) => () =>
      fill(
        readout,
        h('p', {}, h('strong', {}, `${model.title}, ${row.label}: `), row.cells[model.name].text),
        row.cells[model.name].sources.map((line) => h('p', {}, source(line))),
      );
    fill(readout, h('p', {}, 'Press a heading to sort, and a value for where it comes from.'));
    const headings = columns.map(({ label }) =>
      h(
        'th',
        {
          scope: 'col',
          'aria-sort': sorted?.label === label ? (down ? 'descending' : 'ascending') : 'none',
        },
        h(
          'button',
          { type: 'button', 'data-sort': label, click: sort(label) },
          label,
          sorted?.label === label ? (down ? ' ↓' : ' ↑') : '',
        ),
      ),
    );
    const rows = models.map((model) =>
      h(
        'tr',
        {},
        h('th', { scope: 'row' }, model.title),
        columns.map((row) => {
          const cell = row.cells[model.name];
          if (cell.value === null && !cell.sources.length) return h('td', { class: 'unknown' }, cell.text);
          return h(
            'td',
            {},
            cell.sources.length
              ? h('button', { type: 'button', click: tell(model, row) }, cell.text)
              : cell.text,
          );
        }),
      ),
    );
    fill(figure, grid('Comparison', 'wide', ['Model', ...headings], rows));
  }
  return { root, draw };
}
