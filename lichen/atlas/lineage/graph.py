"""Who took what from whom: techniques and models, and edges with the evidence for them.

An edge points from what was taken to what took it. Its date is that of the taker, for which the evidence may
have come later; its license is the one that what was taken had on that day.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from lichen.arch.published import named_models
from lichen.atlas.catalogue.model import Catalogue, Model, Source
from lichen.errors import did_you_mean
from lichen.facts.record import Record, known, known_value, named
from lichen.facts.yaml_file import field_error, parse, read_yaml

SHIPPED = Path(__file__).parent / "lineage.yaml"
Evidence = Literal["config", "code", "report", "claim"]
GRADES: tuple[Evidence, ...] = get_args(Evidence)


class Code(Record):
    """In transformers, the modular file of `family` imports that of `imports`; `takes`: one class of it."""

    family: str
    imports: str
    takes: str | None = None


class Grounds(Record):
    """The evidence for one edge, by grade. config: fields of the taker's config and their values."""

    config: dict[str, Any] = Field(default_factory=dict)
    code: Code | None = None
    report: str | None = None
    claim: str | None = None

    @model_validator(mode="after")
    def _is_given(self) -> Grounds:
        if not (self.config or self.code or self.report or self.claim):
            raise ValueError(f"give the evidence: one of {', '.join(GRADES)}")
        return self


class Described(Record):
    title: str
    lab: str
    country: str
    date: date
    license: str | None = None
    source: str


class Technique(Described):
    develops: dict[str, Grounds] = Field(default_factory=dict)


class Entry(Record):
    """A model; `node` describes one that the catalogue does not have."""

    node: Described | None = None
    uses: dict[str, Grounds] = Field(default_factory=dict)
    origins: dict[str, Grounds] = Field(default_factory=dict, alias="from")


class Reusers(Record):
    """Families of models whose implementation imports that of a root: `direct`, and with theirs, `all`."""

    direct: int
    all: int


class Reuse(Record):
    library: str
    families: dict[str, Reusers]


Kind = Literal["uses", "develops", "from"]


class _File(Record):
    sources: dict[str, Source]
    reuse: Reuse
    techniques: dict[str, Technique]
    models: dict[str, Entry]

    def taken(self) -> Iterator[tuple[str, str, Kind, dict[str, Grounds]]]:
        """What each technique and model took: section, name and field of the file, and what these say."""
        for name, technique in self.techniques.items():
            yield "techniques", name, "develops", technique.develops
        for name, entry in self.models.items():
            yield "models", name, "from", entry.origins
        for name, entry in self.models.items():
            yield "models", name, "uses", entry.uses


@dataclass(frozen=True)
class Node:
    """A technique, by the lab that published it first, or a model. license None: unknown, or no license
    because there was only a paper. open_weights None for techniques."""

    name: str
    kind: Literal["technique", "model"]
    title: str
    lab: str
    country: str
    date: date
    license: str | None
    open_weights: bool | None
    source: str


@dataclass(frozen=True)
class Edge:
    """`descendant` took something from `ancestor`: a technique's use, its development, or a model's design
    or weights. config and code are what can be checked by a program."""

    ancestor: str
    descendant: str
    kind: Kind
    evidence: Evidence
    source: str
    date: date
    license: str | None
    config: dict[str, Any] | None = None
    code: Code | None = None


@dataclass(frozen=True)
class Graph:
    """The nodes that were there on the day `as_of`, by name, and the edges between them; `later`: when the
    others came. `reuse`: how much of a library's code rests on which family today."""

    as_of: date
    nodes: dict[str, Node]
    edges: tuple[Edge, ...]
    reuse: Reuse
    later: dict[str, date] = field(default_factory=dict)

    @property
    def techniques(self) -> dict[str, Node]:
        return {name: node for name, node in self.nodes.items() if node.kind == "technique"}

    @property
    def models(self) -> dict[str, Node]:
        return {name: node for name, node in self.nodes.items() if node.kind == "model"}

    def get(self, name: str) -> Node:
        """The node called `name`. Raises LichenError with the nearest names."""
        what = "model or technique"
        return named(name, self.nodes, self.later, self.as_of, what, "lineage", "lichen lineage")

    def descendants(self, name: str, grades: tuple[Evidence, ...] = GRADES) -> set[str]:
        """What rests on `name` by evidence of these `grades`, directly or not.

        On a technique: those that develop it, and the models that use any of these. On a model: the models
        that come from it; they need not use every technique of it.
        """
        steps = {(edge.ancestor, edge.descendant) for edge in self._edges_like(name, grades)}
        return _reached(name, steps)

    def ancestors(self, name: str, grades: tuple[Evidence, ...] = GRADES) -> set[str]:
        """What `name` rests on: the models that a model comes from, the techniques that one develops."""
        steps = {(edge.descendant, edge.ancestor) for edge in self._edges_like(name, grades)}
        return _reached(name, steps)

    def uses(self, model: str) -> set[str]:
        """The techniques for whose use in `model` there is evidence of its own."""
        return {edge.ancestor for edge in self.edges if edge.kind == "uses" and edge.descendant == model}

    def around(self, name: str) -> Graph:
        """The part of the graph that has to do with `name`. Raises LichenError as `get`."""
        self.get(name)
        kept = {name} | self.ancestors(name) | self.descendants(name) | self.uses(name)
        nodes = {each: node for each, node in self.nodes.items() if each in kept}
        edges = tuple(edge for edge in self.edges if {edge.ancestor, edge.descendant} <= kept)
        return replace(self, nodes=nodes, edges=edges)

    def _edges_like(self, name: str, grades: tuple[Evidence, ...]) -> Iterator[Edge]:
        kinds = ("from",) if self.nodes[name].kind == "model" else ("uses", "develops")
        return (edge for edge in self.edges if edge.kind in kinds and edge.evidence in grades)


def _reached(name: str, steps: set[tuple[str, str]]) -> set[str]:
    found, new = set[str](), {name}
    while new:
        new = {there for start, there in steps if start in new} - found
        found |= new
    return found - {name}


def load(models: Catalogue, path: Path = SHIPPED) -> Graph:
    """The graph of what was there on the day of the catalogue `models`.

    Raises LichenError, with file and line, for a file that is not as it should be.
    """
    day = models.as_of
    content = parse(_File, read_yaml(path), path)
    _check_names(content, models, path)
    described = [
        *(_node(name, "technique", each, None) for name, each in content.techniques.items()),
        *(_node(name, "model", entry.node, True) for name, entry in content.models.items() if entry.node),
        *(_catalogue_node(models.models[name]) for name in content.models if name in models.models),
    ]
    nodes = {
        node.name: node
        for node in sorted(described, key=lambda node: (node.date, node.name))
        if node.date <= day
    }
    later = {node.name: node.date for node in described if node.date > day} | {
        name: release for name, release in models.later.items() if name in content.models
    }
    edges = [
        edge
        for _, name, kind, grounds in content.taken()
        for ancestor, ground in grounds.items()
        if name in nodes and ancestor in nodes
        for edge in _edges(nodes[ancestor], nodes[name], kind, ground, content.sources)
    ]
    return Graph(day, nodes, tuple(edges), content.reuse, later)


def _node(name: str, kind: Literal["technique", "model"], each: Described, open_weights: bool | None) -> Node:
    return Node(
        name, kind, each.title, each.lab, each.country, each.date, each.license, open_weights, each.source
    )


def _catalogue_node(model: Model) -> Node:
    release = known(model.release)
    assert release is not None  # the catalogue has no model without
    assert release.value is not None
    described = Described(
        title=model.title,
        lab=model.lab,
        country=model.country,
        date=release.value,
        license=known_value(model.license),
        source=release.source,
    )
    return _node(model.name, "model", described, known_value(model.open_weights))


def _edges(
    ancestor: Node, descendant: Node, kind: Kind, grounds: Grounds, sources: dict[str, Source]
) -> Iterator[Edge]:
    """One edge for each grade of evidence."""
    named = named_models().get(descendant.name)
    config = f"{named.source}, {named.date}" if named else descendant.source
    told = {
        "config": config if grounds.config else None,
        "code": "transformers" if grounds.code else None,
        "report": grounds.report,
        "claim": grounds.claim,
    }
    for grade in GRADES:
        if (source := told[grade]) is not None:
            yield Edge(
                ancestor=ancestor.name,
                descendant=descendant.name,
                kind=kind,
                evidence=grade,
                source=f"{sources[source].url}, {sources[source].date}" if source in sources else source,
                date=descendant.date,
                license=ancestor.license,
                config=grounds.config if grade == "config" else None,
                code=grounds.code if grade == "code" else None,
            )


def _check_names(content: _File, models: Catalogue, path: Path) -> None:
    """Every name that is used is described. Raises LichenError for the first that is not."""
    catalogued = {*models.models, *models.later}
    for name, entry in content.models.items():
        if entry.node is None and name not in catalogued:
            raise field_error(
                path, ["models", name], f"{name!r} is not in the catalogue, so it needs a `node`"
            )
    for *place, kind, grounds in content.taken():
        known_names = content.models if kind == "from" else content.techniques
        for ancestor, ground in grounds.items():
            location = [*place, kind, ancestor]
            if ancestor not in known_names:
                hint = did_you_mean(ancestor, known_names, "describe it too")
                raise field_error(path, location, f"{ancestor!r} is not described here; {hint}")
            for source in (ground.report, ground.claim, "transformers" if ground.code else None):
                if source is not None and source not in content.sources:
                    raise field_error(path, location, f"{source!r} is not among the file's sources")
