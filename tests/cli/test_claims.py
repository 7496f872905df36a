"""`lichen claims` as a person and as a script meet it."""

from __future__ import annotations

import json

import pytest

MINE = """\
title: My article
source: my desk
date: 2026-05-01
claims:
  - id: size
    statement: DeepSeek-V4-Flash has 284 billion parameters.
    check: {kind: parameters, model: deepseek-v4-flash, expected: 284e9, tolerance: 1%}
  - id: k3
    statement: Kimi K3 reads a million tokens.
    check: {kind: context, model: kimi-k3, expected: 1048576}
"""


def test_the_article_is_judged_on_its_day_and_today(run) -> None:
    done = run("claims")
    assert done.status == 0, done.err
    assert "2026-04-30" in done.out
    assert "cannot be checked" in done.out
    assert "contradicted" in done.out


def test_evidence_is_printed_once_where_it_did_not_change(run) -> None:
    done = run("claims", "--evidence")
    assert done.out.count("1.026 T parameters counted from its config") == 1
    assert "1.6 trillion are DeepSeek-V4-Pro's." in done.out


def test_json_holds_every_claim_with_its_check_and_verdicts(run) -> None:
    content = json.loads(run("claims", "--as-of", "2026-04-30", "--json").out)
    found = {claim["id"]: claim for claim in content["claims"]}
    assert content["source"].startswith("https://")
    assert found["k2.6-parameters"]["check"]["expected"] == 1.6e12
    assert found["k2.6-parameters"]["on"]["2026-04-30"]["verdict"] == "contradicted"
    assert found["k2.6-parameters"]["on"]["2026-04-30"]["how"] == "computed"
    assert all(claim["on"]["2026-04-30"]["evidence"] for claim in content["claims"])


@pytest.mark.parametrize("words", [["check"], []])
def test_a_file_of_ones_own(words: list[str], run, tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    content = json.loads(run("claims", *words, path, "--json").out)
    size, k3 = content["claims"]
    assert [verdict["verdict"] for verdict in size["on"].values()] == ["supported", "supported"]
    assert size["on"].keys() == k3["on"].keys()
    assert k3["on"]["2026-05-01"] == {
        "verdict": "cannot be checked",
        "how": "computed",
        "evidence": ["kimi-k3 came out on 2026-07-16"],
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check"], "`lichen claims check` needs a claims file"),
        (["check", "none.yaml"], "there is no file none.yaml"),
        (["a.yaml", "b.yaml"], "one claims file at a time: got a.yaml b.yaml"),
        (["--as-of", "2999-01-01"], "is in the future"),
        (["--as-of", "April"], "--as-of 'April' is not a date"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    arguments: list[str], words: str, refusal, monkeypatch, tmp_path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refusal("claims", *arguments)


def test_a_mistake_in_a_file_has_its_line(refusal, tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE.replace("kimi-k3,", "kimi-k33,"))
    assert f"{path}:10: claims.1.check.model: no model 'kimi-k33'" in refusal("claims", "check", path)
