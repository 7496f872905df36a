"""Whatever is given where a command takes a file or folder, it answers in a sentence, and soon."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.faults.conftest import LONG
from tests.faults.harness import Lichen, bound_of, copy_of, odd_inputs

TAKES_A_FILE: dict[str, tuple[list[str], str]] = {
    "account": (["account", "{}"], ".json"),
    "account folder": (["account", "{}"], ""),
    "fits": (["fits", "{}"], ".json"),
    "cost": (["cost", "{}", "--tokens", "1e12"], ".json"),
    "advise": (["advise", "--rules-file", "{}"], ".yaml"),
    "claims": (["claims", "{}"], ".yaml"),
    "atlas check": (["atlas", "check", "{}"], ".yaml"),
    "atlas add": (["atlas", "add", "{}"], ".yaml"),
    "atlas build": (["atlas", "build", "--out", "{}"], ".html"),
    "train": (["train", "{}"], ".toml"),
    "train run": (["train", "{}"], ""),
    "train key": (["train", "tiny.toml", "data.path={}"], ""),
    "study": (["study", "{}"], ".toml"),
    "export": (["export", "{}", "out"], ""),
    "export to": (["export", "run", "{}"], ""),
    "sample": (["sample", "{}", "x", "--max-tokens", "2"], ""),
    "trace": (["trace", "{}"], ""),
    "trace to": (["trace", "run", "--out", "{}"], ""),
    "trace against": (["trace", "run", "--against", "{}"], ".safetensors"),
    "inspect": (["data", "inspect", "{}"], ""),
    "prepare": (["data", "prepare", "{}", "--out", "new", "--vocab-size", "300"], ".jsonl"),
    "prepare to": (["data", "prepare", "sources", "--out", "{}", "--vocab-size", "400"], ""),
    "tokenizer": (["data", "prepare", "sources", "--out", "new", "--tokenizer", "{}"], ".json"),
    "doctor": (["doctor", "{}"], ""),
}


@pytest.mark.parametrize("name", TAKES_A_FILE)
def test_odd_inputs(
    lichen: Lichen, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    arguments, suffix = TAKES_A_FILE[name]
    world = copy_of(template, tmp_path / "world", ("sources", "data", "run", "tiny.toml"))
    (odd := tmp_path / "odd").mkdir()
    monkeypatch.chdir(odd)
    failed = {}
    made = odd_inputs(odd, suffix)
    bounds = {what: bound for what in made if (bound := bound_of(what, suffix))}
    others = [what for what in made if what not in bounds]
    for what in made if LONG else [*bounds, *random.Random(name).sample(others, 6 - len(bounds))]:
        path = made[what]
        given = [os.fsdecode(path) if each == "{}" else each for each in arguments]
        given = [each.replace("{}", os.fsdecode(path)) for each in given]
        done = lichen.run(world, given)
        try:
            done.require_words()
            assert bounds.get(what, "") in done.said, done.said
        except AssertionError as error:
            failed[what] = str(error).splitlines()[0]
    assert not failed
