"""What the special tokens of a family are for.

Tokens of other modalities and unused reserved slots are left out everywhere.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of one family.

    A document is trained on as `bos? + text + eos`; `bos` only where `bos_opens_documents`. `markup` lists
    every token in id order, the four named ones included; `spoken` those of them that belong to what the
    model says (reasoning and tool-call markers), which a decoder that skips special tokens must keep.
    """

    bos: str
    eos: str
    pad: str
    end_of_turn: str
    bos_opens_documents: bool
    markup: tuple[str, ...]
    spoken: frozenset[str] = frozenset()


THINK = ("<think>", "</think>")
"""How models that reason mark it."""
