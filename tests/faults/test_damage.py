"""What Lichen has written and something else has changed is refused by name, or makes no difference."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.commands import PREPARE, run_digest
from tests.faults.conftest import DAMAGES
from tests.faults.harness import DAMAGES as KINDS
from tests.faults.harness import OF_CONTENT, Digest, Lichen, copy_of, digest_of

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


def damages() -> Iterator[tuple[str, int, bool]]:
    """Commands, a number for what is damaged and how, and whether it happens meanwhile."""
    for name in READERS:
        for seed in range(-(-DAMAGES // len(READERS))):
            yield name, seed, seed % 5 == 4


def result(world: Path, writes: str, said: str) -> Digest | str | None:
    if not writes:
        return said
    if writes == "run":
        return run_digest(world / writes)
    return digest_of(world / writes, *WEIGHTS, "*.npy")


@dataclass(frozen=True)
class Undamaged:
    result: Digest | str | None
    opened: int


@pytest.fixture(scope="module")
def undamaged(
    lichen: Lichen, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Undamaged]:
    results = {}
    for name, (arguments, needs, _, writes) in READERS.items():
        world = copy_of(template, tmp_path_factory.mktemp("undamaged") / "world", needs)
        done = lichen.run(world, [each.format(template=template) for each in arguments])
        assert done.status == 0, done.said
        results[name] = Undamaged(result(world, writes, done.said), done.opened)
    return results


@pytest.mark.parametrize(("name", "seed", "meanwhile"), list(damages()))
def test_damage(
    lichen: Lichen,
    template: Path,
    tmp_path: Path,
    undamaged: dict[str, Undamaged],
    name: str,
    seed: int,
    meanwhile: bool,
) -> None:
    """The command refuses in words that name what is damaged, or warns of it, or its result is the same.

    Meanwhile: somewhere in its course, before it opens another file. It cannot know then of a content that is
    another one once it has been compared, nor need it tell what was whole when it looked; what is gone or has
    become shorter must not end it without a word.
    """
    arguments, needs, damaged, writes = READERS[name]
    arguments = [each.format(template=template) for each in arguments]
    world = copy_of(template, tmp_path / "world", needs)
    chance = random.Random(f"{name} {seed}")
    files = sorted(path for path in (world / damaged).rglob("*") if path.is_file() and path.stat().st_size)
    kind = chance.choice(sorted({file.suffix for file in files}))
    path = chance.choice([file for file in files if file.suffix == kind])
    damage = chance.choice(KINDS)
    if meanwhile:
        started = lichen.start(world, arguments, chance.randint(2, undamaged[name].opened), "stop")
        assert started.wait().status == -signal.SIGSTOP
        damage(path, chance)
        done = started.go_on()
    else:
        damage(path, chance)
        done = lichen.run(world, arguments)
    done.require_words()
    what = f"{damage.__name__} {path.relative_to(world)}"
    lines = [line for line in done.said.splitlines() if path.name in line]
    if done.status:
        # Without the file by which a folder is known to be anything, it is the folder that is named.
        known = path.name in MARKS and path.parent == world / damaged and damaged in done.said
        assert lines or known, f"{what}: {done.said}"
    elif any(word in line for line in lines for word in ("damaged", "warning", "not as it was")):
        pass  # it has said so, and has gone on without
    elif meanwhile and (damage in OF_CONTENT or name.startswith("doctor")):
        pass
    elif name.startswith("doctor"):
        place = path.relative_to(world / damaged)
        assert f"no hash vouches for {place}" in str(undamaged[name].result), f"{what}: {done.said}"
    else:
        same = result(world, writes, done.said) == undamaged[name].result
        assert same, f"{what}: used without a word: {done.said}"
