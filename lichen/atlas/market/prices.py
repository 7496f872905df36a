"""What a model costs through an API: dated prices, by provider, prompt length and hour of the day.

The table is genai-prices' (https://github.com/pydantic/genai-prices), the copy installed beside Lichen: it is
never fetched. What it lacks, a catalogue file may enter by hand, with source and date. Its rows are kept in
the order in which it writes them; of those that hold at a moment the last one counts, as it does there, but
for one thing: an hourly price that follows a dated one holds from that date on, which its table cannot say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING

from lichen.atlas.catalogue.model import EnteredPrice, Model, PriceRef
from lichen.errors import LichenError, did_you_mean
from lichen.facts.record import known_value, today

if TYPE_CHECKING:
    from genai_prices.types import ConditionalPrice, ModelInfo, ModelPrice, TieredPrices

Hours = tuple[tuple[time, time], ...]


@dataclass(frozen=True)
class Price:
    """Rates in USD per million tokens, and when they hold.

    `cache_read` None: the provider lists no discount, so cached tokens are charged as `input`.
    `since`: the first day of it that is known. `until`: the first day on which it does not hold any more.
    `hours`: the spans [start, end) of the UTC day in which it holds, on weekdays only or on all days.
    `above`: it holds for prompts of more tokens than this.
    """

    provider: str
    input: float
    output: float
    cache_read: float | None
    source: str
    snapshot: date  # of the table or, for a price entered by hand, of its source
    since: date | None = None
    until: date | None = None
    hours: Hours | None = None
    weekdays_only: bool = False
    above: int = 0

    def holds(self, at: datetime, prompt_tokens: int = 0) -> bool:
        """Whether it is in force at `at` for a prompt of `prompt_tokens`."""
        moment = at.astimezone(UTC)
        return (
            self.holds_on(moment.date())
            and prompt_tokens >= self.above + (self.above > 0)
            and (self.hours is None or any(within(moment.time(), span) for span in self.hours))
        )

    def holds_on(self, day: date) -> bool:
        """Whether it is in force at some hour of `day`."""
        return (
            (self.since is None or self.since <= day)
            and (self.until is None or day < self.until)
            and not (self.weekdays_only and day.weekday() >= 5)
        )

    @property
    def cached(self) -> float:
        """What a million tokens from the cache cost: as fresh ones where no rate of their own is listed."""
        return self.input if self.cache_read is None else self.cache_read

    @property
    def told_by(self) -> str:
        return f"{self.source}, {self.snapshot}"

    @property
    def window(self) -> str:
        """When in the day it holds, in words; empty for all day."""
        if self.hours is None:
            return ""
        spans = ", ".join(f"{_clock(start)}-{_clock(end)}" for start, end in self.hours)
        return f"{spans} UTC{', Mon-Fri' if self.weekdays_only else ''}"


def _clock(moment: time) -> str:
    return f"{moment:%H:%M}" if moment.minute else f"{moment:%H}"


def within(moment: time, span: tuple[time, time]) -> bool:
    """Whether `moment` is in the half-open `span`, which may cross midnight."""
    start, end = span
    return start <= moment < end if start <= end else moment >= start or moment < end


def in_force(rows: Sequence[Price], at: datetime, prompt_tokens: int = 0) -> Price | None:
    """Which of a provider's `rows` counts at `at` (aware) for such a prompt; None where none holds."""
    return next((row for row in reversed(rows) if row.holds(at, prompt_tokens)), None)


def price_of(model: Model, provider: str | None, at: datetime, prompt_tokens: int = 0) -> Price | None:
    """The price of `model` at `at` (aware), None where it is unknown or the model was not out.

    `provider` None: the default one on that day. `prompt_tokens` picks the context tier.
    """
    provider = provider or default_provider(model, at.astimezone(UTC).date())
    return in_force([row for row in history(model) if row.provider == provider], at, prompt_tokens)


def prices_on(model: Model, provider: str, day: date) -> list[Price]:
    """Every price in force at some hour of `day`: the daily one, its hourly exceptions, its context tiers."""
    kept: list[Price] = []
    for row in history(model):
        if row.provider == provider and row.holds_on(day):
            # A later row hides those that it holds instead of at every moment and length.
            kept = [old for old in kept if old.above < row.above or row.hours not in (None, old.hours)]
            kept.append(row)
    return kept


def providers(model: Model) -> list[str]:
    """Who sells or sold the model, in the order of its file."""
    listed = [reference.provider for reference in model.price_refs]
    return list(dict.fromkeys(listed + [price.provider for price in model.prices]))


def default_provider(model: Model, day: date) -> str | None:
    """The provider that is meant when none is named: the file's first that has a price on `day`."""
    return next((provider for provider in providers(model) if prices_on(model, provider, day)), None)


def check_references(model: Model) -> None:
    """Raises LichenError, with the nearest names, for a reference that the price table does not have."""
    for reference in model.price_refs:
        key = (reference.provider, reference.model_id)
        if key not in _models():
            hint = did_you_mean("/".join(key), list(map("/".join, _models())), "no name is near it")
            raise LichenError(f"{model.name}: {table()[0]} has no model {'/'.join(key)}; {hint}")


def history(model: Model) -> tuple[Price, ...]:
    """All known prices of `model`; of the rows that hold at a moment the last one counts."""
    release = known_value(model.release)
    return _history(model.price_refs, model.prices, release) if release else ()


@cache
def _history(
    references: tuple[PriceRef, ...], entered: tuple[EnteredPrice, ...], release: date
) -> tuple[Price, ...]:
    rows = [price for reference in references for price in _listed(reference)]
    rows += [_entered(price) for price in entered]
    return tuple(replace(row, since=max(row.since or release, release)) for row in rows)


def moment(day: date, clock: str | None) -> datetime:
    """The moment that `--at` HH:MM names on `day`, UTC; without it now, or noon of a day that is past.

    Raises LichenError for a time that cannot be read.
    """
    if clock is None:
        now = datetime.now(UTC)
        return now if day == now.date() else datetime.combine(day, time(12), UTC)
    try:
        return datetime.combine(day, datetime.strptime(clock, "%H:%M").time(), UTC)
    except ValueError:
        raise LichenError(f"--at {clock!r} is not a time of day: write HH:MM, in UTC, like 02:30") from None


@cache
def table() -> tuple[str, date]:
    """Name and release of the price table, and the date of its newest entry that is in force."""
    from importlib.metadata import version

    from genai_prices.types import StartDateConstraint

    starts = (
        row.constraint.start_date
        for model in _models().values()
        for row in _conditional(model)
        if isinstance(row.constraint, StartDateConstraint)
    )
    return f"genai-prices {version('genai-prices')}", max(day for day in starts if day <= today())


@cache
def _models() -> dict[tuple[str, str], ModelInfo]:
    from genai_prices.data import providers

    return {(provider.id, model.id): model for provider in providers for model in provider.models}


def _conditional(model: ModelInfo) -> list[ConditionalPrice]:
    from genai_prices.types import ConditionalPrice

    return model.prices if isinstance(model.prices, list) else [ConditionalPrice(prices=model.prices)]


def _listed(reference: PriceRef) -> list[Price]:
    """The rows of genai-prices for one of its models; none where the installed release does not have it."""
    from genai_prices.types import TimeOfDateConstraint

    model = _models().get((reference.provider, reference.model_id))
    name, snapshot = table()
    source = f"{name}: {reference.provider}/{reference.model_id}"
    since: date | None = None
    rows: list[Price] = []
    for row in _conditional(model) if model else ():
        hours: Hours | None = None
        if isinstance(row.constraint, TimeOfDateConstraint):
            hours = ((_utc(row.constraint.start_time), _utc(row.constraint.end_time)),)
        elif row.constraint is not None:
            since = row.constraint.start_date
        for above, input_rate, output_rate, cache_rate in _tiers(row.prices):
            price = Price(
                reference.provider,
                input_rate,
                output_rate,
                cache_rate,
                source,
                snapshot,
                since=since,
                until=reference.until,
                hours=hours,
                weekdays_only=hours is not None and reference.peak_days == "weekdays",
                above=above,
            )
            # Peak hours are often two spans of one price.
            if rows and hours and rows[-1].hours and replace(rows[-1], hours=hours) == price:
                price = replace(price, hours=rows[-1].hours + hours)
                rows.pop()
            rows.append(price)
    return rows


def _tiers(prices: ModelPrice) -> Iterator[tuple[int, float, float, float | None]]:
    """(prompt tokens above which, input, output, cache read) per tier; none where a rate is not given, as for
    what is free of charge within limits."""
    from genai_prices.types import TieredPrices

    rates = [prices.input_mtok, prices.output_mtok, prices.cache_read_mtok]
    starts = {tier.start for rate in rates if isinstance(rate, TieredPrices) for tier in rate.tiers}
    for start in sorted({0, *starts}):
        input_rate, output_rate, cache_rate = (_rate(rate, start) for rate in rates)
        if input_rate is not None and output_rate is not None:
            yield start, input_rate, output_rate, cache_rate


def _rate(rate: Decimal | TieredPrices | None, start: int) -> float | None:
    """The rate for a prompt just above `start` tokens."""
    from genai_prices.types import TieredPrices

    if isinstance(rate, TieredPrices):
        return float([rate.base, *(tier.price for tier in rate.tiers if tier.start <= start)][-1])
    return None if rate is None else float(rate)


def _entered(price: EnteredPrice) -> Price:
    same = price.model_dump(exclude={"currency", "date", "hours", "peak_days"})
    hours = tuple((time(start), time(end % 24)) for start, end in price.hours) if price.hours else None
    return Price(**same, snapshot=price.date, hours=hours, weekdays_only=price.peak_days == "weekdays")


def _utc(moment: time) -> time:
    """A time of day without its zone; a time without one is UTC."""
    if moment.tzinfo is None:
        return moment
    return datetime.combine(date(1970, 1, 1), moment).astimezone(UTC).time()
