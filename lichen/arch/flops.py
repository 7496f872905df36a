"""FLOPs per token of a model at one context length: the sum of what its parts answer.

FLOPs are those of matrix products, 2 per multiply-add whatever the precision: weights, attention over keys
and values, the indexer's scores, recurrent states. Norms, softmax, rotary embedding, activations, short
convolutions and the embedding lookup are not counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from lichen.arch.declaration import Weight
from lichen.arch.spec import LayerSpec, ModelSpec
from lichen.arch.weights import mtp_weights, weights


@dataclass(frozen=True)
class Flops:
    """FLOPs per token at one context length N.

    `forward`: the mean over the tokens of a sequence of N, each attending to itself and those before it.
    `training`: forward and backward, 3 times as much, without recomputation.
    `decode`: one new token that attends to N tokens, itself among them, from the cache; MLA absorbed.
    """

    forward: int
    training: int
    decode: int


def flops_per_token(spec: ModelSpec, context: int) -> Flops:
    """Matrix FLOPs per token of the model without its MTP layers."""
    forward = _forward_flops(weights(spec), spec.layers, context)
    reads = (read for layer in spec.layers for read in layer.attention.reads(decode=True))
    of_last = sum(2 * read.numbers * read.of_last(context) for read in reads)
    return Flops(forward, 3 * forward, _matrix_flops(weights(spec)) + of_last)


def training_flops_per_token(spec: ModelSpec, seq_len: int, mtp: bool = False) -> int:
    """Matrix FLOPs of forward and backward per token, in sequences of `seq_len`.

    With `mtp` the MTP layers are trained too; each of them applies the head once more.
    """
    forward = _forward_flops(weights(spec), spec.layers, seq_len)
    if mtp:
        heads = len(spec.mtp) * 2 * spec.vocab_size * spec.hidden_size
        forward += _forward_flops(mtp_weights(spec), spec.mtp, seq_len) + heads
    return 3 * forward


def _matrix_flops(found: Iterable[Weight]) -> int:
    return sum(2 * weight.active_parameters for weight in found if weight.is_matrix)


def _forward_flops(found: Iterable[Weight], layers: tuple[LayerSpec, ...], context: int) -> int:
    reads = (read for layer in layers for read in layer.attention.reads(decode=False))
    return _matrix_flops(found) + sum(2 * read.numbers * read.of_all(context) // context for read in reads)
