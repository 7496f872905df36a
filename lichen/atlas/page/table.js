// The comparison: a row per model, a column per question, every cell with its sources.

function table() {
  const sections = [...new Set(data.table.map(({ section }) => section))];
  const figure = h('div'),
    told = readout();
  const parts = [
    controls(buttons('Columns', 'columns', sections, draw)),
    figure,
    told,
    note(
      'The whole table, all columns, with its sources: ',
      save('as CSV', 'csv', 'text/csv', asCsv),
      ' ',
      save('as JSON', 'json', 'application/json', asJson),
    ),
  ];

  // As `lichen compare --csv --sources` and `--json` print it.
  function asCsv() {
    const head = data.models.flatMap(({ name }) => [name, `${name} sources`]);
    const lines = data.table.map(({ section, label, cells }) => [
      section,
      label,
      ...data.models.flatMap(({ name }) => [cells[name].text, cells[name].sources.join(' | ')]),
    ]);
    // As csv_file.py does: what a spreadsheet would take for a formula has a ' before it.
    const shown = (text) => (/^[=+\-@\t\r\n]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text);
    const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    return [['section', 'row', ...head], ...lines]
      .map((line) => `${line.map(shown).map(quoted).join(',')}\n`)
      .join('');
  }

  function asJson() {
    const { name, newest } = data.price_table;
    const content = {
      prices: { at: data.at, table: name, newest_entry: newest },
      models: Object.fromEntries(titled(data.models)),
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
    const [found = null] = [cell.value].flat();
    if (found === null || typeof found !== 'object') return found;
    return found.bytes ?? found.ideal ?? found.input ?? found.value ?? cell.text;
  }

  function draw() {
    const columns = data.table.filter(({ section }) => section === value('columns'));
    const sorted = columns.find(({ label }) => label === chosen.get('sort'));
    const down = chosen.get('order') === 'down';
    const models = data.models.toSorted((a, b) => {
      if (!sorted) return 0;
      const [left, right] = [a, b].map(({ name }) => rank(sorted.cells[name]));
      if (left === null || right === null) return (left === null) - (right === null);
      const order =
        typeof left === 'number' && typeof right === 'number'
          ? left - right
          : String(left).localeCompare(String(right), 'en', { numeric: true });
      return down ? -order : order;
    });
    const sort = (label) => () => {
      choose('order', sorted?.label === label && !down ? 'down' : 'up', 'up');
      choose('sort', label, '');
      draw();
      figure.querySelector(`[data-sort="${CSS.escape(label)}"]`).focus();
    };
    const tell = (title, label, { text, sources }) =>
      fill(
        told,
        h('p', h('strong', `${title}, ${label}: `), text),
        sources.map((line) => h('p', source(line))),
      );
    fill(told, h('p', 'Press a heading to sort, and a value for where it comes from.'));
    const headings = columns.map(({ label }) => {
      const [order, arrow] =
        sorted?.label !== label ? ['none', ''] : down ? ['descending', ' ↓'] : ['ascending', ' ↑'];
      const button = h('button', { type: 'button', 'data-sort': label, click: sort(label) }, label, arrow);
      return h('th', { scope: 'col', 'aria-sort': order }, button);
    });
    const rows = models.map(({ name, title }) => [
      heading('row', title),
      ...columns.map(({ label, cells }) => {
        const cell = cells[name];
        if (!cell.sources.length) return h('td', { class: cell.value === null && 'unknown' }, cell.text);
        return h('button', { type: 'button', click: () => tell(title, label, cell) }, cell.text);
      }),
    ]);
    fill(figure, grid('Comparison', 'wide', ['Model', ...headings], rows));
  }
  return { parts, draw };
}
