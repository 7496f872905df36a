"""Ranking without weights: hand-made cases, and what must hold for any values."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lichen.atlas.advice.ranking import Margin, Place, Scale, rank


def names(places: list[Place]) -> str:
    return "".join(place.name for place in places)


def test_the_first_criterion_decides_where_it_can_and_the_second_among_the_even() -> None:
    price = Scale({"a": 1.0, "b": 1.2, "c": 1.3}, False, Margin(share=0.25))
    score = Scale({"a": 50.0, "b": 60.0, "c": 90.0}, True, Margin())
    # a and b cost the same within 25 % of 1.0, c does not; b is the better of the two. Then a and c are left:
    # c costs more than 1.25.
    assert rank("abc", [price, score]) == [Place("b", 1, 60.0), Place("a", 0, 1.25), Place("c")]


def test_a_plain_margin_is_in_the_unit_of_the_value() -> None:
    won = Scale({"a": 5.0, "b": 3.0, "c": 2.9}, True, Margin(slack=2))
    price = Scale({"a": 9.0, "b": 1.0, "c": 0.1}, False, Margin())
    assert rank("abc", [won, price]) == [Place("b", 1, 1.0), Place("a", 0, 3.0), Place("c")]


def test_an_unknown_value_stands_behind_every_known_one_but_not_behind_another_unknown() -> None:
    first = Scale({"a": None, "b": -7.0, "c": None}, True, Margin())
    second = Scale({"a": 1.0, "b": 3.0, "c": 2.0}, False, Margin())
    assert rank("abc", [first, second]) == [Place("b", 0, -7.0), Place("a", 1, 1.0), Place("c")]


def test_whom_nothing_tells_apart_stay_in_the_given_order() -> None:
    scale = Scale({"a": 1.0, "b": 1.0}, True, Margin())
    assert rank("ba", [scale]) == [Place("b"), Place("a")]
    assert rank("", [scale]) == []


VALUES = st.one_of(st.none(), st.floats(-100, 100))


@given(
    st.lists(st.lists(VALUES, min_size=5, max_size=5), min_size=1, max_size=4),
    st.floats(0, 0.5),
    st.booleans(),
)
def test_every_neighbour_is_separated_by_the_criterion_that_is_named(
    rows: list[list[float | None]], share: float, higher: bool
) -> None:
    scales = [Scale(dict(zip("abcde", row, strict=True)), higher, Margin(share=share)) for row in rows]
    places = rank("abcde", scales)
    assert sorted(names(places)) == list("abcde")
    for place, after in pairwise(places):
        if place.decided is None:
            continue
        values = scales[place.decided].values
        mine, other = values[place.name], values[after.name]
        assert mine is not None
        assert place.limit is not None
        if other is not None:  # the winner keeps to the limit and the next place does not
            assert (mine >= place.limit > other) if higher else (mine <= place.limit < other)


@given(st.lists(VALUES, min_size=5, max_size=5))
def test_one_criterion_without_a_margin_sorts(row: list[float | None]) -> None:
    values = dict(zip("abcde", row, strict=True))
    order = [values[place.name] for place in rank("abcde", [Scale(values, True, Margin())])]
    told = [value for value in order if value is not None]
    assert order == sorted(told, reverse=True) + [None] * (5 - len(told))


@pytest.mark.parametrize(
    ("written", "margin"), [("10%", Margin(share=0.1)), (2, Margin(slack=2)), (0.5, Margin(slack=0.5))]
)
def test_a_margin_in_yaml(written: object, margin: Margin) -> None:
    assert Margin.model_validate(written) == margin


@pytest.mark.parametrize("written", ["ten%", "-5%", -1, "10", None, True])
def test_a_margin_that_is_none(written: object) -> None:
    with pytest.raises(ValidationError):
        Margin.model_validate(written)
