"""What rests on whom, in numbers, from the lineage graph. docs/lineage.md defines each of them.

They count the techniques and models that the graph has, which is a choice; they rank risks, no more.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import combinations
from statistics import fmean

from lichen.atlas.catalogue.model import Catalogue, Obligation
from lichen.atlas.lineage.graph import Evidence, Graph, Node
from lichen.facts.record import known_value

STATED: tuple[Evidence, ...] = ("config", "report")  # what makers say of their own models
SINGLE_LAB = "Meta"
YEAR = timedelta(days=365)


@dataclass(frozen=True)
class Root:
    """`share`: of the open models, those that are this one or come from it; `stated`: by what their makers
    say alone. `dependents`: the models of other labs among them. `own_techniques`: of the techniques that a
    dependent uses, the mean share that the root's lab published first; None without dependents."""

    name: str
    lab: str
    country: str
    share: float
    stated: float
    dependents: tuple[str, ...]
    labs: tuple[str, ...]
    own_techniques: float | None


@dataclass(frozen=True)
class Similarity:
    """Mean Jaccard similarity of the technique sets of open models of the year before `day`, over pairs of
    them: all, those of one lab, those of two labs, those of one country, by country. None without a pair."""

    day: date
    models: int
    overall: float | None
    within_labs: float | None
    across_labs: float | None
    within_countries: float | None
    across_countries: float | None
    by_lab: dict[str, float]
    by_country: dict[str, float]


@dataclass(frozen=True)
class Exchange:
    """How a group of models came by its techniques. `uses`: pairs of a model and a technique of it.

    herfindahl: the sum of the squared shares of the labs that published those techniques first, 1/n for n
    equal ones, 1 for a single one; herfindahl_countries likewise. outside: the share of the uses whose
    technique is another lab's. given: uses in other labs' models of what the group's labs published first.
    mutual: pairs of labs of the group that each use something of the other.
    """

    title: str
    models: int
    labs: int
    uses: int
    origins: dict[str, int]
    herfindahl: float | None
    herfindahl_countries: float | None
    outside: float | None
    given: int
    mutual: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Risk:
    """Homogenisation (roots, similarity over time), dependency (roots, obligations), concentration."""

    as_of: date
    models: int
    roots: tuple[Root, ...]
    similarity: tuple[Similarity, ...]
    obligations: dict[str, tuple[Obligation, ...]]
    exchange: tuple[Exchange, ...]


def measure(graph: Graph, catalogue: Catalogue, as_of: date) -> Risk:
    """All of it for the models with open weights that `graph` has on the day `as_of`."""
    models = {name: node for name, node in graph.models.items() if node.open_weights and node.date <= as_of}
    single = {name: node for name, node in models.items() if node.lab == SINGLE_LAB}
    several = {name: node for name, node in models.items() if name not in single}
    # the one on which most rest first, of equals the younger
    roots = sorted(_roots(graph, models), key=lambda root: (root.share, models[root.name].date), reverse=True)
    return Risk(
        as_of=as_of,
        models=len(models),
        roots=tuple(roots),
        similarity=tuple(_similarity(graph, models, day) for day in _days(models, as_of)),
        # of the open models that the catalogue describes
        obligations={
            name: asked
            for name in models
            if name in catalogue.models and (asked := known_value(catalogue.models[name].obligations))
        },
        exchange=(
            _exchange("multi-lab open exchange", graph, several, models),
            _exchange(f"single-lab open weights ({SINGLE_LAB})", graph, single, models),
        ),
    )


def jaccard(one: Collection[str], other: Collection[str]) -> float:
    """Size of the intersection over that of the union; both sets must not be empty."""
    return len(set(one) & set(other)) / len(set(one) | set(other))


def herfindahl(counts: Iterable[int]) -> float | None:
    """The sum of squared shares (Herfindahl-Hirschman index, between 0 and 1); None for nothing."""
    found = list(counts)
    return sum(count**2 for count in found) / sum(found) ** 2 if sum(found) else None


def _roots(graph: Graph, models: dict[str, Node]) -> Iterator[Root]:
    """Models that others come from."""
    for name, node in models.items():
        below = graph.descendants(name) & models.keys()
        if not below:
            continue
        stated = graph.descendants(name, STATED) & models.keys()
        dependents = [each for each in models if each in below and models[each].lab != node.lab]
        shares = [
            fmean(graph.nodes[technique].lab == node.lab for technique in graph.uses(each))
            for each in dependents
            if graph.uses(each)
        ]
        yield Root(
            name=name,
            lab=node.lab,
            country=node.country,
            share=(1 + len(below)) / len(models),
            stated=(1 + len(stated)) / len(models),
            dependents=tuple(dependents),
            labs=tuple(sorted({models[each].lab for each in dependents})),
            own_techniques=fmean(shares) if shares else None,
        )


def _days(models: dict[str, Node], as_of: date) -> list[date]:
    """The ends of half-years since the first model, and the day itself."""
    first = min((node.date for node in models.values()), default=as_of)
    ends = (date(year, *end) for year in range(first.year, as_of.year + 1) for end in ((6, 30), (12, 31)))
    return [*(day for day in ends if first <= day < as_of), as_of]


def _similarity(graph: Graph, models: dict[str, Node], day: date) -> Similarity:
    recent = {
        name: techniques
        for name, node in models.items()
        if day - YEAR < node.date <= day and (techniques := graph.uses(name))
    }
    pairs = [
        (models[one], models[other], jaccard(recent[one], recent[other]))
        for one, other in combinations(recent, 2)
    ]

    def mean(of: Callable[[Node, Node], bool]) -> float | None:
        chosen = [value for one, other, value in pairs if of(one, other)]
        return fmean(chosen) if chosen else None

    def by(place: Callable[[Node], str]) -> dict[str, float]:
        values = defaultdict(list)
        for one, other, value in pairs:
            if place(one) == place(other):
                values[place(one)].append(value)
        return {group: fmean(each) for group, each in sorted(values.items())}

    return Similarity(
        day=day,
        models=len(recent),
        overall=mean(lambda one, other: True),
        within_labs=mean(lambda one, other: one.lab == other.lab),
        across_labs=mean(lambda one, other: one.lab != other.lab),
        within_countries=mean(lambda one, other: one.country == other.country),
        across_countries=mean(lambda one, other: one.country != other.country),
        by_lab=by(lambda node: node.lab),
        by_country=by(lambda node: node.country),
    )


def _exchange(title: str, graph: Graph, group: dict[str, Node], models: dict[str, Node]) -> Exchange:
    labs = {node.lab for node in group.values()}
    uses = [(node.lab, graph.nodes[each]) for name, node in group.items() for each in graph.uses(name)]
    origins = Counter(technique.lab for _, technique in uses)
    took = {(lab, technique.lab) for lab, technique in uses if lab != technique.lab}
    return Exchange(
        title=title,
        models=len(group),
        labs=len(labs),
        uses=len(uses),
        origins=dict(sorted(origins.items(), key=lambda item: (-item[1], item[0]))),
        herfindahl=herfindahl(origins.values()),
        herfindahl_countries=herfindahl(Counter(technique.country for _, technique in uses).values()),
        outside=fmean(lab != technique.lab for lab, technique in uses) if uses else None,
        given=sum(
            graph.nodes[each].lab in labs and graph.nodes[each].lab != node.lab
            for name, node in models.items()
            for each in graph.uses(name)
        ),
        mutual=tuple(sorted((one, other) for one, other in took if one < other and (other, one) in took)),
    )
