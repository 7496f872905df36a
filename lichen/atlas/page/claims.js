// An article's claims, each with a verdict on the article's day and on this page's.

function claims() {
  const { title, claims: all, verdicts } = data.claims;
  const kinds = [...new Set(verdicts.flatMap(({ checked }) => checked.map(({ verdict }) => verdict)))];
  const latest = verdicts.at(-1);
  const style = (verdict) =>
    `verdict ${{ supported: 'supported', contradicted: 'contradicted', 'partly supported': 'partly' }[verdict] ?? 'open'}`;
  const count = (kind) => latest.checked.filter(({ verdict }) => verdict === kind).length;
  const list = h('ul', { class: 'claims', 'aria-live': 'polite' });
  const root = h(
    'div',
    {},
    h('p', { class: 'note' }, `${title}, ${data.claims.date}, `, source(data.claims.source)),
    controls(
      buttons(
        'Show',
        'verdict',
        'all',
        [['all', `all ${all.length}`], ...kinds.map((kind) => [kind, `${kind} ${count(kind)}`])],
        draw,
      ),
    ),
    list,
  );

  function draw() {
    const kind = value(root, 'verdict');
    fill(
      list,
      all.map((claim, i) => {
        if (kind !== 'all' && latest.checked[i].verdict !== kind) return null;
        const changed = new Set(verdicts.map(({ checked }) => checked[i].verdict)).size > 1;
        return h(
          'li',
          {},
          h('p', {}, claim.statement),
          h(
            'p',
            {},
            (changed ? verdicts : [latest]).map(({ day, checked }, j) => [
              j ? ', then ' : '',
              h('span', { class: style(checked[i].verdict) }, checked[i].verdict),
              changed ? ` on ${day}` : '',
            ]),
            h('span', { class: 'note' }, ` · ${latest.checked[i].how}`),
          ),
          h(
            'details',
            {},
            h('summary', {}, 'Evidence'),
            h(
              'ul',
              { class: 'evidence' },
              latest.checked[i].evidence.map((line) => h('li', {}, source(line))),
            ),
            claim.note ? h('p', { class: 'note' }, claim.note) : '',
          ),
        );
      }),
    );
  }
  return { root, draw };
}
