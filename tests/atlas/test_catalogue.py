"""The catalogue agrees with itself and with the configs, and bad files are refused in words."""

from __future__ import annotations

import json
import re
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from lichen.arch.families import load_spec
from lichen.arch.published import named_models
from lichen.arch.weights import active_parameters, total_parameters
from lichen.atlas.catalogue.model import FACT_FIELDS, SHIPPED, add, load, read_model, user_folder
from lichen.atlas.catalogue.spec import spec_of
from lichen.atlas.market.prices import check_references
from lichen.errors import LichenError
from lichen.facts.record import Fact, Record, known, parse_as_of, today
from lichen.facts.yaml_file import parse

CATALOGUE = load()
NAMES = [
    "deepseek-v3",
    "deepseek-v3.2",
    "deepseek-v4-flash",
    "deepseek-v4-pro",
    "deepseek-v4.1-flash",
    "gemma-4-31b",
    "gpt-5.5",
    "kimi-k2",
    "kimi-k2.5",
    "kimi-k2.6",
    "kimi-k3",
    "llama-3.1-405b",
    "llama-4-maverick",
    "qwen3.6-27b",
]

GOOD = """\
name: my-model
title: My model
lab: Me
country: France
family: Mine
sources:
  card: {url: "https://example.org/card", date: 2026-10-01}
release:
  - {value: 2026-10-01, source: card}
license:
  - {value: MIT, source: card}
prices:
  - {provider: me, input: 1, output: 2, since: 2026-10-01, source: card}
"""


@pytest.fixture
def file(tmp_path):
    """Write a model file; the good one with one text replaced by another."""

    def write(old: str = "", new: str = "", name: str = "model.yaml") -> Path:
        assert old in GOOD
        path = tmp_path / name
        path.write_text(GOOD.replace(old, new) if old else GOOD)
        return path

    return write


# ---------------------------------------------------------------------------------------- what is in it


def test_all_models_are_there_by_name():
    assert list(CATALOGUE.models) == NAMES
    assert {path.stem for path in SHIPPED.glob("*.yaml")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_fact_and_score_has_a_public_source_and_a_past_date(name):
    model = CATALOGUE.get(name)
    items = [fact for field in FACT_FIELDS for fact in getattr(model, field)] + list(model.scores)
    assert len(items) > 15
    for item in [*items, *model.prices]:
        assert item.source.startswith("https://"), item
        assert date(2024, 7, 1) < item.date <= today(), item


@pytest.mark.parametrize("name", NAMES)
def test_scores_name_who_reported_and_are_in_the_range_of_their_unit(name):
    for score in CATALOGUE.get(name).scores:
        assert score.reported_by
        assert score.unit in ("%", "points", "rating"), score
        assert score.unit == "rating" or 0 < score.value < 100, score


@pytest.mark.parametrize("name", [name for name in NAMES if CATALOGUE.get(name).spec_name])
def test_what_the_labs_publish_agrees_with_what_the_configs_hold(name):
    """Total and active parameters: two sources that did not see each other. Labs round, and some count the
    embedding or the vision tower in."""
    model = CATALOGUE.get(name)
    spec = load_spec(model.spec_name)
    for field, counted in (
        ("total_parameters", total_parameters(spec)),
        ("active_parameters", active_parameters(spec)),
    ):
        published = known(getattr(model, field), today()).value
        assert counted == pytest.approx(published, rel=0.09), field
    assert known(model.context, today()).value <= spec.max_position_embeddings


def test_a_closed_model_keeps_its_unknowns():
    model = CATALOGUE.get("gpt-5.5")
    assert model.spec_name is None
    for field in ("total_parameters", "active_parameters", "tokens_trained", "optimizer"):
        assert known(getattr(model, field), today()).value is None, field
    assert known(model.context, today()) is None


def test_specs_are_named_as_they_ship():
    shipped = named_models()
    assert all(model.spec_name in shipped for model in CATALOGUE.models.values() if model.spec_name)
    assert [name for name in NAMES if not CATALOGUE.get(name).spec_name] == ["gpt-5.5"]


def test_sources_that_disagree_are_both_kept():
    facts = CATALOGUE.get("kimi-k2.6").total_parameters
    assert [fact.value for fact in facts] == [10**12, 16 * 10**11]
    assert known(facts, today()).value == 10**12
    assert known(facts, today()) is facts[0]


# ------------------------------------------------------------------------------------------------ as of


def test_on_the_30th_of_april_2026_nothing_later_was_known():
    then = load(as_of=date(2026, 4, 30))
    assert "kimi-k3" not in then.models
    assert "deepseek-v4.1-flash" not in then.models
    assert len(then.models) == 12
    assert not then.get("kimi-k2.6").successor
    assert CATALOGUE.get("kimi-k2.6").successor[0].value == "kimi-k3"
    with pytest.raises(LichenError, match=r"kimi-k3 came out on 2026-07-16, which is after 2026-04-30"):
        then.get("kimi-k3")


@given(st.dates(date(2024, 7, 1), date(2026, 11, 24)))
def test_nothing_of_a_later_day_is_ever_told(day):
    for model in (model.as_of(day) for model in CATALOGUE.models.values()):
        told = [fact for field in FACT_FIELDS for fact in getattr(model, field)]
        assert all(item.date <= day for item in [*told, *model.scores, *model.prices])


def test_open_weights_of_kimi_k3_change_with_the_day():
    weights = CATALOGUE.get("kimi-k3").open_weights
    assert known(weights, date(2026, 7, 15)) is None
    assert known(weights, date(2026, 7, 26)).value is False
    assert known(weights, date(2026, 7, 27)).value is True


def test_the_latest_fact_counts_and_a_secondary_source_only_alone():
    def fact(value, day, secondary=False):
        return Fact(value=value, source="https://example.org", date=date(2026, 1, day), secondary=secondary)

    facts = (fact("a", 1), fact("b", 3), fact("c", 5, secondary=True))
    assert [known(facts, date(2026, 1, day)).value for day in (1, 2, 3, 9)] == ["a", "a", "b", "b"]
    assert known(facts[2:], date(2026, 1, 9)).value == "c"
    assert known((fact("a", 1), fact("b", 1)), date(2026, 1, 1)).value == "a"


def test_as_of_dates_are_read_and_the_future_is_refused():
    assert parse_as_of(None) == today()
    assert parse_as_of("2026-04-30") == date(2026, 4, 30)
    with pytest.raises(LichenError, match="not a date"):
        parse_as_of("30.4.2026")
    with pytest.raises(LichenError, match="is in the future"):
        parse_as_of((today() + timedelta(days=1)).isoformat())


# ------------------------------------------------------------------------------------- files of the user


def test_a_good_file_becomes_a_model(file):
    model = read_model(file())
    assert model.name == "my-model"
    assert model.license[0] == Fact(value="MIT", source="https://example.org/card", date=date(2026, 10, 1))
    assert "my-model" in load([file()]).models


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "license:",
            "licence:",
            r"model.yaml:10: licence: there is no such field; did you mean license or license_url\?",
        ),
        ("MIT, source: card", "MIT, source: kard", r":11: license.0.source: 'kard' is not among .* \(card\)"),
        (
            "MIT, source",
            "MIT, date: 2026-01-01, source",
            r":11: license.0.date: the date stands with the source",
        ),
        ("{value: MIT, source: card}", "MIT", r":11: license.0: expected a mapping"),
        ("  - {value: MIT, source: card}", "  MIT", r":10: license: expected a list"),
        ("{value: 2026-10-01", "{value: soon", r":9: release.0.value: .*date"),
        ("input: 1", "input: -1", r":13: prices.0.input: .*greater than or equal to 0"),
        ("input: 1", "input: .nan", r":13: prices.0.input: .*finite"),
        ("input: 1", "input: 1, hours: [[3, 25]]", r":13: prices.0.hours.0.1: .*less than or equal to 24"),
        ("input: 1", "input: 1, hours: [[3, 3]]", r":13: prices.0: a span of hours .* is empty"),
        ("input: 1", "input: 1, until: 2026-09-01", r":13: prices.0: it holds .* which is never"),
        ("provider: me", "provider: ''", r":13: prices.0.provider: .*at least 1 character"),
        ("{value: 2026-10-01", "{value: 2026-13-01", r":9: not valid YAML: '2026-13-01' is no timestamp"),
        ("MIT, source: card", "MIT, source: [card]", r":11: license.0.source: \['card'\] is not among"),
        (
            "license:\n",
            "context:\n  - {value: 0, source: card}\nlicense:\n",
            r":11: context.0.value: .*greater",
        ),
        (
            "prices:\n",
            "scores:\n  - {benchmark: HLE, value: .nan, unit: '%', reported_by: me, source: card}\nprices:\n",
            r":13: scores.0.value: .*finite",
        ),
        ("input: 1", "input: 1, currency: EUR", r":13: prices.0.currency: EUR is not USD"),
        ("date: 2026-10-01", "date: 2999-01-01", r":7: sources.card.date: 2999-01-01 is in the future"),
        ("{value: 2026-10-01", "{value: 2999-01-01", r":9: release.0.value: 2999-01-01 is in the future"),
        ("name: my-model", "name: My Model", r":1: name: "),
        ("name: my-model\n", "", r":1: name: missing"),
        (
            "title: My model",
            "title: My model\ntitle: x",
            r":3: not valid YAML: the key 'title' is written twice",
        ),
        ("release:\n  - {value: 2026-10-01, source: card}\n", "", r"release: missing"),
        ("sources:", "origins:", r"sources: missing"),
        ("release:", "release: [", r":9: not valid YAML"),
        ("country: France", "country: France\nspec_name: nothing", r":5: spec_name: nothing: no such file"),
    ],
)
def test_a_bad_file_is_refused_with_file_line_and_field(file, old, new, message):
    with pytest.raises(LichenError, match=message):
        read_model(file(old, new))


def test_a_list_that_is_too_short_says_how_many_it_needs(tmp_path):
    class Pair(Record):
        both: tuple[str, ...] = Field(min_length=2)

    path = tmp_path / "pair.yaml"
    path.write_text("both: [one]")
    with pytest.raises(LichenError, match=r"pair.yaml:1: both: expected at least 2 entries"):
        parse(Pair, {"both": ["one"]}, path)


@pytest.mark.parametrize(
    "content",
    [b"", b"- 1", b"\xff\xfe", b"a: \0", b"a: !!int x", b"a: &a [*a]", b"!!python/object:os.system {}"],
)
def test_what_is_no_model_file_is_refused(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(LichenError, match=r"x\.yaml"):
        read_model(path)


@pytest.mark.parametrize("level", ["[", "- ", "? ", "{a: "])
def test_nesting_without_end_is_refused_and_ends_no_process(tmp_path, level):
    path = tmp_path / "deep.yaml"
    path.write_text("title: fine\nscores:\n  " + level * 300_000)
    # libyaml 0.2.6 has a limit of its own, and meets it first where it reads ahead.
    refusals = r"nested deeper than 100 levels|not valid YAML: exceeded maximum nesting depth"
    with pytest.raises(LichenError, match=rf"deep\.yaml:3: ({refusals})$"):
        read_model(path)


def test_a_file_without_end_is_refused():
    with pytest.raises(LichenError, match="/dev/zero is a device; a regular file is needed"):
        read_model(Path("/dev/zero"))


def test_a_loop_of_links_is_named(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(LichenError, match="loop is a link that leads nowhere"):
        read_model(loop)
    with pytest.raises(LichenError, match="loop"):
        spec_of(str(loop))


def test_a_name_that_is_taken_is_refused(file):
    with pytest.raises(LichenError, match=r":1: name: 'gpt-5.5' is already described by .*gpt-5.5.yaml"):
        load([file("my-model", "gpt-5.5")])
    with pytest.raises(LichenError, match=r"'gpt-5\.5' is already in the catalogue"):
        add(file("my-model", "gpt-5.5"))
    assert not user_folder().exists()


def test_an_added_model_stays_and_can_be_replaced(file):
    model, kept = add(file())
    assert kept == user_folder() / "my-model.yaml"
    assert load().get("my-model") == model
    add(file("My model", "Better"))
    assert load().get("my-model").title == "Better"


@pytest.mark.parametrize(
    "written",
    [
        "spec_name: config.json",
        "spec_name: config.json  # the config",
        '"spec_name" : "config.json"',
        "spec_name:\n  config.json",
        "spec_name: >-\n  config.json",
        "# \U0001f33f\u00e9\nspec_name: config.json",
    ],
)
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_an_added_model_finds_its_config_from_anywhere(file, tmp_path, monkeypatch, written, start):
    config = named_models()["llama-3.1-8b"].config
    (tmp_path / "config.json").write_text(json.dumps(config))
    add(file("name: my-model", f"{start}name: my-model\n{written}"))
    monkeypatch.chdir("/")
    spec = load_spec(load().get("my-model").spec_name)
    assert total_parameters(spec) == total_parameters(load_spec("llama-3.1-8b"))


def test_the_example_of_the_guide_is_a_good_file(tmp_path):
    guide = (Path(__file__).parents[2] / "docs" / "atlas.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "config.json").write_text(json.dumps(named_models()["llama-3.1-8b"].config))
    (tmp_path / "my-model.yaml").write_text(example)
    model = read_model(tmp_path / "my-model.yaml")
    assert model.scores[0].test == "HLE full with tools"
    check_references(model)


def test_an_unknown_name_brings_the_nearest():
    with pytest.raises(LichenError, match=r"did you mean kimi-k2\.6 or"):
        CATALOGUE.get("Kimi-K2-6")
    with pytest.raises(LichenError, match="lichen atlas list"):
        CATALOGUE.get("zzz")
