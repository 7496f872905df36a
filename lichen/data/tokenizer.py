"""Byte-level BPE: training, loading, its special tokens, and what else is asked of a tokenizer.

A tokenizer is a `tokenizer.json` of the `tokenizers` library, as every Hugging Face checkpoint has one.
Ours are lossless: each of the 256 bytes has a token, nothing is normalised, and decoding gives back the
text that was encoded. The special tokens of the family lie above the BPE part of the vocabulary.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from lichen.arch.families import special_tokens, text_splits, token_families
from lichen.data.apart import Ended, run_apart
from lichen.data.tokenizer_limits import LARGEST_FILE, LARGEST_VOCABULARY, checked
from lichen.errors import LichenError
from lichen.files.bounded import read_bytes

# A pair of tokens seen once is no regularity.
_MIN_FREQUENCY = 2
# In training, pieces are cut after so many characters: to learn a merge, each piece that holds it is gone
# through, and a megabyte of one letter is one piece. Encoding takes no such time, and is not cut.
_LONGEST_LEARNED = 64
_TRAINING = """
import json, sys
from tokenizers import Tokenizer, trainers
tokenizer, options = Tokenizer.from_str(json.loads(input())), json.loads(input())
tokenizer.train_from_iterator(map(json.loads, sys.stdin), trainers.BpeTrainer(**options))
sys.stdout.write(tokenizer.to_str())
"""


def train_tokenizer(texts: Iterable[str], vocab_size: int, family: str) -> Tokenizer:
    """Train a byte-level BPE tokenizer of exactly `vocab_size` tokens, the special ones of `family` included.

    It cuts text as the family's published tokenizer does. The same texts in the same order give the same
    tokenizer on any number of cores. Raises LichenError if `vocab_size` leaves no room for the 256 bytes and
    the special tokens or is larger than any tokenizer may be, or if the texts hold too few different pairs to
    fill it.
    """
    special = special_tokens(family)
    smallest = 256 + len(special.markup)
    if vocab_size < smallest:
        raise LichenError(
            f"vocab_size is {vocab_size}; 256 bytes and the {len(special.markup)} special tokens of "
            f"{family} need at least {smallest}"
        )
    if vocab_size > LARGEST_VOCABULARY:
        raise LichenError(f"vocab_size is {vocab_size}; it can be at most {LARGEST_VOCABULARY:,}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(*text_splits(family), rf"[\s\S]{{1,{_LONGEST_LEARNED}}}")
    tokenizer.decoder = decoders.ByteLevel()
    options = {
        "vocab_size": vocab_size - len(special.markup),
        "min_frequency": _MIN_FREQUENCY,
        "initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet()),
        "show_progress": False,
    }
    try:
        learned = run_apart(_TRAINING, chain([tokenizer.to_str(), options], texts))
    except Ended as error:
        why = str(error) or "the process that did it was ended; perhaps for want of memory: sample less text"
        raise LichenError(f"the tokenizer could not be trained: {why}") from error
    tokenizer = Tokenizer.from_str(learned)
    tokenizer.pre_tokenizer = _pre_tokenizer(*text_splits(family))
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


def _pre_tokenizer(*splits: str) -> pre_tokenizers.PreTokenizer:
    """Cut by one pattern after the other, then write bytes as characters."""
    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(split), behavior="isolated") for split in splits),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def load_tokenizer(path: Path) -> Tokenizer:
    """Load `path`, a tokenizer.json or a folder that holds one. It neither cuts nor pads what it encodes.

    Raises LichenError if there is none, if it cannot be read or asks for more than a tokenizer may
    (`lichen.data.tokenizer_limits`), or if it is not byte-level BPE with a token for every byte (then some
    text could not be represented).
    """
    return checked(tokenizer_file(path))


def tokenizer_file(path: Path) -> Path:
    """The tokenizer.json that `path` is or holds. Raises LichenError if there is none."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise LichenError(f"there is no tokenizer at {file}; give a tokenizer.json or a folder with one")
    return file


def tokenizer_hash(path: Path) -> str:
    """SHA-256 of the tokenizer.json at `path`, hexadecimal: the identity that runs and data sets compare."""
    return hashlib.sha256(read_bytes(tokenizer_file(path), most=LARGEST_FILE)).hexdigest()


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id (a published vocabulary may have holes)."""
    return 1 + max(tokenizer.get_vocab().values())


def plain_encoder(tokenizer: Tokenizer, family: str) -> Tokenizer:
    """A copy for text from outside: markup in it is so many characters there, never the token.

    The other added tokens (words, runs of white space, what is `spoken`) are vocabulary: they are encoded
    wherever their text occurs, as in a prompt.
    """
    markup = markup_ids(tokenizer, family)
    described = json.loads(tokenizer.to_str())
    for token in described["added_tokens"]:
        token["special"] = token["id"] in markup
    described["post_processor"] = None
    plain = Tokenizer.from_str(json.dumps(described))
    plain.encode_special_tokens = True  # as text
    return plain


def markup_ids(tokenizer: Tokenizer, family: str) -> set[int]:
    """Tokens that structure a text instead of being a part of it: those that the tokenizer calls special, and
    the markup of `family` that is not `spoken` (published tokenizers do not call all of it special)."""
    tokens = special_tokens(family)
    ours = set(tokens.markup) - tokens.spoken
    added = tokenizer.get_added_tokens_decoder().items()
    return {index for index, token in added if token.special or token.content in ours}


def token_bytes(tokenizer: Tokenizer, family: str) -> np.ndarray:
    """UTF-8 bytes that each id stands for: (vocabulary_size,) int32; markup stands for none."""
    lengths = np.zeros(vocabulary_size(tokenizer), dtype=np.int32)
    for text, index in tokenizer.get_vocab().items():
        lengths[index] = len(text)  # byte-level vocabularies write one character per byte
    markup = markup_ids(tokenizer, family)
    for index, token in tokenizer.get_added_tokens_decoder().items():
        lengths[index] = 0 if index in markup else len(token.content.encode())
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
