"""A fact: a value, who says so, and since when it is known.

A sourced field is a tuple of facts. An empty one means that nothing is known; several mean that the value
changed, or that sources disagree: all are kept and shown.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Annotated, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict

from lichen.errors import LichenError, did_you_mean

T = TypeVar("T")


class Record(BaseModel):
    """What is read from a catalogue file: immutable, and a field it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Fact(Record, Generic[T]):
    """`value` as `source` gave it on `date`; a value of None means that the source declines to say.

    `secondary` marks a source that contradicts a nearer one: kept and shown, not used.
    """

    value: T | None
    source: str
    date: date
    note: str | None = None
    secondary: bool = False


def today() -> date:
    """The date in UTC, which is the clock of prices and releases."""
    return datetime.now(UTC).date()


def _past(day: date) -> date:
    if day > today():
        raise ValueError(f"{day} is in the future")
    return day


Past = Annotated[date, AfterValidator(_past)]  # a day on which something was said or done


def known(field: Sequence[Fact[T]], as_of: date | None = None) -> Fact[T] | None:
    """The fact to use on the day `as_of` (None: on the day that `field` is of): the latest one dated no
    later; None when nothing was known.

    A secondary source speaks only where there is no other; of several facts of one day the first counts.
    """
    told = [fact for fact in field if as_of is None or fact.date <= as_of]
    return max(told, key=lambda fact: (not fact.secondary, fact.date), default=None)


def known_value(field: Sequence[Fact[T]]) -> T | None:
    """The value of the fact to use; None also where its source declines to say."""
    fact = known(field)
    return None if fact is None else fact.value


def named(
    name: str,
    found: Mapping[str, T],
    later: Mapping[str, date],
    as_of: date,
    what: str,
    where: str,
    verb: str,
) -> T:
    """What is called `name` among those `found` on the day `as_of`.

    Raises LichenError with the day of what came `later`, or with the nearest names: there is no such `what`
    in the `where`, which the command `verb` lists.
    """
    if name in found:
        return found[name]
    if name in later:
        raise LichenError(f"{name} came out on {later[name]}, which is after {as_of}")
    hint = did_you_mean(name, found, f"`{verb}` names them all")
    raise LichenError(f"no {what} {name!r} in the {where} on {as_of}; {hint}")


def parse_as_of(text: str | None) -> date:
    """The day an `--as-of` option names; today without one. Raises LichenError for one not yet here."""
    if text is None:
        return today()
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise LichenError(
            f"--as-of {text!r} is not a date: write it as YYYY-MM-DD, like 2026-04-30"
        ) from None
    if day > today():
        raise LichenError(f"--as-of {day} is in the future: nothing is known about it; today is {today()}")
    return day
