"""What is printed of other people's files: nothing in it is a command to a terminal or to a spreadsheet."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from lichen.cli.output import LONGEST_ERROR, print_table, print_text, say, say_whole, visible
from lichen.files.csv_file import csv_text

HOSTILE = "a\x1b[2Jb\x9b31mc\x07d\rE\u202ef\udcff"
SHOWN = "a\\u001b[2Jb\\u009b31mc"


def rows(text: object) -> Table:
    table = Table(str(text))
    table.add_row(str(text))
    return table


@pytest.mark.parametrize(
    "show",
    [
        print_text,
        say,
        say_whole,
        lambda text: print_table(rows(text)),
        lambda text: say(Tree(Text(text))),
        lambda text: say(Tree(text)),
    ],
)
def test_a_terminal_is_given_no_command(show, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    show(HOSTILE)
    out = capsys.readouterr().out
    assert SHOWN in out
    assert not set(out) & set("\x1b\x9b\x07\r\u202e\udcff")


def test_what_is_visible_is_still_json() -> None:
    assert json.loads(visible(json.dumps(HOSTILE, ensure_ascii=False))) == HOSTILE


def test_the_words_of_a_users_file_are_shown_and_counted_in_csv(run, refusal, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    file = tmp_path / "m.yaml"
    file.write_text(
        'name: mine\ntitle: "=cmd()\\e[2J"\nlab: "@lab"\ncountry: France\nfamily: "x\\e"\n'
        'sources:\n  card: {url: "+https://example.org\\e[31m", date: 2026-10-01}\n'
        "release:\n  - {value: 2026-10-01, source: card}\n"
    )
    outs = [run("atlas", "add", file).out]
    verbs = ["atlas list", "atlas show mine", "atlas show mine --json", "price mine", "fits mine"]
    forms = ["", " --sources", " --json", " --csv --sources", " --md --sources"]
    for line in verbs + [f"compare mine gpt-5.5{form}" for form in forms]:
        done = run(*line.split())
        outs += [done.out, done.err]
    assert not any("\x1b" in out for out in outs)
    table = list(csv.DictReader(io.StringIO(run("compare", "mine", "--csv", "--sources").out)))
    cells = {row["row"]: row for row in table}
    assert cells["lab"]["mine"] == "'@lab"
    assert cells["release"]["mine sources"].startswith("'+https")
    assert "\\u001b" in refusal("account", "\x1b[2J")


def test_numbers_in_csv_stay_numbers() -> None:
    rows = ["-0.5", -0.5, "+1e3", None], ["=1", "-1+2", "@x", "\tx"], ["a=b", "", 'say "x"', "a\r=b"]
    assert list(csv.reader(io.StringIO(csv_text(rows), newline=""))) == [
        ["-0.5", "-0.5", "+1e3", ""],
        ["'=1", "'-1+2", "'@x", "'\tx"],
        ["a=b", "", 'say "x"', "a\r=b"],
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("account", "x" * 100_000),
        ("fits", "kimi-k2", "--gpu", "x" * 100_000),
        ("fits", "kimi-k2", "--context", "9" * 100_000),
        ("price", "kimi-k2", "--provider", "x " * 50_000),
        ("price", "kimi-k2", "--hours", "9" * 100_000),
        ("fits", "kimi-k2", "--gpu", f"h200:{'9' * 100_000}"),
        ("x" * 100_000,),
    ],
)
def test_a_value_that_is_too_long_is_cut_and_the_sentence_kept(run, arguments) -> None:
    done = run(*arguments)
    assert done.status in (1, 2)
    assert len(done.err) < LONGEST_ERROR + 100
    assert done.err.count("\n") == 1
    assert "characters left out" in done.err
