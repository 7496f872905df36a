"""`lichen doctor`: what a helper asks for, and whether a folder is whole. (Of runs, exports and prepared data
under damage: tests/faults.)"""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from lichen.machine import about

FACTS = {
    *("lichen", "python", "libraries", "system", "processor", "instructions", "cores", "memory", "disk"),
    *("own atlas", "threads", "devices", "bf16", "kernels"),
}


@pytest.fixture(autouse=True)
def config(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def model(tmp_path) -> Path:
    """As transformers saves one, in several files."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    folder = tmp_path / "models" / "mine"
    LlamaForCausalLM(LlamaConfig(vocab_size=100, **sizes)).save_pretrained(folder, max_shard_size="20kB")
    return folder


def test_what_a_helper_asks_for(run) -> None:
    done = run("doctor")
    assert done.status == 0, done.err
    lines = [line.partition(":")[0].strip() for line in done.out.splitlines()]
    told = json.loads(run("doctor", "--json").out)
    assert set(lines) == FACTS
    assert [*lines, "checked"] == list(told)
    assert told["libraries"]["torch"] == version("torch")
    assert told["python"]["version"] == platform.python_version()
    assert told["cores"]["usable"] == len(os.sched_getaffinity(0))
    assert told["memory"]["total"] <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert told["disk"]["folder"] == str(Path.cwd())
    assert told["bf16"] > 0


@pytest.mark.parametrize("above", [False, True])
def test_a_model_from_elsewhere_is_looked_at_and_no_hash_is_claimed(run, model, above) -> None:
    folder = model.parent if above else model
    done = run("doctor", folder)
    assert done.status == 0, done.err
    assert f"\n{model}: a model, of whose weights the headers were read, whole\n" in done.out
    assert "no hash vouches for model-00001-of-" in done.out
    (checked,) = json.loads(run("doctor", folder, "--json").out)["checked"]
    assert (checked["path"], checked["problem"]) == (str(model), None)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda model: os.truncate(next(model.glob("model-00002*")), 100), "model-00002-of-"),
        (lambda model: next(model.glob("model-00002*")).unlink(), "model-00002-of-"),
        (lambda model: (model / "config.json").write_text("{"), "config.json: not JSON"),
        (lambda model: (model / "config.json").unlink(), "there is no file"),
        (lambda model: (model / "model.safetensors.index.json").unlink(), "index"),
    ],
)
def test_what_is_damaged_is_named_with_status_1(run, model, damage, words) -> None:
    damage(model)
    done = run("doctor", model)
    assert done.status == 1
    assert "damaged" in done.out
    assert words in done.err
    assert done.err.count("\n") == 1
    assert json.loads(run("doctor", model, "--json").out)["checked"][0]["problem"]


def test_a_run_that_was_stopped_before_it_began_has_lost_nothing(run, tmp_path) -> None:
    """What has checkpoints and no recipe has."""
    (tmp_path / "run.json").write_text("{}")
    done = run("doctor", tmp_path)
    assert done.status == 0, done.err
    assert "stopped before it began, and that its command begins anew, whole" in done.out
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    assert run("doctor", tmp_path).status == 1


def test_a_folder_without_anything_and_none_at_all(run, refusal, tmp_path) -> None:
    assert "there is no folder" in refusal("doctor", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    done = run("doctor", tmp_path / "empty")
    assert done.status == 1
    assert "is no run, checkpoint, export, prepared data or model, and holds none" in done.err


def test_it_answers_where_pytorch_cannot_be_imported(run, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    done = run("doctor")
    assert done.status == 0, done.err
    assert "pytorch: cannot be imported" in done.out
    assert "processor: " in done.out


@pytest.mark.parametrize("compiler", ["", "/no/such/compiler"])
def test_it_answers_without_a_compiler(run, monkeypatch, compiler) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr("lichen.ops.native.shutil.which", lambda name: None)
    assert "kernels: none, for" in run("doctor").out


def test_a_container_has_the_memory_that_it_is_given(monkeypatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 99 kB\nMemAvailable:   50000 kB\n",
        "/sys/fs/cgroup/memory.max": "40000000\n",
        "/sys/fs/cgroup/memory.current": "10000000\n",
    }
    monkeypatch.setattr(about, "_text", lambda path: files.get(path, ""))
    assert about.memory() == about.Memory(40_000_000, 30_000_000)
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert about.memory().free == 50_000 * 1024
    assert about.instructions() == ()
    files["/proc/cpuinfo"] = "processor : 0\nflags : fpu avx2 amx_bf16 sse4_2 fma\nmodel name : A processor\n"
    assert (about.processor(), about.instructions()) == ("A processor", ("amx_bf16", "avx2", "fma"))
