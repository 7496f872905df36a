"""Which layers of a model that does not state it are its output layers, and why."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from lichen.optim.places import sizes_of_norms

# Names of output layers, wherever they are.
OUTPUT = re.compile(
    r"(\w+_)?lm_heads?|embed_out|unembed(ding)?|output_embeddings?|(to_)?logits(_\w+)?|vocab_proj\w*"
)

# Names of output layers where the model does not repeat itself: not in the blocks of a ModuleList.
OUTSIDE_BLOCKS = re.compile(
    r"(\w+_)?(heads?|classifiers?|scores?|predictors?|outputs)|(class|bbox)_embed|cls|generator|sequence_summary"
)

# The same, if they are a linear layer themselves; and those that the model itself has to hold.
LINEAR_OUTSIDE_BLOCKS = re.compile(r"(\w+_)?pred(iction)?|output_(layer|projection)|final_layer")
LINEAR_OF_THE_MODEL = re.compile(r"output|proj_out|fc|fc_out|readout")

# Names of output layers of a model that has two of them: an actor and its critic.
ACTOR_CRITIC = re.compile(r"(policy|actor|action|pi|critic|value|advantage|vf)(_(net|stream|layer))?")


class Output(NamedTuple):
    """Why a layer is an output layer, and what is not sure of it, in words that follow its name."""

    why: str
    doubt: str = ""


def output_layers(model: nn.Module, vocabulary: set[int]) -> dict[nn.Module, Output]:
    """The output layers and why they are.

    They are what the models of `transformers` in it say and what names say, unless it ends in a hidden state;
    else linear layers outside of the repeated blocks with as many rows as the vocabulary has tokens
    (`vocabulary`: the sizes known); else the linear layer that comes last, which is a guess.
    """
    found: dict[nn.Module, Output] = {}
    for module in model.modules():
        layer = _asked(module, "get_output_embeddings")
        if layer is not None:
            found |= dict.fromkeys(layer.modules(), Output("get_output_embeddings()"))
    hidden = sizes_of_norms(model)
    actor_critic = [child for name, child in model.named_children() if ACTOR_CRITIC.fullmatch(name)]
    parts = list(_walk(model, in_block=False))
    for name, module, in_block in parts:
        known = OUTPUT.fullmatch(name) is not None
        outside = not in_block and _is_outside_blocks(name, module, model)
        if known or outside or (len(actor_critic) > 1 and module in actor_critic):
            for layer in _ends(module):
                if (known and layer is module) or not _is_hidden(layer, hidden):
                    found.setdefault(layer, Output(f"named {name}"))
    if not found:
        linear = [module for _, module, in_block in parts if isinstance(module, nn.Linear) and not in_block]
        words = [layer for layer in linear if layer.in_features < layer.out_features in vocabulary]
        if len(words) == 1:  # more of them are layers of one size in blocks that are in no ModuleList
            found[words[0]] = Output("a row for every token")
    if not found and (last := _last_linear(model)) is not None:
        found[last] = Output("the last linear layer", _doubt_of_last(model, last, hidden))
    return found


def _is_outside_blocks(name: str, module: nn.Module, model: nn.Module) -> bool:
    """Whether a module that is in no block has the name of an output layer."""
    if not isinstance(module, nn.Linear):
        return OUTSIDE_BLOCKS.fullmatch(name) is not None
    patterns = [OUTSIDE_BLOCKS, LINEAR_OUTSIDE_BLOCKS]
    if any(module is child for child in model.children()):
        patterns.append(LINEAR_OF_THE_MODEL)
    return any(pattern.fullmatch(name) for pattern in patterns)


def _is_hidden(layer: nn.Module, hidden: set[int]) -> bool:
    """Whether a linear layer gives a hidden state, as those before the last one of a head do."""
    if not isinstance(layer, nn.Linear):
        return False
    return layer.out_features in hidden or layer.out_features == layer.in_features


def input_embeddings(model: nn.Module) -> set[nn.Module]:
    """What the models of `transformers` in it call their input embeddings, if it is a table."""
    stated = (_asked(module, "get_input_embeddings") for module in model.modules())
    return {layer for layer in stated if layer is not None and not isinstance(layer, nn.Linear | _ConvNd)}


def _asked(module: nn.Module, method: str) -> nn.Module | None:
    ask: Callable[[], object] | None = getattr(module, method, None)
    try:
        layer = None if ask is None else ask()
    except (AttributeError, NotImplementedError):  # of a model that has none
        return None
    return layer if isinstance(layer, nn.Module) else None


def _walk(module: nn.Module, *, in_block: bool) -> Iterator[tuple[str, nn.Module, bool]]:
    """(name, module, whether it is in a block of a ModuleList) of everything inside."""
    for name, child in module.named_children():
        yield name, child, in_block
        yield from _walk(child, in_block=in_block or isinstance(module, nn.ModuleList))


def _ends(module: nn.Module) -> list[nn.Module]:
    """The layers that an output goes through last: of several heads each, of one head its last layer."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return [layer for child in module.children() for layer in _ends(child)]
    named = [(name, each) for name, each in module.named_modules() if isinstance(each, nn.Linear | _ConvNd)]
    layers = [layer for name, layer in named if "lora_" not in name]
    return [layers[-1] if layers else module]


def _last_linear(model: nn.Module) -> nn.Linear | None:
    """The model's last child with parameters if it is a linear layer, or a sequence that ends in one.

    What merely wraps another module is passed through. A layer that is all of the model is none.
    """
    module, alone = model, True
    while not isinstance(module, nn.Linear):
        children = [child for _, child in _children_with_parameters(module)]
        if not children or (len(children) > 1 and not isinstance(children[-1], nn.Linear | nn.Sequential)):
            return None
        alone = alone and len(list(module.children())) == 1
        module = children[-1]
    return None if alone else module


def _doubt_of_last(model: nn.Module, last: nn.Linear, hidden: set[int]) -> str:
    """What speaks against a layer that was only taken for the output layer because it comes last."""
    guess = "is taken for the output layer because it comes last, but "
    if last.in_features == last.out_features:
        return guess + "has as many outputs as inputs"
    taken = {layer.in_features for layer in model.modules() if isinstance(layer, nn.Linear)}
    module = model
    while not isinstance(module, nn.Linear | nn.Sequential):
        *others, (_, module) = _children_with_parameters(module)
        for name, other in others:
            for end in _ends(other):
                if not isinstance(end, nn.Linear) or _is_hidden(end, hidden):
                    continue
                if end.in_features == last.in_features and end.out_features not in taken:
                    return guess + f"{name} ends at as many inputs"
    return ""


def _children_with_parameters(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
