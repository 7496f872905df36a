"""Values as a person reads them: 1.573 T rather than 1573000000000, `unknown` rather than nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lichen.atlas.catalogue.model import Obligation, Score
from lichen.atlas.market.prices import Price
from lichen.facts.record import Fact

if TYPE_CHECKING:
    from lichen.atlas.market.workloads import Workload
    from lichen.machine.fits import Fit

UNKNOWN = "unknown"
LABELS = {
    "api_context": "context of the API",
    "training_gpu_hours": "training GPU hours",
    "license_url": "license at",
}
COUNTS = ("total_parameters", "active_parameters", "tokens_trained", "training_gpu_hours")


def label(field: str) -> str:
    """A field of the catalogue in words."""
    return LABELS.get(field, field.replace("_", " "))


def value(field: str, content: Any) -> str:
    """The content of a fact of `field`."""
    if content is None:
        return UNKNOWN
    if isinstance(content, bool):
        return "yes" if content else "no"
    if isinstance(content, int):
        return count(content) if field in COUNTS else f"{content:,}"
    if isinstance(content, tuple):
        items = [obligation(item) if isinstance(item, Obligation) else str(item) for item in content]
        return ("; " if field == "obligations" else ", ").join(items)
    return str(content)


def count(number: float) -> str:
    """Four digits and a unit: 37.6 B, 1.026 T."""
    return _scaled(number, ("T", "B", "M"), "")


def size(number: float) -> str:
    """Bytes, in powers of 1000, with four digits: 594.2 GB, 1.026 TB."""
    return _scaled(number, ("TB", "GB", "MB"), " B")


def _scaled(number: float, units: tuple[str, str, str], plain: str) -> str:
    for unit, power in zip(units, (1e12, 1e9, 1e6), strict=True):
        if number >= power:
            return f"{float(f'{number / power:.4g}'):g} {unit}"
    return f"{number:,.0f}{plain}"


def needs(fit: Fit) -> str:
    """What a model takes on a machine, and what is there."""
    return (
        f"{size(fit.weight_bytes)} of weights ({fit.quant}) and {size(fit.cache_bytes)} of cache "
        f"in {size(fit.memory)}"
    )


def gib(number: int) -> str:
    """Bytes as GiB, with as many decimals as make sense."""
    return f"{number / 2**30:,.2f} GiB"


def usd(amount: float) -> str:
    """Dollars: cents where they matter, more digits for fractions of a cent."""
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.4g}"


def share(ratio: float | None) -> str:
    """A price ratio: 1/6.6 for a model at 0.15 of the reference's price."""
    if ratio is None:
        return UNKNOWN
    return f"1/{1 / ratio:.3g}" if 0 < ratio < 1 else f"{ratio:.3g}x"


def price_condition(price: Price) -> str:
    """When a price holds beside the ordinary one."""
    above = f"prompts above {price.above:,}" if price.above else ""
    return ", ".join(part for part in (price.window, above) if part)


def rates(price: Price) -> str:
    """One price: `0.95 / 4 / 0.16`, and when it holds."""
    cached = "no cache price" if price.cache_read is None else f"{price.cache_read:g}"
    condition = price_condition(price)
    return f"{price.input:g} / {price.output:g} / {cached}" + (f" ({condition})" if condition else "")


def workload(item: Workload) -> str:
    """The shape of the requests."""
    cached = f", {item.cached_share:.0%} of it from the cache" if item.cached_share else ""
    hours = "" if item.hours is None else f" spread over the UTC hours {', '.join(map(str, item.hours))}"
    return (
        f"{item.input_tokens:,} tokens in{cached}, {item.output_tokens:,} out; "
        f"{item.requests_per_day:,g} requests a day{hours}"
    )


def obligation(item: Obligation) -> str:
    """What a license asks, and of whom."""
    limits = [
        f"more than {count(limit)} {unit}"
        for limit, unit in (
            (item.monthly_users_above, "users a month"),
            (item.monthly_revenue_usd_above, "USD of revenue a month"),
            (item.yearly_revenue_usd_above, "USD of revenue a year"),
        )
        if limit is not None
    ]
    return f"{item.must} (with {' or '.join(limits)})" if limits else item.must


def score(item: Score, lab: str) -> str:
    """A result with the mode it was got in; who reported it, if neither lab nor the benchmark's own maker."""
    obvious = item.reported_by == lab or item.reported_by in item.benchmark
    how = [
        item.build and f"build {item.build}",
        item.effort,
        item.harness,
        None if obvious else f"by {item.reported_by}",
    ]
    conditions = ", ".join(part for part in how if part)
    unit = "%" if item.unit == "%" else ""
    return f"{item.value:g}{unit}" + (f" ({conditions})" if conditions else "")


def sources(fact: Fact[Any] | Score) -> str:
    """Where a fact is from and when it was said."""
    note = getattr(fact, "note", None)
    return f"{fact.source}, {fact.date}" + (f": {note}" if note else "")
