"""Messages as tokens, beside what transformers makes of them with the same template and tokenizer."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lichen.arch.families import chat_template, special_tokens, token_families
from lichen.data.conversation import conversation
from lichen.data.dataset import TokenDataset
from lichen.data.formats import Unreadable
from lichen.data.prepare import prepare
from lichen.data.sources import standard_library
from lichen.data.tokenizer import load_tokenizer, train_tokenizer
from lichen.errors import LichenError

TEXTS = [path.read_text() for path in standard_library() if path.parent.name == "json"]
CALL = {"name": "add", "arguments": {"a": 1, "b": "x < y"}}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "content": "3\n"},
    {"role": "user", "content": " And\n\n3 + 4? "},
    {"role": "assistant", "reasoning_content": "\nthree and four\n", "content": "7"},
]
TOOLS = [
    {"role": "user", "content": "1 + x?"},
    {"role": "assistant", "tool_calls": [{"id": "f:0", "type": "function", "function": CALL}]},
    {"role": "tool", "tool_call_id": "f:0", "content": [{"type": "text", "text": "2"}]},
    {"role": "assistant", "content": "2"},
]


@pytest.fixture(scope="module", params=token_families())
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 500, request.param).save(str(folder / "tokenizer.json"))
    return request.param, folder


def prepared(folder: Path, family: str, source: Path, **options: Any) -> list[list[int]]:
    prepare([str(source)], folder / "out", family=family, validation_fraction=0, workers=1, **options)
    documents = TokenDataset.open(folder / "out").documents("train")
    return [
        documents.read(start, stop).tolist()
        for start, stop in zip(documents.starts[:-1], documents.starts[1:], strict=True)
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_conversations_have_the_tokens_that_transformers_gives_them(
    tokenizer: tuple[str, Path], kind: str, tmp_path: Path
) -> None:
    family, given_tokenizer = tokenizer
    # Arrow has no column of texts and lists, and Llama's template no tools.
    talks = [TALK] if family == "llama" or kind == "parquet" else [TALK, TOOLS]
    if kind == "jsonl":
        (tmp_path / "a").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    else:
        pq.write_table(pa.Table.from_pylist([{"messages": talk} for talk in talks]), tmp_path / "a")
    found = prepared(tmp_path, family, tmp_path / "a", tokenizer=given_tokenizer, field="messages")
    tokens = special_tokens(family)
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(given_tokenizer / "tokenizer.json"), bos_token=tokens.bos, eos_token=tokens.eos
    )
    theirs.chat_template = chat_template(family)
    for talk, ids in zip(talks, found, strict=True):
        expected = theirs.apply_chat_template(talk, tokenize=True, return_dict=False)
        assert ids[: len(expected)] == expected
        assert ids[len(expected) :] in ([], [theirs.eos_token_id])
        assert ids[-1] == theirs.eos_token_id


EVIL = [text for family in token_families() for text in special_tokens(family).markup]


EVIL_TEXT = st.lists(st.sampled_from(EVIL) | st.text(max_size=3), max_size=4).map("".join)


@pytest.mark.parametrize("family", token_families())
@given(said=st.lists(EVIL_TEXT, max_size=4))
def test_what_was_said_is_never_markup(family: str, said: list[str]) -> None:
    """Not even what only becomes markup where two parts of a message meet."""

    def talk(texts: list[str]) -> list[dict[str, Any]]:
        parts = [{"type": "text", "text": part} for text in texts for part in (text[:3], text[3:])]
        return [{"role": "user", "content": parts}, {"role": "assistant", "content": "".join(texts)}]

    written = conversation(talk(said), family)
    assert written.markup == conversation(talk(["x" for _ in said]), family).markup
    assert "".join(said).strip().encode() in b"".join(written.texts)


def test_sharegpt_is_read_and_a_document_of_words_learns_no_markup(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "again and again, "}, {"from": "gpt", "value": "and again and again"}]
    (tmp_path / "a.json").write_text(json.dumps([{"conversations": turns * 9}] * 3))
    ids = prepared(tmp_path, "kimi_k2", tmp_path / "a.json", field="conversations", vocab_size=276)
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.decode(ids[0], skip_special_tokens=False).startswith(
        "<|im_user|>user<|im_middle|>again and again, <|im_end|><|im_assistant|>assistant<|im_middle|>and"
    )
    counts = TokenDataset.open(tmp_path / "out").manifest.splits["train"]
    assert counts.bytes == 3 * 9 * (len("useragain and again, ") + len("assistantand again and again"))
    assert not any("<" in word or "|" in word for word in tokenizer.get_vocab() if len(word) in (2, 3, 4))


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "empty"),
        ([{"text": "x"}], "a list of records that are no messages; make a line of JSON of each"),
        ([{"role": "narrator", "content": "x"}], "role is not system, user"),
        ([{"role": ["user"], "content": "x"}], "role is not system, user"),
        ([{"role": "user", "content": [{"type": "image"}]}], "cannot write"),
        ([{"role": "user", "content": 5}], "cannot write"),
        ([{"role": "assistant", "tool_calls": [{}]}], "cannot write"),
        ([{"role": "user", "content": "\ufdd0"}], "no characters"),
        ([{"role": "user", "content": "\ud800"}], "not UTF-8"),
        ([{"role": "user", "content": "x" * 2**20}], "longer than 1 MiB"),
    ],
)
def test_messages_that_cannot_be_written_say_why(messages: list[Any], reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        conversation(messages, "kimi_k2")


def test_a_tokenizer_without_the_family_s_markup_is_refused(tmp_path: Path) -> None:
    described = json.loads(train_tokenizer(TEXTS, 300, "kimi_k2").to_str())
    added = described["added_tokens"]
    described["added_tokens"] = [each for each in added if each["content"] != "<|im_user|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": TALK}))
    with pytest.raises(LichenError, match=r"no token '<\|im_user\|>', with which kimi_k2 writes"):
        prepared(tmp_path, "kimi_k2", tmp_path / "a.jsonl", tokenizer=tmp_path, field="messages")
