"""Models side by side: one row per question, one cell per model, each cell with what it rests on."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from functools import partial
from typing import Any

from lichen.arch.account import released_bytes, released_dtype
from lichen.arch.cache import cache_bytes, native_layout
from lichen.arch.published import named_models
from lichen.arch.spec import ModelSpec
from lichen.arch.weights import active_parameters, total_parameters
from lichen.atlas.catalogue.model import Catalogue, Model
from lichen.atlas.catalogue.scores import Score
from lichen.atlas.market import words
from lichen.atlas.market.prices import default_provider, prices_on, table
from lichen.atlas.market.workloads import STANDARD, ratio, reference_model
from lichen.facts.record import Fact, known
from lichen.files.csv_file import csv_text

CONTEXTS = (32768, 131072, 262144, 1048576)
FACTS = {
    "model": (
        "lab",
        "country",
        "release",
        "open_weights",
        "license",
        "obligations",
        "modalities",
        "successor",
    ),
    "size": ("total_parameters", "active_parameters", "context", "api_context", "max_output"),
    "training": ("tokens_trained", "training_gpu_hours", "optimizer"),
}
PRICE_FIELDS = ("provider", "input", "output", "cache_read", "window", "above")  # for a program


@dataclass(frozen=True)
class Cell:
    """`text` for a person, `value` for a program (None: unknown), and a line per source."""

    text: str
    value: Any = None
    sources: tuple[str, ...] = ()


NOTHING = Cell(words.UNKNOWN)


@dataclass(frozen=True)
class Row:
    section: str
    label: str
    cells: dict[str, Cell]  # by model name


def compare(
    models: Sequence[Model], catalogue: Catalogue, at: datetime, reference: str | None = None
) -> list[Row]:
    """The table of `models`: facts as known to `catalogue`, prices at `at` (aware) and over `reference`'s.

    `reference` None is GPT-5.5, if it was out. Raises LichenError for a reference that is not there.
    """
    return [
        *_facts(models, "model"),
        *_facts(models, "size"),
        *computed(models),
        *_facts(models, "training"),
        *_prices(models, reference_model(catalogue, reference), at),
        *_scores(models),
    ]


def _facts(models: Sequence[Model], section: str) -> list[Row]:
    return [
        Row(section, words.label(field), {model.name: fact_cell(model, field) for model in models})
        for field in FACTS[section]
    ]


def fact_cell(model: Model, field: str, others: bool = True) -> Cell:
    """What is known of `field`; with `others`, what else was or is told follows the value that counts."""
    facts: tuple[Fact[Any], ...] | str = getattr(model, field)
    if isinstance(facts, str):
        return Cell(facts, facts)
    fact = known(facts)
    if fact is None:
        return NOTHING
    told = [other for other in facts if others and other.value != fact.value]
    text = words.value(field, fact.value)
    for other in told:
        text += f"; {'elsewhere' if other.secondary else 'also'} {words.value(field, other.value)}"
    return Cell(text, fact.model_dump(mode="json")["value"], tuple(map(words.sources, (fact, *told))))


def computed(models: Sequence[Model]) -> list[Row]:
    """What the models' configs say: sizes, parts, bytes; no row where none of them has a public config."""
    specs = {model.name: spec for model in models if (spec := model.spec)}
    if not specs:
        return []
    sources = {model.name: (f"computed from {_config(model)}",) for model in models}

    def row(label: str, cell: Callable[[ModelSpec], Cell], section: str = "architecture") -> Row:
        cells = {name: replace(cell(spec), sources=sources[name]) for name, spec in specs.items()}
        return Row(section, label, {model.name: cells.get(model.name, NOTHING) for model in models})

    return [
        row("parameters, counted", lambda spec: _counted(total_parameters(spec)), "size"),
        row("active, counted", lambda spec: _counted(active_parameters(spec)), "size"),
        row("layers", lambda spec: _plain(len(spec.layers))),
        row("hidden size", lambda spec: _plain(spec.hidden_size)),
        row("attention", lambda spec: _kinds(layer.attention for layer in spec.layers)),
        row("feed-forward", lambda spec: _kinds(layer.feed_forward for layer in spec.layers)),
        row("residual", lambda spec: _plain(spec.residual.words() if spec.residual else "sum")),
        row("vocabulary", lambda spec: _plain(spec.vocab_size)),
        row("multi-token prediction", lambda spec: _plain(len(spec.mtp))),
        row("weights as released", _released, "memory"),
        *(
            row(f"cache at {context:,} tokens", partial(_cache, context=context), "memory")
            for context in CONTEXTS
        ),
    ]


def _config(model: Model) -> str:
    config = named_models().get(model.spec_name or "")
    return f"{config.source}, {config.date}" if config else str(model.spec_name)


def _counted(number: int) -> Cell:
    return Cell(words.count(number), number)


def _plain(value: int | str) -> Cell:
    return Cell(value if isinstance(value, str) else f"{value:,}", value)


def _kinds(parts: Iterable[Any]) -> Cell:
    """How many layers have each kind of a part: `61 x MLA, 64 heads, latent 512 + 64`."""
    found = Counter(part.words() for part in parts)
    return _plain("; ".join(f"{count} x {kind}" for kind, count in found.items()))


def _released(spec: ModelSpec) -> Cell:
    size, dtype = released_bytes(spec), released_dtype(spec)
    if size is None:
        return NOTHING
    return Cell(f"{words.size(size)} ({dtype})", {"bytes": size, "dtype": dtype})


def _cache(spec: ModelSpec, context: int) -> Cell:
    """Ideal and reserved bytes; nothing for a context that the model does not have."""
    if context > spec.max_position_embeddings:
        return Cell("beyond its context")
    size, layout = cache_bytes(spec, context), native_layout(spec)
    text = f"{words.gib(size.ideal)}, reserved {words.gib(size.reserved)} ({layout})"
    return Cell(text, {**asdict(size), "layout": layout})


def _prices(models: Sequence[Model], reference: Model | None, at: datetime) -> Iterator[Row]:
    day = at.astimezone(UTC).date()
    prices = {model.name: _price(model, day) for model in models}
    yield Row("price", "USD per million tokens, in / out / cached", prices)
    if reference is None:
        return
    for name, workload in STANDARD.items():
        ratios = {model.name: ratio(model, reference, workload, at) for model in models}
        cells = {model: Cell(words.share(found), found) for model, found in ratios.items()}
        yield Row("price", f"{name}, against {reference.name}, {at.astimezone(UTC):%H:%M} UTC", cells)


def _price(model: Model, day: date) -> Cell:
    provider = default_provider(model, day)
    if provider is None:
        return NOTHING
    prices = prices_on(model, provider, day)
    return Cell(
        f"{provider}: " + "; ".join(map(words.rates, prices)),
        [{field: getattr(price, field) for field in PRICE_FIELDS} for price in prices],
        tuple(dict.fromkeys(price.told_by for price in prices)),
    )


def _scores(models: Sequence[Model]) -> Iterator[Row]:
    """A row per benchmark, version, variant and unit: only what stands in one row may be compared.

    The benchmarks that most of the models report come first.
    """
    found: dict[tuple[str, str, str], dict[str, list[Score]]] = {}
    versioned, stated = set(), set()
    for model in models:
        for score in model.scores:
            key = (score.benchmark, score.test, score.unit)
            found.setdefault(key, {}).setdefault(model.name, []).append(score)
            if score.version:
                versioned.add(score.benchmark)
                stated.add(key)
    spread: dict[str, int] = {}
    for (benchmark, _, _), by_model in found.items():
        spread[benchmark] = max(spread.get(benchmark, 0), len(by_model))
    for key in sorted(found, key=lambda key: (-spread[key[0]], key)):
        benchmark, test, _ = key
        label = test if key in stated or benchmark not in versioned else f"{test}, version not stated"
        yield Row("scores", label, {model.name: _score(model, found[key]) for model in models})


def _score(model: Model, by_model: dict[str, list[Score]]) -> Cell:
    scores = by_model.get(model.name, [])
    if not scores:
        return NOTHING
    return Cell(
        "; ".join(words.score(score, model.lab) for score in scores),
        [score.model_dump(mode="json") for score in scores],
        tuple(map(words.sources, scores)),
    )


def footnotes(rows: Iterable[Row]) -> dict[str, int]:
    """Every source in the order of its first use, numbered from 1."""
    lines = (line for row in rows for cell in row.cells.values() for line in cell.sources)
    return {line: number for number, line in enumerate(dict.fromkeys(lines), 1)}


def marks(cell: Cell, notes: dict[str, int]) -> str:
    """The footnote marks of a cell: ` [3][4]`."""
    found = "".join(f"[{notes[line]}]" for line in dict.fromkeys(cell.sources) if line in notes)
    return f" {found}" if found else ""


def to_json(rows: Sequence[Row], titles: dict[str, str], at: datetime) -> str:
    """The whole table with values and sources, and the price table it used."""
    name, newest = table()
    content = {
        "prices": {"at": at.isoformat(), "table": name, "newest_entry": newest.isoformat()},
        "models": titles,
        "rows": [asdict(row) for row in rows],
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def to_markdown(rows: Sequence[Row], titles: dict[str, str], notes: dict[str, int]) -> str:
    """A Markdown table with a column per model, and the footnotes `notes` below it."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    lines = [line(["", *titles.values()]), line(["---"] * (len(titles) + 1))]
    lines += [line([row.label, *(c.text + marks(c, notes) for c in row.cells.values())]) for row in rows]
    return "\n".join([*lines, "", *(f"[{number}]: {text}  " for text, number in notes.items())]).rstrip()


def to_csv(rows: Sequence[Row], titles: dict[str, str], with_sources: bool) -> str:
    """CSV with a column per model and, if asked for, one of sources beside each."""
    header = [[name, f"{name} sources"] if with_sources else [name] for name in titles]
    lines = [["section", "row", *(column for pair in header for column in pair)]]
    for row in rows:
        cells = row.cells.values()
        pairs = [[c.text, " | ".join(c.sources)] if with_sources else [c.text] for c in cells]
        lines.append([row.section, row.label, *(text for pair in pairs for text in pair)])
    return csv_text(lines)
