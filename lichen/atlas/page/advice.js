// Which model to pick, by rules that are shown beside the answer.

function advice() {
  const answer = h('div', { 'aria-live': 'polite' });
  const parts = [
    controls(buttons('What it is for', 'for', titled(data.advice), draw)),
    answer,
    disclosure(
      'All rules, as the file that `lichen advise --rules` prints',
      h('pre', { tabindex: 0 }, data.rules),
    ),
    note(
      'With your own budget, hardware, context or license: ',
      h('code', 'lichen advise --for agent --budget 500 --license permissive'),
      '.',
    ),
  ];
  const required = { open_weights: 'its weights can be downloaded', price: 'somebody lists a price' };

  function draw() {
    const { criteria, require, assume, nobody, ranking, alternatives, excluded } = data.advice.find(
      ({ name }) => name === value('for'),
    );
    const assumed = [
      ...require.map((each) => required[each] ?? each),
      ...Object.entries(assume).map(([name, each]) => `${name.replaceAll('_', ' ')} ${each}`),
    ].join('; ');
    const asked = criteria.map(({ label, why, within }) =>
      h('li', h('strong', label), within === '0' ? '. ' : ` (even within ${within}). `, why),
    );
    const place = ({ title, answers, decided_by, would_change, notes }) =>
      h(
        'div',
        { class: 'place' },
        h('h3', title),
        h(
          'dl',
          answers.map(({ value, text }, i) => [
            h('dt', criteria[i].label),
            h('dd', { class: value === null && 'unknown' }, text),
          ]),
        ),
        [decided_by, would_change, ...notes].filter(Boolean).map((text) => note(text)),
        disclosure(
          'The facts behind it',
          list('evidence', answers.flatMap(({ facts }) => facts).map(source)),
        ),
      );
    const cut = excluded.map(({ model, constraint, why }) => `${model}: ${constraint}: ${why}`);
    fill(
      answer,
      h('h3', 'The rules: asked in this order'),
      h('ol', asked),
      assumed !== '' && note(`Taken for granted unless you say otherwise: ${assumed}.`),
      nobody
        ? h('p', nobody)
        : h(
            'ol',
            { class: 'places' },
            ranking.map((each) => h('li', place(each))),
          ),
      alternatives.length > 0 && h('p', h('strong', 'Another would lead: '), alternatives.join('; '), '.'),
      cut.length > 0 && disclosure(`${cut.length} cut beforehand`, list('evidence', cut)),
    );
  }
  return { parts, draw };
}
