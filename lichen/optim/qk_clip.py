"""QK-clip: keep the largest attention logit of every head at or below tau (Kimi K2, arXiv 2507.20534).

After an optimizer step, a head whose largest logit S of the step's forward pass was above tau gets its
query and key weights multiplied so that its logits shrink by gamma = tau / S. Other heads, and the
step's own forward and backward pass, are untouched.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lichen.arch.spec import GQA, MLA
from lichen.errors import LichenError
from lichen.optim.sharded import local, max_over_ranks, row_range
from lichen.optim.table import plain_name, unwrapped


@torch.no_grad()
def qk_clip(model: nn.Module, max_logits: Mapping[str, Tensor], tau: float) -> dict[str, int]:
    """Clip every attention module named in `max_logits`; call it after `optimizer.step()`.

    max_logits: attention module name -> (num_attention_heads,), the largest logit per head that went
        into the softmax (softmax scale included), over the whole batch of the step. If the weights are
        sharded or `model` is in DistributedDataParallel, every rank gives those of its own batch and the
        maximum over the ranks counts.

    Returns the number of clipped heads per module. Raises LichenError for a logit that is not finite,
    for a wrong number of heads, and for an attention that QK-clip is not defined for.
    """
    if not tau > 0:
        raise LichenError(f"QK-clip: tau is {tau}; it must be greater than 0")
    replicas = [each.process_group for each in model.modules() if isinstance(each, DistributedDataParallel)]
    modules = {plain_name(name): module for name, module in unwrapped(model).named_modules()}
    largest = {}
    for name, logits in max_logits.items():
        spec = getattr(modules.get(name), "spec", None)
        if not isinstance(spec, MLA | GQA):
            raise LichenError(f"QK-clip: {name} is not multi-head latent or grouped-query attention")
        if logits.shape != (spec.num_attention_heads,):
            raise LichenError(
                f"QK-clip: {name} has {spec.num_attention_heads} heads, but its largest logits have shape "
                f"{tuple(logits.shape)}"
            )
        weight = _query(modules[name], spec).get_parameter("weight")
        shards = weight.device_mesh.get_all_groups() if isinstance(weight, DTensor) else []
        largest[name] = max_over_ranks(logits.float(), [*replicas, *shards])
        if not largest[name].isfinite().all():
            raise LichenError(f"QK-clip: the largest attention logits of {name} are not finite")

    clipped = {}
    for name, logits in largest.items():
        attention = modules[name]
        gamma = tau / logits.clamp(min=tau)
        clip = _clip_mla if isinstance(attention.spec, MLA) else _clip_gqa
        clip(attention, attention.spec, gamma)
        clipped[name] = (gamma < 1).sum()
    return {name: int(count) for name, count in clipped.items()}


def _query(attention: nn.Module, spec: MLA | GQA) -> nn.Module:
    """The projection whose rows are the query heads."""
    direct = isinstance(spec, GQA) or spec.q_lora_rank is None
    return attention.get_submodule("q_proj" if direct else "q_b_proj")


def _clip_mla(attention: nn.Module, spec: MLA, gamma: Tensor) -> None:
    """Algorithm 1: sqrt(gamma) on each side of the content part, gamma on the query's rope part.

    The rotated key is shared by all heads, so the head's whole rope factor falls on its query.
    """
    factor, root = gamma.view(-1, 1), gamma.sqrt().view(-1, 1)
    nope, rope, value = spec.qk_nope_head_dim, spec.qk_rope_head_dim, spec.v_head_dim
    query = torch.cat([root.expand(-1, nope), factor.expand(-1, rope)], dim=1)
    key_value = torch.cat([root.expand(-1, nope), torch.ones_like(root).expand(-1, value)], dim=1)
    _scale_rows(_query(attention, spec).get_parameter("weight"), query.flatten())
    _scale_rows(attention.get_parameter("kv_b_proj.weight"), key_value.flatten())


def _clip_gqa(attention: nn.Module, spec: GQA, gamma: Tensor) -> None:
    """All of gamma on the head's query, weight and bias.

    The paper treats heads that own their key. A key that several query heads share cannot follow one of
    them without moving the others, so it stays and every head is clipped exactly.
    """
    for parameter in _query(attention, spec).parameters():
        _scale_rows(parameter, gamma.repeat_interleave(spec.head_dim))


def _scale_rows(parameter: Tensor, factor: Tensor) -> None:
    """Multiply row i by factor[i]; of a sharded parameter, the rows that are here."""
    here = local(parameter)
    rows = factor[row_range(parameter)].to(here.device)
    here.mul_(rows.view(-1, *(1,) * (here.ndim - 1)))
