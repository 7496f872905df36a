"""Passes given in one piece, and played from a graph on an NVIDIA GPU, against the objective's own."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from lichen.train.objective import NextToken
from lichen.train.player import CALLED_FIRST, Player
from tests.nn.conftest import DEEPSEEK, make_model, next_tokens, random_tokens

PLACES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


@pytest.mark.parametrize("place", PLACES)
def test_every_pass_leaves_the_gradients_of_its_own_batch(place: str, as_accelerator: None) -> None:
    """Of other documents each time, two to a step: the second adds to the first, in the very same tensors."""
    device = torch.device(place)
    model = make_model(DEEPSEEK).to(device)
    alone = deepcopy(model)
    objective = NextToken(0.3, routing=True, max_logits=True)
    player = Player(model, objective)
    for step in range(CALLED_FIRST + 3):
        model.zero_grad()
        alone.zero_grad()
        for seed in (2 * step, 2 * step + 1):
            tokens = random_tokens(2, 40, seed)
            cuts = torch.randint(1, 40, (2, 1), generator=torch.Generator().manual_seed(seed))
            batch = tokens, next_tokens(tokens), (torch.arange(40) >= cuts).int()
            played = player(*batch, normalizer=70 + seed)
            expected = objective(alone, *batch, normalizer=70 + seed)
            expected.loss.backward()
            expected = replace(expected, loss=expected.loss.detach())
            torch.testing.assert_close(vars(played), vars(expected))
        for (name, ours), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    assert player.is_captured == (place == "cuda")
