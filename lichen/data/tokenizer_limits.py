"""What a tokenizer.json from elsewhere may ask for, checked before the `tokenizers` library works with it.

That library takes any id, pads to any length, runs any regular expression for as long as it takes, and ends
the process with a panic where it does not expect something. So what is asked for in numbers is read from the
JSON; and a file with other patterns than the families' own has to encode some text in another process first.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from lichen.arch.families import text_splits, token_families
from lichen.data.apart import Ended, run_apart
from lichen.errors import LichenError
from lichen.files.bounded import parse_json, read_bytes

LARGEST_VOCABULARY = 2**22
"""Sixteen times the largest one published."""
LARGEST_FILE = 2**27

# Parts of a pipeline that take time in proportion to the text and lose nothing of it.
_PLAIN_PARTS = frozenset({"Sequence", "Split", "ByteLevel", "Digits", "NFC", "NFD"})
_SAMPLE = "Hello, naïve 漢字 🦎\r\n\t  it's x = 12345; <b>"
# So many letters take 0.02 seconds; 0.1 where the work grows with the square of a run of one kind, as it does
# with some published expressions for digits, which no document has so many of; and hours where it grows
# with the third power.
_TRIAL_LETTERS = 10_000
_TRIAL_SECONDS = 0.5  # of the processor's time, whatever else the machine does
_TRIAL = """
import json, signal, sys
from tokenizers import Tokenizer
tokenizer, seconds = Tokenizer.from_str(json.dumps(json.loads(input()))), json.loads(input())
for text in map(json.loads, sys.stdin):
    signal.setitimer(signal.ITIMER_PROF, seconds)  # ends the process
    tokenizer.decode(tokenizer.encode(text).ids)
"""
_passed: set[str] = set()  # hashes of the files that have passed a trial in this process


def checked(file: Path) -> Tokenizer:
    """The tokenizer of `file`, which neither cuts nor pads. Raises LichenError as `load_tokenizer` says."""
    content = read_bytes(file, most=LARGEST_FILE)
    try:
        described = parse_json(content, str(file))
    except LichenError as error:
        raise LichenError(f"{error}; a tokenizer.json is needed") from None
    _check_parts(described, file)
    described |= {"padding": None, "truncation": None}
    patterns, others = _needs_trial(described)
    if (patterns or others) and (digest := hashlib.sha256(content).hexdigest()) not in _passed:
        _try(described, patterns, file)
        _passed.add(digest)
    try:
        tokenizer = Tokenizer.from_str(json.dumps(described))
        found, size = _sample_of(tokenizer)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # of a malformed file: plain Exception, and panics, which are none
        raise LichenError(f"{file} is not a tokenizer.json: {str(error)[:200]}") from error
    if found.removeprefix(" ") != _SAMPLE:
        raise LichenError(f"{file} turns the text {_SAMPLE!r} into {found[:80]!r}; it would lose text")
    if size > 1 + max(tokenizer.get_vocab().values()):
        raise LichenError(f"{file} opens or closes a text with a token that its vocabulary does not have")
    return tokenizer


def _check_parts(described: Any, file: Path) -> None:
    try:
        model = described["model"]
        kind = model.get("type")
        byte_level = all(
            any(part["type"] == "ByteLevel" for name in names for part in _parts(described.get(name)))
            for names in (("normalizer", "pre_tokenizer"), ("decoder",))
        )
        vocabulary = model["vocab"]
        added = {token["content"]: token["id"] for token in described.get("added_tokens") or []}
        if kind == "BPE":
            missing = set(pre_tokenizers.ByteLevel.alphabet()) - vocabulary.keys()
            ids = [*vocabulary.values(), *added.values()]
    except (KeyError, TypeError, AttributeError) as error:
        raise LichenError(f"{file} is not a tokenizer.json: {error!r}") from error
    if kind != "BPE" or not byte_level:
        raise LichenError(f"{file} is a {str(kind)[:40]} tokenizer; only byte-level BPE is supported")
    if missing:
        raise LichenError(f"{file} has no token for {len(missing)} of the 256 bytes; it would lose text")
    if wrong := [i for i in ids if type(i) is not int or not 0 <= i < LARGEST_VOCABULARY]:
        raise LichenError(
            f"{file} has a token with the id {str(wrong[0])[:40]}; the largest is {LARGEST_VOCABULARY - 1:,}"
        )
    if len(set(vocabulary.values())) < len(vocabulary):
        raise LichenError(f"{file} gives one id to several tokens; mend its vocabulary")
    for field in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise LichenError(f"{file} has a {field}, for which byte-level BPE has no use; it loses text")
    if model.get("dropout"):
        raise LichenError(f"{file} leaves out merges at random; set its model's dropout to null")


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """A part of a pipeline with all those in it."""
    if isinstance(value, dict):
        yield value
        for name in ("normalizers", "pretokenizers", "decoders"):
            inside = value.get(name)
            for part in inside if isinstance(inside, list) else ():
                yield from _parts(part)


def _needs_trial(described: dict[str, Any]) -> tuple[set[str], bool]:
    """The patterns of the pipeline that no family publishes, and whether it has parts that are not plain."""
    names = ("normalizer", "pre_tokenizer", "decoder")
    parts = [part for name in names for part in _parts(described.get(name))]
    patterns = {
        str(part["pattern"].get("Regex", "")) for part in parts if isinstance(part.get("pattern"), dict)
    }
    known = {"", *(split for family in token_families() for split in text_splits(family))}
    plain = {str(part.get("type")) for part in parts} <= _PLAIN_PARTS
    return patterns - known, not (plain and _is_whole_template(described.get("post_processor")))


def _is_whole_template(processor: Any) -> bool:
    """Whether a post-processor, if there is one, puts only tokens around a text whose ids it says."""
    if processor is None:
        return True
    try:
        named = {each["SpecialToken"]["id"] for each in processor["single"] if "SpecialToken" in each}
        return processor["type"] == "TemplateProcessing" and named <= processor["special_tokens"].keys()
    except (KeyError, TypeError, AttributeError):
        return False


def _try(described: dict[str, Any], patterns: set[str], file: Path) -> None:
    """Encode long runs of letters, those of the patterns among them, in another process."""
    usual = "aA1 .\n漢"
    letters = sorted({*usual, *(letter for pattern in patterns for letter in pattern)})[:100]
    end = "\0" + "".join(letters)  # where a pattern may go on, so that none is given up at once
    runs = [letter * _TRIAL_LETTERS for letter in letters]
    runs += [(letter + usual[at % 7]) * (_TRIAL_LETTERS // 2) for at, letter in enumerate(letters)]
    try:
        run_apart(_TRIAL, [described, _TRIAL_SECONDS, *(run + end for run in runs)])
    except Ended as error:
        why = str(error) or "a regular expression in it takes time out of all proportion"
        raise LichenError(f"{file} is not a tokenizer.json that can be used: {why}") from error


def _sample_of(tokenizer: Tokenizer) -> tuple[str, int]:
    """_SAMPLE encoded and decoded, and one more than the largest id that is put into it or around it."""
    ids = tokenizer.encode(_SAMPLE, add_special_tokens=False).ids
    around = tokenizer.encode(_SAMPLE).ids
    return tokenizer.decode(ids, skip_special_tokens=False), 1 + max(around, default=-1)
