"""How long the form is that is run, and the folder that every fault begins with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.commands import make_template
from tests.faults.harness import Lichen

LONG = bool(os.environ.get("FAULTS_LONG"))
"""Whether to try it all, as `make faults` does; `make test` tries a tenth."""
KILLS = 200 if LONG else 14
DAMAGES = 500 if LONG else 50


@pytest.fixture(scope="session")
def lichen() -> Iterator[Lichen]:
    lichen = Lichen()
    yield lichen
    lichen.close()


@pytest.fixture(scope="session")
def template(lichen: Lichen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "template"
    make_template(lichen, folder)
    return folder
