// An article's claims, each with a verdict on the article's day and on this page's.

function claims() {
  const { title, date, source: from, claims: all } = data.claims;
  const verdict = ({ verdicts }) => verdicts.at(-1).verdict;
  const kinds = [...new Set(all.flatMap(({ verdicts }) => verdicts.map((each) => each.verdict)))];
  const counted = kinds.map((kind) => [
    kind,
    `${kind} ${all.filter((each) => verdict(each) === kind).length}`,
  ]);
  const styles = { supported: 'supported', contradicted: 'contradicted', 'partly supported': 'partly' };
  const shown = h('ul', { class: 'claims', 'aria-live': 'polite' });
  const parts = [
    note(`${title}, ${date}, `, source(from)),
    controls(buttons('Show', 'verdict', [['all', `all ${all.length}`], ...counted], draw)),
    shown,
  ];

  function item({ statement, note: remark, verdicts }) {
    const latest = verdicts.at(-1);
    const changed = new Set(verdicts.map((each) => each.verdict)).size > 1;
    const told = (changed ? verdicts : [latest]).map((each, i) => [
      i ? ', then ' : '',
      h('span', { class: `verdict ${styles[each.verdict] ?? 'open'}` }, each.verdict),
      changed ? ` on ${each.day}` : '',
    ]);
    return h(
      'li',
      h('p', statement),
      h('p', told, h('span', { class: 'note' }, ` · ${latest.how}`)),
      disclosure('Evidence', list('evidence', latest.evidence.map(source)), remark && note(remark)),
    );
  }

  function draw() {
    const kind = value('verdict');
    fill(shown, all.filter((each) => kind === 'all' || verdict(each) === kind).map(item));
  }
  return { parts, draw };
}
