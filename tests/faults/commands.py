"""The commands that write, what they need, and what counts of what they have written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.faults.harness import Command, Digest, Lichen, copy_of, digest_of
from tests.train.conftest import RECIPE

STUDY = """
base = "tiny.toml"
baseline = "adamw"
seeds = [0]
jobs = 1

[[arm]]
name = "adamw"
set = { "optimizer.recipe" = "adamw", "train.steps" = 4 }
"""

MODEL = """
name: my-model
title: My model
lab: Me
country: Nowhere
family: Mine
sources:
  me: {url: "https://example.com", date: 2026-01-01}
release:
  - {value: 2026-01-01, source: me}
"""


def make_template(lichen: Lichen, template: Path) -> None:
    """A corpus, prepared data, a run of 6 steps, the same after 4 of them, and exports of both."""
    (template / "sources").mkdir(parents=True)
    for module in (
        "json/decoder.py",
        "json/encoder.py",
        "textwrap.py",
        "bisect.py",
        "heapq.py",
        "copy.py",
        "stat.py",
    ):
        source = Path(json.__file__).parents[1] / module
        shutil.copy(source, template / "sources" / source.name)
    (template / "tiny.toml").write_text(RECIPE.format(data="data") + "keep = 9\n")
    (template / "tiny-study.toml").write_text(STUDY)
    (template / "my-model.yaml").write_text(MODEL)
    for arguments in (PREPARE, ["train", "tiny.toml", "--out", "run"]):
        done = lichen.run(template, arguments)
        assert done.status == 0, done.said
    copy_of(template / "run", template / "half", [path.name for path in (template / "run").iterdir()])
    shutil.rmtree(template / "half" / "checkpoints" / "step-00000006")
    made = (["export", "half", "former"], ["export", "run", "export"], TRACE)
    for arguments in made:
        done = lichen.run(template, arguments)
        assert done.status == 0, done.said


def run_digest(run: Path) -> Digest | None:
    """The weights at the end, and every loss on the way."""
    found = digest_of(run, "checkpoints/step-00000006/**/*.safetensors")
    if found is None or not (run / "metrics.jsonl").is_file():
        return None
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return found | {"losses": str([json.loads(line)["loss"] for line in lines])}


def study_digest(study: Path) -> Digest | None:
    if not (study / "results.csv").exists():
        return None
    losses = [digest_of(run, "checkpoints/step-00000004/**/*.safetensors") for run in sorted(study.iterdir())]
    return {"weights": str(losses)}


def data_digest(data: Path) -> Digest | None:
    """All but the manifest, which names the sources by their whole paths, but for that it is there."""
    found = digest_of(data, "*.npy", "tokenizer.json")
    return found and found | {"manifest": str((data / "manifest.json").exists())}


PREPARE = ["data", "prepare", "sources", "--out", "data", "--vocab-size", "400", "--family", "kimi_k2"]
PREPARE += ["--validation-fraction", "0.4"]

TRACE = ["trace", "export", "--out", "trace"]

RUN = ("doctor", "run")

COMMANDS = [
    Command(
        "data prepare",
        PREPARE,
        ("sources",),
        "data",
        data_digest,
        ("data", "inspect", "data"),
        unfinished=True,
        kills=20,
    ),
    Command(
        "train",
        ["train", "tiny.toml", "--out", "run"],
        ("data", "tiny.toml"),
        "run",
        run_digest,
        RUN,
        True,
        20,
    ),
    Command("train again", ["train", "run"], ("data", "half -> run"), "run", run_digest, RUN, True, 7),
    Command(
        "train from",
        ["train", "run", "--from", "2"],
        ("data", "half -> run"),
        "run",
        run_digest,
        RUN,
        True,
        7,
    ),
    Command(
        "export",
        ["export", "run", "out"],
        ("run",),
        "out",
        lambda out: digest_of(out, "*.safetensors", "*.json", "*.jinja", "*.md"),
        kills=18,
    ),
    Command(
        "export again",
        ["export", "run", "out"],
        ("run", "former -> out"),
        "out",
        lambda out: digest_of(out, "*.safetensors", "*.json", "*.jinja", "*.md"),
        kills=20,
    ),
    Command(
        "trace again",
        [*TRACE, "--prompt", "def "],
        ("export", "trace"),
        "trace",
        lambda trace: digest_of(trace, "*.safetensors", "*.json"),
        kills=5,
    ),
    Command(
        "study",
        ["study", "tiny-study.toml", "--out", "study"],
        ("data", "tiny.toml", "tiny-study.toml"),
        "study",
        study_digest,
        unfinished=True,
        kills=2,
    ),
    Command(
        "atlas add",
        ["atlas", "add", "my-model.yaml"],
        ("my-model.yaml",),
        "config/lichen/atlas",
        lambda atlas: digest_of(atlas, "*.yaml"),
        kills=3,
    ),
    Command(
        "atlas build",
        ["atlas", "build", "--out", "page/atlas.html", "--as-of", "2026-11-01"],
        (),
        "page",
        lambda page: digest_of(page, "*.html"),
        kills=3,
    ),
]
