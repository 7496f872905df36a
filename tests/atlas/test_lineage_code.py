"""Evidence of grade `code` against the modular files of the transformers that is installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers

from lichen.atlas.catalogue import model as catalogue
from lichen.atlas.lineage.graph import load

MODELS = Path(transformers.__file__).parent / "models"
IMPORT = re.compile(r"^from \.\.(\w+)\.\w+ import (\([^)]*\)|[^\n]*)$", re.MULTILINE)
GRAPH = load(catalogue.load())
ITS_VERSION = transformers.__version__ == GRAPH.reuse.library.removeprefix("transformers ")


def imports() -> dict[str, dict[str, str]]:
    """For each family: what it imports from which other one."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(MODELS.glob("*/modular_*.py")):
        taken = found.setdefault(path.parent.name, {})
        for family, names in IMPORT.findall(path.read_text(encoding="utf-8")):
            taken[family] = taken.get(family, "") + " " + names
    return found


IMPORTS = imports()
EDGES = [edge for edge in GRAPH.edges if edge.code is not None]


@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: f"{edge.ancestor}-{edge.descendant}")
def test_the_modular_file_imports_it(edge) -> None:
    taken = IMPORTS[edge.code.family]
    assert edge.code.imports in taken
    if edge.code.takes is not None:
        assert re.search(rf"\b{edge.code.takes}\b", taken[edge.code.imports])


@pytest.mark.skipif(not ITS_VERSION, reason="counted in another version of transformers")
@pytest.mark.parametrize("family", GRAPH.reuse.families)
def test_families_that_build_on_a_root(family: str) -> None:
    direct = {name for name, taken in IMPORTS.items() if family in taken}
    reached, waiting = set(), {family}
    while waiting:
        waiting = {name for name, taken in IMPORTS.items() if waiting & taken.keys()} - reached
        reached |= waiting
    counted = GRAPH.reuse.families[family]
    assert (len(direct), len(reached - {family})) == (counted.direct, counted.all)


def test_edges_of_this_grade_are_there() -> None:
    assert len(EDGES) >= 10
