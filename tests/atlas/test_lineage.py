"""The lineage: evidence in configs against the shipped configs, reach, formats, and files that are wrong."""

from __future__ import annotations

import json
from datetime import date
from functools import reduce
from typing import Any
from xml.etree import ElementTree

import pytest

from lichen.arch.published import named_models
from lichen.atlas.catalogue import model as catalogue
from lichen.atlas.lineage.formats import to_graphml, to_json, to_mermaid
from lichen.atlas.lineage.graph import GRADES, load
from lichen.errors import LichenError

TODAY = catalogue.load()
GRAPH = load(TODAY)
IN_CONFIG = [(edge, field, value) for edge in GRAPH.edges for field, value in (edge.config or {}).items()]


def look_up(config: dict[str, Any], field: str) -> Any:
    return reduce(lambda inner, part: (inner or {}).get(part), field.split("."), config)


@pytest.mark.parametrize(
    ("edge", "field", "value"), IN_CONFIG, ids=lambda item: getattr(item, "descendant", str(item))
)
def test_the_config_says_so(edge, field: str, value: Any) -> None:
    config = named_models()[edge.descendant].config
    assert value in (look_up(config, field), look_up(config.get("text_config", {}), field))
    assert edge.source.startswith(named_models()[edge.descendant].source)


def test_what_is_asked_for_is_there() -> None:
    techniques = (
        "mla fine-grained-moe loss-free-balancing mtp yarn dsa csa-hca mhc muon qk-clip gated-deltanet kda "
        "grpo fp4-training"
    )
    assert set(techniques.split()) <= GRAPH.techniques.keys()
    assert len(IN_CONFIG) >= 40
    assert {edge.evidence for edge in GRAPH.edges} == set(GRADES)


def test_an_edge_goes_forward_in_time_and_has_a_source() -> None:
    for edge in GRAPH.edges:
        assert GRAPH.nodes[edge.ancestor].date <= edge.date == GRAPH.nodes[edge.descendant].date
        assert edge.source.startswith("https://")
    assert all(node.source.startswith("https://") for node in GRAPH.nodes.values())


def test_the_architecture_of_kimi_k2_6_is_deepseek_v3s() -> None:
    """By its config alone; and under the license that V3's first weights had."""
    assert GRAPH.ancestors("kimi-k2.6", ("config",)) == {"deepseek-v3"}
    (edge,) = (
        edge
        for edge in GRAPH.edges
        if (edge.ancestor, edge.descendant) == ("deepseek-v3", "kimi-k2.6") and edge.kind == "from"
    )
    assert edge.license == "DeepSeek Model License"
    assert edge.date == date(2026, 4, 20)


def test_v4_comes_from_v3_but_has_no_mla() -> None:
    assert "deepseek-v4-pro" in GRAPH.descendants("deepseek-v3")
    assert "deepseek-v4-pro" not in GRAPH.descendants("mla")
    assert "deepseek-v4-pro" in GRAPH.descendants("dsa")  # through CSA, which develops it


def test_muon_is_keller_jordans_and_kimi_k2_uses_it() -> None:
    assert GRAPH.nodes["muon"].lab == "Keller Jordan"
    assert GRAPH.ancestors("qk-clip") == {"muon", "muon-rms"}
    assert {"kimi-k2", "deepseek-v4-pro", "kimi-k3"} <= GRAPH.descendants("muon")
    assert {"muon", "qk-clip", "mla"} <= GRAPH.uses("kimi-k2")


def test_on_the_articles_day_later_things_are_not_there() -> None:
    then = load(TODAY.on(date(2026, 4, 30)))
    assert "kimi-k3" not in then.nodes
    assert "deepseek-v4-pro" in then.nodes
    assert all(edge.date <= date(2026, 4, 30) for edge in then.edges)
    with pytest.raises(LichenError, match="kimi-k3 came out on 2026-07-16, which is after 2026-04-30"):
        then.get("kimi-k3")
    with pytest.raises(LichenError, match="mla came out on 2024-05-07, which is after 2024-01-01"):
        load(TODAY.on(date(2024, 1, 1))).around("mla")


def test_around_one_node() -> None:
    part = GRAPH.around("mla")
    assert part.nodes.keys() == {"mla"} | GRAPH.descendants("mla")
    assert all({edge.ancestor, edge.descendant} <= part.nodes.keys() for edge in part.edges)
    with pytest.raises(LichenError, match=r"no model or technique 'mlaa'.*did you mean mla"):
        GRAPH.around("mlaa")


# -------------------------------------------------------------------------------------------- formats


def test_json_says_everything() -> None:
    content = json.loads(json.dumps(to_json(GRAPH)))
    assert len(content["nodes"]) == len(GRAPH.nodes)
    assert len(content["edges"]) == len(GRAPH.edges)
    assert {"ancestor", "descendant", "kind", "evidence", "source", "date", "license"} <= content["edges"][
        0
    ].keys()


def test_graphml_is_read_back() -> None:
    space = {"g": "http://graphml.graphdrawing.org/xmlns"}
    root = ElementTree.fromstring(to_graphml(GRAPH))
    assert {node.get("id") for node in root.iterfind(".//g:node", space)} == GRAPH.nodes.keys()
    edges = [(edge.get("source"), edge.get("target")) for edge in root.iterfind(".//g:edge", space)]
    assert edges == [(edge.ancestor, edge.descendant) for edge in GRAPH.edges]
    declared = {key.get("id") for key in root.iterfind("g:key", space)}
    assert {data.get("key") for data in root.iterfind(".//g:data", space)} <= declared


def test_mermaid_has_a_line_for_each_node_and_edge() -> None:
    lines = to_mermaid(GRAPH).splitlines()
    assert lines[0] == "flowchart LR"
    assert len(lines) == 1 + len(GRAPH.nodes) + len(GRAPH.edges)
    assert any("==>|config|" in line for line in lines)


# --------------------------------------------------------------------------------- files that are wrong

FILE = """\
sources:
  paper: {url: "https://example.org", date: 2026-01-01}
reuse: {library: transformers 5.23.0, families: {}}
techniques:
  one: {title: One, lab: Me, country: France, date: 2026-01-01, source: "https://example.org"}
models:
  mine:
    node: {title: Mine, lab: Me, country: France, date: 2026-02-01, source: "https://example.org"}
    uses:
      one: {report: paper}
"""


def test_a_file_of_ones_own(tmp_path) -> None:
    path = tmp_path / "lineage.yaml"
    path.write_text(FILE)
    assert load(TODAY, path).uses("mine") == {"one"}
    assert load(TODAY.on(date(2026, 1, 15)), path).nodes.keys() == {"one"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{report: paper}", "{report: papre}", "lineage.yaml:10: models.mine.uses.one: 'papre' is not among"),
        ("{report: paper}", "{}", "lineage.yaml:10: models.mine.uses.one: give the evidence"),
        ("{report: paper}", "{rumour: paper}", "lineage.yaml:10: .*there is no such field"),
        ("      one:", "      oen:", "lineage.yaml:10: models.mine.uses.oen: .*did you mean one"),
        (
            "    node: {title: Mine",
            "    nodes: {title: Mine",
            "lineage.yaml:8: models.mine.nodes: there is no",
        ),
        ("title: One, ", "", "lineage.yaml:5: techniques.one.title: missing"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, old: str, new: str, words: str) -> None:
    path = tmp_path / "lineage.yaml"
    path.write_text(FILE.replace(old, new))
    with pytest.raises(LichenError, match=words):
        load(TODAY, path)


def test_a_model_that_nobody_describes(tmp_path) -> None:
    path = tmp_path / "lineage.yaml"
    path.write_text(FILE[: FILE.index("    node:")] + FILE[FILE.index("    uses:") :])
    with pytest.raises(LichenError, match=r"lineage.yaml:7: models.mine: 'mine' is not in the catalogue"):
        load(TODAY, path)
