"""Which model to pick: constraints cut, then criteria are asked in the order in which the rules name them.

The rules are data (advice.yaml, or a file of the user's own), the ranking has no weights
(lichen.atlas.ranking), and every place says what decided it, what was unknown, and what would change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from pydantic import Field

from lichen.atlas.catalogue import Catalogue, Model
from lichen.atlas.constraints import Constraints, Excluded, Requirement, cut, cuts, emptied
from lichen.atlas.criteria import Answer, Criterion, answers, higher_is_better, worded
from lichen.atlas.facts import Record, known
from lichen.atlas.ranking import Place, Scale, rank
from lichen.atlas.yaml_file import parse, read_yaml
from lichen.errors import LichenError

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
    """One place. `answers`: one per criterion of the scenario, in its order."""

    model: str
    title: str
    answers: tuple[Answer, ...]
    decided_by: str
    would_change: str
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


def load_rules(path: Path | None = None) -> Rules:
    """The shipped rules, or those in `path`. Raises LichenError naming file, line and field."""
    path = path or SHIPPED_RULES
    return parse(Rules, read_yaml(path), path)


def advise(
    scenario: str, constraints: Constraints, catalogue: Catalogue, at: datetime, rules: Rules | None = None
) -> Advice:
    """The ranking for `scenario` (a name in the rules) at `at`, on the catalogue of that day.

    Raises LichenError for an unknown scenario or license word, and when no model is left: it says which
    constraint emptied the list.
    """
    rules = rules or load_rules()
    if scenario not in rules.scenarios:
        raise LichenError(f"no scenario {scenario!r} in the rules; there are {', '.join(rules.scenarios)}")
    chosen = rules.scenarios[scenario]
    wanted = constraints.over(chosen.assume)
    question = _Question(chosen, wanted, catalogue, at)
    models = catalogue.models.values()
    all_cuts = cuts(wanted, chosen.require, rules.licenses, at)
    left, excluded = cut(models, all_cuts)
    if not left:
        raise LichenError(emptied(models, all_cuts))
    places, told = question.ask(left)
    ranking = tuple(
        _recommendation(place, after, catalogue, told)
        for place, after in zip(places, [*places[1:], None], strict=True)
    )
    leader = places[0].name
    alternatives = [
        f"without {dropped.name!r}: {question.leader(more)}"
        for dropped in all_cuts
        if len(more := cut(models, [other for other in all_cuts if other is not dropped])[0]) > len(left)
        and question.leader(more) != leader
    ]
    alternatives += [
        f"asked for {criterion.label} first: {question.leader(left, index)}"
        for index, criterion in enumerate(chosen.criteria)
        if question.leader(left, index) != leader
    ]
    return Advice(scenario, chosen.title, at, wanted, chosen.criteria, ranking, excluded, tuple(alternatives))


@dataclass(frozen=True)
class _Question:
    """Everything about a question but the candidates."""

    scenario: Scenario
    wanted: Constraints
    catalogue: Catalogue
    at: datetime

    def ask(
        self, models: Sequence[Model], first: int = 0
    ) -> tuple[list[Place], list[tuple[Criterion, dict[str, Answer]]]]:
        """The order, and per criterion everyone's answer; the criterion `first` is asked before the others.

        Whom nothing tells apart: the newer one first, then by name.
        """
        criteria = list(self.scenario.criteria)
        criteria.insert(0, criteria.pop(first))
        told = [
            (criterion, answers(criterion, models, self.catalogue, self.wanted.workload, self.at))
            for criterion in criteria
        ]
        scales = [
            Scale(
                {name: answer.value for name, answer in by_name.items()},
                higher_is_better(criterion),
                criterion.within,
            )
            for criterion, by_name in told
        ]
        by_name = sorted(model.name for model in models)
        newest_first = sorted(by_name, key=lambda name: _released(self.catalogue, name), reverse=True)
        return rank(newest_first, scales), told

    def leader(self, models: Sequence[Model], first: int = 0) -> str:
        return self.ask(models, first)[0][0].name


def _released(catalogue: Catalogue, name: str) -> date:
    fact = known(catalogue.get(name).release, catalogue.as_of)
    return date.min if fact is None or fact.value is None else fact.value


def _recommendation(
    place: Place,
    after: Place | None,
    catalogue: Catalogue,
    told: Sequence[tuple[Criterion, dict[str, Answer]]],
) -> Recommendation:
    model = catalogue.get(place.name)
    own = tuple(by_name[place.name] for _, by_name in told)
    unknown = tuple(
        criterion.label for (criterion, _), answer in zip(told, own, strict=True) if answer.value is None
    )
    decided_by, would_change = "the last one", ""
    if after and place.decided is None:
        decided_by = f"nothing tells it from {after.name}: the newer one stands first"
    elif after and place.decided is not None and place.limit is not None:
        criterion, by_name = told[place.decided]
        other = by_name[after.name]
        decided_by = f"{criterion.label}: {by_name[place.name].text}, against {other.text} of {after.name}"
        verb = "were known and" if other.value is None else "were"
        bound = "at least" if higher_is_better(criterion) else "at most"
        limit = worded(criterion, place.limit)
        would_change = f"{after.name} would draw level if its {criterion.label} {verb} {bound} {limit}"
    successor = known(model.successor, catalogue.as_of)
    notes = (f"superseded by {successor.value} ({successor.date})",) if successor and successor.value else ()
    return Recommendation(model.name, model.title, own, decided_by, would_change, unknown, notes)
