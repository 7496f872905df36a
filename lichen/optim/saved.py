"""Saved state of an optimizer by the name of each parameter: Muon's, and what of PyTorch's agrees with it.

`torch.optim.Muon` keeps the momentum as a running average, A <- m A + (1 - m) G, where here it is the sum
M <- m M + G: so M = A / (1 - m). `torch.optim.AdamW` keeps what is kept here.
"""

import inspect
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lichen.errors import LichenError
from lichen.nn.roles import Kind
from lichen.optim.recipes import OptimizerRecipe

# Settings that tell the groups of torch.optim.Muon from others, and those of Adam and AdamW.
MUON = {"lr", "momentum", "nesterov", "ns_coefficients", "ns_steps", "adjust_lr_fn"}
ADAMW = {"lr", "betas", "eps", "weight_decay", "amsgrad"}


class SavedParameter(NamedTuple):
    """State of one parameter (empty: it had no gradient yet), and its group as this optimizer has groups.

    rule: the settings that another optimizer saved it with; None for Muon's own.
    """

    name: str
    state: dict[str, Tensor]
    settings: dict[str, Any]
    rule: dict[str, Any] | None

    def convert(self, recipe: OptimizerRecipe, kind: Kind) -> dict[str, Tensor]:
        """The state as Muon keeps it for a parameter of this kind.

        Raises LichenError if another optimizer saved it by a rule that is not the recipe's.
        """
        if self.rule is None:
            return self.state
        if self.rule.keys() >= MUON:
            origin, algorithm, differing = "torch.optim.Muon", "muon", _muon_differences(self.rule, recipe)
        elif self.rule.keys() >= ADAMW:
            origin, algorithm, differing = "Adam or AdamW", "adamw", _adamw_differences(self.rule, recipe)
        else:
            raise LichenError(
                f"optimizer state: {self.name} was saved by {_origin(self.rule)}, whose state does not "
                "mean what Muon's does, whose groups have a peak_lr; start anew, at a low learning rate"
            )
        if (here := recipe.algorithm(kind)) != algorithm:
            raise LichenError(
                f"optimizer state: {self.name} was updated by {origin}, in recipe {recipe.name!r} it is by "
                f"{here}; change its role or the recipe"
            )
        if differing:
            raise LichenError(
                f"optimizer state: {self.name} was updated by {origin} with {' and '.join(differing)}; give "
                "Muon a recipe that says the same (dataclasses.replace), or start anew"
            )
        if algorithm == "muon":
            return {key: tensor / (1 - self.rule["momentum"]) for key, tensor in self.state.items()}
        return self.state


def saved_parameters(state_dicts: Iterable[dict[str, Any]]) -> dict[str, SavedParameter]:
    """Everything that the state dicts hold, by name. Raises LichenError for parameters without a name."""
    found: dict[str, SavedParameter] = {}
    for state_dict in state_dicts:
        state = dict(state_dict["state"])
        for group in state_dict["param_groups"]:
            settings, rule = _settings(group)
            names = group.get("param_names", group["params"])
            for key, own_name in zip(group["params"], names, strict=True):
                name = own_name if isinstance(key, int) else key
                if isinstance(name, int):
                    raise LichenError(
                        "optimizer state: the parameters are saved without names; make the optimizer that "
                        "saved them with model.named_parameters() in place of model.parameters()"
                    )
                if name in found:
                    raise LichenError(f"optimizer state: {name} is saved twice")
                entry = state.pop(key if key in state else name, {})
                found[name] = SavedParameter(name, entry, settings, rule)
        if state:
            raise LichenError(
                f"optimizer state: {', '.join(sorted(map(str, state)))} has state, but belongs to no group"
            )
    return found


def _settings(group: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What a group here takes over of a saved one, and all of its settings if another optimizer's.

    Only Muon's own groups have a `peak_lr`. Momenta of others have the same name and another meaning.
    """
    settings = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    if "peak_lr" in settings:
        return settings, None
    foreign = set().union(*_keys_of_torch().values()) - {"lr", "weight_decay"}
    own = {key: value for key, value in settings.items() if key not in foreign}
    own["peak_lr"] = settings.get("initial_lr", settings.get("lr"))  # a scheduler's name for it
    return own, settings


def _muon_differences(rule: dict[str, Any], recipe: OptimizerRecipe) -> list[str]:
    schedule = (tuple(rule["ns_coefficients"]),) * rule["ns_steps"]
    update_rms = 0.2 if rule["adjust_lr_fn"] == "match_rms_adamw" else None
    return [
        f"{field} {theirs} where recipe {recipe.name!r} has {ours}"
        for field, theirs, ours in (
            ("momentum", rule["momentum"], recipe.momentum),
            ("nesterov", rule["nesterov"], recipe.nesterov),
            ("ns_schedule", schedule, recipe.ns_schedule),
            ("update_rms", update_rms, recipe.update_rms),
        )
        if theirs != ours
    ]


def _adamw_differences(rule: dict[str, Any], recipe: OptimizerRecipe) -> list[str]:
    differing = [
        f"{field} {theirs} where recipe {recipe.name!r} has {ours}"
        for field, theirs, ours in (
            ("adamw_betas", tuple(rule["betas"]), recipe.adamw_betas),
            ("adamw_eps", rule["eps"], recipe.adamw_eps),
        )
        if theirs != ours
    ]
    differing += [f"{field}=True" for field in ("amsgrad", "maximize") if rule.get(field)]
    if rule["weight_decay"] and not rule.get("decoupled_weight_decay"):
        differing.append("a weight decay that is part of the gradient")
    return differing


@cache
def _keys_of_torch() -> dict[str, set[str]]:
    """Settings in the groups of every optimizer of PyTorch."""
    parameter = nn.Parameter(torch.zeros(1, 1))
    kinds: dict[str, Any] = {
        name: kind
        for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)
    }
    del kinds["Optimizer"]
    return {f"torch.optim.{name}": set(kind([parameter]).defaults) for name, kind in kinds.items()}


def _origin(settings: dict[str, Any]) -> str:
    """Which optimizer keeps such settings in its groups."""
    fitting = {name: len(keys) for name, keys in _keys_of_torch().items() if keys <= settings.keys()}
    if fitting:
        return max(fitting, key=fitting.__getitem__)
    return f"an optimizer with the settings {', '.join(sorted(settings)) or '(none)'}"
