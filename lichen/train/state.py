"""What a checkpoint holds of a training, and how it goes on from there to the last bit."""

from __future__ import annotations

import base64
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from lichen.files.atomic import write_text
from lichen.serve.open import check_tokenizer
from lichen.train.model_folder import write_model_folder
from lichen.weights.checkpoints import FORMAT_VERSION, read_versioned, save_checkpoint
from lichen.weights.folder import Outgoing, write_file
from lichen.weights.load import load_weights

if TYPE_CHECKING:
    from lichen.arch.spec import ModelSpec
    from lichen.train.metrics import MetricsLog, StepMetrics
    from lichen.train.step import Trainer

ABSURD = 2.0
"""Times the loss of a model that guesses, ln(vocab_size), that sound weights may have."""


def save(trainer: Trainer, log: MetricsLog) -> Path:
    """Write a checkpoint of the step that `trainer` is at; it is durable when this returns, and so are the
    metrics until then.

    Raises NotFinite, with nothing saved, for weights or a state of the optimizer that are not finite.
    """
    log.sync()
    run = trainer.run

    def write(folder: Path) -> None:
        (folder / "model").mkdir()
        write_model_folder(folder / "model", trainer.model, run, torch.float32)
        write_file(folder / "optimizer.safetensors", _optimizer_tensors(trainer.optimizer.named_state()))
        state = {
            "format_version": FORMAT_VERSION,
            "step": trainer.step,
            "lr": trainer.rule.lr,
            "tokenizer_hash": run.manifest.tokenizer_hash,
            "loader": trainer.loader.state(),
            "rng": rng_state(),
            "metrics": log.record(),
        }
        write_text(folder / "state.json", json.dumps(state) + "\n")

    doubted = None if log.latest is None else _doubt_from_the_start(log.latest, run.spec)
    return save_checkpoint(run.checkpoints, trainer.step, run.recipe.checkpoint.keep, write, doubted)


def restore(trainer: Trainer, checkpoint: Path) -> None:
    """Go on where the verified `checkpoint` was saved. Raises LichenError if it is not one of the run's."""
    state = read_versioned(checkpoint / "state.json")
    check_tokenizer(checkpoint, trainer.run.manifest)
    load_weights(trainer.model, checkpoint / "model")
    # Learning rates and the like come from the recipe; the checkpoint brings only what was learnt.
    groups = trainer.optimizer.state_dict()["param_groups"]
    saved = _optimizer_state(load_file(checkpoint / "optimizer.safetensors"))
    trainer.optimizer.load_state_dict({"state": saved, "param_groups": groups})
    trainer.loader.restore(state["loader"])
    restore_rng(state["rng"])
    trainer.step = state["step"]


# ------------------------------------------------------------------------------ whether weights are sound


def unsound(metrics: StepMetrics, spec: ModelSpec) -> str | None:
    """What the step of `metrics` tells against the weights that it began with; None if they are sound: their
    loss is not ABSURD, and their gradient not zero."""
    guessing = math.log(spec.vocab_size)
    if metrics.cross_entropy <= ABSURD * guessing and metrics.grad_norm > 0:
        return None
    return (
        f"a loss of {metrics.cross_entropy:.4g}, where guessing gives {guessing:.3g}, and a gradient of norm "
        f"{metrics.grad_norm:.3g}"
    )


def _doubt_from_the_start(metrics: StepMetrics, spec: ModelSpec) -> str | None:
    """Why the weights that the step of `metrics` led to seem not to be sound. Only a further step can prove
    them, and the last one of a run has none."""
    guessing = math.log(spec.vocab_size)
    if metrics.validation_loss is not None and metrics.validation_loss > ABSURD * guessing:
        return (
            f"its weights give a validation loss of {metrics.validation_loss:.4g}, where guessing gives "
            f"{guessing:.3g}"
        )
    why = unsound(metrics, spec)
    return why and f"the step that led to it had {why}"


# ------------------------------------------------------------------------------ random number generators


def seed_rng(seed: int) -> None:
    """Start every global random number generator from `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """The state of every global random number generator, as JSON."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, _encode(np.asarray(keys).tobytes()), position, has_gauss, cached],
        "torch": _encode(torch.get_rng_state().numpy().tobytes()),
    }
    if torch.accelerator.is_available():
        device = torch.get_device_module()
        state["accelerator"] = _encode(device.get_rng_state().numpy().tobytes())
    return state


def restore_rng(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.frombuffer(_decode(keys), dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.frombuffer(_decode(state["torch"]), dtype=torch.uint8))
    if "accelerator" in state and torch.accelerator.is_available():
        saved = torch.frombuffer(_decode(state["accelerator"]), dtype=torch.uint8)
        torch.get_device_module().set_rng_state(saved)


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _decode(text: str) -> bytearray:
    return bytearray(base64.b64decode(text))


# ------------------------------------------------------------------------------------------ the optimizer


def _optimizer_tensors(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Outgoing]:
    return {
        f"{name}.{key}": Outgoing(tensor, tensor.dtype)
        for name, entry in state.items()
        for key, tensor in entry.items()
    }


def _optimizer_state(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    state: dict[str, dict[str, Tensor]] = {}
    for dotted, tensor in tensors.items():
        name, _, key = dotted.rpartition(".")
        state.setdefault(name, {})[key] = tensor
    return state
