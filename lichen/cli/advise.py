"""`lichen advise`: which open model to pick, by rules that can be read and changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lichen.cli import options
from lichen.cli.output import print_json, print_text, say_whole
from lichen.errors import LichenError

if TYPE_CHECKING:
    from lichen.atlas.advice.advise import Advice
    from lichen.atlas.advice.constraints import Constraints


def advise(
    scenario: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="NAME", help="agent, reasoning, cost, local, long-term; or of your rules."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            parser=options.dollars, metavar="USD", help="The most that the requests may cost in a month."
        ),
    ] = None,
    requests: Annotated[
        float | None, typer.Option(parser=options.number, help="Requests a day. [default: the rules']")
    ] = None,
    workload: Annotated[
        str | None, typer.Option(metavar="NAME", help="blend, output-heavy or agentic. [default: the rules']")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(metavar="DEVICE:N", help="It must fit there, as `lichen fits` counts.")
    ] = None,
    quant: Annotated[str | None, typer.Option(metavar="NAME", help="Storage of the weights there.")] = None,
    context: Annotated[
        int | None, typer.Option(parser=options.count, metavar="TOKENS", help="It must read as many.")
    ] = None,
    license: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Any of these, or `permissive`; may be repeated.")
    ] = None,
    as_of: options.AsOf = None,
    facts: Annotated[bool, typer.Option("--facts", help="The facts behind every answer.")] = False,
    rules: Annotated[bool, typer.Option("--rules", help="Print the rules instead.")] = False,
    rules_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rules of your own, in place of the shipped ones.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Rank open models for a purpose; say what decided, what was unknown, and what would change it."""
    from lichen.atlas.advice.advise import SHIPPED_RULES, load_rules
    from lichen.atlas.advice.advise import advise as ask
    from lichen.atlas.catalogue.model import load
    from lichen.atlas.market.prices import moment
    from lichen.facts.record import parse_as_of
    from lichen.files.bounded import read_text

    known_rules = load_rules(rules_file or SHIPPED_RULES)
    if rules:
        print_text(read_text(rules_file or SHIPPED_RULES), end="")
        return
    if scenario is None:
        first, *_ = names = list(known_rules.scenarios)
        raise LichenError(f"--for is missing: one of {', '.join(names)}, as in: lichen advise --for {first}")
    given = _constraints(
        budget=budget,
        requests_per_day=requests,
        workload=workload,
        hardware=hardware,
        quant=quant,
        context=context,
        license=tuple(license) if license else None,
    )
    day = parse_as_of(as_of)
    advice = ask(scenario, given, load(as_of=day), moment(day, None), known_rules)
    if not as_json:
        _print(advice, facts)
        return
    constraints, criteria = advice.constraints.model_dump(), [each.model_dump() for each in advice.criteria]
    print_json(asdict(advice) | {"constraints": constraints, "criteria": criteria})


def _constraints(**given: object) -> Constraints:
    """What was said; None for what was not.

    Raises LichenError, with the option, for a value that makes no sense.
    """
    from pydantic import ValidationError

    from lichen.atlas.advice.constraints import Constraints

    said = {name: value for name, value in given.items() if value is not None}
    try:
        return Constraints.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).removesuffix("_per_day")
        problem = first["msg"][:1].lower() + first["msg"][1:]
        raise LichenError(f"--{option} {first['input']}: {problem}") from None


def _print(advice: Advice, facts: bool) -> None:
    from lichen.atlas.market.prices import table

    say_whole(f"{advice.title}, as known on {advice.at.date()}", style="bold")
    say_whole(f"For {'; '.join(_terms(advice.constraints))}. Asked in this order:")
    for number, criterion in enumerate(advice.criteria, 1):
        within = criterion.within
        even = f" (even within {within})" if within.share or within.slack else ""
        say_whole(f"  {number}. {criterion.label}{even}: {criterion.why}")
    for number, place in enumerate(advice.ranking, 1):
        say_whole(f"\n{number}. {place.title}", style="bold")
        for criterion, answer in zip(advice.criteria, place.answers, strict=True):
            say_whole(f"   {criterion.label}: {answer.text}")
            say_whole(*(f"     {fact}" for fact in answer.facts if facts), style="dim")
        if place.decided_by:
            say_whole(f"   {place.decided_by}", style="cyan")
        say_whole(*(f"   {line}" for line in (place.would_change, *place.notes) if line))
    left_out = [f"{out.model}: {out.constraint}: {out.why}" for out in advice.excluded]
    for heading, lines in (("Who would lead otherwise", advice.alternatives), ("Left out", left_out)):
        if lines:
            say_whole(f"\n{heading}", style="bold")
        say_whole(*(f"  {line}" for line in lines))
    name, newest = table()
    say_whole(f"\nPrices from {name}, newest entry {newest}; a row without a date counts as always.")


def _terms(constraints: Constraints) -> Iterator[str]:
    """The constraints that are set, in words."""
    from lichen.atlas.market import words

    yield f"the {constraints.workload} workload"
    yield f"{constraints.requests_per_day:,.0f} requests a day"
    if constraints.budget is not None:
        yield f"at most {words.usd(constraints.budget)} a month"
    if constraints.license:
        yield f"license {' or '.join(constraints.license)}"
    if constraints.context is not None:
        yield f"{constraints.context:,} tokens of context"
    if constraints.hardware is not None:
        yield f"{constraints.hardware} with weights {constraints.quant or 'as released'}"
