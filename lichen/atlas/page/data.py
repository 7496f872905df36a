"""What the page shows, as JSON: facts as they stand, and tables of what only Python can compute.

The page itself computes what its controls change: workload costs from the price rows, and what fits from
bytes of weights and cache.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import date, datetime, time
from typing import Any

from lichen.arch.cache import cache_bytes, native_layout
from lichen.arch.families import load_spec
from lichen.arch.spec import ModelSpec
from lichen.arch.weights import weights
from lichen.atlas.advice import advise
from lichen.atlas.advice.constraints import Constraints
from lichen.atlas.catalogue.model import Catalogue, Model, load
from lichen.atlas.claims import check as claims
from lichen.atlas.lineage import graph as lineage
from lichen.atlas.lineage import risk
from lichen.atlas.lineage.formats import to_json
from lichen.atlas.market import compare, words
from lichen.atlas.market.prices import Price, default_provider, history, moment, table
from lichen.atlas.market.workloads import REFERENCE, STANDARD
from lichen.errors import LichenError
from lichen.facts.record import known
from lichen.machine import devices, fits

CONTEXTS = tuple(2**power for power in range(10, 21))  # tokens: 1K to 1M
QUANTS = (None, "bf16", "fp8", "q8", "q6", "q4")  # None: as released


def data(as_of: date) -> dict[str, Any]:
    """Everything the page knows on the day `as_of`."""
    catalogue = load(as_of=as_of)
    at = moment(as_of, None)
    name, newest = table()
    graph = lineage.load(as_of)
    return {
        "as_of": str(as_of),
        "at": at.isoformat(),
        "price_table": {"name": name, "newest": str(newest)},
        "reference": REFERENCE,
        "workloads": {name: asdict(workload) for name, workload in STANDARD.items()},
        "contexts": CONTEXTS,
        "models": [_model(model, as_of) for model in catalogue.models.values()],
        "devices": _devices(),
        "table": [asdict(row) for row in compare.compare(list(catalogue.models.values()), catalogue, at)],
        "advice": _advice(catalogue, at),
        "rules": advise.SHIPPED_RULES.read_text(encoding="utf-8"),
        "claims": _claims(catalogue),
        "lineage": to_json(graph),
        "risk": _risk(risk.measure(graph, catalogue, as_of)),
    }


def _model(model: Model, as_of: date) -> dict[str, Any]:
    def value(field: str) -> Any:
        fact = known(getattr(model, field), as_of)
        return None if fact is None else fact.model_dump(mode="json")["value"]

    return {
        "name": model.name,
        "title": model.title,
        "lab": model.lab,
        "open": value("open_weights"),
        "release": value("release"),
        "scores": [score.model_dump(mode="json") | {"test": score.test} for score in model.scores],
        "prices": [_price(price) for price in history(model) if price.since is None or price.since <= as_of],
        "provider": default_provider(model, as_of),
        "memory": _memory(load_spec(model.spec_name)) if model.spec_name else None,
    }


def _price(price: Price) -> dict[str, Any]:
    """`hours`: spans in hours of the UTC day; one may cross midnight."""
    return {
        "provider": price.provider,
        "input": price.input,
        "output": price.output,
        "cache_read": price.cache_read,
        "since": price.since and str(price.since),
        "until": price.until and str(price.until),
        "hours": price.hours and [[_hour(start), _hour(end)] for start, end in price.hours],
        "weekdays": price.weekdays_only,
        "above": price.above,
        "source": f"{price.source}, {price.snapshot}",
    }


def _hour(moment: time) -> float:
    return moment.hour + moment.minute / 60


def _memory(spec: ModelSpec) -> dict[str, Any]:
    """Bytes of the cache of one sequence at each of CONTEXTS that the model has, and of its weights."""
    contexts = [context for context in CONTEXTS if context <= spec.max_position_embeddings]
    cached = [cache_bytes(spec, context) for context in contexts]
    return {
        "context": spec.max_position_embeddings,
        "layout": native_layout(spec),
        "ideal": [each.ideal for each in cached],
        "reserved": [each.reserved for each in cached],
        "weights": [_weights(spec, quant) for quant in QUANTS],
    }


def _weights(spec: ModelSpec, quant: str | None) -> dict[str, Any] | None:
    try:
        stored = fits.storage(spec, quant)
    except LichenError:  # what the release is stored in cannot be counted
        return None
    return {"quant": stored, "bytes": fits.bytes_of(weights(spec), stored)}


def _devices() -> list[dict[str, Any]]:
    found = []
    for name, device in devices.load().items():
        machine = devices.parse(name)
        found.append(
            {
                "name": name,
                "title": device.title,
                "kind": device.kind,
                "memory": machine.memory,
                "share": machine.usable.share,
                "source": f"{device.source}, {device.date}",
            }
        )
    return found


def _advice(catalogue: Catalogue, at: datetime) -> list[dict[str, Any]]:
    """The answer of every scenario with nothing asked beyond its own rules."""
    rules = advise.shipped_rules()
    found = []
    for name, scenario in rules.scenarios.items():
        about = {
            "name": name,
            "title": scenario.title,
            "assume": scenario.assume.model_dump(exclude_unset=True, mode="json"),
            "require": scenario.require,
            "criteria": [
                {"label": item.label, "why": item.why, "within": str(item.within)}
                for item in scenario.criteria
            ],
        }
        try:
            advice = advise.advise(name, Constraints(), catalogue, at, rules)
        except LichenError as nobody:  # on an early day
            found.append(about | {"nobody": str(nobody), "ranking": [], "excluded": [], "alternatives": []})
            continue
        found.append(
            about
            | {
                "ranking": [asdict(place) for place in advice.ranking],
                "excluded": [asdict(each) for each in advice.excluded],
                "alternatives": advice.alternatives,
            }
        )
    return found


def _claims(catalogue: Catalogue) -> dict[str, Any]:
    """The shipped article's claims, judged on its own day and on the catalogue's."""
    article = claims.load(load())
    verdicts = []
    for day in sorted({min(article.date, catalogue.as_of), catalogue.as_of}):
        then = catalogue if day == catalogue.as_of else load(as_of=day)
        checked = claims.check(article, then, moment(day, None))
        verdicts.append(
            {
                "day": str(day),
                "checked": [
                    {"verdict": each.verdict, "how": each.how, "evidence": each.evidence} for each in checked
                ],
            }
        )
    return {
        "title": article.title,
        "source": article.source,
        "date": str(article.date),
        "claims": [
            {"id": claim.id, "statement": claim.statement, "note": claim.note} for claim in article.claims
        ],
        "verdicts": verdicts,
    }


def _risk(found: risk.Risk) -> dict[str, Any]:
    obligations = {
        name: [words.obligation(each) for each in asked] for name, asked in found.obligations.items()
    }
    similarity = [asdict(each) | {"day": str(each.day)} for each in found.similarity]
    return asdict(found) | {"as_of": str(found.as_of), "obligations": obligations, "similarity": similarity}
