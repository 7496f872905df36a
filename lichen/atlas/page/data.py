"""What the page shows, as JSON: facts as they stand, and tables of what only Python can compute.

The page itself computes what its controls change: a workload's cost from the rates that hold, and what fits
from bytes of weights and cache.
"""

from dataclasses import asdict, is_dataclass
from datetime import date, datetime
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
from lichen.atlas.market.prices import default_provider, moment, table
from lichen.atlas.market.workloads import REFERENCE, STANDARD
from lichen.atlas.page.prices import offers
from lichen.errors import LichenError
from lichen.facts.record import known, today
from lichen.machine import devices, fits

CONTEXTS = tuple(2**power for power in range(10, 21))  # tokens: 1K to 1M
QUANTS = (None, "bf16", "fp8", "q8", "q6", "q4")  # None: as released


def data(as_of: date) -> dict[str, Any]:
    """Everything the page knows on the day `as_of`, with records and dates that `plain` takes apart."""
    catalogue = load(as_of=as_of)
    at = moment(as_of, None)
    name, newest = table()
    graph = lineage.load(catalogue)
    risks = risk.measure(graph, catalogue, as_of)
    obligations = {of: [words.obligation(each) for each in asked] for of, asked in risks.obligations.items()}
    return {
        "as_of": as_of,
        "at": at.isoformat(),
        "price_table": {"name": name, "newest": newest},
        "reference": REFERENCE,
        "workloads": STANDARD,
        "contexts": CONTEXTS,
        "models": [_model(model, as_of) for model in catalogue.models.values()],
        "devices": [_device(*each) for each in devices.load().items()],
        "table": compare.compare(list(catalogue.models.values()), catalogue, at),
        "advice": _advice(catalogue, at),
        "rules": advise.SHIPPED_RULES.read_text(encoding="utf-8"),
        "claims": _claims(catalogue),
        "lineage": to_json(graph),
        "risk": asdict(risks) | {"obligations": obligations},
    }


def plain(value: Any) -> Any:
    """What JSON has no form for: a record by its fields, a date as text."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _model(model: Model, as_of: date) -> dict[str, Any]:
    def value(field: str) -> Any:
        fact = known(getattr(model, field), as_of)
        return None if fact is None else fact.model_dump(mode="json")["value"]

    return {
        "name": model.name,
        "title": model.title,
        "lab": model.lab,
        "open": value("open_weights"),
        "scores": [score.model_dump(mode="json") | {"test": score.test} for score in model.scores],
        "offers": offers(model, as_of),
        "provider": default_provider(model, as_of),
        "memory": _memory(load_spec(model.spec_name)) if model.spec_name else None,
    }


def _memory(spec: ModelSpec) -> dict[str, Any]:
    """Bytes of the cache of one sequence at each of CONTEXTS that the model has, and of its weights."""
    contexts = [context for context in CONTEXTS if context <= spec.max_position_embeddings]
    cached = [cache_bytes(spec, context) for context in contexts]
    return {
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


def _device(name: str, device: devices.Device) -> dict[str, Any]:
    machine = devices.parse(name)
    return {
        "name": name,
        "title": device.title,
        "memory": machine.memory,
        "share": machine.usable.share,
        "source": f"{device.source}, {device.date}",
    }


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
            answer = {"nobody": str(nobody), "ranking": [], "excluded": [], "alternatives": []}
        else:
            answer = {field: getattr(advice, field) for field in ("ranking", "excluded", "alternatives")}
        found.append(about | answer)
    return found


def _claims(catalogue: Catalogue) -> dict[str, Any]:
    """The shipped article's claims, judged on its own day and on the catalogue's."""
    article = claims.load(catalogue.on(today()))
    days = sorted({min(article.date, catalogue.as_of), catalogue.as_of})
    then = map(catalogue.on, days)
    checked = [claims.check(article, known, moment(known.as_of, None)) for known in then]
    return {
        "title": article.title,
        "source": article.source,
        "date": article.date,
        "claims": [
            {
                "statement": claim.statement,
                "note": claim.note,
                "verdicts": [
                    {"day": day, "verdict": each.verdict, "how": each.how, "evidence": each.evidence}
                    for day, each in zip(days, judged, strict=True)
                ],
            }
            for claim, *judged in zip(article.claims, *checked, strict=True)
        ],
    }
