"""Claims about what models are built of, hold and take: from their configs."""

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from pydantic import Field

from lichen.arch.account import account, active_parameters, total_parameters
from lichen.arch.cache import cache_bytes
from lichen.arch.spec import ModelSpec
from lichen.atlas.catalogue.model import Catalogue
from lichen.atlas.claims.verdict import Answer, Checkable, Quantity
from lichen.atlas.market import words
from lichen.errors import LichenError
from lichen.facts.record import known
from lichen.facts.yaml_file import Location
from lichen.machine import devices
from lichen.machine.fits import fits


class Parameters(Quantity):
    """Parameters counted from the config, and as published: all, or those `active` per token."""

    kind: Literal["parameters"]
    model: str
    active: bool = False

    def answers(self, catalogue: Catalogue, at: datetime) -> Iterator[Answer]:
        model = catalogue.get(self.model)
        if spec := model.spec:
            count = (active_parameters if self.active else total_parameters)(spec)
            yield Answer(self.holds(count), f"{words.count(count)} parameters counted from its config")
        published = known(model.active_parameters if self.active else model.total_parameters)
        if published and published.value is not None:
            text = (
                f"{words.count(published.value)} parameters published ({published.source}, {published.date})"
            )
            yield Answer(self.holds(published.value), text)


class Context(Quantity):
    """The longest context in tokens, by the config and by what is published.

    What the weights allow; an API's own limit decides only where nobody says that.
    """

    kind: Literal["context"]
    model: str

    def answers(self, catalogue: Catalogue, at: datetime) -> Iterator[Answer]:
        model = catalogue.get(self.model)
        weights, api = known(model.context), known(model.api_context)
        told = weights is not None and weights.value is not None
        if weights and weights.value is not None:
            text = f"{weights.value:,} tokens ({weights.source}, {weights.date})"
            yield Answer(self.holds(weights.value), text)
        if api and api.value is not None:
            text = f"{api.value:,} tokens at its lab's API ({api.source}, {api.date})"
            yield Answer(None if told else self.holds(api.value), text)


class SameParts(Checkable):
    """That `model` is built of the parts of `reference`: attention, feed-forward, routing and residual.

    One answer per kind of part; and, as a remark, the sizes in which parts of one kind differ.
    """

    kind: Literal["same_parts"]
    model: str
    reference: str

    def answers(self, catalogue: Catalogue, at: datetime) -> Iterator[Answer]:
        ours, theirs = catalogue.get(self.model).spec, catalogue.get(self.reference).spec
        if ours is None or theirs is None:
            return
        other, their_sizes = _parts(theirs), _sizes(theirs)
        for part, kind in _parts(ours).items():
            text = f"{part}: {kind}" + ("" if kind == other[part] else f", against {other[part]}")
            yield Answer(kind == other[part], text)
        sizes = [
            f"{name} {value} (of {self.reference} {their_sizes[name]})"
            for name, value in _sizes(ours).items()
            if name in their_sizes and value != their_sizes[name]
        ]
        if sizes:
            yield Answer(None, f"other sizes: {', '.join(sizes)}")


def _parts(spec: ModelSpec) -> dict[str, str]:
    """What a model is built of, in words."""
    routers = {
        f"{router.scoring_func} scores" + (" with a selection bias" if router.selection_bias else "")
        for layer in spec.layers
        if (router := layer.feed_forward.router)
    }
    kinds_of = {
        "attention": {type(layer.attention).__name__ for layer in spec.layers},
        "feed-forward": {type(layer.feed_forward).__name__ for layer in spec.layers},
        "routing": routers,
        "residual": {type(spec.residual).__name__ if spec.residual else "plain"},
    }
    return {part: " and ".join(sorted(found)) or "none" for part, found in kinds_of.items()}


def _sizes(spec: ModelSpec) -> dict[str, object]:
    """The numbers of the last layer's parts, by their names in a config."""
    last = spec.layers[-1]
    parts = [last.attention, last.feed_forward, last.feed_forward.router]
    return {
        name: value
        for part in parts
        if part is not None
        for name, value in vars(part).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


class CacheRatio(Quantity):
    """Cache bytes at `context` tokens over those of `reference`, each as its engines store it."""

    kind: Literal["cache_ratio"]
    model: str
    reference: str
    context: int = Field(gt=0)

    def problems(self, catalogue: Catalogue) -> Iterator[tuple[Location, str]]:
        yield from super().problems(catalogue)
        for name in (self.model, self.reference):
            spec = catalogue.get(name).spec
            if spec and self.context > (longest := spec.max_position_embeddings):
                yield ["context"], f"{name} reads at most {longest:,} tokens, not {self.context:,}"

    def answers(self, catalogue: Catalogue, at: datetime) -> Iterator[Answer]:
        spec, other = catalogue.get(self.model).spec, catalogue.get(self.reference).spec
        if spec and other:
            ours, theirs = (cache_bytes(each, self.context).ideal for each in (spec, other))
            text = f"{words.gib(ours)} at {self.context:,} tokens, against {words.gib(theirs)}"
            share = f"of {self.reference}: {ours / theirs:.3f} of it"
            yield Answer(self.holds(ours / theirs), f"{text} {share}")


class OptimizerBytes(Quantity):
    """Bytes of Muon's state, AdamW for the rest, over those of AdamW's for the whole model."""

    kind: Literal["optimizer_bytes"]
    model: str

    def answers(self, catalogue: Catalogue, at: datetime) -> Iterator[Answer]:
        if spec := catalogue.get(self.model).spec:
            state = account(spec).bytes_of_model
            share = state.muon_state / state.adamw_state
            text = f"{words.size(state.muon_state)} of Muon's state, AdamW for the rest, against"
            yield Answer(
                self.holds(share), f"{text} {words.size(state.adamw_state)} of AdamW's: {share:.3f} of it"
            )


class Fits(Checkable):
    """That `model` fits on `hardware` with one sequence of `context` tokens, its weights as `quant`."""

    kind: Literal["fits"]
    model: str
    hardware: str
    quant: str | None = None
    context: int = Field(gt=0)

    def problems(self, catalogue: Catalogue) -> Iterator[tuple[Location, str]]:
        yield from super().problems(catalogue)
        field = ["hardware"]
        try:
            machine = devices.parse(self.hardware)
            field = []
            if spec := catalogue.get(self.model).spec:
                fits(spec, machine, self.quant, self.context)
        except LichenError as error:
            yield field, str(error)

    def answers(self, catalogue: Catalogue, at: datetime) -> Iterator[Answer]:
        if spec := catalogue.get(self.model).spec:
            found = fits(spec, devices.parse(self.hardware), self.quant, self.context)
            yield Answer(found.fits, f"{words.needs(found)} of {self.hardware}, at {self.context:,} tokens")
