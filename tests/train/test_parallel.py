"""A batch shared among threads against the same batch on the model alone."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lichen.arch.spec import ModelSpec
from lichen.nn.transformer import Transformer
from lichen.train.parallel import Threads
from tests.conftest import loss_of
from tests.nn.conftest import DEEPSEEK, LLAMA, ROUTER, make_model, next_tokens, random_tokens
from tests.train.test_objective import assert_same_gradients, gradients


@pytest.fixture(params=[2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def differentiate(model: Transformer, tokens: Tensor, targets: Tensor) -> tuple[float, dict[str, Tensor]]:
    output = loss_of(model, tokens, targets, normalizer=100)
    output.loss.backward()
    return float(output.loss.detach()), output.routing


@pytest.mark.parametrize("spec", [DEEPSEEK, LLAMA], ids=["deepseek", "llama"])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_replicas_compute_what_the_model_does(spec: ModelSpec, rows: int, threads: int) -> None:
    model, tokens = make_model(spec), random_tokens(rows, 24)
    loss, routing = differentiate(model, tokens, next_tokens(tokens))
    expected = gradients(model)
    for _ in range(2):  # the second time with gradients of the first handed over
        found = Threads(model, micro_batch=4).map(differentiate, (tokens, next_tokens(tokens)))
        assert sum(one for one, _ in found) == pytest.approx(loss, rel=1e-5)
        for name, counts in routing.items():
            torch.testing.assert_close(sum(layers[name] for _, layers in found), counts)
        assert_same_gradients(gradients(model), expected)


def test_the_sum_is_the_same_to_the_last_bit_every_time(threads: int) -> None:
    model, tokens = make_model(DEEPSEEK), random_tokens(6, 24)
    replicas = Threads(model, micro_batch=3)
    sums = []
    for _ in range(4):
        replicas.map(differentiate, (tokens, next_tokens(tokens)))
        sums.append(gradients(model))
    for again in sums[1:]:
        assert all(torch.equal(again[name], gradient) for name, gradient in sums[0].items())


def test_replicas_see_what_happens_to_the_model(threads: int) -> None:
    model, tokens = make_model(DEEPSEEK), random_tokens(4, 24)
    replicas = Threads(model, micro_batch=4)
    (before, routing), *_ = replicas.map(differentiate, (tokens, next_tokens(tokens)))
    with torch.no_grad():
        model.head_weight.zero_()
    for name in routing:
        model.get_submodule(name).e_score_correction_bias[0] = 100.0
    after = replicas.map(differentiate, (tokens, next_tokens(tokens)))
    assert sum(loss for loss, _ in after) > before
    for _, layers in after:
        for counts in layers.values():
            assert counts[0] == counts.sum() // ROUTER.num_experts_per_tok


def test_rows_come_in_micro_batches_in_order(threads: int) -> None:
    model = make_model(LLAMA)

    def look(_: Transformer, rows: Tensor) -> list[int]:
        assert torch.get_num_threads() == 1
        return rows.tolist()

    found = Threads(model, micro_batch=4).map(look, [torch.arange(9)])
    assert [row for rows in found for row in rows] == list(range(9))
    assert max(len(rows) for rows in found) <= 4 // threads
    assert torch.get_num_threads() == threads


def test_a_failure_ends_all_shares_and_leaves_no_gradients(threads: int) -> None:
    model, tokens = make_model(LLAMA), random_tokens(60, 24)
    replicas = Threads(model, micro_batch=threads)
    done: list[Tensor] = []

    def fail(model: Transformer, tokens: Tensor, targets: Tensor) -> None:
        done.append(tokens)
        if len(done) > 4:
            raise ValueError("the fifth")
        differentiate(model, tokens, targets)
        time.sleep(0.02)

    with pytest.raises(ValueError, match="the fifth"):
        replicas.map(fail, (tokens, next_tokens(tokens)))
    assert len(done) < 60 // threads
    assert torch.get_num_threads() == threads
    assert not any(gradients(replica) for replica in replicas._models)
