"""Risk: each number worked out by hand on a small graph, then the real one."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from itertools import combinations

import pytest

from lichen.atlas.catalogue import model as catalogue
from lichen.atlas.lineage.graph import Edge, Graph, Node, Reuse, load
from lichen.atlas.lineage.risk import herfindahl, jaccard, measure

DAY = date(2026, 6, 30)
TODAY = catalogue.load()
EMPTY = replace(TODAY, models={})


def node(name: str, lab: str, country: str, released: date = date(2026, 1, 1), kind: str = "model") -> Node:
    weights = True if kind == "model" else None
    return Node(name, kind, name, lab, country, released, None, weights, "https://example.org")  # type: ignore[arg-type]


def edge(ancestor: str, descendant: str, kind: str, evidence: str = "report") -> Edge:
    return Edge(ancestor, descendant, kind, evidence, "https://example.org", date(2026, 1, 1), None)  # type: ignore[arg-type]


def graph(nodes: list[Node], edges: list[Edge]) -> Graph:
    return Graph(DAY, {each.name: each for each in nodes}, tuple(edges), Reuse(library="", families={}))


# Lab A's model is the base of B's and, by code alone, of C's. x and y are A's, z is B's, m is Meta's.
SMALL = graph(
    [
        *(node(name, lab, "P", kind="technique") for name, lab in (("x", "A"), ("y", "A"), ("z", "B"))),
        node("m", "Meta", "Q", kind="technique"),
        node("a", "A", "P"),
        node("b", "B", "P"),
        node("c", "C", "Q"),
        node("llama", "Meta", "Q"),
    ],
    [
        edge("a", "b", "from"),
        edge("a", "c", "from", "code"),
        *(edge(technique, "a", "uses") for technique in ("x", "y", "z")),
        *(edge(technique, "b", "uses") for technique in ("x", "z")),
        *(edge(technique, "c", "uses") for technique in ("x", "m")),
        edge("m", "llama", "uses"),
    ],
)


def test_roots_and_who_would_be_without_them() -> None:
    (root,) = measure(SMALL, EMPTY, DAY).roots
    assert (root.name, root.share, root.stated) == ("a", 3 / 4, 2 / 4)
    assert (root.dependents, root.labs) == (("b", "c"), ("B", "C"))
    assert root.own_techniques == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_similarity_of_pairs() -> None:
    """a and b share 2 of 3, a and c 1 of 4, b and c 1 of 3, c and llama 1 of 2, others nothing."""
    last = measure(SMALL, EMPTY, DAY).similarity[-1]
    assert (last.day, last.models) == (DAY, 4)
    assert last.overall == pytest.approx((2 / 3 + 1 / 4 + 1 / 3 + 1 / 2) / 6)
    assert last.across_labs == last.overall
    assert last.within_labs is None
    assert last.within_countries == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert last.by_country == pytest.approx({"P": 2 / 3, "Q": 1 / 2})
    assert measure(SMALL, EMPTY, date(2027, 1, 2)).similarity[-1].models == 0  # a year has gone by


def test_exchange() -> None:
    several, single = measure(SMALL, EMPTY, DAY).exchange
    assert (several.models, several.labs, several.uses) == (3, 3, 7)
    assert several.origins == {"A": 4, "B": 2, "Meta": 1}
    assert several.herfindahl == pytest.approx((16 + 4 + 1) / 49)
    assert several.herfindahl_countries == pytest.approx((36 + 1) / 49)
    assert several.outside == pytest.approx(4 / 7)  # z in a; x in b; x and m in c
    assert several.given == 3  # z in a; x in b and c
    assert several.mutual == (("A", "B"),)
    assert (single.models, single.uses, single.outside, single.given) == (1, 1, 0.0, 1)
    assert single.herfindahl == 1.0


def test_indices_at_their_ends() -> None:
    assert herfindahl([5]) == 1.0
    assert herfindahl([1, 1, 1, 1]) == pytest.approx(1 / 4)
    assert herfindahl([]) is None
    assert jaccard({"x"}, {"x"}) == 1.0
    assert jaccard({"x"}, {"y"}) == 0.0


def test_nothing_is_nothing() -> None:
    empty = measure(graph([], []), EMPTY, DAY)
    assert (empty.models, empty.roots, empty.obligations) == (0, (), {})
    assert empty.exchange[0].herfindahl is None


def test_the_real_graph_rests_on_deepseek() -> None:
    real = load(TODAY)
    found = measure(real, TODAY, TODAY.as_of)
    assert found.roots[0].name == "deepseek-v2"
    assert found.roots[0].share > 0.5 > found.roots[-1].share
    assert all(root.stated <= root.share for root in found.roots)
    several, single = found.exchange
    assert sum(several.origins.values()) == several.uses
    # of equals in order of their names: the same page on every run
    assert list(several.origins) == sorted(several.origins, key=lambda lab: (-several.origins[lab], lab))
    assert several.mutual == (("DeepSeek", "Moonshot AI"),)
    assert max(several.origins, key=lambda lab: several.origins[lab]) == "DeepSeek"
    assert "Meta" not in single.origins  # the Llama line uses nothing of Meta's own here
    recent = [
        real.uses(name)
        for name, each in real.models.items()
        if each.open_weights and real.uses(name) and 0 <= (TODAY.as_of - each.date).days < 365
    ]
    pairs = [len(one & other) / len(one | other) for one, other in combinations(recent, 2)]
    assert found.similarity[-1].overall == pytest.approx(sum(pairs) / len(pairs))


def test_obligations_are_the_catalogues() -> None:
    day = date(2026, 4, 30)
    then = TODAY.on(day)
    found = measure(load(then), then, day).obligations
    assert "kimi-k3" not in found
    assert any(each.monthly_users_above == 700_000_000 for each in found["llama-4-maverick"])
    assert any(each.monthly_users_above == 100_000_000 for each in found["kimi-k2.6"])
