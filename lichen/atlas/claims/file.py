"""Reading a file of claims, and refusing what no verdict could be true of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lichen.arch.families import load_spec
from lichen.atlas.advice.advise import shipped_rules
from lichen.atlas.catalogue.model import Catalogue
from lichen.atlas.claims import kinds
from lichen.atlas.claims.kinds import Check, ClaimSet, named
from lichen.atlas.market.prices import providers
from lichen.errors import LichenError, did_you_mean
from lichen.facts.yaml_file import Location, field_error, parse, read_yaml
from lichen.machine import devices
from lichen.machine.fits import fits

SHIPPED = Path(__file__).parent / "article.yaml"


def load(catalogue: Catalogue, path: Path | None = None) -> ClaimSet:
    """The claims in `path`; without one, those of the article that ships with Lichen.

    Raises LichenError naming file, line and field, also for what `catalogue` (today's) does not know.
    """
    path = path or SHIPPED
    found = parse(ClaimSet, read_yaml(path), path)
    seen: set[str] = set()
    for index, claim in enumerate(found.claims):
        if claim.id in seen:
            raise field_error(path, ["claims", index, "id"], f"{claim.id!r} is there twice")
        seen.add(claim.id)
        for field, problem in _problems(claim.check, catalogue):
            raise field_error(path, ["claims", index, "check", *field], problem)
    return found


def _problems(check: Check, catalogue: Catalogue) -> Iterator[tuple[Location, str]]:
    """What in a check cannot be meant, with its field, the models first."""
    for field, name in named(check):
        if name not in catalogue.models:
            hint = did_you_mean(name, catalogue.models, "`lichen atlas list` names them all")
            yield field, f"no model {name!r} in the catalogue; {hint}"
    match check:
        case kinds.PriceRatio():
            sellers = providers(catalogue.get(check.model))
            for index, name in enumerate(check.providers):
                if name not in sellers:
                    hint = did_you_mean(name, sellers, f"known are {', '.join(sellers) or 'none'}")
                    yield ["providers", index], f"no provider {name!r} of {check.model}; {hint}"
        case kinds.CacheRatio():
            for name in (check.model, check.reference):
                spec_name = catalogue.get(name).spec_name
                longest = spec_name and load_spec(spec_name).max_position_embeddings
                if longest and check.context > longest:
                    yield ["context"], f"{name} reads at most {longest:,} tokens, not {check.context:,}"
        case kinds.Fits():
            spec_name = catalogue.get(check.model).spec_name
            try:
                machine = devices.parse(check.hardware)
            except LichenError as error:
                yield ["hardware"], str(error)
                return
            try:
                if spec_name:
                    fits(load_spec(spec_name), machine, check.quant, check.context)
            except LichenError as error:
                yield [], str(error)
        case kinds.Recommended():
            scenarios = shipped_rules().scenarios
            if check.scenario not in scenarios:
                yield (
                    ["scenario"],
                    f"no scenario {check.scenario!r} in the rules; there are {', '.join(scenarios)}",
                )
