"""Every intermediate of one pass, by name, so that two implementations can be compared tensor by tensor.

What a module returns has the module's name, as in the names of its weights; what it records on its way
(`Pass.record`) has a name of its own after that:

    model.layers.1.self_attn.q_a_proj    (N, q_lora_rank)
    model.layers.1.mlp.gate.logits       (N, experts)
    lm_head                              (N, vocab_size), with tied embeddings too
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lichen.nn.forward import Pass
from lichen.nn.transformer import Transformer
from lichen.ops.sequences import Sequences


class _Traced(Pass):
    """Asks for all that modules record, but for the largest logits: attention would take another way."""

    def __init__(self, sequences: Sequences, names: dict[nn.Module, str]) -> None:
        super().__init__(sequences)
        self.names = names
        self.tensors: dict[str, Tensor] = {}

    def observes(self, name: str) -> bool:
        return name != "max_logits"

    def record(self, name: str, module: nn.Module, value: Any) -> None:
        if isinstance(value, Tensor) and module in self.names:
            self.tensors[f"{self.names[module]}.{name}"] = value.to("cpu", copy=True)

    def returned(self, module: nn.Module, _: Any, value: Any) -> None:
        if isinstance(value, Tensor):
            self.tensors[self.names[module]] = value.to("cpu", copy=True)


@torch.no_grad()
def trace(model: Transformer, tokens: Sequence[int]) -> dict[str, Tensor]:
    """What the layers, but for those of multi-token prediction, compute from one sequence of N tokens, in the
    order in which it is finished: on the CPU, in the dtypes of the pass. The first dimension is N, or the
    number of entries that stand for blocks of tokens."""
    device = next(model.parameters()).device
    # Without the model itself, which says what its last modules have said.
    names = {module: name for name, module in model.named_modules() if name}
    at = _Traced(Sequences([len(tokens)], device=device), names)
    hooks = [module.register_forward_hook(at.returned) for module in names]
    try:
        hidden_NH = model(torch.tensor(tokens, device=device), at)
    finally:
        for hook in hooks:
            hook.remove()
    return at.tensors | {"lm_head": model.logits(hidden_NH).cpu()}
