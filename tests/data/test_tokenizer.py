from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lichen.arch.families import special_tokens, token_families
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
    plain = plain_encoder(TRAINED["kimi_k2"])
    ids = plain.encode(text).ids
    assert TRAINED["kimi_k2"].decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("family", FAMILIES)
@given(text=ANY_TEXT)
def test_markup_in_a_text_never_becomes_a_special_token(family: str, text: str) -> None:
    tokenizer = TRAINED[family]
    special = {tokenizer.token_to_id(markup) for markup in FAMILIES[family].markup}
    assert not special.intersection(plain_encoder(tokenizer).encode(text).ids)


@given(ANY_TEXT)
def test_token_bytes_add_up_to_the_text(text: str) -> None:
    ids = plain_encoder(TRAINED["llama"]).encode(text).ids
    assert token_bytes(TRAINED["llama"])[ids].sum() == len(text.encode())


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_fill_the_top_of_a_vocabulary_of_the_size_asked_for(family: str) -> None:
    tokenizer, special = TRAINED[family], FAMILIES[family]
    assert vocabulary_size(tokenizer) == tokenizer.get_vocab_size() == 700
    ids = [tokenizer.token_to_id(text) for text in special.markup]
    assert ids == list(range(700 - len(ids), 700))
    assert not token_bytes(tokenizer)[ids].any()
    assert tokenizer.encode("".join(special.markup), add_special_tokens=False).ids == ids


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_it_alike(family: str, tmp_path: Path) -> None:
    TRAINED[family].save(str(tmp_path / "tokenizer.json"))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ids = special_ids(TRAINED[family], family)
    opening = list(ids.document_start)
    for text in (*TEXTS[:3], "naïve 🦎\u200d 漢字\r\n\t ", "<think>" if family == "llama" else "x"):
        expected = opening + plain_encoder(TRAINED[family]).encode(text).ids
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
    ids = plain_encoder(tokenizer).encode(text).ids
    assert ids[0] == tokenizer.token_to_id("            ")
    assert tokenizer.token_to_id("<|end_of_text|>") not in ids
    assert token_bytes(tokenizer)[ids].sum() == len(text.encode())
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
    lengths = token_bytes(TRAINED["kimi_k2"])
    assert lengths.shape == (700,)
    assert lengths.dtype == np.int32
    assert lengths[TRAINED["kimi_k2"].token_to_id("Ġreturn")] == 7
