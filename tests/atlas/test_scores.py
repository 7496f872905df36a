"""Scores are compared in one version, one variant and one unit, or not at all."""

from __future__ import annotations

from datetime import date

from lichen.atlas.catalogue.model import Model, Score, load
from lichen.atlas.catalogue.scores import Benchmark, Column, Margin, comparable, led


def model(name: str, *scores: tuple) -> Model:
    """A model with scores (benchmark, version, variant, value, reporter[, effort, build])."""
    fields = ("benchmark", "version", "variant", "value", "reported_by", "effort", "build")
    made = [
        Score(**dict(zip(fields, row, strict=False)), unit="%", source="x", date=date(2026, 4, 1))
        for row in scores
    ]
    return Model(name=name, title=name, lab="", country="", family="", scores=tuple(made))


EXACT = Margin()


def test_versions_variants_and_units_are_never_put_in_one_column() -> None:
    a = model(
        "a", ("AA", "v4.0", None, 52, "AA"), ("AA", "v4.1", None, 44, "AA"), ("HLE", None, "tools", 48, "A")
    )
    b = model("b", ("AA", "v4.1", None, 60, "AA"), ("HLE", None, "no tools", 90, "B"))
    table = comparable([a, b])
    assert [str(column) for column in table] == ["AA v4.0", "AA v4.1", "HLE no tools", "HLE tools"]
    assert led("a", "b", table, EXACT) == (0, 1, 0)
    assert led("b", "a", table, EXACT) == (1, 0, 0)


def test_of_several_efforts_the_best_counts_and_is_named() -> None:
    table = comparable(
        [model("a", ("T", None, None, 57, "AA", "medium"), ("T", None, None, 60, "AA", "xhigh"))]
    )
    assert str(table[Column("T", "", "", "%")]["a"]) == "60 (xhigh)"


def test_of_several_builds_the_latest_counts_and_is_named() -> None:
    scores = [("T", None, None, 57, "A", "max"), ("T", None, None, 52, "A", None, "0813")]
    table = comparable([model("a", *scores)])
    assert str(table[Column("T", "", "", "%")]["a"]) == "52 (build 0813)"


def test_a_lead_holds_only_if_all_reporters_agree() -> None:
    a = model("a", ("T", None, None, 70, "A"), ("T", None, None, 60, "B"))
    table = comparable([a, model("b", ("T", None, None, 65, "B"))])
    assert led("a", "b", table, EXACT) == (0, 0, 1)
    assert str(table[Column("T", "", "", "%")]["a"]) == "60 to 70"


def test_a_lead_within_the_margin_is_none() -> None:
    table = comparable([model("a", ("T", None, None, 83.4, "A")), model("b", ("T", None, None, 82, "B"))])
    assert led("a", "b", table, EXACT) == (1, 0, 0)
    assert led("a", "b", table, Margin(slack=2)) == (0, 0, 1)


def test_only_the_tests_that_are_asked_for() -> None:
    a = model(
        "a", ("HLE", None, "tools", 1, "A"), ("HLE", None, "no tools", 2, "A"), ("MMLU", None, None, 3, "A")
    )
    wanted = [Benchmark.model_validate("MMLU"), Benchmark(name="HLE", variant="tools")]
    assert {column.benchmark + column.variant for column in comparable([a], wanted)} == {"MMLU", "HLEtools"}


def test_the_catalogue_compares_the_re_based_index_within_a_version_only() -> None:
    """52 and 44 are one model in two versions of the index (artificialanalysis.ai, April and June 2026)."""
    table = comparable(load().models.values(), [Benchmark(name="Artificial Analysis Intelligence Index")])
    results = {
        column.version: found["deepseek-v4-pro"].high
        for column, found in table.items()
        if "deepseek-v4-pro" in found
    }
    assert results == {"v4.0": 52, "v4.1": 44}
