"""Roles of the parameters of a model that does not state them: by module type, name and shape."""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from lichen.errors import LichenError
from lichen.nn.roles import Layout, Role

# Layers whose output is query, key and value, one after the other.
FUSED_ATTENTION = ("Wqkv", "c_attn", "in_proj_weight", "qkv", "qkv_proj")

# Attention of transformers that uses one of these names for query, key and value of every head in turn.
HEAD_BY_HEAD = ("CodeGenAttention", "MiniMaxLightningAttention")

# Other names of fused gate and up projections, and the layer that takes half as many inputs if they are.
FUSED_GATE = {"Wi": "Wo", "input_linear": "output_linear", "w12": "w3", "weights_in": "weights_out"}

# Layers whose rows are attention heads, and what a model's `config` calls their number.
HEADS = dict.fromkeys(("q_proj", "q_b_proj", "kv_b_proj"), "num_attention_heads")
HEADS |= dict.fromkeys(("k_proj", "v_proj"), "num_key_value_heads")

# What parameters are called that list learned vectors: positions, class tokens, queries of a resampler.
TABLES = ("embed", "latent", "pos_", "position", "token")

# Parameters of two dimensions that multiply entry by entry: the decay rates of state-space models.
ENTRYWISE = ("A_log",)


def infer_roles(model: nn.Module) -> dict[str, Role]:
    """Name -> role of every parameter; a tied parameter has a role under each of its names.

    Embeddings, the output layer, norms, biases and everything that is long in fewer than two dimensions
    are told apart; the rest are matrices. Fused gate and up projections (`gate_up_proj`), stacked over
    experts or not, the gates of LSTMs and GRUs, and fused query, key and value are split, the last if in
    equal thirds or as the attention's `config` says. Parts of Lichen inside the model know their roles.
    What fits no rule is one matrix: print the table, and override what is wrong.

    Raises LichenError for weights that have lost their shape or do not have one yet.
    """
    outputs = _output_layers(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    roles = {}
    for path, module in modules.items():
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            _require_shape(name, module, leaf, parameter)
            owner, own_leaf = _parametrized(path, leaf)
            stated = getattr(modules[owner], "roles", None)
            if isinstance(stated, Mapping) and isinstance(role := stated.get(own_leaf), Role):
                roles[name] = role
            else:
                roles[name] = _role(owner, modules, own_leaf, parameter.shape, modules[owner] in outputs)
    return roles


def _require_shape(name: str, module: nn.Module, leaf: str, parameter: nn.Parameter) -> None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise LichenError(f"optimizer table: {name} has no shape before the model's first forward pass")
    flat = leaf == "_flat_param" or (isinstance(module, nn.Linear) and leaf == "weight")
    if flat and parameter.requires_grad and parameter.ndim < 2:
        raise LichenError(
            f"optimizer table: {name} has been flattened to shape {tuple(parameter.shape)}, so its matrices "
            "are lost; shard the model with torch.distributed.fsdp.fully_shard, which keeps them"
        )


def _parametrized(path: str, leaf: str) -> tuple[str, str]:
    """The layer and the name that a parameter is for: torch.nn.utils.parametrize puts it elsewhere."""
    layer, found, name = f".{path}".rpartition(".parametrizations.")
    return (layer[1:], name) if found else (path, leaf)


def _role(path: str, modules: dict[str, nn.Module], leaf: str, shape: torch.Size, is_output: bool) -> Role:
    module = modules[path]
    if "bias" in leaf:
        return Role("bias")
    if "norm" in type(module).__name__.lower() and not isinstance(module, nn.Linear):
        return Role("norm")
    if shape.numel() <= max(shape, default=1) or leaf in ENTRYWISE:
        return Role("vector")
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or any(word in leaf for word in TABLES):
        return Role("embedding")
    if is_output:
        return Role("head")
    if isinstance(module, _ConvNd):
        return _convolution(module, shape)
    if 1 in shape[-2:]:
        return Role("vector")
    layout = _layout(module, leaf)
    outputs, inputs = shape[-2:] if layout == "rows" else (shape[-1], shape[-2])
    owner, _, own_name = path.rpartition(".")
    owner, name = (owner, own_name) if leaf == "weight" else (path, leaf)
    if name == "gate_up_proj":
        interleaved = not getattr(module, "is_concatenated", True)
        return Role("matrix", (outputs // 2, outputs // 2), layout=layout, interleaved=interleaved)
    if name in FUSED_GATE:
        down = getattr(getattr(modules[owner], FUSED_GATE[name], None), "weight", None)
        if down is not None and outputs == 2 * down.shape[-1]:
            return Role("matrix", (outputs // 2, outputs // 2), layout=layout)
    if name in FUSED_ATTENTION and type(modules[owner]).__name__ not in HEAD_BY_HEAD:
        return Role("matrix", _query_key_value(modules[owner], outputs, inputs), layout=layout)
    if name in HEADS:
        return Role("matrix", heads=_heads(modules[owner], name, outputs), layout=layout)
    return Role("matrix", _independent_rows(module, leaf, outputs), layout=layout)


def _query_key_value(attention: nn.Module, outputs: int, inputs: int) -> tuple[int, ...]:
    """Rows of query, key and value in their fused projection; empty where it cannot be told."""
    heads, shared = (_configured(attention, f"num_{kind}_heads") for kind in ("attention", "key_value"))
    if heads and shared and outputs % (heads + 2 * shared) == 0:
        head_dim = outputs // (heads + 2 * shared)
        return (heads * head_dim, shared * head_dim, shared * head_dim)
    return (inputs, inputs, inputs) if outputs == 3 * inputs else ()


def _heads(attention: nn.Module, name: str, outputs: int) -> int:
    """The number of heads among the rows of a projection; 1 where it cannot be told."""
    heads = _configured(attention, HEADS[name]) or _configured(attention, "num_attention_heads")
    return heads if heads and outputs % heads == 0 else 1


def _configured(attention: nn.Module, field: str) -> int | None:
    """A number of the attention's `config`; None where it is missing or differs from layer to layer."""
    value = getattr(getattr(attention, "config", None), field, None)
    return value if isinstance(value, int) else None


def _independent_rows(module: nn.Module, leaf: str, outputs: int) -> tuple[int, ...]:
    """Rows of the matrices that a layer of PyTorch, or one that calls them groups, stacks in its weight."""
    parts = 1
    if leaf.startswith(("weight_ih", "weight_hh")):
        parts = 4 if isinstance(module, nn.LSTM | nn.LSTMCell) else parts
        parts = 3 if isinstance(module, nn.GRU | nn.GRUCell) else parts
    elif isinstance(module, nn.Linear):
        parts = getattr(module, "n_groups", 1)
    return (outputs // parts,) * parts if parts > 1 and outputs % parts == 0 else ()


def _convolution(module: _ConvNd, shape: torch.Size) -> Role:
    """Groups of channels are independent; with one channel each, a kernel is a vector of filters.

    A transposed convolution has the kernel of the convolution that it transposes.
    """
    groups, channels = module.groups, shape[0] // module.groups
    if 1 in (channels, shape[1:].numel()) or 1 < groups == module.in_channels:
        return Role("vector")
    return Role("matrix", (channels,) * groups if groups > 1 else (), layout="kernel")


def _layout(module: nn.Module, leaf: str) -> Layout:
    """Where the outputs of a weight of two or more dimensions lie."""
    if any(kind.__name__ == "Conv1D" for kind in type(module).__mro__):
        return "columns"  # transformers' name for the linear layer of GPT-2
    up, down = module._parameters.get("gate_up_proj"), module._parameters.get("down_proj")
    if leaf in ("gate_up_proj", "down_proj") and up is not None and down is not None:
        # Fused experts: `down_proj` maps the intermediate size I back to the hidden size H, so
        # (H, I) beside (2 I, H) has its outputs in rows and (I, H) beside (H, 2 I) in columns.
        return "rows" if up.shape[-1] == down.shape[-2] else "columns"
    return "rows"


def _output_layers(model: nn.Module) -> set[nn.Module | None]:
    """What the models of `transformers` in it say they are; else the linear layer that comes last."""
    found: set[nn.Module | None] = set()
    for module in model.modules():
        stated: Callable[[], nn.Module | None] | None = getattr(module, "get_output_embeddings", None)
        if stated is not None and (layer := stated()) is not None:
            found.update(layer.modules())
    return found or {_last_linear(model)}


def _last_linear(model: nn.Module) -> nn.Module | None:
    """The model's last child with parameters if it is a linear layer, or a sequence that ends in one.

    What merely wraps another module is passed through. A layer that is all of the model is none.
    """
    module, alone = model, True
    while not isinstance(module, nn.Linear):
        children = [child for child in module.children() if next(child.parameters(), None) is not None]
        if not children or (len(children) > 1 and not isinstance(children[-1], nn.Linear | nn.Sequential)):
            return None
        alone = alone and len(list(module.children())) == 1
        module = children[-1]
    return None if alone else module
