"""Prices and the cost of workloads, against genai-prices' own calculation and published price pages."""

from __future__ import annotations

from datetime import UTC, date, datetime, time

import pytest
from genai_prices import Usage
from genai_prices.data import providers as table_providers
from hypothesis import given
from hypothesis import strategies as st

from lichen.atlas.catalogue.model import load
from lichen.atlas.market.prices import (
    Price,
    check_references,
    default_provider,
    history,
    moment,
    price_of,
    prices_on,
    providers,
    table,
)
from lichen.atlas.market.workloads import (
    STANDARD,
    Workload,
    chosen,
    cost,
    offers,
    parse_hours,
    ratio,
    request_cost,
)
from lichen.errors import LichenError

CATALOGUE = load()
GPT = CATALOGUE.get("gpt-5.5")
APRIL = datetime(2026, 4, 30, 12, tzinfo=UTC)
PEAK = datetime(2026, 11, 24, 2, tzinfo=UTC)  # a Tuesday
OFF_PEAK = datetime(2026, 11, 24, 12, tzinfo=UTC)

TABLE = {(seller.id, listed.id): (seller, listed) for seller in table_providers for listed in seller.models}


def cheaper(name: str, workload: str, at: datetime, provider: str | None = None) -> float:
    """How many times cheaper than GPT-5.5."""
    found = ratio(CATALOGUE.get(name), GPT, STANDARD[workload], at, provider)
    assert found is not None
    return 1 / found


# ---------------------------------------------------------------------- against genai-prices' calculation


@pytest.mark.parametrize("name", CATALOGUE.models)
def test_costs_are_those_of_genai_prices(name):
    """For every reference of every model. Left out: its hourly prices before the day they began, which it
    cannot date (pydantic/genai-prices#582), and what a catalogue file enters over it."""
    model = CATALOGUE.get(name)
    entered = {price.provider for price in model.prices}
    compared = 0
    for reference in model.price_refs:
        for at in (APRIL, PEAK, OFF_PEAK):
            for tokens, cached, out in ((1000, 0, 500), (20000, 16000, 1000), (300000, 0, 10)):
                price = price_of(model, reference.provider, at, tokens)
                if price is None or reference.provider in entered:
                    continue
                usage = Usage(input_tokens=tokens, cache_read_tokens=cached, output_tokens=out)
                seller, listed = TABLE[reference.provider, reference.model_id]
                theirs = listed.calc_price(usage, seller, genai_request_timestamp=at)
                ours = request_cost(price, Workload(tokens, out, cached_share=cached / tokens))
                assert ours == pytest.approx(float(theirs.total_price)), (reference, at)
                compared += 1
    assert compared > 0


def test_every_reference_is_in_the_table_and_has_prices():
    for model in CATALOGUE.models.values():
        check_references(model)
        assert {price.provider for price in history(model)} == set(providers(model)), model.name


def test_a_reference_that_is_not_in_the_table_is_refused_with_the_nearest():
    model = CATALOGUE.get("kimi-k2.6")
    wrong = model.price_refs[0].model_copy(update={"model_id": "kimi-k2.66"})
    with pytest.raises(
        LichenError, match=r"no model moonshotai/kimi-k2.66; did you mean .*moonshotai/kimi-k2.6"
    ):
        check_references(model.model_copy(update={"price_refs": (wrong,)}))


def test_the_table_says_how_new_it_is():
    name, newest = table()
    assert name.startswith("genai-prices ")
    assert date(2026, 11, 9) <= newest <= date.today()


# ------------------------------------------------------------------------------------- published ratios


@pytest.mark.parametrize(
    ("name", "workload", "at", "provider", "times"),
    [
        # Kimi K2.6: 0.95 / 4.00 / 0.16 (platform.kimi.com) under GPT-5.5's 5 / 30 / 0.50.
        ("kimi-k2.6", "blend", OFF_PEAK, None, 6.6),
        ("kimi-k2.6", "output-heavy", OFF_PEAK, None, 7.3),
        ("kimi-k2.6", "agentic", OFF_PEAK, None, 5.6),
        ("kimi-k2.6", "blend", APRIL, None, 6.6),
        # DeepSeek-V4-Flash: 0.14 / 0.28 at launch; today 0.15 / 0.60, twice that in peak hours.
        ("deepseek-v4-flash", "blend", APRIL, None, 64),
        ("deepseek-v4-flash", "blend", OFF_PEAK, None, 43),
        ("deepseek-v4-flash", "blend", PEAK, None, 21),
        # DeepSeek-V4-Pro: 0.435 / 0.87 in April, a quarter of the list price; today 0.66 / 1.98.
        ("deepseek-v4-pro", "blend", APRIL, None, 21),
        ("deepseek-v4-pro", "blend", APRIL, "deepseek-list", 5.2),
        ("deepseek-v4-pro", "blend", OFF_PEAK, None, 11.4),
        ("deepseek-v4-pro", "blend", PEAK, None, 5.7),
        ("gemma-4-31b", "blend", OFF_PEAK, None, 55),
        ("gemma-4-31b", "agentic", OFF_PEAK, None, 18),
        ("qwen3.6-27b", "blend", OFF_PEAK, None, 8.3),
        ("qwen3.6-27b", "agentic", OFF_PEAK, None, 3.7),
    ],
)
def test_ratios_to_gpt_5_5(name, workload, at, provider, times):
    digits = 1 if times < 15 else 0
    assert round(cheaper(name, workload, at, provider), digits) == times


# ----------------------------------------------------------------------------- dates, hours, days, tiers


def rates(name: str, at: datetime, provider: str | None = None, tokens: int = 0) -> tuple | None:
    price = price_of(CATALOGUE.get(name), provider, at, tokens)
    return price and (price.input, price.output, price.cache_read)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (datetime(2026, 4, 23, 12, tzinfo=UTC), None),  # not out yet
        (datetime(2026, 4, 25, 2, tzinfo=UTC), (0.14, 0.28, 0.028)),  # the launch price of the cache
        (datetime(2026, 4, 30, 2, tzinfo=UTC), (0.14, 0.28, 0.0028)),  # no peak hours yet
        (datetime(2026, 8, 17, 2, tzinfo=UTC), (0.44, 1.32, 0.014)),
        (datetime(2026, 8, 17, 5, tzinfo=UTC), (0.22, 0.66, 0.007)),
        (datetime(2026, 8, 22, 2, tzinfo=UTC), (0.22, 0.66, 0.007)),  # a Saturday
        (datetime(2026, 9, 10, 9, 59, tzinfo=UTC), (0.30, 1.20, 0.006)),
        (datetime(2026, 9, 10, 10, 0, tzinfo=UTC), (0.15, 0.60, 0.003)),
        (datetime(2026, 11, 22, 2, tzinfo=UTC), (0.15, 0.60, 0.003)),  # a Sunday
    ],
)
def test_deepseek_v4_flash_through_its_first_half_year(at, expected):
    assert rates("deepseek-v4-flash", at) == expected


def test_times_in_other_zones_are_the_same_moments():
    beijing = datetime.fromisoformat("2026-11-24T10:00:00+08:00")
    assert rates("deepseek-v4-pro", beijing) == rates("deepseek-v4-pro", PEAK) == (1.32, 3.96, 0.044)


def test_long_prompts_pay_the_higher_tier():
    assert rates("gpt-5.5", OFF_PEAK, tokens=272_000) == (5, 30, 0.5)
    assert rates("gpt-5.5", OFF_PEAK, tokens=272_001) == (10, 45, 1)


def test_the_default_seller_is_the_first_that_still_sells():
    model = CATALOGUE.get("kimi-k2.5")
    assert default_provider(model, date(2026, 8, 30)) == "moonshotai"
    assert default_provider(model, date(2026, 8, 31)) == "novita"
    assert default_provider(model, date(2025, 1, 1)) is None


def test_the_prices_of_a_day_are_those_in_force_at_some_moment_of_it():
    for model in CATALOGUE.models.values():
        for provider in providers(model):
            for day in (date(2025, 2, 10), date(2026, 4, 30), date(2026, 8, 20), date(2026, 11, 21)):
                moments = [datetime(day.year, day.month, day.day, hour, 30, tzinfo=UTC) for hour in range(24)]
                held = {price_of(model, provider, at, size) for at in moments for size in (0, 10**6)}
                assert set(prices_on(model, provider, day)) == held - {None}, (model.name, provider, day)


def test_a_price_that_nobody_gives_is_unknown_and_never_zero():
    free = CATALOGUE.get("gemma-4-31b").model_copy(
        update={"price_refs": CATALOGUE.get("gemma-4-31b").price_refs[:0], "prices": ()}
    )
    assert price_of(free, None, OFF_PEAK) is None
    assert cost(free, STANDARD["blend"], None, OFF_PEAK) is None
    assert ratio(free, GPT, STANDARD["blend"], OFF_PEAK) is None
    assert all(
        price.input > 0 and price.output > 0 for m in CATALOGUE.models.values() for price in history(m)
    )


def test_what_google_serves_free_of_charge_has_no_price():
    gemma = CATALOGUE.get("gemma-4-31b")
    google = gemma.price_refs[0].model_copy(update={"provider": "google", "model_id": "gemma-4-31b-it"})
    check_references(gemma.model_copy(update={"price_refs": (google,)}))
    assert price_of(gemma.model_copy(update={"price_refs": (google,)}), "google", OFF_PEAK) is None


def test_a_provider_that_does_not_sell_the_model_is_refused():
    with pytest.raises(LichenError, match=r"no provider 'foo' of gemma-4-31b.* by novita at 0\.14 / 0\.4 /"):
        offers(CATALOGUE.get("gemma-4-31b"), "foo", STANDARD, GPT, OFF_PEAK)


def test_all_offers_of_a_model_and_the_lack_of_any():
    sellers = offers(CATALOGUE.get("kimi-k2.6"), "all", STANDARD, GPT, OFF_PEAK)
    assert [offer.provider for offer in sellers][:2] == ["moonshotai", "openrouter"]
    assert "baseten" not in {offer.provider for offer in sellers}  # it stopped on 2026-10-09
    assert all(offer.costs["blend"] and offer.ratios["blend"] for offer in sellers)
    before = datetime(2025, 1, 1, tzinfo=UTC)
    for provider in (None, "all"):
        (nobody,) = offers(CATALOGUE.get("kimi-k2.6"), provider, STANDARD, GPT, before)
        assert (nobody.provider, nobody.prices, nobody.costs["blend"]) == (None, [], None)


def test_a_window_may_cross_midnight():
    night = Price("x", 1, 1, None, "s", date(2026, 1, 1), date(2026, 1, 1), hours=((time(22), time(2)),))
    held = [hour for hour in range(24) if night.holds(datetime(2026, 5, 5, hour, tzinfo=UTC))]
    assert held == [0, 1, 22, 23]
    assert night.window == "22-02 UTC"


def test_the_moment_that_is_asked_about():
    day = date(2026, 4, 30)
    assert moment(day, None) == datetime(2026, 4, 30, 12, tzinfo=UTC)
    assert moment(day, "02:30") == datetime(2026, 4, 30, 2, 30, tzinfo=UTC)
    with pytest.raises(LichenError, match="not a time of day"):
        moment(day, "25:00")


# -------------------------------------------------------------------------------------------- workloads


def test_the_cost_of_requests_spread_over_hours_is_the_mean_over_them():
    model = CATALOGUE.get("deepseek-v4-pro")
    work = Workload(1_000_000, 0, requests_per_day=10, hours=tuple(range(24)))
    day = cost(model, work, None, OFF_PEAK)
    assert day.per_request == pytest.approx((7 * 1.32 + 17 * 0.66) / 24)
    assert day.per_day == pytest.approx(10 * day.per_request)
    assert {price.input for price in day.prices} == {1.32, 0.66}


@given(
    tokens=st.integers(0, 10**6),
    out=st.integers(0, 10**5),
    share=st.floats(0, 1),
    name=st.sampled_from(list(CATALOGUE.models)),
)
def test_more_cache_never_costs_more_and_nothing_costs_nothing(tokens, out, share, name):
    price = price_of(CATALOGUE.get(name), None, OFF_PEAK)
    full, some = (request_cost(price, Workload(tokens, out, cached)) for cached in (0.0, share))
    assert 0 <= some <= full * (1 + 1e-12)
    assert request_cost(price, Workload(0, 0)) == 0


def test_hour_profiles():
    assert parse_hours("8-10,20") == (8, 9, 20)
    assert parse_hours("22-2") == (0, 1, 22, 23)
    assert parse_hours("0-24") == tuple(range(24))
    for text in ("", "x", "24", "8-8", "-3", "8-25"):
        with pytest.raises(LichenError, match="--hours"):
            parse_hours(text)


def test_a_person_asks_for_a_standard_workload_or_describes_one():
    assert chosen(None, None, None, None, None) == STANDARD
    assert list(chosen("agentic", None, None, None, "3")) == ["agentic"]
    assert chosen(None, 10, None, 0.5, "3")["yours"] == Workload(10, 0, 0.5, hours=(3,))
    for arguments, message in (
        (("x", None, None, None, None), "no workload 'x'"),
        (("blend", 5, None, None, None), "describe your own"),
        ((None, None, None, 0.5, None), "needs tokens"),
    ):
        with pytest.raises(LichenError, match=message):
            chosen(*arguments)
