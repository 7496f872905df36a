"""A step as an accelerator is given it: nothing is read back before its end, and the numbers are a CPU's.

The first is shown on PyTorch's "meta" device, whose tensors have shapes and no numbers: whatever asks one of
them for a number fails. The second on a CPU that is taken for an accelerator.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from lichen.errors import LichenError
from lichen.ops import cross_entropy
from lichen.optim import rules
from lichen.train import step as step_module
from lichen.train.run import start_run
from lichen.train.step import Trainer

QWEN = (
    "model.config={model_type='qwen3_moe', vocab_size=400, hidden_size=32, num_hidden_layers=2, "
    "num_attention_heads=4, num_key_value_heads=2, head_dim=16, "
    "max_position_embeddings=128, rms_norm_eps=1e-6, rope_theta=10000.0, num_experts=8, "
    "num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=true, decoder_sparse_step=1, "
    "mlp_only_layers=[], tie_word_embeddings=false}"
)
MODELS = {
    "deepseek_v3": (),
    "qwen3_moe": (QWEN, "optimizer.recipe=moonlight"),
    "balanced embeddings": ("optimizer.recipe=deepseek_v4_1",),
}


@pytest.fixture
def make_trainer(make_recipe, tmp_path: Path):
    count = iter(range(100))
    return lambda *overrides: Trainer(start_run(make_recipe(*overrides), tmp_path / f"run{next(count)}"))


@pytest.mark.parametrize("model", MODELS)
def test_nothing_is_read_back_within_a_step(make_trainer, monkeypatch, model: str) -> None:
    reads: list[list[str]] = []

    def read(values: dict[str, Tensor]) -> dict[str, float]:
        assert all(value.is_meta and value.ndim == 0 for value in values.values())
        reads.append(list(values))
        return dict.fromkeys(values, 1.0)

    monkeypatch.setattr(step_module, "default_device", lambda: torch.device("meta"))
    monkeypatch.setattr(step_module, "matmul_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(step_module, "warn_if_emulated", lambda *_: None)
    monkeypatch.setattr(step_module, "ceiling", lambda dtype, device: 1.0)
    monkeypatch.setattr(step_module, "read_together", read)
    monkeypatch.setattr(rules, "adamw", fused_adamw_without_numbers)
    trainer = make_trainer(*MODELS[model], "train.dtype=bf16", "train.micro_batch=2")
    for number in (1, 2):
        assert trainer.train_step().step == number
    assert len(reads) == 2
    assert {"loss", "cross_entropy", "grad_norm", "load_worst", "load_mean"} <= set(reads[0])
    if model == "deepseek_v3":
        assert {"mtp", "balance", "max_logit", "clipped_heads"} <= set(reads[0])


def fused_adamw_without_numbers(parameters: list[Tensor], *_: object, **options: object) -> None:
    """PyTorch's fused AdamW takes the flag as it is, but has no form for tensors without numbers."""
    assert isinstance(options["found_inf"], Tensor)


def test_meta_tensors_refuse_to_be_read() -> None:
    """What the test above rests on."""
    nothing = torch.ones(3, device="meta")
    for read in (lambda: nothing.sum().item(), lambda: bool(nothing.any()), nothing.cpu, nothing.tolist):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()
    for read in (nothing.nonzero, lambda: nothing.long().bincount(), lambda: nothing[nothing > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()


@pytest.mark.parametrize("model", MODELS)
def test_steps_are_those_of_a_cpu(make_trainer, request, model: str) -> None:
    overrides = *MODELS[model], "train.micro_batch=2", "optimizer.qk_clip_tau=0.02"
    if model == "qwen3_moe":
        overrides = overrides[:-1]  # whose queries are normalised
    plain = make_trainer(*overrides)
    expected = [plain.train_step() for _ in range(4)]
    request.getfixturevalue("as_accelerator")
    queued = make_trainer(*overrides)
    # What is rounded otherwise in one step is seen by the next through half-precision products, and grows.
    for ours, apart in zip(expected, (1e-6, 1e-4, 1e-3, 5e-3), strict=True):
        theirs = queued.train_step()
        for name in ("loss", "cross_entropy", "mtp", "balance", "grad_norm", "max_logit"):
            expected_value = getattr(ours, name)
            assert getattr(theirs, name) == (expected_value and pytest.approx(expected_value, rel=apart)), (
                name
            )
        assert theirs.load_worst == pytest.approx(ours.load_worst, rel=0.05)
        assert theirs.clipped_heads == ours.clipped_heads
    if model == "deepseek_v3":
        assert expected[-1].clipped_heads


def changing(trainer: Trainer) -> Iterator[Tensor]:
    """All that a step changes: weights, selection biases, momenta, averages, numbers of steps."""
    yield from trainer.model.state_dict().values()
    for state in trainer.optimizer.named_state().values():
        yield from state.values()


@pytest.mark.parametrize("model", MODELS)
def test_a_step_that_is_not_finite_changes_nothing(make_trainer, as_accelerator, model: str) -> None:
    trainer = make_trainer(*MODELS[model])
    trainer.train_step()
    hook = trainer.model.model.norm.weight.register_hook(lambda grad: grad * math.inf)
    before = [tensor.clone() for tensor in changing(trainer)]
    with pytest.raises(LichenError, match=r"the loss is .* not applied"):
        trainer.train_step()
    assert trainer.step == 1
    after = list(changing(trainer))
    assert len(after) == len(before) > 20
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    hook.remove()
    trainer.train_step()
    assert trainer.step == 2
    assert sum(not torch.equal(a, b) for a, b in zip(changing(trainer), before, strict=True)) > 20


def test_the_same_step_has_the_same_bits(make_trainer, as_accelerator) -> None:
    first, second = make_trainer(), make_trainer()
    for _ in range(3):
        assert first.train_step().loss == second.train_step().loss
    assert all(torch.equal(a, b) for a, b in zip(changing(first), changing(second), strict=True))


# What PyTorch computes on a GPU by adding to one number from several threads, in any order. The derivative of
# an embedding is not among them: it sorts.
ATOMIC = re.compile(
    r"aten\.(index_add|scatter_add|scatter_reduce|index_put|_unsafe_index_put|bincount|histc|put)"
)


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.add(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("model", MODELS)
def test_no_step_adds_atomically(make_trainer, as_accelerator, model: str) -> None:
    # A GPU's own kernel takes the place of the loss of other accelerators, which scatters one number a row.
    trainer = make_trainer(*MODELS[model])
    with Operators() as operators, patch.object(cross_entropy, "_losses", losses_as_the_kernel):
        trainer.train_step()
    assert {"aten._grouped_mm.default", "aten.embedding_dense_backward.default"} <= operators.seen
    assert not {name for name in operators.seen if ATOMIC.match(name)}


def losses_as_the_kernel(logits_NV: Tensor, targets_N: Tensor, replace_by_grad: bool) -> Tensor:
    log_p = torch.log_softmax(logits_NV.float(), -1)
    target = torch.nn.functional.one_hot(targets_N.clamp(min=0), logits_NV.shape[1])
    counted = targets_N != cross_entropy.IGNORE
    losses = -(log_p * target).sum(-1) * counted
    if replace_by_grad:
        logits_NV.copy_((log_p.exp() - target) * counted.unsqueeze(1))
    return losses


def test_a_pass_depends_on_its_batch_by_what_the_device_is_told_alone(make_trainer, as_accelerator) -> None:
    """Recorded operator by operator and played with another batch, as a GPU plays a graph."""
    trainer = make_trainer("train.mtp_weight=0.5")
    model, pass_over = trainer.model, trainer.objective
    parameters = [p for p in model.parameters() if p.requires_grad]

    def differentiate(packed: Tensor) -> tuple[Tensor, ...]:
        output = pass_over.loss(model, pass_over.unpack(model, packed, 4, 64))
        gradients = torch.autograd.grad(output.loss, parameters)
        return output.loss, *output.max_logits.values(), *output.routing.values(), *gradients

    packed = []
    for number, cuts in enumerate([[10, 40, 1, 63], [64, 5, 33, 50]], start=200):
        batch = trainer.loader.next_batch()
        documents = (torch.arange(64) >= torch.tensor(cuts)[:, None]).int()
        documents[number % 4, 50:] = -1  # padding
        packed.append(pass_over.pack(model, batch.tokens, batch.targets, documents, number))
    first, second = packed
    recorded = torch.no_grad()(make_fx(differentiate)(first))
    for batch in (second, first):
        for ours, theirs in zip(recorded(batch), differentiate(batch), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert (recorded(first)[0] - recorded(second)[0]).abs() > 1e-3


@pytest.mark.skipif(
    find_spec("triton") is None,
    reason="the kernels need Triton, which comes with PyTorch for CUDA, or by itself: pip install triton",
)
def test_steps_by_kernels_are_those_of_a_cpu() -> None:
    """All of a GPU's own kernels, in Triton's interpreter, in whole steps of small models."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("step_interpreted.py")],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    apart = json.loads(done.stdout)
    assert len(apart) == 8
    assert max(apart.values()) < 2e-5, apart
