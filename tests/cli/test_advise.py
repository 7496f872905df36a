"""`lichen advise` as a person and as a script meet it."""

from __future__ import annotations

import json

import pytest

from lichen.atlas.advice.advise import SHIPPED_RULES


def test_a_ranking_says_why(run) -> None:
    done = run("advise", "--for", "cost", "--as-of", "2026-04-30")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "Lowest cost, as known on 2026-04-30"
    assert lines[1].startswith("For the blend workload; 1,000 requests a day.")
    assert "1. DeepSeek-V4-Flash" in lines
    assert "above gemma-4-31b by price: $" in done.out
    assert "gemma-4-31b would draw level if its price were at most $" in done.out
    assert "gpt-5.5: open weights: its weights are not published" in done.out
    assert "Prices from genai-prices" in lines[-1]


def test_facts_name_their_sources(run) -> None:
    done = run("advise", "--for", "agent", "--as-of", "2026-04-30", "--facts")
    assert "BrowseComp: 83.4 (max), reported by DeepSeek" in done.out
    assert "deepseek/deepseek-v4-pro" in done.out


def test_json_holds_everything(run) -> None:
    done = run("advise", "--for", "agent", "--as-of", "2026-04-30", "--budget", "$1,000", "--json")
    content = json.loads(done.out)
    assert content["constraints"]["budget"] == 1000
    assert content["constraints"]["workload"] == "agentic"
    assert content["ranking"][0]["decided_by"]
    assert len(content["ranking"][0]["answers"]) == len(content["criteria"]) == 3
    assert content["ranking"][-1]["unknown"] == ["tool and search tests"]
    assert content["ranking"][-1]["answers"][0]["value"] is None


def test_the_rules_are_printed_as_they_are_and_can_be_changed(run, refusal, tmp_path) -> None:
    printed = run("advise", "--rules").out
    assert printed == SHIPPED_RULES.read_text()
    mine = tmp_path / "mine.yaml"
    mine.write_text(printed.replace("  cost:\n", "  thrift:\n"))
    assert run("advise", "--rules", "--rules-file", mine).out == mine.read_text()
    assert run("advise", "--for", "thrift", "--rules-file", mine).status == 0
    assert "there are agent, reasoning, thrift" in refusal("advise", "--for", "cost", "--rules-file", mine)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--for is missing: one of agent, reasoning, cost, local, long-term"),
        (["--for", "agents"], "no scenario 'agents'"),
        (["--for", "cost", "--budget=-5"], "--budget -5.0: input should be greater than 0"),
        (
            ["--for", "cost", "--license", "MTI"],
            "no model has the license 'MTI'; there are Apache-2.0, closed,",
        ),
        (["--for", "cost", "--budget", "0.0012"], "'budget of $0.0012 a month' took the last"),
        (["--for", "cost", "--context", "0"], "--context 0: input should be greater than 0"),
        (["--for", "cost", "--context", "20000000"], "'context of 20,000,000 tokens' took the last"),
        (["--for", "cost", "--requests", "-1"], "--requests -1.0: input should be greater than 0"),
        (["--for", "cost", "--workload", "chat"], "--workload chat: input should be 'blend', 'output-heavy'"),
        (["--for", "cost", "--license", "closed"], "'license closed' took the last"),
        (["--for", "cost", "--quant", "q5"], "weights cannot be stored as 'q5'"),
        (["--for", "cost", "--quant", "q4"], "weights as q4 are stored on something: name the hardware too"),
        (["--for", "cost", "--as-of", "2999-01-01"], "--as-of 2999-01-01 is in the future"),
        (["--for", "cost", "--rules-file", "none.yaml"], "there is no file none.yaml"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    arguments: list[str], words: str, refusal, monkeypatch, tmp_path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refusal("advise", *arguments)
