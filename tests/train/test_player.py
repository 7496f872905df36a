"""Passes given in one piece, and played from a graph on an NVIDIA GPU, against the objective's own."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lichen.train.objective import LossOutput, NextToken
from lichen.train.player import CALLED_FIRST, Player
from tests.nn.conftest import DEEPSEEK, make_model, next_tokens, random_tokens

PLACES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


@pytest.fixture
def played_graphs(graphs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Capturing computes nothing; playing writes gradients and numbers where the captured pass did."""
    capture = Player._capture

    def captured(player: Player, key: tuple[int, ...], packed: Tensor, shape: tuple[int, ...]) -> None:
        before = [None if p.grad is None else p.grad.clone() for p in player._parameters]
        capture(player, key, packed, shape)
        for parameter, value in zip(player._parameters, before, strict=True):
            if value is not None:
                parameter.grad.copy_(value)
        made = player._captured[key]

        def play() -> None:
            for parameter, gradient in zip(player._parameters, made.gradients, strict=True):
                parameter.grad = gradient
                if key[-1] and gradient is not None:
                    gradient.zero_()
            again = player._pass(made.packed, shape)
            for old, new in zip(tensors_of(made.output), tensors_of(again), strict=True):
                old.copy_(new)

        made.graph.play = play

    monkeypatch.setattr(Player, "_capture", captured)


def tensors_of(output: LossOutput) -> list[Tensor]:
    parts = [output.loss, output.cross_entropy, output.mtp, output.balance]
    return [*parts, *output.routing.values(), *output.max_logits.values()]


def test_graphs_are_played_with_what_is_new(played_graphs: None) -> None:
    """The way from batch to graph and back, on a CPU; the graphs themselves are a stand-in."""
    check_passes(torch.device("cpu"), is_captured=True)


@pytest.mark.parametrize("place", PLACES)
def test_every_pass_leaves_the_gradients_of_its_own_batch(place: str, as_accelerator: None) -> None:
    check_passes(torch.device(place), is_captured=place == "cuda")


def check_passes(device: torch.device, is_captured: bool) -> None:
    """Of other documents each time, three to a step: all but the first add to what is there, in the very same
    tensors, and what was returned of one is not what the next returns."""
    model = make_model(DEEPSEEK).to(device)
    alone = deepcopy(model)
    objective = NextToken(0.3, routing=True, max_logits=True)
    player = Player(model, objective)
    for step in range(CALLED_FIRST + 3):
        model.zero_grad()
        alone.zero_grad()
        pairs = []
        for seed in range(3 * step, 3 * step + 3):
            tokens = random_tokens(2, 40, seed)
            cuts = torch.randint(1, 40, (2, 1), generator=torch.Generator().manual_seed(seed))
            batch = tokens, next_tokens(tokens), (torch.arange(40) >= cuts).int()
            expected = objective(alone, *batch, normalizer=70 + seed)
            expected.loss.backward()
            pairs.append(
                (player(*batch, normalizer=70 + seed), replace(expected, loss=expected.loss.detach()))
            )
        for played, expected in pairs:
            torch.testing.assert_close(vars(played), vars(expected))
        for (name, ours), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    assert player.is_captured == is_captured


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 5])
def test_once_captured_every_pass_is_played(
    graphs: None, monkeypatch: pytest.MonkeyPatch, micro_batches: int
) -> None:
    player, tokens = Player(make_model(DEEPSEEK), NextToken()), random_tokens(2, 16)
    called, capturing = [], []
    capture, passes = Player._capture, Player._pass

    def captured(player: Player, *arguments: object) -> None:
        capturing.append(True)
        capture(player, *arguments)
        capturing.clear()
        for made in player._captured.values():
            made.graph.play = lambda: None

    def passed(player: Player, *arguments: object) -> LossOutput:
        if not capturing:
            called[-1] += 1
        return passes(player, *arguments)

    monkeypatch.setattr(Player, "_capture", captured)
    monkeypatch.setattr(Player, "_pass", passed)
    for _ in range(CALLED_FIRST + 2):
        called.append(0)
        for _ in range(micro_batches):
            player(tokens, next_tokens(tokens), normalizer=10)
        player._model.zero_grad()
    assert called == [micro_batches] * CALLED_FIRST + [0, 0]
