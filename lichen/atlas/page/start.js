// The sections, in the order of the questions a reader asks; then the navigation and the theme.

const SECTIONS = [
  [
    'price',
    'Score and price',
    'What a model scores against what it costs, for your mix of tokens. The dashed line joins those that nobody beats on both.',
    scatter,
  ],
  [
    'cache',
    'Cache',
    'How much memory one conversation takes as it grows. Few models grow by a fixed number of bytes per token.',
    cache,
  ],
  ['fits', 'What fits', 'Whether a model fits on your machine, and how many sequences beside it.', fits],
  ['table', 'Side by side', 'All that is known, and what is not.', table],
  ['lineage', 'Lineage', 'Who took what from whom, and on what evidence.', lineage],
  ['risk', 'Risk', 'What rests on whom, in numbers. They count what the lineage graph has, no more.', risk],
  [
    'advice',
    'Advice',
    'Which open model to pick, by rules that can be read and changed. No weights, no total score: one criterion decides between two neighbours, and it is named.',
    advice,
  ],
  ['claims', 'Claims', 'What one article says, checked against this data.', claims],
  ['history', 'Price history', 'Prices have dates, and at some providers hours.', prices],
];

function start() {
  document.getElementById('known').textContent =
    `${data.models.length} models as known on ${data.as_of}. Prices: ${data.price_table.name}, newest entry ${data.price_table.newest}.`;
  const main = document.getElementById('main');
  const links = [],
    drawn = [];
  for (const [id, title, lead, section] of SECTIONS) {
    const { parts, draw } = section();
    const name = h('h2', { id: `${id}-title`, tabindex: -1 }, title);
    const about = { id, 'aria-labelledby': name.id };
    main.append(h('section', about, name, h('p', { class: 'lead' }, lead), h('div', parts)));
    const click = (event) => {
      event.preventDefault();
      choose('section', id, '');
      show(id);
    };
    links.push(h('a', { href: `#${id}`, click }, title));
    drawn.push(draw);
  }
  document.getElementById('sections').append(list(null, links));
  drawn.forEach((draw) => draw());

  function show(id) {
    document.getElementById(id)?.scrollIntoView();
    document.getElementById(`${id}-title`)?.focus({ preventScroll: true });
  }
  if (chosen.get('section')) show(chosen.get('section'));

  const observer = new IntersectionObserver(
    (entries) => {
      const seen = entries.find((entry) => entry.isIntersecting);
      if (seen)
        links.forEach((link) => {
          link.ariaCurrent = link.hash === `#${seen.target.id}` ? 'true' : null;
        });
    },
    { rootMargin: '-20% 0px -75% 0px' },
  );
  document.querySelectorAll('section').forEach((section) => observer.observe(section));

  let width = innerWidth;
  addEventListener('resize', () => {
    if (width !== innerWidth) {
      width = innerWidth;
      drawn.forEach((draw) => draw());
    }
  });
  addEventListener('hashchange', () => location.reload()); // a pasted link: the controls read it anew
}

function theme() {
  const system = matchMedia('(prefers-color-scheme: dark)');
  const set = () => {
    document.documentElement.dataset.theme = chosen.get('theme') ?? (system.matches ? 'dark' : 'light');
  };
  system.addEventListener('change', set);
  document.getElementById('theme').addEventListener('click', () => {
    choose('theme', document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark', '');
    set();
  });
  set();
}

theme();
start();
