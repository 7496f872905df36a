"""What all tests share: Ctrl-C reaches the processes that they start, and batches (B, T) go through a model.

A shell that runs the tests in the background has them ignore it, and every child inherits that.
"""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from lichen.kv.contiguous import Contiguous
from lichen.nn.forward import Pass
from lichen.nn.transformer import Transformer
from lichen.ops.sequences import Sequences
from lichen.train.objective import LossOutput, NextToken

signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("untimed", deadline=None)  # how long an example takes is the machine's business
settings.load_profile("untimed")


def without_slow_work(error: str) -> str:
    """What a command has said on standard error but for what it says of long work, which depends on the
    machine."""
    return "".join(line for line in error.splitlines(keepends=True) if not line.endswith(" ...\n"))


def logits_of(model: Transformer, tokens: Tensor, segment_ids: Tensor | None = None) -> Tensor:
    """tokens (B, T) -> (B, T, vocab_size)."""
    at = Pass(Sequences.packed(*tokens.shape, segment_ids, device=tokens.device))
    return model.logits(model(tokens.flatten(), at)).unflatten(0, tokens.shape)


def loss_of(
    model: Transformer, *batch: Tensor | None, mtp_weight: float = 0.0, max_logits: bool = False, **more: Any
) -> LossOutput:
    """As in training where the model trains."""
    return NextToken(mtp_weight, routing=model.training, max_logits=max_logits)(model, *batch, **more)


@torch.no_grad()
def read(model: Transformer, tokens: Tensor, storage: Contiguous) -> Tensor:
    """The logits after each of the new tokens (B, T) of all sequences in `storage`: (B, T, vocab_size)."""
    at = storage.take([tokens.shape[1]] * len(tokens))
    return model.logits(model(tokens.flatten(), at)).unflatten(0, tokens.shape)


@pytest.fixture
def as_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks is told that a CPU is an accelerator: its forms of everything but Triton's kernels."""
    for name in ("lichen.train.loop", "lichen.serve.generate"):  # and all that these import
        importlib.import_module(name)
    for name, module in list(sys.modules.items()):
        if name.startswith("lichen.") and hasattr(module, "is_accelerator"):
            monkeypatch.setattr(module, "is_accelerator", lambda device: True)


class PlayedGraph:
    """In the place of a CUDA graph: `play` does again what was captured, to the same memory."""

    play: Callable[[], object]

    def replay(self) -> None:
        self.play()

    def register_generator_state(self, generator: torch.Generator) -> None:
        assert isinstance(generator, torch.Generator)


@pytest.fixture
def graphs(as_accelerator: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that is taken for a GPU with graphs; whoever captures gives its `PlayedGraph` what to play."""
    for name, module in list(sys.modules.items()):
        if name.startswith("lichen.") and hasattr(module, "captures"):
            monkeypatch.setattr(module, "captures", lambda device: True)
    aside = SimpleNamespace(wait_stream=lambda stream: None)
    for name, stand_in in {
        "CUDAGraph": PlayedGraph,
        "Stream": lambda: aside,
        "current_stream": lambda: aside,
        "stream": lambda stream: nullcontext(),
        "graph": lambda graph, pool=None: nullcontext(),
        "graph_pool_handle": lambda: None,
        "get_device_properties": lambda device: SimpleNamespace(total_memory=1 << 40),
        "max_memory_allocated": lambda device: 0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """256 KiB; the test is skipped where it cannot be made."""
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"mounting a small disk needs root: {mount.stderr.decode().strip()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
