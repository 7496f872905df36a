"""QK-clip: keep the largest attention logit of every head at or below tau (Kimi K2, arXiv 2507.20534).

After an optimizer step, a head whose largest logit S of the step's forward pass was above tau gets its
query and key weights multiplied so that its logits shrink by gamma = tau / S. Other heads, and the
step's own forward and backward pass, are untouched.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lichen.errors import LichenError
from lichen.optim.shards import local, place_like
from lichen.optim.table import plain_name, unwrapped


@torch.no_grad()
def qk_clip(model: nn.Module, max_logits: Mapping[str, Tensor], tau: float) -> dict[str, int]:
    """Clip every attention module named in `max_logits`; call it after `optimizer.step()`.

    max_logits: attention module name -> (num_attention_heads,), the largest logit per head that went
        into the softmax (softmax scale included), over the whole batch of the step. If the weights are
        sharded or `model` is in DistributedDataParallel, every rank gives those of its own batch and the
        maximum over the ranks counts.

    Returns the number of clipped heads per module, for which it waits for the device. Raises LichenError for
    a logit that is not finite, for a wrong number of heads, and for an attention that QK-clip is not defined
    for.
    """
    largest = largest_everywhere(model, max_logits)
    for name, logits in largest.items():
        if not logits.isfinite().all():
            raise LichenError(f"QK-clip: the largest attention logits of {name} are not finite")
    return {name: int(count) for name, count in clip(model, largest, tau).items()}


@torch.no_grad()
def largest_everywhere(model: nn.Module, max_logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The largest logits over all ranks, fp32; a logit that is not a number counts as infinite."""
    replicas = [each.process_group for each in model.modules() if isinstance(each, DistributedDataParallel)]
    modules = _modules(model)
    largest = {}
    for name, logits in max_logits.items():
        parameter, _ = _factors(name, modules.get(name), torch.ones_like(logits))[0]
        shards = parameter.device_mesh.get_all_groups() if isinstance(parameter, DTensor) else []
        # NaN counts as infinite, whatever the other ranks have.
        largest[name] = logits.float().nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        for group in [*replicas, *shards]:
            dist.all_reduce(largest[name], dist.ReduceOp.MAX, group=group)
    return largest


@torch.no_grad()
def clip(
    model: nn.Module, largest: Mapping[str, Tensor], tau: float, found_inf: Tensor | None = None
) -> dict[str, Tensor]:
    """`qk_clip` of largest logits that count everywhere, without waiting for a device: the numbers of clipped
    heads stay there. With `found_inf` not 0, as in `Muon.step`, no head is clipped."""
    if not tau > 0:
        raise LichenError(f"QK-clip: tau is {tau}; it must be greater than 0")
    modules, clipped = _modules(model), {}
    for name, logits in largest.items():
        gamma = tau / logits.clamp(min=tau)
        if found_inf is not None:
            gamma = gamma.masked_fill(found_inf != 0, 1.0)
        for parameter, factor in _factors(name, modules.get(name), gamma):
            rows = factor.view(-1, *(1,) * (parameter.ndim - 1)).expand(parameter.shape)
            local(parameter).mul_(local(place_like(rows.to(parameter.device), parameter)))
        clipped[name] = (gamma < 1).sum()
    return clipped


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    return {plain_name(name): module for name, module in unwrapped(model).named_modules()}


def require_clippable(model: nn.Module) -> None:
    """Raise LichenError for an attention in `model` that says that QK-clip is not defined for it."""
    attention: Any
    for attention in model.modules():
        if hasattr(attention, "logit_factors"):
            list(attention.logit_factors(torch.ones(attention.spec.num_attention_heads)))


def _factors(name: str, attention: Any, gamma: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What the attention edits, and by which factor each row, for its logits to shrink by gamma per head."""
    ask = getattr(attention, "logit_factors", None)
    if ask is None:
        raise LichenError(f"QK-clip: {name} is not multi-head latent or grouped-query attention")
    heads = attention.spec.num_attention_heads
    if gamma.shape != (heads,):
        raise LichenError(
            f"QK-clip: {name} has {heads} heads, but its largest logits have shape {tuple(gamma.shape)}"
        )
    return list(ask(gamma))
