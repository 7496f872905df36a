"""State that others saved or changed: PyTorch's schedulers, and its optimizers' own state."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from lichen.errors import LichenError
from lichen.nn.roles import Role
from lichen.optim import Muon, OptimizerRecipe, Override, parameter_table, recipes

Scheduler = Callable[[torch.optim.Optimizer], Any]


def chained(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    parts = [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.ChainedScheduler(parts, optimizer)


def sequential(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    parts = [lr_scheduler.LinearLR(optimizer), lr_scheduler.CosineAnnealingLR(optimizer, 9)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])


SCHEDULERS: dict[str, Scheduler] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": sequential,
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 9),
    "ChainedScheduler": chained,
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-4, 1e-2, step_size_up=3, cycle_momentum=False),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=9, cycle_momentum=False),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 9),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 1e-5, anneal_epochs=4),
}

# Settings of torch.optim.AdamW that are no business of a scheduler.
ADAMW = torch.optim.AdamW([nn.Parameter(torch.zeros(1))]).defaults.keys() - {"lr", "weight_decay"}


def model_of() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))


def ours() -> torch.optim.Optimizer:
    return Muon(parameter_table(model_of(), [Override("2.*", lr_scale=0.5)]), recipes.moonlight)


def adamw() -> torch.optim.Optimizer:
    named = list(model_of().named_parameters())
    groups = [{"params": named[:4]}, {"params": named[4:], "lr": 1.5e-4}]
    return torch.optim.AdamW(groups, lr=3e-4, weight_decay=0.1)


def seen(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    hidden = {"params", "param_names", "peak_lr"} | ADAMW
    return [
        {k: v for k, v in group.items() if k not in hidden} | {"names": sorted(group["param_names"])}
        for group in optimizer.param_groups
    ]


def advance(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[list[dict[str, Any]]]:
    groups = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
        groups.append(copy.deepcopy(seen(optimizer)))
    return groups


def test_every_scheduler_of_pytorch_is_here() -> None:
    found = {
        name
        for name in lr_scheduler.__all__
        if isinstance(getattr(lr_scheduler, name), type) and name != "LRScheduler"
    }
    assert found <= SCHEDULERS.keys()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_see_what_they_see_in_adamw(name: str) -> None:
    """Without a break; resumed midway; and begun anew on a loaded state, as in a second phase."""
    make = SCHEDULERS[name]
    runs = []
    for build in (ours, adamw):
        optimizer = build()
        scheduler = make(optimizer)
        run = [advance(optimizer, scheduler, 3)]
        saved, state = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
        run.append(advance(optimizer, scheduler, 4))

        resumed = build()
        resumed_scheduler = make(resumed)
        resumed.load_state_dict(saved)
        resumed_scheduler.load_state_dict(state)
        assert advance(resumed, resumed_scheduler, 4) == run[1]

        second = build()
        second.load_state_dict(saved)
        run.append([seen(second), *advance(second, SCHEDULERS["LambdaLR"](second), 3)])
        third = build()
        for group in third.param_groups:  # a rate set by hand, before there is any scheduler
            group["lr"] = 1e-3
        fourth = build()
        fourth.load_state_dict(third.state_dict())
        run.append(advance(fourth, make(fourth), 2))
        runs.append(run)
    assert runs[0] == runs[1]


def test_what_others_put_into_groups_is_kept() -> None:
    optimizer = ours()
    for group in optimizer.param_groups:
        group |= {"swa_lr": 0.1, "lr_mult": [1, 2], "weight_decay": 0.3}
    again = ours()
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["lr_mult"] == [1, 2]
    assert again.param_groups[0]["lr_mult"] is not optimizer.param_groups[0]["lr_mult"]
    assert {(group["swa_lr"], group["weight_decay"]) for group in again.param_groups} == {(0.1, 0.3)}


# --------------------------------------------------------------------------- state of other optimizers


def separate(recipe: OptimizerRecipe, **muon: Any) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """A model after four steps of torch.optim.Muon on its hidden matrices and AdamW on the rest."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 5))
    named = dict(model.named_parameters())
    matrices = [(name, named.pop(name)) for name in ("0.weight", "2.weight")]
    common: dict[str, Any] = {"lr": 1e-2, "weight_decay": recipe.weight_decay}
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, **common, nesterov=recipe.nesterov, **muon),
        torch.optim.AdamW(named.items(), **common, betas=recipe.adamw_betas, eps=recipe.adamw_eps),
    ]
    for step in range(4):
        give_gradients(model, step)
        for optimizer in optimizers:
            optimizer.step()
    return model, optimizers


def give_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(
    ("recipe", "adjust"), [(recipes.moonlight, "match_rms_adamw"), (recipes.muon, "original")]
)
def test_a_run_of_torch_optim_muon_goes_on(recipe: OptimizerRecipe, adjust: str, nesterov: bool) -> None:
    recipe = replace(recipe, nesterov=nesterov)
    model, optimizers = separate(recipe, adjust_lr_fn=adjust)
    other = copy.deepcopy(model)
    continued = Muon(parameter_table(other), recipe)
    continued.load_state_dict(*(optimizer.state_dict() for optimizer in optimizers))
    assert {group["lr"] for group in continued.param_groups} == {1e-2}
    fresh = Muon(parameter_table(other), recipe)
    assert [set(group) for group in continued.param_groups] == [set(group) for group in fresh.param_groups]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for each in (model, other):
        give_gradients(each, 9)
    for optimizer in (*optimizers, continued):
        optimizer.step()
    for (name, theirs), mine, old in zip(model.named_parameters(), other.parameters(), before, strict=True):
        difference = (mine - theirs).norm() / (theirs - old).norm()
        assert difference < (0.02 if name in ("0.weight", "2.weight") else 1e-5), name  # theirs is in bf16
    average = optimizers[0].state[model[0].weight]["momentum_buffer"]
    torch.testing.assert_close(continued.named_state()["0.weight"]["momentum_buffer"] * 0.05, average)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"momentum": 0.9}, r"torch\.optim\.Muon with momentum 0\.9 where recipe 'moonlight' has 0\.95"),
        ({"ns_steps": 6}, r"ns_schedule .* where recipe"),
        ({"adjust_lr_fn": "original"}, r"update_rms None where recipe 'moonlight' has 0\.2"),
    ],
)
def test_another_rule_than_the_recipes_is_refused(rule: dict[str, Any], words: str) -> None:
    model, optimizers = separate(recipes.moonlight, **{"adjust_lr_fn": "match_rms_adamw"} | rule)
    optimizer = Muon(parameter_table(model), recipes.moonlight)
    with pytest.raises(LichenError, match=words):
        optimizer.load_state_dict(*(each.state_dict() for each in optimizers))
    assert not optimizer.state


def everything(
    kind: Callable[..., torch.optim.Optimizer], **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    model = model_of()
    optimizer = kind(list(model.named_parameters()), lr=1e-2, **options)
    give_gradients(model, 0)
    optimizer.step()
    return model, optimizer.state_dict()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_goes_on_bit_for_bit(decay: float) -> None:
    recipe = replace(recipes.adamw, adamw_betas=(0.9, 0.999))
    model, saved = everything(torch.optim.AdamW, weight_decay=decay, fused=True)
    theirs = torch.optim.AdamW(list(model.named_parameters()))
    theirs.load_state_dict(saved)
    other = copy.deepcopy(model)
    continued = Muon(parameter_table(other, [("*", Role("vector"))]), recipe)
    continued.load_state_dict(saved)
    for each in (model, other):
        give_gradients(each, 1)
    theirs.step()
    continued.step()
    assert all(map(torch.equal, model.parameters(), other.parameters()))


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (torch.optim.SGD, {"momentum": 0.9}, r"0\.weight was saved by torch\.optim\.SGD"),
        (torch.optim.Adafactor, {}, r"was saved by torch\.optim\.Adafactor"),
        (torch.optim.RMSprop, {}, r"was saved by torch\.optim\.RMSprop"),
        (torch.optim.NAdam, {}, r"was saved by torch\.optim\.NAdam"),
        (torch.optim.AdamW, {"amsgrad": True, "betas": (0.9, 0.95)}, "AdamW with amsgrad=True"),
        (torch.optim.AdamW, {}, r"adamw_betas \(0\.9, 0\.999\) where recipe 'adamw' has \(0\.9, 0\.95\)"),
        (torch.optim.Adam, {"betas": (0.9, 0.95), "weight_decay": 0.1}, "weight decay that is part of"),
    ],
)
def test_state_that_means_something_else_is_refused(
    kind: Callable[..., Any], options: dict[str, Any], words: str
) -> None:
    model, saved = everything(kind, **options)
    for recipe in (recipes.adamw, recipes.moonlight):
        with pytest.raises(LichenError, match=words if recipe is recipes.adamw else "optimizer state"):
            Muon(parameter_table(model), recipe).load_state_dict(saved)


def test_parameters_that_are_saved_without_names_are_refused() -> None:
    model = model_of()
    saved = torch.optim.AdamW(model.parameters()).state_dict()
    with pytest.raises(LichenError, match=r"saved without names; .*model\.named_parameters\(\)"):
        Muon(parameter_table(model), recipes.adamw).load_state_dict(saved)


def lion_like(named: list[tuple[str, Tensor]], lr: float) -> torch.optim.Optimizer:
    """An optimizer from elsewhere, whose state has the names of Muon's."""

    class Lion(torch.optim.Optimizer):
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["momentum_buffer"] = parameter.grad

    return Lion(named, {"lr": lr, "betas": (0.9, 0.99), "weight_decay": 0.0, "cautious": True})


def test_an_optimizer_from_elsewhere_is_refused_by_its_settings() -> None:
    model, saved = everything(lion_like)
    table = parameter_table(model, [("*", Role("vector"))])
    with pytest.raises(LichenError, match="an optimizer with the settings betas, cautious, lr, weight_decay"):
        Muon(table, recipes.moonlight).load_state_dict(saved)


@pytest.mark.parametrize("settings", [set(), {"lr"}, {"lr", "weight_decay", "mu"}, {"lr", "weight_decay"}])
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_momentum_without_a_peak_rate_is_nobodys(settings: set[str], scheduled: bool) -> None:
    """The names of Muon's own state are those of averages elsewhere, and `initial_lr` is any scheduler's."""
    optimizer = ours()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    if scheduled:
        lr_scheduler.LinearLR(optimizer)
    saved = optimizer.state_dict()
    ours().load_state_dict(saved)
    kept = settings | {"params", "param_names", "initial_lr"}
    for group in saved["param_groups"]:
        group["mu"] = 0.95
        for key in group.keys() - kept:
            del group[key]
    with pytest.raises(LichenError, match=r"was saved by an optimizer with .* whose state does not mean"):
        ours().load_state_dict(saved)
