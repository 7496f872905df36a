import errno
import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lichen.data.dataset import TokenDataset
from lichen.data.loader import Loader
from lichen.data.manifest import Position, Source
from lichen.data.prepare import prepare
from lichen.data.stream import read_work
from lichen.data.tokenizer import load_tokenizer
from lichen.errors import LichenError

from .conftest import write_corpus


def contents(folder: Path) -> dict[str, str]:
    """What is in a folder: names and hashes."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def texts(folder: Path, split: str) -> list[str]:
    dataset = TokenDataset.open(folder)
    documents, tokenizer = dataset.documents(split), load_tokenizer(folder)
    return [
        tokenizer.decode(documents.read(start, stop - 1).tolist(), skip_special_tokens=False)
        for start, stop in zip(documents.starts[:-1], documents.starts[1:], strict=True)
    ]


def test_every_document_is_there_word_for_word(corpus: Path, prepared: Path) -> None:
    found = [*texts(prepared, "train"), *texts(prepared, "validation")]
    assert sorted(found) == sorted(path.read_text() for path in corpus.iterdir())


def test_the_manifest_counts_what_is_there(corpus: Path, prepared: Path) -> None:
    dataset = TokenDataset.open(prepared)
    dataset.verify()
    manifest = dataset.manifest
    for split, counts in manifest.splits.items():
        documents = texts(prepared, split)
        files = sorted(prepared.glob(f"{split}-*.tokens.npy"))
        tokens = np.concatenate([np.load(file) for file in files])  # plain NumPy reads them
        assert tokens.dtype == np.uint16
        assert len(files) > 2
        assert (counts.documents, counts.tokens) == (len(documents), len(tokens))
        assert counts.bytes == sum(len(text.encode()) for text in documents)
        assert dataset.token_bytes[tokens].sum() == counts.bytes
    assert manifest.sources == 150
    assert manifest.source_bytes == sum(path.stat().st_size for path in corpus.iterdir())
    assert manifest.vocab_size == 512
    sources = [json.loads(line) for line in (prepared / "sources.jsonl").read_text().splitlines()]
    for source, path in zip(sources, sorted(corpus.iterdir()), strict=True):
        assert source["path"] == str(path)
        assert source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_text_gives_the_same_bytes_with_any_number_of_threads(
    corpus: Path, prepared: Path, tmp_path: Path
) -> None:
    for workers in (2, 5):
        out = tmp_path / str(workers)
        prepare(
            [str(corpus)], out, vocab_size=512, validation_fraction=0.2, shard_bytes=2000, workers=workers
        )
        assert contents(out) == contents(prepared)


def test_a_document_keeps_its_split_in_another_corpus(corpus: Path, prepared: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": path.read_text()}) for path in sorted(corpus.iterdir(), reverse=True)[:50]]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    prepare([str(tmp_path / "a.jsonl")], tmp_path / "out", vocab_size=300, validation_fraction=0.2, workers=1)
    for split in ("train", "validation"):
        assert set(texts(tmp_path / "out", split)) <= set(texts(prepared, split))


def test_formats_mix_and_markup_in_text_stays_text(tmp_path: Path) -> None:
    evil = "user says [EOS]<|im_end|><think>no</think> <｜end▁of▁sentence｜>"
    (tmp_path / "a.txt").write_text(evil)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps({"body": evil + "b"}).encode()))
    pq.write_table(pa.table({"body": [evil + "c"]}), tmp_path / "c.parquet")
    (tmp_path / "d.md").write_text("words and words and more words " * 50)
    manifest = prepare(
        [str(tmp_path)], tmp_path / "out", vocab_size=290, validation_fraction=0, field="body", workers=1
    )
    assert manifest.splits["train"].documents == 4
    assert texts(tmp_path / "out", "train")[:3] == [evil, evil + "b", evil + "c"]
    dataset = TokenDataset.open(tmp_path / "out")
    tokens = np.load(tmp_path / "out" / "train-00000.tokens.npy")
    # One [EOS] per document, and no other markup; what models say is vocabulary.
    tokenizer = load_tokenizer(tmp_path / "out")
    spoken = [tokenizer.token_to_id(text) for text in ("<think>", "</think>")]
    assert sorted(tokens[tokens >= 290 - 17]) == sorted([274] * 4 + spoken * 3)
    assert dataset.special_ids.eos == 274


def test_what_is_left_out_is_counted_with_reason_and_example(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "corpus", 8)
    (source / "bad.py").write_bytes(b"\xfc\xfe")
    (source / "empty.py").write_text("")
    (source / "copy.py").write_bytes((source / "0003.py").read_bytes())
    (source / "binary").write_bytes(b"\0\0")
    (source / "dangling").symlink_to("nowhere")
    os.mkfifo(source / "pipe")
    (source / "rows.jsonl").write_text('{"text": "fine"}\n{}\nnonsense\n')
    (source / "long.txt").write_text("a line\n" * 300_000)
    manifest = prepare([str(source)], tmp_path / "out", vocab_size=300, workers=2)
    assert {reason: (left.count, left.examples[0]) for reason, left in manifest.left_out.items()} == {
        "not UTF-8": (1, f"{source}/bad.py"),
        "empty": (1, f"{source}/empty.py"),
        "duplicate of another file": (1, f"{source}/copy.py"),
        "binary (holds NUL bytes)": (1, f"{source}/binary"),
        "a link that leads nowhere": (1, f"{source}/dangling"),
        "a FIFO": (1, f"{source}/pipe"),
        "no field 'text'": (1, f"{source}/rows.jsonl:2"),
        "not JSON": (1, f"{source}/rows.jsonl:3"),
    }
    assert manifest.extra_documents == 2  # 2.1 MB of text became three documents
    assert sum(counts.documents for counts in manifest.splits.values()) == 8 + 1 + 3


def test_a_field_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    record = {"id": 1, "messages": [{"role": "user", "content": "x"}], "\ud800\x1b": 1}
    several = ", ".join(f"n{at}" for at in range(8))
    asked = {
        "a.jsonl": ("text", "no field 'text'", ":1, which has id, messages, '??'; --field messages"),
        "b.csv": ("text", "no column 'text'", ":1, which has id, ' Text'; --field ' Text'"),
        "c.parquet": ("body", "no column 'body'", ":1, which has id, content; --field content"),
        "d.json": ("data", "a list of records that are no messages; make a line of JSON of each", ":1"),
        "e.json": ("data.x", "no field 'data.x'", ":1, where data is a list"),
        "f.jsonl": ("a.text", "no field 'a.text'", ":1, which has a.content, a.b; --field a.content"),
        "g.jsonl": ("a", "field 'a' is not text", ":1, which has a.text; --field a.text"),
        "h.jsonl": ("text", "no field 'text'", ":1, which has " + several + ", ..."),
        "i.jsonl": ("text", "no field 'text'", ":1, which is a list"),
    }  # fmt: skip
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(record)}\n" * 200)
    (tmp_path / "b.csv").write_text("id, Text\n1,x\n")
    pq.write_table(pa.table({"id": [1], "content": ["x"]}), tmp_path / "c.parquet")
    for name in ("d.json", "e.json"):
        (tmp_path / name).write_text('{"version": 1, "data": [{"title": "x", "paragraphs": []}]}')
    (tmp_path / "f.jsonl").write_text('{"a": {"content": "x", "b": 1}}')
    (tmp_path / "g.jsonl").write_text('{"a": {"text": "x"}}')
    (tmp_path / "h.jsonl").write_text(json.dumps({f"n{at}": at for at in range(1000)}))
    (tmp_path / "i.jsonl").write_text("[1]\n[2]\n")
    for name, (field, reason, example) in asked.items():
        with pytest.raises(LichenError) as refused:
            prepare([str(tmp_path / name)], tmp_path / "out", field=field)
        count = {"a.jsonl": 200, "i.jsonl": 2}.get(name, 1)
        assert f"{reason}: {count} (for example {tmp_path / name}{example})" in str(refused.value)


def test_a_given_tokenizer_is_taken_as_it_is(corpus: Path, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = prepare([str(corpus)], out, tokenizer=prepared, validation_fraction=0.2, workers=1)
    assert (out / "tokenizer.json").read_bytes() == (prepared / "tokenizer.json").read_bytes()
    assert (manifest.vocab_size, manifest.splits) == (512, TokenDataset.open(prepared).manifest.splits)
    with pytest.raises(LichenError, match=r"vocab_size is 600 and the tokenizer .* has 512 tokens"):
        prepare([str(corpus)], tmp_path / "b", tokenizer=prepared, vocab_size=600)
    with pytest.raises(LichenError, match="choose the family"):
        prepare([str(corpus)], tmp_path / "b", tokenizer=prepared, family="llama")


def test_a_large_vocabulary_is_stored_in_four_bytes(prepared: Path, corpus: Path, tmp_path: Path) -> None:
    described = json.loads((prepared / "tokenizer.json").read_text())
    for token in described["added_tokens"]:
        token["id"] += 70_000
    for index in range(70_000):
        described["model"]["vocab"][f"<unused {index}>"] = 495 + index
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    prepare([str(corpus)], tmp_path / "out", tokenizer=tmp_path, workers=1, validation_fraction=0.2)
    assert np.load(tmp_path / "out" / "train-00000.tokens.npy").dtype == np.uint32
    assert texts(tmp_path / "out", "train") == texts(prepared, "train")


# ---------------------------------------------------------------------------------------------- resuming

KILLED_RUN = """
import sys, time
from pathlib import Path
from lichen.data import encode, prepare
pause = float(sys.argv[3])
write = encode.write_array
def slow_write(path, array):
    time.sleep(pause)
    return write(path, array)
encode.write_array = slow_write
prepare.prepare([sys.argv[1]], Path(sys.argv[2]), vocab_size=512, validation_fraction=0.2,
                shard_bytes=2000, workers=2)
"""


def test_killed_at_any_moment_it_goes_on_and_gives_the_same_bytes(
    corpus: Path, prepared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    chance = random.Random(0)
    finished = 0
    for _ in range(8):
        child = subprocess.Popen([sys.executable, "-c", KILLED_RUN, corpus, out, "0.02"])
        wanted = finished + chance.randrange(3)
        while not (out / "preparation.json").exists() or len(list(out.glob("part-*"))) < wanted:
            assert child.poll() is None
            time.sleep(0.002)
        time.sleep(chance.random() * 0.06)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        assert len(list(out.glob("part-*"))) >= finished  # what is done stays
        finished = len(list(out.glob("part-*")))
    assert finished
    prepare([str(corpus)], out, vocab_size=512, validation_fraction=0.2, shard_bytes=2000, workers=1)
    assert contents(out) == contents(prepared)


def test_a_finished_preparation_is_not_repeated(prepared: Path, corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in prepared.iterdir()}
    manifest = prepare([str(corpus)], prepared, vocab_size=512, validation_fraction=0.2, shard_bytes=2000)
    assert manifest == TokenDataset.open(prepared).manifest
    assert {path: path.stat().st_mtime_ns for path in prepared.iterdir()} == before


class Stop(Exception):
    pass


@pytest.fixture
def half(tmp_path: Path) -> tuple[Path, Path]:
    """A corpus, and its preparation stopped in the middle."""
    source = write_corpus(tmp_path / "corpus", 60)
    out = tmp_path / "out"

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "encoding" and len(list(out.glob("part-*"))) == 2:
            raise Stop

    with pytest.raises(Stop):
        prepare([str(source)], out, vocab_size=400, shard_bytes=5000, workers=1, progress=stop)
    assert not (out / "manifest.json").exists()
    return source, out


def test_another_preparation_does_not_go_on_in_the_folder(half: tuple[Path, Path]) -> None:
    source, out = half
    options = {"vocab_size": 400, "shard_bytes": 5000, "workers": 1}
    before = contents(out)
    for name, value, difference in (
        ("vocab_size", 500, "--vocab-size is 400 there and 500 here"),
        ("family", "llama", "--family is kimi_k2 there and llama here"),
        ("validation_fraction", 0.5, "--validation-fraction is 0.05 there and 0.5 here"),
        ("field", "body", "--field is text there and body here"),
        ("sample_bytes", 2**20, "--sample-mib is 128 there and 1 here"),
        ("shard_bytes", 6000, "shard_bytes is 5000 there and 6000 here"),
    ):
        with pytest.raises(LichenError, match=f"another preparation: {difference}"):
            prepare([str(source)], out, **(options | {name: value}))
    with pytest.raises(LichenError, match=r"--tokenizer is not given there and the one of SHA-256 .* here"):
        prepare([str(source)], out, tokenizer=out, shard_bytes=5000)
    with pytest.raises(LichenError, match="unfinished; run the same `lichen data prepare` again"):
        TokenDataset.open(out)
    assert contents(out) == before


def test_changed_sources_are_refused_by_content_not_by_time(half: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = half

    def again() -> None:
        prepare([str(source)], out, vocab_size=400, shard_bytes=5000, workers=1)

    (source / "0099.py").write_text("new")
    with pytest.raises(LichenError, match=r"not those that .*0099\.py is new"):
        again()
    (source / "0099.py").unlink()
    text = (source / "0010.py").read_text()
    (source / "0010.py").unlink()
    with pytest.raises(LichenError, match=r"0010\.py is missing"):
        again()
    (source / "0010.py").write_text("#" + text[1:-1] + "?")
    with pytest.raises(LichenError, match=r"0010\.py has changed"):
        again()
    (source / "0010.py").write_text(text)  # the same content at another time
    again()
    assert len(texts(out, "train")) + len(texts(out, "validation")) == 60


def test_a_replaced_tokenizer_is_refused(half: tuple[Path, Path], prepared: Path) -> None:
    source, out = half
    (out / "tokenizer.json").write_bytes((prepared / "tokenizer.json").read_bytes())
    with pytest.raises(LichenError, match=r"tokenizer\.json is damaged or was replaced"):
        prepare([str(source)], out, vocab_size=400, shard_bytes=5000, workers=1)


def test_a_source_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "corpus", 30)

    def grow(stage: str, done: int, total: int) -> None:
        if stage == "training the tokenizer" and done == 0:
            (source / "0029.py").write_text("grown")

    with pytest.raises(LichenError, match=r"0029\.py changed while it was read"):
        prepare([str(source)], tmp_path / "out", vocab_size=400, workers=1, progress=grow)


def test_two_at_once_are_refused(half: tuple[Path, Path]) -> None:
    source, out = half

    def second(stage: str, done: int, total: int) -> None:
        if stage == "encoding":
            with pytest.raises(LichenError, match="another `lichen data prepare` is writing"):
                prepare([str(source)], out, vocab_size=400, shard_bytes=5000, workers=1)

    prepare([str(source)], out, vocab_size=400, shard_bytes=5000, workers=1, progress=second)


# ---------------------------------------------------------------------------------------------- refusals


def test_a_corpus_without_text_is_refused_with_the_reasons_and_may_be_mended(tmp_path: Path) -> None:
    source = tmp_path / "corpus"
    source.mkdir()
    (source / "a").write_bytes(b"\xff")
    (source / "b").write_text("")
    with pytest.raises(LichenError, match=r"no text to train on .*not UTF-8: 1 .*; empty: 1"):
        prepare([str(source)], tmp_path / "out", vocab_size=300, workers=1)
    (source / "a").write_text("words and words and words and words")
    prepare([str(source)], tmp_path / "out", vocab_size=280, validation_fraction=0, workers=1)


def test_a_corpus_that_is_all_held_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("few words")
    with pytest.raises(LichenError, match=r"no text to train on \(held out for validation: 1\)"):
        prepare([str(tmp_path / "a")], tmp_path / "out", validation_fraction=0.99999, workers=1)


def test_a_corpus_without_text_is_refused_with_a_given_tokenizer_too(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(LichenError, match="no text to train on"):
        prepare([str(tmp_path / "a")], tmp_path / "out", tokenizer=prepared, workers=1)
    (tmp_path / "a").write_text("words")
    prepare([str(tmp_path / "a")], tmp_path / "out", tokenizer=prepared, validation_fraction=0, workers=1)


def test_too_large_a_vocabulary_is_refused_and_may_be_lowered(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(LichenError, match="supports a vocabulary of at most"):
        prepare([str(corpus)], tmp_path / "out", vocab_size=50_000, workers=1)
    prepare([str(corpus)], tmp_path / "out", vocab_size=300, workers=1)


def test_a_folder_of_something_else_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(LichenError, match="not empty and holds no prepared data"):
        prepare([str(corpus)], tmp_path, vocab_size=300)
    with pytest.raises(LichenError, match=r"thesis\.txt is a file; a folder is needed"):
        prepare([str(corpus)], tmp_path / "thesis.txt", vocab_size=300)
    with pytest.raises(LichenError, match="holds no prepared data"):
        TokenDataset.open(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    for path in prepared.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_damage_is_found_and_named(copy: Path) -> None:
    shard = copy / "train-00001.tokens.npy"
    whole = shard.read_bytes()
    for size in (0, 50, 128, len(whole) - 64, len(whole) - 2):
        shard.write_bytes(whole[:size])
        with pytest.raises(LichenError, match=r"train-00001\.tokens\.npy is truncated or damaged"):
            TokenDataset.open(copy)
    shard.unlink()
    with pytest.raises(LichenError, match=r"train-00001\.tokens\.npy is missing"):
        TokenDataset.open(copy)
    shard.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    with pytest.raises(LichenError, match=r"train-00001\.tokens\.npy is damaged"):
        TokenDataset.open(copy).verify()
    shard.write_bytes(b"x" * len(whole))
    with pytest.raises(LichenError, match=r"train-00001\.tokens\.npy is damaged: its header"):
        TokenDataset.open(copy)


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "preparation.json",
        "sources.jsonl",
        "tokenizer.json",
        "train-00001.tokens.npy",
        "train-00001.offsets.npy",
    ],
)
def test_no_flipped_bit_is_prepared_over_or_read(corpus: Path, copy: Path, name: str) -> None:
    """Ten places in each file; training reads all of these but the list of sources and the plan."""
    whole = (copy / name).read_bytes()
    for place in range(0, len(whole), len(whole) // 9):
        (copy / name).write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(LichenError, match=r"damaged|not the tokenizer|format version"):
            prepare([str(corpus)], copy, vocab_size=512, validation_fraction=0.2, shard_bytes=2000, workers=1)
        if name not in ("preparation.json", "sources.jsonl"):
            with pytest.raises(LichenError, match=r"damaged|not the tokenizer|format version"):
                list(Loader(TokenDataset.open(copy), "train", 4, 64, seed=0).batches())


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "train-00000.tokens.npy", "part-00000.json", "sources.jsonl"]
)
def test_what_was_damaged_half_way_is_not_built_upon(half: tuple[Path, Path], name: str) -> None:
    source, out = half
    whole = (out / name).read_bytes()
    (out / name).write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
    with pytest.raises(LichenError, match="damaged"):
        prepare([str(source)], out, vocab_size=400, shard_bytes=5000, workers=1)
    (out / name).write_bytes(whole)
    prepare([str(source)], out, vocab_size=400, shard_bytes=5000, workers=1)


def test_a_manifest_of_the_first_version_is_read(prepared: Path, copy: Path, corpus: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["sha256"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LichenError, match="damaged"):  # later ones have a hash
        TokenDataset.open(copy)
    (copy / "manifest.json").write_text(json.dumps(manifest | {"format_version": 1}))
    plan = json.loads((copy / "preparation.json").read_text()) | {"format_version": 1}
    for field in ("sha256", "sources_sha256", "tokenizer_hash"):
        del plan[field]
    (copy / "preparation.json").write_text(json.dumps(plan))
    assert TokenDataset.open(copy).identity == TokenDataset.open(prepared).identity
    prepare([str(corpus)], copy, vocab_size=512, validation_fraction=0.2, shard_bytes=2000, workers=1)


def test_a_shard_that_shrinks_or_holds_what_is_no_token_while_it_is_read(copy: Path) -> None:
    documents = TokenDataset.open(copy).documents("train")
    documents.read(documents.starts[0], documents.starts[1])
    shard = copy / "train-00000.tokens.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:130] + b"\xff\xff" + whole[132:])
    with pytest.raises(
        LichenError, match=r"00000\.tokens\.npy holds 65535 at position 1 and the vocabulary ends"
    ):
        documents.read(documents.starts[0], documents.starts[1])
    os.truncate(shard, 130)
    with pytest.raises(LichenError, match=r"00000\.tokens\.npy became shorter while it was in use"):
        documents.read(documents.starts[0], documents.starts[1])


def test_many_shards_are_read_with_few_open_files(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = texts(prepared, "train")
    monkeypatch.setattr("lichen.data.dataset._MOST_OPEN", 2)
    assert texts(prepared, "train") == expected


def test_another_tokenizer_or_a_newer_version_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"format_version": 3}))
    with pytest.raises(LichenError, match="format version 3; this Lichen reads up to 2"):
        TokenDataset.open(copy)
    (copy / "manifest.json").write_text('{"format_version": 1}')
    with pytest.raises(LichenError, match=r"manifest\.json is damaged"):
        TokenDataset.open(copy)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with (copy / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(LichenError, match="not the tokenizer this data was prepared with"):
        TokenDataset.open(copy)


def test_file_names_that_are_not_unicode_do_no_harm(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "corpus", 20)
    (source / "ok\udcff.py").write_text("a name of the byte FF")
    (source / "no\udcff.py").write_bytes(b"\xff")
    manifest = prepare([str(source)], tmp_path / "out", vocab_size=300, workers=1)
    assert sum(counts.documents for counts in manifest.splits.values()) == 21
    assert manifest.left_out["not UTF-8"].examples == (f"{source}/no�.py",)
    assert TokenDataset.open(tmp_path / "out").manifest == manifest


def test_a_folder_prepared_into_itself_does_not_eat_its_own_output(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", 20)
    first = prepare([str(tmp_path)], tmp_path / "out", vocab_size=300, workers=1)
    assert first.sources == 20
    assert prepare([str(tmp_path)], tmp_path / "out", vocab_size=300, workers=1) == first


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    corpus: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"vocab_size": 512, "validation_fraction": 0.2, "shard_bytes": 2000, "workers": 1}
    room = iter(range(30))  # files that still fit
    flush = os.fsync

    def full(descriptor: int) -> None:
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(LichenError, match=r"no space left on the disk while writing .*\.npy"):
            prepare([str(corpus)], tmp_path, **options)
    assert list(tmp_path.glob("part-*"))
    prepare([str(corpus)], tmp_path, **options)
    assert contents(tmp_path) == contents(prepared)


# ------------------------------------------------------------------------------------------------ memory


def test_records_without_text_are_bounded_work_too(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.nulls(10_000, pa.string())}), tmp_path / "nulls.parquet")
    stat = (tmp_path / "nulls.parquet").stat()
    source = Source(str(tmp_path / "nulls.parquet"), stat.st_size, stat.st_mtime_ns, "")
    work = list(read_work([source], "text", 2**26, Position()))
    assert sum(len(piece.records) for piece in work) == 10_000
    assert max(len(piece.records) for piece in work) < 3000
    assert [piece.ends_shard for piece in work] == [False] * (len(work) - 1) + [True]


MEASURED_RUN = """
import sys
from pathlib import Path
from lichen.data.prepare import prepare
prepare([sys.argv[1]], Path(sys.argv[2]), vocab_size=400, sample_bytes=2**18, shard_bytes=2**19, workers=2)
# Not getrusage: its peak begins with that of the process that started this one.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's peak memory")
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    peaks = []
    for lines in (1000, 7000):
        chance = random.Random(0)
        path = tmp_path / f"{lines}.jsonl"
        with path.open("w") as file:
            for _ in range(lines):
                file.write(json.dumps({"text": " ".join(str(chance.random()) for _ in range(60))}) + "\n")
        run = subprocess.run(
            [sys.executable, "-c", MEASURED_RUN, path, tmp_path / f"out-{lines}"],
            capture_output=True,
            check=True,
        )
        peaks.append(int(run.stdout) / 1024)
    # Seven times the corpus: 7 MB of text and 14 MB of tokens more.
    assert peaks[1] - peaks[0] < 9
