import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from lichen.errors import LichenError
from lichen.serve.detokenizer import Detokenizer, stream_text


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, 中文 é 🎉 the end"] * 5, trainer)
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken("<｜think｜>", special=False)])
    return tokenizer


def streamed(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> str:
    return "".join(stream_text(ids, tokenizer, stop))


@settings(max_examples=300)
@given(data=st.data())
def test_any_tokens_stream_to_the_text_of_the_whole(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 3), max_size=40))
    assert streamed(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True)


@given(st.text())
@example("naïve 中文 🎉👩‍👩‍👧")
@example("a real replacement character: \ufffd!")
def test_text_survives_encoding_and_streaming(tokenizer, text):
    assume("<|end|>" not in text)
    assert streamed(tokenizer, tokenizer.encode(text).ids) == text


def test_no_half_characters_and_no_needless_delay(tokenizer):
    byte_tokens = [tokenizer.token_to_id(c) for c in pre_tokenizers.ByteLevel().pre_tokenize_str("🎉")[0][0]][
        -4:
    ]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(token) for token in byte_tokens] == ["", "", "", "🎉"]
    assert detokenizer.push(byte_tokens[0]) == ""
    assert detokenizer.finish() == "\ufffd"


def first_completed(text: str, stops: tuple[str, ...]) -> str:
    """The definition, letter by letter: the text before the stop string that is complete first."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@settings(max_examples=500)
@given(
    pieces=st.lists(st.text(alphabet="ab中", max_size=4), max_size=12),
    stops=st.lists(st.text(alphabet="ab中", min_size=1, max_size=4), max_size=3).map(tuple),
)
@example(pieces=["abab"], stops=("baba", "ab"))
@example(pieces=["aba", "aab"], stops=("abaa",))
@example(pieces=["abcd"], stops=("abcd", "bc"))
def test_stop_strings_cut_the_same_wherever_tokens_end(tokenizer, pieces, stops):
    ids = [i for piece in pieces for i in tokenizer.encode(piece).ids]
    assert streamed(tokenizer, ids, stops) == first_completed("".join(pieces), stops)


def test_a_completed_stop_string_takes_no_more_tokens(tokenizer):
    ids = iter(tokenizer.encode("the cat sat on").ids)
    taken = []
    text = "".join(stream_text((taken.append(i) or i for i in ids), tokenizer, ("cat",)))
    assert text == "the "
    assert "sat" not in tokenizer.decode(taken)


def test_text_that_may_begin_a_stop_string_is_held_only_while_it_may(tokenizer):
    detokenizer = Detokenizer(tokenizer, ("\n\ndef",))

    def push(text: str) -> str:
        return "".join(detokenizer.push(token) for token in tokenizer.encode(text).ids)

    assert push("x\n") == "x"
    assert push("\nd") == ""
    assert push("o") == "\n\ndo"
    assert push("\n\nde") == ""
    assert detokenizer.finish() == "\n\nde"
    assert not detokenizer.stopped


def test_a_tokenizer_of_another_kind_is_refused():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.Metaspace()
    with pytest.raises(LichenError, match="Metaspace"):
        Detokenizer(tokenizer)
