"""What a pattern of use costs, and at whom: so many tokens in and out, so much of it cached, at such hours.

How much cheaper one model is than another has no single answer: it depends on the share of output, on cache
discounts and, for some providers, on the hour. Hence three standard workloads.
"""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time

from lichen.atlas.catalogue.model import Catalogue, Model
from lichen.atlas.market import words
from lichen.atlas.market.prices import Price, default_provider, history, in_force, prices_on, providers
from lichen.errors import LichenError

MOST_REQUESTS = 1e12  # a day
REFERENCE = "gpt-5.5"  # what costs are measured against unless another model is named


@dataclass(frozen=True)
class Workload:
    """Requests of one shape. `cached_share` of the prompt's tokens are read from the provider's cache.

    Raises LichenError for negative numbers, and for more than MOST_REQUESTS.
    `hours`: the UTC hours of the day (0 to 23) over which the requests spread evenly; None: all of them at
    the moment that is asked about.
    """

    input_tokens: int
    output_tokens: int
    cached_share: float = 0.0
    requests_per_day: float = 1.0
    hours: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for what, value in (("input", self.input_tokens), ("output", self.output_tokens)):
            if value < 0:
                raise LichenError(f"{what} is {value:,} tokens; it cannot be negative")
        if not 0 <= self.requests_per_day <= MOST_REQUESTS:
            raise LichenError(f"{self.requests_per_day:g} requests a day: it takes 0 to {MOST_REQUESTS:g}")


STANDARD = {
    "blend": Workload(input_tokens=3000, output_tokens=1000),
    "output-heavy": Workload(input_tokens=1000, output_tokens=3000),
    "agentic": Workload(input_tokens=20000, output_tokens=1000, cached_share=0.8),
}


def chosen(
    name: str | None,
    input_tokens: int | None,
    output_tokens: int | None,
    cached_share: float | None,
    hours: str | None,
    requests_per_day: float = 1.0,
) -> dict[str, Workload]:
    """The workloads that a person asks for: one of their own, one standard one by `name`, or all of those.

    `hours` is a profile like `8-18,20` (UTC; 8-18 is ten hours). Raises LichenError for what cannot be read.
    """
    spread = None if hours is None else parse_hours(hours)
    if input_tokens is None and output_tokens is None and cached_share is None:
        if name is not None and name not in STANDARD:
            raise LichenError(f"no workload {name!r}; there are {', '.join(STANDARD)}")
        found = STANDARD if name is None else {name: STANDARD[name]}
    elif name is not None:
        raise LichenError("--workload names a standard workload; --input and the others describe your own")
    elif not (input_tokens or output_tokens):
        raise LichenError("a workload needs tokens: give --input or --output above 0")
    else:
        found = {"yours": Workload(input_tokens or 0, output_tokens or 0, cached_share or 0.0)}
    return {
        key: replace(item, requests_per_day=requests_per_day, hours=spread) for key, item in found.items()
    }


def parse_hours(text: str) -> tuple[int, ...]:
    """The hours of a profile like `22-2,8`: 22, 23, 0, 1 and 8. Raises LichenError for any other text."""
    hours: set[int] = set()
    for part in text.split(","):
        span = re.fullmatch(r"([0-9]{1,2})(?:-([0-9]{1,2}))?", part.strip())
        if span is None:
            raise LichenError(f"--hours {text!r} cannot be read: write UTC hours like 8-18,20")
        first = int(span[1])
        last = int(span[2]) if span[2] else first + 1
        if first > 23 or last > 24 or first == last:
            raise LichenError(f"--hours {text!r}: hours go from 0 to 23, and a span has a length")
        hours.update(hour % 24 for hour in range(first, last if last > first else last + 24))
    return tuple(sorted(hours))


@dataclass(frozen=True)
class WorkloadCost:
    """USD for one request and for a day, and the prices that went in."""

    per_request: float
    per_day: float
    provider: str
    prices: tuple[Price, ...]


def cost(model: Model, workload: Workload, provider: str | None, at: datetime) -> WorkloadCost | None:
    """What `workload` costs at `at` (with `hours`: on that UTC day); None where a price is unknown."""
    day = at.astimezone(UTC).date()
    provider = provider or default_provider(model, day)
    offered = [price for price in history(model) if price.provider == provider and price.holds_on(day)]
    moments = [at]
    if workload.hours is not None and any(price.hours for price in offered):
        moments = [datetime.combine(day, time(hour), UTC) for hour in workload.hours]
    prices = [in_force(offered, moment, workload.input_tokens) for moment in moments]
    found = [price for price in prices if price]
    if provider is None or len(found) < len(moments):
        return None
    per_request = sum(request_cost(price, workload) for price in found) / len(found)
    return WorkloadCost(
        per_request, per_request * workload.requests_per_day, provider, tuple(dict.fromkeys(found))
    )


def cheapest(model: Model, workload: Workload, at: datetime) -> WorkloadCost | None:
    """The lowest `cost` among all its providers; None where none lists a price."""
    costs = [found for provider in providers(model) if (found := cost(model, workload, provider, at))]
    return min(costs, key=lambda found: found.per_request, default=None)


def over_the_day(workload: str, requests_per_day: float = 1.0) -> Workload:
    """A standard workload spread over all hours, because some providers have peak hours."""
    return replace(STANDARD[workload], requests_per_day=requests_per_day, hours=tuple(range(24)))


def request_cost(price: Price, workload: Workload) -> float:
    """USD for one request at `price`."""
    cached = workload.input_tokens * workload.cached_share
    fresh = workload.input_tokens - cached
    return (fresh * price.input + cached * price.cached + workload.output_tokens * price.output) / 1e6


def reference_model(catalogue: Catalogue, name: str | None) -> Model | None:
    """The model called `name`, or without one the usual reference if it was out. Raises as `get`."""
    return catalogue.models.get(REFERENCE) if name is None else catalogue.get(name)


def ratio(
    model: Model, reference: Model, workload: Workload, at: datetime, provider: str | None = None
) -> float | None:
    """The cost of `model` over that of `reference` for the same workload; None where either is unknown."""
    ours, theirs = cost(model, workload, provider, at), cost(reference, workload, None, at)
    if ours is None or theirs is None or theirs.per_request == 0:
        return None
    return ours.per_request / theirs.per_request


@dataclass(frozen=True)
class Offer:
    """One seller of one model; None where nobody is known to sell it. `prices`: all those of the day.

    `costs` and `ratios` are per workload, by its name; a value of None is unknown.
    """

    model: Model
    provider: str | None
    prices: list[Price]
    costs: dict[str, WorkloadCost | None]
    ratios: dict[str, float | None]


def sellers_of(model: Model, at: datetime) -> str:
    """Who sells the model at `at` (aware), and at what, in words."""
    day = at.astimezone(UTC).date()
    found = {name: prices_on(model, name, day) for name in providers(model)}
    told = [f"{name} at {'; '.join(map(words.rates, prices))}" for name, prices in found.items() if prices]
    if not told:
        return f"nobody is known to sell it on {day}"
    return f"on {day} it is sold, in USD per million tokens in / out / cached, by {', '.join(told)}"


def offers(
    model: Model, provider: str | None, workloads: dict[str, Workload], reference: Model | None, at: datetime
) -> list[Offer]:
    """The offers of `provider`, of the default one (None), or of `all` that sell the model at `at` (aware).

    Raises LichenError, with those that do sell it, for a provider that the model's file does not have.
    """
    day, sellers = at.astimezone(UTC).date(), [provider]
    if provider == "all":
        sellers = [name for name in providers(model) if prices_on(model, name, day)] or [None]
    elif provider is None:
        sellers = [default_provider(model, day)]
    elif provider not in providers(model):
        raise LichenError(f"no provider {provider!r} of {model.name}; {sellers_of(model, at)}")
    return [
        Offer(
            model,
            seller,
            prices_on(model, seller, day) if seller else [],
            {name: cost(model, item, seller, at) for name, item in workloads.items()},
            {
                name: ratio(model, reference, item, at, seller) if reference else None
                for name, item in workloads.items()
            },
        )
        for seller in sellers
    ]
