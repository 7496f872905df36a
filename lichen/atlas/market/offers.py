"""Who sells a model on a day, at what prices, and what workloads cost there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from lichen.atlas.catalogue.model import Model
from lichen.atlas.market.prices import Price, default_provider, prices_on, providers
from lichen.atlas.market.workloads import Workload, WorkloadCost, cost, ratio
from lichen.errors import LichenError


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


def offers(
    model: Model, provider: str | None, workloads: dict[str, Workload], reference: Model | None, at: datetime
) -> list[Offer]:
    """The offers of `provider`, of the default one (None), or of `all` that sell the model at `at` (aware).

    Raises LichenError for a provider that the model's file does not have.
    """
    return [
        Offer(
            model,
            seller,
            prices_on(model, seller, at.astimezone(UTC).date()) if seller else [],
            {name: cost(model, item, seller, at) if seller else None for name, item in workloads.items()},
            {
                name: ratio(model, reference, item, at, seller) if seller and reference else None
                for name, item in workloads.items()
            },
        )
        for seller in _sellers(model, provider, at)
    ]


def _sellers(model: Model, provider: str | None, at: datetime) -> list[str] | list[None]:
    day = at.astimezone(UTC).date()
    if provider == "all":
        return [name for name in providers(model) if prices_on(model, name, day)] or [None]
    if provider is None:
        seller = default_provider(model, day)
        return [seller] if seller else [None]
    if provider not in providers(model):
        offered = ", ".join(providers(model)) or "none"
        raise LichenError(f"no provider {provider!r} of {model.name}; known: {offered} (or `all`)")
    return [provider]
