// Which model to pick, by rules that are shown beside the answer.

function advice() {
  const answer = h('div', { 'aria-live': 'polite' });
  const root = h(
    'div',
    {},
    controls(
      buttons(
        'What it is for',
        'for',
        data.advice[0].name,
        data.advice.map(({ name, title }) => [name, title]),
        draw,
      ),
    ),
    answer,
    h(
      'details',
      {},
      h('summary', {}, 'All rules, as the file that `lichen advise --rules` prints'),
      h('pre', { tabindex: 0 }, data.rules),
    ),
    h(
      'p',
      { class: 'note' },
      'With your own budget, hardware, context or license: ',
      h('code', {}, 'lichen advise --for agent --budget 500 --license permissive'),
      '.',
    ),
  );

  function draw() {
    const now = data.advice.find(({ name }) => name === value(root, 'for'));
    const assumed = [
      ...now.require.map(
        (each) =>
          ({ open_weights: 'its weights can be downloaded', price: 'somebody lists a price' })[each] ?? each,
      ),
      ...Object.entries(now.assume).map(([name, each]) => `${name.replaceAll('_', ' ')} ${each}`),
    ];
    fill(
      answer,
      h('h3', {}, 'The rules: asked in this order'),
      h(
        'ol',
        {},
        now.criteria.map(({ label, why, within }) =>
          h('li', {}, h('strong', {}, label), within === '0' ? '. ' : ` (even within ${within}). `, why),
        ),
      ),
      assumed.length
        ? h('p', { class: 'note' }, `Taken for granted unless you say otherwise: ${assumed.join('; ')}.`)
        : '',
      now.nobody
        ? h('p', {}, now.nobody)
        : h(
            'ol',
            { class: 'places' },
            now.ranking.map((place) =>
              h(
                'li',
                {},
                h(
                  'div',
                  { class: 'place' },
                  h('h3', {}, place.title),
                  h(
                    'dl',
                    {},
                    now.criteria.map(({ label }, i) => [
                      h('dt', {}, label),
                      h(
                        'dd',
                        { class: place.answers[i].value === null ? 'unknown' : null },
                        place.answers[i].text,
                      ),
                    ]),
                  ),
                  [place.decided_by, place.would_change, ...place.notes]
                    .filter(Boolean)
                    .map((text) => h('p', { class: 'note' }, text)),
                  h(
                    'details',
                    {},
                    h('summary', {}, 'The facts behind it'),
                    h(
                      'ul',
                      { class: 'evidence' },
                      place.answers.flatMap(({ facts }) => facts).map((text) => h('li', {}, source(text))),
                    ),
                  ),
                ),
              ),
            ),
          ),
      now.alternatives.length
        ? h('p', {}, h('strong', {}, 'Another would lead: '), now.alternatives.join('; '), '.')
        : '',
      now.excluded.length
        ? h(
            'details',
            {},
            h('summary', {}, `${now.excluded.length} cut beforehand`),
            h(
              'ul',
              { class: 'evidence' },
              now.excluded.map((each) => h('li', {}, `${each.model}: ${each.constraint}: ${each.why}`)),
            ),
          )
        : '',
    );
  }
  return { root, draw };
}
