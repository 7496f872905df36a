"""Which layers of a model that does not state it are its output layers, and why."""

import re
from collections.abc import Callable, Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd

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


def output_layers(model: nn.Module, vocabulary: set[int]) -> dict[nn.Module, str]:
    """Output layer -> why it is one.

    They are what the models of `transformers` in it say and what names say, unless it ends in a hidden state;
    else linear layers outside of the repeated blocks with as many rows as the vocabulary has tokens
    (`vocabulary`: the sizes known); else the linear layer that comes last.
    """
    found: dict[nn.Module, str] = {}
    for module in model.modules():
        layer = _asked(module, "get_output_embeddings")
        if layer is not None:
            found |= dict.fromkeys(layer.modules(), "get_output_embeddings()")
    hidden = _hidden_sizes(model)
    parts = list(_walk(model, in_block=False))
    for name, module, in_block in parts:
        known = OUTPUT.fullmatch(name) is not None
        if known or (not in_block and _is_outside_blocks(name, module, model)):
            for layer in _ends(module):
                if (known and layer is module) or not _is_hidden(layer, hidden):
                    found.setdefault(layer, f"named {name}")
    if not found:
        linear = [module for _, module, in_block in parts if isinstance(module, nn.Linear) and not in_block]
        words = [layer for layer in linear if layer.in_features < layer.out_features in vocabulary]
        if len(words) == 1:  # more of them are layers of one size in blocks that are in no ModuleList
            found[words[0]] = "a row for every token"
    if not found and (last := _last_linear(model)) is not None:
        found[last] = "the last linear layer"
    return found


def _is_outside_blocks(name: str, module: nn.Module, model: nn.Module) -> bool:
    """Whether a module that is in no block has the name of an output layer."""
    if not isinstance(module, nn.Linear):
        return OUTSIDE_BLOCKS.fullmatch(name) is not None
    patterns = [OUTSIDE_BLOCKS, LINEAR_OUTSIDE_BLOCKS]
    if any(module is child for child in model.children()):
        patterns.append(LINEAR_OF_THE_MODEL)
    return any(pattern.fullmatch(name) for pattern in patterns)


def _hidden_sizes(model: nn.Module) -> set[int]:
    """Sizes of the vectors that norms see."""
    norms = (module for module in model.modules() if "norm" in type(module).__name__.lower())
    return {parameter.numel() for norm in norms for parameter in norm.parameters(recurse=False)}


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
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | _ConvNd)]
    return [layers[-1] if layers else module]


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
