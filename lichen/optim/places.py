"""Where a weight stands in a model: whose it is, what it is called there, and what may take its outputs."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lichen.nn.roles import Layout

# What modules that wrap another one call it.
WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")

# What a layer is called in a module that has no other; and a weight in a layer.
WRAPPED = (*WRAPPERS, "base_layer", "original_layer", "linear", "module")
WEIGHT = ("weight", "weight_v", "weight_orig")

# What parameters are called that multiply vectors, though no layer of PyTorch holds them.
MATRICES = re.compile(
    r"weight|proj|kernel|matrix|linear|lora|experts|gate|^w\d*(_|$)|_w\d*$|_fn$|^fn$|^original"
)

# What passes by a block, and takes nothing of what it computes.
PASSING_BY = re.compile(r"shortcut|skip|residual|downsample", re.IGNORECASE)

# Modules that multiply one half of what they get, or compute, by the activation of the other.
GATED_UNIT = re.compile(r"(GLU|GatedLinearUnit)$")

# Parameters of two dimensions or more that are no layer of their own: LoRA's factors, a weight norm's sizes.
NO_LAYER = re.compile(r"lora_|original0$|weight_g$")

# Modules that are known by such a name, whatever they hold.
MODULATION = re.compile(r"ada_?(ln|layer_?norm|norm)|modulation", re.IGNORECASE)


class Layer(NamedTuple):
    """The weight of a layer that stands beside another one; `name` as its owner calls it."""

    name: str
    outputs: int
    inputs: int


@dataclass(frozen=True)
class Place:
    """`owner` is what the weight is a part of and `name` what it is called there, wrappers left out.

    outputs, inputs: of the weight; of LoRA's second factor the inputs of the layer that it is added to.
    beside: the other layers of the owner. after: those of them that are declared later, or in a sequence
    the next one alone, and then it is `followed`: by what takes all that comes out of activations. gated:
    a gated linear unit is on the way to it.
    """

    owner: nn.Module
    name: str
    outputs: int
    inputs: int
    beside: tuple[Layer, ...] = ()
    after: tuple[Layer, ...] = ()
    followed: bool = False
    gated: bool = False

    @property
    def taken_whole(self) -> bool:
        """Whether a layer takes all that comes out, so that it is one matrix."""
        return any(layer.inputs == self.outputs for layer in self.beside)


def is_a(module: object, *classes: str) -> bool:
    """Whether it is of a class of such a name: FSDP2 and others make classes of their own from a model's."""
    return any(kind.__name__ in classes for kind in type(module).__mro__)


def sizes_of_norms(module: nn.Module) -> set[int]:
    """Sizes of the vectors that the norms in it see."""
    sizes: set[int] = set()
    for norm in module.modules():
        if "norm" in type(norm).__name__.lower():
            sizes |= {parameter.numel() for parameter in norm.parameters(recurse=False)}
            shape = getattr(norm, "normalized_shape", ())
            sizes |= {shape} if isinstance(shape, int) else set(shape[-1:])
    return sizes


def layout(module: nn.Module, leaf: str) -> Layout:
    """Where the outputs of a weight of two or more dimensions lie.

    Of bare parameters (..., H, k I) before (..., I, H) has its outputs in columns, and the other too: what
    maps to the intermediate size, k times, and back to the hidden size.
    """
    if is_a(module, "Conv1D"):  # the linear layer of GPT-2 in transformers
        return "columns"
    shape = _shape(module, leaf)
    if shape is None or isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "rows"
    others = [other for name in module._parameters if (other := _shape(module, name)) is not None]
    return "columns" if any(_expands(shape, o) or _expands(o, shape) for o in others) else "rows"


def _shape(module: nn.Module, leaf: str) -> torch.Size | None:
    parameter = module._parameters.get(leaf)
    return parameter.shape if parameter is not None and parameter.ndim > 1 else None


def _expands(up: torch.Size, down: torch.Size) -> bool:
    same = up[:-2] == down[:-2] and up[-2] == down[-1]
    return same and up[-1] in (2 * down[-2], 3 * down[-2])


def place(modules: Mapping[str, nn.Module], path: str, leaf: str, shape: torch.Size) -> Place:
    """The place of the parameter `leaf` of the module at `path`; in containers leaf is "container.key"."""
    module = modules[path]
    outputs, inputs = _sizes(module, leaf, shape)
    name = leaf.partition(".")[0]
    if name in WEIGHT and path:
        path, _, name = path.rpartition(".")
    while path:
        owner = modules[path]
        above, _, own = path.rpartition(".")
        adapter = own.startswith("lora_") and isinstance(owner, nn.ModuleDict)
        if name == "lora_B" and (base := _only_layer("", owner)) is not None and base.outputs == outputs:
            inputs = base.inputs
        elif not (adapter or _wraps(owner, name)):
            break
        path, name = above, own
    owner = modules[path]
    beside, after, gated = _neighbours(owner, name)
    around, in_unit = owner, False
    while not after and path and _only_layer("", around) is not None:  # a unit with a layer, such as GEGLU
        in_unit = in_unit or _is_gated_unit(around)
        path, _, own = path.rpartition(".")
        around = modules[path]
        _, after, gated = _neighbours(around, own)
    followed, gated = isinstance(around, nn.Sequential), gated or in_unit
    return Place(owner, name.removesuffix("_weight"), outputs, inputs, beside, after, followed, gated)


def _wraps(owner: nn.Module, name: str) -> bool:
    alone = name in WRAPPED or isinstance(owner, nn.Sequential)
    return name in WRAPPERS or (
        alone and _only_layer("", owner) is not None and not MODULATION.search(type(owner).__name__)
    )


def _neighbours(owner: nn.Module, name: str) -> tuple[tuple[Layer, ...], tuple[Layer, ...], bool]:
    """The layers beside and after, and whether a gated linear unit is on the way to those after."""
    layers: dict[str, Layer | None] = {}
    for key, parameter in owner._parameters.items():
        if parameter is not None and parameter.ndim > 1 and MATRICES.search(key):
            layers[key] = Layer(key.removesuffix("_weight"), *_sizes(owner, key, parameter.shape))
    layers |= {key: _only_layer(key, child) for key, child in owner.named_children()}
    later = list(layers)[list(layers).index(name) + 1 :] if name in layers else []
    if isinstance(owner, nn.Sequential | nn.ModuleList):
        gated = False
        for key in later:
            child = owner.get_submodule(key)
            gated = gated or _is_gated_unit(child)
            if any(parameter.ndim > 1 for parameter in child.parameters()):
                layer = layers[key]
                found = () if layer is None else (layer,)
                return found, found, gated
        return (), (), False
    beside = tuple(layer for key, layer in layers.items() if layer is not None and key != name)
    after = [layer for key in later if (layer := layers[key]) is not None and not PASSING_BY.search(key)]
    return beside, tuple(after), False


def _is_gated_unit(module: nn.Module | None) -> bool:
    return GATED_UNIT.search(type(module).__name__) is not None


def _only_layer(name: str, module: nn.Module) -> Layer | None:
    """The layer in a module that has no other, but for LoRA's factors; `name` is the module's."""
    found = list(islice(_weights(module), 2))
    if len(found) != 1:
        return None
    owner, leaf, weight = found[0]
    return None if isinstance(owner, nn.Embedding) else Layer(name, *_sizes(owner, leaf, weight.shape))


def _weights(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.ndim > 1 and not NO_LAYER.match(name):
            yield module, name, parameter
    for name, child in module.named_children():
        if not NO_LAYER.match(name):
            yield from _weights(child)


def _sizes(module: nn.Module, leaf: str, shape: torch.Size) -> tuple[int, int]:
    """Outputs and inputs of a weight."""
    if isinstance(module, _ConvNd):
        return module.out_channels, module.in_channels
    return (shape[-2], shape[-1]) if layout(module, leaf) == "rows" else (shape[-1], shape[-2])
