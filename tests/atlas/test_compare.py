"""The comparison: what its cells say, where that is from, and its three file forms."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import UTC, date, datetime

import pytest

from lichen.atlas.catalogue.model import load
from lichen.atlas.market.compare import CONTEXTS, NOTHING, compare, footnotes, to_csv, to_json, to_markdown
from lichen.errors import LichenError

CATALOGUE = load()
AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
MODELS = [CATALOGUE.get(name) for name in ("kimi-k2.6", "deepseek-v4-pro", "gemma-4-31b", "gpt-5.5")]
TITLES = {model.name: model.title for model in MODELS}


@pytest.fixture(scope="module")
def rows():
    return compare(MODELS, CATALOGUE, AT)


def cells(rows, label):
    (row,) = [row for row in rows if row.label == label]
    return {name: cell.text for name, cell in row.cells.items()}


def test_facts_show_what_else_is_told(rows):
    assert cells(rows, "total parameters") == {
        "kimi-k2.6": "1 T; elsewhere 1.6 T",
        "deepseek-v4-pro": "1.6 T",
        "gemma-4-31b": "30.7 B; elsewhere 31.27 B",
        "gpt-5.5": "unknown",
    }
    assert cells(rows, "license") == {
        "kimi-k2.6": "Modified MIT",
        "deepseek-v4-pro": "MIT",
        "gemma-4-31b": "Apache-2.0",
        "gpt-5.5": "closed",
    }


def test_sizes_and_caches_are_computed_from_the_configs(rows):
    """The figures the makers and users of these models report: 1,026 B, 1,573 B, 30.7 B; 17.16 GiB for K2.6
    at 256K (unsloth), 4.83 GiB for V4-Pro at 1M."""
    counted = cells(rows, "parameters, counted")
    assert list(counted.values()) == ["1.026 T", "1.573 T", "30.7 B", "unknown"]
    quarter, full = (cells(rows, f"cache at {context:,} tokens") for context in CONTEXTS[-2:])
    assert quarter["kimi-k2.6"].startswith("17.16 GiB, reserved ")
    assert full["kimi-k2.6"] == "beyond its context"
    assert float(full["deepseek-v4-pro"].split()[0]) == pytest.approx(4.83, rel=0.01)
    assert full["gpt-5.5"] == "unknown"


def test_architecture_in_words(rows):
    attention = cells(rows, "attention")
    assert attention["kimi-k2.6"] == "61 x MLA, 64 heads, latent 512 + 64"
    assert attention["gemma-4-31b"] == (
        "50 x GQA, 32 / 16 heads x 256, window of 1,024; 10 x GQA, 32 / 4 heads x 512"
    )
    assert re.match(r"31 x HCA.*; 30 x CSA", attention["deepseek-v4-pro"])
    assert cells(rows, "residual")["deepseek-v4-pro"] == "hyper-connections, 4 streams"
    assert "60 x 8 of 384 + 1 shared experts of 2,048" in cells(rows, "feed-forward")["kimi-k2.6"]


def test_every_model_of_the_catalogue_can_be_described():
    table = compare(list(CATALOGUE.models.values()), CATALOGUE, AT)
    described = {
        name
        for row in table
        if row.label == "attention"
        for name, cell in row.cells.items()
        if cell is not NOTHING
    }
    assert described == {model.name for model in CATALOGUE.models.values() if model.spec_name}


def test_prices_and_ratios(rows):
    prices = cells(rows, "USD per million tokens, in / out / cached")
    assert prices["kimi-k2.6"] == "moonshotai: 0.95 / 4 / 0.16"
    assert "1.32 / 3.96 / 0.044 (01-04, 06-10 UTC, Mon-Fri)" in prices["deepseek-v4-pro"]
    assert "10 / 45 / 1 (prompts above 272,000)" in prices["gpt-5.5"]
    assert list(cells(rows, "blend, against gpt-5.5, 12:00 UTC").values()) == [
        "1/6.57",
        "1/11.4",
        "1/54.9",
        "1x",
    ]


def test_only_scores_of_one_version_stand_in_one_row(rows):
    for row in rows:
        if row.section == "scores":
            scores = [score for cell in row.cells.values() for score in cell.value or ()]
            keys = {(s["benchmark"], s["version"], s["variant"], s["unit"]) for s in scores}
            assert len(keys) == 1, row.label
    index = "Artificial Analysis Intelligence Index"
    assert cells(rows, f"{index} v4.0")["deepseek-v4-pro"] == "52"
    assert cells(rows, f"{index} v4.1")["deepseek-v4-pro"] == "44"
    texts = cells(rows, "HLE text-only with tools")
    assert texts["deepseek-v4-pro"].startswith("48.2% (max)")
    assert texts["kimi-k2.6"] == "55.5% (thinking)"  # 54.0 on all questions, which is another row
    assert cells(rows, "HLE full with tools")["gpt-5.5"] == "52.2% (xhigh)"
    assert cells(rows, "SWE-bench Pro")["gemma-4-31b"] == "35.7% (thinking, by Alibaba)"


def test_every_cell_that_says_something_has_a_source(rows):
    for row in rows:
        for name, cell in row.cells.items():
            calculated = "against" in row.label or row.label in ("lab", "country")
            assert (cell is NOTHING) or calculated or cell.sources, (row.label, name)


def test_before_the_reference_was_out_there_are_no_ratios():
    then = load(as_of=date(2026, 4, 10))
    table = compare([then.get("kimi-k2.5")], then, datetime(2026, 4, 10, 12, tzinfo=UTC))
    assert not [row for row in table if "against" in row.label]
    with pytest.raises(LichenError, match=r"gpt-5\.5 came out on 2026-04-23"):
        compare([then.get("kimi-k2.5")], then, datetime(2026, 4, 10, 12, tzinfo=UTC), "gpt-5.5")


# ------------------------------------------------------------------------------------------------ files


def test_json_has_values_and_sources(rows):
    content = json.loads(to_json(rows, TITLES, AT))
    assert content["models"] == TITLES
    assert content["prices"]["at"] == "2026-11-24T12:00:00+00:00"
    by_label = {row["label"]: row["cells"] for row in content["rows"]}
    assert by_label["context"]["kimi-k2.6"]["value"] == 262144
    assert by_label["release"]["gpt-5.5"]["value"] == "2026-04-23"
    assert by_label["total parameters"]["gpt-5.5"] == {
        "text": "unknown",
        "value": None,
        "sources": ["https://openai.com/index/introducing-gpt-5-5/, 2026-04-23: not published"],
    }
    cache = by_label["cache at 262,144 tokens"]["kimi-k2.6"]["value"]
    assert cache["ideal"] == 262144 * 61 * 576 * 2  # MLA in bf16


def test_csv_reads_back_with_a_column_per_model(rows):
    plain = list(csv.reader(io.StringIO(to_csv(rows, TITLES, with_sources=False))))
    assert plain[0] == ["section", "row", *TITLES]
    assert len(plain) == len(rows) + 1
    assert {len(line) for line in plain} == {6}
    sourced = list(csv.DictReader(io.StringIO(to_csv(rows, TITLES, with_sources=True))))
    license = next(line for line in sourced if line["row"] == "license")
    assert license["kimi-k2.6"] == "Modified MIT"
    assert "huggingface.co/moonshotai/Kimi-K2.6/blob/main/LICENSE" in license["kimi-k2.6 sources"]


def test_markdown_has_equal_rows_and_every_mark_a_footnote(rows):
    text = to_markdown(rows, TITLES, footnotes(rows))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {6}
    used = {int(mark) for line in lines for mark in re.findall(r"\[(\d+)\]", line)}
    defined = [int(mark) for mark in re.findall(r"^\[(\d+)\]: ", text, re.MULTILINE)]
    assert used == set(defined)
    assert defined == list(range(1, len(defined) + 1))
    assert "[" not in to_markdown(rows, TITLES, {})
