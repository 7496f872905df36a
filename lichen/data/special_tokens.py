"""The special tokens of a family in a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer

from lichen.arch.families import special_tokens, token_families
from lichen.errors import LichenError


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens that training and generation need.

    `document_start` holds what precedes the text of a document: (bos,) or nothing. Generation stops at
    `eos` or `end_of_turn`.
    """

    bos: int | None
    eos: int
    pad: int
    end_of_turn: int | None
    document_start: tuple[int, ...]


def special_ids(tokenizer: Tokenizer, family: str) -> SpecialIds:
    """Look up the special tokens of `family` in `tokenizer`.

    A tokenizer without the padding token pads with eos, which no loss ever sees. Raises LichenError if the
    end-of-document token, or a bos that this family's documents open with, is not in the vocabulary.
    """
    tokens = special_tokens(family)
    named = (tokens.bos, tokens.eos, tokens.pad, tokens.end_of_turn)
    bos, eos, pad, end_of_turn = (tokenizer.token_to_id(text) for text in named)
    if eos is None or (bos is None and tokens.bos_opens_documents):
        missing = tokens.eos if eos is None else tokens.bos
        raise LichenError(
            f"the tokenizer has no token {missing!r}, which marks documents in family {family!r}; choose "
            f"the family the tokenizer belongs to: {', '.join(token_families())}"
        )
    start = (bos,) if tokens.bos_opens_documents and bos is not None else ()
    return SpecialIds(bos, eos, eos if pad is None else pad, end_of_turn, start)


def end_ids(special: SpecialIds) -> list[int]:
    """Tokens that end a text: the end of a document, and that of a turn where it is another token."""
    return list(dict.fromkeys(i for i in (special.eos, special.end_of_turn) if i is not None))
