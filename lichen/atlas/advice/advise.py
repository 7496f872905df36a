"""Which model to pick: constraints cut, then criteria are asked in the order in which the rules name them.

The rules are data (advice.yaml, or a file of the user's own), the ranking has no weights
(lichen.atlas.advice.ranking), and every place says what decided it, what was unknown, and what would change
it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from pathlib import Path

from pydantic import Field

from lichen.atlas.advice.constraints import Constraints, Excluded, Requirement, cut, cuts, emptied
from lichen.atlas.advice.criteria import Answer, Criterion, answers, higher_is_better, worded
from lichen.atlas.advice.ranking import Place, Scale, rank
from lichen.atlas.catalogue.model import Catalogue, Model
from lichen.errors import LichenError
from lichen.facts.record import Record, known, known_value
from lichen.facts.yaml_file import field_error, parse, read_yaml
from lichen.machine.devices import parse as parse_machine
from lichen.machine.fits import check_quant

SHIPPED_RULES = Path(__file__).parent / "advice.yaml"


class Scenario(Record):
    title: str
    assume: Constraints = Constraints()
    require: tuple[Requirement, ...] = ()
    criteria: tuple[Criterion, ...] = Field(min_length=1)


class Rules(Record):
    """`licenses`: words that stand for several licenses. `scenarios`: by the name `--for` takes."""

    licenses: dict[str, tuple[str, ...]]
    scenarios: dict[str, Scenario] = Field(min_length=1)


@dataclass(frozen=True)
class Recommendation:
    """One place. `answers`: one per criterion of the scenario, in its order. `decided_by` and `would_change`
    compare it with the next place, if there is one. `unknown`: the criteria without an answer."""

    model: str
    title: str
    answers: tuple[Answer, ...]
    decided_by: str | None
    would_change: str | None
    unknown: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Advice:
    """`constraints`: the person's, with what the scenario assumes. `alternatives`: who would lead if a
    constraint were dropped, or if another criterion were asked first."""

    scenario: str
    title: str
    at: datetime
    constraints: Constraints
    criteria: tuple[Criterion, ...]
    ranking: tuple[Recommendation, ...]
    excluded: tuple[Excluded, ...]
    alternatives: tuple[str, ...]


def load_rules(path: Path) -> Rules:
    """The rules in `path`. Raises LichenError naming file, line and field."""
    rules = parse(Rules, read_yaml(path), path)
    for name, scenario in rules.scenarios.items():
        for field, check in (("hardware", parse_machine), ("quant", check_quant)):
            if (value := getattr(scenario.assume, field)) is not None:
                try:
                    check(value)
                except LichenError as error:
                    raise field_error(path, ["scenarios", name, "assume", field], str(error)) from None
    return rules


@cache
def shipped_rules() -> Rules:
    """Those that hold where a person brings none."""
    return load_rules(SHIPPED_RULES)


def advise(
    scenario: str, constraints: Constraints, catalogue: Catalogue, at: datetime, rules: Rules | None = None
) -> Advice:
    """The ranking for `scenario` (a name in the rules) at `at`, on the catalogue of that day.

    Raises LichenError for an unknown scenario or license word, and when no model is left: it says which
    constraint emptied the list, and which change of a single one would leave whom.
    """
    rules = rules or shipped_rules()
    if scenario not in rules.scenarios:
        raise LichenError(f"no scenario {scenario!r} in the rules; there are {', '.join(rules.scenarios)}")
    chosen = rules.scenarios[scenario]
    wanted = constraints.over(chosen.assume)
    models = list(catalogue.models.values())
    if not models:
        raise LichenError(f"no model of the catalogue was out on {catalogue.as_of}")
    all_cuts = list(cuts(wanted, chosen.require, rules.licenses, models, at))
    left, excluded = cut(models, all_cuts)
    if not left:
        raise LichenError(emptied(models, all_cuts))

    def ask(candidates: Sequence[Model]) -> Told:
        return [(each, answers(each, candidates, catalogue, wanted, at)) for each in chosen.criteria]

    told = ask(left)
    places = _places(told, catalogue)
    ranking = tuple(
        _recommendation(place, after, catalogue, told)
        for place, after in zip(places, [*places[1:], None], strict=True)
    )
    leader = places[0].name
    alternatives = []
    for dropped in all_cuts:
        more, _ = cut(models, [other for other in all_cuts if other is not dropped])
        if len(more) > len(left):
            first = _places(ask(more), catalogue)[0].name
            alternatives += [f"without {dropped.name!r}: {first}"] if first != leader else []
    for index, (criterion, _) in enumerate(told):
        first = _places([told[index], *told[:index], *told[index + 1 :]], catalogue)[0].name
        alternatives += [f"asked for {criterion.label} first: {first}"] if first != leader else []
    return Advice(scenario, chosen.title, at, wanted, chosen.criteria, ranking, excluded, tuple(alternatives))


Told = list[tuple[Criterion, dict[str, Answer]]]  # per criterion everyone's answer, by model name


def _places(told: Told, catalogue: Catalogue) -> list[Place]:
    """The order, the criteria asked as they come. Whom nothing tells apart: the newer first, then by name."""
    scales = []
    for criterion, by_model in told:
        values = {name: answer.value for name, answer in by_model.items()}
        scales.append(Scale(values, higher_is_better(criterion), criterion.within))
    by_name = sorted(told[0][1])
    released = {name: known_value(catalogue.get(name).release) or date.min for name in by_name}
    return rank(sorted(by_name, key=lambda name: released[name], reverse=True), scales)


def _recommendation(place: Place, after: Place | None, catalogue: Catalogue, told: Told) -> Recommendation:
    model = catalogue.get(place.name)
    own = tuple(by_name[place.name] for _, by_name in told)
    unknown = tuple(
        criterion.label for (criterion, _), answer in zip(told, own, strict=True) if answer.value is None
    )
    decided_by = would_change = None
    if after and (place.decided is None or place.limit is None):
        decided_by = f"nothing tells it from {after.name}: the newer one stands first"
    elif after and place.decided is not None and place.limit is not None:
        criterion, by_name = told[place.decided]
        mine, other = by_name[place.name], by_name[after.name]
        decided_by = f"above {after.name} by {criterion.label}: {mine.text}, against {other.text}"
        verb = "were known and" if other.value is None else "were"
        limit = worded(criterion, place.limit)
        would_change = f"{after.name} would draw level if its {criterion.label} {verb} {limit}"
    successor = known(model.successor)
    notes = (f"superseded by {successor.value} ({successor.date})",) if successor and successor.value else ()
    return Recommendation(model.name, model.title, own, decided_by, would_change, unknown, notes)
