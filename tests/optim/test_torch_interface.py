"""What PyTorch's own tools expect of an optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from lichen.errors import LichenError
from lichen.optim import Muon, parameter_table, recipes


def trained() -> tuple[nn.Sequential, Muon]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    optimizer = Muon(parameter_table(model), recipes.moonlight)
    for _ in range(2):
        model(torch.ones(3, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def state_of(optimizer: Muon) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": tensor.clone()
        for name, entry in optimizer.named_state().items()
        for key, tensor in entry.items()
    }


def test_state_has_the_layout_of_pytorchs_optimizers() -> None:
    model, optimizer = trained()
    theirs = torch.optim.AdamW(model.named_parameters())
    model(torch.ones(3, 4)).sum().backward()
    theirs.step()
    ours, expected = optimizer.state_dict(), theirs.state_dict()
    assert ours.keys() == expected.keys()
    assert ours["state"].keys() == expected["state"].keys()  # numbers
    named = dict(
        pair
        for group in ours["param_groups"]
        for pair in zip(group["param_names"], group["params"], strict=True)
    )
    for name, parameter in model.named_parameters():
        assert ours["state"][named[name]] == optimizer.state[parameter]


def test_torchs_checkpoint_functions_save_and_load_it() -> None:
    model, optimizer = trained()
    expected = state_of(optimizer)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    assert set(saved["state"]) == {name for name, _ in model.named_parameters()}
    other = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    again = Muon(parameter_table(other), recipes.moonlight)
    set_optimizer_state_dict(other, again, saved)
    found = state_of(again)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_hooks_on_saving_and_loading_are_called() -> None:
    _, optimizer = trained()
    called: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda _: called.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda _, state: called.append("after saving"))
    optimizer.register_load_state_dict_post_hook(lambda _: called.append("after loading"))

    def halve(_: torch.optim.Optimizer, state: dict[str, object]) -> dict[str, object]:
        groups = [group | {"lr": group["lr"] / 2} for group in state["param_groups"]]
        return state | {"param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.load_state_dict(optimizer.state_dict())
    assert called == ["before saving", "after saving", "after loading"]
    assert {group["lr"] for group in optimizer.param_groups} == {recipes.moonlight.lr / 2}


def test_options_that_are_the_recipes_are_refused() -> None:
    _, optimizer = trained()
    added = [("added.weight", nn.Parameter(torch.zeros(2, 2)))]
    with pytest.raises(LichenError, match="a group takes lr and weight_decay, not betas, momentum"):
        optimizer.add_param_group({"params": added, "momentum": 0.5, "betas": (0.9, 0.95)})
    optimizer.add_param_group({"params": added, "lr": 0.5, "weight_decay": 0.0})
    assert optimizer.param_groups[-1]["lr"] == 0.5


def test_a_parameter_that_was_exchanged_is_refused() -> None:
    """As by a library that shards the model after the optimizer was made."""
    _, optimizer = trained()
    group = optimizer.param_groups[0]
    group["params"] = [nn.Parameter(parameter.detach().clone()) for parameter in group["params"]]
    for parameter in group["params"]:
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(LichenError, match=r"make Muon after the model is wrapped, sharded or moved"):
        optimizer.step()


@pytest.mark.parametrize("recipe", [recipes.moonlight, recipes.adamw, recipes.deepseek_v4_1])
def test_float64_parameters_keep_their_precision(recipe: recipes.OptimizerRecipe) -> None:
    """A learning rate of 1e-12 moves them by less than fp32 could tell."""
    model = nn.Sequential(nn.Embedding(6, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 6)).double()
    optimizer = Muon(parameter_table(model), recipe)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 1e-12
    model(torch.arange(6)).square().sum().backward()
    optimizer.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        moved = (parameter - old).abs().max()
        assert 0 < moved < 1e-11
    assert all(
        tensor.dtype == torch.float64 for name, tensor in state_of(optimizer).items() if "step" not in name
    )
