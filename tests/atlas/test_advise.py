"""Advice: the rules, the constraints, and both answers: in April 2026 and later."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest
import yaml
from genai_prices import Usage, calc_price

from lichen.atlas.advice.advise import SHIPPED_RULES, Advice, advise, load_rules, shipped_rules
from lichen.atlas.advice.constraints import Constraints
from lichen.atlas.catalogue.model import load
from lichen.atlas.catalogue.scores import comparable
from lichen.errors import LichenError

APRIL = datetime(2026, 4, 30, 12, tzinfo=UTC)
NOVEMBER = datetime(2026, 11, 24, 12, tzinfo=UTC)
THEN, NOW = load(as_of=APRIL.date()), load(as_of=NOVEMBER.date())


def ask(scenario: str, at: datetime = APRIL, **constraints: object) -> Advice:
    catalogue = THEN if at == APRIL else NOW
    return advise(scenario, Constraints.model_validate(constraints), catalogue, at)


@pytest.mark.parametrize("at", [APRIL, NOVEMBER])
@pytest.mark.parametrize("scenario", list(shipped_rules().scenarios))
def test_every_place_says_what_decided_it_and_shows_its_components(scenario: str, at: datetime) -> None:
    advice = ask(scenario, at)
    asked = [criterion.label for criterion in advice.criteria]
    ranked = [place.model for place in advice.ranking]
    assert len(set(ranked)) == len(ranked)
    assert {*ranked, *(out.model for out in advice.excluded)} == set((THEN if at == APRIL else NOW).models)
    for place, after in zip(advice.ranking, advice.ranking[1:], strict=False):
        assert len(place.answers) == len(asked)
        assert place.decided_by is not None
        assert after.model in place.decided_by
        assert list(place.unknown) == [
            label for label, answer in zip(asked, place.answers, strict=True) if answer.value is None
        ]
    assert advice.ranking[-1].decided_by is None
    assert all(answer.facts for answer in advice.ranking[0].answers if answer.value)


def test_closed_models_are_left_out_with_the_reason() -> None:
    out = {excluded.model: excluded for excluded in ask("agent").excluded}
    assert out["gpt-5.5"].why == "its weights are not published"
    assert "without 'open weights': gpt-5.5" in ask("agent").alternatives


def test_models_that_came_later_are_not_recommended_before() -> None:
    later = {"kimi-k3", "deepseek-v4.1-flash"}
    assert not later & {place.model for place in ask("agent").ranking}
    assert later <= {place.model for place in ask("agent", NOVEMBER).ranking}


def test_the_price_is_that_of_genai_prices() -> None:
    """DeepSeek's own offer of V4-Pro in April, for 20,000 tokens in, 80 % of them cached, and 1,000 out."""
    usage = Usage(input_tokens=20000, cache_read_tokens=16000, output_tokens=1000)
    theirs = calc_price(
        usage, "deepseek-v4-pro", provider_id="deepseek", genai_request_timestamp=APRIL
    ).total_price
    advice = ask("agent")
    place = next(place for place in advice.ranking if place.model == "deepseek-v4-pro")
    assert place.answers[1].text.endswith("at deepseek")
    assert place.answers[1].value == pytest.approx(float(theirs) / 21000 * 1e6)


def test_tests_are_won_by_counting_leads_in_common_columns() -> None:
    """Counted again from the catalogue: of the common tests for agents Kimi K2.6 wins one by more than two
    points (HLE with tools, on the questions without images) and V4 Pro another (MCPAtlas): their pairing is
    even, and both beat everyone else whom they meet."""
    advice = ask("agent")
    tests = advice.criteria[0].tests
    table = comparable([THEN.get("kimi-k2.6"), THEN.get("deepseek-v4-pro")], tests)
    common = {str(column): found for column, found in table.items() if len(found) == 2}
    ahead = {name: found["kimi-k2.6"].high - found["deepseek-v4-pro"].high for name, found in common.items()}
    assert {name for name, points in ahead.items() if points > 2} == {"HLE text-only with tools"}
    assert {name for name, points in ahead.items() if points < -2} == {"MCPAtlas"}
    assert len(ahead) == 5
    won = {place.model: place.answers[0].text for place in advice.ranking}
    assert won["kimi-k2.6"].startswith("5 won, 0 lost, 1 even")
    assert won["deepseek-v4-pro"].startswith("5 won, 0 lost, 1 even")


def test_the_answers_of_april() -> None:
    assert [ask(name).ranking[0].model for name in ("agent", "reasoning", "cost", "local", "long-term")] == [
        "deepseek-v4-pro",  # even with Kimi K2.6 in the tests, and at a third of its price
        "deepseek-v4-pro",
        "deepseek-v4-flash",
        "qwen3.6-27b",
        "deepseek-v4-pro",
    ]


def test_the_budget_cuts_by_the_cost_of_the_workload() -> None:
    """1,000 requests of 3,000 tokens in and 1,000 out for 30 days: Kimi's own price of 0.95 and 4.00 gives
    1000 * 30 * (3000 * 0.95 + 1000 * 4) / 1e6 = 205.50 dollars, the cheapest host a little less."""
    within = {place.model for place in ask("cost", budget=206).ranking}
    assert "kimi-k2.6" in within
    out = {excluded.model: excluded.why for excluded in ask("cost", budget=50).excluded}
    assert out["kimi-k2.6"].startswith("$")
    assert "deepseek-v4-flash" not in out
    more = {place.model for place in ask("cost", budget=206, requests_per_day=2000).ranking}
    assert more < within
    assert "kimi-k2.6" not in more


def test_the_hardware_cuts_and_decides() -> None:
    local = ask("local")
    assert [place.model for place in local.ranking] == [
        "qwen3.6-27b",
        "gemma-4-31b",
    ]  # what a card of 32 GB holds
    out = {excluded.model: excluded.why for excluded in ask("agent", hardware="h200:8").excluded}
    assert out["kimi-k2"].startswith("1.029 TB of weights (fp8) and")
    assert "kimi-k2.6" not in out
    with pytest.raises(LichenError, match="weights cannot be stored as 'q5'"):
        ask("local", quant="q5")
    with pytest.raises(LichenError, match="no device 'rtx509'; did you mean rtx5090"):
        ask("local", hardware="rtx509")


def test_a_license_and_a_context_cut() -> None:
    permissive = {place.model for place in ask("agent", license=["permissive"]).ranking}
    assert "kimi-k2.6" not in permissive
    assert {"deepseek-v4-pro", "qwen3.6-27b"} <= permissive
    assert {place.model for place in ask("agent", license=["apache-2.0"]).ranking} == {
        "gemma-4-31b",
        "qwen3.6-27b",
    }
    long = {place.model for place in ask("agent", context=1_000_000).ranking}
    assert long == {"deepseek-v4-flash", "deepseek-v4-pro", "llama-4-maverick"}


@pytest.mark.parametrize(
    ("constraints", "culprit", "change", "changed"),
    [
        (
            {"budget": 0.01},
            "budget of $0.01 a month",
            "$12.08 a month for deepseek-v4-flash",
            {"budget": 12.08},
        ),
        (
            {"context": 20_000_000},
            "context of 20,000,000 tokens",
            "a context of 1,048,576 tokens for deepseek-v4-flash, deepseek-v4-pro, llama-4-maverick",
            {"context": 1_048_576},
        ),
        (
            {"license": ["closed"]},
            "license closed",
            "license MIT for deepseek-v3.2, deepseek-v4-flash, deepseek-v4-pro or license",
            {"license": ["MIT"]},
        ),
        # Either would leave somebody; the second to cut is the one that took the last.
        (
            {"license": ["Apache-2.0"], "context": 1_000_000},
            "context of 1,000,000 tokens",
            "; a context of 262,144 tokens for gemma-4-31b, qwen3.6-27b",
            {"context": 262_144},
        ),
        (
            {"hardware": "rtx4090", "context": 65_536, "license": ["Apache-2.0"]},
            "hardware rtx4090, weights as released",
            "rtx4090 with weights as q4 for qwen3.6-27b",
            {"quant": "q4"},
        ),
        (
            {"hardware": "rtx4090", "quant": "q4", "context": 131_072},
            "hardware rtx4090, weights q4",
            "rtx4090:2 for gemma-4-31b",
            {"hardware": "rtx4090:2"},
        ),
    ],
)
def test_an_impossible_constraint_is_named_and_the_change_that_is_enough(
    constraints: dict, culprit: str, change: str, changed: dict
) -> None:
    with pytest.raises(LichenError, match="no model is left") as refused:
        ask("cost", **constraints)
    assert repr(culprit) in str(refused.value)
    assert change in str(refused.value)
    left = {place.model for place in ask("cost", **{**constraints, **changed}).ranking}
    assert left
    assert all(name in change or name in str(refused.value) for name in left)


def test_a_day_before_all_models_is_named() -> None:
    at = datetime(2020, 1, 1, 12, tzinfo=UTC)
    with pytest.raises(LichenError, match="no model of the catalogue was out on 2020-01-01"):
        advise("cost", Constraints(), load(as_of=at.date()), at)


def test_two_impossible_constraints_leave_no_rescue() -> None:
    with pytest.raises(LichenError, match="no change of one alone is enough"):
        ask("cost", budget=0.01, context=5_000_000)


def test_rules_of_ones_own(tmp_path) -> None:
    rules = yaml.safe_load(SHIPPED_RULES.read_text())
    rules["scenarios"]["cost"]["criteria"].reverse()
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(rules))
    changed = advise("cost", Constraints(), THEN, APRIL, load_rules(path))
    assert changed.ranking[0].model != ask("cost").ranking[0].model
    assert f"asked for tests of every kind first: {changed.ranking[0].model}" in ask("cost").alternatives


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (("measure: price", "measure: prize"), "no measure 'prize'; did you mean price?"),
        (("within: 25%", "within: often"), "criteria.1.within: 'often' is not a margin: write 5%"),
        (("within: 25%", "within: x%"), "criteria.1.within: 'x%' is not a margin: write 5%"),
        (("even: 2", "evne: 2"), "criteria.0.evne: there is no such field"),
        (("require: [open_weights, price]", "require: [free]"), "scenarios.agent.require.0"),
        (
            ('hardware: "rtx5090:1"', "hardware: rtx9090"),
            "scenarios.local.assume.hardware: no device 'rtx9090'",
        ),
        (("quant: q4", "quant: q5"), "scenarios.local.assume.quant: weights cannot be stored as 'q5'"),
    ],
)
def test_a_mistake_in_the_rules_is_named_with_its_line(
    edit: tuple[str, str], complaint: str, tmp_path
) -> None:
    text = SHIPPED_RULES.read_text()
    body = text.index("scenarios:")
    broken = text[:body] + text[body:].replace(*edit, 1)
    path = tmp_path / "rules.yaml"
    path.write_text(broken)
    line = next(n for n, row in enumerate(broken.splitlines(), 1) if edit[1] in row)
    with pytest.raises(LichenError) as refused:
        load_rules(path)
    assert complaint in str(refused.value)
    assert f"{path}:{line}:" in str(refused.value) or "measure" in complaint


def test_an_unknown_scenario() -> None:
    with pytest.raises(LichenError, match="no scenario 'agents' in the rules; there are agent, reasoning"):
        ask("agents")


def test_a_superseded_model_says_so() -> None:
    notes = {place.model: place.notes for place in ask("agent", NOVEMBER).ranking}
    assert notes["kimi-k2.6"] == ("superseded by kimi-k3 (2026-07-16)",)
    assert NOW.get("kimi-k3").release[0].value == date(2026, 7, 16)
