"""`lichen doctor`: what a helper asks for, and whether a folder is whole."""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from lichen.machine.about import instructions, memory
from tests.faults.commands import PREPARE, RECIPE


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Prepared data, a run, its export, and a model from elsewhere."""


def test_what_a_helper_asks_for(run) -> None:
    done = run("doctor")
    assert done.status == 0, done.err
    told = json.loads(run("doctor", "--json").out)
    assert told["libraries"]["torch"] == version("torch")
    assert told["python"]["version"] == platform.python_version()
    assert told["cores"]["usable"] == len(os.sched_getaffinity(0))
    assert told["memory"]["total"] <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert told["disk"]["folder"] == str(Path.cwd())
    assert told["bf16"] > 0
    assert [line.partition(":")[0].strip() for line in done.out.splitlines()] == [
        key for key in told if key != "checked"
    ]
