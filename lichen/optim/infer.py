"""Roles of the parameters of a model that does not state them: by module type, name and shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from lichen.nn.roles import Layout, Role

# Layers whose output is query, key and value, one after the other.
FUSED_ATTENTION = ("Wqkv", "c_attn", "in_proj_weight", "qkv", "qkv_proj")

# Parameters of two dimensions that multiply entry by entry: the decay rates of state-space models.
ENTRYWISE = ("A_log",)


def infer_roles(model: nn.Module) -> dict[str, Role]:
    """Name -> role of every parameter; a tied parameter has a role under each of its names.

    Embeddings, the output layer, norms, biases and everything with fewer than two dimensions are told
    apart; the rest are matrices. Fused gate and up projections (`gate_up_proj`), stacked over experts or
    not, and fused query, key and value are split, if in equal thirds or as the attention's `config` says.
    What fits no rule is one matrix: print the table, and override what is wrong.
    """
    output = _output_layer(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    return {
        f"{path}.{leaf}" if path else leaf: _role(path, modules, leaf, parameter.shape, module is output)
        for path, module in modules.items()
        for leaf, parameter in module.named_parameters(recurse=False)
    }


def _role(path: str, modules: dict[str, nn.Module], leaf: str, shape: torch.Size, is_output: bool) -> Role:
    module = modules[path]
    if "bias" in leaf:
        return Role("bias")
    if "norm" in type(module).__name__.lower() and not isinstance(module, nn.Linear):
        return Role("norm")
    if len(shape) < 2 or leaf in ENTRYWISE:
        return Role("vector")
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or "embed" in leaf:
        return Role("embedding")
    if is_output:
        return Role("head")
    if isinstance(module, _ConvNd):
        return _convolution(module)
    if 1 in shape[-2:]:
        return Role("vector")
    layout = _layout(module, leaf)
    outputs, inputs = shape[-2:] if layout == "rows" else (shape[-1], shape[-2])
    owner, _, own_name = path.rpartition(".")
    owner, name = (owner, own_name) if leaf == "weight" else (path, leaf)
    if name == "gate_up_proj":
        interleaved = not getattr(module, "is_concatenated", True)
        return Role("matrix", (outputs // 2, outputs // 2), layout=layout, interleaved=interleaved)
    if name in FUSED_ATTENTION:
        return Role("matrix", _query_key_value(modules[owner], outputs, inputs), layout=layout)
    return Role("matrix", layout=layout)


def _query_key_value(attention: nn.Module, outputs: int, inputs: int) -> tuple[int, ...]:
    """Rows of query, key and value in their fused projection; empty where it cannot be told."""
    config = getattr(attention, "config", None)
    heads, shared = (getattr(config, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
    if heads and shared and outputs % (heads + 2 * shared) == 0:
        head_dim = outputs // (heads + 2 * shared)
        return (heads * head_dim, shared * head_dim, shared * head_dim)
    return (inputs, inputs, inputs) if outputs == 3 * inputs else ()


def _convolution(module: _ConvNd) -> Role:
    """Groups of channels are independent; with one input channel each, a kernel is a vector of filters."""
    if module.transposed or module.in_channels == module.groups:
        return Role("vector")
    group = module.out_channels // module.groups
    return Role("matrix", (group,) * module.groups if module.groups > 1 else (), layout="kernel")


def _layout(module: nn.Module, leaf: str) -> Layout:
    """Where the outputs of a weight of two or more dimensions lie."""
    if type(module).__name__ == "Conv1D":  # transformers' name for the linear layer of GPT-2
        return "columns"
    up, down = module._parameters.get("gate_up_proj"), module._parameters.get("down_proj")
    if leaf in ("gate_up_proj", "down_proj") and up is not None and down is not None:
        # Fused experts: `down_proj` maps the intermediate size I back to the hidden size H, so
        # (H, I) beside (2 I, H) has its outputs in rows and (I, H) beside (H, 2 I) in columns.
        return "rows" if up.shape[-1] == down.shape[-2] else "columns"
    return "rows"


def _output_layer(model: nn.Module) -> nn.Module | None:
    """What `transformers` says it is; else a linear layer that is the model's last child."""
    get_output_embeddings: Callable[[], nn.Module | None] | None = getattr(
        model, "get_output_embeddings", None
    )
    if get_output_embeddings is not None and (layer := get_output_embeddings()) is not None:
        return layer
    children = list(model.children())
    return children[-1] if len(children) > 1 and isinstance(children[-1], nn.Linear) else None
