"""From the names of a checkpoint's tensors to the parts of a model that hold them.

Tensors keep on disk the names they have in the model, with one exception: routed experts are one stack per
layer in memory and one set of matrices per expert on disk.

    in memory                                         on disk, for every expert E
    model.layers.N.mlp.experts.gate_up_proj[E, :I]    model.layers.N.mlp.experts.E.gate_proj.weight
    model.layers.N.mlp.experts.gate_up_proj[E, I:]    model.layers.N.mlp.experts.E.up_proj.weight
    model.layers.N.mlp.experts.down_proj[E]           model.layers.N.mlp.experts.E.down_proj.weight

What a family's checkpoints name otherwise, its folder says (`lichen.arch.families.tensors`).
"""

from collections.abc import Collection

from torch import Tensor

from lichen.arch.families import tensor_names
from lichen.arch.spec import ModelSpec
from lichen.nn.transformer import Transformer

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def checkpoint_tensors(model: Transformer, stacked: Collection[str] = ()) -> dict[str, Tensor]:
    """Every tensor of a checkpoint of `model`: its name on disk and the part of the model that holds it.

    `stacked`: names of stacks of experts that the checkpoint has as such. The tensors are detached views:
    writing into one writes into the model.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        experts, _, kind = name.rpartition(".")
        if not name.endswith((".experts.gate_up_proj", ".experts.down_proj")) or name in stacked:
            tensors[name] = tensor
            continue
        matrices = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
        for e, held in enumerate(tensor):
            views = zip(matrices, held.chunk(len(matrices)), strict=True)
            tensors |= {f"{experts}.{e}.{matrix}.weight": view for matrix, view in views}
    return tensors


def shared_copies(spec: ModelSpec) -> dict[str, str]:
    """Tensors that a checkpoint may hold again and the model holds once: name of the copy -> the original."""
    head = EMBEDDING if spec.tie_word_embeddings else HEAD
    copies = {HEAD: EMBEDDING} if spec.tie_word_embeddings else {}
    originals = {"embedding": EMBEDDING, "head": head}
    for prefix in mtp_prefixes(spec):
        for name, of in tensor_names(spec.family).mtp_copies.items():
            copies[prefix + name] = originals[of]
    return copies


def mtp_prefixes(spec: ModelSpec) -> tuple[str, ...]:
    return tuple(f"model.layers.{len(spec.layers) + depth}." for depth in range(len(spec.mtp)))
