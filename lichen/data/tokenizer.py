"""Byte-level BPE: training, loading, its special tokens, and what else is asked of a tokenizer.

A tokenizer is a `tokenizer.json` of the `tokenizers` library, as every Hugging Face checkpoint has one.
Ours are lossless: each of the 256 bytes has a token, nothing is normalised, and decoding gives back the
text that was encoded. The special tokens of the family lie above the BPE part of the vocabulary.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lichen.arch.families import special_tokens, token_families
from lichen.errors import LichenError
from lichen.files.sealed import sha256_of

# BPE merges never cross the borders this pattern draws, so it decides what a token can be.
_PRE_TOKENS = "|".join(
    (
        r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+",  # a word, with the blank, dot, quote... before it
        r"\p{N}{1,3}",  # digits in groups of at most three
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",  # punctuation, with the line ends after it
        r"\s*[\r\n]+",  # line ends, with blank lines between them
        r"\s+(?!\S)",  # indentation, whole but for the blank that belongs to the word after it
        r"\s+",
    )
)
# A pair of tokens seen once is no regularity.
_MIN_FREQUENCY = 2


def train_tokenizer(texts: Iterable[str], vocab_size: int, family: str) -> Tokenizer:
    """Train a byte-level BPE tokenizer of exactly `vocab_size` tokens, the special ones of `family` included.

    The same texts in the same order give the same tokenizer on any number of cores. Raises LichenError
    if `vocab_size` leaves no room for the 256 bytes and the special tokens, or if the texts hold too few
    different pairs to fill it.
    """
    special = special_tokens(family)
    smallest = 256 + len(special.markup)
    if vocab_size < smallest:
        raise LichenError(
            f"vocab_size is {vocab_size}; 256 bytes and the {len(special.markup)} special tokens of "
            f"{family} need at least {smallest}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRE_TOKENS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special.markup),
        min_frequency=_MIN_FREQUENCY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    reached = tokenizer.get_vocab_size() + len(special.markup)
    if reached < vocab_size:
        raise LichenError(
            f"the corpus supports a vocabulary of at most {reached} tokens and {vocab_size} were asked for; "
            f"give more text or set the vocabulary size to {reached} or less"
        )
    tokenizer.add_tokens(
        [AddedToken(text, special=text not in special.spoken, normalized=False) for text in special.markup]
    )
    if special.bos_opens_documents:
        bos = (special.bos, tokenizer.token_to_id(special.bos))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{special.bos} $A", pair=f"{special.bos} $A {special.bos} $B", special_tokens=[bos]
        )
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Load `path`, a tokenizer.json or a folder that holds one.

    Raises LichenError if there is none, if it cannot be read, or if it is not byte-level BPE with a token
    for every byte (then some text could not be represented).
    """
    file = tokenizer_file(path)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception for a malformed file
        raise LichenError(f"{file} is not a tokenizer.json: {error}") from error
    described = json.loads(tokenizer.to_str())
    kind = described["model"].get("type")
    decoder = described["decoder"] or {}
    decoder_types = {decoder.get("type"), *(part["type"] for part in decoder.get("decoders", []))}
    if kind != "BPE" or "ByteLevel" not in decoder_types:
        raise LichenError(f"{file} is a {kind} tokenizer; only byte-level BPE is supported")
    missing = set(pre_tokenizers.ByteLevel.alphabet()) - described["model"]["vocab"].keys()
    if missing:
        raise LichenError(f"{file} has no token for {len(missing)} of the 256 bytes; it would lose text")
    return tokenizer


def tokenizer_file(path: Path) -> Path:
    """The tokenizer.json that `path` is or holds. Raises LichenError if there is none."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise LichenError(f"there is no tokenizer at {file}; give a tokenizer.json or a folder with one")
    return file


def tokenizer_hash(path: Path) -> str:
    """SHA-256 of the tokenizer.json at `path`, hexadecimal: the identity that runs and data sets compare."""
    return sha256_of(tokenizer_file(path))


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id (a published vocabulary may have holes)."""
    return 1 + max(tokenizer.get_vocab().values())


def plain_encoder(tokenizer: Tokenizer) -> Tokenizer:
    """A copy for text from outside: "<think>" in a document is seven characters there, never the token.

    Added tokens that are only white space are not markup but vocabulary, and stay.
    """
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"].isspace()]
    described["post_processor"] = None
    return Tokenizer.from_str(json.dumps(described))


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """UTF-8 bytes that each id stands for: (vocabulary_size,) int32; special tokens stand for none."""
    lengths = np.zeros(vocabulary_size(tokenizer), dtype=np.int32)
    for text, index in tokenizer.get_vocab().items():
        lengths[index] = len(text)  # byte-level vocabularies write one character per byte
    for index, token in tokenizer.get_added_tokens_decoder().items():
        lengths[index] = len(token.content.encode()) if token.content.isspace() else 0
    return lengths


# ---------------------------------------------------------------------------------------- special tokens


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
