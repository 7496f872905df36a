"""What Lichen has written and something else has changed is refused by name, or makes no difference."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.commands import PREPARE, run_digest
from tests.faults.conftest import DAMAGES
from tests.faults.harness import DAMAGES as KINDS
from tests.faults.harness import Digest, Lichen, copy_of, digest_of

WEIGHTS = ("*.safetensors", "config.json", "tokenizer.json", "generation_config.json")
SOURCES = "{template}/sources"  # known to the prepared data by its whole path
READERS: dict[str, tuple[list[str], tuple[str, ...], str, str]] = {
    "train data": (["train", "tiny.toml", "--out", "run"], ("data", "tiny.toml"), "data", "run"),
    "prepare again": ([each.replace("sources", SOURCES) for each in PREPARE], ("data",), "data", "data"),
    "inspect": (["data", "inspect", "data"], ("data",), "data", ""),
    "train again": (["train", "run"], ("data", "half -> run"), "run", "run"),
    "export": (["export", "run", "out"], ("run",), "run", "out"),
    "sample run": (["sample", "run", "def ", "--temperature", "0", "--max-tokens", "8"], ("run",), "run", ""),
    "sample export": (
        ["sample", "export", "def ", "--temperature", "0", "--max-tokens", "8"],
        ("export",),
        "export",
        "",
    ),
    "trace": (["trace", "export", "--against", "trace"], ("export", "trace"), "trace", ""),
    "doctor data": (["doctor", "data"], ("data",), "data", ""),
    "doctor run": (["doctor", "run"], ("run",), "run", ""),
    "doctor export": (["doctor", "export"], ("export",), "export", ""),
}
"""What a command reads: its arguments, what it needs, the folder that is damaged, and the one it writes."""


MARKS = ("manifest.json", "preparation.json", "run.json", "recipe.toml", "config.json")


def damages() -> Iterator[tuple[str, int]]:
    for name in READERS:
        for seed in range(max(1, DAMAGES // len(READERS))):
            yield name, seed


def result(world: Path, writes: str, said: str) -> Digest | str | None:
    if not writes:
        return said
    if writes == "run":
        return run_digest(world / writes)
    return digest_of(world / writes, *WEIGHTS, "*.npy")


@pytest.fixture(scope="module")
def undamaged(lichen: Lichen, template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    results = {}
    for name, (arguments, needs, _, writes) in READERS.items():
        world = copy_of(template, tmp_path_factory.mktemp("undamaged") / "world", needs)
        done = lichen.run(world, [each.format(template=template) for each in arguments])
        assert done.status == 0, done.said
        results[name] = result(world, writes, done.said)
    return results


@pytest.mark.parametrize(("name", "seed"), list(damages()))
def test_damage(
    lichen: Lichen, template: Path, tmp_path: Path, undamaged: dict[str, object], name: str, seed: int
) -> None:
    """The command refuses in words that name what is damaged, or warns of it, or its result is the same."""
    arguments, needs, damaged, writes = READERS[name]
    world = copy_of(template, tmp_path / "world", needs)
    chance = random.Random(f"{name} {seed}")
    files = sorted(path for path in (world / damaged).rglob("*") if path.is_file() and path.stat().st_size)
    kind = chance.choice(sorted({file.suffix for file in files}))
    path = chance.choice([file for file in files if file.suffix == kind])
    damage = chance.choice(KINDS)
    damage(path, chance)
    what = f"{damage.__name__} {path.relative_to(world)}"
    done = lichen.run(world, [each.format(template=template) for each in arguments])
    done.require_words()
    lines = [line for line in done.said.splitlines() if path.name in line]
    if done.status:
        # Without the file by which a folder is known to be anything, it is the folder that is named.
        known = path.name in MARKS and path.parent == world / damaged and damaged in done.said
        assert lines or known, f"{what}: {done.said}"
    elif any(word in line for line in lines for word in ("damaged", "warning", "not as it was")):
        pass  # it has said so, and has gone on without
    elif name.startswith("doctor"):
        place = path.relative_to(world / damaged)
        assert f"no hash vouches for {place}" in str(undamaged[name]), f"{what}: {done.said}"
    else:
        same = result(world, writes, done.said) == undamaged[name]
        assert same, f"{what}: used without a word: {done.said}"
