// What the reader has chosen lives in the address: #index=HLE&mix=agentic. A link is a view.

let chosen = new URLSearchParams(location.hash.slice(1));

function choose(name, value, usual) {
  if (String(value) === String(usual)) chosen.delete(name);
  else chosen.set(name, value);
  history.replaceState(null, '', `#${chosen}`);
}

// Controls. Each knows its name in the address, its options, and what to do after a change.
// `options`: [value, text] pairs, or values that are their own text. The first is the usual one where no other
// is given as such. A value in the address that is none of them counts as the usual one.

function choice(name, options, usual) {
  const pairs = options.map((each) => (Array.isArray(each) ? each : [each, each]));
  usual ??= pairs[0][0];
  const value = chosen.get(name);
  return { pairs, usual, now: pairs.some(([option]) => String(option) === value) ? value : String(usual) };
}

function dropdown(label, name, options, changed, preset) {
  const { pairs, usual, now } = choice(name, options, preset);
  const change = () => {
    choose(name, select.value, usual);
    changed();
  };
  const select = h('select', { name, change }, ...pairs.map(([value, text]) => h('option', { value }, text)));
  select.value = now;
  return h('label', { class: 'control' }, label, select);
}

function buttons(label, name, options, changed) {
  const { pairs, usual, now } = choice(name, options);
  const all = pairs.map(([value, text]) => {
    const click = () => {
      choose(name, value, usual);
      all.forEach((each) => press(each, each === button));
      changed();
    };
    const button = h('button', { type: 'button', 'data-name': name, 'data-value': value, click }, text);
    return press(button, String(value) === now);
  });
  return group(label, all);
}

function press(button, pressed) {
  button.setAttribute('aria-pressed', pressed);
  return button;
}

const group = (label, all) =>
  h('fieldset', { class: 'control' }, h('legend', label), h('div', { class: 'buttons' }, all));

// `words` says what a position of the slider means.
function slider(label, name, usual, range, words, changed) {
  const given = Number(chosen.get(name) ?? usual);
  const value = given >= range.min && given <= range.max ? given : usual;
  const output = h('output', words(value));
  const input = h('input', {
    type: 'range',
    name,
    id: `slide-${name}`,
    ...range,
    value,
    input: () => {
      output.textContent = words(Number(input.value));
      choose(name, input.value, usual);
      changed();
    },
  });
  // Named by its id: an output can have a label too, and would take this one.
  return h('label', { class: 'control', for: input.id }, h('span', label, ' ', output), input);
}

const controls = (...each) => h('div', { class: 'controls' }, each);
const titled = (all) => all.map(({ name, title }) => [name, title]);

// What a control says now.
const value = (name) =>
  document.querySelector(`select[name="${name}"], input[name="${name}"]`)?.value ??
  document.querySelector(`[data-name="${name}"][aria-pressed="true"]`).dataset.value;
