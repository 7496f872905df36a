"""How long the form is that is run, and the folder that every fault begins with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.commands import make_template
from tests.faults.harness import Lichen

KILLS = int(os.environ.get("FAULTS_KILLS", "20"))
"""How many kills are tried in all, give or take rounding; `make faults` tries more."""
DAMAGES = int(os.environ.get("FAULTS_DAMAGES", "50"))


@pytest.fixture(scope="session")
def lichen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lichen]:
    lichen = Lichen(tmp_path_factory.mktemp("said"))
    yield lichen
    lichen.close()


@pytest.fixture(scope="session")
def template(lichen: Lichen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "template"
    make_template(lichen, folder)
    return folder
