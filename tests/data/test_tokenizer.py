import json
import random
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from lichen.arch.families import special_tokens, text_splits, token_families
from lichen.data.sources import standard_library
from lichen.data.tokenizer import (
    load_tokenizer,
    plain_encoder,
    special_ids,
    token_bytes,
    tokenizer_hash,
    train_tokenizer,
    vocabulary_size,
)
from lichen.errors import LichenError

TEXTS = [path.read_text() for path in standard_library() if path.parent.name in ("json", "http")]
FAMILIES = {family: special_tokens(family) for family in token_families()}
TRAINED = {family: train_tokenizer(TEXTS, 700, family) for family in FAMILIES}
MARKUP = [text for family in FAMILIES.values() for text in family.markup]
ANY_TEXT = st.lists(st.one_of(st.text(), st.sampled_from(MARKUP), st.sampled_from(TEXTS[0].split(" ")))).map(
    "".join
)


@given(ANY_TEXT)
def test_decoding_gives_back_any_text(text: str) -> None:
    plain = plain_encoder(TRAINED["kimi_k2"], "kimi_k2")
    ids = plain.encode(text).ids
    assert TRAINED["kimi_k2"].decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("family", FAMILIES)
@given(text=ANY_TEXT)
def test_markup_in_a_text_never_becomes_a_special_token(family: str, text: str) -> None:
    tokenizer, tokens = TRAINED[family], FAMILIES[family]
    special = {tokenizer.token_to_id(markup) for markup in set(tokens.markup) - tokens.spoken}
    assert not special.intersection(plain_encoder(tokenizer, family).encode(text).ids)


def test_what_is_no_markup_is_encoded_alike_in_data_and_in_prompts(tmp_path: Path) -> None:
    """Words that somebody added to a tokenizer, and what models say, such as where they begin to reason. Of
    markup, some is not called special in published tokenizers."""
    given = Tokenizer.from_str(TRAINED["deepseek_v3"].to_str())
    given.add_tokens(["<gene>", "dehydrogenase", AddedToken("<｜User｜>", special=False, normalized=False)])
    given.save(str(tmp_path / "tokenizer.json"))
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in described["added_tokens"]:
        token["special"] &= token["content"] != "<｜User｜>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    tokenizer = load_tokenizer(tmp_path)
    plain = plain_encoder(tokenizer, "deepseek_v3")
    text = "<gene>alcohol dehydrogenase<think>so</think>"
    ids = plain.encode(text).ids
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids
    assert {700, 701, tokenizer.token_to_id("<think>")} <= set(ids)
    assert token_bytes(tokenizer, "deepseek_v3")[ids].sum() == len(text)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert theirs(text, add_special_tokens=False)["input_ids"] == ids
    user = tokenizer.token_to_id("<｜User｜>")
    assert not token_bytes(tokenizer, "deepseek_v3")[user]
    assert user in tokenizer.encode("<｜User｜>").ids
    assert user not in plain.encode("<｜User｜>").ids


@given(ANY_TEXT)
def test_token_bytes_add_up_to_the_text(text: str) -> None:
    ids = plain_encoder(TRAINED["llama"], "llama").encode(text).ids
    assert token_bytes(TRAINED["llama"], "llama")[ids].sum() == len(text.encode())


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_fill_the_top_of_a_vocabulary_of_the_size_asked_for(family: str) -> None:
    tokenizer, special = TRAINED[family], FAMILIES[family]
    assert vocabulary_size(tokenizer) == tokenizer.get_vocab_size() == 700
    ids = [tokenizer.token_to_id(text) for text in special.markup]
    assert ids == list(range(700 - len(ids), 700))
    said = [len(text.encode()) if text in special.spoken else 0 for text in special.markup]
    assert token_bytes(tokenizer, family)[ids].tolist() == said
    assert tokenizer.encode("".join(special.markup), add_special_tokens=False).ids == ids


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_it_alike(family: str, tmp_path: Path) -> None:
    TRAINED[family].save(str(tmp_path / "tokenizer.json"))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ids = special_ids(TRAINED[family], family)
    opening = list(ids.document_start)
    for text in (*TEXTS[:3], "naïve 🦎\u200d 漢字\r\n\t ", "<think>"):
        expected = opening + plain_encoder(TRAINED[family], family).encode(text).ids
        assert theirs(text)["input_ids"] == expected
        assert theirs.decode(expected[len(opening) :], clean_up_tokenization_spaces=False) == text
    assert theirs.convert_ids_to_tokens(ids.eos) == FAMILIES[family].eos


def test_reasoning_and_tool_calls_survive_decoding_without_special_tokens() -> None:
    tokenizer = TRAINED["kimi_k2"]
    ids = tokenizer.encode("<|im_assistant|><think>so</think><|tool_calls_section_begin|><|im_end|>").ids
    assert tokenizer.decode(ids) == "<think>so</think><|tool_calls_section_begin|>"


def test_training_is_deterministic() -> None:
    assert train_tokenizer(TEXTS, 700, "kimi_k2").to_str() == TRAINED["kimi_k2"].to_str()


def test_tokens_are_sensible_pieces_of_code() -> None:
    tokenizer = TRAINED["kimi_k2"]
    pieces = [
        tokenizer.decode([index]) for index in tokenizer.encode("    def f(self):\n        return 123456").ids
    ]
    assert pieces[:2] == ["   ", " def"]
    assert "       " in pieces  # an indentation is one token
    digits = [piece for piece in pieces if piece.strip().isdigit()]
    assert all(len(piece.strip()) <= 3 for piece in digits)


def test_a_vocabulary_the_text_cannot_fill_is_refused_with_the_largest_that_it_can() -> None:
    with pytest.raises(LichenError, match=r"at most (\d+) tokens and 5000 were asked for") as refusal:
        train_tokenizer(["some words, and the same words again"] * 9, 5000, "kimi_k2")
    largest = int(str(refusal.value).split("at most ")[1].split()[0])
    assert train_tokenizer(["some words, and the same words again"] * 9, largest, "kimi_k2")


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(LichenError, match="need at least"):
        train_tokenizer(TEXTS, 256, "deepseek_v3")


def test_an_unknown_family_is_refused_with_those_known() -> None:
    with pytest.raises(LichenError, match="'kimi'; known: kimi_k2, deepseek_v3, llama"):
        train_tokenizer(TEXTS, 700, "kimi")


def byte_level(**model: object) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_loading_refuses_what_would_lose_text(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    with pytest.raises(LichenError, match="there is no tokenizer at"):
        load_tokenizer(tmp_path)
    file.write_text("{}")
    with pytest.raises(LichenError, match=r"is not a tokenizer\.json"):
        load_tokenizer(tmp_path)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(file))
    with pytest.raises(LichenError, match="WordLevel tokenizer; only byte-level BPE"):
        load_tokenizer(file)
    byte_level(vocab={"a": 0, "b": 1}, merges=[]).save(str(file))
    with pytest.raises(LichenError, match="no token for 254 of the 256 bytes"):
        load_tokenizer(file)


def test_a_tokenizer_of_another_make_is_taken(tmp_path: Path) -> None:
    """White-space runs as added tokens are vocabulary in some published tokenizers; markup is not."""
    theirs = byte_level()
    theirs.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    theirs.add_tokens(["            "])
    theirs.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    text = "            <|end_of_text|>é"
    ids = plain_encoder(tokenizer, "llama").encode(text).ids
    assert ids[0] == tokenizer.token_to_id("            ")
    assert tokenizer.token_to_id("<|end_of_text|>") not in ids
    assert token_bytes(tokenizer, "llama")[ids].sum() == len(text.encode())
    ids_by_name = special_ids(tokenizer, "llama")
    assert ids_by_name.pad == ids_by_name.eos  # it has no padding token
    with pytest.raises(LichenError, match=r"no token '\[EOS\]'"):
        special_ids(tokenizer, "kimi_k2")


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    TRAINED["llama"].save(str(tmp_path / "tokenizer.json"))
    before = tokenizer_hash(tmp_path)
    assert before == tokenizer_hash(tmp_path / "tokenizer.json")
    with (tmp_path / "tokenizer.json").open("a") as file:
        file.write("\n")
    assert tokenizer_hash(tmp_path) != before


def test_token_bytes_cover_the_vocabulary() -> None:
    lengths = token_bytes(TRAINED["kimi_k2"], "kimi_k2")
    assert lengths.shape == (700,)
    assert lengths.dtype == np.int32
    assert lengths[TRAINED["kimi_k2"].token_to_id("Ġreturn")] == 7


# ------------------------------------------------------------------------------------------------ splits

SCRIPTS = (
    "Hello, it's 12345 o'clock; DON'T shoutLoud XMLHttpRequest b'self' don’t\r\n\n   x\t\t= [#include <a>] \n"
    "naïve Straße ǅungla 漢字かなカナー 한국어 中文ABC中 русский ЯЗЫК ελληνικά ʰʷ "
    "हिन्दी नमस्ते ภาษาไทย עברית العَرَبِيَّة "
    "é (e\u0301) \u0301\u0301 🦎👩\u200d🚀 ½ Ⅷ ١٢٣٤٥ ௧௨ 一二三 〇々〆 "
    "㊥ ﷺ \u00a0\u3000\u2028\u0085 \x1c_— «…» $€ ^`| ~"
)

# Characters whose category is what it was when there was no emoji: engines know Unicode of different years.
LONG_KNOWN = [
    letter
    for letter in map(chr, range(0x20000))
    if unicodedata.category(letter) == unicodedata.ucd_3_2_0.category(letter) not in ("Cn", "Cs", "Co")
]


def pieces(family: str, text: str) -> list[str]:
    return [piece for piece, _ in cut(family).pre_tokenize_str(text)]


def cut(family: str) -> Any:
    """The part of a trained tokenizer's pipeline before bytes are written as characters."""
    described = json.loads(TRAINED[family].to_str())
    *splits, bytes_ = described["pre_tokenizer"]["pretokenizers"]
    assert (bytes_["type"], bytes_["use_regex"], bytes_["add_prefix_space"]) == ("ByteLevel", False, False)
    assert {(split["behavior"], split["invert"]) for split in splits} == {("Isolated", False)}
    described["pre_tokenizer"]["pretokenizers"] = splits
    return Tokenizer.from_str(json.dumps(described)).pre_tokenizer


def isolated(text: str, patterns: tuple[str, ...]) -> list[str]:
    """`text` cut by one pattern after the other, by another engine of regular expressions."""
    found = [text]
    for pattern in patterns:
        matches = regex.compile(f"({pattern})", regex.VERSION1)
        found = [part for piece in found for part in matches.split(piece) if part]
    return found


@pytest.mark.parametrize("family", FAMILIES)
@given(text=st.one_of(st.text(alphabet=sorted(set(SCRIPTS))), st.text(alphabet=LONG_KNOWN), st.just(SCRIPTS)))
def test_text_is_cut_as_the_published_expression_says(family: str, text: str) -> None:
    assert pieces(family, text) == isolated(text, text_splits(family))


def test_the_expressions_are_those_published() -> None:
    assert text_splits("qwen3") == (PRETOKENIZE_REGEX,)
    llama = TikTokenConverter.__init__.__defaults__
    assert text_splits("llama")[0] in llama


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [
        ("kimi_k2", "JSONDecoder's 中文ABC, b'self'", "JSONDecoder's| |中文|ABC|,| b's|elf|'"),
        ("deepseek_v3", "it's\n#include かなX 1234", "it|'s|\n|#include| |かな|X| |123|4"),
        ("llama", "it's 1234 नम", "it|'s| |123|4| नम"),
        ("qwen3", "it's 1234", "it|'s| |1|2|3|4"),
    ],
)
def test_cuts_by_hand(family: str, text: str, expected: str) -> None:
    assert "|".join(pieces(family, text)) == expected


def test_long_runs_take_no_long_time(tmp_path: Path) -> None:
    """Quadratic work would take minutes: the test's limit is that of pytest."""
    chance = random.Random(0)
    runs = ["".join(chance.choices("ACGT", k=128_000)), *(letter * 200_000 for letter in "a漢 =")]
    for family in FAMILIES:
        tokenizer = train_tokenizer(runs, 300, family)
        for encoded, text in zip(plain_encoder(tokenizer, family).encode_batch_fast(runs), runs, strict=True):
            assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text


def test_ctrl_c_ends_training_at_once() -> None:
    script = (
        "import random\n"
        "from lichen.data.tokenizer import train_tokenizer\n"
        "words = [' '.join(str(random.random()) for _ in range(2**20))]\n"
        "print(flush=True)\n"
        "train_tokenizer(words * 40, 2**22, 'llama')\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.readline()
    time.sleep(1)
    child.send_signal(2)
    _, said = child.communicate(timeout=20)
    assert said.endswith(b"KeyboardInterrupt\n")


# ------------------------------------------------------------------------------------------------ limits


def split_by(pattern: str, behavior: str = "Isolated") -> Callable[[dict[str, Any]], None]:
    return lambda described: described["pre_tokenizer"]["pretokenizers"].insert(
        0, {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}
    )


def replacing(pattern: str) -> Callable[[dict[str, Any]], None]:
    normalizer = {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""}
    return lambda described: described.update(normalizer=normalizer)


def added(content: str, index: int) -> Callable[[dict[str, Any]], None]:
    flags = dict.fromkeys(("special", "normalized", "lstrip", "rstrip", "single_word"), False)
    return lambda described: described["added_tokens"].append({"id": index, "content": content} | flags)


def opened_by(index: int) -> Callable[[dict[str, Any]], None]:
    token = {"id": "<b>", "ids": [index], "tokens": ["<b>"]}
    single = [{"SpecialToken": {"id": "<b>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {"<b>": token}}
    return lambda described: described.update(post_processor=template)


def nested(described: dict[str, Any]) -> None:
    for _ in range(200):
        described["normalizer"] = {"type": "Sequence", "normalizers": [described["normalizer"]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (split_by("(a+)+$"), "can be used: .*retry-limit"),
        (split_by(r"(\w+\s?)+:"), "can be used: .*retry-limit"),
        (split_by("(ab|a|b)+c"), "out of all proportion"),
        (split_by(r"\s*\s*\s*="), "out of all proportion"),  # by the third power of the length
        (split_by("(("), "can be used: .*Oniguruma error"),
        (split_by("l", "Removed"), "would lose text"),
        (replacing("(a*)*b"), "can be used: .*retry-limit"),
        (lambda d: d.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "charsmap"),
        (lambda d: d.update(normalizer={"type": "Lowercase"}), "would lose text"),
        (nested, "nested deeper"),
        (lambda d: d.update(pre_tokenizer=None), "only byte-level BPE"),
        (lambda d: d.update(decoder=None), "only byte-level BPE"),
        (lambda d: d["model"].update(vocab=[]), "is not a tokenizer.json"),
        (lambda d: d["model"]["vocab"].update(x=10**9), "the id 1000000000; the largest is 4,194,303"),
        (lambda d: d["model"]["vocab"].update(x=10**4000), "does not fit into 64 bits"),
        (lambda d: d["model"]["vocab"].update(x=-1), "a token with the id -1"),
        (lambda d: d["model"].update(merges=["a zzz"]), "out of vocabulary"),
        (lambda d: d["model"].update(continuing_subword_prefix="éé"), "loses text"),
        (lambda d: d["model"].update(end_of_word_suffix="</w>"), "loses text"),
        (lambda d: d["model"].update(dropout=0.1), "at random"),
        (added("<x>", 10**9), "a token with the id 1000000000"),
        (opened_by(7777), "a token that its vocabulary does not have"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_asks_too_much_is_refused(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    described = json.loads(TRAINED["kimi_k2"].to_str())
    change(described)
    sys.set_int_max_str_digits(0)
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    sys.set_int_max_str_digits(4300)
    with pytest.raises(LichenError, match=message) as refusal:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(refusal.value)
    assert len(str(refusal.value)) < 500
    assert capfd.readouterr().err == ""  # no report of the library's own


def test_a_tokenizer_that_would_cut_or_pad_does_neither_here(tmp_path: Path) -> None:
    described = json.loads(TRAINED["kimi_k2"].to_str())
    padding = {"strategy": {"Fixed": 10**9}, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}
    described["padding"] = padding | {"direction": "Right", "pad_to_multiple_of": None}
    described["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    text = "words and words and words"
    assert load_tokenizer(tmp_path).encode(text).ids == TRAINED["kimi_k2"].encode(text).ids


@pytest.mark.parametrize(
    "pattern", [r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\s+(?!\S)|\s+", r"\p{N}{1,3}(?=(?:\p{N}{3})*\b)"]
)
def test_expressions_of_nobody_we_know_are_tried_and_taken(pattern: str, tmp_path: Path) -> None:
    described = json.loads(TRAINED["kimi_k2"].to_str())
    described["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": pattern}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    assert load_tokenizer(tmp_path).to_str() == Tokenizer.from_str(json.dumps(described)).to_str()


@pytest.mark.parametrize("size", [2**31, 10**20])
def test_a_vocabulary_beyond_all_bounds_is_refused(size: int) -> None:
    with pytest.raises(LichenError, match="at most 4,194,304"):
        train_tokenizer(TEXTS, size, "kimi_k2")
