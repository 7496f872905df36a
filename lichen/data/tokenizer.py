"""Byte-level BPE: training, loading, and what the rest of the room asks of a tokenizer.

A tokenizer is a `tokenizer.json` of the `tokenizers` library, as every Hugging Face checkpoint has one.
Ours are lossless: each of the 256 bytes has a token, nothing is normalised, and decoding gives back the
text that was encoded. The special tokens of the family lie above the BPE part of the vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lichen.arch.families import special_tokens
from lichen.errors import LichenError

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
    return hashlib.sha256(tokenizer_file(path).read_bytes()).hexdigest()


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
