"""Claims, and the verdicts on them on the day that is asked about.

Several values may answer one claim: sources that disagree, three workloads, peak hours. All of them meet it:
supported; some do: partly supported; none does: contradicted; there is none: it cannot be checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Literal

from lichen.arch.account import account, active_parameters, total_parameters
from lichen.arch.cache import cache_bytes
from lichen.arch.families import load_spec
from lichen.arch.spec import ModelSpec
from lichen.atlas.advice.advise import advise
from lichen.atlas.advice.constraints import Constraints
from lichen.atlas.catalogue.model import Catalogue, Model
from lichen.atlas.catalogue.scores import comparable
from lichen.atlas.claims import kinds
from lichen.atlas.claims.kinds import Check, Claim, ClaimSet, Verdict, named
from lichen.atlas.market import words
from lichen.atlas.market.prices import default_provider, prices_on
from lichen.atlas.market.workloads import STANDARD, ratio
from lichen.errors import LichenError
from lichen.facts.record import known
from lichen.machine.devices import parse as parse_machine
from lichen.machine.fits import fits

How = Literal["computed", "measured", "cited", "nothing"]
UNCHECKED: Verdict = "cannot be checked"


@dataclass(frozen=True)
class Checked:
    """A claim with its verdict, how that came about, and the evidence, a line each."""

    claim: Claim
    verdict: Verdict
    how: How
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """One of the values that answer a claim: whether it is as claimed (None: it says nothing either way), and
    what it is and where from."""

    holds: bool | None
    text: str


def check(claim_set: ClaimSet, catalogue: Catalogue, at: datetime) -> list[Checked]:
    """Every claim of the set in its order, by what is known at `at` (aware), of whose day `catalogue` is."""
    return [_checked(claim, catalogue, at) for claim in claim_set.claims]


def _checked(claim: Claim, catalogue: Catalogue, at: datetime) -> Checked:
    match claim.check:
        case kinds.Reported() as reported:
            told = [finding for finding in reported.findings if finding.date <= at.date()]
            if not told:
                return Checked(claim, UNCHECKED, "cited", (f"nothing was known on {at.date()}",))
            last = max(told, key=lambda finding: finding.date)
            how: How = "measured" if last.measured else "cited"
            evidence = tuple(f"{finding.note} ({finding.source}, {finding.date})" for finding in told)
            return Checked(claim, last.verdict, how, evidence)
        case kinds.Nothing() as nothing:
            looked = tuple(f"looked in: {place}" for place in nothing.looked_in)
            return Checked(claim, UNCHECKED, "nothing", (nothing.missing, *looked))
    later = [name for _, name in named(claim.check) if name not in catalogue.models]
    if later:
        reasons = tuple(f"{name} came out on {catalogue.later[name]}" for name in later)
        return Checked(claim, UNCHECKED, "computed", reasons)
    answers = _answers(claim.check, catalogue, at)
    held = [answer.holds for answer in answers if answer.holds is not None]
    verdict: Verdict = "supported" if all(held) else "partly supported" if any(held) else "contradicted"
    evidence = tuple(answer.text for answer in answers) or ("nothing is known about it",)
    return Checked(claim, verdict if held else UNCHECKED, "computed", evidence)


def _answers(check: Check, catalogue: Catalogue, at: datetime) -> list[Answer]:
    match check:
        case kinds.Parameters():
            return _parameters(check, catalogue)
        case kinds.Context():
            return _context(check, catalogue)
        case kinds.SameParts():
            return _same_parts(check, catalogue)
        case kinds.CacheRatio():
            return _cache_ratio(check, catalogue)
        case kinds.OptimizerBytes():
            return _optimizer_bytes(check, catalogue)
        case kinds.PriceRatio():
            return _price_ratio(check, catalogue, at)
        case kinds.TrainingCost():
            return _training_cost(check, catalogue)
        case kinds.ScoreOf():
            return _score(check, catalogue)
        case kinds.ScoreGap():
            return _score_gap(check, catalogue)
        case kinds.Reaches():
            return _reaches(check, catalogue)
        case kinds.Leads():
            return _leads(check, catalogue)
        case kinds.Released():
            return _released(check, catalogue)
        case kinds.Licensed():
            return _licensed(check, catalogue)
        case kinds.Fits():
            return _fits(check, catalogue)
        case kinds.Recommended():
            return _recommended(check, catalogue, at)
    raise AssertionError(check)  # those that need no catalogue have been answered


def _parameters(check: kinds.Parameters, catalogue: Catalogue) -> list[Answer]:
    model = catalogue.get(check.model)
    found = []
    if model.spec_name:
        spec = load_spec(model.spec_name)
        count = (active_parameters if check.active else total_parameters)(spec)
        found.append(Answer(check.holds(count), f"{words.count(count)} parameters counted from its config"))
    published = known(model.active_parameters if check.active else model.total_parameters, catalogue.as_of)
    if published and published.value is not None:
        text = f"{words.count(published.value)} parameters published ({published.source}, {published.date})"
        found.append(Answer(check.holds(published.value), text))
    return found


def _context(check: kinds.Context, catalogue: Catalogue) -> list[Answer]:
    """What the weights allow; an API's own limit decides only where nobody says that."""
    model = catalogue.get(check.model)
    weights, api = known(model.context, catalogue.as_of), known(model.api_context, catalogue.as_of)
    found = []
    if weights and weights.value is not None:
        text = f"{weights.value:,} tokens ({weights.source}, {weights.date})"
        found.append(Answer(check.holds(weights.value), text))
    if api and api.value is not None:
        text = f"{api.value:,} tokens at its lab's API ({api.source}, {api.date})"
        found.append(Answer(None if found else check.holds(api.value), text))
    return found


def _same_parts(check: kinds.SameParts, catalogue: Catalogue) -> list[Answer]:
    """One answer per kind of part; and, as a remark, the sizes in which parts of one kind differ."""
    names = [catalogue.get(name).spec_name for name in (check.model, check.reference)]
    ours, theirs = (load_spec(name) if name else None for name in names)
    if ours is None or theirs is None:
        return []
    found, mine, other = [], _parts(ours), _parts(theirs)
    for part, kind in mine.items():
        text = f"{part}: {kind}" + ("" if kind == other[part] else f", against {other[part]}")
        found.append(Answer(kind == other[part], text))
    sizes = [
        f"{name} {value} (of {check.reference} {_sizes(theirs)[name]})"
        for name, value in _sizes(ours).items()
        if name in _sizes(theirs) and value != _sizes(theirs)[name]
    ]
    return [*found, Answer(None, f"other sizes: {', '.join(sizes)}")] if sizes else found


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


def _cache_ratio(check: kinds.CacheRatio, catalogue: Catalogue) -> list[Answer]:
    sizes = []
    for name in (check.model, check.reference):
        spec_name = catalogue.get(name).spec_name
        if spec_name is None:
            return []
        sizes.append(cache_bytes(load_spec(spec_name), check.context).ideal)
    ours, theirs = sizes
    text = (
        f"{words.gib(ours)} at {check.context:,} tokens, against {words.gib(theirs)} of "
        f"{check.reference}: {ours / theirs:.3f} of it"
    )
    return [Answer(check.holds(ours / theirs), text)]


def _optimizer_bytes(check: kinds.OptimizerBytes, catalogue: Catalogue) -> list[Answer]:
    spec_name = catalogue.get(check.model).spec_name
    if spec_name is None:
        return []
    state = account(load_spec(spec_name)).bytes_of_model
    share = state.muon_state / state.adamw_state
    text = (
        f"{words.size(state.muon_state)} of Muon's state, AdamW for the rest, against "
        f"{words.size(state.adamw_state)} of AdamW's: {share:.3f} of it"
    )
    return [Answer(check.holds(share), text)]


def _price_ratio(check: kinds.PriceRatio, catalogue: Catalogue, at: datetime) -> list[Answer]:
    """One answer per provider, workload and level of price: at every moment at which a price changes."""
    model, reference = catalogue.get(check.model), catalogue.get(check.reference)
    found, told = [], []
    for provider in check.providers or (default_provider(model, at.date()),):
        moments = _price_moments(model, provider, at) | _price_moments(reference, None, at)
        for name, workload in STANDARD.items():
            levels: dict[float, list[str]] = {}
            for moment in sorted(moments):
                share = ratio(model, reference, workload, datetime.combine(at.date(), moment, UTC), provider)
                if share:
                    levels.setdefault(round(1 / share, 9), []).append(f"{moment:%H:%M}")
            for times, since in levels.items():
                when = f", from {' and '.join(since)} UTC" if len(levels) > 1 else ""
                found.append(Answer(check.holds(times), f"{name} at {provider}{when}: 1/{times:.1f}"))
                told.append(times)
    inside = check.expected is not None and told and min(told) < check.expected < max(told)
    if inside and not any(answer.holds for answer in found):
        found.append(Answer(True, f"1/{check.expected:g} lies between: some mix of these uses has it"))
    return found


def _price_moments(model: Model, provider: str | None, at: datetime) -> set[time]:
    """The times of the day at which the price can change; `provider` None is the default one."""
    provider = provider or default_provider(model, at.date())
    prices = prices_on(model, provider, at.date()) if provider else []
    return {time(0), *(edge for price in prices for span in price.hours or () for edge in span)}


def _training_cost(check: kinds.TrainingCost, catalogue: Catalogue) -> list[Answer]:
    hours: dict[str, int] = {}
    texts = []
    for name in (check.model, check.reference):
        fact = known(catalogue.get(name).training_gpu_hours, catalogue.as_of)
        if fact and fact.value:
            hours[name] = fact.value
            texts.append(f"{name}: {fact.value:,} GPU hours ({fact.source}, {fact.date})")
        else:
            texts.append(f"{name}: GPU hours not published")
    both = len(hours) == 2
    return [
        Answer(check.holds(hours[check.model] / hours[check.reference]) if both else None, "; ".join(texts))
    ]


def _score(check: kinds.ScoreOf, catalogue: Catalogue) -> list[Answer]:
    """Where a claim does not name its test, one with its value supports it and the others say nothing."""
    model = catalogue.get(check.model)
    found = []
    for column, results in comparable([model], check.tests).items():
        for score in results[model.name].scores:
            holds = check.holds(score.value)
            text = f"{column}: {score.value:g} by {score.reported_by} ({score.source}, {score.date})"
            found.append(Answer(True if holds else False if len(check.tests) == 1 else None, text))
    return found


def _score_gap(check: kinds.ScoreGap, catalogue: Catalogue) -> list[Answer]:
    table = comparable([catalogue.get(name) for name in check.models], check.tests)
    found = []
    for column, results in table.items():
        if len(results) == len(check.models):
            values = [result.high for result in results.values()]
            text = ", ".join(f"{name} {result}" for name, result in results.items())
            found.append(Answer(check.holds(max(values) - min(values)), f"{column}: {text}"))
    return found


def _reaches(check: kinds.Reaches, catalogue: Catalogue) -> list[Answer]:
    table = comparable([catalogue.get(check.model), catalogue.get(check.reference)])
    found = []
    for column, results in table.items():
        if check.model in results and check.reference in results:
            ours, theirs = results[check.model], results[check.reference]
            near = theirs.low - ours.high <= check.within.around(theirs.low)
            found.append(Answer(near, f"{column}: {ours}, against {theirs} of {check.reference}"))
    return found


def _leads(check: kinds.Leads, catalogue: Catalogue) -> list[Answer]:
    table = comparable(catalogue.models.values(), check.tests)
    found = []
    for column, results in table.items():
        if check.model in results and len(results) > 1:
            own = results[check.model]
            others = {name: result for name, result in results.items() if name != check.model}
            best = max(others, key=lambda name: others[name].high)
            text = f"{column}: {own}; the next of {len(results)}: {best} {others[best]}"
            if own.low < others[best].high:
                text = f"{column}: {own}; {best} has {others[best]}"
            found.append(Answer(own.low >= others[best].high, text))
    return found


def _released(check: kinds.Released, catalogue: Catalogue) -> list[Answer]:
    fact = known(catalogue.get(check.model).release, catalogue.as_of)
    if fact is None or fact.value is None:
        return []
    return [Answer(check.since <= fact.value <= check.until, f"released on {fact.value} ({fact.source})")]


def _licensed(check: kinds.Licensed, catalogue: Catalogue) -> list[Answer]:
    facts = [(name, known(catalogue.get(name).license, catalogue.as_of)) for name in check.models]
    return [
        Answer(fact.value in check.licenses, f"{name}: {fact.value} ({fact.source}, {fact.date})")
        for name, fact in facts
        if fact and fact.value is not None
    ]


def _fits(check: kinds.Fits, catalogue: Catalogue) -> list[Answer]:
    spec_name = catalogue.get(check.model).spec_name
    if spec_name is None:
        return []
    found = fits(load_spec(spec_name), parse_machine(check.hardware), check.quant, check.context)
    text = f"{words.needs(found)} of {check.hardware}, at {check.context:,} tokens"
    return [Answer(found.fits, text)]


def _recommended(check: kinds.Recommended, catalogue: Catalogue, at: datetime) -> list[Answer]:
    try:
        given = advise(check.scenario, Constraints(), catalogue, at)
    except LichenError as nobody:  # on an early day
        return [Answer(None, str(nobody))]
    names = [place.model for place in given.ranking]
    first = given.ranking[0]
    text = f"first of {len(names)} by the rules for {check.scenario}: {first.model} ({first.decided_by})"
    if check.model in names and first.model != check.model:
        text += f"; {check.model} is number {names.index(check.model) + 1}"
    reasons = [
        f"; {check.model}: {out.constraint}: {out.why}" for out in given.excluded if out.model == check.model
    ]
    return [Answer(first.model == check.model, "".join([text, *reasons]))]
