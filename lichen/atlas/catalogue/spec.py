"""From what a person calls a model to its spec."""

from datetime import date

from lichen.arch.families import load_spec
from lichen.arch.published import named_models
from lichen.arch.spec import ModelSpec
from lichen.errors import LichenError


def spec_of(name: str, as_of: date | None = None) -> ModelSpec:
    """What a person means by `name`: a model of the catalogue, or whatever else `load_spec` knows by it.

    Raises LichenError for a model that came out after `as_of` (today), or whose config nobody published, and
    as `load_spec`.
    """
    if as_of is None and name in named_models():
        return load_spec(name)  # the catalogue would say the same, and need not be read
    from lichen.atlas.catalogue.model import load  # pydantic and YAML, which a shipped model needs none of
    from lichen.facts.record import known_value

    found = load(as_of=as_of)
    if name not in found:
        return load_spec(name, found.models)
    model = found.get(name)
    if (spec := model.spec) is not None:
        return spec
    closed = known_value(model.open_weights) is False
    why = "it is closed, its architecture not published" if closed else "no config of it is named"
    raise LichenError(f"what {name} holds and takes cannot be computed: {why}")
