"""Roles of the parameters of a model that does not state them: by module type, name, shape and use."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from lichen.errors import LichenError
from lichen.nn.roles import Role
from lichen.optim.fused import HEADS, SHARED_HEADS, fused, number
from lichen.optim.output_layers import Output, input_embeddings, output_layers
from lichen.optim.places import MATRICES, Place, is_a, layout, place

# Layers whose rows are the queries of attention heads, and the keys and values of as many or fewer.
ROWS_OF_HEADS = ("q_proj", "q_b_proj", "kv_b_proj")
ROWS_OF_SHARED_HEADS = ("k_proj", "v_proj")

# What parameters are called that list learned vectors: positions, class tokens, queries of a resampler.
TABLES = re.compile(
    r"embed|latent|position|token|"
    r"(^|_)(ape|emb|pos|cls|quer(y|ies)|prompts?|prototypes?|code(book|vector)s?)(_|\.|$)"
)

# Parameters of two dimensions that multiply entry by entry: decay rates, skips, scales.
ENTRYWISE = re.compile(r"A_log|D|gamma|beta|(\w+_)?scales?")

# Attention whose projections have three dimensions: (inputs, heads, head_dim) and for the output
# (outputs, heads, head_dim).
EINSUM_ATTENTION = ("XLNetRelativeAttention", "FunnelRelMultiheadAttention")
EINSUM_INPUTS = ("q", "k", "v", "r", "r_kernel")
EINSUM_OUTPUT = "o"


class Inferred(NamedTuple):
    """A role, what chose it, and what is not sure of it, in words that follow the parameter's name."""

    role: Role
    why: str
    doubt: str = ""


class Inference(NamedTuple):
    """Name -> role of every parameter, and sentences about what is not sure of the model as a whole."""

    roles: dict[str, Inferred]
    doubts: list[str]


def infer_roles(model: nn.Module) -> Inference:
    """The roles of all parameters; a tied parameter has a role under each of its names.

    Embeddings, output layers, norms, biases and everything that is long in fewer than two dimensions
    are told apart; the rest are matrices, and what is fused in one parameter is split where the layout is
    known (`lichen.optim.fused`). Parts of Lichen inside the model know their roles.

    Raises LichenError for weights that have lost their shape or do not have one yet.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    inputs, vocabulary = input_embeddings(model), _vocabulary(model)
    outputs = output_layers(model, vocabulary)
    roles = {}
    for path, module in modules.items():
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            _require_shape(name, module, leaf, parameter)
            owner, own_leaf = _parametrized(path, leaf)
            while owner and isinstance(modules[owner], nn.ParameterDict | nn.ParameterList):
                owner, _, container = owner.rpartition(".")
                own_leaf = f"{container}.{own_leaf}"
            stated = getattr(modules[owner], "roles", None)
            if isinstance(stated, Mapping) and isinstance(role := stated.get(own_leaf), Role):
                roles[name] = Inferred(role, "stated by the part")
                continue
            found = _vector(modules[owner], own_leaf, parameter.shape)
            if found is None and own_leaf == "weight" and modules[owner] in outputs:
                found = _head(modules[owner], parameter.shape, vocabulary, outputs[modules[owner]])
            found = found or _table(owner, modules[owner], own_leaf, parameter.shape, inputs, vocabulary)
            roles[name] = found or _matrix(owner, modules, own_leaf, parameter.shape)
    kinds = {inferred.role.kind for inferred in roles.values()}
    if outputs or "head" in kinds or "matrix" not in kinds:
        return Inference(roles, [])
    return Inference(roles, ["no output layer was found, so each linear layer holds matrices"])


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


def _vocabulary(model: nn.Module) -> set[int]:
    """Numbers of tokens: of every config in the model, and of its largest embedding."""
    stated = {number(module, ("vocab_size", "padded_vocab_size")) for module in model.modules()}
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    return {size for size in stated if size is not None} | {max(tables, default=0)} - {0}


def _vector(module: nn.Module, leaf: str, shape: torch.Size) -> Inferred | None:
    """Biases, norms, and what is long in fewer than two dimensions."""
    if "bias" in leaf:
        return Inferred(Role("bias"), "named bias")
    kind = type(module).__name__
    if "norm" in kind.lower() and not isinstance(module, nn.Linear):
        return Inferred(Role("norm"), f"in {kind}")
    if shape.numel() <= max(shape, default=1):
        return Inferred(Role("vector"), "one dimension")
    if ENTRYWISE.fullmatch(leaf):
        return Inferred(Role("vector"), f"named {leaf}: multiplies entry by entry")
    return None


def _table(
    path: str, module: nn.Module, leaf: str, shape: torch.Size, inputs: set[nn.Module], vocabulary: set[int]
) -> Inferred | None:
    """Lists of learned vectors, one for a token, a position or the like."""
    kind, name = type(module).__name__, path.rpartition(".")[2]
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return Inferred(Role("embedding"), kind)
    if isinstance(module, nn.Linear | _ConvNd) or re.search(r"proj|kernel|conv", leaf):
        return None
    if TABLES.search(leaf):
        # Of adapters: (rank, tokens), whose columns are the tokens.
        columns = re.search("embedding_A", leaf) is not None
        return Inferred(Role("embedding", layout="columns" if columns else "rows"), f"named {leaf}")
    if module in inputs:
        return Inferred(Role("embedding"), "get_input_embeddings()")
    if "embed" in kind.lower() and leaf.startswith("weight"):
        return Inferred(Role("embedding"), f"in {kind}")
    if leaf == "weight" and re.search(r"embed|^wte$|^wpe$", name):
        return Inferred(Role("embedding"), f"named {name}")
    if shape[0] in vocabulary and len(shape) == 2 and shape[0] > shape[1]:
        return Inferred(Role("embedding"), "a row for every token")
    if shape[0] == 1 and len(shape) > 2:
        return Inferred(Role("vector"), "added to or compared with what passes: its first dimension is 1")
    return None


def _head(module: nn.Module, shape: torch.Size, vocabulary: set[int], output: Output) -> Inferred | None:
    if isinstance(module, nn.Embedding):
        return None
    if isinstance(module, _ConvNd):
        return Inferred(Role("head", layout="kernel"), *output)
    columns = shape[-1] in vocabulary and shape[-2] not in vocabulary
    return Inferred(Role("head", layout="columns" if columns else layout(module, "weight")), *output)


def _matrix(path: str, modules: dict[str, nn.Module], leaf: str, shape: torch.Size) -> Inferred:
    module = modules[path]
    kind = type(module).__name__
    here = place(modules, path, leaf, shape)
    if isinstance(module, _ConvNd):
        return _convolution(module, here, shape)
    if 1 in shape[-2:]:
        return Inferred(Role("vector"), "one dimension")
    if leaf in EINSUM_INPUTS and is_a(module, *EINSUM_ATTENTION):
        return Inferred(Role("matrix", heads=shape[1], layout="kernel_columns"), "(inputs, heads, head_dim)")
    if leaf == EINSUM_OUTPUT and is_a(module, *EINSUM_ATTENTION):
        return Inferred(Role("matrix", layout="kernel"), "(outputs, heads, head_dim)")
    lies = layout(module, leaf)
    if here.name == "gate_up_proj" and not getattr(module, "is_concatenated", True):
        role = Role("matrix", (here.outputs // 2,) * 2, layout=lies, groups=here.outputs // 2)
        return Inferred(role, "gate and up in turn")
    if rows := _independent_rows(module, leaf, here.outputs):
        return Inferred(Role("matrix", rows, layout=lies), f"{kind}: {len(rows)} matrices")
    if (parts := fused(here)) is not None:
        role = Role("matrix", parts.splits, parts.heads, lies, parts.groups)
        return Inferred(role, parts.why or "one matrix?", parts.doubt)
    heads = _heads(here)
    if heads > 1:
        return Inferred(Role("matrix", heads=heads, layout=lies), f"{kind}: rows of {heads} heads")
    if MATRICES.search(leaf):
        return Inferred(Role("matrix", layout=lies), kind)
    doubt = "may be no matrix: neither its name nor its class says what it is"
    return Inferred(Role("matrix", layout=lies), "two dimensions or more", doubt)


def _heads(projection: Place) -> int:
    """The number of heads among the rows of a projection; 1 where it cannot be told."""
    attention, name, outputs = projection.owner, projection.name, projection.outputs
    heads = None
    if name in ROWS_OF_SHARED_HEADS:
        heads = number(attention, SHARED_HEADS)
        if heads is None and (head_dim := number(attention, ("head_dim",))):
            heads = outputs // head_dim
    if name in ROWS_OF_HEADS + ROWS_OF_SHARED_HEADS:
        heads = heads or number(attention, HEADS)
    return heads if heads and outputs % heads == 0 else 1


def _independent_rows(module: nn.Module, leaf: str, outputs: int) -> tuple[int, ...]:
    """Rows of the matrices that a layer of PyTorch, or one that calls them groups, stacks in its weight."""
    parts = 1
    if leaf.startswith(("weight_ih", "weight_hh")):
        parts = 4 if isinstance(module, nn.LSTM | nn.LSTMCell) else parts
        parts = 3 if isinstance(module, nn.GRU | nn.GRUCell) else parts
    elif isinstance(module, nn.Linear):
        parts = getattr(module, "n_groups", 1)
    return (outputs // parts,) * parts if parts > 1 and outputs % parts == 0 else ()


def _convolution(module: _ConvNd, here: Place, shape: torch.Size) -> Inferred:
    """Groups of channels are independent; with one channel each, a kernel is a vector of filters.

    A transposed convolution has the kernel of the convolution that it transposes.
    """
    groups, channels = module.groups, shape[0] // module.groups
    kind = type(module).__name__
    if 1 in (channels, shape[1:].numel()) or 1 < groups == module.in_channels:
        return Inferred(Role("vector"), f"{kind}: a filter for every channel")
    if groups > 1:
        return Inferred(Role("matrix", (channels,) * groups, layout="kernel"), f"{kind} of {groups} groups")
    parts = None if module.transposed else fused(here)
    if parts is None:
        return Inferred(Role("matrix", layout="kernel"), kind)
    role = Role("matrix", parts.splits, layout="kernel", groups=parts.groups)
    return Inferred(role, parts.why or "one matrix?", parts.doubt)
