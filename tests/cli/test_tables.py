"""Tables where there is little room: what they say is wrapped or they are wider, but nothing is cut off."""

from __future__ import annotations

import pytest


def words(text: str) -> set[str]:
    return set(text.split())


@pytest.mark.parametrize("columns", [20, 60])
@pytest.mark.parametrize(
    "command",
    [
        ["atlas", "list"],
        ["fits", "kimi-k2.6"],
        ["price", "kimi-k2.6", "--provider", "all"],
        ["compare", "kimi-k2.6", "deepseek-v4-pro", "gpt-5.5"],
        ["claims"],
        ["lineage", "--risk"],
        ["account", "deepseek-v4-pro", "--memory", "1128G"],
    ],
)
def test_nothing_is_lost_in_a_narrow_window(run, monkeypatch, command, columns) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    wide = run(*command).out
    monkeypatch.setenv("COLUMNS", str(columns))
    narrow = run(*command).out
    assert "…" not in narrow
    assert words(wide) == words(narrow)


def test_a_table_is_no_wider_than_it_must_be(run, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert max(map(len, run("atlas", "list").out.splitlines())) <= 100
