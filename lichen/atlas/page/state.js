// What the reader has chosen lives in the address: #index=HLE&mix=agentic. A link is a view.

let chosen = new URLSearchParams(location.hash.slice(1));

function choose(name, value, usual) {
  if (String(value) === String(usual)) chosen.delete(name);
  else chosen.set(name, value);
  history.replaceState(null, '', `#${chosen}`);
}

// Controls. Each knows its name in the address, its usual value, and what to do after a change.
// `options`: [value, text] pairs. A value in the address that is none of them counts as the usual one.

function current(name, usual, options) {
  const value = chosen.get(name);
  return options.some(([option]) => String(option) === value) ? value : String(usual);
}

function dropdown(label, name, usual, options, changed) {
  const select = h(
    'select',
    {
      name,
      change: () => {
        choose(name, select.value, usual);
        changed();
      },
    },
    options.map(([value, text]) => h('option', { value }, text)),
  );
  select.value = current(name, usual, options);
  return h('label', { class: 'control' }, label, select);
}

function buttons(label, name, usual, options, changed) {
  const now = current(name, usual, options);
  const all = options.map(([value, text]) =>
    h(
      'button',
      {
        type: 'button',
        'aria-pressed': String(String(value) === now),
        'data-name': name,
        'data-value': value,
        click: (event) => {
          choose(name, value, usual);
          all.forEach((each) => each.setAttribute('aria-pressed', String(each === event.currentTarget)));
          changed();
        },
      },
      text,
    ),
  );
  return h('fieldset', { class: 'control' }, h('legend', {}, label), h('div', { class: 'buttons' }, all));
}

// `words` says what a position of the slider means.
function slider(label, name, usual, { min, max, step }, words, changed) {
  const given = Number(chosen.get(name) ?? usual);
  const value = given >= min && given <= max ? given : usual;
  const output = h('output', {}, words(value));
  const input = h('input', {
    type: 'range',
    name,
    id: `slide-${name}`,
    min,
    max,
    step,
    value,
    input: () => {
      output.textContent = words(Number(input.value));
      choose(name, input.value, usual);
      changed();
    },
  });
  // Named by its id: an output can have a label too, and would take this one.
  return h('label', { class: 'control', for: input.id }, h('span', {}, label, ' ', output), input);
}

const controls = (...each) => h('div', { class: 'controls' }, each);

// What a control says now.
const value = (root, name) =>
  root.querySelector(`[name="${name}"]`)?.value ??
  root.querySelector(`[data-name="${name}"][aria-pressed="true"]`).dataset.value;
