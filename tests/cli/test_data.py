"""`lichen data` as a stranger types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text(
            f"Document {number} says that document {number + 1} follows.\n" * 5
        )
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n")
    (folder / "table.txt").write_text("id,words\n" + "1,some words\n" * 9)
    return folder


def test_prepare_and_inspect(run, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("data", "prepare", corpus, "--out", out, "--vocab-size", 300, "--validation-fraction", 0.2)
    assert (done.status, done.err) == (0, "")
    counts = json.loads((out / "manifest.json").read_text())["splits"]
    assert f"train: {counts['train']['documents']} documents" in done.out
    assert f"left out: 1 not UTF-8 (for example {corpus}/picture.png)" in done.out
    alike = f"1 file looks like CSV and was read as one text (for example {corpus}/table.txt); called .csv"
    assert f"as text: {alike}" in done.out
    again = run("data", "prepare", corpus, "--out", out, "--vocab-size", 300, "--validation-fraction", 0.2)
    assert again.out == done.out
    shown = run("data", "inspect", out)
    assert shown.status == 0
    assert shown.out.startswith(done.out)
    assert "says that document" in shown.out.removeprefix(done.out)


def test_what_is_in_a_file_does_nothing_to_the_terminal(run, corpus: Path, tmp_path: Path) -> None:
    for file in corpus.iterdir():
        file.rename(file.with_name(f"\x1b[31m{file.name}"))
    for file in corpus.glob("*.txt"):
        file.write_text("\x1b]0;owned\x07" + file.read_text())
    done = run("data", "prepare", corpus, "--out", tmp_path / "out", "--vocab-size", 300)
    shown = run("data", "inspect", tmp_path / "out")
    assert "\\u001b[31mpicture.png" in done.out
    assert "\\u001b]0;owned\\u0007Document" in shown.out
    assert not {"\x1b", "\x07"} & {*done.out, *shown.out}


def test_data_without_validation_says_what_will_be_missing(run, corpus: Path, tmp_path: Path) -> None:
    options = ("--vocab-size", 300, "--validation-fraction", 0)
    with pytest.warns(UserWarning, match=r"no bits per byte.*--validation-fraction or more documents"):
        assert run("data", "prepare", corpus, "--out", tmp_path / "out", *options).status == 0


def test_refusals_are_one_sentence(refusal, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "matches no file" in refusal("data", "prepare", "nowhere", "--out", out)
    assert "supports a vocabulary of at most" in refusal("data", "prepare", corpus, "--out", out)
    assert "known: kimi_k2" in refusal("data", "prepare", corpus, "--out", out, "--family", "kimi")
    assert "need at least 273" in refusal("data", "prepare", corpus, "--out", out, "--vocab-size", 0)
    assert "at most 4,194,304" in refusal("data", "prepare", corpus, "--out", out, "--vocab-size", 2**31)
    assert "at least 0 and below 1" in refusal(
        "data", "prepare", corpus, "--out", out, "--validation-fraction", 1.5
    )
    assert "not UTF-8: 1" in refusal("data", "prepare", corpus / "picture.png", "--out", out)
    assert "no tokenizer at" in refusal("data", "prepare", corpus, "--out", out, "--tokenizer", tmp_path)
    assert "holds no prepared data" in refusal("data", "prepare", corpus, "--out", corpus)
    for taken in (corpus, corpus / "0.txt"):
        assert "make it with `lichen data prepare --out FOLDER`" in refusal("data", "inspect", taken)
    assert f"`lichen data prepare --out {out / 'x'}`" in refusal("data", "inspect", out / "x")
    (corpus / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\xff")
    told = refusal("data", "prepare", corpus, "--out", out, "--tokenizer", corpus / "tokenizer.model")
    assert "a tokenizer.json is needed" in told


def test_damage_is_one_sentence(run, refusal, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("data", "prepare", corpus, "--out", out, "--vocab-size", 300).status == 0
    shard = out / "train-00000.tokens.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert "train-00000.tokens.npy is damaged" in refusal("data", "inspect", out)
    shard.write_bytes(content[:-10])
    assert "train-00000.tokens.npy is truncated" in refusal("data", "inspect", out)


def test_preparing_needs_no_torch(corpus: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from lichen.cli.main import main\n"
        f"sys.argv = ['lichen', 'data', 'prepare', {str(corpus)!r}, '--out', {str(tmp_path / 'out')!r}, "
        "'--vocab-size', '300']\nmain()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
